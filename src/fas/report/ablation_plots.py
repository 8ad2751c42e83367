"""Figures of an ablation as inline SVG: bars with their spread for each group, a heat map for L × T."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fas.report.ablation_summary import Spread, Summary, summaries
from fas.report.plots import INK, colour, figure_of, finish
from fas.report.results import Results

AXIS = "perplexity above the control, %"


def ablation_figures(results: Results) -> dict[str, str]:
    """The figure of every group that has one to show, by its name. What failed stands in it, and says so."""
    found = {}
    for group, entries in summaries(results).items():
        if any(entry.ratio for entry in entries):
            found[group] = _heat_map(entries) if group == "grid" else _bars(entries)
    return found


def percent(spread: Spread) -> Spread:
    """Ratios as percent above 1.

    >>> percent(Spread((1.0, 1.5))).values
    (0.0, 50.0)
    """
    return Spread(tuple(100 * (value - 1) for value in spread.values))


def _bars(entries: Sequence[Summary]) -> str:
    """A bar from the control (0) for each variant, its standard deviation, and a dot for each seed."""
    figure, (axes,) = figure_of(height=0.75 + 0.42 * len(entries))
    for place, entry in enumerate(entries):
        end = 0.0
        if entry.ratio is not None:
            found = percent(entry.ratio)
            axes.barh(place, found.mean, height=0.62, color=colour(0), alpha=0.55)
            axes.errorbar(found.mean, place, xerr=found.deviation, color=INK, capsize=3, linewidth=1.2)
            axes.scatter(found.values, [place] * len(found.values), s=10, color=INK, zorder=3)
            end = max(0.0, found.high, found.mean + (found.deviation or 0.0))
        style = {"textcoords": "offset points", "va": "center", "color": INK, "fontsize": "small"}
        axes.annotate(_label(entry), (end, place), (6, 0), **style)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(entries)), [entry.variant for entry in entries])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.xaxis.grid(visible=True, color=INK, alpha=0.12)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.22 * (high - low))  # room for the figures
    axes.set_xlabel(AXIS)
    return finish(figure)


def _heat_map(entries: Sequence[Summary]) -> str:
    """L down, T across; colours by the logarithm of the distance, so that one bad corner does not hide the rest."""
    from matplotlib.colors import SymLogNorm

    levels = sorted({entry.levels or 0 for entry in entries})
    times = sorted({entry.timesteps or 0 for entry in entries})
    figure, (axes,) = figure_of(height=0.9 + 0.6 * len(levels))
    values = [[math.nan] * len(times) for _ in levels]
    places = {(times.index(entry.timesteps or 0), levels.index(entry.levels or 0)): entry for entry in entries}
    for (column, row), entry in places.items():
        if entry.ratio is not None:
            values[row][column] = percent(entry.ratio).mean
    seen = [value for row in values for value in row if not math.isnan(value)]
    norm = SymLogNorm(1.0, vmin=min(0.0, *seen), vmax=max(1.0, *seen))
    axes.imshow(values, cmap="viridis_r", norm=norm, aspect="auto")
    for (column, row), entry in places.items():
        ink = INK if entry.ratio is None else "white" if norm(values[row][column]) > 0.5 else "black"
        axes.annotate(_label(entry), (column, row), ha="center", va="center", color=ink, fontsize="small")
    axes.set_xticks(range(len(times)), [f"T = {count}" for count in times])
    axes.set_yticks(range(len(levels)), [f"L = {count}" for count in levels])
    axes.grid(visible=False)
    axes.set_title(AXIS, color=INK, fontsize="medium")
    return finish(figure)


def _label(entry: Summary) -> str:
    """``+1.2 ± 0.3``, or that there is nothing."""
    if entry.ratio is None:
        return "failed"
    found = percent(entry.ratio)
    return f"{found.mean:+.1f}".replace("-", "−") + ("" if found.deviation is None else f" ± {found.deviation:.1f}")
