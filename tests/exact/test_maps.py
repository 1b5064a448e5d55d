"""Flow maps against an integrated probability-flow ODE; two-sided pairs against Monte Carlo and continuity."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from fokker import exact
from fokker.errors import ConfigError
from fokker.process import EDM, VP, Flow, Trig

F64 = torch.float64


def integrate(law, process, x, s, t):
    """y = x / alpha in lam: dy/dlam = -e^{-lam} eps, by DOP853 at rtol 1e-13."""
    denoiser, shape = law.denoiser(process), x.shape
    ends = [float(process.lam(u)) for u in (s, t)]

    def slope(lam, y):
        at = process.time(torch.tensor(lam, dtype=F64))
        state = process.alpha(at) * torch.from_numpy(y).reshape(shape)
        return (-math.exp(-lam) * denoiser(state, at).noise).numpy().ravel()

    start = (x / process.alpha(s)).numpy().ravel()
    found = solve_ivp(slope, ends, start, method="DOP853", rtol=1e-13, atol=1e-13)
    return process.alpha(t) * torch.from_numpy(np.ascontiguousarray(found.y[:, -1])).reshape(shape)


@pytest.mark.parametrize("process", [VP(), Flow(), EDM(), Trig()], ids=lambda p: type(p).__name__)
def test_quantile_map_is_the_flow(line, process):
    s, t = float(process.time(-1.2)), float(process.time(2.5))
    x = line.at(process, s).sample(6, seed=1, dtype=F64)
    torch.testing.assert_close(line.flow_map(process, x, s, t), integrate(line, process, x, s, t), rtol=0, atol=1e-9)
    z = line.at(process, t).sample(6, seed=2, dtype=F64)
    torch.testing.assert_close(line.flow_map(process, z, t, s), integrate(line, process, z, t, s), rtol=1e-9, atol=1e-9)


def cdf(law, process, x, t):
    alpha, sigma = process.alpha(t), process.sigma(t)
    z = (x - alpha * law.means.value[:, 0]) / (alpha**2 * law.covs.value + sigma**2).sqrt()
    lower = (law.weights.value.log() + torch.special.log_ndtr(z)).logsumexp(1)
    return lower, (law.weights.value.log() + torch.special.log_ndtr(-z)).logsumexp(1)


def test_quantiles_are_kept_from_end_to_end_and_far_out(process, line):
    x = torch.cat([torch.linspace(-4, 4, 41, dtype=F64), torch.tensor([-60.0, 35.0, 80.0], dtype=F64)])[:, None]
    start = float(process.T)
    x = x * float(process.prior_std())
    end = line.flow_map(process, x, start, 0.0)
    for side in (0, 1):
        a, b = cdf(line, process, x, start)[side], cdf(line, process, end, 0.0)[side]
        keep = a < math.log(0.6)
        torch.testing.assert_close(b[keep], a[keep], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(line.flow_map(process, end, 0.0, start), x, rtol=1e-10, atol=1e-10)
    middle = float(process.time(0.0))
    through = line.flow_map(process, line.flow_map(process, x, start, middle), middle, 0.0)
    torch.testing.assert_close(through, end, rtol=1e-11, atol=1e-11)


def test_quantile_map_takes_times_by_row_and_is_the_identity_at_rest(line):
    x = torch.randn(4, 1, dtype=F64)
    s, t = torch.tensor([0.9, 0.5, 0.3, 1.0], dtype=F64), torch.tensor([0.1, 0.6, 0.3, 0.0], dtype=F64)
    rows = [
        line.flow_map(VP(), row[None], float(a), float(b))[0]
        for row, a, b in zip(x, s.tolist(), t.tolist(), strict=True)
    ]
    torch.testing.assert_close(line.flow_map(VP(), x, s, t), torch.stack(rows), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(line.flow_map(VP(), x, 0.3, 0.3), x, rtol=1e-13, atol=1e-13)
    assert line.flow_map(VP(), x.float(), 0.9, 0.1).dtype == torch.float32


def test_velocity_is_the_derivative_of_the_map(process, line):
    s, x = float(process.time(0.4)), torch.tensor([[-1.0], [0.3], [1.4]], dtype=F64)
    h = 1e-4 * min(1.0, s)
    slope = (line.flow_map(process, x, s, s + h) - line.flow_map(process, x, s, s - h)) / (2 * h)
    velocity = line.denoiser(process)(x, s).velocity
    torch.testing.assert_close(slope, velocity, rtol=2e-4, atol=2e-4)


@pytest.fixture
def normal():
    return exact.Gaussian([1.0, -0.5], [[1.0, 0.6], [0.6, 0.5]])


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: type(p).__name__)
def test_gaussian_map_is_the_flow(normal, process):
    s, t = float(process.time(-1.2)), float(process.time(2.5))
    x = normal.at(process, s).sample(4, seed=1, dtype=F64)
    there = normal.flow_map(process, x, s, t)
    torch.testing.assert_close(there, integrate(normal, process, x, s, t), rtol=0, atol=1e-9)
    middle = float(process.time(0.7))
    through = normal.flow_map(process, normal.flow_map(process, x, s, middle), middle, t)
    torch.testing.assert_close(through, there, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(normal.flow_map(process, there, t, s), x, rtol=1e-12, atol=1e-12)


def test_gaussian_map_at_the_ends_and_by_row(normal):
    z = torch.randn(3, 2, dtype=F64)
    values, basis = torch.linalg.eigh(normal.cov.value)
    root = basis @ torch.diag(values.sqrt()) @ basis.T
    data = normal.flow_map(Flow(), z, 1.0, 0.0)
    torch.testing.assert_close(data, normal.mean.value + z @ root, rtol=1e-12, atol=1e-12)
    s, t = torch.tensor([0.9, 0.5, 0.2], dtype=F64), torch.tensor([0.1, 0.6, 0.0], dtype=F64)
    rows = [normal.flow_map(VP(), z[k : k + 1], float(s[k]), float(t[k])) for k in range(3)]
    torch.testing.assert_close(normal.flow_map(VP(), z, s, t), torch.cat(rows), rtol=1e-12, atol=1e-12)


def test_gaussian_maps_of_every_covariance_kind(make_law, kind):
    law = make_law(kind, components=1)
    x = torch.randn(4, 3, dtype=F64)
    if kind == "woodbury + diagonal":
        with pytest.raises(ConfigError, match="give `covs` as a matrix"):
            law.flow_map(VP(), x, 0.8, 0.1)
        return
    full = exact.Gaussian(law.means.value[0], law.cov)
    torch.testing.assert_close(
        law.flow_map(VP(), x, 0.8, 0.1), full.flow_map(VP(), x, 0.8, 0.1), rtol=1e-10, atol=1e-10
    )


def test_maps_that_do_not_exist(make_law):
    with pytest.raises(ConfigError, match="one dimension only"):
        make_law("full").flow_map(VP(), torch.zeros(1, 3), 0.5, 0.1)
    atoms = exact.GaussianMixture([0.5, 0.5], [[0.0], [1.0]], [0.0, 0.0])
    with pytest.raises(ConfigError, match="point mass"):
        atoms.flow_map(VP(), torch.zeros(1, 1), 0.5, 0.0)


@pytest.fixture
def pair(make_law):
    return exact.Pair(source=make_law("full", components=2, d=2), target=make_law("diagonal", components=3, d=2))


@pytest.mark.parametrize("process", [Flow(), Trig(), EDM(sigma_max=2.0)], ids=lambda p: type(p).__name__)
def test_pair_satisfies_the_continuity_equation(pair, process):
    t, x, h = 0.4, torch.randn(5, 2, dtype=F64), 1e-4

    def density(u, y):
        return pair.log_prob(process, y, u).exp()

    rate = (density(t + h, x) - density(t - h, x)) / (2 * h)
    divergence = torch.zeros(5, dtype=F64)
    for axis in torch.eye(2, dtype=F64):
        ahead, behind = x + h * axis, x - h * axis
        flux = [(pair.velocity(process, y, t) @ axis) * density(t, y) for y in (ahead, behind)]
        divergence += (flux[0] - flux[1]) / (2 * h)
    torch.testing.assert_close(rate, -divergence, rtol=1e-5, atol=1e-7)


def test_pair_against_monte_carlo(pair):
    process, t, n = Flow(), 0.45, 100000
    x0, x1 = pair.sample(n, seed=3, dtype=F64)
    assert (torch.corrcoef(torch.cat([x0, x1], 1).T)[:2, 2:].abs() < 4 / n**0.5).all()
    x, target = (1 - t) * x0 + t * x1, x1 - x0
    for feature in (
        lambda y: torch.ones(len(y), dtype=F64),
        lambda y: y[:, 0].tanh(),
        lambda y: (y[:, 1] > 0.3).double(),
    ):
        miss = feature(x)[:, None] * (target - pair.velocity(process, x, t))
        assert (miss.mean(0).abs() < 4 * miss.std(0) / n**0.5).all()


def test_pair_with_a_normal_source_is_the_one_sided_process(make_law, process):
    law = make_law("full", d=2)
    pair = exact.Pair(source={"kind": "gaussian", "mean": [0.0, 0.0], "cov": 1.0}, target=law)
    t, x = float(process.time(0.3)), torch.randn(4, 2, dtype=F64)
    torch.testing.assert_close(pair.log_prob(process, x, t), law.at(process, t).log_prob(x), rtol=1e-12, atol=1e-12)
    velocity = law.denoiser(process)(x, t).velocity
    torch.testing.assert_close(pair.velocity(process, x, t), velocity, rtol=1e-10, atol=1e-10)
    times = process.time(torch.tensor([0.3, 1.0, -0.5, 0.3], dtype=F64))
    torch.testing.assert_close(pair.velocity(process, x, times)[3], velocity[3], rtol=1e-12, atol=1e-12)
