"""The command line: `fokker init | data | train | sample | evaluate | tune | ema | info | solvers | figures |
recipes | demo`.

A user's mistake is one line on standard error and exit code 2, never a traceback.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import FokkerError

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit: 0 done, 2 a mistake of the user's, 130 interrupted."""
    import typer

    from .app import app

    plain = warnings.showwarning
    warnings.showwarning = lambda *said, **more: _warn(plain, *said, **more)
    # Typer brings its own copy of click in recent versions; its exceptions are found through one it exports.
    usage_error: type[Any] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
    try:
        code = app(standalone_mode=False)
        if code == 130:  # recent versions of typer catch the interruption themselves
            raise KeyboardInterrupt
    except (typer.Abort, KeyboardInterrupt):
        print("fokker: interrupted", file=sys.stderr)
        sys.exit(130)
    except FokkerError as error:
        print(f"fokker: {error}", file=sys.stderr)
        sys.exit(2)
    except usage_error as error:
        message = error.format_message()
        if message:  # none when help was shown instead
            where = getattr(getattr(error, "ctx", None), "command_path", "fokker").rpartition(" ")[2]
            print(f"fokker: {message} (see fokker {'' if where == 'fokker' else where + ' '}--help)", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _warn(plain: Callable[..., None], message: Warning | str, category: type, filename: str, *rest: Any) -> None:
    """A warning of fokker's own in one line; anyone else's as Python shows it."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        print(f"fokker: warning: {message}", file=sys.stderr)
    else:
        plain(message, category, filename, *rest)
