"""Threads on one model: what a call remembers is its own, and nobody changes the model under it (`fas.turns`)."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny
import torch
from transformers import StoppingCriteria

import fas
from fas import turns
from fas.errors import FasError
from fas.neurons import Site
from fas.runtime.control import as_qcfs, at_time, clock_of
from fas.runtime.events import EventExecutor
from fas.runtime.spikes import counting

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from threads import KINDS, case, serve, switching, works


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long."""
    monkeypatch.setattr(turns, "PATIENCE", 0.3)
    monkeypatch.setattr(turns, "LOOK", 0.02)


@pytest.fixture(scope="module")
def served() -> Any:
    return tiny.snn("llama")


@pytest.mark.parametrize("same_shape", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_calls_are_right_while_another_thread_changes_the_model(served: Any, kind: str, same_shape: bool) -> None:
    found = case(served, kind, threads=8, calls=10, same_shape=same_shape)
    assert (found["wrong"], found["errors"], found["refused"]) == (0, {}, 0)
    assert found["calls"] == 80
    assert found["changes"] >= 3, "nobody may starve"


@pytest.mark.parametrize(("make", "family", "coverage"), [
    (tiny.snn, "gpt2", "attention"), (tiny.snn, "llama", "full"), (tiny.qcfs_model, "opt", "linear"),
])  # fmt: skip
def test_other_coverages_and_qcfs_models(make: Any, family: str, coverage: str) -> None:
    model = make(family, coverage)
    tally = serve(model, works(model), threads=4, calls=6)
    assert (tally.wrong, tally.errors, tally.refused) == (0, {}, 0)


def test_gradients_of_threads_are_those_of_one(served: Any) -> None:
    """Also of checkpointed layers, which run again in the backward pass."""
    model = tiny.snn("llama").train()
    values = [value for value in model.parameters() if value.requires_grad]

    def gradients(index: int) -> list[torch.Tensor | None]:
        ids = tiny.tokens(2, 4 + index % 3, seed=index)
        return list(torch.autograd.grad(model(input_ids=ids, labels=ids).loss, values, allow_unused=True))

    for checkpointed in (False, True):
        if checkpointed:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        wanted = [gradients(index) for index in range(6)]
        with switching(), ThreadPoolExecutor(6) as pool:
            found = list(pool.map(gradients, range(6)))
        for some, same in zip(found, wanted, strict=True):
            for one, other in zip(some, same, strict=True):
                assert one is other is None or torch.allclose(one, other, atol=1e-6)


@contextmanager
def called(model: Any, **inputs: Any) -> Iterator[list[Any]]:
    """Inside, another thread is in the middle of a call; what it gives is in the list afterwards."""
    entered, go, found = threading.Event(), threading.Event(), []
    other = threading.Thread(target=lambda: found.append(model(**inputs)))

    def stop(*_: Any) -> None:
        if threading.current_thread() is other:
            entered.set()
            assert go.wait(20)

    handle = model.get_input_embeddings().register_forward_hook(stop)
    other.start()
    try:
        assert entered.wait(20)
        yield found
    finally:
        go.set()
        other.join()
        handle.remove()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "set_timesteps": lambda model: model.set_timesteps(2),
    "fas.convert": fas.convert,
    "fas.calibrate": lambda model: fas.calibrate(model, [tiny.inputs_for(model)]),
    "fas.diagnose": lambda model: fas.diagnose(model, [tiny.inputs_for(model)]),
    "fas.ledger": lambda model: fas.ledger(model, tiny.inputs_for(model)),
    "a run as QCFS model": lambda model: as_qcfs(model).__enter__(),
    "a run in another time": lambda model: at_time(model, timesteps=2).__enter__(),
    "a count of spikes": lambda model: counting(model).__enter__(),
    "fas.accelerated": lambda model: fas.accelerated(model).__enter__(),
    "fas.adaptive": lambda model: fas.adaptive(model).__enter__(),
    "fas.memory_limit": lambda model: fas.memory_limit(model, "1 GiB").__enter__(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_waits_for_calls_and_refuses_if_they_do_not_end(short: None, name: str) -> None:
    model, ids = tiny.snn("llama"), tiny.tokens()
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    with called(model, input_ids=ids) as found:
        with pytest.raises(
            FasError, match=rf"^{name} would change the model while other threads call it \(1\), .*0 s; do it"
        ):
            CHANGES[name](model)
        assert clock_of(model).config.timesteps == 4
    assert torch.equal(found[0].logits, wanted)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, wanted), "what was refused changed nothing"
    model.set_timesteps(2)


@pytest.mark.parametrize("context", [as_qcfs, counting, lambda model: at_time(model, timesteps=2)])
def test_a_call_waits_for_a_change_and_is_refused_if_it_does_not_end(short: None, context: Any) -> None:
    model, ids = tiny.snn("llama"), tiny.tokens()
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    with ThreadPoolExecutor(1) as pool:
        with context(model):
            model(input_ids=ids)
            with pytest.raises(
                FasError, match=r"^the model is changed by another thread \(a (run|count) .*; call it when"
            ):
                pool.submit(model, input_ids=ids).result()
            with pytest.raises(
                FasError, match=r"^set_timesteps would change the model while another thread changes it"
            ):
                pool.submit(model.set_timesteps, 2).result()
        assert torch.equal(pool.submit(model, input_ids=ids).result().logits, wanted)


def test_waiting_calls_go_on_when_the_change_has_ended() -> None:
    model, ids = tiny.snn("llama"), tiny.tokens()
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    with ThreadPoolExecutor(4) as pool:
        with as_qcfs(model):
            waiting = [pool.submit(model, input_ids=ids) for _ in range(4)]
        assert all(torch.equal(future.result().logits, wanted) for future in waiting)


class _Asks(StoppingCriteria):
    """Asks another thread to change the time after the first token."""

    def __init__(self, model: Any, pool: ThreadPoolExecutor) -> None:
        self.model, self.pool, self.asked = model, pool, []

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.asked = self.asked or [self.pool.submit(self.model.set_timesteps, 2)]
        return torch.zeros(1, dtype=torch.bool)


@pytest.mark.parametrize("use_cache", [True, False])
def test_all_tokens_of_a_generation_are_of_one_time(use_cache: bool) -> None:
    model, ids = tiny.snn("llama"), tiny.tokens(1, 4)
    settings = {"max_new_tokens": 5, "do_sample": False, "use_cache": use_cache}
    wanted = model.generate(ids, **settings)
    with ThreadPoolExecutor(1) as pool:
        asks = _Asks(model, pool)
        assert torch.equal(model.generate(ids, **settings, stopping_criteria=[asks]), wanted)
        asks.asked[0].result()
    assert clock_of(model).config.timesteps == 2


def test_time_is_not_changed_inside_a_call_of_ones_own() -> None:
    model = tiny.snn("llama")
    handle = model.get_input_embeddings().register_forward_hook(lambda *_: model.set_timesteps(2))
    with pytest.raises(FasError, match="set_timesteps was asked for inside a call of the model"):
        model(input_ids=tiny.tokens())
    handle.remove()
    assert clock_of(model).config.timesteps == 4
    model.set_timesteps(2)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("writes", [False, True])
def test_an_interrupted_call_stands_in_nobodys_way(short: None, kind: type[BaseException], writes: bool) -> None:
    """Python runs no hooks of modules for an interrupt."""
    model, ids = tiny.snn("llama"), tiny.tokens()
    call = (lambda: model.generate(ids, max_new_tokens=2)) if writes else (lambda: model(input_ids=ids))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    layer = model.model.layers[1].mlp

    def interrupt(*_: Any) -> None:
        raise kind

    for run in (lambda: _raises(kind, call), lambda: _in_thread(lambda: _raises(kind, call))):
        handle = layer.register_forward_pre_hook(interrupt)
        run()
        handle.remove()
        model.set_timesteps(4)
        _in_thread(lambda: model.set_timesteps(2))
        model.set_timesteps(4)
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids).logits, wanted)
        assert clock_of(model).depth == 0
        assert not any(site._memo for site in model.modules() if isinstance(site, Site))


def _raises(kind: type[BaseException], call: Callable[[], Any]) -> None:
    with pytest.raises(kind):
        call()


def _in_thread(run: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()


def test_a_thread_that_ends_inside_a_change_stands_in_nobodys_way(short: None) -> None:
    model = tiny.snn("llama")
    left = ExitStack()
    thread = threading.Thread(target=lambda: left.enter_context(counting(model)))
    thread.start()
    thread.join()
    model.set_timesteps(2)
    left.pop_all()


def test_copies_have_calls_of_their_own(short: None) -> None:
    model, ids = tiny.snn("llama"), tiny.tokens()
    stored = pickle.dumps(model)
    with called(model, input_ids=ids):
        for other in (copy.deepcopy(model), pickle.loads(stored)):
            other.set_timesteps(2)
            other.generate(ids, max_new_tokens=1)


def test_an_offloaded_model_runs_one_call_at_a_time() -> None:
    model = tiny.snn("llama")
    given = works(model)
    model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    tally = serve(model, given, threads=4, calls=4, contexts=False)
    assert (tally.wrong, tally.errors, tally.refused) == (0, {}, 0)


def test_two_threads_do_not_both_stop_sequences() -> None:
    model = tiny.snn("llama")
    with fas.adaptive(model), ThreadPoolExecutor(1) as pool, pytest.raises(FasError, match="on already"):
        pool.submit(fas.adaptive(model).__enter__).result()


@pytest.mark.parametrize("context", [
    fas.accelerated, lambda model: fas.accelerated(model, 24), fas.adaptive, lambda model: fas.memory_limit(model, "1 MiB"),
    lambda model: fas.memory_limit(model, "200 KiB"),
])  # fmt: skip
def test_contexts_that_end_in_another_order_leave_the_model_as_it_was(context: Any) -> None:
    """A thread begins one, another thread a second one, and the first thread ends first."""
    model, ids = tiny.snn("llama"), tiny.tokens(6, 5)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    before = {module: dict(vars(module)) for module in model.modules()}
    first, second = context(model), fas.memory_limit(model, "100 KiB") if context is fas.adaptive else context(model)
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as other:
        first.__enter__()
        pool.submit(second.__enter__).result()
        left = other.submit(first.__exit__, None, None, None)
        with torch.no_grad():
            between = model(input_ids=ids).logits
        pool.submit(second.__exit__, None, None, None).result()
        left.result()
    assert torch.allclose(between, wanted, atol=1e-2), "integers of 24 bits are rounded"
    clock = clock_of(model)
    assert (clock.frozen, clock.early, clock.shared, clock.turns.layers) == (None, None, None, [])
    for module, values in before.items():
        assert vars(module).keys() == values.keys()
        assert vars(module).get("forward") is values.get("forward")
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, wanted)


def test_a_second_accelerated_context_with_other_bits_is_refused() -> None:
    model = tiny.snn("llama")
    with fas.accelerated(model, 8), pytest.raises(FasError, match=r"on already for this model, with bits=8; leave"):
        fas.accelerated(model).__enter__()
    with fas.accelerated(model):
        pass


def test_events_of_threads_are_those_of_one() -> None:
    executor = EventExecutor(tiny.snn("llama"))
    batches = [tiny.tokens(1, 3 + i, seed=i) for i in range(4)]
    wanted = [executor(input_ids=batch) for batch in batches]
    with switching(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: executor(input_ids=batch), batches))
    for some, same in zip(found, wanted, strict=True):
        assert torch.equal(some.logits, same.logits)
        assert all(torch.equal(some.spikes[name], train) for name, train in same.spikes.items())


@pytest.mark.parametrize("change", [lambda model: model.set_timesteps(2), fas.convert])
def test_a_checkpoint_is_computed_again_in_its_own_time_or_not_at_all(change: Any) -> None:
    model = (tiny.qcfs_model if change is fas.convert else tiny.snn)("llama").train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    loss = model(input_ids=tiny.tokens(2, 6), labels=tiny.tokens(2, 6)).loss
    change(model)
    with pytest.raises(FasError, match="changed between a forward and its backward pass"):
        loss.backward()
    model(input_ids=tiny.tokens(2, 6), labels=tiny.tokens(2, 6)).loss.backward()
