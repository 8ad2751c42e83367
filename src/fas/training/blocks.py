"""Stage 1 a block at a time: scales of a block are fitted, and all its parameters trained, before the next one is looked at.

Each block learns to give what the ANN's gives on the ANN's own hidden states, from what the quantized blocks before it give: so
it also undoes their errors. What stands outside of the blocks (embedding, last norm, head) stays as it is; its sites get their
scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from fas import world
from fas.config import SpikingConfig
from fas.conversion.atomic import atomic
from fas.conversion.install import refuse_prepared
from fas.conversion.kept import Kept, fingerprint_of
from fas.errors import ConfigError
from fas.given import Batches, batches_for, config_from, folder_from, model_from, options_from
from fas.models import planned
from fas.offloading import refuse_offloaded
from fas.progress import Progress, progress_from
from fas.sections import Reports
from fas.training.block import BlockOptions, BlockReport
from fas.training.pair import Pair
from fas.training.walk import Walk


def train_blocks(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    config: SpikingConfig | Mapping[str, Any],
    batches: Batches,
    options: BlockOptions | Mapping[str, Any] | None = None,
    progress: Progress | bool | None = None,
    work: Path | str | None = None,
) -> Reports[BlockReport]:
    """Turn the ANN ``model`` into its QCFS model, trained a block at a time, in place.

    Raises `DataError` without batches, `FasError` for a model of several parts, and what `prepare` raises.

    Args:
        model: The ANN; it ends as after `prepare` and training.
        teacher: The same ANN once more; it is left as it is.
        config: What the SNN is to be.
        batches: Keyword arguments of the model; one of them is a step.
        options: How blocks are trained.
        progress: Who is told how far it is; True: a bar.
        work: Folder for finished blocks and hidden states, so that an interrupted call goes on; None: all is held in memory.
    """
    for each in (model, teacher):
        model_from(each, "fas.train_blocks")
        refuse_offloaded(each, "fas.train_blocks")
        refuse_prepared(each)
    if type(model) is not type(teacher) or model is teacher:
        raise ConfigError(
            f"fas.train_blocks needs the same ANN twice, loaded or copied (copy.deepcopy), and was given "
            f"{'one object' if model is teacher else f'a {type(model).__name__} and a {type(teacher).__name__}'}"
        )
    config, progress = config_from(config, "fas.train_blocks"), progress_from(progress)
    options = options_from(options, BlockOptions, "fas.train_blocks") or BlockOptions()
    listed = batches_to_train(model, batches, "fas.train_blocks")
    kept = folder = None
    if work is not None:
        folder = folder_from(work, "work", "fas.train_blocks")
        folder.mkdir(parents=True, exist_ok=True)
        kept = Kept(folder / "blocks", fingerprint_of(model.state_dict().items(), listed, options, key_of(config)))
    pair = Pair(teacher, model, model.device, lambda *_: nullcontext())
    planned(model, config)  # refused before anything is changed
    with _as_it_was(model, teacher):
        return Reports(Walk(pair, config, listed, options, progress, kept, folder).run())


@contextmanager
def _as_it_was(model: PreTrainedModel, teacher: PreTrainedModel) -> Iterator[None]:
    """All or nothing: if the body raises, ``model`` is the ANN again, with the weights of ``teacher``."""
    try:
        with atomic(model), atomic(teacher):
            yield
    except BaseException:
        model.load_state_dict(teacher.state_dict())
        raise


def key_of(config: SpikingConfig) -> str:
    """What decides Stage 1 beside weights, batches and options."""
    return f"blocks {config.model_dump_json()}"


def batches_to_train(
    model: PreTrainedModel, batches: Batches, verb: str, device: torch.device | None = None
) -> list[dict[str, Any]]:
    """``batches`` for ``verb``, which trains in one process."""
    if world.size() > 1:
        raise ConfigError("a block at a time is trained by one process; start it without torchrun")
    return batches_for(model, batches, verb, device)
