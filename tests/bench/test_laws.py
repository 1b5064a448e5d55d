"""The benchmark's own mixtures against the library's exact laws, and its truth against a closed form."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.solvers.laws import Mixture, Problem, eight, ten
from fokker.process import EDM, VP, Flow


@pytest.mark.parametrize("law", [eight(), ten()], ids=lambda law: law.name)
@pytest.mark.parametrize("t", [1.0, 0.4, 0.05])
def test_pair_is_the_library_s(law: Mixture, t: float) -> None:
    process = VP()
    x = law.law().at(process, t).sample(64, seed=1).double()
    exact, own = law.law().denoiser(process)(x, t), Problem("vp", law, process, 64)(x, t)
    torch.testing.assert_close(own.x0, exact.x0, atol=1e-9, rtol=0)
    torch.testing.assert_close(own.noise, exact.noise, atol=1e-9, rtol=0)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_truth_of_a_gaussian(process: object) -> None:
    # x_0 = (sqrt(v) / sqrt(alpha^2 v + sigma^2)) x_T along each axis: 4 of two axes' worth of variance, 0.25 across
    factors = torch.zeros(1, 3, 1, dtype=torch.float64)
    factors[0, 1, 0] = math.sqrt(3.75)
    law = Mixture("gaussian", torch.zeros(1, 3, dtype=torch.float64), 0.25, factors)
    problem = Problem("g", law, process, 16)
    start = problem.noise.double() * float(process.prior_std())
    alpha, sigma = float(process.alpha(process.T)), float(process.sigma(process.T))
    v = torch.tensor([0.25, 4.0, 0.25], dtype=torch.float64)
    want = start * (v / (alpha**2 * v + sigma**2)).sqrt()
    torch.testing.assert_close(problem.truth, want, atol=1e-7, rtol=0)
    rms, median = problem.errors(want + torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64))
    assert rms == pytest.approx(0.3 / math.sqrt(3), rel=1e-5) and median == pytest.approx(rms, rel=1e-5)
