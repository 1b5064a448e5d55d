"""SIGINT and SIGTERM end a command in one line that says how to go on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["stopping"]


@contextmanager
def stopping(say: Callable[[], str]) -> Iterator[None]:
    """Inside, SIGTERM and SIGINT drop what is in hand and exit with 143 or 130, after `say()` on standard error."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        line = say()
        if line:
            print(f"fokker: interrupted: {line}", file=sys.stderr)
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    finally:
        signal.signal(signal.SIGTERM, before)
