"""fokker: diffusion, score and flow generative models, every identity checked against closed forms.

The names below are the whole front door; they are imported when first used, so `import fokker` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "process": ("DDPM", "EDM", "OU", "VE", "VP", "Cosine", "Custom", "DiscreteVP", "Flow", "Linear", "SubVP", "Trig"),
    "prediction": ("Denoiser", "Prediction", "Reading"),
    "denoiser": ("NetDenoiser", "to_process"),
    "objectives": ("Denoising",),
    "likelihood": ("elbo", "log_prob"),
    "forward": ("diffuse",),
    "sampling": ("encode", "sample", "trajectory"),
    "train": ("fit", "load", "resume", "save"),
    "statistics": ("compute_statistics",),
    "tuning": ("optimise_grid",),
    "registry": ("register",),
}
_MODULES = (
    "calculus",
    "classic",
    "data",
    "exact",
    "guidance",
    "likelihood",
    "metrics",
    "nets",
    "noise",
    "objectives",
    "process",
    "solvers",
    "train",
)
_NAMES = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "DDPM",
    "EDM",
    "OU",
    "VE",
    "VP",
    "Cosine",
    "Custom",
    "Denoiser",
    "Denoising",
    "DiscreteVP",
    "Flow",
    "Linear",
    "NetDenoiser",
    "Prediction",
    "Reading",
    "SubVP",
    "Trig",
    "__version__",
    "calculus",
    "classic",
    "compute_statistics",
    "data",
    "diffuse",
    "elbo",
    "encode",
    "exact",
    "fit",
    "guidance",
    "likelihood",
    "load",
    "log_prob",
    "metrics",
    "nets",
    "noise",
    "objectives",
    "optimise_grid",
    "process",
    "register",
    "resume",
    "sample",
    "save",
    "solvers",
    "to_process",
    "train",
    "trajectory",
]

if TYPE_CHECKING:
    from . import (
        calculus,
        classic,
        data,
        exact,
        guidance,
        likelihood,
        metrics,
        nets,
        noise,
        objectives,
        process,
        solvers,
        train,
    )
    from .denoiser import NetDenoiser, to_process
    from .forward import diffuse
    from .likelihood import elbo, log_prob
    from .objectives import Denoising
    from .prediction import Denoiser, Prediction, Reading
    from .process import DDPM, EDM, OU, VE, VP, Cosine, Custom, DiscreteVP, Flow, Linear, SubVP, Trig
    from .registry import register
    from .sampling import encode, sample, trajectory
    from .statistics import compute_statistics
    from .train import fit, load, resume, save
    from .tuning import optimise_grid


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(import_module(f".{_NAMES[name]}", __name__), name)
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'fokker' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
