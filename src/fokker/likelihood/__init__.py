"""Log-likelihoods of diffusion models: by the probability-flow ODE, by the variational bound, and of pictures."""

from .bound import Bound, elbo
from .flow import LogProb, log_prob
from .pixels import bits_per_dim, dequantise

__all__ = ["Bound", "LogProb", "bits_per_dim", "dequantise", "elbo", "log_prob"]
