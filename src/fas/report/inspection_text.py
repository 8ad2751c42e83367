"""An inspection as plain lines of text, for people."""

from __future__ import annotations

from collections.abc import Sequence

from fas.report.inspection import Inspection


def as_text(found: Inspection) -> str:
    """Everything `inspect_model` found."""
    parts = [_head(found), _sites(found), _analog(found), _macs(found), _memory(found), _time(found)]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _head(found: Inspection) -> list[str]:
    segments = ", ".join(f"{name} ({layers} layers)" for name, layers in found.segments.items())
    lines = [
        f"{found.model}: {found.architecture}, family {', '.join(found.families)}, {found.parameters:,} parameters",
        f"Time is folded through: {segments}",
    ]
    if found.converted:
        spiking = found.converted["spiking"]
        lines.append(
            f"Already converted ({found.converted['stage']}): {spiking['coding'].replace('_', '-')}, T = "
            f"{spiking['timesteps']}, L = {spiking['levels']}, neurons a channel: "
            f"{spiking.get('neurons_per_channel', 1)}; "
            f"calibrated: {', '.join(found.converted['neurons']) or 'nothing'}"
        )
    return lines


def _sites(found: Inspection) -> list[str]:
    count = sum(group.count for group in found.sites)
    table = [("site", "count", "channels", "values", "read by")]
    for group in found.sites:
        values = "signed" if group.signed else "unsigned"
        replaces = f"; stands in for {group.replaces}" if group.replaces else ""
        table.append((group.pattern, str(group.count), str(group.width), values, ", ".join(group.consumers) + replaces))
    become = "spike, with" if found.converted else "become spikes with"
    return [f"{count} sites {become} coverage {found.coverage}:", *aligned(table)]


def _analog(found: Inspection) -> list[str]:
    tables = [[(str(count), what) for what, count in kinds.items()] for kinds in (found.analog, found.outside)]
    lines = ["What stays analog, evaluated at every timestep:", *aligned(tables[0])]
    if tables[1]:
        lines += [
            "",
            "Outside of the layers that time is folded through, analog and evaluated once:",
            *aligned(tables[1]),
        ]
    return lines


def _macs(found: Inspection) -> list[str]:
    macs = found.macs_per_token
    layers = macs["blocks"] + macs["unknown"]
    everything = layers + macs["head"]
    lines = [
        f"Spikes drive {macs['covered'] / layers:.1%} of the multiply–accumulates of the blocks' linear layers, "
        f"{macs['covered'] / everything:.1%} with the output",
        f"head ({everything:,} per token). Attention products are not in this.",
    ]
    for stack in found.unknown:
        lines.append(f"{stack.macs / layers:.1%} of them lie in {stack}, which no family knows: it stays analog.")
    return lines


def _memory(found: Inspection) -> list[str]:
    work, memory = found.workload, found.memory
    total = memory["weights"] + memory["activations"] + memory["logits"]
    size = f"T = {work.timesteps}, {work.batch_size} {work.unit} of {work.length} tokens, {work.dtype}"
    table = [
        (human(memory["stage1"]), "Stage 1: fp32 weights, gradients and Adam's two moments; activations come on top"),
        (human(total), f"inference at {size}: {human(memory['weights'])} weights, "
                       f"{human(memory['activations'])} activations, {human(memory['logits'])} logits"),
    ]  # fmt: skip
    if memory["exact_cache"]:
        settled = human(memory["exact_cache"] // work.timesteps)
        table.append(
            (human(memory["exact_cache"]), f"exact key/value cache of these tokens; the settled one takes {settled}")
        )
    return ["Memory, roughly:", *aligned(table)]


def _time(found: Inspection) -> list[str]:
    work = found.workload
    table = [
        (duration(found.seconds["stage1_step"]), "a step of Stage 1, its control and its teacher included"),
        (duration(found.seconds["snn_batch"]), f"a batch through the SNN at T = {work.timesteps}"),
    ]
    size = f"{work.batch_size} {work.unit} of {work.length} tokens, fp32"
    return [f"Time on this machine, at least (matrix products alone; {size}):", *aligned(table)]


def duration(seconds: float) -> str:
    """Of a rough estimate.

    >>> duration(0.25), duration(90), duration(7200)
    ('250 ms', '90.0 s', '2.0 h')
    """
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"
    return (
        f"{1000 * seconds:.0f} ms"
        if seconds < 1
        else f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
    )


def aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of a table as indented lines, columns under each other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]


def human(count: float) -> str:
    """Bytes as people say them.

    >>> human(999), human(12_345_678)
    ('999 B', '12.3 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
