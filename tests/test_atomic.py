"""Verbs that fail in the middle: the model is what it was before, whatever was raised, and wherever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import nn

import fas
from fas.conversion import install, verbs
from fas.errors import FasError
from fas.runtime.control import clock_of

BATCH = {"input_ids": tiny.tokens(2, 9)}
CONFIGS = {
    "linear": fas.SpikingConfig(levels=8, timesteps=4, rotation="heads", center=True, prefix=(3, 5)),
    "full": fas.SpikingConfig(coverage="full", levels=8, timesteps=4),
    "replaced": fas.SpikingConfig(coverage="ffn", levels=8, timesteps=4, activation="replace"),
}
STEPS = {
    "linear": [
        (verbs, "give_prefix", "after"), (verbs, "sampled", "before"), (verbs, "fitted_scale", "later"),
        (install, "_hook", "later"), (install, "fold_segment", "before"), (install, "reclass", "after"),
        (install, "add_prefix", "after"), (install, "mark_calls", "after"), (verbs, "rotate_reader", "later"),
        (verbs, "absorb", "later"), (verbs, "measure_order", "before"), (verbs, "describe", "after"),
    ],
    "full": [(install, "group_for", "later"), (install, "choose_attention", "after"), (verbs, "describe", "before")],
    "replaced": [(install, "_hook", "later"), (verbs, "absorb", "later"), (verbs, "measure_order", "after")],
}  # fmt: skip
CASES = [(name, *step) for name, steps in STEPS.items() for step in steps]


class Unforeseen(Exception):
    """What nobody has thought of."""


def broken(function: Any, when: str) -> Any:
    """``function``, raising before or after its work, or when it is called for the second time."""
    calls = []

    def raising(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if when == "before" or (when == "later" and len(calls) == 2):
            raise Unforeseen
        result = function(*args, **kwargs)
        if when == "after":
            raise Unforeseen
        return result

    return raising


def shape(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """All that hangs on each module: classes, hooks, parameters, attributes."""
    for name, module in model.named_modules():
        hooks = (module._forward_pre_hooks, module._forward_hooks)
        own = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        yield (
            name, type(module), *(list(some) for some in hooks), list(module._parameters), list(module._buffers),
            sorted(vars(module)), own,
        )  # fmt: skip


def picture(model: Any) -> tuple[Any, ...]:
    with torch.no_grad():
        logits = model(**BATCH, use_cache=False).logits
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {key: value for key, value in vars(model.config).items() if key != "quantization_config"}
    described = getattr(model.config, "quantization_config", None)
    return list(shape(model)), settings, described and described.to_dict(), weights, logits


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert one[:3] == other[:3]
    assert one[3].keys() == other[3].keys()
    assert all(torch.equal(value, other[3][name]) for name, value in one[3].items())
    assert torch.equal(one[4], other[4])


@pytest.mark.parametrize(("kind", "home", "function", "when"), CASES)
def test_a_failed_prepare_leaves_the_ann(
    kind: str, home: Any, function: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = "gpt2" if kind == "replaced" else "llama"
    model = tiny.ann(family)
    before = picture(model)
    with monkeypatch.context() as patch:
        patch.setattr(home, function, broken(getattr(home, function), when))
        with pytest.raises(Unforeseen):
            fas.prepare(model, CONFIGS[kind], [BATCH])
    same(picture(model), before)
    with pytest.raises(FasError, match="prepare"):
        fas.convert(model)
    fresh = fas.prepare(tiny.ann(family), CONFIGS[kind], [BATCH])
    fas.prepare(model, CONFIGS[kind], [BATCH])
    with torch.no_grad():
        assert torch.equal(model(**BATCH).logits, fresh(**BATCH).logits)


@pytest.mark.parametrize(("function", "when"), [("silence_dropout", "after"), ("describe", "before")])
def test_a_failed_convert_leaves_the_qcfs_model(function: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fas.prepare(tiny.ann("gpt2", resid_pdrop=0.1), CONFIGS["replaced"], [BATCH]).eval()
    before = picture(model)
    with monkeypatch.context() as patch:
        patch.setattr(verbs, function, broken(getattr(verbs, function), when))
        with pytest.raises(Unforeseen):
            fas.convert(model)
    same(picture(model), before)
    assert clock_of(model).stage == "qcfs"


def test_a_failed_set_timesteps_leaves_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.snn("gpt2")
    before = picture(model)
    with monkeypatch.context() as patch:
        patch.setattr(model.set_timesteps, "changed", broken(lambda model: None, "before"))
        with pytest.raises(Unforeseen):
            model.set_timesteps(7, coding="rate")
    same(picture(model), before)


def test_calibration_that_fails_leaves_neurons_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    from fas.calibration import driver

    model = tiny.snn("llama").train()
    before = picture(model.eval())
    model.train()
    for function in ("calibrate_block", "keep_what_helps"):
        with monkeypatch.context() as patch:
            patch.setattr(driver, function, broken(getattr(driver, function), "after"))
            with pytest.raises(Unforeseen):
                fas.calibrate(model, [BATCH])
        assert model.training
        same(picture(model.eval()), before)
        model.train()
