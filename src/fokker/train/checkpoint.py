"""Model files: weights and the component's JSON in one safetensors file, written whole or not at all. No pickles."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..denoiser import NetDenoiser
from ..errors import ConfigError, FileError
from ..registry import build, spec

__all__ = ["load", "model_path", "read_header", "save", "write_whole"]

FORMAT = "1"
MODEL = "model.safetensors"


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place at once: never half a file.

    Raises:
        FileError: the disk is full or the folder cannot be written; the previous file is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise FileError(f"{path}: cannot be written ({why}); nothing was changed") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def save(path: Path | str, denoiser: NetDenoiser, info: dict[str, Any] | None = None) -> None:
    """Write a denoiser: its weights, its constructor's arguments, and `info` (JSON) for whoever reads it.

    Raises:
        ConfigError: a field cannot be saved (a function without a name): said before anything is written.
        FileError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    header = spec(denoiser, tensors)
    tensors |= {name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()}
    metadata = {"format": FORMAT, "denoiser": json.dumps(header), "info": json.dumps(info or {})}
    metadata["sha256"] = _digest(metadata, tensors)
    write_whole(Path(path), lambda temporary: save_file(tensors, temporary, metadata=metadata))


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """What tells a flipped bit from a model: a hash of the recipe, the info and every tensor."""
    digest = hashlib.sha256((metadata["denoiser"] + metadata["info"]).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_path(path: Path | str) -> Path:
    """The model file of a run folder, or the file itself. Raises FileError if there is none."""
    path = Path(path)
    if path.is_dir():
        if not (path / MODEL).is_file():
            raise FileError(f"{path}: no {MODEL} in this folder; give a run folder that training has finished or saved")
        return path / MODEL
    if not path.is_file():
        raise FileError(f"{path}: no such file or run folder")
    return path


def read_header(path: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the denoiser's recipe, info) of a model file or run folder. Raises FileError that names a damaged file."""
    file = model_path(path)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise FileError(f"{file}: not a fokker model (format {metadata.get('format')!r}, need {FORMAT!r})")
        return json.loads(metadata["denoiser"]), json.loads(metadata["info"])
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{file}: damaged or not a safetensors file ({error})") from None


def load(path: Path | str) -> NetDenoiser:
    """The denoiser of a run folder or model file, on the CPU, in evaluation mode.

    Raises:
        FileError: missing, truncated or foreign file, or weights that do not fit the network.
    """
    file = model_path(path)
    recipe, _ = read_header(file)
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
            metadata = opened.metadata()
        if metadata.get("sha256") != _digest(metadata, tensors):
            raise FileError(f"{file}: damaged, its content does not have its checksum; use a copy or train again")
        arrays = {name: value for name, value in tensors.items() if name.startswith("array:")}
        parts = {name: build(name, recipe[name], arrays) for name in ("net", "process")}
        denoiser = build("denoiser", recipe | parts, arrays)
        denoiser.load_state_dict({name: value for name, value in tensors.items() if name not in arrays})
    except (SafetensorError, RuntimeError, ConfigError, KeyError, TypeError) as error:
        raise FileError(f"{file}: cannot be read back ({str(error).splitlines()[0]})") from None
    return denoiser.eval()  # type: ignore[no-any-return]
