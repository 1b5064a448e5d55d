"""A component is its own configuration: a frozen dataclass whose fields are what a recipe sets and a file stores.

Fields are scalars, strings, tuples, other components, an `Array`, or a function that was registered by name.
Validation is pydantic's; its reports are turned into one line that names the field, the value and what is allowed.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from functools import cache, wraps
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

import numpy as np
import torch
from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails, core_schema
from torch import Tensor

from .errors import ConfigError, closest

__all__ = ["Array", "InMemory", "component", "recorded", "untransformed"]

C = TypeVar("C", bound=type)
_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False, revalidate_instances="never")


def untransformed() -> AbstractContextManager[object]:
    """No torch.func transform inside: what is kept must not belong to the one it happens to be made in."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return nullcontext()
    context: AbstractContextManager[object] = torch._C._DisableFuncTorch()
    return context


def _bare(value: Tensor) -> Tensor:
    """What a tensor holds inside torch.func: no derivatives are kept. Raises ValueError under vmap."""
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        if torch._C._functorch.is_batchedtensor(value):
            raise ValueError("an array is one for all, but vmap gives it once for each")
        value = torch._C._functorch.get_unwrapped(value)
    return value


class Array:
    """A read-only float64 array as a field: compared and hashed by content, cast once per device and dtype.

    Args:
        values: anything `torch.as_tensor` takes (nested lists, numpy, tensors); copied to the CPU in float64.
    """

    def __init__(self, values: Any) -> None:
        values = values.value if isinstance(values, Array) else values
        if not isinstance(values, Tensor):  # torch would read bare floats as float32, and refuses reversed views
            values = np.array(values, dtype=np.float64)
        with untransformed():
            values = _bare(torch.as_tensor(values))
            self.value: Tensor = values.detach().to("cpu", torch.float64, copy=True).contiguous()
            body = np.ascontiguousarray(self.value.numpy()).data
        digest = hashlib.sha256(str(tuple(self.value.shape)).encode())
        digest.update(body)
        self.digest: str = digest.hexdigest()
        self._casts: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def to(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
        """The array on `device` in `dtype`; every cast is made once and kept."""
        key = (torch.device(device), dtype)
        if key not in self._casts:
            with untransformed():
                self._casts[key] = self.value.to(key[0], dtype)
        return self._casts[key]

    def like(self, x: Tensor) -> Tensor:
        """The array on the device and in the dtype of `x`."""
        return self.to(x.device, x.dtype)

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    def tolist(self) -> Any:
        return self.value.tolist()

    def __len__(self) -> int:
        return len(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Array) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        body = repr(self.tolist()) if self.value.numel() <= 8 else f"shape={tuple(self.shape)}"
        return f"Array({body})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(cls._validate)

    @classmethod
    def _validate(cls, values: Any) -> Array:
        if isinstance(values, Array):
            return values
        try:
            array = cls(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"must be an array of numbers ({error})") from None
        if not torch.isfinite(array.value).all():
            raise ValueError("must be an array of finite numbers")
        return array


class InMemory:
    """A field's value that lives in this process only; a file cannot hold it (`registry.spec` refuses).

    Args:
        value: the object.
        instead: what to do to have something that a file can hold.
    """

    def __init__(self, value: Any, instead: str) -> None:
        self.value, self.instead = value, instead

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__} in memory>"


def _line(cls: type, detail: ErrorDetails) -> str:
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):  # from a component further in, which has said it all
        return str(cause)
    owner = getattr(cls, "key", cls.__name__)  # a recipe's section is known by its key
    names, place = [f.name for f in fields(cls) if f.init], list(detail["loc"])
    if detail["type"] == "unexpected_positional_argument":
        return f"{owner}: given {detail['input']!r} beyond its fields, which are {', '.join(names) or 'none'}"
    if place and isinstance(place[0], int) and place[0] < len(names):  # given by position
        place[0] = names[place[0]]
    name = ".".join(str(part) for part in place)
    if detail["type"] == "multiple_argument_values":
        return f"{owner}.{name}: given twice, by position and by name"
    if detail["type"] == "unexpected_keyword_argument":
        return f"{owner} has no field {name!r}: {closest(name, [f.name for f in fields(cls)])}"
    if detail["type"] == "missing_argument" or detail["type"] == "missing":
        told = vars(cls).get("__pydantic_fields__", {})
        how = told[name].description if name in told else None
        return f"{owner}.{name} must be given" + (f": {how}" if how else "")
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("must be ")
    given = detail["input"]
    shown = repr(given) if len(repr(given)) < 80 else type(given).__name__
    if not name or detail["type"] == "value_error":
        return f"{owner}{'.' + name if name else ''}: {message}" + (f" (given {shown})" if name else "")
    return f"{owner}.{name}: given {shown}, must be {message}"


@dataclass_transform(frozen_default=True)
def component(cls: C) -> C:
    """Make a class a component: a frozen, validated dataclass that refuses fields it does not have.

    Raises (from the constructor):
        ConfigError: a field is unknown, missing, of the wrong type or out of its range.
    """
    made = pydantic_dataclass(frozen=True, config=_CONFIG)(cls)
    inner = made.__init__

    @wraps(inner)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        named = dict(zip((f.name for f in fields(made) if f.init), args, strict=False)) | kwargs
        for name in [name for name, value in named.items() if isinstance(value, bool)]:
            if name in _numeric(made):  # pydantic would take True for 1
                owner = getattr(type(self), "key", type(self).__name__)
                raise ConfigError(f"{owner}.{name}: given {named[name]}, must be a number")
        try:
            inner(self, *args, **kwargs)
        except ValidationError as error:
            lines = [_line(type(self), detail) for detail in error.errors()]
            raise ConfigError("; ".join(lines)) from None

    made.__init__ = __init__  # type: ignore[method-assign]
    return made  # type: ignore[return-value]


@cache
def _numeric(cls: type) -> frozenset[str]:
    """The fields that hold a number and no truth value."""

    def number(hint: Any) -> bool:
        hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        return bool not in parts and (int in parts or float in parts)

    return frozenset(name for name, hint in get_type_hints(cls, include_extras=True).items() if number(hint))


def recorded(cls: C) -> C:
    """Make a module remember its constructor's arguments as `config`, so that a file can rebuild it.

    For classes that carry weights and so cannot be frozen dataclasses (networks, `NetDenoiser`).
    """
    inner = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(inner)
    names = [name for name in signature.parameters if name != "self"]

    @wraps(inner)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        unknown = [name for name in kwargs if name not in names]
        if unknown:
            raise ConfigError(f"{cls.__name__} has no field {unknown[0]!r}: {closest(unknown[0], names)}")
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        hints = get_type_hints(inner)
        config = {
            name: _checked(cls, name, value, hints.get(name, Any))
            for name, value in bound.arguments.items()
            if name != "self"
        }
        inner(self, **config)
        if type(self) is cls:
            self.config = config  # type: ignore[attr-defined]

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


def _plain(hint: Any) -> bool:
    """Whether an annotation is made of numbers, strings and sequences of them alone."""
    if get_origin(hint) is None:
        return hint in (int, float, bool, str, type(None))
    return get_origin(hint) is Literal or all(_plain(part) for part in get_args(hint) if part is not ...)


def _checked(cls: type, name: str, value: Any, hint: Any) -> Any:
    """A constructor's argument as its annotation says. Raises ConfigError."""
    if not _plain(hint):
        return value
    parts = (hint, *get_args(hint))
    if isinstance(value, bool) and not any(part is bool or isinstance(part, bool) for part in parts):
        raise ConfigError(f"{cls.__name__}.{name}: given {value!r}, must be a number or word, no truth value")
    if hint is bool and not isinstance(value, bool):
        raise ConfigError(f"{cls.__name__}.{name}: given {value!r}, must be true or false")
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        detail = error.errors()[0]
        raise ConfigError(
            f"{cls.__name__}.{name}: given {value!r}, must be {detail['msg'].removeprefix('Input should be ')}"
        ) from None


def register_name(table: dict[str, Callable[..., Any]], name: str) -> Callable[[Any], Any]:
    """Decorator that files a function in `table` under `name`; the name may be taken only by the same function."""

    def wrap(function: Any) -> Any:
        if table.get(name, function) is not function:
            raise ConfigError(f"the name {name!r} is already registered for {table[name]!r}: choose another")
        table[name] = function
        return function

    return wrap
