"""``fas convert --pareto``: the same conversion under several spike budgets, quality against spikes and energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import fas
from fas.errors import CheckpointError, ConfigError
from fas.locks import one_at_a_time
from fas.pipeline.convert import run_conversion
from fas.pipeline.load import load_spiking
from fas.pipeline.options import ConvertOptions
from fas.progress import Progress, Silent
from fas.report.ledger_plots import pareto_front
from fas.report.results import Results
from fas.runtime.control import at_time, clock_of
from fas.storage import write_whole
from fas.tasks.language_modeling import encode_blocks, spread
from fas.tasks.text import load_text

BUDGETS: tuple[float | None, ...] = (None, 1.5, 1.0, 0.7, 0.5)
SEQUENCES = 4
"""Of evaluation text, that the ledger runs."""


@one_at_a_time(lambda options: options.out)
def run_pareto(
    options: ConvertOptions,
    budgets: Sequence[float | None] = BUDGETS,
    progress: Progress | None = None,
    control_of: Path | None = None,
) -> Results:
    """Convert under each of ``budgets`` (None: no budget) into a folder of its own below ``options.out``.

    Their control is one, the first's or that of the conversion ``control_of``: it has no spikes. Rows carry the budget and
    the energy a token of the ledger's first column, of the whole spiking network and of the ANN in fp32. Writes
    ``pareto.json`` and ``pareto.svg`` beside the folders. Finished budgets are not converted again. Raises `ConfigError`
    without budgets, and what `run_conversion` raises.
    """
    progress = progress or Silent()
    if not budgets:
        raise ConfigError("a sweep needs at least one budget of spikes per neuron, e.g. 1.5,1.0,0.5")
    if options.out.exists() and not options.out.is_dir():
        raise CheckpointError(f"{options.out} is a file; a sweep writes a folder for each budget there")
    options.out.mkdir(parents=True, exist_ok=True)
    total: Results | None = None
    first = control_of
    for budget in budgets:
        name = "no-budget" if budget is None else f"budget-{budget:g}"
        mine = replace(options, out=options.out / name, spikes_per_neuron=budget)
        progress.note(f"{name.replace('-', ' ')} spikes per neuron" if budget is not None else "no budget")
        found = run_conversion(mine, progress, control_of=first)
        first = first or mine.out
        _price(found, mine, progress)
        if total is None:
            total = replace(found, rows=[row for row in found.rows if row.name in ("ann", "control")])
        total.rows += [replace(row, budget=budget) for row in found.rows if row.name in ("qcfs", "snn")]
    assert total is not None
    total.write(options.out / "pareto.json")
    write_whole(options.out / "pareto.svg", pareto_front(total).replace("currentColor", "#333333"))
    return total


def _price(found: Results, options: ConvertOptions, progress: Progress) -> None:
    """Give every SNN row of ``found`` its energy a token, by the ledger of some evaluation text."""
    model, tokenizer = load_spiking(str(options.out), options.device)
    text = load_text(options.data, options.eval_data, tokenizer)
    length = found.extra["evaluation"]["length"]
    blocks = spread(encode_blocks(tokenizer, text.evaluation, length, "evaluation text"), SEQUENCES)
    config = clock_of(model).config
    rows = [row for row in found.rows if row.name == "snn" and row.schedule == "synchronous"]
    progress.start("counting operations", len(rows))
    for row in rows:
        target = next(c for c in options.configurations() if (c.coding, c.timesteps) == (row.coding, row.timesteps))
        with at_time(model, **config.replaced(**target.model_dump()).model_dump()):
            statement = fas.ledger(model, {"input_ids": blocks.to(model.device)}).forward
        column = statement.energy.columns[0]
        row.energy_strict_pj = statement.energy.picojoules["snn_strict"][column] / statement.tokens
        row.energy_ann_pj = statement.energy.picojoules["ann_fp32"][column] / statement.tokens
        progress.advance()
    progress.done()
