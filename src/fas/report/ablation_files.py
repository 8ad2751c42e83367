"""What an ablation leaves for people: its table in Markdown and a figure for each group, beside its JSON."""

from __future__ import annotations

from pathlib import Path

from fas.report.ablation_plots import ablation_figures
from fas.report.ablation_table import markdown_ablation
from fas.report.plots import standalone
from fas.report.results import Results
from fas.storage import write_whole


def write_figures(results: Results, folder: Path, name: str) -> list[Path]:
    """``NAME-GROUP.svg`` for every group that has figures."""
    figures = ablation_figures(results).items()
    return [write_whole(folder / f"{name}-{group}.svg", standalone(svg)) for group, svg in figures]


def write_ablation(results: Results, folder: Path, name: str) -> None:
    """``NAME.json``, ``NAME.md`` and the figures in ``folder``; figures of groups that are no longer there go."""
    results.write(folder / f"{name}.json")
    kept = write_figures(results, folder, name)
    for old in set(folder.glob(f"{name}-*.svg")) - set(kept):
        old.unlink()
    write_whole(folder / f"{name}.md", "# Ablations\n\n" + markdown_ablation(results, pictures=f"{name}-"))
