"""What commands that measure share: a progress bar, and a new folder for what they find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import FileError

__all__ = ["Bar", "new_folder"]


@contextmanager
def new_folder(wanted: Path) -> Iterator[Path]:
    """A new folder of this name, numbered on if it is there; taken away again if nothing comes of it."""
    chosen, number = wanted, 1
    while chosen.exists():
        number += 1
        chosen = wanted.with_name(f"{wanted.name}-{number}")
    try:
        chosen.mkdir(parents=True)
    except OSError as error:
        raise FileError(f"--output: {chosen} cannot be made ({error.strerror})") from None
    try:
        yield chosen
    except BaseException:
        with suppress(OSError):
            chosen.rmdir()
        raise


class Bar:
    """A progress bar of what is measured, on a terminal."""

    def __enter__(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.bar.__enter__()
        task = self.bar.add_task("")
        return lambda what, done, total: self.bar.update(task, description=what, completed=done, total=total)

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)
