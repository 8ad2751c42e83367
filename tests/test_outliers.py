"""Channels with outliers: one threshold a channel keeps them from spoiling the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import ann, tokens

import fas
from fas.runtime.control import sites_of


@pytest.mark.parametrize("coverage", ["linear", "full"])
def test_one_scale_a_tensor_is_stored_trained_and_worse_where_channels_differ(coverage: str, tmp_path: Path) -> None:
    losses = {}
    for scales in ("channel", "tensor"):
        model = ann("gpt2")
        with torch.no_grad():  # one channel of the residual stream is an outlier
            for block in model.transformer.h:
                block.ln_1.weight[3] *= 30
                block.ln_2.weight[5] *= 30
            expected = model(tokens()).logits
        fas.prepare(model, fas.SpikingConfig(coverage=coverage, scales=scales), [{"input_ids": tokens(4, 9)}])
        stored = {len(site.log_scale) for site in sites_of(model).values() if site.calibrates}
        assert (stored == {1}) == (scales == "tensor")
        out = model(tokens()).logits
        out.sum().backward()
        assert all(s.log_scale.grad is not None for s in sites_of(model).values() if s.kind != "group")
        losses[scales] = float((out - expected).square().mean().detach())
        fas.convert(model).save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        with torch.no_grad():
            assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert losses["channel"] < 0.9 * losses["tensor"]
