"""Laws whose every diffusion quantity is known in closed form: what all of fokker is tested against."""

from .denoisers import ExactDenoiser
from .empirical import Empirical
from .laws import Gaussian, GaussianMixture, Law, Moments
from .marginal import Conditional, Marginal
from .pair import Pair

__all__ = [
    "Conditional",
    "Empirical",
    "ExactDenoiser",
    "Gaussian",
    "GaussianMixture",
    "Law",
    "Marginal",
    "Moments",
    "Pair",
]
