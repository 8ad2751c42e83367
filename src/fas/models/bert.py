"""BERT: post-norm encoder, a pointwise activation, a pooler on the first token."""

from fas.models.family import Family, register
from fas.models.shapes import BERT_BLOCK, BERT_PARTS, BERT_POOLER, classes

register(
    Family(
        name="bert",
        segment="BertModel",
        block="BertLayer",
        sites=BERT_BLOCK,
        segment_sites=(BERT_POOLER,),
        analog=classes("Bert", *BERT_PARTS),
    )
)
