"""Transformers' plug-in: after ``import fas``, ``from_pretrained`` of a converted folder gives spiking modules back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from fas.conversion.description import FasQuantizationConfig
from fas.conversion.install import install
from fas.conversion.integrity import check_loaded
from fas.conversion.leftovers import refuse_leftovers, refuse_missing, watched
from fas.conversion.manifest import REFUSAL
from fas.conversion.order import number
from fas.errors import CheckpointError
from fas.models import listed
from fas.neurons import NeuronParameters, Site
from fas.offloading import at_hand
from fas.operators import SpikingGroup

PARAMETER_NAMES = (
    "log_scale",
    "center",
    "log_threshold",
    "v_init",
    "a_init",
    "constant",
    "steps",
    "dead_zone",
    "corners",
    "readout",
    "readout_offset",
)


class FasQuantizer(HfQuantizer):
    """Rebuilds the sites before the weights are loaded, and checks every neuron parameter afterwards."""

    requires_calibration = True

    def __init__(self, quantization_config: FasQuantizationConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._told: Callable[[], tuple[set[str], set[str]]] | None = None

    def update_attn_implementation(self, config: Any) -> Any:
        """Let the weights be found: what transformers alone is told in their place is removed."""
        config.__dict__.pop(REFUSAL, None)
        return config

    def update_tp_plan(self, config: Any) -> Any:
        """The same, where transformers is older than 5.20."""
        return self.update_attn_implementation(config)

    def preprocess_model(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        super().preprocess_model(model, *args, **kwargs)
        self._told = watched(model)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if files := kwargs.get("checkpoint_files"):
            _refuse_other_forms(files)
            check_loaded(files, model.config)
        description = cast(FasQuantizationConfig, self.quantization_config)
        config = description.spiking_config()
        plan = listed(model, config, description.sites)
        sites = install(model, plan, config, description.stage, description.prefix_shapes())  # type: ignore[arg-type]
        number(sites, description.order)
        for site in sites:
            for key in description.neurons if site.calibrates else ():
                site.add_parameters(key)
        _compare({site.name: site.width for site in sites}, description.sites)
        _require_parameters(model, kwargs.get("checkpoint_files"))
        model._keep_in_fp32_modules_strict = {*(model._keep_in_fp32_modules_strict or ()), *PARAMETER_NAMES}
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self._told is not None:
            (missing, unexpected), self._told = self._told(), None
            place = str(model.config.name_or_path) or "the checkpoint"
            refuse_missing(model, missing, place)
            if type(model).__name__ in (model.config.architectures or ()):
                refuse_leftovers(model, unexpected, place)
        broken = [
            f"{place}.{name}"
            for place, module in model.named_modules()
            if isinstance(module, Site | SpikingGroup | NeuronParameters)
            for name in (*module._parameters, *module._buffers)
            if (value := at_hand(module, name)) is not None and not _is_valid(name, value)
        ]
        if broken:
            raise CheckpointError(
                "neuron parameters must be finite, thresholds positive, a_init integer, steps powers of two, "
                "dead zones between 0 and .5; "
                f"wrong in {broken[:3]}"
            )
        _unify(model)
        _align(model)
        model.is_quantized = False  # type: ignore[assignment]  # its weights are plain ones, which may be cast (float, half) and trained
        return model

    def is_serializable(self, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True


def _refuse_other_forms(files: Iterable[str]) -> None:
    """Neither the manifest nor the checks of neurons know weights that are no safetensors."""
    for file in files:
        if not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{file} holds weights in another form than safetensors, which FAS does not read; put the original files back, "
                "or save the model anew (save_pretrained)"
            )


def _compare(built: dict[str, int], described: dict[str, int]) -> None:
    """Same sites, same widths; an inner model (AutoModel) builds them without the head's prefix, or the other way round."""
    for name, width in described.items():
        same = [w for n, w in built.items() if n == name or name.endswith(f".{n}") or n.endswith(f".{name}")]
        if same != [width]:
            raise CheckpointError(
                f"the checkpoint describes site {name} with {width} channels, this model has {same or 'no such site'}; "
                "its config.json or the installed transformers does not belong to it"
            )
    if len(built) != len(described):
        raise CheckpointError(f"the checkpoint describes {len(described)} sites and this model has {len(built)}")


def _is_valid(name: str, parameter: torch.Tensor) -> bool:
    if not bool(torch.isfinite(parameter).all()):
        return False
    if name.endswith("a_init"):
        return torch.equal(parameter, parameter.round())
    if name.endswith("steps"):
        return bool((parameter >= 1).all()) and torch.equal(parameter, torch.exp2(parameter.log2().round()))
    if name.endswith("dead_zone"):
        return bool(((parameter >= 0) & (parameter <= 0.5)).all())
    return not name.endswith(("log_scale", "log_threshold")) or bool((parameter.exp() > 0).all())


def _unify(model: PreTrainedModel) -> None:
    """Give the head the dtype of the embedding: transformers 5.15–5.18 leave a head that they rename as it was stored."""
    head = model.get_output_embeddings()
    if head is not None:
        head.to(model.get_input_embeddings().weight.dtype)


def _align(model: PreTrainedModel) -> None:
    """Move weights off the odd addresses of the mapped file: MKL rounds otherwise there, and logits would differ."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def _require_parameters(model: PreTrainedModel, files: Iterable[str] | None) -> None:
    """Parameters that a checkpoint lacks would be uninitialised memory after loading: refuse them by name.

    Those that belong to no site that it describes would be dropped, and that site would be analog: refuse them too.
    """
    stored: Counter[str] = Counter()
    for file in files or ():
        with safe_open(file, framework="np") as opened:  # which, unlike "pt", takes no memory for all of it
            stored.update(_place(name) for name in opened.keys() if ".sites." in name)  # noqa: SIM118
    if not files:
        return
    missing = []
    for name in model.state_dict():
        if name.endswith(PARAMETER_NAMES) and ".sites." in name:
            stored.subtract([_place(name)])
            missing += [name] * (stored[_place(name)] < 0)
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks {len(missing)} neuron parameters, first {missing[0]}; it was not saved by "
            "save_pretrained of a converted model, or it is damaged"
        )
    homeless = [place for place, count in stored.items() if count > 0]
    if homeless:
        raise CheckpointError(
            f"the checkpoint holds {len(homeless)} neuron parameters of sites that its config.json does not describe, "
            f"first {homeless[0]}; it is damaged"
        )


def _place(name: str) -> str:
    """Layer numbers and the part behind ``sites``: what a name keeps when transformers renames modules in checkpoints.

    >>> _place("vit.layers.0.sites.ffn_hidden.log_scale") == _place("vit.encoder.layer.0.sites.ffn_hidden.log_scale")
    True
    """
    owner, _, inside = name.partition(".sites.")
    return ".".join([*(part for part in owner.split(".") if part.isdigit()), inside])
