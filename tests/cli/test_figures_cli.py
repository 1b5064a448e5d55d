"""`fokker figures`."""

from pathlib import Path

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
    assert code == 2 and out == "" and "index.md exists and is left as it is" in err and err.count("\n") == 1
    assert (
        call("figures", "solvers", "-o", "out", "--only", "ddim-jump", "--overwrite", "--format", "png,svg").code == 0
    )
    assert Path("out/ddim-jump.svg").exists()


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
