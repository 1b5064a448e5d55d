"""Pictures of batches: where the ink lands."""

import math

import numpy as np
import pytest
import torch

from fokker.data import grid_image, picture, scatter_image


def ink(points: list[list[float]], **options: float) -> tuple[float, float, float]:
    """(right, up, amount) of the ink's centre in a picture, in the plane's units."""
    image = np.asarray(scatter_image(torch.tensor(points), **options))  # type: ignore[arg-type]
    size, limit = options.get("size", 480), options.get("limit", 2.5)
    dark = (255.0 - image) / (255 - 40)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    total = dark.sum()

    def place(pixels: float) -> float:
        return (pixels / size - 0.5) / 0.49 * limit

    return place((dark * columns).sum() / total), -place((dark * rows).sum() / total), float(total)


@pytest.mark.parametrize("point", [(0.0, 0.0), (1.5, 0.5), (-2.0, 1.25), (0.75, -2.25)])
def test_a_point_lands_in_its_place_right_and_up(point: tuple[float, float]) -> None:
    right, up, amount = ink([list(point)])
    assert math.isclose(right, point[0], abs_tol=0.01) and math.isclose(up, point[1], abs_tol=0.01)
    assert math.isclose(amount, math.pi * 2.0**2, rel_tol=0.15)  # a disc of radius size / 240


def test_size_and_limit() -> None:
    right, up, amount = ink([[3.0, -1.0]], size=240, limit=5.0)
    assert math.isclose(right, 3.0, abs_tol=0.04) and math.isclose(up, -1.0, abs_tol=0.04)
    assert math.isclose(amount, math.pi, rel_tol=0.25)
    image = scatter_image(torch.zeros(0, 2), size=60)
    assert image.size == (60, 60) and image.mode == "L" and np.asarray(image).min() == 255
    assert np.asarray(scatter_image(torch.zeros(1, 2))).min() == 40


def test_points_outside_stand_at_the_border() -> None:
    right, up, _ = ink([[100.0, 0.0]])
    assert math.isclose(right, 2.5, abs_tol=0.02) and abs(up) < 0.01
    _, up, _ = ink([[0.0, -100.0]])
    assert math.isclose(up, -2.5, abs_tol=0.02)


def test_types_do_not_matter() -> None:
    x = torch.tensor([[0.5, 1.0], [-1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    first = np.asarray(scatter_image(x))
    assert np.array_equal(first, np.asarray(scatter_image(x.detach().float())))
    assert np.array_equal(first, np.asarray(picture(x.detach())))


def test_what_has_a_picture() -> None:
    for channels, mode in ((1, "L"), (3, "RGB")):
        x = torch.rand(5, channels, 4, 6) * 2 - 1
        for columns in (1, 2, 8):
            image, expected = picture(x, columns), grid_image(x, columns)
            assert image is not None and image.mode == mode and image.tobytes() == expected.tobytes()
    wide = picture(torch.zeros(9, 1, 4, 4))
    assert wide is not None and wide.size == (8 * 4 + 7 * 2, 2 * 4 + 2)
    for shape in ((4, 2, 4, 4), (4, 3), (4, 1), (4, 2, 2), (2,), (1, 1, 1, 1, 1)):
        assert picture(torch.zeros(shape)) is None
