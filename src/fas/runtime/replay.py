"""Runs the blocks of a segment one at a time: their arguments are recorded in one forward pass and replayed.

Only the hidden states of one block are held, of the spiking stream (T·B rows) and of its target, the QCFS stream (B rows).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.cache_utils import Cache

from fas.errors import CheckpointError, DataError
from fas.models import Segment, find_segments
from fas.neurons import Clock
from fas.runtime.control import as_qcfs, without_cache


@dataclass
class Stream:
    """One batch on its way through the blocks: the hidden states before the next block, and each block's other arguments."""

    hidden: Tensor | None = None
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    ahead: Tensor | None = None
    """What the next block makes of ``hidden`` with the neurons that it had when it was last tried."""
    tupled: bool = False
    """Whether blocks hand their hidden states on in a tuple."""

    def step(self) -> None:
        """Move to ``ahead``."""
        self.hidden, self.ahead = self.ahead, None

    def close(self) -> None:
        """Nothing of it lies outside of memory."""


def blocks_of(segment: Segment) -> list[nn.Module]:
    """The repeated layers of a segment in order."""
    return [module for module in segment.module.modules() if type(module).__name__ == segment.family.block]


def number_of_layers(model: nn.Module) -> int:
    """Layers of all segments, one after the other."""
    return sum(len(blocks_of(segment)) for segment in find_segments(model))


def batches_of(hidden: Iterable[Tensor], tokens: int) -> int:
    """How many of the batches with ``hidden`` states ``[B, S, D]``, from the first, hold ``tokens`` tokens (or all do not)."""
    count = found = 0
    for states in hidden:
        count, found = count + 1, found + states[..., 0].numel()
        if found >= tokens:
            break
    return count


class _Recorder:
    def __init__(self, stream: Stream, like: Stream | None) -> None:
        self.stream, self.like = stream, like

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden = args[0] if args else kwargs.pop("hidden_states")
        if not self.stream.arguments:
            self.stream.hidden = hidden.detach()
        arguments = no_caches(args[1:], kwargs)
        if self.like is not None:
            arguments = shared(arguments, self.like.arguments[len(self.stream.arguments)])
        self.stream.arguments.append(arguments)


def shared(value: Any, other: Any) -> Any:
    """``value`` with ``other``'s tensors in place of its own where they are equal: most batches have the same masks."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        alike = (value.shape, value.dtype, value.device) == (other.shape, other.dtype, other.device)
        return other if alike and torch.equal(value, other) else value
    if type(value) is not type(other) or not isinstance(value, dict | list | tuple) or len(value) != len(other):
        return value
    if isinstance(value, dict):
        return {key: shared(entry, other.get(key)) for key, entry in value.items()}
    return type(value)(shared(entry, its) for entry, its in zip(value, other, strict=True))


def no_caches(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a block that will run again: a cache would grow (some encoders are handed one although they decode
    nothing)."""
    kept = tuple(None if isinstance(value, Cache) else value for value in args)
    return kept, {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}


class StreamOnDisk(Stream):
    """A stream whose hidden states lie in ``file``, those ahead beside it."""

    def __init__(self, file: Path, device: torch.device) -> None:
        self.file, self.device, self.arguments = file, device, []
        self.next = file.with_suffix(".ahead")
        self.close()

    def close(self) -> None:
        """Remove the files."""
        self.file.unlink(missing_ok=True)
        self.next.unlink(missing_ok=True)

    def step(self) -> None:
        """Move to ``ahead``."""
        self.next.replace(self.file)

    @property
    def hidden(self) -> Tensor | None:
        """Read anew each time it is asked for."""
        return self._read(self.file)

    @hidden.setter
    def hidden(self, value: Tensor) -> None:
        self._write(value, self.file)

    @property
    def ahead(self) -> Tensor | None:
        """As ``hidden``."""
        return self._read(self.next)

    @ahead.setter
    def ahead(self, value: Tensor) -> None:
        self._write(value, self.next)

    def _read(self, file: Path) -> Tensor | None:
        return load_file(file, str(self.device))["hidden"] if file.exists() else None

    def _write(self, value: Tensor, file: Path) -> None:
        try:
            save_file({"hidden": value.detach().cpu().contiguous()}, file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"hidden states could not be written to {file} ({error}); make room") from error


class _AllRecorded(Exception):
    """Ends a forward pass of which no more is needed."""


@torch.no_grad()
def record(
    model: nn.Module,
    segment: Segment,
    batch: Mapping[str, Any],
    stream: Stream | None = None,
    like: Stream | None = None,
) -> Stream:
    """What stands before the blocks of ``segment`` for ``batch`` (folded if the clock says so), with every block's arguments.

    Runs nothing behind the first block: every block is told the same, but for its hidden states (and what the first one
    hands on, such as T5's biases of positions). ``like`` is a stream of another batch, whose equal arguments are shared.
    """
    stream = Stream() if stream is None else stream
    blocks, first = blocks_of(segment), []
    if not blocks:  # a projector
        return stream

    def passed_over(*_: Any, **__: Any) -> Any:
        if len(stream.arguments) == len(blocks):
            raise _AllRecorded
        return first[0]

    passed_over.passes_over = True  # type: ignore[attr-defined]

    def learn(module: nn.Module, args: Any, output: Any) -> None:
        first.append(output)
        if len(blocks) == 1:
            raise _AllRecorded

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(_Recorder(stream, like), with_kwargs=True).remove)
        stack.callback(blocks[0].register_forward_hook(learn).remove)
        for block in blocks[1:]:
            stack.callback(restore_forward, block, block.__dict__.get("forward"))
            block.forward = passed_over
        try:
            model(**batch, **without_cache(model))
        except _AllRecorded:
            return stream
    raise DataError(
        f"the calibration batches do not reach {segment.name}; they hold {', '.join(batch)}, so add what it reads"
    )


@contextmanager
def streams(
    model: nn.Module,
    segment: Segment,
    batches: Iterable[Mapping[str, Any]],
    device: torch.device,
    folder: Path | None,
    name: str,
    tokens: int | None = None,
) -> Iterator[list[Stream]]:
    """One stream a batch, from the first until they hold ``tokens`` rows (None: all), hidden states in memory or, with a
    ``folder``, in files called after ``name`` there that are removed in the end."""
    found: list[Stream] = []
    held = 0
    try:
        for index, batch in enumerate(batches):
            file = None if folder is None else folder / f"{segment.name}-{name}-{index}.safetensors"
            stream = Stream() if file is None else StreamOnDisk(file, device)
            found.append(record(model, segment, batch, stream, next(iter(found), None)))
            held += 0 if stream.hidden is None else stream.hidden[..., 0].numel()
            if tokens is not None and held >= tokens:
                break
        yield found
    finally:
        for stream in found:
            stream.close()


def both_streams(
    stack: ExitStack,
    model: nn.Module,
    segment: Segment,
    batches: Sequence[Mapping[str, Any]],
    device: torch.device,
    folder: Path | None,
    tokens: int | None,
) -> tuple[list[Stream], list[Stream]]:
    """The spiking stream and its target before the first block, until ``stack`` closes, of as many batches as hold
    ``tokens`` tokens."""
    with as_qcfs(model):
        targets = stack.enter_context(streams(model, segment, batches, device, folder, "qcfs", tokens))
    same = batches[: len(targets)]
    return stack.enter_context(streams(model, segment, same, device, folder, "spiking")), targets


def restore_forward(block: nn.Module, forward: Any) -> None:
    """Give ``block`` the forward of its class, or the one that it had of its own (accelerate puts one there)."""
    if forward is None:
        del block.forward
    else:
        block.forward = forward


@contextmanager
def inside_segment(clock: Clock) -> Iterator[None]:
    """Stand where a segment's hooks would have put us, so that neurons may run."""
    clock.depth += 1
    try:
        yield
    finally:
        clock.depth -= 1


def run_block(block: nn.Module, index: int, stream: Stream, clock: Clock) -> Tensor:
    """Output rows of ``block`` for the stream's present hidden states."""
    args, kwargs = stream.arguments[index]
    with inside_segment(clock):
        output = block(stream.hidden, *args, **kwargs)
    stream.tupled = isinstance(output, tuple)
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def run_behind(model: nn.Module, segment: Segment, batch: Mapping[str, Any], stream: Stream) -> None:
    """Run ``model`` on ``batch`` to the end of ``segment``, as if its blocks had given the ``stream``'s hidden states."""
    given = (stream.hidden,) if stream.tupled else stream.hidden

    def passed_over(*_: Any, **__: Any) -> Any:
        return given

    passed_over.passes_over = True  # type: ignore[attr-defined]

    def ended(*_: Any) -> None:
        raise _AllRecorded

    with ExitStack() as stack:
        for block in blocks_of(segment):
            stack.callback(restore_forward, block, block.__dict__.get("forward"))
            block.forward = passed_over
        stack.callback(segment.module.register_forward_hook(ended).remove)
        with suppress(_AllRecorded):
            model(**batch, **without_cache(model))
