"""Section 5.1 and the appendices: maps, flows and their likelihoods."""

from . import likelihood_more as more
from . import transport_book as book
from .sets import Figure

__all__ = ["FIGURES"]

FIGURES = (
    Figure(
        "normalizing-flow",
        "Book Fig. 5.1: a normalizing flow carries N(0, I) to data by an invertible map, and data back. Four affine "
        "couplings of fixed parameters; points keep the colour of their angle.",
        book.normalizing_flow,
    ),
    Figure(
        "flow-stack",
        "Book Fig. 5.2: the same flow layer by layer, samples with the moved grid, and the density by the change of "
        "variables. Every coupling moves one coordinate; the sum of log|det| is what the density pays.",
        book.flow_stack,
    ),
    Figure(
        "residual-layers",
        "Book Fig. 5.3: a residual network's layers are Euler steps of a continuous flow. Noise (left) to two modes; "
        "the field is the probability flow's on the flow's own clock u = 1 - t.",
        book.residual_layers,
    ),
    Figure(
        "euler-steps",
        "Book Fig. A.1: a velocity field as arrows; Euler's steps beside the trajectories they miss (left), exact "
        "trajectories x(0) exp(sin t) of x' = x cos t (right).",
        book.euler_steps,
    ),
    Figure(
        "change-of-variables",
        "Book Fig. B.1: one principle at four levels: a single bijection; a composition of them; an ODE with the "
        "continuity equation; an SDE with the Fokker-Planck equation. Samples (bars) are moved, densities (lines) "
        "computed: by Jacobians, by the divergence along the flow, by finite volumes.",
        book.change_of_variables,
    ),
    Figure(
        "deforming",
        "Book Fig. B.2: a flow from noise to data at four times: its field with the grid it deforms, samples it "
        "moves, and the density, by the likelihood ODE back to the first time.",
        book.deforming,
    ),
    Figure(
        "picard",
        "Picard iteration (book Sec. A.1.4): all nodes at once from the iterate before. The error may grow at first; "
        "after k iterations the first k nodes are the sequential solver's.",
        more.picard,
    ),
    Figure(
        "stiff",
        "Order of convergence (book Sec. A.1.3, A.1.4) on a stiff equation. While 20 h is large Euler and Heun blow "
        "up, and RK4 too; the exponential integrators, which solve -20 x exactly, do not. Right: the weak order 1 of"
        " Euler-Maruyama, the moments of the reverse SDE of dx = -x/2 dt + dw from T = 3, without draws.",
        more.stiff,
    ),
    Figure(
        "girsanov",
        "Girsanov weights (book Sec. C.2) of dx = (1 - x) dt + dw against dx = -x dt + dw: the log-ratio along paths "
        "of either model with its exact law, and the share of effective paths, which decays exponentially with the "
        "horizon.",
        more.girsanov,
    ),
    Figure(
        "merging",
        "Data at -1 and 1 (book Sec. A.1.1): trajectories of the probability flow never meet at t > 0, yet at t = 0 "
        "all of one side are one point, and the map from noise to data has no inverse.",
        more.merging,
    ),
    Figure(
        "preconditioning",
        "EDM's coefficients against the level of noise (book Sec. D.6.2), sigma_data = .5.",
        more.preconditioning,
    ),
    Figure(
        "flow-likelihood",
        "Exact log-likelihood by the probability flow (book Eq. 4.2.7) against the closed form. Ending in N(0, 1) in "
        "place of p_T costs up to .01 nats, whatever the solver.",
        more.flow_likelihood,
    ),
    Figure(
        "probes",
        "The log-likelihood (book Eq. 4.2.7) with Hutchinson's divergence, its error against the exact divergence's "
        "for 64 samples, and the standard error that it states of itself.",
        more.probes,
    ),
    Figure(
        "bounds",
        "The variational bound (book Thm 2.2.3) against log p along x. With the exact score it is tight; with 1.2 "
        "times the score it loses most where there is little data. It bounds the density of the model's samples, "
        "which between 1 and 1.4 is above the data's. Points: the library's estimate.",
        more.bounds,
    ),
    Figure(
        "error-budget",
        "What sampling loses (book Sec. C.2.1), in closed form on N(0, .3) and VP with beta from .1 to 2.5: the "
        "divergence between the paths of data and sampler as prior, score and discretisation; it bounds the "
        "divergence of the samples (diamonds).",
        more.error_budget,
    ),
)
