"""What a checkpoint says about itself: the ``quantization_config`` entry of ``config.json``."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers.utils.quantization_config import QuantizationConfigMixin

from fas.config import SpikingConfig
from fas.errors import CheckpointError
from fas.runtime.control import calibrated_keys, clock_of, sites_of
from fas.runtime.prefix import Shape, shapes_of


class FasQuantizationConfig(QuantizationConfigMixin):
    """Transformers' view of a prepared or converted model: spiking config, widths of the sites, calibrated keys,
    shapes of the prefix by layer."""

    def __init__(
        self,
        spiking: dict[str, Any] | None = None,
        stage: str = "snn",
        sites: dict[str, int] | None = None,
        neurons: list[str] | None = None,
        order: list[str] | None = None,
        prefix: dict[str, list[int]] | None = None,
        digest: str | None = None,
        **unknown: Any,
    ) -> None:
        # ``digest`` is that of the folder's manifest (`fas.conversion.manifest`), which saving writes anew
        self.quant_method: Any = "fas"  # transformers has a closed enum; registered names are plain strings
        _check_types(spiking=(spiking, dict), sites=(sites, dict), neurons=(neurons, list), order=(order, list))
        _check_types(prefix=(prefix, dict), digest=(digest, str))
        _check_entries(sites or {}, neurons or [], order or [], prefix or {})
        self.spiking = dict(spiking or {})
        self.stage = stage
        self.sites = dict(sites or {})
        self.neurons = list(neurons or [])
        self.order = list(order or self.sites)  # transformers sorts the keys of what it writes
        self.prefix = dict(prefix or {})
        self.spiking_config()  # a checkpoint of a newer version is refused before anything is built
        unknown.pop("quant_method", None)
        if unknown:
            raise CheckpointError(
                f"the checkpoint describes {sorted(unknown)}, which this FAS does not know; upgrade fas-snn"
            )
        if stage not in ("qcfs", "snn"):
            raise CheckpointError(f"the checkpoint's stage is {stage!r}; it must be 'qcfs' or 'snn'")

    def spiking_config(self) -> SpikingConfig:
        """The validated description; raises `CheckpointError` for a newer version."""
        return SpikingConfig.from_dict(self.spiking)

    def to_dict(self) -> dict[str, Any]:
        values = {
            "quant_method": "fas",
            "stage": self.stage,
            "spiking": self.spiking,
            "sites": self.sites,
            "neurons": self.neurons,
            "order": self.order,
        }
        return values | ({"prefix": self.prefix} if self.prefix else {})

    def prefix_shapes(self) -> dict[int, Shape]:
        """Key heads and features of the prefix by layer; empty without a prefix."""
        return {int(layer): (shape[0], shape[1], shape[2]) for layer, shape in self.prefix.items()}

    def get(self, key: str, default: Any = None) -> Any:
        """An entry as of a dict, which transformers takes a configuration that is given to ``from_pretrained`` for."""
        return self.to_dict().get(key, default)

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


def _check_types(**entries: tuple[Any, type]) -> None:
    for name, (value, kind) in entries.items():
        if value is not None and not isinstance(value, kind):
            raise CheckpointError(
                f"the checkpoint's description has {name} = {str(value)[:60]!r}, where a {kind.__name__} is expected; put the "
                "original config.json back"
            )


def _check_entries(sites: dict[str, Any], neurons: list[Any], order: list[Any], prefix: dict[str, Any]) -> None:
    """Raise `CheckpointError` for entries of a description that are of another kind than FAS writes."""
    whole = {"a width": sites.values(), "a number": [n for shape in prefix.values() for n in _listed(shape)]}
    for what, values in whole.items():
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                _refuse(value, what)
    for key in neurons:
        if not isinstance(key, str) or not re.fullmatch(r"\w+", key):
            _refuse(key, "a coding and its time")
    for name in order:
        if not isinstance(name, str):
            _refuse(name, "the name of a site")
    for layer, shape in prefix.items():
        if not layer.isdecimal() or len(_listed(shape)) != 3:
            _refuse({layer: shape}, "a layer and its shape")


def _listed(shape: Any) -> list[Any]:
    return shape if isinstance(shape, list) else []


def _refuse(value: Any, what: str) -> None:
    raise CheckpointError(
        f"the checkpoint's description has {str(value)[:60]!r} where {what} is expected; put the original config.json back"
    )


def describe(model: nn.Module) -> None:
    """Write the present state of ``model``'s sites into its Hugging Face config, so that saving it saves that."""
    clock, sites = clock_of(model), sites_of(model)
    model.config.quantization_config = FasQuantizationConfig(  # type: ignore[union-attr]
        spiking=clock.config.model_dump(mode="json"),
        stage=clock.stage,
        sites={name: site.width for name, site in sites.items()},
        neurons=calibrated_keys(sites.values()),
        order=list(sites),
        prefix={str(layer): list(shape) for layer, shape in shapes_of(model).items()},
    )
