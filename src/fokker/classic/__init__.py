"""The roots: energy models, VAEs, normalising flows, autoregressive models and GANs, on the same data and trainer."""

from .aggregate import Diagnosis, diagnose, log_aggregate, optimal_decoder
from .coding import Diagonal
from .hvae import HVAE
from .linear_gaussian import Affine, LinearChain, Terms, ddpm_chain, ppca
from .model import Model
from .vae import VAE

__all__ = [
    "HVAE",
    "VAE",
    "Affine",
    "Diagnosis",
    "Diagonal",
    "LinearChain",
    "Model",
    "Terms",
    "ddpm_chain",
    "diagnose",
    "log_aggregate",
    "optimal_decoder",
    "ppca",
]
