"""The compiled kernels as functions of tensors: the same arguments and results as the PyTorch code beside which they stand.

Rows are ``[T, …, C]`` of float32 or bfloat16 on a CPU, constants ``[C]`` (or ``[1]``) of float32; arithmetic is in float32, and
results have the dtype of the rows. Work is shared out among as many threads as PyTorch uses.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fas.errors import FasError
from fas.neurons.native.build import SWITCH, library, loaded

SHARE = 1 << 16
"""Values that are worth a thread."""
STREAMED = 1 << 24
"""Bytes of results from which on they go past the cache."""
KINDS = {torch.float32: 0, torch.bfloat16: 1}
PLAIN = (Tensor, torch.nn.Parameter)
"""Classes whose tensors are no more than their values."""


def takes(rows: Tensor, *constants: Tensor) -> bool:
    """Whether the kernels can do it: plain tensors on a CPU in dtypes and shapes of theirs, and nobody traces operations."""
    if torch.compiler.is_compiling() or not is_plain(rows) or rows.dtype not in KINDS:
        return False
    if not rows.shape or rows.numel() == 0 or is_in_torch_dispatch_mode():
        return False
    for value in constants:
        if not (is_plain(value) and is_constant(value, rows)):
            return False
    return library() is not None


def is_plain(value: Tensor) -> bool:
    """Whether ``value`` is what lies in a CPU's memory where it points: no subclass, no other layout, no sign that is due."""
    return type(value) in PLAIN and value.is_cpu and value.layout is torch.strided and not value.is_neg()


def is_constant(value: Tensor, rows: Tensor) -> bool:
    """Whether ``value`` is one float, or one for each channel of ``rows`` ``[…, C]``."""
    shape = value.shape
    return value.dtype is torch.float32 and (not shape or (len(shape) == 1 and shape[0] in (1, rows.shape[-1])))


def addressed(name: str, value: Tensor, dtypes: Container[torch.dtype], *sizes: int) -> Tensor:
    """``value`` of the axes ``sizes``, side by side in memory, so that compiled code may be pointed to it.

    Raises `FasError` for another device, dtype or shape: compiled code would read what lies elsewhere.
    """
    if is_plain(value) and value.dtype in dtypes and value.shape == sizes:
        return value if value.is_contiguous() else value.detach().contiguous()
    kind = "" if type(value) in PLAIN else f" of {type(value).__name__}"
    raise FasError(
        f"a compiled kernel got {name}{kind} {list(value.shape)} in {value.dtype} on {value.device} where it reads "
        f"{list(sizes)} on a CPU; give all tensors one device, or set {SWITCH}=0 to run in PyTorch"
    )


def track(
    rows: Tensor, unit: Tensor, v_init: Tensor, a_init: Tensor, steps: Sequence[float], bounds: tuple[int, int],
    zones: Sequence[float], want: bool = True, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`fas.neurons.sigma_delta`; ``want``: spikes ``[P·T, …, C]`` of float32 too (else an empty tensor)."""
    call, out, spikes = _Call(rows), _out(rows, out), _spikes(rows, len(steps), want)
    constants = call.constants(unit, v_init, a_init)
    plan = (*_plan(steps, zones, len(rows)), *map(ctypes.c_float, bounds))
    call.run("fas_sigma_delta", *call.head, tail=(*constants, *plan, *call.tail(out, spikes)))
    return out, spikes


def track_back(
    grad: Tensor, rows: Tensor, unit: Tensor, v_init: Tensor, a_init: Tensor, steps: Sequence[float],
    bounds: tuple[int, int], zones: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the rows, the unit and v₀ (float32)."""
    call = _Call(rows, grad)
    plan = (*_plan(steps, zones, len(rows)), *map(ctypes.c_float, bounds))
    by_rows, by_unit, by_v_init = call.back("fas_sigma_delta_back", (unit, v_init, a_init), plan)
    return by_rows, by_unit, by_v_init


def fire(
    rows: Tensor,
    threshold: Tensor,
    v_init: Tensor,
    signed: bool,
    mean: bool,
    want: bool = True,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`fas.neurons.integrate_fire`; ``want`` as of `track`."""
    call, out, spikes = _Call(rows), _out(rows, out), _spikes(rows, len(rows), want)
    how = (len(rows), int(signed), int(mean))
    call.run("fas_fire", *call.head, tail=(*call.constants(threshold, v_init), *how, *call.tail(out, spikes)))
    return out, spikes


def fire_back(
    grad: Tensor, rows: Tensor, threshold: Tensor, v_init: Tensor, signed: bool, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the rows, θ and v₀ (float32)."""
    how = (len(rows), int(signed), int(mean))
    by_rows, by_threshold, by_v_init = _Call(rows, grad).back("fas_fire_back", (threshold, v_init), how)
    return by_rows, by_threshold, by_v_init


class Prepared:
    """A neuron whose constants do not change, without spikes told: rows ``[T, …, C]`` in, output rows out."""

    def __init__(
        self, name: str, constants: Sequence[Tensor], width: int, timesteps: int, plan: tuple[Any, ...]
    ) -> None:
        self.kernel, self.width, self.timesteps = function_of(name), width, timesteps
        self.kept = [_one_a_channel(value, width) for value in constants]
        self.fixed = (*[value.data_ptr() for value in self.kept], *plan)

    def __call__(self, rows: Tensor) -> Tensor:
        shape = rows.shape
        if not (is_plain(rows) and rows.dtype in KINDS and shape[0] == self.timesteps and shape[-1] == self.width):
            addressed("rows", rows, KINDS, self.timesteps, *shape[1:-1], self.width)  # says what is wrong
        rows = rows.contiguous()
        out, size = torch.empty_like(rows), rows.numel() // len(rows)
        head = (KINDS[rows.dtype], rows.data_ptr(), size, 0, size, self.width)
        threads = max(1, min(torch.get_num_threads(), rows.numel() // SHARE))
        self.kernel(*head, *self.fixed, out.data_ptr(), None, int(out.nbytes >= STREAMED), threads)
        return out


def prepared_tracker(
    unit: Tensor, v_init: Tensor, a_init: Tensor, width: int, steps: Sequence[float], timesteps: int,
    bounds: tuple[int, int], zones: Sequence[float],
) -> Prepared:  # fmt: skip
    """`track` with all but the rows."""
    plan = (*_plan(steps, zones, timesteps), *map(float, bounds))
    return Prepared("fas_sigma_delta", (unit, v_init, a_init), width, timesteps, plan)


def prepared_firing(
    threshold: Tensor, v_init: Tensor, width: int, timesteps: int, signed: bool, mean: bool
) -> Prepared:
    """`fire` with all but the rows."""
    return Prepared("fas_fire", (threshold, v_init), width, timesteps, (timesteps, int(signed), int(mean)))


def quantize(x: Tensor, unit: Tensor, bounds: tuple[int, int], out: Tensor | None = None) -> Tensor:
    """`fas.neurons.qcfs` of ``x`` ``[…, C]``, on the grid of step ``unit``."""
    call, out = _Call(x.unsqueeze(0)), _out(x, out)
    low, high = map(ctypes.c_float, bounds)
    tail = (*call.constants(unit), low, high, out.data_ptr(), int(out.nbytes >= STREAMED))
    call.run("fas_quantize", call.kind, call.rows.data_ptr(), tail=tail)
    return out


def count(x: Tensor, unit: Tensor, offset: int = 128) -> Tensor:
    """Which multiple of ``unit`` ``[C]`` each of ``x`` ``[…, C]`` is, plus ``offset``, as uint8; at most 127 of either sign,
    of bfloat16, which is rounded, 31."""
    call, out = _Call(x.unsqueeze(0)), torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    tail = (*call.constants(unit), ctypes.c_float(offset + 0.5), out.data_ptr())
    call.run("fas_count", call.kind, call.rows.data_ptr(), tail=tail)
    return out


def quantize_back(grad: Tensor, x: Tensor, unit: Tensor, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` (in its dtype, which ``grad`` has) and, through what it multiplies, of the unit (float32), summed over
    all but the channels."""
    call = _Call(x.unsqueeze(0), grad.unsqueeze(0), widens=False)
    by_x, by_unit = call.back("fas_quantize_back", (unit,), tuple(map(ctypes.c_float, bounds)), sized=False)
    return by_x[0], by_unit


def shares() -> bool:
    """Whether the kernels share out their work among PyTorch's threads themselves (OpenMP)."""
    return loaded() is not None and bool(function_of("fas_shares")())


class _Call:
    """One call on rows ``[T, size]``: what is common to all kernels, and the threads that share its columns."""

    def __init__(self, rows: Tensor, grad: Tensor | None = None, widens: bool = True) -> None:
        if not (is_plain(rows) and rows.dtype in KINDS):
            addressed("rows", rows, KINDS, *rows.shape)  # says what is wrong
        self.rows, self.kind, self.dtype = rows.contiguous(), KINDS[rows.dtype], rows.dtype
        self.width = rows.shape[-1]
        self.size = self.rows[0].numel()
        if grad is not None:
            self.grad = addressed("a gradient", grad, KINDS if widens else (rows.dtype,), *rows.shape)
        if grad is not None and widens:
            self.rows, self.grad = self.rows.float(), self.grad.float()
        self.kept: list[Tensor] = []

    @property
    def head(self) -> tuple[int, int, int]:
        return self.kind, self.rows.data_ptr(), self.size

    def tail(self, out: Tensor, spikes: Tensor) -> tuple[Any, ...]:
        return out.data_ptr(), spikes.data_ptr() if spikes.numel() else None, int(out.nbytes >= STREAMED)

    def constants(self, *values: Tensor) -> list[int]:
        """Pointers to one float a channel."""
        self.kept += [_one_a_channel(value, self.width) for value in values]
        return [value.data_ptr() for value in self.kept[-len(values) :]]

    def run(self, name: str, *head: Any, tail: Any = (), tails: Sequence[Any] | None = None) -> None:
        """Call kernel ``name`` for all columns; arguments around (begin, end, width)."""
        kernel = function_of(name)
        parts = self.parts() if tails is None else self.parts(len(tails))
        ends = [tail] * len(parts) if tails is None else tails

        def work(index: int) -> None:
            begin, end = parts[index]
            kernel(*head, begin, end, self.width, *ends[index], 1)

        if len(parts) == 1 or shares():  # sums of a thread stand behind those of the first
            kernel(*head, 0, self.size, self.width, *ends[0], len(parts))
        else:
            list(_threads(len(parts)).map(work, range(len(parts))))

    def parts(self, count: int | None = None) -> list[tuple[int, int]]:
        """Columns of each thread, in whole cache lines."""
        threads = count or max(1, min(torch.get_num_threads(), self.rows.numel() // SHARE))
        each = -(-self.size // threads // 16) * 16 if threads > 1 else self.size
        return [(min(self.size, each * i), min(self.size, each * (i + 1))) for i in range(threads)]

    def back(
        self, name: str, constants: Sequence[Tensor], plan: tuple[Any, ...], sized: bool = True
    ) -> tuple[Tensor, ...]:
        """Gradients of the rows and of the first constants (one less than there are buffers; a start has none)."""
        by_rows, learned = torch.empty_like(self.rows), constants[:2]
        sums = [torch.zeros(len(self.parts()), self.width, device="cpu") for _ in learned]  # a row a thread
        pointers = self.constants(*constants)
        tails = [
            (*pointers, *plan, by_rows.data_ptr(), *[each[i].data_ptr() for each in sums]) for i in range(len(sums[0]))
        ]
        operands = (self.grad.data_ptr(), self.rows.data_ptr())
        head = (*operands, self.size) if sized else (self.kind, *operands)
        self.run(name, *head, tails=tails)
        return (
            by_rows.to(self.dtype),
            *[total.sum(0).sum_to_size(value.shape) for total, value in zip(sums, learned, strict=True)],
        )


def _one_a_channel(value: Tensor, width: int) -> Tensor:
    shape = value.shape
    if not (is_plain(value) and value.dtype is torch.float32 and shape in ((width,), (1,), ())):
        addressed("a constant", value, (torch.float32,), width)  # says what is wrong
    return value.detach().expand(width).contiguous()


def _out(rows: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return rows.new_empty(rows.shape)
    if not out.is_contiguous():
        raise FasError("a compiled kernel got a result tensor that is not contiguous; give one that is")
    return addressed("a result", out, (rows.dtype,), *rows.shape)


def _spikes(rows: Tensor, steps: int, want: bool) -> Tensor:
    return torch.empty((steps, *rows.shape[1:]) if want else 0, device=rows.device)


def _plan(steps: Sequence[float], zones: Sequence[float], timesteps: int) -> tuple[Any, Any, int, int]:
    """Steps and dead zones, timesteps and steps of each; raises `FasError` where they do not fit together."""
    each, rest = divmod(len(steps), timesteps)
    if rest or each < 1 or len(zones) != len(steps):
        raise FasError(
            f"a compiled kernel got {len(steps)} steps and {len(zones)} dead zones for {timesteps} timesteps; give as many "
            "steps in each of them, and a zone for each step"
        )
    return _floats(steps), _floats(zones), timesteps, each


def _floats(values: Sequence[float]) -> Any:
    return (ctypes.c_float * len(values))(*values)


_SIGNATURES = {
    "fas_sigma_delta": "i p l l l l p p p p p i i f f p p i i",
    "fas_sigma_delta_back": "p p l l l l p p p p p i i f f p p p i",
    "fas_fire": "i p l l l l p p i i i p p i i",
    "fas_fire_back": "p p l l l l p p i i i p p p i",
    "fas_quantize": "i p l l l p f f p i i",
    "fas_count": "i p l l l p f p i",
    "fas_gather": "i p i l p p i p l p p p i",
    "fas_dense": "i p i l p l p p i",
    "fas_active": "i p i l p",
    "fas_attend": "i p p p p p l l l l l f p i",
    "fas_shares": "",
    "fas_lanes": "",
    "fas_quantize_back": "i p p l l l p f f p p i",
}
_TYPES = {"i": ctypes.c_int, "l": ctypes.c_int64, "p": ctypes.c_void_p, "f": ctypes.c_float}


@functools.cache
def function_of(name: str) -> Callable[..., Any]:
    """A kernel by name, with the types of its arguments; there must be a library, tried out or not."""
    found = loaded()
    assert found is not None
    kernel = getattr(found, name)
    kernel.argtypes = [_TYPES[letter] for letter in _SIGNATURES[name].split()]
    kernel.restype = {"fas_shares": ctypes.c_int, "fas_lanes": ctypes.c_int, "fas_active": ctypes.c_int64}.get(name)
    return kernel  # type: ignore[no-any-return]


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="fas-neurons")
