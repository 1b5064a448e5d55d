"""The roots: energy models, VAEs, normalising flows, autoregressive models and GANs, on the same data and trainer."""

from .autoregressive import Autoregressive
from .gan import GAN
from .model import Model

__all__ = ["GAN", "Autoregressive", "Model"]
