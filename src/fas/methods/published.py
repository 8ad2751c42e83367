"""Stage 2 as the paper's code does it (FAS, arXiv 2502.04405): two constants, then one end-to-end descent.

Every threshold is multiplied by 0.6 and every potential starts at 0.2 thresholds, whatever the layer ("coarse"); then all
of them move together on Σ_layers MSE(mean_t rows, QCFS activation) + KL(QCFS model ‖ SNN), through all layers and timesteps.
Left out are what ties the released parameters to positions ([1024, 3072]) and its mistakes (teacher and student swapped for
BERT). Here thresholds are learned as log θ, one a channel; the released code learns θ itself, with the same rate. AdamW's
decay is left out, which would pull θ to a value of its own, and θ and v₀ are kept where they mean something.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fas.calibration.fine import only_trainable
from fas.conversion import describe
from fas.errors import ConfigError
from fas.given import batches_for
from fas.losses import logits_kl
from fas.neurons import Site
from fas.offloading import refuse_offloaded
from fas.progress import Progress, Silent
from fas.runtime.control import as_qcfs, clock_of, refuse_frozen, sites_of, without_cache

_LEAST = 1e-3


@dataclass(frozen=True)
class PublishedOptions:
    """The released constants; ``visits`` is how many sequences are looked at (the paper does not say; each may come again)."""

    visits: int = 128
    threshold_factor: float = 0.6
    potential: float = 0.2
    lr: float = 3e-3
    accumulate: int = 4
    """Sequences, one at a time, before a step."""
    weight_gradients: bool = True
    """The released code computes and stores the gradients of all weights, which it does not use."""

    def __post_init__(self) -> None:
        if self.visits < 0 or self.accumulate < 1:
            raise ConfigError(f"visits={self.visits} must be at least 0 and accumulate={self.accumulate} at least 1")


def calibrate_as_published(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    options: PublishedOptions | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Calibrate ``model``'s neurons in place for its present number of timesteps; returns the loss of every visit.

    ``batches`` hold ``input_ids`` ``[B, S]`` …; their sequences are visited one at a time, in order. Raises `ConfigError`
    unless the model is in rate coding with rows of single timesteps, in which the paper's network runs.
    """
    options, progress = options or PublishedOptions(), progress or Silent()
    clock, sequences = clock_of(model), list(_singly(batches_for(model, batches, "the published Stage 2", whole=True)))
    refuse_offloaded(model, "the published Stage 2")
    refuse_frozen(clock, "the published Stage 2")
    if clock.config.coding != "rate" or clock.config.rows != "step" or not clock.folds:
        raise ConfigError("the published recipe is for coding='rate', rows='step' in the synchronous schedule")
    sites = [site for site in sites_of(model).values() if site.calibrates]
    earlier = [site.parameters_for(clock.config) for site in sites]
    training = model.training
    model.eval()
    try:
        with clock.changing("the published Stage 2"):
            losses = _descend(model, sites, sequences, options, progress)
    except BaseException:
        for site, before in zip(sites, earlier, strict=True):
            del site.neurons[clock.config.neuron_key]
            if before is not None:
                site.neurons[clock.config.neuron_key] = before
        raise
    finally:
        model.train(training)
    describe(model)
    progress.done(f"loss {losses[0]:.4f} → {losses[-1]:.4f}" if losses else "")
    return losses


def _descend(
    model: PreTrainedModel,
    sites: list[Site],
    sequences: list[dict[str, Any]],
    options: PublishedOptions,
    progress: Progress,
) -> list[float]:
    parameters = [site.add_parameters(site.clock.config.neuron_key) for site in sites]
    for entry in parameters:
        entry.log_threshold.data.add_(math.log(options.threshold_factor))
        entry.v_init.data.fill_(options.potential)
    values = [value for entry in parameters for value in (entry.log_threshold, entry.v_init)]
    optimizer = torch.optim.AdamW(values, lr=options.lr, weight_decay=0.0)
    losses: list[float] = []
    progress.start("Stage 2 as published", options.visits)
    with only_trainable(model, parameters):
        model.requires_grad_(options.weight_gradients)
        for entry in parameters:
            entry.requires_grad_(True)
        for visit in range(options.visits):
            loss = _loss(model, sites, sequences[visit % len(sequences)])
            (loss / options.accumulate).backward()
            losses.append(float(loss.detach()))
            if (visit + 1) % options.accumulate == 0 or visit + 1 == options.visits:
                optimizer.step()
                model.zero_grad()
                for entry in parameters:
                    entry.log_threshold.data.clamp_(min=math.log(_LEAST))
                    entry.v_init.data.clamp_(0.0, 1.0)
            progress.advance(1, f"loss {losses[-1]:.4f}")
    return losses


def _loss(model: PreTrainedModel, sites: list[Site], inputs: dict[str, Any]) -> Tensor:
    """Σ_layers MSE + KL summed over positions but the last, of one sequence (the released reductions)."""
    timesteps = clock_of(model).config.timesteps
    with as_qcfs(model), torch.no_grad(), _outputs(sites) as wanted:
        teacher = model(**inputs, **without_cache(model)).logits
    with _outputs(sites) as given:
        student = model(**inputs, **without_cache(model)).logits
    aligned = sum(F.mse_loss(given[name].unflatten(0, (timesteps, -1)).mean(0), wanted[name]) for name in wanted)  # type: ignore[misc]
    positions = student.shape[1] - 1
    return aligned + positions * logits_kl(student[:, :-1], teacher[:, :-1])


@contextmanager
def _outputs(sites: list[Site]) -> Iterator[dict[str, Tensor]]:
    """What each site gives inside the context."""
    found: dict[str, Tensor] = {}

    def keep(site: Site, args: Any, rows: Tensor) -> None:
        found[site.name] = rows

    handles = [site.register_forward_hook(keep) for site in sites]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _singly(batches: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for index in range(len(next(iter(batch.values())))):
            yield {name: value[index : index + 1] for name, value in batch.items()}
