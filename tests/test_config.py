"""SpikingConfig: what it accepts, what it refuses and with which sentence, and its copies."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tiny

import fas
from fas.config import CONFIG_VERSION, SpikingConfig
from fas.errors import CheckpointError, ConfigError, FasError
from fas.runtime.control import at_time
from fas.steps import default_steps, is_complete

REFUSED = {
    "coverage": ({"coverage": "everything"}, "coverage='everything' is not valid"),
    "coding": ({"coding": "burst"}, "coding='burst' is not valid"),
    "rows": ({"rows": "median"}, "rows='median' is not valid"),
    "schedule": ({"schedule": "random"}, "schedule='random' is not valid"),
    "cache": ({"cache": "none"}, "cache='none' is not valid"),
    "timesteps 0": ({"timesteps": 0}, "timesteps=0 is not valid"),
    "timesteps text": ({"timesteps": "many"}, "timesteps='many' is not valid"),
    "timesteps huge": ({"timesteps": 1025}, "timesteps=1025 is not valid"),
    "levels 0": ({"levels": 0}, "levels=0 is not valid"),
    "levels -3": ({"levels": -3}, "levels=-3 is not valid"),
    "unknown": ({"threshold": 1.0}, "unknown setting 'threshold'; known settings are"),
    "rate with steps": ({"coding": "rate", "timesteps": 2, "steps": (2, 1)}, "steps describe the sigma_delta coding"),
    "sigma-delta by steps": ({"rows": "step"}, "rows='step' belongs to coding='rate'"),
    "layerwise": ({"schedule": "layerwise", "timesteps": 4, "levels": 8}, r"timesteps \(4\) must equal levels \(8\)"),
    "too few steps": ({"timesteps": 3, "steps": (2, 1)}, "has 2 entries for T=3"),
    "no power of two": ({"timesteps": 2, "steps": (3, 1)}, "must be powers of two"),
    "zero step": ({"timesteps": 2, "steps": (2, 0)}, "must be powers of two"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_one_sentence(case: str) -> None:
    values, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        SpikingConfig(**values)
    text = str(caught.value)
    assert "\n" not in text
    assert "pydantic" not in text
    assert ". " not in text
    assert not text.endswith(".")
    assert isinstance(caught.value, FasError)


def test_defaults_are_valid_and_immutable() -> None:
    config = SpikingConfig()
    assert (config.coverage, config.coding, config.levels, config.timesteps) == ("linear", "sigma_delta", 15, 8)
    assert config.step_schedule == (8, 4, 4, 2, 4, 2, 1, 1)
    with pytest.raises(ValueError, match="frozen"):
        config.timesteps = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("levels", "timesteps", "steps"),
    [
        (8, 1, (4,)),
        (8, 3, (4, 2, 1)),
        (8, 4, (4, 2, 2, 1)),
        (8, 6, (4, 2, 2, 1, 1, 1)),
        (8, 8, (4, 4, 2, 2, 1, 1, 1, 1)),
        (15, 5, (8, 4, 2, 1, 1)),
        (16, 2, (8, 4)),
        (1, 3, (1, 1, 1)),
        (2, 3, (1, 1, 1)),
    ],
)
def test_default_steps(levels: int, timesteps: int, steps: tuple[int, ...]) -> None:
    assert default_steps(levels, timesteps) == steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SpikingConfig(levels=levels, timesteps=timesteps, steps=steps)  # a default may always be written out


@pytest.mark.parametrize("levels", range(1, 40))
@pytest.mark.parametrize("timesteps", [1, 2, 5, 17])
def test_default_steps_are_as_many_powers_of_two(levels: int, timesteps: int) -> None:
    steps = default_steps(levels, timesteps)
    assert len(steps) == timesteps
    assert all(k & (k - 1) == 0 and k >= 1 for k in steps)


@pytest.mark.parametrize(
    ("steps", "levels", "complete"),
    [
        ((2, 1), 3, True),
        ((4, 2, 1), 7, True),
        ((8, 4, 2, 1), 15, True),
        ((8, 4, 2, 1), 16, False),
        ((4, 2, 1), 8, False),
        ((4, 2), 6, False),
        ((1, 1, 1), 3, True),
        ((1, 1), 3, False),
        ((8, 1, 1), 8, False),
        ((4, 1, 1), 6, True),
        ((4, 1, 1), 3, False),  # 4 cannot move on this grid, and 1, 1 alone do not reach 3
    ],
)
def test_is_complete(steps: tuple[int, ...], levels: int, complete: bool) -> None:
    assert is_complete(steps, levels) is complete


def test_times_that_are_too_short_are_noted_where_they_are_used() -> None:
    """Not where they are only described; and the note points at this file, not into FAS or pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = SpikingConfig(levels=16, timesteps=4, steps=(8, 4, 2, 1))
        few = SpikingConfig(levels=15, timesteps=2)
        for enough in (SpikingConfig(levels=15, timesteps=4, steps=(8, 4, 2, 1)), few.replaced(coding="rate")):
            enough.note_if_too_short()
    for config, said in ((given, "steps .* are incomplete for 16 levels"), (few, "2 timesteps are few for 15 levels")):
        with pytest.warns(UserWarning, match=said) as found:
            config.note_if_too_short()
        assert [one.filename for one in found] == [__file__]


def test_the_time_that_is_asked_for_is_noted_at_the_line_that_asks() -> None:
    batch, few = {"input_ids": tiny.tokens()}, SpikingConfig(levels=15, timesteps=2)
    with pytest.warns(UserWarning, match="2 timesteps are few for 15 levels") as first:
        model = fas.convert(fas.prepare(tiny.ann("gpt2"), few, [batch]))
    assert [one.filename for one in first] == [__file__]
    with pytest.warns(UserWarning, match="3 timesteps are few for 15 levels") as found:
        model.set_timesteps(3)  # type: ignore[operator]
    with pytest.warns(UserWarning, match="2 timesteps are few for 15 levels") as again, at_time(model, timesteps=2):
        pass
    assert {one.filename for one in [*found, *again]} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_timesteps(8)  # type: ignore[operator]


def test_replaced_is_validated_and_drops_what_no_longer_applies() -> None:
    config = SpikingConfig(timesteps=3, steps=(4, 2, 1), levels=7)
    assert config.replaced(cache="settled").steps == (4, 2, 1)
    assert config.replaced(timesteps=5).steps is None
    assert config.replaced(levels=3).steps is None
    assert config.replaced(coding="rate").steps is None
    rate = SpikingConfig(coding="rate", rows="step", timesteps=4)
    assert rate.replaced(timesteps=8).rows == "step"
    assert rate.replaced(coding="sigma_delta").rows == "mean"
    assert config.timesteps == 3
    with pytest.raises(ConfigError, match="timesteps=0"):
        config.replaced(timesteps=0)
    with pytest.raises(ConfigError, match="unknown setting 'steep'"):
        config.replaced(steep=True)


def test_neuron_key_tells_apart_what_is_calibrated_apart() -> None:
    keys = {
        SpikingConfig(timesteps=4).neuron_key,
        SpikingConfig(timesteps=8).neuron_key,
        SpikingConfig(timesteps=4, steps=(4, 2, 1, 1)).neuron_key,
        SpikingConfig(timesteps=4, neurons_per_channel=2).neuron_key,
        SpikingConfig(timesteps=4, coding="rate").neuron_key,
        SpikingConfig(timesteps=8, coding="rate").neuron_key,
        SpikingConfig(timesteps=4, coding="rate", rows="step").neuron_key,
    }
    assert len(keys) == 7
    assert SpikingConfig(timesteps=4).neuron_key == SpikingConfig(timesteps=4, steps=(8, 4, 2, 1)).neuron_key
    assert all("." not in key for key in keys), "a dot would end a module's name"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"coverage": "ffn", "levels": 15, "timesteps": 5},
        {"timesteps": 3, "steps": (4, 2, 1), "levels": 7, "cache": "settled"},
        {"timesteps": 3, "steps": (8, 4, 2, 2, 1, 1), "levels": 15, "neurons_per_channel": 2},
        {"coding": "rate", "rows": "step", "timesteps": 16},
        {"schedule": "layerwise", "levels": 8, "timesteps": 8},
    ],
)
def test_dictionary_round_trip(values: dict[str, Any]) -> None:
    config = SpikingConfig(**values)
    assert SpikingConfig.from_dict(config.model_dump(mode="json")) == config


def test_newer_version_is_refused() -> None:
    with pytest.raises(CheckpointError, match="version 2, this FAS reads up to 1; upgrade"):
        SpikingConfig.from_dict({"version": CONFIG_VERSION + 1, "something_new": True})
    assert SpikingConfig.from_dict({}) == SpikingConfig(rotation="none", prefix=())


def test_calibrated_neurons_are_found_by_coding_and_time() -> None:
    config = SpikingConfig(levels=7, timesteps=4, steps=(4, 2, 1, 1))
    keys = ["sigma_delta_4_2_2_1", "rate_step_8", "sigma_delta_x2_4_2_2_1"]
    assert config.replaced(timesteps=4).steps == (4, 2, 1, 1), "the same T keeps its schedule"
    assert config.closest(keys).step_schedule == (4, 2, 2, 1)
    assert config.closest(keys, {"steps"}) is config
    assert config.replaced(coding="rate", timesteps=8).closest(keys).rows == "step"
    for key in keys:
        assert config.for_key(key).neuron_key == key
    pair = config.replaced(timesteps=2, neurons_per_channel=2)
    assert pair.closest(keys).step_schedule == (4, 2, 2, 1)
    assert pair.closest(keys).neurons_per_channel == 2
    assert config.replaced(timesteps=2).closest(keys).neurons_per_channel == 2, "of that T only a pair is calibrated"
    assert config.replaced(timesteps=2).closest(keys, {"neurons_per_channel"}).neurons_per_channel == 1
    assert pair.replaced(coding="rate").neurons_per_channel == 1


def test_several_neurons_a_channel_belong_to_sigma_delta() -> None:
    with pytest.raises(ConfigError, match="neurons_per_channel=2 needs coding='sigma_delta'"):
        SpikingConfig(coding="rate", neurons_per_channel=2)
    with pytest.raises(ConfigError, match=r"3 entries for T=3, 2 a timestep"):
        SpikingConfig(timesteps=3, neurons_per_channel=2, levels=7, steps=(4, 2, 1))
    with pytest.raises(ConfigError, match="neurons_per_channel=17"):
        SpikingConfig(neurons_per_channel=17)


def test_a_checkpoint_without_rotation_was_not_rotated() -> None:
    old = SpikingConfig().model_dump(mode="json")
    del old["rotation"]
    assert SpikingConfig.from_dict(old).rotation == "none"
    assert SpikingConfig.from_dict(SpikingConfig().model_dump(mode="json")).rotation == "hadamard"
