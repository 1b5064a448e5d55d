"""Components: one-line errors that name the field, the value and what is allowed; the Array field."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from fokker.component import Array, component, recorded
from fokker.errors import ConfigError, FokkerError, MissingExtraError, closest
from fokker.process import DDPM, EDM, VE, VP, Cosine, Flow
from fokker.train import read


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: VP(beta_mx=15.0), ["VP has no field 'beta_mx'", "did you mean 'beta_max'", "beta_min", "t_min"]),
        (lambda: Flow(sigma=1.0), ["Flow has no field 'sigma'", "allowed: t_min"]),
        (lambda: VP(beta_min=-1.0), ["VP.beta_min", "given -1.0", "greater than 0"]),
        (lambda: VP(beta_min=0.0), ["VP.beta_min", "given 0.0", "greater than 0"]),
        (lambda: VP(t_min=0.5), ["VP.t_min", "given 0.5", "less than 0.5"]),
        (lambda: Cosine(s=1.0), ["Cosine.s", "given 1.0", "less than 1"]),
        (lambda: VP(beta_min="fast"), ["VP.beta_min", "given 'fast'", "number"]),
        (lambda: VP(beta_max=math.nan), ["VP.beta_max", "given nan", "finite"]),
        (lambda: EDM(sigma_max=math.inf), ["EDM.sigma_max", "given inf", "finite"]),
        (lambda: VE(published="maybe"), ["VE.published", "given 'maybe'", "boolean"]),
        (lambda: DDPM(steps=1), ["DiscreteVP.steps", "given 1", "greater than or equal to 2"]),
        (lambda: DDPM(steps=10.5), ["DiscreteVP.steps", "given 10.5", "integer"]),
        (
            lambda: DDPM(betas="linaer"),
            ["DiscreteVP.betas", "'linaer'", "linear", "scaled_linear", "cosine", "sigmoid"],
        ),
        (lambda: DDPM(beta_start=1.0), ["DiscreteVP.beta_start", "given 1.0", "less than 1"]),
        (lambda: DDPM(steps=2, betas=[0.1, math.nan]), ["DiscreteVP.betas", "finite numbers"]),
        (lambda: DDPM(steps=2, betas=[[0.1], [0.1, 0.2]]), ["DiscreteVP.betas", "array of numbers"]),
    ],
)
def test_a_wrong_field_gives_one_line_with_field_value_and_what_is_allowed(make, parts):
    with pytest.raises(ConfigError) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    assert isinstance(caught.value, FokkerError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.__suppress_context__


def test_two_wrong_fields_are_both_named():
    with pytest.raises(ConfigError, match=r"VP\.beta_min.*; VP\.beta_max"):
        VP(beta_min=-1.0, beta_max="x")


def test_components_are_frozen_values():
    one, two = VP(beta_max=15.0), VP(beta_max=15.0)
    assert one == two
    assert hash(one) == hash(two)
    assert one != VP()
    assert VP() != dataclasses.replace(VP(), t_min=1e-4)
    assert one != "vp"
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.beta_max = 3.0
    assert repr(one) == "VP(beta_min=0.1, beta_max=15.0, t_min=0.001)"
    assert dataclasses.replace(one, beta_max=20.0) == VP()
    with pytest.raises(ConfigError, match="beta_max"):
        dataclasses.replace(one, beta_max=-20.0)


def test_a_required_field_is_asked_for():
    @component
    class Needs:
        width: int
        name: str = "a"

    assert Needs(width=3).width == 3
    with pytest.raises(ConfigError, match=r"Needs\.width must be given"):
        Needs()
    with pytest.raises(ConfigError):
        Needs(width=3, name=4)


def test_array_content_is_its_identity():
    same = [
        Array([1, 2.5]),
        Array((1.0, 2.5)),
        Array(np.array([1.0, 2.5], np.float32)),
        Array(torch.tensor([1.0, 2.5])),
    ]
    same.append(Array(same[0]))
    assert len({a.digest for a in same}) == 1
    assert len(set(same)) == 1
    assert all(a == same[0] for a in same)
    assert same[0] != Array([1.0, 2.5000001])
    assert Array([[1.0, 2.5]]) != same[0]  # the shape counts
    assert same[0] != [1.0, 2.5]
    assert Array([0.1]).value.dtype == torch.float64
    assert float(Array([0.1]).value) == 0.1
    assert same[0].tolist() == [1.0, 2.5]
    assert len(same[0]) == 2
    assert same[0].shape == (2,)
    assert repr(same[0]) == "Array([1.0, 2.5])"
    assert repr(Array(torch.zeros(3, 3))) == "Array(shape=(3, 3))"


def test_array_is_a_copy():
    values = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    array = Array(values)
    with torch.no_grad():
        values[0] = 9.0
    assert array.tolist() == [1.0, 2.0]
    assert not array.value.requires_grad
    numbers = np.array([1.0, 2.0])
    array = Array(numbers)
    numbers[0] = 9.0
    assert array.tolist() == [1.0, 2.0]
    assert Array(torch.arange(4).reshape(2, 2).T).tolist() == [[0.0, 2.0], [1.0, 3.0]]


def test_array_of_a_reversed_numpy_view():
    assert Array(np.array([1.0, 2.0, 3.0])[::-1]).tolist() == [3.0, 2.0, 1.0]


def test_array_casts_are_made_once():
    array = Array([0.1, 0.2])
    narrow = array.to("cpu", torch.float32)
    assert narrow.dtype == torch.float32
    assert array.to(torch.device("cpu"), torch.float32) is narrow
    assert array.like(torch.zeros(3, dtype=torch.float32)) is narrow
    assert array.to().dtype == torch.float64
    assert torch.equal(array.to(), torch.tensor([0.1, 0.2], dtype=torch.float64))
    assert array == Array([0.1, 0.2])  # casts are no part of the value


def test_components_with_arrays_compare_by_content():
    one, two = DDPM(steps=3, betas=[0.1, 0.2, 0.3]), DDPM(steps=3, betas=np.array([0.1, 0.2, 0.3]))
    assert one == two
    assert hash(one) == hash(two)
    assert one != DDPM(steps=3, betas=[0.1, 0.2, 0.30001])


def test_recorded_modules_remember_their_arguments():
    @recorded
    class Net(nn.Module):
        def __init__(self, width: int, depth: int = 2, *, act: str = "relu") -> None:
            super().__init__()
            width = width * 100  # what was given counts, not what became of it
            self.layer = nn.Linear(1, width)

    assert Net(3).config == {"width": 3, "depth": 2, "act": "relu"}
    assert Net(3, act="tanh", depth=1).config == {"width": 3, "depth": 1, "act": "tanh"}
    assert Net(3).layer.out_features == 300
    with pytest.raises(ConfigError, match="Net has no field 'dept': did you mean 'depth'"):
        Net(3, dept=1)

    class Child(Net):
        def __init__(self) -> None:
            super().__init__(4)

    assert not hasattr(Child(), "config")


def test_closest_ignores_case_and_underscores():
    assert closest("Scaled-Linear", ["scaled_linear", "cosine"]).startswith("did you mean 'scaled_linear'? allowed: ")
    assert closest("zzz", ["b", "a"]) == "allowed: a, b"


def test_missing_extra_says_how_to_install_it():
    error = MissingExtraError("matplotlib", "plot")
    assert str(error) == "matplotlib is needed here and is not installed: pip install 'fokker[plot]'"
    assert isinstance(error, ImportError)


def test_a_truth_value_is_no_number() -> None:
    for make, name in ((lambda: VP(True), "VP.beta_min"), (lambda: VP(beta_max=False), "VP.beta_max")):
        with pytest.raises(ConfigError, match=f"^{name}: given (True|False), must be a number"):
            make()
    with pytest.raises(ConfigError, match=r"^train\.steps: given True, must be a number"):
        read("moons", ["train.steps=true"])
    assert read("moons", ["train.shard=true"]).train.shard is True


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: VP(-1.0), "VP.beta_min: given -1.0, must be greater than 0"),
        (lambda: VP(0.1, "x"), "VP.beta_max: given 'x', must be a valid number"),
        (lambda: VP(0.1, 20.0, 1e-3, 7), "VP: given 7 beyond its fields, which are beta_min, beta_max, t_min"),
        (lambda: VP(0.1, beta_min=0.2), "VP.beta_min: given twice, by position and by name"),
    ],
)
def test_a_field_given_by_position_is_named(make, says):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(says)


def test_an_array_made_inside_torch_func() -> None:
    """It holds the numbers, compared by content as ever; under vmap there is not one array but many."""
    made: list[Array] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        made.extend([Array([0.1, 0.5]), Array(x), Array(2.0 * x)])
        return x.sum()

    x = torch.tensor([0.1, 0.5], dtype=torch.float64)
    torch.func.grad(keep)(x)
    torch.func.jvp(keep, (x,), (x,))
    assert [a == Array(v) for a, v in zip(made, 2 * [x, x, 2.0 * x], strict=True)] == [True] * 6
    assert torch.equal(2.0 * made[1].value, made[2].value)
    with pytest.raises(ValueError, match="vmap"):
        torch.vmap(lambda x: Array(x).value)(x)
