r"""What leaves a law as it is: Langevin dynamics, its two halves, and flows that turn within their law.

With s = grad log p_t, a time that only grows (dt > 0) and gamma = eta g:

    (1)  forward    dx = f x dt + g dw                                       p_t -> p_{t+dt}
    (2)  reverse    dx = [-f x + (g^2 + gamma^2)/2 s] dt + gamma dw          p_t -> p_{t-dt}
    (3)  Langevin   dx = rate s dt + sqrt(2 rate) dw                         p_t -> p_t, whatever the rate
    (4)  forward + reverse(eta) = Langevin of rate (g^2 + gamma^2)/2
    (5)  reverse(eta) = reverse(0) + Langevin of rate gamma^2/2              transport, and noise that mixes
    (6)  div(p A s) = div(A grad p) = 0 for every antisymmetric A            a gauge: p_t does not see it

A sum of motions adds drifts and variances of independent noises; that of one step after the other is the same to
first order in dt, which is what (4) means for the steps of `split_langevin`. Other names of eta: eta^2 is the beta of
the family d_t q = beta Lap q - div(q ((1 + beta) s + x)), and eta = 1 is Anderson's reverse SDE.
Sources: Zheng & Lan 2026, Table 3 (whose rectified-flow row needs the rate tau/(1 - tau), not tau/(1 + tau)); book
Sec. 4.1.3, where the drift printed for a Langevin step is twice that of (3), and samples p^2; Sec. 6.4, B.1.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import noise as philox
from ..errors import ConfigError
from ..prediction import Denoiser, Prediction
from ..process import Process, as_time, expand
from ..process.clocks import common_lam_range
from ..registry import build
from ..solvers import EulerMaruyama, Plan, Solver, Step, bind, run
from ..solvers.base import count, plain

__all__ = ["Gauged", "Motion", "split_langevin"]


@dataclass(frozen=True)
class Motion:
    """dx = (on_x x + on_score s) dt + sqrt(noise2) dw, dt > 0, at one time or at one per row: Eqs. (1) to (5).

    `one + other` moves by both at once, their noises independent.

    Args:
        on_x, on_score, noise2: () or (B,); noise2 is the noise's variance per unit of time.
    """

    on_x: Tensor
    on_score: Tensor
    noise2: Tensor

    @classmethod
    def forward(cls, process: Process, t: float | Tensor) -> Motion:
        """Eq. (1): noising, away from the data."""
        f = process.f(t)
        return cls(f, torch.zeros_like(f), process.g2(t))

    @classmethod
    def reverse(cls, process: Process, t: float | Tensor, eta: float = 1.0) -> Motion:
        """Eq. (2): denoising, towards the data; eta = 0 is the probability-flow ODE, 1 Anderson's SDE.

        Run through by `fokker.sample` with `EulerMaruyama(eta)`.
        """
        if not eta >= 0.0:
            raise ConfigError(
                f"eta: given {eta}, must be 0 or more (a beta < 0 is an ill-posed heat equation backwards)"
            )
        g2 = process.g2(t)
        return cls(-process.f(t), 0.5 * (1.0 + eta**2) * g2, eta**2 * g2)

    @classmethod
    def langevin(cls, rate: float | Tensor = 1.0) -> Motion:
        """Eq. (3): the law stays, its samples are renewed as the integral of the rate over time grows without bound."""
        rate = as_time(rate)
        return cls(torch.zeros_like(rate), rate, 2.0 * rate)

    def __add__(self, other: Motion) -> Motion:
        return Motion(self.on_x + other.on_x, self.on_score + other.on_score, self.noise2 + other.noise2)

    def drift(self, x: Tensor, score: Tensor) -> Tensor:
        """on_x x + on_score s, of the shape of x."""
        return expand(self.on_x, x) * x + expand(self.on_score, x) * score

    def step(self, x: Tensor, score: Tensor, h: float | Tensor, z: Tensor) -> Tensor:
        """Euler-Maruyama: x + h drift + sqrt(h noise2) z.

        Args:
            x, score: the state and its score, (B, *event).
            h: how long, 0 or more.
            z: standard normal, of the shape of x.
        """
        return x + expand(as_time(h), x) * self.drift(x, score) + expand((h * self.noise2).sqrt(), x) * z


@torch.no_grad()
def split_langevin(
    denoiser: Denoiser,
    x: Tensor,
    s: float,
    t: float,
    *,
    repeats: int = 1,
    solver: Solver | str | dict[str, Any] | None = None,
    steps: int = 1,
    cond: Any = None,
    seed: int = 0,
    indices: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Langevin dynamics at level s made of its halves, Eq. (4): noise from s up to t, denoise from t down to s, again.

    The law of the states is p_s throughout, up to the error of the way down, whose first step is O((t - s)^2) a turn;
    what changes is which sample of it a state is. Cost: `steps` evaluations of the solver's a turn.

    Args:
        denoiser: exact, learned or guided.
        x: states at level s, (n, *event), float32 or float64.
        s: the level, 0 or more; at 0 the last step down is by x0.
        t: how far the noise goes, s < t <= T.
        repeats: turns.
        solver: of the way down; default EulerMaruyama(), which is Table 3's reverse split; its name or recipe.
        steps: of the way down, equal in t.
        cond: passed to the denoiser.
        seed, indices: key of the noise, none of which a sampler draws; default range(n).

    Returns:
        (repeats + 1, n, *event): every turn's state, x first.

    Raises:
        ConfigError: s >= t; a solver without plain plans, or one that is singular at t.
    """
    process = denoiser.process
    count("repeats", repeats)
    count("steps", steps)
    if not 0.0 <= s < t <= process.T:
        raise ConfigError(f"s, t: given {s:g} and {t:g}, must be 0 <= s < t <= {process.T:g}")
    by: Solver = EulerMaruyama() if solver is None else build("solver", solver)
    plain(by, "solver")
    scale, std = (float(c) for c in process.transition(s, t))
    up = Step(s, t, (), ((("x", 0), scale), (("z", 0), std)), draws=1)
    turn = (up, *by.plan(process, torch.linspace(t, s, steps + 1, dtype=torch.float64)).steps)
    index = torch.arange(len(x)) if indices is None else torch.as_tensor(indices)
    index = index.to(x.device)
    if len(index) != len(x):
        raise ConfigError(f"indices: given {len(index)} for {len(x)} states, must be as many")

    def draw(step: int, k: int) -> Tensor:
        return philox.normal(seed, index, x.shape[1:], draw=step << 8 | k, domain="langevin", dtype=x.dtype)

    states: list[Tensor] = []
    bound = bind(Plan(turn * repeats, by.slots), denoiser, x.device, x.dtype)
    run(bound, denoiser, x, cond=cond, draw=draw, states=states)
    return torch.stack(states[:: len(turn)])


class Gauged:
    """A denoiser whose every sampler draws the same law along other paths: noise <- noise + A noise, Eq. (6).

    Its velocity has -g^2/2 A s more, which no marginal p_t sees: same densities, likelihoods and samples in law by any
    solver, other couplings of noise and data, and more kinetic energy E|v|^2. Its x0 is no posterior mean. Pure noise
    turns by A radians per unit of lam, where steps want to be equal therefore: grid="lam".

    Args:
        denoiser: what to turn.
        matrix: A, (d, d) over the flattened event, antisymmetric.

    Raises:
        ConfigError: A is not antisymmetric, or of another size.
    """

    reading = None

    def __init__(self, denoiser: Denoiser, matrix: Tensor) -> None:
        d = torch.Size(denoiser.shape).numel()
        if tuple(matrix.shape) != (d, d) or not torch.equal(matrix, -matrix.T):
            raise ConfigError(f"matrix: given shape {tuple(matrix.shape)}, must be ({d}, {d}) with A^T = -A")
        self.denoiser, self.matrix = denoiser, matrix
        self.process, self.shape = denoiser.process, tuple(denoiser.shape)
        noisiest = float(self.process.lam(self.process.t_max))  # where alpha = 0 the turn is infinitely fast
        self.lam_range = common_lam_range(denoiser.lam_range, (noisiest, math.inf))

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        p, time = self.denoiser(x, s, cond), as_time(s)
        turn = (p.noise.flatten(1) @ self.matrix.to(x).T).reshape(x.shape)
        ratio = expand(self.process.sigma(time) / self.process.alpha(time), x)
        return Prediction(self.process, x, s, x0=p.x0 - ratio * turn, noise=p.noise + turn)
