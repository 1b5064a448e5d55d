"""What a command of `fokker` gave, and the fixture that calls one."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Result(NamedTuple):
    code: Any
    out: str
    err: str


Call = Callable[..., Result]
