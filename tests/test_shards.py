"""Folders of shards: the bits of one call of `sample`, whatever processes draw them and whatever is killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fokker as fk
from fokker.component import Array
from fokker.data import Category, LatentCodec, Number, TableCodec, to_uint8
from fokker.data.arrays import held_out
from fokker.errors import ConfigError, FileError
from fokker.files import read_tensors, write_tensors
from fokker.launch import Place, lonely, place, together
from fokker.prediction import Prediction
from fokker.process import VE, VP, Flow
from fokker.registry import spec
from fokker.shards import Sharding, Shards, read_shards, sample_to

from .shard_worker import OPTIONS, mixture

KEYS: dict[str, Any] = OPTIONS | {"steps": 10}
WORKER = Path(__file__).with_name("shard_worker.py")
SMALL: dict[str, Any] = {"batch_size": 2, "shard": 4, "steps": 2}


def plain(n: int, **changes: Any) -> Tensor:
    keys = {name: value for name, value in (KEYS | changes).items() if name not in ("shard", "batch_size")}
    return fk.sample(mixture(), n=n, **keys)


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and the time of its last change."""
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in sorted(folder.iterdir())}


def listed(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 samples of the exact mixture with labels 0, 1, 2 in turn, drawn by one process."""
    folder = tmp_path_factory.mktemp("shards") / "new" / "whole"
    report = sample_to(folder, Blind(), n=70, cond=torch.arange(3), **KEYS)
    assert report == (70, 0, (), 0)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


class Blind:
    """The mixture's denoiser, which takes a condition and records it, but does not look at it."""

    def __init__(self) -> None:
        self.inner, self.seen = mixture(), []
        self.process, self.shape, self.lam_range, self.reading = (
            self.inner.process,
            self.inner.shape,
            self.inner.lam_range,
            self.inner.reading,
        )

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
        self.seen.append(cond)
        return self.inner(x, s)


AGAIN: dict[str, Any] = KEYS | {"cond": torch.arange(3)}


# ---- one process


def test_shards_hold_the_samples_of_one_call(whole: Path) -> None:
    x, labels = read_shards(whole)
    assert torch.equal(x, plain(70)) and x.dtype == torch.float32
    assert labels is not None and labels.tolist() == [i % 3 for i in range(70)]
    names = [f"samples-{a:08d}-{min(a + 16, 70) - 1:08d}.safetensors" for a in (0, 16, 32, 48, 64)]
    assert sorted(file.name for file in whole.iterdir()) == ["manifest.json", *names]


def test_the_manifest_says_what_was_asked_and_what_is_there(whole: Path) -> None:
    manifest = listed(whole)
    request = manifest["request"]
    assert manifest["format"] == "fokker-shards-1" and manifest["n"] == 70
    assert request["solver"] == {"kind": "ddim", "eta": 0.5} and request["grid"] == {"kind": "flow"}
    told = {"steps": 10, "nfe": None, "seed": 5, "shard": 16, "batch_size": 8, "dtype": "float32", "cond": [0, 1, 2]}
    assert {name: request[name] for name in told} == told and request["device"] == "cpu"
    for entry in manifest["shards"]:
        assert entry["bytes"] == (whole / entry["file"]).stat().st_size and entry["not_finite"] == 0
    assert len({entry["sha256"] for entry in manifest["shards"]}) == 5


def test_a_label_goes_to_the_sample_of_its_number(tmp_path: Path) -> None:
    denoiser = Blind()
    sample_to(tmp_path / "x", denoiser, n=7, cond=torch.tensor([4, 5, 6]), **SMALL)
    batches = [cond.tolist() for cond in denoiser.seen[::2]]  # two evaluations a batch
    assert batches == [[4, 5], [6, 4], [5, 6], [4, 4]]  # the last is filled up with its own last row
    vectors = torch.arange(6.0).reshape(3, 2)
    denoiser = Blind()
    sample_to(tmp_path / "y", denoiser, n=4, cond=vectors, **SMALL)
    assert torch.equal(torch.cat(denoiser.seen[::2]), vectors[[0, 1, 2, 0]])
    assert read_shards(tmp_path / "y")[1] is None


def test_done_is_done(copy: Path) -> None:
    before = content(copy)
    counts: list[int] = []
    assert sample_to(copy, Blind(), n=70, progress=counts.append, **AGAIN) == (0, 70, (), 0)
    assert content(copy) == before and counts == [16, 16, 16, 16, 6]


def test_a_folder_grows_and_does_not_shrink(copy: Path) -> None:
    before = content(copy)
    assert sample_to(copy, Blind(), n=100, **AGAIN) == (
        36,
        64,
        (),
        0,
    )  # the last shard, of 6, is drawn again as one of 16
    after = content(copy)
    kept = [name for name in before if name.startswith("samples") and "00000064" not in name]
    assert len(kept) == 4 and all(after[name] == before[name] for name in kept)
    assert "samples-00000064-00000069.safetensors" not in after and len(after) == 1 + 7
    x, labels = read_shards(copy)
    assert torch.equal(x, plain(100)) and labels is not None and labels.tolist() == [i % 3 for i in range(100)]
    with pytest.raises(ConfigError, match=r"n: given 70, but .* is to hold 100; a folder only grows"):
        sample_to(copy, Blind(), n=70, **AGAIN)
    assert content(copy) == after


def test_what_is_missing_is_drawn(copy: Path, whole: Path) -> None:
    (copy / "samples-00000016-00000031.safetensors").unlink()
    (copy / "manifest.json").unlink()
    job = Sharding(copy, Blind(), n=70, **AGAIN)
    assert job.done() == 54
    with pytest.raises(FileError, match=r"no manifest\.json here"):
        read_shards(copy)
    job.run()
    job.finish()
    assert job.done() == 70 and listed(copy) == listed(whole)


@pytest.mark.parametrize("how", ["flip", "header", "cut", "empty"])
def test_a_damaged_shard_is_named_and_drawn_again(how: str, copy: Path, whole: Path) -> None:
    file = copy / "samples-00000032-00000047.safetensors"
    good, rest = file.read_bytes(), {name: value for name, value in content(copy).items() if name != file.name}
    place_of = {"flip": len(good) - 5, "header": good.index(b'"request"') + 14}
    bad = {"cut": good[:-1], "empty": b""}.get(how) or bytes(
        byte ^ (1 if i == place_of.get(how) else 0) for i, byte in enumerate(good if how != "empty" else b"")
    )
    file.write_bytes(bad)
    if how != "header":
        with pytest.raises(FileError, match=file.name):
            read_shards(copy)
    said: list[str] = []
    report = sample_to(copy, Blind(), n=70, say=said.append, **AGAIN)
    assert report == (16, 54, (file.name,), 0)
    assert len(said) == 1 and file.name in said[0] and said[0].endswith(": drawn again")
    assert torch.equal(read_shards(copy)[0], plain(70)) and listed(copy) == listed(whole)
    assert {name: value for name, value in content(copy).items() if name != file.name} == rest


@pytest.mark.parametrize(
    ("field", "changes", "given"),
    [
        ("seed", {"seed": 6}, "6"),
        ("solver", {"solver": "heun"}, "heun"),
        ("solver", {"solver": fk.solvers.DDIM()}, "0.0"),
        ("grid", {"grid": "karras"}, "karras"),
        ("steps", {"steps": 11}, "11"),
        ("steps", {"steps": None}, "50"),
        ("final", {"final": "t_min"}, "t_min"),
        ("shard", {"shard": 24}, "24"),
        ("batch_size", {"batch_size": 4}, "4"),
        ("cond", {"cond": None}, "null"),
        ("cond", {"cond": torch.arange(100)}, "sha256"),
        ("model", {"about": {"model": "abc"}}, "abc"),
    ],
)
def test_another_request_is_refused(field: str, changes: dict[str, Any], given: str, copy: Path) -> None:
    before = content(copy)
    with pytest.raises(ConfigError, match=f"^{field}: .* holds samples drawn with .* \\(given .*{given}"):
        sample_to(copy, Blind(), n=70, **(AGAIN | changes))
    assert content(copy) == before


def test_a_field_that_is_no_longer_given_is_refused(tmp_path: Path) -> None:
    sample_to(tmp_path / "x", mixture(), n=3, about={"model": "abc"}, **SMALL)
    with pytest.raises(ConfigError, match=r'^model: .* drawn with "abc" \(given null\)'):
        sample_to(tmp_path / "x", mixture(), n=3, **SMALL)


def test_what_is_foreign_is_left_alone(copy: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(FileError, match=r"taken: this folder is not empty and has no manifest\.json"):
        sample_to(taken, mixture(), n=3, **SMALL)
    with pytest.raises(FileError, match=r"mine\.txt: this is a file"):
        sample_to(taken / "mine.txt", mixture(), n=3, **SMALL)
    assert [(file.name, file.read_text()) for file in taken.iterdir()] == [("mine.txt", "mine")]
    for text in ('{"format": "other"}', "[1]", "{", '{"format": "fokker-shards-1", "n": "3", "request": {}}'):
        (taken / "manifest.json").write_text(text)
        with pytest.raises(FileError, match=r"manifest\.json: not a "):
            sample_to(taken, mixture(), n=3, **SMALL)
        assert (taken / "manifest.json").read_text() == text
    # A file of one's own beside the shards stays; another request's shard in the way is not written over.
    (copy / "notes.txt").write_text("mine")
    sample_to(tmp_path / "other", Blind(), n=16, **(AGAIN | {"seed": 1}))
    name = "samples-00000000-00000015.safetensors"
    shutil.copy(tmp_path / "other" / name, copy / name)
    before = content(copy)
    with pytest.raises(FileError, match=f"{name}: a shard of another request, left as it is"):
        sample_to(copy, Blind(), n=70, **AGAIN)
    assert content(copy) == before


def test_mistakes_leave_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"n": 0}, "n: given 0, must be at least 1"),
        ({"batch_size": 0}, "batch_size: given 0"),
        ({"shard": 7}, "shard: given 7, must be a multiple of the batch size 2"),
        ({"shard": 0}, "shard: given 0"),
        ({"steps": 0}, "steps: given 0"),
        ({"solver": "hein"}, "unknown solver 'hein'"),
        ({"dtype": torch.float16}, "dtype: given torch.float16"),
        ({"dtype": torch.uint8}, r"dtype: given uint8 for samples of shape \(2,\)"),
        ({"cond": torch.zeros(0, 3)}, r"cond: given shape \(0, 3\)"),
        ({"rank": 2, "world": 2}, "rank: given 2 of world=2"),
        ({"rank": -1}, "rank: given -1"),
    ]
    for changes, message in wrong:
        with pytest.raises(ConfigError, match=message):
            sample_to(folder, mixture(), **({"n": 5} | SMALL | changes))
    with pytest.raises(FileError, match="no manifest"):
        read_shards(folder)
    assert not folder.exists()


def test_the_default_shard_is_a_multiple_of_the_batch(tmp_path: Path) -> None:
    for batch, size in ((64, 1024), (100, 1000), (1500, 1500)):
        assert Sharding(tmp_path / "x", mixture(), n=5, batch_size=batch).settings["shard"] == size


def test_leftovers_of_the_dead_go(copy: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone, live = (
        copy / f".manifest.json.{dead.pid}.tmp",
        copy / f".samples-00000000-00000015.safetensors.{os.getpid()}.tmp",
    )
    for file in (gone, live):
        file.write_bytes(b"half")
    sample_to(copy, Blind(), n=70, **AGAIN)
    assert not gone.exists() and live.exists()


def test_pictures_as_bytes(tmp_path: Path) -> None:
    law = fk.exact.Empirical(torch.linspace(-1.1, 1.1, 36).reshape(3, 3, 2, 2))
    denoiser, keys = law.denoiser(Flow()), {"n": 5, "steps": 3, "seed": 2}
    sample_to(tmp_path / "x", denoiser, dtype=torch.uint8, batch_size=2, shard=2, **keys)
    x, labels = read_shards(tmp_path / "x")
    assert labels is None and x.dtype == torch.uint8 and x.shape == (5, 3, 2, 2)
    assert torch.equal(x, to_uint8(fk.sample(denoiser, **keys)))


def test_numbers_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    class Bad(Blind):
        def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
            return Prediction(self.process, x, s, x0=torch.where(cond[:, None] > 0, x, torch.nan))

    cond = torch.tensor([1, 1, 1, 0, 1])
    for expected in ((6, 0, (), 1), (0, 6, (), 1)):
        assert sample_to(tmp_path / "x", Bad(), n=6, cond=cond, **SMALL) == expected
    assert [entry["not_finite"] for entry in listed(tmp_path / "x")["shards"]] == [1, 0]


def test_a_folder_is_data(whole: Path) -> None:
    x, labels = read_shards(whole)
    out = torch.from_numpy(held_out(70, 0.3))
    source = fk.data.samples.Data  # the base of every source
    for split, rows in (("train", ~out), ("test", out)):
        data = Shards(str(whole), holdout=0.3)
        got = data.load(split)
        assert isinstance(data, source) and torch.equal(got.values, x[rows]) and got.classes == ("0", "1", "2")
        assert got.labels is not None and labels is not None and torch.equal(got.labels, labels[rows])
    assert 15 < int(out.sum()) < 27
    with pytest.raises(ConfigError, match="none of its 70 rows is in the test split: change holdout=0.0"):
        Shards(str(whole), holdout=0.0).load("test")


def test_a_folder_of_numbers_that_are_not_finite_is_no_data(copy: Path) -> None:
    file = copy / "samples-00000032-00000047.safetensors"
    tensors, texts = read_tensors(file, "fokker-shard-1")
    tensors["x"][3, 1], tensors["x"][5, 0] = torch.inf, torch.nan
    write_tensors(file, tensors, texts)
    with pytest.raises(FileError, match=r"2 of its 70 rows are not finite; manifest\.json says in which files"):
        Shards(str(copy)).load()


def test_a_shard_of_another_request_is_not_read(copy: Path, tmp_path: Path) -> None:
    name = "samples-00000016-00000031.safetensors"
    tensors, texts = read_tensors(copy / name, "fokker-shard-1")
    x, labels = tensors["x"], tensors["labels"]
    foreign: list[tuple[dict[str, Tensor], dict[str, str]]] = [
        (tensors, texts | {"request": "0" * 64}),
        ({"x": x[:1], "labels": labels}, texts),  # would be copied into all 16 rows
        ({"x": x.to(torch.uint8), "labels": labels}, texts),
        ({"labels": labels}, texts),
    ]
    for given, told in foreign:
        write_tensors(copy / name, given, told)
        with pytest.raises(FileError, match=rf"{name}: a shard of another request; move it away"):
            read_shards(copy)
    manifest = listed(copy)
    for change in (
        {"dtype": "cdouble"},
        {"dtype": "load"},
        {"shape": [-1]},
        {"shape": 2},
        {"shard": "16"},
        {"shard": 0},
    ):
        (copy / "manifest.json").write_text(json.dumps(manifest | {"request": manifest["request"] | change}))
        with pytest.raises(FileError, match=r"manifest\.json: not a readable manifest"):
            read_shards(copy)


def test_the_codec_of_a_folder_decodes_its_data(tmp_path: Path) -> None:
    codec = TableCodec((Number("a", 10.0, 2.0, 0.0, 20.0), Category("b", ("x", "y"))))
    sample_to(tmp_path / "x", mixture(), n=40, about={"codec": spec(codec)}, **(KEYS | SMALL))
    data = Shards(str(tmp_path / "x"), holdout=0.0).load()
    assert data.codec == codec and torch.equal(data.values, plain(40, **SMALL))  # the model's own numbers
    with pytest.raises(ConfigError, match="^codec: "):
        sample_to(tmp_path / "x", mixture(), n=40, **(KEYS | SMALL))


class Pictures(nn.Module):
    """Two numbers to a picture of 3 x 1 x 2, which depends on how many are decoded at once."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return torch.stack([z / 4, -z / 4, z / 4 + len(z) / 100], 1)[:, :, None]


def test_a_folder_of_decoded_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fokker.data.latents.load_autoencoder", lambda path: Pictures())
    (tmp_path / "a.safetensors").write_bytes(b"a")
    codec = LatentCodec(str(tmp_path / "a.safetensors"), Array([0.5, 0.0]), Array([1.0, 2.0]))
    keys = KEYS | SMALL | {"decode": codec, "seed": 3}
    for n in (5, 7):  # a folder that grows
        sample_to(tmp_path / "x", mixture(), n=n, **keys)
    z = plain(7, seed=3, steps=2) * torch.tensor([1.0, 2.0]) + torch.tensor([0.5, 0.0])
    whole = torch.stack([z / 4, -z / 4, z / 4 + 0.02], 1)[:, :, None].clamp(-1, 1)  # two at once, also at the end
    x, _ = read_shards(tmp_path / "x")
    assert x.shape == (7, 3, 1, 2) and torch.allclose(x, whole, atol=1e-6)
    request = listed(tmp_path / "x")["request"]
    assert request["shape"] == [2] and request["stored"] == [3, 1, 2] and request["decode"]["kind"] == "latent"
    sample_to(tmp_path / "bytes", mixture(), n=7, dtype=torch.uint8, **keys)
    assert torch.equal(read_shards(tmp_path / "bytes")[0], to_uint8(whole))
    assert Shards(str(tmp_path / "bytes"), holdout=0.0).load().is_image
    with pytest.raises(ConfigError, match="^decode: "):
        sample_to(tmp_path / "x", mixture(), n=7, **(keys | {"decode": None}))
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(FileError, match=r"a\.safetensors: cannot be read"):
        Sharding(tmp_path / "y", mixture(), n=7, **keys)


# ---- several processes


def test_processes_that_do_not_know_each_other(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "x"
    assert sample_to(folder, Blind(), n=70, rank=1, world=2, **AGAIN) == (32, 0, (), 0)
    first = [int(file.name[8:16]) for file in sorted(folder.glob("samples-*"))]
    assert first == [16, 48]
    assert [Sharding(folder, Blind(), n=70, **AGAIN).share(rank, 2) for rank in (0, 1)] == [38, 32]
    with pytest.raises(FileError, match=r"samples-00000000-00000015\.safetensors: not drawn yet"):
        read_shards(folder)
    waited: list[int] = []

    def barrier() -> None:
        waited.append(len(list(folder.glob("samples-*"))))

    assert sample_to(folder, Blind(), n=70, rank=0, world=2, barrier=barrier, **AGAIN) == (38, 0, (), 0)
    assert waited == [5] and listed(folder) == listed(whole)  # every checksum, and so every bit


def test_the_place_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert place() == Place(0, 1, "cpu") and place().first
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert place() == Place(0, 1, "cuda")
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert place() == Place(5, 8, "cuda:1") and not place().first
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert place() == Place(5, 8, "cpu")
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_PORT"):
        monkeypatch.setenv(name, "no")
    assert lonely() == ""
    with monkeypatch.context() as inner:
        inner.delenv("WORLD_SIZE")
        assert "one process only: add --multi_gpu" in lonely()
    for name, value in (("RANK", "8"), ("WORLD_SIZE", "x"), ("RANK", "-1")):
        with monkeypatch.context() as inner:
            inner.setenv(name, value)
            with pytest.raises(ConfigError, match=f"{name}={value}"):
                place()
    with together(Place()) as barrier:
        barrier()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(fk.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launcher() -> list[str]:
    """`accelerate launch` of two processes; without --multi_gpu it starts one where there is no GPU."""
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    port = ["--dynamo_backend", "no", "--main_process_port", free_port()]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *port]


@pytest.mark.slow
def test_two_processes_of_accelerate_draw_the_bits_of_one(tmp_path: Path, whole: Path) -> None:
    command = [*launcher(), str(WORKER), str(tmp_path / "two"), "70"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 0, done.stderr
    # The two may write into one line.
    assert [done.stdout.count(f"rank {rank} of 2 on cpu") for rank in (0, 1)] == [1, 1]
    x, labels = read_shards(tmp_path / "two")
    assert torch.equal(x, read_shards(whole)[0]) and labels is None
    assert len(listed(tmp_path / "two")["shards"]) == 5


def test_killed_at_once_it_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    n, steps, folder = 320, 40, tmp_path / "x"
    child = subprocess.Popen([sys.executable, str(WORKER), str(folder), str(n), str(steps)], env=environment())
    try:
        end = time.monotonic() + 100
        while len(list(folder.glob("samples-*"))) < 3:
            assert child.poll() is None and time.monotonic() < end
            time.sleep(0.002)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    keys = KEYS | {"steps": steps}
    there = content(folder)
    report = sample_to(folder, mixture(), n=n, **keys)
    assert 48 <= report.kept < n and report.kept + report.drawn == n and not report.damaged
    assert all(content(folder)[name] == value for name, value in there.items() if name.startswith("samples"))
    assert torch.equal(read_shards(folder)[0], plain(n, steps=steps))
    assert len(list(folder.iterdir())) == 1 + n // 16  # nothing half-written is left


# ---- what sharding rests on


@pytest.mark.parametrize("process", [VP(), VE(sigma_max=7.0)])
def test_the_prior_of_given_indices(process: fk.process.Process) -> None:
    every = process.prior((2, 3), n=10, seed=4)
    assert torch.equal(process.prior((2, 3), seed=4, indices=torch.tensor([7, 2])), every[[7, 2]])
    one = fk.noise.normal(4, torch.tensor([7]), (2, 3), domain="prior") * float(process.prior_std())
    assert torch.equal(every[7:8], one)
    seeds = torch.tensor([3, 4])
    assert torch.equal(process.prior((2, 3), seed=seeds, indices=torch.tensor([7, 7]))[1], every[7])


def test_progress_is_told_every_batch() -> None:
    counts: list[int] = []
    told: Callable[[int], object] = counts.append
    x = fk.sample(mixture(), n=7, batch_size=3, pad=True, steps=2, progress=told)
    assert counts == [3, 3, 1] and torch.equal(x, fk.sample(mixture(), n=7, steps=2))
