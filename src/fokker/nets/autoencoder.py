"""A small convolutional autoencoder: images to fewer numbers and back, for diffusion among latents."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from ..component import recorded
from ..errors import ConfigError, FileError
from ..files import read_tensors, write_tensors
from ..registry import build, spec
from .features import at_least, zeroed

__all__ = ["Autoencoder", "load_autoencoder", "save_autoencoder"]

FORMAT = "fokker-autoencoder-1"


def _norm(channels: int) -> nn.GroupNorm:
    # Groups of 4 channels and more: normalised alone, a channel would lose its contrast.
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 4)), channels)


class Block(nn.Module):
    """h + C2 silu(norm(C1 silu(norm(h))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = _norm(channels), zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        """h (B, channels, H, W) -> the same shape."""
        y: Tensor = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(h))))))
        return h + y


@recorded
class Autoencoder(nn.Module):
    """Images (B, channels, size, size) <-> latents (B, latent, size / 2^levels, size / 2^levels) in (-1, 1).

    Latents are bounded by tanh in place of a penalty on their law: a small noise added to them while the net is
    trained (`fokker.train.fit_autoencoder`) then has a scale, and keeps the decoder smooth.

    Args:
        channels: channels of the images, >= 1.
        size: height and width of the images, a multiple of 2^levels.
        latent: channels of the latents, >= 1.
        width: channels at full resolution, doubled at each level up to four times, >= 1.
        levels: how often height and width are halved, >= 1.

    Raises:
        ConfigError: an argument is out of range.
    """

    config: dict[str, object]

    def __init__(self, channels: int = 1, size: int = 28, latent: int = 4, width: int = 32, levels: int = 2) -> None:
        super().__init__()
        at_least(1, "Autoencoder", channels=channels, size=size, latent=latent, width=width, levels=levels)
        if size % 2**levels:
            raise ConfigError(f"Autoencoder.size: given {size}, must be a multiple of {2**levels} with levels={levels}")
        widths = [width * min(2**level, 4) for level in range(levels + 1)]
        down: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        up: list[nn.Module] = []
        for outer, inner in pairwise(widths):
            down += [Block(outer), nn.Conv2d(outer, inner, 3, stride=2, padding=1)]
            up = [Grow(inner, outer), Block(outer), *up]
        last = widths[-1]
        self.encoder = nn.Sequential(*down, Block(last), _norm(last), nn.SiLU(), nn.Conv2d(last, latent, 1))
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, last, 3, padding=1),
            Block(last),
            *up,
            _norm(width),
            nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> latents in (-1, 1)."""
        z: Tensor = self.encoder(x)
        return z.tanh()

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> images (B, C, H, W), in [-1, 1] up to the error."""
        x: Tensor = self.decoder(z)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """decode(encode(x))."""
        return self.decode(self.encode(x))


class Grow(nn.Module):
    """Twice the height and width: each pixel repeated, then a convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """h (B, inputs, H, W) -> (B, outputs, 2 H, 2 W)."""
        y: Tensor = self.conv(interpolate(h, scale_factor=2.0, mode="nearest"))
        return y


def save_autoencoder(path: Path | str, net: nn.Module) -> None:
    """Write an autoencoder of a kind in the registry into one safetensors file, whole or not at all.

    Raises:
        ConfigError: its class has no kind.
        FileError: the file cannot be written.
    """
    write_tensors(Path(path), net.state_dict(), {"format": FORMAT, "net": json.dumps(spec(net))})


def load_autoencoder(path: Path | str) -> nn.Module:
    """The autoencoder of a file, on the CPU, frozen and in evaluation mode.

    Raises:
        FileError: missing, damaged or foreign file, or weights that do not fit.
    """
    tensors, metadata = read_tensors(Path(path), FORMAT)
    try:
        net: nn.Module = build("autoencoder", json.loads(metadata["net"]))
        net.load_state_dict(tensors)
    except (RuntimeError, ConfigError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise FileError(f"{path}: cannot be read back ({str(error).splitlines()[0]})") from None
    return net.requires_grad_(False).eval()
