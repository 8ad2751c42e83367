"""RoBERTa: BERT with positions that start behind the padding token."""

from fas.models.family import Family, register
from fas.models.shapes import BERT_BLOCK, BERT_PARTS, BERT_POOLER, classes

register(
    Family(
        name="roberta",
        segment="RobertaModel",
        block="RobertaLayer",
        sites=BERT_BLOCK,
        segment_sites=(BERT_POOLER,),
        analog=classes("Roberta", *BERT_PARTS),
    )
)
