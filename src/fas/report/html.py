"""One self-contained HTML page about a conversion: nothing is loaded from anywhere, it can be mailed."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path

import jinja2

from fas.config import spoken
from fas.report import comparison, diagnosis_plots, plots, scenes, words
from fas.report.results import Results, Row
from fas.report.table import columns_of
from fas.storage import write_whole

CLOSE = 1.02


def write_report(results: Results, path: Path | str) -> Path:
    """Write the page to ``path``, whole or not at all."""
    return write_whole(Path(path), render(results))


def render(results: Results) -> str:
    """The page as text."""
    methods = comparison.compared(results)  # which have figures of their own
    best = None if methods else headline_row(results)
    counted = best if best is not None and best.by_site else next((row for row in results.rows if row.by_site), None)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((files("fas.report") / "report.html.j2").read_text(encoding="utf-8"))
    columns = columns_of(results)
    return template.render(
        headline=headline(results, best),
        title=words.title(results),
        columns=columns,
        lines=list(zip(results.rows, zip(*[column.cells for column in columns], strict=True), strict=True)),
        best=best,
        notes=words.notes(results),
        metric=words.metric_title(results),
        quality=None if methods else plots.quality_over_time(results),
        counted=counted,
        counted_name=words.describe_snn(counted) if counted else "",
        by_layer=plots.spikes_by_layer(counted) if counted and not methods else None,
        settling={spoken(key): figure for key, figure in diagnosis_plots.of_results(results).items()},
        samples=words.samples(results),
        figures=comparison.figures(results),
        scenes=scenes.shown(results),
        kind="vision-language model" if results.extra.get("scenes") else "language model",
        provenance=words.provenance(results),
    )


def headline_row(results: Results) -> Row | None:
    """The SNN to put first: fewest timesteps within 2 % of the control, or, if none is that close, the closest."""
    rated = [
        (1 / found if words.is_share(row) else found, row)
        for row in results.rows
        if row.name == "snn"
        and row.schedule != "layerwise"
        and row.mean_timesteps is None
        and (found := words.ratio(row, results))
        and math.isfinite(found)
    ]
    close = [(row.timesteps or 0, found, row) for found, row in rated if found <= CLOSE]
    if close:
        return min(close, key=lambda entry: entry[:2])[2]
    return min(rated, key=lambda entry: entry[0])[1] if rated else None


def headline(results: Results, best: Row | None) -> str:
    """One sentence that says how it went."""
    reference = words.reference_row(results)
    if comparison.compared(results):
        return comparison.headline(results)
    if best is None or reference is None:
        return f"Measurements of {words.called(results.model)}."
    count, model = best.spikes_per_neuron, words.called(results.model)
    spikes = "" if count is None else f", firing {count:.2f} spikes per neuron and token"
    return (
        f"As a spiking network ({words.describe_snn(best)}), {model} reaches {words.metric_title(results)} "
        f"{words.format_value(best.value)} where {words.original(results)} has {words.format_value(reference.value)} "
        f"({words.ratio_label(best, results)}){spikes}."
    )
