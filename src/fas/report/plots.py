"""Figures of the report as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from typing import Any

from fas.report import words
from fas.report.results import Results, Row

# Matplotlib knows no `currentColor`; this stand-in is replaced by it in the finished SVG.
_INK = "#010203"
_COLOURS = ("#3b82c4", "#d9702f", "#2f9e77", "#9b6bd0", "#c44f7a", "#8a8a2e")
_REFERENCES = {"ann": (":", "ANN"), "control": ("--", "control"), "qcfs": ("-.", "QCFS model")}


def quality_over_time(results: Results) -> str | None:
    """The metric against T, a line for each coding, with level lines for what needs no time; None without such rows."""
    lines: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in results.rows:
        if row.name == "snn" and row.schedule != "layerwise" and row.timesteps and row.value is not None:
            lines[_line_name(row, results)].append(row)
    if not lines:
        return None
    figure, axes = _figure()
    names = list(dict.fromkeys(name for name, _ in lines))
    for (name, stage2), rows in lines.items():
        ordered = sorted(rows, key=lambda row: row.timesteps or 0)
        style = {"color": _colour(names.index(name)), "linestyle": "--" if stage2 == "before" else "-", "marker": "o"}
        label = f"{name}, {stage2} Stage 2" if stage2 else name
        axes.plot([row.timesteps for row in ordered], [row.value for row in ordered], label=label, **style)
    for row in results.rows:
        if row.name in _REFERENCES and row.value is not None:
            style, label = _REFERENCES[row.name]
            axes.axhline(row.value, linestyle=style, color=_INK, linewidth=1, alpha=0.7, label=label)
    times = sorted({row.timesteps for rows in lines.values() for row in rows if row.timesteps})
    axes.set_xscale("log", base=2)
    axes.set_xticks(times, [str(t) for t in times])
    axes.minorticks_off()
    axes.set_xlabel("timesteps T")
    axes.set_ylabel(words.metric_title(results))
    return _finish(figure, axes)


def spikes_by_layer(row: Row) -> str | None:
    """Spikes per neuron of every site over the layers, a line for each kind of site; None if that was not counted."""
    if not row.by_site:
        return None
    kinds: dict[str, dict[int, float]] = defaultdict(dict)
    outside: dict[str, float] = {}
    for name, value in row.by_site.items():
        layer = re.search(r"\.(\d+)\.", name)
        kind = name.rsplit(".", 1)[-1].replace("_", " ")
        if layer:
            kinds[kind][int(layer[1])] = value
        else:
            outside[kind] = value
    figure, axes = _figure()
    for index, (kind, values) in enumerate(kinds.items()):
        layers = sorted(values)
        axes.plot(layers, [values[layer] for layer in layers], color=_colour(index), marker="o", label=kind)
    for kind, value in outside.items():  # sites in front of or behind the layers
        axes.axhline(value, color=_INK, linestyle=":", linewidth=1, label=kind)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel("spikes/neuron")
    return _finish(figure, axes)


def _line_name(row: Row, results: Results) -> tuple[str, str]:
    """Coding (with the coverage, if there are several) and, if both were measured, before or after Stage 2."""
    several = len({r.coverage for r in results.rows if r.coverage}) > 1
    both = {words.stage2_label(r) for r in results.rows} >= {"before", "after"}
    name = ", ".join([row.coverage or ""] * several + [words.coding_label(row)])
    return name, words.stage2_label(row) if both else ""


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # the object interface: no global state, no display

    figure = Figure(figsize=(7.6, 3.75), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    for side, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(axis="y", color=_INK, alpha=0.12)
    return figure, axes


def _finish(figure: Any, axes: Any) -> str:
    from matplotlib import rc_context

    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, labelcolor=_INK, fontsize="small")
    buffer = io.StringIO()
    # text stays text, and equal results give equal bytes
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fas"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")
