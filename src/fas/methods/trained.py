"""What starts from a QCFS model and needs no neuron but FAS' own: QCFS alone, ST-BIF+, the paper's recipe, and ours."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from fas.calibration import CalibrationOptions, calibrate
from fas.config import SpikingConfig
from fas.methods.method import Batches, Method, register
from fas.methods.published import PublishedOptions, calibrate_as_published
from fas.methods.start import as_snn
from fas.progress import Progress
from fas.runtime.replay import number_of_layers
from fas.steps import neurons_for_moves


def step_rows(timesteps: int) -> dict[str, Any]:
    """Integrate-and-fire on the charge of single timesteps, as the released codes run it."""
    return {"coding": "rate", "rows": "step"}


def _plain(model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress) -> None:
    as_snn(model, config)


def _as_published(
    model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress
) -> None:
    calibrate_as_published(as_snn(model, config), batches, PublishedOptions(), progress)


def _ours(model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress) -> None:
    settings = CalibrationOptions.for_depth(number_of_layers(model))
    calibrate(as_snn(model, config), batches, settings, progress)


register(
    Method(
        "qcfs", "QCFS only", "Bu et al., ICLR 2022: h(x), IF with soft reset, v₀ = θ/2", "qcfs", _plain, step_rows,
        assumed="norms and softmax in every timestep, as the FAS code runs QCFS transformers",
    )
)  # fmt: skip
register(
    Method(
        "spikezip", "SpikeZIP-TF (ST-BIF+)", "You et al., ICML 2024: bipolar IF with spike tracer", "qcfs", _plain,
        lambda timesteps: {"coding": "sigma_delta", "steps": (1,) * timesteps},
        assumed="the QCFS model in the place of their LSQ model",
    )
)  # fmt: skip
register(
    Method(
        "fas-released", "FAS as released", "arXiv 2502.04405, released code: θ × 0.6, v₀ = 0.2 θ, end-to-end descent", "qcfs",
        _as_published, step_rows, assumed="thresholds by channel, not by position; 128 sequences",
    )
)  # fmt: skip
register(
    Method(
        "fas-rate", "FAS, rate (ours)", "docs/results.md: rows of running means, Stage 2 by site and layer", "qcfs", _ours,
        lambda timesteps: {"coding": "rate"},
    )
)  # fmt: skip
register(
    Method(
        "fas-sigma-delta", "FAS, sigma-delta (ours)", "docs/results.md: tracking quantizer, Stage 2 by site and layer", "qcfs",
        _ours, lambda timesteps: {"coding": "sigma_delta"},
    )
)  # fmt: skip
register(
    Method(
        "fas-population", "FAS, two neurons a channel (ours)", "docs/results.md: sigma-delta, two a channel", "qcfs",
        _ours, lambda timesteps: {"coding": "sigma_delta", "neurons_per_channel": 2},
        assumed="twice as many neurons, whose spikes are counted by neuron: a channel has twice as many",
    )
)  # fmt: skip
register(
    Method(
        "fas-moves", "FAS, 16 / T neurons a channel (ours)", "docs/real-models.md: T timesteps of 16 / T moves each", "qcfs",
        _ours, lambda timesteps: {"coding": "sigma_delta", "neurons_per_channel": neurons_for_moves(timesteps)},
        assumed="16 / T times as many neurons, whose spikes are counted by neuron; one neuron a channel from T = 16 on",
    )
)  # fmt: skip
