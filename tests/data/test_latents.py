"""Latents: an orthogonal autoencoder whose way back is exact, standardised channels, files, and refusals."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fokker import nets, registry
from fokker.data import Arrays, Data, LatentCodec, Latents, decode_in_batches
from fokker.errors import ConfigError, FileError
from fokker.train import Recipe
from fokker.train.recipe import make


class Orthogonal(nn.Module):
    """48 numbers of a 3x4x4 image, rotated, scaled and shifted into 2 x 6 x 4: exact both ways."""

    def __init__(self) -> None:
        super().__init__()
        matrix = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)))[0]
        self.register_buffer("matrix", matrix)
        self.modes: list[bool] = []

    def encode(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        z = (x.flatten(1) @ self.matrix.T).view(-1, 2, 6, 4)
        return z * torch.tensor([3.0, 0.1])[:, None, None] + torch.tensor([5.0, -1.0])[:, None, None]

    def decode(self, z: Tensor) -> Tensor:
        z = (z - torch.tensor([5.0, -1.0])[:, None, None]) / torch.tensor([3.0, 0.1])[:, None, None]
        return (z.flatten(1) @ self.matrix).view(-1, 3, 4, 4)


@pytest.fixture
def images(tmp_path: Path) -> Arrays:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.integers(0, 256, (60, 3, 4, 4), np.uint8), y=np.arange(60) % 3)
    return Arrays(str(tmp_path / "x.npz"), key="x", label_key="y", holdout=0.2)


def test_exact_autoencoder_round_trips(images: Arrays) -> None:
    net = Orthogonal()
    latents = Latents(images, net, batch=7)  # type: ignore[arg-type]
    raw = net.encode(images.load().take(torch.arange(len(images.load())))[0])
    shift, scale = raw.mean((0, 2, 3)), raw.transpose(0, 1).flatten(1).std(1)
    for split in ("train", "test"):
        source, samples = images.load(split), latents.load(split)  # type: ignore[arg-type]
        x, labels = source.take(torch.arange(len(source)))
        expected = (net.encode(x) - shift[:, None, None]) / scale[:, None, None]  # the training split's, for both
        assert torch.allclose(samples.values, expected, atol=1e-5) and samples.values.dtype == torch.float32
        assert samples.labels is not None and labels is not None and torch.equal(samples.labels, labels)
        assert samples.classes == source.classes and samples.codec is not None and not samples.flip
        assert torch.allclose(samples.codec.decode(samples.values), x, atol=1e-5)
    train = latents.load().values.transpose(0, 1).flatten(1)
    assert torch.allclose(train.mean(1), torch.zeros(2), atol=1e-5)
    assert torch.allclose(train.std(1), torch.ones(2), atol=1e-5)
    assert net.training and not any(net.modes[-8:-1])  # encoded in evaluation mode, given back as it was


def test_a_decoded_sample_does_not_depend_on_their_number(images: Arrays) -> None:
    class Sizes(Orthogonal):
        seen: list[int] = []

        def decode(self, z: Tensor) -> Tensor:
            self.seen.append(len(z))
            return super().decode(z)

    codec = Latents(images, Sizes()).load().codec  # type: ignore[arg-type]
    assert codec is not None
    z = torch.randn(7, 2, 6, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(decode_in_batches(codec, z, 3), codec.decode(z), atol=1e-6) and Sizes.seen == [3, 3, 3, 7]
    with pytest.raises(ConfigError, match="LatentCodec: decoded values cannot be encoded again; give a folder"):
        codec.encode(codec.decode(z))


def test_decoded_pictures_stay_in_range(images: Arrays) -> None:
    codec = Latents(images, Orthogonal()).load().codec  # type: ignore[arg-type]
    assert codec is not None
    x = codec.decode(100 * torch.randn(4, 2, 6, 4, generator=torch.Generator().manual_seed(1)))
    assert x.min() == -1 and x.max() == 1


def test_mirrored_images_are_encoded_too(images: Arrays, tmp_path: Path) -> None:
    flipped = Arrays(images.path, key="x", label_key="y", holdout=0.2, flip=True)
    latents, n = Latents(flipped, Orthogonal()), len(images.load())  # type: ignore[arg-type]
    train, x = latents.load(), images.load().take(torch.arange(n))[0]
    assert len(train) == 2 * n and train.codec is not None and train.labels is not None
    decoded = train.codec.decode(train.values)
    assert torch.allclose(decoded[:n], x, atol=1e-5) and torch.allclose(decoded[n:], x.flip(-1), atol=1e-5)
    assert torch.equal(train.labels[:n], train.labels[n:])
    assert len(latents.load("test")) == len(images.load("test"))


@pytest.mark.parametrize("flip", [False, True])
def test_conditions_come_along(images: Arrays, tmp_path: Path, flip: bool) -> None:
    cond = np.random.default_rng(1).normal(size=(60, 2)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=np.load(images.path)["x"], c=cond)
    source = Arrays(str(tmp_path / "c.npz"), key="x", cond_key="c", holdout=0.2, flip=flip)
    for split in ("train", "test"):
        told, expected = Latents(source, Orthogonal()).load(split), source.load(split).cond  # type: ignore[arg-type]
        assert told.labels is None and told.cond is not None and expected is not None
        twice = flip and split == "train"
        assert torch.equal(told.cond, torch.cat([expected, expected]) if twice else expected)


def test_a_relative_encoder_is_found_from_another_folder(
    images: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nets.save_autoencoder(Path("a.safetensors"), nets.Autoencoder(channels=3, size=4, latent=2, width=4, levels=1))
    for encoder in ("a.safetensors", "./a.safetensors", str(tmp_path / "a.safetensors")):
        with monkeypatch.context() as patch:
            patch.setattr("fokker.data.latents.load_autoencoder", lambda path: Orthogonal())
            codec = Latents(images, encoder).load().codec
        assert isinstance(codec, LatentCodec) and codec.encoder == str(tmp_path / "a.safetensors")


def test_files_and_specs_read_back(images: Arrays, tmp_path: Path) -> None:
    net = nets.Autoencoder(channels=3, size=4, latent=2, width=4, levels=1)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    file = tmp_path / "a.safetensors"
    nets.save_autoencoder(file, net)
    latents = Latents(images, str(file))
    again = registry.build("data", registry.spec(latents))
    assert again == latents
    samples, x = again.load(), images.load().take(torch.arange(9))[0]
    assert samples.shape == (2, 2, 2)
    codec = registry.build("codec", registry.spec(samples.codec))
    assert isinstance(codec, LatentCodec) and len(codec.digest) == 64
    with torch.no_grad():
        assert torch.allclose(codec.decode(samples.values[:9]), net(x).clamp(-1, 1), atol=1e-5)
    nets.save_autoencoder(file, nets.Autoencoder(channels=3, size=4, latent=2, width=4, levels=1))
    with pytest.raises(FileError, match=r"a\.safetensors: is not the file that made the latents"):
        codec.decode(samples.values)
    file.unlink()
    for use in (latents.load, lambda: codec.decode(samples.values)):
        with pytest.raises(FileError, match=r"autoencoder .*a\.safetensors: cannot be read \(No such file"):
            use()
    recipe = make({"data": {"kind": "latents", "source": "fashion", "encoder": "a.safetensors"}, "net": "unet"})
    assert recipe.resolved()["data"] == {
        "kind": "latents",
        "source": {"kind": "fashion"},
        "encoder": os.path.abspath("a.safetensors"),
        "batch": 256,
    }


def test_what_cannot_be_saved_is_said_early(images: Arrays) -> None:
    for net in (Orthogonal(), nets.Autoencoder(channels=3, size=4, levels=1)):  # the second has a kind, but weights too
        recipe = Recipe(data=Latents(images, net), net={"kind": "unet"})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"data\.encoder: <\w+ in memory> cannot be .*save_autoencoder and give"):
            recipe.resolved()


class Constant(Orthogonal):
    def encode(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0], torch.ones_like(x[:, 0])], 1)


class Whole(Orthogonal):
    def encode(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True)


def test_refused_autoencoders(images: Arrays) -> None:
    def load(net: nn.Module, source: Data = images) -> None:
        Latents(source, net).load()  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="must have the methods encode and decode, which Linear has not"):
        load(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="channel 1 of its latents is constant"):
        load(Constant())
    with pytest.raises(ConfigError, match="encodes 4[0-9] samples to shape"):
        load(Whole())
    with pytest.raises(ConfigError, match=r"cannot encode samples of shape \(3, 4, 4\)"):
        load(nets.Autoencoder(channels=1, size=4, levels=1))
