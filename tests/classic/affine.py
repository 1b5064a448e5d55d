"""Linear-Gaussian chains in closed form, and models of affine networks with their weights: what the tests hold up."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from fokker.classic import HVAE, VAE, Affine, LinearChain

F64 = torch.float64


def normal(*shape: int, seed: int) -> Tensor:
    """Fixed numbers for weights."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def covariance(d: int, seed: int) -> Tensor:
    """A positive definite matrix with correlations."""
    a = normal(d, d, seed=seed)
    return a @ a.mT / d + 0.3 * torch.eye(d, dtype=F64)


def scalar(weight: float, var: float, bias: float = 0.0) -> Affine:
    """A link between single numbers."""
    return Affine(*(torch.tensor(v, dtype=F64) for v in ([[weight]], [bias], [[var]])))


def hermite(dims: int, nodes: int = 3) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite points (M, dims) and weights (M,) of N(0, I): exact for polynomials of degree 2 nodes - 1."""
    at, weights = np.polynomial.hermite_e.hermegauss(nodes)
    points = torch.tensor(list(product(at, repeat=dims)), dtype=F64)
    chances = torch.tensor([math.prod(w) for w in product(weights / weights.sum(), repeat=dims)], dtype=F64)
    return points, chances


def sigma_points(mean: Tensor, cov: Tensor) -> Tensor:
    """2 d points whose mean is that of N(mean, cov) for every quadratic function."""
    root = math.sqrt(len(mean)) * torch.linalg.cholesky(cov).mT
    return torch.cat([mean + root, mean - root])


def last(net: nn.Module) -> nn.Linear:
    """The only affine map of a network of depth 0."""
    (found,) = [m for m in net.modules() if isinstance(m, nn.Linear)]
    return found


def set_affine(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def both(link: Affine) -> tuple[Tensor, Tensor]:
    """Weights and biases that say the means and the log-variances of a link of diagonal covariance."""
    assert torch.equal(link.cov, torch.diag(link.cov.diagonal()))
    weight = torch.cat([link.weight, torch.zeros_like(link.weight)])
    return weight, torch.cat([link.bias.reshape(-1), link.cov.diagonal().log()])


def linear_vae(chain: LinearChain, **fields: object) -> VAE:
    """The VAE of affine networks that is a chain of one link."""
    (down,), (up,) = chain.down, chain.up
    model = VAE(
        shape=(len(down.cov),),
        latent=len(up.cov),
        depth=0,
        variance=float(down.cov[0, 0]),
        **fields,  # type: ignore[arg-type]
    ).double()
    set_affine(last(model.encoder), *both(up))
    set_affine(last(model.decoder), down.weight, down.bias.reshape(-1))
    return model


def linear_hvae(chain: LinearChain, encoder: str, **fields: object) -> HVAE:
    """The HVAE of affine networks that is a chain of single numbers, by either encoder."""
    L = len(chain.down)
    model = HVAE(
        shape=(1,),
        latent=(1,) * L,
        encoder=encoder,  # type: ignore[arg-type]
        hidden=1,
        depth=0,
        variance=float(chain.down[0].cov[0, 0]),
        **fields,  # type: ignore[arg-type]
    ).double()
    set_affine(last(model.reader), torch.eye(1, dtype=F64), torch.zeros(1, dtype=F64))  # the features are x
    set_affine(last(model.decoder), chain.down[0].weight, chain.down[0].bias.reshape(-1))
    for net, link in zip(model.prior, chain.down[1:], strict=True):
        set_affine(last(net), *both(link))
    if encoder == "bottom-up":
        for net, link in zip(model.encoder, chain.up, strict=True):
            set_affine(last(net), *both(link))
        return model
    # q(z_i | x) = N(a x + c, V): the chain's laws at x = 0 and x = 1 give a and c. Then q(z_i | z_{i+1}, x) by Bayes.
    at = [(float(zero[0]), float(one[0]), float(V)) for (zero, V), (one, _) in zip(*_ends(chain), strict=True)]
    for i, net in enumerate(model.encoder):
        c, ends, V = at[i + 1]
        a = ends - c
        if i == L - 1:
            set_affine(last(net), *_change([[a], [0.0]], c, V, 0.0, 1.0, 1))
            continue
        B, bias, R = (float(v) for v in (chain.up[i + 1].weight, chain.up[i + 1].bias, chain.up[i + 1].cov))
        gain = V * B / (B * B * V + R)
        own, keep = V - gain * B * V, 1.0 - gain * B
        down = chain.down[i + 1]
        rows = [[keep * a, gain - float(down.weight)], [0.0, 0.0]]
        const = keep * c - gain * bias
        set_affine(last(net), *_change(rows, const, own, float(down.bias), float(down.cov), 2))
    return model


def _ends(chain: LinearChain) -> Sequence[list[tuple[Tensor, Tensor]]]:
    return [chain.codes(torch.full((1, 1), v, dtype=F64)) for v in (0.0, 1.0)]


def _change(
    rows: Sequence[Sequence[float]], const: float, var: float, prior_bias: float, prior_var: float, inputs: int
) -> tuple[Tensor, Tensor]:
    """The affine map that changes N(. + prior_bias, prior_var) into N(rows . + const, var)."""
    weight = torch.tensor(rows, dtype=F64).reshape(2, inputs)
    return weight, torch.tensor([const - prior_bias, math.log(var / prior_var)], dtype=F64)
