"""Consumers fetch their site's encoding by a forward pre-hook."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from fas.neurons import Site


class Hook:
    """Base of FAS's hooks: keeps its handle, or a process that unpickles it would give its number to another hook."""

    handle: RemovableHandle


class SiteHook(Hook):
    """Hands a consumer the encoding of its input (picklable: deepcopy and pickle keep it with its own site)."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.site.encode(args[0]), *args[1:])
