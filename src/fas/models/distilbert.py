"""DistilBERT: BERT's block under other names, without a pooler."""

from fas.models.family import Family, SiteSpec, register
from fas.models.shapes import attention

register(
    Family(
        name="distilbert",
        segment="DistilBertModel",
        block="TransformerBlock",
        sites=(
            SiteSpec("attention_input", ("attention.q_lin", "attention.k_lin", "attention.v_lin")),
            *attention("attention"),
            SiteSpec("attention_output", ("attention.out_lin",), rotates="heads"),
            SiteSpec("ffn_input", ("ffn.lin1",)),
            SiteSpec("ffn_hidden", ("ffn.lin2",), coverage="ffn", signed=False, replaces="ffn.activation"),
        ),
        analog=frozenset({"Embeddings", "Transformer", "DistilBertSelfAttention", "FFN"}),
    )
)
