"""Interpolation through latents: great circles, and a flow whose map is known."""

import math

import pytest
import torch

import fokker as fk
from fokker.errors import ConfigError
from fokker.likelihood import interpolate, slerp


def test_great_circles() -> None:
    a, b = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0], [1.0, 1.0]])
    third = slerp(a, b, 1 / 3)
    want = torch.tensor([[2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)], [5 / 3, 0.0], [1 / 3, 1 / 3]])
    assert (third - want).abs().max() < 1e-6
    assert (
        slerp(a, b, torch.tensor([0.0, 1.0, 0.5])) - torch.tensor([[2.0, 0], [3.0, 0], [0.5, 0.5]])
    ).abs().max() < 1e-6
    x, y = (torch.nn.functional.normalize(torch.randn(1, 3, 8, 8).flatten(1)).reshape(1, 3, 8, 8) for _ in range(2))
    angles = [float((slerp(x, y, w) * x).sum()) for w in (0.25, 1.0)]
    assert abs(math.acos(angles[0]) - 0.25 * math.acos(angles[1])) < 1e-4


@pytest.mark.parametrize("process", [fk.VP(), fk.EDM()], ids=["VP", "EDM"])
def test_a_gaussian_is_crossed_on_an_ellipse(process: fk.VP | fk.EDM) -> None:
    # The flow scales every coordinate by r = (V_T / V_s)^{1/2}: back and forth, slerp acts on r x.
    var = torch.tensor([2.0, 0.3]).double()
    law = fk.exact.Gaussian(torch.zeros(2).double(), var)
    r = [law.at(process, t).cov.diagonal().sqrt() for t in (process.t_min, process.T)]
    scale = r[1] / r[0]
    a, b = torch.tensor([[1.0, 0.5], [-1.0, 0.2]]).double(), torch.tensor([[0.3, -0.6], [0.4, 0.9]]).double()
    found = interpolate(law.denoiser(process), a, b, n=5)
    want = torch.stack([slerp(scale * a, scale * b, k / 4) / scale for k in range(5)])
    assert found.shape == (5, 2, 2) and (found - want).abs().max() < 1e-4
    assert (found[[0, -1]] - torch.stack([a, b])).abs().max() < 1e-4
    with pytest.raises(ConfigError, match=r"interpolate: given n=1"):
        interpolate(law.denoiser(process), a, b, n=1)
