"""Damages to a saved folder: its configuration, tensors and small files. Each is a name and what it does to a copy."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Damage = tuple[str, Callable[[Path], None]]

SPIKING: dict[str, list[Any]] = {
    "levels": [3, 15, 1024, 0, "x"], "activation": ["keep", "none"], "coding": ["rate", "ttfs"], "timesteps": [2, 8, -1, None],
    "steps": [[1, 1, 1, 1], [8], "4"], "neurons_per_channel": [2, 0], "schedule": ["layerwise"], "rows": ["step"],
    "coverage": ["ffn", "linear", "attention", "full", 7], "ignore": [["re:.*"], ["re:("], "x"], "targets": [["x"], [1]],
    "rotation": ["none", "heads"], "center": [True], "scales": ["tensor"], "cache": ["settled"], "prefix": [[1], "auto"],
    "version": [0, 2, "1"], "new": [1],
}  # fmt: skip
DESCRIPTION: dict[str, list[Any]] = {
    "stage": ["qcfs", "snn", "ann", None], "neurons": [[1], ["a.b"], ["../../x"], [], "x"], "sites": [{}, [], None],
    "order": [[], ["x"], 3], "prefix": [{"0": [1, 2, 3]}, [1]], "quant_method": ["gptq", None, []], "digest": ["0", None, 5],
    "future": [1],
}  # fmt: skip
MODEL: dict[str, list[Any]] = {
    "vocab_size": [10, 98, "x"], "architectures": [[], ["Nothing"], None, "x"], "model_type": ["opt", "zz", None],
    "dtype": ["float16", "x"], "auto_map": [{"AutoConfig": "x.Y"}], "quantization_config": [None, "x", [1], {}],
    "tie_word_embeddings": [True, False], "num_labels": [7],
    "transformers_weights": ["../x.safetensors", None],
}  # fmt: skip
BY_KIND = {int: [1, 0, 999, "x", None], float: [0.5, "x"], str: ["relu", 3], bool: [None], list: [{}], type(None): [1]}
"""What values of other keys become, by what they are."""


def of_configuration(folder: Path) -> Iterator[Damage]:
    """Values that are others, of another kind, or gone."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in sorted(config.items()):
        for other in MODEL.get(key, BY_KIND.get(type(value), [])):
            yield f"config.{key}={str(other)[:20]}", _setting((key,), other)
        yield f"config.{key} gone", _setting((key,), ...)
    for key in MODEL.keys() - config.keys():
        for other in MODEL[key]:
            yield f"config.{key} new", _setting((key,), other)
    for place, damages in ((("quantization_config",), DESCRIPTION), (("quantization_config", "spiking"), SPIKING)):
        for key, values in damages.items():
            for other in values:
                yield f"{place[-1]}.{key}={other}", _setting((*place, key), other)
            yield f"{place[-1]}.{key} gone", _setting((*place, key), ...)
    for name, text in (
        ("null", "null"), ("list", "[1]"), ("empty", ""), ("deep", "[" * 100_000), ("object", "{}"), ("bytes", "\0\1"),
    ):  # fmt: skip
        yield f"config.json {name}", _writing("config.json", text)
    yield "config.json laid out otherwise", _laid_out("config.json")


def of_files(folder: Path, other: Path) -> Iterator[Damage]:
    """Small files that are others, damaged, new or gone; ``other`` is another model's folder."""
    texts = {"null": "null", "list": "[1,2]", "object": '{"a":1}', "empty": "", "deep": '{"a":' * 20_000}
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "fas_manifest.json"):
        for kind, text in texts.items():
            yield f"{name} {kind}", _writing(name, text)
        yield f"{name} gone", _removing(name)
        yield f"{name} cut", _cutting(name, 0.5)
        if name != "fas_manifest.json":
            yield f"{name} laid out otherwise", _laid_out(name)
    for name in ("fas_manifest.json", "model.safetensors", "config.json"):
        yield f"{name} of another", _taking(name, other)
    yield "words exchanged", _exchanged_words
    yield "manifest's checksum", _other_checksum
    yield "new vocab.json", _writing("vocab.json", '{"a":0}')
    yield "new added_tokens.json", _writing("added_tokens.json", '{"zz":5}')
    yield "new README.md", _writing("README.md", "hello")
    yield "new folder", lambda place: (place / "more").mkdir()
    for kind, target in (
        ("up", "../x.safetensors"),
        ("absolute", "/etc/passwd"),
        ("number", 3),
        ("own", "model.safetensors"),
    ):
        yield f"index {kind}", _index(target)
    yield "index without map", _index(None)


def of_tensors(folder: Path, seed: int) -> Iterator[Damage]:
    """Tensors with other values, types, shapes or names, and bytes of the file that are others."""
    drawn = random.Random(seed)
    names = sorted(load_file(folder / "model.safetensors"))
    inside = [name for name in names if ".sites." in name]
    picked = [*drawn.sample([n for n in names if n not in inside], 3), *drawn.sample(inside, min(3, len(inside)))]
    for name in picked:
        for kind, change in CHANGES.items():
            yield f"{kind} {name}", _changing(name, change)
    for number in range(8):
        yield f"data bit {number}", _flipping(drawn.random(), drawn.randrange(8), header=False)
        yield f"header bit {number}", _flipping(drawn.random(), drawn.randrange(8), header=True)
    for share in (0.0, 0.01, 0.5, 0.999):
        yield f"cut at {share}", _cutting("model.safetensors", share)
    yield "longer", lambda place: _add_bytes(place / "model.safetensors")
    yield "extra tensor", _changing("extra.weight", lambda tensors, name: tensors.update({name: torch.ones(3)}))
    yield (
        "extra layer",
        _changing(names[0].replace(".0.", ".9."), lambda tensors, name: tensors.update({name: torch.ones(3)})),
    )
    yield "weights gone", _removing("model.safetensors")


def _fill(value: float) -> Callable[[dict[str, Any], str], None]:
    def change(tensors: dict[str, Any], name: str) -> None:
        tensors[name].view(-1)[0] = value

    return change


def _swap(tensors: dict[str, Any], name: str) -> None:
    """Exchange a tensor with another of its shape."""
    shape, leaf = tensors[name].shape, name.split(".")[-1]
    alike = (n for n, value in tensors.items() if n != name and value.shape == shape and n.split(".")[-1] == leaf)
    other = next(alike, name)
    tensors[name], tensors[other] = tensors[other], tensors[name]


CHANGES: dict[str, Callable[[dict[str, Any], str], Any]] = {
    "nan": _fill(float("nan")), "infinite": _fill(float("inf")), "huge": _fill(1e30), "zero": _fill(0.0),
    "negative": _fill(-3.0),     "swapped": _swap, "gone": lambda tensors, name: tensors.pop(name),
    "half": lambda tensors, name: tensors.update({name: tensors[name].half()}),
    "longer": lambda tensors, name: tensors.update({name: torch.cat([tensors[name], tensors[name]])}),
    "flat": lambda tensors, name: tensors.update({name: tensors[name].reshape(1, -1)}),
    "renamed": lambda tensors, name: tensors.update({f"{name}x": tensors.pop(name)}),
}  # fmt: skip


def _setting(path: tuple[str, ...], value: Any) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        config = json.loads((place / "config.json").read_text())
        entry = config
        for key in path[:-1]:
            entry = entry[key]
        if value is ...:
            entry.pop(path[-1], None)
        else:
            entry[path[-1]] = value
        (place / "config.json").write_text(json.dumps(config))

    return act


def _writing(name: str, text: str) -> Callable[[Path], None]:
    return lambda place: (place / name).write_text(text) and None


def _removing(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink(missing_ok=True)


def _taking(name: str, other: Path) -> Callable[[Path], None]:
    return lambda place: shutil.copy(other / name, place / name) and None


def _laid_out(name: str) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        if (place / name).exists():
            values = json.loads((place / name).read_text())
            (place / name).write_text(json.dumps(dict(reversed(values.items())), indent=7))

    return act


def _cutting(name: str, share: float) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        if (place / name).exists():
            raw = (place / name).read_bytes()
            (place / name).write_bytes(raw[: int(len(raw) * share)])

    return act


def _add_bytes(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0" * 8)


def _flipping(where: float, bit: int, header: bool) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        file = place / "model.safetensors"
        raw = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(raw[:8], "little")
        index = int(where * start) if header else start + int(where * (len(raw) - start))
        raw[index] ^= 1 << bit
        file.write_bytes(bytes(raw))

    return act


def _changing(name: str, change: Callable[[dict[str, Any], str], Any]) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        file = place / "model.safetensors"
        tensors = {key: value.clone() for key, value in load_file(file).items()}
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        change(tensors, name)
        save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata=about)

    return act


def _exchanged_words(place: Path) -> None:
    values = json.loads((place / "tokenizer.json").read_text())
    words = values["model"]["vocab"]
    words["w1"], words["w2"] = words["w2"], words["w1"]
    (place / "tokenizer.json").write_text(json.dumps(values))


def _other_checksum(place: Path) -> None:
    values = json.loads((place / "fas_manifest.json").read_text())
    next(iter(next(iter(values["tensors"].values())).values()))[2] = "00000000"
    (place / "fas_manifest.json").write_text(json.dumps(values))


def _index(target: Any) -> Callable[[Path], None]:
    def act(place: Path) -> None:
        names = list(load_file(place / "model.safetensors"))
        if target != "model.safetensors":
            shutil.move(place / "model.safetensors", place.parent / "x.safetensors")
        else:
            (place / "model.safetensors").rename(place / "weights.safetensors")
        file = "weights.safetensors" if target == "model.safetensors" else target
        index = {"metadata": {}} | ({} if target is None else {"weight_map": dict.fromkeys(names, file)})
        (place / "model.safetensors.index.json").write_text(json.dumps(index))

    return act
