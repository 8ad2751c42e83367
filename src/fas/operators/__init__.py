"""Nonlinear functions by small groups of spiking neurons, and softmax and norms made of them. Knows no transformer."""

from fas.operators.activations import Kind, activation, activation_group
from fas.operators.compose import layer_norm, rms_norm, softmax
from fas.operators.fit import fit_group
from fas.operators.functions import exp2_group, exp2_negative, reciprocal, reciprocal_group, rsqrt, rsqrt_group
from fas.operators.group import Evaluation, Group
from fas.operators.spiking import SpikingGroup

__all__ = [
    "Evaluation",
    "Group",
    "Kind",
    "SpikingGroup",
    "activation",
    "activation_group",
    "exp2_group",
    "exp2_negative",
    "fit_group",
    "layer_norm",
    "reciprocal",
    "reciprocal_group",
    "rms_norm",
    "rsqrt",
    "rsqrt_group",
    "softmax",
]
