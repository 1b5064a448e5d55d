"""The autoencoder: its sizes, its file, and that a short training reconstructs what it has not seen."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import avg_pool2d

from fokker.data import Fashion, Samples
from fokker.errors import ConfigError, FileError
from fokker.nets import Autoencoder, load_autoencoder, save_autoencoder
from fokker.train import fit_autoencoder
from fokker.train.autoencoder import reconstruction_error


def small(split: str) -> Samples:
    """The first 2000 clothes at 14x14."""
    samples = Fashion().load(split)  # type: ignore[arg-type]
    return Samples(avg_pool2d(samples.values[:2000].float(), 2).round().to(torch.uint8))


def test_short_training_reconstructs_held_out_images() -> None:
    test = small("test")
    net = fit_autoencoder(small("train"), latent=2, width=8, levels=1, steps=70, batch=32, lr=8e-3)
    x, _ = test.take(torch.arange(len(test)))
    z = net.encode(x)
    assert z.shape == (2000, 2, 7, 7) and z.abs().max() < 1  # half of the numbers
    error, spread = reconstruction_error(net, test, batch=300)
    assert abs(error - float(((net.decode(z) - x) ** 2).mean())) < 1e-5
    assert abs(spread - float(((x - x.mean(0)) ** 2).mean())) < 1e-5
    assert error < 0.25 * spread
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    # The decoder was trained to bear a noise of 0.05: it adds a hundredth of the images' own variance at most.
    noisy = z + 0.05 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    assert ((net.decode(noisy) - net.decode(z)) ** 2).mean() < 0.01 * spread


def test_training_is_a_function_of_the_seed() -> None:
    samples, options = small("test"), {"latent": 1, "width": 2, "levels": 1, "steps": 3, "batch": 8}
    before = torch.random.get_rng_state()
    first, same, other, quiet = (
        fit_autoencoder(samples, **options, seed=seed, noise=noise)  # type: ignore[arg-type]
        for seed, noise in ((1, 0.05), (1, 0.05), (2, 0.05), (1, 0.0))
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in (first, same, other, quiet)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])
    for bad in ({"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"noise": -1.0}):
        with pytest.raises(ConfigError, match="fit_autoencoder: given steps="):
            fit_autoencoder(samples, **(options | bad))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"given samples of shape \(3,\), must be square images"):
        fit_autoencoder(Samples(torch.zeros(4, 3)))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_sizes_and_file(levels: int, tmp_path: Path) -> None:
    net = Autoencoder(channels=3, size=24, latent=5, width=4, levels=levels)
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    z = net.encode(x)
    assert z.shape == (2, 5, 24 >> levels, 24 >> levels) and net(x).shape == x.shape
    save_autoencoder(tmp_path / "a.safetensors", net)
    again = load_autoencoder(tmp_path / "a.safetensors")
    assert torch.equal(again(x), net(x)) and not again.training
    content = bytearray((tmp_path / "a.safetensors").read_bytes())
    content[-3] ^= 4
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(FileError, match="damaged"):
        load_autoencoder(tmp_path / "a.safetensors")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Autoencoder\.size: given 30, must be a multiple of 4 with levels=2"):
        Autoencoder(size=30)
    with pytest.raises(ConfigError, match=r"Autoencoder\.latent: given 0"):
        Autoencoder(latent=0)
    with pytest.raises(FileError, match="no such file"):
        load_autoencoder(tmp_path / "gone")
