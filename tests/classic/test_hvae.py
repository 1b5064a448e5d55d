"""The hierarchical VAE: both encoders against linear chains in closed form, DDPM as one, bounds, losses, training."""

import json
import math

import pytest
import torch
from torch import Tensor

from fokker import noise, registry
from fokker.classic import HVAE, VAE, LinearChain, ddpm_chain
from fokker.errors import ConfigError
from fokker.process import DiscreteVP

from .affine import F64, hermite, last, linear_hvae, linear_vae, normal, scalar

ENCODERS = ("bottom-up", "top-down")
X = torch.tensor([[0.9], [-1.3], [0.2]], dtype=F64)


def two() -> LinearChain:
    """The chain of the book's example."""
    return LinearChain((scalar(1.2, 0.3), scalar(0.8, 0.5)), (scalar(0.7, 0.2), scalar(0.6, 0.4)))


def three() -> LinearChain:
    """Three levels with means and an encoder that is not the posterior."""
    down = (scalar(1.2, 0.3, 0.4), scalar(0.8, 0.5, -0.6), scalar(-0.9, 0.4, 0.3))
    return LinearChain(down, (scalar(0.7, 0.2, -0.1), scalar(0.6, 0.4, 0.2), scalar(-0.5, 0.7, 0.5)))


def expected(model: HVAE, x: Tensor, ratio: bool | None = None) -> Tensor:
    """The ELBO by quadrature, exact for affine networks: by `elbo`, or by `terms` in one form or the other."""
    points, chances = hermite(len(model.latent))
    total = torch.zeros(len(x), dtype=F64)
    for eps, w in zip(points, chances, strict=True):
        rows = eps.expand(len(x), -1)
        if ratio is None:
            total = total + w * model.elbo(x, rows)
        else:
            reconstruction, costs = model.terms(x, rows, ratio=ratio)
            total = total + w * (reconstruction - costs.sum(1))
    return total.detach()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_books_example(encoder: str) -> None:
    # As printed the sum of neighbours' KLs would give -1.66465 (test_linear_gaussian.py).
    found = expected(linear_hvae(two(), encoder), X[:1])
    assert abs(float(found) - -1.47265) < 5e-6


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("law", [two(), three(), three().exact()], ids=["two", "three", "tight"])
def test_elbo_is_that_of_the_chain(law: LinearChain, encoder: str) -> None:
    model = linear_hvae(law, encoder)
    for ratio in (None, True, False):
        torch.testing.assert_close(expected(model, X, ratio), law.elbo(X), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.reconstruct(X), law.down[0].mean(law.up[0].mean(X)), rtol=0, atol=1e-12)
    if encoder == "top-down":  # the KL of each level by itself, z_1's first
        points, chances = hermite(len(model.latent))
        costs = sum(w * model.terms(X, e.expand(3, -1))[1] for e, w in zip(points, chances, strict=True))
        terms = law.terms(X)
        closed = torch.stack([*terms.levels, terms.prior], 1)
        torch.testing.assert_close(costs.detach(), closed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_with_the_true_posterior_every_weight_is_the_density(encoder: str) -> None:
    law = three().exact()
    model = linear_hvae(law, encoder)
    for eps in hermite(3)[0]:
        torch.testing.assert_close(model.log_weight(X, eps.expand(3, -1)), law.log_prob(X), rtol=0, atol=1e-12)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_ddpm_is_one(encoder: str) -> None:
    mean, var, process = 0.7, 0.25, DiscreteVP(steps=4)
    law = ddpm_chain(process, mean, var)
    x = torch.tensor([[mean - 0.5], [mean + 0.5]], dtype=F64)  # of the data's mean and variance
    found = float(expected(linear_hvae(law, encoder), x).mean())
    entropy = 0.5 * math.log(2 * math.pi * math.e * var)
    assert abs(-found - entropy - float(process.kl_to_prior(mean, var))) < 1e-12


def test_one_level_is_the_vae() -> None:
    law = LinearChain((scalar(1.2, 0.3, 0.4),), (scalar(0.7, 0.2, -0.1),))
    flat, eps = linear_vae(law), normal(3, 1, seed=1)
    for encoder in ENCODERS:
        model = linear_hvae(law, encoder)
        torch.testing.assert_close(model.log_weight(X, eps), flat.log_weight(X, eps), rtol=0, atol=1e-12)
        torch.testing.assert_close(model.reconstruct(X), flat.reconstruct(X), rtol=0, atol=1e-12)
        assert torch.equal(model.sample(5, seed=2), flat.sample(5, seed=2))
    torch.testing.assert_close(linear_hvae(law, "top-down").elbo(X, eps), flat.elbo(X, eps), rtol=0, atol=1e-12)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_bounds_rise_from_the_elbo_to_the_density(encoder: str) -> None:
    law, n = three(), 3000
    model, x = linear_hvae(law, encoder), X[1:2].expand(3000, 1)
    exact, elbo = float(law.log_prob(X[1:2])), float(law.elbo(X[1:2]))
    found = {k: model.importance_bound(x, k, seed=1).detach() for k in (1, 4, 32)}
    means = {k: float(v.mean()) for k, v in found.items()}
    errors = {k: float(v.std()) / math.sqrt(n) for k, v in found.items()}
    plain = model.log_prob(x, seed=2).detach()
    assert abs(means[1] - elbo) < 4 * errors[1]
    assert abs(float(plain.mean()) - elbo) < 4 * float(plain.std()) / math.sqrt(n)
    assert means[4] - elbo > 4 * errors[4] and means[32] - means[4] > 4 * (errors[4] + errors[32])
    assert exact - 0.3 * (exact - elbo) < means[32] < exact + 4 * errors[32]
    weights = found[32].exp()
    assert abs(float(weights.mean()) - math.exp(exact)) < 4 * float(weights.std()) / math.sqrt(n)
    assert torch.equal(model.importance_bound(x[:2], 4, seed=1, indices=torch.tensor([7, 9])), found[4][[7, 9]])
    many = linear_hvae(law, encoder, samples=4)
    torch.testing.assert_close(many.log_prob(x, seed=1), found[4], rtol=0, atol=1e-12)
    eps = [noise.normal(1, torch.arange(5), (3,), draw=2 << 8 | k, domain="training", dtype=F64) for k in range(4)]
    by_hand = torch.stack([model.log_weight(x[:5], e) for e in eps]).exp().mean(0).log()
    torch.testing.assert_close(many.losses(x[:5], seed=1, step=2), -by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_losses_by_value(encoder: str) -> None:
    law, positions = three(), torch.tensor([5, 2, 9])
    eps = noise.normal(3, positions, (3,), draw=7 << 8, domain="training", dtype=F64)
    reconstruction, costs = (part.detach() for part in linear_hvae(law, encoder).terms(X, eps))
    cases: list[tuple[dict[str, object], Tensor]] = [({}, costs), ({"beta": 0.3}, 0.3 * costs)]
    if encoder == "top-down":
        cases.append(({"free_bits": 0.7}, torch.maximum(costs, torch.full_like(costs, 0.7))))
        assert float(costs.min()) < 0.7 < float(costs.max())
    for fields, cost in cases:
        model = linear_hvae(law, encoder, **fields)
        found = model.losses(X, seed=3, step=7, positions=positions)
        torch.testing.assert_close(found, cost.sum(1) - reconstruction, rtol=0, atol=1e-12)
        torch.testing.assert_close(model.log_prob(X), linear_hvae(law, encoder).log_prob(X), rtol=0, atol=1e-12)


def test_draws_are_the_models() -> None:
    law, n = three(), 8000
    model = linear_hvae(law, "top-down", draws="sample")
    x = model.sample(n, seed=5)
    mean, cov = (float(part) for part in law.marginals()[0])
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt(cov / n)
    assert abs(float((x - mean).square().mean()) / cov - 1.0) < 4 * math.sqrt(2 / n)
    assert torch.equal(model.sample(indices=[17, 3], seed=5), x[[17, 3]])
    z = noise.normal(5, torch.arange(4), (3,), domain="prior", dtype=F64)
    at = law.down[2].mean(z[:, 2:]) + math.sqrt(0.4) * z[:, 1:2]
    at = law.down[1].mean(at) + math.sqrt(0.5) * z[:, :1]
    torch.testing.assert_close(linear_hvae(law, "bottom-up").sample(4, seed=5), law.down[0].mean(at))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_training_reaches_the_entropy(encoder: str) -> None:
    # Gaussian data of two numbers, which linear networks can be exact for: a bound below -H, and close to it.
    cov = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64)
    root = 2**0.5 * torch.linalg.cholesky(cov).mT
    x = torch.cat([root, -root]).repeat(24, 1)
    model = HVAE((2,), (1, 1), encoder=encoder, hidden=2, depth=0).double()  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for step in range(300):
        optimiser.zero_grad()
        model.losses(x, step=step).mean().backward()
        optimiser.step()
        schedule.step()
    entropy = 0.5 * float(torch.logdet(2.0 * math.pi * math.e * cov))
    found = float(expected(model, x[:4]).mean())
    assert -0.06 < found + entropy < 0.0  # independent numbers: -0.51
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in model.parameters())


def test_pictures_and_kind() -> None:
    model = registry.build("model", {"kind": "hvae", "shape": [1, 8, 8], "latent": [4, 3, 2], "width": 4, "depth": 1})
    again = registry.build("model", json.loads(json.dumps(registry.spec(model))))
    again.load_state_dict(model.state_dict())
    x = torch.rand(5, 1, 8, 8) * 2 - 1
    assert torch.equal(again.log_prob(x), model.log_prob(x)) and again.reconstruct(x).shape == x.shape
    gradients = torch.autograd.grad(model.losses(x).sum(), list(model.parameters()))
    dead = [name for (name, _), g in zip(model.named_parameters(), gradients, strict=True) if not float(g.abs().max())]
    assert all(".inner." in name for name in dead)  # what a block adds starts at 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.log_prob(x).detach()
    assert low.dtype == torch.float32 and float((low / model.log_prob(x).detach() - 1.0).abs().max()) < 0.02
    written = HVAE((1, 8, 8), decoder="bytes", depth=1)
    assert (written.levels, model.levels) == (256, None)
    with pytest.raises(ConfigError, match="not one of 256 levels"):
        written.log_prob(x)
    with pytest.raises(ConfigError, match="not one of 256 levels"):
        VAE((1, 8, 8), decoder="bytes", depth=1).log_prob(x)
    assert last(linear_hvae(two(), "top-down").reader).out_features == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent": ()}, "HVAE.latent: given 0, must be at least 1"),
        ({"latent": (3, 0)}, "HVAE.latent: given 0"),
        ({"hidden": 0}, "HVAE.hidden: given 0"),
        ({"encoder": "bottom-up", "free_bits": 0.1}, "HVAE.free_bits: given 0.1 with encoder='bottom-up'"),
        ({"encoder": "sideways"}, "HVAE.encoder: given 'sideways'"),
        ({"samples": 3, "free_bits": 0.1}, "HVAE.samples: given 3 with beta or free_bits"),
        ({"decoder": "bernoulli", "variance": 1.0}, "HVAE.variance: given 1.0 with decoder='bernoulli'"),
    ],
)
def test_refusals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HVAE(**({"shape": (2,)} | fields))  # type: ignore[arg-type]
