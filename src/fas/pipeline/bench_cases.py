"""What ``fas bench`` times of models: prefill, decoding, training steps and Stage 2, each against its baseline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fas.calibration import CalibrationOptions, calibrate
from fas.config import SpikingConfig
from fas.conversion import convert, prepare
from fas.methods import PublishedOptions, calibrate_as_published
from fas.neurons import Fired, Site
from fas.neurons.fused import kernels_for
from fas.pipeline.bench import DTYPES, BenchOptions, Case
from fas.pipeline.bench_models import DECODED, RANDOM, bench_ann, fire_like_a_trained_model, firing, keep_active
from fas.pipeline.bench_neurons import step_loop
from fas.pipeline.bench_paths import instruction_sets
from fas.report.results import this_command, versions
from fas.runtime.accelerated import accelerated, integer_paths
from fas.runtime.control import at_time, clock_of

TRAINED = 4
"""Sequences of a training step."""
ACTIVE = 0.03
"""Of the neurons of a sparse FFN."""
CALIBRATED, CALIBRATED_TOKENS, VISITS = 8, 128, 16
"""Sequences of Stage 2, and how often the paper's recipe sees each; ours sees them less often (docs/results.md)."""


def circumstances(options: BenchOptions) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "model": options.model or RANDOM, "length": options.length, "levels": options.levels,
        "threads": options.threads or torch.get_num_threads(), "rounds": options.rounds, "seed": options.seed,
        "integer_bits": {dtype: options.bits(dtype) for dtype in options.dtypes},
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "device": device_words(options.device),
        "compiled_neurons": kernels_for(torch.zeros(1, device=options.device)) is not None,
        "instruction_sets": instruction_sets(), "integer_products": {},
        "versions": versions(), "command": this_command(),
    }  # fmt: skip


def device_words(device: str) -> str:
    """The processor or GPU by name."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return next((line.split(":", 1)[1].strip() for line in _processor() if line.startswith("model name")), "CPU")


def _processor() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def model_cases(options: BenchOptions, about: dict[str, Any]) -> Iterator[Case]:
    """All else, each made when it is its turn: models leave memory behind them. ``about`` is told how often neurons fire."""
    about |= {"spikes_per_neuron": {}, "integer_products": {}}
    if set(options.what) - {"neuron", "stage2"}:
        for dtype in options.dtypes:
            yield from _models(options, dtype, about)
    if "stage2" in options.what:
        yield from _calibrations(options)


def _models(options: BenchOptions, dtype: str, about: dict[str, Any]) -> Iterator[Case]:
    ids = _prompt(options)
    behind = DECODED if "decode" in options.what else 0
    ann = cast(Any, bench_ann(options.model, options.length, options.seed, behind=behind))
    ann = ann.to(options.device, DTYPES[dtype])
    ids %= ann.config.vocab_size
    for coverage in options.coverages if set(options.what) & {"prefill", "decode", "stage1_step"} else ():
        named = Case("", "ann", _nothing, _nothing, dtype, coverage, model=options.model or RANDOM)
        qcfs = prepare(copy.deepcopy(ann), _config(options, coverage), [{"input_ids": ids}])
        if "stage1_step" in options.what:
            yield _training(ann, qcfs, ids, named)
        model = convert(qcfs).eval()
        if options.model is None:
            about["spikes_per_neuron"][coverage] = fire_like_a_trained_model(model, ids)
        yield from _accelerated(options, ann, model, ids, named, about)
        del model, qcfs
    if "decode_relu" in options.what and options.model is None:
        yield from _sparse(options, dtype, ids, about)


def _sparse(options: BenchOptions, dtype: str, ids: Tensor, about: dict[str, Any]) -> Iterator[Case]:
    """Decoding with a ReLU in whose place few neurons fire."""
    ann = cast(Any, bench_ann(None, options.length, options.seed, "relu", DECODED)).to(options.device)
    keep_active(ann, ids, ACTIVE)
    ann = ann.to(DTYPES[dtype])
    model = convert(prepare(copy.deepcopy(ann), _config(options, "ffn"), [{"input_ids": ids}])).eval()
    about["spikes_per_neuron"]["ffn, ReLU"] = firing(model, ids)
    named = Case("", "ann", _nothing, _nothing, dtype, "ffn", model=f"{RANDOM}, ReLU, {ACTIVE:.0%} active")
    yield from _accelerated(replace(options, what=("decode",)), ann, model, ids, named, about)


def _config(options: BenchOptions, coverage: str) -> SpikingConfig:
    return SpikingConfig(coverage=cast(Any, coverage), levels=options.levels, timesteps=options.levels)


def _accelerated(
    options: BenchOptions, ann: Any, model: Any, ids: Tensor, case: Case, about: dict[str, Any]
) -> Iterator[Case]:
    if not set(options.what) & {"prefill", "decode"}:
        return
    naive = copy.deepcopy(model)
    clock_of(naive).neuron = _looped
    with torch.no_grad(), accelerated(model, options.bits(case.dtype)):
        yield from _simulations(options, Sides(ann, model, naive), ids, case)
        if (paths := integer_paths(model)) != "none":
            about["integer_products"][case.dtype] = paths


class Sides(NamedTuple):
    """What is timed against each other."""

    ann: Any
    ours: Any
    naive: Any
    """The same network with neurons stepped in PyTorch and products as they are, folded in time."""


def _looped(site: Site, rows: Tensor) -> Fired:
    out = step_loop(rows, site.scale.to(rows.dtype))
    return Fired(out, out)


def _simulations(options: BenchOptions, sides: Sides, ids: Tensor, case: Case) -> Iterator[Case]:
    times: list[dict[str, Any]] = [{"schedule": "layerwise", "timesteps": options.levels}]
    times += [{"coding": coding, "timesteps": t} for coding in options.codings for t in options.timesteps]
    for time in times:
        with at_time(sides.ours, **time), at_time(sides.naive, **time):
            config = clock_of(sides.ours).config
            coding = None if config.schedule == "layerwise" else config.coding
            named = replace(case, coding=coding, schedule=config.schedule, timesteps=config.timesteps)
            others = {"ann": sides.ann} | ({} if coding is None else {"naive": sides.naive})
            for against, other in others.items():
                one = replace(named, against=against)
                if "prefill" in options.what:
                    yield replace(one, what="prefill", ours=_prefill(sides.ours, ids), other=_prefill(other, ids))
                if "decode" in options.what and sides.ours.can_generate():
                    yield from _decodings(options, sides, other, ids, replace(one, what="decode"))


def _prefill(model: PreTrainedModel, ids: Tensor) -> Callable[[], Any]:
    return lambda: model(input_ids=ids, use_cache=False)


def _decodings(options: BenchOptions, sides: Sides, other: Any, ids: Tensor, case: Case) -> Iterator[Case]:
    """With each cache."""
    for cache in options.caches:
        with at_time(sides.ours, cache=cache), at_time(sides.naive, cache=cache):
            yield _decoding(sides.ours, other, ids, replace(case, cache=cache))


def _decoding(ours: PreTrainedModel, other: PreTrainedModel, ids: Tensor, case: Case) -> Case:
    """One more token behind a cache of the prompt and a first one; each timing gets a cache of its own."""
    kept = {of: of(input_ids=ids, use_cache=True).past_key_values for of in (ours, other)}
    fresh: dict[Any, Any] = {}

    def before() -> None:
        fresh.update({of: copy.deepcopy(cache) for of, cache in kept.items()})
        for of in kept:
            step(of)()  # which a copied cache makes room for

    def step(of: PreTrainedModel) -> Callable[[], Any]:
        return lambda: of(input_ids=ids[:, -1:], past_key_values=fresh[of], use_cache=True)

    return replace(case, ours=step(ours), other=step(other), before=before)


def _training(ann: PreTrainedModel, qcfs: PreTrainedModel, ids: Tensor, case: Case) -> Case:
    """Forward, backward and AdamW of `TRAINED` sequences: the QCFS model's against the ANN's."""
    batch = ids.repeat(TRAINED, 1)

    def step(model: PreTrainedModel) -> Callable[[], Any]:
        model = copy.deepcopy(model).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

        def run() -> None:
            model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    return replace(case, what="stage1_step", ours=step(qcfs), other=step(ann))


def _calibrations(options: BenchOptions) -> Iterator[Case]:
    """Stage 2 of the embedded model against the paper's recipe: at most as many visits of the same sequences."""
    length = min(options.length, CALIBRATED_TOKENS)
    ann = cast(Any, bench_ann("builtin", length, options.seed)).to(options.device)
    ids = torch.randint(ann.config.vocab_size, (CALIBRATED, length), generator=_generator(options))
    ids = ids.to(options.device)
    batches = [{"input_ids": row} for row in ids.split(1)]
    visits = VISITS * CALIBRATED
    for timesteps in options.timesteps:
        config = SpikingConfig(coverage="ffn", levels=options.levels, timesteps=timesteps, coding="rate", rows="step")
        kept, fresh = convert(prepare(copy.deepcopy(ann), config, batches)), {}

        def before(kept: Any = kept, fresh: dict[str, Any] = fresh) -> None:
            fresh["model"] = copy.deepcopy(kept)

        def ours(fresh: dict[str, Any] = fresh) -> None:
            calibrate(fresh["model"], batches, CalibrationOptions(search_rows=512, global_steps=2 * CALIBRATED))

        def other(fresh: dict[str, Any] = fresh) -> None:
            calibrate_as_published(fresh["model"], batches, PublishedOptions(visits=visits))

        yield Case(
            "stage2", "published", ours, other, "float32", "ffn", "rate", "synchronous", timesteps, before, "builtin"
        )


def _nothing() -> None:
    pass


def _generator(options: BenchOptions) -> torch.Generator:
    return torch.Generator().manual_seed(options.seed)


def _prompt(options: BenchOptions) -> Tensor:
    return torch.randint(0, 1 << 30, (1, options.length), generator=_generator(options)).to(options.device)
