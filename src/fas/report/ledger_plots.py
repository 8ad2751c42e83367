"""Figures of a ledger as inline SVG: firing rate by layer and timestep, spike rasters, energy bars."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fas.accounting.energy import ROWS
from fas.accounting.ledger import Statement
from fas.report.plots import INK, colour, figure_of, finish
from fas.report.results import Results
from fas.report.words import metric_title


def firing_rates(statement: Statement) -> str | None:
    """Spikes per neuron in each timestep: a panel for each kind of site, a line for each layer; None without sites."""
    kinds: dict[str, dict[int, list[float]]] = defaultdict(dict)
    for site in statement.sites:
        layer = re.search(r"\.(\d+)\.", site.name)
        kind = site.name.rsplit(".", 1)[-1].replace("_", " ")
        kinds[kind][int(layer[1]) if layer else -1] = site.by_timestep
    if not kinds:
        return None
    columns = min(3, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    figure, panels = figure_of(rows, columns, height=2.4 * rows)
    deepest = max(layer for lines in kinds.values() for layer in lines)
    for panel, (kind, lines) in zip(panels, kinds.items(), strict=False):
        for layer, values in sorted(lines.items()):
            shade = 0.3 + 0.7 * (layer + 1) / (deepest + 1) if deepest >= 0 else 1.0
            panel.plot(range(1, len(values) + 1), values, color=colour(0), alpha=shade, marker=".", linewidth=1.2)
        panel.set_title(kind, color=INK, fontsize="small")
        panel.set_ylim(bottom=0)
        panel.xaxis.get_major_locator().set_params(integer=True)
    for panel in panels[len(kinds) :]:
        panel.set_visible(False)
    figure.supxlabel("timestep (darker: deeper layer)", color=INK, fontsize="small")
    figure.supylabel("spikes per neuron", color=INK, fontsize="small")
    return finish(figure)


def spike_raster(name: str, spikes: Tensor) -> str:
    """Spikes ``[T, tokens, channels]`` of one site: a column for each token and timestep, +1 and −1 in two colours."""
    from matplotlib.colors import ListedColormap

    timesteps, tokens, channels = spikes.shape
    figure, (panel,) = figure_of(1, 1, height=3.4)
    picture = spikes.permute(2, 1, 0).reshape(channels, tokens * timesteps).numpy()
    colours = ListedColormap([colour(1), "#00000000", colour(0)])
    panel.imshow(picture, cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    for token in range(1, tokens):
        panel.axvline(token * timesteps - 0.5, color=INK, alpha=0.25, linewidth=0.5)
    places = [(token + 0.5) * timesteps - 0.5 for token in range(0, tokens, 4)]
    panel.set_xticks(places, [str(token + 1) for token in range(0, tokens, 4)])
    panel.grid(visible=False)
    panel.set_xlabel(f"token, {timesteps} timesteps each (blue: +1, orange: −1)")
    panel.set_ylabel("channel")
    panel.set_title(name, color=INK, fontsize="small")
    return finish(figure)


def energy_bars(statement: Statement) -> str:
    """Energy a token: a panel for each energy model, a bar for each row; logarithmic."""
    energy, tokens = statement.energy, max(1, statement.tokens)
    figure, panels = figure_of(1, len(energy.columns), height=2.6, share_y=True)
    rows = list(energy.picojoules)
    for panel, column in zip(panels, energy.columns, strict=True):
        values = [energy.picojoules[row][column] / 1e6 / tokens for row in rows]
        colours = [
            colour(0) if row.startswith("ann") else colour(2) if row == "quantized" else colour(1) for row in rows
        ]
        panel.barh(range(len(rows)), values, color=colours, height=0.7)
        panel.set_xscale("log")
        panel.set_yticks(range(len(rows)), [ROWS[row].split(" (")[0] for row in rows], fontsize="x-small")
        panel.set_title(column, color=INK, fontsize="small")
        panel.grid(axis="y", visible=False)
    every = [energy.picojoules[row][column] / 1e6 / tokens for row in rows for column in energy.columns]
    for panel in panels:  # one scale: bars of different models may be compared
        panel.set_xlim(min(value for value in every if value > 0) / 2, max(every) * 2)
    panels[0].invert_yaxis()
    figure.supxlabel("µJ a token", color=INK, fontsize="small")
    return finish(figure)


def pareto_front(results: Results) -> str:
    """Quality against spikes per neuron and against strict energy: the points of a sweep, its front drawn through."""
    rows = [row for row in results.rows if row.name == "snn" and row.energy_strict_pj is not None]
    figure, panels = figure_of(1, 2, height=3.4, share_y=True)
    titles = ("spikes per neuron", "energy of the whole network / ANN (fp32 proxy)")
    places: tuple[Callable[[Any], float], ...] = (
        lambda row: row.spikes_per_neuron,
        lambda row: row.energy_strict_pj / row.energy_ann_pj,
    )
    for panel, title, at in zip(panels, titles, places, strict=True):
        points = [(at(row), float(row.value or math.nan), row.budget) for row in rows]
        panel.scatter([x for x, *_ in points], [y for _, y, _ in points], color=colour(0), zorder=3)
        for x, y, budget in points:
            label = "no budget" if budget is None else f"{budget:g}"
            panel.annotate(label, (x, y), (4, 4), textcoords="offset points", color=INK, fontsize="x-small")
        front = front_of([(x, y) for x, y, _ in points])
        panel.plot([x for x, _ in front], [y for _, y in front], color=colour(0), linewidth=1)
        control = next((row.value for row in results.rows if row.name == "control"), None)
        if control is not None:
            panel.axhline(control, linestyle="--", color=INK, linewidth=1, alpha=0.7)
        panel.set_xlabel(title)
    panels[0].set_ylabel(metric_title(results) + " (dashed: control)")
    return finish(figure)


def front_of(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in both coordinates (smaller is better), by the first.

    >>> front_of([(1, 5), (2, 6), (3, 2)])
    [(1, 5), (3, 2)]
    """
    best, found = math.inf, []
    for x, y in sorted(points):
        if y < best:
            best = y
            found.append((x, y))
    return found
