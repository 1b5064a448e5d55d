r"""The numbers of the solver figures, on a law whose flow is known: x_0 ~ .3 N(-1, .35^2) + .7 N(.8, .25^2).

In one dimension the probability-flow ODE keeps every quantile, F_t(x_t) = F_s(x_s), which gives it to round-off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from scipy.special import ndtri
from torch import Tensor

from ..exact import GaussianMixture
from ..guidance import CFG, Clipped
from ..prediction import Denoiser
from ..process import EDM, VP, Flow, Process
from ..sampling import sample, trajectory
from ..solvers import RK4, Solver, as_grid, steps_for_nfe

__all__ = ["CONCENTRATED", "SMOOTH", "ends", "errors", "quantiles"]

F64 = torch.float64
LABELS = torch.tensor([0, 1])
SMOOTH = GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.35**2, 0.25**2], labels=LABELS)  # type: ignore[arg-type]
CONCENTRATED = GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.02**2, 0.02**2], labels=LABELS)  # type: ignore[arg-type]


def quantiles(process: Process, n: int = 25) -> Tensor:
    """n equally likely states of the prior, (n, 1), float64."""
    normal = torch.from_numpy(ndtri((torch.arange(n, dtype=F64) + 0.5).numpy() / n))[:, None]
    return normal * process.prior_std()


def ends(process: Process) -> tuple[float, float]:
    """The times between which solvers are compared; alpha and sigma are nonzero at both."""
    return min(process.T, process.t_max), process.t_min


def times_of(
    process: Process, solver: Solver, steps: int | None, nfe: int | None, grid: str, to_zero: bool = False
) -> Tensor:
    """The times of so many steps, or of the most that make at most `nfe` evaluations."""
    chosen, (start, stop) = as_grid(grid), ends(process)
    if steps is None:
        assert nfe is not None
        steps = steps_for_nfe(solver, chosen, process, nfe, start, stop, to_zero)
    return chosen.times(process, steps, start, stop, to_zero)


def errors(
    law: GaussianMixture,
    process: Process,
    solver: Solver,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: str = "lam",
    to_zero: bool = False,
    n: int = 25,
) -> Tensor:
    """|x - exact| at t_min, or at 0 after a step by x0, of n equally likely starts, (n,)."""
    times, x = times_of(process, solver, steps, nfe, grid, to_zero), quantiles(process, n)
    exact = law.flow_map(process, x, float(times[0]), float(times[-1]))
    return (sample(law.denoiser(process), x=x, solver=solver, grid=times, dtype=F64) - exact).abs()[:, 0]


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


class Jump(NamedTuple):
    """Fig. 9.1: the exact trajectory, and where DDIM goes from its start in one step, at the same times."""

    times: Tensor
    exact: Tensor
    ddim: Tensor


def ddim_jump(times: Tensor, x: float = 0.35) -> Jump:
    """From state x at the first of `times` (Flow); DDIM jumps from there to each time."""
    process, start = Flow(), torch.tensor([[x]], dtype=F64)
    s = float(times[0])
    exact = SMOOTH.flow_map(process, start.expand(len(times), 1), s, times)[:, 0]
    said = SMOOTH.denoiser(process)(start, s)
    alpha, sigma = process.alpha(times), process.sigma(times)
    return Jump(times, exact, (alpha * said.x0 + sigma * said.noise)[0])


class Extrapolation(NamedTuple):
    """Fig. 9.2, on the EDM process, where x moves by the integral of the noise over t.

    anchors (3,), their noise, and along `times` the exact noise, the quadratic through the anchors, and the constant;
    `missed`: by how much the quadratic's and the constant's integral from the last anchor to the end are off.
    """

    anchors: Tensor
    said: Tensor
    times: Tensor
    exact: Tensor
    quadratic: Tensor
    missed: tuple[float, float]


def deis_extrapolation(anchors: Sequence[float], end: float, x: float, points: int = 400) -> Extrapolation:
    """The noise along the trajectory through x at the first anchor, extrapolated to `end` (all times decrease)."""
    process, start = EDM(), torch.tensor([[x]], dtype=F64)
    nodes = torch.tensor(list(anchors), dtype=F64)
    denoiser = SMOOTH.denoiser(process)

    def noise(times: Tensor) -> Tensor:
        states = SMOOTH.flow_map(process, start.expand(len(times), 1), float(nodes[0]), times)
        return denoiser(states, times).noise[:, 0]

    said, times = noise(nodes), torch.linspace(float(nodes[0]), end, points, dtype=F64)
    times = torch.cat([times[times > nodes[-1]], torch.linspace(float(nodes[-1]), end, points, dtype=F64)])
    weights = torch.linalg.solve(nodes[:, None] ** torch.arange(3), said)
    quadratic, exact = (times[:, None] ** torch.arange(3)) @ weights, noise(times)
    over = times <= nodes[-1]
    missed = tuple(
        float(torch.trapezoid((guess - exact)[over], times[over])) for guess in (quadratic, said[-1].expand_as(exact))
    )
    return Extrapolation(nodes, said, times, exact, quadratic, (missed[0], missed[1]))


class Parallelogram(NamedTuple):
    """Fig. 9.3: one step of Heun in lam: (lam, x) at start, predicted, sum of both slopes, and end; exact curve."""

    start: tuple[float, float]
    predicted: tuple[float, float]
    diagonal: tuple[float, float]
    end: tuple[float, float]
    lam: Tensor
    exact: Tensor


def heun_parallelogram(lam: float, h: float, x: float) -> Parallelogram:
    """Heun's step of h from x at lam, on VP."""
    process = VP()
    denoiser = SMOOTH.denoiser(process)

    def slope(value: float, at: float) -> float:
        t = process.time(torch.tensor(at, dtype=F64))
        return float(denoiser(torch.tensor([[value]], dtype=F64), t).velocity / process.d_lam(t))

    first = h * slope(x, lam)
    second = h * slope(x + first, lam + h)
    along = torch.linspace(lam, lam + h, 60, dtype=F64)
    begin, state = float(process.time(along[0])), torch.tensor([[x]], dtype=F64)
    exact = SMOOTH.flow_map(process, state.expand(len(along), 1), begin, process.time(along))[:, 0]
    return Parallelogram(
        (lam, x),
        (lam + h, x + first),
        (lam + 2.0 * h, x + first + second),
        (lam + h, x + 0.5 * (first + second)),
        along,
        exact,
    )


def dependencies(nodes: int) -> tuple[Tensor, Tensor]:
    """Fig. 9.4: which state a state is made of, entry (j, i), in a sequential step and in a Picard iteration.

    Found by differentiation: column i where moving state i of the previous iterate (for Picard), or state i of the
    same pass (one step of Euler), moves state j.
    """
    process, times = Flow(), torch.linspace(0.95, 0.05, nodes, dtype=F64)
    denoiser, x = SMOOTH.denoiser(process), torch.linspace(0.9, 0.3, nodes, dtype=F64)

    def drift(states: Tensor) -> Tensor:
        moved: Tensor = (times[1:] - times[:-1]) * denoiser(states[:-1, None], times[:-1]).velocity[:, 0]
        return moved

    def step(states: Tensor) -> Tensor:
        return torch.cat([states[:1], states[:-1] + drift(states)])

    def sweep(states: Tensor) -> Tensor:
        return torch.cat([states[:1], states[0] + drift(states).cumsum(0)])

    jacobian: Any = torch.autograd.functional.jacobian
    return jacobian(step, x) != 0.0, jacobian(sweep, x) != 0.0


class Window(NamedTuple):
    """Figs. 9.5-9.7: one iteration of the sliding window.

    left: its first node; before, after: all states (M + 1,); moves: the drift times the step at its nodes; wrong: the
    squared changes of the nodes after the first that are new; stride: how far it slides.
    """

    left: int
    before: Tensor
    moves: Tensor
    after: Tensor
    wrong: Tensor
    stride: int


def sliding_window(times: Tensor, x: float, size: int, tolerance: float) -> list[Window]:
    """ParaDiGMS (Shih et al. 2023; book Algorithm 8 with x_l, not x_{l+j}, in line 9) on Euler's step, Flow."""
    denoiser, last, left = SMOOTH.denoiser(Flow()), len(times) - 1, 0
    states = torch.full((last + 1,), x, dtype=F64)
    done: list[Window] = []
    while left < last:
        width = min(size, last - left)
        nodes = torch.arange(left, left + width)
        moves = (times[nodes + 1] - times[nodes]) * denoiser(states[nodes, None], times[nodes]).velocity[:, 0]
        after = states.clone()
        after[nodes + 1] = states[left] + moves.cumsum(0)
        wrong = (after[nodes + 1] - states[nodes + 1]).square()
        failed = (wrong[:-1] > tolerance).nonzero()
        stride = int(failed[0]) + 1 if len(failed) else width
        after[left + width + 1 :] = after[left + width]
        done.append(Window(left, states, moves, after, wrong, stride))
        states, left = after, left + stride
    return done


def picard_residual(steps: int, iterations: int, x: float = 0.35) -> Tensor:
    """|x_j^(k) - sequential x_j| for k = 0 to `iterations` (rows) and nodes j = 0 to `steps`: Euler in t on Flow."""
    process = Flow()
    denoiser, times = SMOOTH.denoiser(process), torch.linspace(0.98, 0.02, steps + 1, dtype=F64)
    h = times[1:] - times[:-1]
    states = torch.full((steps + 1,), x, dtype=F64)
    exact = states.clone()
    for j in range(steps):
        exact[j + 1] = exact[j] + h[j] * denoiser(exact[j : j + 1, None], times[j : j + 1]).velocity[0, 0]
    rows = [(states - exact).abs()]
    for _ in range(iterations):
        moves = h * denoiser(states[:-1, None], times[:-1]).velocity[:, 0]
        states = torch.cat([states[:1], states[0] + moves.cumsum(0)])
        rows.append((states - exact).abs())
    return torch.stack(rows)


def convergence(process: Process, solvers: Mapping[str, Solver], steps: Sequence[int]) -> dict[str, list[float]]:
    """The RMS error of each solver at each number of steps, uniform in lam."""
    return {name: [rms(errors(SMOOTH, process, one, steps=n)) for n in steps] for name, one in solvers.items()}


def by_budget(
    law: GaussianMixture,
    process: Process,
    solvers: Mapping[str, Solver],
    budgets: Sequence[int],
    grid: str = "lam",
    median: bool = False,
    to_zero: bool = False,
) -> dict[str, list[float]]:
    """The RMS error (or the median) of each solver at each number of evaluations."""

    def one(solver: Solver, nfe: int) -> float:
        wrong = errors(law, process, solver, nfe=nfe, grid=grid, to_zero=to_zero)
        return float(wrong.median()) if median else rms(wrong)

    return {name: [one(solver, nfe) for nfe in budgets] for name, solver in solvers.items()}


def by_guidance(
    solvers: Mapping[str, Solver],
    scales: Sequence[float],
    budgets: Sequence[int],
    bound: float | None = None,
    fine: int = 200,
) -> list[dict[str, list[float]]]:
    """For each budget, the RMS error of each solver on VP at each scale of guidance to the second mode.

    Args:
        solvers: by name.
        scales: of classifier-free guidance.
        budgets: evaluations each may make.
        bound: clip x0 to [-bound, bound]; the reference too.
        fine: evaluations of the reference, RK4 in lam.
    """
    process = VP()
    found: list[dict[str, list[float]]] = [{name: [] for name in solvers} for _ in budgets]
    x = quantiles(process)
    for scale in scales:
        guided: Denoiser = CFG(SMOOTH.denoiser(process), scale)
        if bound is not None:
            guided = Clipped(guided, -bound, bound)

        def end(solver: Solver, nfe: int, guided: Denoiser = guided) -> Tensor:
            times = times_of(process, solver, None, nfe, "lam")
            return sample(guided, x=x, solver=solver, grid=times, cond=1, dtype=F64)

        exact = end(RK4(space="lam"), fine)
        for table, nfe in zip(found, budgets, strict=True):
            for name, solver in solvers.items():
                table[name].append(rms(end(solver, nfe) - exact))
    return found


class Fan(NamedTuple):
    """Trajectories of equally likely starts: by a solver at its times (N+1, n), and exactly at fine times (M, n)."""

    times: Tensor
    states: Tensor
    fine: Tensor
    exact: Tensor


def fan(process: Process, solver: Solver, nfe: int, n: int = 15, points: int = 120) -> Fan:
    """Where a few-step solver leaves the exact trajectories, over lam."""
    times, x = times_of(process, solver, None, nfe, "lam"), quantiles(process, n)
    known, states = trajectory(SMOOTH.denoiser(process), x=x, solver=solver, grid=times, dtype=F64)
    start, stop = ends(process)
    fine = as_grid("lam").times(process, points, start, stop, False)
    exact = SMOOTH.flow_map(process, x.repeat(len(fine), 1), start, fine.repeat_interleave(n))
    return Fan(known, states[..., 0], fine, exact.reshape(len(fine), n))


class Sizes(NamedTuple):
    """E|noise|^2, E|score|^2 and the bound 1 / sigma^2 of the latter, along `times`."""

    times: Tensor
    noise: Tensor
    score: Tensor
    bound: Tensor


def predictor_sizes(law: GaussianMixture, times: Tensor, points: int = 4001) -> Sizes:
    """The second moments of the best noise predictor and of the score on VP, by quadrature over x."""
    process, rows = VP(), []
    for t in times.tolist():
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        spread = (alpha**2 * law.covs.value.reshape(-1) + sigma**2).sqrt()
        centre = alpha * law.means.value[:, 0]
        total = torch.zeros((), dtype=F64)
        for k in range(len(centre)):  # over each component's own width, however narrow
            x = (centre[k] + spread[k] * torch.linspace(-9.0, 9.0, points, dtype=F64))[:, None]
            noise = law.denoiser(process)(x, t).noise[:, 0]
            density = (-0.5 * ((x[:, 0] - centre[k]) / spread[k]) ** 2).exp() / (spread[k] * (2.0 * torch.pi) ** 0.5)
            total += law.weights.value[k] * torch.trapezoid(density * noise**2, x[:, 0])
        rows.append([float(total), float(total) / sigma**2, 1.0 / sigma**2])
    noise, score, bound = torch.tensor(rows, dtype=F64).T
    return Sizes(times, noise, score, bound)
