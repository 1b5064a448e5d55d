"""`fokker sample` into folders: alone, with others, stopped and continued; conditions, indices, files of numbers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fokker as fk
from fokker.data import Number, TableCodec, to_uint8
from fokker.files import file_digest
from fokker.guidance import CFG
from fokker.launch import Place
from fokker.nets import MLP, UNet
from fokker.process import Flow
from fokker.registry import spec
from fokker.shards import Sharding, Shards, read_shards
from fokker.train import load
from fokker.train.drawing import class_count, draw, settle
from fokker.train.recipe import Sampling

from .calling import Call, Result

KEYS: dict[str, Any] = {"solver": "heun", "grid": "t", "steps": 2}


def model(path: Path, net: torch.nn.Module, shape: tuple[int, ...], info: dict[str, Any]) -> None:
    """A saved denoiser whose every output differs."""
    denoiser = fk.NetDenoiser(net, Flow(), shape=shape)
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    fk.save(path, denoiser, info)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with three classes (told), none (free), condition vectors (vector), and of pictures (tiles)."""
    folder = tmp_path_factory.mktemp("models")
    sampling = {"solver": {"kind": "heun"}, "grid": {"kind": "t"}, "steps": 2, "guidance": 1.5, "n": 4}
    info = {"recipe": {"sampling": sampling}, "classes": ["a", "b", "c"]}
    model(folder / "told.safetensors", MLP(2, width=8, depth=1, classes=3), (2,), info)
    model(folder / "free.safetensors", MLP(2, width=8, depth=1), (2,), info | {"classes": []})
    model(folder / "vector.safetensors", MLP(2, width=8, depth=1, cond_dim=3), (2,), info | {"classes": []})
    tiny = UNet(1, width=8, multipliers=(1,), attention=(), size=4)
    model(folder / "tiles.safetensors", tiny, (1, 4, 4), info | {"classes": []})
    return folder


def expected(models: Path, n: int, seed: int = 0) -> torch.Tensor:
    """What the model with classes draws by its own defaults, in batches of 4."""
    guided = CFG(load(models / "told.safetensors"), 1.5)
    return fk.sample(guided, n=n, cond=torch.arange(n) % 3, seed=seed, batch_size=4, pad=True, **KEYS)


SMALL = ("--batch-size", 4, "--shard", 8)


# ---- folders


def test_a_folder_holds_the_numbers_of_a_file(call: Call, models: Path) -> None:
    run = models / "told.safetensors"
    assert call("sample", run, "--n", 30, *SMALL, "-o", "many") == Result(0, "30 samples in 4 shards: many\n", "")
    x, labels = read_shards("many")
    assert torch.equal(x, expected(models, 30)) and labels is not None and labels.tolist() == [0, 1, 2] * 10
    request = json.loads(Path("many/manifest.json").read_text())["request"]
    assert request["model"] == file_digest(run) and request["guidance"] == 1.5 and request["cond"] == [0, 1, 2]
    again = call("sample", run, "--n", 30, *SMALL, "-o", "many/")
    assert again == Result(0, "30 samples in 4 shards: many  (all were there, and whole)\n", "")
    grown = call("sample", run, "-n", 40, *SMALL, "-o", "many")
    assert grown.out == "going on: 24 of 40 samples are in many\n40 samples in 5 shards: many\n"
    assert torch.equal(read_shards("many")[0], expected(models, 40))


def test_other_requests_into_a_folder_are_refused(call: Call, models: Path) -> None:
    run = models / "told.safetensors"
    call("sample", run, "--n", 10, *SMALL, "-o", "x")
    other = Path(shutil.copy(run, "other.safetensors"))
    fk.save(other, load(run), {"classes": ["a", "b", "c"]})
    for options, field in (
        ([run, "--guidance", 2], "guidance"),
        ([run, "--label", "b"], "cond"),
        ([run, "--seed", 1], "seed"),
        ([run, "--dtype", "float32", "--nfe", 9], "steps"),
        ([other, "--solver", "heun", "--grid", "t", "--steps", 2, "--guidance", 1.5], "model"),
    ):
        result = call("sample", *options, "--n", 10, *SMALL, "-o", "x")
        assert result.code == 2 and result.err.startswith(f"fokker: {field}: x holds samples drawn with "), result.err
        assert result.err.count("\n") == 1 and result.out == ""


def test_pictures_as_bytes(call: Call, models: Path) -> None:
    run = models / "tiles.safetensors"
    x = fk.sample(load(run), n=6, batch_size=4, pad=True, **KEYS)
    for output in ("x.npy", "x.npz", "x"):
        assert call("sample", run, "--n", 6, "--batch-size", 4, "--dtype", "uint8", "-o", output).code == 0
    assert np.array_equal(np.load("x.npy"), to_uint8(x).numpy()) and torch.equal(read_shards("x")[0], to_uint8(x))
    assert np.load("x.npz").files == ["x"] and np.load("x.npz")["x"].dtype == np.uint8


def test_a_damaged_shard_is_named_and_drawn_again(call: Call, models: Path) -> None:
    command = ("sample", models / "told.safetensors", "--n", 20, *SMALL, "-o", "x")
    call(*command)
    file = Path("x/samples-00000008-00000015.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    result = call(*command)
    assert result.code == 0 and result.out == "20 samples in 3 shards: x\n"
    assert result.err.startswith(f"fokker: {file}: damaged") and result.err.endswith(": drawn again\n")
    assert torch.equal(read_shards("x")[0], expected(models, 20))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_it_says_how_to_go_on(
    number: int, code: int, call: Call, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("sample", models / "told.safetensors", "--n", 30, *SMALL, "-o", "x")
    inner, drawn = Sharding._draw, []

    def draw_some(self: Sharding, *args: Any) -> int:
        drawn.append(args)
        if len(drawn) == 3:
            os.kill(os.getpid(), number)
        return inner(self, *args)

    monkeypatch.setattr(Sharding, "_draw", draw_some)
    before = signal.getsignal(signal.SIGTERM)
    told = "fokker: interrupted: 16 of 30 samples are in x; the same command goes on\n"
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    try:
        assert call(*command) == Result(code, "", told) and signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGINT, ours)
    result = call(*command)
    assert result == Result(0, "going on: 16 of 30 samples are in x\n30 samples in 4 shards: x\n", "")
    assert len(drawn) == 5 and torch.equal(read_shards("x")[0], expected(models, 30))


def test_a_stopped_file_is_not_written(call: Call, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, *_: Any, **__: Any) -> None:
        if path.name == "x.npy" and path.parent == Path():  # not the trial
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("fokker.data.write_samples", write)
    result = call("sample", models / "free.safetensors", "--n", 3, "-o", "x.npy")
    assert result == Result(143, "", "fokker: interrupted: nothing was written\n") and not list(Path().iterdir())


# ---- conditions, indices, files of numbers


def test_given_indices_are_the_samples_of_those_numbers(call: Call, models: Path) -> None:
    run = models / "told.safetensors"
    assert call("sample", run, "--indices", "8:13", "--batch-size", 4, "-o", "x.npy").code == 0
    assert np.array_equal(np.load("x.npy"), expected(models, 13)[8:].numpy())  # 8 mod 3 = 2 comes first
    call("sample", run, "--indices", ":4", "--batch-size", 4, "-o", "y.npy")
    assert np.array_equal(np.load("y.npy"), expected(models, 4).numpy())


def test_an_npz_has_what_was_asked_beside(call: Call, models: Path) -> None:
    call("sample", models / "told.safetensors", "--n", 5, "--batch-size", 4, "-o", "x.npz")
    with np.load("x.npz", allow_pickle=False) as arrays:
        assert {"labels", "x"} <= set(arrays.files) and arrays["labels"].tolist() == [0, 1, 2, 0, 1]
        assert np.array_equal(arrays["x"], expected(models, 5).numpy())


def test_conditions_from_a_file_are_taken_in_turn(call: Call, models: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(2, 3))
    np.save("rows.npy", rows)
    run = models / "vector.safetensors"
    cond = torch.from_numpy(rows.astype(np.float32))[[0, 1, 0, 1, 0]]
    x = fk.sample(CFG(load(run), 1.5), n=5, cond=cond, batch_size=64, pad=True, **KEYS)
    assert call("sample", run, "--n", 5, "--cond", "rows.npy", "-o", "x.npz").code == 0
    with np.load("x.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["x"], x.numpy()) and np.array_equal(arrays["cond"], cond.numpy())
    assert call("sample", run, "--n", 5, "-o", "none.npy").code == 0  # without: unconditional
    assert np.array_equal(np.load("none.npy"), fk.sample(load(run), n=5, batch_size=64, pad=True, **KEYS).numpy())
    np.save("labels.npy", np.array([2, 0], dtype=np.uint8))
    assert call("sample", models / "told.safetensors", "--n", 4, "--cond", "labels.npy", "-o", "l.npy").code == 0
    guided = CFG(load(models / "told.safetensors"), 1.5)
    assert np.array_equal(
        np.load("l.npy"),
        fk.sample(guided, n=4, cond=torch.tensor([2, 0, 2, 0]), batch_size=64, pad=True, **KEYS).numpy(),
    )


MISTAKES: list[tuple[str, list[Any], list[str]]] = [
    ("told", ["-o", "x", "--overwrite"], ["--overwrite: a folder", "is continued"]),
    ("told", ["-o", "x", "--indices", "0:4"], ["--indices", "a folder holds all samples"]),
    ("told", ["-o", "x", "--shard", 7], ["shard: given 7, must be a multiple of the batch size 64"]),
    ("told", ["-o", "x", "--batch-size", 0], ["batch_size: given 0"]),
    ("told", ["-o", "x", "--dtype", "uint8"], ["uint8 for samples of shape (2,)"]),
    ("told", ["-o", "x", "--steps", 0], ["steps: given 0"]),
    ("told", ["--dtype", "uint8"], ["--dtype: given uint8 for samples of shape (2,), which are no pictures"]),
    ("told", ["--dtype", "uint8", "-o", "x.png"], ["--dtype: given uint8 for x.png; bytes are written to"]),
    ("tiles", ["--dtype", "uint8", "-o", "x.csv"], ["--dtype: given uint8 for x.csv; bytes are written to"]),
    ("told", ["--dtype", "float16"], ["--dtype: given 'float16'"]),
    ("told", ["--shard", 64], ["--shard: given 64, but x.npy is one file"]),
    ("told", ["--indices", "4"], ["--indices: given '4'; must be A:B"]),
    ("told", ["--indices", "4:-1"], ["--indices: given '4:-1'; must be A:B"]),
    ("told", ["--indices", "4:4"], ["--indices: given '4:4'", "none"]),
    ("told", ["--indices", "0:4", "--n", 4], ["--indices", "without --n"]),
    ("told", ["--indices", "0:4294967297"], ["--indices", "2^32"]),
    ("told", ["--cond", "rows.npy", "--label", "a"], ["--label, --cond: give one"]),
    ("told", ["--cond", "rows.npy"], ["int64 labels"]),
    ("free", ["--cond", "rows.npy"], ["cond was given to a net built without"]),
    ("vector", ["--cond", "labels.npy"], ["must be float of"]),
    ("vector", ["--cond", "gone.npy"], ["gone.npy: cannot be read as .npy"]),
    ("vector", ["--cond", "none.npy"], ["none.npy: must hold one array"]),
    ("vector", ["--cond", "words.npy"], ["words.npy: must hold one array of numbers"]),
    ("vector", ["--cond", "two.npz"], ["two.npz: must hold one array"]),
]


@pytest.mark.parametrize(
    ("name", "options", "says"), MISTAKES, ids=lambda v: " ".join(map(str, v)) if isinstance(v, list) else v
)
def test_mistakes(name: str, options: list[Any], says: list[str], call: Call, models: Path, tmp_path: Path) -> None:
    np.save("rows.npy", np.ones((2, 3)))
    np.save("labels.npy", np.ones(2, dtype=np.int64))
    np.save("none.npy", np.ones((0, 3)))
    np.save("words.npy", np.array(["a", "b"]))
    np.savez("two.npz", np.ones(2), np.ones(3))
    before = sorted(tmp_path.iterdir())
    default = [] if "-o" in options else ["-o", "x.npy"]
    result = call("sample", models / f"{name}.safetensors", *default, *options)
    assert result.code == 2 and result.out == "" and result.err.startswith("fokker: ") and result.err.count("\n") == 1
    assert all(part in result.err for part in says), result.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("name", "says"), [("tiles", "x.csv: samples"), ("far", "x.png: samples of shape (5,)")])
def test_what_cannot_be_written_is_not_drawn(
    name: str, says: str, call: Call, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model(models / "far.safetensors", MLP(5, width=8, depth=1), (5,), {})
    monkeypatch.setattr("fokker.sampling._Job.run", lambda *_: pytest.fail("drawn"))
    result = call("sample", models / f"{name}.safetensors", "-o", says.split(":")[0])
    assert result.code == 2 and says.split(": ")[1] in result.err and ".fokker" not in result.err, result
    assert not list(Path().iterdir())


def test_a_folder_of_a_model_with_a_codec_names_it(call: Call, models: Path) -> None:
    codec = TableCodec((Number("a", 10.0, 2.0, 0.0, 20.0), Number("b", 0.0, 1.0, -9.0, 9.0)))
    info = {"codec": spec(codec), "recipe": {"sampling": {"solver": "heun", "grid": "t", "steps": 2}}}
    model(models / "table.safetensors", MLP(2, width=8, depth=1), (2,), info)
    assert call("sample", models / "table.safetensors", "-n", 6, *SMALL, "-o", "x").code == 0
    call("sample", models / "table.safetensors", "-n", 6, "--batch-size", 4, "-o", "x.npy")
    data = Shards("x", holdout=0.0).load()
    assert data.codec == codec and np.array_equal(codec.decode(data.values).numpy(), np.load("x.npy"))


# ---- the way to draw


def test_what_is_given_comes_before_the_recipe_and_the_recipe_before_the_defaults(models: Path) -> None:
    denoiser, free = load(models / "told.safetensors"), load(models / "free.safetensors")
    options = Sampling(solver="euler", grid="quadratic", steps=3, guidance=2.0, n=5)
    assert class_count(denoiser) == 3 and class_count(free) == 0
    x, cond = draw(denoiser, options)
    turns = torch.arange(5) % 3
    keys: dict[str, Any] = {"solver": "euler", "grid": "quadratic"}
    assert cond is not None and torch.equal(cond, turns)
    assert torch.equal(x, fk.sample(CFG(denoiser, 2.0), n=5, cond=turns, steps=3, **keys))
    x, cond = draw(denoiser, options, 4, cond=2, guidance=1.0, nfe=7, solver="heun", grid="t", seed=3)
    assert cond is not None and cond.tolist() == [2] * 4
    assert torch.equal(x, fk.sample(denoiser, cond=cond, n=4, nfe=7, solver="heun", grid="t", seed=3))
    x, cond = draw(free, options, 4)
    assert cond is None and torch.equal(x, fk.sample(free, n=4, steps=3, **keys))
    x, _ = draw(free, options, steps=2, indices=[6, 1])
    assert torch.equal(x, fk.sample(free, indices=[6, 1], steps=2, **keys))
    times = [1.0, 0.4, 0.1]  # given times know how many steps they are
    x, _ = draw(free, options, 4, grid=times)
    assert torch.equal(x, fk.sample(free, n=4, solver="euler", grid=times))
    x, _ = draw(free)
    assert torch.equal(x, fk.sample(free, n=64))
    assert settle(denoiser).guidance == settle(free, options).guidance == 1.0
    with pytest.raises(fk.train.recipe.ConfigError, match="no classes to be guided to"):
        settle(free, options, guidance=3.0)


# ---- several processes


def subproc(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(Path(fk.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=200, cwd=cwd, env=env
    )


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def accelerate() -> list[str]:
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    return ["accelerate.commands.launch", *options, "--dynamo_backend", "no", "--main_process_port", free_port()]


def torchrun() -> list[str]:
    return ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [accelerate, torchrun])
def test_two_processes_go_on_with_the_bits_of_one(
    launcher: Callable[[], list[str]], call: Call, models: Path, tmp_path: Path
) -> None:
    run = models / "told.safetensors"
    call("sample", run, "--n", 30, *SMALL, "-o", "one")
    shutil.copytree("one", "two")
    for first in (0, 8, 24):
        next(Path("two").glob(f"samples-{first:08d}-*")).unlink()
    kept = Path("two/samples-00000016-00000023.safetensors").stat().st_mtime_ns
    command = ["-m", "fokker", "sample", str(run), "-n", "30", *map(str, SMALL), "-o", "two"]
    done = subproc(*launcher(), *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "going on: 8 of 30 samples are in two\n30 samples in 4 shards: two\n"
    assert Path("one/manifest.json").read_text() == Path("two/manifest.json").read_text()
    assert torch.equal(read_shards("two")[0], expected(models, 30))
    assert Path("two/samples-00000016-00000023.safetensors").stat().st_mtime_ns == kept


def test_a_mistake_is_said_before_the_others_are_waited_for(
    call: Call, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", free_port())):
        monkeypatch.setenv(name, value)  # nobody else will ever come
    run = models / "told.safetensors"
    for option, says in ((["--solver", "hein"], "unknown solver 'hein'"), (["--batch-size", 7, "--shard", 8], "shard")):
        result = call("sample", run, "-n", 30, "-o", "x", *option)
        assert result.code == 2 and says in result.err and not Path("x").exists()


def test_only_the_first_process_speaks(call: Call, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fokker.launch.place", lambda: Place(1, 2))
    run = models / "told.safetensors"
    result = call("sample", run, "--n", 4, "-o", "x.npy")
    assert result.code == 2 and "several processes write into a folder: -o FOLDER" in result.err

    class Alone:
        def __init__(self, here: Place) -> None: ...

        def __enter__(self) -> Callable[[], None]:
            return lambda: None

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("fokker.launch.together", Alone)
    assert call("sample", run, "--n", 30, *SMALL, "-o", "x") == Result(0, "", "")
    assert sorted(int(file.name[8:16]) for file in Path("x").glob("samples-*")) == [8, 24]


def test_accelerates_one_process_is_told_of(call: Call, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCELERATE_MIXED_PRECISION", "no"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    result = call("sample", models / "free.safetensors", "--n", 4, *SMALL, "-o", "x")
    assert result.code == 0 and result.err.startswith("fokker: note: accelerate launch has started one process only")
