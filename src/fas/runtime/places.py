"""Follows the modules that sites were put for: who wraps or exchanges one must not lose its spikes.

Spikes hang on hooks of single modules. Adapters wrap those (peft), quantizers put others in their places (optimum-quanto), and
anybody may. So before each forward of a segment its modules are compared with those of the last one, and hooks move to what
stands in their module's place now. What cannot be followed is an error: its spikes would be gone without a word.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from fas.errors import FasError
from fas.neurons import Site
from fas.runtime.hooks import OutputHook, SiteHook

_LOCK = threading.Lock()


class Link(NamedTuple):
    """``parent`` holds ``child`` under ``name``."""

    parent: nn.Module
    name: str
    child: nn.Module


@dataclass(eq=False)
class Place:
    """Where one module stands that a site is for."""

    site: Site
    block: nn.Module
    """The repeated layer (or the segment) that it is a part of."""
    owner: nn.Module
    path: str
    """From ``owner`` to the module."""
    module: nn.Module
    """Who stands there now."""
    hook: SiteHook | OutputHook | None = None
    """What moves with the place; None: the module holds the site, and no other can take its place."""
    trail: list[Link] = field(default_factory=list)
    """From the segment to ``module``, as it was found last."""

    @property
    def full_path(self) -> str:
        """From the segment to the module."""
        return ".".join(link.name for link in self.trail)


class Places:
    """The places of one segment."""

    def __init__(self, segment: nn.Module, places: list[Place]) -> None:
        self.segment, self.places = segment, places
        self.links: list[Link] = []
        self.forwards: list[tuple[nn.Module, Any, Any]] = []
        """Modules that hold those of places, with the forward of their class and one of their own."""
        self.unproven: list[tuple[Place, nn.Module | None]] = []
        """Places that have not been asked since something changed, with the outermost module that did (None: nothing did)."""
        self.checks: dict[int, list[_Check]] = {}
        self._link()
        self.unproven = [(place, None) for place in self.present]

    @property
    def present(self) -> list[Place]:
        """Places whose module is in the segment; layers may have been taken out."""
        return [place for place in self.places if place.trail]

    def follow(self) -> list[nn.Module]:
        """Move hooks to where their modules are now and return those that are new.

        Raises `FasError` where a site's module was exchanged for one that would not ask for its spikes.
        """
        if self._same():
            return []
        if torch.compiler.is_compiling():
            raise FasError("modules of the converted model were exchanged; run it once before you compile it")
        with _LOCK:
            return [] if self._same() else self._moved()

    def _same(self) -> bool:
        for parent, name, child in self.links:
            if parent._modules.get(name) is not child:
                return False
        for module, forward, own in self.forwards:
            if type(module).forward is not forward or module.__dict__.get("forward") is not own:
                return False
        return True

    def _moved(self) -> list[nn.Module]:
        inside = {id(module) for module in self.segment.modules()}
        self._refuse_copies()
        moves = [(place, there) for place in self.places if (there := self._exchanged(place, inside)) is not None]
        for place, there in moves:
            _move(place, there, keeps_site=id(place.module) in inside)
        before = {id(link.child) for link in self.links}
        own = {id(module): forward for module, _, forward in self.forwards}
        classes = {id(module): forward for module, forward, _ in self.forwards}
        self._link()

        def changed(link: Link) -> bool:
            child = link.child
            its = classes.get(id(child), type(child).forward), own.get(id(child), child.__dict__.get("forward"))
            return id(child) not in before or its != (type(child).forward, child.__dict__.get("forward"))

        for place in self.present:
            outermost = next((link.child for link in place.trail if changed(link)), None)
            if outermost is not None:
                self.unproven = [*(entry for entry in self.unproven if entry[0] is not place), (place, outermost)]
        return [there for _, there in moves]

    def _exchanged(self, place: Place, inside: set[int]) -> nn.Module | None:
        """Who stands in the place of its module now; None: itself, or nobody who would run."""
        there = _at(place.owner, place.path) if id(place.owner) in inside else None
        if there is place.module or (there is None and id(place.module) in inside):
            return None  # what is around it may have been wrapped
        if there is not None and place.hook is not None:
            return there
        if id(place.module) not in inside:
            self._refuse_gone(place, inside)
        return None

    def _refuse_gone(self, place: Place, inside: set[int]) -> None:
        """Raise `FasError` unless the whole layer of ``place`` was taken out, with nothing in its stead."""
        known = {id(link.child) for other in self.places for link in other.trail}
        at: nn.Module = self.segment
        path: list[str] = []
        for _, name, child in place.trail:
            path.append(name)
            there = at._modules.get(name)
            container = isinstance(there, nn.ModuleList | nn.Sequential | nn.ModuleDict)
            if there is None or (there is not child and not container):
                break
            at = there
        else:
            return
        if id(place.block) not in inside and (there is None or id(there) in known):
            return
        now = "nothing" if there is None else f"a {type(there).__name__}"
        raise FasError(
            f"nothing asks for the spikes of site {place.site.name} any more: {place.full_path} "
            f"({type(place.module).__name__}) is gone, and at {'.'.join(path)} there is {now}; put the module back, keep it "
            "inside of the new one, or convert a model that has the new one"
        )

    def _refuse_copies(self) -> None:
        clock = self.places[0].site.clock if self.places else None
        for name, module in self.segment.named_modules():
            if isinstance(module, Site) and module.clock is not clock:
                raise FasError(
                    f"{name} is a copy of a site, or one of another model, and knows nothing of this model's time; copy whole "
                    "models, or change layers before the conversion"
                )

    def _link(self) -> None:
        """Find where all modules of places are now."""
        names = {id(module): name for name, module in self.segment.named_modules()}
        links: dict[tuple[int, str], Link] = {}
        parents: dict[int, nn.Module] = {}
        for place in self.places:
            path = names.get(id(place.module))
            trail = [] if path is None else list(_trail(self.segment, path))
            place.trail = trail or place.trail
            if not trail:
                continue
            links.update({(id(link.parent), link.name): link for link in trail})
            parents.update({id(link.parent): link.parent for link in trail if link.parent is not self.segment})
        self.links = list(links.values())
        self.forwards = [(m, type(m).forward, m.__dict__.get("forward")) for m in parents.values()]

    def begin(self) -> None:
        """A forward of the segment begins: who runs is watched, if it is not known yet that all are asked."""
        if self.unproven and not torch.compiler.is_compiling():
            self.checks.setdefault(threading.get_ident(), []).append(_Check(self.segment, self.unproven))

    def end(self, complete: bool) -> None:
        """The forward has ended; raises `FasError` where a place was passed over by a module around it that ran."""
        if torch.compiler.is_compiling():
            return
        running = self.checks.get(threading.get_ident())
        if not running:
            return
        check = running.pop()
        if not running:
            del self.checks[threading.get_ident()]
        check.close()
        if complete:
            check.ran.add(id(self.segment))
            check.refuse_unasked()
            done = {id(place) for place in check.asked} | {
                id(place) for place, outermost in check.places if outermost is None
            }
            self.unproven = [entry for entry in self.unproven if id(entry[0]) not in done]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"checks": {}}


class _Check:
    """Sees which places, and which modules around them, run in one forward."""

    def __init__(self, segment: nn.Module, places: list[tuple[Place, nn.Module | None]]) -> None:
        self.places, self.handles = list(places), []
        self.asked: list[Place] = []
        self.ran: set[int] = set()
        if any(getattr(module, "_compiled_call_impl", None) is not None for module in segment.modules()):
            self.places = []  # hooks would be compiled
        around: dict[int, nn.Module] = {}
        for place, outermost in self.places:
            self.handles.append(place.module.register_forward_pre_hook(self._asks(place)))
            around |= {id(module): module for module in (place.trail[-1].parent, outermost) if module is not None}
        around.pop(id(segment), None)  # its hooks are being iterated over when these are removed
        for module in around.values():
            self.handles.append(module.register_forward_hook(self._has_run))

    def _asks(self, place: Place) -> Any:
        def hook(*_: Any) -> None:
            self.asked.append(place)

        return hook

    def _has_run(self, module: nn.Module, *_: Any) -> None:
        if not getattr(module.__dict__.get("forward"), "passes_over", False):
            self.ran.add(id(module))

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def refuse_unasked(self) -> None:
        asked = {id(place) for place in self.asked}
        for place, outermost in self.places:
            parent = place.trail[-1].parent
            around = next((m for m in (outermost, parent) if m is not None and id(m) in self.ran), None)
            if id(place) in asked or around is None:
                continue
            raise FasError(
                f"nothing asked for the spikes of site {place.site.name}: a {type(around).__name__} around {place.full_path} "
                f"({type(place.module).__name__}) ran without calling it; it, or its forward, was exchanged for one that reads "
                "weights by itself: undo that, or convert a model that has it"
            )


def _trail(segment: nn.Module, path: str) -> Iterator[Link]:
    at = segment
    for name in path.split("."):
        child = at._modules[name]
        assert child is not None
        yield Link(at, name, child)
        at = child


def _at(owner: nn.Module, path: str) -> nn.Module | None:
    module: nn.Module | None = owner
    for name in path.split(".") if path else ():
        module = None if module is None else module._modules.get(name)
    return module


def _move(place: Place, there: nn.Module, keeps_site: bool) -> None:
    """Hang the hook of ``place`` on ``there``, and on nothing inside of it, copies of the hook included.

    ``keeps_site``: the old module is still a part of the model, and with it what it holds.
    """
    hook = place.hook
    assert hook is not None
    for module in [place.module, *there.modules()]:
        hooks: Any = module._forward_pre_hooks if isinstance(hook, SiteHook) else module._forward_hooks
        for key, other in list(hooks.items()):
            if type(other) is type(hook) and other.site.name == place.site.name:
                del hooks[key]
    if isinstance(hook, SiteHook):
        # in front of hooks of the new module, which are its own affair
        hook.handle = there.register_forward_pre_hook(hook, prepend=True)
    else:
        hook.handle = there.register_forward_hook(hook)
        if not keeps_site and "sites" in place.module._modules:
            there.add_module("sites", place.module._modules.pop("sites"))
            hook.home = there
    place.module = there
