"""States of a training, from which it goes on exactly: written whole, checked by checksum, the previous one kept.

    state/00000400.safetensors    tensors and facts of step 400, with a checksum over both
    state/manifest.json           which files are valid, newest first, and their checksums

A file is put in place before the manifest names it and removed after the manifest has forgotten it, so a process that
dies at any instant leaves a manifest whose files are whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import FileError
from ..files import read_metadata, read_tensors, write_tensors, write_text

__all__ = ["State", "read_state", "write_state"]

FORMAT = "fokker-state-1"
MANIFEST = "manifest.json"
KEEP = 2


class State(NamedTuple):
    """Tensors and facts (JSON) of a training after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write_state(folder: Path, state: State, run: str) -> None:
    """Add a state to a run's `state/` folder and drop all but the two newest.

    Args:
        folder: the folder `state/`.
        state: whole tensors on any device.
        run: what tells this run's states from another's.

    Raises:
        FileError: the disk is full, say; the states that were there are intact.
    """
    name = f"{state.step:08d}.safetensors"
    metadata = {"format": FORMAT, "run": run, "step": str(state.step), "facts": json.dumps(state.facts)}
    write_tensors(folder / name, state.tensors, metadata)
    before = [entry for entry in _manifest(folder) if entry["step"] < state.step and (folder / entry["file"]).is_file()]
    entry = {"file": name, "step": state.step, "sha256": read_metadata(folder / name, FORMAT)["sha256"]}
    kept = [entry, *before][:KEEP]
    write_text(folder / MANIFEST, json.dumps({"format": FORMAT, "states": kept}, indent=1) + "\n")
    for old in folder.glob("[0-9]*.safetensors"):
        if old.name < kept[-1]["file"]:
            with suppress(OSError):
                old.unlink()


def read_state(folder: Path, run: str) -> tuple[State | None, list[str]]:
    """The newest good state, and what was wrong with newer ones.

    Args:
        folder: the folder `state/`; it need not exist.
        run: as in `write_state`.

    Returns:
        (None, []) if nothing was ever saved.

    Raises:
        FileError: there are states and none is good; each is named.
    """
    listed = {entry["file"]: entry["sha256"] for entry in _manifest(folder)}
    wrong: list[str] = []
    if folder.is_dir() and not listed and (folder / MANIFEST).exists():
        wrong.append(f"{folder / MANIFEST}: damaged")
    # A state newer than the manifest is whole all the same: its own checksum says so.
    for file in sorted(folder.glob("*.safetensors"), reverse=True):
        try:
            gone = [f"{folder / name}: missing" for name in listed if name > file.name and not (folder / name).exists()]
            return _read(file, run, listed.get(file.name)), gone + wrong
        except FileError as error:
            wrong.append(str(error))
    missing = [f"{folder / name}: missing" for name in listed if not (folder / name).exists()]
    if wrong or missing:
        raise FileError(f"no good state is left to resume from ({'; '.join(wrong + missing)})")
    return None, []


def _read(file: Path, run: str, checksum: str | None) -> State:
    if checksum is not None and read_metadata(file, FORMAT).get("sha256") != checksum:
        raise FileError(f"{file}: not the file that the manifest names")
    tensors, metadata = read_tensors(file, FORMAT)
    if metadata.get("run") != run:
        raise FileError(f"{file}: the state of another run")
    try:
        facts: Mapping[str, Any] = json.loads(metadata["facts"])
        state = State(int(metadata["step"]), tensors, dict(facts))
    except (KeyError, ValueError) as error:
        raise FileError(f"{file}: damaged ({error})") from None
    if file.stem != f"{state.step:08d}":
        raise FileError(f"{file}: holds the state of step {state.step}")
    return state


def _manifest(folder: Path) -> list[dict[str, Any]]:
    """The manifest's entries; none if it is missing or damaged."""
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = [
            {"file": Path(str(entry["file"])).name, "step": int(entry["step"]), "sha256": str(entry["sha256"])}
            for entry in values["states"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return entries
