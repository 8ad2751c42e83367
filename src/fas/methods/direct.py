"""Direct conversion: thresholds at the largest activation, or a quantile; no shift (Diehl 2015; Rueckauer 2017)."""

from __future__ import annotations

from functools import partial

from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.methods.method import Batches, Method, register
from fas.methods.start import KEPT, from_ann, largest, own_parameters
from fas.progress import Progress

PERCENTILE = 0.999
_ASSUMED = "thresholds by channel, not by layer; values of both signs by spikes of both signs"


def _build(
    share: float, model: PreTrainedModel, config: SpikingConfig, timesteps: int, batches: Batches, progress: Progress
) -> None:
    from_ann(model, config, batches, lambda place, samples: largest(samples, share))
    for entry in own_parameters(model, config).values():
        entry.v_init.data.zero_()


for _name, _share, _what, _source in (
    ("direct-max", 1.0, "largest activation", "Diehl et al., IJCNN 2015: θ = max |x|, v₀ = 0"),
    (
        "direct-percentile",
        PERCENTILE,
        "99.9th percentile",
        "Rueckauer et al., 2017: θ = 99.9 % quantile of |x|, v₀ = 0",
    ),
):
    register(
        Method(
            _name, f"direct conversion, {_what}", _source, "control", partial(_build, _share),
            lambda timesteps: {"coding": "rate", "rows": "step", **KEPT}, assumed=_ASSUMED,
        )
    )  # fmt: skip
