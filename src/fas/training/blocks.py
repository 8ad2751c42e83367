"""Stage 1 a block at a time: scales of a block are fitted, and all its parameters trained, before the next one is looked at.

Each block learns to give what the ANN's gives on the ANN's own hidden states, from what the quantized blocks before it give: so
it also undoes their errors. What stands outside of the blocks (embedding, last norm, head) stays as it is; its sites get their
scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from fas import world
from fas.config import SpikingConfig
from fas.conversion.kept import Kept, fingerprint_of
from fas.errors import ConfigError, DataError
from fas.offloading import refuse_offloaded
from fas.progress import Progress, Silent
from fas.training.block import BlockOptions, BlockReport
from fas.training.pair import Pair
from fas.training.walk import Walk


def train_blocks(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    config: SpikingConfig,
    batches: Iterable[Mapping[str, Any]],
    options: BlockOptions | None = None,
    progress: Progress | None = None,
    work: Path | str | None = None,
) -> list[BlockReport]:
    """Turn the ANN ``model`` into its QCFS model, trained a block at a time, in place.

    Raises `DataError` without batches, `FasError` for a model of several parts, and what `prepare` raises.

    Args:
        model: The ANN; it ends as after `prepare` and training.
        teacher: The same ANN once more; it is left as it is.
        config: What the SNN is to be.
        batches: Keyword arguments of the model; one of them is a step.
        options: How blocks are trained.
        progress: Who is told how far it is.
        work: Folder for finished blocks and hidden states, so that an interrupted call goes on; None: all is held in memory.
    """
    for each in (model, teacher):
        refuse_offloaded(each, "fas.train_blocks")
    listed, options = checked_batches(batches), options or BlockOptions()
    kept = folder = None
    if work is not None:
        folder = Path(work)
        folder.mkdir(parents=True, exist_ok=True)
        kept = Kept(folder / "blocks", fingerprint_of(model.state_dict().items(), listed, options, key_of(config)))
    pair = Pair(teacher, model, model.device, lambda *_: nullcontext())
    return Walk(pair, config, listed, options, progress or Silent(), kept, folder).run()


def key_of(config: SpikingConfig) -> str:
    """What decides Stage 1 beside weights, batches and options."""
    return f"blocks {config.model_dump_json()}"


def checked_batches(batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``batches`` without labels; raises `DataError` where there are none."""
    listed = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    if not listed:
        raise DataError("no batches to train on: give at least one batch of training text")
    if world.size() > 1:
        raise ConfigError("a block at a time is trained by one process; start it without torchrun")
    return listed
