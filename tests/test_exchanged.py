"""Modules of a converted model that were wrapped or exchanged: spikes follow them, or one sentence says what is lost."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from test_encoder_decoder import inputs_for as t5_inputs
from test_encoder_decoder import t5
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from transformers import PreTrainedModel

import fas
from fas.errors import FasError, UnsupportedModelError
from fas.runtime.control import clock_of, sites_of
from fas.runtime.events import EventExecutor
from fas.runtime.spikes import counting

IDS = {"input_ids": tiny.tokens()}


class Wrapped(nn.Module):
    """Somebody's own wrapper."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Exchanged(nn.Linear):
    """A linear layer of another class with the same weight, as quantizers put there."""

    @classmethod
    def of(cls, module: nn.Module) -> Exchanged:
        made = cls(module.in_features, module.out_features, module.bias is not None, dtype=module.weight.dtype)
        made.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("sites")})
        return made

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


def each(wrap: Callable[[nn.Module], nn.Module], *names: str) -> Callable[[PreTrainedModel], None]:
    """Puts ``wrap`` of them in the places of the modules called so."""

    def change(model: PreTrainedModel) -> None:
        places = [
            (module, name)
            for module in list(model.model.layers.modules())
            for name in names
            if isinstance(module._modules.get(name), nn.Linear | nn.Module)
        ]
        assert places
        for module, name in places:
            setattr(module, name, wrap(module._modules[name]))

    return change


def normed(module: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(module)


def pruned(module: nn.Module) -> nn.Module:
    prune.identity(module, "weight")
    return module


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SAME = {
    "another Linear": each(Exchanged.of, *LINEAR),
    "one of three readers": each(Exchanged.of, "v_proj"),
    "a wrapper": each(Wrapped, *LINEAR),
    "a copy in a wrapper": each(lambda module: Wrapped(copy.deepcopy(module)), "q_proj", "down_proj"),
    "two wrappers": each(lambda module: Wrapped(Wrapped(module)), *LINEAR),
    "a wrapper of the FFN": each(Wrapped, "mlp"),
    "a wrapper of attention": each(Wrapped, "self_attn"),
    "wrappers of both and of what they hold": lambda model: [each(Wrapped, *LINEAR, "mlp")(model)],
    "weight norm": each(normed, *LINEAR),
    "pruning": each(pruned, *LINEAR),
    "a list of the same layers": lambda model: setattr(model.model, "layers", nn.ModuleList(model.model.layers)),
}


def both(model: PreTrainedModel) -> tuple[Tensor, float]:
    with torch.no_grad(), counting(model) as count:
        return model(**IDS, use_cache=False).logits, count.per_neuron


@pytest.mark.parametrize("run_before", [False, True])
@pytest.mark.parametrize("coverage", ["linear", "full"])
@pytest.mark.parametrize("change", SAME)
def test_what_computes_the_same_gives_the_same_spikes(change: str, coverage: str, run_before: bool) -> None:
    """In the place of a consumer, or around it; also back again, and in copies."""
    if coverage == "full" and change == "a copy in a wrapper":
        change = "two wrappers"  # a copy of what holds a site is refused below
    model = tiny.snn("llama", coverage, levels=8).double()
    expected, spikes = both(copy.deepcopy(model))
    if run_before:
        both(model)
    before = copy.deepcopy(model)
    SAME[change](model)
    copies = []
    if change not in ("weight norm", "pruning"):  # torch copies neither
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in (*copies, model):
        out, fired = both(other)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        assert fired == spikes
        assert sites_of(other).keys() == sites_of(before).keys()


@pytest.mark.parametrize("coverage", ["linear", "full"])
def test_what_was_there_comes_back(coverage: str) -> None:
    model = tiny.snn("llama", coverage, levels=8).double()
    expected, spikes = both(model)
    names, state = str(model), list(model.state_dict())
    held = {(name, part): module for name, layer in model.named_modules() for part, module in layer._modules.items()}
    each(Wrapped, *LINEAR)(model)
    assert both(model)[1] == spikes
    for (name, part), module in held.items():
        setattr(model.get_submodule(name), part, module)
    out, fired = both(model)
    assert torch.equal(out, expected)
    assert fired == spikes
    assert (str(model), list(model.state_dict())) == (names, state)


@pytest.mark.parametrize("coverage", ["linear", "full"])
def test_the_qcfs_model_follows_too(coverage: str) -> None:
    model = tiny.qcfs_model("llama", coverage, levels=8).double()
    expected = model(**IDS).logits
    each(Exchanged.of, *LINEAR)(model)
    torch.testing.assert_close(model(**IDS).logits, expected, rtol=0, atol=1e-12)
    assert any(p.grad is not None for p in _trained(model) if p.ndim == 1), "scales train on"


def _trained(model: PreTrainedModel) -> list[nn.Parameter]:
    model(**IDS, labels=IDS["input_ids"]).loss.backward()
    return [site.log_scale for site in sites_of(model).values()]


def test_new_weights_read_spikes() -> None:
    """What the new module is given is on the grid of its site."""
    model = tiny.snn("llama", levels=4, timesteps=4)
    layer = model.model.layers[1]
    layer.mlp.up_proj = nn.Linear(32, 44)
    given = []
    layer.mlp.up_proj.register_forward_hook(lambda _, args, out: given.append(args[0]))
    both(model)
    site = layer.sites["ffn_input"]
    codes = given[0] / (site.scale / site.levels)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert codes.abs().max() <= 4


class Fused(nn.Module):
    """A gated FFN of another making."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.both = nn.Linear(32, 88)
        self.out = nn.Linear(44, 32)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, -1)
        return self.out(nn.functional.silu(gate) * up)


def reads_itself(mlp: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        linear = nn.functional.linear
        gate, up = linear(x, mlp.gate_proj.weight), linear(x, mlp.up_proj.weight)
        return linear(nn.functional.silu(gate) * up, mlp.down_proj.weight)

    return forward


class Reads(nn.Module):
    """Keeps the FFN, and reads its weights by itself."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp, self.run = mlp, reads_itself(mlp)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def patched(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.mlp.forward = reads_itself(layer.mlp)


def copied(model: PreTrainedModel) -> None:
    model.model.layers[1] = copy.deepcopy(model.model.layers[0])


def renamed(model: PreTrainedModel) -> None:
    layer = model.model.layers[1]
    layer.ffn = Fused(layer.mlp)
    layer.mlp.forward = layer.ffn.forward
    del layer.mlp.down_proj


LOST = {
    "another FFN": (each(Fused, "mlp"), "model.layers.0.ffn_input .*layers.0.mlp there is a Fused"),
    "a FFN that reads weights itself": (each(Reads, "mlp"), "ffn_input: a Reads around layers.0.mlp.mlp.gate_proj"),
    "a patched forward": (
        patched,
        "ffn_input: a LlamaMLP around layers.0.mlp.gate_proj .Linear. ran without calling it",
    ),
    "a copy of a layer": (copied, "layers.1.* is a copy of a site"),
    "no module where there was one": (
        renamed,
        "ffn_hidden any more: layers.1.mlp.down_proj .Linear. is gone, and .* nothing",
    ),
    "another layer": (
        lambda model: model.model.layers.__setitem__(0, Wrapped(nn.Identity())),
        "attention_input any more: .*layers.0 there is a Wrapped",
    ),
}
LOST_IN_FULL = {
    "another norm": (each(lambda module: nn.RMSNorm(32), "input_layernorm"), "input_layernorm there is a RMSNorm"),
    "another activation": (each(lambda module: nn.SiLU(), "act_fn"), "act_fn there is a SiLU"),
    "a copy of a reader": (each(lambda m: Wrapped(copy.deepcopy(m)), "up_proj"), "is a copy of a site"),
}


@pytest.mark.parametrize("stage", ["qcfs", "snn"])
@pytest.mark.parametrize("run_before", [False, True])
@pytest.mark.parametrize("change", [*LOST, *LOST_IN_FULL])
def test_spikes_that_nothing_would_ask_for_are_an_error(change: str, run_before: bool, stage: str) -> None:
    coverage = "full" if change in LOST_IN_FULL else "linear"
    model = tiny.snn("llama", coverage, levels=8) if stage == "snn" else tiny.qcfs_model("llama", coverage, levels=8)
    if run_before:
        model(**IDS)
    spoil, message = (LOST | LOST_IN_FULL)[change]
    clock = clock_of(model)
    spoil(model)
    for _ in range(2):
        with pytest.raises(FasError, match=message):
            model(**IDS)
    assert clock.depth == 0


def test_a_patched_class_is_seen_in_a_model_that_is_loaded_after_it(tmp_path: Any, monkeypatch: Any) -> None:
    model = tiny.snn("llama")
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", lambda self, x: reads_itself(self)(x))
    with pytest.raises(FasError, match="ran without calling it"):
        type(model).from_pretrained(tmp_path)(**IDS)


def test_layers_may_be_taken_out_and_put_back() -> None:
    model = tiny.snn("llama").double()
    whole, _ = both(model)
    layers = model.model.layers
    model.model.layers = layers[:1]
    model.config.num_hidden_layers = 1
    short, fired = both(model)
    assert fired > 0
    assert not torch.equal(short, whole)
    model.model.layers, model.config.num_hidden_layers = layers, 2
    assert torch.equal(both(model)[0], whole)
    model.model.layers = nn.ModuleList([layers[1], layers[0]])
    both(model)
    assert layers[0].sites["ffn_hidden"].name == "model.layers.0.ffn_hidden"


@pytest.mark.parametrize("stage", ["qcfs", "snn"])
def test_cross_attention_whose_keys_are_cached_is_no_error(stage: str) -> None:
    """Its keys and values are asked at the first token alone, and wrappers change nothing of that."""
    model = t5("plain")
    fas.prepare(model, fas.SpikingConfig(coverage="full"), [t5_inputs(3)])
    model = fas.convert(model) if stage == "snn" else model
    given = {k: v for k, v in t5_inputs(2).items() if not k.startswith("decoder")}
    expected = model.generate(**given, max_new_tokens=4, do_sample=False)
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        attention.k, attention.v = Wrapped(attention.k), Wrapped(attention.v)
    assert torch.equal(model.generate(**given, max_new_tokens=4, do_sample=False), expected)


def test_a_compiled_model_follows() -> None:
    torch._dynamo.reset()
    model = tiny.snn("llama")
    expected, _ = both(model)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**IDS, use_cache=False).logits, expected)
        each(Exchanged.of, *LINEAR)(model)
        torch.testing.assert_close(compiled(**IDS, use_cache=False).logits, expected)
    torch._dynamo.reset()


def test_a_call_without_a_positional_input_is_refused() -> None:
    model = tiny.snn("llama")
    with pytest.raises(FasError, match="without its input as the first argument"):
        model.model.layers[0].self_attn.q_proj(input=torch.zeros(4, 1, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (each(Wrapped, "q_proj"), "q_proj is a test_exchanged.Wrapped.*neither Linear nor Conv1D"),
        (each(normed, "down_proj"), "down_proj is a .*ParametrizedLinear.*computed anew"),
        (each(pruned, "o_proj"), "o_proj is a .*computed anew"),
        (lambda model: model.model.layers[1].mlp.up_proj.to(torch.float8_e4m3fn), "up_proj .*quantized .*float8"),
    ],
)
def test_what_cannot_be_changed_in_place_is_not_converted(change: Any, message: str) -> None:
    model = tiny.ann("llama")
    change(model)
    shape, state = str(model), copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedModelError, match=message):
        fas.prepare(model, fas.SpikingConfig(), [IDS])
    assert str(model) == shape
    assert all(torch.equal(value.float(), state[name].float()) for name, value in model.state_dict().items())


def test_events_need_weights_of_their_own() -> None:
    model = tiny.snn("llama").double()
    each(Wrapped, "q_proj")(model)
    with pytest.raises(FasError, match=r"folds thresholds into weights, and model\.layers\.0\.self_attn\.q_proj"):
        EventExecutor(model)
