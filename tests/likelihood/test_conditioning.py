"""The conditioning trick, three times: regression on the marginal's unknown target (reverse kernel, score, velocity)
is regression on the target given x_0, up to a constant that no model changes and that has a closed form.

Everything by quadrature in float64: no sampling. Sources: book Thm 2.2.1, Thm 3.3.1, Eq. 5.2.9 and Sec. 6.1.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker.exact import Law
from fokker.process import Process

F64 = torch.float64
GAUSSIAN = fk.exact.Gaussian([0.7], [0.25])
MIXTURE = fk.exact.GaussianMixture([0.3, 0.7], [[-1.2], [1.0]], [[0.09], [0.16]])
LAWS = {"gaussian": GAUSSIAN, "mixture": MIXTURE}
PROCESSES = {"vp": fk.VP(), "flow": fk.Flow(), "edm": fk.EDM(), "ddpm": fk.DiscreteVP(steps=10)}
LOG_2PI = math.log(2.0 * math.pi)


class Plane:
    """A grid of (x_0, x_s) with the weights of their joint law: E f = sum weights f(x0, x)."""

    def __init__(self, law: Law, process: Process, s: float, reach: float = 5.0) -> None:
        self.law, self.process, self.s = law, process, s
        x0 = torch.linspace(-reach, reach, 401, dtype=F64)
        eps = torch.linspace(-7.5, 7.5, 121, dtype=F64)
        p0 = law.log_prob(x0[:, None]).exp() * (x0[1] - x0[0])
        p_eps = (-0.5 * eps**2).exp()
        self.weights = torch.outer(p0, p_eps / p_eps.sum()).flatten()
        self.x0 = x0[:, None].expand(-1, len(eps)).reshape(-1, 1)
        self.eps = eps.expand(len(x0), -1).reshape(-1, 1)
        self.x = process.perturb(self.x0, s, self.eps)
        assert float(self.weights.sum()) == pytest.approx(1.0, abs=1e-11)

    def mean(self, f: Tensor) -> Tensor:
        return (self.weights * f.reshape(-1)).sum()


def models() -> list[tuple[list[Tensor], Callable[[Tensor], Tensor]]]:
    """Wrong models of any target: (parameters, x -> value)."""
    a, b, c = (torch.tensor(value, dtype=F64, requires_grad=True) for value in (0.4, -0.3, 0.8))
    return [
        ([a, b], lambda x: a * x + b),
        ([a, c], lambda x: a * (c * x).sin()),
        ([b, c], lambda x: torch.tanh(x) * c + b * x**2),
    ]


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[float]:
    return [float(g) for g in torch.autograd.grad(loss, parameters, retain_graph=True)]


def regressions(plane: Plane, marginal: Tensor, conditional: Tensor, constant: float) -> None:
    """E|m - marginal|^2 = E|m - conditional|^2 + constant for every model, with equal gradients."""
    seen = []
    for parameters, model in models():
        value = model(plane.x)
        known, trick = (plane.mean((value - target).square()) for target in (marginal, conditional))
        assert float(known - trick) == pytest.approx(constant, abs=1e-9)
        assert gradients(known, parameters) == pytest.approx(gradients(trick, parameters), abs=1e-9)
        assert min(abs(g) for g in gradients(known, parameters)) > 1e-3
        seen.append(float(known))
    assert constant < -1e-3 and max(seen) > 1.05 * min(seen)  # the models differ, the constant does not
    # The marginal target itself is the minimiser, and what is left of the trick's loss there is minus the constant.
    floor = plane.mean((marginal - conditional).square())
    assert float(floor) == pytest.approx(-constant, abs=1e-9)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_score(name: str, process: Process) -> None:
    """Thm 3.3.1: C = E|s*|^2 - E|eps / sigma|^2 = E s*^2 - 1 / sigma^2, which is -E Var[score given x_0 | x]."""
    law, s = LAWS[name], 0.5 * process.T if process.T == 1.0 else 0.6
    plane, alpha, sigma = Plane(law, process, s), float(process.alpha(s)), float(process.sigma(s))
    score = law.denoiser(process)(plane.x, s).score
    constant = float(plane.mean(score.square())) - 1.0 / sigma**2
    regressions(plane, score, -plane.eps / sigma, constant)
    if law is GAUSSIAN:  # the printed check: 1 / V - 1 / sigma^2 (its losses carry 1/2)
        assert constant == pytest.approx(1.0 / (alpha**2 * 0.25 + sigma**2) - 1.0 / sigma**2, abs=1e-10)
    spread = law.at(process, s).posterior(plane.x).cov[:, 0, 0]
    assert constant == pytest.approx(-((alpha / sigma**2) ** 2) * float(plane.mean(spread)), abs=1e-9)


def test_the_printed_number_of_the_score() -> None:
    """v = .5, sigma = .3: C = 1/2 / (v + sigma^2) - 1/2 / sigma^2 = -4.7081."""
    process = fk.EDM()
    plane = Plane(fk.exact.Gaussian([0.0], [0.5]), process, 0.3)
    score = fk.exact.Gaussian([0.0], [0.5]).denoiser(process)(plane.x, 0.3).score
    gap = 0.5 * plane.mean(score.square() - (plane.eps / 0.3).square())
    assert float(gap) == pytest.approx(-4.7081, abs=5e-5)


def test_the_measured_number_of_the_score() -> None:
    """Sec. 4.2.1: L_SM - L_DSM of Chapter 4's mixture under VP at t = .25, -.5578 for every model (sampled: -.5582)."""
    law, process = fk.exact.GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [0.16, 0.36]), fk.VP()
    plane, sigma = Plane(law, process, 0.25, 7.0), float(process.sigma(0.25))
    score = law.denoiser(process)(plane.x, 0.25).score
    constant = float(plane.mean(score.square())) - 1.0 / sigma**2
    assert 0.5 * constant == pytest.approx(-0.55784, abs=5e-6)
    regressions(plane, score, -plane.eps / sigma, constant)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_velocity(name: str, process: Process) -> None:
    """Flow matching, Eq. 5.2.9: the target given x_0 is alpha' x_0 + sigma' eps, C = -(alpha' - alpha sigma'/sigma)^2
    E Var[x_0 | x]."""
    law, s = LAWS[name], 0.5 * process.T if process.T == 1.0 else 0.6
    plane = Plane(law, process, s)
    alpha, sigma, d_alpha, d_sigma = (
        float(f(s)) for f in (process.alpha, process.sigma, process.d_alpha, process.d_sigma)
    )
    velocity = law.denoiser(process)(plane.x, s).velocity
    spread = law.at(process, s).posterior(plane.x).cov[:, 0, 0]
    constant = -((d_alpha - alpha * d_sigma / sigma) ** 2) * float(plane.mean(spread))
    given = d_alpha * plane.x0 + d_sigma * plane.eps
    on_path = d_sigma / sigma * (plane.x - alpha * plane.x0) + d_alpha * plane.x0
    assert (given - on_path).abs().max() < 1e-11
    regressions(plane, velocity, given, constant)
    if law is GAUSSIAN and isinstance(process, fk.Flow):  # the variance left, s^2 / ((1-t)^2 s^2 + t^2)
        assert -constant == pytest.approx(0.25 / ((1 - s) ** 2 * 0.25 + s**2), abs=1e-9)


def kl_losses(plane: Plane, t: float, mean: Callable[[Tensor], Tensor], std: Tensor) -> tuple[Tensor, Tensor]:
    """(E KL(p(x_t|x_s) || N(mean, std^2)), the same of p(x_t|x_s, x_0)), the first by quadrature over x_s and x_t."""
    process, s = plane.process, plane.s
    posterior = process.posterior(plane.x, plane.x0, s, t)
    c2 = posterior.std.square()
    off = posterior.mean - mean(plane.x)
    conditional = plane.mean(0.5 * ((c2 + off.square()) / std.square() - 1.0 - (c2 / std.square()).log()))
    at = plane.law.at(process, s)
    x = (at.mean + 8.0 * at.cov[0].sqrt() * torch.linspace(-1.0, 1.0, 161, dtype=F64))[:, None]
    p = at.log_prob(x).exp() * (x[1, 0] - x[0, 0])
    kernel = at.reverse(x, t)
    z = torch.linspace(-9.0, 9.0, 181, dtype=F64)
    y = kernel.mean + kernel.cov[:, 0].sqrt() * z
    log_p = at.reverse(x.repeat_interleave(len(z), 0), t).log_prob(y.reshape(-1, 1)).reshape(y.shape)
    mass = p[:, None] * log_p.exp() * kernel.cov[:, 0].sqrt() * (z[1] - z[0])
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-7)
    log_q = -0.5 * ((y - mean(x)) / std).square() - std.log() - 0.5 * LOG_2PI
    return (mass * (log_p - log_q)).sum(), conditional


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize(("process", "s", "t"), [(fk.VP(), 0.5, 0.35), (fk.DiscreteVP(steps=10), 0.4, 0.3)])
def test_the_reverse_kernel(name: str, process: Process, s: float, t: float) -> None:
    """Thm 2.2.1: C = -I(x_t; x_0 | x_s), the entropy of x_t | x_s less that of x_t | x_s, x_0."""
    law = LAWS[name]
    plane, c = Plane(law, process, s), process.bridge(s, t).std
    # I by entropies: -E log p(x_t | x_s) by another quadrature, over (x_s, x_0, x_t | both).
    h = torch.linspace(-8.0, 8.0, 65, dtype=F64)
    w = (-0.5 * h**2).exp() / (-0.5 * h**2).exp().sum()
    few = Plane(law, process, s)
    keep = few.weights > 1e-13
    x, x0, weights = few.x[keep][::3], few.x0[keep][::3], few.weights[keep][::3]
    where = process.posterior(x, x0, s, t).mean
    entropy = torch.zeros((), dtype=F64)
    for node, weight in zip(h.tolist(), w.tolist(), strict=True):
        entropy -= (
            weight * (weights * law.at(process, s).reverse(x, t).log_prob(where + c * node)).sum() / weights.sum()
        )
    information = float(entropy) - 0.5 * (1.0 + LOG_2PI + 2.0 * float(c.log()))
    if law is GAUSSIAN:  # 1/2 log(q / c^2), q the true kernel's variance
        q = float(law.at(process, s).reverse(plane.x[:1], t).cov)
        assert information == pytest.approx(0.5 * math.log(q / float(c) ** 2), abs=1e-9)
    for parameters, model in models():
        std = torch.tensor(0.2, dtype=F64, requires_grad=True)
        known, trick = kl_losses(plane, t, lambda x, model=model: model(x) + 0.5 * x, std)  # type: ignore[misc]
        assert float(trick - known) == pytest.approx(information, abs=2e-7)
        both = [gradients(loss, [*parameters, std]) for loss in (known, trick)]
        assert both[0] == pytest.approx(both[1], rel=1e-6, abs=1e-7)
    assert information > 1e-2


def test_a_fixed_variance_projects() -> None:
    """With DDPM's variance the minimiser is the kernel's mean, not the kernel, and the loss around it a square."""
    process, s, t = fk.DiscreteVP(steps=10), 0.4, 0.3
    plane = Plane(MIXTURE, process, s)
    denoiser, c = MIXTURE.denoiser(process), process.bridge(s, t).std

    def mean(x: Tensor) -> Tensor:
        return process.posterior(x, denoiser(x, s).x0, s, t).mean

    known, trick = kl_losses(plane, t, mean, c)
    wrong = kl_losses(plane, t, lambda x: mean(x) + 0.1, c)
    assert float(known) > 1e-3  # no Gaussian of this variance is the kernel
    assert float(wrong[0] - known) == pytest.approx(float(wrong[1] - trick), abs=1e-9)
    assert float(wrong[1] - trick) == pytest.approx(0.5 * (0.1 / float(c)) ** 2, abs=1e-9)
