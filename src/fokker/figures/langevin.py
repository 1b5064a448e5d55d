"""Langevin dynamics and the Fokker-Planck equation: one law, many ways through it."""

from . import langevin_more as more
from . import langevin_seed as seed
from .sets import Figure

__all__ = ["FIGURES"]

VIEW = 'Zheng & Lan, "Rethinking the diffusion model from a Langevin perspective"'
OVERVIEW = 'Wojtowytsch, "Diffusion models: a high level mathematical overview"'

FIGURES = (
    Figure(
        "langevin-identity",
        f"{VIEW}, Fig. 1: Langevin dynamics dx = s dtau + sqrt(2) dw is the identity on the law (contours) and not on "
        "its samples (five of them in colour, with their ways).",
        seed.identity,
    ),
    Figure(
        "forward-clouds",
        f"{VIEW}, Fig. 2: the same data and the same noise as x (variance preserving), z (variance exploding) and r "
        "(rectified flow), at equal noise levels sigma / alpha: one picture up to a scale. Frames are as wide as "
        "written.",
        seed.forward_clouds,
    ),
    Figure(
        "forward-step",
        f"{VIEW}, Fig. 3: one forward step of dx = -x/2 dt + dw. Arrows: the drift; dashed: one standard deviation of "
        "the noise added; right: draws from each point.",
        seed.forward_step,
    ),
    Figure(
        "split",
        f"{VIEW}, Fig. 4: forward step + reverse step = Langevin step. From one point (black dot): where noise takes "
        "it, where the reverse SDE then takes that, and one step of Langevin dynamics: the same mean (cross) and "
        "covariance (2 standard deviations). Right: by how much the two halves change the variance of a normal law, "
        "which they would leave alone if they cancelled: second order in the step.",
        seed.split,
    ),
    Figure(
        "one-point",
        f"{VIEW}, Fig. 5: reverse processes of four models whose data are one point (star). The flows of VE and of "
        "rectified flow are straight here, VP's bends; on the three normals of the other figures, rectified flow's is "
        "the most bent of the three (median chord / length .55 against .87 for VP and 1.00 for VE, whose chord is "
        "80 long).",
        seed.one_point,
    ),
    Figure(
        "cycle",
        f"{VIEW}, Fig. 6: the cycle. Forward SDE from the data (left) to noise (dashed line), reverse SDE back to the "
        "data (right); grey: the density's root.",
        seed.cycle,
    ),
    Figure(
        "ladder",
        f"{VIEW}, Fig. 7: the duality ladder. At every rung the laws of the forward chain and of the reverse chain, "
        "started from other samples of p_T, are the exact p_t (black): each rung down undoes one rung up.",
        seed.ladder,
    ),
    Figure(
        "three-paths",
        f"{OVERVIEW}, Fig. 1: three paths between the same two normal laws: above their densities, below the ways of "
        "equally likely particles under the velocity that solves the continuity equation. On the mixture path mass "
        "crosses the gap at a speed of 1 / density.",
        more.paths,
    ),
    Figure(
        "two-moons",
        f"{OVERVIEW}, Figs. 2 and 3: the family d_t q = beta Lap q - div(q ((1 + beta) score + x)) from noise to two "
        "moons (grey: 1000 data points, whose exact score is used), T = 3, tau = .01, 40 starts; of the three ways "
        "dots are the starts, stars the ends.",
        more.moons,
    ),
    Figure(
        "no-way-back",
        f"{OVERVIEW}, Figs. 4 and 5: no picture is un-noised. Noise, then the flow or the reverse SDE from there, give "
        "other pictures; encoding by the flow itself can be undone. OU, T = 3; the model is the exact denoiser of 500 "
        "pictures of clothes. Encoded are the pictures with noise of std .04, since a data point itself is at rest.",
        more.no_way_back,
    ),
    Figure(
        "memorisation",
        f"{OVERVIEW}, Sec. 4.4: samples by the exact score of 200 points of two moons. Equal steps end within one step "
        "of 0, and what looks new is their error; towards t_min = 0 the samples become the data.",
        more.memorisation,
    ),
    Figure(
        "joint",
        "Book Sec. 4.1.5: one marginal, many dynamics. Data and noise of .3 N(-1, .35^2) + .7 N(.8, .25^2) on OU, "
        "T = 1, joined by the forward kernel, by the reverse SDE (the same joint law), by the probability flow (a "
        "curve), and by a coin between kernel and flow. Each has the same law along either axis.",
        more.joint,
    ),
    Figure(
        "gauge",
        "Book Sec. B.1.2: a velocity is not determined by its densities. A score with an antisymmetric A is divergence-"
        "free against p and turns along its contours; from the same noise, other ways to other ends of the same law.",
        more.gauge,
    ),
    Figure(
        "ito-stratonovich",
        "Book Sec. A.2.2: the integrand at the left end gives (w^2 - t)/2, its mean over both ends w^2/2; half the "
        "quadratic variation is between them. The first converges with slope 1/2, the second is exact at any number of "
        "steps.",
        more.sums,
    ),
    Figure(
        "decay",
        f"{VIEW}, Sec. 5: along the forward process (OU) divergences fall; that to the normal law at least as e^(-2t). "
        "Right: how KL(p_0, q_0) is spread over time, as an area in log t.",
        more.decay,
    ),
)
