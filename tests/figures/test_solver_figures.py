"""The solver figures: the numbers that are drawn, by value; the files that are written."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

import fokker as fk
from fokker.errors import ConfigError, FileError, MissingExtraError
from fokker.figures import SETS, draw, figures_of, sets
from fokker.figures import solver_numbers as numbers
from fokker.figures import solvers_book as book
from fokker.figures import solvers_more as more
from fokker.figures.style import GREEN, LIGHT, ORANGE
from fokker.process import EDM, VP, Flow
from fokker.solvers import DDIM, DPM, RK4, DPMpp, Euler, Heun, UniPC, as_grid
from fokker.solvers.multistep import tables

F64 = torch.float64


def test_ddim_jump() -> None:
    times = torch.tensor([0.7, 0.695, 0.69, 0.68, 0.4], dtype=F64)
    found = numbers.ddim_jump(times, 0.35)
    denoiser, x = numbers.SMOOTH.denoiser(Flow()), torch.tensor([[0.35]], dtype=F64)
    for k in (1, 4):
        ends = [0.7, float(times[k])]
        one = fk.sample(denoiser, x=x, grid=ends, solver=DDIM(), dtype=F64)
        fine = fk.sample(denoiser, x=x, grid=torch.linspace(*ends, 41, dtype=F64), solver=RK4(), dtype=F64)
        assert float(found.ddim[k]) == pytest.approx(float(one), abs=1e-13)
        assert float(found.exact[k]) == pytest.approx(float(fine), abs=1e-8)
    gap = (found.exact - found.ddim).abs()
    assert gap[0] < 1e-14
    assert float(gap[2] / gap[1]) == pytest.approx(4.0, rel=0.05)
    assert float(gap[3] / gap[2]) == pytest.approx(4.0, rel=0.05)


def test_deis_extrapolation() -> None:
    anchors, end, x = (2.0, 1.4, 0.9), 0.4, 1.0
    found = numbers.deis_extrapolation(anchors, end, x, points=2000)
    process, start = EDM(), torch.tensor([[x]], dtype=F64)
    states = torch.cat([numbers.SMOOTH.flow_map(process, start, 2.0, t) for t in anchors])
    said = numbers.SMOOTH.denoiser(process)(states, torch.tensor(anchors, dtype=F64)).noise[:, 0]
    torch.testing.assert_close(found.said, said, rtol=0, atol=1e-13)
    at = [int((found.times - t).abs().argmin()) for t in anchors]
    torch.testing.assert_close(found.quadratic[at], said, rtol=0, atol=1e-3)
    # the areas are the errors of the solvers' own steps from exact anchors
    exact = float(numbers.SMOOTH.flow_map(process, start, 2.0, end))
    for order, missed in zip((3, 1), found.missed, strict=True):
        carry, table = tables(process, "noise", torch.tensor([*anchors, end], dtype=F64), order, "t")
        step = float(carry[-1] * states[-1, 0] + (table[-1] * said.flip(0)[:order]).sum())
        assert missed == pytest.approx(step - exact, abs=2e-5)
    assert abs(found.missed[0]) < 0.15 * abs(found.missed[1])


def test_heun_parallelogram() -> None:
    found = numbers.heun_parallelogram(-0.6, 1.5, 0.35)
    process, x = VP(), torch.tensor([[0.35]], dtype=F64)
    times = process.time(torch.tensor([-0.6, 0.9], dtype=F64))
    denoiser = numbers.SMOOTH.denoiser(process)
    assert found.end[1] == pytest.approx(float(fk.sample(denoiser, x=x, grid=times, solver=Heun("lam"), dtype=F64)))
    assert found.predicted[1] == pytest.approx(
        float(fk.sample(denoiser, x=x, grid=times, solver=Euler("lam"))), abs=1e-6
    )
    for i in (0, 1):  # half of the diagonal
        assert found.end[i] == pytest.approx(0.5 * (found.start[i] + found.diagonal[i]), abs=1e-12)
    fine = fk.sample(denoiser, x=x, grid=process.time(torch.linspace(-0.6, 0.9, 41, dtype=F64)), solver=RK4("lam"))
    assert float(found.exact[-1]) == pytest.approx(float(fine), abs=1e-5)
    assert abs(found.end[1] - float(fine)) < abs(found.predicted[1] - float(fine))


def test_dependencies() -> None:
    step, sweep = numbers.dependencies(5)
    below = torch.ones(5, 5).tril(-1).bool()
    first = torch.zeros(5, 5).bool()
    first[0, 0] = True
    assert torch.equal(sweep, below | first)  # every earlier node, and none later
    assert torch.equal(step, torch.diag(torch.ones(4), -1).bool() | first)


def test_every_dependency_has_an_arrow() -> None:
    for axes, made in zip(book.picard_graphs(5).axes, numbers.dependencies(5), strict=True):
        arrows = [(text.xyann, text.xy) for text in axes.texts if getattr(text, "arrow_patch", None)]
        if len(arrows) > 4:
            assert sorted(arrows) == [((i, 1.0), (j, 0.0)) for i in range(5) for j in range(5) if made[j, i]]
        else:
            assert arrows == [((j, 0.0), (j + 1, 0.0)) for j in range(4)]
    assert len(arrows) == 11


def test_nodes_after_the_new_left_end_are_grey() -> None:
    bars = book.sliding_window().axes[2].patches[:4]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == [GREEN, ORANGE, LIGHT, LIGHT]


def test_captions_say_what_is_drawn() -> None:
    said = {figure.name: figure.caption for figure in figures_of("solvers")}
    for name in ("grids", "grid-errors"):
        assert "flow, lam, t, karras, quadratic, cosine, beta, shift" in said[name]
    assert "time 0 after a last step" in said["grid-errors"] and "t_min" not in said["grid-errors"]
    for name in ("orders", "budgets", "guidance"):
        assert "taken at t_min." in said[name] and "time 0" not in said[name]
    found = numbers.by_budget(
        numbers.CONCENTRATED,
        VP(),
        {"Heun": Heun(), "DDIM": DDIM(), "2M": DPMpp(published=True), "UniPC": UniPC()},
        (8, 10, 15),
        median=True,
    )
    best = [min(pair) for pair in zip(found["Heun"], found["DDIM"], strict=True)]
    assert [a < b for a, b in zip(found["UniPC"], best, strict=True)] == [False, True, True]
    assert found["2M"][1] == pytest.approx(best[1], rel=0.05) and found["2M"][2] < 0.6 * best[2]
    assert {name for name in more.FEW if "published" in name} == {
        name for name, (solver, _) in more.FEW.items() if getattr(solver, "published", False)
    }


def sequential(times: torch.Tensor, x: float) -> torch.Tensor:
    states = fk.trajectory(
        numbers.SMOOTH.denoiser(Flow()), x=torch.tensor([[x]], dtype=F64), grid=times, solver=Euler(), dtype=F64
    )[1]
    return states[:, 0, 0]


def test_sliding_window_ends_where_the_sequential_solver_does() -> None:
    times = torch.linspace(0.98, 0.02, 41, dtype=F64)
    want = sequential(times, 0.35)
    for size, tolerance, wrong in ((4, 0.0, 1e-13), (1, 1e-3, 1e-13), (10, 1e-8, 1e-3)):
        windows = numbers.sliding_window(times, 0.35, size, tolerance)
        torch.testing.assert_close(windows[-1].after, want, rtol=0, atol=wrong)
        assert windows[0].left == 0
        for one, after in itertools.pairwise(windows):
            assert after.left == one.left + one.stride and 1 <= one.stride <= size
            torch.testing.assert_close(after.before, one.after)
        assert windows[-1].left + windows[-1].stride == 40
    assert len(numbers.sliding_window(times, 0.35, 1, 0.0)) == 40
    assert len(numbers.sliding_window(times, 0.35, 10, 1e-8)) < 30
    one = numbers.sliding_window(times, 0.35, 4, 1e-6)[2]  # the first node above the tolerance is the new left end
    assert bool((one.wrong[: one.stride - 1] <= 1e-6).all()) and (
        one.stride == 4 or float(one.wrong[one.stride - 1]) > 1e-6
    )


def test_picard_residual() -> None:
    found = numbers.picard_residual(20, 20)
    assert found.shape == (21, 21)
    want = sequential(torch.linspace(0.98, 0.02, 21, dtype=F64), 0.35)
    torch.testing.assert_close(found[0], (0.35 - want).abs(), rtol=0, atol=1e-13)
    for j in range(21):
        assert float(found[j:, j].max()) < 1e-14
    assert float(found[3, 4]) > 1e-9  # and not before
    assert float(found[3].max()) < float(found[1].max()) < float(found[0].max())


def test_convergence_and_budgets() -> None:
    found = numbers.convergence(VP(), {"2S": DPMpp(variant="S"), "4": RK4(space="lam")}, (32, 64))
    for (name, values), order in zip(found.items(), (2, 4), strict=True):
        assert float(torch.tensor(values[0] / values[1]).log2()) == pytest.approx(order, abs=0.3), name
    budget = numbers.by_budget(numbers.SMOOTH, VP(), {"2S": DPMpp(variant="S")}, (64, 65))["2S"]
    assert budget == [found["2S"][0]] * 2  # 32 steps
    process, x = VP(), numbers.quantiles(VP(), 25)
    times = as_grid("lam").times(process, 32, 1.0, process.t_min, False)
    end = fk.sample(numbers.SMOOTH.denoiser(process), x=x, grid=times, solver=DPMpp(variant="S"), dtype=F64)
    gap = end - numbers.SMOOTH.flow_map(process, x, 1.0, process.t_min)
    assert found["2S"][0] == pytest.approx(float(gap.square().mean().sqrt()))
    to_zero = numbers.errors(numbers.SMOOTH, VP(), DDIM(), nfe=9, grid="t", to_zero=True, n=4)
    x = numbers.quantiles(VP(), 4)
    end = fk.sample(numbers.SMOOTH.denoiser(VP()), x=x, solver=DDIM(), nfe=9, grid="t", dtype=F64)
    torch.testing.assert_close(to_zero, (end - numbers.SMOOTH.flow_map(VP(), x, 1.0, 0.0)).abs()[:, 0])
    half = numbers.by_budget(numbers.SMOOTH, VP(), {"2S": DPMpp(variant="S")}, (64,), median=True)["2S"][0]
    assert half == pytest.approx(float(gap.abs().median()))


def test_guidance() -> None:
    """Values of an independent implementation, as in the tests of the bounds."""
    solvers = {"DDIM": DDIM(), "DPM": DPM(published=True), "2M": DPMpp(published=True)}
    ten, twenty = numbers.by_guidance(solvers, (1.0, 15.0), (10, 20))
    known = (
        {"DDIM": (0.050, 0.12), "DPM": (0.074, 46.0), "2M": (0.006, 0.37)},
        {"DDIM": (0.027, 0.046), "DPM": (0.016, 0.41)},
    )
    for table, values in zip((ten, twenty), known, strict=True):
        for name, pair in values.items():
            assert table[name] == pytest.approx(pair, rel=0.12)
    clipped = numbers.by_guidance({"DPM": DPM(published=True)}, (15.0,), (10,), bound=2.0)[0]["DPM"][0]
    assert clipped < 0.02 * ten["DPM"][1]


def test_predictor_sizes() -> None:
    times = torch.tensor([1e-3, 0.01, 0.1, 0.5], dtype=F64)
    found = numbers.predictor_sizes(numbers.SMOOTH, times)
    assert found.noise.tolist() == pytest.approx([0.0015, 0.0256, 0.457, 0.936], rel=0.04)  # by Monte Carlo
    assert found.score.tolist() == pytest.approx([13.3, 12.8, 4.41, 1.016], rel=0.01)
    assert found.bound.tolist() == pytest.approx([9.1e3, 502, 9.6, 1.09], rel=0.01)
    line = fk.exact.GaussianMixture([1.0], [[0.3]], [0.04])
    process = VP()
    alpha, sigma = process.alpha(times), process.sigma(times)
    want = 1.0 / (alpha**2 * 0.04 + sigma**2)  # one Gaussian
    torch.testing.assert_close(numbers.predictor_sizes(line, times).score, want, rtol=1e-9, atol=0)


def test_fan() -> None:
    found = numbers.fan(VP(), DDIM(), 4, n=5, points=6)
    x = numbers.quantiles(VP(), 5)
    assert found.states.shape == (5, 5) and found.exact.shape == (7, 5)
    torch.testing.assert_close(found.states[0], x[:, 0])
    torch.testing.assert_close(found.exact[0], x[:, 0], rtol=0, atol=1e-10)
    end = numbers.SMOOTH.flow_map(VP(), x, float(found.fine[0]), float(found.fine[-1]))[:, 0]
    torch.testing.assert_close(found.exact[-1], end)
    assert bool((found.exact[:, 1:] > found.exact[:, :-1]).all())  # quantiles do not cross


QUICK = ("ddim-jump", "deis-extrapolation", "heun-parallelogram", "picard-graphs", "sliding-window")


def test_pictures_are_written_once_and_are_the_same(tmp_path: Path) -> None:
    told: list[str] = []
    made = draw("solvers", tmp_path / "a", only=QUICK, progress=told.append)
    assert told == list(QUICK) and [path.name for path in made] == [f"{name}.png" for name in QUICK]
    again = draw("solvers", tmp_path / "b", only=QUICK[:2], formats=("png",))
    for one, two in zip(made, again, strict=False):
        assert one.read_bytes() == two.read_bytes()
    for path in made:
        with Image.open(path) as image:
            assert image.width > 600 and len(image.convert("L").getcolors()) > 20
        assert path.stat().st_size < 80_000
    index = (tmp_path / "a" / "index.md").read_text()
    for figure in figures_of("solvers"):
        assert (f"![{figure.name}]({figure.name}.png)\n\n{figure.caption}\n" in index) is (figure.name in QUICK)
    (tmp_path / "a" / "ddim-jump.png").write_text("mine")
    with pytest.raises(FileError, match="exists and is left as it is"):
        draw("solvers", tmp_path / "a", only=["ddim-jump"])
    svgs = [draw("solvers", tmp_path / name, only=["ddim-jump"], formats=["svg"])[0] for name in ("c", "d")]
    assert svgs[0].read_bytes() == svgs[1].read_bytes() and svgs[0].read_text().startswith("<?xml")
    assert (tmp_path / "a" / "ddim-jump.png").read_text() == "mine"
    draw("solvers", tmp_path / "a", only=["ddim-jump"], overwrite=True)
    assert (tmp_path / "a" / "ddim-jump.png").read_bytes() == (tmp_path / "b" / "ddim-jump.png").read_bytes()


def test_the_set_is_whole() -> None:
    figures = figures_of("solvers")
    assert len({figure.name for figure in figures}) == len(figures) == 14
    captions = " ".join(figure.caption for figure in figures)
    for number in ("9.1", "9.2", "9.3", "9.4"):
        assert f"Book Fig. {number}:" in captions
    assert "Book Figs. 9.5 to 9.7:" in captions
    for name in SETS:
        assert all(re.fullmatch("[a-z0-9-]+", figure.name) for figure in figures_of(name))


@pytest.mark.slow
def test_every_figure_is_drawn(tmp_path: Path) -> None:
    from fokker.figures.style import style

    with style():
        for plot in (
            lambda: more.orders((4, 8)),
            lambda: more.budgets((5, 8)),
            lambda: more.guidance((1.0, 3.0), fine=40),
            lambda: more.grid_errors((5,)),
            lambda: more.picard_residual(8, 4),
            lambda: more.fans(points=6),
            lambda: more.predictors(points=5),
            lambda: more.concentrated((5, 8)),
        ):
            figure = plot()
            assert all(axes.has_data() and axes.get_title(loc="left") for axes in figure.axes[:1])


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no set of figures 'solver': did you mean 'solvers'"):
        draw("solver", tmp_path)
    with pytest.raises(ConfigError, match="no figure 'order' in solvers: did you mean 'orders'"):
        draw("solvers", tmp_path, only=["order"])
    with pytest.raises(ConfigError, match="formats: given 'gif'; allowed: png, svg, pdf"):
        draw("solvers", tmp_path, formats=["gif"])
    monkeypatch.setattr(sets, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"matplotlib is needed here .*fokker\[plot\]"):
        draw("solvers", tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from fokker.cli import main; sys.argv[1:] = %r; main()"
    env = os.environ | {"PYTHONPATH": str(Path(fk.__file__).parents[1])}
    for args in (["figures", "solvers", "-o", str(tmp_path / "x")], ["figures"]):
        done = subprocess.run([sys.executable, "-c", code % args], capture_output=True, text=True, env=env, timeout=100)
        assert done.returncode == 2 and done.stderr.startswith("fokker: matplotlib is needed here"), done.stderr
        assert "fokker[plot]" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()
