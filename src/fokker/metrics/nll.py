"""Negative log-likelihood of data under a model: bits per dimension of pictures, nats of everything else.

    flow     of the probability-flow ODE's density; pictures are dequantised, and then it is never too low on average
    bound    of the reverse SDE's, by the variational bound: never too low; of pictures the probability of their bytes
    ddpm     of the ancestral chain's, by the bound in discrete time, where the model's process is a chain: with the
             network's variances, or the best for training rows

Each is a mean over rows with its 95 % interval, mean +- 1.96 sd / sqrt(n), in which is the noise of probes, draws and
dequantisation as well: they are fresh for every row. A row of the data's own numbers is x decoded; its density is that
of x less the log-volume of decoding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table
from torch import Tensor

from .. import noise as philox
from ..calculus import Hutchinson
from ..data import Codec, Samples, SignalCodec
from ..data.columns import Number, TableCodec
from ..denoiser import innermost
from ..errors import ConfigError
from ..likelihood import bits_per_dim, ddpm_bound, dequantise, elbo, log_prob, optimal_variance
from ..prediction import Denoiser
from ..process import DiscreteVP
from ..solvers import Adaptive
from .report import as_markdown, as_table

__all__ = ["NllReport", "NllRow", "log_volume", "nll"]

LEVELS = 256
Z = 1.96
SMALL = 16  # dimensions up to which the divergence is exact by default, and everything finer


@dataclass(frozen=True)
class NllRow:
    """One negative log-likelihood, low is good.

    Args:
        name: "flow", "bound" or "ddpm".
        split: "held out" or "train": where a model has learned rows by heart the two differ.
        value: the mean over rows.
        low, high: its 95 % interval.
        n: rows.
    """

    name: Literal["flow", "bound", "ddpm"]
    split: Literal["held out", "train"]
    value: float
    low: float
    high: float
    n: int


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


def nll(
    denoiser: Denoiser,
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
        denoiser: a trained one.
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
    volume = log_volume(train)
    if tuple(denoiser.shape) != train.shape:
        raise ConfigError(f"nll: the model's samples have shape {tuple(denoiser.shape)}, the data's {train.shape}")
    d = math.prod(train.shape)
    small = d <= SMALL
    draws = draws if draws is not None else 256 if small else 64
    if not small:  # beside the noise of a probe a tolerance of 1e-4, 2e-4 bits/dim, is nothing
        probes = Hutchinson(seed=seed) if probes is None else probes
        flow["solver"] = Adaptive() if flow.get("solver") is None else flow["solver"]
    splits: list[tuple[Literal["held out", "train"], Samples]] = [("train", train)]
    if test is not None:
        splits.insert(0, ("held out", test))
    chain = isinstance(denoiser.process, DiscreteVP)
    total, done = (2 + chain) * sum(min(n, len(data)) for _, data in splits), 0
    levels = LEVELS if train.is_image else None
    rows: list[NllRow] = []
    for split, data in splits:
        if min(n, len(data)) < 2:
            raise ConfigError(f"n: given {n}, and {len(data)} rows are {split}: must be at least 2")

    def add(name: Literal["flow", "bound", "ddpm"], split: Literal["held out", "train"], cost: Tensor) -> None:
        value, reach = float(cost.mean()), Z * float(cost.std()) / math.sqrt(len(cost))
        if not math.isfinite(value + reach):
            raise ConfigError(f"nll: {name}, {split}: the mean over {len(cost)} rows is {value}; is the model finite?")
        rows.append(NllRow(name, split, value, value - reach, value + reach, len(cost)))

    def says(what: str) -> Callable[[int], None]:
        def more(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(what, done, total)

        more(0)
        return more

    if chain:
        variance: Any = "learned"
        if not getattr(innermost(denoiser), "learned_variance", False):
            x, cond = train.take(philox.permutation(seed, len(train), len(splits))[: 256 if small else 32])
            variance = optimal_variance(denoiser, x, cond=cond if told else None, seed=seed, batch_size=batch_size)
    for number, (split, data) in enumerate(splits):
        x, cond = data.take(philox.permutation(seed, len(data), number)[:n])
        keys: dict[str, Any] = {"cond": cond if told else None, "batch_size": batch_size}
        spread = x if levels is None else dequantise(x, levels=levels, seed=seed)
        density = log_prob(denoiser, spread, probes=probes, progress=says(f"flow, {split}"), **keys, **flow).value
        add("flow", split, volume - density if levels is None else bits_per_dim(density, train.shape, levels=levels))
        keys |= {"draws": draws, "levels": levels, "seed": seed}
        mass = elbo(denoiser, x, progress=says(f"bound, {split}"), **keys).value
        add("bound", split, volume - mass if levels is None else bits_per_dim(mass, train.shape))
        if chain:
            mass = ddpm_bound(denoiser, x, variance=variance, progress=says(f"ddpm, {split}"), **keys).value
            add("ddpm", split, volume - mass if levels is None else bits_per_dim(mass, train.shape))
    facts: dict[str, Any] = {
        "seed": seed,
        "draws": draws,
        "probes": 0 if probes is None else probes.probes,
        "conditional": told,
    }
    if chain:
        facts["variance"] = "learned" if variance == "learned" else "optimal"
    return NllReport(tuple(rows), "bits/dim" if levels else "nats", facts)
