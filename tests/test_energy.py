"""Energy models, ``fas energy``, figures; spike budgets and sweeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import folders
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor
from toys import toy, toy_families
from transformers import PreTrainedModel

import fas
from fas.accounting.account import Account, Events, Product
from fas.accounting.energy import ann_work, energy_table, snn_work
from fas.accounting.ledger import Ledger, json_schema
from fas.accounting.prices import DEFAULT, energy_models
from fas.accounting.work import Work
from fas.cli import main
from fas.errors import FasError
from fas.neurons import ones_first, sigma_delta
from fas.neurons.expected import expected_spikes, spikes_of_codes
from fas.neurons.sigma_delta import dead_zones
from fas.pipeline.options import ConvertOptions
from fas.pipeline.pareto import run_pareto
from fas.progress import Silent
from fas.report.results import Results
from fas.runtime.control import clock_of
from fas.runtime.spikes import counting
from fas.tasks.language_modeling import Blocks
from fas.training import Stage1Options, fine_tune

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True, scope="module")
def families() -> Iterator[None]:
    with toy_families():
        yield


# prices


def linear_account(spikes: list[float], macs: tuple[int, int, int] = (2, 4, 3)) -> Account:
    m, k, n = macs
    return Account(products=[Product("linear", "linear", 1, m, k, n, len(spikes), events=[Events("site", spikes, n)])])


def test_each_column_prices_what_it_says() -> None:
    models = energy_models()
    work = Work(macs=10, acs=20, shifts=3, adds=5, muls=7, functions=2, updates=4, weight_words=6, activation_words=8,
                state_words=9, events=11)  # fmt: skip
    proxy, same, memory = models.columns
    assert models.energy(work, proxy, "fp32") == pytest.approx(10 * 4.6 + 20 * 0.9)
    assert models.energy(work, proxy, "int8") == pytest.approx(10 * 0.23 + 20 * 0.03)
    arithmetic = 10 * 0.23 + 20 * 0.03 + 3 * 0.03 + 5 * 0.03 + 7 * 0.2 + 2 * 0.92 + 4 * 0.06
    assert models.energy(work, same, "int8") == pytest.approx(arithmetic)
    traffic = 6 * 8 * 20.3125 + 0.15625 * (8 * 8 + 9 * 16 + 11 * 16)
    assert models.energy(work, memory, "int8") == pytest.approx(arithmetic + traffic)
    # a product of a 5-bit operand with an 8-bit weight
    assert models.energy(Work(macs=10), proxy, "fp32", 5) == pytest.approx(10 * (0.2 * 5 * 8 / 64 + 0.03))


def test_break_even_is_where_both_cost_the_same() -> None:
    account = linear_account([5.0, 3.0, 1.0, 1.0])
    account.sites = {}
    account.products.append(Product("head", "linear", 1, 2, 4, 1, 1))
    from fas.accounting.account import SiteTally

    account.sites["site"] = SiteTally("site", "input", elements=8, spikes=10, updates=32)
    rate = 10 / 8 / 4
    table = energy_table(account, energy_models(), bits=4, rate=rate)
    for column, entry in zip(energy_models().columns, table.break_even, strict=True):
        reference = table.picojoules[column.break_even][column.name]
        if entry.rate is None:
            assert energy_models().energy(snn_work(account, 0.0), column, column.snn) > reference
            continue
        share = entry.rate / rate
        assert energy_models().energy(snn_work(account, share), column, column.snn) == pytest.approx(reference)
        assert entry.wins == (table.ratios["snn_strict"][column.name] < 1)
    proxy = table.break_even[0]
    # 24 + 8 products of 4.6 pJ against 8 of them and 3 additions of .9 pJ a spike
    assert proxy.rate == pytest.approx(24 * 4.6 / (3 * 0.9) / 8 / 4)
    assert ann_work(account).macs == 32


def test_weights_are_fetched_by_spike_or_all_of_them() -> None:
    few, many = linear_account([1.0, 1.0]).products[0], linear_account([1.0, 9.0]).products[0]
    assert few.spiking().weight_words == 2 * 3
    assert many.spiking().weight_words == 3 + 4 * 3  # nine rows would be more than the whole matrix
    many.resident = True
    assert many.spiking().weight_words == 4 * 3
    assert many.spiking(0.1).weight_words == pytest.approx(3)


def test_another_file_of_constants(tmp_path: Path) -> None:
    text = DEFAULT.read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("mul: 3.7", "mul: 37"))
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = toy(False)
    usual = fas.ledger(model, {"inputs_embeds": x}).forward.energy.picojoules["ann_fp32"]["fp32 proxy"]
    other = fas.ledger(model, {"inputs_embeds": x}, energy_model=mine).forward.energy.picojoules
    assert usual == pytest.approx(2 * 3 * 4 * 3 * 4.6)
    assert other["ann_fp32"]["fp32 proxy"] == pytest.approx(2 * 3 * 4 * 3 * 37.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("mul: 3.7", "mul: -1"), "precisions.fp32.mul: Input should be greater than or equal to 0"),
        (("snn: fp32", "snn: fp64"), "names the precision 'fp64', which is not in the file"),
        (("precisions:", "- precisions:"), "cannot be read"),
        (("weight_bits: 8", "weight_bits: 8\nunknown: 1"), "unknown: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(DEFAULT.read_text().replace(*change))
    with pytest.raises(FasError, match=message):
        energy_models(mine)
    with pytest.raises(FasError, match="cannot be read"):
        energy_models(tmp_path / "missing.yaml")


# the command


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A small converted folder and its text."""
    place = tmp_path_factory.mktemp("energy")
    data = folders.save_text(place / "text.txt")
    options = ConvertOptions(
        model=folders.save_ann(place / "ann"), data=data, out=place / "out", length=16, stage1_steps=2, batch_size=2,
        timesteps=(2,), levels=3, calibration_sequences=2, align_steps=0, global_steps=0, eval_sequences=2,
    )  # fmt: skip
    from fas.pipeline.convert import run_conversion

    run_conversion(options)
    return str(options.out), data


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_energy_command(converted: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, data = converted
    common = ("--data", data, "--length", "16", "--sequences", "2", "--quiet")
    code, out, _ = run(capsys, "energy", folder, *common, "--timesteps", "2,4", "--json", "--plots", str(tmp_path))
    assert code == 0
    ledgers = json.loads(out)["ledgers"]
    assert [entry["conversion"]["timesteps"] for entry in ledgers] == [2, 4]
    for entry in ledgers:
        found = TypeAdapter(Ledger).validate_python(entry)
        assert found.to_dict() == entry
        assert found.forward.tokens == 32
        assert found.decode is not None
        assert found.neurobench is not None
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert "sigma_delta_2_1-energy.svg" in drawn
    assert "sigma_delta_2_1-firing.svg" in drawn
    assert sum("raster" in name for name in drawn) == 8
    for path in tmp_path.glob("*.svg"):
        ElementTree.parse(path)
    code, out, _ = run(capsys, "energy", folder, *common, "--no-decode", "--no-neurobench")
    assert code == 0
    assert "of multiply-accumulates became accumulates" in out.splitlines()[0]
    assert "transformer.h.*.ffn_hidden" in out
    assert "SNN, strict (the whole network)" in out
    assert "decoding step" not in out


def test_energy_of_an_ann(converted: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, data = converted
    code, out, _ = run(capsys, "energy", f"{folder}/control", "--data", data, "--length", "16", "--quiet")
    assert code == 0
    assert "none of them replaced" in out
    code, _, err = run(capsys, "energy", f"{folder}/control", "--data", data, "--timesteps", "4", "--quiet")
    assert code == 2
    assert "is an ANN: it has no timesteps" in err


def test_energy_command_with_bad_input(converted: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, data = converted
    for arguments, message in (
        (("--raster", "nothing"), "raster: 'nothing' matches no site"),
        (("--energy-model", "missing.yaml"), "cannot be read"),
        (("--length", "999"), "beyond the model's context"),
    ):
        code, out, err = run(capsys, "energy", folder, "--data", data, "--quiet", *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1


def test_schema_of_the_json_is_in_the_docs() -> None:
    """`python -m fas.accounting.ledger > docs/ledger.schema.json` after a change."""
    assert json.loads((DOCS / "ledger.schema.json").read_text()) == json_schema()


def test_results_page_is_what_the_results_say() -> None:
    import sys

    sys.path.insert(0, str(DOCS.parent / "benchmarks"))
    from tables import page  # python benchmarks/tables.py writes it

    assert (DOCS / "results.md").read_text(encoding="utf-8") == page()


# spike budgets


@settings(deadline=None, max_examples=40, database=None)
@given(levels=st.integers(1, 12), timesteps=st.integers(1, 8), rate=st.booleans(), seed=st.integers(0, 9999))
def test_expected_spikes_at_grid_points_are_what_a_neuron_emits(
    levels: int, timesteps: int, rate: bool, seed: int
) -> None:
    settled = timesteps if not rate else levels
    config = fas.SpikingConfig(levels=levels, timesteps=settled, coding="rate" if rate else "sigma_delta")
    generator = torch.Generator().manual_seed(seed)
    # a power of two times L, so that no rounding decides ties
    scale = 2.0 ** torch.randint(-3, 4, (3,), generator=generator).double() * levels
    codes = torch.randint(0, levels + 1, (20, 3), generator=generator).double()
    x = codes * scale / levels
    if rate:  # T = L: a spike a level
        emitted = ones_first(codes, levels).count_nonzero(0)
    else:
        rows = x.expand(settled, *x.shape)
        half = torch.full_like(scale, 0.5)
        zones = dead_zones(settled, 0.25)
        spikes = sigma_delta(rows, scale, half, torch.zeros(3).double(), config.step_schedule, levels, False, zones)[1]
        emitted = spikes.count_nonzero(0)
    counts = spikes_of_codes(config, levels)
    torch.testing.assert_close(expected_spikes(x, scale, False, counts), emitted.double())
    torch.testing.assert_close(expected_spikes(-x, scale, True, counts), emitted.double())
    assert counts[0] == 0


def test_expected_spikes_have_the_gradient_of_their_line() -> None:
    counts = (0.0, 1.0, 1.0, 2.0)
    x = torch.tensor([[0.5], [1.5], [2.5], [-0.5], [4.0]], requires_grad=True, dtype=torch.float64)
    scale = torch.tensor([3.0], requires_grad=True, dtype=torch.float64)
    found = expected_spikes(x, scale, True, counts)
    torch.testing.assert_close(found, torch.tensor([[0.5], [1.0], [1.5], [0.5], [2.0]], dtype=torch.float64))
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([1, 0, 1, -1, 0])
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(-(0.5 + 2.5 + 0.5) / 3)  # a coarser grid costs fewer spikes


def spikes_of(model: PreTrainedModel, ids: Tensor) -> float:
    """Spikes per neuron in the layerwise schedule: those of the codes, without corrections."""
    spiking = fas.convert(model)
    spiking.set_timesteps(clock_of(model).config.levels, schedule="layerwise")
    with counting(spiking) as counts, torch.no_grad():
        spiking(input_ids=ids)
    return counts.per_neuron


def test_a_budget_is_kept() -> None:
    """The rate code's expected spikes are its codes, which the layerwise schedule shows."""
    found = {}
    ids = tiny.tokens(16, 12)
    for budget in (None, 0.4):
        model = tiny.qcfs_model("gpt2", "linear", levels=4, timesteps=4, coding="rate")
        options = Stage1Options(steps=120, batch_size=8, lr=2e-3, scale_lr=5e-2, spikes_per_neuron=budget)
        fine_tune(model, Blocks(ids), options)
        assert clock_of(model).meter is None
        found[budget] = spikes_of(model, ids)
    assert found[None] > 0.7
    assert found[0.4] == pytest.approx(0.4, abs=0.08)


def test_the_control_ignores_the_budget() -> None:
    ids = tiny.tokens(8, 12)
    options: dict[str, Any] = {"steps": 2, "batch_size": 4, "lr": 1e-3}
    tuned = [
        fine_tune(tiny.ann("gpt2"), Blocks(ids), Stage1Options(**options, spikes_per_neuron=budget))
        for budget in (None, 0.1)
    ]
    for first, second in zip(*(model.parameters() for model in tuned), strict=True):
        assert torch.equal(first, second)


def test_a_price_saves_spikes() -> None:
    """Stage 2 lets deep layers wait for those in front, instead of following every correction."""
    found = {}
    batches = [{"input_ids": tiny.tokens(4, 12, seed=seed)} for seed in (3, 4)]
    for price in (0.0, 0.02):
        model = tiny.snn("gpt2", "linear", levels=4, timesteps=6)
        fas.calibrate(model, batches, fas.CalibrationOptions(align_steps=0, global_steps=0, spike_price=price))
        with counting(model) as counts, torch.no_grad():
            model(**batches[0])
        found[price] = counts.per_neuron
    assert found[0.02] < 0.8 * found[0.0]


def test_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folders.save_text(tmp_path / "text.txt")
    options = ConvertOptions(
        model=folders.save_ann(tmp_path / "ann"), data=data, out=tmp_path / "sweep", length=16, stage1_steps=2,
        batch_size=2, timesteps=(2,), levels=3, calibration_sequences=2, align_steps=0, global_steps=0, eval_sequences=2,
    )  # fmt: skip
    found = run_pareto(options, (None, 0.5))
    stored = Results.read(tmp_path / "sweep" / "pareto.json")
    assert stored.to_dict()["rows"] == found.to_dict()["rows"]
    assert [row.name for row in found.rows].count("control") == 1
    budgets = [row.budget for row in found.rows if row.name == "snn" and row.schedule == "synchronous"]
    assert budgets == [None, 0.5]
    for row in found.rows:
        if row.name == "snn" and row.schedule == "synchronous":
            assert row.energy_strict_pj is not None
            assert row.energy_ann_pj is not None
    ElementTree.parse(tmp_path / "sweep" / "pareto.svg")
    # the control was trained once
    controls = [
        (tmp_path / "sweep" / name / "control/model.safetensors").read_bytes() for name in ("no-budget", "budget-0.5")
    ]
    assert controls[0] == controls[1]
    # finished folders are shown, not converted again
    before = (tmp_path / "sweep/no-budget/results.json").stat().st_mtime_ns
    run_pareto(options, (None, 0.5))
    assert (tmp_path / "sweep/no-budget/results.json").stat().st_mtime_ns == before
    # another sweep may have its control, too
    titles: list[str] = []

    class Titles(Silent):
        def start(self, title: str, total: int | None = None) -> None:
            titles.append(title)

    run_pareto(replace(options, levels=2, out=tmp_path / "two"), (0.5,), Titles(), tmp_path / "sweep/no-budget")
    assert any(title.startswith("Stage 1") for title in titles)
    assert not any(title.startswith("control") for title in titles)
    code, _, err = run(
        capsys,
        "convert",
        "--model",
        "builtin",
        "--data",
        data,
        "--out",
        str(tmp_path / "x"),
        "--budgets",
        "1",
        "--quiet",
    )
    assert code == 2
    assert "--budgets belong to --pareto" in err
    both = ("--pareto", "--spikes-per-neuron", "1")
    code, _, err = run(
        capsys, "convert", "--model", "builtin", "--data", data, "--out", str(tmp_path / "x"), *both, "-q"
    )
    assert code == 2
    assert "--pareto takes its budgets from --budgets" in err
    for wrong in ({"spikes_per_neuron": 0.0}, {"spikes_per_neuron": 1.0, "stage1": "none"}):
        with pytest.raises(FasError, match="a budget is above 0 and is trained for"):
            replace(options, **wrong)
