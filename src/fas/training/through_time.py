"""SNN-aware fine-tuning: weights of a converted model, trained through simulated time (an option; the paper freezes them)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from fas.conversion import describe
from fas.errors import FasError
from fas.progress import Progress
from fas.runtime.control import calibrated_keys, clock_of, sites_of
from fas.training.stage1 import Stage1Options, TrainingSet, fine_tune


def tune_through_time(
    model: PreTrainedModel,
    examples: TrainingSet,
    options: Stage1Options,
    teacher: PreTrainedModel | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Train the SNN ``model`` in place on ``examples``, at its present coding and timesteps.

    All weights move, and θ and v₀ of the calibrated neurons (at ``options.scale_lr``), by the surrogate gradient through all
    T·B rows; λ of calibrated sites does not, for their neurons do not read it. Neurons of other codings and times no longer
    belong to the weights and are removed; returns their keys. Raises `FasError`, before anything changes, where the present
    time is not simulated or not calibrated.
    """
    clock, sites = clock_of(model), sites_of(model).values()
    key = clock.config.neuron_key
    known = calibrated_keys(sites)
    if not clock.folds:
        raise FasError("tuned is through simulated time: convert the model first and choose schedule='synchronous'")
    if key not in known:
        raise FasError(
            f"the neurons for {key} are not calibrated (calibrated: {', '.join(known) or 'none'}); choose another time, or "
            "calibrate for this one first"
        )
    others = [other for other in known if other != key]
    for site in sites:
        for other in others:
            if other in site.neurons:
                del site.neurons[other]
    with _scales_frozen(model), _without_cache(model):
        fine_tune(
            model,
            examples,
            options,
            teacher,
            progress,
            f"tuning the weights through {clock.config.timesteps} timesteps",
        )
    describe(model)
    return others


@contextmanager
def _scales_frozen(model: PreTrainedModel) -> Iterator[None]:
    """λ is no parameter where calibrated neurons have taken over."""
    config = clock_of(model).config
    idle = [site.log_scale for site in sites_of(model).values() if site.parameters_for(config) is not None]
    before = [scale.requires_grad for scale in idle]
    try:
        for scale in idle:
            scale.requires_grad_(False)
        yield
    finally:
        for scale, flag in zip(idle, before, strict=True):
            scale.requires_grad_(flag)
        for parameter in model.parameters():
            parameter.grad = None


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    """A cache of T·B rows would be filled at every step, and never read."""
    before = getattr(model.config, "use_cache", None)
    try:
        if before:
            model.config.use_cache = False
        yield
    finally:
        if before:
            model.config.use_cache = before
