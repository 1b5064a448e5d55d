"""Fashion: the numbers of the file that ships, and what happens when it is damaged."""

from pathlib import Path

import pytest
import torch

from fokker.data import Fashion, images
from fokker.errors import FileError


def test_splits_are_balanced_and_interleaved() -> None:
    train, test = Fashion().load(), Fashion().load("test")
    assert (len(train), len(test)) == (10_000, 2_000)
    for samples in (train, test):
        assert samples.is_image and samples.shape == (1, 28, 28) and len(samples.classes) == 10
        assert samples.labels is not None and torch.equal(samples.labels, torch.arange(len(samples)) % 10)
    assert train.classes[1] == "Trouser" and train.classes[9] == "Ankle boot"
    # Mean and deviation of the full training set are 0.2860 and 0.3530.
    pixels = train.values.double() / 255
    assert abs(pixels.mean() - 0.2860) < 0.005 and abs(pixels.std() - 0.3530) < 0.005


def test_labels_fit_the_pictures() -> None:
    # The nearest class mean gets about 68 % of Fashion-MNIST right; shuffled labels would get 10 %.
    (x, y), (u, v) = (s.take(torch.arange(len(s))) for s in (Fashion().load(), Fashion().load("test")))
    assert y is not None and v is not None
    means = torch.stack([x[y == k].mean(0) for k in range(10)]).flatten(1)
    assert (torch.cdist(u.flatten(1), means).argmin(1) == v).float().mean() > 0.62


def test_no_picture_in_both_splits() -> None:
    train, test = (Fashion().load(split).values.flatten(1) for split in ("train", "test"))
    known = {row.tobytes() for row in train.numpy()}
    assert sum(row.tobytes() in known for row in test.numpy()) <= 2  # the full sets share a few too


def test_damage_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(images.FILE.read_bytes())
    content[1000] ^= 1
    bad = tmp_path / "fashion.npz"
    bad.write_bytes(content)
    monkeypatch.setattr(images, "FILE", bad)
    with pytest.raises(FileError, match=r"fashion\.npz is damaged"):
        Fashion().load()
    monkeypatch.setattr(images, "FILE", tmp_path / "gone.npz")
    with pytest.raises(FileError, match=r"gone\.npz cannot be read"):
        Fashion().load()
