"""Memory and time that ``fas convert --dry-run`` foretells, and what the conversion then takes, each in a process of its own.

    python benchmarks/dry_run.py [SHAPE …] [--out FILE]

GPT-2 of random weights; the tokenizer and the text are those of the embedded model. Few steps: memory does not depend on how
many.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fas.report.results import versions
from fas.tasks import builtin

OUT = Path(__file__).parent / "results" / "dry-run.json"
RUN = "import sys; from fas.cli import main; sys.exit(main())"
SMALL = {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 8192}
MIDDLE = {"n_embd": 512, "n_layer": 8, "n_head": 8, "vocab_size": 16384}
GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
# settings of the model, options of the conversion
SHAPES: dict[str, tuple[dict[str, int], list[str]]] = {
    "small, batch 8 of 128, linear": (SMALL, ["--batch-size", "8", "--length", "128"]),
    "small, batch 16 of 256, ffn, rate": (
        SMALL,
        ["--batch-size", "16", "--length", "256", "--coverage", "ffn", "--coding", "rate", "--levels", "8"],
    ),
    "middle, batch 4 of 128, attention": (
        MIDDLE,
        [
            "--batch-size",
            "4",
            "--length",
            "128",
            "--coverage",
            "attention",
            "--calibration-sequences",
            "8",
            "--timesteps",
            "4",
        ],
    ),
    "middle, batch 2 of 512, training-free": (
        MIDDLE,
        ["--stage1", "none", "--length", "512", "--calibration-sequences", "8", "--timesteps", "4"],
    ),
    "GPT-2 (124 M), recipe gpt2-wikitext2, batch 4 of 256": (
        GPT2,
        [
            "--recipe",
            "gpt2-wikitext2",
            "--length",
            "256",
            "--batch-size",
            "4",
            "--calibration-sequences",
            "4",
            "--timesteps",
            "4",
        ],
    ),
}
FEW = ["--stage1-steps", "2", "--eval-sequences", "4"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="*", help="parts of names; without any, all")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only-predict", action="store_true", help="renew what is foretold, keep what was measured")
    asked = parser.parse_args()
    found = json.loads(asked.out.read_text())["shapes"] if asked.out.exists() else {}
    for name, (settings, options) in SHAPES.items():
        if not asked.shapes or any(part in name for part in asked.shapes):
            found[name] = measured(settings, options, found[name] if asked.only_predict else None)
            print(name, json.dumps({key: found[name][key] for key in ("predicted_gib", "measured_gib", "ratio")}))
            asked.out.write_text(json.dumps({"versions": versions(), "shapes": found}, indent=1) + "\n")


def measured(settings: dict[str, int], options: list[str], before: dict[str, Any] | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        text = root / "text.txt"
        text.write_text(builtin.SEPARATOR.join(builtin.evaluation_documents()))
        subprocess.run([sys.executable, "-c", MODEL, json.dumps(settings), str(root / "model")], check=True)
        place = {"--model": root / "model", "--data": text, "--out": root / "out"}
        command = ["convert", *(str(word) for pair in place.items() for word in pair), "--json", "-q", *options, *FEW]
        plan = run([*command, "--dry-run"])
        assert not (root / "out").exists()
        taken = before or taken_by(run(command))
    predicted, peak = plan["peak_bytes"] / 2**30, taken["measured_gib"]
    return {
        "model": settings,
        "options": [*options, *FEW],
        "parameters": plan["inspection"]["parameters"],
        "predicted_gib": round(predicted, 2),
        "ratio": round(predicted / peak, 3),
        "predicted_seconds": round(plan["seconds"], 1),
        "stages": [
            {"name": s["name"], "seconds": round(s["seconds"], 2), "memory": s["memory"]} for s in plan["stages"]
        ],
        **{name: value for name, value in taken.items() if name.startswith("measured")},
    }


def taken_by(done: dict[str, Any]) -> dict[str, Any]:
    """What a conversion took, of its results."""
    return {"measured_gib": done["extra"]["peak_memory_gib"], "measured_seconds": done["extra"]["seconds"]}


def run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", RUN, *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


MODEL = """
import json, sys
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from fas.tasks.builtin import model_path
config = GPT2Config(**json.loads(sys.argv[1]), n_positions=1024, bos_token_id=0, eos_token_id=0)
GPT2LMHeadModel(config).save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(model_path()).save_pretrained(sys.argv[2])
"""

if __name__ == "__main__":
    main()
