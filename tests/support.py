"""The support matrix of the docs, by conversion of every tiny model: ``python tests/support.py`` writes ``docs/support.md``.

A cell is what happened: the checks that passed, or the sentence with which FAS refused.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import tiny
import tiny_vl
import torch
import transformers
from contract import check_events, check_order, check_reload, out
from test_encoder_decoder import KINDS, t5
from test_encoder_decoder import inputs_for as t5_inputs
from transformers import PreTrainedModel

import fas
from fas.config import Coverage
from fas.errors import FasError
from fas.models import find_segments
from fas.runtime.control import as_qcfs, at_time, sites_of

PAGE = Path(__file__).parents[1] / "docs" / "support.md"
COVERAGES: tuple[str, ...] = get_args(Coverage)
HEAD = """# What is supported

Written by `make test-all` (`tests/support.py`, transformers {version}): a tiny random model of each class is converted in every
coverage (sigma-delta, T = 4). ✓: it was saved and loaded again with bit-identical output, its sites run in the order in which
they are listed, and without time its neurons equal the QCFS model bit by bit. **✓✓**: the event executor, with real spikes,
also agrees in every spike. The numbers are sites. The contract tests say much more (generation, caches, padding, bf16 …).

| family | class | {coverages} |
|---|---|{rule}|
"""


def models() -> Iterator[tuple[type, Callable[[], PreTrainedModel], Callable[[PreTrainedModel], dict[str, Any]]]]:
    """Class, a new model, and its inputs."""
    for name, (model_class, *_) in (tiny.DECODERS | tiny.ENCODERS).items():
        yield model_class, lambda name=name: tiny.ann(name), lambda model: tiny.inputs_for(model, 2, 5)
    for kind in KINDS:
        yield t5(kind).__class__, lambda kind=kind: t5(kind), lambda model: t5_inputs(2)
    for name, (model_class, *_) in tiny_vl.MODELS.items():
        yield model_class, lambda name=name: tiny_vl.ann(name), lambda model, name=name: tiny_vl.batch(name)


def cell(model: PreTrainedModel, inputs: dict[str, Any], coverage: str) -> str:
    """What became of ``model`` in ``coverage``."""
    config = fas.SpikingConfig(coverage=coverage, timesteps=4, levels=7)  # type: ignore[arg-type]
    try:
        fas.convert(fas.prepare(model, config, [inputs]))
    except FasError as error:
        return f"refused: {error}"
    with tempfile.TemporaryDirectory() as folder:
        check_reload(model, inputs, Path(folder))
    check_order(model, inputs)
    with as_qcfs(model):
        expected = out(model, **inputs)
    with at_time(model, timesteps=7, schedule="layerwise"):
        assert torch.equal(out(model, **inputs), expected)
    try:
        check_events(model.double(), {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()})
    except FasError:  # attention that ignores transformers' interface
        return f"✓ {len(sites_of(model))}"
    return f"✓✓ {len(sites_of(model))}"


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    rows, notes = [], []
    for model_class, build, inputs_of in models():
        families = sorted({segment.family.name for segment in find_segments(build())})
        cells = []
        for coverage in COVERAGES:
            model = build()
            found = cell(model, inputs_of(model), coverage)
            if found.startswith("refused"):
                notes.append(f"{model_class.__name__}, `{coverage}`: {found.removeprefix('refused: ')}")
                found = f"– [{len(notes)}]"
            cells.append(found)
        rows.append(f"| {', '.join(families)} | `{model_class.__name__}` | {' | '.join(cells)} |")
        sys.stdout.write(rows[-1] + "\n")
    head = HEAD.format(
        version=transformers.__version__,
        coverages=" | ".join(f"`{c}`" for c in COVERAGES),
        rule="---|" * len(COVERAGES),
    )
    listed = "".join(f"\n{index}. {note}" for index, note in enumerate(notes, 1))
    table = head.replace("||\n", "|\n") + "\n".join(dict.fromkeys(rows)) + "\n"
    PAGE.write_text(table + (f"\nRefused:\n{listed}\n" if notes else ""))


if __name__ == "__main__":
    main()
