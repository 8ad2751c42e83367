"""The card of a saved folder (``README.md``): what it is, from which model, in which time it runs, and how it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fas.conversion.files import read_json
from fas.storage import write_whole

NAME = "README.md"
_MARK = re.compile(r"<!-- written by fas: (\{.*\}) -->\n\Z")
_STAGES = {
    "snn": "A spiking neural network, converted",
    "qcfs": "A QCFS model (activations quantized, no time and no spikes yet), made",
}


def write_card(folder: Path | str, base: str = "", measured: Sequence[str] = ()) -> None:
    """Write the card of the converted model in ``folder``, unless there is one that somebody else wrote or has edited.

    ``base`` is the model that it was made of, a hub id or a folder; of a converted folder, what that was made of. ``measured``
    are lines of Markdown. Raises `CheckpointError` where it cannot be written.
    """
    folder = Path(folder)
    file = folder / NAME
    if os.path.lexists(file) and _written(file) is None:
        return
    config = read_json(folder / "config.json")
    text = _text(config, _origin(base), measured)
    write_whole(file, text + _mark(text, _origin(base)))


def _written(file: Path) -> dict[str, Any] | None:
    """What the mark of a card that FAS wrote says; None for any other file, and for one that was edited."""
    try:
        text = file.read_text(encoding="utf-8")
        found = _MARK.search(text)
        about = json.loads(found[1]) if found else None
    except (OSError, ValueError):
        return None
    if found is None or not isinstance(about, dict) or about.get("digest") != _digest(text[: found.start()]):
        return None
    return about


def _mark(text: str, base: str) -> str:
    about = json.dumps({"base": base, "digest": _digest(text)})
    for bracket in "<>":  # a name must not end the comment
        about = about.replace(bracket, f"\\u{ord(bracket):04x}")
    return f"<!-- written by fas: {about} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _origin(base: str) -> str:
    """The hub id, or the name of the folder, of the model that was converted."""
    place = Path(base)
    if not base or not place.exists():
        return base
    if (about := _written(place / NAME)) is not None:  # a converted folder
        return str(about.get("base", ""))
    config = read_json(place / "config.json") if (place / "config.json").exists() else {}
    return "" if is_converted(config) else place.resolve().name


def is_converted(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a prepared or converted model."""
    description = config.get("quantization_config")
    return isinstance(description, dict) and description.get("quant_method") == "fas"


def _text(config: Mapping[str, Any], base: str, measured: Sequence[str]) -> str:
    description = config["quantization_config"]
    cls = next(iter(config.get("architectures") or ()), "AutoModel")
    named = f"`{_plain(base)}`" if base else "a model without a name"
    lines = ["---", "library_name: fas"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base):  # the hub links no other
        lines.append(f"base_model: {base}")
    lines += ["tags:", "- spiking-neural-network", "- fas", "---", ""]
    lines += [f"# {_plain(base) or cls} as a spiking network", ""]
    lines += [
        f"{_STAGES[description['stage']]} from {named} by FAS.",
        "",
        *_facts(description, cls),
        "",
        *_loading(cls, description["stage"]),
        "",
    ]
    lines += ["## What was measured", "", *(measured or ["Nothing, when this folder was saved."]), ""]
    return "\n".join(lines)


def _facts(description: Mapping[str, Any], cls: str) -> list[str]:
    spiking = description["spiking"]
    coding = str(spiking["coding"]).replace("_", "-")
    neurons = ", ".join(f"`{key}`" for key in description["neurons"]) or "none"
    facts = {
        "architecture": f"`{cls}`",
        "what spikes (coverage)": f"`{spiking['coverage']}`, {len(description['sites'])} sites",
        "runs in": f"{coding} coding, T = {spiking['timesteps']} timesteps",
        "levels of an activation": f"L = {spiking['levels']}",
        "neurons a channel": str(spiking["neurons_per_channel"]),
        "calibrated neurons": neurons,
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]


def _loading(cls: str, stage: str) -> list[str]:
    other_time = ["model.set_timesteps(8)  # another time than the one above"] if stage == "snn" else []
    return [
        "## Loading", "",
        "It needs FAS (`fas-snn`). Without `import fas` transformers refuses it.", "",
        "```python",
        "import fas  # before from_pretrained",
        f"from transformers import {cls}", "",
        f'model = {cls}.from_pretrained("…")  # this folder, or its name on the hub',
        *other_time, "```",
    ]  # fmt: skip


def _plain(name: str) -> str:
    """``name`` on one line, without what Markdown would read."""
    return re.sub(r"[^\w./ -]", "?", name)
