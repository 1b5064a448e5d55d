"""Kinds: the names by which recipes and files know every component, imported only when asked for.

`build(family, spec)` makes a component of a name or of a mapping with a `kind`; `spec(component)` is its inverse.
A dotted path from a file is never imported: only the names below and functions registered by `register`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from pydantic import BeforeValidator
from torch import Tensor, nn

from .component import Array, InMemory, register_name
from .errors import ConfigError, closest

__all__ = ["KINDS", "build", "kind_of", "lookup", "register", "resolves", "spec"]

KINDS: dict[str, dict[str, str]] = {
    "process": {
        "vp": "fokker.process:VP",
        "sub-vp": "fokker.process:SubVP",
        "ve": "fokker.process:VE",
        "edm": "fokker.process:EDM",
        "flow": "fokker.process:Flow",
        "trig": "fokker.process:Trig",
        "cosine": "fokker.process:Cosine",
        "ou": "fokker.process:OU",
        "ddpm": "fokker.process:DiscreteVP",
        "linear": "fokker.process:Linear",
        "custom": "fokker.process:Custom",
    },
    "denoiser": {"net": "fokker.denoiser:NetDenoiser"},
    "model": {
        "realnvp": "fokker.classic:RealNVP",
        "planar": "fokker.classic:Planar",
        "residual": "fokker.classic:Residual",
        "cnf": "fokker.classic:CNF",
        "vae": "fokker.classic:VAE",
        "hvae": "fokker.classic:HVAE",
        "energy": "fokker.classic:Energy",
        "autoregressive": "fokker.classic:Autoregressive",
        "gan": "fokker.classic:GAN",
    },
    "net": {"mlp": "fokker.nets:MLP", "unet": "fokker.nets:UNet", "dit": "fokker.nets:DiT"},
    "autoencoder": {"conv": "fokker.nets:Autoencoder"},
    "exact": {
        "gaussian": "fokker.exact:Gaussian",
        "mixture": "fokker.exact:GaussianMixture",
        "empirical": "fokker.exact:Empirical",
        "pair": "fokker.exact:Pair",
    },
    "weight": {
        "uniform": "fokker.objectives:Uniform",
        "snr": "fokker.objectives:SNR",
        "min-snr": "fokker.objectives:MinSNR",
        "edm": "fokker.objectives:EDMWeight",
        "likelihood": "fokker.objectives:Likelihood",
        "vlb": "fokker.objectives:VLB",
        "sigma2": "fokker.objectives:Sigma2",
        "sigmoid": "fokker.objectives:Sigmoid",
        "edm-monotone": "fokker.objectives:EDMMonotone",
        "uncertainty": "fokker.objectives:Uncertainty",
    },
    "times": {
        "uniform": "fokker.objectives:UniformTimes",
        "logit-normal": "fokker.objectives:LogitNormal",
        "log-normal": "fokker.objectives:LogNormal",
        "adaptive": "fokker.objectives:Adaptive",
        "learned": "fokker.objectives:LearnedTimes",
        "levels": "fokker.objectives:Levels",
    },
    "ema": {"constant": "fokker.train:Constant", "power": "fokker.train:Power"},
    "objective": {
        "denoising": "fokker.objectives:Denoising",
        "score-matching": "fokker.objectives:ScoreMatching",
    },
    "regulariser": {
        "fokker-planck": "fokker.objectives:FokkerPlanckPenalty",
        "martingale": "fokker.objectives:MartingalePenalty",
    },
    "grid": {
        "flow": "fokker.solvers:FlowTime",
        "t": "fokker.solvers:UniformT",
        "lam": "fokker.solvers:UniformLam",
        "karras": "fokker.solvers:Karras",
        "quadratic": "fokker.solvers:Quadratic",
        "cosine": "fokker.solvers:Angle",
        "beta": "fokker.solvers:Beta",
        "shift": "fokker.solvers:Shift",
        "leading": "fokker.solvers:Leading",
        "linspace": "fokker.solvers:Linspace",
        "trailing": "fokker.solvers:Trailing",
        "times": "fokker.solvers:Times",
    },
    "solver": {
        "euler": "fokker.solvers:Euler",
        "heun": "fokker.solvers:Heun",
        "rk4": "fokker.solvers:RK4",
        "ddim": "fokker.solvers:DDIM",
        "adams": "fokker.solvers:Adams",
        "deis": "fokker.solvers:DEIS",
        "dpm": "fokker.solvers:DPM",
        "dpm++": "fokker.solvers:DPMpp",
        "lms": "fokker.solvers:LMS",
        "dpmv3": "fokker.solvers:DPMv3",
        "exp-euler": "fokker.solvers:ExpEuler",
        "exp-heun": "fokker.solvers:ExpHeun",
        "taylor": "fokker.solvers:Taylor",
        "pndm": "fokker.solvers:PNDM",
        "unipc": "fokker.solvers:UniPC",
        "sa": "fokker.solvers:SA",
        "ancestral": "fokker.solvers:Ancestral",
        "euler-maruyama": "fokker.solvers:EulerMaruyama",
        "edm-stochastic": "fokker.solvers:EDMStochastic",
        "predictor-corrector": "fokker.solvers:PredictorCorrector",
        "annealed-langevin": "fokker.solvers:AnnealedLangevin",
        "restart": "fokker.solvers:Restart",
        "picard": "fokker.solvers:Picard",
        "adaptive": "fokker.solvers:Adaptive",
    },
    "data": {
        "moons": "fokker.data:Moons",
        "checkerboard": "fokker.data:Checkerboard",
        "eight-gaussians": "fokker.data:EightGaussians",
        "swiss-roll": "fokker.data:SwissRoll",
        "spirals": "fokker.data:Spirals",
        "pinwheel": "fokker.data:Pinwheel",
        "fashion": "fokker.data:Fashion",
        "fashion-mnist": "fokker.data:FashionMNIST",
        "mnist": "fokker.data:MNIST",
        "cifar10": "fokker.data:CIFAR10",
        "latents": "fokker.data:Latents",
        "hub": "fokker.data:Hub",
        "folder": "fokker.data:Folder",
        "arrays": "fokker.data:Arrays",
        "shards": "fokker.shards:Shards",
        "table": "fokker.data:Table",
        "diabetes": "fokker.data:Diabetes",
        "signals": "fokker.data:Signals",
        "heartbeats": "fokker.data:Heartbeats",
        "molecules": "fokker.data:Molecules",
    },
    "codec": {
        "latent": "fokker.data:LatentCodec",
        "table": "fokker.data:TableCodec",
        "signal": "fokker.data:SignalCodec",
        "smiles": "fokker.data:SmilesCodec",
    },
    "column": {"number": "fokker.data:Number", "category": "fokker.data:Category"},
}

# What the field calls by a name that is a kind of another family, or of ours under another name.
ALIASES = {
    "ddpm": "DDPM is a process (kind 'ddpm'); its sampler is 'ancestral' and its objective is Denoising.ddpm()",
    "discrete-vp": "DiscreteVP is the process of kind 'ddpm'",
    "fm": "flow matching is the process 'flow' with the objective Denoising.cfm()",
    "rectified-flow": "rectified flow's path is the process 'flow'",
    "ancestral": "Ancestral is a solver; its process is 'ddpm' or any other",
    "ddim": "DDIM is a solver of any process",
    "edm": "EDM is a process ('edm'), a weight ('edm') and a solver ('edm-stochastic')",
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {}
INLINE = 64  # an Array of at most this many numbers is written into the JSON itself


def register(name: str) -> Callable[[Any], Any]:
    """Name a function, so that components which hold it can be saved and rebuilt: `@fk.register("my_alpha")`."""
    return register_name(_FUNCTIONS, name)


def lookup(family: str, kind: str) -> type:
    """The class of a kind. Raises ConfigError that names the closest kind, or the family that has it."""
    kinds = KINDS[family]
    key = kind.casefold().replace("_", "-")
    if key not in kinds:
        elsewhere = [name for name, table in KINDS.items() if key in table]
        note = ALIASES.get(key) or (f"{kind!r} is a {elsewhere[0]}" if elsewhere else "")
        raise ConfigError(f"unknown {family} {kind!r}: {note + '; ' if note else ''}{closest(key, kinds)}")
    module, name = kinds[key].split(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


def kind_of(thing: object) -> tuple[str, str]:
    """The (family, kind) of a component. Raises ConfigError for a class that has none."""
    for family, kinds in KINDS.items():
        for kind, path in kinds.items():
            module, name = path.split(":")
            cls = type(thing)
            if cls.__name__ == name and (cls.__module__ + ".").startswith(module + "."):
                return family, kind
    raise ConfigError(f"{type(thing).__name__} has no kind: it works in memory but cannot be saved")


def build(family: str, given: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """A component of `family` from a kind's name, a mapping with `kind`, or the component itself.

    Args:
        family: a key of `KINDS`.
        given: "vp", {"kind": "vp", "beta_max": 15.0}, or a component (returned as it is).
        tensors: where arrays too large for JSON are found, by name.
    """
    if isinstance(given, str):
        return lookup(family, given)()
    if not isinstance(given, Mapping):
        return given
    values = dict(given)
    kind = values.pop("kind", None)
    if not isinstance(kind, str):
        raise ConfigError(f"{family}: given {given!r} without a kind: {closest('', KINDS[family])}")
    cls = lookup(family, kind)
    fields = {name: _read(value, tensors) for name, value in values.items()}
    if "preset" in fields and hasattr(cls, "preset"):  # a shorthand: what is made knows and stores the fields alone
        return cls.preset(str(fields.pop("preset")), **fields)
    return cls(**fields)


def _read(value: Any, tensors: Mapping[str, Tensor] | None) -> Any:
    if isinstance(value, Mapping) and set(value) == {"tensor"}:
        if tensors is None or value["tensor"] not in tensors:
            raise ConfigError(f"the array {value['tensor']!r} is not in this file")
        return Array(tensors[value["tensor"]])
    if isinstance(value, Mapping) and set(value) == {"function"}:
        if value["function"] not in _FUNCTIONS:
            raise ConfigError(
                f"the function {value['function']!r} is not registered: import the code that calls fk.register for it"
            )
        return _FUNCTIONS[value["function"]]
    if isinstance(value, Mapping) and "kind" in value:
        return {name: _read(inner, tensors) if name != "kind" else inner for name, inner in value.items()}
    return value


def spec(thing: Any, tensors: dict[str, Tensor] | None = None, path: str = "", inline: int = INLINE) -> Any:
    """What JSON stores of a component: {"kind": ..., field: ...}; `build` reads it back.

    Args:
        thing: a component, network or plain value.
        tensors: receives arrays of more than 64 numbers, by name; without it they are refused.
        path: the field's name, for messages and tensor names.
        inline: an array of at most this many numbers is written out.

    Raises:
        ConfigError: a function that was not registered, or an array too large for JSON alone.
    """
    if isinstance(thing, Array):
        if thing.value.numel() <= inline:
            return thing.tolist()
        if tensors is None:
            raise ConfigError(f"{path}: an array of {thing.value.numel()} numbers needs a tensor file, not JSON alone")
        tensors[f"array:{path}"] = thing.value
        return {"tensor": f"array:{path}"}
    if isinstance(thing, InMemory):
        raise ConfigError(f"{path}: {thing!r} cannot be written to a file: {thing.instead}")
    dot = f"{path}." if path else ""
    if isinstance(thing, nn.Module):
        _, kind = kind_of(thing)
        config: dict[str, Any] = thing.config  # type: ignore[assignment]
        return {"kind": kind} | {name: spec(value, tensors, dot + name, inline) for name, value in config.items()}
    if is_dataclass(thing) and not isinstance(thing, type):
        _, kind = kind_of(thing)
        named = [f.name for f in fields(thing) if f.init]
        return {"kind": kind} | {name: spec(getattr(thing, name), tensors, dot + name, inline) for name in named}
    if isinstance(thing, (list, tuple)):
        return [spec(value, tensors, f"{dot}{i}", inline) for i, value in enumerate(thing)]
    if callable(thing):
        names = [name for name, function in _FUNCTIONS.items() if function is thing]
        if not names:
            raise ConfigError(f"{path}: {thing!r} cannot be saved: name it with @fk.register('...') first")
        return {"function": names[0]}
    if isinstance(thing, Mapping):
        return {name: spec(value, tensors, dot + str(name), inline) for name, value in thing.items()}
    try:
        json.dumps(thing)
    except TypeError:
        raise ConfigError(f"{path}: {type(thing).__name__} cannot be written to a file") from None
    return thing


def resolves(family: str) -> BeforeValidator:
    """Field annotation: a name or mapping given for this field is built as a component of `family`."""
    return BeforeValidator(lambda given: build(family, given))
