"""Where a peer runs the same method on the same grid, it goes where we go; where it does not, its fault is named."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

diffusers = pytest.importorskip("diffusers")

from benchmarks.solvers.diffusers_ import drive, noise_model, preserving, table  # noqa: E402
from benchmarks.solvers.laws import Problem, eight  # noqa: E402
from benchmarks.solvers.peers import azula, flow_matching, k_diffusion_sampling  # noqa: E402
from fokker.process import EDM, VP, Flow  # noqa: E402
from fokker.sampling import sample  # noqa: E402
from fokker.solvers import DDIM, DEIS, DPM, Adams, DPMpp, Euler, Heun, Solver, Times, UniPC  # noqa: E402

N = 32
NAMES = {name: make for name, _, make in preserving(VP())}


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a.double(), b.double(), atol=atol, rtol=0)


def ours(problem: Problem, solver: Solver, lam: Tensor, to_zero: bool = True) -> Tensor:
    """Our solver on the times of these lam (float64), and then 0."""
    times = problem.process.time(lam.double()).clamp(max=problem.process.T)
    if to_zero:
        times = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    return sample(problem, x=problem.noise, solver=solver, grid=Times(times))


def theirs(problem: Problem, name: str, steps: int) -> tuple[Tensor, Tensor]:
    """(where diffusers ends, the lam of its sigmas); below 15 steps it lowers the order of the last ones."""
    scheduler = NAMES[name]()
    end = drive(scheduler, steps, problem.noise, noise_model(problem, told=False))
    sigmas = scheduler.sigmas.double()
    return end, -sigmas[sigmas > 0].log()


@pytest.fixture
def vp() -> Problem:
    return Problem("VP", eight(), VP(), N)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("DPM++ 1M midpoint, exponential", DDIM()),
        ("DPM++ 2M midpoint, exponential", DPMpp(2, published=True)),
        ("DPM++ 2M heun, exponential", DPMpp(2)),
        ("DPM++ 3M midpoint, exponential", DPMpp(3, published=True)),
        ("DPM++ 3M midpoint, karras", DPMpp(3, published=True)),
        ("UniPC 2 bh2, exponential", UniPC(2, published=True)),
    ],
)
def test_diffusers_on_its_own_sigmas(vp: Problem, name: str, solver: Solver) -> None:
    end, lam = theirs(vp, name, 20)
    close(ours(vp, solver, lam), end)


def test_diffusers_ddim_on_its_levels(vp: Problem) -> None:
    scheduler = NAMES["DDIM, trailing"]()
    end = drive(scheduler, 10, vp.noise, noise_model(vp, told=True))
    times = (scheduler.timesteps.double() + 1) / 1000
    close(ours(vp, DDIM(), vp.process.lam(times)), end)


def test_k_diffusion() -> None:
    pytest.importorskip("torchsde")
    kd = k_diffusion_sampling()
    problem = Problem("EDM", eight(), EDM(), N)
    sigmas = kd.get_sigmas_karras(12, 0.01, 80.0)
    lam = -sigmas[:-1].double().log()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return problem.clean(x, float(sigma[0]))

    start = 80.0 * problem.noise
    problem.__dict__["noise"] = start  # `ours` starts from it as it is
    pairs = [
        (kd.sample_euler, DDIM()),
        (kd.sample_heun, Heun("rho")),
        (kd.sample_dpmpp_2m, DPMpp(2, published=True)),
        (lambda *a, **k: kd.sample_lms(*a, order=3, **k), DEIS(2, "rho")),
    ]
    for sampler, solver in pairs:
        if sampler is pairs[-1][0]:  # LMS extrapolates over the last step too, where ours takes x0: compare before it
            end = sampler(model, start, sigmas[:-1], disable=True)
            close(ours(problem, solver, lam, to_zero=False), end, atol=4e-5)
        else:
            close(ours(problem, solver, lam), sampler(model, start, sigmas, disable=True), atol=4e-5)


def test_azula(vp: Problem) -> None:
    pytest.importorskip("azula")
    contestants = {c.name: c.run for c in azula(vp)}
    lam = torch.linspace(float(vp.process.lam(1.0)), float(vp.process.lam(vp.process.t_min)), 11, dtype=torch.float64)
    alpha = float(vp.process.alpha(vp.process.t_min))
    pairs = {
        "Euler": DDIM(),
        "zEAB 2": DPM(2, "M"),
        "xEAB 3": DPMpp(3),
        "zAB 3": DEIS(2, "rho"),
        "vAB 3": Adams(2, "flow"),
    }
    for name, solver in pairs.items():
        end = contestants[f"{name}, VE"](vp, 10)
        assert end is not None
        close(ours(vp, solver, lam, to_zero=False) / alpha, end, atol=1e-4)


def test_flow_matching() -> None:
    pytest.importorskip("flow_matching")
    problem = Problem("Flow", eight(), Flow(), N)
    contestants = {c.name: c.run for c in flow_matching(problem)}
    end = contestants["euler, uniform"](problem, 10)
    times = torch.linspace(1.0, 0.0, 11, dtype=torch.float64)
    assert end is not None
    close(sample(problem, x=problem.noise, solver=Euler(), grid=Times(times)), end)


def test_fault_rounded_and_duplicated_times() -> None:
    scheduler = NAMES["DPM++ 2M midpoint, karras"]()
    scheduler.set_timesteps(100)
    told = scheduler.timesteps.double()
    at = VP().time(-scheduler.sigmas[:-1].double().log()) * 1000 - 1  # where its states are
    assert len(told.unique()) == 99  # two steps are told the same time
    assert float((told - at).abs().max()) > 0.5  # and one is told half a level off


def test_fault_sign_in_sde_dpmsolver_3(vp: Problem) -> None:
    # x0 = u^2 along the step has D0 = D1 = 0, D2 = 1: without its draws the step is int_0^1 z e^{-z(1-u)} u^2 du,
    # z = 2h, of which the literature takes half, (1 - e^{-z} - z) / z^2 + 1/2; theirs has - 1/2
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=3, algorithm_type="sde-dpmsolver++", trained_betas=table(VP()), use_exponential_sigmas=True
    )
    scheduler.set_timesteps(20)
    scheduler._step_index = 10
    lam = -scheduler.sigmas[:-1].double().log()
    h = lam[11] - lam[10]
    one = torch.ones(1, 2)
    history = [one * float(((lam[i] - lam[10]) / h) ** 2) for i in (8, 9, 10)]  # u^2 at the nodes u = -2, -1, 0
    got = scheduler.multistep_dpm_solver_third_order_update(history, sample=0 * one, noise=0 * one)
    alpha = 1.0 / (1.0 + float(scheduler.sigmas[11]) ** 2) ** 0.5
    z = 2.0 * float(h)
    u = torch.linspace(0.0, 1.0, 20001, dtype=torch.float64)
    whole = alpha * float(torch.trapezoid(z * (-z * (1 - u)).exp() * u**2, u))
    assert float(got[0, 0]) == pytest.approx(0.5 * whole - alpha, rel=1e-4)


def test_fault_first_order_starts(vp: Problem) -> None:
    # exact DPM-Solver++ 3M after a start of order 1 and 2, as theirs: the start is what is left at many steps
    end, lam = theirs(vp, "DPM++ 3M midpoint, exponential", 160)
    truth = vp.solve(1000)

    def error(x: Tensor) -> float:
        return float((x.double() - truth).square().mean().sqrt())

    ramp = error(ours(vp, DPMpp(3, published=True), lam))
    assert error(end) == pytest.approx(ramp, rel=0.05)


def test_fault_a_floor_under_every_order() -> None:
    # from sigma = 0.002 to 0 by x0: an error of sigma^2 / (2 v) of a mode's width, however many steps before it
    problem = Problem("EDM", eight(), EDM(sigma_min=0.05), N)
    errors = [problem.errors(sample(problem, x=80.0 * problem.noise, solver=UniPC(3), steps=n))[0] for n in (80, 160)]
    v = problem.law.delta
    away = problem.truth[:, None] - problem.law.means
    spread = float(away.square().sum(-1).amin(1).mean().sqrt()) / 2**0.5
    floor = spread * (1 - (v / (v + 0.05**2)) ** 0.5)
    assert errors[1] == pytest.approx(floor, rel=0.05) and errors[0] == pytest.approx(floor, rel=0.05)


def test_the_table_is_the_process() -> None:
    scheduler = diffusers.DDIMScheduler(trained_betas=table(VP()))
    levels = torch.arange(1, 1001, dtype=torch.float64) / 1000
    close(scheduler.alphas_cumprod.sqrt(), VP().alpha(levels), atol=1e-6)
