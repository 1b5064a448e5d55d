"""A report: every metric of a set of samples, how certain it is, and what real data get in the samples' place.

Four clouds of n points each play the parts: the samples, a reference A of training rows, other training rows B, and
held-out rows H. A metric's value compares the samples with A; its floors compare B with A and H with A. A metric over
n points is not 0 (or 1) for equal laws: the floors are what it is then, with the same n and the same reference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import torch
from PIL import Image
from rich.table import Table
from torch import Tensor, nn

from .. import noise as philox
from ..data import Codec, Samples
from ..errors import ConfigError, MissingExtraError, closest
from .classifier import agrees
from .features import Features, identity
from .frechet import frechet_distance
from .intervals import half_sample_interval
from .kernels import energy_distance, gaussian_kernel, median_bandwidth, mmd2, polynomial_kernel
from .neighbours import Memorisation, copied_share, memorisation, nearness, support
from .pairs import cloud
from .sheets import sheet
from .transport import sinkhorn_divergence, sliced_w2, wasserstein

__all__ = ["LEAST", "METRICS", "Report", "Row", "check_possible", "evaluate", "over_features", "select"]

LEAST = 24  # rows below which a half-sample has too few neighbours
Measure = Callable[[Tensor, Tensor], Sequence[float]]
Better = Literal["low", "high", "half", "one"]


@dataclass(frozen=True)
class _Group:
    """Metrics computed together over features: their names, which way is better, the most rows, and how."""

    names: tuple[str, ...]
    better: Better
    most: int
    make: Callable[[Tensor, int], Measure]


def _gaussian_mmd(reference: Tensor, seed: int) -> Measure:
    # The bandwidths come from the reference alone, so that value, floors and half-samples share one kernel.
    h = median_bandwidth(reference)
    kernel = gaussian_kernel(h / 2, h, 2 * h)
    return lambda x, y: [float(mmd2(x, y, kernel))]


def _sinkhorn(reference: Tensor, seed: int) -> Measure:
    epsilon = 0.1 * median_bandwidth(reference) ** 2
    return lambda x, y: [float(sinkhorn_divergence(x, y, epsilon=epsilon))]


def _support(x: Tensor, y: Tensor) -> Sequence[float]:
    return list(asdict(support(x, y)).values())


_SHARES = ("precision", "recall", "density", "coverage")
_GROUPS = (
    _Group(("w2",), "low", 2000, lambda reference, seed: lambda x, y: [float(wasserstein(x, y))]),
    _Group(("sliced",), "low", 10**6, lambda reference, seed: lambda x, y: [float(sliced_w2(x, y, seed=seed))]),
    _Group(("sinkhorn",), "low", 300, _sinkhorn),
    _Group(("energy",), "low", 5000, lambda reference, seed: lambda x, y: [float(energy_distance(x, y))]),
    _Group(("mmd",), "low", 5000, _gaussian_mmd),
    _Group(("frechet",), "low", 10**6, lambda reference, seed: lambda x, y: [float(frechet_distance(x, y))]),
    _Group(("kid",), "low", 5000, lambda reference, seed: lambda x, y: [float(mmd2(x, y, polynomial_kernel()))]),
    _Group(_SHARES, "high", 5000, lambda reference, seed: _support),
)
_COPIES, _COPIES_MOST, _AGREEMENT = ("copied", "nearness"), 5000, "agreement"
METRICS = (*(name for group in _GROUPS for name in group.names), *_COPIES, _AGREEMENT)
_BETTER: dict[str, Better] = {"density": "one", "copied": "low", "nearness": "half"}  # where a group does not say it
_WORDS = {"low": "low", "high": "high", "half": "at 1/2", "one": "at 1"}
_FOR_IMAGES = ("frechet", "kid", *_SHARES, *_COPIES, _AGREEMENT)
_FOR_VECTORS = ("w2", "sliced", "energy", "mmd", *_SHARES, *_COPIES)


@dataclass(frozen=True)
class Row:
    """One metric.

    Args:
        name: the metric, with its features in brackets.
        value: of the samples against training rows.
        low, high: the interval of the value; see `half_sample_interval`.
        floor_train: the same of other training rows in the samples' place; of agreement, rows that the classifier has
            itself learned from.
        floor_held_out: the same of held-out rows; None if there are too few.
        n, n_held_out: rows of each cloud behind value and floor_train, and behind floor_held_out.
        better: "low", "high", "half" (right at 1/2) or "one" (right at 1).
    """

    name: str
    value: float
    low: float
    high: float
    floor_train: float
    floor_held_out: float | None
    n: int
    n_held_out: int
    better: Better


@dataclass(frozen=True, eq=False)
class Report:
    """What `evaluate` found.

    Args:
        rows: one for each metric.
        facts: what it was computed from: numbers of rows, seed, level, half-samples, features.
        samples, real: some of both, for the picture.
        nearest: the samples most like copies, with the nearest training and held-out rows (3, K, *event), or None.
        codec: decodes them for the picture, or None.
    """

    rows: tuple[Row, ...]
    facts: dict[str, Any]
    samples: Tensor
    real: Tensor
    nearest: Tensor | None = field(default=None)
    codec: Codec | None = None

    def __getitem__(self, name: str) -> Row:
        """The row of a name, such as "w2[identity]". Raises ConfigError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"this report has no row {name!r}: {closest(name, [row.name for row in self.rows])}")

    def to_json(self, **more: Any) -> str:
        """The report as JSON; `more` joins its facts."""
        whole = {"format": "fokker-evaluation-1"} | more | self.facts | {"metrics": [asdict(row) for row in self.rows]}
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text, headings first; n is that of the value and, after a stroke, of the held-out floor."""
        heading = ("metric", f"samples ({100 * self.facts['level']:g} %)", "train", "held out", "n", "better")
        lines: list[tuple[str, ...]] = [heading]
        for row in self.rows:
            held = "-" if row.floor_held_out is None else f"{row.floor_held_out:.3g}"
            n = str(row.n) if row.n == row.n_held_out else f"{row.n}/{row.n_held_out}"
            value = f"{row.value:.3g} ± {(row.high - row.low) / 2:.2g}"
            lines.append((row.name, value, f"{row.floor_train:.3g}", held, n, _WORDS[row.better]))
        return lines

    def table(self) -> Table:
        """The table for a terminal."""
        return as_table(self.cells())

    def markdown(self) -> str:
        """The table in Markdown."""
        return as_markdown(self.cells())

    def picture(self) -> Image.Image:
        """Samples beside data, the samples most like copies, and every value beside its floors; see `sheet`."""
        return sheet(self)


def as_table(cells: Sequence[tuple[str, ...]]) -> Table:
    """Lines of text, headings first, for a terminal."""
    heading, *lines = cells
    table = Table(box=None, padding=(0, 1, 0, 0))
    for i, name in enumerate(heading):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0)
    for line in lines:
        table.add_row(*(cell.replace("[", r"\[") for cell in line))
    return table


def as_markdown(cells: Sequence[tuple[str, ...]]) -> str:
    """Lines of text, headings first, in Markdown."""
    heading, *lines = cells
    rule = ("---", *("---:" for _ in heading[1:]))
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, rule, *lines))


@dataclass(frozen=True, eq=False)
class _Parts:
    """The four clouds, as numbers, and their labels."""

    x: Tensor
    a: Tensor
    b: Tensor
    held: Tensor
    labels: tuple[Tensor | None, Tensor | None, Tensor | None]  # of x, b and held


def evaluate(
    samples: Tensor,
    train: Samples,
    test: Samples | None = None,
    *,
    labels: Tensor | None = None,
    features: Sequence[Features] | None = None,
    metrics: Sequence[str] | None = None,
    classifier: nn.Module | None = None,
    halves: int = 30,
    level: float = 0.95,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Measure samples against data: a row for each metric, with its interval and its floors.

    n is the number of samples, at most half of the training rows (two clouds of n are taken from them). Metrics that
    cost n^2 or n^3 use fewer rows: 2000 for w2, 300 for sinkhorn, 5000 for those of pairs and neighbours. kid is the
    unbiased estimate over all pairs, the mean of all subsets; sinkhorn's epsilon is a tenth of the squared median
    distance between reference rows.

    Args:
        samples: (N, *event), as `train.take` gives data.
        train, test: what the model learned from, and what it never saw.
        labels: the class asked of each sample (N,); with `classifier`, gives the row "agreement[classifier]".
        features: what the samples are compared over; default their own numbers ("identity", for images "pixels").
        metrics: some of `METRICS`. Default for images: frechet, kid, precision, recall, density, coverage, copied,
            nearness, agreement; for anything else w2, sliced, energy, mmd in place of the first two. copied and
            nearness (`memorisation`) compare the samples' own numbers, and need 24 held-out rows.
        classifier: from images to logits, trained on real ones.
        halves, level: of `half_sample_interval`.
        seed: chooses rows, directions and half-samples.
        progress: called with (what, done, total) before each step.

    Raises:
        ConfigError: events differ, too few rows, samples that are not finite, or an unknown metric.
        MissingExtraError: sinkhorn without POT.
    """
    names = select(metrics, train)
    own = "pixels" if train.is_image else "identity"
    features = [] if not over_features(names) else [identity(own)] if features is None else features
    parts = _parts(samples, train, test, labels, seed)
    groups = [(over, group) for over in features for group in _GROUPS if set(group.names) & set(names)]
    wants_copies = bool(set(_COPIES) & set(names)) and len(parts.held) >= LEAST
    wants_classes = _AGREEMENT in names and classifier is not None and parts.labels[0] is not None
    check_possible(metrics, held_out=len(parts.held), classes=classifier is not None and parts.labels[0] is not None)
    total = len(groups) + len(features) + wants_copies + wants_classes
    done = 0

    def say(what: str) -> None:
        nonlocal done
        if progress is not None:
            progress(what, done, total)
        done += 1

    rows: list[Row] = []
    keys = {"halves": halves, "level": level, "seed": seed}
    for over in features:
        say(f"features {over.name}")
        vectors = [over(part) if len(part) else part.flatten(1) for part in (parts.x, parts.a, parts.b, parts.held)]
        for _, group in (pair for pair in groups if pair[0] is over):
            say(f"{', '.join(group.names)} over {over.name}")
            rows += _measured(group, over.name, vectors, keys)
    found = None
    if wants_copies:
        say("copies of training rows")
        found, more = _copies(parts, train, own, keys)
        rows += more
    if wants_classes:
        say("agreement of classes")
        assert classifier is not None
        rows += _classes(parts, classifier, keys)
    if progress is not None:
        progress("done", total, total)
    facts: dict[str, Any] = {"n": len(parts.x), "train": len(train), "held_out": 0 if test is None else len(test)}
    facts |= {"event": list(train.shape), "features": [over.name for over in features], **keys}
    kept = tuple(row for row in rows if row.name.partition("[")[0] in names)
    return Report(kept, facts, parts.x[:2000], parts.a[:2000], _nearest(parts, train, found), train.codec)


def select(metrics: Sequence[str] | None, train: Samples) -> tuple[str, ...]:
    """The metrics that are asked for, by default those for this kind of data. Raises what `evaluate` does for them."""
    if metrics is None:
        return _FOR_IMAGES if train.is_image else _FOR_VECTORS
    for name in metrics:
        if name not in METRICS:
            hint = "an FID is 'frechet' over Inception-v3; " if name.lower() == "fid" else ""
            raise ConfigError(f"metrics: given {name!r}: {hint}{closest(name, METRICS)}")
    if "sinkhorn" in metrics and find_spec("ot") is None:
        raise MissingExtraError("POT", "ot")
    return tuple(metrics)


def over_features(metrics: Sequence[str]) -> bool:
    """Whether any of these metrics is computed over features."""
    return any(set(group.names) & set(metrics) for group in _GROUPS)


def check_possible(metrics: Sequence[str] | None, *, held_out: int, classes: bool) -> None:
    """Refuse metrics that are asked for by name and cannot be computed.

    Args:
        metrics: as in `evaluate`.
        held_out: how many held-out rows there are.
        classes: whether there are a classifier and the labels asked of the samples.

    Raises:
        ConfigError: agreement without classes, or copied or nearness with too few held-out rows.
    """
    needs = {_AGREEMENT: (classes, "a classifier and the labels asked for")}
    needs |= dict.fromkeys(_COPIES, (held_out >= LEAST, f"{LEAST} held-out rows or more"))
    for name in metrics or ():
        possible, what = needs.get(name, (True, ""))
        if not possible:
            raise ConfigError(f"metrics: given {name!r}, which needs {what}")


def _parts(x: Tensor, train: Samples, test: Samples | None, labels: Tensor | None, seed: int) -> _Parts:
    if tuple(x.shape[1:]) != train.shape or (test is not None and test.shape != train.shape):
        given = f"{tuple(x.shape[1:])}, {train.shape}" + ("" if test is None else f" and {test.shape}")
        raise ConfigError(f"evaluate: samples, train and test have events {given}, must be equal")
    n = min(len(x), len(train) // 2)
    if n < LEAST:
        raise ConfigError(
            f"evaluate: given {len(x)} samples and {len(train)} training rows, must be at least {LEAST} and {2 * LEAST}"
        )
    if labels is not None and labels.shape != (len(x),):
        raise ConfigError(f"evaluate: given labels of shape {tuple(labels.shape)}, must be ({len(x)},)")
    cloud(x, "samples")
    x = x.detach().float().cpu()
    order, rows = philox.permutation(seed, len(x), 2)[:n], philox.permutation(seed, len(train))
    a, _ = train.take(rows[:n])
    b, _ = train.take(rows[n : 2 * n])
    held = x[:0]
    told = [None if labels is None else labels.cpu()[order], None, None]
    told[1] = None if train.labels is None else train.labels[rows[n : 2 * n]]
    if test is not None and len(test) >= LEAST:
        rows = philox.permutation(seed, len(test), 1)[:n]
        held, _ = test.take(rows)
        told[2] = None if test.labels is None else test.labels[rows]
    return _Parts(x[order], a, b, held, (told[0], told[1], told[2]))


def _measured(group: _Group, over: str, vectors: Sequence[Tensor], keys: dict[str, Any]) -> list[Row]:
    x, a, b = (part[: group.most].double() for part in vectors[:3])
    held = vectors[3][: group.most].double()
    measure = group.make(a, keys["seed"])
    values, train = measure(x, a), measure(b, a)
    floors = measure(held, a[: len(held)]) if len(held) else [None] * len(values)
    spans = half_sample_interval(lambda i, j: measure(x[i], a[j]), (len(x), len(a)), values, **keys)
    return [
        Row(f"{name}[{over}]", value, low, high, other, floor, len(x), len(held), _BETTER.get(name, group.better))
        for name, value, (low, high), other, floor in zip(group.names, values, spans, train, floors, strict=True)
    ]


def _copy_numbers(ratio: Tensor, held_out_ratio: Tensor) -> tuple[float, float]:
    return copied_share(ratio, held_out_ratio), nearness(ratio, held_out_ratio)


def _copies(parts: _Parts, train: Samples, own: str, keys: dict[str, Any]) -> tuple[Memorisation, list[Row]]:
    x, held = parts.x[:_COPIES_MOST], parts.held[:_COPIES_MOST]
    found = memorisation(x, train, held)
    other = memorisation(parts.b[:_COPIES_MOST], parts.a, held)
    half = len(held) // 2
    real = memorisation(held[:half], train, held[half:])
    ratios = (found.ratio, found.held_out_ratio)
    values = _copy_numbers(*ratios)
    spans = half_sample_interval(
        lambda i, j: _copy_numbers(ratios[0][i], ratios[1][j]), [len(part) for part in ratios], values, **keys
    )
    floors = zip(values, spans, (other.copied, other.nearness), (real.copied, real.nearness), strict=True)
    return found, [
        Row(f"{name}[{own}]", value, low, high, floor, held_floor, len(x), half, _BETTER[name])
        for name, (value, (low, high), floor, held_floor) in zip(_COPIES, floors, strict=True)
    ]


def _classes(parts: _Parts, classifier: nn.Module, keys: dict[str, Any]) -> list[Row]:
    shares: list[Tensor | None] = [
        None if labels is None or not len(x) else agrees(classifier, x, labels).double()
        for x, labels in zip((parts.x, parts.b, parts.held), parts.labels, strict=True)
    ]
    ours, train, held = shares
    if ours is None or train is None:
        return []
    value = float(ours.mean())
    ((low, high),) = half_sample_interval(lambda i: [float(ours[i].mean())], [len(ours)], [value], **keys)
    floor = None if held is None else float(held.mean())
    counts = (len(ours), 0 if held is None else len(held))
    return [Row(f"{_AGREEMENT}[classifier]", value, low, high, float(train.mean()), floor, *counts, "high")]


def _nearest(parts: _Parts, train: Samples, found: Memorisation | None, count: int = 10) -> Tensor | None:
    if found is None:
        return None
    first = found.ratio.argsort(stable=True)[:count]
    return torch.stack([parts.x[first], train.take(found.train[first])[0], parts.held[found.held_out[first]]])
