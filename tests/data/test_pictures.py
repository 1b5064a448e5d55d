"""Pictures of batches: where the ink lands."""

import math

import numpy as np
import pytest
import torch

from fokker.data import (
    Category,
    Number,
    SignalCodec,
    TableCodec,
    grid_image,
    pairs_image,
    picture,
    scatter_image,
    signals_image,
)


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
    for shape in ((4, 2, 4, 4), (4, 3), (4, 1), (2,), (1, 1, 1, 1, 1), (4, 1, 0), (0, 1, 4)):
        assert picture(torch.zeros(shape)) is None


def rows_of_ink(image: np.ndarray, left: int, right: int) -> list[float]:
    """The mean row of dark ink in some columns of a picture."""
    part = 255.0 - np.where(image[:, left:right] < 200, image[:, left:right], 255)
    return [float((column * np.arange(len(column))).sum() / column.sum()) for column in part.T]


def test_signals_run_left_to_right_and_up() -> None:
    ramp = torch.linspace(-2, 6, 50)[None, None]
    image = np.asarray(signals_image(ramp))
    assert image.shape == (100, 160)
    where = rows_of_ink(image, 8, 152)
    wanted = [100 * (0.95 - 0.9 * ((c + 0.5) / 160 - 0.03) / 0.94) for c in range(8, 152)]
    assert np.allclose(where, wanted, atol=1.0)
    assert np.allclose(np.asarray(signals_image(-ramp))[:, 8:152], np.flip(image, 0)[:, 8:152], atol=60)


def test_signals_share_one_scale_and_stand_row_by_row() -> None:
    x = torch.stack([torch.full((1, 20), v) for v in (0.0, 1.0, 2.0)])
    image = np.asarray(signals_image(x, columns=2))
    assert image.shape == (200, 320)
    heights = [
        rows_of_ink(image[top : top + 100, left : left + 160], 60, 61)[0] for top, left in ((0, 0), (0, 160), (100, 0))
    ]
    assert np.allclose(heights, [95, 50, 5], atol=1.0)
    assert image[110:190, 170:310].min() == 255  # nothing in the fourth tile
    assert signals_image(torch.zeros(100, 1, 4), columns=4).size == (640, 1600)  # 64 at most


def test_signals_with_gaps_and_channels() -> None:
    x = torch.stack([torch.zeros(21), torch.ones(21)])[None]
    image = np.asarray(signals_image(x))
    assert image[95, 80] < image[5, 80] < 200  # the second channel is paler
    x[0, 0, 8:13] = float("nan")
    cut = np.asarray(signals_image(x))
    assert cut[90:98, 75:85].min() == 255 and np.array_equal(cut[:, :50], image[:, :50])
    assert np.asarray(signals_image(torch.full((1, 1, 5), float("inf")))).min() == 220  # the frame alone


def test_the_codec_comes_first() -> None:
    x = torch.randn(3, 2, 30)
    codec = SignalCodec((1.0, -1.0), (2.0, 0.1))
    given, expected = picture(x, 2, codec), signals_image(codec.decode(x), 2)
    assert given is not None and given.tobytes() == expected.tobytes()


def test_pairs_of_columns() -> None:
    columns = (Number("a", 0.0, 1.0, -2.0, 2.0), Category("b", ("x", "y")), Number("c", 0.0, 1.0, 0.0, 4.0))
    x = torch.tensor([[1.0, -1.0, 1.0]]).repeat(3, 1)
    image = picture(x, codec=TableCodec(columns))
    assert image is not None and image.size == (3 * 158, 3 * 158)
    assert image.tobytes() == pairs_image(x, TableCodec(columns)).tobytes()
    sheet = np.asarray(image)

    def cell(row: int, column: int) -> tuple[float, float]:
        """(right, up) of the ink in a cell, in [0, 1]."""
        part = sheet[row * 158 + 8 : row * 158 + 150, column * 158 + 8 : column * 158 + 150].astype(float)
        dark = np.where(part < 190, 255 - part, 0)
        down, right = np.mgrid[:142, :142] + 4.5
        return float((dark * right).sum() / dark.sum() / 150), 1 - float((dark * down).sum() / dark.sum() / 150)

    a, c = 0.03 + 0.94 * 0.75, 0.03 + 0.94 * 0.25
    right, up = cell(2, 0)  # a to the right, c up
    assert abs(right - a) < 0.01 and abs(up - c) < 0.01
    right, up = cell(0, 2)
    assert abs(right - c) < 0.01 and abs(up - a) < 0.01
    right, up = cell(0, 1)  # x is the left half
    assert abs(right - 0.265) < 0.06 and abs(up - a) < 0.01
    assert abs(cell(1, 1)[0] - 0.25) < 0.03  # the histograms: one full bar each, 0.8 high
    assert abs(cell(2, 2)[0] - 5.5 / 20) < 0.08 and abs(cell(2, 2)[1] - 0.4) < 0.12
