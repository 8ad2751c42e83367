"""A group whose neurons are a site: QCFS units in Stage 1, spiking neurons after conversion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fas.neurons import Clock, Site
from fas.operators.group import Group, charges, read, wide


class SpikingGroup(nn.Module):
    """The neurons of ``group`` as an unsigned `Site` of width N with λ = w (fixed), its readouts as fp32 buffers.

    Calling it maps arguments ``[B, …]`` (folded time: ``[T·B, …]``) to readouts ``[…, R]`` in fp32 or wider; like its site it
    raises `FasError` outside of a folded segment once time runs.
    """

    def __init__(
        self, group: Group, name: str, clock: Clock, order: int = 0, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.site = Site(
            name, group.neurons, signed=False, consumers=1, clock=clock, order=order, kind="group", device=device
        )
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
        # clipped first, as the neuron saturates: a rate neuron would otherwise keep the excess and fire on
        seen = None if visible is None else visible.unsqueeze(-1)
        held = charges(wide(argument), self.corners, self.site.scale)
        return read(self.site(held, seen), self.readout, self.readout_offset)

    def _apply(self, fn: Any, recurse: bool = True) -> SpikingGroup:
        """Move with the model but keep fp32, as the site does."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)
        return self
