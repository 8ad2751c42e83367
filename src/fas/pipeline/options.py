"""What ``fas convert`` is asked to do: one frozen, validated description, whose fingerprint guards a resumed run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fas.config import (
    USUAL_LEVELS,
    USUAL_TIMESTEPS,
    Activation,
    Coding,
    Coverage,
    Part,
    Rotation,
    Rows,
    Scales,
    SpikingConfig,
)
from fas.errors import ConfigError
from fas.tasks.glue import LANGUAGE_MODELING, TEMPLATE, VISUAL, ZERO_SHOT_IMAGES, TextTask, text_task

_DTYPES = ("float32", "bfloat16", "float16")
_LEAST = {
    "batch_size": 1, "calibration_sequences": 1, "eval_sequences": 1, "stage1_steps": 1, "mlm_steps": 1, "length": 2, "seed": 0,
    "neurons_per_channel": 1, "fit_steps": 0, "align_steps": 0, "global_steps": 0, "lr": 0, "scale_lr": 0,
    "spikes_per_neuron": 0, "spike_price": 0, "lora_rank": 1, "lora_alpha": 0, "distill_states": 0, "stage1_sequences": 1,
    "stage1_finetune_steps": 0,
}  # fmt: skip

FINE_LEVELS = 31
"""L where it is left open: two neurons a channel settle on a grid twice as fine (docs/real-models.md)."""
BUDGET_PRICE = 0.003
"""Under a spike budget: spikes of corrections on the way to the last timestep are half of all without it (docs/log.md)."""


@dataclass(frozen=True)
class ConvertOptions:
    """A conversion from a model and a text to a folder. Raises `ConfigError` in one sentence for bad values."""

    model: str
    data: str
    out: Path
    eval_data: str | None = None
    """What is evaluated on; of labelled texts several files after commas."""
    task: str = LANGUAGE_MODELING
    text_column: str | None = None
    """Labelled texts: the column of the text, by name or by number from 0; the same for the next two."""
    pair_column: str | None = None
    label_column: str | None = None
    template: str = TEMPLATE
    """Zero-shot classes of images: the text that stands for a class, whose name is put in the place of ``{}``."""
    mlm_data: str | None = None
    """Labelled texts: general text that Stage 1 begins with, by masked-language modelling (the control, too)."""
    mlm_steps: int = 1000
    coverage: Coverage = "linear"
    levels: int | None = None
    """None: `FINE_LEVELS` where activations are massive and several neurons share a channel, else `USUAL_LEVELS`."""
    codings: tuple[Coding, ...] = ("sigma_delta",)
    timesteps: tuple[int, ...] = (USUAL_TIMESTEPS,)
    neurons_per_channel: int | None = None
    """None: two where activations are massive, as they are in deep pre-trained decoders, else one."""
    steps: tuple[int, ...] | None = None
    rows: Rows = "mean"
    rotation: Rotation | None = None
    """None: heads where activations are massive, else hadamard."""
    center: bool | None = None
    """None: where activations are massive."""
    prefix: Literal["auto"] | tuple[int, ...] = "auto"
    """Tokens of a prefix against massive activations; auto: found on the calibration data, () is none."""
    scales: Scales = "channel"
    activation: Activation = "replace"
    parts: tuple[Part, ...] = ()
    """Of a vision-language model: what spikes; () is all."""
    targets: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    stage1: Literal["full", "lora", "blocks", "none"] = "full"
    """blocks: one block of the network at a time learns to give the ANN's hidden states."""
    stage1_steps: int | None = None
    """Of blocks: steps of each block."""
    stage1_sequences: int = 1024
    """Of blocks: examples whose hidden states lie on disk."""
    stage1_finetune_steps: int = 0
    """Of blocks: steps of the whole model that follow."""
    batch_size: int | None = None
    """Of Stage 1, all processes together; None: 8 blocks of text, or 32 labelled texts."""
    length: int | None = None
    lr: float | None = None
    scale_lr: float | None = None
    distill: float | None = None
    """Weight of KL(ANN ‖ QCFS model); None: ½, or 1 where the task loss made the control worse than the ANN."""
    distill_states: float = 0.0
    """Weight of the distance of hidden states to the teacher's, block by block (beyond the paper)."""
    lora_rank: int = 16
    lora_alpha: float = 32.0
    """The adapters' product is multiplied by alpha / rank."""
    fsdp: bool = False
    """Under torchrun: the processes share parameters, gradients and optimizer states of Stage 1 (FSDP2)."""
    spikes_per_neuron: float | None = None
    """Budget of Stage 1: expected spikes a neuron, all sites together, in the first coding and time."""
    stage2: bool = True
    spike_price: float | None = None
    """Relative error of a layer that Stage 2 may pay for one spike a neuron less; None: .003 under a spike budget, else 0."""
    calibration_sequences: int | None = None
    """None: 32 blocks of text, or 256 labelled texts."""
    fit_steps: int | None = None
    """None: 32 in networks of up to 12 layers, 0 in deeper ones, whose schedules are found on the whole network."""
    absorb_bias: bool = False
    """Beyond the paper: what is left of a channel's mean error goes into the bias of the layers behind."""
    align_steps: int = 0
    global_steps: int = 0
    eval_sequences: int | None = None
    before_stage2: bool = False
    """Also measure the SNN before Stage 2."""
    from_disk: bool = False
    """Hold one block's weights at a time, in both stages; nothing is measured."""
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.stage1 not in ("full", "lora", "blocks", "none"):
            raise ConfigError(
                f"stage1={self.stage1!r} is not valid: choose 'full', 'lora', 'blocks' or 'none' (training-free)"
            )
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} is not valid: choose one of {', '.join(_DTYPES)}")
        if self.distill is not None and not 0 <= self.distill <= 1:
            raise ConfigError(
                f"distill={self.distill} is not valid: the weight of the distillation loss is between 0 and 1"
            )
        if self.mlm_data is not None and self.stage1 == "none":
            raise ConfigError("mlm_data is for Stage 1, and stage1='none' leaves that out; choose one")
        if self.template != TEMPLATE and self.task != ZERO_SHOT_IMAGES:
            raise ConfigError(f"template={self.template!r} is for {ZERO_SHOT_IMAGES}, and the task is {self.task}")
        if self.task in VISUAL and self.length is not None:
            raise ConfigError(f"length={self.length} cuts texts, and {self.task} needs its answers whole; leave it out")
        if self.task == LANGUAGE_MODELING or self.task in VISUAL:
            given = [name for name in ("text_column", "pair_column", "label_column", "mlm_data") if getattr(self, name)]
            if given:
                raise ConfigError(f"{given[0]} belongs to labelled texts; choose --task, such as text-classification")
        else:
            self.text_task()
        for name in ("stage2", "absorb_bias", "fsdp", "center", "from_disk"):
            if not isinstance(getattr(self, name), bool) and (name != "center" or self.center is not None):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not valid: choose true or false")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool | str):
                raise ConfigError(f"{name}={value!r} is not a number (YAML reads 1e-4 as text; write 1.0e-4)")
            if value is not None and value < least:
                hint = "; stage1='none' (--stage1 none) leaves Stage 1 out" if name == "stage1_steps" else ""
                raise ConfigError(f"{name}={value} is not valid: it must be at least {least}{hint}")
        if self.spikes_per_neuron is not None and (self.spikes_per_neuron == 0 or self.stage1 == "none"):
            raise ConfigError(
                f"spikes_per_neuron={self.spikes_per_neuron} is not valid with stage1={self.stage1!r}: a budget is above 0 and "
                "is trained for"
            )
        if not self.codings or not self.timesteps:
            raise ConfigError("at least one coding and one number of timesteps are needed")
        each = self.neurons_per_channel or 1
        if each > 1 and "sigma_delta" not in self.codings:
            raise ConfigError(
                f"neurons_per_channel={each} needs coding sigma_delta; codings are {', '.join(self.codings)}"
            )
        fitting = [timesteps for timesteps in self.timesteps if self.steps and len(self.steps) == timesteps * each]
        if self.steps is not None and ("sigma_delta" not in self.codings or not fitting):
            raise ConfigError(
                f"steps {list(self.steps)} fit no target: they need coding sigma_delta and timesteps "
                f"{len(self.steps) / each:g}"
            )
        self._check_blocks()
        self.configurations()  # validates every combination

    def _check_blocks(self) -> None:
        """Raise `ConfigError` for what Stage 1 a block at a time, or from disk, leaves without effect."""
        if self.stage1_finetune_steps and self.stage1 != "blocks":
            raise ConfigError(
                f"stage1_finetune_steps={self.stage1_finetune_steps} follow stage1='blocks', and it is {self.stage1!r}"
            )
        whole = ["mlm_data", "fsdp"]
        if not self.stage1_finetune_steps:
            whole += ["distill", "distill_states", "spikes_per_neuron"]
        given = [name for name in whole if getattr(self, name)]
        if self.stage1 == "blocks" and given:
            raise ConfigError(
                f"{given[0]} is for training of the whole model, and stage1='blocks' trains one block at a time"
                + ("; leave it out" if given[0] in ("mlm_data", "fsdp") else "; add stage1_finetune_steps")
            )
        if not self.from_disk:
            return
        if self.stage1 not in ("blocks", "none") or self.stage1_finetune_steps:
            raise ConfigError(
                "from disk there is one block's weights at a time; choose stage1='blocks', without fine-tuning"
            )
        if len(self.codings) * len(self.timesteps) > 1:
            raise ConfigError(
                "from disk one coding and one number of timesteps are calibrated at a time; add others by "
                "fas calibrate --from-disk"
            )
        measured = [name for name in ("before_stage2", "global_steps", "eval_sequences") if getattr(self, name)]
        if measured:
            raise ConfigError(f"{measured[0]} needs the whole model in memory, and from disk it is not; leave it out")

    def text_task(self) -> TextTask:
        """The task on labelled texts, with the user's columns."""
        return text_task(self.task, (self.text_column, self.pair_column, self.label_column))

    @property
    def price_of_a_spike(self) -> float:
        """What Stage 2 takes."""
        if self.spike_price is not None:
            return self.spike_price
        return BUDGET_PRICE if self.spikes_per_neuron is not None else 0.0

    def configurations(self) -> list[SpikingConfig]:
        """The configurations of the SNN that are calibrated and measured; the first is what is prepared and checked with."""
        return [
            SpikingConfig(
                coverage=self.coverage,
                levels=USUAL_LEVELS if self.levels is None else self.levels,
                coding=coding,
                timesteps=timesteps,
                neurons_per_channel=each,
                steps=self.steps if coding == "sigma_delta" and len(self.steps or ()) == timesteps * each else None,
                rows=self.rows if coding == "rate" else "mean",
                rotation=self.rotation or "hadamard",
                center=bool(self.center),
                prefix=self.prefix,
                scales=self.scales,
                activation=self.activation,
                parts=self.parts,
                targets=self.targets,
                ignore=self.ignore,
            )
            for coding in self.codings
            for each in [(self.neurons_per_channel or 1) if coding == "sigma_delta" else 1]
            for timesteps in self.timesteps
        ]

    def fingerprint(self, **more: Any) -> str:
        """Hash of everything that decides the result (not of where it is written, or where and by how many computed)."""
        values = asdict(self) | more
        for name in ("out", "device", "fsdp"):
            values.pop(name)
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
