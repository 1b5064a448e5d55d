"""Optimisers of torch.optim by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, closest

__all__ = ["SELF_SKIPPING", "make_optimiser", "optimiser_class"]

# Fused, they leave out a step where `found_inf` is set (SGD's momentum would start from memory it never wrote).
SELF_SKIPPING = (torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


# LBFGS needs a closure, SparseAdam sparse gradients: neither fits a step of training.
_NAMES = {
    name.casefold(): name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
}
for _name in ("optimizer", "lbfgs", "sparseadam"):
    _NAMES.pop(_name, None)


def optimiser_class(name: str) -> type[torch.optim.Optimizer]:
    """A class of torch.optim by its name, in any case. Raises ConfigError."""
    if name.casefold() not in _NAMES:
        raise ConfigError(f"train.optimiser: given {name!r}; {closest(name, _NAMES.values())}")
    return getattr(torch.optim, _NAMES[name.casefold()])  # type: ignore[no-any-return]


def make_optimiser(
    name: str,
    weights: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    options: Mapping[str, Any],
    beside: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """An optimiser of torch.optim, fused where torch has it so.

    Args:
        name: the class.
        weights: a network's, which decay.
        lr, weight_decay, options: the class's arguments.
        beside: parameters that do not decay.

    Raises:
        ConfigError: an option it does not have, or a value it refuses.
    """
    cls = optimiser_class(name)
    allowed = [key for key in inspect.signature(cls).parameters if key not in ("params", "lr", "weight_decay")]
    for key in options:
        if key not in allowed:
            raise ConfigError(f"train.optimiser_options: {cls.__name__} has no {key!r}: {closest(key, allowed)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if cls in SELF_SKIPPING and not values.get("foreach"):
        values = {"fused": True} | values
    if "weight_decay" in inspect.signature(cls).parameters:
        values["weight_decay"] = weight_decay
    elif weight_decay:
        raise ConfigError(f"train.weight_decay: given {weight_decay}, but {cls.__name__} has none; give 0")
    try:
        groups: list[dict[str, Any]] = [{"params": list(weights)}, {"params": list(beside), "weight_decay": 0.0}]
        return cls([group for group in groups if group["params"]], **{"lr": lr} | values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"train.optimiser: {cls.__name__} refuses these options ({error})") from None
