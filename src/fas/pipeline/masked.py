"""Stage 1 on general text before the task: an encoder's masked-language modelling, with and without units.

The QCFS model's encoder learns to work on its grid from text without labels; the control has the same text and steps.
"""

from __future__ import annotations

from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from fas import world
from fas.conversion import prepare
from fas.errors import FasError
from fas.pipeline.load import block_length, resolve
from fas.pipeline.run import Run, adapters_of, batches_on
from fas.tasks.language_modeling import Blocks, encode_blocks
from fas.tasks.masked import MaskedBlocks
from fas.tasks.reading.journal import Reading
from fas.tasks.text import load_text
from fas.training import Stage1Options, fine_tune

MASKED_LR = 1e-4


def begin_with_text(run: Run, model: PreTrainedModel, spiking: bool) -> None:
    """Give the encoder of ``model`` the weights (and scales, if ``spiking``) that masked-language modelling has trained.

    Nothing happens without ``mlm_data``. Computed once a run and kept. Raises `FasError` for a model without such a head, or a
    tokenizer without a mask.
    """
    if run.options.mlm_data is None:
        return
    stage = "text-qcfs" if spiking else "text-control"
    if not run.workspace.has(stage):
        values = _trained(run, model, spiking)
        run.workspace.store(stage, lambda folder: save_file(values, folder / "encoder.safetensors"))
    values = load_file(run.workspace.path(stage) / "encoder.safetensors", str(run.device))
    unknown = model.base_model.load_state_dict(values, strict=False).unexpected_keys
    assert not unknown, unknown


def _trained(run: Run, like: PreTrainedModel, spiking: bool) -> dict[str, Tensor]:
    options, tokenizer = run.options, cast(PreTrainedTokenizerBase, run.source.tokenizer)  # options refuse images
    if tokenizer.mask_token_id is None:
        raise FasError(f"{options.model} has no mask token, so it cannot begin with masked text; leave mlm_data out")
    reading = Reading(run.progress)
    documents = load_text(str(options.mlm_data), None, tokenizer, reading).training
    reading.tell()
    blocks = encode_blocks(tokenizer, documents, block_length(like.config, options.length), "text of mlm_data")
    set_seed(options.seed)
    (model, whole), teacher = _with_head(run), None
    if spiking:
        batches = batches_on(run.device, Blocks(blocks).some(Blocks.CALIBRATION).unpadded(8))
        prepare(model, options.configurations()[0], batches, progress=run.progress)
        teacher = _with_head(run)[0] if whole else None  # a new head has nothing to teach
    settings = Stage1Options(
        steps=options.mlm_steps, batch_size=options.batch_size or 32, lr=options.lr or MASKED_LR,
        scale_lr=options.scale_lr or 10 * (options.lr or MASKED_LR), lora=adapters_of(options),
        fsdp=options.fsdp, seed=options.seed,
    )  # fmt: skip
    title = f"masked text: fine-tuning the {'QCFS model' if spiking else 'ANN'}"
    examples = MaskedBlocks(blocks, tokenizer, options.seed + world.rank())  # each process hides tokens of its own
    fine_tune(model, examples, settings, teacher, run.progress, title)
    known = set(like.base_model.state_dict())
    values = {name: value.detach().cpu().contiguous() for name, value in model.base_model.state_dict().items()}
    return {name: value for name, value in values.items() if name in known}


def _with_head(run: Run) -> tuple[PreTrainedModel, bool]:
    """The original model with a head for masked text, and whether the checkpoint has that head."""
    place = resolve(run.options.model)
    try:
        loaded, found = AutoModelForMaskedLM.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FasError(f"{run.options.model} has no form for masked text ({reason}); leave mlm_data out") from None
    return loaded.to(run.device).eval(), not found["missing_keys"]
