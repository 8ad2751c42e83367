"""A plan as plain lines of text, for people."""

from __future__ import annotations

from fas.report.inspection import Inspection
from fas.report.inspection_text import aligned, duration, human
from fas.report.plan import Plan


def as_text(plan: Plan) -> str:
    """Everything that a dry run found, and that nothing was done."""
    parts = [
        _head(plan),
        _sites(plan.inspection),
        _stages(plan),
        _peak(plan),
        _files(plan),
        _commands(plan),
        _published(plan),
    ]
    parts.append([*(f"note: {note}" for note in plan.notes), "Nothing was trained, loaded or written."])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _head(plan: Plan) -> list[str]:
    found = plan.inspection
    title = [f"{plan.recipe}: {plan.about['title']}"] if plan.about else []
    return [
        *title,
        f"{plan.model}: {found.architecture}, {found.parameters:,} parameters; configuration from {plan.configuration}",
    ]


def _sites(found: Inspection) -> list[str]:
    count, macs = sum(group.count for group in found.sites), found.macs_per_token
    analog = ", ".join(f"{number} {what}" for what, number in found.analog.items())
    outside = ", ".join(f"{number} {what}" for what, number in found.outside.items())
    share = macs["covered"] / (macs["blocks"] + macs["unknown"])
    return [
        f"Spikes: {count} sites (coverage {found.coverage}), which drive {share:.0%} of the blocks' linear layers",
        *[f"No family knows {stack}: it stays analog" for stack in found.unknown],
        f"Analog: {analog}",
        *[f"Analog and once, outside of these layers: {outside}"] * bool(outside),
    ]


def _stages(plan: Plan) -> list[str]:
    table = [("stage", "tokens", "memory", "time", "")]
    table += [
        (stage.name, f"{stage.tokens:,}", human(stage.peak), duration(stage.seconds), stage.does)
        for stage in plan.stages
    ]
    return ["Stages:", *aligned(table), f"Time in all: {duration(plan.seconds)} ({plan.speed.source})"]


def _peak(plan: Plan) -> list[str]:
    largest = max(plan.stages, key=lambda stage: stage.peak)
    table = [(human(size), part) for part, size in largest.memory.items() if size]
    lines = [f"Peak memory: {human(plan.peak)} ({plan.peak / 2**30:.1f} GiB), in {largest.name}:", *aligned(table)]
    if plan.fits is False:
        here = (plan.memory_here or 0) / 2**30
        lines.append(
            f"This does not fit here: it needs {plan.peak / 2**30:.1f} GiB, and this machine has {here:.1f} GiB."
        )
    return lines


def _files(plan: Plan) -> list[str]:
    return ["Files:", *aligned([(human(size), name) for name, size in plan.files.items()])]


def _commands(plan: Plan) -> list[str]:
    return ["To run it:", *aligned(list(plan.commands.items()))] if plan.commands else []


def _published(plan: Plan) -> list[str]:
    if not plan.about:
        return []
    table = [(figure_text(entry), entry["of"], entry["source"]) for entry in plan.about["published"]]
    return [f"To compare with ({plan.about['reproduces']}):", *aligned(table)]


def figure_text(entry: dict[str, object]) -> str:
    """One published figure.

    >>> figure_text({"metric": "perplexity", "figure": 5.5, "timesteps": 10, "ann": 5.47})
    'perplexity 5.5 at T=10 (ANN 5.47)'
    >>> figure_text({"metric": "perplexity", "figure": None, "timesteps": None, "ann": None})
    'perplexity: not found'
    """
    if entry["figure"] is None:
        return f"{entry['metric']}: not found"
    time = f" at T={entry['timesteps']}" if entry["timesteps"] is not None else ""
    ann = f" (ANN {entry['ann']:g})" if isinstance(entry["ann"], float | int) else ""
    figure = entry["figure"]
    return f"{entry['metric']} {figure if isinstance(figure, str) else f'{figure:g}'}{time}{ann}"
