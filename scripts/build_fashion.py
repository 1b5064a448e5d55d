"""Build src/fokker/data/fashion.npz from the four IDX files of Fashion-MNIST.

    python scripts/build_fashion.py FOLDER [OUTPUT]

FOLDER holds {train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or with .gz. Their decompressed content is checked
against the hashes below. The same input gives the same bytes with one version of liblzma; the printed SHA-256 goes
into src/fokker/data/images.py.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CONTENT = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
TAKE = {"train": ("train", 1000), "test": ("t10k", 200)}
OUTPUT = Path(__file__).parents[1] / "src/fokker/data/fashion.npz"


def read(folder: Path, name: str) -> NDArray[np.uint8]:
    """The array of an IDX file of bytes; stops unless its content is the published one."""
    packed, plain = folder / f"{name}.gz", folder / name
    if not packed.exists() and not plain.exists():
        sys.exit(f"{plain}[.gz] is missing")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
    if hashlib.sha256(content).hexdigest() != CONTENT[name]:
        sys.exit(f"{name} is not the published file: its content has another SHA-256")
    ndim = content[3]  # IDX: two zeros, the type (8: bytes), the number of axes; then big-endian lengths
    shape = np.frombuffer(content, ">u4", ndim, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def main(folder: Path, output: Path) -> None:
    """Write the npz: members train (10000, 28, 28) and test (2000, 28, 28), uint8, sample i of class i mod 10."""
    with zipfile.ZipFile(output, "w") as file:
        for split, (source, count) in TAKE.items():
            images, labels = read(folder, f"{source}-images-idx3-ubyte"), read(folder, f"{source}-labels-idx1-ubyte")
            order = np.stack([np.flatnonzero(labels == label)[:count] for label in range(10)])
            # Compressed class by class (alike pictures together) it would be little smaller; interleaved, it is simple.
            member = io.BytesIO()
            np.save(member, np.ascontiguousarray(images[order.T.ravel()]), allow_pickle=False)
            info = zipfile.ZipInfo(f"{split}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            file.writestr(info, member.getvalue(), compress_type=zipfile.ZIP_LZMA)
    content = output.read_bytes()
    print(f"{output}: {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else OUTPUT)
