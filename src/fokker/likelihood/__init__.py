"""Log-likelihoods of diffusion models, by the ODE, the variational bound and weighted paths; bits; latents."""

from .bound import Bound, elbo
from .budget import Budget, error_budget
from .ddpm import ChainBound, ddpm_bound, optimal_variance
from .flow import LogProb, log_prob
from .latents import interpolate, slerp
from .paths import Weighted, path_kl, weighted_log_prob
from .pixels import bits_per_dim, dequantise

__all__ = [
    "Bound",
    "Budget",
    "ChainBound",
    "LogProb",
    "Weighted",
    "bits_per_dim",
    "ddpm_bound",
    "dequantise",
    "elbo",
    "error_budget",
    "interpolate",
    "log_prob",
    "optimal_variance",
    "path_kl",
    "slerp",
    "weighted_log_prob",
]
