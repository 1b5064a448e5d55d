"""Continuous flows: the adjoint against closed forms and the integrator's own gradient; densities by value."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker import noise, registry
from fokker.calculus import divergence, gradient, jacobian, value_and_divergence
from fokker.classic import CNF
from fokker.classic.cnf import Velocity, integrate
from fokker.classic.flows import log_normal

A = torch.tensor([[0.3, -1.2], [0.8, -0.7]], dtype=torch.float64)


def normals(n: int, *shape: int, seed: int = 0) -> Tensor:
    return noise.normal(seed, torch.arange(n), shape, dtype=torch.float64)


class Linear(Velocity):
    """v = M x + q, whatever the time: the flow is exp(M t)."""

    def __init__(self, M: Tensor, q: Tensor) -> None:
        super().__init__((len(M),), 2, 1)
        del self.net
        self.M, self.q = torch.nn.Parameter(M.clone()), torch.nn.Parameter(q.clone())

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        return x @ self.M.T + self.q


def linear(M: Tensor = A, q: Tensor | None = None, **fields: object) -> CNF:
    flow = CNF((len(M),), **fields).double()
    flow.velocity = Linear(M, torch.zeros(len(M), dtype=M.dtype) if q is None else q)
    return flow


def bent(steps: int, adjoint: bool = True, dim: int = 2) -> CNF:
    """A network far from 0."""
    torch.manual_seed(0)
    flow = CNF((dim,), width=12, depth=2, steps=steps, adjoint=adjoint).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    return flow


def gradients(flow: CNF, x: Tensor, forward: bool = False) -> list[Tensor]:
    """Of a function of where x goes and of the log-determinant, by x and by every parameter."""
    x = x.clone().requires_grad_()
    end, log_det = flow(x) if forward else flow.inverse(x)
    pull = torch.linspace(-1.0, 2.0, end.numel(), dtype=x.dtype).view_as(end)
    weight = torch.linspace(0.5, 1.5, len(x), dtype=x.dtype)
    whole = (pull * end).sum() + (weight * log_det).sum()
    return list(torch.autograd.grad(whole, [x, *flow.velocity.parameters()]))


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(one, other, strict=True))


def test_a_linear_field_in_closed_form_and_the_printed_ends_fail() -> None:
    x, flow = normals(6, 2), linear(steps=20)
    z, log_det = flow.inverse(x)
    assert (z - x @ torch.matrix_exp(A).T).abs().max() < 1e-6
    assert (log_det - A.trace()).abs().max() < 1e-12
    want = log_normal(x @ torch.matrix_exp(A).T) + A.trace()
    assert (flow.losses(x) + want).abs().max() < 1e-5
    assert (flow.log_prob(x) - want).abs().max() < 1e-4
    # The law is N(0, e^{-A} e^{-A^T}).
    back = torch.matrix_exp(-A)
    law = torch.distributions.MultivariateNormal(torch.zeros(2).double(), back @ back.T)
    assert (law.log_prob(x) - want).abs().max() < 1e-12
    # Erratum (lines 3017, 3023): the prior read at the data's end, or the data's law at the prior's, is no density's.
    for wrong in (log_normal(x) + A.trace(), log_normal(x @ back.T) + A.trace(), want - 2 * A.trace()):
        assert (wrong - want).abs().max() > 0.1
    there, gained = flow(z)
    assert (there - x).abs().max() < 1e-6 and (gained + A.trace()).abs().max() < 1e-12


def test_the_adjoint_is_the_closed_gradient_to_fourth_order() -> None:
    # z = e^M x + phi(M) q: autograd through the matrix exponential of the affine map is the closed form.
    x, q = normals(5, 2), torch.tensor([0.5, -0.4], dtype=torch.float64)
    exact = linear(A, q)
    start = x.clone().requires_grad_()
    M, shift = exact.velocity.M, exact.velocity.q
    whole = torch.zeros(3, 3, dtype=torch.float64)
    whole = torch.cat([torch.cat([M, shift[:, None]], dim=1), whole[:1]], dim=0)
    z = (torch.cat([start, torch.ones(5, 1).double()], dim=1) @ torch.matrix_exp(whole).T)[:, :2]
    pull = torch.linspace(-1.0, 2.0, 10, dtype=torch.float64).view(5, 2)
    loss = (pull * z).sum() + torch.linspace(0.5, 1.5, 5, dtype=torch.float64).sum() * M.trace()
    want = list(torch.autograd.grad(loss, [start, M, shift]))
    for adjoint in (True, False):
        gaps = [apart(gradients(linear(A, q, steps=n, adjoint=adjoint), x), want) for n in (5, 10, 20)]
        assert gaps[-1] < 2e-6
        assert all(3.5 < math.log2(a / b) < 4.6 for a, b in pairwise(gaps))


@pytest.mark.parametrize("forward", [False, True])
def test_the_adjoint_is_the_gradient_through_the_integrator(forward: bool) -> None:
    x = normals(4, 2)
    gaps = [apart(gradients(bent(n), x, forward), gradients(bent(n, adjoint=False), x, forward)) for n in (6, 12, 24)]
    assert gaps[-1] < 1e-6 and gaps[0] > 1e-8  # they are two computations
    assert all(math.log2(a / b) > 3.3 for a, b in pairwise(gaps))
    ends = [bent(6).inverse(x), bent(6, adjoint=False).inverse(x)]
    assert max(float((a - b).detach().abs().max()) for a, b in zip(*ends, strict=True)) < 1e-14


def test_the_integrator_and_the_adjoint_against_torchdiffeq() -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    x, flow = normals(3, 2), bent(40)

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = flow.velocity

        def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                value, rate = value_and_divergence(self.field.velocity, state[0], t)
            return value, rate.value

    start = x.clone().requires_grad_()
    ends = torchdiffeq.odeint_adjoint(
        Both(), (start, torch.zeros(3).double()), torch.tensor([0.0, 1.0]).double(), rtol=1e-8, atol=1e-8
    )
    pull = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64).view(3, 2)
    loss = (pull * ends[0][-1]).sum() + (torch.linspace(0.5, 1.5, 3, dtype=torch.float64) * ends[1][-1]).sum()
    want = torch.autograd.grad(loss, [start, *flow.velocity.parameters()])
    assert apart(gradients(flow, x), list(want)) < 1e-6
    z, log_det = flow.inverse(x)
    assert (z - ends[0][-1]).abs().max() < 1e-6 and (log_det - ends[1][-1]).abs().max() < 1e-6


def test_the_flow_is_a_bijection_with_its_log_determinant() -> None:
    z = normals(8, 2)
    gaps = []
    for steps in (8, 16, 32):
        flow = bent(steps)
        x, log_det = flow(z)
        back, back_det = flow.inverse(x)
        J = jacobian(lambda z, flow=flow: flow.trajectory(z)[-1], z)
        gaps.append([float(gap.detach().abs().max()) for gap in (back - z, torch.linalg.slogdet(J)[1] - log_det)])
        assert (back_det + log_det).abs().max() < 10 * max(gaps[-1])
        assert (flow.trajectory(z)[-1] - x).abs().max() < 1e-12 and len(flow.trajectory(z)) == steps + 1
    assert max(gaps[-1]) < 1e-6 and (x - z).abs().max() > 0.2 and log_det.abs().max() > 0.1
    assert all(math.log2(a / b) > 3.3 for row in zip(*gaps, strict=True) for a, b in pairwise(row))


def test_the_density_integrates_to_one_and_its_rate_is_the_divergence() -> None:
    flow = bent(16)
    axis = torch.linspace(-8.0, 8.0, 90, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    with torch.no_grad():
        density = (-flow.losses(grid)).exp()
        assert abs(float(density.sum() * (axis[1] - axis[0]) ** 2) - 1.0) < 1e-4
        entropy = -float((density * density.clamp(min=1e-300).log()).sum() * (axis[1] - axis[0]) ** 2)
        cost = flow.losses(flow.sample(1000, seed=3))
    assert abs(float(cost.mean()) - entropy) < 4 * float(cost.std()) / math.sqrt(1000)

    def log_p(x: Tensor, t: float) -> Tensor:
        def rate(s: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            value, found = value_and_divergence(flow.velocity.velocity, state[0], s)
            return value, found.value

        times = [t + (1 - t) * k / 20 for k in range(21)]
        end, gained = integrate(rate, (x, torch.zeros(len(x), dtype=x.dtype)), times)[-1]
        return log_normal(end) + gained

    # The continuity equation in log form: d_t log p + div v + v . grad log p = 0 at a fixed point, every term alive.
    x, t, h = normals(4, 2), 0.4, 1e-3
    by_time = ((log_p(x, t + h) - log_p(x, t - h)) / (2 * h)).detach()
    spread = divergence(flow.velocity.velocity, x, t).value.detach()
    carried = (flow.velocity.velocity(x, t) * gradient(log_p, x, t)).sum(1).detach()
    assert (by_time + spread + carried).abs().max() < 1e-5
    assert min(float(term.abs().max()) for term in (by_time, spread, carried)) > 0.05


def test_log_prob_is_adaptive_and_draws_are_the_pushed_forward_prior() -> None:
    flow, fine = bent(4), bent(40)
    x = normals(5, 2)
    exact = -fine.losses(x)
    assert (flow.log_prob(x) - exact).abs().max() < 1e-4
    assert (-flow.losses(x) - exact).abs().max() > 2 * (flow.log_prob(x) - exact).abs().max()
    drawn = flow.sample(indices=[4, 9], seed=6)
    z = noise.normal(6, torch.tensor([4, 9]), (2,), domain="prior", dtype=torch.float64)
    assert (drawn - fine(z)[0]).abs().max() < 5e-4 and (fine.inverse(drawn)[0] - z).abs().max() < 5e-4
    # The field is a denoiser: the library's solvers run it, and step as the flow's own do.
    found = fk.sample(flow.velocity, x=x, solver="rk4", grid=[1.0, 0.75, 0.5, 0.25])
    assert (found - flow.trajectory(x)[-2]).abs().max() < 1e-12
    start = CNF((2,)).double()
    assert (start.log_prob(x) - log_normal(x)).abs().max() < 1e-5 and torch.equal(start.inverse(x)[0], x)


def test_numbers_go_to_the_device_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fokker.classic.cnf.sample", lambda field, x, solver: x)  # its steps read numbers
    assert CNF((2,)).to("meta").draw(torch.arange(3), 0).is_meta


def test_above_sixteen_dimensions_one_probe_a_sample_is_unbiased_and_keyed() -> None:
    # Erratum (line 3089): what Hutchinson makes tractable is an estimate of log p; one draw is not it, the mean is.
    d, n = 17, 3000
    M = 0.2 * normals(d, d)
    flow, x = linear(M, steps=3), normals(1, d, seed=1).expand(n, d)
    with torch.no_grad():
        log_det = flow.inverse(x, seed=2, step=5)[1]
        u = noise.rademacher(2, torch.arange(n), (d,), draw=5 << 8, dtype=torch.float64)
        assert (log_det - torch.einsum("bi,ij,bj->b", u, M, u)).abs().max() < 1e-10
        error = float(log_det.std()) / math.sqrt(n)
        assert abs(float(log_det.mean() - M.trace())) < 4 * error
        assert (log_det - M.trace()).abs().median() > 10 * error
        rows = torch.tensor([7, 2])
        whole = flow.losses(x[:9], seed=2, step=5)
        assert (flow.losses(x[:2], seed=2, step=5, positions=rows) - whole[rows]).abs().max() < 1e-12
        assert (flow.losses(x[:9], seed=2, step=6) - whole).abs().max() > 1e-3
        exact = log_normal(x[:1] @ torch.matrix_exp(M).T) + M.trace()
        few = flow.log_prob(x[:100], seed=4)
        assert abs(float(few.mean() - exact)) < 4 * float(few.std()) / 10 and few.std() > 0.1
        assert (flow.log_prob(x[:2], seed=4, indices=rows) - few[rows]).abs().max() < 1e-6


def test_maximum_likelihood_of_a_linear_field_is_the_sample_covariance() -> None:
    # A symmetric field's flow makes every covariance: at the maximum e^{-2M} is the sample's, and the loss its entropy.
    x = normals(200, 2, seed=3) @ torch.tensor([[1.5, 0.0], [0.6, 0.4]], dtype=torch.float64)
    x = x - x.mean(0)
    cov = x.T @ x / len(x)
    flow = linear(torch.zeros(2, 2, dtype=torch.float64), steps=6)
    optimiser = torch.optim.LBFGS(flow.velocity.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = flow.losses(x).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    z, log_det = flow.inverse(x)
    assert (z.T @ z / len(x) - torch.eye(2)).abs().max() < 1e-3
    assert abs(float(log_det.detach().mean()) + 0.5 * float(torch.logdet(cov))) < 1e-3


def test_recipes_rebuild_it_and_its_field_knows_the_time() -> None:
    flow = bent(5).float()
    again = registry.build("model", registry.spec(flow))
    again.load_state_dict(flow.state_dict())
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.losses(x), flow.losses(x)) and again.steps == 5 and again.adjoint
    field = flow.velocity.velocity
    assert (field(x, 0.2) - field(x, 0.7)).abs().max() > 1e-2
    rows = torch.stack([field(x, 0.2)[0], field(x, 0.7)[1], field(x, 0.2)[2]])
    assert (field(x, torch.tensor([0.2, 0.7, 0.2])) - rows).abs().max() < 1e-6
    assert (flow.velocity(x, 0.3).velocity - field(x, 0.3)).abs().max() < 1e-6
