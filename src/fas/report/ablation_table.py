"""An ablation as a table, a section for each group: lines of text for a terminal, or Markdown."""

from __future__ import annotations

import textwrap

from fas.report.ablation_summary import Spread, Summary, control_spread, summaries
from fas.report.results import Results

WIDTH = 110
HEAD = ("variant", "perplexity / control", "min – max", "QCFS model", "spikes/neuron", "seeds")
LEGEND = (
    "Perplexity of the spiking network over that of the control of the same seed (the ANN fine-tuned as Stage 1, or the ANN "
    "where that is better): mean ± sample standard deviation over the seeds. QCFS model: the same for the network before "
    "it was given time. Spikes/neuron: over all timesteps."
)


def plain_ablation(results: Results) -> str:
    """Title, sections, and why cells failed, as aligned lines of text."""
    sections = summaries(results)
    cells = {group: [HEAD, *map(_cells, entries)] for group, entries in sections.items()}
    widths = [max(len(row[i]) for rows in cells.values() for row in rows) for i in range(len(HEAD))] if cells else []
    lines = [textwrap.fill(_title(results), WIDTH)]
    for group, rows in cells.items():
        lines += ["", results.extra.get("groups", {}).get(group, group)]
        for row in [rows[0], ["-" * width for width in widths], *rows[1:]]:
            aligned = [
                row[0].ljust(widths[0]),
                *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)),
            ]
            lines.append("  ".join(aligned).rstrip())
    return "\n".join([*lines, *_failures(sections), "", textwrap.fill(LEGEND, WIDTH)])


def markdown_ablation(results: Results, level: int = 2, pictures: str | None = None) -> str:
    """The same in Markdown: headings of ``level``; ``pictures``: a path before ``GROUP.svg``, to show each group's figure."""
    sections = summaries(results)
    lines = [_title(results), ""]
    for group, entries in sections.items():
        lines += [f"{'#' * level} {results.extra.get('groups', {}).get(group, group)}", ""]
        if pictures is not None and any(entry.ratio for entry in entries):
            lines += [f"![{group}]({pictures}{group}.svg)", ""]
        for row in [HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *map(_cells, entries)]:
            lines.append("| " + " | ".join(row) + " |")
        lines.append("")
    failures = _failures(sections)
    return "\n".join([*lines, *(f"* {line}" for line in failures if line), *[""] * bool(failures), LEGEND]) + "\n"


def spread_label(spread: Spread | None) -> str:
    """``×1.012 ± 0.003``; without ± for a single seed.

    >>> spread_label(Spread((1.0, 1.02))), spread_label(Spread((1.0,))), spread_label(None)
    ('×1.010 ± 0.014', '×1.000', '')
    """
    if spread is None:
        return ""
    return f"×{spread.mean:.3f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.3f}")


def _cells(entry: Summary) -> tuple[str, ...]:
    ratio, seeds = entry.ratio, len(entry.ratio.values) if entry.ratio else 0
    return (
        entry.variant,
        "failed" if ratio is None else spread_label(ratio),
        "" if ratio is None else f"{ratio.low:.3f} – {ratio.high:.3f}",
        "" if entry.qcfs is None else f"×{entry.qcfs.mean:.3f}",
        "" if entry.spikes is None else f"{entry.spikes.mean:.2f}",
        f"{seeds}" + (f" ({len(entry.errors)} failed)" if entry.errors else ""),
    )


def _title(results: Results) -> str:
    options, evaluation = results.extra.get("options", {}), results.extra.get("evaluation", {})
    seeds = ", ".join(map(str, results.extra.get("seeds", [results.seed])))
    control = control_spread(results)
    perplexity = (
        ""
        if control is None
        else f"; control's perplexity {control.mean:.2f}"
        + ("" if control.deviation is None else f" ± {control.deviation:.2f}")
    )
    steps = options.get("stage1_steps")
    return (
        f"{results.model} on {results.data}, coverage {options.get('coverage')}; where nothing else is said L = "
        f"{options.get('levels')}, T = {options.get('timesteps')}, sigma-delta, Stage 1 of {steps or 'the usual'} steps, "
        f"Stage 2 on {options.get('calibration_sequences')} sequences; evaluated on {evaluation.get('sequences')} sequences of "
        f"{evaluation.get('length')} tokens; seeds {seeds}{perplexity}."
    )


def _failures(sections: dict[str, list[Summary]]) -> list[str]:
    """Why figures are missing, each reason once for a variant."""
    failed = [
        f"{entry.variant}: failed for seed {seed}: {reason}"
        for entries in sections.values()
        for entry in entries
        for seed, reason in entry.errors
    ]
    return ["", *dict.fromkeys(failed)] if failed else []
