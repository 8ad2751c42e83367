"""What a conversion starts from: the model, and its text as blocks; and the fingerprint of both."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fas.models import planned
from fas.pipeline.load import block_length, load_ann
from fas.pipeline.options import ConvertOptions
from fas.pipeline.stages import Run
from fas.pipeline.workspace import Workspace
from fas.progress import Progress
from fas.report.results import versions
from fas.tasks.language_modeling import encode_blocks, spread
from fas.tasks.text import load_text


@dataclass
class Prepared:
    """Loaded and checked, nothing computed yet. Blocks are ``[N, S]``."""

    model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    training: Tensor
    held_out: Tensor
    evaluation: Tensor
    device: torch.device

    @property
    def ann(self) -> PreTrainedModel:
        """The original model, until it is released."""
        assert self.model is not None
        return self.model

    def release(self) -> None:
        """Let go of the original model."""
        self.model = None

    def run(self, options: ConvertOptions, workspace: Workspace, progress: Progress) -> Run:
        """What the stages of one conversion share."""
        return Run(
            options, workspace, progress, self.tokenizer, self.training, self.held_out, self.evaluation, self.device
        )

    def fingerprint(self, options: ConvertOptions, **more: Any) -> str:
        """Hash of the options, the weights, the text and the versions: what a resumed run must share."""
        text = _text_digest(self.training, self.held_out, self.evaluation)
        return options.fingerprint(**({"weights": _digest(self.ann), "text": text, "versions": _versions()} | more))


def prepared(options: ConvertOptions) -> Prepared:
    """Load model and text; raises `FasError` kinds for what cannot be converted, before anything is computed."""
    ann, tokenizer = load_ann(options.model, options.device)
    planned(ann, options.configurations()[0])  # an unsupported model is refused before anything is trained
    text = load_text(options.data, options.eval_data)
    length = block_length(ann, options.length)
    training, held_out = (
        encode_blocks(tokenizer, documents, length, what)
        for documents, what in ((text.training, "training text"), (text.held_out, "held-out training text"))
    )
    evaluation = spread(encode_blocks(tokenizer, text.evaluation, length, "evaluation text"), options.eval_sequences)
    return Prepared(ann, tokenizer, training, held_out, evaluation, ann.device)


def _digest(model: PreTrainedModel) -> str:
    digest = hashlib.sha256(str(model.config.to_json_string()).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().flatten()[:: max(1, value.numel() // 4096)].cpu().numpy().tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    """A resumed run must not mix stages of two versions."""
    return {name: version for name, version in versions().items() if name != "platform"}


def _text_digest(*blocks: Tensor) -> str:
    return hashlib.sha256(b"".join(block.numpy().tobytes() for block in blocks)).hexdigest()
