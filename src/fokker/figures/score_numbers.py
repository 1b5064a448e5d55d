r"""The numbers of the figures of score matching: energies, Langevin dynamics, denoising, noise levels (book Ch. 3).

Laws are Gaussian mixtures, whose scores are known; a level sigma is time sigma of the EDM process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import noise
from ..calculus import euler_maruyama, wiener
from ..exact import Empirical, GaussianMixture
from ..exact.marginal import Marginal
from ..process import EDM, VP
from ..sampling import sample, trajectory
from ..solvers import Ancestral, AnnealedLangevin

__all__ = ["FAR", "LINE", "PLANE", "TOY", "clean", "langevin", "mesh"]

F64 = torch.float64
PLANE = GaussianMixture(
    [0.4, 0.35, 0.25],  # type: ignore[arg-type]
    [[-1.5, -0.8], [1.5, -0.5], [0.2, 1.6]],  # type: ignore[arg-type]
    [[[0.35, 0.15], [0.15, 0.3]], [[0.25, -0.1], [-0.1, 0.4]], [[0.4, 0.0], [0.0, 0.15]]],  # type: ignore[arg-type]
)
LINE = GaussianMixture([0.35, 0.65], [[-1.6], [1.3]], [0.5**2, 0.4**2])  # type: ignore[arg-type]
FAR = GaussianMixture([0.25, 0.75], [[-2.0, -2.0], [2.0, 2.0]], [0.35, 0.35])  # type: ignore[arg-type]
TOY = GaussianMixture([0.2, 0.8], [[-5.0, -5.0], [5.0, 5.0]], [1.0, 1.0])  # type: ignore[arg-type]
"""Song & Ermon's (2019): a fifth and four fifths, far apart."""


def clean(law: GaussianMixture | Empirical, sigma: float = 0.0) -> Marginal:
    """The law of x + sigma eps, with its score."""
    return law.at(EDM(), sigma)


def mesh(span: float, cells: int) -> tuple[Tensor, Tensor]:
    """The axis (cells,) from -span to span, and all points of the square (cells^2, 2), the second entry fastest."""
    axis = torch.linspace(-span, span, cells, dtype=F64)
    return axis, torch.cartesian_prod(axis, axis)


class Energies(NamedTuple):
    """Fig. 3.1 on the grid x (M,).

    energies: E + log Z at each recorded step, (R, M), so that exp(-E) integrates to 1; data: p_data (M,);
    nll: -E_data log p at every step, and `entropy`, which it cannot pass; weights: of the bumps, (R, K).
    """

    x: Tensor
    energies: Tensor
    data: Tensor
    nll: Tensor
    entropy: float
    weights: Tensor


def bumps(x: Tensor) -> Tensor:
    """The features of the energy, Gaussians of width 0.35 every 0.4 from -4 to 4, (M, 21)."""
    return (-0.5 * ((x[:, None] - torch.linspace(-4.0, 4.0, 21, dtype=F64)) / 0.35) ** 2).exp()


def train_energy(recorded: Sequence[int] = (0, 30, 3000), rate: float = 2.0, cells: int = 801) -> Energies:
    """E(x) = x^2 / 18 + sum_k w_k bump_k(x), trained by d/dw E_data[-log p] = E_data[bump] - E_model[bump].

    Both expectations are sums over a grid, so is log Z; the loss is convex in w.
    """
    x = torch.linspace(-6.0, 6.0, cells, dtype=F64)
    h, features = float(x[1] - x[0]), bumps(x)
    data = LINE.log_prob(x[:, None]).exp()
    weights, rows, kept, losses = torch.zeros(features.shape[1], dtype=F64), [], [], []
    wanted = h * data @ features
    for step in range(max(recorded) + 1):
        energy = x**2 / 18.0 + features @ weights
        energy = energy + (-energy).logsumexp(0) + math.log(h)
        losses.append(h * data @ energy)
        if step in recorded:
            rows.append(energy)
            kept.append(weights)
        weights = weights - rate * (wanted - h * (-energy).exp() @ features)
    entropy = -float(h * (data * LINE.log_prob(x[:, None])).sum())
    return Energies(x, torch.stack(rows), data, torch.stack(losses), entropy, torch.stack(kept))


def langevin(score: Callable[[Tensor], Tensor], x: Tensor, eta: float, steps: int, seed: int = 0) -> Tensor:
    """The path (steps + 1, n, d) of x <- x + eta score(x) + sqrt(2 eta) z, which is Euler-Maruyama in time eta n."""
    times = eta * torch.arange(steps + 1, dtype=F64)
    increments = wiener(seed, torch.arange(len(x)), times, x.shape[1:])
    return euler_maruyama(lambda x, t: score(x), math.sqrt(2.0), x, times, increments)


class ScoreNet(nn.Module):
    """A score at one level of noise: net(x) / sigma, two hidden layers of 64."""

    def __init__(self, sigma: float, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """The score, (n, 2)."""
        scaled: Tensor = self.net(x) / self.sigma
        return scaled


class Learned(NamedTuple):
    """Figs. 3.4 and 3.6 on a mesh (M, 2): both scores, log p_sigma, and the loss averaged over pieces of training.

    floor: the least that the loss E|sigma s + eps|^2 can be; error: E_p sigma^2 |s - s_net|^2 on the mesh.
    """

    axis: Tensor
    points: Tensor
    true: Tensor
    learned: Tensor
    log_prob: Tensor
    losses: Tensor
    floor: float
    error: float


@lru_cache(maxsize=1)
def learn_score(sigma: float = 0.5, steps: int = 900, batch: int = 256, span: float = 5.0, cells: int = 61) -> Learned:
    """Denoising score matching of FAR at one level: E|sigma s(x + sigma eps) + eps|^2 is least at the marginal score.

    The floor is E|eps|^2 - sigma^2 E|score|^2, by quadrature on the mesh.
    """
    net, losses = ScoreNet(sigma), []
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    noises = noise.normal(0, torch.arange(steps * batch), (2,), domain="training").reshape(steps, batch, 2)
    for eps, x0 in zip(noises, FAR.sample(steps * batch).reshape(noises.shape), strict=True):
        loss = (sigma * net(x0 + sigma * eps) + eps).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
    axis, points = mesh(span, cells)
    law = clean(FAR, sigma)
    true, log_prob = law.score(points), law.log_prob(points)
    with torch.no_grad():
        learned = net(points.float()).double()
    mass = log_prob.exp() * float(axis[1] - axis[0]) ** 2
    floor = 2.0 - sigma**2 * float(mass @ true.square().sum(1))
    error = sigma**2 * float(mass @ (true - learned).square().sum(1))
    averaged = torch.stack(losses).double().reshape(-1, steps // 30).mean(1)
    return Learned(axis, points, true, learned, log_prob, averaged, floor, error)


POINTS = torch.tensor([[-1.2, 0.6], [-0.3, 1.2], [0.9, 0.8], [1.1, -0.5], [-0.2, -0.9], [-1.1, -0.4]], dtype=F64)


class Average(NamedTuple):
    """Fig. 3.5: arrows (x_i - x) / sigma^2 to the points (K, 2), the points' posterior weights, and their mean."""

    arrows: Tensor
    weights: Tensor
    mean: Tensor


def conditional_scores(x: Tensor, sigma: float, points: Tensor = POINTS) -> Average:
    """What denoising score matching asks for at x (2,), point by point, and on average."""
    arrows = (points - x) / sigma**2
    weights = (-0.5 * (sigma * arrows).square().sum(1)).softmax(0)
    return Average(arrows, weights, weights @ arrows)


def annealed(levels: Sequence[float], n: int = 500, repeats: int = 60, step: float = 0.1) -> Tensor:
    """Fig. 3.7: the states at the end of every level, (L, n, 2), by annealed Langevin from N(0, sigma_L^2 I)."""
    grid = torch.tensor(list(levels), dtype=F64)
    start = noise.normal(0, torch.arange(n), (2,), domain="prior", dtype=F64) * grid[0]
    solver = AnnealedLangevin(repeats=repeats, step=step)
    states = trajectory(PLANE.denoiser(EDM()), x=start, solver=solver, grid=grid, dtype=F64)[1]
    return states[repeats::repeats]


class Weights(NamedTuple):
    """The toy: the share of samples in the heavy mode after every step, (1001,) each, and where they end (n, 2)."""

    plain: Tensor
    annealed: Tensor
    plain_end: Tensor
    annealed_end: Tensor


def mode_weights(n: int = 600) -> Weights:
    """1000 steps from uniform on [-8, 8]^2: eta = .05 on the data's score, or ten levels from 20 to .1."""
    start = 16.0 * noise.uniform(0, torch.arange(n), (2,), domain="prior", dtype=F64) - 8.0
    plain = langevin(clean(TOY).score, start, 0.05, 1000)
    grid = torch.logspace(math.log10(20.0), -1.0, 10, dtype=F64)
    solver = AnnealedLangevin(repeats=100, step=0.1)
    cooled = trajectory(TOY.denoiser(EDM()), x=start, solver=solver, grid=grid, dtype=F64)[1]
    heavy = [(path.sum(-1) > 0).double().mean(1) for path in (plain, cooled)]
    return Weights(heavy[0], heavy[1], plain[-1], cooled[-1])


class Row(NamedTuple):
    """Table 3.1, one method. Numbers are of LINE: standard deviations after all steps, drawn step by step and at once,
    and exactly; the loss of the exact score; evaluations; the mean and std of the samples drawn."""

    method: str
    stepwise: float
    direct: float
    exact: float
    prior: float
    loss: float
    evaluations: int
    mean: float
    std: float


def comparison(n: int = 5000, drawn: int = 2000) -> tuple[Row, Row]:
    """NCSN (EDM at ten levels from .05 to 10) and DDPM (VP at 100 times) in the same numbers.

    The loss is E|eps_hat - eps|^2 = E|sigma s + eps|^2 at the least noise but one, where the models differ most.
    """
    rows = []
    levels = torch.logspace(math.log10(0.05), 1.0, 10, dtype=F64)
    langevin_steps = AnnealedLangevin(repeats=50, step=0.1)
    for name, process, times, solver in (
        ("NCSN", EDM(), levels, langevin_steps),
        ("DDPM", VP(), torch.linspace(0.01, 1.0, 100, dtype=F64), Ancestral()),
    ):
        index = torch.arange(n)
        x0 = LINE.sample(n, dtype=F64)
        x, s = x0, 0.0
        for k, t in enumerate(times.tolist()):
            scale, std = process.transition(s, t)
            x = scale * x + std * noise.normal(1, index, (1,), draw=k, domain="training", dtype=F64)
            s = t
        end = float(times[-1])
        at_once = process.perturb(x0, end, noise.normal(2, index, (1,), domain="training", dtype=F64))
        denoiser, level = LINE.denoiser(process), float(times[1])
        eps = noise.normal(3, index, (1,), domain="training", dtype=F64)
        missed = denoiser(process.perturb(x0, level, eps), level).noise - eps
        grid = times.flip(0) if name == "NCSN" else torch.cat([times.flip(0), times.new_zeros(1)])
        found = sample(denoiser, n=drawn, solver=solver, grid=grid, dtype=F64)
        rows.append(
            Row(
                name,
                float(x.std()),
                float(at_once.std()),
                float(LINE.at(process, end).cov.sqrt()),
                float(process.prior_std(end)),
                float(missed.square().mean()),
                solver.plan(process, grid).nfe,
                float(found.mean()),
                float(found.std()),
            )
        )
    return rows[0], rows[1]
