"""Files written whole or not at all, and tensor files that know whether they are damaged. No pickles."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import FileError

__all__ = [
    "absolute",
    "file_digest",
    "read_metadata",
    "read_tensors",
    "trial",
    "write_tensors",
    "write_text",
    "write_whole",
]

_UMASK = os.umask(0)
os.umask(_UMASK)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place at once: never half a file.

    Raises:
        FileError: the disk is full or the folder cannot be written; the previous file is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.chmod(0o666 & ~_UMASK)  # safetensors would leave it readable by its owner alone
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


def write_text(path: Path, text: str) -> None:
    """`write_whole` of a text in UTF-8."""
    write_whole(path, lambda temporary: _fill(temporary, text))


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@contextmanager
def trial(target: Path, nothing: str = "nothing was begun") -> Iterator[Path]:
    """An empty file of the target's name in a folder beside it, gone afterwards: what cannot be written is known first.

    Raises:
        FileError: nothing can be written there; `nothing` ends the message.
    """
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    try:
        with TemporaryDirectory(prefix=".fokker-", dir=parent) as folder:
            path = Path(folder) / target.name
            path.touch()
            yield path
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{target}: cannot be written ({error.strerror}); {nothing}") from None


def absolute(path: str) -> str:
    """A path that means the same from any folder; "" and what begins with ~ stay as they are."""
    return path if path == "" or path.startswith("~") else os.path.abspath(path)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and texts into one safetensors file, with a checksum over both.

    Args:
        path: written whole or not at all (`write_whole`).
        tensors: by name; copied to the CPU.
        metadata: texts by name; "format" says what kind of file it is. "sha256" is added.
    """
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    texts = dict(metadata) | {"sha256": _digest(metadata, whole)}
    write_whole(path, lambda temporary: save_file(whole, temporary, metadata=texts))


def read_metadata(path: Path, format: str) -> dict[str, str]:  # noqa: A002
    """The texts of a file of `write_tensors`, without its tensors (and so without the check of its content).

    Raises:
        FileError: the file is missing, damaged or of another format.
    """
    if path.is_dir():
        raise FileError(f"{path}: is a folder, must be a safetensors file")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path}: damaged or not a safetensors file ({error})") from None
    if metadata.get("format") != format:
        raise FileError(f"{path}: not a {format} file (its format is {metadata.get('format')!r})")
    return metadata


def read_tensors(path: Path, format: str) -> tuple[dict[str, Tensor], dict[str, str]]:  # noqa: A002
    """(tensors, texts) of a file of `write_tensors`, on the CPU, checked against the checksum.

    Raises:
        FileError: the file is missing, damaged or of another format.
    """
    metadata = read_metadata(path, format)
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path}: damaged ({error})") from None
    if metadata.pop("sha256", None) != _digest(metadata, tensors):
        raise FileError(f"{path}: damaged, its content does not have its checksum")
    return tensors, metadata


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """What tells a flipped bit from a good file: a hash of every text and every tensor."""
    digest = hashlib.sha256()
    for name in sorted(metadata):
        digest.update(f"{name}={len(metadata[name])}:{metadata[name]}".encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
