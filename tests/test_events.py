"""The event executor runs real 0/±1 spikes and must agree with the folded run."""

from __future__ import annotations

import pytest
import torch
from tiny import COVERAGES, FAMILIES, FIRST, ann, qcfs_model, snn, tokens
from torch import Tensor, nn
from transformers import PreTrainedModel

from fas.errors import FasError
from fas.runtime.control import clock_of, sites_of
from fas.runtime.events import EventExecutor, EventRun

TIMES = {
    "sigma_delta": {"coding": "sigma_delta", "timesteps": 5},
    "pairs": {"coding": "sigma_delta", "timesteps": 3, "neurons_per_channel": 2},
    "rate": {"coding": "rate", "timesteps": 6},
    "rate_step": {"coding": "rate", "rows": "step", "timesteps": 4},
}


def folded(model: PreTrainedModel, **inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and spikes ``[T, B, S, C]`` of the folded run."""
    clock, spikes, batch = clock_of(model), {}, inputs["input_ids"].shape[0]
    clock.probe = lambda name, s: spikes.__setitem__(name, s.reshape(s.shape[0], batch, -1, s.shape[-1]).clone())
    try:
        with torch.no_grad():
            return model(**inputs).logits, spikes
    finally:
        clock.probe = None


def differences(run: EventRun, spikes: dict[str, Tensor]) -> int:
    """How many spikes differ."""
    assert list(run.spikes) == list(spikes), "sites, in the order in which they run"
    assert all(run.spikes[name].shape == spikes[name].shape for name in spikes)
    return sum(int((run.spikes[name] != spikes[name]).sum()) for name in spikes)


def original_differences(run: EventRun, spikes: dict[str, Tensor]) -> int:
    """Differing spikes, in each sequence only those at its first (timestep, site): all later ones follow from them."""
    by_place = torch.stack([(run.spikes[name] != spikes[name]).sum((2, 3)) for name in spikes], 1)  # [T, sites, B]
    by_place = by_place.flatten(0, 1)
    first = (by_place > 0).int().argmax(0, keepdim=True)
    return int(by_place.gather(0, first).sum())


def perturb(model: PreTrainedModel, seed: int = 0) -> None:
    """Neuron parameters as a calibration might leave them: other θ, v₀ and integer a₀ for every channel."""
    generator = torch.Generator().manual_seed(seed)
    for site in filter(lambda site: site.calibrates, sites_of(model).values()):
        config = site.clock.config
        neurons = site.add_parameters(config.neuron_key)
        neurons.log_threshold.data += 0.3 * torch.randn(site.width, generator=generator)
        neurons.v_init.data = 0.1 + 0.8 * torch.rand(site.width, generator=generator)
        low = -2 if site.signed else 0
        if config.coding == "sigma_delta":
            neurons.a_init.copy_(torch.randint(low, 3, (site.width,), generator=generator))
            neurons.dead_zone.copy_(torch.randint(0, 5, neurons.dead_zone.shape, generator=generator) / 8)


WHOLE = [(f, c, t, k) for f in FIRST for c in COVERAGES for t in TIMES for k in (False, True)]
OTHERS = [
    (f, COVERAGES[i % len(COVERAGES)], list(TIMES)[i // 2 % 4], True) for i, f in enumerate(FAMILIES) if f not in FIRST
]


@pytest.mark.parametrize(("family", "coverage", "time", "calibrated"), WHOLE + OTHERS)
def test_events_equal_folded_run_in_fp64(family: str, coverage: str, time: str, calibrated: bool) -> None:
    model = snn(family, coverage).double()
    model.set_timesteps(**TIMES[time])
    if family == "gemma2" and coverage != "attention":
        model.set_attn_implementation("eager")  # older transformers take sdpa, which leaves soft-capping out
    if calibrated or coverage == "attention":  # a first token's output is its value's grid point: uncalibrated, a tie
        perturb(model)
    ids = tokens(3, 7)
    logits, spikes = folded(model, input_ids=ids)
    run = EventExecutor(model)(input_ids=ids)
    assert differences(run, spikes) == 0
    torch.testing.assert_close(run.logits, logits, rtol=1e-6, atol=1e-6)  # LLaMA's norm rounds to fp32 in any dtype
    for name, train in run.spikes.items():
        assert train.abs().sum() > 0, f"{name} is silent, the test shows nothing"


@pytest.mark.parametrize("time", ["sigma_delta", "rate"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_events_equal_folded_run_in_fp32(family: str, time: str) -> None:
    model = snn(family)
    model.set_timesteps(**TIMES[time])
    ids = tokens(24, 12)
    logits, spikes = folded(model, input_ids=ids)
    run = EventExecutor(model)(input_ids=ids)
    assert original_differences(run, spikes) <= 1e-5 * sum(train.numel() for train in spikes.values())
    same = torch.stack([(run.spikes[n] == spikes[n]).flatten(2).all(2).all(0) for n in spikes]).all(0)
    assert same.float().mean() > 0.75  # a spike moved by rounding moves others of its sequence
    torch.testing.assert_close(run.logits[same], logits[same], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_padding_is_masked_as_in_the_folded_run(family: str) -> None:
    model = snn(family).double()
    model.set_timesteps(timesteps=4)
    ids, mask = tokens(3, 7), torch.ones(3, 7, dtype=torch.long)
    mask[1, :3] = 0
    logits, spikes = folded(model, input_ids=ids, attention_mask=mask)
    run = EventExecutor(model)(input_ids=ids, attention_mask=mask)
    assert differences(run, spikes) == 0
    torch.testing.assert_close(run.logits, logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("time", TIMES)
def test_consumers_read_ternary_spikes(time: str) -> None:
    model = snn("opt")
    model.set_timesteps(**TIMES[time])
    perturb(model)
    executor = EventExecutor(model)
    seen: dict[str, set[float]] = {}

    def look(name: str) -> None:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, set()).update(args[0].unique().tolist())

        executor.model.get_submodule(name).register_forward_pre_hook(hook)

    linears = [n for n, m in executor.model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    for name in linears:
        look(name)
    executor(input_ids=tokens())
    assert set(seen) == set(linears)
    assert all(values <= {-1.0, 0.0, 1.0} for values in seen.values())
    assert all(-1.0 not in values for name, values in seen.items() if "fc2" in name and "rate" in time)


def test_runs_do_not_influence_each_other_or_the_model() -> None:
    model = snn("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    executor = EventExecutor(model)
    first = executor(input_ids=tokens()).logits
    executor(input_ids=tokens(2, 5, seed=9))
    assert torch.equal(executor(input_ids=tokens()).logits, first)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config._attn_implementation != "fas_events"


def test_refuses_models_without_time() -> None:
    with pytest.raises(FasError, match="no spiking sites"):
        EventExecutor(ann("gpt2"))
    with pytest.raises(FasError, match="no timesteps"):
        EventExecutor(qcfs_model("gpt2"))
    layerwise = snn("gpt2", timesteps=8, schedule="layerwise")
    with pytest.raises(FasError, match="no timesteps"):
        EventExecutor(layerwise)


def test_refuses_a_start_off_the_grid_and_a_cache() -> None:
    model = snn("gpt2")
    with pytest.raises(FasError, match="past_key_values"):
        EventExecutor(model)(input_ids=tokens(), past_key_values=object())
    perturb(model)
    next(iter(sites_of(model).values())).neurons[clock_of(model).config.neuron_key].a_init += 0.5
    with pytest.raises(FasError, match="not integer"):
        EventExecutor(model)
