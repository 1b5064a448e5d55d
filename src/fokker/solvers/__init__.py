"""Solvers: recipes of coefficients that turn (process, grid) into a plan, and the one engine that runs every plan."""

from .adams import Adams
from .ancestral import Ancestral
from .base import Solver, steps_for_nfe
from .ddim import DDIM
from .deis import DEIS
from .dpm import DPM, DPMpp
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
from .langevin import AnnealedLangevin, PredictorCorrector
from .plan import Plan, Stage, Step
from .pndm import PNDM
from .restart import Restart
from .rk import RK4, Euler, Heun
from .run import bind, run
from .sde import EDMStochastic, EulerMaruyama
from .semilinear import ExpEuler, ExpHeun
from .unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "DPM",
    "PNDM",
    "RK4",
    "Adams",
    "Ancestral",
    "Angle",
    "AnnealedLangevin",
    "Beta",
    "DPMpp",
    "EDMStochastic",
    "Euler",
    "EulerMaruyama",
    "ExpEuler",
    "ExpHeun",
    "Grid",
    "Heun",
    "Karras",
    "Leading",
    "Linspace",
    "Plan",
    "PredictorCorrector",
    "Quadratic",
    "Restart",
    "Shift",
    "Solver",
    "Stage",
    "Step",
    "Times",
    "Trailing",
    "UniPC",
    "UniformLam",
    "UniformT",
    "as_grid",
    "bind",
    "run",
    "steps_for_nfe",
]
