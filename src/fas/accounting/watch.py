"""Watches a forward pass: every operation that PyTorch dispatches, and the module (or hook of FAS) in which it ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, _pop_mode_temporarily

from fas.accounting.account import Account
from fas.accounting.count import Counter
from fas.accounting.encodings import Encodings
from fas.accounting.neurobench import SynapticOperations
from fas.accounting.operations import FREE, Rule, rule_of
from fas.accounting.provenance import Origin
from fas.neurons import Clock, NeuronParameters, Site
from fas.operators.population import Population
from fas.operators.regions import LISTENERS
from fas.operators.spiking import SpikingGroup
from fas.runtime.folding import FoldHook, ReadoutHook
from fas.runtime.hooks import SiteHook
from fas.runtime.operators import ActivationHook, NormHook

Role = Literal["run", "dropped", "replacement", "neuron", "rotation", "overhead"]
"""``run``: of both networks; ``dropped``: computed and not used by the spiking one; ``replacement``: in its stead;
``neuron``: counted as neuron updates; ``rotation``: in front of neurons; ``overhead``: only the simulation does it."""

_RULES: dict[Any, Rule] = {}


class Watch(TorchDispatchMode):
    """Fills an `Account` from all that runs within it. Use `watching`, which also installs what it needs."""

    def __init__(self, clock: Clock | None, counter: Counter) -> None:
        super().__init__()
        self.clock, self.counter = clock, counter
        self.frames: list[tuple[str, Role]] = [("", "run")]
        self._paused = ExitStack()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, role = self.frames[-1]
        if role == "neuron":
            return out
        rule = _RULES.get(func)
        if rule is None:
            rule = _RULES[func] = rule_of(func)
        if rule is not FREE or not func.is_view:
            inside = self.clock is not None and self.clock.depth > 0
            self.counter.count(func, rule, name, role, args, kwargs or {}, out, inside)
        return out

    @contextmanager
    def frame(self, name: str, role: Role) -> Iterator[None]:
        """Attribute what runs inside to ``name`` in ``role``."""
        self.enter(name, role)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str, role: Role) -> None:
        """Begin a frame. Within neurons nothing is to be seen, so nothing is intercepted."""
        outer = self.frames[-1][1]
        self.frames.append((name, role))
        if role == "neuron" and outer != "neuron" and _get_current_dispatch_mode() is self:
            self._paused.enter_context(_pop_mode_temporarily())

    def leave(self) -> None:
        """End the last frame."""
        self.frames.pop()
        if self.frames[-1][1] != "neuron":
            self._paused.close()

    @contextmanager
    def operator(self) -> Iterator[None]:
        """The context of an operator: what runs there is in place of a function."""
        name, role = self.frames[-1]
        with self.frame(name, role if role in ("neuron", "overhead") else "replacement"):
            yield


class _Framed:
    """A hook of FAS within its own frame; a fold also starts what is known of its rows."""

    def __init__(self, hook: Any, watch: Watch, name: str, role: Role) -> None:
        self.hook, self.watch, self.name, self.role = hook, watch, name, role

    def __call__(self, *args: Any) -> Any:
        with self.watch.frame(self.name, self.role):
            out = self.hook(*args)
        if isinstance(self.hook, FoldHook) and out is not None:
            self._time(out[1], args[-1])
        return out

    def _time(self, folded: Any, given: Any) -> None:
        """Mark what the fold has repeated: its rows are timesteps."""
        if isinstance(folded, Tensor):
            if folded is not given:
                provenance = self.watch.counter.provenance
                provenance.put(folded, Origin(timed=True, constant=provenance.of(folded).constant))
        elif isinstance(folded, dict):
            for key, value in folded.items():
                self._time(value, given.get(key) if isinstance(given, dict) else None)


def _uncounted(hook: Any, watch: Watch) -> Any:
    """``hook`` in a frame of which nothing is counted: the ledger's own arithmetic."""

    def framed(*args: Any) -> None:
        with watch.frame("", "neuron"):
            hook(*args)

    return framed


def _role_of(hook: Any) -> Role | None:
    if isinstance(hook, FoldHook | ReadoutHook):
        return "overhead"
    if isinstance(hook, SiteHook):
        return "rotation"
    return "replacement" if isinstance(hook, NormHook | ActivationHook) else None


@contextmanager
def watching(
    model: nn.Module, clock: Clock | None, account: Account, synapses: SynapticOperations | None = None
) -> Iterator[Encodings]:
    """Count every forward of ``model`` inside the context into ``account`` (and ``synapses``); leaves the model as it was."""
    counter = Counter(model, clock, account)
    counter.synapses = synapses
    watch, encodings = Watch(clock, counter), Encodings(clock, counter)
    handles, replaced = [], []
    for name, module in model.named_modules():
        role: Role = "run"
        if isinstance(module, Site | SpikingGroup | Population):
            role = "neuron"
            handles.append(module.register_forward_hook(_uncounted(encodings.seen(name, module), watch)))
        if isinstance(module, NeuronParameters):
            role = "neuron"
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if (hook_role := _role_of(hook)) is not None:
                    replaced.append((hooks, key, hook))
                    hooks[key] = _Framed(hook, watch, name, hook_role)  # type: ignore[index]
                    role = "dropped" if hook_role == "replacement" else role
        handles += _frames(module, watch, name, role)
    if clock is not None:
        clock.probe = encodings
    LISTENERS.append(watch.operator)
    try:
        with watch:
            yield encodings
    finally:
        LISTENERS.pop()
        if clock is not None:
            clock.probe = encodings.before
        for hooks, key, hook in replaced:
            hooks[key] = hook
        for handle in handles:
            handle.remove()


def _frames(module: nn.Module, watch: Watch, name: str, role: Role) -> list[Any]:
    """The frame of a module's own forward; the hooks of FAS run in frames of their own."""

    def enter(*_: Any) -> None:
        watch.enter(name, role)

    def leave(*_: Any) -> None:
        watch.leave()

    return [
        module.register_forward_pre_hook(enter, prepend=True),
        module.register_forward_hook(leave, prepend=True, always_call=True),
    ]
