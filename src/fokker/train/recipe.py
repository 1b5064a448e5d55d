"""A recipe: one YAML file that names data, process, network, objective, training and sampling.

With `model` in the place of process, net, denoiser and objective it trains one of `fokker.classic`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field

from ..classic import Model
from ..component import component
from ..data import Data, Samples
from ..denoiser import NetDenoiser
from ..errors import ConfigError, FileError, closest
from ..files import absolute
from ..objectives import Denoising
from ..process import Process
from ..registry import build, lookup, resolves, spec
from .options import SECTIONS, Reads, Run, Sampling, Training

__all__ = ["Recipe", "read", "recipe_names", "recipes_folder"]

DIFFUSION = ("process", "net", "denoiser", "objective")  # what a recipe with a `model` does not have


@component
class Recipe:
    """Everything a training needs; every field but `data` and one of `net` and `model` has a default.

    Args:
        data: a data source.
        net: the network's kind and fields; what follows from the data (channels, size, dim, classes) is filled in.
        model: in place of process, net, denoiser and objective: a classic model's kind and fields; its shape is filled
            in from the data.
        name: names the run's folder.
        process, denoiser, objective, train, sampling, run: the sections.
    """

    key: ClassVar[str] = "recipe"
    data: Annotated[Data, resolves("data")]
    net: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    name: str = "run"
    process: Annotated[Process, resolves("process")] = Field(default_factory=lambda: build("process", "flow"))
    denoiser: Reads = Reads()
    objective: Annotated[Denoising, resolves("objective")] = Denoising()
    train: Training = Training()
    sampling: Sampling = Sampling()
    run: Run = Run()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run.dir or f"runs/{self.name}")

    def __post_init__(self) -> None:
        if (self.net is None) == (self.model is None):
            given = "neither" if self.net is None else "both"
            raise ConfigError(
                f"recipe: given {given} of net (a denoiser's network) and model (a classic model): give one of them"
            )

    def fresh(self, samples: Samples) -> NetDenoiser | Model:
        """A fresh denoiser or classic model for these samples; sizes follow from them where they are not given."""
        shape, cond = samples.shape, samples.cond
        if self.model is not None:
            model: Model = build("model", {"shape": shape} | self.model)
            if model.shape != shape:
                raise ConfigError(f"model.shape: given {model.shape}, but the data has {shape}; leave it out")
            return model
        assert self.net is not None
        values = dict(self.net)
        cls = lookup("net", str(values.get("kind", "")))
        facts = {"dim": math.prod(shape), "channels": shape[0], "size": shape[-1], "axes": len(shape) - 1}
        facts["classes"] = len(samples.classes)
        if cond is not None:
            words = not cond.is_floating_point()
            facts |= {"tokens": int(cond.max()) + 1} if words else {"cond_dim": cond.shape[-1]}
            facts |= {"cond_length": cond.shape[1]} if words or cond.ndim == 3 else {}
        names = inspect.signature(cls).parameters
        net = build("net", {name: value for name, value in facts.items() if name in names} | values)
        reads = {name: getattr(self.denoiser, name) for name in _names(Reads)}
        return NetDenoiser(net, self.process, shape=shape, **reads)

    def resolved(self, made: NetDenoiser | Model | None = None) -> dict[str, Any]:
        """The recipe as plain values for YAML: every default written out, the network's too if what was made is given,
        and the data's paths, which count from the current folder, made absolute."""
        wanted = ("data",) if self.model is not None else ("data", "process", "objective")
        parts = {"name": self.name} | {name: spec(getattr(self, name), path=name, inline=2**20) for name in wanted}
        parts["data"] = _placed(parts["data"])
        if self.model is not None:
            parts["model"] = self.model if made is None else spec(made)
        else:
            parts["net"] = self.net if made is None else spec(made.net)
        for name, cls in SECTIONS.items():
            fields_of = ["n"] if self.model is not None and name == "sampling" else _names(cls)
            if self.model is None or name not in DIFFUSION:
                section = getattr(self, name)
                parts[name] = {field: spec(getattr(section, field), inline=2**20) for field in fields_of}
        return parts


def _placed(values: Any) -> Any:
    """What a file stores of a data source, its paths absolute: a run is resumed and evaluated from any folder."""
    if not isinstance(values, Mapping):
        return values
    paths = {name: absolute(values[name]) for name in ("path", "encoder") if isinstance(values.get(name), str)}
    return {name: _placed(value) for name, value in values.items()} | paths


def _names(cls: Any) -> list[str]:
    return [field.name for field in fields(cls)]


def recipes_folder() -> Path:
    """Where the recipes that come with fokker are: inside the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parents[1] / "recipes"


def recipe_names() -> dict[str, Path]:
    """The recipes that come with fokker: name to file."""
    return {file.stem: file for file in sorted(recipes_folder().glob("*.yaml"))}


def read(given: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from its name or file, with `key=value` overrides such as train.steps=400 or process=vp.

    Raises:
        FileError: no such recipe, or not YAML.
        ConfigError: an unknown key or an impossible value; one line names key, value and what is allowed.
    """
    known = recipe_names()
    file = known.get(str(given), Path(given))
    try:
        found = file.is_file()
    except OSError:  # a name too long for the file system
        found = False
    if not found:
        raise FileError(f"no recipe {str(given)!r}: {closest(str(given), known)}, or the path of a YAML file")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise FileError(f"{file}: not a readable YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: a recipe is a mapping of keys to values")
    values.setdefault("name", file.stem)
    for item in overrides:
        _override(values, item)
    return make(values)


def make(values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values."""
    keys = _names(Recipe)
    for name in values:
        if name not in keys:
            raise ConfigError(f"recipe has no key {name!r}: {closest(str(name), keys)}")
    _check_keys(values)
    parts = dict(values)
    if parts.get("model") is not None:
        _check_classic(parts)
    for name, cls in SECTIONS.items():
        if name in parts:
            if not isinstance(parts[name], Mapping):
                raise ConfigError(f"{name}: given {parts[name]!r}, must be a mapping of keys to values")
            parts[name] = cls(**parts[name])
    for name in ("net", "model"):
        if isinstance(parts.get(name), str):
            parts[name] = {"kind": parts[name]}
        if isinstance(parts.get(name), Mapping):
            lookup(name, str(parts[name].get("kind", "")))
    if isinstance(parts.get("objective"), Mapping):
        parts["objective"] = {"kind": "denoising"} | dict(parts["objective"])
    return Recipe(**parts)


def _check_classic(parts: dict[str, Any]) -> None:
    """Refuse what only a denoiser's recipe has; null stands for nothing. Raises ConfigError."""
    sampling = parts.get("sampling")
    named = [name for name in DIFFUSION if parts.get(name) is not None]
    if isinstance(sampling, Mapping):
        named += [f"sampling.{name}" for name, value in sampling.items() if name != "n" and value is not None]
        parts["sampling"] = {name: value for name, value in sampling.items() if name == "n"}
    if named:
        away = " ".join(f"{name}=null" for name in named)
        raise ConfigError(
            f"{named[0]}: given in a recipe with a `model`, which has no use for it; leave it out (overrides: {away})"
        )
    for name in DIFFUSION:
        parts.pop(name, None)


def _check_keys(values: Any) -> None:
    if isinstance(values, Mapping):
        for name, inner in values.items():
            if not isinstance(name, str):
                raise ConfigError(f"recipe: the key {name!r} is no name; keys are words")
            _check_keys(inner)


def _override(values: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {item!r}: must be key=value, for example train.steps=400")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # YAML takes 2024-13-45 for a date
        value = text
    *path, last = key.split(".")
    place = values
    for part in path:
        inner = place.get(part)
        if isinstance(inner, str):  # a kind's name given short, now with a field
            inner = {"kind": inner}
        place[part] = {} if inner is None else inner
        if not isinstance(place[part], dict):
            raise ConfigError(f"override {item!r}: {part!r} is {inner!r}, which has no keys")
        place = place[part]
    place[last] = value
