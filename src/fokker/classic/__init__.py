"""The roots: energy models, VAEs, normalising flows, autoregressive models and GANs, on the same data and trainer."""

from .aggregate import Diagnosis, diagnose, log_aggregate, optimal_decoder
from .autoregressive import Autoregressive
from .cnf import CNF
from .coding import Diagonal
from .density import curl, log_density_along, log_partition
from .energy import Energy
from .flows import Bijection, Planar, RealNVP
from .gan import GAN
from .hvae import HVAE
from .langevin import Gauged, Motion, split_langevin
from .linear_gaussian import Affine, LinearChain, Terms, ddpm_chain, ppca
from .mcmc import Chains, hmc, leapfrog, mala, parallel_tempering, ula
from .model import Model
from .ncsn import annealing, level_floors, level_losses, sigmas
from .paths import MixturePath, NormalPath, inverse_cdf, kronecker
from .residual import Residual, log_det_series, roulette
from .vae import VAE

__all__ = [
    "CNF",
    "GAN",
    "HVAE",
    "VAE",
    "Affine",
    "Autoregressive",
    "Bijection",
    "Chains",
    "Diagnosis",
    "Diagonal",
    "Energy",
    "Gauged",
    "LinearChain",
    "MixturePath",
    "Model",
    "Motion",
    "NormalPath",
    "Planar",
    "RealNVP",
    "Residual",
    "Terms",
    "annealing",
    "curl",
    "ddpm_chain",
    "diagnose",
    "hmc",
    "inverse_cdf",
    "kronecker",
    "leapfrog",
    "level_floors",
    "level_losses",
    "log_aggregate",
    "log_density_along",
    "log_det_series",
    "log_partition",
    "mala",
    "optimal_decoder",
    "parallel_tempering",
    "ppca",
    "roulette",
    "sigmas",
    "split_langevin",
    "ula",
]
