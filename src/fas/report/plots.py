"""Figures of the report as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from typing import Any

from fas.report import words
from fas.report.results import Results, Row

# Matplotlib knows no `currentColor`; this stand-in is replaced by it in the finished SVG.
INK = "#010203"
_COLOURS = ("#3b82c4", "#d9702f", "#2f9e77", "#9b6bd0", "#c44f7a", "#8a8a2e")
_REFERENCES = {"ann": (":", "ANN"), "control": ("--", "control"), "qcfs": ("-.", "QCFS model")}


def quality_over_time(results: Results) -> str | None:
    """The metric against T, a line for each coding, with level lines for what needs no time; None without such rows."""
    lines: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in results.rows:
        whole = row.schedule != "layerwise" and row.mean_timesteps is None
        if row.name == "snn" and whole and row.timesteps and row.value is not None:
            lines[_line_name(row, results)].append(row)
    if not lines:
        return None
    figure, (axes,) = figure_of()
    names = list(dict.fromkeys(name for name, _ in lines))
    for (name, stage2), rows in lines.items():
        ordered = sorted(rows, key=lambda row: row.timesteps or 0)
        style = {"color": colour(names.index(name)), "linestyle": "--" if stage2 == "before" else "-", "marker": "o"}
        label = f"{name}, {stage2} Stage 2" if stage2 else name
        axes.plot([row.timesteps for row in ordered], [row.value for row in ordered], label=label, **style)
    for row in results.rows:
        if row.name in _REFERENCES and row.value is not None:
            style, label = _REFERENCES[row.name]
            label += " (of the tuned weights)" if row.tuned else ""
            axes.axhline(row.value, linestyle=style, color=INK, linewidth=1, alpha=0.7, label=label)
    times = sorted({row.timesteps for rows in lines.values() for row in rows if row.timesteps})
    axes.set_xscale("log", base=2)
    axes.set_xticks(times, [str(t) for t in times])
    axes.minorticks_off()
    axes.set_xlabel("timesteps T")
    axes.set_ylabel(words.metric_title(results))
    return finish(figure, axes)


def spikes_by_layer(row: Row) -> str | None:
    """Spikes per neuron of every site over the layers, a line for each kind of site; None if that was not counted."""
    if not row.by_site:
        return None
    lines: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    outside: dict[str, float] = {}
    stacks = towers({name[: layer.start()] for name in row.by_site if (layer := _layer(name))})
    for name, value in row.by_site.items():
        layer = _layer(name)
        kind = name.rsplit(".", 1)[-1].replace("_", " ")
        if layer:
            lines[stacks[name[: layer.start()]], kind][int(layer[1])] = value
        else:
            outside[kind] = value
    figure, (axes,) = figure_of()
    names, kinds = (list(dict.fromkeys(key[i] for key in lines)) for i in (0, 1))
    for (tower, kind), values in lines.items():
        layers = sorted(values)
        style = ("-", "--", "-.", ":")[names.index(tower) % 4]
        axes.plot(
            layers, [values[layer] for layer in layers], color=colour(kinds.index(kind)), linestyle=style, marker="o",
            label=f"{tower}, {kind}" if tower else kind,
        )  # fmt: skip
    for kind, value in outside.items():  # sites in front of or behind the layers
        axes.axhline(value, color=INK, linestyle=":", linewidth=1, label=kind)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel("spikes/neuron")
    return finish(figure, axes)


def _layer(site: str) -> re.Match[str] | None:
    return re.search(r"\.(\d+)\.", site)


def towers(stacks: set[str]) -> dict[str, str]:
    """What tells stacks of layers apart, by their names: the first part in which these differ; "" where there is one.

    >>> sorted(towers({"model.vision_tower.encoder.layers", "model.language_model.layers"}).values())
    ['language model', 'vision tower']
    """
    parts = {stack: stack.split(".") for stack in stacks}
    if len(stacks) < 2:
        return dict.fromkeys(stacks, "")
    at = next(i for i in range(99) if len({tuple(names[i : i + 1]) for names in parts.values()}) > 1)
    return {stack: " ".join(names[at : at + 1]).replace("_", " ") for stack, names in parts.items()}


def _line_name(row: Row, results: Results) -> tuple[str, str]:
    """Coding (with the coverage, if there are several; tuned or not) and, if both were measured, before or after Stage 2."""
    several = len({r.coverage for r in results.rows if r.coverage}) > 1
    both = {words.stage2_label(r) for r in results.rows} >= {"before", "after"}
    name = ", ".join(
        [row.coverage or ""] * several + [words.coding_label(row)] + ["weights tuned in time"] * bool(row.tuned)
    )
    return name, words.stage2_label(row) if both else ""


def colour(index: int) -> str:
    """The colours of the lines, in their order."""
    return _COLOURS[index % len(_COLOURS)]


def figure_of(rows: int = 1, columns: int = 1, height: float = 3.75, share_y: bool = False) -> tuple[Any, list[Any]]:
    """An empty figure and its panels, row by row."""
    from matplotlib.figure import Figure  # the object interface: no global state, no display

    figure = Figure(figsize=(7.6, height), layout="constrained")
    figure.patch.set_alpha(0)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for axes in panels:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=INK)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        for side, spine in axes.spines.items():
            spine.set_color(INK)
            spine.set_visible(side in ("left", "bottom"))
        axes.grid(axis="y", color=INK, alpha=0.12)
    return figure, panels


def finish(figure: Any, legend_of: Any = None) -> str:
    """The SVG of ``figure``, with a legend beside the panel ``legend_of``."""
    from matplotlib import rc_context

    if legend_of is not None:
        legend_of.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, labelcolor=INK, fontsize="small")
    buffer = io.StringIO()
    # text stays text, and equal results give equal bytes
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fas"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def standalone(svg: str) -> str:
    """An inline figure as a picture of its own, which has no page to take a colour from: grey that light and dark both show."""
    return svg.replace("currentColor", "#7d8590")
