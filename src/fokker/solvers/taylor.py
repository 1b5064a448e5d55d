r"""DPM-Solver by its definition: Taylor's polynomial of the noise prediction with exact derivatives (book Eq. 9.4.10).

    x_t = (alpha_t / alpha_s) x_s - sigma_t sum_{k < order} h^{k+1} phi_{k+1}(h) d^k noise / dlam^k

with the total derivatives along the probability-flow ODE, whose operator is

    d/dlam = (f / lam') x - sigma noise(x, t)  in x,   1 / lam'  in t          (f = alpha' / alpha)

one Jacobian-vector product for each. Every other method of this family is made to agree with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.func import jvp

from ..component import component
from ..denoiser import innermost
from ..errors import ConfigError
from ..prediction import Denoiser, Prediction, Reading
from ..process import Process, expand
from .base import Solver
from .exponential import carry_of, gain_of, phi
from .plan import Step, Term, X, evaluate
from .run import bind, run

__all__ = ["Taylor"]

DERIVATIVES = ("noise", "noise'", "noise''")
Derivatives = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


@component
class Taylor(Solver):
    """A reference, not for production: `order` evaluations a step, each a derivative deeper than the one before.

    The denoiser must be differentiable forwards, order - 1 times in a row, in x and in the time, which it is given as
    a float64 tensor, not to be rounded nor read back as a number. Exact denoisers are; networks with SiLU, as those of
    this library, only once (torch's limit): order 2. Slow: torch takes nested products apart in Python.

    Args:
        order: 1 (DDIM) to 3: the number of terms.

    Raises (when it runs):
        ConfigError: the denoiser is not differentiable as often as the order asks.
    """

    order: Annotated[int, Field(ge=1, le=3)] = 3
    open_start = True
    plain = False

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.order

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        h = process.lam(t) - process.lam(s)
        if not bool(torch.isfinite(h).all()):
            raise ConfigError(f"{self} needs a finite lam: start an encoding at {process.t_min:g}, not at 0")
        gain, first = gain_of(process, "noise", s, t, h)
        weights = [first, *(gain * h**k * phi(k + 1, h) for k in range(1, self.order))]
        table = torch.stack([s, t, carry_of(process, "noise", s, t), *weights], -1).tolist()
        steps = []
        for start, end, carry, *row in table:
            terms: list[Term] = [(("m", k), c) for k, c in enumerate(row)]
            stages = tuple(evaluate(start, DERIVATIVES[k], k) for k in range(self.order))
            steps.append(Step(start, end, stages, ((X, carry), *terms)))
        return steps

    def prepare(
        self, denoiser: Denoiser, times: Tensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[tuple[float, ...], Callable[..., Tensor]]:
        if getattr(innermost(denoiser), "time_input", None) == "integer":  # its derivative would be 0, not an error
            raise ConfigError(f"{self}: given a denoiser with time='integer', which has no derivative in time; use DPM")
        plan = self.plan(denoiser.process, times)
        terms = {step.start: len(step.stages) for step in plan.steps}
        bound = bind(plan, _Along(denoiser, terms), device, dtype)

        def carry(x: Tensor, **options: Any) -> Tensor:
            return run(bound, _Along(denoiser, terms), x, **options)

        return plan.times, carry


class _Along:
    """A denoiser that says as well how its noise changes along the flow; for one run.

    A step's stages ask at one place; the first of them finds all derivatives together, the others are handed them.
    """

    reading: Reading | None = None

    def __init__(self, denoiser: Denoiser, terms: dict[float, int]) -> None:
        self.denoiser, self.terms = denoiser, terms
        self.process, self.shape, self.lam_range = denoiser.process, denoiser.shape, denoiser.lam_range
        self.at: float | None = None
        self.found: _Derived

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        assert isinstance(s, float)
        if s == self.at:
            return self.found
        if self.terms[s] == 1:
            return self.denoiser(x, s, cond)
        try:
            noises = self._derivatives(self.terms[s], cond)(x, torch.tensor(s, dtype=torch.float64))
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            depth = f"{self.terms[s] - 1} times in a row"
            raise ConfigError(f"Taylor: this denoiser cannot be differentiated forwards {depth} ({error})") from error
        self.at, self.found = s, _Derived(self.process, x, s, noise=noises[0])
        self.found.noises = dict(zip(DERIVATIVES, noises, strict=False))
        return self.found

    def _derivatives(self, terms: int, cond: Any) -> Derivatives:
        """(x, t) -> the noise and its first `terms` - 1 derivatives, by `terms` evaluations."""
        process = self.process

        def noise(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
            return (self.denoiser(x, t, cond).noise,)

        if terms == 1:
            return noise
        lower = self._derivatives(terms - 1, cond)

        def higher(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
            rate = 1.0 / process.d_lam(t)
            slope = expand(process.f(t) * rate, x) * x - expand(process.sigma(t), x) * noise(x, t)[0]
            both: Any = jvp(lower, (x, t), (slope, rate))
            return (*both[0], both[1][-1])

        return higher


class _Derived(Prediction):
    """A prediction of the noise that is read as its derivatives as well."""

    __slots__ = ("noises",)

    noises: dict[str, Tensor]

    def read(self, target: str | Reading) -> Tensor:
        if isinstance(target, str) and target in self.noises:
            return self.noises[target]
        return super().read(target)
