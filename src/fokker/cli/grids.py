"""What `--solver` and `--grid` may say: a kind, with fields as in karras:rho=5; for a grid also a file of times."""

from __future__ import annotations

import json
import re
from collections.abc import Container
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, FileError

__all__ = ["GRIDS", "SUFFIXES", "parse_component", "read_grid", "written"]

GRIDS = "flow, t, lam, karras, quadratic, cosine, beta, shift, leading, linspace, trailing; fields as in karras:rho=5; "
GRIDS += "or a FILE of times, as fokker tune writes it."
SUFFIXES = (".yaml", ".yml", ".json")
FIELD = re.compile(r",\s*(?=\w+\s*=)")  # where the next field begins; commas within a value are its own


def parse_component(text: str, option: str) -> dict[str, Any]:
    """`ddim:eta=0.5,...` as a recipe; a value is YAML: `restart:solver={kind: ddim},intervals=[[0.1, 0.3, 2, 2]]`.

    Raises ConfigError that names `option`.
    """
    kind, _, rest = text.partition(":")
    values: dict[str, Any] = {"kind": kind}
    for item in filter(None, FIELD.split(rest)):
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{option}: given {text!r}; fields are written kind:name=value,name=value")
        if name.strip() in values:
            raise ConfigError(f"{option}: given {text!r}, which has {name.strip()} twice; give it once")
        try:
            values[name.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):  # YAML takes 2024-13-45 for a date
            raise ConfigError(f"{option}: given {text!r}; {value!r} is no value") from None
    return values


def written(component: Any, only: Container[str] | None = None) -> str:
    """A component as `parse_component` reads it: the fields that make it other than by default, or `only` some."""
    from ..registry import spec

    recipe = spec(component)
    kind = recipe.pop("kind")
    only = _telling(component) if only is None else only
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in recipe.items()}
    named = [name for name in values if name in only]
    said = ",".join(f"{name}={values[name]}" for name in named)
    return f"{kind}:{said}" if said else str(kind)


def _telling(component: Any) -> list[str]:
    """The fields without which a component would be another."""
    held = {each.name: getattr(component, each.name) for each in fields(component) if each.init}
    told = []
    for name in held:
        try:
            same = type(component)(**{other: value for other, value in held.items() if other != name}) == component
        except ConfigError:  # it must be given
            same = False
        told += [] if same else [name]
    return told


def read_grid(text: str | None) -> Any:
    """What `--grid` names, as a recipe; None stays None.

    A file holds a grid's recipe (kind and fields) or the times alone, decreasing, in YAML or JSON.

    Raises:
        ConfigError, FileError: no such grid; a file that is missing or holds no grid.
    """
    from ..registry import build, spec

    if text is None:
        return None
    path = Path(text)
    if path.suffix not in SUFFIXES:
        given = parse_component(text, "--grid")
        build("grid", given)  # a wrong name is said before anything is read
        return given
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not YAML or JSON"
        raise FileError(f"--grid: {path} cannot be read ({why})") from None
    if not isinstance(found, list) and not (isinstance(found, dict) and "kind" in found):
        raise FileError(f"--grid: {path} must hold a list of times or a mapping with a kind, as fokker tune writes it")
    try:
        return spec(
            build("grid", {"kind": "times", "values": found} if isinstance(found, list) else found), inline=2**20
        )
    except ConfigError as error:
        raise FileError(f"--grid: {path}: {error}") from None
