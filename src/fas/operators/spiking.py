"""A group whose neurons are a site: QCFS units in Stage 1, spiking neurons after conversion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fas.errors import FasError
from fas.neurons import Clock, Held, Site
from fas.neurons.held import tell
from fas.operators.group import Group, charges, read, wide
from fas.operators.staircase import active, one_level, staircase


def tracking_steps(levels: int, timesteps: int) -> tuple[int, ...]:
    """Schedule of a group with its own L (a power of two): whole swings of a neuron until the end, then down to 1.

    A group follows an argument that moves until the last timesteps; small steps would leave its neurons behind.

    >>> tracking_steps(4, 6), tracking_steps(1, 3), tracking_steps(8, 2)
    ((4, 4, 4, 4, 2, 1), (1, 1, 1), (8, 4))
    """
    falling = tuple(levels >> shift for shift in range(1, levels.bit_length()))
    return ((levels,) * max(1, timesteps - len(falling)) + falling)[:timesteps]


class GroupSite(Site):
    """The site of a group. With its own levels it has `tracking_steps` where nothing was calibrated."""

    own_levels: int | None = None

    @property
    def levels(self) -> int:
        return self.own_levels or self.clock.config.levels

    def rests(self) -> bool:
        """Whether the group's answer is a function of the present argument alone, not of the timesteps before.

        So it is without time, and for uncalibrated sigma-delta neurons of one level, whose spikes move all that can move.
        """
        clock = self.clock
        self.meet()
        if not clock.folds:
            return clock.probe is None or clock.stage == "qcfs"  # a probe wants the trains
        self.require_segment()
        moves = clock.config.coding == "sigma_delta" and self.levels == 1
        return moves and self.parameters_for(clock.config) is None

    def tell_held(self, held: Held, visible: Tensor | None) -> None:
        """Hand ``held`` to the probe, which must be there: as it is to one that has a method ``held``, else its spikes."""
        assert self.clock.probe is not None
        self.clock.now.visible = visible
        tell(self.clock.probe, self.name, held)

    def starting_steps(self, steps: Sequence[int], neurons: int) -> Sequence[int]:
        """The schedule where nothing was calibrated: `tracking_steps` in place of the configuration's ``steps``.

        Unit steps stay: given enough of them, everything settles. A group has its own neurons, whatever a channel has.
        """
        steps = steps[neurons - 1 :: neurons]
        own = self.own_levels is not None and max(steps, default=1) > 1
        return tracking_steps(self.own_levels or 1, len(steps)) if own else steps


class SpikingGroup(nn.Module):
    """The neurons of ``group`` as an unsigned `Site` of width N with λ = w (fixed), its readouts as fp32 buffers.

    Calling it maps arguments ``[B, …]`` (folded time: ``[T·B, …]``) to readouts ``[…, R]`` in fp32 or wider; like its site it
    raises `FasError` outside of a folded segment once time runs. ``levels`` is a power of two, or None for the configuration's:
    many neurons of few levels resolve as much as few of many, and follow a moving argument sooner (docs/operators.md).
    """

    def __init__(
        self,
        group: Group,
        name: str,
        clock: Clock,
        levels: int | None = None,
        order: int = 0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if levels is not None and (levels < 1 or levels & (levels - 1)):
            raise FasError(
                f"group {name} cannot have {levels} levels; its spikes are whole swings, so give a power of two"
            )
        self.site = GroupSite(
            name, group.neurons, signed=False, consumers=1, clock=clock, order=order, kind="group", device=device
        )
        self.site.own_levels = levels
        self.site.log_scale.requires_grad_(False)  # λ is the geometry of the group; Stage 1 must not move it
        if not self.site.log_scale.is_meta:
            self.site.log_scale.data.copy_(group.widths.log())
        for name, tensor in (("corners", group.corners), ("readout", group.readout), ("readout_offset", group.offset)):
            self.register_buffer(name, tensor.to(device, torch.float32))
        self.corners: Tensor
        self.readout: Tensor
        self.readout_offset: Tensor

    def forward(self, argument: Tensor, visible: Tensor | None = None) -> Tensor:
        """Readouts of ``argument``; a probe is told which arguments count, ``visible`` (broadcast)."""
        argument, seen = wide(argument), None if visible is None else visible.unsqueeze(-1)
        if isinstance(self.site, GroupSite) and self.site.rests():
            shape = self.corners.to(argument), self.site.scale.to(argument)
            readout = self.readout.to(argument), self.readout_offset.to(argument)
            if self.site.levels > 1:
                return staircase(argument, *shape, *readout, self.site.levels)
            number = active(argument.detach(), *shape)
            if self.site.clock.probe is not None and self.site.clock.folds:
                self.site.tell_held(Held(self.site.over_time(number).unsqueeze(-1), len(self.corners)), seen)
            return one_level(argument, number, *shape, *readout)
        # clipped first, as the neuron saturates: a rate neuron would otherwise keep the excess and fire on
        held = charges(argument, self.corners, self.site.scale)
        return read(self.site(held, seen), self.readout, self.readout_offset)

    def _apply(self, fn: Any, recurse: bool = True) -> SpikingGroup:
        """Move with the model but keep fp32, as the site does."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)
        return self
