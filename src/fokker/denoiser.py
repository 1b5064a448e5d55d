"""A network as a denoiser in any process, and one denoiser seen in another process."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .component import recorded
from .errors import ConfigError, UndeterminedError, closest
from .prediction import READINGS, Denoiser, Prediction, Reading, coefficients, edm_reading, reading
from .process import DiscreteVP, Process, as_time, clocks, expand
from .registry import build

__all__ = ["NetDenoiser", "View", "compile_net", "innermost", "null_like", "repeat_cond", "take_cond", "to_process"]

TIME_INPUTS = {
    "t": "t / T, in [0, 1]",
    "lam": "half the log-SNR",
    "log_sigma": "log(sigma / alpha) / 4 = -lam / 4, EDM's c_noise",
    "1000t": "1000 t / T",
    "index": "DDPM's index t steps - 1, not rounded (DiscreteVP only)",
    "integer": "the same, rounded to an integer, for networks that look time up in a table",
}


def null_like(cond: Tensor) -> Tensor:
    """The null condition in the place of `cond`: label -1, or a row of NaN for vectors."""
    if cond.is_floating_point():
        return torch.full_like(cond, math.nan)
    return torch.full_like(cond, -1, dtype=torch.int64)  # an unsigned label has no -1


def repeat_cond(cond: Any, n: int) -> Any:
    """A condition for n samples: scalars broadcast, leading dimensions of n kept (any nesting of dict, list, tuple)."""
    if isinstance(cond, dict):
        return {name: repeat_cond(value, n) for name, value in cond.items()}
    if isinstance(cond, (list, tuple)) and not all(isinstance(value, (int, float)) for value in cond):
        return type(cond)(repeat_cond(value, n) for value in cond)
    if isinstance(cond, (list, tuple)):
        cond = torch.tensor(cond)
    if isinstance(cond, bool) or not (isinstance(cond, (int, float)) or hasattr(cond, "__array__")):
        return cond
    value = torch.as_tensor(cond)
    if value.ndim == 0:
        return value.expand(n)
    if len(value) != n:
        raise ConfigError(f"cond: given {len(value)} rows for {n} samples; give one value, or one row per sample")
    return value


def take_cond(cond: Any, rows: Tensor) -> Any:
    """The rows (integers) of a condition that `repeat_cond` made, on their device; what is no tensor stays."""
    if isinstance(cond, dict):
        return {name: take_cond(value, rows) for name, value in cond.items()}
    if isinstance(cond, (list, tuple)):
        return type(cond)(take_cond(value, rows) for value in cond)
    return cond.to(rows.device)[rows] if isinstance(cond, Tensor) else cond


def innermost(denoiser: Denoiser) -> Denoiser:
    """What guidance, bounds and views are put around: the network's or the exact denoiser."""
    inner: Any = denoiser
    while not isinstance(inner, nn.Module) and hasattr(inner, "denoiser"):
        inner = inner.denoiser
    found: Denoiser = inner
    return found


def compile_net(denoiser: Denoiser) -> None:
    """Compile the network inside, in place and once: by torch.compile, on CUDA with its CUDA graphs.

    Raises ConfigError where there is no network.
    """
    inner: Any = innermost(denoiser)
    net = getattr(inner, "net", inner)
    if not isinstance(net, nn.Module):
        raise ConfigError(f"compile: given True, but {type(inner).__name__} has no network; leave it out")
    if net._compiled_call_impl is None:
        there = next((parameter.device.type for parameter in net.parameters()), "cpu")
        net.compile(mode="reduce-overhead" if there == "cuda" else None)


@recorded
class NetDenoiser(nn.Module):
    """A network that was trained (or will be) to regress one reading, as a denoiser.

    The network is called as `net(c_in x, time)` or `net(c_in x, time, cond)` and its output is read as `predict`.
    With `predict="edm", precondition="edm"` this is EDM's preconditioning in any process,
    x0 = c_skip x + c_out F(c_in x, time) (book Eq. D.6.1; Karras et al. 2022).

    Args:
        net: a module, or its recipe.
        process: the process the network knows, or its recipe.
        predict: what the output stands for: x0, noise, score, velocity, v, edm, or a `Reading` of one's own.
        precondition: "edm" scales the input by c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2); "none" leaves it.
        time: what the network is told of time: "t", "lam", "log_sigma", "1000t", "index" or "integer";
            always finite (lam is clamped to the process's [t_min, t_max]).
        sigma_data: standard deviation of the data, for "edm".
        shape: the event's shape, needed for sampling without a start.
        lam_range: (noisiest, cleanest) lam it was trained on; by default all of [t_min, T], or [t_min, t_max] where
            the reading says nothing of x0 at T (noise and score, if alpha(T) = 0).
        learned_variance: the output has twice the channels (dimension 1); the second half goes to
            `Prediction.variance` (Nichol & Dhariwal 2021).
    """

    def __init__(
        self,
        net: nn.Module,
        process: Process,
        predict: str | Reading = "velocity",
        precondition: Literal["none", "edm"] = "none",
        time: str = "t",
        sigma_data: float = 0.5,
        shape: tuple[int, ...] = (),
        lam_range: tuple[float, float] | None = None,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        self.net: nn.Module = build("net", net)
        self.process: Process = build("process", process)
        if predict != "edm" and not isinstance(predict, Reading) and predict not in READINGS:
            raise ConfigError(f"predict: given {predict!r}; {closest(str(predict), [*READINGS, 'edm'])}")
        if time not in TIME_INPUTS:
            raise ConfigError(f"time: given {time!r}; {closest(time, TIME_INPUTS)}")
        if time in ("index", "integer") and not isinstance(self.process, DiscreteVP):
            raise ConfigError(f"time={time!r} needs the process 'ddpm' (given {type(self.process).__name__})")
        if not sigma_data > 0:
            raise ConfigError(f"sigma_data: given {sigma_data}, must be greater than 0")
        self.predict, self.precondition, self.time_input = predict, precondition, time
        self.sigma_data, self.learned_variance = sigma_data, learned_variance
        self.reading: Reading = edm_reading(sigma_data) if predict == "edm" else reading(predict)
        self.shape = tuple(shape)
        finite = (float(self.process.lam(self.process.t_max)), float(self.process.lam(self.process.t_min)))
        full = (self._noisiest(), finite[1])
        self._lam_bounds = finite
        self.lam_range: tuple[float, float] = full if lam_range is None else (lam_range[0], lam_range[1])
        if not self.lam_range[0] < self.lam_range[1]:
            raise ConfigError(f"lam_range: given {lam_range}, must be (noisiest, cleanest), the smaller first")
        self._known: dict[float, tuple[float, float]] = {}

    def _noisiest(self) -> float:
        """lam(T), or lam(t_max) where the reading says nothing of x0 at T (noise and score where alpha = 0)."""
        try:
            coefficients(self.process, self.process.T, self.reading, READINGS["x0"])
        except UndeterminedError:
            return float(self.process.lam(self.process.t_max))
        return float(self.process.lam(self.process.T))

    def _inputs(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """(c_in, what the network is told of time) at times s."""
        process = self.process
        if self.precondition == "edm":
            c_in = 1.0 / torch.hypot(process.alpha(s) * self.sigma_data, process.sigma(s))
        else:
            c_in = torch.ones_like(s)
        if self.time_input in ("t", "1000t"):
            told = s * ((1000.0 if self.time_input == "1000t" else 1.0) / process.T)
        elif self.time_input in ("lam", "log_sigma"):
            told = process.lam(s).clamp(*self._lam_bounds) * (1.0 if self.time_input == "lam" else -0.25)
        else:
            assert isinstance(process, DiscreteVP)
            told = clocks.index(process, s).clamp(min=0.0)
        return c_in, told

    def raw(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Tensor:
        """The network's own output at (x, s), before any reading."""
        if isinstance(s, Tensor):
            c_in, told = self._inputs(as_time(s))
            told = told.to(x.device, torch.promote_types(x.dtype, torch.float32)).expand(len(x))
            scaled = x if self.precondition == "none" else expand(c_in, x) * x
        else:
            if s not in self._known:
                at = self._inputs(as_time(s))
                self._known[s] = (float(at[0]), float(at[1]))
            scale, value = self._known[s]
            told = torch.full((len(x),), value, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
            scaled = x if self.precondition == "none" else x * scale
        if self.time_input == "integer":
            told = told.round().long()
        out: Tensor = self.net(scaled, told) if cond is None else self.net(scaled, told, cond)
        return out

    def forward(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        """The prediction at state x (B, *event) and time s, a number or (B,)."""
        out, variance = self.raw(x, s, cond), None
        if self.learned_variance:
            if out.shape[1] != 2 * x.shape[1]:
                raise ConfigError(f"learned_variance: the network gave {out.shape[1]} channels, not {2 * x.shape[1]}")
            out, variance = out.chunk(2, dim=1)
        if out.shape != x.shape:
            raise ConfigError(f"the network gave shape {tuple(out.shape)} for a state of shape {tuple(x.shape)}")
        return Prediction(self.process, x, s, other=(self.reading, out), variance=variance)

    def to_process(self, process: Process) -> Denoiser:
        """This denoiser seen in another process, exactly (see `View`)."""
        return to_process(self, process)


class View:
    """A denoiser seen in another process: same lam, rescaled state, the same x0 and noise (book Prop. 6.3.3).

    Args:
        denoiser: what to look at.
        process: the process to see it in; `lam_range` becomes the common one.
    """

    def __init__(self, denoiser: Denoiser, process: Process) -> None:
        self.denoiser, self.process, self.shape = denoiser, process, denoiser.shape
        self.lam_range = clocks.common_lam_range(denoiser.lam_range, clocks.lam_range(process))
        inner = denoiser.reading
        self.reading = None if inner is None else self._seen(inner)
        self._known: dict[float, tuple[float, float]] = {}  # s -> (time, scale) in the inner process

    def _seen(self, inner: Reading) -> Reading:
        source = self.denoiser.process

        def row(process: Process, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return inner.row(source, clocks.convert_time(t, process, source))

        return Reading(f"{inner.name} in {source}", row)

    def _inside(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """The inner process's time of s, and what takes a state there."""
        s = as_time(s)
        time = clocks.convert_time(s, self.process, self.denoiser.process)
        return time, clocks.scale(s, time, self.process, self.denoiser.process)

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        if isinstance(s, Tensor):
            time, scale = self._inside(s)
            p = self.denoiser(expand(scale, x) * x, time, cond)
        else:
            if s not in self._known:
                at = self._inside(as_time(s))
                self._known[s] = (float(at[0]), float(at[1]))
            inner_time, factor = self._known[s]
            p = self.denoiser(x * factor, inner_time, cond)
        if self.reading is not None:
            return Prediction(self.process, x, s, other=(self.reading, p.value), variance=p.variance)
        return Prediction(self.process, x, s, x0=p.x0, noise=p.noise)


def to_process(denoiser: Denoiser, process: Process) -> Denoiser:
    """`denoiser` seen in `process`; a view of a view is one view, and the way back is the denoiser itself."""
    inner = denoiser.denoiser if isinstance(denoiser, View) else denoiser
    return inner if inner.process == process else View(inner, process)
