"""Normalising flows: the change of variables by value, rung by rung; densities that integrate to one."""

import math
import sys

import pytest
import torch
from torch import Tensor

from fokker import noise, registry
from fokker.calculus import jacobian
from fokker.classic import CNF, Bijection, Planar, RealNVP, Residual
from fokker.classic.flows import log_normal, root
from fokker.errors import ConfigError, MissingExtraError

FLOWS = {  # and how far each is moved from where it starts
    "affine": (lambda shape: RealNVP(shape, layers=4, width=8), 0.25),
    "spline": (lambda shape: RealNVP(shape, layers=3, width=8, transform="spline"), 0.2),
    "planar": (lambda shape: Planar(shape, layers=6), 0.5),
    "residual": (lambda shape: Residual(shape, layers=3, width=12, lipschitz=0.9), 0.4),
}
EVERY = pytest.mark.parametrize("name", FLOWS)


def made(name: str, shape: tuple[int, ...] = (3,), seed: int = 0) -> Bijection:
    """A flow that is not the one it starts as."""
    make, far = FLOWS[name]
    torch.manual_seed(seed)
    flow = make(shape).double().eval()
    with torch.no_grad():
        for key, parameter in flow.named_parameters():
            parameter.add_(far * torch.randn_like(parameter))
            if name == "residual" and key.endswith("bias"):  # where silu is steep
                parameter.add_(1.0)
    return flow


def normals(n: int, *shape: int, seed: int = 0) -> Tensor:
    return noise.normal(seed, torch.arange(n), shape, dtype=torch.float64)


def slogdet(flow: Bijection, x: Tensor) -> Tensor:
    """log |det dF^{-1}/dx| by automatic differentiation of the whole."""
    return torch.linalg.slogdet(jacobian(lambda x: flow.inverse(x)[0], x))[1]


@EVERY
def test_the_log_determinant_is_that_of_the_jacobian_and_the_inverse_undoes(name: str) -> None:
    flow, z = made(name), normals(40, 3)
    x, log_det = flow(z)
    assert (x - z).abs().mean() > 0.1
    back, back_det = flow.inverse(x)
    assert (back - z).abs().max() < 1e-10
    assert (back_det + log_det).abs().max() < 1e-10
    whole = slogdet(flow, x)
    assert whole.abs().max() > 0.1
    assert (back_det - whole).abs().max() < 1e-10
    # And by the Jacobian of the way there, which the planar layers compute on a road of their own.
    assert (log_det - torch.linalg.slogdet(jacobian(lambda z: flow.trajectory(z)[-1], z))[1]).abs().max() < 1e-10


@EVERY
def test_the_log_density_is_the_base_density_less_the_log_determinant(name: str) -> None:
    flow, z = made(name), normals(20, 3)
    x, log_det = flow(z)
    want = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) - log_det
    assert (flow.log_prob(x) - want).abs().max() < 1e-10
    assert torch.equal(flow.losses(x), -flow.log_prob(x))
    # Samples are the push-forward of numbers keyed by the seed and the index alone.
    drawn = flow.sample(indices=[7, 3], seed=5)
    z = noise.normal(5, torch.tensor([7, 3]), (3,), domain="prior", dtype=torch.float64)
    assert (flow.inverse(drawn)[0] - z).abs().max() < 1e-10
    assert (flow.sample(8, seed=5, batch_size=3)[[7, 3]] - drawn).abs().max() < 1e-12


@EVERY
def test_a_layer_more_is_a_factor_more(name: str) -> None:
    # App. B.1.2 step by step: log p_k(x_k) = log p_{k-1}(x_{k-1}) - log |det dF_k/dx_{k-1}|; a layer left out shows.
    flow, z = made(name), normals(6, 3)
    states = flow.trajectory(z)
    assert torch.equal(states[0], z) and (states[-1] - flow(z)[0]).abs().max() < 1e-12
    layers = len(states) - 1
    each = []
    for k in range(layers):
        one = made(name)
        if name == "planar":
            one = Planar((3,), layers=1).double()
            one.load_state_dict({key: value[k : k + 1] for key, value in flow.state_dict().items()})
        else:  # these are listed from data to noise
            one.layers = torch.nn.ModuleList([flow.layers[layers - 1 - k]])
        each.append(-slogdet(one, states[k + 1]))
    total = log_normal(z) - torch.stack(each).sum(0)
    assert (flow.log_prob(states[-1]) - total).abs().max() < 1e-10
    assert all((flow.log_prob(states[-1]) - total - left_out).abs().max() > 1e-3 for left_out in each)


@EVERY
def test_densities_in_the_plane_integrate_to_one(name: str) -> None:
    flow = made(name, (2,))
    with torch.no_grad():
        x = flow.sample(1000, seed=1)
        low, high = x.min(0).values - 2.5, x.max(0).values + 2.5
        axes = [torch.linspace(float(a), float(b), 200, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)
        cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
        density = flow.log_prob(grid).exp()
        assert abs(float(density.sum() * cell) - 1.0) < 1e-4
        # The mean of -log p over samples is the entropy on the grid.
        entropy = float(-(density * density.clamp(min=1e-300).log()).sum() * cell)
        drawn = -flow.log_prob(x)
        assert abs(float(drawn.mean()) - entropy) < 4 * float(drawn.std()) / math.sqrt(1000)


def test_one_bijection_of_the_line_and_one_of_space() -> None:
    # The first rung (App. B.1.1): x = A z has the law N(0, A A^T); |det A| stands with the sign of the inverse's.
    A = torch.tensor([[1.2, 0.3], [-0.5, -0.8]], dtype=torch.float64)
    x = normals(10, 2)
    inverse = torch.linalg.inv(A)
    density = log_normal(x @ inverse.T) + torch.linalg.slogdet(inverse)[1]
    want = torch.distributions.MultivariateNormal(torch.zeros(2).double(), A @ A.T).log_prob(x)
    assert (density - want).abs().max() < 1e-12
    assert (density - 2 * torch.linalg.slogdet(inverse)[1] - want).abs().min() > 0.2
    # x = sinh z by quadrature.
    x = torch.sinh(torch.linspace(-9.0, 9.0, 20001, dtype=torch.float64))
    p = (log_normal(torch.asinh(x)[:, None]) - 0.5 * torch.log1p(x.square())).exp()
    assert abs(float(torch.trapezoid(p, x)) - 1.0) < 1e-6


def test_a_chain_of_small_residual_maps_is_a_flow_in_the_limit() -> None:
    # det(1 + hA) = 1 + h tr A + O(h^2); L maps x + v(x, t_k) / L: the sum of log-determinants tends to int div v dt.
    A = torch.tensor([[0.4, -1.1], [0.7, -0.9]], dtype=torch.float64)
    one = torch.eye(2, dtype=torch.float64)
    gaps = [abs(float(torch.linalg.det(one + h * A) - 1 - h * A.trace())) / h**2 for h in (0.1, 0.01, 0.001)]
    assert all(abs(gap - abs(float(torch.linalg.det(A)))) < 1e-6 for gap in gaps)

    def field(x: Tensor, t: float) -> Tensor:
        return torch.tanh(x @ A.T + t) * (1 + t)

    def chained(x: Tensor, count: int) -> Tensor:
        total = torch.zeros(len(x), dtype=x.dtype)
        for k in range(count):
            step = jacobian(field, x, k / count) / count
            total = total + torch.linalg.slogdet(one + step)[1]
            x = x + field(x, k / count) / count
        return total

    x = normals(3, 2)
    values = [chained(x, count) for count in (20, 40, 80)]
    slopes = ((values[0] - values[1]) / (values[1] - values[2])).log2()
    assert (slopes - 1.0).abs().max() < 0.1


def test_numbers_go_to_the_device_of_the_model() -> None:
    drawn = Planar((2,), layers=2).to("meta").draw(torch.arange(3), 0)
    assert drawn.is_meta and drawn.shape == (3, 2)


def test_new_flows_are_the_identity_and_coupling_reaches_every_coordinate() -> None:
    z = normals(5, 4)
    for transform in ("affine", "spline"):
        flow = RealNVP((4,), layers=3, transform=transform).double()
        assert (flow(z)[0] - z).abs().max() < 1e-12
        assert (flow.log_prob(z) - log_normal(z)).abs().max() < 1e-12
    assert (Planar((4,), layers=8).double()(z)[0] - z).abs().max() < 0.1
    flow = RealNVP((2, 2), layers=2, width=8).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.5)
    z = z.view(5, 2, 2)
    x, log_det = flow(z)
    assert x.shape == z.shape and ((x - z).abs() > 1e-3).all()
    assert (slogdet(flow, x) + log_det).abs().max() < 1e-10


@pytest.mark.parametrize("flow", [Planar((2, 3)), Residual((2, 3), layers=2, width=6), CNF((2, 3), width=6, steps=2)])
def test_events_of_several_axes_are_flattened_inside(flow: Bijection) -> None:
    torch.manual_seed(0)
    flow = flow.double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    z = normals(3, 2, 3)
    x, log_det = flow(z)
    tolerance = 1e-4 if isinstance(flow, CNF) else 1e-10
    assert (x - z).abs().max() > 1e-2 and (flow.inverse(x)[0] - z).abs().max() < tolerance
    J = jacobian(lambda z: flow.trajectory(z)[-1], z)
    assert J.shape == (3, 6, 6) and (torch.linalg.slogdet(J)[1] - log_det).abs().max() < tolerance
    assert flow.sample(2).shape == (2, 2, 3) and flow.losses(x).shape == (3,)


@pytest.mark.parametrize("product", [-0.999, -0.5, 0.3, 40.0])
def test_the_planar_root_its_derivatives_and_the_constraint(product: float) -> None:
    r = torch.tensor([-30.0, -1.0, -1e-3, 0.0, 1e-6, 0.4, 7.0], dtype=torch.float64, requires_grad=True)
    c = torch.tensor(product, dtype=torch.float64, requires_grad=True)
    s = root(r, c)
    assert (s + c * s.tanh() - r).abs().max() < 1e-13 * (1 + abs(product) + 30)
    slope = 1 + c * (1 - s.tanh() ** 2)
    by_r, by_c = torch.autograd.grad(s.sum(), [r, c], create_graph=True)
    assert (by_r * slope - 1).abs().max() < 1e-9
    assert abs(float((by_c + (s.tanh() / slope).sum()).detach())) < 1e-9 * float((1 + by_c.abs()).detach())
    # s'' = 2 c tanh(s) sech^2(s) / slope^3.
    second = torch.autograd.grad(by_r.sum(), r)[0]
    want = 2 * c * s.tanh() * (1 - s.tanh() ** 2) / slope**3
    assert ((second - want) / (1 + want.abs())).abs().max() < 1e-8


def test_planar_layers_are_invertible_whatever_the_parameters() -> None:
    torch.manual_seed(0)
    flow = Planar((2,), layers=6).double()
    with torch.no_grad():  # as given these would fold space: w.u from -8 to 8
        flow.u.copy_(flow.w * torch.linspace(-8.0, 8.0, 6)[:, None].double() / flow.w.square().sum(1, keepdim=True))
    u, product = flow.directions()
    u, product = u.detach(), product.detach()
    assert product.min() > -1.0 and ((flow.w * u).sum(1) - product).abs().max() < 1e-12
    assert abs(float(product[0]) - (math.log1p(math.exp(-8.0)) - 1.0)) < 1e-9
    across = torch.stack([-flow.w[:, 1], flow.w[:, 0]], dim=1)  # what is added to u is along w alone
    assert ((u - flow.u) * across).sum(1).abs().max() < 1e-12
    z = normals(50, 2)
    x, _ = flow(z)
    assert (flow.inverse(x)[0] - z).abs().max() < 1e-6
    # The determinant of the text, 1 + h'(w.z + b) u.w, exactly; without the constraint it changes sign.
    one = Planar((2,), layers=1).double()
    with torch.no_grad():
        one.u.copy_(-3.0 * one.w / one.w.square().sum())
    u, _ = one.directions()
    slope = 1 - torch.tanh(z @ one.w[0] + one.b[0]) ** 2
    assert (one(z)[1].exp() - (1 + slope * (u @ one.w[0]))).abs().max() < 1e-14
    assert (1 + slope * (one.u[0] @ one.w[0])).min() < 0 < one(z)[1].exp().min()


def test_the_gradient_of_the_planar_likelihood_passes_through_the_root() -> None:
    flow, x = made("planar", (2,), seed=2), 2.0 * normals(4, 2)
    loss = flow.losses(x).sum()
    loss.backward()
    for parameter in (flow.w, flow.u, flow.b):
        rate = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        sides = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(step * rate)
                sides.append(float(flow.losses(x).sum()))
                parameter.sub_(step * rate)
        want = (sides[0] - sides[1]) / 2e-5
        assert abs(float((parameter.grad * rate).sum()) - want) < 1e-6 * (1 + abs(want))


def test_maximum_likelihood_of_affine_layers_on_a_gaussian_is_the_closed_form() -> None:
    # Two layers without hidden units to speak of: z = e^s x + m per coordinate is the whole family where the networks
    # ignore their input; its maximum has the sample's moments.
    mean, std = torch.tensor([0.7, -1.5], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
    x = mean + std * normals(500, 2, seed=4)
    flow = RealNVP((2,), layers=2, width=1).double()
    free = [layer.hyper[-1].bias for layer in flow.layers]
    tolerances = {"tolerance_grad": 1e-10, "tolerance_change": 0.0}
    optimiser = torch.optim.LBFGS(free, max_iter=200, line_search_fn="strong_wolfe", **tolerances)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = flow.losses(x).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    flow.requires_grad_(False)
    z, log_det = flow.inverse(x)
    assert z.mean(0).abs().max() < 1e-6 and (z.var(0, correction=0) - 1).abs().max() < 1e-6
    spread = x.std(0, correction=0)
    assert abs(float(log_det.mean() + spread.log().sum())) < 1e-6
    assert abs(float(flow.losses(x).mean()) - float((0.5 + 0.5 * math.log(2 * math.pi) + spread.log()).sum())) < 1e-6


def test_trained_flows_learn_a_bent_law() -> None:
    # y = (a, b + a^2 / 2) with normal a, b: the entropy is that of (a, b), and no affine map of a normal reaches it.
    x = normals(256, 2, seed=8)
    x = torch.stack([x[:, 0], x[:, 1] + 0.5 * x[:, 0].square()], dim=1).float()
    gaussian = 0.5 * float(torch.logdet(x.T.cov())) + 1 + math.log(2 * math.pi)
    torch.manual_seed(0)
    for flow, reach in (RealNVP((2,), layers=2, width=16), 0.02), (Planar((2,), layers=4), 0.08):
        optimiser = torch.optim.Adam(flow.parameters(), lr=3e-2)
        for _ in range(80):
            optimiser.zero_grad()
            flow.losses(x).mean().backward()
            optimiser.step()
        found = float(flow.losses(x).mean().detach())
        assert found < 1 + math.log(2 * math.pi) + reach < gaussian


@pytest.mark.parametrize("flow", [Planar((3,), layers=4), RealNVP((3,), layers=2, width=6, transform="spline", bins=4)])
def test_recipes_rebuild_them(flow: Bijection) -> None:
    spec = registry.spec(flow)
    again = registry.build("model", spec)
    again.load_state_dict(flow.state_dict())
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.log_prob(x), flow.log_prob(x)) and registry.spec(again) == spec


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RealNVP((1,)), r"RealNVP.shape: given \(1,\)"),
        (lambda: RealNVP((2,), layers=0), "RealNVP.layers: given 0, must be at least 1"),
        (lambda: RealNVP((2,), bins=1), "RealNVP.bins: given 1, must be at least 2"),
        (lambda: RealNVP((2,), transform="cubic"), "RealNVP.transform: given 'cubic'"),
        (lambda: Planar((2,), layers=0), "Planar.layers: given 0"),
        (lambda: Planar(()), "Planar.shape"),
        (lambda: Residual((2,), lipschitz=1.0), r"Residual.lipschitz: given 1.0, must lie in \(0, 1\)"),
        (lambda: Residual((2,), layers=129), "Residual.layers: given 129, must be at most 128"),
        (lambda: Residual((2,), terms=0), "Residual.terms: given 0"),
        (lambda: CNF((2,), steps=0), "CNF.steps: given 0"),
    ],
)
def test_what_cannot_be_built_says_so(make, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def test_the_extra_is_named_where_zuko_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko.flows.coupling", None)
    with pytest.raises(MissingExtraError, match=r"zuko .* 'fokker\[flows\]'"):
        RealNVP((2,))
