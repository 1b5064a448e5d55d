"""The classifier that judges samples, and the share it agrees with."""

import pytest
import torch
from torch import Tensor, nn

from fokker.data import Fashion, Samples
from fokker.errors import ConfigError
from fokker.metrics import class_agreement, train_classifier


class Brightness(nn.Module):
    """Says class k for an image whose mean is k."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return -(x.mean((1, 2, 3))[:, None] - torch.arange(4.0)).square()


def images(labels: Tensor) -> Tensor:
    return labels.float()[:, None, None, None].expand(-1, 1, 8, 8)


def test_agreement_is_the_share_of_right_classes() -> None:
    labels = torch.arange(12) % 4
    assert class_agreement(Brightness(), images(labels), labels) == 1.0
    assert class_agreement(Brightness(), images((labels + 1) % 4), labels) == 0.0
    mixed = torch.where(torch.arange(12) < 3, labels, (labels + 2) % 4)
    assert class_agreement(Brightness(), images(mixed), labels) == 0.25
    order = torch.randperm(12)
    assert class_agreement(Brightness(), images(mixed)[order], labels[order]) == 0.25


def test_batches_do_not_change_the_share() -> None:
    labels = torch.arange(11) % 4
    given = torch.where(torch.arange(11) == 10, (labels + 1) % 4, labels)
    for batch, sizes in ((1, [1] * 11), (4, [4, 4, 3]), (11, [11]), (100, [11])):
        net = Brightness()
        assert class_agreement(net, images(given), labels, batch=batch) == 10 / 11 and net.sizes == sizes


@pytest.mark.parametrize(("n", "m"), [(3, 4), (0, 0)])
def test_lengths_must_agree(n: int, m: int) -> None:
    with pytest.raises(ConfigError, match=f"given {n} images and {m} labels"):
        class_agreement(Brightness(), torch.zeros(n, 1, 8, 8), torch.zeros(m, dtype=torch.int64))


def test_only_labelled_images_can_be_learnt() -> None:
    pictures, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4)
    for bad in (Samples(pictures), Samples(pictures, labels), Samples(torch.zeros(4, 2), labels, ("a", "b", "c", "d"))):
        with pytest.raises(ConfigError, match="labelled images"):
            train_classifier(bad)


def bars(n: int) -> Samples:
    """8 x 8 pictures with a bright bar: lying (0) or standing (1)."""
    labels = torch.arange(n) % 2
    values = torch.randint(0, 60, (n, 1, 8, 8), dtype=torch.uint8)
    for i in range(n):
        place = (i // 2) % 8
        (values[i, 0, place] if labels[i] == 0 else values[i, 0, :, place]).fill_(255)
    return Samples(values, labels, ("lying", "standing"))


def test_it_learns_bars_and_the_same_seed_gives_the_same_net() -> None:
    samples = bars(200)
    nets = [train_classifier(samples, epochs=4, batch=10, seed=s) for s in (0, 0, 1)]
    x, labels = samples.take(torch.arange(200))
    assert class_agreement(nets[0], x, labels) > 0.95 and not nets[0].training
    first, second, other = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert nets[0](x[:3]).shape == (3, 2)
    wide = Samples(torch.zeros(6, 3, 12, 9, dtype=torch.uint8), torch.arange(6) % 3, ("a", "b", "c"))
    assert train_classifier(wide, epochs=1, batch=3)(torch.zeros(2, 3, 12, 9)).shape == (2, 3)


@pytest.mark.slow
def test_one_epoch_of_fashion_is_enough_for_seven_tenths() -> None:
    classifier = train_classifier(Fashion().load("train"), epochs=1)
    test = Fashion().load("test")
    x, labels = test.take(torch.arange(len(test)))
    assert labels is not None
    share = class_agreement(classifier, x, labels)
    assert 0.7 < share < 0.95
    assert class_agreement(classifier, x, (labels + 1) % 10) < 0.2
