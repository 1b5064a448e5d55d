"""What there is to choose from: every kind of solver, what it costs, and when to take it.

Families, sides and advice are written here; orders and costs are read off the solvers. `fokker solvers` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

from ..component import Array
from ..errors import ConfigError
from ..process import VP
from ..registry import build
from .base import Solver
from .deis import LMS
from .dpmv3 import Statistics
from .grid import UniformLam

__all__ = ["CATALOGUE", "Entry", "entries"]


@dataclass(frozen=True)
class Entry:
    """A solver one may choose.

    Args:
        kind: its name in the registry.
        family: how it steps.
        side: which prediction it holds or interpolates; "" where that is its inner solver's affair.
        when: what it is for, in a line.
        fields: those that make it this one.
        shown: how a command names it, where its fields are not what one would write (a file of one's own).
    """

    kind: str
    family: str
    side: str
    when: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    shown: str = ""

    @property
    def solver(self) -> Solver:
        made: Solver = build("solver", {"kind": self.kind, **self.fields})
        return made

    @property
    def order(self) -> int:
        """Global order of convergence, weak where it draws noise (at most 2); a corrector is worth one more."""
        made = self.solver
        if made.stochastic or isinstance(made, LMS):  # whose first steps are of order 1, and no start="single" is there
            return min(made.order, 2)
        return made.order + bool(getattr(made, "corrector", False))

    @property
    def cost(self) -> tuple[Fraction, int] | None:
        """(a, b) where N steps that end above time 0 cost a N + b evaluations; None where samples differ in cost."""
        return cost(self.solver)


def cost(solver: Solver) -> tuple[Fraction, int] | None:
    """`Entry.cost` of any solver, from its plans of 24 and 48 steps."""
    process = VP()
    try:
        few, many = (
            solver.plan(process, UniformLam().times(process, steps, process.T, process.t_min, False)).nfe
            for steps in (24, 48)
        )
    except ConfigError:  # it has no plan
        return None
    slope = Fraction(many - few, 24)
    return slope, int(few - 24 * slope)


V3 = {"statistics": Statistics(*(Array(v) for v in ([-30.0, 30.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0])))}
RUNGE_KUTTA, SINGLE, MULTI = "Runge-Kutta", "exponential, single-step", "exponential, multistep"
SDE, LANGEVIN, PARALLEL = "stochastic", "Langevin", "parallel in time"

CATALOGUE = (
    Entry("euler", RUNGE_KUTTA, "velocity", "a baseline; DDIM where alpha, sigma are affine in t"),
    Entry("heun", RUNGE_KUTTA, "velocity", "the second-order baseline"),
    Entry("heun", RUNGE_KUTTA, "noise", "EDM's deterministic sampler (--grid karras)", {"space": "rho"}),
    Entry("rk4", RUNGE_KUTTA, "velocity", "a reference, at hundreds of evaluations"),
    Entry("adaptive", RUNGE_KUTTA, "v", "an accuracy rather than a budget"),
    Entry("ddim", SINGLE, "both", "order 1: what the others are measured by"),
    Entry("dpm", SINGLE, "noise", "DPM-Solver-2 as published; not under guidance", {"published": True}),
    Entry("dpm", SINGLE, "noise", "DPM-Solver-3 as published; not under guidance", {"order": 3}),
    Entry(
        "dpm++",
        SINGLE,
        "x0",
        "2S as published: strong guidance with --grid lam",
        {"variant": "S", "published": True},
    ),
    Entry("taylor", SINGLE, "noise", "a reference with exact derivatives; slow", {"order": 2}),
    Entry("exp-euler", SINGLE, "noise", "the book's Eq. 9.1.7, to compare"),
    Entry("exp-heun", SINGLE, "x0", "the book's Eq. 9.4.14, to compare", {"reading": "x0"}),
    Entry("adams", MULTI, "v", "the default, with its grid: networks, 5 to 50 evaluations"),
    Entry("adams", MULTI, "v", "smooth or exact denoisers, 8 evaluations or more", {"degree": 2}),
    Entry("adams", MULTI, "velocity", "exact denoisers of a flow, with --grid beta", {"degree": 3, "space": "flow"}),
    Entry("deis", MULTI, "noise", "the best with --grid lam, from 8 evaluations on", {"degree": 3, "space": "lam"}),
    Entry("deis", MULTI, "noise", "exact, concentrated data from 10 evaluations (--grid lam)", {"space": "lam"}),
    Entry("deis", MULTI, "noise", "tAB-DEIS as published", {"degree": 3}),
    Entry("dpm++", MULTI, "x0", "2M with exact weights"),
    Entry("dpm++", MULTI, "x0", "2M as published: the better 2M to 50 evaluations", {"published": True}),
    Entry("dpm++", MULTI, "x0", "3M: the data side at 50 evaluations", {"order": 3}),
    Entry("unipc", MULTI, "x0", "50 evaluations or more (--grid lam)"),
    Entry("dpmv3", MULTI, "fitted", "few evaluations on tuned times", V3, "dpmv3:statistics=FILE"),
    Entry("pndm", MULTI, "noise", "PLMS as published (--grid lam)"),
    Entry("lms", MULTI, "noise", "k-diffusion's LMS; order 2 in the limit"),
    Entry("picard", PARALLEL, "", "latency: another's steps together, DDIM's by default"),
    Entry("sa", SDE, "x0", "a little noise at 10 to 20 evaluations"),
    Entry("dpm++", SDE, "x0", "SDE-DPM-Solver++(2M)", {"sde": True}),
    Entry("ancestral", SDE, "x0", "DDPM's sampler, hundreds of steps"),
    Entry("ddim", SDE, "x0", "ancestral sampling in DDIM's family", {"eta": 1.0}),
    Entry("euler-maruyama", SDE, "x0", "the reverse SDE as it stands, thousands of steps"),
    Entry("edm-stochastic", SDE, "noise", "EDM's churn (--grid karras), hundreds of evaluations"),
    Entry("restart", SDE, "", "a learned model's errors: noise in, solved out again"),
    Entry("predictor-corrector", LANGEVIN, "", "a Langevin step after every step of another solver"),
    Entry("annealed-langevin", LANGEVIN, "noise", "NCSN's sampler: few levels, many steps at each"),
)


@cache
def entries(kind: str) -> tuple[Entry, ...]:
    """The entries of a kind."""
    return tuple(entry for entry in CATALOGUE if entry.kind == kind)
