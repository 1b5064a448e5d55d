"""Chapters 3 and 4: score matching, Langevin dynamics, score SDEs."""

from . import score_book as book
from . import sde_book as sde
from .sets import Figure

__all__ = ["FIGURES"]

FIGURES = (
    Figure(
        "energy-training",
        "Book Fig. 3.1: training an energy by maximum likelihood, with exact expectations on a grid. The energy falls "
        "on the data (green) and rises elsewhere (red); shown is the energy plus log Z, since a constant changes "
        "nothing. The loss approaches the data's entropy, which it cannot pass.",
        book.energy_training,
    ),
    Figure(
        "score-field",
        "Book Fig. 3.2: the score of a mixture of three Gaussians over its density. Arrows point uphill; their lengths "
        "are the roots of the score's.",
        book.score_field,
    ),
    Figure(
        "langevin-paths",
        "Book Fig. 3.3: unadjusted Langevin dynamics x + eta s(x) + sqrt(2 eta) z on that field, eta = 0.01 (left) and "
        "0.02 (right).",
        book.langevin_paths,
    ),
    Figure(
        "learned-score",
        "Book Fig. 3.4: a network of two hidden layers trained for 900 steps by denoising score matching, against the "
        "true score at the same level of noise. The loss does not go to 0 but to its floor.",
        book.learned_score,
    ),
    Figure(
        "conditional-scores",
        "Book Fig. 3.5: denoising score matching asks every noisy point to go back to its clean one (left); at one "
        "place the mean of what is asked, each clean point weighted by p(x | x~), is the marginal score (right).",
        book.conditional_scores,
    ),
    Figure(
        "score-error",
        "Book Fig. 3.6: where no samples fall the learned score is wrong. The network of learned-score: its error "
        "over the plane, and against the density.",
        book.score_error,
    ),
    Figure(
        "annealing",
        "Book Fig. 3.7: NCSN. Densities at six levels of noise, and annealed Langevin dynamics with the exact score: "
        "60 steps a level, started where the level before ended (orange). The frames shrink with the noise.",
        book.annealing,
    ),
    Figure(
        "table-3-1",
        "Book Table 3.1 with its slips mended (sigma_i, not its square, times the noise; one set of symbols), and both "
        "methods' numbers on the same mixture with exact scores.",
        book.comparison,
    ),
    Figure(
        "mode-weights",
        "Langevin dynamics on a fifth N((-5, -5), I) and four fifths N((5, 5), I) from uniform starts (the toy of Song "
        "& Ermon 2019; book Sec. 3.4.1): after 1000 steps the plain chain keeps the share it started with; annealed "
        "over ten levels it finds the weights.",
        book.mode_weights,
    ),
    Figure(
        "one-step",
        "Book Fig. 4.1: one noising step. The drift moves the mean, the noise spreads it; the Euler-Maruyama Gaussian "
        "beside the exact kernel, for a step long enough to tell them apart.",
        sde.one_step,
    ),
    Figure(
        "forward-heat",
        "Book Fig. 4.2: a bimodal law turns into noise. Paths of the forward SDE (blue) and of the probability flow "
        "(white) from the same starts have the same densities at every t; the white ones never cross.",
        sde.forward_heat,
    ),
    Figure(
        "reverse-heat",
        "Book Fig. 4.3: paths of the reverse SDE from the prior (dots, right) to the data (squares, left), exact "
        "score, 400 steps of Euler-Maruyama.",
        sde.reverse_heat,
    ),
    Figure(
        "snapshots",
        "Book Fig. 4.4: two modes in the plane under f = 0, g = sqrt(2 t), at four times, with samples. At T the law "
        "is near N(0, T^2 I), stretched by the data's own spread.",
        sde.snapshots,
    ),
    Figure(
        "two-ways",
        "Book Fig. 4.5: from one x_T the reverse SDE (blue) reaches both modes, while the probability flow (red) "
        "has one path.",
        sde.two_ways,
    ),
    Figure(
        "perturbations",
        "Book Fig. 4.6: noise added step by step and all at once gives the same law p_t. VP, t = 0.35.",
        sde.perturbations,
    ),
    Figure(
        "table-4-1",
        "Book Table 4.1: the SDEs, with the sub-VP SDE that the book leaves out; B is the integral of beta. Below, the "
        "kernels of x_0 stepped from f and g^2 (RK4, 400 steps to each time) beside the closed forms.",
        sde.summary,
    ),
    Figure(
        "wrong-signs",
        "Book Thm 4.1.1(ii): the reverse SDE on the reversed clock u, from N(2, .25) noised by beta = 1 to T = 3: "
        "mean and variance as the corrected drift, the drift whose sign was not flipped, and the theorem as printed "
        "give them. Only the first comes back to 2 and .25.",
        sde.wrong_signs,
    ),
)
