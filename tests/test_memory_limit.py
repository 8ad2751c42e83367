"""A limit to the memory of activations: equal outputs, a peak below it, and clear words where it cannot be kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import pytest
import tiny
import tiny_vl
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPConfig, CLIPModel, GPT2LMHeadModel, PreTrainedModel
from transformers.cache_utils import Cache

import fas
from fas.cli import main
from fas.errors import ConfigError, FasError
from fas.runtime import rows
from fas.runtime.alive import traced
from fas.runtime.spikes import counting

T = {"timesteps": 4, "levels": 8}


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.no_grad():
        yield


def live(run: Callable[[], Any]) -> int:
    """The most bytes of tensors alive at once during ``run``, with all that is compiled."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def tight(model: nn.Module, inputs: dict[str, Any], at_once: int = 2) -> int:
    """The least limit under which ``at_once`` sequences of ``inputs`` run together."""
    with fas.memory_limit(model, "1 TB"):
        model(**inputs)
        ((_, need),) = next(iter(model.forward.needs.known.values()))
    return need.given * int(rows.rows_in(inputs) or 0) + at_once * need.peak


def in_chunks(model: nn.Module, inputs: dict[str, Any], limit: int | None = None) -> tuple[Any, list[int]]:
    """Output under a limit for two sequences, and how many sequences ran at a time (behind the one that is measured)."""
    limit, sizes = limit or tight(model, inputs), []
    with fas.memory_limit(model, limit):
        plain = model.forward.forward

        def forward(**kwargs: Any) -> Any:
            sizes.append(rows.rows_in(kwargs))
            return plain(**kwargs)

        model.forward.forward = forward
        return model(**inputs), sizes[1:]


def check_equal(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, Tensor):
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-6)
    elif isinstance(wanted, Cache):
        parts = ("self_attention_cache", "cross_attention_cache")
        pairs = [(getattr(found, part), getattr(wanted, part)) for part in parts if hasattr(wanted, part)]
        for left, right in pairs or [(found, wanted)]:
            for a, b in zip(left.layers, right.layers, strict=True):
                assert a._fas == b._fas
                check_equal((type(a), a.keys, a.values), (type(b), b.keys, b.values))
    elif hasattr(wanted, "items"):
        check_equal(tuple(found.items()), tuple(wanted.items()))
    elif isinstance(wanted, tuple | list):
        assert len(found) == len(wanted)
        for left, right in zip(found, wanted, strict=True):
            check_equal(left, right)


def check(model: PreTrainedModel, inputs: dict[str, Any], wanted: list[int]) -> None:
    whole = model(**inputs)
    found, sizes = in_chunks(model, inputs)
    assert sizes == wanted
    check_equal(found, whole)
    assert "forward" not in vars(model)


def padded(batch: int) -> dict[str, Tensor]:
    """Text with padding on the right, which is no label."""
    ids, mask = tiny.tokens(batch), torch.ones(batch, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@pytest.mark.parametrize("family", tiny.FIRST)
@pytest.mark.parametrize("time", [T, T | {"coding": "rate"}, T | {"schedule": "layerwise", "timesteps": 8}], ids=str)
def test_decoders_say_the_same_in_chunks(family: str, time: dict[str, Any]) -> None:
    model = tiny.exact(tiny.snn(family, **time))
    check(model, padded(5) | {"use_cache": False}, [1, 2, 2])  # 5 sequences in three parts
    with fas.runtime.control.as_qcfs(model):
        check(model, padded(4) | {"use_cache": False}, [2, 2])


@pytest.mark.parametrize("family", ["bert_mlm", "bert_sequence", "bert_choice", "modernbert_sequence", "vit_image"])
def test_encoders_say_the_same_in_chunks(family: str) -> None:
    model = tiny.exact(tiny.snn(family, **T))
    inputs = tiny.inputs_for(model, 4)
    labels = inputs["input_ids"].clone() if family == "bert_mlm" else torch.tensor([0, 1, 1, 0])
    if family == "bert_mlm":
        labels[0, :3] = labels[2, 5:] = -100
    check(model, inputs | {"labels": labels}, [2, 2])


@pytest.mark.parametrize("name", [name for name in tiny_vl.MODELS if name != "qwen2_vl"])
def test_models_that_see_say_the_same_in_chunks(name: str) -> None:
    model = tiny_vl.snn(name, **T).double()
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in tiny_vl.batch(name).items()}
    whole = model(**inputs)
    found, sizes = in_chunks(model, inputs)
    assert sizes == [1, 2]
    check_equal(found, whole)


@pytest.mark.parametrize("cache", ["exact", "settled"])
@pytest.mark.parametrize("strategy", [{"num_beams": 3}, {"num_beams": 1}], ids=str)
def test_generation_fills_one_cache_from_chunks(cache: str, strategy: dict[str, Any]) -> None:
    model = tiny.exact(tiny.snn("llama", **T))
    model.set_timesteps(cache=cache)
    inputs = {"input_ids": tiny.tokens(4)}
    check(model, inputs | {"use_cache": True}, [2, 2])
    asked = inputs | {"max_new_tokens": 5, "do_sample": False} | strategy
    whole = model.generate(**asked)
    beams = {"input_ids": tiny.tokens(4 * strategy["num_beams"]), "logits_to_keep": 1}
    with fas.memory_limit(model, tight(model, beams)):
        assert torch.equal(model.generate(**asked), whole)
        assert model.forward.needs.known


def test_hidden_states_of_an_ann_are_put_together() -> None:
    model = tiny.exact(tiny.ann("gpt2"))  # not converted
    check(model, {"input_ids": tiny.tokens(4), "output_hidden_states": True, "use_cache": False}, [2, 2])


@pytest.mark.parametrize("coverage", ["ffn", "linear", "attention"])
def test_the_peak_is_below_the_limit(coverage: str) -> None:
    model = tiny.snn("gpt2", coverage, **T)
    inputs = {"input_ids": tiny.tokens(12, 32), "use_cache": False}
    limit = tight(model, inputs, 3)
    assert live(lambda: model(**inputs)) > limit
    with fas.memory_limit(model, limit):
        model(**inputs)
        assert live(lambda: model(**inputs)) <= limit


@pytest.mark.parametrize("coverage", tiny.COVERAGES)
@pytest.mark.parametrize("timesteps", [1, 2, 4, 8])
def test_simulation_takes_no_more_than_one_and_t_times_the_memory(coverage: str, timesteps: int) -> None:
    ann = tiny.ann("gpt2", n_embd=64, n_positions=128)
    inputs = {"input_ids": tiny.tokens(4, 48), "use_cache": False}
    ann.set_attn_implementation("eager")  # as spiking attention, with all scores at once
    dense = live(lambda: ann(**inputs))
    config = fas.SpikingConfig(coverage=coverage, levels=8, timesteps=timesteps)
    model = fas.convert(fas.prepare(ann, config, [{"input_ids": inputs["input_ids"]}]))
    model(**inputs)
    assert live(lambda: model(**inputs)) <= (1 + timesteps) * dense


def test_spikes_and_stops_are_counted_once() -> None:
    model = tiny.exact(tiny.snn("gpt2", coding="sigma_delta", **T))
    inputs = padded(4) | {"use_cache": False}
    del inputs["labels"]
    found = {}
    for limit in (None, tight(model, inputs)):
        with counting(model) as spikes, fas.adaptive(model) as early:
            if limit is None:
                model(**inputs)
            else:
                in_chunks(model, inputs, limit)
        found[limit] = spikes.per_neuron, {n: c.neurons for n, c in spikes.sites.items()}, early.by_segment
    first, second = found.values()
    assert first == second


def test_confidence_inside_a_limit() -> None:
    """The heads run over time inside of each chunk, whichever context came first."""
    model = tiny.exact(tiny.snn("gpt2", coding="sigma_delta", **T))
    inputs = {"input_ids": tiny.tokens(4), "use_cache": False}
    with fas.adaptive(model, confidence=0.2) as whole:
        wanted = model(**inputs)
    limit = tight(model, inputs)
    with fas.memory_limit(model, limit), fas.adaptive(model, confidence=0.2) as early:
        check_equal(model(**inputs), wanted)
    assert early.by_segment == whole.by_segment
    with fas.adaptive(model, confidence=0.2) as early, fas.memory_limit(model, limit):
        check_equal(model(**inputs), wanted)
    assert early.by_segment == whole.by_segment
    assert "forward" not in vars(model)


# What runs whole, and what does not run


def test_gradients_and_traces_see_the_whole_model() -> None:
    model = tiny.snn("gpt2", **T)
    inputs = {"input_ids": tiny.tokens(4), "use_cache": False}
    with fas.memory_limit(model, 1):
        assert traced(lambda: model(**inputs)).peak > 1
        with torch.enable_grad():
            model(**inputs, labels=inputs["input_ids"]).loss.backward()


def test_packed_images_run_whole_and_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_vl.snn("qwen2_vl", **T)
    inputs = tiny_vl.batch("qwen2_vl")
    whole = model(**inputs).logits
    with fas.memory_limit(model, 1):
        for _ in range(2):
            assert torch.equal(model(**inputs).logits, whole)
    assert [record.getMessage() for record in caplog.records] == [
        "Qwen2VLForConditionalGeneration runs whole in spite of the memory limit: its images are packed in one row"
    ]
    text = {"input_ids": tiny.tokens(4) + 9, "use_cache": False}
    text["input_ids"].clamp_(max=tiny.VOCAB - 1)
    check(model.double(), text, [2, 2])


def test_images_against_texts_run_whole(caplog: pytest.LogCaptureFixture) -> None:
    part = {"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = part | {"vocab_size": tiny.VOCAB, "max_position_embeddings": 16, "eos_token_id": 1}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=part | {"image_size": 12, "patch_size": 4})).eval()
    inputs = {"input_ids": tiny.tokens(4), "pixel_values": torch.randn(4, 3, 12, 12)}
    whole = model(**inputs).logits_per_image
    with fas.memory_limit(model, 1):
        assert torch.equal(model(**inputs).logits_per_image, whole)
    assert "compares each sequence with all others" in caplog.text
    with fas.memory_limit(model, 1):
        model(**inputs | {"input_ids": tiny.tokens(3)})
    assert "pixel_values has 4 rows where the batch has 3" in caplog.text


def test_what_does_not_fit_is_said() -> None:
    model = tiny.snn("gpt2", **T)
    inputs = {"input_ids": tiny.tokens(4), "use_cache": False}
    one = r"one sequence of GPT2LMHeadModel needs .* KiB .* limit of 9.8 KiB; choose shorter .* schedule='layerwise'"
    with fas.memory_limit(model, "10 kB"), pytest.raises(FasError, match=one):
        model(**inputs)
    with (
        fas.memory_limit(model, tight(model, inputs, 1) - 1),
        pytest.raises(FasError, match=r"gives for 4 sequences takes .* fewer sequences"),
    ):
        model(**inputs)


def test_losses_of_another_kind_are_refused() -> None:
    class Summed(GPT2LMHeadModel):
        def forward(
            self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None, use_cache: Any = None
        ) -> Any:
            output = super().forward(input_ids, attention_mask=attention_mask, labels=labels, use_cache=use_cache)
            output.loss = 2 * output.loss
            return output

    model = Summed(tiny.ann("gpt2").config).eval()
    inputs = padded(4) | {"use_cache": False}
    with pytest.raises(FasError, match=r"Summed takes a mean loss that cannot be put together .* without labels"):
        in_chunks(model, inputs)
    check(model.double(), inputs | {"labels": inputs["input_ids"]}, [2, 2])  # the same number of labels in each


@pytest.mark.parametrize("size", ["much", "2 parsecs", "-1", "0", 0, "", "GiB", True])
def test_sizes_that_are_none(size: Any) -> None:
    with (
        pytest.raises(ConfigError, match="no amount of memory; give bytes above 0"),
        fas.memory_limit(nn.Identity(), size),
    ):
        pass


def test_bare_segments_are_refused() -> None:
    with pytest.raises(ConfigError, match="SiglipTextModel is a bare segment"):
        fas.memory_limit(tiny.snn("siglip_text"), "1GB").__enter__()


# Command line


def test_commands_take_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = folders.save_ann(tmp_path / "ann"), folders.save_text(tmp_path / "text.txt")
    folder = str(tmp_path / "snn")
    with torch.enable_grad():
        assert main([
            "convert", "--model", model, "--data", text, "--out", folder, "--stage1", "none", "--no-stage2",
            "--levels", "8", "--timesteps", "4", "--length", "16", "--quiet",
        ]) == 0  # fmt: skip
    capsys.readouterr()

    def values(*more: str) -> list[float]:
        assert main(["eval", folder, "--batch-size", "8", "--json", "--quiet", *more]) == 0
        return [row["value"] for row in json.loads(capsys.readouterr().out)["rows"]]

    assert values("--memory-limit", "400kB") == pytest.approx(values(), rel=1e-4)
    prompt = ["generate", folder, "--prompt", "w3 w4", "--max-new-tokens", "3", "--quiet"]
    assert main([*prompt, "--num-beams", "4", "--memory-limit", "1MB"]) == 0
    for command in (["eval", folder], prompt):
        capsys.readouterr()
        assert main([*command, "--memory-limit", "2 parsecs"]) == 2
        assert "memory limit '2 parsecs' is no amount of memory" in capsys.readouterr().err
    assert main(["eval", folder, "--memory-limit", "1kB", "--quiet"]) == 2
    assert "more than the memory limit of 1000 B" in capsys.readouterr().err
