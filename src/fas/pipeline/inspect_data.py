"""``fas inspect --data``: massive activations of a model on some text, and the prefix that FAS would give it."""

from __future__ import annotations

from typing import Any

import torch

from fas.config import SpikingConfig
from fas.conversion.install import decoders
from fas.conversion.prefix_search import find_prefix
from fas.errors import FasError
from fas.models import planned
from fas.pipeline.load import block_length, load_ann
from fas.pipeline.outliers import described, table_of
from fas.progress import Progress
from fas.report.inspection_text import aligned
from fas.tasks.language_modeling import Blocks, encode_blocks
from fas.tasks.reading.journal import Reading
from fas.tasks.text import evaluation_text

SEQUENCES = 8


def massive_on(model: str, data: str, length: int | None, progress: Progress) -> dict[str, Any]:
    """Where the ANN ``model`` has massive activations on the first text of ``data``, and the prefix that takes them over.

    Raises `FasError` for a converted model, or one that is no causal decoder.
    """
    ann, tokenizer = load_ann(model)
    config = SpikingConfig(activation="keep", levels=15)
    plan = planned(ann, config)
    able = decoders(plan)
    if not able:
        raise FasError(f"{model} is no causal decoder, so it can have no prefix; leave --data out")
    size = block_length(ann.config, length)
    reading = Reading(progress)
    blocks = Blocks(encode_blocks(tokenizer, evaluation_text(data, data, tokenizer, reading), size))
    reading.tell()
    batches = [{"input_ids": batch.to(ann.device)} for batch in blocks.tokens[:SEQUENCES].split(2)]
    (segment,) = able
    places = [place for some, inside in plan if some is segment for place in inside]
    with torch.no_grad():
        found = find_prefix(ann, segment, places, batches, config, progress)
    return {"data": data, **described(found, tokenizer)}


def massive_text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"Largest values of a token at the inputs of linear layers, on {found['data']}:", *_table(found["before"])]
    if not found["massive"]:
        return "\n".join([*lines, "Nothing is massive: no prefix is needed."])
    shown = ", ".join(f"{text!r} ({token})" for text, token in zip(found["text"], found["prefix"], strict=True))
    before, after = found["ann_loss"]
    return "\n".join([
        *lines, "", f"With a prefix of {len(found['prefix'])} tokens, {shown}:", *_table(found["after"]),
        f"Loss of the original model there: {before:.4f} nats a token, with the prefix {after:.4f}.",
    ])  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> list[str]:
    return aligned(table_of(rows))
