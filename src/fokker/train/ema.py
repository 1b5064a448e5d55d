r"""Averages of the weights along training, several at once, and averages made afterwards from stored ones.

With theta_k the weights after k = 1, 2, ... steps, every average is shadow <- shadow + rate (theta_k - shadow).
`Power`'s rate, 1 - (1 - 1/k)^(g + 1), makes the shadow after s steps exactly

    (1)  int_0^s p_{s,g}(x) theta_ceil(x) dx,   p_{s,g}(x) = (g + 1) x^g / s^(g + 1),    (EDM2, Eqs. 1 and 2)

whose relative width, the profile's standard deviation over s, is (EDM2, Alg. 2)

    (2)  (g + 1)^(1/2) (g + 2)^(-1) (g + 3)^(-1/2).

Any average of such form is nearly a sum of stored ones: the sum whose profile is nearest in L2, from the products

    (3)  int p_{s,g} p_{t,h} dx = (g + 1) (h + 1) / (g + h + 1) min(s, t)^(g + h + 1) / (s^(g + 1) t^(h + 1)).

Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), Sec. 3.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError, FileError
from ..files import read_tensors, write_tensors

__all__ = [
    "Averages",
    "Constant",
    "Power",
    "Reconstruction",
    "Snapshot",
    "fit_error",
    "gamma_of",
    "read_snapshots",
    "reconstruct",
    "solve",
    "write_snapshot",
]

FORMAT = "fokker-snapshot-1"
POWER = "train.ema={kind: power, widths: [0.05, 0.1]}"  # what one writes to have snapshots
WIDEST = 0.28  # (2) is 12^(-1/2) = 0.2887 at g = 0, a plain mean


@component
class Constant:
    """One average of rate 1 - d, d = min(decay, (1 + step) / (10 + step)); the ramp lets the first steps be forgotten.

    Args:
        decay: d in the long run.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999

    @property
    def names(self) -> tuple[str, ...]:
        """What each average is called."""
        return (f"{self.decay:g}",)

    def rates(self, step: int) -> tuple[float, ...]:
        """The rate of each average after 0-based step `step`."""
        return (1.0 - min(self.decay, (1.0 + step) / (10.0 + step)),)


@component
class Power:
    """Averages over power functions of the step, one for each width (EDM2): no choice of a decay before training.

    Args:
        widths: relative widths sigma_rel, each in (0, 0.28]; EDM2 keeps 0.05 and 0.10.
    """

    widths: Annotated[tuple[Annotated[float, Field(gt=0, le=WIDEST)], ...], Field(min_length=1)] = (0.05, 0.10)

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.widths):
            raise ConfigError(f"Power.widths: given {self.widths}, must differ in the third decimal")

    @property
    def names(self) -> tuple[str, ...]:
        """What each average is called."""
        return tuple(f"{width:.3f}" for width in self.widths)

    def rates(self, step: int) -> tuple[float, ...]:
        """The rate of each average after 0-based step `step`: 1 after the first."""
        return tuple(1.0 - (step / (step + 1.0)) ** (gamma_of(width) + 1.0) for width in self.widths)


@lru_cache(maxsize=256)
def gamma_of(width: float) -> float:
    """The exponent g of relative width `width` in (0, 0.28]: the root of (2), a cubic in g (EDM2, Alg. 2)."""
    if not 0.0 < width <= WIDEST:
        raise ConfigError(f"width: given {width:g}, must lie in (0, {WIDEST:g}]")
    t = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())


class Averages:
    """The averages of some tensors, each a shadow of every tensor in float32, or in its own dtype if that is wider.

    The tensors are kept by reference and read at every update: an optimiser that works in place is followed. Of a
    DTensor (FSDP2) this process's own shard is averaged. Shadows start as copies of the tensors.

    Args:
        named: the live tensors (parameters), by name; floating.
        ema: how they are averaged.
    """

    def __init__(self, named: Mapping[str, Tensor], ema: Constant | Power) -> None:
        self.ema = ema
        self._live = dict(named)
        self._shadows = [
            [value.detach().to(_wide(value), copy=True) for value in self._local()] for _ in range(len(ema.names))
        ]
        # What lerp reads must have the shadow's dtype: narrower tensors are widened into these, all in one call.
        narrow = [k for k, value in enumerate(self._local()) if value.dtype != _wide(value)]
        self._narrow = {k: torch.empty_like(self._shadows[0][k]) for k in narrow}

    def _local(self) -> list[Tensor]:
        return [value.to_local() if hasattr(value, "to_local") else value for value in self._live.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the tensors as they are after 0-based step `step`; nothing waits for a device."""
        live = self._local()
        if self._narrow:
            torch._foreach_copy_(list(self._narrow.values()), [live[k] for k in self._narrow])
            live = [self._narrow.get(k, value) for k, value in enumerate(live)]
        for shadow, rate in zip(self._shadows, self.ema.rates(step), strict=True):
            if shadow:
                torch._foreach_lerp_(shadow, live, rate)

    def values(self, i: int = 0) -> dict[str, Tensor]:
        """The shadows of average number `i` of `ema.names`, by the tensors' names; not copies."""
        return dict(zip(self._live, self._shadows[i], strict=True))

    def state(self) -> dict[str, Tensor]:
        """All shadows as "{i}/{name}"; not copies."""
        return {f"{i}/{name}": value for i in range(len(self._shadows)) for name, value in self.values(i).items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave. Raises ConfigError, with nothing changed, if it is not of these averages."""
        mine = self.state()
        _same(mine, state, "the averages")
        for name, value in mine.items():
            value.copy_(state[name])


def _wide(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def _same(mine: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Raise ConfigError where names or shapes differ."""
    for name in sorted(mine.keys() ^ given.keys()):
        raise ConfigError(f"{what}: {name!r} is {'missing' if name in mine else 'not known here'}: of another model")
    for name, value in mine.items():
        if value.shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)}, here {tuple(value.shape)}"
            raise ConfigError(f"{what}: {name!r} has shape {shapes}: of another model")


class Snapshot(NamedTuple):
    """A stored file of power averages: after how many steps, and of which widths."""

    path: Path
    step: int
    widths: tuple[float, ...]


def write_snapshot(folder: Path, step: int, averages: Averages, tensors: Mapping[str, Tensor] | None = None) -> Path:
    """Store power averages as `folder`/snapshots/{step:08d}.safetensors, whole or not at all, and return the path.

    Args:
        folder: the run's.
        step: how many steps the averages have taken in (the last `update`'s plus 1).
        averages: of `Power`.
        tensors: `averages.state()` with shards put together, if `averages` holds shards.

    Raises:
        ConfigError: the averages are not of power functions.
        FileError: the file cannot be written.
    """
    if not isinstance(averages.ema, Power):
        raise ConfigError(f"train.snapshot_every: snapshots need {POWER}, given {averages.ema}")
    path = folder / "snapshots" / f"{step:08d}.safetensors"
    metadata = {"format": FORMAT, "step": str(step), "widths": json.dumps(averages.ema.widths)}
    write_tensors(path, averages.state() if tensors is None else tensors, metadata)
    return path


def read_snapshots(folder: Path) -> list[Snapshot]:
    """The snapshots of a run's folder by step; every one is read and checked, a damaged one is warned of and left out.

    Raises:
        FileError: the folder does not exist, or has no snapshots, or no good ones.
    """
    if not folder.is_dir():
        raise FileError(f"{folder}: no such run folder")
    files = sorted((folder / "snapshots").glob("*.safetensors"))
    if not files:
        raise FileError(f"{folder}: no snapshots; train with '{POWER}' and train.snapshot_every=N to have them")
    found = []
    for path in files:
        try:
            metadata = read_tensors(path, FORMAT)[1]
            found.append(Snapshot(path, int(metadata["step"]), tuple(map(float, json.loads(metadata["widths"])))))
        except FileError as error:
            warnings.warn(f"{error}; it is left out", stacklevel=2)
        except (KeyError, ValueError, TypeError):
            warnings.warn(f"{path}: its step or widths cannot be read; it is left out", stacklevel=2)
    if not found:
        raise FileError(f"{folder}: all {len(files)} snapshots are damaged")
    return sorted(found, key=lambda snapshot: snapshot.step)


Profile = tuple[float, float]


def _product(first: Profile, second: Profile) -> float:
    """(3) of two (step, width) pairs."""
    (s, g), (t, h) = sorted(((first[0], gamma_of(first[1])), (second[0], gamma_of(second[1]))))
    return float((g + 1.0) * (h + 1.0) / (g + h + 1.0) * (s / t) ** h / t)


def _products(first: Sequence[Profile], second: Sequence[Profile]) -> Tensor:
    # One number at a time: the target's products must have the very bits of an equal snapshot's.
    return torch.tensor([[_product(p, q) for q in second] for p in first], dtype=torch.float64)


def solve(snapshots: Sequence[Profile], target_width: float, target_step: float) -> Tensor:
    """Coefficients of the averages (step, width) whose sum's profile is nearest to the target's in L2, of sum 1.

    EDM2's Alg. 3, but for the sum: its networks do not feel the size of their weights, others do, and with few
    snapshots the free sum is off by percents.

    Args:
        snapshots: (steps taken, relative width) of every stored average; doubles are allowed.
        target_width, target_step: the average that is wanted.

    Returns:
        (len(snapshots),) in float64; exactly one-hot if the target is one of them.
    """
    gram = _products(snapshots, snapshots)
    wanted = _products(snapshots, [(target_step, target_width)])[:, 0]
    norm = gram.diagonal().sqrt()
    j = int((wanted / norm).argmax())
    # From the nearest snapshot on, along the differences from it: 0 where it is the target itself.
    between = (gram - gram[j]) - (gram[:, j] - gram[j, j])[:, None]
    missing = (wanted - gram[:, j]) - (wanted[j] - gram[j, j])
    scaled = between / norm / norm[:, None]
    along: Tensor = torch.linalg.lstsq(scaled, (missing / norm)[:, None], rcond=1e-13, driver="gelsd").solution[:, 0]
    along /= norm
    along[j] = 1.0 - (along.sum() - along[j])
    return along


def fit_error(snapshots: Sequence[Profile], coefficients: Tensor, target_width: float, target_step: float) -> float:
    """|sum of profiles - target's| / |target's| in L2."""
    target = [(target_step, target_width)]
    own = _products(target, target)[0, 0]
    cross = coefficients @ _products(snapshots, target)[:, 0]
    square = own - 2.0 * cross + coefficients @ _products(snapshots, snapshots) @ coefficients
    return float((square / own).clamp(min=0.0).sqrt())


class Reconstruction(NamedTuple):
    """An average made afterwards: its tensors by name, its step, and the relative L2 error of its profile."""

    values: dict[str, Tensor]
    step: int
    error: float


def reconstruct(snapshots: Sequence[Snapshot], width: float, step: int | None = None) -> Reconstruction:
    """The power average of any width at any step, from stored ones.

    Args:
        snapshots: of `read_snapshots`.
        width: relative, in (0, 0.28].
        step: how many steps it ends after, from 1 to the last snapshot's; by default the last snapshot's.

    Raises:
        ConfigError: width or step is out of range.
        FileError: a snapshot is damaged, or of another model than the first.
    """
    last = max(snapshot.step for snapshot in snapshots)
    step = last if step is None else step
    if not 1 <= step <= last:
        raise ConfigError(f"step: given {step}, must be from 1 to {last}, the last snapshot's")
    profiles = [(float(s.step), known) for s in snapshots for known in s.widths]
    coefficients = solve(profiles, width, step)
    left = iter(coefficients.tolist())
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for snapshot in snapshots:
        stored = read_tensors(snapshot.path, FORMAT)[0]
        for i in range(len(snapshot.widths)):
            values = {name.partition("/")[2]: value for name, value in stored.items() if name.startswith(f"{i}/")}
            dtypes = dtypes or {name: value.dtype for name, value in values.items()}
            sums = sums or {name: torch.zeros_like(value, dtype=torch.float64) for name, value in values.items()}
            try:
                _same(sums, values, str(snapshot.path))
            except ConfigError as error:
                raise FileError(str(error)) from None
            coefficient = next(left)
            for name, total in sums.items():
                total.add_(values[name].double(), alpha=coefficient)
    values = {name: total.to(dtypes[name]) for name, total in sums.items()}
    return Reconstruction(values, step, fit_error(profiles, coefficients, width, step))
