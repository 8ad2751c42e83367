"""Coarse calibration of the sites of a block: search the candidates, keep what brings the block closer to its target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fas.calibration.coarse import Choice, Search
from fas.calibration.replay import Stream, run_block
from fas.losses import alignment
from fas.neurons import Clock, NeuronParameters, Site
from fas.runtime.folding import readout

# A schedule that settles earlier helps later layers, so it may cost this much relative error of its own layer's readout.
TOLERANCE = 2e-4
OPERAND_VALUES = 64
_FACTORS = {"query": "key", "key": "query"}


def batches_of(hidden: Iterable[Tensor], tokens: int) -> int:
    """How many of the batches with ``hidden`` states ``[B, S, D]``, from the first, hold ``tokens`` tokens (or all do not)."""
    count = found = 0
    for states in hidden:
        count, found = count + 1, found + states[..., 0].numel()
        if found >= tokens:
            break
    return count


class Trial:
    """One block on as many of the calibration batches as hold ``tokens`` tokens: what candidates are judged on."""

    def __init__(
        self,
        block: nn.Module,
        index: int,
        streams: Sequence[Stream],
        wanted: Sequence[Tensor],
        clock: Clock,
        tokens: int,
    ) -> None:
        few = batches_of(wanted, tokens)
        self.block, self.index, self.clock, self.tokens = block, index, clock, tokens
        self.streams, self.wanted = streams[:few], wanted[:few]

    def __call__(self, site: Site) -> tuple[float, Tensor]:
        """Relative error of the block's readout as it is now, and the rows ``[T, N, C]`` that ``site`` is given."""
        outputs, inputs = observed(self.block, self.index, self.streams, [site], self.clock, outputs=False)
        errors = [alignment(readout(o, self.clock), w) for o, w in zip(outputs, self.wanted, strict=True)]
        return float(sum(errors)) / len(errors), inputs[site.name]


@torch.no_grad()
def calibrate_sites(
    sites: Sequence[Site],
    trial: Trial,
    encodings: Mapping[str, Tensor],
    per_channel: bool,
    price: float = 0.0,
    search_steps: bool = True,
) -> None:
    """Set the neuron parameters of ``sites`` of one block, in the order in which they run, to the best candidates.

    ``encodings`` ``[N, C]`` by name are what the QCFS model has there. A site changes only if the block's readout comes closer
    to its target, or no further away than `TOLERANCE` and what the spikes that it saves are worth (``price`` each, per neuron).
    """
    if not sites:
        return
    least, rows = trial(sites[0])
    for site, following in zip(sites, [*sites[1:], sites[-1]], strict=True):
        parameters = site.parameters_for(site.clock.config)
        assert parameters is not None
        picked = _search_rows(site, rows, trial.tokens)
        importance = _importance(trial.block, site, encodings)
        search = Search(site, rows[:, picked], encodings[site.name][picked], importance, price, search_steps)
        before, coarse = _present(parameters), search.coarse()
        for choice in ([search.per_channel(coarse)] if per_channel else []) + [coarse, before]:
            _put(parameters, choice)
            now, rows = trial(following)
            saved = search.spikes(before) - search.spikes(choice) if price else 0.0
            if now <= least + TOLERANCE + price * max(0.0, saved):
                least = min(now, least)
                break


def _search_rows(site: Site, rows: Tensor, most: int) -> Tensor:
    """Which of the rows ``[T, N, C]`` candidates are judged on.

    An attention's probabilities have few channels and many rows: more of those, at random, without the hidden ones (all 0).
    """
    count = rows.shape[1]
    if site.kind not in ("operand", "cross"):
        return torch.linspace(0, count - 1, min(count, most), device=rows.device).long()
    most = most * max(1, OPERAND_VALUES // site.width)
    picked = torch.randint(count, (2 * most,), generator=torch.Generator().manual_seed(0)).to(rows.device)
    return picked[rows[-1, picked].any(-1)][:most]


def _present(parameters: NeuronParameters) -> Choice:
    steps = tuple(int(k) for k in parameters.steps)
    zones = tuple(parameters.dead_zone.tolist())
    return Choice(
        parameters.threshold.detach(), parameters.v_init.detach().clone(), parameters.a_init.clone(), steps, zones
    )


def _put(parameters: NeuronParameters, choice: Choice) -> None:
    parameters.log_threshold.data.copy_(choice.threshold.log())
    parameters.v_init.data.copy_(choice.v_init)
    parameters.a_init.copy_(choice.a_init)
    parameters.steps.copy_(torch.tensor(choice.steps, dtype=torch.float32))
    parameters.dead_zone.copy_(torch.tensor(choice.dead_zone or [0.0] * len(choice.steps)))


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
