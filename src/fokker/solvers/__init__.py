"""Solvers: recipes of coefficients that turn (process, grid) into a plan, and the one engine that runs every plan."""

from .ancestral import Ancestral
from .base import Solver, steps_for_nfe
from .ddim import DDIM
from .grid import Grid, Karras, Quadratic, Times, UniformLam, UniformT, as_grid
from .langevin import AnnealedLangevin, PredictorCorrector
from .plan import Plan, Stage, Step
from .restart import Restart
from .rk import RK4, Euler, Heun
from .run import bind, run
from .sde import EDMStochastic, EulerMaruyama

__all__ = [
    "DDIM",
    "RK4",
    "Ancestral",
    "AnnealedLangevin",
    "EDMStochastic",
    "Euler",
    "EulerMaruyama",
    "Grid",
    "Heun",
    "Karras",
    "Plan",
    "PredictorCorrector",
    "Quadratic",
    "Restart",
    "Solver",
    "Stage",
    "Step",
    "Times",
    "UniformLam",
    "UniformT",
    "as_grid",
    "bind",
    "run",
    "steps_for_nfe",
]
