r"""Energy models: p(x) = exp(-E(x)) / Z of a smooth scalar network, by every loss that does without Z.

    (1)  E(x) = f(x) + |x|^2 / (2 b^2),      f a perceptron with SiLU: the normal law N(0, b^2 I) tilted by exp(-f)
    (2)  maximum likelihood    grad L = E_data[grad E] - E_p[grad E]
         "pcd"                 E(x) - mean E(chain): chains that persist from step to step sample p
         "cd"                  E(x) - E(chain): chains that start at the data, a few moves long (CD-k)
    (3)  "nce"                 softplus(-h(x)) + softplus(h(y)), y ~ q normal, h = -E - c - log q; c learns log Z
    (4)  "score-matching"      tr grad s + |s|^2 / 2 = -Lap E + |grad E|^2 / 2,      s = -grad E
         "sliced"              u^T (grad s) u + |s|^2 / 2, u signs
    (5)  "dsm"                 |sigma s(x + sigma eps) + eps|^2 / 2: learns the data blurred by sigma

The Laplacian in (4) has the minus that book Eq. 3.1.3 misprints (with +, flatter is always better); s must have a
derivative, hence SiLU. All of them are to be minimised; (2) is minus the log-likelihood's gradient (Eq. 3.1.1).
Sources: book Sec. 3.1 to 3.3; Hinton 2002 (CD); Tieleman 2008 (PCD); Gutmann & Hyvarinen 2010 (NCE); Hyvarinen 2005;
Vincent 2011 (DSM); Song et al. 2020b (sliced, its variant of lower variance).
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise, product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils import parameters_to_vector

from .. import noise
from ..calculus import Grid, gradient
from ..component import recorded
from ..errors import ConfigError
from ..objectives import denoising_matching, implicit_matching
from .density import log_partition
from .mcmc import Chains, mala, parallel_tempering, ula
from .model import Model

__all__ = ["Energy"]

REACH = 6.0  # the grid's half width over `broad`: without f, 4e-9 of the mass lies beyond
MOVES = 200  # the draws of one training step are numbered below 2^8
RESTART = 255  # the number of the one that begins chains anew
HEED = 100  # training steps from one look at the acceptance to the next, and the fewest moves that tell anything
CELLS, AT_ONCE = 2048, 2**16  # at most along an axis; evaluated together
ROUGH = 1e-3  # nats by which log Z may be off


@recorded
class Energy(Model):
    """p(x) = exp(-E(x)) / Z, Eq. (1), with its own losses, exact log-likelihood up to two dimensions, and samples.

    Args:
        shape: of one sample.
        width, depth: size and number of the perceptron's hidden layers, >= 1.
        objective: "pcd", "cd", "nce", "score-matching", "sliced" or "dsm", Eqs. (2) to (5).
        broad: b > 0, of the law where chains and samples start: twice the data's standard deviation, say.
        steps: moves of the chains for each update ("pcd", "cd"), 1 to 200.
        eta: size of their Langevin steps, and of those that draw samples; of the order of the square of the data's
            finest detail.
        move: "mala" (exact) or "ula" (never refuses; its law is off by O(eta)).
        chains: how many persist ("pcd").
        penalty: times E(x)^2 + E(chain)^2, added to "pcd" and "cd": keeps energies small.
        sigma: blur of "dsm", > 0.
        replicas: of parallel tempering between N(0, b^2 I) and p in `draw`; 1 is MALA, which seldom leaves a mode.
        draw_steps: moves of every replica in `draw`.
        cells: of the grid along each axis in `log_prob`, over |x_i| <= 6 b, doubled (up to 2048) until log Z is known
            to 0.001; 2 to 2048.

    Raises:
        ConfigError: an argument is out of range.
    """

    config: dict[str, object]
    likelihood = "exact"

    chains: Tensor
    seen: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 128,
        depth: int = 3,
        objective: Literal["pcd", "cd", "nce", "score-matching", "sliced", "dsm"] = "pcd",
        broad: float = 2.0,
        steps: int = 20,
        eta: float = 0.005,
        move: Literal["mala", "ula"] = "mala",
        chains: int = 512,
        penalty: float = 0.0,
        sigma: float = 0.1,
        replicas: int = 6,
        draw_steps: int = 300,
        cells: int = 256,
    ) -> None:
        super().__init__(shape)
        least: dict[str, tuple[float, float]] = {
            "width": (width, 1), "depth": (depth, 1), "steps": (steps, 1), "chains": (chains, 1), "cells": (cells, 2),
            "replicas": (replicas, 1), "draw_steps": (draw_steps, 1), "penalty": (penalty, 0),
        }  # fmt: skip
        for name, (value, low) in least.items():
            if not low <= value < math.inf:
                raise ConfigError(f"Energy.{name}: given {value}, must be at least {low}, and finite")
        for name, value in (("broad", broad), ("eta", eta), ("sigma", sigma)):
            if not 0 < value < math.inf:
                raise ConfigError(f"Energy.{name}: given {value}, must be more than 0, and finite")
        for name, value, most in (("steps", steps, MOVES), ("cells", cells, CELLS)):
            if value > most:
                raise ConfigError(f"Energy.{name}: given {value}, must be at most {most}")
        self.objective, self.move, self.steps, self.eta = objective, move, steps, eta
        self.broad, self.penalty, self.sigma = broad, penalty, sigma
        self.replicas, self.draw_steps, self.cells = replicas, draw_steps, cells
        self._told = False  # that moves are refused
        # weights, what else log Z is of, log Z, cells
        self._known: tuple[Tensor, tuple[object, ...], Tensor, int] | None = None
        sizes = [math.prod(self.shape)] + [width] * depth
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
        self.net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 1, bias=False))
        if objective == "pcd":
            start = noise.normal(0, torch.arange(chains), self.shape, domain="prior")
            self.register_buffer("chains", broad * start)
        if objective == "nce":
            self.log_z = nn.Parameter(torch.zeros(()))
            for name, buffer in (
                ("seen", torch.zeros(())),
                ("mean", torch.zeros(shape)),
                ("variance", torch.ones(shape)),
            ):
                self.register_buffer(name, buffer)

    @property
    def alone(self) -> bool:  # type: ignore[override]
        """Chains and the moments of all batches are kept by one process."""
        return self.objective in ("pcd", "nce")

    def energy(self, x: Tensor) -> Tensor:
        """E(x), (B,), of x (B, *shape)."""
        tilt: Tensor = self.net(x).flatten()
        return tilt + self.base(x)

    def base(self, x: Tensor) -> Tensor:
        """The energy |x|^2 / (2 b^2) of the broad law, (B,)."""
        return x.flatten(1).square().sum(1) / (2.0 * self.broad**2)

    def score(self, x: Tensor) -> Tensor:
        """-grad E(x), of the shape of x: a gradient field, unlike a free network's."""
        return -gradient(self.energy, x)

    def losses(self, x: Tensor, *, seed: int = 0, step: int = 0, positions: Tensor | None = None) -> Tensor:
        self.check(x)
        rows = torch.arange(len(x), device=x.device) if positions is None else positions.to(x.device)
        keys: dict[str, Any] = {"draw": step << 8, "domain": "training", "dtype": x.dtype}
        match self.objective:
            case "pcd":
                return self._contrast(x, self._persist(seed, step, rows))
            case "cd":
                return self._contrast(x, self._moved(x, seed, rows, step))
            case "nce":
                return self._against(x, noise.normal(seed, rows, self.shape, **keys))
            case "dsm":
                eps = noise.normal(seed, rows, self.shape, **keys)
                return self.sigma**2 * denoising_matching(self.score, x, eps, self.sigma)
        sliced = self.objective == "sliced"
        probes = noise.rademacher(seed, rows, self.shape, **keys)[None] if sliced else None
        return implicit_matching(self.score, x, probes=probes)

    def _contrast(self, x: Tensor, y: Tensor) -> Tensor:
        """Eq. (2), with each row's own y, or the mean over other y."""
        up, down = self.energy(x), self.energy(y)
        if self.penalty:
            up, down = up + self.penalty * up.square(), down - self.penalty * down.square()
        return up - (down if self.objective == "cd" else down.mean())

    def _moved(self, x: Tensor, seed: int, indices: Tensor, step: int) -> Tensor:
        """x after the chains' moves at training step `step`, detached."""
        keys: dict[str, Any] = {"steps": self.steps, "eta": self.eta, "seed": seed, "indices": indices}
        keys |= {"start": step << 8, "domain": "training"}
        x = x.detach()
        if self.move == "ula":
            return ula(self.score, x, **keys).x
        chains = mala(self.energy, x, **keys)
        if not self._told and step % HEED == 0:  # on a GPU a look waits for the device
            self._told = self._refused(chains, self.steps)
        return chains.x

    @torch.no_grad()
    def _refused(self, chains: Chains, moves: int) -> bool:
        """Whether next to no move was accepted where energies are finite, of which it warns."""
        accepted = chains.accepted[self.energy(chains.x).isfinite()]
        if len(accepted) * moves < HEED or (share := float(accepted.mean())) >= 0.01:
            return False
        warnings.warn(
            f"Energy.eta: at eta={self.eta:g} {share:.1%} of the chains' moves are accepted, so that they stay where "
            "they started: lower model.eta",
            stacklevel=1,
        )
        return True

    def _persist(self, seed: int, step: int, positions: Tensor) -> Tensor:
        """The chains, all of them moved; kept while training. One that is lost begins anew."""
        # Parts of one batch move them by different draws.
        indices = torch.arange(len(self.chains), device=positions.device) + len(self.chains) * positions[0]
        moved = self._moved(self.chains.clone(), seed, indices, step)
        keys: dict[str, Any] = {"draw": step << 8 | RESTART, "domain": "training", "dtype": moved.dtype}
        fine = self.base(moved).isfinite().reshape(-1, *[1] * len(self.shape))
        moved = torch.where(fine, moved, self.broad * noise.normal(seed, indices, self.shape, **keys))
        if self.training:
            self.chains.copy_(moved)
        return moved

    def _against(self, x: Tensor, eps: Tensor) -> Tensor:
        """Eq. (3); q has the mean and variances of all the batches there were."""
        if self.training:
            with torch.no_grad():
                self.seen += 1.0
                # Chan's update: a mean of squares less a square would lose what lies far from 0.
                share, apart = 1.0 / self.seen, x.mean(0) - self.mean
                self.variance.lerp_(x.var(0, correction=0) + (1.0 - share) * apart.square(), share)
                self.mean.add_(share * apart)
        std = self.variance.clamp(min=1e-12 * (1.0 + self.mean.square())).sqrt()
        y = self.mean + std * eps

        def gap(x: Tensor) -> Tensor:
            z = ((x - self.mean) / std).flatten(1)
            log_q = -0.5 * z.square().sum(1) - std.log().sum() - 0.5 * z.shape[1] * math.log(2.0 * math.pi)
            return -self.energy(x) - self.log_z - log_q

        return softplus(-gap(x)) + softplus(gap(y))

    def draw(self, indices: Tensor, seed: int) -> Tensor:
        """Samples by parallel tempering from N(0, b^2 I), which is its flattest level; NaN where E is not finite."""
        indices = indices.to(next(self.parameters()).device)
        dtype = next(self.parameters()).dtype
        x = self.broad * noise.normal(seed, indices, self.shape, domain="prior", dtype=dtype)
        betas = [(1.0 - k / max(1, self.replicas - 1)) ** 2 for k in range(self.replicas)]
        # Curvatures add, so that their inverses, the step sizes, do it harmonically.
        etas = [1.0 / (beta / self.eta + (1.0 - beta) / (0.5 * self.broad**2)) for beta in betas]
        keys: dict[str, Any] = {"steps": self.draw_steps, "eta": etas, "seed": seed, "indices": indices}
        chains = parallel_tempering(self.energy, x, betas=betas, base=self.base, **keys)
        self._refused(chains, self.draw_steps)
        with torch.no_grad():  # a chain whose energy is not finite never left its start, which is no sample
            fine = self.energy(chains.x).isfinite().reshape(-1, *[1] * len(self.shape))
        return chains.x.where(fine, math.nan)

    def log_partition(self) -> Tensor:
        """log Z on the grid, () float64; differentiable in the parameters.

        Raises:
            ConfigError: more than two dimensions, or a grid too coarse: log Z is off by more than 0.001.
        """
        d = math.prod(self.shape)
        if d > 2:
            raise ConfigError(
                f"Energy.log_prob: log Z is known on a grid, in 1 or 2 dimensions, and a sample has {d}: compare "
                "samples instead (fokker evaluate)"
            )
        if torch._C._functorch.peek_interpreter_stack() is not None:  # these weights may be a transform's own
            return self._summed((0.0,) * d, self.cells)
        known, cells = self._checked(d)
        return self._summed((0.0,) * d, cells) if torch.is_grad_enabled() else known

    def _summed(self, shift: tuple[float, ...], cells: int) -> Tensor:
        """log Z on a grid of `cells` an axis, moved by `shift`, in cells."""
        reach, first = REACH * self.broad, next(self.parameters())
        size = 2.0 * reach / cells
        low, high = (tuple(end + size * s for s in shift) for end in (-reach, reach))

        def energy(x: Tensor) -> Tensor:
            return torch.cat([self.energy(part.reshape(-1, *self.shape)).double() for part in torch.split(x, AT_ONCE)])

        grid = Grid(low, high, (cells,) * len(shift))
        return log_partition(energy, grid, dtype=first.dtype, device=str(first.device))

    @torch.no_grad()
    def _checked(self, d: int) -> tuple[Tensor, int]:
        """log Z, computed once for the same weights, and the cells it took. Raises ConfigError if none are enough."""
        weights = parameters_to_vector(self.net.parameters())
        key = (self.broad, self.cells, weights.dtype, weights.device)
        if self._known is not None and self._known[1] == key and torch.equal(self._known[0], weights):
            return self._known[2:]
        cells = self.cells
        while True:
            # Over all half shifts every harmonic of exp(-E) but the even ones cancels: the error of each is seen.
            each = torch.stack([self._summed(shift, cells) for shift in product((0.0, 0.5), repeat=d)])
            off = float((each[0] - (torch.logsumexp(each, 0) - d * math.log(2.0))).abs())
            if not off > ROUGH:
                break
            if cells == CELLS:
                raise ConfigError(
                    f"Energy.log_prob: on {CELLS} cells an axis log Z is off by {off:.2g} nats still: over |x| <= 6 "
                    f"broad = {REACH * self.broad:g} each is {2.0 * REACH * self.broad / CELLS:.3g} long; train it "
                    f"with a lower model.broad (now {self.broad:g})"
                )
            cells = min(2 * cells, CELLS)
        self._known = weights, key, each[0], cells
        return each[0], cells

    def log_prob(self, x: Tensor, *, seed: int = 0, indices: Tensor | None = None) -> Tensor:
        """log p(x) = -E(x) - log Z, exact up to the grid (B,). Raises ConfigError above two dimensions."""
        return (-self.log_partition() - self.energy(self.check(x))).to(torch.promote_types(x.dtype, torch.float32))
