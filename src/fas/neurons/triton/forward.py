"""The Triton programs of the way forward: a block of neurons goes through all timesteps while its state is in registers.

The same operations in the same order as in PyTorch (fas.neurons), so that results are equal bit by bit: divisions are IEEE's,
and whoever launches a program turns fused multiply-adds off (`fas.neurons.triton.kernels`). Rows are ``[T, size]`` of float32
or bfloat16, size = tokens · width; constants are float32, one a channel.
"""

from __future__ import annotations

import triton
import triton.language as tl

ENTRY = tl.constexpr(4)
"""Numbers of a step in the plan of a schedule: k, 1/k, 1 + δ and −δ."""


@triton.jit
def _block(size, width, BLOCK: tl.constexpr):
    """Columns of this program, which of them there are, and their channels."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    column = first + lane
    return column, column < size, ((first % width).to(tl.int32) + lane) % width


@triton.jit
def read(pointer, there):
    """Widened; 0 where there is nothing."""
    return tl.load(pointer, mask=there, other=0.0).to(tl.float32)


@triton.jit
def write(pointer, value, there):
    """To nearest, ties to even; NaN stays one. By hand: older GPUs have no instruction, and the interpreter cuts off."""
    if pointer.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        half = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        half = tl.where(value != value, tl.full(half.shape, 0x7FC0, tl.uint16), half)
        tl.store(pointer, half.to(tl.bfloat16, bitcast=True), mask=there)
    else:
        tl.store(pointer, value, mask=there)


@triton.jit
def within(x, low, high):
    """Clamped; a NaN stays one."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def fired(left, SIGNED: tl.constexpr):
    """The spike of a neuron whose potential is ``left``, in units of θ."""
    spike = tl.where(left >= 1.0, 1.0, 0.0)
    if SIGNED:
        spike -= tl.where(left < 0.0, 1.0, 0.0)
    return spike


@triton.jit(do_not_specialize=["width", "timesteps"])
def track(
    rows, unit, v_init, a_init, plan, out, spikes, size, width, timesteps, low, high,
    EACH: tl.constexpr, TOLD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`fas.neurons.sigma_delta`, EACH steps a timestep."""
    column, there, channel = _block(size, width, BLOCK)
    theta, offset, state = tl.load(unit + channel), tl.load(v_init + channel), tl.load(a_init + channel)
    for _t in range(timesteps):
        target = within(tl.div_rn(read(rows + column, there), theta), low, high)
        for _m in tl.static_range(EACH):
            k, inverse, upper, lower = tl.load(plan), tl.load(plan + 1), tl.load(plan + 2), tl.load(plan + 3)
            u = (target - state) * inverse + offset
            spike = tl.where(u >= upper, 1.0, 0.0) - tl.where(u < lower, 1.0, 0.0)
            spike += tl.where(lower == 0.0, u - u, 0.0)  # a NaN stays one as in floor, which a dead zone has not
            moved = state + spike * k
            outside = (moved < low) | (moved > high)
            state = tl.where(outside, state, moved)
            if TOLD:
                tl.store(spikes + column, tl.where(outside, 0.0, spike), mask=there)
                spikes += size
            plan += ENTRY
        write(out + column, state * theta, there)
        rows += size
        out += size


@triton.jit(do_not_specialize=["width", "timesteps"])
def fire(
    rows, threshold, v_init, out, spikes, size, width, timesteps,
    SIGNED: tl.constexpr, MEAN: tl.constexpr, TOLD: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`fas.neurons.integrate_fire`; SUM: the type in which charges are added up."""
    column, there, channel = _block(size, width, BLOCK)
    theta, offset = tl.load(threshold + channel), tl.load(v_init + channel)
    counts, time, total = tl.zeros_like(theta), tl.zeros_like(theta), tl.zeros([BLOCK], SUM)
    for _t in range(timesteps):
        time += 1.0
        charge = read(rows + column, there)
        if MEAN:
            charge *= time
        else:
            total += charge.to(SUM)
            charge = total.to(tl.float32)
        spike = fired(tl.div_rn(charge, theta) + offset - counts, SIGNED)
        counts += spike
        if TOLD:
            tl.store(spikes + column, spike, mask=there)
            spikes += size
        if MEAN:
            write(out + column, tl.div_rn(counts, time) * theta, there)
        else:
            write(out + column, spike * theta, there)
        rows += size
        out += size


@triton.jit(do_not_specialize=["width"])
def quantize(x, unit, out, size, width, low, high, BLOCK: tl.constexpr):
    """`fas.neurons.qcfs`."""
    column, there, channel = _block(size, width, BLOCK)
    step = tl.load(unit + channel)
    code = tl.floor(tl.div_rn(read(x + column, there), step) + 0.5)
    write(out + column, within(code, low, high) * step, there)
