"""FAS' neurons against SpikingJelly's, spike by spike: ``python benchmarks/cross_check.py --python ENVIRONMENT/bin/python``.

SpikingJelly's dependencies break transformers, so it lives in an environment of its own:

    python -m venv ENVIRONMENT && ENVIRONMENT/bin/pip install torch==2.13.0 numpy scipy matplotlib loguru tqdm
    ENVIRONMENT/bin/pip install --no-deps spikingjelly==2.0.0

This process draws the inputs and runs FAS; the other runs this file with ``--theirs``, and gets and gives arrays. Writes
``benchmarks/results/cross-check.json``: a row a neuron, with the values compared and those that differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results" / "cross-check.json"
STEPS, COUNT, THRESHOLD, LEVELS = 8, 100_000, 0.8, 8
BITS = 16


def inputs() -> dict[str, np.ndarray]:
    """Random charges of both signs; ``values`` have outliers, and lie between multiples of the least bit: at one, a few-spike
    neuron fires if [v ≥ T] (SpikingJelly), and does not if [v > T] (the source, and FAS)."""
    draw = np.random.default_rng(0)
    charges = draw.normal(0.2, 0.6, (STEPS, COUNT)).astype(np.float32)
    least = 10 * 2.0**-BITS
    values = ((np.floor(draw.standard_t(2, COUNT) * 8 / least) + 0.5) * least).astype(np.float32)
    return {"charges": charges, "values": values}


def theirs(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What SpikingJelly's neurons answer; runs in the other environment."""
    from spikingjelly.activation_based import neuron

    charges, values = given["charges"], given["values"]
    unit = THRESHOLD / LEVELS
    worth = [10 * 2.0**-t for t in range(1, BITS + 1)], [500 * 2.0**-t for t in range(1, BITS + 1)]
    ordinary, outlier = (neuron.FewSpikeTable(table, table, table) for table in worth)
    parallel = neuron.PSN(STEPS)
    times = torch.arange(1, STEPS + 1.0)
    parallel.weight.data = (1 / times).unsqueeze(1).expand(STEPS, STEPS).clone()
    parallel.bias.data = (0.5 * THRESHOLD / times - THRESHOLD).unsqueeze(1)
    with torch.no_grad():
        return {
            "IFNode": neuron.IFNode(THRESHOLD, None, step_mode="m")(charges),
            "HalfThresholdIFNode": neuron.HalfThresholdIFNode(THRESHOLD, step_mode="m")(charges),
            "STBIFNode": neuron.STBIFNode(unit, 2 * LEVELS + 1, True, LEVELS, -LEVELS, "m")(charges) / unit,
            "STBIFNode, unsigned": neuron.STBIFNode(unit, LEVELS + 1, False, LEVELS, 0, "m")(charges) / unit,
            "FewSpikeNode": neuron.FewSpikeNode(ordinary)(values.abs().clamp(max=9.99)),
            "OutlierAwareThresholdNode": neuron.OutlierAwareThresholdNode(ordinary, outlier, 10.0, 500.0)(values),
            "PSN": parallel(charges),
        }


def ours(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What FAS' neurons answer."""
    from fas.methods.las import few_spikes, outlier_aware
    from fas.methods.parallel import parallel_spikes
    from fas.neurons import rate_step_rows, sigma_delta

    charges, values = given["charges"], given["values"]
    threshold, half = torch.full((COUNT,), THRESHOLD), torch.full((COUNT,), 0.5)
    nothing, ones = torch.zeros(COUNT), (1,) * STEPS
    running = charges.cumsum(0)
    return {
        "IFNode": rate_step_rows(charges, threshold, nothing, False)[1],
        "HalfThresholdIFNode": rate_step_rows(charges, threshold, half, False)[1],
        "STBIFNode": sigma_delta(running, threshold, half, nothing, ones, LEVELS, True)[1],
        "STBIFNode, unsigned": sigma_delta(running, threshold, half, nothing, ones, LEVELS, False)[1],
        "FewSpikeNode": few_spikes(values.abs().clamp(max=9.99), 10.0, BITS)[0],
        "OutlierAwareThresholdNode": outlier_aware(values, BITS).value,
        "PSN": parallel_spikes(charges.mean(0), threshold, STEPS, False).spikes,
    }


METHODS = {
    "IFNode": "direct-max, direct-percentile",
    "HalfThresholdIFNode": "qcfs",
    "STBIFNode": "spikezip",
    "STBIFNode, unsigned": "spikezip",
    "FewSpikeNode": "las",
    "OutlierAwareThresholdNode": "las",
    "PSN": "parallel",
}


def compared(python: str) -> list[dict[str, Any]]:
    """One row a neuron: how many outputs there are, and how many are more than rounding apart."""
    given = inputs()
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "given.npz", **given)  # type: ignore[arg-type]
        subprocess.run([python, __file__, "--theirs", folder], check=True)
        answers = dict(np.load(Path(folder) / "theirs.npz"))
    rows = []
    for name, mine in ours({key: torch.from_numpy(value) for key, value in given.items()}).items():
        other = torch.from_numpy(answers[name])
        assert mine.shape == other.shape, (name, mine.shape, other.shape)
        different = int(((mine - other).abs() > 1e-4).sum())
        fired = int(torch.count_nonzero(other))
        rows.append(
            {
                "neuron": name,
                "method": METHODS[name],
                "outputs": mine.numel(),
                "not_zero": fired,
                "different": different,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", help="of the environment that has SpikingJelly")
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        given = {key: torch.from_numpy(value) for key, value in np.load(Path(args.theirs) / "given.npz").items()}
        found = {key: value.numpy() for key, value in theirs(given).items()}
        np.savez(Path(args.theirs) / "theirs.npz", **found)
        return
    from fas.report.results import this_command, versions
    from fas.storage import write_whole

    if not args.python:
        parser.error("--python of an environment with SpikingJelly is needed, see above")
    script = "from importlib.metadata import version; print(version('spikingjelly'))"
    peer = subprocess.run([args.python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()
    about = {"seed": 0, "versions": versions() | {"spikingjelly": peer}, "command": this_command()}
    rows = compared(args.python)
    write_whole(RESULTS, json.dumps(about | {"rows": rows}, indent=1) + "\n")
    for row in rows:
        print(f"{row['neuron']}: {row['different']} of {row['outputs']:,} differ", file=sys.stdout)


if __name__ == "__main__":
    main()
