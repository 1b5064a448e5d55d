"""Molecules as text of a fixed length: SMILES, one-hot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError, FileError
from .arrays import held_out
from .cells import read_cells, table_suffix
from .columns import RowCodec
from .samples import Data, Samples, check_split

__all__ = ["Molecules", "SmilesCodec"]

# An atom in brackets, a two-letter atom, a ring of two digits, a chirality of two signs, or any other character.
TOKEN = re.compile(r"\[[^\]]*\]|Br|Cl|%\d\d|@@|.")


@component
class SmilesCodec(RowCodec):
    """The text of samples (N, V, L): at every place the token of the largest number; it ends at the first padding.

    Args:
        tokens: the vocabulary, V >= 2; the first is the padding, "".
        label: name of the labels' column in an export.
    """

    tokens: Annotated[tuple[str, ...], Field(min_length=2)]
    label: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The one column, smiles."""
        return ("smiles",)

    def codes(self, texts: list[str], length: int) -> Tensor:
        """N texts -> token numbers (N, length) int64, filled up with 0. Raises ConfigError naming a misfit."""
        index = {token: i for i, token in enumerate(self.tokens)}
        codes = np.zeros((len(texts), length), dtype=np.int64)
        for row, text in enumerate(texts):
            parts = TOKEN.findall(text)
            wrong = next((part for part in parts if part not in index), None)
            if wrong is not None or len(parts) > length:
                why = f"has {len(parts)} tokens, more than {length}" if wrong is None else f"has the unknown {wrong!r}"
                raise ConfigError(f"SMILES {text!r} {why}")
            codes[row, : len(parts)] = [index[part] for part in parts]
        return torch.from_numpy(codes)

    def encode(self, values: Tensor) -> Tensor:
        """Token numbers (N, L) -> samples (N, V, L) float32, 1 at the token and -1 elsewhere."""
        count = len(self.tokens)
        if values.ndim != 2 or values.is_floating_point() or not bool(((values >= 0) & (values < count)).all()):
            given = f"{values.dtype} {tuple(values.shape)}"
            raise ConfigError(f"SmilesCodec.encode: given {given}, must be integers (N, L) in [0, {count})")
        return (torch.eye(count)[values.long()] * 2 - 1).transpose(1, 2).contiguous()

    def decode(self, x: Tensor) -> Tensor:
        """Samples (N, V, L) -> token numbers (N, L) int64."""
        if x.ndim != 3 or x.shape[1] != len(self.tokens):
            raise ConfigError(f"SmilesCodec.decode: given {tuple(x.shape)}, must be (N, {len(self.tokens)}, L)")
        return x.argmax(dim=1)

    def rows(self, x: Tensor) -> list[dict[str, object]]:
        """Samples (N, V, L) -> N rows {"smiles": text}; that a text is a molecule is for chemistry to check."""
        texts = []
        for codes in self.decode(x).tolist():
            end = codes.index(0) if 0 in codes else len(codes)
            texts.append("".join(self.tokens[code] for code in codes[:end]))
        return [{"smiles": text} for text in texts]


@component
class Molecules(Data):
    """SMILES of a file, one-hot over tokens: float32 (V, L), 1 at the token and -1 elsewhere, padded to one length.

    The vocabulary is that of the training rows; which rows are the test split is as in `Arrays`.

    Args:
        path: a .smi or .txt file, the first word of each line; or a table (see `Table`) with a column of SMILES.
        column: its name.
        length: the most tokens, L; longer molecules are left out; 0: that of the longest.
        holdout: fraction of the test split, in [0, 1).

    Raises (from load):
        FileError: the file is missing or damaged.
        ConfigError: there is no such column, the split is empty, or the test split has a token that training has not.
    """

    path: str
    column: str = "smiles"
    length: Annotated[int, Field(ge=0)] = 0
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The molecules of a split, in their order."""
        check_split(split)
        texts = self._texts()
        parts = [TOKEN.findall(text) for text in texts]
        length = self.length or max(map(len, parts))
        test = held_out(len(texts), self.holdout)
        fits = np.array([0 < len(part) <= length for part in parts])
        train, rows = np.flatnonzero(~test & fits), np.flatnonzero((test == (split == "test")) & fits)
        if not len(train) or not len(rows):
            raise ConfigError(
                f"Molecules {self.path}: none of its {len(texts)} molecules is in the {split} split with "
                f"length={self.length} and holdout={self.holdout}: change them"
            )
        codec = SmilesCodec(("", *sorted({token for row in train for token in parts[row]})))
        try:
            return Samples(codec.encode(codec.codes([texts[row] for row in rows], length)), codec=codec)
        except ConfigError as error:
            raise ConfigError(f"Molecules {self.path}: {error}: remove it or change holdout") from None

    def _texts(self) -> list[str]:
        source = f"Molecules {self.path}"
        if table_suffix(self.path):
            return [text or "" for text in read_cells(source, self.path).column(self.column, "column")]
        try:
            lines = Path(self.path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{source}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        texts = [line.split()[0] for line in lines if line.strip()]
        if not texts:
            raise FileError(f"{source}: is empty")
        return texts
