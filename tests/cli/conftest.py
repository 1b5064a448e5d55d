"""Shared by the tests of the command line."""

import sys
from pathlib import Path

import pytest

from fokker.cli import main

from .calling import Call, Result


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`fokker ...` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["fokker", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return Result(stop.value.code, *capsys.readouterr())

    return run
