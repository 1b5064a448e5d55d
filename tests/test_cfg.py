"""Classifier-free guidance against its formula on class-conditional Gaussians, and the number of calls it makes."""

import math

import pytest
import torch

from fokker.errors import ConfigError
from fokker.guidance import CFG
from fokker.prediction import READINGS, Prediction
from fokker.process import EDM, VP, Flow, Trig

F64 = torch.float64
MEANS, VARS = (-1.0, 2.0), (0.3, 0.5)  # of class 0 and class 1
NULL = (0.2, 1.5)  # any unconditional law: CFG never asks whether it is the mixture


def law(label):
    return NULL if label < 0 else (MEANS[label], VARS[label])


def expectations(process, x, s, labels):
    """(x0, eps) of the Gaussian of each row's class; s is a number or (B,)."""
    s = torch.as_tensor(s, dtype=F64).expand(len(x))[:, None]
    mean, var = torch.tensor([law(int(c)) for c in labels], dtype=F64).T[:, :, None]
    alpha, sigma = process.alpha(s), process.sigma(s)
    shift = (x - alpha * mean) / (alpha**2 * var + sigma**2)
    return mean + alpha * var * shift, sigma * shift


class Classes:
    """The exact class-conditional denoiser; remembers the rows and labels of every call."""

    shape, lam_range = (3,), (-5.0, 5.0)

    def __init__(self, process, predict):
        self.process, self.predict, self.calls = process, predict, []
        self.reading = None if predict is None else READINGS[predict]

    def __call__(self, x, s, cond=None):
        self.calls.append((len(x), cond.tolist()))
        x0, eps = expectations(self.process, x, s, cond)
        pair = Prediction(self.process, x, s, x0=x0, noise=eps)
        if self.predict is None:
            return pair
        return Prediction(self.process, x, s, **{self.predict: pair.read(self.predict)}, variance=10 * x)


@pytest.mark.parametrize("predict", [*READINGS, None])
@pytest.mark.parametrize("process", [VP(), Flow(), EDM(), Trig()])
@pytest.mark.parametrize("scale", [-0.7, 0.4, 1.5, 3.0, 7.5])
def test_every_reading_equals_the_hand_formula(predict, process, scale):
    x = torch.randn(4, 3, dtype=F64)
    labels = torch.tensor([0, 1, 1, 0])
    for s in (0.4 * process.T, torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64) * process.T):
        inner = Classes(process, predict)
        got = CFG(inner, scale)(x, s, labels)
        assert got.reading is (inner.reading or READINGS["x0"])
        x0, eps = expectations(process, x, s, labels)
        conditional = Prediction(process, x, s, x0=x0, noise=eps)
        x0, eps = expectations(process, x, s, torch.full((4,), -1))
        free = Prediction(process, x, s, x0=x0, noise=eps)
        # Eq. 8.3.2: the weights (1 - w, w) sum to one, so the formula holds in every reading.
        for name in READINGS:
            expected = (1 - scale) * free.read(name) + scale * conditional.read(name)
            torch.testing.assert_close(got.read(name), expected, rtol=1e-10, atol=1e-11)
        assert inner.calls == [(8, [0, 1, 1, 0, -1, -1, -1, -1])]
        assert got.x is x


def test_guided_score_of_two_gaussians_in_numbers():
    # EDM, sigma = 1, x = 0: s(x|c) = (m_c - x)/(v_c + 1). Class 1: 2/1.5; null: .2/2.5. w = 3: 4 - .16.
    x = torch.zeros(1, 1, dtype=F64)
    got = CFG(Classes(EDM(), "noise"), 3.0)(x, 1.0, torch.tensor([1]))
    assert math.isclose(float(got.score), 3 * 2 / 1.5 - 2 * 0.2 / 2.5, rel_tol=1e-12)
    # Ho & Salimans' weight is one less: (1 + w) s(x|c) - w s(x) with w = 2. Reading 3 as THEIR w misses by 1.25.
    theirs = 4 * 2 / 1.5 - 3 * 0.2 / 2.5
    assert abs(theirs - float(got.score)) > 1.2


@pytest.mark.parametrize("predict", ["velocity", None])
def test_scales_0_and_1_run_one_call_on_the_batch(predict):
    x, labels = torch.randn(3, 3, dtype=F64), torch.tensor([1, 0, 1])
    for scale, asked in ((1.0, [1, 0, 1]), (0.0, [-1, -1, -1]), (1, [1, 0, 1]), (0, [-1, -1, -1])):
        inner = Classes(VP(), predict)
        got = CFG(inner, scale)(x, 0.4, labels)
        assert inner.calls == [(3, asked)]
        x0, eps = expectations(VP(), x, 0.4, torch.tensor(asked))
        torch.testing.assert_close(got.x0, x0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.noise, eps, rtol=1e-11, atol=1e-12)


def test_samples_whose_own_label_is_null_are_unconditional():
    x, labels = torch.randn(3, 3, dtype=F64), torch.tensor([1, -1, 0])
    got = CFG(Classes(Flow(), "velocity"), 4.0)(x, 0.4, labels)
    x0, _ = expectations(Flow(), x, 0.4, torch.tensor([-1, -1, -1]))
    torch.testing.assert_close(got.x0[1], x0[1], rtol=1e-11, atol=1e-12)
    assert float((got.x0[0] - x0[0]).abs().min()) > 0.05


def test_one_label_for_all_and_vectors():
    x = torch.randn(2, 3, dtype=F64)
    inner = Classes(VP(), "noise")
    CFG(inner, 2.0)(x, 0.4, 1)
    CFG(inner, 2.0)(x, 0.4, torch.tensor(1))
    assert inner.calls == [(4, [1, 1, -1, -1])] * 2
    seen = []

    def vectors(y, s, cond=None):
        seen.append(cond)
        return Prediction(VP(), y, s, noise=y)

    inner = Classes(VP(), "noise")
    inner.__class__ = type("Vectors", (Classes,), {"__call__": lambda self, *a: vectors(*a)})
    CFG(inner, 2.0)(x, 0.4, torch.ones(2, 5))
    assert torch.equal(seen[0][:2], torch.ones(2, 5))
    assert seen[0][2:].isnan().all()


def test_learned_variance_is_the_conditional_ones():
    class Marked(Classes):
        def __call__(self, x, s, cond=None):
            p = super().__call__(x, s, cond)
            p.variance = cond[:, None].double().expand_as(x)
            return p

    got = CFG(Marked(VP(), "noise"), 3.0)(torch.randn(2, 3, dtype=F64), 0.4, torch.tensor([1, 0]))
    assert got.variance[:, 0].tolist() == [1.0, 0.0]


def test_it_is_a_denoiser_with_the_inner_ones_facts():
    inner = Classes(Flow(), "velocity")
    outer = CFG(inner, 2)
    assert (outer.process, outer.shape, outer.lam_range, outer.reading, outer.scale) == (
        inner.process,
        inner.shape,
        inner.lam_range,
        inner.reading,
        2.0,
    )


def test_wrong_arguments_are_named():
    for scale in (math.inf, -math.inf, math.nan):
        with pytest.raises(ConfigError, match=r"CFG\.scale: given .*, must be finite"):
            CFG(Classes(VP(), "noise"), scale)
    guided, x = CFG(Classes(VP(), "noise"), 2.0), torch.zeros(2, 3, dtype=F64)
    with pytest.raises(ConfigError, match="no condition was given"):
        guided(x, 0.5)
    with pytest.raises(ConfigError, match=r"must be a tensor \(given dict\)"):
        guided(x, 0.5, {"label": 1})
    with pytest.raises(ConfigError, match="given 3 rows for 2 samples"):
        guided(x, 0.5, torch.tensor([0, 1, 1]))
