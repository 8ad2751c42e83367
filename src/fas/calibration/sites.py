"""Coarse calibration of one site in its block: search the candidates, keep what brings the block closer to its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fas.calibration.coarse import Choice, Search
from fas.calibration.replay import Stream, run_block
from fas.neurons import Clock, NeuronParameters, Site

# A schedule that settles earlier helps later layers, so it may cost this much relative error of its own layer's readout.
TOLERANCE = 2e-4
OPERAND_VALUES = 64
_FACTORS = {"query": "key", "key": "query"}


def calibrate_site(
    site: Site,
    block: nn.Module,
    index: int,
    spiking: Sequence[Stream],
    encodings: Mapping[str, Tensor],
    error: Callable[[], float],
    search_rows: int,
    per_channel: bool,
) -> None:
    """Set ``site``'s neuron parameters to the best candidates on at most ``search_rows`` tokens.

    ``encodings`` ``[N, C]`` by name are what the QCFS model has at the sites of the block, ``error`` measures the block's
    readout as it is now.
    """
    clock = site.clock
    parameters = site.parameters_for(clock.config)
    assert parameters is not None
    with torch.no_grad():
        _, inputs = observed(block, index, spiking, [site], clock, outputs=False)
        rows = inputs[site.name].view(clock.config.timesteps, -1, site.width)
        picked = _search_rows(site, rows, search_rows)
        search = Search(site, rows[:, picked], encodings[site.name][picked], _importance(block, site, encodings))
        choice, least = _present(parameters), error()
        for refine in (lambda _: search.coarse(), search.per_channel)[: 1 + per_channel]:
            found = refine(choice)
            _put(parameters, found)
            now = error()
            if now <= least + TOLERANCE:
                choice, least = found, min(now, least)
            else:
                _put(parameters, choice)


def _search_rows(site: Site, rows: Tensor, most: int) -> Tensor:
    """Which of the rows ``[T, N, C]`` candidates are judged on.

    An attention operand has few channels and many rows: more of those, at random, without the hidden ones (all 0).
    """
    count = rows.shape[1]
    if site.kind not in ("operand", "cross"):
        return torch.linspace(0, count - 1, min(count, most), device=rows.device).long()
    most = most * max(1, OPERAND_VALUES // site.width)
    picked = torch.randint(count, (2 * most,), generator=torch.Generator().manual_seed(0)).to(rows.device)
    return picked[rows[-1, picked].any(-1)][:most]


def _present(parameters: NeuronParameters) -> Choice:
    steps = tuple(int(k) for k in parameters.steps)
    return Choice(parameters.threshold.detach(), parameters.v_init.detach().clone(), parameters.a_init.clone(), steps)


def _put(parameters: NeuronParameters, choice: Choice) -> None:
    parameters.log_threshold.data.copy_(choice.threshold.log())
    parameters.v_init.data.copy_(choice.v_init)
    parameters.a_init.copy_(choice.a_init)
    parameters.steps.copy_(torch.tensor(choice.steps, dtype=torch.float32))


def _importance(block: nn.Module, site: Site, encodings: Mapping[str, Tensor]) -> Tensor:
    """How strongly each channel ``[C]`` is read: Σ over consumers of ‖W_c‖²; of a query E[k_c²], of a key E[q_c²]."""
    if site.kind in ("operand", "cross"):
        return _importance_in_scores(site, encodings)
    total = torch.zeros_like(site.scale.detach())
    for module in block.modules():
        hooks = module._forward_pre_hooks.values()
        if any(getattr(hook, "site", None) is site for hook in hooks):
            weight = module.weight.detach().float()  # type: ignore[union-attr]
            total += weight.square().sum(0 if isinstance(module, nn.Linear) else 1)
    return total


def _importance_in_scores(site: Site, encodings: Mapping[str, Tensor]) -> Tensor:
    """Of an operand of attention: the mean square of what its channel is multiplied by (1 for values, probabilities)."""
    stem, role = next(((site.name.removesuffix(role), role) for role in _FACTORS if site.name.endswith(role)), ("", ""))
    other, heads = encodings.get(stem + _FACTORS.get(role, "")), encodings.get(stem + "probabilities")
    if other is None or heads is None:
        return torch.ones_like(site.scale.detach())
    power, features = other.square().mean(0), max(site.width, other.shape[1]) // heads.shape[1]
    if other.shape[1] > site.width:  # a key is read by all queries of its group
        return power.view(-1, other.shape[1] // site.width, features).sum(1).flatten()
    return power.view(-1, features).repeat_interleave(site.width // other.shape[1], 0).flatten()


def observed(
    block: nn.Module, index: int, streams: Sequence[Stream], sites: Sequence[Site], clock: Clock, outputs: bool
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Run ``block`` on all streams; its outputs, and what each site gave (``outputs``) or was given, tokens flattened."""
    seen: dict[str, list[Tensor]] = {site.name: [] for site in sites}

    def keep(site: Site, args: tuple[Tensor, ...], output: Tensor) -> None:
        value = (output if outputs else args[0]).detach().float()
        rows = clock.config.timesteps if clock.folds else 1
        seen[site.name].append(value.reshape(rows, -1, site.width))

    handles = [site.register_forward_hook(keep) for site in sites]
    try:
        results = [run_block(block, index, stream, clock) for stream in streams]
    finally:
        for handle in handles:
            handle.remove()
    joined = {name: torch.cat(values, dim=1) for name, values in seen.items()}
    return results, {name: value[0] if outputs else value for name, value in joined.items()}
