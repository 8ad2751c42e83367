"""A conversion before its first stage: model and examples, checked, and the fingerprint of both."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from fas import world
from fas.errors import ConfigError
from fas.models import note_unknown, planned
from fas.pipeline.options import ConvertOptions
from fas.pipeline.origin import Source
from fas.pipeline.run import Run
from fas.pipeline.source import source_of
from fas.pipeline.stages import batch_size
from fas.pipeline.workspace import Workspace
from fas.progress import Progress, Silent
from fas.report.results import versions
from fas.tasks.examples import Examples
from fas.training import batch_for, require_peft
from fas.training.pair import only_segment


@dataclass
class Prepared:
    """Loaded and checked, nothing computed yet."""

    model: PreTrainedModel | None
    source: Source
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
        return Run(options, workspace, progress, self.source, self.device)

    def fingerprint(self, options: ConvertOptions, **more: Any) -> str:
        """Hash of the options, the weights, the text and the versions: what a resumed run must share."""
        text = _digest_of(self.source.training, self.source.held_out, self.source.evaluation)
        return options.fingerprint(**({"weights": _digest(self.ann), "text": text, "versions": _versions()} | more))


def prepared(options: ConvertOptions, progress: Progress | None = None) -> Prepared:
    """Load model and data; raises `FasError` kinds for what cannot be converted, before anything is computed."""
    if options.stage1 == "lora":
        require_peft()
    ann, source = source_of(options, progress or Silent())
    plan = planned(ann, options.configurations()[0])  # an unsupported model is refused before anything is trained
    note_unknown(ann, [segment for segment, _ in plan])
    if source.new_head and options.stage1 in ("none", "blocks"):
        raise ConfigError(
            f"{options.model} has no head for {options.task} yet, so stage1={options.stage1!r} would convert a random one; "
            "fine-tune it first, or choose stage1='full'"
        )
    if options.stage1 == "blocks":
        if world.size() > 1:
            raise ConfigError("stage1='blocks' is trained by one process; start it without torchrun")
        only_segment(ann, options.configurations()[0])
    elif options.stage1 != "none":
        batch_for(batch_size(options), len(source.training))
    if options.fsdp and world.size() == 1:
        raise ConfigError("fsdp shares Stage 1 among several processes; start with torchrun, or leave --fsdp out")
    return Prepared(ann, source, ann.device)


def _digest(model: PreTrainedModel) -> str:
    digest = hashlib.sha256(str(model.config.to_json_string()).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().flatten()[:: max(1, value.numel() // 4096)].cpu().numpy().tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    """A resumed run must not mix stages of two versions."""
    return {name: version for name, version in versions().items() if name != "platform"}


def _digest_of(*examples: Examples) -> str:
    return hashlib.sha256(b"".join(some.digest() for some in examples)).hexdigest()
