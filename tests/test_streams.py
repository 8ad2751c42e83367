"""Stage 2's way through the layers: how many batches walk it, and what stands before the next layer."""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from fas.calibration import CalibrationOptions
from fas.calibration.block import calibrate_block
from fas.models import find_segments
from fas.progress import Silent
from fas.runtime.control import as_qcfs, clock_of, sites_of
from fas.runtime.replay import Stream, blocks_of, both_streams, run_block

BATCHES = [{"input_ids": tiny.tokens(2, 8, seed)} for seed in range(5)]  # 16 tokens each


@pytest.mark.parametrize(
    ("rows", "align_steps", "expected"), [(8, 0, 1), (9, 0, 2), (32, 0, 4), (500, 0, 5), (8, 2, 5)]
)
def test_only_batches_that_are_looked_at_walk_through_the_layers(rows: int, align_steps: int, expected: int) -> None:
    """Candidates are judged on twice ``rows`` tokens; the gradient of a layer goes over all batches."""
    model = tiny.snn("gpt2", "ffn", timesteps=3)
    (segment,) = find_segments(model)
    options = CalibrationOptions(search_rows=rows, align_steps=align_steps)
    with ExitStack() as stack:
        spiking, targets = both_streams(stack, model, segment, BATCHES, model.device, None, options.walked_tokens)
        assert len(spiking) == len(targets) == expected
        for stream, target in zip(spiking, targets, strict=True):
            assert stream.hidden.shape == (6, 8, target.hidden.shape[2])
            assert target.hidden.shape[0] == 2


def states(*streams: Sequence[Stream]) -> list[list[Tensor]]:
    return [[stream.hidden.detach().clone() for stream in some] for some in streams]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("price", [0.0, 0.01])
@pytest.mark.parametrize("align_steps", [0, 3])
def test_the_next_layer_is_given_what_the_calibrated_one_makes(
    align_steps: int, price: float, on_disk: bool, tmp_path: Path
) -> None:
    """Also where it was not run again for it, because its last trial was of what its neurons are."""
    model = tiny.snn("gpt2", "linear", timesteps=3, levels=4)
    clock, (segment,) = clock_of(model), find_segments(model)
    options = CalibrationOptions(search_rows=16, align_steps=align_steps, spike_price=price)
    for site in sites_of(model).values():
        site.add_parameters(clock.config.neuron_key)
    with ExitStack() as stack:
        place = tmp_path if on_disk else None
        spiking, targets = both_streams(stack, model, segment, BATCHES, model.device, place, options.walked_tokens)
        for index, block in enumerate(blocks_of(segment)):
            before = states(spiking, targets)
            calibrate_block(model, block, index, f"layer {index}", spiking, targets, options, Silent(), None)
            after = states(spiking, targets)
            for streams, earlier, later in zip((spiking, targets), before, after, strict=True):
                for stream, rows, moved in zip(streams, earlier, later, strict=True):
                    stream.hidden = rows
                    with as_qcfs(model) if streams is targets else nullcontext(), torch.no_grad():
                        assert torch.equal(run_block(block, index, stream, clock), moved)
                    assert not torch.equal(rows, moved)
                    stream.hidden = moved
    assert not list(tmp_path.iterdir())
