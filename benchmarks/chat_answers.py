"""Greedy answers of an ANN and of its SNN to ten chat prompts, side by side: ``python benchmarks/chat_answers.py MODEL SNN``.

MODEL is the original (a GGUF file, or a folder), SNN a folder that `fas convert` wrote from it. Nothing is edited or chosen.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import fas
from fas.pipeline.load import load_ann, load_spiking
from fas.report.results import this_command, versions

PROMPTS = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Write a short poem about the sea.",
    "Give me three tips for sleeping well.",
    "What is 7 plus 5?",
    "Who wrote Romeo and Juliet?",
    "Translate 'good morning' into Spanish.",
    "What is photosynthesis?",
    "Write a two-sentence story about a robot who learns to paint.",
    "Name four animals that live in the ocean.",
)
MOST = 48
"""New tokens of an answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the original: a GGUF file, or a folder")
    parser.add_argument("snn", help="the folder that was converted from it")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/chat-smollm2.json"))
    args = parser.parse_args()
    torch.manual_seed(0)
    ann, tokenizer = load_ann(args.model)
    snn, _ = load_spiking(args.snn)
    spiking = snn.config.quantization_config.spiking_config()
    rows = []
    for prompt in PROMPTS:
        begun = time.time()
        by_ann = answer(ann, tokenizer, prompt)
        between = time.time()
        with fas.accelerated(snn):
            by_snn = answer(snn, tokenizer, prompt)
        seconds = [round(between - begun, 1), round(time.time() - between, 1)]
        rows.append({"prompt": prompt, "ann": by_ann, "snn": by_snn, "seconds": seconds})
        print(f"{prompt}\n  ANN: {by_ann!r}\n  SNN: {by_snn!r}", flush=True)
    about = {
        "timesteps": spiking.timesteps,
        "levels": spiking.levels,
        "neurons_per_channel": spiking.neurons_per_channel,
    }
    head = {"model": args.model, "seed": 0, "versions": versions(), "command": this_command(), "new_tokens": MOST}
    args.out.write_text(json.dumps({**head, **about, "answers": rows}, indent=1, ensure_ascii=False) + "\n")
    print(f"\nFor docs/real-models.md:\n\n{table(rows)}")


def answer(model: Any, tokenizer: Any, prompt: str) -> str:
    """The greedy answer to one message of a user, in the chat template of the model."""
    message = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**inputs, do_sample=False, max_new_tokens=MOST)
    return str(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def table(rows: list[dict[str, Any]]) -> str:
    """The answers in Markdown; line breaks become <br>."""
    lines = ["| prompt | ANN | SNN |", "|---|---|---|"]
    for row in rows:
        cells = [row[key].replace("|", "\\|").replace("\n", "<br>") for key in ("prompt", "ann", "snn")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
