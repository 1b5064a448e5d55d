r"""The aggregated posterior of an encoder, q(z) = mean over data of q(z | x): what a decoder sees, and what collapsed.

    (1)  argmin_f E|x - f(z)|^2 = E_q[x | z] = sum_n q(z | x_n) x_n / sum_n q(z | x_n)
    (2)  mean over x of KL(q(z | x) | p(z)) = I_q(x; z) + KL(q(z) | p(z)),     I_q = mean of KL(q(z | x) | q(z))

The weights of (1) are those of Bayes' rule under q, whose denominator is q(z): with the prior's p(z) in its place they
would not sum to 1 (book Sec. 2.1.4 prints that). In (1) codes that overlap give averages: blur. A collapsed encoder,
q(z | x) = p(z), has I_q = 0. Of N data, I_q <= log N.

Sources: book Sec. 2.1.4, 2.1.5; Hoffman and Johnson 2016 (2); Burda et al. 2015 (active units).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import noise
from .coding import Diagonal
from .vae import VAE

__all__ = ["Diagnosis", "diagnose", "log_aggregate", "optimal_decoder"]

ROWS = 128  # codes at once: what is held is (ROWS, N, latent)


def _log_each(z: Tensor, q: Diagonal) -> Tensor:
    """log q(z_m | x_n), (M, N)."""
    return torch.cat([q.log_prob(rows[:, None]) for rows in torch.split(z, ROWS)])


def log_aggregate(z: Tensor, q: Diagonal) -> Tensor:
    """log q(z) at z (M, latent), (M,), of the encodings q (N, latent) of the data."""
    return _log_each(z, q).logsumexp(1) - math.log(len(q.mean))


def optimal_decoder(z: Tensor, x: Tensor, q: Diagonal) -> Tensor:
    """Eq. (1) at z (M, latent): the decoder of least squared error for a given encoder, (M, *shape).

    Args:
        z: codes.
        x: the data (N, *shape).
        q: their encodings, (N, latent).
    """
    weights = _log_each(z, q).softmax(1)
    return (weights @ x.flatten(1)).reshape(len(z), *x.shape[1:])


@dataclass(frozen=True)
class Diagnosis:
    """What an encoder tells of its data; nats.

    Attributes:
        kl: mean KL of each code number from the prior, (latent,); near 0: collapsed.
        active: how many code numbers have means of variance above 0.01 over the data.
        information: I_q(x; z), estimated with one code for each row; at most log N.
        aggregate: KL(q(z) | p(z)), the rest of the KL by Eq. (2).
        stderr: standard error of these two.
    """

    kl: Tensor
    active: int
    information: float
    aggregate: float
    stderr: float


@torch.no_grad()
def diagnose(model: VAE, x: Tensor, *, seed: int = 0) -> Diagnosis:
    """Whether a VAE's encoder has collapsed on data x (N, *shape), by Eq. (2) over these N rows.

    Args:
        model: the VAE.
        x: data, all at once; thousands of rows at most, for every code is held against every row.
        seed: of the codes, one for each row.
    """
    q = model.encode(x)
    eps = noise.normal(seed, torch.arange(len(x), device=x.device), (model.size,), domain="probe", dtype=x.dtype)
    z = q.at(eps)
    told = q.log_prob(z) - log_aggregate(z, q)
    kl = q.kl(Diagonal.standard(eps)).mean(0)
    information = float(told.mean())
    return Diagnosis(
        kl=kl,
        active=int((q.mean.var(0) > 0.01).sum()),
        information=information,
        aggregate=float(kl.sum()) - information,
        stderr=float(told.std()) / math.sqrt(len(x)),
    )
