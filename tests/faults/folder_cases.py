"""Mutants of saved folders, each loaded by Python and as the commands do: the same result, or a clear refusal."""

from __future__ import annotations

import random
import shutil
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import folder_damages as damages
import folders
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import fas
from fas.conversion import describe
from fas.errors import FasError
from fas.pipeline.load import load_spiking
from fas.runtime.control import clock_of, sites_of

FAMILIES = ("gpt2", "llama", "bert_sequence")
COVERAGES = ("ffn", "linear", "attention", "full")
STAGES = ("snn", "qcfs")
TEXT = "w1 w2 w3 w5 w8"


class Mutant(NamedTuple):
    """A damage to a folder of one family, coverage and stage."""

    family: str
    coverage: str
    stage: str
    damage: damages.Damage

    @property
    def name(self) -> str:
        return f"{self.family}-{self.coverage}-{self.stage}: {self.damage[0]}"


def save(folder: Path, family: str, coverage: str, stage: str, seed: int = 0) -> None:
    """A folder as `save_pretrained` writes it, of an SNN with calibrated neurons or of a QCFS model, and a tokenizer."""
    levels = {"levels": 5} if seed else {}
    model = tiny.qcfs_model(family, coverage, seed=seed, **levels)
    if stage == "snn":
        model = fas.convert(model)
        for site in sites_of(model).values():
            if site.calibrates:
                site.add_parameters(clock_of(model).config.neuron_key)
        describe(model)
    model.save_pretrained(folder)
    folders.save_tokenizer(folder)


def bases(place: Path) -> dict[tuple[str, str, str], Path]:
    """Sound folders by family, coverage and stage."""
    made = {}
    for family in FAMILIES:
        for coverage in COVERAGES:
            for stage in STAGES:
                made[family, coverage, stage] = place / f"{family}-{coverage}-{stage}"
                save(made[family, coverage, stage], family, coverage, stage)
    save(place / "other", "gpt2", "linear", "snn", seed=1)
    return made


def mutants(made: dict[tuple[str, str, str], Path]) -> Iterator[Mutant]:
    """All of each kind for the first family's ``linear`` SNN, and every third or so of the others, drawn with a fixed seed."""
    drawn = random.Random(0)
    for number, ((family, coverage, stage), folder) in enumerate(made.items()):
        other = folder.parent / "other"
        every = [
            *damages.of_configuration(folder),
            *damages.of_files(folder, other),
            *damages.of_tensors(folder, number),
        ]
        whole = (family, coverage, stage) == ("gpt2", "linear", "snn")
        for damage in every if whole else drawn.sample(every, len(every) // 3):
            yield Mutant(family, coverage, stage, damage)


def loaded_by_python(folder: Path, family: str) -> torch.Tensor:
    """Logits of the text, by `from_pretrained`."""
    cls: Any = AutoModelForSequenceClassification if family.startswith("bert") else AutoModelForCausalLM
    model = cls.from_pretrained(folder)
    return _logits(model, AutoTokenizer.from_pretrained(folder))


def loaded_by_commands(folder: Path) -> torch.Tensor:
    """The same, as commands load it."""
    return _logits(*load_spiking(str(folder), "cpu", any_task=True))


def _logits(model: PreTrainedModel, tokenizer: Any) -> torch.Tensor:
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def judged(mutant: Mutant, base: Path, expected: torch.Tensor, place: Path) -> tuple[str, str]:
    """What both doors make of a mutant (``identical``, ``refused``, ``different`` …), and what is wrong with that."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    folder = place / "model"
    shutil.copytree(base, folder)
    mutant.damage[1](folder)
    python = _outcome(lambda: loaded_by_python(folder, mutant.family), expected, Exception)
    commands = _outcome(lambda: loaded_by_commands(folder), expected, FasError)
    faults = [text for kind, text in (python, commands) if kind in ("different", "traceback", "unclear")]
    if mutant.stage == "qcfs" and commands[0] == "identical":
        faults.append("a QCFS model was taken for an SNN")
    kind = "identical" if python[0] == commands[0] == "identical" else "refused"
    return kind, "; ".join(faults)


def _outcome(load: Any, expected: torch.Tensor, clear: type[Exception]) -> tuple[str, str]:
    try:
        found = load()
    except clear as error:
        said = str(error).strip()
        return ("refused", said) if said and (clear is Exception or "\n" not in said) else ("unclear", repr(error))
    except Exception:
        return "traceback", traceback.format_exc(limit=-2)
    same = found.shape == expected.shape and torch.equal(found, expected)
    return ("identical", "") if same else ("different", "different logits without a word")


def run(place: Path, some: int | None = None) -> tuple[Counter[str], list[str]]:
    """Judge all mutants, or ``some`` that are spread evenly: how many ended how, and those that ended wrongly."""
    made = bases(place)
    expected = {key: loaded_by_python(folder, key[0]) for key, folder in made.items()}
    listed = list(mutants(made))
    chosen = listed if some is None else listed[:: max(1, len(listed) // some)]
    counts: Counter[str] = Counter()
    wrong = []
    for mutant in chosen:
        key = (mutant.family, mutant.coverage, mutant.stage)
        kind, fault = judged(mutant, made[key], expected[key], place / "mutant")
        counts["wrong" if fault else kind] += 1
        wrong += [f"{mutant.name}: {fault}"] if fault else []
    return counts, wrong
