"""The roots: energy models, VAEs, normalising flows, autoregressive models and GANs, on the same data and trainer."""

from .cnf import CNF
from .flows import Bijection, Planar, RealNVP
from .model import Model
from .residual import Residual, log_det_series, roulette

__all__ = ["CNF", "Bijection", "Model", "Planar", "RealNVP", "Residual", "log_det_series", "roulette"]
