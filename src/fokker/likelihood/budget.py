r"""An error budget: what the prior, the score and the steps of a stochastic sampler each cost, on exact laws.

A chain x_T = x_{t_0} -> ... -> x_{t_N} draws x_{t_0} from the prior and every x_t from N(mu(x_s), c^2 I), mu affine in
the denoiser's prediction. Against the noised law's own reversal p(x_t | x_s), whose mean is a x_s + b E[x_0 | x_s],

    (1)  KL(p_{t_N} || chain) <= KL(path || chain's path) = prior + score + discretisation
    (2)  prior          = KL(p_{t_0} || prior)
    (3)  score          = sum_steps E|mu - mu*|^2 / (2 c^2),          mu* the same step with the exact denoiser
    (4)  discretisation = the rest: with the exact denoiser sum_steps E KL(p(x_t | x_s) || N(mu*, c^2 I))

(3) tends to Girsanov's 1/2 E int g^2 |s_model - s|^2 dt (`path_kl`, book Eq. C.2.1) and (4) to 0 as the steps shrink.
For `Ancestral` mu* is the reversal's mean, so that (4) does not depend on the model, and with DDPM's small variance

    (5)  score = sum 1/2 (SNR_t - SNR_s) E|x0_hat - x0*|^2,
         discretisation = sum 1/2 (SNR_t - SNR_s) mmse(s) - (I(x_0; x_{t_N}) - I(x_0; x_{t_0})),

the left Riemann sum of dI = 1/2 mmse d SNR less its integral. The entropies in (2) and (4) are estimated less their
quadratic part, whose mean is known, so that Gaussian laws have no error from them.
Sources: book Sec. C.2.1; De Bortoli et al. 2021, Chen et al. 2023 (such budgets as bounds); Guo et al. 2005 (I-MMSE).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import noise
from ..calculus import Estimate
from ..denoiser import innermost
from ..errors import ConfigError
from ..exact import Law
from ..prediction import Denoiser, Prediction
from ..process import Process
from ..registry import build
from ..sampling import device_of, encoding_times
from ..solvers import Grid, Solver, Step
from ..solvers.plan import Reg, X

__all__ = ["Budget", "error_budget"]

Z: Reg = ("z", 0)


@dataclass(frozen=True)
class Budget:
    """What `error_budget` gives, in nats: estimates over n samples of the law, with their standard errors.

    Attributes:
        prior, score, discretisation: Eq. (2) to (4).
        total: their sum, the divergence of the paths: never below KL(p_{t_N} || what the chain draws).
    """

    prior: Estimate
    score: Estimate
    discretisation: Estimate
    total: Estimate


class Move(NamedTuple):
    """A step as a Gaussian: x_t = on_x x_s + on_m (p x_s + q reading) + std z."""

    on_x: float
    on_m: float
    std: float
    reading: str
    p: float
    q: float

    def mean(self, prediction: Prediction) -> Tensor:
        """Of x_t, in float64."""
        x = prediction.x.double()
        return (self.on_x + self.on_m * self.p) * x + self.on_m * self.q * prediction.read(self.reading).double()


def _move(solver: Solver, step: Step) -> Move:
    """A plan's step as a `Move`. Raises ConfigError for one that is no Gaussian of its start with one evaluation."""
    out = dict(step.out)
    stage = step.stages[0] if len(step.stages) == 1 else None
    if stage is not None and stage.time == step.start and stage.terms == ((X, 1.0),) and step.end > 0.0:
        evaluated: Reg = ("m", stage.keep or 0)
        numbers = [out.get(register, 0.0) for register in (X, evaluated, Z)]
        plain = [c for c in (*numbers, *stage.affine) if isinstance(c, float)]
        if len(plain) == 5 and set(out) <= {X, evaluated, Z} and plain[2] > 0.0:
            return Move(plain[0], plain[1], plain[2], stage.reading, plain[3], plain[4])
    raise ConfigError(
        f"solver: the step of {solver} from {step.start:g} to {step.end:g} is no Gaussian with one evaluation at its "
        "start, so that its paths have no divergence: give Ancestral() or EulerMaruyama(), and a last time above 0"
    )


@torch.no_grad()
def error_budget(
    law: Law,
    denoiser: Denoiser,
    *,
    solver: Solver | str | dict[str, Any] = "ancestral",
    steps: int | None = None,
    grid: Grid | str | dict[str, Any] | Tensor | Sequence[float] | None = None,
    n: int = 1024,
    seed: int = 0,
) -> Budget:
    """Prior, score and discretisation errors of sampling `law` by `denoiser` and a stochastic solver, Eq. (1) to (4).

    Args:
        law: the truth, from `fokker.exact`.
        denoiser: what the sampler asks; unconditional.
        solver: one that evaluates once a step and draws: Ancestral(), EulerMaruyama(), a kind's name.
        steps, grid: the chain's times, as in `sample(..., final="t_min")`; the last one must be above 0.
        n: samples of the law, each taken to every time.
        seed: key of the samples and their noise.

    Raises:
        ConfigError: another event's shape, a solver of another sort, a last time of 0, n < 2.
    """
    if tuple(denoiser.shape) != tuple(law.shape):
        raise ConfigError(f"denoiser: of events {tuple(denoiser.shape)}, must be those of the law, {tuple(law.shape)}")
    if n < 2:
        raise ConfigError(f"n: given {n}, must be 2 or more")
    chosen: Solver = build("solver", solver)
    process, device, truth = denoiser.process, device_of(denoiser), law.denoiser(denoiser.process)
    times = encoding_times(denoiser, solver=chosen, steps=steps, grid=grid).flip(0)
    moves = [_move(chosen, step) for step in chosen.plan(process, times).steps]
    index, d = torch.arange(n, device=device), math.prod(law.shape)
    x0 = law.sample(n, seed, device=device, dtype=torch.float64)
    weights = innermost(denoiser)
    parameter = next(weights.parameters(), x0) if isinstance(weights, nn.Module) else x0
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    prior, score, rest = (torch.zeros(n, dtype=torch.float64, device=device) for _ in range(3))
    for k, (s, t) in enumerate(pairwise(times.tolist())):
        x = process.perturb(x0, s, noise.normal(seed, index, law.shape, draw=k, domain="probe", dtype=torch.float64))
        if k == 0:
            prior = _cross_entropy(law, process, s) - _entropy(law, process, s, x)
            rest = _entropy(law, process, s, x)
        best, mine = truth(x, s), denoiser(x.to(dtype), s)
        move, small = moves[k], process.bridge(s, t)
        ideal, drawn = move.mean(best), move.mean(mine)
        away = small.on_x * x + small.on_x0 * best.x0 - drawn
        width = d * small.std**2 + small.on_x0**2 * _risk(law, process, s, x)
        log_ratio = torch.log(process.transition(t, s).std / move.std)
        error = 0.5 * _square(drawn - ideal) / move.std**2
        score += error
        rest += 0.5 * (width + _square(away)) / move.std**2 - d * (0.5 + log_ratio) - error
    end = float(times[-1])
    x = process.perturb(x0, end, noise.normal(seed, index, law.shape, draw=len(times), domain="probe", dtype=x0.dtype))
    rest = rest - _entropy(law, process, end, x)
    columns = (prior, score, rest, prior + score + rest)
    return Budget(*(Estimate(column.mean(), column.std() / math.sqrt(n)) for column in columns))


def _square(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)


def _risk(law: Law, process: Process, s: float, x: Tensor) -> Tensor:
    """tr Cov[x_0 | x_s = x], (B,), by Tweedie's formula; all of the law's where alpha = 0."""
    alpha, sigma = float(process.alpha(s)), float(process.sigma(s))
    if alpha == 0.0:
        return law.moments().cov.trace().to(x.device).expand(len(x))
    return (sigma / alpha) ** 2 * (x[0].numel() + sigma**2 * law.at(process, s).laplacian(x))


def _entropy(law: Law, process: Process, t: float, x: Tensor) -> Tensor:
    """-log p_t(x) less its quadratic part plus that part's mean, (B,): its mean over p_t is the entropy."""
    marginal = law.at(process, t)
    root = torch.linalg.cholesky(marginal.cov).to(x.device)
    white: Tensor = torch.linalg.solve_triangular(root, (x - marginal.mean.to(x.device)).flatten(1).mT, upper=False)
    return -marginal.log_prob(x) - 0.5 * (white.square().sum(0) - len(root))


def _cross_entropy(law: Law, process: Process, t: float) -> float:
    """-E log prior(x_t), from the moments of the law."""
    marginal, variance = law.at(process, t), float(process.prior_std(t)) ** 2
    square = float(marginal.mean.square().sum() + marginal.cov.diagonal().sum())
    return 0.5 * square / variance + 0.5 * len(marginal.cov) * math.log(2.0 * math.pi * variance)
