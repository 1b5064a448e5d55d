"""Randomness: known answers, an independent Philox in Python integers, per-sample bits, laws, Brownian paths."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fokker import noise
from fokker.errors import ConfigError

F64 = torch.float64
MASK = 0xFFFFFFFF


def reference(counter, key):
    """Philox4x32-10 (Salmon et al. 2011) in Python's integers, from the paper and not from the library."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def reference_words(seed, index, count, draw, domain):
    key = (seed & MASK, seed >> 32 & MASK)
    return [w for b in range(-(-count // 4)) for w in reference((b, index, draw, noise.DOMAINS[domain]), key)]


def reference_normal(seed, index, count, draw, domain):
    out, words = [], reference_words(seed, index, count, draw, domain)
    for a, b in zip(words[0::2], words[1::2], strict=True):
        radius, angle = math.sqrt(-2 * math.log((a + 0.5) / 2**32)), 2 * math.pi * (b + 0.5) / 2**32
        out += [radius * math.cos(angle), radius * math.sin(angle)]
    return out[:count]


PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((MASK,) * 4, (MASK,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), PUBLISHED)
def test_philox_known_answers_of_random123(counter, key, answer):
    expected = [int(word, 16) for word in answer.split()]
    assert reference(counter, key) == expected
    tensors = [torch.tensor([c], dtype=torch.int64) for c in counter]
    assert [int(w) for w in noise.philox(tensors, key)] == expected
    keys = tuple(torch.tensor([k], dtype=torch.int64) for k in key)
    assert [int(w) for w in noise.philox(tensors, keys)] == expected


def test_philox_equals_the_integer_reference_at_random_counters():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2**32, size=(200, 6))
    columns = [torch.tensor(rows[:, j], dtype=torch.int64) for j in range(6)]
    words = torch.stack(noise.philox(columns[:4], (columns[4], columns[5])), dim=1).tolist()
    assert words == [reference(row[:4].tolist(), row[4:].tolist()) for row in rows]


@pytest.mark.parametrize(
    ("seed", "domain"),
    [(0, "prior"), (5, "sampler"), (2**32 + 5, "probe"), (2**63 - 1, "data"), (-1, "training"), (-(2**40), "order")],
)
def test_counter_layout_block_index_draw_domain_and_box_muller(seed, domain):
    draw, index = 3 << 8 | 2, torch.tensor([0, 7, 2**32 - 1])
    got = noise.normal(seed, index, (11,), draw=draw, domain=domain, dtype=F64)
    expected = [reference_normal(seed, i, 11, draw, domain) for i in index.tolist()]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=F64), rtol=1e-13, atol=1e-13)
    words = torch.tensor([reference_words(seed, i, 11, draw, domain)[:11] for i in index.tolist()])
    wide = noise.uniform(seed, index, (11,), draw=draw, domain=domain, dtype=F64)
    assert torch.equal(wide, (words.double() + 0.5) / 2**32)
    narrow = noise.uniform(seed, index, (11,), draw=draw, domain=domain)
    assert torch.equal(narrow.double(), ((words // 512).double() + 0.5) / 2**23)


def test_domains_have_distinct_numbers():
    assert len(set(noise.DOMAINS.values())) == len(noise.DOMAINS)
    assert {"prior", "sampler", "probe", "training", "order", "augmentation"} <= set(noise.DOMAINS)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("draw_from", [noise.normal, noise.uniform])
def test_bits_of_a_sample_do_not_depend_on_the_batch(dtype, draw_from):
    def draw(index, shape=(3, 5)):
        return draw_from(11, torch.as_tensor(index), shape, draw=9, dtype=dtype)

    whole = draw(range(101))
    order = torch.randperm(101)
    assert torch.equal(draw(order), whole[order])
    for size in (1, 2, 3, 17):
        parts = torch.cat([draw(range(a, min(a + size, 101))) for a in range(0, 101, size)])
        assert torch.equal(parts, whole)
    assert torch.equal(draw([100] * 33), whole[100:].expand(33, 3, 5))
    # Word j of a sample does not depend on how many are asked for.
    assert torch.equal(draw(range(101), (4,)), whole.flatten(1)[:, :4])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_bits_of_a_sample_in_a_batch_large_enough_to_be_split_between_threads(dtype):
    whole = noise.normal(3, torch.arange(40_000), (3,), dtype=dtype)
    for i in (0, 1, 31_999, 39_999):
        assert torch.equal(noise.normal(3, torch.tensor([i]), (3,), dtype=dtype)[0], whole[i])


def test_one_seed_per_sample():
    seeds, index = [4, 2**40 + 1, -9], torch.tensor([2, 0, 5])
    apart = torch.cat([noise.normal(s, index[i : i + 1], (6,), dtype=F64) for i, s in enumerate(seeds)])
    assert torch.equal(noise.normal(seeds, index, (6,), dtype=F64), apart)
    assert torch.equal(noise.normal(torch.tensor(seeds), index, (6,), dtype=F64), apart)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"seed": 0}, {"seed": 1}),
        ({"seed": 0}, {"seed": 2**32}),  # the high word of the seed counts
        ({"seed": 1}, {"seed": -1}),
        ({"draw": 0}, {"draw": 1}),
        ({"draw": 0}, {"draw": 1 << 8}),
        ({"domain": "prior"}, {"domain": "sampler"}),
        ({"domain": "training"}, {"domain": "augmentation"}),
        ({"shift": 0}, {"shift": 1}),
    ],
)
def test_streams_are_uncorrelated(one, two):
    n = 40_000

    def stream(seed=0, draw=0, domain="sampler", shift=0):
        return noise.normal(seed, torch.arange(n) + shift, (2,), draw=draw, domain=domain, dtype=F64)

    a, b = stream(**one), stream(**two)
    for i in range(2):
        for j in range(2):
            # E[ab] = 0 with standard error 1/sqrt(n); E[(a^2-1)(b^2-1)] = 0 with 2/sqrt(n).
            assert abs(float((a[:, i] * b[:, j]).mean())) < 4 / n**0.5
            assert abs(float(((a[:, i] ** 2 - 1) * (b[:, j] ** 2 - 1)).mean())) < 8 / n**0.5


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_normal_law(dtype):
    n = 200_000
    x = noise.normal(42, torch.arange(n // 8), (8,), dtype=dtype).double().flatten()
    # Standard errors of the first four moments of N(0, 1): sqrt(1, 2, 15, 96) / sqrt(n).
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - moment) < 4 * (variance / n) ** 0.5
    assert stats.kstest(x.numpy(), "norm").statistic < 1.95 / n**0.5  # p = 1e-3
    rows = x.reshape(-1, 8)
    gram = rows.T @ rows / len(rows)
    assert float((gram - torch.diag(gram.diag())).abs().max()) < 5 / len(rows) ** 0.5  # 28 pairs
    squares = rows**2 - 1
    gram = squares.T @ squares / len(rows)
    assert float((gram - torch.diag(gram.diag())).abs().max()) < 10 / len(rows) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_tails_go_through_the_same_formula_and_stay_finite(monkeypatch, dtype):
    extreme = [0, 1, 0x7FFFFFFF, 0x80000000, MASK - 1, MASK]
    pairs = torch.tensor([[a, b] for a in extreme for b in extreme])
    monkeypatch.setattr(noise, "_words", lambda *_: pairs.reshape(1, -1))
    got = noise.normal(0, torch.arange(1), (2 * len(pairs),), dtype=dtype)[0].double()
    expected = []
    for a, b in pairs.tolist():
        log_u = math.log1p(-(2**32 - a - 0.5) / 2**32) if a < 2**31 else math.log1p(-(MASK - a + 0.5) / 2**32)
        radius, angle = math.sqrt(-2 * log_u), 2 * math.pi * (b + 0.5) / 2**32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    assert torch.isfinite(got).all()
    tight = 1e-9 if dtype == F64 else 6e-6
    torch.testing.assert_close(got, torch.tensor(expected, dtype=F64), rtol=0, atol=tight)
    radius = got.reshape(-1, 2).norm(dim=1).reshape(6, 6)
    # word 0 gives sqrt(66 log 2) = 6.764, word ffffffff gives 2^-16: never infinite, never 0.
    torch.testing.assert_close(radius[0], torch.full((6,), math.sqrt(66 * math.log(2)), dtype=F64), rtol=1e-6, atol=0)
    torch.testing.assert_close(radius[5], torch.full((6,), 2.0**-16, dtype=F64), rtol=1e-6, atol=0)


def test_float32_agrees_with_float64():
    index = torch.arange(50_000)
    wide, narrow = (noise.normal(1, index, (4,), dtype=d).double() for d in (F64, torch.float32))
    assert float((wide - narrow).abs().max()) < 5e-6
    wide, narrow = (noise.uniform(1, index, (4,), dtype=d).double() for d in (F64, torch.float32))
    assert float((wide - narrow).abs().max()) <= 2.0**-23


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 23), (F64, 32)])
def test_uniform_is_strictly_inside(monkeypatch, dtype, bits):
    n = 100_000
    u = noise.uniform(8, torch.arange(n), (1,), dtype=dtype).double().flatten()
    assert stats.kstest(u.numpy(), "uniform").statistic < 1.95 / n**0.5
    assert abs(float(u.mean()) - 0.5) < 4 / (12 * n) ** 0.5
    monkeypatch.setattr(noise, "_words", lambda *_: torch.tensor([[0, MASK]]))
    ends = noise.uniform(0, torch.arange(1), (2,), dtype=dtype)[0].double().tolist()
    assert ends == [2.0 ** -(bits + 1), 1 - 2.0 ** -(bits + 1)]


@pytest.mark.parametrize("n", [1, 2, 5, 1000])
def test_permutation_is_one_and_follows_its_key(n):
    p = noise.permutation(3, n, epoch=2)
    assert torch.equal(p.sort().values, torch.arange(n))
    words = reference_words(3, 2, 2 * n, 0, "order")
    keys = [words[i] << 20 ^ words[n + i] for i in range(n)]
    assert p.tolist() == sorted(range(n), key=keys.__getitem__)
    if n == 1000:
        for other in (noise.permutation(3, n, epoch=3), noise.permutation(4, n, epoch=2)):
            # A uniform permutation agrees with a fixed one in Poisson(1) places.
            assert int((p == other).sum()) < 8


def test_permutation_is_uniform():
    trials, n = 1500, 5
    where = torch.stack([noise.permutation(seed, n) for seed in range(trials)])
    counts = torch.stack([(where == value).sum(0) for value in range(n)]).double()
    assert float(((counts - trials / n) ** 2 / (trials / n)).sum()) < stats.chi2.ppf(0.9999, (n - 1) ** 2)


def path(seed, index, times, shape):
    """One path; its times are read on the grid of 2^-24."""
    near = (times.double().clamp(0, 1) / noise.RESOLUTION).round() * noise.RESOLUTION
    assert torch.equal(noise.brownian(seed, index, near, shape), noise.brownian(seed, index, times, shape))
    return noise.brownian(seed, index, times, shape)


def test_brownian_covariance_is_min_s_t():
    n, times = 20_000, torch.tensor([0.0, 0.1, 0.25, 0.3, 0.5, 0.77, 1.0], dtype=F64)
    w = path(5, torch.arange(n), times, ())
    assert w.shape == (7, n)
    assert torch.equal(w[0], torch.zeros(n, dtype=F64))
    covariance = w @ w.T / n
    expected = torch.minimum(times[:, None], times[None, :])
    error = ((times[:, None] * times[None, :] + expected**2) / n).sqrt()
    assert bool(((covariance - expected).abs() <= 4 * error + 1e-15).all())
    for row, t in zip(w[1:], times[1:], strict=True):
        assert stats.kstest((row / t**0.5).numpy(), "norm").statistic < 1.95 / n**0.5


def test_brownian_increments_are_independent_and_stationary_at_every_scale():
    steps, paths = 512, 60
    times = torch.arange(steps + 1, dtype=F64) / steps
    step = path(6, torch.arange(paths), times, ()).diff(dim=0) * steps**0.5
    n = steps * paths
    assert stats.kstest(step.flatten().numpy(), "norm").statistic < 1.95 / n**0.5
    assert abs(float((step**2).mean()) - 1) < 4 * (2 / n) ** 0.5
    for lag in (1, 2, 3, 16, 64, 256):
        assert abs(float((step[lag:] * step[:-lag]).mean())) < 4 / ((steps - lag) * paths) ** 0.5
    fine = 2.0**-24  # the last level of the tree
    edge = torch.tensor([0.5 - fine, 0.5, 0.5 + fine], dtype=F64)
    step = path(6, torch.arange(20_000), edge, ()).diff(dim=0) / fine**0.5
    assert abs(float((step**2).mean()) - 1) < 4 * (2 / 40_000) ** 0.5
    assert abs(float((step[0] * step[1]).mean())) < 4 / 20_000**0.5


def test_brownian_is_one_path_whatever_the_times_and_the_batch():
    index, shape = torch.tensor([4, 9]), (2, 3)
    times = torch.tensor([0.9, 0.125, 0.3, 1.0, 0.3], dtype=F64)
    whole = path(7, index, times, shape)
    assert whole.shape == (5, 2, 2, 3)
    assert torch.equal(whole[2], whole[4])
    for k, t in enumerate(times):
        assert torch.equal(path(7, index, t[None], shape)[0], whole[k])
    assert torch.equal(path(7, index[1:], times, shape), whole[:, 1:])
    assert torch.equal(path(7, index, torch.tensor([0.3 + 2.0**-27], dtype=F64), shape)[0], whole[2])
    assert not torch.equal(path(8, index, times, shape)[0], whole[0])
    assert torch.equal(path(7, index, torch.tensor([-1.0, 2.0]), shape)[1], whole[3])


def test_brownian_tree_by_hand(monkeypatch):
    index, real, domains = torch.arange(3), noise.normal, set()

    def recorded(*args, **kwargs):
        domains.add(kwargs["domain"])
        return real(*args, **kwargs)

    def node(number):
        (domain,) = domains
        return real(2, index, (), draw=number, domain=domain, dtype=F64)

    monkeypatch.setattr(noise, "normal", recorded)
    w = path(2, index, torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=F64), ())
    one = node(1)
    half = one / 2 + 0.5 * node(2 + 1)
    torch.testing.assert_close(w[3], one, rtol=0, atol=0)
    torch.testing.assert_close(w[1], half, rtol=0, atol=1e-15)
    torch.testing.assert_close(w[0], half / 2 + 0.125**0.5 * node(4 + 1), rtol=0, atol=1e-15)
    torch.testing.assert_close(w[2], (half + one) / 2 + 0.125**0.5 * node(4 + 3), rtol=0, atol=1e-15)


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match="seed: given True"):
        noise.normal(True, torch.arange(2), (1,))
    with pytest.raises(ConfigError, match=r"seed: given 1\.5"):
        noise.normal(1.5, torch.arange(2), (1,))
    with pytest.raises(ConfigError, match=r"index: given shape \(1, 2\)"):
        noise.normal(0, torch.arange(2)[None], (1,))
    for draw in (-1, 2**32):
        with pytest.raises(ConfigError, match=f"draw: given {draw}"):
            noise.normal(0, torch.arange(2), (1,), draw=draw)
    assert noise.normal(0, torch.arange(2), (1,), draw=2**32 - 1).isfinite().all()


def test_many_draws_at_once_are_those_draws() -> None:
    """M draws in one call, (M, B, *shape), bit for bit; one seed per sample as well."""
    index, numbers = torch.tensor([4, 0, 9]), torch.tensor([5, 0, 2**24 + 3])
    for seed in (7, [1, 2, 3]):
        for shape in ((), (5,), (2, 3)):
            many = noise.normal(seed, index, shape, draw=numbers, domain="brownian")
            each = torch.stack([noise.normal(seed, index, shape, draw=int(d), domain="brownian") for d in numbers])
            assert torch.equal(many, each) and many.shape == (3, 3, *shape)
