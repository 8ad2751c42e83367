"""``fas bench``: what is asked for is timed, ratios are of what they say, and what is timed is what users run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import folders
import pytest
import torch
from transformers import GPT2Config
from typer.testing import CliRunner

from fas.cli import app
from fas.errors import ConfigError
from fas.neurons import rate_step_rows
from fas.neurons.native.build import architecture, library
from fas.neurons.native.decoding import lanes
from fas.pipeline import bench, bench_models
from fas.pipeline.bench import BenchOptions, Case, run_bench, timed
from fas.pipeline.bench_cases import model_cases
from fas.pipeline.bench_models import FIRING
from fas.pipeline.bench_neurons import step_loop
from fas.progress import Silent
from fas.report.speed import as_table

KEYS = {"what", "coverage", "coding", "schedule", "timesteps", "dtype", "against", "ratio", "ratio_min", "ratio_max"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("bench") / "model"
    folders.save_ann(place)
    return str(place)


def test_a_ratio_is_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both once to warm up; then ours first, the other first, ours first: 4/2, 3/1 and 2/4 seconds."""
    now, waits = 0.0, iter([9.0, 9.0, 4.0, 2.0, 1.0, 3.0, 2.0, 4.0])

    def wait() -> None:
        nonlocal now
        now += next(waits)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    row = timed(Case("neuron", "copy", wait, wait), 3, Silent())
    assert (row.ratio, row.ratio_min, row.ratio_max) == (2, 0.5, 3)
    assert (row.milliseconds, row.milliseconds_against) == (3000, 2000)


def test_what_is_asked_for_is_timed(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    asked = [
        "bench",
        f"--model={model}",
        "--what=prefill,decode,stage1_step",
        "--coverage=ffn",
        "--coding=sigma-delta,rate",
    ]
    asked += [
        "--timesteps=4",
        "--dtype=float32,bfloat16",
        "--length=12",
        "--rounds=1",
        f"--out={tmp_path / 'speed.json'}",
    ]
    done = CliRunner().invoke(app, [*asked, "--quiet"], catch_exceptions=False)
    found = json.loads((tmp_path / "speed.json").read_text())
    assert all(set(row) >= KEYS for row in found["rows"])
    told = [(r["what"], r["coding"], r["schedule"], r["timesteps"], r["against"]) for r in found["rows"]]
    one = [("stage1_step", None, None, None, "ann")]
    one += [(what, None, "layerwise", 8, "ann") for what in ("prefill", "decode")]
    for coding in ("sigma_delta", "rate"):
        time_of = (coding, "synchronous", 4)
        one += [(what, *time_of, against) for against in ("ann", "naive") for what in ("prefill", "decode")]
    assert told == one * 2
    assert [row["dtype"] for row in found["rows"]] == ["float32"] * len(one) + ["bfloat16"] * len(one)
    assert found["integer_bits"] == {"float32": 16, "bfloat16": 8}
    sets = found["instruction_sets"]
    assert sets["pytorch"] == torch.backends.cpu.get_cpu_capability()
    assert sets["onednn_max_cpu_isa"] == "AVX512_CORE_AMX"
    if library() is not None:
        assert (sets["compiled_for"], sets["compiled_lanes"]) == (architecture(), lanes())
        assert set(found["integer_products"]) == {"float32", "bfloat16"}
        assert f"{found['integer_products']['float32']} products in float32" in done.stdout
    assert done.stdout == as_table(found) + "\n"
    assert "medians of 1 rounds" in done.stdout


def test_cases_compute_what_they_say(model: str) -> None:
    """Prefill is the model's own, simulated for T; integer products are in use; nothing stays behind."""
    options = BenchOptions(model=model, what=("prefill",), coverages=("linear",), timesteps=(4,), length=8)
    logits = []
    for case in model_cases(options, {}):
        ours, other = case.ours().logits, case.other().logits
        assert not ours.requires_grad
        assert not torch.equal(ours, other)
        logits.append(ours)
    assert len(logits) == 3  # layerwise, and T = 4 twice
    assert torch.equal(logits[1], logits[2])  # the naive run in between left no neuron behind
    assert not torch.equal(logits[0], logits[1])


def test_the_naive_loop_is_the_same_neuron() -> None:
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(50)
    assert torch.allclose(step_loop(x, ones), rate_step_rows(x, ones, ones / 2, False)[0])


def test_neurons_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fas.pipeline.bench_neurons.NEURONS", (1, 4, 64))
    found = run_bench(
        BenchOptions(what=("neuron",), codings=("sigma_delta", "rate"), timesteps=(2,), rounds=1, threads=1)
    )
    rows = [(row.coding, row.against) for row in found.rows if row.against != "spikingjelly"]
    assert rows == [(coding, against) for coding in ("sigma_delta", "rate") for against in ("copy", "naive")]
    assert found.about["threads"] == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"what": ("speed",)},
            "what='speed' is not valid: choose of neuron, prefill, decode, decode_relu, stage1_step, stage2",
        ),
        ({"dtypes": ("int4",)}, "dtype='int4' is not valid"),
        ({"rounds": 0}, "rounds and timesteps must be at least 1"),
        ({"integer_bits": 12}, "integer_bits=12 is not valid"),
    ],
)
def test_bad_settings(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bench.BenchOptions(**wrong)  # type: ignore[arg-type]


def test_random_models_fire_like_trained_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the size of the tests; the sparse one's neurons fire as seldom as is said."""
    small = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97}
    monkeypatch.setattr(bench_models, "GPT2Config", lambda **settings: GPT2Config(**settings | small))
    options = BenchOptions(
        what=("decode", "decode_relu"), coverages=("linear",), timesteps=(8,), dtypes=("float32",), length=32
    )
    about: dict[str, Any] = {}
    cases = list(model_cases(options, about))
    assert [(case.what, case.coverage, case.against) for case in cases] == [
        ("decode", coverage, against) for coverage in ("linear", "ffn") for against in ("ann", "ann", "naive")
    ]
    for kind, wanted in FIRING.items():
        assert about["spikes_per_neuron"]["linear"][kind] == pytest.approx(wanted, rel=0.15)
    assert 0.02 < about["spikes_per_neuron"]["ffn, ReLU"]["ffn_hidden"] < 0.3
    ann = bench_models.bench_ann(None, 32, 0, "relu")
    ids = torch.randint(97, (1, 32), generator=torch.Generator().manual_seed(0))
    bench_models.keep_active(ann, ids, 0.03)
    shares: list[float] = []
    for block in ann.transformer.h:
        block.mlp.act.register_forward_hook(lambda module, args, out: shares.append(float((out > 0).float().mean())))
    ann(input_ids=ids)
    assert shares == pytest.approx([0.03, 0.03], abs=2e-3)


def test_stage2_is_timed_on_the_embedded_model() -> None:
    (case,) = model_cases(BenchOptions(what=("stage2",), timesteps=(2,), length=16), {})
    assert (case.what, case.against, case.model, case.timesteps) == ("stage2", "published", "builtin", 2)
    assert case.before is not None
    case.before()
    assert case.ours() is None  # runs


def test_decoding_with_either_cache(model: str) -> None:
    """Each case runs with the cache that it names, one token behind what it was given before."""
    options = BenchOptions(
        model=model,
        what=("decode",),
        coverages=("ffn",),
        timesteps=(4,),
        length=6,
        rounds=1,
        caches=("exact", "settled"),
    )
    found = []
    for case in model_cases(options, {}):
        assert case.before is not None
        case.before()
        cache = case.ours().past_key_values
        found.append((case.against, case.cache, case.schedule, len(cache.layers[0].keys), cache.get_seq_length()))
        assert case.other() is not None
    layerwise = [("ann", cache, "layerwise", 1, 8) for cache in ("exact", "settled")]
    in_time = [
        (of, cache, "synchronous", rows, 8) for of in ("ann", "naive") for cache, rows in (("exact", 4), ("settled", 1))
    ]
    assert found == layerwise + in_time


def test_more_tokens_than_positions_are_refused(model: str) -> None:
    with pytest.raises(
        ConfigError, match=r"length=63 and 2 tokens behind it are more than the 64 positions of .*; take at most 62"
    ):
        run_bench(BenchOptions(model=model, what=("decode",), length=63))
    assert run_bench(BenchOptions(model=model, what=("prefill",), coverages=("ffn",), length=64, rounds=1)).rows
