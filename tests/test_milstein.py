"""Milstein's scheme for a noise of one's own: one step by hand, strong and weak orders on geometric Brownian motion."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fokker import noise
from fokker.errors import ConfigError
from fokker.forward import diffuse
from fokker.process import EDM, OU, VP

from .solvers.oracle import F64, slopes

MU, NU = 0.5, 0.8  # dx = MU x dt + NU x dw on [0, 1], x_0 = 1
PATHS = 4000


def ends(steps: int, method: Any) -> Tensor:
    """x_1 by `steps` steps, (PATHS,)."""
    times = torch.linspace(0, 1, steps + 1, dtype=F64)
    x0 = torch.ones(PATHS, 1, dtype=F64)
    equation: Any = {"drift": lambda x, t: MU * x, "noise": lambda x, t: NU * x}
    return diffuse(OU(horizon=1.0), x0, times, seed=2, method=method, **equation)[-1, :, 0]


def exact() -> Tensor:
    """x_1 = exp((MU - NU^2 / 2) + NU w_1) on the same paths."""
    w = noise.brownian(2, torch.arange(PATHS), torch.tensor([1.0]), (1,))[0, :, 0]
    return ((MU - 0.5 * NU**2) + NU * w).exp()


@pytest.mark.parametrize(("method", "order"), [("euler", 0.5), ("milstein", 1.0)])
def test_strong_order_on_geometric_brownian_motion(method: str, order: float) -> None:
    """Multiplicative noise: 1/2 without the correction, 1 with it; the other sign would give 1/2 and a larger error."""
    truth = exact()
    errors = [float((ends(n, method) - truth).square().mean().sqrt()) for n in (16, 32, 64)]
    assert slopes(errors) == pytest.approx([order] * 2, abs=0.15), errors
    assert errors[-1] < {"euler": 0.14, "milstein": 0.03}[method]


@pytest.mark.parametrize("method", ["euler", "milstein"])
def test_weak_order_1_and_the_moments_of_the_scheme(method: str) -> None:
    """A step multiplies by 1 + MU h + NU dw + c (dw^2 - h), c = NU^2 / 2 or 0: E x = (1 + MU h)^N,

    E x^2 = ((1 + MU h)^2 + NU^2 h + 2 c^2 h^2)^N, which tend to Ito's e^MU and e^{2 MU + NU^2} at order 1. The moments
    are compared with the exact solution on the same paths, where most of the scatter cancels.
    """
    c, truth, means, squares = 0.5 * NU**2 if method == "milstein" else 0.0, exact(), [], []
    for n in (8, 16, 32):
        h, x = 1 / n, ends(n, method)
        first, second = (1 + MU * h) ** n, ((1 + MU * h) ** 2 + NU**2 * h + 2 * c**2 * h**2) ** n
        for got, want in ((x - truth, first - math.exp(MU)), (x**2 - truth**2, second - math.exp(2 * MU + NU**2))):
            assert abs(float(got.mean()) - want) < 4 * float(got.std()) / math.sqrt(PATHS)
        means.append(math.exp(MU) - first)
        squares.append(abs(second - math.exp(2 * MU + NU**2)))
    assert slopes(means)[-1] == pytest.approx(1.0, abs=0.1) and slopes(squares)[-1] == pytest.approx(1.0, abs=0.15)
    assert abs(float(ends(32, method).mean()) - math.exp(MU)) < 0.08  # Stratonovich's mean is e^{MU + NU^2 / 2} = 2.27


def test_one_step_by_hand() -> None:
    """b = sin(3 x) + t per entry: x + a h + b dw + 3 b cos(3 x) (dw^2 - h) / 2, everything read at the step's start."""
    x0 = torch.linspace(-1, 1, 12, dtype=F64).reshape(3, 2, 2)
    index, times = torch.tensor([5, 0, 2]), torch.tensor([0.25, 0.75, 2.0], dtype=F64)
    for process in (OU(horizon=2.0), EDM(sigma_max=2.0)):
        w = noise.brownian(9, index, times / 2.0, (2, 2)) * math.sqrt(2.0)
        equation: Any = {"drift": lambda x, t: t * x**2, "noise": lambda x, t: torch.sin(3 * x) + t}
        path = diffuse(process, x0, times, seed=9, indices=index, method="milstein", **equation)
        euler = diffuse(process, x0, times, seed=9, indices=index, method="euler", **equation)
        assert torch.equal(path[0], x0)
        x, y = x0, x0
        for k in range(2):
            s, h, dw = times[k], times[k + 1] - times[k], w[k + 1] - w[k]
            b, slope = torch.sin(3 * x) + s, 3 * torch.cos(3 * x)
            x = x + h * s * x**2 + b * dw + 0.5 * b * slope * (dw**2 - h)
            y = y + h * s * y**2 + (torch.sin(3 * y) + s) * dw
            assert float((path[k + 1] - x).abs().max()) < 1e-11 * float(x.abs().max())
            assert float((euler[k + 1] - y).abs().max()) < 1e-11 * float(y.abs().max())


def test_where_noise_does_not_depend_on_x_it_is_euler() -> None:
    """b = g(t), the process's own: the same path as without a noise given, by both methods, with f x as the drift."""
    x0, times = torch.linspace(-1, 1, 4, dtype=F64)[:, None], torch.linspace(0.1, 0.9, 6, dtype=F64)
    want = diffuse(VP(), x0, times, seed=1, method="euler")

    def g(x: Tensor, t: float) -> Tensor:
        return torch.ones_like(x) * VP().g2(t).sqrt()

    for method in ("euler", "milstein"):
        got = diffuse(VP(), x0, times, seed=1, method=method, noise=g)  # type: ignore[arg-type]
        assert float((got - want).abs().max()) < 1e-13


def test_errors() -> None:
    x0, times = torch.ones(2, 3, dtype=F64), [0.0, 0.5]
    with pytest.raises(ConfigError, match="noise"):
        diffuse(VP(), x0, times, method="milstein")
    with pytest.raises(ConfigError, match="'exact' with a noise"):
        diffuse(VP(), x0, times, noise=lambda x, t: x)
    with pytest.raises(ConfigError, match="'exact' with a drift"):
        diffuse(VP(), x0, times, drift=lambda x, t: x)
    with pytest.raises(ConfigError, match=r"noise: gives shape \(2,\), must be x's, \(2, 3\)"):
        diffuse(VP(), x0, times, method="euler", noise=lambda x, t: x[:, 0])
    with pytest.raises(ConfigError, match="'milstein'"):
        diffuse(VP(), x0, times, method="ito")  # type: ignore[arg-type]
