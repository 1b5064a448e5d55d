"""`fokker figures`."""

from pathlib import Path

import pytest

from fokker.figures import SETS, figures_of

from .calling import Call


def test_sets_are_listed_and_drawn(call: Call) -> None:
    code, out, _ = call("figures")
    assert code == 0
    for name in SETS:
        assert f"{name}: {', '.join(figure.name for figure in figures_of(name))}" in out.splitlines()
    code, out, err = call("figures", "solvers", "-o", "out", "--only", "heun-parallelogram", "--only", "ddim-jump")
    assert code == 0 and "2 pictures, captions in index.md: out" in out
    assert err.splitlines() == ["drawing ddim-jump ...", "drawing heun-parallelogram ..."]
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "ddim-jump.png",
        "heun-parallelogram.png",
        "index.md",
    ]
    code, out, err = call("figures", "solvers", "-o", "out", "--only", "ddim-jump")
    assert code == 2 and out == "" and "ddim-jump.png exists and is left as it is" in err and err.count("\n") == 1
    assert (
        call("figures", "solvers", "-o", "out", "--only", "ddim-jump", "--overwrite", "--format", "png,svg").code == 0
    )
    assert Path("out/ddim-jump.svg").exists()


def test_several_sets_are_drawn_into_folders_of_their_own(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("solvers", "roots"):
        quick = [each for each in figures_of(module) if each.name in ("ddim-jump", "families")]
        monkeypatch.setattr(f"fokker.figures.{module}.FIGURES", tuple(quick))
    code, out, err = call("figures", "solvers", "roots", "solvers", "-o", "out")
    assert code == 0 and err.splitlines() == ["drawing ddim-jump ...", "drawing families ..."]
    assert out.splitlines() == [f"1 pictures, captions in index.md: out/{name}" for name in ("solvers", "roots")]
    for name, only in (("solvers", "ddim-jump"), ("roots", "families")):
        assert sorted(path.name for path in Path("out", name).iterdir()) == [f"{only}.png", "index.md"]
        assert captions(f"out/{name}") == [f"![{only}]({only}.png)"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["roots", "solvers"]
    code, out, err = call("figures", "solvers", "roots", "-o", "new", "--only", "ddim-jump")
    assert code == 2 and "--only chooses from one set; given solvers, roots" in err and err.count("\n") == 1
    code, out, err = call("figures", "solvers", "root", "-o", "new")
    assert code == 2 and "did you mean 'roots'?" in err and not Path("new").exists()


def captions(folder: str = "out") -> list[str]:
    return [line for line in Path(folder, "index.md").read_text().splitlines() if line.startswith("![")]


def test_the_index_lists_what_is_in_the_folder(call: Call) -> None:
    for name, ending in (("heun-parallelogram", "svg"), ("ddim-jump", "png")):
        assert call("figures", "solvers", "-o", "out", "--only", name, "--format", ending).code == 0
    assert captions() == ["![ddim-jump](ddim-jump.png)", "![heun-parallelogram](heun-parallelogram.svg)"]
    assert call("figures", "solvers", "-o", "out", "--only", "ddim-jump", "--overwrite").code == 0
    assert len(captions()) == 2
    Path("mine").mkdir()
    Path("mine/index.md").write_text("# Mine\n")
    code, _, err = call("figures", "solvers", "-o", "mine", "--only", "ddim-jump")
    assert code == 2 and "mine/index.md exists and is left as it is" in err
    assert [path.name for path in Path("mine").iterdir()] == ["index.md"]


def test_a_folder_that_cannot_be_made_is_refused_before_drawing(call: Call) -> None:
    Path("file").write_text("")
    for folder in ("/proc/x", "file", "file/x"):
        code, out, err = call("figures", "solvers", "-o", folder, "--only", "ddim-jump")
        assert code == 2 and out == "" and "cannot be written" in err and "drawing" not in err, err
        assert err.count("\n") == 1


def test_mistakes_are_one_line(call: Call) -> None:
    for args, says in (
        (("solvers",), "--output: give the folder that 14 pictures"),
        (("solver", "-o", "x"), "did you mean 'solvers'?"),
        (("solvers", "-o", "x", "--only", "grid"), "did you mean 'grids'?"),
        (("solvers", "-o", "x", "--format", "bmp"), "allowed: png, svg, pdf"),
    ):
        code, out, err = call("figures", *args)
        assert code == 2 and out == "" and err.startswith("fokker: ") and err.count("\n") == 1 and says in err, err
    assert not Path("x").exists()
