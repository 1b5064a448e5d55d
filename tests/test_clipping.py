"""x0 in bounds: what becomes of it entry by entry, what follows for the noise, and what it does to guided sampling."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from scipy.special import ndtri
from torch import Tensor

import fokker as fk
from fokker.errors import ConfigError
from fokker.guidance import CFG, Clipped, DynamicThreshold
from fokker.prediction import READINGS, Denoiser, Prediction
from fokker.process import EDM, VP, Flow, Process
from fokker.solvers import DDIM, RK4, Solver, Step
from fokker.solvers.plan import Stage, X, evaluate

F64 = torch.float64


class Says:
    """Predicts the x0 it was given, as the reading it was told; labels scale it by 1 + label."""

    def __init__(self, x0: Tensor, process: Process, reading: str = "noise") -> None:
        self.x0, self.process, self.shape, self.lam_range = x0, process, tuple(x0.shape[1:]), (-3.0, 4.0)
        self.reading = READINGS[reading]

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        x0 = self.x0.repeat(len(x) // len(self.x0), *(1,) * (x.ndim - 1))
        if cond is not None:
            x0 = x0 * (1.0 + cond.reshape(-1, *(1,) * (x.ndim - 1)))
        said = Prediction(self.process, x, s, x0=x0).read(self.reading)
        return Prediction(self.process, x, s, other=(self.reading, said), variance=7.0 * torch.ones_like(x))


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("reading", ["noise", "velocity", "x0"])
def test_x0_is_clipped_and_the_rest_follows_from_the_state(process: Process, reading: str) -> None:
    x0 = torch.tensor([[-3.0, -0.4, 0.2], [0.5, 0.9, 1.7]], dtype=F64)
    x = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.0, -0.7]], dtype=F64)
    inner = Says(x0, process, reading)
    clipped = Clipped(inner, -0.5, 0.8)
    for s in (0.4, torch.tensor([0.2, 0.7], dtype=F64)):
        p = clipped(x, s)
        want = torch.tensor([[-0.5, -0.4, 0.2], [0.5, 0.8, 0.8]], dtype=F64)
        torch.testing.assert_close(p.x0, want, rtol=0, atol=1e-12)
        alpha, sigma = (c(torch.as_tensor(s, dtype=F64)).reshape(-1, 1) for c in (process.alpha, process.sigma))
        noise = (x - alpha * want) / sigma
        torch.testing.assert_close(p.noise, noise, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(p.score, -noise / sigma, rtol=1e-11, atol=1e-10)
        assert p.x is x and p.reading is clipped.reading and bool((p.variance == 7.0).all())
    assert (clipped.process, clipped.shape, clipped.lam_range) == (process, (3,), (-3.0, 4.0))


def test_dynamic_threshold_per_sample() -> None:
    """Five entries, percentile 0.6: place 2.4 of the ordered |x0|, linear between; then scaled into the bound."""
    rows = [[0.0, -1.0, 2.0, 3.0, -8.0], [0.1, -0.2, 0.3, 0.4, 0.9], [0.5, 0.5, 0.5, 0.5, 4.0]]
    x0 = torch.tensor(rows, dtype=F64).reshape(3, 1, 5)
    got = DynamicThreshold(Says(x0, VP()), 0.6)(torch.zeros_like(x0), 0.5).x0
    want = torch.tensor([[0.0, -1 / 2.4, 2 / 2.4, 1.0, -1.0], rows[1], [0.5, 0.5, 0.5, 0.5, 1.0]], dtype=F64)
    torch.testing.assert_close(got, want.reshape(3, 1, 5), rtol=0, atol=1e-12)
    # another bound: q = 2.4 for the first row, into [-2, 2]
    got = DynamicThreshold(Says(x0, VP()), 0.6, bound=2.0)(torch.zeros_like(x0), 0.5).x0
    want = torch.tensor([[0.0, -2 / 2.4, 4 / 2.4, 2.0, -2.0], rows[1], [0.5, 0.5, 0.5, 0.5, 2.0]], dtype=F64)
    torch.testing.assert_close(got, want.reshape(3, 1, 5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("percentile", [0.001, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("entries", [1, 2, 37, 768])
def test_the_percentile_is_torchs(percentile: float, entries: int) -> None:
    x0 = 3.0 * torch.randn(4, entries, dtype=F64, generator=torch.Generator().manual_seed(entries))
    p = DynamicThreshold(Says(x0, VP(), "x0"), percentile)(torch.ones_like(x0), 0.5)
    q = torch.quantile(x0.abs(), percentile, dim=1, keepdim=True).clamp(min=1.0)
    want = torch.minimum(torch.maximum(x0, -q), q) / q
    torch.testing.assert_close(p.x0, want, rtol=0, atol=1e-12)
    assert float(p.x0.abs().max()) <= 1.0 + 1e-12
    torch.testing.assert_close(VP().alpha(0.5) * p.x0 + VP().sigma(0.5) * p.noise, p.x)


def test_what_is_in_range_is_left_bit_for_bit() -> None:
    x0 = torch.rand(5, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for wrapped in (Clipped(Says(x0, VP(), "x0")), DynamicThreshold(Says(x0, VP(), "x0"))):
        once = wrapped(torch.ones_like(x0), 0.3).x0
        assert torch.equal(once, x0)
    loud = DynamicThreshold(Says(4 * x0, VP(), "x0"), 0.9)(torch.ones_like(x0), 0.3).x0
    again = DynamicThreshold(Says(loud, VP(), "x0"), 0.9)(torch.ones_like(x0), 0.3).x0
    torch.testing.assert_close(again, loud, rtol=1e-6, atol=0)


def test_around_and_inside_guidance() -> None:
    """x0 = .6 for no label (-1 gives 0 here), 1.2 for label 1; scale 3: 3 x 1.2 = 3.6, clipped to 1; inside: 3 x 1."""
    x, label = torch.full((1, 2), 0.5, dtype=F64), torch.tensor([1])
    inner = Says(torch.full((1, 2), 0.6, dtype=F64), VP())
    assert float(CFG(inner, 3.0)(x, 0.5, label).x0[0, 0]) == pytest.approx(3.6)
    assert float(Clipped(CFG(inner, 3.0))(x, 0.5, label).x0[0, 0]) == 1.0
    assert float(DynamicThreshold(CFG(inner, 3.0))(x, 0.5, label).x0[0, 0]) == pytest.approx(1.0)
    p = CFG(Clipped(inner), 3.0)(x, 0.5, label)
    assert float(p.x0[0, 0]) == pytest.approx(3.0)
    torch.testing.assert_close(VP().alpha(0.5) * p.x0 + VP().sigma(0.5) * p.noise, x)


def test_samples_end_in_the_bounds_and_views_and_devices_are_found() -> None:
    law = fk.exact.Gaussian(torch.zeros(2), torch.eye(2)).denoiser(VP())
    bounded = Clipped(law, -0.3, 0.4)
    x = fk.sample(bounded, n=50, solver="ddim", steps=8, seed=1)
    assert float(x.min()) == pytest.approx(-0.3) and float(x.max()) == pytest.approx(0.4)
    other = fk.sample(fk.to_process(bounded, EDM(sigma_max=100.0)), x=x[:3], grid=[1.0, 0.3, 0.0])
    want = fk.sample(
        Clipped(fk.exact.Gaussian(torch.zeros(2), torch.eye(2)).denoiser(EDM(sigma_max=100.0)), -0.3, 0.4),
        x=x[:3],
        grid=[1.0, 0.3, 0.0],
    )
    torch.testing.assert_close(other, want, rtol=1e-4, atol=1e-5)


def test_mistakes_are_named() -> None:
    inner = Says(torch.zeros(1, 2), VP())
    for low, high in ((1.0, 1.0), (2.0, -1.0), (-math.inf, 1.0), (0.0, math.nan)):
        with pytest.raises(ConfigError, match="low below high"):
            Clipped(inner, low, high)
    for percentile in (0.0, 1.1, 99.5, math.nan):
        with pytest.raises(ConfigError, match="percentile"):
            DynamicThreshold(inner, percentile)
    for bound in (0.0, -1.0, math.inf):
        with pytest.raises(ConfigError, match="bound"):
            DynamicThreshold(inner, bound=bound)


class Midpoint(Solver):
    """DPM-Solver-2 (Lu et al. 2022, Alg. 5): the noise at the middle of the step in lam."""

    slots: ClassVar[int] = 2
    order = 2

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        h = process.lam(t) - process.lam(s)
        u = process.time(process.lam(s) + 0.5 * h)
        half = (process.alpha(u) / process.alpha(s), -process.sigma(u) * torch.expm1(0.5 * h))
        whole = (process.alpha(t) / process.alpha(s), -process.sigma(t) * torch.expm1(h))
        made = []
        for a, b, c, on_x, on_m, last_x, last_m in zip(*(v.tolist() for v in (s, t, u, *half, *whole)), strict=True):
            middle: Stage = evaluate(c, "noise", 1, ((X, on_x), (("m", 0), on_m)))
            made.append(Step(a, b, (evaluate(a, "noise"), middle), ((X, last_x), (("m", 1), last_m))))
        return made


class TwoM(Solver):
    """DPM-Solver++(2M) (Lu et al. 2022b): x0, extrapolated from the last two evaluations."""

    slots: ClassVar[int] = 2
    order = 2

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        h = process.lam(t) - process.lam(s)
        keep, gain = process.sigma(t) / process.sigma(s), -process.alpha(t) * torch.expm1(-h)
        made = []
        for i, (a, b) in enumerate(zip(s.tolist(), t.tolist(), strict=True)):
            more = float(h[i] / (2 * h[i - 1])) if i else 0.0
            now, g = i % 2, float(gain[i])
            out = ((X, float(keep[i])), (("m", now), g * (1 + more)), (("m", 1 - now), -g * more))
            made.append(Step(a, b, (evaluate(a, "x0", now),), out if i else out[:2]))
        return made


LAW = fk.exact.GaussianMixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[-1.0], [0.8]]),
    torch.tensor([[[0.35**2]], [[0.25**2]]]),
    labels=torch.tensor([0, 1]),
)
STARTS = torch.from_numpy(ndtri((torch.arange(25).numpy() + 0.5) / 25))[:, None]


def ends(denoiser: Denoiser, solver: Solver, nfe: int) -> Tensor:
    """Where the starts go to, all guided to the second mode, on uniform lam down to t_min."""
    return fk.sample(denoiser, x=STARTS, solver=solver, grid="lam", nfe=nfe, cond=1, final="t_min", dtype=F64)


def test_guidance_makes_high_order_noise_solvers_explode() -> None:
    """Book Sec. 9.5.1: scale 1, 8, 15 at 10, 20, 40 evaluations, against values of an independent implementation.

    The noise-side second-order method is the worst by far at strong guidance and few evaluations, worse than DDIM; on
    the data side second order stays bounded.
    """
    known = {  # RMS at 10, 20, 40 evaluations
        (1.0, DDIM): (0.050, 0.027, 0.014),
        (1.0, Midpoint): (0.074, 0.016, 0.0036),
        (1.0, TwoM): (0.006, 0.003, 0.0008),
        (8.0, DDIM): (0.085, 0.040, 0.019),
        (8.0, Midpoint): (5.7, 0.19, 0.024),
        (8.0, TwoM): (0.24, 0.044, 0.009),
        (15.0, DDIM): (0.12, 0.046, 0.022),
        (15.0, Midpoint): (46.0, 0.41, 0.035),
        (15.0, TwoM): (0.37, 0.065, 0.013),
    }
    exact = {w: ends(CFG(LAW.denoiser(VP()), w), RK4("lam"), 480) for w in (1.0, 8.0, 15.0)}
    for (w, solver), values in known.items():
        for nfe, value in zip((10, 20, 40), values, strict=True):
            gap = ends(CFG(LAW.denoiser(VP()), w), solver(), nfe) - exact[w]
            rms = float(gap.square().mean().sqrt())
            assert rms == pytest.approx(value, rel=0.12)


def test_bounds_stop_the_explosion() -> None:
    """Scale 15, ten evaluations of the noise-side method: thrown far out of the data's range, and kept in it."""
    guided = CFG(LAW.denoiser(VP()), 15.0)
    wild = ends(guided, Midpoint(), 10)
    for bounded in (Clipped(guided, -2.0, 2.0), DynamicThreshold(guided, 1.0, bound=2.0)):
        kept = ends(bounded, Midpoint(), 10)
        assert float(wild.abs().max()) > 20.0 > 2.5 > float(kept.abs().max())


def test_bounds_that_do_not_bind_change_nothing() -> None:
    plain = CFG(LAW.denoiser(VP()), 2.0)
    want = ends(plain, DDIM(), 6)
    for bounded in (Clipped(plain, -9.0, 9.0), DynamicThreshold(plain, 1.0, bound=9.0)):
        torch.testing.assert_close(ends(bounded, DDIM(), 6), want, rtol=1e-9, atol=1e-9)
