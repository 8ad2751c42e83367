"""Weights that stay in their files: a model without them, and its modules with them one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from fas.conversion.description import FasQuantizationConfig
from fas.conversion.files import Place, places_in, weight_files
from fas.conversion.leftovers import refuse_leftovers
from fas.conversion.quantizer import FasQuantizer
from fas.errors import CheckpointError
from fas.runtime.finite import require_finite_weight


class Shelf:
    """The weights of the checkpoint in ``folder`` by name.

    Raises `CheckpointError` if there is none in the safetensors format.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.files = weight_files(self.folder)
        self.places: dict[str, Place] = {}
        for file in self.files:
            self.places |= places_in(file)
        self.stored: dict[str, str] = {}
        """Under which name the files hold a weight of a model, where it is not its own."""

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        place = self.places[name]
        # memory of torch is aligned; elsewhere MKL rounds otherwise
        values = torch.empty(place.shape, dtype=place.dtype)
        with place.file.open("rb") as opened:
            opened.seek(place.start)
            raw = values.reshape(-1).view(torch.uint8).numpy().data if values.numel() else bytearray()
            if opened.readinto(raw) != place.bytes:
                raise CheckpointError(f"{place.file} ends before {name}; it is damaged")
        return values

    def name_of(self, name: str) -> str:
        """Under which name the files hold the weight ``name``; raises `CheckpointError` if they do not."""
        found = self.stored.get(name, name)
        if found not in self.places:
            raise CheckpointError(
                f"{self.folder} holds no weight {name}: it is damaged, or was saved under other names, so that it cannot be "
                "read a block at a time from disk; take it in memory"
            )
        return found

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All of them, one at a time; raises `CheckpointError` at the first that holds NaN or infinity."""
        for name in sorted(self.places):
            value = self.read(name)
            require_finite_weight(name, value, str(self.folder))
            yield name, value

    def learn_names(self, model: PreTrainedModel) -> None:
        """Find the weights of ``model`` that are stored under another name: checkpoints of an inner model leave its name out,
        and tied weights are stored once."""
        named: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            named.setdefault(id(parameter), []).append(name)
        for names in named.values():
            inner = f"{model.base_model_prefix}."
            known = [n for name in names for n in (name, name.removeprefix(inner)) if n in self.places]
            self.stored |= {name: known[0] for name in names if known and name not in self.places}

    def check(self, model: PreTrainedModel) -> None:
        """Raise `CheckpointError` for a weight of ``model`` that no file holds, and for one that ``model`` has no place for."""
        own = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        used = {self.name_of(name) for name in own} | {name for name, _ in model.named_buffers()}
        refuse_leftovers(model, self.places.keys() - used, str(self.folder))

    @contextmanager
    def loaded(
        self,
        model: nn.Module,
        owners: Iterable[nn.Module],
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> Iterator[None]:
        """Inside, the parameters of ``owners`` (modules of ``model``, not those in them) are on ``device``, in ``dtype`` (None:
        that of the files).

        Raises `CheckpointError` for a weight that no file holds.
        """
        inside = {id(module) for module in owners}
        taken: list[tuple[nn.Module, str]] = []
        try:
            for prefix, owner in model.named_modules():
                for leaf, tensor in _own(owner).items() if id(owner) in inside else ():
                    name = f"{prefix}.{leaf}" if prefix else leaf
                    buffer = leaf in owner._buffers and not tensor.is_meta
                    if buffer and name in self.places:
                        set_module_tensor_to_device(owner, leaf, device, value=self.read(name))
                    if not tensor.is_meta:
                        continue
                    value = self.read(self.name_of(name))
                    if dtype is not None and value.is_floating_point():
                        value = value.to(dtype)
                    set_module_tensor_to_device(owner, leaf, device, value=value, dtype=value.dtype)
                    taken.append((owner, leaf))
            yield
        finally:
            for owner, leaf in taken:
                set_module_tensor_to_device(owner, leaf, "meta")


def without_weights(folder: Path | str, auto_class: Any, device: torch.device) -> PreTrainedModel:
    """The converted model in ``folder`` with its sites, its buffers on ``device``, and no memory for weights.

    Raises `CheckpointError` if it is no converted model.
    """
    config = AutoConfig.from_pretrained(folder)
    description = getattr(config, "quantization_config", None)
    if description is None or description.get("quant_method") != "fas":
        raise CheckpointError(f"{folder} is not a converted model; convert it first (fas convert)")
    described = cast(FasQuantizationConfig, FasQuantizationConfig.from_dict(description))
    with init_empty_weights(include_buffers=False):
        model = auto_class.from_config(config)
        FasQuantizer(described)._process_model_before_weight_loading(
            model, checkpoint_files=[str(file) for file in weight_files(Path(folder))]
        )
    model.requires_grad_(False)
    return _with_buffers_on(model, device)


def skeleton(shelf: Shelf, auto_class: Any, device: torch.device) -> PreTrainedModel:
    """The ANN in the folder of ``shelf`` in fp32, its buffers on ``device``, and no memory for weights.

    Raises `CheckpointError` if the folder holds a quantized or converted model, or other weights than it needs.
    """
    config = AutoConfig.from_pretrained(shelf.folder)
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"{shelf.folder} is quantized or converted already; Stage 1 starts from the original model"
        )
    with init_empty_weights(include_buffers=False):
        model = auto_class.from_config(config, dtype=torch.float32)
    model.tie_weights()
    shelf.learn_names(model)
    shelf.check(model)
    return _with_buffers_on(model, device)


def _with_buffers_on(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    for module in model.modules():
        for name, value in module._buffers.items():
            if value is not None and not value.is_meta:
                module._buffers[name] = value.to(device)
    return model.eval()


def _own(module: nn.Module) -> dict[str, Tensor]:
    stored = {name: value for name, value in module._parameters.items() if value is not None}
    kept = {name for name, value in module._buffers.items() if value is not None}
    kept -= module._non_persistent_buffers_set
    return stored | {name: module._buffers[name] for name in kept}  # type: ignore[dict-item]
