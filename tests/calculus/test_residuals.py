"""Equations of motion: residuals vanish on the exact marginals, and the forms misprinted in the texts do not."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fokker import exact, noise
from fokker.calculus import (
    Hutchinson,
    continuity_residual,
    current_velocity,
    density_rate,
    divergence,
    fokker_planck_residual,
    generator,
    gradient,
    heat_kernel,
    jacobian,
    laplacian,
    score_residual,
)
from fokker.errors import ConfigError
from fokker.process import EDM, VE, VP, Flow, Process, Trig

F64 = torch.float64
LAW = exact.GaussianMixture(
    [0.4, 0.6], [[-1.0, 0.5], [1.0, -0.3]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]]
)
LINE = exact.GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [0.16, 0.36])
PROCESSES = [VP(), VE(), EDM(), Flow(), Trig()]
VPS = VP()


def column(c: Tensor) -> Tensor:
    return c[..., None] if c.ndim else c


class View:
    """A law in a process: its density, score, drift, noise and velocity as fields of (x, t)."""

    def __init__(self, law: exact.Law, process: Process) -> None:
        self.law, self.process, denoiser = law, process, law.denoiser(process)
        self.log_prob = lambda x, t: law.at(process, t).log_prob(x)
        self.score = lambda x, t: law.at(process, t).score(x)
        self.drift = lambda x, t: column(process.f(t)) * x
        self.noise = lambda x, t: process.g2(t).sqrt()
        self.velocity = lambda x, t: denoiser(x, t).velocity
        self.x0 = lambda x, t: denoiser(x, t).x0

    def points(self, t: float | Tensor, n: int = 5, dtype: torch.dtype = F64) -> Tensor:
        return self.law.at(self.process, t).sample(n, dtype=dtype)


VIEW = View(LAW, VPS)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("t", [0.4, torch.linspace(0.2, 0.7, 5, dtype=F64)], ids=["one time", "a time a row"])
def test_strong_residuals_vanish_on_exact_marginals(process: Process, t: float | Tensor) -> None:
    view = View(LAW, process)
    x = view.points(t)
    scale = view.log_prob(x, t).abs().max() + process.g2(t).abs().max()
    wrong = lambda x, t: view.drift(x, t) - column(process.g2(t)) * view.score(x, t)  # noqa: E731
    assert continuity_residual(view.log_prob, view.velocity, x, t).value.abs().max() < 1e-11 * scale
    assert continuity_residual(view.log_prob, wrong, x, t).value.abs().max() > 0.1
    assert fokker_planck_residual(view.log_prob, view.drift, view.noise, x, t).value.abs().max() < 1e-11 * scale
    torch.testing.assert_close(
        current_velocity(view.score, view.drift, view.noise, x, t), view.velocity(x, t), rtol=1e-9, atol=1e-10
    )
    assert score_residual(view.score, view.drift, view.noise, x, t).abs().max() < 1e-10 * scale
    louder = lambda x, t: 1.1 * view.noise(x, t)  # noqa: E731
    assert score_residual(view.score, view.drift, louder, x, t).abs().max() > 1e-2


def test_single_precision_and_probes() -> None:
    x = VIEW.points(0.4, 4000)
    single = fokker_planck_residual(VIEW.log_prob, VIEW.drift, VIEW.noise, x[:5].float(), 0.4)
    assert single.value.dtype == torch.float32 and single.value.abs().max() < 1e-4
    value, stderr = fokker_planck_residual(VIEW.log_prob, VIEW.drift, VIEW.noise, x, 0.4, probes=Hutchinson(8))
    assert (stderr > 0).any() and abs(value.mean()) < 4 * value.std() / math.sqrt(4000)
    assert abs(value.square().mean() / stderr.square().mean() - 1) < 0.15
    held = Hutchinson(2, "gaussian").draw(torch.arange(4000), (2,), F64)
    rough = score_residual(VIEW.score, VIEW.drift, VIEW.noise, x, 0.4, probes=held)
    assert rough.abs().max() > 0.1 and (rough.mean(0).abs() < 4 * rough.std(0) / math.sqrt(4000)).all()


def test_gauge_fields_change_nothing() -> None:
    x = VIEW.points(0.3)
    turn = torch.tensor([[0.0, 3.0], [-3.0, 0.0]], dtype=F64)
    for matrix, small in ((turn, True), (turn.abs(), False)):
        other = lambda x, t, m=matrix: VIEW.velocity(x, t) + VIEW.score(x, t) @ m.mT  # noqa: E731
        residual = continuity_residual(VIEW.log_prob, other, x, 0.3).value.abs().max()
        assert residual < 1e-11 if small else residual > 1.0


def test_any_amount_of_noise_keeps_the_marginals() -> None:
    """Seed 003: drift v + eta^2 s / 2 + grad(eta^2) / 2 for eta(x, t); gamma of book Prop. 6.4.1 is eta(t)."""
    eta2 = lambda x, t: 0.8 + 0.3 * x[:, 0].sin() + t  # noqa: E731
    t = torch.full((5,), 0.3, dtype=F64)
    x = VIEW.points(t)

    def drift(x: Tensor, t: Tensor, push: float = 0.5) -> Tensor:
        slope = torch.stack([0.3 * x[:, 0].cos(), 0 * x[:, 0]], 1)
        return VIEW.velocity(x, t) + 0.5 * eta2(x, t)[:, None] * VIEW.score(x, t) + push * slope

    amount = lambda x, t: eta2(x, t).sqrt()  # noqa: E731
    assert fokker_planck_residual(VIEW.log_prob, drift, amount, x, t).value.abs().max() < 1e-11
    without = lambda x, t: drift(x, t, 0.0)  # noqa: E731
    assert fokker_planck_residual(VIEW.log_prob, without, amount, x, t).value.abs().max() > 1e-2


def test_reverse_clock_signs() -> None:
    """Book errata: E7 (line 4374), D.2.5 (lines 10376, 10394), seed 003 line 291."""
    t, gamma2 = 0.3, 0.7
    x, s = VIEW.points(t), VIEW.score
    backward = lambda x, t: VIEW.velocity(x, t) - 0.5 * gamma2 * s(x, t)  # noqa: E731
    carried = continuity_residual(VIEW.log_prob, backward, x, t).value
    spread = 0.5 * gamma2 * (LAW.at(VPS, t).laplacian(x) + s(x, t).square().sum(1))
    assert (carried + spread).abs().max() < 1e-11  # d_t p = -div(b p) - gamma^2 / 2 Lap p
    assert (carried - spread).abs().max() > 1.0  # printed: +, which adds up to gamma^2 Lap p

    # On the reversed clock u = T - t the same law solves a forward equation of drift -v + g^2 s / 2, noise g.
    density = lambda y, u: VIEW.log_prob(y, 1.0 - u)  # noqa: E731
    amount = lambda y, u: VIEW.noise(y, 1.0 - u)  # noqa: E731

    def drift(sign: float) -> Callable[..., Tensor]:
        def field(y: Tensor, u: float | Tensor) -> Tensor:
            half = 0.5 * VPS.g2(1.0 - u) * s(y, 1.0 - u)
            return -sign * VIEW.velocity(y, 1.0 - u) + sign * half

        return field

    assert fokker_planck_residual(density, drift(1.0), amount, x, 1.0 - t).value.abs().max() < 1e-10
    assert fokker_planck_residual(density, drift(-1.0), amount, x, 1.0 - t).value.abs().max() > 1.0


def test_matrix_noise_is_not_isotropic_noise() -> None:
    """Seed 003, Thm 2.1 "most general form": (1/2)|G|^2 Lap p is right for isotropic noise only."""
    G = torch.tensor([[1.0, 0.0], [0.8, 0.3]], dtype=F64)

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        cov = torch.eye(2, dtype=F64) + t * G @ G.mT
        quad = (x * torch.linalg.solve(cov, x.mT).mT).sum(1)
        return -0.5 * (quad + torch.linalg.slogdet(cov)[1] + 2 * math.log(2 * math.pi))

    x, still = torch.tensor([[0.3, -0.4]], dtype=F64), lambda x, t: torch.zeros_like(x)
    assert fokker_planck_residual(log_prob, still, G, x, 0.5).value.abs().max() < 1e-14
    p = log_prob(x, torch.tensor(0.5)).exp()
    score = lambda x, t: gradient(log_prob, x, t)  # noqa: E731
    assert abs(p * density_rate(score, still, G, x, torch.tensor(0.5)).value + 0.0487864) < 5e-8
    isotropic = density_rate(score, still, G.norm(), x, torch.tensor(0.5)).value
    assert abs(p * isotropic + 0.1137) < 5e-5


def test_matrix_noise_that_varies_in_space() -> None:
    """Against -div(f p) + 1/2 sum d_i d_j (D_ij p) by nested derivatives of the density itself."""
    x, t = VIEW.points(0.3), 0.3
    drift = lambda x, t: torch.stack([x[:, 1].sin(), x[:, 0] * x[:, 1]], 1)  # noqa: E731

    def amount(x: Tensor, t: float) -> Tensor:
        one = torch.ones_like(x[:, 0])
        rows = [[1 + 0.3 * x[:, 1].sin(), 0.2 * x[:, 0], 0.1 * one], [0.5 * x[:, 0], 0.8 * one, x[:, 1].cos()]]
        return torch.stack([torch.stack(row, 1) for row in rows], 1)

    def printed(i: int, j: int) -> Callable[[Tensor], Tensor]:
        def product(row: Tensor) -> Tensor:
            G = amount(row[None], t)[0]
            return (G @ G.mT)[i, j] * VIEW.log_prob(row[None], t)[0].exp()

        return product

    def truth(row: Tensor) -> Tensor:
        carried = lambda r: drift(r[None], t)[0] * VIEW.log_prob(r[None], t)[0].exp()  # noqa: E731
        second = sum(torch.func.hessian(printed(i, j))(row)[i, j] for i in (0, 1) for j in (0, 1))
        return -torch.func.jacrev(carried)(row).trace() + 0.5 * second

    wanted = torch.stack([truth(row) for row in x])
    rate = density_rate(VIEW.score, drift, amount, x, t).value
    torch.testing.assert_close(rate * VIEW.log_prob(x, t).exp(), wanted, rtol=1e-10, atol=1e-12)

    # The generator of the same equation is its adjoint: int L(h) p = int h d_t p, here on a grid that holds p whole.
    axis = torch.linspace(-7, 7, 121, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    p, h = VIEW.log_prob(grid, t).exp(), lambda x: torch.cos(x[:, 0] - 0.5 * x[:, 1])
    still = lambda x: drift(x, t)  # noqa: E731
    left = (generator(h, still, lambda x: amount(x, t), grid).value * p).sum()
    right = (h(grid) * density_rate(VIEW.score, drift, amount, grid, t).value * p).sum()
    assert abs(left - right) < 1e-9 * abs(left)


def test_weak_form_by_quadrature() -> None:
    """Book lines 9787 and 9791 as printed fail: int Lap(phi) p = + int phi Lap p, and E[d phi] is not 0."""
    axis, t = torch.linspace(-12, 12, 1201, dtype=F64)[:, None], 0.25
    view = View(LINE, VPS)
    p, h = view.log_prob(axis, t).exp(), 0.02
    phi = lambda x: (-0.5 * (x[:, 0] - 0.3) ** 2).exp()  # noqa: E731
    lap_p = laplacian(lambda x: view.log_prob(x, t).exp(), axis).value
    left, right = (laplacian(phi, axis).value * p).sum() * h, (phi(axis) * lap_p).sum() * h
    assert abs(left - right) < 1e-12 and abs(left + right) > 1e-2
    field = lambda x: x**2 * view.log_prob(x, t).exp()[:, None]  # noqa: E731
    turned = (gradient(phi, axis) * field(axis)).sum() * h  # <grad u, v> = -<u, div v> (seed 003, Thm 1.3)
    assert abs(turned + (phi(axis) * divergence(field, axis).value).sum() * h) < 1e-12 and abs(turned) > 1e-2
    rate = density_rate(view.score, view.drift, view.noise, axis, t).value
    change = (phi(axis) * p * rate).sum() * h  # d/dt E[phi], not 0
    assert abs(change) > 1e-3
    here = lambda x: view.drift(x, t)  # noqa: E731
    expected = (generator(phi, here, float(VPS.g2(t).sqrt()), axis).value * p).sum() * h
    assert abs(change - expected) < 1e-11


def test_generator_by_hand() -> None:
    x, t, beta = VIEW.points(0.4), 0.4, float(VPS.g2(0.4))
    square = lambda x, t: x.square().sum(1)  # noqa: E731
    value = generator(square, VIEW.drift, VIEW.noise, x, t).value
    torch.testing.assert_close(value, -beta * x.square().sum(1) + 2 * beta)
    torch.testing.assert_close(generator(square, VIEW.drift, 0.0, x, t).value, -beta * x.square().sum(1))
    moving = lambda x, t: torch.stack([t**3 * x[:, 0], x[:, 0] * x[:, 1] * t], 1)  # noqa: E731
    G = torch.tensor([[1.0, 0.5, 0.2], [0.3, -0.4, 0.7]], dtype=F64)
    drift = torch.tensor([0.5, -2.0], dtype=F64)
    value = generator(moving, lambda x, t: drift.expand_as(x), G, x, t).value
    wanted = torch.stack(
        [
            3 * t**2 * x[:, 0] + t**3 * 0.5,
            x[:, 0] * x[:, 1] + t * (0.5 * x[:, 1] - 2 * x[:, 0]) + t * (G @ G.mT)[0, 1],
        ],
        1,
    )
    torch.testing.assert_close(value, wanted)
    many = generator(moving, VIEW.drift, G, x, t, probes=Hutchinson(20_000, "gaussian"))
    exactly = generator(moving, VIEW.drift, G, x, t).value
    assert ((many.value - exactly).abs() <= 4 * many.stderr).all()
    assert (many.stderr[:, 1] > 1e-4).all()
    x = VIEW.points(0.4, 2000)
    value, stderr = generator(moving, VIEW.drift, G, x, t, probes=Hutchinson(16, "gaussian", seed=1))
    miss = value - generator(moving, VIEW.drift, G, x, t).value
    assert abs(miss[:, 1].square().mean() / stderr[:, 1].square().mean() - 1) < 0.1


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: type(p).__name__)
def test_the_denoiser_is_a_martingale_of_the_reverse_sde(process: Process) -> None:
    """On u = T - t its generator vanishes; with the drift of the ODE (or no second order) it does not."""
    view = View(LAW, process)
    t, T = 0.4, process.T
    x = view.points(t)
    x0 = lambda y, u: view.x0(y, T - u)  # noqa: E731
    amount = lambda y, u: view.noise(y, T - u)  # noqa: E731
    drift = lambda y, u: -view.drift(y, T - u) + process.g2(T - u) * view.score(y, T - u)  # noqa: E731
    assert generator(x0, drift, amount, x, T - t).value.abs().max() < 1e-10
    assert generator(x0, drift, 0.0, x, T - t).value.abs().max() > 1e-3
    flow = lambda y, u: -view.velocity(y, T - u)  # noqa: E731
    assert generator(x0, flow, amount, x, T - t).value.abs().max() > 1e-3


def test_instantaneous_change_of_variables_is_a_total_derivative() -> None:
    """Book Eq. 5.1.9 prints d/dt at fixed z."""
    x, t = VIEW.points(0.3), torch.tensor(0.3, dtype=F64)
    spreading = divergence(VIEW.velocity, x, t).value
    partial = torch.func.jvp(lambda t: VIEW.log_prob(x, t), (t,), (torch.ones_like(t),))[1]
    inputs, moves = (x, t), (VIEW.velocity(x, t), torch.ones_like(t))
    total = torch.func.jvp(VIEW.log_prob, inputs, moves)[1]
    assert (total + spreading).abs().max() < 1e-12
    assert (partial + spreading).abs().max() > 0.1
    # and its discrete root: log det(1 + h J) = h div v + O(h^2), slope 2
    J = jacobian(VIEW.velocity, x, t)
    misses = [
        (torch.linalg.slogdet(torch.eye(2, dtype=F64) + h * J)[1] - h * spreading).abs().max() for h in (0.01, 0.005)
    ]
    assert 1.9 < math.log2(misses[0] / misses[1]) < 2.1


def test_pushed_forward_by_the_flow_and_not_by_its_inverse() -> None:
    """Book lines 9410 and 9490 print delta(x - Psi_{t->0}(x_0)); Psi_{0->t} x = 2 x at t = log 2."""
    start = lambda x: -0.5 * x.square().sum(1) - 0.5 * math.log(2 * math.pi)  # noqa: E731
    right = lambda x, t: start(x * torch.as_tensor(-t).exp()) - t  # noqa: E731
    printed = lambda x, t: start(x * torch.as_tensor(t).exp()) + t  # noqa: E731
    x, t, field = torch.tensor([[0.7]], dtype=F64), math.log(2.0), lambda x, t: x
    assert abs(right(x, t).exp() - 0.18762) < 5e-6
    assert continuity_residual(right, field, x, t).value.abs() < 1e-14
    assert continuity_residual(printed, field, x, t).value.abs() > 0.5


def test_heat_kernel_has_variance_2t() -> None:
    """Seed 004, S-E1: the printed kernel of variance t solves d_t u = Lap u / 2; S-E2: heat alone only spreads."""
    x = noise.normal(3, torch.arange(4), (3,), dtype=F64)
    t = torch.tensor(0.7, dtype=F64)
    printed = lambda x, t: heat_kernel(x, 0.5 * t)  # noqa: E731
    for kernel, diffusivity in ((heat_kernel, 1.0), (printed, 0.5)):
        slope = torch.func.jvp(lambda t: kernel(x, t), (t,), (torch.ones_like(t),))[1]  # noqa: B023
        lap = laplacian(kernel, x, t).value
        torch.testing.assert_close(slope, diffusivity * lap)
        assert (slope - 1.5 * diffusivity * lap).abs().min() > 1e-4
    torch.testing.assert_close(heat_kernel(x, t, log=True).exp(), heat_kernel(x, t))
    line = torch.linspace(-20, 20, 2001, dtype=F64)[:, None]
    for time in (0.5, 2.0):
        u = heat_kernel(line, time) * 0.02
        assert abs(u.sum() - 1) < 1e-12 and abs((u * line[:, 0] ** 2).sum() - 2 * time) < 1e-9
    still = lambda x, t: torch.zeros_like(x)  # noqa: E731
    log_kernel = lambda x, t: heat_kernel(x, t, log=True)  # noqa: E731
    assert fokker_planck_residual(log_kernel, still, math.sqrt(2.0), x, 0.7).value.abs().max() < 1e-13
    batch = heat_kernel(x, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64))
    torch.testing.assert_close(batch[2], heat_kernel(x[2:3], 0.3)[0])


def test_one_step_kernel_approaches_the_right_side_with_slope_1() -> None:
    """(int N(x; u + f u dt, g^2 dt) p(u) du - p(x)) / dt -> -div(f p) + g^2 / 2 Lap p (book Sec. 4.5.1)."""
    view, t = View(LINE, VPS), 0.25
    u = torch.linspace(-9, 9, 6001, dtype=F64)[:, None]
    x = torch.linspace(-4, 4, 161, dtype=F64)[:, None]
    p = view.log_prob(u, t).exp() * 0.003
    right = density_rate(view.score, view.drift, view.noise, x, t).value * view.log_prob(x, t).exp()
    misses = []
    for dt in (0.02, 0.01, 0.005, 0.0025):
        spread = (x - (1 + VPS.f(t) * dt) * u.mT).square() / (2 * VPS.g2(t) * dt)
        pushed = ((-spread).exp() * p / (2 * math.pi * VPS.g2(t) * dt).sqrt()).sum(1)
        misses.append(((pushed - view.log_prob(x, t).exp()) / dt - right).abs().max().item())
    slopes = [math.log2(a / b) for a, b in pairwise(misses)]
    assert misses == pytest.approx([0.0503, 0.0260, 0.0132, 0.0067], rel=1e-2)  # the text's, on its own points
    assert 0.95 < slopes[0] < slopes[1] < slopes[2] < 1.0


@pytest.mark.parametrize("shape", [(3,), (3, 2), (1, 2, 2), (5, 3, 1)])
def test_noise_of_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"noise: given shape \(.*must be a number, \(2, m\)"):
        fokker_planck_residual(VIEW.log_prob, VIEW.drift, lambda x, t: torch.ones(shape), VIEW.points(0.3), 0.3)
    with pytest.raises(ConfigError, match=r"must be a number, \(2, m\)$"):
        generator(lambda x: x, lambda x: x, torch.ones(5), VIEW.points(0.3))
