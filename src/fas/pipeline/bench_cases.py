"""What ``fas bench`` times: neurons alone, and a model's prefill, decoding and training steps, each against its baseline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel, set_seed

from fas.config import SpikingConfig
from fas.conversion import convert, prepare
from fas.neurons import Fired, Site, rate_mean_rows, sigma_delta
from fas.neurons.native import kernels
from fas.neurons.qcfs import grid
from fas.pipeline.bench import DTYPES, BenchOptions, Case
from fas.pipeline.load import load_ann
from fas.progress import Progress
from fas.report.results import this_command, versions
from fas.runtime.control import at_time, clock_of
from fas.runtime.products import integer_products

NEURONS = (8, 128, 3072)
"""Sequences, tokens and channels of the neuron alone: the FFN of GPT-2 small."""
TRAINED = 4
"""Sequences of a training step."""
EAGER_LENGTH = 1024
"""Up to here attention by plain products is the faster one on a CPU, for both sides."""


def circumstances(options: BenchOptions) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "model": options.model or "GPT-2 small, random weights", "length": options.length, "levels": options.levels,
        "threads": options.threads or torch.get_num_threads(), "rounds": options.rounds, "seed": options.seed,
        "integer_bits": options.integer_bits, "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "compiled_neurons": kernels.takes(torch.zeros(1)), "versions": versions(), "command": this_command(),
    }  # fmt: skip


def neuron_cases(options: BenchOptions, progress: Progress) -> Iterator[Case]:
    """The neurons alone, for each T."""
    if "neuron" in options.what:
        for timesteps in options.timesteps:
            yield from _neurons(options, timesteps, progress)


def model_cases(options: BenchOptions, progress: Progress) -> Iterator[Case]:
    """All else, each case made when it is its turn: models leave memory behind them."""
    if set(options.what) - {"neuron"}:
        for dtype in options.dtypes:
            yield from _models(options, dtype)


def _neurons(options: BenchOptions, timesteps: int, progress: Progress) -> Iterator[Case]:
    """The neuron alone, into a buffer that stays, against a copy of its input, a loop over time, and SpikingJelly's."""
    x = torch.randn(timesteps, *NEURONS, generator=torch.Generator().manual_seed(options.seed))
    scale, half = torch.ones(NEURONS[-1]), torch.full((NEURONS[-1],), 0.5)
    nothing, buffer, level = torch.zeros_like(half), torch.empty_like(x), options.levels
    steps = SpikingConfig(levels=level, timesteps=timesteps).step_schedule
    native = kernels.takes(x)
    ways: dict[str, Callable[[], Any]] = {
        "sigma_delta": lambda: kernels.track(
            x, scale / level, half, nothing, [float(k) for k in steps], grid(level, True), [0.0] * len(steps), False, buffer
        ) if native else sigma_delta(x, scale, half, nothing, steps, level, True, told=False),
        "rate": lambda: kernels.fire(x, scale, half, True, True, False, buffer) if native
        else rate_mean_rows(x, scale, half, True, told=False),
    }  # fmt: skip
    others = {"copy": lambda: buffer.copy_(x), "naive": lambda: step_loop(x, scale)}
    if (peer := _spikingjelly(progress)) is not None:
        others["spikingjelly"] = lambda: peer(x)
    for coding in options.codings:
        for against, other in others.items():
            with torch.no_grad():
                yield Case(
                    "neuron", against, ways[coding], other, coding=coding, schedule="synchronous", timesteps=timesteps
                )


def step_loop(x: Tensor, threshold: Tensor) -> Tensor:
    """Integrate-and-fire as most code runs it: step by step in PyTorch, v₀ = θ/2, soft reset."""
    v, spikes = threshold.expand_as(x[0]) * 0.5, []
    for step in x:
        v = v + step
        spike = (v >= threshold).to(x.dtype)
        v = v - spike * threshold
        spikes.append(spike * threshold)
    return torch.stack(spikes)


def _spikingjelly(progress: Progress) -> Callable[[Tensor], Any] | None:
    try:
        from spikingjelly.activation_based import functional, neuron  # type: ignore[import-not-found]
    except ImportError:
        progress.note("SpikingJelly is not installed (pip install --no-deps spikingjelly==2.0.0), so it is not timed")
        return None
    node = neuron.HalfThresholdIFNode(1.0, step_mode="m")

    def run(x: Tensor) -> Any:
        functional.reset_net(node)
        with torch.no_grad():
            return node(x)

    return run


def _models(options: BenchOptions, dtype: str) -> Iterator[Case]:
    ann, ids = cast(Any, _ann(options)).to(DTYPES[dtype]), _prompt(options)
    ids %= ann.config.vocab_size
    for coverage in options.coverages:
        config = SpikingConfig(coverage=cast(Any, coverage), levels=options.levels, timesteps=options.levels)
        qcfs = prepare(copy.deepcopy(ann), config, [{"input_ids": ids}])
        if "stage1_step" in options.what:
            yield _training(ann, qcfs, ids, Case("stage1_step", "ann", _nothing, _nothing, dtype, coverage))
        model = convert(qcfs).eval()
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if options.integer_bits and dtype == "float32":
                stack.enter_context(integer_products(model, options.integer_bits))
            yield from _simulations(options, ann, model, ids, Case("", "ann", _nothing, _nothing, dtype, coverage))
        del model, qcfs


def _simulations(
    options: BenchOptions, ann: PreTrainedModel, model: PreTrainedModel, ids: Tensor, case: Case
) -> Iterator[Case]:
    times: list[dict[str, Any]] = [{"schedule": "layerwise", "timesteps": options.levels}]
    times += [{"coding": coding, "timesteps": t} for coding in options.codings for t in options.timesteps]
    for time in times:
        with at_time(model, **time):
            config = clock_of(model).config
            coding = None if config.schedule == "layerwise" else config.coding
            named = replace(case, coding=coding, schedule=config.schedule, timesteps=config.timesteps)
            if "prefill" in options.what:
                whole = replace(named, what="prefill", ours=_prefill(model, ids), other=_prefill(ann, ids))
                yield whole
                if coding is not None:
                    yield replace(whole, against="naive", other=_naive(model, ids))
            if "decode" in options.what and model.can_generate():
                yield _decoding(ann, model, ids, replace(named, what="decode"))


def _prefill(model: PreTrainedModel, ids: Tensor) -> Callable[[], Any]:
    return lambda: model(input_ids=ids, use_cache=False)


def _naive(model: PreTrainedModel, ids: Tensor) -> Callable[[], Any]:
    """The same model with neurons stepped in PyTorch and products as they are, folded in time."""

    def loop(site: Site, rows: Tensor) -> Fired:
        out = step_loop(rows, site.scale.to(rows.dtype))
        return Fired(out, out)

    def run() -> None:
        clock = clock_of(model)
        clock.neuron = loop  # integer products stand back for a neuron of one's own
        try:
            model(input_ids=ids, use_cache=False)
        finally:
            clock.neuron = None

    return run


def _decoding(ann: PreTrainedModel, model: PreTrainedModel, ids: Tensor, case: Case) -> Case:
    """One more token behind a cache of the prompt; each timing gets a cache of its own."""
    kept = {of: of(input_ids=ids, use_cache=True).past_key_values for of in (ann, model)}
    fresh: dict[Any, Any] = {}

    def before() -> None:
        fresh.update({of: copy.deepcopy(cache) for of, cache in kept.items()})

    def step(of: PreTrainedModel) -> Callable[[], Any]:
        return lambda: of(input_ids=ids[:, -1:], past_key_values=fresh[of], use_cache=True)

    return replace(case, ours=step(model), other=step(ann), before=before)


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

    return replace(case, ours=step(qcfs), other=step(ann))


def _nothing() -> None:
    pass


def _ann(options: BenchOptions) -> PreTrainedModel:
    set_seed(options.seed)
    attention = "eager" if options.length <= EAGER_LENGTH else "sdpa"
    if options.model is None:
        return AutoModelForCausalLM.from_config(GPT2Config(), attn_implementation=attention).eval()
    model, _ = load_ann(options.model, "cpu")
    model.set_attn_implementation(attention)
    return model


def _prompt(options: BenchOptions) -> Tensor:
    generator = torch.Generator().manual_seed(options.seed)
    return torch.randint(0, 1 << 30, (1, options.length), generator=generator)
