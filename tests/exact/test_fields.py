"""Fields: what is refused and why, and the way to a file and back."""

import pytest
import torch

from fokker import exact, registry
from fokker.errors import ConfigError, UndeterminedError

GOOD = {"weights": [0.5, 0.5], "means": [[0.0, 0], [1, 1]], "covs": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [0.5, 0.6]}, r"weights: given least 0.5 and sum 1.1, must be positive with sum 1"),
        ({"weights": [1.0, 0.0]}, r"weights: given least 0"),
        ({"weights": [[1.0]]}, r"weights: given shape \(1, 1\), must be \(K,\)"),
        ({"means": [0.0, 1.0]}, r"means: given shape \(2,\), must be \(2, d\)"),
        ({"covs": [1.0, -0.5]}, r"covs: given a variance of -0.5"),
        ({"covs": [[1.0, 1, 1], [1, 1, 1]]}, r"covs: given shape \(2, 3\), must be \(2,\) variances, \(2, 2\)"),
        ({"covs": [[[1.0, 0.5], [0.0, 1]]] * 2}, r"matrix 0 is not symmetric"),
        ({"covs": [[[1.0, 2], [2, 1]]] * 2}, r"matrix 0 has the eigenvalue -1, must be positive semidefinite"),
        ({"factors": [[1.0], [1.0]]}, r"given factors \(2, 1\) with covs \(2,\), must be \(2, 2, r\)"),
        ({"labels": [0, 2]}, r"class 1 has no member"),
        ({"labels": [0, 0.5]}, r"labels: must be integers"),
        ({"labels": [0]}, r"labels: given shape \(1,\), must be \(2,\)"),
        ({"weight": [1.0]}, r"no field 'weight': did you mean 'weights'"),
    ],
)
def test_refusals_name_the_field(change, message):
    with pytest.raises(ConfigError, match=message):
        exact.GaussianMixture(**(GOOD | change))


def test_other_laws_refuse_too():
    with pytest.raises(ConfigError, match=r"Gaussian.mean: given shape \(\)"):
        exact.Gaussian(0.0, 1.0)
    with pytest.raises(ConfigError, match="not symmetric"):
        exact.Gaussian([0.0, 0.0], [[1.0, 1.0], [0.0, 1.0]])
    with pytest.raises(ConfigError, match=r"Empirical.data: given shape \(3,\)"):
        exact.Empirical([1.0, 2.0, 3.0])
    with pytest.raises(ConfigError, match="finite"):
        exact.Empirical([[float("nan")]])
    with pytest.raises(UndeterminedError, match="no density"):
        exact.Empirical([[0.0]]).log_prob(torch.zeros(1, 1))
    with pytest.raises(ConfigError, match="same dimension"):
        exact.Pair(exact.Gaussian([0.0], 1.0), exact.Gaussian([0.0, 0.0], 1.0))


@pytest.mark.parametrize(
    "law",
    [
        exact.Gaussian([0.5, 1.0], [1.0, 2.0]),
        exact.GaussianMixture(**GOOD, factors=torch.ones(2, 2, 1), labels=[1, 0]),
        exact.Empirical(torch.arange(40.0).reshape(10, 2, 2) / 7, labels=[0, 1] * 5),
    ],
    ids=["gaussian", "mixture", "empirical"],
)
def test_recipe_round_trip(law):
    tensors = {}
    stored = registry.spec(law, tensors)
    again = registry.build("exact", stored, tensors)
    assert again == law
    assert hash(again) == hash(law)
    assert torch.equal(again.sample(5), law.sample(5))


def test_point_arrays_are_as_small_as_their_numbers_allow():
    small = exact.Empirical(torch.rand(5, 3).double().float().double())
    exact_only = exact.Empirical(torch.rand(5, 3, dtype=torch.float64))
    assert small.data.value.dtype == torch.float32
    assert exact_only.data.value.dtype == torch.float64
    assert exact.Empirical(small.data.value.double()) == exact.Empirical(small.data.value)
    assert exact.Empirical(torch.ones(2, 2, dtype=torch.uint8)).data.value.dtype == torch.float32
    given = torch.zeros(2, 2)
    law = exact.Empirical(given)
    given += 1
    assert law.data.value.sum() == 0
