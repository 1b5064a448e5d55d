"""Chapter 9: fast solvers of the probability-flow ODE."""

from . import solvers_book as book
from . import solvers_more as more
from .sets import Figure

__all__ = ["FIGURES"]

LAW = "The data are .3 N(-1, .35^2) + .7 N(.8, .25^2), whose flow is known exactly; errors are over 25 equally likely"
LAW += " starts at the noisiest time"
DOWN = f"{LAW}, and taken at t_min."
TO_ZERO = f"{LAW}, and taken at time 0 after a last step by x0 (final=x0)."

FIGURES = (
    Figure(
        "ddim-jump",
        "Book Fig. 9.1: DDIM as an Euler step. From x_s the exact trajectory (grey) bends away from the straight jump "
        "(orange); the gap (blue) grows as the square of the step.",
        book.ddim_jump,
    ),
    Figure(
        "deis-extrapolation",
        "Book Fig. 9.2: DEIS as a multistep method. The quadratic through the anchors t_2, t_3, t_4 is extrapolated to "
        "t_5; DDIM takes the last value for the whole step. On the EDM process x moves by the integral of the noise "
        "prediction over t, so that the shaded areas are the errors of the step.",
        book.deis_extrapolation,
    ),
    Figure(
        "heun-parallelogram",
        "Book Fig. 9.3: plain Heun in lam. The predictor (blue) and the slope at its end (green) span a parallelogram; "
        "Heun's step is half its diagonal.",
        book.heun_parallelogram,
    ),
    Figure(
        "picard-graphs",
        "Book Fig. 9.4: what each state is made of, found by differentiation. (a) one step after another; (b) a Picard "
        "iteration, where every node needs the previous iterate only (dark: the node before), and x_0 is copied.",
        book.picard_graphs,
    ),
    Figure(
        "sliding-window",
        "Book Figs. 9.5 to 9.7: one iteration of the sliding window, p = 4. Drifts at the window's states in one "
        "batch; new states by their running sum from the left end x_l (where the book's Algorithm 8, line 9, has "
        "x_{l+j}); the window slides to the first node (orange) whose change is above the tolerance, which is right "
        "already, since all before it (green) had converged; the grey ones stay in the window.",
        book.sliding_window,
    ),
    Figure(
        "orders",
        f"Order of convergence on VP, uniform lam, with exact weights. Multistep solvers above order 2 start by single "
        f"steps; Euler and DDIM near their slope beyond these steps only (.9 at 512). {DOWN}",
        more.orders,
    ),
    Figure(
        "budgets",
        "Error against evaluations, uniform lam, multistep solvers with start=ramp; and sample's default (dashed), "
        f"Adams on equal steps of flow time. Curves leave the frame where errors are above 3. {DOWN}",
        more.budgets,
    ),
    Figure(
        "guidance",
        "Error against the scale of classifier-free guidance to the second mode, on VP, uniform lam. Single-step "
        f"solvers of the noise side explode (book Sec. 9.5.1); a bound on x0 stops it. {DOWN}",
        more.guidance,
    ),
    Figure(
        "grids",
        f"Ten steps of the grids {', '.join(more.KINDS)}, in t (above) and in lam (below); on Flow, flow is t. Not "
        "drawn are leading, linspace and trailing, which are uniform in t with other ends.",
        more.grids,
    ),
    Figure(
        "grid-errors",
        f"Error of DEIS-3 in lam on the grids {', '.join(more.KINDS)}: the same solver, other times. On Flow, flow is "
        f"t. {TO_ZERO}",
        more.grid_errors,
    ),
    Figure(
        "picard-residual",
        "Distance of every Picard iterate from the sequential solution: node j is exact after j iterations, and all "
        "are within 1e-6 after 7 iterations.",
        more.picard_residual,
    ),
    Figure(
        "fans",
        "Fifteen equally likely starts on VP: exact trajectories (grey) and those of few-step solvers (blue), where "
        "they are within +-2.6; beyond, they leave the frame.",
        more.fans,
    ),
    Figure(
        "predictors",
        "The bounded noise predictor against the exploding score on VP (book Sec. 9.1.2): E|noise|^2 is at most 1, "
        "while E|score|^2 = E|noise|^2 / sigma^2 follows 1 / sigma^2 until sigma is below the width of the data.",
        more.predictors,
    ),
    Figure(
        "concentrated",
        "Where exponential integrators win: with modes of std .02 Heun in t needs 20 evaluations to match DDIM "
        "(uniform lam), or more than 50 (uniform t); on uniform lam UniPC is ahead of both from 10 evaluations on, "
        "2M level with DDIM at 10 and ahead from 15. Median errors, VP.",
        more.concentrated,
    ),
)
