"""Training of an autoencoder, for latent diffusion: reconstruction of images from slightly noisy latents."""

from __future__ import annotations

import math

import torch
from rich.console import Console
from rich.progress import track
from torch.nn.functional import mse_loss

from .. import noise as philox
from ..data import Samples
from ..errors import ConfigError
from ..nets import Autoencoder

__all__ = ["fit_autoencoder", "reconstruction_error"]


def fit_autoencoder(
    samples: Samples,
    *,
    latent: int = 4,
    width: int = 32,
    levels: int = 2,
    steps: int = 2000,
    batch: int = 64,
    lr: float = 2e-3,
    noise: float = 0.05,
    seed: int = 0,
    progress: bool = False,
) -> Autoencoder:
    """An autoencoder of these images: E |decode(encode(x) + noise eps) - x|^2 by AdamW, the rate falling as a cosine.

    What step k draws is a function of (seed, k) alone.

    Args:
        samples: square images.
        latent, width, levels: see `Autoencoder`.
        steps, batch, lr: of the training; the norm of the gradient is clipped at 1.
        noise: deviation of the noise added to the latents, which lie in (-1, 1); >= 0.
        seed: of the weights, the order and the noise.
        progress: show a bar.

    Returns:
        it, frozen, on the CPU and in evaluation mode.

    Raises:
        ConfigError: the samples are no square images, or a number is out of range.
    """
    if not samples.is_image or samples.shape[1] != samples.shape[2]:
        raise ConfigError(f"fit_autoencoder: given samples of shape {samples.shape}, must be square images (bytes)")
    if steps < 1 or batch < 1 or not 0 < lr < math.inf or not 0 <= noise < math.inf:
        raise ConfigError(f"fit_autoencoder: given {steps=}, {batch=}, {lr=}, {noise=}; must be >= 1, >= 1, > 0, >= 0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Autoencoder(samples.shape[0], samples.shape[1], latent, width, levels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net.to(device)
    batch = min(batch, len(samples))
    an_epoch = len(samples) // batch
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    positions = torch.arange(batch)
    order = positions
    for step in track(range(steps), "autoencoder", disable=not progress, console=Console(stderr=True)):
        if step % an_epoch == 0:
            order = philox.permutation(seed, len(samples), step // an_epoch)
        x, _ = samples.take(order[step % an_epoch * batch :][:batch])
        x = samples.augment(x.to(device), seed=seed, step=step, positions=positions)
        z = net.encode(x)
        eps = philox.normal(seed, positions.to(device), z.shape[1:], draw=step << 8, domain="training")
        loss = mse_loss(net.decode(z + noise * eps), x)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return net.cpu().requires_grad_(False).eval()


@torch.no_grad()
def reconstruction_error(net: Autoencoder, samples: Samples, batch: int = 256) -> tuple[float, float]:
    """(E |decode(encode(x)) - x|^2, E |x - mean image|^2), each per pixel of images in [-1, 1]."""
    rows = torch.split(torch.arange(len(samples)), batch)
    mean = torch.stack([samples.take(some)[0].double().sum(0) for some in rows]).sum(0) / len(samples)
    sums = torch.zeros(2, dtype=torch.float64)
    for some in rows:
        x, _ = samples.take(some)
        sums += torch.stack([(net(x) - x).square().double().sum(), (x - mean).square().double().sum()])
    error, spread = (sums / samples.values.numel()).tolist()
    return error, spread
