"""Processes: the Gaussian corruption of data, its kernels, its prior and its clocks."""

from . import clocks
from .base import Normal, Posterior, Process, Transition, as_time, expand, readable
from .clocks import convert, convert_time
from .schedules import EDM, OU, VE, VP, Cosine, Flow, SubVP, Trig
from .tables import DDPM, Custom, DiscreteVP, Linear, Reverse

__all__ = [
    "DDPM",
    "EDM",
    "OU",
    "VE",
    "VP",
    "Cosine",
    "Custom",
    "DiscreteVP",
    "Flow",
    "Linear",
    "Normal",
    "Posterior",
    "Process",
    "Reverse",
    "SubVP",
    "Transition",
    "Trig",
    "as_time",
    "clocks",
    "convert",
    "convert_time",
    "expand",
    "readable",
]
