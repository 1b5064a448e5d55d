"""Negative log-likelihood of data under a model: bits per dimension of pictures, nats of everything else.

    exact    of a classic model that knows its density; pictures are dequantised unless it is of their bytes
    flow     of the probability-flow ODE's density; pictures are dequantised, and then it is never too low on average
    bound    of the reverse SDE's, by the variational bound: never too low; of pictures the probability of their bytes
    ddpm     of the ancestral chain's, by the bound in discrete time, where the model's process is a chain: with the
             network's variances, or the best for training rows

Of a bound its parts are told too: prior, diffusion and reconstruction, which add up to it; and of a chain L_simple, the
mean of |eps_hat - eps|^2 / d over levels as `Denoising.ddpm` trains it, in no unit.

Each is a mean over rows with its 95 % interval, mean +- 1.96 sd / sqrt(n), in which is the noise of probes, draws and
dequantisation as well: they are fresh for every row. A row of the data's own numbers is x decoded; its density is that
of x less the log-volume of decoding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from .. import noise as philox
from ..calculus import Hutchinson
from ..classic import Model
from ..data import Codec, Samples, SignalCodec
from ..data.columns import Number, TableCodec
from ..denoiser import innermost
from ..errors import ConfigError
from ..likelihood import Bound, bits_per_dim, ddpm_bound, dequantise, elbo, log_prob, optimal_variance
from ..objectives import Denoising
from ..prediction import Denoiser
from ..process import DiscreteVP
from ..sampling import device_of
from ..solvers import Adaptive
from ..solvers.base import count
from .report import as_markdown, as_table

__all__ = ["NllReport", "NllRow", "log_volume", "nll"]

LEVELS = 256
Z = 1.96
KNOWN, FEW = 256, 32  # training rows that a chain's best variances are measured on, up to SMALL dimensions and above
SMALL = 16  # dimensions up to which the divergence is exact by default, and everything finer


@dataclass(frozen=True)
class NllRow:
    """One negative log-likelihood, low is good.

    Args:
        name: "exact", "flow", "bound" or "ddpm".
        split: "held out" or "train": where a model has learned rows by heart the two differ.
        value: the mean over rows.
        low, high: its 95 % interval.
        n: rows.
        parts: what it is made of, in its unit, and what stands beside it.
    """

    name: str
    split: Literal["held out", "train"]
    value: float
    low: float
    high: float
    n: int
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class NllReport:
    """What `nll` found.

    Args:
        rows: one for each measure and split.
        unit: "bits/dim" or "nats".
        facts: what it was computed with.
    """

    rows: tuple[NllRow, ...]
    unit: str
    facts: dict[str, Any]

    def to_json(self, **more: Any) -> str:
        """The report as JSON; `more` joins its facts."""
        whole = {"format": "fokker-nll-1"} | more | self.facts | {"unit": self.unit}
        return json.dumps(whole | {"nll": [asdict(row) for row in self.rows]}, indent=1, allow_nan=False) + "\n"

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, headings first."""
        lines: list[tuple[str, ...]] = [("negative log-likelihood", f"{self.unit} (95 %)", "n")]
        for row in self.rows:
            value = f"{row.value:.4g} ± {(row.high - row.low) / 2:.2g}"
            lines.append((f"{row.name}, {row.split}", value, str(row.n)))
            lines += [(f"- {name}", f"{part:.4g}", "") for name, part in row.parts.items()]
        return lines

    def table(self) -> Table:
        """The table for a terminal."""
        return as_table(self.cells())

    def markdown(self) -> str:
        """The table in Markdown."""
        return as_markdown(self.cells())


def log_volume(data: Samples) -> float:
    """log |det| of the map from a model's numbers to the data's own, which a density is divided by.

    Raises:
        ConfigError: there is no such map: latents, tokens, categories, rounded or quantile-mapped columns.
    """
    codec: Codec | None = data.codec
    if codec is None:
        return 0.0
    if isinstance(codec, SignalCodec):
        return data.shape[-1] * sum(math.log(std) for std in codec.std)
    why = f"its samples are decoded by {type(codec).__name__}"
    if isinstance(codec, TableCodec):
        smooth = [isinstance(c, Number) and c.decimals is None and not c.knots for c in codec.columns]
        if all(smooth):
            return sum(math.log(c.std) for c in codec.columns if isinstance(c, Number))
        column = codec.columns[smooth.index(False)]
        kind = "is rounded or mapped by quantiles" if isinstance(column, Number) else "is a category"
        why = f"its column {column.name!r} {kind}"
    raise ConfigError(f"nll: a density of this model's numbers says nothing of the data: {why}")


Split = Literal["held out", "train"]


class Found(NamedTuple):
    """What a measure gives, in nats (n,).

    nats: log p or a bound of it.
    spread: whether of the density of dequantised pictures.
    parts: costs that add up to -nats.
    beside: numbers in no unit.
    """

    nats: Tensor
    spread: bool = False
    parts: Mapping[str, Tensor] = MappingProxyType({})
    beside: Mapping[str, float] = MappingProxyType({})


Measure = Callable[[Tensor, Tensor | None, Callable[[int], None]], Found]
"""Of rows, their conditions, and a callback that is told how many are done."""


def _check_classic(model: Model, train: Samples, options: dict[str, Any]) -> None:
    if model.likelihood == "none":
        raise ConfigError(f"nll: {type(model).__name__} has no likelihood that can be evaluated")
    if model.levels not in (None, LEVELS) or (model.levels is not None and not train.is_image):
        raise ConfigError(
            f"nll: this {type(model).__name__} gives probabilities of {model.levels} levels, and the data has "
            f"{f'{LEVELS} levels' if train.is_image else 'none'}: choose another law of x (its field `decoder`, say)"
        )
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{name}: given, but the likelihood of {type(model).__name__} takes none; leave it out")


def nll(
    model: Denoiser | Model,
    train: Samples,
    test: Samples | None = None,
    *,
    n: int = 256,
    told: bool = False,
    probes: Hutchinson | None = None,
    draws: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    **flow: Any,
) -> NllReport:
    """Negative log-likelihood of held-out and of training rows; see the module.

    Args:
        model: a trained denoiser; or a classic model with a likelihood, which gives one row, "exact" or "bound".
        train, test: what it learned from, and what it never saw.
        n: rows of each split, 2 or more; at most all.
        told: whether the model is told a row's label or condition: then it is the conditional likelihood.
        probes: of the flow's divergence; by default it is exact up to 16 dimensions, else one Rademacher probe a row.
        draws: evaluations of the bound per row; default 256 up to 16 dimensions, else 64.
        batch_size: rows at once.
        seed: chooses rows, probes, draws and dequantisation.
        progress: called with (what, rows done, rows in all).
        flow: solver, steps, nfe and grid of `log_prob`; above 16 dimensions the default solver is Adaptive().

    Raises:
        ConfigError: data whose numbers have no density (`log_volume`), another event than the model's, or n < 2.
    """
    volume, levels = log_volume(train), LEVELS if train.is_image else None
    batch_size = count("batch_size", batch_size) or 64
    if tuple(model.shape) != train.shape:
        raise ConfigError(f"nll: the model's samples have shape {tuple(model.shape)}, the data's {train.shape}")
    splits: dict[Split, Samples] = {"train": train} if test is None else {"held out": test, "train": train}
    for split, data in splits.items():
        if min(n, len(data)) < 2:
            raise ConfigError(f"n: given {n}, and {len(data)} rows are {split}: must be at least 2")
    if isinstance(model, Model):
        _check_classic(model, train, flow | {"probes": probes, "draws": draws})
        measures, facts = _of_classic(model, levels, batch_size, seed), {"seed": seed}
    else:
        x, cond = train.take(philox.permutation(seed, len(train), len(splits))[:KNOWN])
        keys: dict[str, Any] = {"draws": draws, "batch_size": batch_size, "seed": seed}
        measures, facts = _of_denoiser(model, (x, cond if told else None), levels, probes, keys, flow)
        facts |= {"conditional": told}
    rows, done, total = [], 0, len(measures) * sum(min(n, len(data)) for data in splits.values())
    for number, (split, data) in enumerate(splits.items()):
        x, cond = data.take(philox.permutation(seed, len(data), number)[:n])
        for name, measure in measures.items():

            def more(count: int, what: str = f"{name}, {split}") -> None:
                nonlocal done
                done += count
                if progress is not None:
                    progress(what, done, total)

            more(0)
            found = measure(x, cond if told else None, more)
            if levels is None:  # the volume of decoding belongs to what is said of x itself
                cost = volume - found.nats
                parts = {key: part + volume * (key == "reconstruction") for key, part in found.parts.items()}
            else:
                cost = bits_per_dim(found.nats, train.shape, levels=levels if found.spread else None)
                parts = {key: bits_per_dim(-part, train.shape) for key, part in found.parts.items()}
            means = {key: float(part.mean()) for key, part in parts.items()}
            rows.append(_row(name, split, cost, means | dict(found.beside)))
    return NllReport(tuple(rows), "bits/dim" if levels else "nats", facts)


def _row(name: str, split: Split, cost: Tensor, parts: dict[str, float]) -> NllRow:
    value, reach = float(cost.mean()), Z * float(cost.std()) / math.sqrt(len(cost))
    if not math.isfinite(value + reach):
        raise ConfigError(f"nll: {name}, {split}: the mean over {len(cost)} rows is {value}; is the model finite?")
    return NllRow(name, split, value, value - reach, value + reach, len(cost), parts)


def _parts(bound: Bound) -> dict[str, Tensor]:
    return {name: getattr(bound, name) for name in ("prior", "diffusion", "reconstruction")}


def _of_classic(model: Model, levels: int | None, batch_size: int, seed: int) -> dict[str, Measure]:
    """What a classic model says of data."""
    device, spread = device_of(model), levels is not None and model.levels is None

    @torch.no_grad()
    def own(x: Tensor, cond: Tensor | None, more: Callable[[int], None]) -> Found:
        found = []
        x = dequantise(x, levels=LEVELS, seed=seed) if spread else x
        for rows in torch.split(torch.arange(len(x)), batch_size):
            found.append(model.log_prob(x[rows].to(device), seed=seed, indices=rows.to(device)).cpu())
            more(len(rows))
        return Found(torch.cat(found), spread)

    return {model.likelihood: own}


@torch.no_grad()
def l_simple(
    denoiser: Denoiser, x: Tensor, cond: Tensor | None = None, *, draws: int = 8, seed: int = 0, batch_size: int = 64
) -> float:
    """The mean of |eps_hat - eps|^2 / d over levels, noise and the rows of x: Ho et al.'s loss, of data.

    Args:
        denoiser: of a chain.
        x: data (B, *event). cond: conditions (B, ...).
        draws: for each row. seed: of them. batch_size: rows at once.
    """
    device, objective, total = device_of(denoiser), Denoising.ddpm(), 0.0
    for rows in torch.split(torch.arange(len(x)), batch_size):
        told = None if cond is None else cond[rows].to(device)
        for draw in range(draws):
            keys: dict[str, Any] = {"seed": seed, "step": draw, "positions": rows}
            total += float(objective.terms(denoiser, x[rows].to(device), told, **keys).error.double().sum())
    return total / (draws * len(x))


def _of_denoiser(
    denoiser: Denoiser,
    train: tuple[Tensor, Tensor | None],
    levels: int | None,
    probes: Hutchinson | None,
    keys: dict[str, Any],
    flow: dict[str, Any],
) -> tuple[dict[str, Measure], dict[str, Any]]:
    """(what a denoiser says of data, how that was found); train: some of its training rows."""
    small, seed, size = math.prod(denoiser.shape) <= SMALL, keys["seed"], keys["batch_size"]
    if not small:  # beside the noise of a probe a tolerance of 1e-4, 2e-4 bits/dim, is nothing
        probes = Hutchinson(seed=seed) if probes is None else probes
        flow["solver"] = Adaptive() if flow.get("solver") is None else flow["solver"]
    draws = keys["draws"] if keys["draws"] is not None else 256 if small else 64
    keys = keys | {"draws": draws, "levels": levels}
    facts: dict[str, Any] = {"seed": seed, "draws": draws, "probes": 0 if probes is None else probes.probes}

    def ode(x: Tensor, cond: Tensor | None, more: Callable[[int], None]) -> Found:
        spread = x if levels is None else dequantise(x, levels=levels, seed=seed)
        told: dict[str, Any] = {"cond": cond, "batch_size": size, "progress": more}
        return Found(log_prob(denoiser, spread, probes=probes, **told, **flow).value, levels is not None)

    def bound(x: Tensor, cond: Tensor | None, more: Callable[[int], None]) -> Found:
        found = elbo(denoiser, x, cond=cond, progress=more, **keys)
        return Found(found.value, parts=_parts(found))

    measures: dict[str, Measure] = {"flow": ode, "bound": bound}
    if isinstance(denoiser.process, DiscreteVP):
        learned = bool(getattr(innermost(denoiser), "learned_variance", False))
        variance: Any = "learned"
        if not learned:
            x, cond = train if small else (train[0][:FEW], None if train[1] is None else train[1][:FEW])
            variance = optimal_variance(denoiser, x, cond=cond, seed=seed, batch_size=size)
        facts["variance"] = "learned" if learned else "optimal"

        def chain(x: Tensor, cond: Tensor | None, more: Callable[[int], None]) -> Found:
            found = ddpm_bound(denoiser, x, variance=variance, cond=cond, progress=more, **keys)
            simple = l_simple(denoiser, x, cond, seed=seed, batch_size=size)
            return Found(found.value, parts=_parts(found), beside={"L_simple": simple})

        measures["ddpm"] = chain
    return measures, facts
