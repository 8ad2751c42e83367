"""Figures of a diagnosis of temporal error as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fas.report.plots import INK, colour, figure_of, finish, standalone
from fas.report.results import Results
from fas.storage import write_whole


def settling_by_depth(found: Mapping[str, Any]) -> str | None:
    """How far each layer is from the QCFS model after each timestep, of ``Diagnosis.to_dict()``: a line a layer, the deeper the
    darker; None without layers."""
    from matplotlib.ticker import LogFormatter

    stacks: dict[str, list[list[float]]] = {}
    for layer in found["layers"]:
        if layer["distances"]:
            stacks.setdefault(layer["name"].rpartition(".")[0], []).append(layer["distances"])
    if not stacks:
        return None
    figure, panels = figure_of(1, len(stacks), share_y=True)
    for panel, (name, layers) in zip(panels, stacks.items(), strict=True):
        for index, distances in enumerate(layers):
            shade = 0.3 + 0.7 * (index + 1) / len(layers)
            label = f"layer {index}" if index in (0, len(layers) - 1) else None
            times = range(1, len(distances) + 1)
            panel.plot(times, distances, color=colour(0), alpha=shade, marker=".", linewidth=1.2, label=label)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_title(name if len(stacks) > 1 else "", color=INK, fontsize="small")
        panel.set_xlabel("timestep (darker: deeper layer)")
    if all(distance > 0 for layers in stacks.values() for distances in layers for distance in distances):
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_formatter(LogFormatter())
        panels[0].yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    panels[0].set_ylabel("relative distance from the QCFS model")
    return finish(figure, panels[-1])


def of_results(results: Results) -> dict[str, str]:
    """`settling_by_depth` of every diagnosis in ``results``, by coding and time."""
    figures = {key: settling_by_depth(found) for key, found in results.extra.get("diagnosis", {}).items()}
    return {key: figure for key, figure in figures.items() if figure is not None}


def write_settling(results: Results, folder: Path) -> list[Path]:
    """``settling-KEY.svg`` in ``folder`` for every diagnosis in ``results``."""
    return [write_whole(folder / f"settling-{key}.svg", standalone(svg)) for key, svg in of_results(results).items()]
