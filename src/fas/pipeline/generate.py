"""Text from a model, spiking or not, and what it spent on it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin, set_seed

from fas.config import SpikingConfig
from fas.errors import ConfigError, DataError
from fas.pipeline.default_time import named
from fas.pipeline.measure import Stopping, limited, stops_early
from fas.pipeline.origin import Reader
from fas.runtime.accelerated import accelerated
from fas.runtime.control import clock_of, sites_of
from fas.runtime.spikes import counting
from fas.tasks.vision_language import asked, first_token, padding_for


@dataclass(frozen=True)
class Decoding:
    """How the next tokens are chosen. Raises `ConfigError` for values out of range or that would have no effect."""

    max_new_tokens: int = 64
    sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    num_beams: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ConfigError(
                f"max_new_tokens={self.max_new_tokens} and num_beams={self.num_beams} must both be at least 1"
            )
        if not self.sample and (self.temperature is not None or self.top_p is not None):
            raise ConfigError("temperature and top_p matter only when tokens are drawn; add --sample")
        if self.temperature is not None and self.temperature <= 0:
            raise ConfigError(f"temperature={self.temperature} must be above 0; --greedy takes the likeliest token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1")

    def to_dict(self) -> dict[str, Any]:
        """The settings that were made."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Continuation:
    """What a model wrote; the last three are None for a model without spikes, the last one where all T ran."""

    prompt: str
    text: str
    new_tokens: int
    seconds: float
    spikes_per_neuron: float | None = None
    config: SpikingConfig | None = None
    mean_timesteps: float | None = None
    """A call of the model (one token of each beam, the first with the prompt) took so many timesteps on average."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        if self.config is not None:
            values["config"] = self.config.model_dump(mode="json")
        return values

    def summary(self) -> str:
        """One line about effort."""
        speed = f"{self.new_tokens} tokens in {self.seconds:.1f} s"
        if self.config is None:
            return speed
        coding = named(self.config)
        stopped = "" if self.mean_timesteps is None else f" ({self.mean_timesteps:.2f} a token)"
        return f"{speed}; {coding}{stopped}, {self.spikes_per_neuron:.2f} spikes/neuron"


def continue_text(
    model: PreTrainedModel,
    tokenizer: Reader,
    prompt: str,
    decoding: Decoding,
    stopping: Stopping | None = None,
    image: Path | None = None,
    limit: int | str | None = None,
    integer_bits: int = 0,
) -> Continuation:
    """Let ``model`` go on from ``prompt``; spikes are counted over prompt and new tokens, all beams. ``stopping``: each token
    stops by itself; a confident one reads the whole text anew, as a cache would replay timesteps that never ran.
    ``image``: what is asked about, of a model with a processor as ``tokenizer``. ``limit``: see `fas.memory_limit`.
    A spiking model on a CPU is `fas.accelerated`, with ``integer_bits``."""
    inputs = _encode(model, tokenizer, prompt, decoding.max_new_tokens, image)
    if isinstance(tokenizer, ProcessorMixin):
        tokenizer = tokenizer.tokenizer  # type: ignore[attr-defined]
    counter = counting(model) if sites_of(model) else nullcontext(None)
    set_seed(decoding.seed)
    started = time.perf_counter()
    confident = stopping is not None and stopping.confidence is not None
    with (
        torch.no_grad(),
        _fast(model, integer_bits),
        limited(model, limit),
        stops_early(model, stopping) as early,
        counter as count,
    ):
        output = model.generate(  # type: ignore[operator]
            **inputs,
            max_new_tokens=decoding.max_new_tokens,
            do_sample=decoding.sample,
            temperature=decoding.temperature if decoding.temperature is not None else 1.0,
            top_p=decoding.top_p if decoding.top_p is not None else 1.0,
            top_k=0,
            num_beams=decoding.num_beams,
            **({"use_cache": False} if confident else {}),
            **padding_for(model, tokenizer),
        )
    seconds = time.perf_counter() - started
    # what BLIP drops of a prompt it does not give back
    ids, known = output[0].tolist(), inputs["input_ids"].shape[1] - (first_token(model.config) is not None)
    # decoded as a whole: pieces of a sentence lose the space in front of them
    whole, start = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in (ids, ids[:known]))
    effort = (None, None) if count is None else (count.per_neuron, clock_of(model).config)
    steps = None if early is None else early.mean_timesteps
    return Continuation(prompt, whole[len(start) :], len(ids) - known, seconds, *effort, steps)


def _fast(model: PreTrainedModel, bits: int) -> AbstractContextManager[Any]:
    if sites_of(model) and model.device.type == "cpu":
        return accelerated(model, bits)
    if bits:
        raise ConfigError(f"integer_bits={bits} is for spiking models on a CPU, and this one is on {model.device.type}")
    return nullcontext(model)


def _encode(
    model: PreTrainedModel, tokenizer: Reader, prompt: str, new: int, image: Path | None
) -> dict[str, torch.Tensor]:
    if isinstance(tokenizer, ProcessorMixin) is (image is None):
        wants, given = ("an image", "none") if image is None else ("no image", str(image))
        raise ConfigError(
            f"the model reads {wants} and was given {given}; {'give' if image is None else 'leave out'} --image"
        )
    if isinstance(tokenizer, ProcessorMixin):
        assert image is not None
        return {name: value.to(model.device) for name, value in asked(tokenizer, image, prompt, model.config).items()}
    ids = tokenizer(prompt)["input_ids"]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise DataError("the prompt is empty and the tokenizer has no token to begin with; give a --prompt")
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and len(ids) + new > context:
        raise ConfigError(
            f"{len(ids)} tokens of prompt and {new} new ones exceed the model's context of {context}; "
            f"use --max-new-tokens {max(1, context - len(ids))} or a shorter prompt"
        )
    row = torch.tensor([ids], device=model.device)
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}
