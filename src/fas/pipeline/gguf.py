"""GGUF files as models: dequantised by transformers once, and kept as an ordinary folder in the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from fas.errors import CheckpointError, FasError, with_extra
from fas.locks import owned
from fas.storage import cache_folder, whole_folder

ENDING = ".gguf"


def gguf_file_of(model: str) -> Path | None:
    """The GGUF file that ``model`` is, or the only one in the folder that it is; None for anything else.

    Raises `FasError` for a folder of several, none of which is named.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return path if path.suffix == ENDING else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob(f"*{ENDING}"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise FasError(f"{model} holds {len(found)} GGUF files ({names}); name one of them")
    return found[0] if found else None


def folder_of(file: Path) -> Path:
    """An ordinary folder with the model of ``file`` in float32, made when it is first asked for.

    Raises `FasError` without the package gguf, and `CheckpointError` in one line for what is no GGUF file, is damaged, or has
    an architecture that transformers does not know.
    """
    import transformers

    stat = file.stat()
    key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {transformers.__version__}"
    folder = cache_folder() / "gguf" / f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if (folder / "config.json").exists():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise FasError(f"{file} is a GGUF file, and reading it needs a package; {with_extra('gguf')}")
    with owned(folder, wait=True):
        if not (folder / "config.json").exists():  # else another command has made it meanwhile
            with whole_folder(folder) as staged:
                _dequantise(file, staged)
    return folder


def _dequantise(file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of ``file`` to ``folder``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    named: dict[str, Any] = {"gguf_file": file.name}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, **named)
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **named)
    except (OSError, ValueError, KeyError, RuntimeError, IndexError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{file} cannot be loaded as a causal language model: {reason}") from None
    config = loaded.config
    if hasattr(config, "quantization_config"):  # its weights are plain now, and saving would refuse them
        del config.quantization_config
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
