"""Networks: each small, safe under `torch.func.jvp` and `torch.compile`, with a null class for guidance.

All are called as `net(x, time, cond=None)`: x (B, *event), time (B,) or 0-dim and of order one (the caller decides
what it is: t, log-SNR/4, ...), cond what the net was built for. The output is exactly 0 before training.
"""

from .attention import attend
from .autoencoder import Autoencoder, load_autoencoder, save_autoencoder
from .count import Count, count
from .dit import DiT
from .features import Condition, Context, Embedding, TimeFeatures
from .mlp import MLP
from .unet import UNet

__all__ = [
    "MLP",
    "Autoencoder",
    "Condition",
    "Context",
    "Count",
    "DiT",
    "Embedding",
    "TimeFeatures",
    "UNet",
    "attend",
    "count",
    "load_autoencoder",
    "save_autoencoder",
]
