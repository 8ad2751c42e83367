"""The Triton programs of the way back: a tile of tokens and channels goes through time twice.

Forward, to leave behind what each neuron fired, and in reverse from the state that it ended in. What is summed over tokens is
written to a row of its own by each program of a channel, so that no order is left to chance. Rows are ``[T, size]`` of float32
or bfloat16, size = tokens · width; constants are float32, one a channel. Addresses are counted on the scalar side (`row`): a
block of pointers carried through a loop would be shuffled among threads at each turn.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fas.neurons.triton.forward import ENTRY, fired, read, within, write

SUPPRESSED = tl.constexpr(2)
"""What a spike is noted as that would have left the grid."""


@triton.jit
def _slope(v, both: tl.constexpr):
    """`fas.neurons.surrogate.ternary_slope`."""
    value = tl.maximum(1.0 - tl.abs(v - 1.0), 0.0)
    if both:
        value += tl.maximum(1.0 - tl.abs(v), 0.0)
    return value


@triton.jit
def _channels(width, COLS: tl.constexpr):
    """Channels ``[COLS]`` of this program, and which of them there are."""
    channel = tl.program_id(0) * COLS + tl.arange(0, COLS)
    return channel, channel < width


@triton.jit
def _tile(tile, tokens, width, channel, known, ROWS: tl.constexpr):
    """Columns ``[ROWS, COLS]`` of a tile of tokens, and which of them there are."""
    token = tile * ROWS + tl.arange(0, ROWS)
    column = token.to(tl.int64)[:, None] * width + channel[None, :]
    return column, (token < tokens)[:, None] & known[None, :]


@triton.jit
def _constant(pointer, channel, known):
    return tl.load(pointer + channel, mask=known, other=1.0)[None, :]


@triton.jit
def _keep(pointer, total, channel, known, width):
    """The sum over this program's tokens, in its own row."""
    tl.store(pointer + tl.program_id(1) * width + channel, tl.sum(total, axis=0), mask=known)


@triton.jit(do_not_specialize=["tokens", "timesteps"])
def track_back(
    grad, rows, unit, v_init, a_init, plan, noted, by_rows, by_unit, by_v_init, tokens, width, timesteps, low, high,
    EACH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Gradients of `track`; ``noted`` ``[P·T, size]`` int8 is a scratch pad."""
    size = tokens.to(tl.int64) * width
    channel, known = _channels(width, COLS)
    theta, offset = _constant(unit, channel, known), _constant(v_init, channel, known)
    start = _constant(a_init, channel, known)
    on_unit, on_v_init = tl.zeros([ROWS, COLS], tl.float32), tl.zeros([ROWS, COLS], tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(tokens, ROWS), tl.num_programs(1)):
        column, there = _tile(tile, tokens, width, channel, known, ROWS)
        row, given, to, note, step = rows, grad, by_rows, noted, plan
        state = tl.zeros([ROWS, COLS], tl.float32) + start
        for _t in range(timesteps):
            target = within(tl.div_rn(read(row + column, there), theta), low, high)
            for _m in tl.static_range(EACH):
                k, inverse, zone = tl.load(step), tl.load(step + 1), -tl.load(step + 3)
                u = (target - state) * inverse + offset
                u -= tl.where(u >= 0.5, zone, -zone)
                spike = within(tl.floor(u), -1.0, 1.0)
                moved = state + spike * k
                stays = (moved >= low) & (moved <= high)
                state = tl.where(stays, moved, state)
                tl.store(note + column, tl.where(stays, spike, SUPPRESSED).to(tl.int8), mask=there)
                note += size
                step += ENTRY
            row += size
            given += size
            to += size
        tl.debug_barrier()  # notes may be read by other threads than wrote them
        back = tl.zeros([ROWS, COLS], tl.float32)  # ∂/∂a_t, from all later timesteps
        for _t in range(timesteps):
            row -= size
            given -= size
            to -= size
            ratio, came = tl.div_rn(read(row + column, there), theta), read(given + column, there)
            target = within(ratio, low, high)
            back += came * theta
            on_unit += came * state
            on_target = tl.zeros([ROWS, COLS], tl.float32)
            for _m in tl.static_range(EACH):
                note -= size
                step -= ENTRY
                k, inverse, zone = tl.load(step), tl.load(step + 1), -tl.load(step + 3)
                code = read(note + column, there)
                state -= tl.where(code == SUPPRESSED, 0.0, code) * k  # as it was before: whole numbers, exact
                u = (target - state) * inverse + offset
                u -= tl.where(u >= 0.5, zone, -zone)
                moved = back * tl.where(code == SUPPRESSED, 0.0, _slope(u, True))
                on_v_init += moved * k
                on_target += moved
                back -= moved
            on_row = tl.where((ratio >= low) & (ratio <= high), tl.div_rn(on_target, theta), 0.0)
            write(to + column, on_row, there)
            on_unit -= on_row * ratio
    _keep(by_unit, on_unit, channel, known, width)
    _keep(by_v_init, on_v_init, channel, known, width)


@triton.jit(do_not_specialize=["tokens", "timesteps"])
def fire_back(
    grad, rows, threshold, v_init, noted, by_rows, by_threshold, by_v_init, tokens, width, timesteps,
    SIGNED: tl.constexpr, MEAN: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Gradients of `fire`; ``noted`` ``[T, size]`` int8 is a scratch pad."""
    size = tokens.to(tl.int64) * width
    channel, known = _channels(width, COLS)
    theta, offset = _constant(threshold, channel, known), _constant(v_init, channel, known)
    on_theta, on_v_init = tl.zeros([ROWS, COLS], tl.float32), tl.zeros([ROWS, COLS], tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(tokens, ROWS), tl.num_programs(1)):
        column, there = _tile(tile, tokens, width, channel, known, ROWS)
        row, given, to, note = rows, grad, by_rows, noted
        counts, time = tl.zeros([ROWS, COLS], tl.float32), tl.zeros([ROWS, COLS], tl.float32)
        total = tl.zeros([ROWS, COLS], SUM)
        for _t in range(timesteps):
            time += 1.0
            charge = read(row + column, there)
            if MEAN:
                charge *= time
            else:
                total += charge.to(SUM)
                charge = total.to(tl.float32)
            spike = fired(tl.div_rn(charge, theta) + offset - counts, SIGNED)
            counts += spike
            tl.store(note + column, spike.to(tl.int8), mask=there)
            row += size
            given += size
            to += size
            note += size
        tl.debug_barrier()  # notes may be read by other threads than wrote them
        back = tl.zeros([ROWS, COLS], tl.float32)  # ∂/∂N_t, through all later timesteps
        later = tl.zeros([ROWS, COLS], tl.float32)
        for _t in range(timesteps):
            row -= size
            given -= size
            to -= size
            note -= size
            charge, came, spike = read(row + column, there), read(given + column, there), read(note + column, there)
            said = spike
            if MEAN:
                charge *= time
                came, said = tl.div_rn(came, time), counts
            else:
                before = total - charge.to(SUM)
                charge = total.to(tl.float32)
                total = before
            counts -= spike
            charge = tl.div_rn(charge, theta)
            on_spike = back + came * theta
            on_level = on_spike * _slope(charge + offset - counts, SIGNED)
            on_theta += came * said - tl.div_rn(on_level * charge, theta)
            on_v_init += on_level
            on_charge = tl.div_rn(on_level, theta)
            later += on_charge
            if MEAN:
                back = on_spike - on_level
                write(to + column, on_charge * time, there)
            else:
                back -= on_level
                write(to + column, later, there)
            time -= 1.0
    _keep(by_threshold, on_theta, channel, known, width)
    _keep(by_v_init, on_v_init, channel, known, width)


@triton.jit(do_not_specialize=["tokens"])
def quantize_back(
    grad, x, unit, by_x, by_unit, tokens, width, low, high, ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    """Gradients of `quantize`."""
    channel, known = _channels(width, COLS)
    step = _constant(unit, channel, known)
    on_unit = tl.zeros([ROWS, COLS], tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(tokens, ROWS), tl.num_programs(1)):
        column, there = _tile(tile, tokens, width, channel, known, ROWS)
        u, came = tl.div_rn(read(x + column, there), step), read(grad + column, there)
        inside = (u >= low) & (u <= high)
        code = within(tl.floor(u + 0.5), low, high)
        write(by_x + column, tl.where(inside, came, came * 0.0), there)
        on_unit += came * (code - tl.where(inside, u, 0.0))
    _keep(by_unit, on_unit, channel, known, width)
