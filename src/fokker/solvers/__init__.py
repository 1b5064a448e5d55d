"""Solvers: recipes of coefficients that turn (process, grid) into a plan, and the one engine that runs every plan."""

from .ancestral import Ancestral
from .base import Solver, steps_for_nfe
from .ddim import DDIM
from .grid import (
    Angle,
    Beta,
    Grid,
    Karras,
    Leading,
    Linspace,
    Quadratic,
    Shift,
    Times,
    Trailing,
    UniformLam,
    UniformT,
    as_grid,
)
from .plan import Plan, Stage, Step
from .rk import RK4, Euler, Heun
from .run import bind, run
from .sde import EDMStochastic, EulerMaruyama

__all__ = [
    "DDIM",
    "RK4",
    "Ancestral",
    "Angle",
    "Beta",
    "EDMStochastic",
    "Euler",
    "EulerMaruyama",
    "Grid",
    "Heun",
    "Karras",
    "Leading",
    "Linspace",
    "Plan",
    "Quadratic",
    "Shift",
    "Solver",
    "Stage",
    "Step",
    "Times",
    "Trailing",
    "UniformLam",
    "UniformT",
    "as_grid",
    "bind",
    "run",
    "steps_for_nfe",
]
