"""Model files: weights and the component's JSON in one safetensors file, written whole or not at all. No pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..classic import Model
from ..denoiser import NetDenoiser
from ..errors import ConfigError, FileError
from ..files import read_metadata, read_tensors, write_tensors
from ..registry import build, spec

__all__ = ["load", "load_denoiser", "model_path", "read_header", "save"]

FORMAT = "fokker-model-1"
MODEL = "model.safetensors"


def save(path: Path | str, model: NetDenoiser | Model, info: dict[str, Any] | None = None) -> None:
    """Write a model: its weights, its constructor's arguments, and `info` (JSON) for whoever reads it.

    Raises:
        ConfigError: a field cannot be saved (a function without a name): said before anything is written.
        FileError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    header, family = spec(model, tensors), "model" if isinstance(model, Model) else "denoiser"
    tensors |= model.state_dict()
    write_tensors(Path(path), tensors, {"format": FORMAT, family: json.dumps(header), "info": json.dumps(info or {})})


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
    """(the model's own recipe, info) of a model file or run folder. Raises FileError that names a damaged file."""
    file = model_path(path)
    metadata = read_metadata(file, FORMAT)
    try:
        return json.loads(metadata["denoiser" if "denoiser" in metadata else "model"]), json.loads(metadata["info"])
    except (KeyError, json.JSONDecodeError) as error:
        raise FileError(f"{file}: damaged ({error})") from None


def load(path: Path | str) -> Any:
    """The model of a run folder or model file, a NetDenoiser or a `classic.Model`: on the CPU, in evaluation mode.

    Raises:
        FileError: missing, truncated or foreign file, or weights that do not fit the network.
    """
    file = model_path(path)
    tensors, metadata = read_tensors(file, FORMAT)
    try:
        arrays = {name: value for name, value in tensors.items() if name.startswith("array:")}
        if "model" in metadata:
            model = build("model", json.loads(metadata["model"]), arrays)
        else:
            recipe = json.loads(metadata["denoiser"])
            parts = {name: build(name, recipe[name], arrays) for name in ("net", "process")}
            model = build("denoiser", recipe | parts, arrays)
        model.load_state_dict({name: value for name, value in tensors.items() if name not in arrays})
    except (RuntimeError, ConfigError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise FileError(f"{file}: cannot be read back ({str(error).splitlines()[0]})") from None
    return model.eval()


def load_denoiser(path: Path | str) -> NetDenoiser:
    """`load`, for what only a denoiser can do. Raises ConfigError if it is another model."""
    model = load(path)
    if not isinstance(model, NetDenoiser):
        raise ConfigError(
            f"{path}: holds a model of class {type(model).__name__}; give a denoiser's run (a recipe with `net`)"
        )
    return model
