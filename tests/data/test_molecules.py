"""Molecules: tokens, padding, the way back, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fokker.data import Molecules, SmilesCodec, picture, write_samples
from fokker.errors import ConfigError, FileError
from fokker.registry import build, spec

SMILES = ["CCO", "c1ccccc1Br", "C[C@@H](N)C(=O)O", "ClC%12CC%12", "CCCl", "N#N", "O=C=O", "CC(C)Br"] * 5


def smi(tmp_path: Path, texts: list[str], name: str = "m.smi") -> str:
    lines = [f"{text} mol{i}" for i, text in enumerate(texts)] if name.endswith("smi") else ["id,smiles"]
    lines += [] if name.endswith("smi") else [f"{i},{text}" for i, text in enumerate(texts)]
    (tmp_path / name).write_text("\n".join(lines) + "\n\n")
    return str(tmp_path / name)


@pytest.mark.parametrize("name", ["m.smi", "m.csv"])
def test_texts_come_back(tmp_path: Path, name: str) -> None:
    source = Molecules(smi(tmp_path, SMILES, name), holdout=0.2)
    held = np.arange(1, 41) * 0.6180339887498949 % 1 < 0.2
    for split, chosen in (("train", ~held), ("test", held)):
        samples = source.load(split)  # type: ignore[arg-type]
        codec = samples.codec
        assert isinstance(codec, SmilesCodec)
        assert [row["smiles"] for row in codec.rows(samples.values)] == [
            t for t, c in zip(SMILES, chosen, strict=True) if c
        ]
        assert set(samples.values.unique().tolist()) == {-1.0, 1.0} and samples.values.sum(1).unique().numel() == 1
        assert torch.equal(codec.encode(codec.decode(samples.values + 0.4)), samples.values)
        again = build("codec", json.loads(json.dumps(spec(codec))))
        assert again == codec and torch.equal(again.decode(samples.values), codec.decode(samples.values))


def test_tokens(tmp_path: Path) -> None:
    samples = Molecules(smi(tmp_path, ["C[C@@H]Cl%10Br@@", "CC"]), holdout=0).load()
    assert samples.shape == (7, 6) and samples.codec == SmilesCodec(("", "%10", "@@", "Br", "C", "Cl", "[C@@H]"))
    assert samples.codec.decode(samples.values).tolist() == [[4, 6, 5, 1, 3, 2], [4, 4, 0, 0, 0, 0]]  # type: ignore[union-attr]


def test_samples_end_at_the_first_padding(tmp_path: Path) -> None:
    codec = SmilesCodec(("", "C", "O"))
    x = torch.tensor([[[0.1, 0.9, 0.2], [0.4, 0.1, 0.3], [0.3, 0.2, 0.7]]])
    assert codec.decode(x).tolist() == [[1, 0, 2]] and codec.rows(x) == [{"smiles": "C"}]
    write_samples(tmp_path / "x.csv", x, codec=codec, cond=torch.tensor([3]))
    assert (tmp_path / "x.csv").read_text().split() == ["smiles,label", "C,3"]
    assert picture(x, codec=codec) is None and picture(x[..., :2], codec=codec) is None


def test_long_molecules_are_left_out(tmp_path: Path) -> None:
    samples = Molecules(smi(tmp_path, SMILES), length=4, holdout=0).load()
    texts = [row["smiles"] for row in samples.codec.rows(samples.values)]  # type: ignore[union-attr]
    assert texts == ["CCO", "CCCl", "N#N"] * 5 and samples.shape[1] == 4


def test_refusals(tmp_path: Path) -> None:
    path = smi(tmp_path, SMILES)
    with pytest.raises(ConfigError, match="train split with length=1"):
        Molecules(path, length=1).load()
    with pytest.raises(FileError, match=r"gone\.smi: cannot be read \(No such file"):
        Molecules(str(tmp_path / "gone.smi")).load()
    with pytest.raises(ConfigError, match="column names 'text': allowed: id, smiles"):
        Molecules(smi(tmp_path, SMILES, "m.csv"), column="text").load()
    test = int(np.flatnonzero(np.arange(1, 41) * 0.6180339887498949 % 1 < 0.1)[0])
    odd = [*SMILES[:test], "C[Xe]C", *SMILES[test + 1 :]]
    with pytest.raises(ConfigError, match=r"m\.smi: SMILES 'C\[Xe\]C' has the unknown '\[Xe\]': remove it"):
        Molecules(smi(tmp_path, odd)).load("test")
    with pytest.raises(ConfigError, match=r"must be \(N, 3, L\)"):
        SmilesCodec(("", "C", "O")).decode(torch.zeros(1, 2, 3))
    with pytest.raises(ConfigError, match="has 3 tokens, more than 2"):
        SmilesCodec(("", "C", "O")).codes(["CCO"], 2)
    for codes in (torch.tensor([[3]]), torch.tensor([[-1]]), torch.tensor([[1.0]]), torch.tensor([1])):
        with pytest.raises(ConfigError, match=r"must be integers \(N, L\) in \[0, 3\)"):
            SmilesCodec(("", "C", "O")).encode(codes)
    (tmp_path / "e.smi").write_text("\n")
    with pytest.raises(FileError, match="is empty"):
        Molecules(str(tmp_path / "e.smi")).load()
