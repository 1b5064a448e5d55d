"""The roots: energy models, VAEs, normalising flows, autoregressive models and GANs, on the same data and trainer."""

from .density import curl, log_density_along, log_partition
from .energy import Energy
from .mcmc import Chains, hmc, leapfrog, mala, parallel_tempering, ula
from .model import Model
from .ncsn import annealing, level_floors, level_losses, sigmas

__all__ = [
    "Chains",
    "Energy",
    "Model",
    "annealing",
    "curl",
    "hmc",
    "leapfrog",
    "level_floors",
    "level_losses",
    "log_density_along",
    "log_partition",
    "mala",
    "parallel_tempering",
    "sigmas",
    "ula",
]
