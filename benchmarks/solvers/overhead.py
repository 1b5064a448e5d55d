"""What a step costs beyond the network: everyone is given a model that answers at once, with a tensor made beforehand.

The time of calling it is taken off. The floor is one fused multiply-add in place, `x.add_(raw, alpha=b)`: one pass over
memory, which no step can do without. One thread, float32; all take turns in every round. Reported are medians, and
medians of the ratios within a round, which a busy machine blurs less.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fokker.prediction import READINGS, Prediction
from fokker.process import VP
from fokker.solvers import DDIM, DEIS, DPMpp, Heun, Solver, UniformLam, UniPC, bind, run

from .peers import installed, k_diffusion_sampling

__all__ = ["SHAPES", "overhead"]

SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32), (16, 4, 64, 64))
STEPS = 20
Work = tuple[Callable[[], object], int]  # what to time, and its calls of the model

OURS: dict[str, tuple[Solver, str]] = {
    "DDIM": (DDIM(), "noise"),
    "DPM++ 2M": (DPMpp(2), "noise"),
    "DPM++ 2M, model of x0": (DPMpp(2), "x0"),
    "DPM++ 3M": (DPMpp(3), "noise"),
    "DEIS 2": (DEIS(2), "noise"),
    "UniPC 2": (UniPC(2), "noise"),
    "Heun (two evaluations)": (Heun("rho"), "noise"),
}


class Ready:
    """A denoiser whose answer is there already."""

    def __init__(self, raw: Tensor, name: str) -> None:
        self.process, self.shape, self.reading, self.raw = VP(), tuple(raw.shape[1:]), READINGS[name], raw
        self.lam_range = (-5.0, 5.0)

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        return Prediction(self.process, x, s, other=(self.reading, self.raw))


def ours(x: Tensor, raw: Tensor) -> Iterator[tuple[str, Work]]:
    """Plans made beforehand, as `sample` runs them."""
    times = UniformLam().times(VP(), STEPS, 0.9, 1e-3, False)
    for name, (solver, reading) in OURS.items():
        denoiser = Ready(raw, reading)
        plan = solver.plan(denoiser.process, times)
        bound = bind(plan, denoiser, x.device, x.dtype)
        yield f"fokker: {name}", (lambda bound=bound, denoiser=denoiser: run(bound, denoiser, x), plan.nfe)


def diffusers(x: Tensor, raw: Tensor) -> Iterator[tuple[str, Work]]:
    """`scale_model_input` and `step`; `set_timesteps` is not counted, resetting its counters is."""
    import diffusers as d

    schedulers = {
        "DDIM": d.DDIMScheduler(clip_sample=False),
        "DPM++ 2M": d.DPMSolverMultistepScheduler(solver_order=2),
        "DPM++ 3M": d.DPMSolverMultistepScheduler(solver_order=3),
        "DEIS 2": d.DEISMultistepScheduler(solver_order=3),
        "UniPC 2": d.UniPCMultistepScheduler(solver_order=2),
        "Euler": d.EulerDiscreteScheduler(),
        "PNDM": d.PNDMScheduler(skip_prk_steps=True),
        "flow Euler": d.FlowMatchEulerDiscreteScheduler(),
    }
    for name, scheduler in schedulers.items():
        scheduler.set_timesteps(STEPS)
        times = list(scheduler.timesteps)[:STEPS]

        def work(scheduler: Any = scheduler, times: list[Tensor] = times) -> None:
            if hasattr(scheduler, "_step_index"):
                scheduler._step_index = None
            if hasattr(scheduler, "lower_order_nums"):
                scheduler.lower_order_nums, scheduler.last_sample = 0, None
            if hasattr(scheduler, "ets"):
                scheduler.ets, scheduler.counter = [], 0
            y = x
            for t in times:
                if hasattr(scheduler, "scale_model_input"):
                    scheduler.scale_model_input(y, t)
                y = scheduler.step(raw, t, y, return_dict=False)[0]

        yield f"diffusers: {name}", (work, 0)


def k_diffusion(x: Tensor, raw: Tensor) -> Iterator[tuple[str, Work]]:
    """Whole samplers, their grid made beforehand."""
    kd = k_diffusion_sampling()
    sigmas = kd.get_sigmas_karras(STEPS, 0.01, 80.0)
    samplers = {
        "Euler (DDIM)": (kd.sample_euler, 1),
        "DPM++ 2M": (kd.sample_dpmpp_2m, 1),
        "LMS 4": (kd.sample_lms, 1),
        "Heun (two evaluations)": (kd.sample_heun, 2),
    }
    for name, (sampler, cost) in samplers.items():
        calls = cost * STEPS - (cost - 1)
        yield (
            f"k-diffusion: {name}",
            (lambda sampler=sampler: sampler(lambda y, s: raw, x, sigmas, disable=True), calls),
        )


def azula(x: Tensor, raw: Tensor) -> Iterator[tuple[str, Work]]:
    """Whole samplers, which compute their coefficients as they go."""
    from azula import noise, sample
    from azula.denoise import Denoiser, DiracPosterior

    class Model(Denoiser):  # type: ignore[misc]
        schedule = noise.VPSchedule()

        def forward(self, x: Tensor, t: Tensor) -> Any:
            return DiracPosterior(raw)

    kinds = {"DDIM": sample.DDIMSampler, "zAB 2": sample.zABSampler, "xEAB 2": sample.xEABSampler}
    for name, kind in kinds.items():
        sampler = kind(Model(), steps=STEPS, silent=True)
        yield f"azula: {name}", (lambda sampler=sampler: sampler(x), STEPS)


def everyone(shape: tuple[int, ...]) -> dict[str, Work]:
    """Name -> what to time."""
    generator = torch.Generator().manual_seed(0)
    x, raw, still = (torch.randn(shape, generator=generator) for _ in range(3))

    def floor() -> None:
        for _ in range(STEPS):
            still.add_(raw, alpha=1e-6)

    def scaled() -> None:
        for _ in range(STEPS):
            still.mul_(0.999).add_(raw, alpha=1e-6)

    denoiser = Ready(raw, "noise")

    def call() -> None:
        for _ in range(STEPS):
            denoiser(x, 0.5)

    made: dict[str, Work] = {"floor": (floor, 0), "mul_, add_": (scaled, 0), "call": (call, 0)}
    made |= dict(ours(x, raw))
    peers = {"diffusers": diffusers, "k-diffusion": k_diffusion, "azula": azula}
    for library, make in peers.items():
        if library in installed():
            made |= dict(make(x, raw))
    return made


def measure(shape: tuple[int, ...], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Name -> (microseconds a step, ratio to the floor, ratio to our DDIM)."""
    made = everyone(shape)
    spent: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        took: dict[str, float] = {}
        for name, (work, _) in made.items():
            begin = time.perf_counter()
            work()
            took[name] = time.perf_counter() - begin
        call = took["call"] / STEPS
        for name, (_, calls) in made.items():
            if turn:  # the first round warms up
                # a peer's stand-in for a model is a bare function; ours builds a Prediction, and is charged its cost
                off = calls * call if name.startswith("fokker") else 0.0
                spent[name].append(1e6 * (took[name] - off) / STEPS)
    floors, first = spent["floor"], spent["fokker: DDIM"]

    def to(values: list[float], others: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(values, others, strict=True))

    return {
        name: (statistics.median(values), to(values, floors), to(values, first))
        for name, values in spent.items()
        if name != "call"
    }


def overhead(quick: bool, say: Callable[[str], object]) -> list[str]:
    """The table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    columns = []
    with torch.no_grad():
        for shape in SHAPES:
            say(f"       overhead at {shape}")
            columns.append(measure(shape, 8 if quick else 40))
    lines = [
        "Microseconds a step beyond the network, times the floor (one fused multiply-add), times our DDIM.",
        "",
        "| step |" + "".join(f" {' x '.join(map(str, shape))} | | |" for shape in SHAPES),
        "|---|" + "---:|---:|---:|" * len(SHAPES),
    ]
    for name in columns[0]:
        cells = (column[name] for column in columns)
        lines.append(f"| {name} |" + "".join(f" {us:.1f} | {floor:.1f} | {ddim:.1f} |" for us, floor, ddim in cells))
    return lines
