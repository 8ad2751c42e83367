"""What a family declares, and the registry. A family is one small file of data; no architecture has code of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from fas.config import Coverage, Part

COVERAGE_ORDER: tuple[Coverage, ...] = ("ffn", "linear", "attention", "full")

Operand = Literal["query", "key", "value", "probabilities"]
Kind = Literal["input", "operand", "cross", "output", "norm", "group"]
"""What a site encodes: the ``input`` of linear layers; an ``operand`` of attention (``cross``: whose keys are another
sequence's); the ``output`` of a module that meets another in a product; the input of a ``norm``; a ``group`` is the neurons
of an operator, and its argument has a range of its own."""

# Modules of every family that stay analog in the coverages that exist: they act on running values as they are.
COMMON_ANALOG = frozenset({"ModuleList", "Dropout", "Embedding", "LayerNorm", "Identity"})

# Tensor arguments whose first axis is the batch, by the argument's name; any other raises until it is declared here.
FOLDABLE = frozenset(
    {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids", "pixel_values"},
)


@dataclass(frozen=True)
class SiteSpec:
    """One kind of site inside a block (or inside the segment itself), by paths relative to it."""

    name: str
    consumers: tuple[str, ...]
    """Modules that read the encoding, in the order in which they run; all are handed the same tensor."""
    coverage: Coverage = "linear"
    """Smallest coverage that has this site."""
    signed: bool = True
    replaces: str | None = None
    """Pointwise activation that the (then unsigned) QCFS unit stands in for."""
    rotates: Literal["product", "heads"] | None = None
    """Why its values are uneven, so that `SpikingConfig.rotation` applies to it: the heavy tails of a gated product, or
    attention heads of different sizes."""
    last: bool = False
    """Whether this site of a segment runs behind its blocks."""
    optional: bool = False
    """Whether some models of the family lack the consumers."""
    kind: Kind = "input"
    """All kinds but ``input`` have one consumer, the module whose operand, output, norm or function is meant."""
    role: str | None = None
    """Under which name that module finds the site: an `Operand`, or the function of a group."""
    read_by: str | None = None
    """``output``: the linear layer that reads the product, as many channels wide."""
    half: bool = False
    """``output``: whether only the second half of the channels is meant (the other is the gate's)."""
    needs: str | None = None
    """Module of the block that decides whether it has this site (plain or gated FFN, cross-attention or none)."""

    def is_in(self, coverage: Coverage) -> bool:
        return COVERAGE_ORDER.index(self.coverage) <= COVERAGE_ORDER.index(coverage)


@dataclass(frozen=True)
class Family:
    """Where the sites of an architecture are. Modules are found by class name, never by path from the top."""

    name: str
    segment: str
    """Class through whose forward time is folded."""
    part: Part = "text"
    """What the segment is in a vision-language model; a Q-Former is a projector."""
    block: str = ""
    """Class of the repeated layer; a projector has none."""
    positions: Literal["rotary", "learned"] | None = None
    """How a causal decoder is told the places of tokens; None: it is none, and can have no prefix (`fas.runtime.prefix`)."""
    position_table: str = ""
    """Where positions are learned: the module that embeds them."""
    sites: tuple[SiteSpec, ...] = ()
    """Sites of every block."""
    segment_sites: tuple[SiteSpec, ...] = ()
    """Sites of the segment outside its blocks."""
    analog: frozenset[str] = frozenset()
    """Class names of this family that stay analog or only contain other modules, beside `COMMON_ANALOG`."""
    twice: frozenset[str] = frozenset()
    """Norms, by the end of their name, that run twice in one forward; one site could not follow both, so they stay analog."""
    foldable: frozenset[str] = field(default=FOLDABLE)
    """Tensor arguments of the segment that are repeated over time."""
    anchors: tuple[str, ...] = ("input_ids", "inputs_embeds", "pixel_values")
    """Arguments that say how many rows the batch has; one of them is always given."""
    batch_axis: Mapping[str, int] = field(default_factory=dict)
    """Axis of the batch in the arguments where it is not the first."""
    packed: frozenset[str] = frozenset()
    """Arguments that describe the rows (sizes of packed images): repeated as a whole, whatever their own number."""
    reads: tuple[str, str] | None = None
    """Segment beside this one whose hidden states it reads, and the model's setting that says which.

    Layers behind the last one that is read have no sites: nothing would ever see their spikes.
    """
    runs_last: bool = False
    """Whether the segment runs behind all others of its model, wherever it is listed."""


REGISTRY: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Add a family; its segment class name is the key by which models are recognised."""
    REGISTRY[family.segment] = family
    return family


def supported() -> str:
    """The names of all registered families, for messages."""
    return ", ".join(sorted({family.name for family in REGISTRY.values()}))


def relative_of(model: nn.Module) -> str:
    """For messages: the family after which ``model`` is named, if there is one, which is where a declaration starts from.

    Among several the longest name counts: ``XLMRobertaModel`` is nearer to RoBERTa than to BERT.
    """
    name = type(model).__name__.lower()
    close = [f.name for f in REGISTRY.values() if f.name.replace("_", "") in name]
    return f"its nearest relative is {max(close, key=len)}; " if close else ""
