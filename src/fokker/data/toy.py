"""Toy laws in the plane, each with mean 0 and E|x|^2 = 2 exactly, so that the average variance per axis is 1.

A law is drawn in its natural units, y; what comes out is x = (y - centre) / scale with both known in closed form.
`noise` is the standard deviation, in the natural units, of Gaussian noise added to both coordinates of y.
"""

from __future__ import annotations

import hashlib
from math import pi, sqrt
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from ..component import component
from .samples import Data, Samples, check_split

__all__ = ["Checkerboard", "EightGaussians", "Moons", "Pinwheel", "Spirals", "SwissRoll", "Toy"]

Count = Annotated[int, Field(ge=1)]
Noise = Annotated[float, Field(ge=0)]


def _uniform(n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _normal(n: int, generator: Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _choice(n: int, k: int, generator: Generator) -> Tensor:
    return torch.randint(k, (n,), generator=generator)


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


@component
class Toy(Data):
    """Base of the toy laws.

    Args:
        n: size of the training split, >= 1; the test split has n // 5 (at least 1).
        seed: of the splits; their randomness is independent.
    """

    n: Count = 20000
    seed: int = 0
    centre: ClassVar[tuple[float, float]] = (0.0, 0.0)
    classes: ClassVar[tuple[str, ...]] = ()

    @property
    def scale(self) -> float:
        """sqrt(E|y - centre|^2 / 2)."""
        raise NotImplementedError

    def raw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """n draws of y, (n, 2) float64, and their labels."""
        raise NotImplementedError

    def labelled(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
        """n draws (n, 2) float32 and their labels (n,) or None; independent of the splits and of other seeds."""
        return self._draw(n, f"sample/{seed}")

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n draws (n, 2) float32, the points of `labelled`."""
        return self.labelled(n, seed)[0]

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """`n` points for training or n // 5 for testing."""
        check_split(split)
        x, labels = self._draw(self.n if split == "train" else max(1, self.n // 5), split)
        return Samples(x, labels, self.classes)

    def _draw(self, n: int, stream: str) -> tuple[Tensor, Tensor | None]:
        digest = hashlib.sha256(f"{self.seed}/{stream}".encode()).digest()
        y, labels = self.raw(n, Generator().manual_seed(int.from_bytes(digest[:7], "big")))
        return ((y - torch.tensor(self.centre, dtype=torch.float64)) / self.scale).float(), labels


@component
class Moons(Toy):
    """Two half circles: (cos a, sin a) and (1 - cos a, 1/2 - sin a), a uniform in [0, pi]; the label is the moon.

    Centre (1/2, 1/4); variances of y: 3/4 + noise^2 and 9/16 - 1/pi + noise^2.
    """

    noise: Noise = 0.05
    centre = (0.5, 0.25)
    classes = ("upper", "lower")

    @property
    def scale(self) -> float:
        """sqrt((21/16 - 1/pi) / 2 + noise^2)."""
        return sqrt((21 / 16 - 1 / pi) / 2 + self.noise**2)

    def raw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws of y and which moon."""
        labels = _choice(n, 2, generator)
        upper = _polar(torch.ones(n, dtype=torch.float64), pi * _uniform(n, generator))
        lower = torch.tensor([1.0, 0.5], dtype=torch.float64) - upper
        return torch.where(labels[:, None] == 0, upper, lower) + self.noise * _normal(n, generator), labels


@component
class Checkerboard(Toy):
    """Uniform on the 8 squares [i, i+1) x [j, j+1), i and j in -2..1, with i + j even; no labels.

    Mean 0; variances of y 4/3, covariance 1/4. Rounding to float32 may put a point on a square's edge.
    """

    @property
    def scale(self) -> float:
        """sqrt(4/3)."""
        return sqrt(4 / 3)

    def raw(self, n: int, generator: Generator) -> tuple[Tensor, None]:
        """Draws of y."""
        i, half = _choice(n, 4, generator), _choice(n, 2, generator)
        corner = torch.stack([i, 2 * half + i % 2], dim=1) - 2
        return corner + torch.stack([_uniform(n, generator), _uniform(n, generator)], dim=1), None


@component
class EightGaussians(Toy):
    """Equal mixture of N(c_k, noise^2 I) with c_k = (cos(k pi/4), sin(k pi/4)), k = 0..7; the label is k.

    Mean 0; variances of y 1/2 + noise^2, uncorrelated.
    """

    noise: Noise = 0.1
    classes = tuple(str(k) for k in range(8))

    @property
    def scale(self) -> float:
        """sqrt(1/2 + noise^2)."""
        return sqrt(0.5 + self.noise**2)

    def raw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws of y and which mode."""
        labels = _choice(n, 8, generator)
        y = _polar(torch.ones(n, dtype=torch.float64), labels.double() * (pi / 4))
        return y + self.noise * _normal(n, generator), labels


@component
class SwissRoll(Toy):
    """The roll's cross-section a (cos a, sin a), a uniform in [3 pi/2, 9 pi/2]; no labels.

    Centre (2, 2/(3 pi)); E|y|^2 = 39 pi^2/4 + 2 noise^2.
    """

    noise: Noise = 0.3
    centre = (2.0, 2 / (3 * pi))

    @property
    def scale(self) -> float:
        """sqrt((39 pi^2/4 - 4 - 4/(9 pi^2)) / 2 + noise^2)."""
        return sqrt((9.75 * pi**2 - 4 - 4 / (9 * pi**2)) / 2 + self.noise**2)

    def raw(self, n: int, generator: Generator) -> tuple[Tensor, None]:
        """Draws of y."""
        a = 1.5 * pi * (1 + 2 * _uniform(n, generator))
        return _polar(a, a) + self.noise * _normal(n, generator), None


@component
class Spirals(Toy):
    """Two arms +-a (cos a, sin a), a = 3 pi sqrt(u), u uniform in [0, 1]; the label is the arm.

    Mean 0; E|y|^2 = 9 pi^2/2 + 2 noise^2.
    """

    noise: Noise = 0.3
    classes = ("plus", "minus")

    @property
    def scale(self) -> float:
        """sqrt(9 pi^2/4 + noise^2)."""
        return sqrt(2.25 * pi**2 + self.noise**2)

    def raw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws of y and which arm."""
        labels = _choice(n, 2, generator)
        a = 3 * pi * _uniform(n, generator).sqrt()
        return _polar(a, a) * (1 - 2 * labels)[:, None] + self.noise * _normal(n, generator), labels


@component
class Pinwheel(Toy):
    """Five blades: (r, s) with r ~ N(1, 0.3^2), s ~ N(0, noise^2), turned by 2 pi k/5 + e^r/4; the label is k.

    Mean 0 and uncorrelated by symmetry; variances of y (1.09 + noise^2) / 2. `noise` is a blade's thickness.
    """

    noise: Noise = 0.1
    classes = tuple(str(k) for k in range(5))

    @property
    def scale(self) -> float:
        """sqrt((1.09 + noise^2) / 2)."""
        return sqrt((1.09 + self.noise**2) / 2)

    def raw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws of y and which blade."""
        labels, z = _choice(n, 5, generator), _normal(n, generator)
        r, s = 1 + 0.3 * z[:, 0], self.noise * z[:, 1]
        angle = 2 * pi / 5 * labels + 0.25 * r.exp()
        return _polar(r, angle) + _polar(s, angle + pi / 2), labels
