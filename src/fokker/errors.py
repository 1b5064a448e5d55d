"""The few exceptions of fokker: every message says what was given, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["ConfigError", "FileError", "FokkerError", "MissingExtraError", "UndeterminedError", "closest"]


class FokkerError(Exception):
    """Base of every error that fokker raises on purpose; the command line prints it in one line."""


class ConfigError(FokkerError, ValueError):
    """A field, argument or recipe key has a value that cannot be used."""


class UndeterminedError(FokkerError, ArithmeticError):
    """A reading was asked for at an end of the process where the prediction does not determine it."""


class FileError(FokkerError, OSError):
    """A file or folder is missing, unreadable, truncated or foreign."""


class MissingExtraError(FokkerError, ImportError):
    """An optional dependency is needed; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is needed here and is not installed: pip install 'fokker[{extra}]'")


def closest(word: str, allowed: Iterable[str]) -> str:
    """The sentence that ends an "unknown name" message: the closest match, then what is allowed."""
    names = sorted(allowed)
    folded = {name.casefold().replace("_", "-"): name for name in names}
    match = get_close_matches(word.casefold().replace("_", "-"), folded, n=1, cutoff=0.6)
    hint = f"did you mean {folded[match[0]]!r}? " if match else ""
    return f"{hint}allowed: {', '.join(names)}"
