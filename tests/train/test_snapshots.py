"""Averages made afterwards: products by quadrature, coefficients against directly computed averages, files."""

import json
import math
from pathlib import Path

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from fokker import noise
from fokker.errors import ConfigError, FileError
from fokker.files import read_tensors, write_tensors
from fokker.train import Averages, Constant, Power, read_snapshots, reconstruct, write_snapshot
from fokker.train.ema import FORMAT, _product, fit_error, gamma_of, solve

F64 = torch.float64
N = 256


def profile(step: float, width: float, x: Tensor) -> Tensor:
    g = gamma_of(width)
    return torch.where(x <= step, (g + 1) * (x / step) ** g / step, 0.0)


def weights(n: int = N) -> Tensor:
    """theta_k, k = 1..n: (n, 4): constant, linear, a decaying wave, noise about a level."""
    k = torch.arange(1, n + 1, dtype=F64)
    wave = 1 + torch.exp(-k / 60) * (k / 9).cos()
    noisy = 1 + 0.3 * noise.normal(3, torch.arange(n), (), dtype=F64)
    return torch.stack([torch.full_like(k, 5.0), k / n, wave, noisy], 1)


def direct(width: float, step: int) -> Tensor:
    mass = ((torch.arange(step + 1, dtype=F64) / step) ** (gamma_of(width) + 1)).diff()
    return (mass[:, None] * weights()[:step]).sum(0)


def run(folder: Path, every: int, widths: tuple[float, ...] = (0.05, 0.1)) -> None:
    theta = weights()
    live = {"w": torch.zeros(4, dtype=F64)}
    averages = Averages(live, Power(widths))
    for step in range(N):
        live["w"].copy_(theta[step])
        averages.update(step)
        if (step + 1) % every == 0:
            path = write_snapshot(folder, step + 1, averages)
            assert path == folder / "snapshots" / f"{step + 1:08d}.safetensors"


@pytest.mark.parametrize("pair", [((7, 0.05), (10, 0.1)), ((10, 0.1), (7, 0.05)), ((3, 0.28), (90, 0.1))], ids=str)
def test_products_are_the_integrals(pair: tuple[tuple[float, float], tuple[float, float]]) -> None:
    (s, v), (t, w) = pair
    p = lambda x, step, width: float(profile(step, width, torch.tensor(x, dtype=F64)))  # noqa: E731
    exact = quad(lambda x: p(x, s, v) * p(x, t, w), 0, min(s, t), epsabs=0, epsrel=1e-11, limit=200)[0]
    assert math.isclose(_product(*pair), exact, rel_tol=1e-9)


def test_a_snapshot_itself_is_one_hot() -> None:
    known = [(N * (k + 1) // 16, w) for k in range(16) for w in (0.05, 0.1)]
    for i in (0, 1, 13, 30, 31):
        coefficients = solve(known, known[i][1], known[i][0])
        expected = torch.zeros(32, dtype=F64)
        expected[i] = 1.0
        assert torch.allclose(coefficients, expected, rtol=0, atol=1e-10)
        assert fit_error(known, coefficients, known[i][1], known[i][0]) < 1e-7
    twice = solve([(100, 0.1), (100, 0.1), (50, 0.1)], 0.1, 100)  # doubles do not break it
    assert torch.allclose(twice[:2].sum(), torch.tensor(1.0, dtype=F64)) and abs(twice[2]) < 1e-10


def test_no_other_sum_of_the_snapshots_is_nearer() -> None:
    known = [(N * (k + 1) // 8, w) for k in range(8) for w in (0.05, 0.1)]
    x = (torch.arange(200_000, dtype=F64) + 0.5) * N / 200_000
    table, target = torch.stack([profile(s, w, x) for s, w in known]), profile(192, 0.15, x)
    found = solve(known, 0.15, 192)
    assert math.isclose(found.sum(), 1.0, rel_tol=1e-12)

    def error(c: Tensor) -> float:
        return float((c @ table - target).square().sum() / target.square().sum()) ** 0.5

    best = error(found)
    assert math.isclose(fit_error(known, found, 0.15, 192), best, rel_tol=1e-3) and best < 0.1
    directions = noise.normal(1, torch.arange(20), (16,), dtype=F64)
    for d in directions - directions.mean(1, keepdim=True):
        assert min(error(found + 0.01 * d), error(found - 0.01 * d)) > best
    # The combined profile has the width and the mean of the target's.
    p = (found @ table) * N / 200_000
    mean = float((p * x).sum())
    g = gamma_of(0.15)
    assert math.isclose(mean / 192, (g + 1) / (g + 2), rel_tol=5e-3)
    assert math.isclose(math.sqrt(float((p * x**2).sum()) - mean**2) / 192, 0.15, rel_tol=3e-2)


@pytest.mark.parametrize(("width", "step"), [(0.07, None), (0.15, None), (0.12, 192)])
def test_reconstruction_against_the_average_itself(tmp_path: Path, width: float, step: int | None) -> None:
    truth, errors, fits = direct(width, step or N), [], []
    for every in (64, 16, 4):
        folder = tmp_path / str(every)
        run(folder, every)
        made = reconstruct(read_snapshots(folder), width, step)
        assert made.step == (step or N) and set(made.values) == {"w"} and made.values["w"].dtype == F64
        assert math.isclose(made.values["w"][0], 5.0, rel_tol=1e-10)  # what never moved is kept whatever the fit
        errors.append(float((made.values["w"] - truth)[1:].abs().max()))
        fits.append(made.error)
    assert errors[0] > errors[1] > errors[2] and fits[0] > 3 * fits[1] > 9 * fits[2]
    assert errors[2] < 2e-4 and fits[2] < 6e-3


def test_between_snapshots_a_reconstruction_is_rough_and_says_so(tmp_path: Path) -> None:
    # The profile ends with a jump, and at 163 no stored one does.
    errors = []
    for every in (64, 4):
        folder = tmp_path / str(every)
        run(folder, every)
        errors.append(reconstruct(read_snapshots(folder), 0.1, 163))
    assert errors[0].error > 0.5 > errors[1].error > 0.05
    truth = direct(0.1, 163)
    assert torch.allclose(errors[1].values["w"], truth, rtol=5e-3)


def test_a_stored_average_comes_back_as_it_is(tmp_path: Path) -> None:
    run(tmp_path, 32)
    for width, step in ((0.05, 96), (0.1, 256)):
        made = reconstruct(read_snapshots(tmp_path), width, step)
        assert torch.allclose(made.values["w"], direct(width, step), rtol=1e-12) and made.error < 1e-7


def test_files_say_what_they_hold(tmp_path: Path) -> None:
    run(tmp_path, 128, widths=(0.1, 0.05))
    tensors, metadata = read_tensors(tmp_path / "snapshots" / "00000128.safetensors", "fokker-snapshot-1")
    assert metadata["step"] == "128" and json.loads(metadata["widths"]) == [0.1, 0.05]
    assert torch.allclose(tensors["0/w"], direct(0.1, 128), rtol=1e-12)
    assert torch.allclose(tensors["1/w"], direct(0.05, 128), rtol=1e-12)
    found = read_snapshots(tmp_path)
    assert [(s.step, s.widths) for s in found] == [(128, (0.1, 0.05)), (256, (0.1, 0.05))]
    whole = {"0/w": torch.ones(9), "1/w": torch.zeros(9)}  # as gathered from shards
    averages = Averages({"w": torch.zeros(3)}, Power((0.1, 0.05)))
    path = write_snapshot(tmp_path / "other", 4, averages, whole)
    assert torch.equal(read_tensors(path, FORMAT)[0]["0/w"], torch.ones(9))


def test_damaged_snapshots_are_named_and_left_out(tmp_path: Path) -> None:
    run(tmp_path, 32)
    good = reconstruct(read_snapshots(tmp_path), 0.07)
    files = sorted((tmp_path / "snapshots").iterdir())
    flipped = bytearray(files[1].read_bytes())
    flipped[-3] ^= 1
    files[1].write_bytes(flipped)
    files[3].write_bytes(files[3].read_bytes()[:-8])
    write_tensors(files[4], {"0/w": torch.zeros(1)}, {"format": FORMAT, "step": "x", "widths": "[0.1]"})
    with pytest.warns(UserWarning, match="left out") as caught:
        found = read_snapshots(tmp_path)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 3 and all(
        str(file) in text for file, text in zip((files[1], files[3], files[4]), texts, strict=True)
    )
    assert all("left out" in text for text in texts) and [s.step for s in found] == [32, 96, 192, 224, 256]
    made = reconstruct(found, 0.07)
    assert made.error > good.error and torch.allclose(made.values["w"], direct(0.07, N), rtol=2e-2)
    for file in files:
        file.write_bytes(b"no")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(FileError, match="all 8 snapshots are damaged"):
        read_snapshots(tmp_path)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such run folder"):
        read_snapshots(tmp_path / "nowhere")
    with pytest.raises(
        FileError, match=r"train\.ema=\{kind: power, widths: \[0\.05, 0\.1\]\}.*train\.snapshot_every=N"
    ):
        read_snapshots(tmp_path)
    run(tmp_path, 128)
    found = read_snapshots(tmp_path)
    for step in (0, -3, 257):
        with pytest.raises(ConfigError, match=f"step: given {step}, must be from 1 to 256"):
            reconstruct(found, 0.1, step)
    for width in (0.0, -0.1, 0.29, math.nan):
        with pytest.raises(ConfigError, match=r"width: given .*\(0, 0.28\]"):
            reconstruct(found, width)
    with pytest.raises(ConfigError, match="power"):
        write_snapshot(tmp_path, 1, Averages({"w": torch.zeros(1)}, Constant()))
    write_tensors(found[1].path, {"0/w": torch.zeros(5), "1/w": torch.zeros(5)}, read_tensors(found[1].path, FORMAT)[1])
    with pytest.raises(FileError, match=r"00000256.*shape \(5,\), here \(4,\)"):
        reconstruct(found, 0.1)
