"""A prefix in front of every sequence: equal to its tokens in front, in every family, cache, coverage and executor."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from contract import STRATEGIES, check_events, check_reload, out
from torch import Tensor

import fas
from fas.config import SpikingConfig
from fas.conversion import massive
from fas.conversion.massive import measure_massive
from fas.conversion.prefix_search import find_prefix, give_prefix
from fas.errors import ConfigError, FasError
from fas.models import find_segments, planned
from fas.neurons.native import kernels
from fas.progress import Silent
from fas.runtime.control import at_time, clock_of
from fas.runtime.prefix import prefix_of, remove_prefix

TOKENS = (5, 11, 7)
FAMILIES = [family for family in tiny.FAMILIES if family not in ("mistral", "gemma2", "gemma3")]
"""Those without a sliding window, in which tokens that stand in front go out of sight and the prefix does not."""


def prefixed(family: str, **settings: Any) -> tuple[Any, dict[str, Tensor]]:
    ann = tiny.ann(family, **settings)
    batch = {"input_ids": torch.randint(3, tiny.VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))}
    give_prefix(ann, find_segments(ann)[0], TOKENS)
    return ann, batch


def converted(family: str, prefix: tuple[int, ...] = TOKENS, coverage: Any = "linear", **time: Any) -> tuple[Any, Any]:
    ann = tiny.ann(family)
    batch = {"input_ids": torch.randint(3, tiny.VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))}
    config = SpikingConfig(coverage=coverage, levels=8, timesteps=4, prefix=prefix, **time)
    return fas.convert(fas.prepare(ann, config, [batch])).eval(), batch


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_its_tokens_in_front(family: str, implementation: str) -> None:
    ann, batch = prefixed(family)
    plain = tiny.ann(family)
    for model in (ann, plain):
        model.set_attn_implementation(implementation)
    ids = batch["input_ids"]
    behind = torch.cat([torch.tensor([TOKENS]).expand(len(ids), -1), ids], 1)
    wanted = out(plain, input_ids=behind)[:, len(TOKENS) :]
    assert torch.allclose(out(ann, **batch), wanted, atol=2e-5)
    assert not torch.allclose(out(plain, **batch), wanted, atol=1e-2)  # it matters


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_without_it_the_ann_is_as_it_came(family: str) -> None:
    ann, batch = prefixed(family)
    remove_prefix(find_segments(ann)[0])
    assert torch.equal(out(ann, **batch), out(tiny.ann(family), **batch))
    assert all(prefix_of(module) is None for module in ann.modules())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_padding_and_caches(family: str) -> None:
    """Left-padded rows give what they give alone; a cache gives what the whole sequence gives."""
    ann, batch = prefixed(family)
    ids = batch["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = out(ann, input_ids=ids, attention_mask=mask, position_ids=positions)
    assert torch.allclose(padded[0, 4:], out(ann, input_ids=ids[:1, 4:])[0], atol=2e-5)
    with torch.no_grad():
        first = ann(input_ids=ids[:, :5], use_cache=True)
        rest = ann(input_ids=ids[:, 5:], past_key_values=first.past_key_values)
    assert first.past_key_values.get_seq_length() == ids.shape[1]
    assert torch.allclose(rest.logits, out(ann, **batch)[:, 5:], atol=2e-5)


@pytest.mark.parametrize("coverage", tiny.COVERAGES)
@pytest.mark.parametrize("family", tiny.FIRST)
def test_spiking_models_keep_it(family: str, coverage: Any, tmp_path: Path) -> None:
    """Saved, loaded, copied and pickled; folded and event runs agree in every spike; generation with and without a cache."""
    snn, batch = converted(family, coverage=coverage)
    assert clock_of(snn).config.prefix == TOKENS
    loaded = check_reload(snn, batch, tmp_path)
    assert clock_of(loaded).config.prefix == TOKENS
    wanted = out(snn, **batch)
    assert torch.equal(out(copy.deepcopy(snn), **batch), wanted)
    assert torch.equal(out(pickle.loads(pickle.dumps(snn)), **batch), wanted)
    check_events(snn.double(), batch)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("cache", ["exact", "settled"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_generation(family: str, cache: Any, strategy: str) -> None:
    """Batched, left-padded generation; of the exact cache the same as without one; accelerated the same."""
    snn, batch = converted(family)
    ids = batch["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 5, **STRATEGIES[strategy]}

    def written(**more: Any) -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return snn.generate(ids, **settings, **more)  # type: ignore[no-any-return]

    with at_time(snn, cache=cache):
        cached = written()
        if cache == "exact":
            assert torch.equal(cached, written(use_cache=False))
        if kernels.takes(torch.zeros(1)):
            with fas.accelerated(snn):
                assert torch.equal(written(), cached)


def test_it_trains_and_counts(tmp_path: Path) -> None:
    """Gradients reach its constants, also where blocks are recomputed; the ledger counts its products."""
    ann, batch = tiny.ann("llama"), converted("llama")[1]
    config = SpikingConfig(levels=8, timesteps=4, prefix=TOKENS)
    model = fas.prepare(ann, config, [batch]).train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    gradients = [p.grad.clone() for name, p in model.named_parameters() if ".prefix." in name]
    assert len(gradients) == 4
    assert all(bool(gradient.any()) for gradient in gradients)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    again = [p.grad for name, p in model.named_parameters() if ".prefix." in name]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, again, strict=True))
    with_it, without = (fas.ledger(converted("llama", prefix)[0], batch) for prefix in (TOKENS, ()))
    more = with_it.forward.macs - without.forward.macs
    heads, features, layers = 4, 8, 2
    assert more == 2 * layers * batch["input_ids"].numel() * heads * features * len(TOKENS)  # scores and values


def test_what_cannot_have_one_is_refused() -> None:
    batch = {"input_ids": torch.arange(3, 12)[None]}
    with pytest.raises(ConfigError, match=r"prefix=\(5,\) is for causal decoders, and BertForMaskedLM has none"):
        fas.prepare(tiny.ann("bert_mlm"), SpikingConfig(prefix=(5,)), [batch])
    with pytest.raises(FasError, match=r"prefix \[970\] holds a token beyond the vocabulary of 97"):
        fas.prepare(tiny.ann("llama"), SpikingConfig(prefix=(970,)), [batch])
    snn, _ = converted("gpt2")
    with pytest.raises(FasError, match="needs 65 positions with the prefix of 3 tokens, and the model has 64"):
        out(snn, input_ids=torch.zeros(1, 62, dtype=torch.long))
    with pytest.raises(FasError, match="prefix belong to Stage 1"):
        snn.set_timesteps(prefix=(1,))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_no_model_gets_one_without_need(family: str) -> None:
    snn, _ = converted(family, prefix="auto")  # type: ignore[arg-type]
    assert clock_of(snn).config.prefix == ()
    assert all(prefix_of(module) is None for module in snn.modules())


def test_massive_tokens_are_found() -> None:
    """Token 9 drives one unit of the FFN a thousand times as far as any other; the report names it and its site."""
    ann = tiny.ann("llama", tie_word_embeddings=False)
    with torch.no_grad():
        direction = torch.nn.functional.normalize(ann.model.embed_tokens.weight[9], dim=0)
        ann.model.embed_tokens.weight[9] = 50 * direction
        for projection in (ann.model.layers[0].mlp.gate_proj, ann.model.layers[0].mlp.up_proj):
            projection.weight[3] = 40 * direction
    plan = planned(ann, SpikingConfig(activation="keep"))
    places = [place for _, inside in plan for place in inside]
    ids = torch.randint(10, tiny.VOCAB, (4, 16), generator=torch.Generator().manual_seed(0))
    quiet = measure_massive(ann, places, [{"input_ids": ids}])
    assert not quiet.is_massive
    ids[2, 6] = 9
    report = measure_massive(ann, places, [{"input_ids": ids}])
    assert report.is_massive
    assert (report.worst.name, report.worst.token, report.worst.first) == ("model.layers.0.ffn_hidden", 9, False)
    assert 9 in report.tokens
    padded = {"input_ids": ids, "attention_mask": (ids != 9).long()}
    assert not measure_massive(ann, places, [padded]).is_massive


class Heard(Silent):
    """The tries of a search."""

    def start(self, title: str, total: int | None = None) -> None:
        self.total, self.notes = total or 0, list[str]()

    def advance(self, parts: int = 1, note: str = "") -> None:
        self.notes.append(note)


def test_a_prefix_takes_over_what_only_the_first_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose first token alone is massive: with a prefix no token of the text is, and the search finds that."""
    ann = tiny.ann("gpt2")
    first = ann.transformer.h[0]
    with torch.no_grad():  # two channels that only the first position uses drive all units of the first FFN
        for table in (ann.transformer.wte.weight, ann.transformer.wpe.weight, first.attn.c_proj.weight):
            table[:, :2] = 0
        first.attn.c_proj.bias[:2] = 0
        first.ln_2.bias[:2] = 0
        ann.transformer.wpe.weight[0, :2] = torch.tensor([100.0, -100.0])
        first.mlp.c_fc.weight[:2] = torch.tensor([[3000.0], [-3000.0]])
    batches = [{"input_ids": torch.randint(3, tiny.VOCAB, (4, 16), generator=torch.Generator().manual_seed(0))}]
    plan = planned(ann, SpikingConfig(activation="keep"))
    ((segment, places),) = plan
    before = measure_massive(ann, places, batches)
    assert before.is_massive
    assert before.worst.first
    monkeypatch.setattr(massive, "_loss", lambda *_: 0.0)  # of a random model it means nothing
    heard = Heard()
    found = find_prefix(ann, segment, places, batches, SpikingConfig(), heard)
    assert found.tokens
    assert heard.notes[0].startswith("tokens (): largest ")
    assert sum(note.startswith(f"tokens {found.tokens}: largest ") for note in heard.notes) == 1
    assert len(found.tokens) + 1 < len(heard.notes) <= heard.total
    assert found.noise[-1] < found.noise[0] / 4
    give_prefix(ann, segment, found.tokens)
    assert measure_massive(ann, places, batches).worst.ratio < before.worst.ratio / 4
