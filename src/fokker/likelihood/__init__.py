"""Log-likelihoods of diffusion models: by the ODE, the variational bound and weighted paths; pictures in bits."""

from .bound import Bound, elbo
from .flow import LogProb, log_prob
from .paths import Weighted, path_kl, weighted_log_prob
from .pixels import bits_per_dim, dequantise

__all__ = [
    "Bound",
    "LogProb",
    "Weighted",
    "bits_per_dim",
    "dequantise",
    "elbo",
    "log_prob",
    "path_kl",
    "weighted_log_prob",
]
