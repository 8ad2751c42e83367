"""Arguments of the wrong kind: what they are, and what to give in their place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from fas.config import SpikingConfig
from fas.errors import ConfigError, UnsupportedModelError

Options = TypeVar("Options")
_WANTED: dict[type, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
}


def kind_of(value: Any) -> str:
    """The kind of ``value``, with its article, for a sentence.

    >>> kind_of([1]), kind_of(None), kind_of(int), kind_of({})
    ('a list', 'None', 'the class int', 'a dict')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def model_from(model: Any, verb: str, kind: type[nn.Module] = PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` where ``model`` is no ``kind`` of model that ``verb`` can work on."""
    if isinstance(model, kind):
        return
    if isinstance(model, str | os.PathLike):
        how = f"load it first: transformers.AutoModelForCausalLM.from_pretrained({os.fspath(model)!r})"
    elif isinstance(model, type):
        how = "load or make one: .from_pretrained(…)"
    elif isinstance(inner := _wrapped(model), PreTrainedModel):
        how = f"give the {type(inner).__name__} inside it"
    elif isinstance(getattr(model, "model", None), PreTrainedModel) and not isinstance(model, nn.Module):
        how = "give its .model"  # of a pipeline or a Trainer
    else:
        how = "FAS converts models of transformers, from AutoModelForCausalLM.from_pretrained(…) or another class"
    wanted = "a transformers PreTrainedModel" if kind is PreTrainedModel else "a model"
    raise UnsupportedModelError(f"{verb} needs {wanted}, and model is {kind_of(model)}; {how}")


def _wrapped(model: Any) -> Any:
    """What torch.compile, DataParallel or a library of adapters has been given."""
    for name in ("_orig_mod", "module"):
        if isinstance(model, nn.Module) and isinstance(inner := getattr(model, name, None), nn.Module):
            return inner
    return None


def config_from(config: Any, verb: str) -> SpikingConfig:
    """``config`` itself, or the `SpikingConfig` of a mapping with its fields; raises `ConfigError` for anything else."""
    if isinstance(config, SpikingConfig):
        return config
    if isinstance(config, Mapping) and all(isinstance(name, str) for name in config):
        return SpikingConfig(**config)
    if isinstance(config, str | os.PathLike):
        how = "read the file, and give what it holds: fas.SpikingConfig(**json.load(file))"
    elif config is None:
        how = "fas.SpikingConfig() has the usual values"
    elif isinstance(config, type):
        how = "call it: fas.SpikingConfig(…)"
    else:
        how = "give fas.SpikingConfig(…), and the batches behind it"
    raise ConfigError(f"{verb} needs a SpikingConfig, and config is {kind_of(config)}; {how}")


def device_from(device: Any, verb: str) -> torch.device:
    """``device`` as a `torch.device`; raises `ConfigError` where there is none of that name."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"{verb}: device={device!r} cannot be used ({first}); give one such as 'cpu' or 'cuda'"
        ) from None
    return found


def class_from(auto_class: Any, verb: str) -> None:
    """Raise `ConfigError` where ``auto_class`` is no class that loads models."""
    if not (isinstance(auto_class, type) and hasattr(auto_class, "from_pretrained")):
        raise ConfigError(
            f"{verb}: auto_class is {kind_of(auto_class)}; give a class of transformers, such as AutoModelForCausalLM"
        )


def folder_from(path: Any, name: str, verb: str) -> Path:
    """``path`` as a `Path`; raises `ConfigError` where it names no folder."""
    if isinstance(path, str | os.PathLike) and str(path):
        return Path(path)
    how = "save the model first, and give its folder" if isinstance(path, nn.Module) else "give the path of a folder"
    raise ConfigError(f"{verb}: {name} is {'empty' if path == '' else kind_of(path)}; {how}")


def options_from(options: Any, kind: type[Options], verb: str) -> Options | None:
    """``options`` itself, None, or the ``kind`` (a dataclass) of a mapping with its fields.

    Raises `ConfigError` for anything else, and for unknown fields.
    """
    if options is None or isinstance(options, kind):
        return options
    if isinstance(options, Mapping):
        known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
        if unknown := [name for name in options if name not in known]:
            raise ConfigError(f"{verb}: unknown option {unknown[0]!r}; known options are {', '.join(known)}")
        return kind(**options)
    raise ConfigError(
        f"{verb} takes options=fas.{kind.__name__}(…) or None, and options is {kind_of(options)}; leave it out "
        "for the usual ones"
    )


def require_kinds(options: Any) -> None:
    """Raise `ConfigError` for a field of the dataclass ``options`` that is not of the kind of its default value."""
    for entry in fields(options):
        value, usual = getattr(options, entry.name), type(entry.default)
        if usual not in _WANTED:
            continue
        kind, words = _WANTED[usual]
        if not isinstance(value, kind) or (usual is not bool and isinstance(value, bool)):
            raise ConfigError(f"{entry.name}={value!r} is not valid: it must be {words}")
