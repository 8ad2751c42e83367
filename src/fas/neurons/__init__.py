"""How one value becomes spikes: pure functions first, modules as thin shells. Knows no transformer."""

from fas.neurons.clock import Clock, Fired
from fas.neurons.held import Held
from fas.neurons.integrate_fire import rate_mean_rows, rate_step_rows
from fas.neurons.layerwise import ones_first
from fas.neurons.qcfs import codes, qcfs
from fas.neurons.sigma_delta import sigma_delta
from fas.neurons.site import NeuronParameters, Site

__all__ = [
    "Clock",
    "Fired",
    "Held",
    "NeuronParameters",
    "Site",
    "codes",
    "ones_first",
    "qcfs",
    "rate_mean_rows",
    "rate_step_rows",
    "sigma_delta",
]
