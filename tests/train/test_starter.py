"""Starting recipes: every kind of data is recognised, its recipe is accepted and trains, and bad data is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import wavfile

import fokker as fk
from fokker.errors import ConfigError, FileError
from fokker.train import look
from fokker.train.recipe import make

RNG = np.random.default_rng(0)
FEW = {"steps": 2, "batch": 4, "sample_every": 0}


def photos(folder: Path, count: int = 30, side: int = 18, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for i in range(count):
        file = folder / (classes[i % len(classes)] if classes else "") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (side, side + i, 3), dtype=np.uint8)).save(file)
    return folder


def array(path: Path, *arrays: Any, **named: Any) -> Path:
    np.savez(path, **named) if named else np.save(path, *arrays)
    return path


def mixed(path: Path, n: int = 60) -> Path:
    rows = [f"{i + 5},{20 + i * 7 % 31},{('Rom', 'Oslo')[i % 3 == 0]},n{i},1,{i % 2}" for i in range(n)]
    path.write_text("\n".join(["id,age,city,name,const,kids", *rows]) + "\n")
    return path


def wav(path: Path) -> Path:
    wavfile.write(path, 8000, (RNG.normal(size=(800, 2)) * 1000).astype(np.int16))
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def series(n: int, by: str = "\n") -> str:
    return by.join(f"{v:.5f}" for v in np.sin(np.arange(n) / 9))


WALKS = np.cumsum(RNG.normal(size=(60, 32)), axis=1)
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    # what is made: (maker, data fields, net fields) that the recipe must have
    "pictures": (
        lambda p: photos(p / "pics"),
        {"kind": "folder", "size": 16, "channels": 3, "flip": True},
        {"kind": "unet", "width": 16, "multipliers": [1, 2, 2], "attention": [4]},
    ),
    "bytes": (
        lambda p: array(p / "x.npz", images=np.zeros((30, 12, 12), np.uint8), y=np.arange(30) % 3),
        {"kind": "arrays", "key": "images", "label_key": "y"},
        {"kind": "unet", "multipliers": [1, 2], "attention": [6]},
    ),
    "maps": (
        lambda p: array(p / "x.npy", RNG.normal(size=(20, 2, 8, 8))),
        {"kind": "arrays"},
        {"kind": "unet", "attention": [4]},
    ),
    "vectors": (
        lambda p: array(p / "x.npy", RNG.normal(size=(40, 3))),
        {"kind": "arrays"},
        {"kind": "mlp", "width": 64},
    ),
    "signals": (
        lambda p: array(p / "x.npz", x=WALKS, y=np.arange(60) % 2),
        {"kind": "signals", "label_key": "y"},
        {"kind": "dit", "axes": 1, "patch": 4},
    ),
    "channels": (lambda p: array(p / "x.npy", RNG.normal(size=(20, 2, 16))), {"kind": "signals"}, {"patch": 2}),
    "series": (
        lambda p: array(p / "x.npy", np.sin(np.arange(2600) / 9)),
        {"kind": "signals", "window": 64, "stride": 1},
        {"kind": "dit", "patch": 8},
    ),
    "sound": (lambda p: wav(p / "x.wav"), {"kind": "signals", "window": 16}, {"kind": "dit", "patch": 2}),
    "table": (
        lambda p: mixed(p / "x.csv"),
        {"kind": "table", "drop": ["id", "name", "const"], "quantile": "heavy"},
        {"kind": "mlp"},
    ),
    "one column": (
        lambda p: text(p / "x.csv", "day,value\n" + "".join(f"d{i},{i * i % 97}.5\n" for i in range(700))),
        {"kind": "signals", "columns": ["value"], "window": 16},
        {"kind": "dit"},
    ),
    "no header": (lambda p: text(p / "x.csv", series(700)), {"kind": "signals", "window": 16}, {"kind": "dit"}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_data_gets_a_recipe_that_trains(name: str, tmp_path: Path) -> None:
    maker, data, net = CASES[name]
    found = look(maker(tmp_path))
    written = found.recipe("mine")
    values = yaml.safe_load(written)
    assert values["data"] | data == values["data"] and values["net"] | net == values["net"]
    assert values["name"] == "mine" and found.seen and written.startswith("# mine: ")
    bare = [line for line in written.splitlines() if line.startswith("  ") and "#" not in line]
    assert all(line.split(":")[0].strip() in ("kind", "path", "key", "heads") for line in bare)  # the rest says why
    samples = make(values).data.load()
    assert 0.75 * len(samples) <= found.n <= 1.45 * len(samples)
    values["train"] |= FEW
    values |= {"run": {"dir": str(tmp_path / "run")}}
    values["sampling"] |= {"n": 2, "steps": 1}
    assert fk.load(fk.fit(make(values), progress=False)).shape == samples.shape


def test_classes_bring_guidance_and_its_training(tmp_path: Path) -> None:
    told = yaml.safe_load(look(photos(tmp_path / "a")).recipe("r"))
    free = yaml.safe_load(look(photos(tmp_path / "b", classes=())).recipe("r"))
    assert told["objective"]["cond_dropout"] == 0.1 and told["sampling"]["guidance"] == 2.0
    assert "cond_dropout" not in free["objective"] and "guidance" not in free["sampling"]


def test_what_was_seen_of_pictures(tmp_path: Path) -> None:
    folder = photos(tmp_path / "a", count=10)
    (folder / "cat" / "bad.jpg").write_bytes(b"no picture")
    seen = dict(look(folder).seen)
    assert seen["pictures"] == "11" and seen["cannot be decoded"].startswith("1 ")
    assert seen["sides"] == "18 to 27, the median shorter side 18" and seen["classes"] == "2: cat, dog"
    grey = tmp_path / "grey"
    grey.mkdir()
    for i in range(3):
        Image.new("RGB", (70, 200), (i, i, i)).save(grey / f"{i}.png")
    values = yaml.safe_load(look(grey).recipe("r"))
    assert (
        values["data"]["channels"] == 1
        and values["data"]["size"] == 64
        and values["net"]["multipliers"] == [1, 2, 2, 4]
    )


def test_what_was_seen_of_a_table(tmp_path: Path) -> None:
    content = mixed(tmp_path / "x.csv").read_text().splitlines()
    content[3] = content[3].replace(",Rom,", ",,").replace(",Oslo,", ",,")
    found = look(text(tmp_path / "y.csv", "\n".join(content)))
    seen, values = dict(found.seen), yaml.safe_load(found.recipe("r"))
    assert seen["table"] == "60 rows, 6 columns" and seen["id"] == "an identifier, counts up: left out"
    assert seen["age"] == "numbers, 20 to 50" and seen["city"] == "categories: 2: Oslo, Rom, 1 missing"
    assert seen["name"] == "text, 60 different: left out" and seen["const"] == "constant: left out"
    assert values["data"]["missing"] == "drop" and len(make(values).data.load()) == 53
    assert '  # label: "kids"  # take out the first #' in found.recipe("r")
    labelled = found.recipe("r").replace("  # label", "  label")
    assert make(yaml.safe_load(labelled)).data.load().classes == ("0", "1")


def test_the_amount_of_training_follows_the_data(tmp_path: Path) -> None:
    few = yaml.safe_load(look(array(tmp_path / "a.npy", RNG.normal(size=(40, 3)))).recipe("r"))
    many = yaml.safe_load(look(array(tmp_path / "b.npy", RNG.normal(size=(5000, 3)))).recipe("r"))
    assert few["train"]["batch"] == 32 and few["train"]["steps"] == 1000 and few["net"]["width"] == 64
    assert many["train"]["batch"] == 256 and many["train"]["steps"] == 7800 and many["net"]["width"] == 128


@pytest.mark.parametrize(
    ("maker", "says"),
    [
        (lambda p: p / "gone", "does not exist; give a folder of pictures"),
        (lambda p: text(p / "x.txt", "a"), "this kind of file is not known"),
        (lambda p: text(p / "a.csv", "a\n1\n").parent, "has no pictures, but a.csv: give the path"),
        (lambda p: p, "has no pictures"),
        (lambda p: photos(p / "a", side=5, classes=()), "5 pixels wide, too small"),
        (lambda p: photos(p / "a", classes=("cat",)), "a single class, 'cat'"),
        (lambda p: array(p / "x.npy", np.arange(5)), r"neither floats nor pictures of bytes \(array int64 \(5,\)\)"),
        (
            lambda p: array(p / "x.npy", np.zeros((9, 12, 16), np.uint8)),
            r"pictures of 12 x 16 \(axes N, .*\); cut them to squares",
        ),
        (
            lambda p: array(p / "x.npy", np.zeros((30, 28, 28))),
            r"float64 \(30, 28, 28\) could be pictures or signals: for pictures store x\[:, None\]",
        ),
        (
            lambda p: array(p / "x.npy", np.zeros((30, 12, 16, 3), np.float32)),
            r"float32 \(30, 12, 16, 3\) has its channels last; .*\(N, channels, height, width\): store numpy\.moveaxis",
        ),
        (
            lambda p: array(p / "x.npy", np.array([[1.0, 2], [3, np.nan], [5, 6]])),
            r"x\.npy: the number at \(1, 1\) is nan in float32, must be finite",
        ),
        (lambda p: damaged(p / "x.npz"), r"x\.npz: cannot be read as \.npy or \.npz without pickles"),
        (lambda p: array(p / "x.npy", np.zeros(300)), "a series of 300 numbers is too short"),
        (lambda p: text(p / "x.csv", "a,b\n1,x\n1,x\n"), "no column can be learned from: constant"),
        (lambda p: text(p / "x.npz", "no zip"), "cannot be read as .npy or .npz"),
        (
            lambda p: text(p / "a" / ".." / "x.png", "no picture").parent,
            "none of the 1 pictures looked at can be decoded",
        ),
    ],
)
def test_refusals(maker: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(exist_ok=True)
    if says.startswith(("5 pixels", "a single")):
        (tmp_path / "a").rmdir()
    with pytest.raises((ConfigError, FileError), match=says):
        look(maker(tmp_path))


TEST = np.flatnonzero(np.arange(1, 61) * 0.6180339887498949 % 1 < 0.1)  # the rows of 60 that are held out


def test_columns_that_would_not_load_are_seen_to(tmp_path: Path) -> None:
    rows = []
    for i in range(60):
        town = "Paris" if i == TEST[2] else ("Rom", "Oslo")[i % 2]
        flag = "yes" if i in TEST else "no"  # one category is left in training
        rows.append(f"{RNG.normal():.3f},{1000000001 + 2654435761 * i % 9000000000},{town},{flag}")
    found = look(text(tmp_path / "x.csv", "\n".join(["v,account,town,flag", *rows]) + "\n"))
    seen, written = dict(found.seen), found.recipe("r")
    values = yaml.safe_load(written)["data"]
    assert values["drop"] == ["account", "flag"] and values["rare"] == "drop" and "missing" not in values
    lines = {line.split(":")[0].strip(): line for line in written.splitlines()}
    assert "column 'account': its integers, 1e+09 to " in lines["drop"]
    assert "cannot be told apart in float32; column" in lines["drop"]
    assert lines["drop"].endswith("column 'flag' has one category, 'no'") and "leave it out" not in lines["drop"]
    assert f"# column 'town', line {TEST[2] + 2}: 'Paris' is in the test split and in no training row" in lines["rare"]
    assert seen["flag"] == "left out: column 'flag' has one category, 'no'" and seen["v"].startswith("numbers")
    source = make(yaml.safe_load(written)).data
    assert len(source.load()) == 60 - len(TEST) and len(source.load("test")) == len(TEST) - 1


def test_gaps_of_a_column_left_out_do_not_count(tmp_path: Path) -> None:
    rows = [f"{RNG.normal():.3f},{'' if i == 7 else 1000000001 + 2654435761 * i % 9000000000}" for i in range(60)]
    found = look(text(tmp_path / "x.csv", "\n".join(["v,account", *rows]) + "\n"))
    assert "missing" not in yaml.safe_load(found.recipe("r"))["data"] and "rows with gaps" not in dict(found.seen)


def test_where_nothing_can_be_held_out(tmp_path: Path) -> None:
    few = look(text(tmp_path / "x.csv", "v,w\n1.5,2\n2.5,7\n3.5,3\n")).recipe("r")
    (photos(tmp_path / "a", count=3, classes=()) / "0.png").unlink()  # whose name would hold it out
    pictures = look(tmp_path / "a").recipe("r")
    only = look(photos(tmp_path / "c", count=1, classes=())).recipe("r")  # not even to train on, then
    for written, n in ((few, 3), (pictures, 2), (only, 1)):
        values = yaml.safe_load(written)
        assert values["data"]["holdout"] == 0.0 and len(make(values).data.load()) == n
    assert yaml.safe_load(look(photos(tmp_path / "b")).recipe("r"))["data"]["holdout"] == 0.1


def test_pictures_of_floats_with_an_axis_more_are_taken(tmp_path: Path) -> None:
    x = RNG.normal(size=(20, 12, 12))
    values = yaml.safe_load(look(array(tmp_path / "x.npy", x[:, None])).recipe("r"))
    assert values["net"]["kind"] == "unet" and make(values).data.load().shape == (1, 12, 12)
    assert dict(look(array(tmp_path / "s.npy", x[:, :, :8])).seen)["read as"] == (
        "20 signals of length 8 in 12 channels (axes N, channels, length)"
    )
    assert look(array(tmp_path / "m.npy", RNG.normal(size=(20, 16, 8, 8)))).image  # maps, of channels first


def damaged(path: Path) -> Path:
    """An .npz with a sound end and a damaged index."""
    np.savez(path, a=np.zeros((9, 2)), b=np.zeros(9))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\1\2", b"PK\1\3"))
    return path
