"""Log-likelihood by the probability-flow ODE: closed forms, probes term by term, networks that integrate to one."""

import math

import pytest
import torch
from torch import Tensor, nn

import fokker as fk
from fokker import noise
from fokker.calculus import Hutchinson
from fokker.errors import ConfigError
from fokker.likelihood import log_prob
from fokker.process import Process
from fokker.solvers import RK4, Adaptive

COV = torch.tensor([[0.8, 0.3, 0.0, 0.1], [0.3, 0.5, 0.2, 0.0], [0.0, 0.2, 0.4, 0.1], [0.1, 0.0, 0.1, 0.3]]).double()
MEAN = torch.tensor([0.5, -0.2, 0.1, 0.3]).double()
MIXTURE = fk.exact.GaussianMixture(
    [0.3, 0.7], [[1.0, -0.5], [-1.0, 0.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.5, 0.0], [0.0, 0.1]]], labels=[0, 1]
)
PAIR = fk.exact.GaussianMixture([0.4, 0.6], torch.stack([MEAN, -MEAN]), torch.stack([COV, COV.flip(0, 1)]))
PROCESSES = [fk.VP(), fk.VE(), fk.EDM(), fk.Flow(), fk.Trig(), fk.SubVP(), fk.OU()]


def power(matrix: Tensor, by: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values**by @ vectors.T


def log_normal(x: Tensor, std: float) -> Tensor:
    return -0.5 * (x / std).square().flatten(1).sum(1) - x[0].numel() * (math.log(std) + 0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_mixtures_to_1e_5_nats_at_t_min_and_at_0(process: Process) -> None:
    x = MIXTURE.sample(12, seed=1, dtype=torch.float64)
    last = MIXTURE.at(process, process.T).log_prob
    found = log_prob(MIXTURE.denoiser(process), x, prior=last)
    assert (found.value - MIXTURE.at(process, process.t_min).log_prob(x)).abs().max() < 1e-5
    assert not found.stderr.any()
    found = log_prob(MIXTURE.denoiser(process), x, prior=last, grid=[0.0, process.T])
    assert (found.value - MIXTURE.log_prob(x)).abs().max() < 1e-5


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_a_gaussian_under_the_prior_in_closed_form(process: Process) -> None:
    # The flow's map is x_T = a_T m + (V_T V_s^-1)^{1/2} (x - a_s m), V = alpha^2 C + sigma^2 I: its density is known.
    law = fk.exact.Gaussian(MEAN, COV)
    x = law.sample(6, seed=2, dtype=torch.float64)
    s, T = process.t_min, process.T
    before, after = law.at(process, s), law.at(process, T)
    matrix = power(after.cov, 0.5) @ power(before.cov, -0.5)
    end = after.mean + (x - before.mean) @ matrix.T
    want = log_normal(end, float(process.prior_std(T))) + torch.linalg.slogdet(matrix)[1]
    found = log_prob(law.denoiser(process), x, solver=Adaptive(rtol=1e-7, atol=1e-7))
    assert (found.latent / end - 1.0).abs().max() < 1e-5
    assert (found.value - want).abs().max() < 1e-6


def test_given_probes_give_their_own_quadratic_form() -> None:
    # The field is linear, so l of a probe is u^T A u with A = log(V_T V_s^-1) / 2 in states over R.
    process, law = fk.VE(sigma_max=5.0), fk.exact.Gaussian(MEAN, COV)
    s, T = process.t_min, process.T
    sizes = [float(torch.hypot(process.alpha(t), process.sigma(t))) for t in (s, T)]
    values, vectors = torch.linalg.eigh(COV)
    spread = ((values + float(process.sigma(T)) ** 2) / (values + float(process.sigma(s)) ** 2)).log() / 2
    A = vectors * (spread - math.log(sizes[1] / sizes[0])) @ vectors.T
    x = law.sample(5, seed=2, dtype=torch.float64)
    u = noise.normal(4, torch.arange(5), (4,), draw=torch.arange(3), dtype=torch.float64)
    solver = Adaptive(rtol=1e-8, atol=1e-8)
    exact = log_prob(law.denoiser(process), x, solver=solver)
    found = log_prob(law.denoiser(process), x, probes=u, solver=solver, batch_size=2)
    forms = torch.einsum("kbi,ij,kbj->kb", u, A, u)
    assert (found.value - exact.value - (forms.mean(0) - A.trace())).abs().max() < 1e-6
    assert (found.stderr - forms.std(0) / math.sqrt(3)).abs().max() < 1e-6
    one = log_prob(law.denoiser(process), x, probes=u[:1], solver=solver)
    assert (one.value - exact.value - (forms[0] - A.trace())).abs().max() < 1e-6 and one.stderr.isnan().all()


@pytest.mark.parametrize("law_of_probes", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_knows_its_error(law_of_probes: str) -> None:
    process = fk.VP()
    x = PAIR.sample(100, seed=3, dtype=torch.float64)
    solver = RK4(space="t")
    exact = log_prob(PAIR.denoiser(process), x, solver=solver, steps=20)
    probes = Hutchinson(probes=40, law=law_of_probes, seed=5)
    found = log_prob(PAIR.denoiser(process), x, probes=probes, solver=solver, steps=20)
    z = (found.value - exact.value) / found.stderr
    assert abs(float(z.mean())) * 10.0 < 4.0  # 100 independent samples
    assert abs(float(z.square().mean()) - 1.05) < 4.0 * math.sqrt(2.0 / 100) and float(found.stderr.min()) > 1e-3


def test_plans_integrate_the_pair_at_their_order() -> None:
    process = fk.VP()
    x, want = MIXTURE.sample(12, seed=1, dtype=torch.float64), MIXTURE.at(process, process.t_min)
    for solver, order in ((RK4(space="t"), 4.0), ("ddim", 1.0)):
        errors = [
            (
                log_prob(
                    MIXTURE.denoiser(process),
                    x,
                    solver=solver,
                    steps=n,
                    grid="lam",
                    prior=MIXTURE.at(process, 1.0).log_prob,
                )
            )
            for n in (30, 60)
        ]
        a, b = (float((found.value - want.log_prob(x)).abs().max()) for found in errors)
        assert abs(math.log2(a / b) - order) < 0.5, (solver, a, b)


class Squares:
    """A denoiser of 4 numbers as one of pictures (1, 2, 2)."""

    def __init__(self, denoiser: fk.Denoiser) -> None:
        self.denoiser, self.process, self.lam_range = denoiser, denoiser.process, denoiser.lam_range
        self.shape, self.reading = (1, 2, 2), None

    def __call__(self, x: Tensor, s: float | Tensor, cond: object = None) -> fk.Prediction:
        inner = self.denoiser(x.flatten(1), s, cond)
        return fk.Prediction(self.process, x, s, x0=inner.x0.reshape(x.shape), noise=inner.noise.reshape(x.shape))


def test_pictures_conditions_batches_and_numbers() -> None:
    process, solver = fk.Flow(), Adaptive(rtol=1e-6, atol=1e-6)
    flat = PAIR.denoiser(process)
    x = PAIR.sample(5, seed=2, dtype=torch.float64)
    way = {"solver": "rk4", "steps": 8}
    image, vector = log_prob(Squares(flat), x.reshape(5, 1, 2, 2), **way), log_prob(flat, x, **way)
    assert image.latent.shape == (5, 1, 2, 2) and (image.value - vector.value).abs().max() < 1e-12
    # A condition per sample: each under its own component.
    points = MIXTURE.sample(6, seed=7, dtype=torch.float64)
    told = torch.tensor([0, 1, 1, 0, 1, 0])
    cores = [fk.exact.Gaussian(m, c) for m, c in (([1.0, -0.5], [[0.3, 0.1], [0.1, 0.2]]), ([-1.0, 0.5], [0.5, 0.1]))]
    want = torch.stack([core.log_prob(points) for core in cores])[told, torch.arange(6)]
    denoiser, seen = MIXTURE.denoiser(process), []
    found = log_prob(
        denoiser, points, cond=told, grid=[0.0, 1.0], solver=solver, batch_size=4, progress=lambda n: seen.append(n)
    )
    assert (found.value - want).abs().max() < 1e-5 and seen == [4, 2]
    # Probes go with the sample's number, wherever it stands.
    probes = Hutchinson(probes=2, law="gaussian", seed=1)
    whole = log_prob(denoiser, points, probes=probes, batch_size=4, **way)
    last = log_prob(denoiser, points[5:], probes=probes, index=torch.tensor([5]), **way)
    assert abs(float(whole.value[5] - last.value[0])) < 1e-9 and float(last.stderr[0]) > 0


class Wave(nn.Module):
    """A network in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.scale * (1.5 * x + time[:, None]).sin() - 0.4 * x * (1.0 - time[:, None])


def test_a_networks_density_integrates_to_one_and_is_that_of_its_samples() -> None:
    denoiser = fk.NetDenoiser(Wave(), fk.Trig(), predict="v", shape=(1,))
    x = torch.linspace(-8.0, 8.0, 801)[:, None]
    found = log_prob(denoiser, x)
    density = found.value.exp()
    assert found.value.dtype == torch.float64 and not found.latent.requires_grad
    assert abs(float(torch.trapezoid(density, x[:, 0].double())) - 1.0) < 1e-4
    drawn = fk.sample(denoiser, n=4000, solver=Adaptive(), final="t_min")[:, 0].double()
    mean = float(torch.trapezoid(density * x[:, 0], x[:, 0].double()))
    second = float(torch.trapezoid(density * x[:, 0] ** 2, x[:, 0].double()))
    assert abs(float(drawn.mean()) - mean) < 4.0 * float(drawn.std()) / math.sqrt(4000)
    assert abs(float(drawn.square().mean()) - second) < 4.0 * float(drawn.square().std()) / math.sqrt(4000)


def test_a_network_of_pictures() -> None:
    torch.manual_seed(0)
    net = fk.nets.UNet(channels=1, width=8, multipliers=(1, 1), blocks=1, attention=(2,), size=4)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    denoiser = fk.NetDenoiser(net.double(), fk.VP(), predict="v", shape=(1, 4, 4)).eval()
    x = 0.5 * noise.normal(0, torch.arange(2), (1, 4, 4), dtype=torch.float64)
    exact = log_prob(denoiser, x, solver="heun", steps=6)
    basis = 4.0 * torch.eye(16, dtype=torch.float64).reshape(16, 1, 1, 4, 4).expand(16, 2, 1, 4, 4)
    assert (log_prob(denoiser, x, solver="heun", steps=6, probes=basis).value - exact.value).abs().max() < 1e-8
    signs = log_prob(denoiser, x, solver="heun", steps=6, probes=Hutchinson(probes=64))
    assert ((signs.value - exact.value) / signs.stderr).abs().max() < 4.0 and float(signs.stderr.min()) > 1e-4


def test_what_cannot_be_done_is_said() -> None:
    denoiser, x = MIXTURE.denoiser(fk.VP()), torch.zeros(3, 2)
    with pytest.raises(ConfigError, match="towards the data only"):
        log_prob(denoiser, x, solver="ancestral", steps=3)
    with pytest.raises(ConfigError, match=r"probes: given shape \(2, 1, 2\), must be \(K, 3, 2\)"):
        log_prob(denoiser, x, probes=torch.ones(2, 1, 2))
    with pytest.raises(ConfigError, match="batch_size: given 0"):
        log_prob(denoiser, x, batch_size=0)
