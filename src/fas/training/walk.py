"""One pass of Stage 1 over the blocks of a model, from what runs in front of them to what stands behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fas.config import SpikingConfig
from fas.conversion.description import describe
from fas.conversion.install import install
from fas.conversion.kept import Kept
from fas.conversion.order import number
from fas.conversion.scales import Sampling, require_samples, sampling
from fas.conversion.verbs import fit_site
from fas.models import Placement
from fas.neurons import Clock, Site
from fas.progress import Progress
from fas.runtime.memory import return_freed_memory
from fas.runtime.prefix import add_prefix, remove_prefix
from fas.runtime.replay import Stream, blocks_of, record, run_behind, run_block, streams
from fas.training.block import BlockOptions, BlockReport, error_of, masks_of, train_block
from fas.training.pair import Pair, fill, only_segment, prefix_for

FITTED = 16
"""Batches, from all over, that scales are fitted on."""


class Walk:
    """Stage 1 of the student of a `Pair`.

    Finished blocks go to ``kept`` (None: nowhere), hidden states into files in ``folder`` (None: they stay in memory).
    """

    def __init__(
        self,
        pair: Pair,
        config: SpikingConfig,
        batches: Sequence[dict[str, Any]],
        options: BlockOptions,
        progress: Progress,
        kept: Kept | None,
        folder: Path | None,
    ) -> None:
        self.pair, self.config, self.options, self.progress = pair, config, options, progress
        self.batches, self.masks, self.kept, self.folder = batches, masks_of(batches), kept, folder
        self.segment, self.places = only_segment(pair.teacher, config)
        self.mine, own = only_segment(pair.student, config)
        self.own = {place.name: place for place in own}
        self.sites: dict[str, Site] = {}
        self.changed: dict[str, Tensor] = {}
        """Weights outside of the blocks that are no longer the ANN's, by name."""
        spread = torch.linspace(0, len(batches) - 1, min(FITTED, len(batches)))
        self.few = spread.long().tolist()

    def run(self) -> list[BlockReport]:
        """Fit and train; the student is a QCFS model afterwards, and the teacher what it was."""
        blocks = blocks_of(self.segment)
        with ExitStack() as stack:
            for model in (self.pair.teacher, self.pair.student):
                stack.callback(model.train, model.training)
                model.eval()
            clock = self._install(stack)
            clock.met = {}
            stack.callback(setattr, clock, "met", None)
            given, wanted = self._in_front(stack)
            self.progress.note(self._needs(blocks[0], given))
            self.progress.start("Stage 1, a block at a time", len(blocks) * max(1, self.options.steps))
            reports = [self._block(index, given, wanted, clock) for index in range(len(blocks))]
            self._behind(given, clock)
            number(list(self.sites.values()), clock.met)
        describe(self.pair.student)
        self.progress.done(f"error of the first block {reports[0].after:.4f}, of the last {reports[-1].after:.4f}")
        return reports

    def _needs(self, block: nn.Module, given: Sequence[Stream]) -> str:
        """What it will take."""
        size = sum(parameter.numel() for parameter in block.parameters())
        states = 2 * len(given) * cast(Tensor, given[0].hidden).nbytes
        place = "memory" if self.folder is None else str(self.folder)
        return (
            f"a block has {size:,} parameters: {20 * size / 2**20:.0f} MiB with gradients, Adam's moments and a copy; "
            f"hidden states of {len(given):,} batches: {states / 2**20:.0f} MiB in {place}"
        )

    def part(self, index: int) -> str:
        """Under which name a finished block is kept and reported."""
        return f"{self.segment.name or 'block'}.{index}"

    def _name_of(self, block: nn.Module) -> str:
        """Where the student has ``block``, as in a checkpoint."""
        return next(name for name, module in self.pair.student.named_modules() if module is block)

    def _install(self, stack: ExitStack) -> Clock:
        """The student gets its sites, and both models the prefix; the teacher's goes again."""
        pair, some = self.pair, [self.batches[index] for index in self.few]
        tokens, states = prefix_for(pair, self.segment, self.places, self.config, some, self.progress)
        self.config = self.config.replaced(prefix=tokens)
        shapes = {n: (key.shape[0], key.shape[2], value.shape[2]) for n, (key, value) in states.items()}
        readers = [reader for place in self.own.values() for reader in place.consumers]
        biasless = [reader for reader in readers if getattr(reader, "bias", self) is None]
        sites = install(pair.student, [(self.mine, list(self.own.values()))], self.config, "qcfs", shapes, pair.device)
        self.sites = {site.name: site for site in sites}
        for reader in biasless:  # some have been given one, which no checkpoint holds
            if reader.bias is not None and reader.bias.is_meta:
                reader.bias = nn.Parameter(torch.zeros(reader.bias.shape, device=pair.device))  # type: ignore[arg-type]
        if tokens:
            add_prefix(self.segment, len(tokens), shapes, pair.teacher.dtype)
            stack.callback(remove_prefix, self.segment)
            for segment in (self.segment, self.mine):
                fill(segment, states, pair.device)
        return sites[0].clock

    def _in_front(self, stack: ExitStack) -> tuple[list[Stream], list[Stream]]:
        """The QCFS stream and the ANN's before the first block; sites in front of it are fitted."""
        teacher, student = self.pair.teacher, self.pair.student
        with self.pair.loaded(teacher, self._front(teacher)):
            places = [place for place in self.places if id(place.owner) not in _inside(self.segment)]
            with sampling(teacher, places, self.config, len(self.few)) as kept:
                for index in self.few:
                    kept.begin(self.batches[index])
                    record(teacher, self.segment, self.batches[index])
            wanted = stack.enter_context(
                streams(teacher, self.segment, self.batches, self.pair.device, self.folder, "ann")
            )
        with self.pair.loaded(student, self._front(student)):
            self._fit([place for place in places if kept.found[place.name].inputs], kept)
            given = stack.enter_context(
                streams(student, self.mine, self.batches, self.pair.device, self.folder, "qcfs")
            )
        return given, wanted

    def _block(self, index: int, given: Sequence[Stream], wanted: Sequence[Stream], clock: Clock) -> BlockReport:
        """Fit and train one block, unless it is kept, and move both streams past it."""
        teacher, block = blocks_of(self.segment)[index], blocks_of(self.mine)[index]
        name = self.part(index)
        known = self.kept.read(name) if self.kept is not None else None
        inside = {id(module) for module in teacher.modules()}  # owners of its sites
        places = [place for place in self.places if id(place.owner) in inside] if known is None else []
        with self.pair.loaded(self.pair.teacher, teacher.modules()):
            with sampling(self.pair.teacher, places, self.config, len(self.few)) as kept:
                for number in self.few if places else ():
                    kept.begin(self.batches[number])
                    run_block(teacher, index, given[number], clock)
            require_samples(self.pair.teacher, places, kept, len(self.few))
            _move(teacher, index, wanted, clock)
        with self.pair.loaded(self.pair.student, block.modules()):
            if known is None:
                self._fit(places, kept)
                report = self._train(block, index, name, given, wanted, clock)
            else:
                block.load_state_dict({leaf: known[0][f"{self._name_of(block)}.{leaf}"] for leaf in block.state_dict()})
                report = BlockReport(**known[1])
                self.progress.advance(max(1, self.options.steps), f"block {index} was trained before the interruption")
            _move(block, index, given, clock)
        return_freed_memory()
        return report

    def _train(
        self, block: nn.Module, index: int, name: str, given: Sequence[Stream], wanted: Sequence[Stream], clock: Clock
    ) -> BlockReport:
        @torch.no_grad()
        def judged() -> float:
            errors = [error_of(run_block(block, index, given[n], clock), wanted[n], self.masks[n]) for n in self.few]
            return float(torch.stack(errors).mean())

        before = after = judged()
        if self.options.steps:
            fitted = {leaf: value.detach().clone() for leaf, value in block.state_dict().items()}
            train_block(block, index, given, wanted, self.masks, clock, self.options, self.progress)
            after = judged()
            if not after < before:  # steps were too large; NaN is no better either
                self.progress.note(
                    f"block {index} is no better trained ({before:.5f} → {after:.5f}): it stays as fitted"
                )
                block.load_state_dict(fitted)
                after = before
        report = BlockReport(name, before, after)
        if not self.options.steps:
            self.progress.advance(1, f"block {index} error {before:.5f}")
        if self.kept is not None:
            place = self._name_of(block)
            values = {f"{place}.{leaf}": value for leaf, value in block.state_dict().items()}
            self.kept.write(name, values, asdict(report))
        return report

    def _behind(self, given: Sequence[Stream], clock: Clock) -> None:
        """Fit the sites behind the last block."""
        teacher, student, met = self.pair.teacher, self.pair.student, clock.met or {}
        places = [place for place in self.places if place.name not in met]
        if not places:
            return
        with self.pair.loaded(teacher, self._front(teacher, block=False)):
            with sampling(teacher, places, self.config, len(self.few)) as kept:
                for number in self.few:
                    kept.begin(self.batches[number])
                    run_behind(teacher, self.segment, self.batches[number], given[number])
            require_samples(teacher, places, kept, len(self.few))
        with self.pair.loaded(student, self._front(student, block=False)):
            self._fit(places, kept)
            run_behind(student, self.mine, self.batches[0], given[0])

    def _fit(self, places: Sequence[Placement], kept: Sampling) -> None:
        """Fit the student's sites of ``places``; readers outside of the blocks are remembered, for files hold the ANN's."""
        names = {module: name for name, module in self.pair.student.named_modules()}
        inside = _inside(self.mine)
        for place in places:
            mine = self.own[place.name]
            fit_site(mine, self.sites[place.name], kept.found[place.name], self.config)
            for reader in mine.consumers if id(mine.owner) not in inside else ():
                own = reader.named_parameters(names[reader], recurse=False)
                self.changed |= {name: value.detach().clone() for name, value in own}

    def _front(self, model: nn.Module, block: bool = True) -> list[nn.Module]:
        """What runs outside of the blocks, and the first of them, which a recording runs."""
        segment = self.segment if model is self.pair.teacher else self.mine
        inside = _inside(segment)
        outside = [module for module in segment.module.modules() if id(module) not in inside]
        return [*outside, *blocks_of(segment)[0].modules()] if block else outside


def _inside(segment: Any) -> set[int]:
    """Modules of the blocks."""
    return {id(module) for block in blocks_of(segment) for module in block.modules()}


@torch.no_grad()
def _move(block: nn.Module, index: int, moved: Sequence[Stream], clock: Clock) -> None:
    """Move streams past ``block``."""
    for stream in moved:
        stream.hidden = run_block(block, index, stream, clock)
