"""Many threads on one converted model: ``python benchmarks/threads.py``. 8 threads × 5,000 calls while another one changes it.

Forwards of changing shapes, padded batches, and generations behind an exact or a settled cache, plain, accelerated and with
sequences that stop by themselves; the other thread sets T and the kind of cache, runs the model as QCFS model, and enters and
leaves `fas.accelerated`. A call is right if it gives what the same call gives alone, at one T and cache that were set at some
time: a mixture of two gives something else. Written to ``benchmarks/results/faults.json``, key ``threads``.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import fas
from fas.errors import FasError
from fas.report.results import this_command, versions
from fas.runtime.control import as_qcfs
from fas.storage import write_whole

RESULTS = Path(__file__).parent / "results" / "faults.json"
TIMES: tuple[dict[str, Any], ...] = (
    {"timesteps": 2, "cache": "exact"},
    {"timesteps": 4, "cache": "exact"},
    {"timesteps": 4, "cache": "settled"},
    {"timesteps": 2, "cache": "settled"},
)
NEW = 4
"""Tokens that a generation writes."""
CLOSE = 1e-4
"""What a right call may be off by, of the largest logit; another T, or another call's spikes, are off by 0.05 and more."""


def spiking(family: str = "linear", seed: int = 0) -> Any:
    """A small LLaMA of random weights as SNN."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, num_key_value_heads=2, pad_token_id=2, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.25)
    model.generation_config.eos_token_id = None
    config = fas.SpikingConfig(levels=8, timesteps=4, coverage=family)
    return fas.convert(fas.prepare(model, config, [{"input_ids": torch.randint(3, 97, (4, 9))}]))


@dataclass
class Work:
    """A call, and what it gives alone under each of `TIMES`."""

    inputs: dict[str, Tensor]
    writes: bool
    wanted: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def run(self, model: Any) -> Tensor:
        """Tokens ``[B, S]`` that are written, or logits ``[B, S, V]``."""
        if self.writes:
            return model.generate(**self.inputs, max_new_tokens=NEW, do_sample=False)
        return model(**self.inputs, use_cache=False).logits

    def is_right(self, found: Tensor) -> bool:
        """Whether ``found`` is what the call gives alone at one of the times."""
        if self.writes:
            return any(torch.equal(found, wanted) for wanted in self.wanted)
        return any(float((found - wanted).abs().max()) <= CLOSE * float(wanted.abs().max()) for wanted in self.wanted)


def works(model: Any, same_shape: bool = False, writes: bool = True) -> list[Work]:
    """Forwards, and generations where it ``writes``, run alone under each of `TIMES`."""
    found = []
    for index in range(12):
        rows, length = (1, 5) if same_shape else (1 + index % 2, 3 + index % 5)
        ids = torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(index))
        mask = torch.ones_like(ids)
        if rows > 1:
            mask[0, :2] = 0
        found.append(Work({"input_ids": ids, "attention_mask": mask}, writes and index % 4 == 3))
    for at in TIMES:
        model.set_timesteps(**at)
        for work in found:
            work.wanted.append(work.run(model))
    return found


@dataclass
class Tally:
    """What came of a run."""

    calls: int = 0
    wrong: int = 0
    refused: int = 0
    changes: int = 0
    errors: Counter[str] = field(default_factory=Counter)


@contextmanager
def switching(seconds: float = 1e-6) -> Iterator[None]:
    """Threads take turns at nearly each operation of Python."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def changes(model: Any, contexts: bool) -> list[Callable[[], Any]]:
    """What the other thread does, in turn."""

    def through(context: Any) -> None:
        with context:
            pass

    found: list[Callable[[], Any]] = [lambda at=at: model.set_timesteps(**at) for at in TIMES]
    return [*found, lambda: through(as_qcfs(model)), *([lambda: through(fas.accelerated(model))] if contexts else [])]


def serve(
    model: Any, given: list[Work], threads: int, calls: int, contexts: bool = True, pause: float = 0.002
) -> Tally:
    """``calls`` of each of ``threads`` threads while another one changes the model."""
    tally, lock, done = Tally(), threading.Lock(), threading.Event()

    def guarded(run: Callable[[], bool]) -> None:
        try:
            wrong, refused, error = not run(), 0, None
        except FasError as problem:
            wrong, refused, error = False, 1, None if "has waited" in str(problem) else repr(problem)[:200]
        except Exception as problem:
            wrong, refused, error = False, 0, repr(problem)[:200]
        with lock:
            tally.wrong += wrong
            tally.refused += refused if error is None else 0
            tally.errors.update([error] if error else [])

    def work(number: int) -> None:
        for index in range(calls):
            one = given[(index + number) % len(given)]
            guarded(lambda one=one: one.is_right(one.run(model)))  # type: ignore[misc]

    def change() -> None:
        some = changes(model, contexts)
        while not done.is_set():
            guarded(lambda: some[tally.changes % len(some)]() or True)
            tally.changes += 1
            time.sleep(pause)

    with switching():
        others = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        changer = threading.Thread(target=change)
        for thread in (*others, changer):
            thread.start()
        for thread in others:
            thread.join()
        done.set()
        changer.join()
    tally.calls = threads * calls
    return tally


KINDS: dict[str, Any] = {
    "plain": lambda model: nullcontext(),
    "accelerated": fas.accelerated,
    "settled": fas.adaptive,
    "confident": lambda model: fas.adaptive(model, settled=False, confidence=0.5),
}


def case(model: Any, kind: str, threads: int, calls: int, same_shape: bool = False) -> dict[str, Any]:
    """``threads`` × ``calls`` calls of one ``kind``."""
    start = time.perf_counter()
    with KINDS[kind](model):
        given = works(model, same_shape, writes=kind != "confident")  # whose sequences keep no cache
        tally = serve(model, given, threads, calls, contexts=kind == "plain")
    about = {"kind": kind, "same_shape": same_shape, "threads": threads, "calls": tally.calls, "changes": tally.changes}
    about |= {"wrong": tally.wrong, "refused": tally.refused, "errors": dict(tally.errors)}
    return about | {"seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=5000, help="of each thread")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, rows = spiking(), []
    plan = [("plain", 0.25, False), ("plain", 0.25, True), ("accelerated", 0.2, False), ("accelerated", 0.2, True)]
    for kind, share, same in [*plan, ("settled", 0.05, False), ("confident", 0.05, False)]:
        rows.append(case(model, kind, args.threads, round(args.calls * share), same))
        print(rows[-1], flush=True)
    totals = {name: sum(row[name] for row in rows) for name in ("calls", "changes", "wrong", "refused", "seconds")}
    values = {"command": this_command(), "versions": versions(), **totals, "rows": rows}
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_whole(RESULTS, json.dumps(before | {"threads": values}, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
