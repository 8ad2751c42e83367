"""``fas energy``: ledgers of one model on one batch of text, for each time that was asked for, and their figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

import fas
from fas.accounting.ledger import Ledger
from fas.accounting.prices import energy_models
from fas.accounting.raster import chosen_sites, record
from fas.errors import CheckpointError, ConfigError
from fas.pipeline.asked import as_converted, named, results_of
from fas.pipeline.load import load_ann, load_spiking
from fas.pipeline.source import evaluation_of
from fas.progress import Progress
from fas.report.ledger_plots import energy_bars, firing_rates, spike_raster
from fas.runtime.control import at_time, calibrated_keys, clock_of, sites_of
from fas.storage import write_whole
from fas.tasks.reading.journal import Reading


@dataclass(frozen=True)
class EnergyOptions:
    """What ``fas energy`` is asked; see its flags."""

    folder: str
    data: str | None = None
    eval_data: str | None = None
    task: str | None = None
    columns: tuple[str | None, str | None, str | None] = (None, None, None)
    timesteps: tuple[int, ...] = ()
    codings: tuple[str, ...] = ()
    sequences: int = 4
    length: int | None = None
    decode: bool = True
    neurobench: bool = True
    energy_model: Path | None = None
    plots: Path | None = None
    raster: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    dtype: str | None = None


def energy_of(options: EnergyOptions, progress: Progress) -> list[Ledger]:
    """One ledger for each coding and number of timesteps; an ANN has one.

    On the text of the conversion it is the evaluation part that is run. Raises `FasError` kinds for a folder, text, energy
    model or site that is not there, before anything is run.
    """
    energy_models(options.energy_model)
    set_seed(options.seed)
    model, tokenizer = _load(options)
    converted = bool(sites_of(model))
    if not converted and (options.timesteps or options.codings or options.raster):
        raise ConfigError(f"{options.folder} is an ANN: it has no timesteps, coding or sites to choose")
    sites = chosen_sites(model, options.raster) if converted else []
    batch = _batch(options, model, tokenizer, Reading(progress))
    generates = model.can_generate()
    if options.decode and not generates:
        progress.note(f"no decoding step: {type(model).__name__} does not generate")
    settings: dict[str, Any] = {
        "decode": options.decode and generates, "neurobench": options.neurobench, "energy_model": options.energy_model,
    }  # fmt: skip
    if not converted:
        progress.start("counting the ANN")
        found = [fas.ledger(model, batch, **settings)]
        progress.done()
        _figures(options.plots, "ann", found[0], {}, progress)
        return found
    reports = []
    config = clock_of(model).config
    for coding in options.codings or (config.coding,):
        for timesteps in options.timesteps or (config.timesteps,):
            known = calibrated_keys(sites_of(model).values())
            target = config.replaced(coding=coding, timesteps=timesteps).closest(known)
            if target.neuron_key not in known and target.folds_time:
                progress.note(f"no calibrated neurons for {target.neuron_key}; uncalibrated ones are counted")
            progress.start(f"counting {target.coding} T={target.timesteps}")
            with at_time(model, **target.model_dump()):
                reports.append(fas.ledger(model, batch, **settings))
                trains = record(model, batch, sites) if options.plots is not None else {}
            progress.done()
            _figures(options.plots, target.neuron_key, reports[-1], trains, progress)
    return reports


def _load(options: EnergyOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        return load_spiking(options.folder, options.device, options.dtype, any_task=True)
    except CheckpointError:
        if (Path(options.folder) / "results.json").exists():
            raise
    return load_ann(options.folder, options.device, options.dtype or "float32", any_task=True)


def _batch(
    options: EnergyOptions, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reading: Reading
) -> dict[str, Any]:
    """Evenly spaced examples of what the model is evaluated on, without labels; those of a control are its conversion's."""
    folder = Path(options.folder)
    asked = {"data": options.data, "eval_data": options.eval_data, "length": options.length, "task": options.task}
    examples = evaluation_of(
        as_converted(folder, results_of(folder) or results_of(folder.parent), asked | named(options.columns)),
        model.config,
        tokenizer,
        reading,
    )
    reading.tell()
    some = examples.some(options.sequences)
    batch = some.collate([some[number] for number in range(len(some))])
    return {name: value.to(model.device) for name, value in batch.items() if name not in ("labels", "classes")}


def _figures(folder: Path | None, name: str, found: Ledger, trains: dict[str, Any], progress: Progress) -> None:
    if folder is None:
        return
    rates = firing_rates(found.forward)
    figures = {f"{name}-energy": energy_bars(found.forward)} | ({f"{name}-firing": rates} if rates else {})
    figures |= {f"{name}-raster-{site}": spike_raster(site, train) for site, train in trains.items()}
    for label, svg in figures.items():
        # a picture of its own has no page to take a colour from
        write_whole(folder / f"{label}.svg", svg.replace("currentColor", "#333333"))
    write_whole(folder / f"{name}.json", json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n")
    progress.note(f"written: {len(figures)} figures and {name}.json in {folder}")
