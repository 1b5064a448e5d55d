"""Small laws of every covariance kind, the processes, and an independent dense reference for densities."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fokker import exact
from fokker.process import EDM, VE, VP, DiscreteVP, Flow, Process, Trig

PROCESSES = {"vp": VP(), "ve": VE(), "edm": EDM(), "flow": Flow(), "trig": Trig(), "ddpm": DiscreteVP()}
KINDS = ("isotropic", "diagonal", "full", "low rank", "low rank + diagonal", "woodbury", "woodbury + diagonal")
Reference = Callable[[Tensor], Tensor]


def make(kind: str, components: int = 3, d: int = 3, rank: int = 2, labelled: bool = False) -> exact.GaussianMixture:
    if kind.startswith("woodbury"):
        rank = min(rank, (d - 1) // 2)  # a higher rank is diagonalised whole
    g = torch.Generator().manual_seed(components * 1000 + d * 10 + rank)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    w = torch.rand(components, generator=g, dtype=torch.float64) + 0.3
    labels = torch.arange(components) % 2 if labelled else None
    means, factors = 1.5 * normal(components, d), None
    if kind in ("isotropic", "low rank", "woodbury"):
        covs = normal(components).square() + 0.1
    elif kind in ("diagonal", "low rank + diagonal", "woodbury + diagonal"):
        covs = normal(components, d).square() + 0.1
    else:
        a = normal(components, d, d)
        covs = a @ a.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)
    if "+" in kind or kind in ("low rank", "woodbury"):
        factors = normal(components, d, rank)
    with pytest.MonkeyPatch.context() as patch:
        if kind.startswith("woodbury"):
            patch.setattr("fokker.exact.laws.DENSE", 0)
        return exact.GaussianMixture(w / w.sum(), means, covs, factors=factors, labels=labels)


def dense_covs(law: exact.GaussianMixture) -> Tensor:
    covs, (_, d) = law.covs.value, law.means.shape
    if covs.ndim == 1:
        covs = covs[:, None].expand(-1, d)
    covs = covs if covs.ndim == 3 else torch.diag_embed(covs)
    return covs if law.factors is None else covs + law.factors.value @ law.factors.value.mT


def log_density(law: exact.GaussianMixture, alpha: Tensor, sigma: Tensor) -> Reference:
    """log p of alpha x_0 + sigma eps at one x (d,), from dense matrices: shares nothing with fokker.exact."""
    eye = torch.eye(law.shape[0], dtype=torch.float64)
    covs, means = alpha**2 * dense_covs(law) + sigma**2 * eye, alpha * law.means.value
    inverse, logdet = torch.linalg.inv(covs), torch.linalg.slogdet(covs)[1]

    def log_p(x: Tensor) -> Tensor:
        y = x - means
        quad = torch.einsum("kd,kde,ke->k", y, inverse, y)
        logits = law.weights.value.log() - 0.5 * (quad + logdet + len(x) * math.log(2 * math.pi))
        return torch.logsumexp(logits, 0)

    return log_p


@pytest.fixture(params=PROCESSES, ids=str)
def process(request: pytest.FixtureRequest) -> Process:
    return PROCESSES[request.param]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def law(kind: str) -> exact.GaussianMixture:
    return make(kind)


@pytest.fixture
def make_law() -> Callable[..., exact.GaussianMixture]:
    return make


@pytest.fixture
def reference() -> Callable[..., Reference]:
    return log_density


@pytest.fixture
def line() -> exact.GaussianMixture:
    """The one-dimensional mixture of the project's quoted numbers."""
    return exact.GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [0.16, 0.36], labels=[0, 1])
