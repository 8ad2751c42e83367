"""The settled cache where tokens are written in place: the past is read once for all timesteps, and is the same past."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fas
from fas.neurons.native import kernels
from fas.neurons.native.decoding import attend
from fas.runtime.held_still import HeldStill, held_still

needs_kernels = pytest.mark.skipif(not kernels.takes(torch.zeros(1)), reason="no compiled kernels here")
T, B = 3, 2


@needs_kernels
@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 40), st.integers(0, 6), st.integers(1, 40),
    st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([0, 1, 2]), st.integers(0, 2**31),
)  # fmt: skip
def test_a_past_that_is_shared_is_a_past_laid_out(
    timesteps: int,
    batch: int,
    groups: int,
    tokens: int,
    new: int,
    width: int,
    dtype: torch.dtype,
    masked: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, heads = timesteps * batch, 2 * groups
    query = torch.randn(rows, heads, width, generator=generator).to(dtype)
    past = torch.randn(2, batch, 2, tokens + 3, width, generator=generator).to(dtype)[:, :, :, :tokens]
    fresh = torch.randn(2, rows, 2, new + (tokens + new == 0), width, generator=generator).to(dtype)
    hidden = (
        torch.randn(rows if masked == 2 else 1, heads, tokens + fresh.shape[3], generator=generator) if masked else None
    )
    laid_out = [HeldStill(*pair).laid_out() for pair in zip(past, fresh, strict=True)]
    wanted = attend(query, *laid_out, hidden, 0.4)
    assert torch.equal(attend(query, *past, hidden, 0.4, (fresh[0], fresh[1])), wanted)


def test_to_whom_does_not_know_it_is_an_ordinary_tensor() -> None:
    past, fresh = torch.randn(B, 2, 5, 4), torch.randn(T * B, 2, 1, 4)
    found, wanted = HeldStill(past, fresh), torch.cat([past.repeat(T, 1, 1, 1), fresh], 2)
    assert (found.shape, found.dtype, found.device) == (wanted.shape, wanted.dtype, wanted.device)
    for seen in (
        found.clone(),
        found[:, 1:],
        found.mT,
        found.to(torch.float64),
        torch.cat([found, found], 1),
        found @ wanted.mT,
    ):
        assert not isinstance(seen, HeldStill)
    assert torch.equal(found.transpose(1, 2).flatten(2), wanted.transpose(1, 2).flatten(2))
    assert torch.equal(found @ wanted.mT, wanted @ wanted.mT)
    assert torch.equal(HeldStill(past, fresh[:, :, :0]).clone(), past.repeat(T, 1, 1, 1))


def test_gradients_go_through_what_is_laid_out() -> None:
    past, fresh = torch.randn(B, 1, 2, 3, requires_grad=True), torch.randn(T * B, 1, 1, 3, requires_grad=True)
    held_still(past, fresh, True).sum().backward()
    assert torch.equal(past.grad, torch.full_like(past, T))
    assert torch.equal(fresh.grad, torch.ones_like(fresh))
    with torch.no_grad():
        assert isinstance(held_still(past, fresh, True), HeldStill)
        assert not isinstance(held_still(past, fresh, False), HeldStill)


def following(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Logits of the last six tokens, each behind a cache of those before."""
    said = model(input_ids=ids[:, :-6], use_cache=True)
    steps = [model(input_ids=one, past_key_values=said.past_key_values).logits for one in ids[:, -6:].split(1, 1)]
    return torch.cat(steps, 1)


@needs_kernels
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma2", "mistral", "gpt_neox"])
@torch.no_grad()
def test_decoders_read_a_settled_past_where_it_lies(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.snn(family, "linear", timesteps=4, cache="settled")
    ids = tiny.tokens(2, 14)
    wanted = following(model, ids)
    laid = []
    monkeypatch.setattr(HeldStill, "laid_out", lambda of, before=HeldStill.laid_out: laid.append(of) or before(of))
    with fas.accelerated(model):
        found = following(model, ids)
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
        assert bool(laid) == (family == "gemma2")  # whose soft cap the kernel does not know
        cache = model(input_ids=ids, use_cache=True).past_key_values
    assert {len(layer.keys) for layer in cache.layers} == {2}


@needs_kernels
@torch.no_grad()
def test_branches_of_a_settled_cache_do_not_write_over_each_other() -> None:
    model, ids = tiny.snn("gpt2", "linear", timesteps=4, cache="settled"), tiny.tokens(2, 9)
    new = [torch.tensor([[7], [8]]), torch.tensor([[9], [10]])]
    with fas.accelerated(model):
        said = model(input_ids=ids, use_cache=True).past_key_values
        alone = [model(input_ids=one, past_key_values=copy.deepcopy(said)).logits for one in new]
        branches = [copy.copy(said) for _ in new]
        for branch in branches:
            branch.layers = [copy.copy(layer) for layer in said.layers]
        for branch, one in zip(branches, new, strict=True):
            model(input_ids=one, past_key_values=branch)
        for branch, one, wanted in zip(branches, new, alone, strict=True):
            branch.crop(-1)
            assert torch.equal(model(input_ids=one, past_key_values=branch).logits, wanted)


@needs_kernels
@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
@torch.no_grad()
def test_a_settled_cache_goes_in_and_out(before: bool, after: bool) -> None:
    model, ids = tiny.snn("llama", "linear", timesteps=4, cache="settled"), tiny.tokens(2, 10)

    def written(first: bool, then: bool) -> Tensor:
        with fas.accelerated(model) if first else nullcontext():
            cache = model(input_ids=ids[:, :6], use_cache=True).past_key_values
            model(input_ids=ids[:, 6:7], past_key_values=cache)
        with fas.accelerated(model) if then else nullcontext():
            return torch.cat(
                [model(input_ids=part, past_key_values=cache).logits for part in ids[:, 7:].split([1, 2], 1)], 1
            )

    wanted = written(False, False)
    assert (written(before, after) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
