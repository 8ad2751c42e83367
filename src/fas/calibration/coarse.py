"""Coarse calibration: per site one factor on the threshold and one initial potential, then per channel where it helps.

Candidates are judged on the inputs that the already calibrated SNN really produces, against the encoding that the QCFS
model has there, weighted by how strongly each channel is read: Σ_c ‖W_c‖²·E(a_c − b_c)².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fas.neurons import Site, codes, rate_mean_rows, rate_step_rows, sigma_delta

# A rate code of few timesteps is coarser than the QCFS grid, so its best threshold may be far below λ.
FACTORS = {
    "rate": (0.35, 0.5, 0.65, 0.8, 0.9, 1.0, 1.12, 1.3),
    "sigma_delta": (0.8, 0.9, 1.0, 1.1, 1.25),
}
POTENTIALS = (0.35, 0.5, 0.65)


@dataclass(frozen=True)
class Choice:
    """Neuron parameters of one site, each ``[C]``, and the weighted error they leave."""

    threshold: Tensor
    v_init: Tensor
    a_init: Tensor
    error: float


def search(site: Site, rows: Tensor, target: Tensor, importance: Tensor, per_channel: bool) -> Choice:
    """Best candidate for input ``rows`` ``[T, N, C]`` (running values) and QCFS encoding ``target`` ``[N, C]``.

    Coarse: one factor and one potential for the site; with ``per_channel`` each channel then takes its own best pair.
    """
    scale = site.scale.detach()
    starts = [torch.zeros_like(scale)]
    if site.clock.config.coding == "sigma_delta":
        mean = codes(target, scale, site.clock.config.levels, site.signed).mean(0).round()
        if bool(mean.any()):
            starts.append(mean)  # tracking may start at each channel's typical code (a constant bias, no spike)
    fire = firing(site)
    errors, pairs = [], []
    for start in starts:
        for factor in FACTORS[site.clock.config.coding]:
            for potential in POTENTIALS:
                v_init = torch.full_like(scale, potential)
                out = fire(rows, scale * factor, v_init, start)
                errors.append((out - target).square().mean(0) * importance)
                pairs.append((factor, potential, start))
    table = torch.stack(errors)  # [candidates, C]
    best = int(table.sum(1).argmin())
    winners = table.argmin(0) if per_channel else torch.full_like(scale, best, dtype=torch.long)
    factors = torch.tensor([pair[0] for pair in pairs], device=scale.device)[winners]
    potentials = torch.tensor([pair[1] for pair in pairs], device=scale.device)[winners]
    a_init = torch.stack([pair[2] for pair in pairs])[winners, torch.arange(len(scale), device=scale.device)]
    error = float(table.gather(0, winners[None]).sum())
    return Choice(scale * factors, potentials, a_init, error)


def firing(site: Site) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The site's neuron under its present coding: (rows, θ, v₀, a₀) → readout ``[N, C]``."""
    config, signed = site.clock.config, site.signed

    def fire(rows: Tensor, threshold: Tensor, v_init: Tensor, a_init: Tensor) -> Tensor:
        if config.coding == "sigma_delta":
            return sigma_delta(rows, threshold, v_init, a_init, config.step_schedule, config.levels, signed)[0][-1]
        if config.rows == "step":
            return rate_step_rows(rows, threshold, v_init, signed)[0].mean(0)
        return rate_mean_rows(rows, threshold, v_init, signed)[0][-1]

    return fire
