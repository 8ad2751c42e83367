"""The manifest of a saved model: what its configuration, tensors and tokenizer were, so that no change goes unseen.

``fas_manifest.json`` lies beside ``config.json``. The description of a converted model holds the manifest's ``digest``, so
that each of the two tells whether the other is the one it was written with. It guards against damage and slips, not against
somebody who rewrites both.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fas.conversion.card import write_card
from fas.conversion.files import Place, places_in, read_json
from fas.errors import CheckpointError
from fas.storage import write_whole

NAME = "fas_manifest.json"
VERSION = 1
CONFIG = "config.json"

REFUSAL = "transformers_weights"
"""Entry of a configuration that names the file of the weights. Without FAS transformers would skip the neurons and compute
something else; a name that is none makes it refuse, and say why."""
NOT_WITHOUT_FAS = "this is a spiking network: `import fas` before from_pretrained"
_ANY_VALUE = {
    "_name_or_path", "transformers_version", "use_cache", "output_attentions", "output_hidden_states", "return_dict", REFUSAL,
}  # fmt: skip
"""Keys of a configuration that change no number."""
_READ = (".model", ".jinja", ".vocab", ".tiktoken", ".spm", ".tokenizer", ".codes")
"""Endings of files that only tokenizers have."""
_BEGINNINGS = (
    "tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template", "generation_config",
    "preprocessor_config", "processor_config", "video_preprocessor_config", "audio_tokenizer", "adapter_config",
    "entity_vocab", "target_vocab", "word_", "normalizer", "emoji", "byte_maps", "dict.",
)  # fmt: skip
"""Of names of other files (.json, .txt) that transformers reads beside the configuration, as it reads no notes and logs."""
_BUFFER = 1 << 20


def write_manifest(folder: Path | str) -> None:
    """Write the manifest of the checkpoint in ``folder`` as it is now, and its digest into the description.

    Raises `CheckpointError` where files cannot be read or written.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    description = config.get("quantization_config")  # a control has none
    if isinstance(description, dict):
        description.pop("digest", None)
    leaves = leaves_of(config)
    tensors: dict[str, dict[str, list[Any]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors[file.name] = {name: record(place) for name, place in places_in(file).items()}
    found = {"version": VERSION, "config": leaves, "tensors": tensors, "files": files_of(folder)}
    _write_json(folder / NAME, found)
    if isinstance(description, dict):
        description["digest"] = digest_of(found)
        _write_json(folder / CONFIG, config | {REFUSAL: NOT_WITHOUT_FAS})


def renew_files(folder: Path | str) -> None:
    """Take down what the tokenizer and other small files of ``folder`` are now; nothing where it has no manifest."""
    folder = Path(folder)
    if (folder / NAME).exists():
        found = read_json(folder / NAME)
        _write_json(folder / NAME, found | {"files": files_of(folder)})


def leaves_of(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of a nested ``config`` by path, without those that change no number.

    >>> leaves_of({"a": {"b": 1, "use_cache": True}, "c": [1, {"d": 2}]})
    {'a.b': 1, 'c': [1, {'d': 2}]}
    """
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if key in _ANY_VALUE:
            continue
        if isinstance(value, dict) and value:
            leaves |= leaves_of(value, f"{above}{key}.")
        else:
            leaves[f"{above}{key}"] = value
    return leaves


def digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of configuration and tensors of a manifest, in whatever order."""
    kept = {key: manifest.get(key) for key in ("config", "tensors")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def record(place: Place) -> list[Any]:
    """Type, shape and checksum (CRC-32) of a stored tensor."""
    return [*form_of(place), checksum(place)]


def form_of(place: Place) -> list[Any]:
    """Type and shape of a stored tensor."""
    return [str(place.dtype).removeprefix("torch."), list(place.shape)]


def checksum(place: Place) -> str:
    """CRC-32 of a tensor's bytes, read a piece at a time."""
    value, left = 0, place.bytes
    with place.file.open("rb", buffering=0) as opened:
        opened.seek(place.start)
        while left:
            piece = opened.read(min(left, _BUFFER))
            if not piece:
                raise CheckpointError(f"{place.file} ends before its tensors do; it is damaged")
            value, left = zlib.crc32(piece, value), left - len(piece)
    return f"{value:08x}"


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that a tokenizer, a processor or generation reads."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file() and is_read(file.name))
    return {name: content(folder / name) for name in names}


def is_read(name: str) -> bool:
    """Whether a tokenizer, a processor or generation may read a file of this ``name``."""
    return name.endswith(_READ) or (name.startswith(_BEGINNINGS) and name.endswith((".json", ".txt")))


def content(file: Path) -> str:
    """SHA-256 of what ``file`` says: of JSON in whatever order and layout."""
    raw = file.read_bytes()
    if file.suffix == ".json":
        with suppress(ValueError, RecursionError):  # no JSON: the bytes as they are
            raw = json.dumps(json.loads(raw), sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()


def _write_json(file: Path, value: Any) -> None:
    """Replace ``file`` whole or not at all."""
    write_whole(file, json.dumps(value, indent=2, sort_keys=True) + "\n")


class SavePretrained:
    """``model.save_pretrained`` of a prepared or converted model: transformers' own, which a manifest and a card follow.

    Takes what `transformers.PreTrainedModel.save_pretrained` takes. Raises `CheckpointError` where these cannot be
    written.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: Any = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        save: Callable[..., None] = type(self.model).save_pretrained
        hub = {key: kwargs.pop(key) for key in _HUB if key in kwargs} if push_to_hub else {}
        save(self.model, save_directory, is_main_process, state_dict, **kwargs)
        # of several processes the first writes
        if is_main_process and (Path(save_directory) / CONFIG).exists():
            write_manifest(save_directory)
            write_card(save_directory, str(self.model.config.name_or_path))
        if push_to_hub:  # only now, with its manifest
            self.model.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)


_HUB = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
