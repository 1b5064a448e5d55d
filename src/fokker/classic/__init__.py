"""The roots: energy models, VAEs, normalising flows, autoregressive models and GANs, on the same data and trainer."""

from .density import curl, log_density_along, log_partition
from .energy import Energy
from .mcmc import Chains, hmc, leapfrog, mala, parallel_tempering, ula
from .model import Model

__all__ = [
    "Chains",
    "Energy",
    "Model",
    "curl",
    "hmc",
    "leapfrog",
    "log_density_along",
    "log_partition",
    "mala",
    "parallel_tempering",
    "ula",
]
