r"""The denoising objective: DSM, noise, x0, v, velocity and EDM's loss are one regression (book Sec. 6.2, Eq. 6.2.5).

    L = E_t E_{x0, eps} w(t) (1/D) |m(x_t, t) - m*(x0, eps)|^2,      x_t = alpha x0 + sigma eps

The network's own output is compared with its own target, and the weight is carried over exactly, so every choice of
`predict`, `weight` and network differs from every other by a function of time only; all have the minimiser E[m* | x_t].
A network that says a variance as well learns it by L_vlb, with the mean held (Nichol & Dhariwal 2021, L_hybrid):

    L + variance_weight E_n (1/D) steps KL(p(x_{n-1} | x_n, x_0) || N(a x_n + b x0_hat, r^2)),   x0_hat without gradient

and at n = 1, where that is infinite, -log N(x_0; x0_hat, r^2). The best r^2 is c^2 + b^2 Var[x_0 | x_n].
What a weight or a law of times learns (`learned.py`) lives in the modules of `Denoising.learned`, not in the objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import noise as philox
from ..component import component
from ..denoiser import null_like
from ..errors import ConfigError
from ..prediction import Denoiser, Prediction, coefficients, learned_std, reading
from ..process import DiscreteVP, Process, expand
from ..registry import resolves
from .learned import AdaptiveLaw, StepLaw, surrogate
from .regularisers import Regulariser
from .times import Levels, LogNormal, TimeLaw, UniformTimes
from .weighting import EDMWeight, Sigma2, Uniform, Weight

__all__ = ["Denoising", "Terms"]


class Terms(NamedTuple):
    """A batch before averaging, sample by sample (B,).

    loss: what is minimised.
    t: the time.
    error: the loss without what is learned, a regulariser and the variance's part, detached; its mean estimates the
        objective's value under any law.
    ratio: base density over the density drawn from, already part of loss and error; error / ratio is the weighted
        error at t itself, as a histogram over times wants it. 1 where no law is learned.
    place: the share of the base law below t.
    """

    loss: Tensor
    t: Tensor
    error: Tensor
    ratio: Tensor
    place: Tensor


@component
class Denoising:
    """Regress one reading of the network on its conditional target.

    Args:
        predict: the reading whose error `Uniform` weighs: "x0", "noise", "score", "velocity" or "v". What the
            network itself outputs is the denoiser's affair; errors are converted.
        weight: w(t), a component or its name.
        times: the law of t, a component or its name.
        density: "multiply": t is drawn from `times` and its density is part of the weight (the effective weight is
            w p, Table 6.1); "replace": `times` only proposes, the loss is int w(t) mse(t) dt, estimated by w / p.
        stratified: draw one time from each of B equal slices of the law (less variance, same mean).
        cond_dropout: share of conditions replaced by the null condition, for classifier-free guidance.
        regulariser: what is added to the loss: "fokker-planck" or "martingale", whose value is 0 at the exact
            denoiser; None for nothing.
        variance_weight: of the variance's part, for a denoiser with learned_variance=True on the process "ddpm"; 0 for
            none, 0.001 in the paper.
    """

    predict: str = "velocity"
    weight: Annotated[Weight, resolves("weight")] = Uniform()
    times: Annotated[TimeLaw, resolves("times")] = UniformTimes()
    density: Literal["multiply", "replace"] = "multiply"
    stratified: bool = False
    cond_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    regulariser: Annotated[Regulariser | None, resolves("regulariser")] = None
    variance_weight: Annotated[float, Field(ge=0.0)] = 0.0

    def __post_init__(self) -> None:
        reading(self.predict)

    @classmethod
    def ddpm(cls, **changes: Any) -> Denoising:
        """Ho et al. 2020's L_simple: the noise, weight 1, uniform times (levels, on a DiscreteVP)."""
        defaults: dict[str, Any] = {"predict": "noise", "weight": Uniform(), "times": UniformTimes(levels=True)}
        return cls(**defaults | changes)

    @classmethod
    def dsm(cls, **changes: Any) -> Denoising:
        """Denoising score matching: the score, weight sigma^2, uniform times (Song & Ermon 2019; book Eq. 4.2.1)."""
        defaults: dict[str, Any] = {"predict": "score", "weight": Sigma2(), "times": UniformTimes()}
        return cls(**defaults | changes)

    @classmethod
    def ncsn(cls, levels: int = 10, **changes: Any) -> Denoising:
        """The score at geometric noise levels, each as likely, weight sigma^2 (Song & Ermon 2019; book Eq. 3.4.1)."""
        defaults: dict[str, Any] = {"predict": "score", "weight": Sigma2(), "times": Levels(levels)}
        return cls(**defaults | changes)

    @classmethod
    def cfm(cls, **changes: Any) -> Denoising:
        """Conditional flow matching: the velocity, weight 1, uniform times (Lipman et al. 2022; book Eq. 5.2.9)."""
        defaults: dict[str, Any] = {"predict": "velocity", "weight": Uniform(), "times": UniformTimes()}
        return cls(**defaults | changes)

    @classmethod
    def edm(cls, sigma_data: float = 0.5, **changes: Any) -> Denoising:
        """Karras et al. 2022: x0 weighted so that EDM's F has weight 1, log-normal noise levels."""
        defaults: dict[str, Any] = {"predict": "x0", "weight": EDMWeight(sigma_data), "times": LogNormal()}
        return cls(**defaults | changes)

    def learned(self, process: Process) -> nn.ModuleDict:
        """Fresh modules of what this objective learns: "weight", "times", both or none; trained with the network."""
        found = {"weight": self.weight.learned(process), "times": self.times.learned(process)}
        return nn.ModuleDict({name: module for name, module in found.items() if module is not None})

    def terms(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        cond: Tensor | None = None,
        *,
        learned: nn.ModuleDict | None = None,
        seed: int = 0,
        step: int = 0,
        positions: Tensor | None = None,
        total: int | None = None,
    ) -> Terms:
        """The losses of a batch, sample by sample.

        What is drawn depends on (seed, step, position in the global batch) only.

        Args:
            denoiser: what is trained (or exact: then the loss is its floor).
            x0: clean data (B, *event).
            cond: conditions (B, ...).
            learned: `self.learned(process)`, if the objective learns anything.
            seed, step: keys of the randomness; step < 2^24.
            positions: this part's places in the global batch, default range(B); total: the global batch's size.

        Raises:
            ConfigError: the objective learns something and `learned` does not hold it.
        """
        u_of, law = self._modules(learned)
        process, shape = denoiser.process, x0.shape[1:]
        rows = torch.arange(len(x0), device=x0.device) if positions is None else positions.to(x0.device)
        size = len(x0) if total is None else total

        def key(k: int) -> dict[str, Any]:
            return {"draw": step << 8 | k, "domain": "training"}

        u = philox.uniform(seed, rows, (), **key(1), dtype=torch.float64)
        if self.stratified:
            u = (rows + u) / size
        place, q = (u, None) if law is None else law(u)
        t = self.times.quantile(process, place)
        eps = philox.normal(seed, rows, shape, **key(0), dtype=torch.promote_types(x0.dtype, torch.float32))
        if self.cond_dropout > 0.0 and cond is not None:
            dropped = philox.uniform(seed, rows, (), **key(2)) < self.cond_dropout
            cond = torch.where(dropped.reshape(-1, *[1] * (cond.ndim - 1)), null_like(cond), cond)
        x = process.perturb(x0, t, eps)
        weight, squared, prediction = self._squared(denoiser, x, t, cond, x0, eps, (seed, step, rows))
        ratio = torch.ones_like(t) if q is None else 1.0 / q.detach()
        measure = ratio if self.density == "multiply" else ratio / self.times.density(process, t)
        loss = error = (weight * measure).to(squared.dtype) * squared
        if u_of is not None:
            log_variance = u_of(t)
            loss = error / log_variance.exp() + measure.to(error.dtype) * log_variance
        if prediction is not None and self.variance_weight > 0.0:
            loss = loss + self.variance_weight * measure.to(loss.dtype) * _variance_loss(prediction, x0, t)
        if q is not None and q.requires_grad:
            loss = loss + surrogate(self._integrand(u_of, t, error.detach() / ratio), q).to(loss.dtype)
        if self.regulariser is not None:
            penalty = self.regulariser.penalty(denoiser, x, t, cond, seed=seed, step=step, rows=rows)
            loss = loss + (ratio * penalty).to(loss.dtype)
        return Terms(loss, t, error.detach(), ratio, place)

    def _squared(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        cond: Tensor | None,
        x0: Tensor,
        eps: Tensor,
        keys: tuple[int, int, Tensor],
    ) -> tuple[Tensor, Tensor, Prediction | None]:
        """w and |m - m*|^2 / D of every row, (B,) each, and the prediction; keys: the seed, the step, the positions."""
        process = denoiser.process
        weighed = self.weight.of(reading(self.predict))
        prediction = denoiser(x, t, cond)
        source = weighed if denoiser.reading is None else denoiser.reading
        value = prediction.value if denoiser.reading is not None else prediction.read(weighed)
        A, B, k = source.row(process, t)
        target = expand(A / k, x) * x0 + expand(B / k, x) * eps
        weight = self.weight.value(process, t) * coefficients(process, t, source, weighed)[1] ** 2
        return weight, (value - target).to(eps.dtype).square().flatten(1).mean(1), prediction

    def _modules(self, learned: nn.ModuleDict | None) -> tuple[nn.Module | None, StepLaw | None]:
        """(u, the law of places) of what was given. Raises ConfigError if something is missing."""
        for name, part in (("weight", self.weight), ("times", self.times)):
            if part.learns and (learned is None or name not in learned):
                raise ConfigError(
                    f"objective.{name}: {type(part).__name__} learns, but learned[{name!r}] was not given: "
                    "make modules = objective.learned(process) once and pass learned=modules at every call"
                )
        u_of = learned["weight"] if learned is not None and self.weight.learns else None
        law: Any = learned["times"] if learned is not None and self.times.learns else None
        return u_of, law

    @staticmethod
    @torch.no_grad()
    def _integrand(u_of: nn.Module | None, t: Tensor, f: Tensor) -> Tensor:
        """f of `learned` Eq. (1), whose variance is to be least: with a learned weight what pulls at the network."""
        return f if u_of is None else f / u_of(t).exp()

    def observe(self, learned: nn.ModuleDict, terms: Terms) -> None:
        """Take in a batch's terms (each process its own), if the law of times adapts; nothing waits for a device."""
        u_of, law = self._modules(learned)
        if isinstance(law, AdaptiveLaw):
            law.observe(terms.place, self._integrand(u_of, terms.t, terms.error / terms.ratio))

    def refresh(
        self, learned: nn.ModuleDict, step: int, reduce: Callable[[Tensor], Tensor] = lambda total: total
    ) -> None:
        """Renew the law of times after 0-based step `step` if it adapts and its turn has come.

        Args:
            reduce: sums a tensor over processes (and may do so in place); called by all of them or by none.
        """
        law = self._modules(learned)[1]
        if isinstance(law, AdaptiveLaw):
            law.refresh(step, reduce)

    def gather(self, learned: nn.ModuleDict, reduce: Callable[[Tensor], Tensor]) -> None:
        """Make the state of `learned` the same in all processes, before it is saved; one process alone needs none."""
        law = self._modules(learned)[1]
        if isinstance(law, AdaptiveLaw):
            law.gather(reduce)

    def __call__(self, denoiser: Denoiser, x0: Tensor, cond: Tensor | None = None, **keys: Any) -> Tensor:
        """The mean loss of a batch; arguments as in `terms`."""
        if len(x0) == 0:
            raise ConfigError("the batch is empty")
        return self.terms(denoiser, x0, cond, **keys).loss.mean()


def _variance_loss(prediction: Prediction, x0: Tensor, t: Tensor) -> Tensor:
    """steps / D times the KL of the reverse step from t, or at level 1 the decoder's nats, (B,); see the module."""
    process, v = prediction.process, prediction.variance
    if not isinstance(process, DiscreteVP) or v is None:
        given = f"{process} and a network {'without' if v is None else 'with'} a learned variance"
        needs = "the process 'ddpm', denoiser.learned_variance=true and net.out_channels twice the data's channels"
        raise ConfigError(f"objective.variance_weight: given {given}, needs {needs}; or leave it at 0")
    n = process.level(t)
    step = process.reverse(n)
    b, low, high = (expand(value, x0) for value in step)
    std = learned_std(v.to(x0.dtype), low, high)
    missed = b * (x0 - prediction.x0.detach()) / std
    last = expand(n < 2.0, x0) > 0
    spread = torch.where(last, 0.0, (low / std) ** 2)
    logs = torch.where(last, math.log(2.0 * math.pi), -1.0 - 2.0 * low.log()) + 2.0 * std.log()
    return 0.5 * process.steps * (missed.square() + spread + logs).flatten(1).mean(1)
