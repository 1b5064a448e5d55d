"""NetDenoiser with nets that know the answer for Gaussian data, and denoisers seen in other processes."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from fokker.denoiser import TIME_INPUTS, NetDenoiser, View, null_like, repeat_cond, to_process
from fokker.errors import ConfigError
from fokker.prediction import READINGS, Denoiser, Prediction, Reading
from fokker.process import DDPM, EDM, OU, VE, VP, Flow, SubVP, Trig, clocks

F64 = torch.float64
MEAN, VAR = 0.8, 0.3  # the data: N(0.8, 0.3) in every coordinate
PROCESSES = {"vp": VP(), "flow": Flow(), "edm": EDM(), "ve": VE(), "ou": OU(), "ddpm": DDPM(), "sub-vp": SubVP()}


def posterior(process, x, s):
    """(E[x_0 | x], E[eps | x]) of the Gaussian data."""
    s = torch.as_tensor(s, dtype=F64).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))
    alpha, sigma = process.alpha(s), process.sigma(s)
    variance = alpha**2 * VAR + sigma**2
    shift = x - alpha * MEAN
    return MEAN + alpha * VAR / variance * shift, sigma / variance * shift


class Exact(nn.Module):
    """A net that undoes the preconditioning and the time input, and answers exactly: by hand, without the library."""

    def __init__(self, process: Any, predict: str, precondition: str, time: str, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.process, self.predict, self.precondition, self.time = process, predict, precondition, time
        self.sigma_data = sigma_data
        self.told: list[torch.Tensor] = []

    def forward(self, y, told, cond=None):
        self.told.append(told)
        process = self.process
        if self.time == "integer":
            assert told.dtype == torch.int64
        told = told.double()
        s = {
            "t": lambda: told * process.T,
            "1000t": lambda: told / 1000 * process.T,
            "lam": lambda: process.time(told),
            "log_sigma": lambda: process.time(-4 * told),
            "index": lambda: (told + 1) / 1000,
            "integer": lambda: (told + 1) / 1000,
        }[self.time]()
        s = s.reshape(-1, *[1] * (y.ndim - 1))
        alpha, sigma = process.alpha(s), process.sigma(s)
        root = (alpha**2 * self.sigma_data**2 + sigma**2).sqrt()
        x = y * root if self.precondition == "edm" else y
        x0, eps = posterior(process, x, s.flatten())
        d = self.sigma_data
        return {
            "x0": lambda: x0,
            "noise": lambda: eps,
            "score": lambda: -eps / sigma,
            "velocity": lambda: process.d_alpha(s) * x0 + process.d_sigma(s) * eps,
            "v": lambda: alpha * eps - sigma * x0,
            "edm": lambda: (x0 - alpha * d**2 / root**2 * x) / (sigma * d / root),
        }[self.predict]()


def exact(process, predict="velocity", precondition="none", time="t", sigma_data=0.5, **more):
    net = Exact(process, predict, precondition, time, sigma_data)
    return NetDenoiser(net, process, predict, precondition, time, sigma_data, **more)


CASES = [
    (name, predict, precondition, time)
    for name, process in PROCESSES.items()
    for predict in [*READINGS, "edm"]
    for precondition in ("none", "edm")
    for time in TIME_INPUTS
    if name == "ddpm" or time not in ("index", "integer")
]


@pytest.mark.parametrize("name", list(PROCESSES))
def test_every_reading_preconditioning_and_time_input_gives_the_exact_mean(name):
    process = PROCESSES[name]
    for case, predict, precondition, time in CASES:
        if case != name:
            continue
        # A chain's slope jumps at its levels: integers are levels, the other inputs are asked in between.
        places = [0.05, 0.377, 0.94] if time == "integer" else [0.0503, 0.3774, 0.9406]
        s = torch.tensor(places, dtype=F64) * process.T
        x = torch.randn(3, 2, 2, dtype=F64) * process.sigma(s)[:, None, None]
        x0, eps = posterior(process, x, s)
        for sigma_data in (0.5, 1.3):
            p = exact(process, predict, precondition, time, sigma_data)(x, s)
            why = f"{predict} {precondition} {time}"
            torch.testing.assert_close(p.x0, x0, rtol=1e-8, atol=1e-8, msg=why)
            torch.testing.assert_close(p.noise, eps, rtol=1e-8, atol=1e-8, msg=why)


def test_time_inputs_by_value():
    s = torch.tensor([0.25, 0.5], dtype=F64)
    x = torch.zeros(2, 1, dtype=F64)
    for process, time, told in [
        (EDM(), "t", s / 80),
        (EDM(), "1000t", 12.5 * s),
        (EDM(), "lam", -s.log()),
        (EDM(), "log_sigma", s.log() / 4),  # Karras et al.'s c_noise
        (DDPM(), "index", torch.tensor([249.0, 499.0], dtype=F64)),
        (DDPM(), "integer", torch.tensor([249, 499])),
        (OU(horizon=4.0), "t", s / 4),
    ]:
        d = exact(process, "x0", "none", time)
        d(x, s)
        torch.testing.assert_close(d.net.told[-1], told, rtol=1e-12, atol=1e-12)
        d(x[:1], 0.25)
        torch.testing.assert_close(d.net.told[-1], told[:1], rtol=1e-12, atol=1e-12)


def test_integer_rounds_and_index_does_not():
    x, s = torch.zeros(2, 1, dtype=F64), torch.tensor([0.2504, 0.2506], dtype=F64)
    for time, told in (("index", [249.4, 249.6]), ("integer", [249, 250])):
        d = exact(DDPM(), "x0", "none", time)
        d(x, s)
        torch.testing.assert_close(d.net.told[-1].double(), torch.tensor(told, dtype=F64), rtol=1e-12, atol=0)
        d(x, float(s[1]))
        assert math.isclose(float(d.net.told[-1][0]), told[1], rel_tol=1e-12)


@pytest.mark.parametrize("name", ["vp", "flow", "edm", "ve", "ddpm", "ou"])
@pytest.mark.parametrize("time", list(TIME_INPUTS))
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_time_inputs_are_finite_at_both_ends(name, time, dtype):
    process = PROCESSES[name]
    if time in ("index", "integer") and name != "ddpm":
        with pytest.raises(ConfigError, match=f"time='{time}' needs the process 'ddpm'"):
            exact(process, "x0", "none", time)
        return
    seen = []

    class Spy(nn.Module):
        def forward(self, y, told):
            seen.append(told)
            return y

    d = NetDenoiser(Spy(), process, "x0", "edm", time)
    for s in (0.0, process.T, torch.tensor([0.0, process.T], dtype=dtype)):
        x = torch.ones(2, 1, dtype=dtype)
        d(x, s)
        assert torch.isfinite(seen[-1].double()).all()
        assert seen[-1].shape == (2,)
        if time != "integer":
            assert seen[-1].dtype == dtype
    # Clamped to the ends of [t_min, t_max], not past them.
    if time in ("lam", "log_sigma"):
        factor = 1.0 if time == "lam" else -0.25
        ends = [factor * float(process.lam(u)) for u in (process.t_min, process.t_max)]
        torch.testing.assert_close(seen[-1].double(), torch.tensor(ends, dtype=F64), rtol=1e-5, atol=0)
    elif time in ("index", "integer"):
        assert seen[-1].tolist() == [0, 999]


def test_half_precision_states_keep_their_time_in_float32():
    d = NetDenoiser(exact(VP()).net, VP(), "x0")
    d.net = nn.Module()
    seen = []
    d.net.forward = lambda y, told: seen.append(told) or y
    for s in (0.3, torch.tensor([0.3], dtype=torch.bfloat16)):
        d(torch.zeros(1, 1, dtype=torch.bfloat16), s)
        assert seen[-1].dtype == torch.float32


@pytest.mark.parametrize("name", ["vp", "flow", "edm", "ddpm"])
@pytest.mark.parametrize("precondition", ["none", "edm"])
def test_a_float_time_equals_a_tensor_of_it(name, precondition):
    process = PROCESSES[name]
    d = exact(process, "edm", precondition, "log_sigma")
    x = torch.randn(3, 4, dtype=F64)
    for s in (0.3 * process.T, 0.7 * process.T, 0.3 * process.T):  # the third is read from the cache
        one = d(x, s)
        for other in (d(x, torch.full((3,), s, dtype=F64)), d(x, torch.tensor(s, dtype=F64))):
            torch.testing.assert_close(one.value, other.value, rtol=1e-14, atol=1e-15)
            torch.testing.assert_close(one.x0, other.x0, rtol=1e-13, atol=1e-14)
    single = x.float()
    a, b = d(single, 0.3 * process.T), d(single, torch.full((3,), 0.3 * process.T, dtype=F64))
    torch.testing.assert_close(a.x0, b.x0, rtol=1e-5, atol=1e-6)


def test_edm_preconditioning_scales_the_input_by_c_in():
    seen = []

    class Spy(nn.Module):
        def forward(self, y, told):
            seen.append(y)
            return torch.zeros_like(y)

    x = torch.ones(2, 1, dtype=F64)
    for sigma, c_in in ((0.002, 1.999984), (0.5, 1.414214), (80.0, 0.01249976)):
        d = NetDenoiser(Spy(), EDM(), "edm", "edm", "log_sigma")
        for s in (sigma, torch.tensor([sigma, sigma], dtype=F64)):
            p = d(x, s)
            torch.testing.assert_close(seen[-1], c_in * x, rtol=1e-6, atol=0)
            # F = 0 on N(0, 0.5^2) data is the exact posterior mean.
            torch.testing.assert_close(p.x0, 0.25 / (0.25 + sigma**2) * x, rtol=1e-12, atol=0)
        NetDenoiser(Spy(), EDM(), "edm", "none")(x, sigma)
        assert torch.equal(seen[-1], x)


def test_edm_denoiser_returns_x_at_sigma_0():
    class Spy(nn.Module):
        def forward(self, y, told):
            return torch.full_like(y, 7.0)

    x = torch.randn(3, 2)
    assert torch.equal(NetDenoiser(Spy(), EDM(), "edm", "edm", "log_sigma")(x, 0.0).x0, x)


def test_conditions_reach_the_net_only_when_given():
    calls = []

    class Spy(nn.Module):
        def forward(self, *inputs):
            calls.append(inputs)
            return inputs[0]

    d, x, c = NetDenoiser(Spy(), VP(), "x0"), torch.zeros(2, 1), torch.tensor([3, 4])
    d(x, 0.5)
    assert len(calls[-1]) == 2
    d(x, 0.5, c)
    assert calls[-1][2] is c
    assert d.raw(x, 0.5, c).shape == x.shape


def test_learned_variance_is_split_from_the_mean():
    class Two(nn.Module):
        def forward(self, y, told):
            return torch.cat([2 * y, y + 10], dim=1)

    x = torch.randn(2, 3, 4, dtype=F64)
    d = NetDenoiser(Two(), VP(), "noise", learned_variance=True)
    p = d(x, 0.5)
    assert torch.equal(p.noise, 2 * x)
    assert torch.equal(p.variance, x + 10)
    assert exact(VP())(x, 0.5).variance is None
    seen = View(d, Flow())(x, 0.5)
    assert seen.variance.shape == x.shape


@pytest.mark.parametrize("channels", [3, 4])
def test_shapes_that_do_not_fit_are_named(channels):
    class Wide(nn.Module):
        def forward(self, y, told):
            return torch.zeros(len(y), channels)

    x = torch.zeros(2, 6)
    with pytest.raises(ConfigError, match=rf"gave shape \(2, {channels}\) for a state of shape \(2, 6\)"):
        NetDenoiser(Wide(), VP())(x, 0.5)
    with pytest.raises(ConfigError, match=rf"learned_variance: the network gave {channels} channels, not 12"):
        NetDenoiser(Wide(), VP(), learned_variance=True)(x, 0.5)


def test_default_lam_range_is_all_of_t_min_to_T():
    for process in PROCESSES.values():
        low, high = exact(process).lam_range
        assert low == float(process.lam(process.T))
        assert high == float(process.lam(process.t_min))
    assert exact(VP(), lam_range=[-2.0, 3.0]).lam_range == (-2.0, 3.0)
    d = exact(VP(), shape=[3, 2])
    assert d.shape == (3, 2)
    assert isinstance(d, Denoiser)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"predict": "velocty"}, "predict: given 'velocty'; did you mean 'velocity'"),
        ({"precondition": "edn"}, "precondition: given 'edn', must be 'none' or 'edm'"),
        ({"time": "tt"}, "time: given 'tt'; .*1000t"),
        ({"sigma_data": 0.0}, "sigma_data: given 0.0, must be greater than 0"),
        ({"sigma_data": math.nan}, "sigma_data: given nan"),
        ({"proces": 1}, "NetDenoiser has no field 'proces': did you mean 'process'"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        NetDenoiser(nn.Identity(), VP(), **fields)


def test_a_reading_of_ones_own():
    mix = Reading("mix", lambda process, t: (torch.ones_like(t), torch.full_like(t, -2.0), torch.ones_like(t)))
    x, s = torch.randn(3, 2, dtype=F64), torch.tensor([0.2, 0.5, 0.7], dtype=F64)
    x0, eps = posterior(Flow(), x, s)

    class Net(nn.Module):
        def forward(self, y, told):
            return x0 - 2 * eps

    p = NetDenoiser(Net(), Flow(), mix)(x, s)
    torch.testing.assert_close(p.x0, x0, rtol=1e-12, atol=1e-12)


# ---- views -------------------------------------------------------------------------------------------------------


class Pair:
    """An exact denoiser of the pair (x0, noise)."""

    reading, shape = None, (2,)

    def __init__(self, process):
        self.process, self.lam_range = process, clocks.lam_range(process)
        self.conditions = []

    def __call__(self, x, s, cond=None):
        self.conditions.append(cond)
        x0, eps = posterior(self.process, x, s)
        return Prediction(self.process, x, s, x0=x0, noise=eps)


VIEWS = [(a, b) for a in PROCESSES for b in PROCESSES if a != b]


@pytest.mark.parametrize(("home", "away"), VIEWS)
@pytest.mark.parametrize("predict", ["velocity", "score", "x0", "edm", None])
def test_a_view_is_the_exact_denoiser_of_the_other_process(home, away, predict):
    source, target = PROCESSES[home], PROCESSES[away]
    d = Pair(source) if predict is None else exact(source, predict, "edm", "lam")
    view = to_process(d, target)
    assert view.process is target
    assert view.lam_range == clocks.common_lam_range(d.lam_range, clocks.lam_range(target))
    low, high = max(view.lam_range[0], -5.0), min(view.lam_range[1], 5.0)
    s = target.time(torch.linspace(low, high, 5, dtype=F64)[1:-1])
    x = torch.randn(3, 2, dtype=F64) * target.sigma(s)[:, None]
    x0, eps = posterior(target, x, s)
    p = view(x, s)
    assert p.process is target
    assert p.x is x
    torch.testing.assert_close(p.x0, x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(p.noise, eps, rtol=1e-8, atol=1e-8)
    velocity = target.d_alpha(s)[:, None] * x0 + target.d_sigma(s)[:, None] * eps
    scale = 1e-8 * (1 + float(velocity.abs().max()))
    torch.testing.assert_close(p.velocity, velocity, rtol=1e-8, atol=scale)
    one = view(x[1:2], float(s[1]))
    torch.testing.assert_close(one.x0, x0[1:2], rtol=1e-8, atol=1e-8)
    if predict is not None:
        assert p.reading is view.reading
        assert p.pair is None
    else:
        assert view.reading is None


def test_a_view_of_a_view_is_one_view_and_the_way_back_is_the_denoiser():
    d = exact(VP())
    flow = d.to_process(Flow())
    edm = to_process(flow, EDM())
    assert isinstance(edm, View)
    assert edm.denoiser is d
    assert to_process(edm, VP()) is d
    assert d.to_process(VP()) is d
    direct = d.to_process(EDM())
    assert edm.lam_range == direct.lam_range
    x = torch.randn(2, 3, dtype=F64)
    assert torch.equal(edm(x, 2.0).x0, direct(x, 2.0).x0)
    assert flow.shape == d.shape


def test_lam_ranges_intersect_and_empty_ones_are_refused():
    d = exact(VP(), lam_range=(-2.0, 3.0))
    assert to_process(d, Flow()).lam_range == (-2.0, 3.0)
    low, high = to_process(d, EDM(sigma_max=2.0)).lam_range
    assert math.isclose(low, -math.log(2), rel_tol=1e-14)
    assert high == 3.0
    with pytest.raises(ConfigError, match="no common part"):
        to_process(exact(VP(), lam_range=(-4.0, -2.0)), EDM(sigma_max=2.0))


def test_views_pass_conditions_on():
    d = Pair(VP())
    cond = torch.tensor([1, 2])
    to_process(d, Flow())(torch.zeros(2, 1, dtype=F64), 0.5, cond)
    assert d.conditions[-1] is cond


def test_a_view_at_the_clean_end_returns_x():
    x = torch.randn(2, 3, dtype=F64)
    for s in (0.0, torch.zeros(2, dtype=F64)):
        p = to_process(exact(Flow(), "noise"), EDM())(x, s)
        torch.testing.assert_close(p.x0, x, rtol=1e-14, atol=0)
    # Trig seen in Flow at the noisy end: v fixes x0 there, E[x_0] = MEAN.
    p = to_process(exact(Trig(), "v"), Flow())(x, 1.0)
    torch.testing.assert_close(p.x0, torch.full_like(x, MEAN), rtol=1e-12, atol=0)


# ---- conditions --------------------------------------------------------------------------------------------------


def test_repeat_cond():
    assert repeat_cond(3, 4).tolist() == [3, 3, 3, 3]
    assert repeat_cond(0.5, 2).tolist() == [0.5, 0.5]
    rows = torch.arange(6).reshape(3, 2)
    assert repeat_cond(rows, 3) is rows
    assert repeat_cond(None, 3) is None
    assert repeat_cond("a photo", 3) == "a photo"
    assert repeat_cond(True, 3) is True
    nested = repeat_cond({"label": torch.tensor(2), "more": [1, (rows, None)]}, 3)
    assert nested["label"].tolist() == [2, 2, 2]
    assert nested["more"][0].tolist() == [1, 1, 1]
    assert isinstance(nested["more"][1], tuple)
    assert nested["more"][1][0] is rows
    with pytest.raises(ConfigError, match="cond: given 3 rows for 4 samples"):
        repeat_cond(rows, 4)


def test_null_like():
    assert null_like(torch.tensor([3, 0])).tolist() == [-1, -1]
    null = null_like(torch.ones(2, 3))
    assert null.shape == (2, 3)
    assert null.isnan().all()


def test_null_of_labels_without_a_sign_is_not_a_label():
    # uint8 labels cannot hold -1: 255 would be asked of the net as a class.
    try:
        null = null_like(torch.tensor([3, 0], dtype=torch.uint8))
    except ConfigError:
        return
    assert null.tolist() == [-1, -1]
