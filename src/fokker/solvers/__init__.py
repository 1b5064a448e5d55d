"""Solvers: recipes of coefficients that turn (process, grid) into a plan, and the one engine that runs every plan."""

from .adams import Adams
from .adaptive import Adaptive, Solution
from .ancestral import Ancestral
from .base import Solver, steps_for_nfe
from .ddim import DDIM
from .deis import DEIS, LMS
from .dpm import DPM, DPMpp
from .dpmv3 import DPMv3, Statistics
from .grid import (
    Angle,
    Beta,
    FlowTime,
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
from .picard import Picard, PicardSolution
from .plan import Plan, Stage, Step
from .pndm import PNDM
from .restart import Restart
from .rk import RK4, Euler, Heun
from .run import bind, run
from .sa import SA
from .sde import EDMStochastic, EulerMaruyama
from .semilinear import ExpEuler, ExpHeun
from .taylor import Taylor
from .unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "DPM",
    "LMS",
    "PNDM",
    "RK4",
    "SA",
    "Adams",
    "Adaptive",
    "Ancestral",
    "Angle",
    "AnnealedLangevin",
    "Beta",
    "DPMpp",
    "DPMv3",
    "EDMStochastic",
    "Euler",
    "EulerMaruyama",
    "ExpEuler",
    "ExpHeun",
    "FlowTime",
    "Grid",
    "Heun",
    "Karras",
    "Leading",
    "Linspace",
    "Picard",
    "PicardSolution",
    "Plan",
    "PredictorCorrector",
    "Quadratic",
    "Restart",
    "Shift",
    "Solution",
    "Solver",
    "Stage",
    "Statistics",
    "Step",
    "Taylor",
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
