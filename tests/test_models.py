"""Where sites are in each family, and that nothing unknown is skipped in silence."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch
from tiny import COVERAGES, FAMILIES, SITES, VOCAB, ann, qcfs_model, tokens
from torch import nn
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model

import fas
from fas.errors import ConfigError, DataError, FasError, UnsupportedModelError
from fas.models import REGISTRY, find_placements, find_segments, supported
from fas.neurons import Site
from fas.runtime.control import clock_of, sites_of


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_site_counts(family: str, coverage: str) -> None:
    model = qcfs_model(family, coverage)
    sites = sites_of(model)
    assert len(sites) == SITES[family, coverage]
    assert [site.order for site in sites.values()] == list(range(len(sites)))
    assert all(name in dict(model.named_modules()) or ".sites." not in name for name in sites)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_of_the_segment_reads_a_site(family: str) -> None:
    model = qcfs_model(family, "linear")
    segment = find_segments(model)[0].module
    linears = [m for m in segment.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    assert sum(site.consumers for site in sites_of(model).values()) == len(linears)
    assert all(len(linear._forward_pre_hooks) == 1 for linear in linears)


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_run_in_their_order(family: str) -> None:
    model = fas.convert(qcfs_model(family, "linear"))
    ran: list[str] = []
    clock_of(model).probe = lambda name, spikes: ran.append(name)
    with torch.no_grad():
        model(input_ids=tokens())
    assert ran == list(sites_of(model)), "each once, in the order of `order`"


def test_pointwise_activations_are_replaced_and_gated_ones_kept() -> None:
    gpt2, opt, llama = (qcfs_model(family, "ffn") for family in ("gpt2", "opt", "llama"))
    assert isinstance(gpt2.transformer.h[0].mlp.act, nn.Identity)
    assert isinstance(opt.model.decoder.layers[0].activation_fn, nn.Identity)
    assert isinstance(llama.model.layers[0].mlp.act_fn, nn.SiLU | type(ann("llama").model.layers[0].mlp.act_fn))
    assert not sites_of(gpt2)["transformer.h.0.ffn_hidden"].signed
    assert not sites_of(opt)["model.decoder.layers.0.ffn_hidden"].signed
    assert sites_of(llama)["model.layers.0.ffn_hidden"].signed


@pytest.mark.parametrize(
    ("place", "family"), [("transformer.h.1.mlp.extra", "gpt2"), ("model.layers.0.mlp.gate", "llama")]
)
def test_unknown_module_is_refused_by_name(place: str, family: str) -> None:
    model = ann(family)
    model.add_module("probe", nn.Linear(2, 2))  # outside the segment: not FAS's business
    owner, name = place.rsplit(".", 1)
    model.get_submodule(owner).add_module(name, nn.Linear(4, 4))
    with pytest.raises(UnsupportedModelError, match=rf"{place} is a Linear, which the family '{family}'") as caught:
        fas.prepare(model, fas.SpikingConfig(), [{"input_ids": tokens()}])
    assert "\n" not in str(caught.value)
    assert not any(isinstance(module, Site) for module in model.modules()), "refused before anything is changed"


def test_missing_consumer_is_refused_by_name() -> None:
    model = ann("gpt2")
    del model.transformer.h[1].mlp.c_fc
    with pytest.raises(UnsupportedModelError, match=r"transformer\.h\.1 \(GPT2Block\) lacks \['mlp\.c_fc'\]"):
        find_placements(find_segments(model)[0], fas.SpikingConfig())


def test_wrong_number_of_blocks_is_refused() -> None:
    model = ann("llama")
    del model.model.layers[1]
    with pytest.raises(UnsupportedModelError, match="1 LlamaDecoderLayer modules where its configuration says 2"):
        find_placements(find_segments(model)[0], fas.SpikingConfig())


def test_unsupported_family_lists_the_supported_ones() -> None:
    bloom = BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=VOCAB))
    with pytest.raises(UnsupportedModelError, match="BloomForCausalLM has no part") as caught:
        fas.prepare(bloom, fas.SpikingConfig(), [{"input_ids": tokens()}])
    assert {"gpt2", "llama", "opt", "bert", "vit"} <= set(supported().split(", "))
    assert supported() in str(caught.value)


def test_cross_attention_is_refused() -> None:
    config = GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2, add_cross_attention=True)
    with pytest.raises(UnsupportedModelError, match=r"transformer\.h\.0\.crossattention"):
        fas.prepare(GPT2LMHeadModel(config), fas.SpikingConfig(), [{"input_ids": tokens()}])


def test_a_bare_inner_model_can_be_prepared() -> None:
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(vocab_size=97, n_positions=32, n_embd=16, n_layer=1, n_head=2)).eval()
    fas.convert(fas.prepare(model, fas.SpikingConfig(), [{"input_ids": tokens()}]))
    assert list(sites_of(model)) == [
        f"h.0.{n}" for n in ("attention_input", "attention_output", "ffn_input", "ffn_hidden")
    ]
    assert model(input_ids=tokens()).last_hidden_state.shape == (3, 7, 16)


def test_preparing_twice_or_without_data_is_refused() -> None:
    model = qcfs_model("gpt2")
    with pytest.raises(FasError, match="already"):
        fas.prepare(model, fas.SpikingConfig(), [{"input_ids": tokens()}])
    with pytest.raises(DataError, match="at least one batch"):
        fas.prepare(ann("gpt2"), fas.SpikingConfig(), [])
    with pytest.raises(FasError, match="convert it first"):
        fas.convert(ann("gpt2"))


def test_the_worked_example_of_the_docs_is_the_family_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    listing, declaration = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(textwrap.dedent(listing), {})
    assert "gpt_neox.layers.0.attention.query_key_value Linear" in capsys.readouterr().out
    shipped = REGISTRY["GPTNeoXModel"]
    try:
        exec(textwrap.dedent(declaration), {})
        assert REGISTRY["GPTNeoXModel"] == shipped
        assert REGISTRY["GPTNeoXModel"] is not shipped
    finally:
        REGISTRY["GPTNeoXModel"] = shipped


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        ({"targets": ("transformer.h.1.ffn_hidden",)}, ["transformer.h.1.ffn_hidden"]),
        ({"targets": (r"re:.*\.attention_(input|output)",), "ignore": (r"re:transformer\.h\.0\..*",)},
         ["transformer.h.1.attention_input", "transformer.h.1.attention_output"]),
        ({"ignore": (r"re:.*ffn_hidden", "transformer.h.0.ffn_input")},
         ["transformer.h.0.attention_input", "transformer.h.0.attention_output", "transformer.h.1.attention_input",
          "transformer.h.1.attention_output", "transformer.h.1.ffn_input"]),
    ],
)  # fmt: skip
def test_targets_and_ignored_sites(selection: dict[str, tuple[str, ...]], left: list[str], tmp_path: Path) -> None:
    model = fas.convert(qcfs_model("gpt2", "linear", **selection))
    assert list(sites_of(model)) == left
    kept = (
        isinstance(model.transformer.h[0].mlp.act, nn.Identity),
        isinstance(model.transformer.h[1].mlp.act, nn.Identity),
    )
    assert kept == tuple(f"transformer.h.{i}.ffn_hidden" in left for i in (0, 1)), (
        "an ignored unit leaves the activation"
    )
    with torch.no_grad():
        expected = model(tokens()).logits
        hidden = model.transformer(tokens()).last_hidden_state
        model.save_pretrained(tmp_path)
        assert torch.equal(GPT2LMHeadModel.from_pretrained(tmp_path)(tokens()).logits, expected)
        assert torch.equal(GPT2Model.from_pretrained(tmp_path)(tokens()).last_hidden_state, hidden)
    with pytest.raises(FasError, match="belong to Stage 1"):
        model.set_timesteps(4, ignore=("another",))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"targets": ("h.1.ffn",)}, r"targets: 'h\.1\.ffn' matches no site; sites are named like transformer\.h\.0\."),
        ({"ignore": ("re:(",)}, r"ignore: 're:\(' is no regular expression"),
        ({"ignore": ("re:.*",)}, r"ignore \['re:\.\*'\] leave none of the 8 sites"),
    ],
)
def test_a_selection_that_selects_nothing_is_refused(selection: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        qcfs_model("gpt2", "linear", **selection)


def test_the_support_matrix_of_the_docs_names_every_family() -> None:
    page = (Path(__file__).parents[1] / "docs" / "support.md").read_text(encoding="utf-8")
    named = {name for row in re.findall(r"^\| ([a-z0-9_, ]+) \| `", page, re.MULTILINE) for name in row.split(", ")}
    assert named == set(supported().split(", ")), "run tests/support.py, which make test-all does"
