"""What several commands read in the same way."""

from __future__ import annotations

from typing import Any

import yaml

from ..errors import ConfigError

__all__ = ["component"]


def component(text: str | None) -> dict[str, Any] | None:
    """A solver written `ddim:eta=0.5,...` as a recipe; None if it is not given. Raises ConfigError."""
    if text is None:
        return None
    kind, _, rest = text.partition(":")
    values: dict[str, Any] = {"kind": kind}
    for item in filter(None, rest.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--solver: given {text!r}; fields are written kind:name=value,name=value")
        try:
            values[name.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):  # YAML takes 2024-13-45 for a date
            raise ConfigError(f"--solver: given {text!r}; {value!r} is no value") from None
    return values
