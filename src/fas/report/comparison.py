"""Conversion methods side by side: quality against latency and against spikes, with the Pareto front; and the rows as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence

from fas.report import words
from fas.report.plots import INK, colour, figure_of, finish
from fas.report.results import Results, Row

LEDGERS = {
    "energy_proxy": "fp32 proxy",
    "energy_same_precision": "same precision",
    "energy_with_memory": "with memory",
}
"""CSV column: column of the ledger."""
FIELDS = (
    "method", "coverage", "timesteps", "neurons_per_channel", "latency_timesteps", "metric", "value", "against_control",
    "against_quantized",
    "spikes_per_neuron", *LEDGERS, "energy_strict_pj", "energy_ann_pj", "analog_macs", "analog_functions", "memory_mib",
    "seconds_convert", "seconds", "error",
)  # fmt: skip
SOON = 16
"""Timesteps of latency within which the headline looks for the best row."""
_MARKERS = "osD^vP*X"
FARTHEST = 3
"""Perplexities of more than so many times the control's are not drawn."""
_LEVEL_LINES = {"control": "--", "ann": "--", "ann+prefix": ":", "qcfs": "-."}
"""Line style of what is drawn as a level line."""
_COSTS: tuple[tuple[str, str, Callable[[Row], float | None], str], ...] = (
    ("latency", "Quality against latency", lambda row: row.latency_timesteps, "timesteps until the answer"),
    ("spikes", "Quality against spikes", lambda row: row.spikes_per_neuron, "spikes a neuron and token"),
    (
        "energy", "Quality against energy",
        lambda row: row.energy_strict_pj and row.energy_strict_pj / (row.energy_ann_pj or 1),
        "energy of the whole network, fp32 proxy, times the ANN's",
    ),
)  # fmt: skip


def compared(results: Results) -> list[Row]:
    """The rows of methods that were measured."""
    return [row for row in results.rows if row.method is not None and row.value is not None]


def as_csv(results: Results) -> str:
    """Method rows, one a line, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for row in results.rows:
        if row.method is not None:
            values = vars(row) | _derived(row, results)
            writer.writerow(["" if (value := values.get(name)) is None else value for name in FIELDS])
    return text.getvalue()


def _derived(row: Row, results: Results) -> dict[str, float]:
    """Quality against the control (without one the ANN) and the quantized ANN (a ratio, or a difference of shares), and single
    figures of tables."""
    derived = {
        name: row.energies[column] for name, column in LEDGERS.items() if row.energies and column in row.energies
    }
    derived |= {f"analog_{name}": value for name, value in (row.analog or {}).items()}
    reference = words.reference_row(results)
    quantized = next((entry for entry in results.rows if entry.name == "qcfs"), None)
    for name, found in (("against_control", reference), ("against_quantized", quantized)):
        other = None if found is None else found.value
        if other and row.value is not None:
            derived[name] = row.value - other if words.is_share(row) else row.value / other
    return derived


def front(rows: Sequence[Row], cost: Callable[[Row], float | None]) -> list[Row]:
    """Those of ``rows`` than which none is better at the same cost or less, cheapest first."""
    known = sorted((row for row in rows if cost(row) is not None), key=lambda row: (cost(row) or 0, badness(row)))
    found: list[Row] = []
    for row in known:
        if not found or badness(row) < badness(found[-1]):
            found.append(row)
    return found


def badness(row: Row) -> float:
    """Less is better: a perplexity, or the negative of a share; infinity for what is no number."""
    assert row.value is not None
    if math.isnan(row.value):
        return math.inf
    return -row.value if words.is_share(row) else row.value


def soonest(results: Results) -> Row | None:
    """The best method row of at most `SOON` timesteps of latency; of equal ones the one with less."""
    rows = [row for row in compared(results) if row.latency_timesteps and row.latency_timesteps <= SOON]
    return min(rows, key=lambda row: (badness(row), row.latency_timesteps), default=None)


def headline(results: Results) -> str:
    """How many conversions were compared, and how the best of those with a low latency stands to the original."""
    count, model = len({row.method for row in compared(results)}), words.called(results.model)
    side_by_side = f"{count} conversions of {model}, side by side"
    best, reference = soonest(results), words.reference_row(results)
    if best is None or reference is None:
        return f"{side_by_side}."
    several = best.neurons_per_channel or 1
    neurons = f", {several} neurons a channel" if several > 1 else ""
    return (
        f"{side_by_side}. Within {SOON} timesteps of latency {best.method} (T = {best.timesteps}{neurons}) is best: "
        f"{words.metric_title(results)} {words.format_value(best.value)} where {words.original(results)} has "
        f"{words.format_value(reference.value)} ({words.ratio_label(best, results)})."
    )


def figures(results: Results) -> list[tuple[str, str, str]]:
    """Title, SVG and caption of each figure; none where no methods were compared."""
    rows = compared(results)
    caption = (
        "Each method over T; the line joins those than which none is better at the same cost or less. Level lines: what has no "
        "time."
    )
    if rows and not words.is_share(rows[0]):
        caption += f" More than {FARTHEST} times the value of {words.original(results)} is not drawn."
    return [
        (title, _figure(results, rows, cost, label), caption)
        for _, title, cost, label in _COSTS
        if any(cost(row) for row in rows)
    ]


def _figure(results: Results, rows: list[Row], cost: Callable[[Row], float | None], label: str) -> str:
    figure, (axes,) = figure_of(height=5.2)
    for index, name in enumerate(dict.fromkeys(row.method for row in rows)):
        own = [row for row in rows if row.method == name and cost(row)]
        if own:
            axes.plot(
                [cost(row) for row in own], [row.value for row in own], color=colour(index), marker=_MARKERS[index // 6 % 8],
                markersize=4.5, linewidth=0.7, alpha=0.85, label=name,
            )  # fmt: skip
    best = front(rows, cost)
    axes.plot(
        [cost(row) for row in best], [row.value for row in best], color=INK, linewidth=1.6, label="best at its cost"
    )
    references = [row for row in results.rows if row.name in _LEVEL_LINES and row.value is not None]
    for row in references:
        axes.axhline(
            row.value,
            color=INK,
            linestyle=_LEVEL_LINES[row.name],
            linewidth=1,
            alpha=0.6,
            label=words.model_label(row, results),
        )
    axes.set_xscale("log", base=2)
    if references and not words.is_share(rows[0]):  # what failed would hide the rest
        values = [row.value or 0 for row in [*rows, *references]]
        reference = words.reference_row(results) or references[0]
        axes.set_ylim(0.97 * min(values), min(1.03 * max(values), FARTHEST * (reference.value or 1)))
    axes.set_xlabel(label)
    axes.set_ylabel(words.metric_title(results))
    return finish(figure, axes)
