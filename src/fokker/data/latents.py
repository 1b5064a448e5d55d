"""Latents: images encoded once by a frozen autoencoder, and the codec that decodes what a model makes of them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from ..component import Array, InMemory, component
from ..errors import ConfigError, FileError
from ..files import absolute, file_digest
from ..nets import load_autoencoder
from ..registry import resolves
from .codec import Codec
from .samples import Data, Samples, check_split

__all__ = ["LatentCodec", "Latents"]

MEASURED = 4096  # training samples whose latents give shift and scale


def _held(given: Any) -> Any:
    """An encoder field's value: a path as it is, a module with encode and decode wrapped."""
    if isinstance(given, nn.Module):
        if not callable(getattr(given, "encode", None)) or not callable(getattr(given, "decode", None)):
            raise ValueError(f"must have the methods encode and decode, which {type(given).__name__} has not")
        return InMemory(given, "write it with fokker.nets.save_autoencoder and give the path of the file")
    return given


Encoder = Annotated[str | InMemory, BeforeValidator(_held)]


@lru_cache(maxsize=2)
def _loaded(path: Path, digest: str) -> nn.Module:
    return load_autoencoder(path).to("cuda" if torch.cuda.is_available() else "cpu")


def _net(encoder: str | InMemory, digest: str = "") -> tuple[Any, str]:
    """(autoencoder, digest of its file). Raises FileError if there is none, or it is not the one of `digest`."""
    if isinstance(encoder, InMemory):
        return encoder.value, ""
    path = Path(encoder).expanduser()
    try:
        now = file_digest(path)
    except OSError as error:
        raise FileError(f"autoencoder {encoder}: cannot be read ({error.strerror})") from None
    if digest not in ("", now):
        raise FileError(f"autoencoder {encoder}: is not the file that made the latents (its SHA-256 has changed)")
    return _loaded(path.resolve(), now), now


@torch.no_grad()
def _through(function: Any, x: Tensor, batch: int) -> Tensor:
    """A method of an autoencoder over a batch, in parts, on its own device; the result is where x is, in float32."""
    module = function.__self__
    device = next((p.device for p in [*module.parameters(), *module.buffers()]), x.device)
    training, _ = module.training, module.eval()
    try:
        parts = [function(part.to(device)).to(x.device, torch.float32) for part in torch.split(x, batch)]
    finally:
        module.train(training)
    return torch.cat(parts)


def _per_channel(values: Tensor, ndim: int) -> Tensor:
    return values.reshape(1, -1, *[1] * (ndim - 2))


@component
class LatentCodec(Codec):
    """decode(z) = D(shift + scale z), channel by channel: standardised latents -> images in [-1, 1].

    Args:
        encoder: path of an autoencoder's file (`fokker.nets.save_autoencoder`), or a module with encode and decode.
        shift, scale: (C,) mean and deviation of the latents' channels.
        digest: SHA-256 of the file, or "".
        batch: how many are decoded at once.
    """

    encoder: Encoder
    shift: Array
    scale: Array
    digest: str = ""
    batch: Annotated[int, Field(ge=1)] = 256

    def decode(self, x: Tensor) -> Tensor:
        """Latents (N, C, ...) -> images (N, channels, H, W) in [-1, 1], float32.

        Raises:
            FileError: the autoencoder's file is gone or another one.
        """
        net, _ = _net(self.encoder, self.digest)
        scale, shift = (_per_channel(array.to(x.device, torch.float32), x.ndim) for array in (self.scale, self.shift))
        return _through(net.decode, x.detach().float() * scale + shift, self.batch).clamp(-1, 1)


@component
class Latents(Data):
    """Another source's samples, encoded once: z = (E(x) - shift) / scale, of mean 0 and deviation 1 in each channel.

    shift and scale are measured on the first 4096 training samples, and serve both splits. Where the source mirrors
    its images (`flip`), every training image is there twice, as it is and mirrored; labels and conditions are the
    source's. `Samples.codec` decodes.

    Args:
        source: a data source, of images as a rule.
        encoder: path of an autoencoder's file, such as `fokker data autoencoder` writes; or, in memory, a module with
            encode(x) -> (N, C, ...) and decode.
        batch: how many are encoded at once.

    Raises (from load):
        FileError: the autoencoder's file is missing or damaged.
        ConfigError: the autoencoder does not take these samples, or a channel of its latents is constant.
    """

    source: Annotated[Data, resolves("data")]
    encoder: Encoder
    batch: Annotated[int, Field(ge=1)] = 256

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The latents of a split, in the source's order; mirrored ones follow."""
        check_split(split)
        net, digest = _net(self.encoder)
        train = self.source.load("train")
        samples = train if split == "train" else self.source.load(split)
        first = self._encode(net, train, torch.arange(min(MEASURED, len(train)))).double().transpose(0, 1).flatten(1)
        shift, scale = first.mean(1), first.std(1)
        if not bool((scale > 1e-6).all() & scale.isfinite().all()):
            raise ConfigError(
                f"Latents.encoder: channel {int(scale.nan_to_num(0).argmin())} of its latents is constant"
            )
        z = self._encode(net, samples, torch.arange(len(samples)))
        told = [samples.labels, samples.cond]
        if samples.flip:
            z = torch.cat([z, self._encode(net, samples, torch.arange(len(samples)), mirror=True)])
            told = [None if given is None else torch.cat([given, given]) for given in told]
        z = ((z - _per_channel(shift, z.ndim)) / _per_channel(scale, z.ndim)).float()
        # The codec is stored with the model, which is sampled from any folder.
        encoder = absolute(self.encoder) if isinstance(self.encoder, str) else self.encoder
        codec = LatentCodec(encoder, Array(shift), Array(scale), digest, self.batch)
        return Samples(z, told[0], samples.classes, codec=codec, cond=told[1])

    def _encode(self, net: Any, samples: Samples, rows: Tensor, mirror: bool = False) -> Tensor:
        parts = []
        for some in torch.split(rows, self.batch):
            x, _ = samples.take(some)
            try:
                parts.append(_through(net.encode, x.flip(-1) if mirror else x, self.batch))
            except RuntimeError as error:
                raise ConfigError(
                    f"Latents.encoder: cannot encode samples of shape {samples.shape} ({str(error).splitlines()[0]})"
                ) from None
        z = torch.cat(parts)
        if z.ndim < 2 or len(z) != len(rows):
            raise ConfigError(
                f"Latents.encoder: encodes {len(rows)} samples to shape {tuple(z.shape)}, not (N, C, ...)"
            )
        return z
