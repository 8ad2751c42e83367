"""What every converted model of several segments must do; the test files run it on their models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fas.runtime.control import as_qcfs, at_time, clock_of, sites_of
from fas.runtime.events import EventExecutor

CODINGS: dict[str, dict[str, Any]] = {
    "sigma_delta": {"coding": "sigma_delta", "timesteps": 4},
    "pairs": {"coding": "sigma_delta", "timesteps": 3, "neurons_per_channel": 2},
    "rate": {"coding": "rate", "timesteps": 4},
    "rate_step": {"coding": "rate", "rows": "step", "timesteps": 3},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
}


def out(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """The model's logits (or its hidden states), without gradients."""
    with torch.no_grad():
        outputs = model(**inputs)
    if "labels" in inputs:
        return outputs["loss"][None]
    return outputs["logits"] if "logits" in outputs else outputs[0]


def spikes_of(model: PreTrainedModel, **inputs: Any) -> dict[str, Tensor]:
    """What each site emits ``[T, B, …, C]``, by site in the order in which they run; each must run once."""
    clock, spikes = clock_of(model), {}

    def probe(name: str, train: Tensor) -> None:
        assert name not in spikes, f"{name} ran twice"
        spikes[name] = train.clone()

    clock.probe = probe
    out(model, **inputs)
    clock.probe = None
    return spikes


def check_reload(model: PreTrainedModel, inputs: dict[str, Any], folder: Path) -> PreTrainedModel:
    """Saved and loaded, the logits are bit-identical, and so are the sites."""
    model.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder)
    assert list(sites_of(loaded)) == list(sites_of(model))
    assert torch.equal(out(loaded, **inputs), out(model, **inputs))
    return loaded


def check_order(model: PreTrainedModel, inputs: dict[str, Any]) -> None:
    """Sites run in their order, each once; the rows of their spikes are time-major."""
    spikes = spikes_of(model, **inputs)
    assert list(spikes) == list(sites_of(model))
    assert {len(train) for train in spikes.values()} == {clock_of(model).config.timesteps}


def check_without_time(model: PreTrainedModel, inputs: dict[str, Any], segment_sites: int) -> None:
    """Layerwise, and unit steps until the ``segment_sites`` of a segment have settled, are the QCFS model."""
    levels = clock_of(model).config.levels
    with as_qcfs(model):
        expected = out(model, **inputs)
    with at_time(model, timesteps=levels, schedule="layerwise"):
        assert torch.equal(out(model, **inputs), expected)
    steps = levels * segment_sites
    model.set_timesteps(steps, steps=(1,) * steps)
    torch.testing.assert_close(out(model, **inputs), expected, rtol=0, atol=1e-9)
    model.set_timesteps(1)
    assert not torch.allclose(out(model, **inputs), expected)


def check_events(model: PreTrainedModel, inputs: dict[str, Any]) -> None:
    """The event executor gives the spikes and the logits of the folded run."""
    spikes = spikes_of(model, **inputs)
    run = EventExecutor(model)(**inputs)
    assert list(run.spikes) == list(spikes)
    for name, train in run.spikes.items():
        assert torch.equal(train.flatten(), spikes[name].flatten().to(torch.int8)), name
        assert train.any(), name
    logits = run.output["loss"][None] if "labels" in inputs else run.output.get("logits", run.output[0])
    torch.testing.assert_close(logits, out(model, **inputs), rtol=1e-5, atol=1e-5)  # norms round to fp32 in any dtype


def check_rows(model: PreTrainedModel, inputs: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Rows of a batch do not meet: each gives the same alone."""
    together = out(model, **inputs)
    for row, alone in enumerate(rows):
        torch.testing.assert_close(together[row : row + 1], out(model, **alone))


def check_generation(model: PreTrainedModel, inputs: dict[str, Any], strategy: str) -> Tensor:
    """Cached generation gives the tokens of uncached generation."""

    def generate(**settings: Any) -> Tensor:
        torch.manual_seed(0)
        ours = {name: value.clone() for name, value in inputs.items()}  # BLIP writes into its inputs
        # no token twice: random models like to repeat one for ever
        chosen = {"max_new_tokens": 6, "no_repeat_ngram_size": 1} | STRATEGIES[strategy]
        return model.generate(**ours, **chosen, **settings)

    cached = generate()
    assert torch.equal(cached, generate(use_cache=False))
    return cached
