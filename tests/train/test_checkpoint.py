"""Model files: bit for bit there and back, written whole or not at all, and every damage named."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fokker as fk
from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError, FileError
from fokker.files import _digest, write_whole
from fokker.nets import MLP, UNet
from fokker.process import EDM, Custom, DiscreteVP, Flow, Process
from fokker.train import load, read_header, save
from fokker.train.checkpoint import model_path

F64 = torch.float64


@fk.register("test-checkpoint-alpha")
def registered_alpha(t: torch.Tensor) -> torch.Tensor:
    return 1 - t**2


@fk.register("test-checkpoint-sigma")
def registered_sigma(t: torch.Tensor) -> torch.Tensor:
    return (t * (2 - t)).sqrt() * t.sqrt()


def model(process: Process | None = None, **fields: Any) -> NetDenoiser:
    torch.manual_seed(1)
    given: dict[str, Any] = {"shape": (2,), "predict": "noise", "time": "lam"} | fields
    net = MLP(2, width=8, depth=1, classes=3)
    denoiser = NetDenoiser(net, DiscreteVP() if process is None else process, **given)
    for p in denoiser.parameters():
        torch.nn.init.normal_(p)
    return denoiser


ODD = torch.rand(1000, dtype=F64) * 0.01 + 1e-4
PROCESSES: dict[str, Process] = {
    "table of 1000": DiscreteVP(betas=ODD),
    "table of 10": DiscreteVP(steps=10, betas=[0.1 * math.pi / (k + 4) for k in range(10)]),
    "registered functions": Custom(registered_alpha, registered_sigma),
    "numbers": EDM(0.1 + 0.2, 70.0),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_file_gives_back_every_bit(name: str, tmp_path: Path) -> None:
    denoiser = model(PROCESSES[name], precondition="edm", sigma_data=1 / 3, lam_range=(-2.0, 3.0))
    file = tmp_path / "deep" / "m.safetensors"
    save(file, denoiser, {"classes": ["a", "ü"], "step": 3})
    back = load(file)
    assert back.process == denoiser.process and back.reading.name == "noise" and not back.training
    assert back.lam_range == (-2.0, 3.0) and back.sigma_data == 1 / 3 and back.shape == (2,)
    assert back.precondition == "edm" and back.time_input == "lam"
    ours, theirs = denoiser.state_dict(), back.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)
    x, t = torch.randn(5, 2), torch.linspace(0.2, 0.9, 5)
    for cond in (None, torch.arange(5) % 3):
        assert torch.equal(denoiser(x, t, cond).value, back(x, t, cond).value)
    assert torch.equal(denoiser.process.alpha(t.double()), back.process.alpha(t.double()))
    header, info = read_header(file)
    assert header["kind"] == "net" and header["net"]["classes"] == 3
    assert info == {"classes": ["a", "ü"], "step": 3}


@pytest.mark.parametrize("name", PROCESSES)
def test_what_was_loaded_can_be_saved_again(name: str, tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save(first, model(PROCESSES[name]), {"step": 3})
    save(second, load(first), read_header(first)[1])
    assert read_header(second) == read_header(first) and load(second).process == PROCESSES[name]
    ours, theirs = load(first).state_dict(), load(second).state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_an_image_network_and_a_run_folder(tmp_path: Path) -> None:
    denoiser = NetDenoiser(UNet(1, size=8, width=8, multipliers=(1, 2), attention=(4,)), Flow(), shape=(1, 8, 8))
    save(tmp_path / "model.safetensors", denoiser)
    assert model_path(tmp_path) == tmp_path / "model.safetensors" == model_path(str(tmp_path / "model.safetensors"))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load(tmp_path)(x, 0.5).value, denoiser.eval()(x, 0.5).value)
    assert read_header(tmp_path)[1] == {} and fk.load(tmp_path).shape == (1, 8, 8)


def test_what_cannot_be_saved_is_said_before_anything_is_written(tmp_path: Path) -> None:
    nameless = Custom(lambda t: 1 - t, lambda t: t)
    with pytest.raises(ConfigError, match=r"process\.alpha_of.*register"):
        save(tmp_path / "m.safetensors", model(nameless))
    own = NetDenoiser(torch.nn.Identity(), Flow(), shape=(2,))
    with pytest.raises(ConfigError, match="Identity"):
        save(tmp_path / "m.safetensors", own)
    with pytest.raises(TypeError):
        save(tmp_path / "m.safetensors", model(), {"info": object()})
    assert not list(tmp_path.iterdir())


def test_write_whole_keeps_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("old")

    def half(path: Path, error: BaseException) -> None:
        path.write_text("ne")
        raise error

    with pytest.raises(FileError, match=rf"{re.escape(str(file))}: cannot be written \(No space left"):
        write_whole(file, lambda path: half(path, OSError(28, "No space left on device")))
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, lambda path: half(path, KeyboardInterrupt()))
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]
    write_whole(file, lambda path: path.write_text("new") and None)
    assert file.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["f"]
    write_whole(tmp_path / "a" / "b" / "g", lambda path: path.write_text("deep") and None)
    assert (tmp_path / "a" / "b" / "g").read_text() == "deep"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save(file, model(EDM()), {"step": 1})
    return file


def refused(file: Path, why: str) -> None:
    with pytest.raises(FileError) as caught:
        load(file)
    text = str(caught.value)
    assert str(file) in text and why in text and "\n" not in text


def test_a_truncated_file_is_named(saved: Path) -> None:
    content = saved.read_bytes()
    for keep in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:keep])
        refused(saved, "damaged or not a safetensors file")


def test_every_flipped_bit_is_noticed_and_named(saved: Path) -> None:
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    start = content.index(b"__metadata__")
    said = []
    for place in [*range(8), *range(start, min(start + 700, length), 5), *range(length + 8, len(content), 299)]:
        for bit in (0, 3, 5):
            bad = bytearray(content)
            bad[place] ^= 1 << bit
            saved.write_bytes(bytes(bad))
            with pytest.raises(FileError) as caught:
                load(saved)
            said.append(str(caught.value))
    assert all(str(saved) in text and "\n" not in text for text in said)


def test_foreign_and_missing_files_are_named(saved: Path, tmp_path: Path) -> None:
    for metadata, why in ((None, "not a fokker-model-1"), ({"format": "pt"}, "its format is 'pt'")):
        save_file({"w": torch.zeros(2)}, saved, metadata=metadata)
        refused(saved, why)
    save_file({"w": torch.zeros(2)}, saved, metadata={"format": "fokker-model-1"})
    refused(saved, "damaged")
    save_file({"w": torch.zeros(2)}, saved, metadata={"format": "fokker-model-1", "denoiser": "{", "info": "{}"})
    refused(saved, "damaged")
    saved.write_bytes(b"PK\x03\x04 a zip file, such as torch.save's" * 9)
    refused(saved, "damaged")
    refused(tmp_path / "nope", "no such file or run folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no model.safetensors in this folder")


def test_weights_that_do_not_fit_are_named(saved: Path) -> None:
    header, _ = read_header(saved)
    good = {name: value.clone() for name, value in load(saved).state_dict().items()}

    def write(tensors: dict[str, torch.Tensor], head: Any) -> None:
        metadata = {"format": "fokker-model-1", "denoiser": json.dumps(head), "info": "{}"}
        save_file(tensors, saved, metadata=metadata | {"sha256": _digest(metadata, tensors)})

    write({k: v for k, v in good.items() if "last" not in k}, header)
    refused(saved, "cannot be read back")
    write(good, header | {"net": header["net"] | {"width": 6}})
    refused(saved, "cannot be read back")
    write(good, header | {"net": header["net"] | {"kind": "mlpp"}})
    refused(saved, "did you mean 'mlp'")
    write(good, header | {"process": {"kind": "ddpm", "betas": {"tensor": "array:gone"}}})
    refused(saved, "array:gone")
    write(good, header | {"process": {"kind": "custom", "alpha_of": {"function": "os.system"}}})
    refused(saved, "not registered")
    write(good, header)
    assert load(saved).process == EDM()


def test_nothing_is_ever_pickled_or_unpickled() -> None:
    source = Path(fk.__file__).parent
    files = sorted(source.rglob("*.py"))
    assert len(files) > 30
    words = (r"torch\.save\b", r"torch\.load\((?!.*weights_only=True)", r"\bpickle\.", "import pickle")
    wrong = re.compile("|".join([*words, "allow_pickle=True", r"load_state\(", r"save_state\("]))
    for file in files:
        found = wrong.search(file.read_text(encoding="utf-8"))
        assert found is None, (file.name, found)


def test_files_can_be_read_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    save(tmp_path / "m.safetensors", model(EDM()))
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
