"""diffusers' schedulers, run as its pipelines run them: `set_timesteps`, `scale_model_input`, the model, `step`.

On VP and the discrete chain its table is the process at its 1000 levels. On the chain the model is told the timestep
that the scheduler names, as a network would be, integers where it rounds; on VP it is told the noise level that the
state really has, which no pipeline does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fokker.process import EDM, VP, DiscreteVP, Flow, Process

from .laws import Problem
from .ours import Contestant

__all__ = ["Make", "diffusers", "drive", "table"]

Make = Callable[[], Any]
LEVELS = 1000


def table(process: Process) -> list[float]:
    """The process as betas of 1000 levels."""
    alpha = process.alpha(torch.linspace(0.0, process.T, LEVELS + 1, dtype=torch.float64))
    return (1.0 - (alpha[1:] / alpha[:-1]) ** 2).tolist()


def drive(scheduler: Any, steps: int, noise: Tensor, model: Callable[[Tensor, Any, Any], Tensor]) -> Tensor:
    """The sampling loop of a pipeline.

    Args:
        model: (scaled state, timestep, the scheduler's own sigma there or None) -> its output.
    """
    scheduler.set_timesteps(steps)
    x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        sigma = None
        if hasattr(scheduler, "sigmas") and hasattr(scheduler, "step_index"):
            if scheduler.step_index is None:
                scheduler._init_step_index(t)
            sigma = float(scheduler.sigmas[scheduler.step_index])
        x = scheduler.step(model(scaled, t, sigma), t, x, return_dict=False)[0]
    return x


def diffusers(problem: Problem) -> Iterator[Contestant]:
    """The schedulers that can follow the problem's process."""
    process = problem.process
    if isinstance(process, (VP, DiscreteVP)):
        made, model = preserving(process), noise_model(problem, told=isinstance(process, DiscreteVP))
    elif isinstance(process, EDM):
        made, model = exploding(process), edm_model(problem)
    elif isinstance(process, Flow):
        made, model = flowing(), flow_model(problem)
    else:
        return
    for name, cost, make in made:

        def run(problem: Problem, nfe: int, name: str = name, cost: int = cost, make: Make = make) -> Tensor | None:
            scheduler = make()
            steps = (nfe + cost - 1) // cost  # two evaluations a step: the last one, to 0, makes one
            if name.startswith("PNDM"):
                steps = nfe - 1  # it evaluates twice in its second step
            return drive(scheduler, steps, problem.noise, model)

        yield Contestant("diffusers", name, run)


def noise_model(problem: Problem, told: bool) -> Callable[[Tensor, Any, Any], Tensor]:
    """A network that predicts the noise at a variance-preserving state."""

    def model(x: Tensor, t: Any, sigma: float | None) -> Tensor:
        if told or sigma is None:
            sigma = math.exp(-float(problem.process.lam((float(t) + 1.0) / LEVELS * problem.process.T)))
        alpha = 1.0 / math.hypot(1.0, sigma)
        return problem.pair(x, alpha, sigma * alpha)[1]

    return model


def edm_model(problem: Problem) -> Callable[[Tensor, Any, Any], Tensor]:
    """EDM's network F with sigma_data = 1/2: x0 = c_skip y + c_out F, given c_in y."""
    d = 0.5

    def model(x: Tensor, _: Any, sigma: float) -> Tensor:
        y = x * math.hypot(sigma, d)
        c_skip, c_out = d**2 / (sigma**2 + d**2), sigma * d / math.hypot(sigma, d)
        return (problem.clean(y, sigma) - c_skip * y) / c_out

    return model


def flow_model(problem: Problem) -> Callable[[Tensor, Any, Any], Tensor]:
    """A network that predicts the velocity noise - x0."""

    def model(x: Tensor, _: Any, sigma: float) -> Tensor:
        x0, noise = problem.pair(x, 1.0 - sigma, sigma)
        return noise - x0

    return model


def preserving(process: Process) -> Iterator[tuple[str, int, Make]]:
    """(name, evaluations a step, scheduler) on a variance-preserving table."""
    import diffusers as d

    base: dict[str, Any] = {"num_train_timesteps": LEVELS, "trained_betas": table(process)}
    spacings = {name: {"timestep_spacing": name} for name in ("linspace", "leading", "trailing")}
    sigmas = {name: {f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")}
    grids: dict[str, dict[str, Any]] = {**spacings, **sigmas}
    multi: dict[str, tuple[Any, int, dict[str, Any], dict[str, dict[str, Any]]]] = {}
    lu = {**grids, "lu": {"use_lu_lambdas": True}}
    for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")):
        options = {"solver_order": order, "solver_type": kind}
        multi[f"DPM++ {order}M {kind}"] = (d.DPMSolverMultistepScheduler, 1, options, lu)
        old = {**options, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
        multi[f"DPM {order}M {kind}"] = (d.DPMSolverMultistepScheduler, 1, old, lu)
    for order, kind in itertools.product((2, 3), ("bh1", "bh2")):
        multi[f"UniPC {order} {kind}"] = (
            d.UniPCMultistepScheduler,
            1,
            {"solver_order": order, "solver_type": kind},
            grids,
        )
    for order in (2, 3):
        multi[f"DEIS {order}"] = (d.DEISMultistepScheduler, 1, {"solver_order": order}, grids)
        single = {"linspace": {}, **sigmas}
        options = {"solver_order": order, "lower_order_final": True}
        multi[f"DPM++ {order}S"] = (d.DPMSolverSinglestepScheduler, 1, options, single)
    multi["SA 2"] = (d.SASolverScheduler, 1, {"tau_func": lambda t: 0.0}, grids)
    multi["SA 3"] = (
        d.SASolverScheduler,
        1,
        {"tau_func": lambda t: 0.0, "predictor_order": 3, "corrector_order": 3},
        grids,
    )
    multi["Euler"] = (d.EulerDiscreteScheduler, 1, {}, grids)
    multi["LMS"] = (d.LMSDiscreteScheduler, 1, {}, grids)
    multi["Heun"] = (d.HeunDiscreteScheduler, 2, {}, grids)
    multi["KDPM2"] = (d.KDPM2DiscreteScheduler, 2, {}, grids)
    multi["DDIM"] = (d.DDIMScheduler, 1, {"clip_sample": False}, spacings)
    multi["PNDM"] = (d.PNDMScheduler, 1, {"skip_prk_steps": True, "set_alpha_to_one": True}, spacings)
    for name, (kind, cost, options, allowed) in multi.items():
        for grid, choice in allowed.items():
            yield (
                f"{name}, {grid}",
                cost,
                lambda kind=kind, options=options, choice=choice: kind(**{**base, **options, **choice}),
            )


def exploding(process: EDM) -> Iterator[tuple[str, int, Make]]:
    """EDM's schedulers, with the process's ends and with ten times the least sigma."""
    import diffusers as d

    for grid, (least, mark) in itertools.product(("karras", "exponential"), ((1.0, ""), (10.0, " from 10 sigma_min"))):
        ends = {"sigma_min": least * process.sigma_min, "sigma_max": process.sigma_max, "sigma_schedule": grid}
        yield f"EDMEuler, {grid}{mark}", 1, lambda ends=ends: d.EDMEulerScheduler(**ends)
        for order, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint")):
            options = {**ends, "solver_order": order, "solver_type": kind}
            name = f"EDM DPM++ {order}M {kind}, {grid}{mark}"
            yield name, 1, lambda options=options: d.EDMDPMSolverMultistepScheduler(**options)


def flowing() -> Iterator[tuple[str, int, Make]]:
    """Schedulers for flow models."""
    import diffusers as d

    for shift in (1.0, 3.0):
        for grid in ("karras", "exponential", "beta", ""):
            options = {"shift": shift, **({f"use_{grid}_sigmas": True} if grid else {})}
            name = f"FlowMatchEuler, {grid or 'uniform'}, shift {shift:g}"
            yield name, 1, lambda options=options: d.FlowMatchEulerDiscreteScheduler(**options)
        yield f"FlowMatchHeun, shift {shift:g}", 2, lambda shift=shift: d.FlowMatchHeunDiscreteScheduler(shift=shift)
        kinds: dict[str, tuple[Any, dict[str, Any]]] = {}
        for order, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint")):
            options = {"solver_order": order, "solver_type": kind}
            kinds[f"DPM++ {order}M {kind}"] = (d.DPMSolverMultistepScheduler, options)
        for order, kind in itertools.product((2, 3), ("bh1", "bh2")):
            kinds[f"UniPC {order} {kind}"] = (d.UniPCMultistepScheduler, {"solver_order": order, "solver_type": kind})
        for order in (2, 3):
            kinds[f"DEIS {order}"] = (d.DEISMultistepScheduler, {"solver_order": order})
            kinds[f"DPM++ {order}S"] = (
                d.DPMSolverSinglestepScheduler,
                {"solver_order": order, "lower_order_final": True},
            )
        flow = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
        for name, (kind, options) in kinds.items():
            yield (
                f"{name}, flow, shift {shift:g}",
                1,
                lambda kind=kind, options={**options, **flow}: kind(**options),
            )
