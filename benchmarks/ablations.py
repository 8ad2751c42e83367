"""Tables and figures of ``fas ablate`` in the docs: ``python benchmarks/ablations.py [NAME RUN/ablation.json]``.

With a name and a result, that is first taken in as ``benchmarks/results/ablation-NAME.json``. Then ``docs/ablations.md``
(between its marks) and ``docs/img/ablation-*.svg`` are written from all results that are there. A test keeps them together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fas.report.ablation_files import write_figures
from fas.report.ablation_table import markdown_ablation
from fas.report.results import Results

ROOT = Path(__file__).parents[1]
RESULTS, PAGE, PICTURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "ablations.md", ROOT / "docs" / "img"
BEGIN, END = "<!-- begin: written by benchmarks/ablations.py -->", "<!-- end -->"


def committed() -> dict[str, Results]:
    """Results by file name, ``ablation-NAME``."""
    return {path.stem: Results.read(path) for path in sorted(RESULTS.glob("ablation-*.json"))}


def section(name: str, results: Results) -> str:
    versions = ", ".join(f"{key} {value}" for key, value in results.versions.items())
    origin = f"From `benchmarks/results/{name}.json`: `{results.command}` ({versions})."
    title = f"## Results: {name.removeprefix('ablation-')}"
    return "\n".join([title, "", origin, "", markdown_ablation(results, level=3, pictures=f"img/{name}-")])


def page() -> str:
    """The page as it stands, with the sections of all results between its marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    sections = [section(name, results) for name, results in committed().items()]
    return before + "\n\n".join([BEGIN, *sections, END]) + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", help="of the result to take in, e.g. builtin")
    parser.add_argument("result", nargs="?", type=Path, help="its ablation.json")
    args = parser.parse_args()
    if args.name is not None:
        if args.result is None:
            parser.error("NAME needs the ablation.json to take in")
        Results.read(args.result).write(RESULTS / f"ablation-{args.name}.json")
    kept = {path for name, results in committed().items() for path in write_figures(results, PICTURES, name)}
    for old in set(PICTURES.glob("ablation-*.svg")) - kept:
        old.unlink()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
