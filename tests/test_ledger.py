"""The ledger against networks that are counted by hand, and against the event executor's spikes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_vl
import torch
from contract import CODINGS as CONTRACT_CODINGS
from contract import spikes_of
from torch import Tensor
from toys import fire, running, toy, toy_families
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import fas
from fas.accounting import Ledger, ledger
from fas.accounting.ledger import Statement
from fas.errors import DataError
from fas.neurons import Held, Site
from fas.operators.spiking import GroupSite
from fas.runtime.control import clock_of, sites_of
from fas.runtime.events import EventExecutor

LEVELS = 3
TIMES = (1, 4, 8)
CODINGS: dict[str, dict[str, Any]] = {
    "sigma_delta": {"coding": "sigma_delta"},
    "rate": {"coding": "rate"},
}
times = pytest.mark.parametrize("timesteps", TIMES)
codings = pytest.mark.parametrize("coding", CODINGS)


@pytest.fixture(autouse=True, scope="module")
def families() -> Iterator[None]:
    with toy_families():
        yield


def converted(model: PreTrainedModel, x: dict[str, Tensor], coverage: str, **settings: Any) -> PreTrainedModel:
    config = fas.SpikingConfig(coverage=coverage, levels=LEVELS, **({"timesteps": 4} | settings))
    return fas.convert(fas.prepare(model, config, [x]))


def by_module(statement: Statement) -> dict[tuple[str, str], Any]:
    return {(product.module, product.kind): product for product in statement.products}


@times
@codings
def test_one_linear_layer(coding: str, timesteps: int) -> None:
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model = converted(toy(False), {"inputs_embeds": x}, "linear", timesteps=timesteps, **CODINGS[coding])
    site = next(iter(sites_of(model).values()))
    steps = list(clock_of(model).config.step_schedule) if coding == "sigma_delta" else [1] * timesteps
    rows = np.broadcast_to(x.numpy(), (timesteps, *x.shape))
    spikes = fire(rows, site.scale.detach().numpy(), True, LEVELS, coding, steps)
    fired = int((spikes != 0).sum())
    weighty = int((spikes[np.array(steps) > 1] != 0).sum())

    found = ledger(model, {"inputs_embeds": x}).forward
    (product,) = found.products
    assert (product.macs, product.times) == (2 * 5 * 4 * 3, timesteps)
    assert (product.accumulates, product.shifts) == (fired * 3, weighty * 3)
    assert (found.macs, found.macs_replaced, found.macs_analog_executed) == (120, 120, 0)
    assert (found.spikes, found.accumulates, found.updates) == (fired, fired * 3, 40 * timesteps)
    assert found.operations == []  # a bias is no operation of its own
    (entry,) = found.sites
    assert entry.neurons == 40
    assert entry.by_timestep == [(spikes[t] != 0).sum() / 40 for t in range(timesteps)]
    assert entry.silent_channels == int((spikes.reshape(-1, 4) == 0).all(0).sum())
    assert entry.accumulates == fired * 3


@times
@codings
def test_one_attention(coding: str, timesteps: int) -> None:
    batch, length, heads, features = 2, 3, 2, 2
    x = torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    model = converted(toy(True), {"inputs_embeds": x}, "attention", timesteps=timesteps, **CODINGS[coding])
    steps = list(clock_of(model).config.step_schedule) if coding == "sigma_delta" else [1] * timesteps
    scale = {name.rsplit(".")[-1]: site.scale.detach().numpy() for name, site in sites_of(model).items()}
    rows = np.broadcast_to(x.numpy(), (timesteps, *x.shape))
    trains, held = {}, {}
    for role in ("query", "key", "value"):
        trains[role] = fire(rows, scale[role], True, LEVELS, coding, steps)
        values = running(trains[role], scale[role], LEVELS, coding, steps)
        held[role] = values.reshape(timesteps, batch, length, heads, features)
    scores = np.einsum("tbshd,tbkhd->tbskh", held["query"], held["key"]) * features**-0.5
    e = np.exp(scores - scores.max(3, keepdims=True))
    trains["probabilities"] = fire(e, scale["probabilities"], False, LEVELS, coding, steps)
    fired = {role: int((train != 0).sum()) for role, train in trains.items()}

    found = ledger(model, {"inputs_embeds": x}).forward
    first, second = found.products
    macs = batch * heads * length * length * features
    assert (first.macs, second.macs, found.macs, found.macs_replaced) == (macs, macs, 2 * macs, 2 * macs)
    # a spike of query or key meets every token of the other; one of e all features of a value, one of a value all rows
    assert first.accumulates == (fired["query"] + fired["key"]) * length
    assert second.accumulates == fired["probabilities"] * features + fired["value"] * length
    assert found.spikes == sum(fired.values())
    encoded = 3 * batch * length * 4 + batch * length * length * heads
    assert found.updates == encoded * timesteps
    # Σ ê follows the spikes of e; everything else of the softmax is analog and runs at every timestep
    sums = [entry for entry in found.operations if entry.sites]
    assert [(entry.kind, entry.sites) for entry in sums] == [("reduction", ["body.probabilities"])]
    assert all(entry.times == timesteps for entry in found.operations)
    scores_of_all, rows_of_all = batch * heads * length * length, batch * heads * length
    analog = {entry.kind: entry.elements for entry in found.operations if not entry.sites}
    assert analog["reduction"] == scores_of_all  # the largest score of a row
    # scaling, difference, sign, exponential, share of each; smallest sum, reciprocal, share of each output
    assert analog["elementwise"] == 5 * scores_of_all + 2 * rows_of_all + batch * heads * length * features


BATCH, LENGTH, WIDTH, HEADS, LAYERS, VOCAB = 2, 5, 8, 2, 2, 11


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        activation_function="gelu", vocab_size=VOCAB,
        n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=16, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.double()


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(1, VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(5))}


FAN_OUT = {"attention_input": 3 * WIDTH, "attention_output": WIDTH, "ffn_input": 4 * WIDTH, "ffn_hidden": WIDTH}
CONSUMER = {
    "attention_input": "attn.c_attn", "attention_output": "attn.c_proj", "ffn_input": "mlp.c_fc", "ffn_hidden": "mlp.c_proj",
}  # fmt: skip
FEATURES = WIDTH // HEADS


def expected_products(trains: dict[str, Tensor], last: bool) -> dict[tuple[str, str, int], tuple[int, int]]:
    """(MACs, accumulates) by module, kind and place; of all tokens, or of the ``last`` one behind a cache of the others.

    ``trains`` are the spikes of the whole sequence, [T, B, S, C] (probabilities [T, B, S·S, H]).
    """
    queries = 1 if last else LENGTH

    def count(layer: int, name: str, all_tokens: bool = False) -> int:
        train = trains[f"transformer.h.{layer}.{name}"]
        if name == "probabilities":
            train = train.reshape(len(train), BATCH, LENGTH, LENGTH, -1)
        return int((train[:, :, -1:] if last and not all_tokens else train).count_nonzero())

    widths = {"attention_input": WIDTH, "attention_output": WIDTH, "ffn_input": WIDTH, "ffn_hidden": 4 * WIDTH}
    found = {}
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        for name, module in CONSUMER.items():
            fires = f"{block}.{name}" in trains
            macs = BATCH * queries * widths[name] * FAN_OUT[name]
            found[f"{block}.{module}", "linear", 0] = macs, count(layer, name) * FAN_OUT[name] if fires else 0
        if f"{block}.query" in trains:
            macs = BATCH * HEADS * queries * LENGTH * FEATURES
            scores = count(layer, "query") * LENGTH + count(layer, "key", all_tokens=True) * queries
            values = count(layer, "probabilities") * FEATURES + count(layer, "value", all_tokens=True) * queries
            found[f"{block}.attn", "attention", 0] = macs, scores
            found[f"{block}.attn", "attention", 1] = macs, values
    found["lm_head", "linear", 0] = BATCH * queries * WIDTH * VOCAB, 0
    return found


def found_products(statement: Statement) -> dict[tuple[str, str, int], tuple[int, int]]:
    seen: dict[tuple[str, str], int] = {}
    found = {}
    for product in statement.products:
        key = product.module, product.kind
        found[*key, seen.get(key, 0)] = product.macs, product.accumulates
        seen[key] = seen.get(key, 0) + 1
    return found


@pytest.mark.parametrize("coverage", tiny.COVERAGES)
@times
@codings
def test_gpt2_of_two_layers(coverage: str, coding: str, timesteps: int) -> None:
    x = tokens()
    model = converted(gpt2(), x, coverage, timesteps=timesteps, **CODINGS[coding])
    trains = EventExecutor(model)(**x).spikes
    found = ledger(model, x, decode=True)
    assert found.decode is not None
    for statement, last in ((found.forward, False), (found.decode, True)):
        assert found_products(statement) == expected_products(trains, last)
        assert statement.unknown == {}
        assert statement.notes == []
        spiking = {key for key, (_, accumulates) in expected_products(trains, last).items() if accumulates}
        macs = {key: value[0] for key, value in expected_products(trains, last).items()}
        assert statement.macs_replaced >= sum(macs[key] for key in spiking)
        times_of = {(p.module, p.kind): p.times for p in statement.products}
        assert times_of.pop(("lm_head", "linear")) == 1
        assert set(times_of.values()) == {timesteps}
    spikes = {name: int(train.count_nonzero()) for name, train in trains.items()}
    assert found.forward.spikes == sum(spikes.values())
    for site in found.forward.sites:
        assert round(site.spikes_per_neuron * site.neurons) == spikes[site.name]
        if site.kind == "input":
            assert site.updates == trains[site.name].numel()
        if coverage != "full":
            assert analog(statement) == expected_analog(coverage, timesteps, 1 if last else LENGTH)


def analog(statement: Statement) -> dict[tuple[str, str], tuple[float, int]]:
    return {(e.module, e.kind): (e.elements, e.times) for e in statement.operations if not e.sites}


def expected_analog(coverage: str, timesteps: int, queries: int) -> dict[tuple[str, str], tuple[float, int]]:
    """Values and evaluations of everything that is no product: GELU is gone, a site stands in for it; the norms are there."""
    values = BATCH * queries * WIDTH
    scores, rows = BATCH * HEADS * queries * LENGTH, BATCH * HEADS * queries
    mask = timesteps * BATCH * queries * LENGTH  # made once, for the rows of all timesteps
    norms = [f"transformer.h.{layer}.ln_{n}" for layer in range(LAYERS) for n in (1, 2)] + ["transformer.ln_f"]
    found: dict[tuple[str, str], tuple[float, int]] = {(norm, "norm"): (values, timesteps) for norm in norms}
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        found[block, "elementwise"] = 2 * values, timesteps  # residual sums
        if coverage == "attention":
            # scaling, mask, difference to the largest, sign, exponential, hiding, share of each; smallest sum and
            # reciprocal of a row; share of each output; which are visible
            found[f"{block}.attn", "elementwise"] = 7 * scores + 2 * rows + values + mask, timesteps
            found[f"{block}.attn", "reduction"] = scores, timesteps  # the largest of a row
        else:
            found[f"{block}.attn", "attention"] = values, timesteps
    found["transformer.wte", "embedding"] = values, timesteps
    found["transformer.wpe", "embedding"] = queries * WIDTH, 1  # positions have no timesteps
    found["transformer", "elementwise"] = values + (mask if coverage == "attention" else 0), timesteps
    return found


def test_an_ann_has_a_ledger_too() -> None:
    found = ledger(gpt2(), tokens(), decode=True)
    block = BATCH * LENGTH * (3 + 1 + 4 + 4) * WIDTH**2
    attention = 2 * BATCH * HEADS * LENGTH**2 * FEATURES
    head = BATCH * LENGTH * WIDTH * VOCAB
    assert found.forward.macs == LAYERS * (block + attention) + head
    assert found.forward.macs_replaced == 0
    assert found.forward.sites == []
    assert set(found.forward.energy.picojoules) == {"ann_fp32", "ann_fp16", "ann_int8"}
    assert "no spikes" in found.headline
    assert found.decode is not None
    assert found.decode.macs * LENGTH == LAYERS * (block + attention) + head


@pytest.mark.parametrize("coverage", tiny.COVERAGES)
def test_the_anns_work_is_read_from_the_spiking_run(coverage: str) -> None:
    """Counted in folded time and divided, MACs, look-ups, norms and activations are those of the original model."""
    x = tokens()
    plain, spiking = ledger(gpt2(), x).forward, ledger(converted(gpt2(), x, coverage), x).forward
    assert spiking.macs == plain.macs

    def arithmetic(statement: Statement) -> dict[str, float]:
        return statement.energy.picojoules["ann_fp32"]

    # attention by FAS's function is a few additions a score away from the fused one
    allowed = 1e-9 if coverage in ("ffn", "linear") else 0.03
    for column in ("fp32 proxy", "same precision"):
        assert arithmetic(spiking)[column] == pytest.approx(arithmetic(plain)[column], rel=allowed)


def test_the_model_is_left_as_it_was() -> None:
    x = tokens()
    model = converted(gpt2(), x, "full").train()
    before = {name: list(m._forward_pre_hooks) + list(m._forward_hooks) for name, m in model.named_modules()}
    hooks = {name: [*m._forward_pre_hooks.values(), *m._forward_hooks.values()] for name, m in model.named_modules()}
    with torch.no_grad():
        expected = model.eval()(**x).logits
    model.train()
    first, second = ledger(model, x), ledger(model, x)
    assert first.to_dict() == second.to_dict()
    assert model.training
    assert clock_of(model).probe is None
    for name, module in model.named_modules():
        assert list(module._forward_pre_hooks) + list(module._forward_hooks) == before[name]
        assert [*module._forward_pre_hooks.values(), *module._forward_hooks.values()] == hooks[name]
    with torch.no_grad():
        assert torch.equal(model.eval()(**x).logits, expected)


def test_an_error_in_a_neuron_leaves_later_ledgers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(gpt2(), tokens(), "full")
    before = asdict(ledger(model, tokens()).forward)
    with monkeypatch.context() as patch:
        patch.setattr(Site, "over_time", lambda site, x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ledger(model, tokens())
    assert asdict(ledger(model, tokens()).forward) == before


def test_an_error_in_the_model_leaves_it_as_it_was() -> None:
    model = converted(gpt2(), tokens(), "linear")
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())

    def fails(*_: object) -> None:
        raise IndexError

    broken = next(reversed(list(model.modules()))).register_forward_hook(fails)
    with pytest.raises(IndexError):
        ledger(model, tokens())
    broken.remove()
    assert hooks == sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    assert clock_of(model).probe is None
    assert ledger(model, tokens()).forward.notes == []


def told_as_trains(site: GroupSite, held: Held, visible: Tensor | None) -> None:
    """In place of `GroupSite.tell_held`: the spikes themselves."""
    site.tell(held.spikes(), visible)


@pytest.mark.parametrize("masked", [False, True])
def test_neurons_that_say_what_they_hold_are_counted_as_their_trains(
    monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    x = tokens()
    if masked:
        x["attention_mask"] = torch.ones_like(x["input_ids"])
        x["attention_mask"][1, :2] = 0
    model = converted(gpt2(), tokens(), "full", timesteps=5)
    short = ledger(model, x).forward
    assert any(site.kind == "norm" and site.spikes_per_neuron > 0 for site in short.sites)
    monkeypatch.setattr(GroupSite, "tell_held", told_as_trains)
    assert asdict(ledger(model, x).forward) == asdict(short)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize(
    ("coverage", "site"), [("linear", "ffn_input"), ("full", "exponential"), ("full", "norm_input")]
)
def test_what_is_not_the_sum_of_its_spikes_is_not_called_spikes(
    monkeypatch: pytest.MonkeyPatch, coverage: str, site: str, trains: bool
) -> None:
    """A site that hands on something else than it tells is found out, and its consumers are charged as analog."""
    x = tokens()
    model = converted(gpt2(), x, coverage, timesteps=4)
    honest = ledger(model, x).forward

    def lie(name: str, spikes: Tensor) -> Tensor:
        if not name.endswith((f"h.0.{site}", f"h.0.ln_1.{site}")):
            return spikes
        return torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])

    tell = Site.tell
    monkeypatch.setattr(Site, "tell", lambda site, spikes, visible: tell(site, lie(site.name, spikes), visible))
    tell_held = told_as_trains if trains else GroupSite.tell_held

    def lie_held(site: GroupSite, held: Held, visible: Tensor | None) -> None:
        tell_held(site, held if trains else replace(held, numbers=lie(site.name, held.numbers)), visible)

    monkeypatch.setattr(GroupSite, "tell_held", lie_held)
    found = ledger(model, x).forward
    assert len(found.notes) == 1
    assert site in found.notes[0]
    assert "is not the sum of its spikes" in found.notes[0]
    if site == "ffn_input":
        product = by_module(found)["transformer.h.0.mlp.c_fc", "linear"]
        assert (product.accumulates, product.sites, product.times) == (0, [], 4)
        lost = by_module(honest)["transformer.h.0.mlp.c_fc", "linear"].macs
        assert found.macs_replaced == honest.macs_replaced - lost
        assert found.macs_analog_executed == honest.macs_analog_executed + 4 * lost


def test_several_neurons_a_channel() -> None:
    x = tokens()
    model = converted(gpt2(), x, "attention", timesteps=3, neurons_per_channel=2)
    trains = EventExecutor(model)(**x).spikes
    found = ledger(model, x, decode=True)
    assert found.decode is not None
    assert found_products(found.forward) == expected_products(trains, last=False)
    assert found_products(found.decode) == expected_products(trains, last=True)
    entry = next(site for site in found.forward.sites if site.name.endswith("h.0.ffn_input"))
    assert (entry.channels, entry.updates) == (WIDTH, BATCH * LENGTH * WIDTH * 2 * 3)


def test_layerwise_spikes_are_the_counts_of_the_qcfs_model() -> None:
    x = tokens()
    model = converted(gpt2(), x, "linear", schedule="layerwise", timesteps=LEVELS)
    trains = {name: train.to(torch.int8) for name, train in spikes_of(model, **x).items()}
    found = ledger(model, x).forward
    assert found_products(found) == expected_products(trains, last=False)
    assert {product.times for product in found.products} == {1}
    assert found.macs_analog_executed < found.macs


def test_a_settled_cache_replays_no_spikes() -> None:
    x = tokens()
    exact = converted(gpt2(), x, "attention", timesteps=4)
    settled = converted(gpt2(), x, "attention", timesteps=4, cache="settled")
    replayed, stored = ledger(exact, x, decode=True).decode, ledger(settled, x, decode=True).decode
    assert replayed is not None and stored is not None  # noqa: PT018
    entries = {site.name: site for site in stored.sites}
    for site in replayed.sites:
        if site.name.endswith((".key", ".value")):
            assert site.updates == BATCH * LENGTH * WIDTH * 4
            assert entries[site.name].updates == BATCH * WIDTH * 4  # the new token's alone
    assert stored.accumulates < replayed.accumulates
    assert stored.notes == []


def test_what_cannot_be_decoded_is_refused() -> None:
    with pytest.raises(DataError, match="one decoding step needs a generative model and input_ids of at least two"):
        ledger(gpt2(), {"input_ids": torch.ones(1, 1, dtype=torch.long)}, decode=True)


def check_family(model: PreTrainedModel, inputs: dict[str, Tensor], decode: bool = False) -> Ledger:
    """All sites ran, what fired was accumulated, every operation is known, every site's rows were its spikes."""
    found = ledger(model, inputs, decode=decode)
    for statement in (found.forward, *((found.decode,) if found.decode is not None else ())):
        assert statement.unknown == {}
        assert statement.notes == []
        for site in statement.sites:
            assert site.updates > 0
            fed = site.kind in ("input", "operand", "cross", "group")
            if clock_of(model).config.rows == "step" and site.name.endswith(("key", "value")):
                fed = False  # of the product of two single spikes one gates the other
            assert site.accumulates > 0 or not (fed and site.spikes_per_neuron > 0), site.name
    assert {site.name for site in found.forward.sites} == set(sites_of(model))
    return found


@pytest.mark.parametrize("family", tiny.DECODERS | tiny.ENCODERS)
@pytest.mark.parametrize("coverage", ["linear", "full"])
def test_every_family_is_accounted_for(family: str, coverage: str) -> None:
    model = tiny.snn(family, coverage, timesteps=3)
    check_family(model, tiny.inputs_for(model), decode=model.can_generate())


@pytest.mark.parametrize("coverage", ["linear", "full"])
@pytest.mark.parametrize("name", tiny_vl.MODELS)
def test_every_vision_language_family_is_accounted_for(name: str, coverage: str) -> None:
    check_family(tiny_vl.snn(name, coverage, timesteps=3), tiny_vl.batch(name))


@pytest.mark.slow
@pytest.mark.parametrize("coding", CONTRACT_CODINGS)
@pytest.mark.parametrize("coverage", tiny.COVERAGES)
@pytest.mark.parametrize("family", tiny.DECODERS | tiny.ENCODERS)
def test_every_family_in_every_coding(family: str, coverage: str, coding: str) -> None:
    model = tiny.snn(family, coverage, **CONTRACT_CODINGS[coding])
    check_family(model, tiny.inputs_for(model), decode=model.can_generate())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_still_recognised(dtype: torch.dtype) -> None:
    model = tiny.snn("llama", "full", timesteps=4).to(dtype)
    check_family(model, tiny.inputs_for(model), decode=True)
