"""`fokker solvers [NAME]`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from inspect import cleandoc
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ..errors import ConfigError
from .grids import written

if TYPE_CHECKING:
    from rich.table import Table

    from ..solvers.catalogue import Entry

__all__ = ["solvers"]

WIDE = 110  # characters; a narrower terminal leaves out two columns
DEFAULTS = {("DPM", "order"): "2, or 3 with nfe"}  # those that another field sets


def solvers(
    name: Annotated[str | None, typer.Argument(help="One kind, such as dpm++; nothing: all of them.")] = None,
) -> None:
    """List the solvers and what each is for, or describe one: its fields, what they may be, and a command."""
    from rich.console import Console

    from ..registry import lookup
    from ..solvers.catalogue import CATALOGUE, entries

    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    if name is None:
        console.print(_table(CATALOGUE, console.width))
        typer.echo("order: global, weak where noise is drawn; above 2 of multistep solvers that have start, with")
        typer.echo("start=single (2 by default, one more with a corrector; dpmv3 has its 3 as it is)")
        typer.echo("NFE: evaluations a step of the grid; the last step, to time 0, costs one")
        typer.echo("one of them: fokker solvers NAME; which to take when: docs/solvers.md")
        return
    kind = name.casefold().replace("_", "-")
    if ":" in kind:
        raise ConfigError(f"NAME: given {name!r}; give the kind without fields: {name.partition(':')[0]}")
    cls = lookup("solver", kind)
    typer.echo(cleandoc(cls.__doc__ or "") + "\n")
    console.print(_table(entries(kind), console.width))
    if rows := list(_fields(cls)):
        typer.echo()
        console.print(_columns(("field", "default", "allowed"), rows))
    typer.echo()
    for entry in entries(kind):
        much = "--steps 20" if entry.solver.stochastic else "--nfe 20"
        if entry.cost is None:
            much = ""
        typer.echo(f"fokker sample RUN --solver {quote(_short(entry))} {much}".rstrip())


def _table(rows: Sequence[Entry], width: int) -> Table:
    """The entries; side and noise where there is room for them."""
    shown = (0, 1, 2, 3, 4, 5) if width >= WIDE else (0, 1, 2, 5)
    lines: list[tuple[str, ...]] = []
    family = ""
    for entry in rows:
        if entry.family != family:
            family = entry.family
            lines.append((family,))
        cost = entry.cost
        spent = "varies" if cost is None else f"{cost[0]}"
        noise = "yes" if entry.solver.stochastic else "no"
        cells = (f"  {_short(entry)}", str(entry.order), spent, entry.side, noise, entry.when)
        lines.append(tuple(cells[i] for i in shown))
    headings = ("solver", "order", "NFE", "side", "noise", "when to use it")
    return _columns(tuple(headings[i] for i in shown), lines)


def _columns(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for i, heading in enumerate(headings):
        table.add_column(heading, no_wrap=i + 1 < len(headings))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # brackets are text here, not markup
    return table


def _short(entry: Entry) -> str:
    """An entry as `--solver` reads it, with the fields that make it this one."""
    return entry.shown or written(entry.solver, only=entry.fields)


def _fields(cls: Any) -> Iterator[tuple[str, str, str]]:
    """(name, default, what is allowed) of a component's fields."""
    hints = get_type_hints(cls, include_extras=True)
    for name, info in cls.__pydantic_fields__.items():
        default = "must be given" if info.is_required() else _value(info.get_default(call_default_factory=True))
        yield name, DEFAULTS.get((cls.__name__, name), default), _allowed(hints[name])


def _value(value: Any) -> str:
    from ..solvers import Grid, Solver

    if isinstance(value, (Solver, Grid)):
        return written(value)
    return value if isinstance(value, str) else json.dumps(value)


def _allowed(hint: Any) -> str:
    """What a field's annotation allows, in words."""
    from ..component import InMemory
    from ..solvers import Grid, Solver

    bounds = []
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        bounds = [mark for note in notes for mark in getattr(note, "metadata", ())]
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return ", ".join(map(str, parts))
    if InMemory in parts:
        return "a file (.safetensors)"
    if type(None) in parts:
        return f"{' or '.join(_allowed(part) for part in parts if part is not type(None))}, or null"
    if isinstance(hint, type) and issubclass(hint, (Solver, Grid)):
        return f"a {hint.__name__.lower()}: its kind, or {{kind: ..., field: value}}"
    words = {bool: "true, false", int: "a whole number", float: "a number", str: "a name"}
    word = words.get(hint, str(getattr(hint, "__name__", hint)))
    if get_origin(hint) is tuple:
        word = f"a list of {_allowed(parts[0])}" if parts[1:] == (...,) else f"[{', '.join(map(_allowed, parts))}]"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [f"{sign} {getattr(mark, key):g}" for mark in bounds for key, sign in signs.items() if hasattr(mark, key)]
    return " ".join([word, *limits[:1]]) + "".join(f" and {limit}" for limit in limits[1:])
