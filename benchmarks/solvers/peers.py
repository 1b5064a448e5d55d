"""The peers: k-diffusion, azula and flow_matching. (diffusers, which has most, has a file of its own.)

Each is given the exact denoiser as the model it asks for, float32 states, and its own grids with the ends of the
process; times in float64 where it takes them. A peer that is not installed is left out and named in the report.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .diffusers_ import diffusers
from .laws import Problem
from .ours import Contestant

__all__ = ["LIBRARIES", "installed", "k_diffusion_sampling", "peers"]

LIBRARIES = ("diffusers", "k-diffusion", "azula", "flow_matching")


@functools.cache
def installed() -> dict[str, str]:
    """The peers that can be used, with their versions."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def peers(problem: Problem) -> Iterator[Contestant]:
    """All contestants of all installed peers for the problem's process."""
    makers = {"diffusers": diffusers, "k-diffusion": k_diffusion, "azula": azula, "flow_matching": flow_matching}
    for name in installed():
        yield from makers[name](problem)


def k_diffusion_sampling() -> Any:
    """k_diffusion.sampling alone: the package itself wants torchvision, wandb and more at import."""
    if "k_diffusion.sampling" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        assert spec is not None
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["k_diffusion"] = package
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]  # type: ignore[attr-defined]
        try:
            importlib.import_module("k_diffusion.sampling")
        finally:
            for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
                del sys.modules[name]
    return sys.modules["k_diffusion.sampling"]


def k_diffusion(problem: Problem) -> Iterator[Contestant]:
    """States y = x / alpha, times sigma / alpha; grids with and without ten times the process's least sigma."""
    kd = k_diffusion_sampling()
    low, high = problem.sigmas
    grids: dict[str, Callable[[int], Tensor]] = {}
    for least, mark in ((low, ""), (10.0 * low, " from 10 sigma_min")):
        grids["karras" + mark] = lambda n, least=least: kd.get_sigmas_karras(n, least, high)
        grids["exponential" + mark] = lambda n, least=least: kd.get_sigmas_exponential(n, least, high)
        grids["polyexponential" + mark] = lambda n, least=least: kd.get_sigmas_polyexponential(n, least, high, 0.7)
    samplers: dict[str, tuple[Callable[..., Tensor], int]] = {
        "euler": (kd.sample_euler, 1),
        "heun": (kd.sample_heun, 2),
        "dpm_2": (kd.sample_dpm_2, 2),
        "lms 2": (lambda *a, **k: kd.sample_lms(*a, order=2, **k), 1),
        "lms 3": (lambda *a, **k: kd.sample_lms(*a, order=3, **k), 1),
        "lms 4": (kd.sample_lms, 1),
        "dpmpp_2m": (kd.sample_dpmpp_2m, 1),
        "dpmpp_2s": (lambda *a, **k: kd.sample_dpmpp_2s_ancestral(*a, eta=0.0, **k), 2),
        "dpmpp_2m_sde heun, eta 0": (
            lambda *a, **k: kd.sample_dpmpp_2m_sde(*a, eta=0.0, solver_type="heun", noise_sampler=_silent, **k),
            1,
        ),
        "dpmpp_3m_sde, eta 0": (lambda *a, **k: kd.sample_dpmpp_3m_sde(*a, eta=0.0, noise_sampler=_silent, **k), 1),
    }

    def model(y: Tensor, sigma: Tensor) -> Tensor:
        return problem.clean(y, float(sigma[0]))

    def start(sigma: float) -> Tensor:
        return problem.noise * (math.hypot(1.0, sigma) if problem.process.unit_prior else sigma)

    for name, (sampler, cost) in samplers.items():
        for grid, times in grids.items():

            def run(
                _: Problem,
                nfe: int,
                sampler: Callable[..., Tensor] = sampler,
                cost: int = cost,
                times: Callable[[int], Tensor] = times,
            ) -> Tensor | None:
                sigmas = times((nfe + cost - 1) // cost)  # the last of n steps, to 0, costs one evaluation
                return sampler(model, start(float(sigmas[0])), sigmas, disable=True)

            yield Contestant("k-diffusion", f"{name}, {grid}", run)
    for least, mark in ((low, ""), (10.0 * low, " from 10 sigma_min")):
        yield Contestant(
            "k-diffusion",
            f"dpm_fast{mark}",
            lambda _, nfe, least=least: kd.sample_dpm_fast(model, start(high), least, high, nfe, disable=True),
        )


def _silent(*_: Any) -> float:
    return 0.0


def azula(problem: Problem) -> Iterator[Contestant]:
    """Any (alpha, sigma) is a schedule there, and a denoiser's may be replaced: the process's own, and theirs."""
    from azula import noise, sample
    from azula.denoise import Denoiser, DiracPosterior

    process = problem.process
    low, high = problem.sigmas

    class Own(noise.Schedule):  # type: ignore[misc]
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            time = process.t_min + (process.t_max - process.t_min) * t
            return process.alpha(time), process.sigma(time)

    class Exact(Denoiser):  # type: ignore[misc]
        def __init__(self, schedule: Any) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x: Tensor, t: Tensor) -> Any:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(problem.pair(x, float(alpha), float(sigma))[0])

    schedules = {
        "own schedule": Own(),
        "VE": noise.VESchedule(low, high),
        "cosine": noise.CosineSchedule(1.0 / high, low),
        "rectified": noise.RectifiedSchedule(1.0 / high, low),
        "decay": noise.DecaySchedule(1.0 / high, low),
    }
    samplers = {"DDIM": sample.DDIMSampler, "Euler": sample.EulerSampler, "Heun": sample.HeunSampler}
    families = {
        "zAB": sample.zABSampler,
        "vAB": sample.vABSampler,
        "zEAB": sample.zEABSampler,
        "xEAB": sample.xEABSampler,
        "REAB": sample.REABSampler,
    }
    made = {name: (kind, {}) for name, kind in samplers.items()}
    made |= {f"{name} {k}": (kind, {"order": k}) for name, kind in families.items() for k in (2, 3)}
    for name, (kind, options) in made.items():
        for mark, schedule in schedules.items():

            def run(
                _: Problem, nfe: int, kind: Any = kind, options: Any = options, schedule: Any = schedule
            ) -> Tensor | None:
                steps = nfe // 2 if kind is sample.HeunSampler else nfe
                sampler = kind(Exact(schedule), steps=steps, silent=True, dtype=torch.float64, **options)
                alpha, sigma = (float(c) for c in schedule(torch.tensor(1.0, dtype=torch.float64)))
                scale = math.hypot(alpha, sigma) if process.unit_prior else sigma
                end = sampler(problem.noise * scale)
                return end / float(schedule(torch.tensor(0.0, dtype=torch.float64))[0])

            yield Contestant("azula", f"{name}, {mark}", run)


def flow_matching(problem: Problem) -> Iterator[Contestant]:
    """Its ODESolver on the flow, whose clock there runs from noise at 0 to data at 1."""
    from fokker.process import Flow

    if not isinstance(problem.process, Flow):
        return
    from flow_matching.solver import ODESolver

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        s = min(max(1.0 - float(t), 0.0), 1.0)
        x0, noise = problem.pair(x, 1.0 - s, s)
        return x0 - noise

    def edm(n: int) -> Tensor:
        """The grid of its image example: Karras sigmas from 80 to 0.002 as times of the flow."""
        ramp = torch.linspace(0.0, 1.0, n, dtype=torch.float64)
        sigmas = (80.0 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
        sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
        return 1.0 - sigmas / (1.0 + sigmas)

    grids = {"uniform": lambda n: torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64), "edm": edm}
    costs = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 1}
    for method, cost in costs.items():
        for grid, times in grids.items():

            def run(
                _: Problem,
                nfe: int,
                method: str = method,
                cost: int = cost,
                times: Callable[[int], Tensor] = times,
            ) -> Tensor | None:
                # explicit_adams begins with Runge-Kutta steps of four evaluations
                steps = nfe - 6 if method == "explicit_adams" else nfe // cost
                if steps < 1:
                    return None
                at = times(steps).float()
                return ODESolver(velocity).sample(problem.noise, step_size=None, method=method, time_grid=at)

            yield Contestant("flow_matching", f"{method}, {grid}", run)
