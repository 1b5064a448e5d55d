"""Build src/fokker/data/diabetes.csv and heartbeats.npz.

    python scripts/build_small.py ECG

The table is scikit-learn's (`pip install scikit-learn`). ECG is the file ecg.dat of scipy: `scipy.datasets.
electrocardiogram` keeps it in its cache, and wheels of scipy before 1.12 hold it in scipy/misc. The SHA-256 that are
printed go into the tests of both.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

FOLDER = Path(__file__).parents[1] / "src/fokker/data"
HEADER = "age,sex,bmi,bp,s1,s2,s3,s4,s5,s6,target"


def table(path: Path) -> None:
    """The raw table with its target as the last column, an integer as published."""
    folder = files("sklearn") / "datasets" / "data"
    rows, targets = (
        gzip.decompress((folder / name).read_bytes()).decode().splitlines()
        for name in ("diabetes_data_raw.csv.gz", "diabetes_target.csv.gz")
    )
    lines = [",".join([*row.split(), f"{float(target):.0f}"]) for row, target in zip(rows, targets, strict=True)]
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")


def heartbeats(source: str, path: Path) -> None:
    """The recording at a third of its rate, in 1/200 mV around 0; its differences are kept, as they pack better."""
    with np.load(source, allow_pickle=False) as arrays:
        slow = resample_poly(arrays["ecg"].astype(np.float64) - 1024, 1, 3, padtype="line")
    np.savez_compressed(path, differences=np.diff(np.rint(slow), prepend=0).astype("<i2"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    table(FOLDER / "diabetes.csv")
    heartbeats(sys.argv[1], FOLDER / "heartbeats.npz")
    for name in ("diabetes.csv", "heartbeats.npz"):
        print(hashlib.sha256((FOLDER / name).read_bytes()).hexdigest(), name)
