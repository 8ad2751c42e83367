"""A converted model is an ordinary model of transformers: saved, loaded, generated with, trained, copied, compiled."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import CODINGS
from safetensors.torch import load_file, save_file
from tiny import COVERAGES, FAMILIES, FIRST, VOCAB, exact, qcfs_model, snn, tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from fas.conversion import describe
from fas.errors import CheckpointError, FasError
from fas.models import find_segments
from fas.neurons import Site
from fas.runtime.control import as_qcfs, at_time, clock_of, sites_of
from fas.runtime.hooks import SiteHook


def table() -> list[Any]:
    """Family × coverage × coding: whole for the first families, pairwise for the others, the rest of those as slow."""
    codings, rows = list(CODINGS), []
    for index, family in enumerate(FAMILIES):
        for c, coverage in enumerate(COVERAGES):
            for k, coding in enumerate(codings):
                pairwise = family in FIRST or (index + c) % len(codings) == k
                rows.append(pytest.param(family, coverage, coding, marks=() if pairwise else pytest.mark.slow))
    return rows


every = pytest.mark.parametrize(("family", "coverage", "coding"), table())


def logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def spikes_of(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    clock, spikes = clock_of(model), {}
    clock.probe = lambda name, train: spikes.__setitem__(name, train.clone())
    logits(model, input_ids=ids)
    clock.probe = None
    return spikes


def calibrated(model: PreTrainedModel) -> PreTrainedModel:
    """Neuron parameters as a calibration would store them, for the model's coding and time."""
    generator = torch.Generator().manual_seed(3)
    for site in filter(lambda site: site.calibrates, sites_of(model).values()):
        neurons = site.add_parameters(clock_of(model).config.neuron_key)
        neurons.log_threshold.data += 0.2 * torch.randn(site.width, generator=generator)
        neurons.v_init.data = 0.2 + 0.6 * torch.rand(site.width, generator=generator)
    describe(model)
    return model


# Saving and loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every
def test_loaded_model_is_bit_identical(
    family: str, coverage: str, coding: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = calibrated(snn(family, coverage, **CODINGS[coding]))
    if dtype != torch.float32:  # by loading: `.to` would round LLaMA's rotary frequencies too, which are never saved
        model.save_pretrained(tmp_path / "fp32")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "fp32", dtype=dtype)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.dtype == dtype
    assert {p.dtype for s in sites_of(loaded).values() for p in s.state_dict().values()} == {torch.float32}
    assert clock_of(loaded).config == clock_of(model).config
    for batch, length in ((1, 1), (1, 5), (3, 7)):
        ids = tokens(batch, length)
        assert torch.equal(logits(loaded, input_ids=ids), logits(model, input_ids=ids))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("family", ["gpt2", "opt", "opt_projected"])
def test_neurons_stay_fp32_whatever_the_model_becomes(family: str, tmp_path: Path) -> None:
    model = calibrated(snn(family))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model.to(torch.bfloat16)
    assert torch.equal(logits(model, input_ids=tokens()), logits(loaded, input_ids=tokens()))
    for other in (model.half(), model.double(), model.to("cpu", torch.bfloat16)):
        assert {value.dtype for site in sites_of(other).values() for value in site.state_dict().values()} == {
            torch.float32
        }


@pytest.mark.parametrize("family", FAMILIES)
def test_qcfs_model_and_inner_model_load(family: str, tmp_path: Path) -> None:
    model = qcfs_model(family)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert clock_of(loaded).stage == "qcfs"
    assert torch.equal(logits(loaded, input_ids=tokens()), logits(model, input_ids=tokens()))
    inner = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        hidden = model(input_ids=tokens(), output_hidden_states=True).hidden_states[-1]
        assert torch.equal(inner(input_ids=tokens()).last_hidden_state, hidden)


def damaged(folder: Path, change: Any) -> Path:
    """A saved, calibrated model after ``change`` of its tensors and its configuration, without manifest as of FAS 0.1."""
    calibrated(snn("gpt2")).save_pretrained(folder)
    (folder / "fas_manifest.json").unlink()
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["digest"]
    change(tensors, config["quantization_config"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


SITE = "transformer.h.1.sites.ffn_input."
NEURONS = SITE + "neurons.sigma_delta_4_2_2_1."


@pytest.mark.parametrize(
    "name", [SITE + "log_scale", *(NEURONS + n for n in ("log_threshold", "v_init", "a_init", "dead_zone"))]
)
@pytest.mark.parametrize("damage", ["missing", "nan", "inf"])
def test_damaged_neuron_parameters_are_refused_by_name(name: str, damage: str, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
        if damage == "missing":
            del tensors[name]
        else:
            tensors[name][2] = float(damage)

    with pytest.raises(CheckpointError, match=name.rsplit(".", 1)[-1]) as caught:
        AutoModelForCausalLM.from_pretrained(damaged(tmp_path, change))
    assert "transformer.h.1" in str(caught.value)
    assert "ffn_input" in str(caught.value)


@pytest.mark.parametrize("zone", [-0.1, 0.6])
def test_a_dead_zone_beyond_half_a_step_is_refused(zone: float, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
        tensors[NEURONS + "dead_zone"][1] = zone

    with pytest.raises(CheckpointError, match=r"dead zones between 0 and \.5; wrong in .*ffn_input.*dead_zone"):
        AutoModelForCausalLM.from_pretrained(damaged(tmp_path, change))


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("spiking", {"version": 2}, "format version 2"),
        ("stage", "ann", "stage is 'ann'"),
        ("future", 1, r"describes \['future'\]"),
        (
            "sites",
            {"transformer.h.0.ffn_input": 32},
            "neuron parameters of sites that its config.json does not describe",
        ),
    ],
)
def test_foreign_descriptions_are_refused(entry: str, value: Any, message: str, tmp_path: Path) -> None:
    folder = damaged(tmp_path, lambda tensors, description: description.__setitem__(entry, value))
    with pytest.raises(CheckpointError, match=message):
        AutoModelForCausalLM.from_pretrained(folder)


# Generation

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
}


def generate(model: PreTrainedModel, seed: int = 0, **settings: Any) -> Tensor:
    """Six new tokens after three prompts, of which one is padded on the left."""
    ids, mask = tokens(3, 5), torch.ones(3, 5, dtype=torch.long)
    ids[1, :2], mask[1, :2] = 2, 0
    torch.manual_seed(seed)
    return model.generate(ids, attention_mask=mask, max_new_tokens=6, **settings)


@pytest.mark.parametrize("strategy", STRATEGIES)
@every
def test_cached_generation_equals_uncached(family: str, coverage: str, coding: str, strategy: str) -> None:
    model = exact(snn(family, coverage, **CODINGS[coding]))
    cached = generate(model, **STRATEGIES[strategy])
    assert cached.shape[1] == 11
    assert torch.equal(cached, generate(model, use_cache=False, **STRATEGIES[strategy]))
    if strategy == "sampling":
        assert torch.equal(cached, generate(model, **STRATEGIES[strategy])), "same seed, same result"


def test_sampling_depends_on_the_seed() -> None:
    model = snn("gpt2")
    assert not torch.equal(generate(model, 0, **STRATEGIES["sampling"]), generate(model, 1, **STRATEGIES["sampling"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_real_token(family: str) -> None:
    model = exact(snn(family))
    ids = tokens(1, 5)
    padded = torch.cat([torch.full((1, 3), 2), ids], 1)
    mask = (torch.arange(8) >= 3).long()[None]
    alone = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(
        model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False)[:, 8:], alone[:, 5:]
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("coding", CODINGS)
def test_caches_hold_the_rows_they_promise(family: str, coding: str) -> None:
    model = snn(family, **CODINGS[coding])
    timesteps = CODINGS[coding]["timesteps"]
    for kind, rows in (("exact", 3 * timesteps), ("settled", 3)):
        model.set_timesteps(cache=kind)
        with torch.no_grad():
            cache = model(input_ids=tokens(), use_cache=True).past_key_values
            model(input_ids=tokens(3, 1), past_key_values=cache)
        assert {layer.keys.shape[0] for layer in cache.layers} == {rows}
        windows = [layer.sliding_window - 1 if layer.is_sliding else 8 for layer in cache.layers]
        assert [layer.keys.shape[2] for layer in cache.layers] == windows
        for strategy in STRATEGIES.values() if kind == "settled" else ():  # the exact one equals what no cache gives
            assert generate(model, **strategy).shape[1] == 11
    model.set_timesteps(1, cache="exact")
    exact = generate(model, do_sample=False)
    model.set_timesteps(cache="settled")
    assert torch.equal(generate(model, do_sample=False), exact), "with one timestep there is nothing to leave out"


def test_a_cache_of_another_time_is_refused() -> None:
    model = snn("llama")

    def fill() -> Any:
        return model(input_ids=tokens(), use_cache=True).past_key_values

    def read(cache: Any) -> Tensor:
        return logits(model, input_ids=tokens(3, 1), past_key_values=cache)

    with torch.no_grad():
        cache = fill()
        for change in ({"timesteps": 6}, {"coding": "rate"}, {"cache": "settled"}):
            with (
                at_time(model, **change),
                pytest.raises(FasError, match="filled with exact in sigma_delta_4_2_2_1 and"),
            ):
                read(cache)
        read(cache)
        with as_qcfs(model):
            cache = fill()
        with pytest.raises(FasError, match="filled with values without time and is now read as exact"):
            read(cache)


# Time


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_layerwise_equals_the_qcfs_model_bit_by_bit(family: str, coverage: str) -> None:
    model = snn(family, coverage, levels=5)
    with as_qcfs(model):
        expected = logits(model, input_ids=tokens())
    with at_time(model, timesteps=5, schedule="layerwise"):
        assert torch.equal(logits(model, input_ids=tokens()), expected)
        sites = sites_of(model)
        assert all(len(train) == sites[name].levels for name, train in spikes_of(model, tokens()).items())
        assert {site.levels for site in sites.values() if site.kind == "input"} == {5}, "operators have their own"
    model.set_timesteps(2)
    assert not torch.equal(logits(model, input_ids=tokens()), expected)


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_settled_sigma_delta_equals_the_qcfs_model(family: str, coverage: str) -> None:
    model = snn(family, coverage).double()
    with as_qcfs(model):
        expected = logits(model, input_ids=tokens())
    with at_time(model, timesteps=8, schedule="layerwise"):
        codes = {name: train.sum(0) for name, train in spikes_of(model, tokens()).items()}
    steps = 8 * len(codes)  # each site settles at most L steps after the ones before it
    model.set_timesteps(steps, steps=(1,) * steps)
    for name, train in spikes_of(model, tokens()).items():
        assert torch.equal(train.sum(0).reshape(codes[name].shape), codes[name]), name
    torch.testing.assert_close(logits(model, input_ids=tokens()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 3])
@every
def test_rows_of_a_batch_do_not_meet(family: str, coverage: str, coding: str, batch: int) -> None:
    model = snn(family, coverage, **CODINGS[coding]).double()
    ids = tokens(batch, 5)
    together = logits(model, input_ids=ids)
    assert together.shape == (batch, 5, VOCAB)
    for row in range(batch):
        torch.testing.assert_close(together[row : row + 1], logits(model, input_ids=ids[row : row + 1]))
    prefix = logits(model, input_ids=ids[:, :3])
    torch.testing.assert_close(together[:, :3], prefix)  # and no token sees a later one


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_have_the_rows_of_the_batch(family: str) -> None:
    model, ids = snn(family), tokens()
    with torch.no_grad():
        out = model(input_ids=ids, labels=ids, output_hidden_states=True)
        flat = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        assert torch.equal(model(input_ids=ids, return_dict=False)[0], out.logits)
        assert torch.equal(model(ids).logits, out.logits), "by position"
        assert torch.equal(model(input_ids=ids, logits_to_keep=2).logits, out.logits[:, -2:])
        embedded = model(inputs_embeds=model.get_input_embeddings()(ids))
    torch.testing.assert_close(out.loss, flat)
    assert {value.shape[0] for value in out.hidden_states} == {3}
    torch.testing.assert_close(embedded.logits, out.logits)


def test_depth_does_not_leak_after_an_exception() -> None:
    model = snn("gpt2")
    expected = logits(model, input_ids=tokens())
    with pytest.raises(IndexError):
        model(input_ids=tokens() + VOCAB)
    assert clock_of(model).depth == 0
    with pytest.raises(FasError, match="outside a folded segment"):
        model.transformer.h[0](torch.zeros(4, 5, 32))
    assert torch.equal(logits(model, input_ids=tokens()), expected)


def test_site_outside_a_segment_is_refused_by_name() -> None:
    for family, layers in (("gpt2", "transformer.h"), ("opt", "model.decoder.layers")):
        model = snn(family)
        with pytest.raises(FasError, match=f"site {layers}.0.attention_input was reached outside a folded segment"):
            model.get_submodule(layers)[0](torch.zeros(4, 5, 32))
        model.set_timesteps(8, schedule="layerwise")  # without time there is nothing to fold
        model.get_submodule(layers)[0](torch.zeros(4, 5, 32))


def test_unknown_tensor_argument_is_refused_by_name() -> None:
    with pytest.raises(FasError, match="GPT2Model got the tensor argument 'encoder_hidden_states'"):
        snn("gpt2")(input_ids=tokens(), encoder_hidden_states=torch.zeros(3, 2, 32))
    model = snn("llama")
    with pytest.raises(FasError, match="LlamaModel got the tensor argument 'cu_seq_lens_q'"):
        model(input_ids=tokens(), cu_seq_lens_q=torch.tensor([0, 3, 7]))
    with pytest.raises(FasError, match="attention_mask has 2 rows where the batch has 3"):
        model(input_ids=tokens(), attention_mask=torch.ones(2, 7))
    assert clock_of(model).depth == 0


def test_set_timesteps_is_remembered_and_says_when_nothing_is_calibrated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = calibrated(snn("gpt2"))
    model.set_timesteps(6)
    assert "no calibrated neurons for sigma_delta_4_2_2_1_1_1" in caplog.text
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert clock_of(loaded).config.timesteps == 6
    loaded.set_timesteps(4)
    model.set_timesteps(4)
    assert torch.equal(logits(loaded, input_ids=tokens()), logits(model, input_ids=tokens()))
    with pytest.raises(FasError, match="belong to Stage 1"):
        model.set_timesteps(levels=4)
    assert clock_of(model).config.levels == 8


# Copies


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_are_independent(family: str) -> None:
    model = snn(family)
    expected = logits(model, input_ids=tokens())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, input_ids=tokens()), expected)
        other.set_timesteps(2)
        assert other.config.quantization_config.spiking["timesteps"] == 2
        assert model.config.quantization_config.spiking["timesteps"] == 4
        shorter = logits(other, input_ids=tokens())
        assert not torch.equal(shorter, expected)
        for site in sites_of(other).values():
            site.log_scale.data += 0.5
        assert not torch.equal(logits(other, input_ids=tokens()), shorter), "hooks act on the copy's own sites"
        assert torch.equal(logits(model, input_ids=tokens()), expected), "and not on the original's"


def test_hooks_survive_a_pickle_read_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process counts hooks from 0 again; a hook registered there must not replace one of the pickled model."""
    model = snn("llama")
    expected = logits(model, input_ids=tokens())
    for part, path in ((model, "model.layers.0.self_attn.q_proj"), (model.model.layers[0], "self_attn.q_proj")):
        data = pickle.dumps(part)
        monkeypatch.setattr(RemovableHandle, "next_id", 0)
        loaded = pickle.loads(data)
        linear = loaded.get_submodule(path)
        for _ in range(max(linear._forward_pre_hooks) + 1):
            linear.register_forward_pre_hook(lambda module, args: None)
        assert isinstance(next(iter(linear._forward_pre_hooks.values())), SiteHook)
        monkeypatch.undo()
        if part is model:
            assert torch.equal(logits(loaded, input_ids=tokens()), expected)


# Transformers' tools


def test_pipeline_generates_text() -> None:
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w2", eos_token="w1", padding_side="left")
    for family in ("gpt2", "opt", "llama"):
        model = snn(family)
        generator = pipeline("text-generation", model=model, tokenizer=fast, device="cpu")
        settings = {"max_new_tokens": 4, "do_sample": False}
        texts = generator(["w5 w6 w7", "w8"], batch_size=2, return_full_text=False, **settings)
        for text, prompt in zip(texts, ([5, 6, 7], [8]), strict=True):
            new = model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
            assert text[0]["generated_text"].split() == [f"w{i}" for i in new if i > 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_trainer_evaluates(family: str, tmp_path: Path) -> None:
    model = snn(family)
    data = [{"input_ids": row, "labels": row} for row in tokens(5, 6)]
    arguments = TrainingArguments(
        tmp_path, per_device_eval_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True, label_names=["labels"]
    )
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    results = [Trainer(m, arguments).predict(data) for m in (model, loaded)]
    for result in results:
        predicted = torch.from_numpy(result.predictions)
        torch.testing.assert_close(predicted, logits(model, input_ids=tokens(5, 6)), rtol=1e-4, atol=1e-4)
    evaluated = [Trainer(m, arguments, eval_dataset=data).evaluate()["eval_loss"] for m in (model, loaded)]
    assert evaluated[0] == evaluated[1] == pytest.approx(results[0].metrics["test_loss"])


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_flow_through_folded_time(coding: str, checkpointing: bool) -> None:
    model = calibrated(snn("llama", **CODINGS[coding]))
    expected = model(input_ids=tokens(), labels=tokens()).loss.item()
    model.train()
    if checkpointing:
        # transformers renamed it after 5.15
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    loss = model(input_ids=tokens(), labels=tokens()).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5), "no dropout where time is folded"
    loss.backward()
    for name, parameter in model.named_parameters():
        if "neurons" in name or "q_proj" in name:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name
    assert clock_of(model).depth == 0
    assert not any(site._memo for site in model.modules() if isinstance(site, Site))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_compiles_without_graph_breaks(family: str) -> None:
    torch._dynamo.reset()
    model = snn(family)
    expected = logits(model, input_ids=tokens())
    segment = find_segments(model)[0]
    for module in segment.module.modules():
        if type(module).__name__ == segment.family.block:
            module.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        out = model(input_ids=tokens(), use_cache=False).logits
    torch.testing.assert_close(out, expected)
    torch._dynamo.reset()
