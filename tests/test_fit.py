"""The fine part of Stage 2 for one site: what reads it, closed-form corrections, the fit, absorbed constants."""

import sys
from pathlib import Path

import folders
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import fas
from fas.accounting.emission import check_site
from fas.calibration import CalibrationOptions, LayerReport, calibrate
from fas.calibration.coarse import Choice, Search
from fas.calibration.corrections import absorbed, corrected, least_squares_threshold, missing, raised_potential
from fas.calibration.fine import checkpointed
from fas.calibration.fit import Reader, consumers, fit, reader_of
from fas.calibration.sites import _Kept, observing
from fas.cli import main
from fas.errors import CheckpointError, ConfigError
from fas.losses import logits_kl
from fas.models import find_segments
from fas.neurons import Site
from fas.runtime.control import as_qcfs, clock_of, sites_of
from fas.runtime.events import EventExecutor
from fas.runtime.replay import blocks_of, shared
from fas.runtime.spikes import counting

BATCHES = [{"input_ids": tiny.tokens(4, 9, 21)}, {"input_ids": tiny.tokens(4, 9, 22)}]


def site_of(**settings):
    return next(iter(sites_of(tiny.snn("gpt2", **settings)).values()))


def present(search: Search) -> Choice:
    steps = tuple(search.config.step_schedule) if search.config.coding == "sigma_delta" else ()
    scale = search.scale
    return Choice(scale.clone(), torch.full_like(scale, 0.5), torch.zeros_like(scale), steps)


def searched(seed: int, offset: float = 0.0, **time) -> Search:
    """A site whose input is constant in time and whose target lies ``offset`` steps above it."""
    site = site_of(levels=8, **time)
    made = torch.Generator().manual_seed(seed)
    value = torch.randn(200, site.width, generator=made) * site.scale.detach() / 2
    target = value + offset * site.scale.detach() / 8
    return Search(site, value.expand(site.clock.config.timesteps, -1, -1), target, torch.ones(site.width))


# what reads a site


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_readers_have_the_squares_of_what_all_consumers_make_of_an_error(family: str) -> None:
    model = tiny.snn(family, coverage="linear")
    (segment,) = find_segments(model)
    block = blocks_of(segment)[0]
    grams = set()
    for site in sites_of(model).values():
        if not (read_by := consumers(block, site)):
            continue
        errors = torch.randn(3, 11, site.width)
        reader = reader_of(block, site, torch.ones(site.width))
        grams.add(reader.gram)
        expected = torch.zeros(3)
        for layer in read_by:
            out = nn.functional.linear(errors, layer.weight if isinstance(layer, nn.Linear) else layer.weight.T)
            expected += out.square().sum((-2, -1))
        torch.testing.assert_close(reader.power(errors), expected, rtol=1e-4, atol=1e-4)
    assert grams == {True, False}, "both ways to read are to be met"


def test_an_operand_is_read_by_the_importance_of_its_channels() -> None:
    importance, errors = torch.tensor([0.0, 2.0, 3.0]), torch.randn(2, 5, 3)
    expected = (errors.square() * importance).sum((1, 2))
    torch.testing.assert_close(Reader(importance).power(errors), expected)


# closed forms


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), offset=st.floats(-1, 1), coding=st.sampled_from(["rate", "sigma_delta"]))
def test_a_correction_makes_no_channel_worse(seed: int, offset: float, coding: str) -> None:
    search = searched(seed, offset, coding=coding, timesteps=4)
    base = present(search)
    assert (search.errors(corrected(search, base)) <= search.errors(base)).all()


def test_a_potential_starts_higher_by_the_spikes_that_are_missing() -> None:
    """T = 4, θ = λ = 8 units: every value is to be .3 of a count (.6 units) higher, on average."""
    search = searched(0, coding="rate", timesteps=4)
    base = present(search)
    search.target = search.outputs(base)[-1] + 0.3 * base.threshold / 4
    raised = raised_potential(search, base)
    torch.testing.assert_close(raised.v_init, torch.full_like(base.v_init, 0.8))
    assert (search.errors(corrected(search, base)) <= torch.minimum(search.errors(base), search.errors(raised))).all()


def test_the_worth_of_a_spike_is_least_squares() -> None:
    search = searched(0, coding="sigma_delta", timesteps=5)
    base = present(search)
    search.target = 0.97 * search.outputs(base)[-1]
    torch.testing.assert_close(least_squares_threshold(search, base).threshold, 0.97 * base.threshold)
    search.target = 9 * search.outputs(base)[-1]
    assert torch.equal(least_squares_threshold(search, base).threshold, 2 * base.threshold), (
        "it moves by a factor of two"
    )


@pytest.mark.parametrize("coding", ["rate", "sigma_delta"])
def test_an_absorbed_constant_takes_the_mean_error_away(coding: str) -> None:
    search = searched(3, 0.7, coding=coding, timesteps=3)
    once = absorbed(search, present(search))
    assert float(once.constant.abs().max()) > 0
    error = (search.target - search.outputs(once)[-1]).mean(0)
    assert float(error.abs().max()) < 1e-5 * float(search.scale.max())
    again = absorbed(search, once)
    torch.testing.assert_close(again.constant, once.constant, rtol=1e-4, atol=1e-6)


# the fit


@pytest.mark.parametrize("coding", ["rate", "sigma_delta"])
def test_a_fit_lowers_what_errors_add_up_to(coding: str) -> None:
    """All channels are read by the same row: their mean errors add up, which no channel can see by itself."""
    search = searched(1, 0.4, coding=coding, timesteps=2)
    reader = Reader(torch.ones(search.site.width, 1))
    alone = search.per_channel(search.coarse())

    def error(choice: Choice) -> float:
        return float((reader.power(search.outputs(choice) - search.target) * search.weights()).sum())

    found = fit(search, alone, reader, 60)
    assert error(found) < 0.95 * error(alone)
    assert (found.threshold > 0).all()
    assert ((found.v_init >= 0) & (found.v_init <= 1)).all()
    assert found.steps == alone.steps
    assert torch.equal(fit(search, alone, reader, 60).threshold, found.threshold), "it is deterministic"


# in a model


@torch.no_grad()
def test_the_same_tokens_are_kept_of_inputs_and_encodings() -> None:
    model = tiny.snn("llama", "attention", timesteps=3, levels=4)
    clock, sites = clock_of(model), [site for site in sites_of(model).values() if site.calibrates]
    batch = BATCHES[0]["input_ids"]

    def recorded(share: int, outputs: bool) -> dict[str, Tensor]:
        with observing(sites, clock, 1, share, outputs) as seen:
            model(batch, use_cache=False)
        return seen()

    with as_qcfs(model):
        whole, some = recorded(10**6, True), recorded(5, True)
        arguments = recorded(5, False)
    given = recorded(5, False)
    for site in sites:
        assert given[site.name].shape == (3, *some[site.name].shape)
        # without time, what a site is given and gives differ by its grid alone
        assert float((arguments[site.name][0] - some[site.name]).abs().median()) <= float(site.scale.max())
        if site.kind == "input":
            assert len(some[site.name]) == 5
            places = torch.linspace(0, len(whole[site.name]) - 1, 5).long()
            assert torch.equal(some[site.name], whole[site.name][places])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("time", [{"timesteps": 2, "coding": "rate"}, {"timesteps": 3, "coding": "sigma_delta"}])
def test_absorbed_constants_are_biases_for_the_event_executor_the_ledger_and_a_checkpoint(family, time, tmp_path):
    model = tiny.snn(family, "linear", levels=8, **time)
    calibrate(model, BATCHES, CalibrationOptions(absorb_bias=True))
    constants = [site.constant_for(clock_of(model).config) for site in sites_of(model).values()]
    assert any(constant is not None for constant in constants), "the test needs a site with a constant"
    ids = tiny.tokens(3, 7)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    fas.ledger(model, {"input_ids": ids})  # raises where rows are not what spikes add up to
    model = model.double()
    with counting(model) as folded, torch.no_grad():
        logits = model(input_ids=ids).logits
    run = EventExecutor(model)(input_ids=ids)
    torch.testing.assert_close(run.logits, logits, rtol=0, atol=1e-9)
    assert {n: int(s.count_nonzero()) for n, s in run.spikes.items()} == {
        n: int(c.by_timestep.sum()) for n, c in folded.sites.items()
    }


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    model = tiny.snn("llama", "linear", timesteps=3, levels=4)
    calibrate(model, BATCHES, CalibrationOptions(fit_steps=0))
    entries = [site.parameters_for(clock_of(model).config) for site in sites_of(model).values()]
    (segment,) = find_segments(model)
    blocks = blocks_of(segment)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(BATCHES[0]["input_ids"], use_cache=False).logits.square().mean().backward()
        return [entry.log_threshold.grad.clone() for entry in entries]

    plain = gradients()
    ran = []
    handle = blocks[1].register_forward_hook(lambda *_: ran.append(None))
    with checkpointed(blocks):
        again = gradients()
    handle.remove()
    assert len(ran) > 0
    assert all("forward" not in vars(block) for block in blocks)
    for one, other in zip(plain, again, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other)


def test_options_that_make_no_sense_are_refused() -> None:
    for bad in ({"search_rows": 0}, {"spike_price": -1.0}, {"coarse": False}, {"fit_steps": -1}):
        with pytest.raises(ConfigError):
            CalibrationOptions(**bad)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_activations_in_files_change_nothing_and_leave_nothing(family: str, tmp_path: Path) -> None:
    first, second = (tiny.snn(family, "linear", timesteps=3, levels=4) for _ in range(2))
    options = CalibrationOptions(align_steps=2, global_steps=2)
    reports = calibrate(first, BATCHES, options)
    assert calibrate(second, BATCHES, options, activations=tmp_path / "states") == reports
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert list((tmp_path / "states").iterdir()) == []


def test_equal_arguments_of_blocks_are_held_once() -> None:
    mask, other = torch.ones(2, 3), torch.zeros(2, 3)
    like = ((mask, None), {"cos_sin": (mask, other), "cache": None})
    value = ((mask.clone(), None), {"cos_sin": (mask.clone(), other + 1), "cache": 5})
    (first, nothing), named = shared(value, like)
    assert first is mask
    assert nothing is None
    assert named["cos_sin"][0] is mask
    assert torch.equal(named["cos_sin"][1], other + 1)
    assert named["cache"] == 5
    assert shared(mask.double(), mask).dtype == torch.float64
    assert shared(torch.ones(2, 4), mask).shape == (2, 4)


def test_the_global_pass_starts_from_the_uncalibrated_neurons_where_the_layers_made_it_worse(monkeypatch) -> None:
    """Layers that are told to be bad are forgotten before the last pass, not after it."""
    from fas.calibration import driver

    model = tiny.snn("gpt2", "ffn", timesteps=2, levels=4, coding="rate")
    started: list[float] = []

    def spoiled(model, block, *rest):
        for site in block.modules():
            if isinstance(site, Site):
                site.parameters_for(clock_of(model).config).log_threshold.data += 3
        return LayerReport("", 0.0, 0.0, 0.0)

    def watched(parameters, loss_of, batches, steps, judged, before, *rest, **more):
        started.append(before - judged())
        return before

    monkeypatch.setattr(driver, "calibrate_block", spoiled)
    monkeypatch.setattr(driver, "descend", watched)
    plain = model(**BATCHES[0]).logits
    calibrate(model, BATCHES, CalibrationOptions(global_steps=1))
    assert started == [pytest.approx(0, abs=1e-9)]
    torch.testing.assert_close(model(**BATCHES[0]).logits, plain, rtol=0, atol=1e-6)


def test_commands_have_the_defaults_of_the_library() -> None:
    from fas.pipeline.ablation_options import AblateOptions
    from fas.pipeline.calibrate import CalibrateOptions
    from fas.pipeline.options import ConvertOptions

    defaults = CalibrationOptions()
    for options in (ConvertOptions("m", "d", Path("o")), CalibrateOptions("m", "d", Path("o"))):
        for name in ("absorb_bias", "align_steps", "global_steps"):
            assert getattr(options, name) == getattr(defaults, name), name
    for options in (ConvertOptions("m", "d", Path("o")), CalibrateOptions("m", "d", Path("o"))):
        assert CalibrationOptions.for_depth(2, options.fit_steps) == defaults
    assert AblateOptions("m", "d", Path("o")).fit_steps == defaults.fit_steps


@pytest.mark.parametrize("absorbs", [True, False])
def test_fas_convert_absorbs_biases_where_it_is_told_to(absorbs: bool, tmp_path: Path) -> None:
    model, text = folders.save_ann(tmp_path / "ann"), folders.save_text(tmp_path / "text.txt")
    command = ["convert", "--model", model, "--data", text, "--out", str(tmp_path / "snn"), "--quiet"]
    command += ["--timesteps", "2", "--levels", "4", "--stage1", "none", "--length", "16", "--coding", "rate"]
    command += ["--calibration-sequences", "4", "--eval-sequences", "2", "--device", "cpu"]
    assert main([*command, *(["--absorb-bias"] if absorbs else [])]) == 0
    snn = AutoModelForCausalLM.from_pretrained(tmp_path / "snn")
    config = clock_of(snn).config
    assert any(site.constant_for(config) is not None for site in sites_of(snn).values()) == absorbs


@pytest.mark.parametrize("coding", ["rate", "sigma_delta"])
def test_candidates_are_judged_on_all_rows_however_many_are_looked_at_together(coding: str, monkeypatch) -> None:
    search = searched(2, 0.3, coding=coding, timesteps=3)
    search.price = 0.1
    base, coarse = present(search), sys.modules["fas.calibration.coarse"]
    rows, spikes = search._fire(base)
    by_time = (rows - search.target).square().mean(1)
    fired = (spikes != 0).float().sum(0).mean(0)
    expected = (by_time * search.weights()[:, None]).sum(0) + 0.1 * search.target.square().mean() * fired
    for size in (1, 7 * 3 * search.site.width, 1 << 20):
        monkeypatch.setattr(coarse, "CHUNK", size)
        torch.testing.assert_close(search.errors(base), expected)
        assert search.spikes(base) == pytest.approx(float(fired.mean()))
        torch.testing.assert_close(missing(search, base), (search.target - rows[-1]).mean(0), rtol=1e-4, atol=1e-6)


def test_an_early_error_weighs_the_more_the_less_time_is_left_to_take_it_back() -> None:
    two, eight = (searched(0, coding="rate", timesteps=t) for t in (2, 8))
    torch.testing.assert_close(two.weights(), torch.tensor([1.2 / 4 / 2, 1.0]))
    torch.testing.assert_close(eight.weights()[:-1], 1.2 / 64 * torch.arange(1, 8) / 8)
    eight.price = 0.01
    torch.testing.assert_close(eight.weights()[:-1], 0.12 / 64 * torch.arange(1, 8) / 8)
    step = searched(0, coding="rate", timesteps=4, rows="step")
    assert step.weights().tolist() == [1.0], "of step rows the mean counts"


def test_a_potential_stays_between_0_and_1() -> None:
    search = searched(1, 3.0, coding="rate", timesteps=2)
    found = fit(search, present(search), Reader(torch.eye(search.site.width)), 120)
    assert float(found.v_init.max()) == 1.0, "it would go on"
    assert float(found.v_init.min()) >= 0.0


def test_batches_of_different_size_are_kept_whole() -> None:
    for sizes in ((5, 3), (3, 5), (4, 4)):
        kept, parts = _Kept(2), [torch.randn(2, size, 3) for size in sizes]
        for part in parts:
            kept.add(part)
        assert torch.equal(kept.rows[:, : kept.count], torch.cat(parts, 1))
    model = tiny.snn("gpt2", "ffn", timesteps=2)
    (site, *_), clock = sites_of(model).values(), clock_of(model)
    with observing([site], clock, 2, 100, outputs=False) as seen, torch.no_grad():
        model(tiny.tokens(4, 9))
        model(tiny.tokens(1, 9))
    assert seen()[site.name].shape == (2, 45, site.width)


@pytest.mark.parametrize("time", [{"timesteps": 2, "coding": "rate"}, {"timesteps": 3, "coding": "sigma_delta"}])
def test_rows_are_the_constant_and_what_spikes_add_up_to(time) -> None:
    model = tiny.snn("gpt2", "linear", levels=8, **time)
    calibrate(model, BATCHES, CalibrationOptions(absorb_bias=True))
    clock, spikes, rows = clock_of(model), {}, {}
    handles = [
        site.register_forward_hook(lambda site, _, out: rows.__setitem__(site.name, out))
        for site in sites_of(model).values()
    ]
    clock.probe = spikes.__setitem__
    with torch.no_grad():
        model(**BATCHES[0])
    clock.probe = None
    for handle in handles:
        handle.remove()
    shifted = [site for site in sites_of(model).values() if site.constant_for(clock.config) is not None]
    assert shifted
    for site in sites_of(model).values():
        assert check_site(site, spikes[site.name], rows[site.name]), site.name
    site = shifted[0]
    site.parameters_for(clock.config).constant.zero_()
    assert not check_site(site, spikes[site.name], rows[site.name])


def test_a_threshold_may_shrink_as_far_as_it_helps() -> None:
    search = searched(1, coding="rate", timesteps=2)
    search.target = search.target * 0.05
    found = fit(search, present(search), Reader(torch.eye(search.site.width)), 300)
    assert float((found.threshold / search.scale).min()) < 0.5


def test_a_folder_for_activations_that_cannot_be_made_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = tiny.snn("gpt2", "ffn", timesteps=2)
    with pytest.raises(CheckpointError, match="activations could not be written"):
        calibrate(model, BATCHES, activations=tmp_path / "file")
    assert all(len(site.neurons) == 0 for site in sites_of(model).values())


def test_an_interruption_leaves_no_activations(tmp_path: Path, monkeypatch) -> None:
    from fas.calibration import driver

    def interrupted(*_):
        assert len(list(tmp_path.iterdir())) == 2 * len(BATCHES)
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "calibrate_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny.snn("gpt2", "ffn", timesteps=2), BATCHES, activations=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_kl_is_the_mean_of_all_tokens_however_many_are_compared_together() -> None:
    student, teacher = (torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    p, q = (logits.double().div(2).softmax(-1) for logits in (teacher, student))
    expected = 4 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(logits_kl(student, teacher, 2.0).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_ledger_adds_a_constant_where_there_was_no_bias(monkeypatch) -> None:
    """What is absorbed is one more addition for every output (and timestep, of a mean) of layers that have no bias."""
    model, ids = tiny.snn("llama", "linear", levels=8, timesteps=2, coding="rate"), tiny.tokens(2, 5)
    for layer in model.model.layers.modules():
        if isinstance(layer, nn.Linear):
            layer.bias = None
    calibrate(model, BATCHES, CalibrationOptions(absorb_bias=True))
    config = clock_of(model).config
    outputs = 0
    for block in blocks_of(find_segments(model)[0]):
        for site in sites_of(model).values():
            if site.constant_for(config) is not None:
                outputs += sum(layer.out_features for layer in consumers(block, site))

    def picojoules() -> float:
        table = fas.ledger(model, {"input_ids": ids}, decode=False).forward.energy
        return table.picojoules["snn_strict"]["same precision"]

    whole = picojoules()
    monkeypatch.setattr(Site, "adds_constant", lambda *_: False)
    assert outputs > 0
    # rows that carry means are divided by t, so the constant enters at each of two timesteps: .03 pJ (45 nm, int8)
    assert whole - picojoules() == pytest.approx(0.03 * outputs * ids.numel() * 2, rel=1e-6)


def test_a_start_is_a_constant_too_and_none_is_none() -> None:
    model = tiny.snn("gpt2", "ffn", timesteps=3, levels=4)
    (site, *_), config = sites_of(model).values(), clock_of(model).config
    assert not site.adds_constant(config)
    entry = site.add_parameters(config.neuron_key)
    assert not site.adds_constant(config)
    entry.a_init[0] = 1
    assert site.adds_constant(config)
