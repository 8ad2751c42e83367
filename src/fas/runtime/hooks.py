"""Hooks by which a module meets its site: consumers fetch the encoding of their input, others have their output encoded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fas.errors import FasError
from fas.neurons import Site


class Hook:
    """Base of FAS's hooks: keeps its handle, or a process that unpickles it would give its number to another hook."""

    handle: RemovableHandle


def sites_on(module: nn.Module) -> Any:
    """What a conversion put on ``module``, by role; empty for any other module."""
    return module._modules.get("sites") or {}


class SiteHook(Hook):
    """Hands a consumer the encoding of its input (picklable: deepcopy and pickle keep it with its own site)."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args:
            raise FasError(
                f"site {self.site.name}: a {type(module).__name__} was called without its input as the first argument, so "
                "nothing could be encoded; call it as module(x)"
            )
        return (self.site.encode(args[0]), *args[1:])


class OutputHook(Hook):
    """Encodes what a module gives, or the second ``half`` of its channels, by the ``site`` that ``home`` holds."""

    def __init__(self, site: Site, home: nn.Module, half: bool) -> None:
        self.site, self.home, self.half = site, home, half

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        site = sites_on(self.home)["output"]  # the event executor puts another one there
        if not self.half:
            return site(output)  # type: ignore[no-any-return]
        first, second = output.chunk(2, dim=-1)
        return torch.cat([first, site(second)], dim=-1)
