"""Tables: what is read, what a codec brings back, and what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from fokker.data import Category, Diabetes, Number, Table, TableCodec
from fokker.errors import ConfigError, FileError, MissingExtraError
from fokker.registry import build, spec

HEADER = "age,height,city,smoker,kids,wage"
CITIES = ("Bern", "Rom", "Oslo", "Köln, Süd")
RNG = np.random.default_rng(0)
ROWS = [
    (18 + i * 7 % 50, f"{1.5 + i % 41 / 100:.2f}", CITIES[i * 3 % 7 % 4], ("yes", "no")[i % 3 % 2], i % 2, w)
    for i, w in enumerate(np.exp(3 * RNG.normal(size=60)).tolist())
]


def text(rows: Any = ROWS, header: str = HEADER, by: str = ",") -> str:
    lines = [header.replace(",", by), *(by.join(f'"{c}"' if "," in str(c) else str(c) for c in row) for row in rows)]
    return "\n".join(lines) + "\n"


def table(tmp_path: Path, content: str | None = None, name: str = "t.csv", **fields: Any) -> Table:
    (tmp_path / name).write_text(text() if content is None else content, encoding="utf-8")
    return Table(str(tmp_path / name), **fields)


def kinds(codec: Any) -> list[Any]:
    return [
        getattr(c, "levels", None) or (c.decimals, round(c.mean, 6), round(c.std, 6), c.low, c.high)
        for c in codec.columns
    ]


def test_columns_are_recognised_and_standardised(tmp_path: Path) -> None:
    source = table(tmp_path, holdout=0)
    samples = source.load()
    assert isinstance(samples.codec, TableCodec) and samples.codec.names == tuple(HEADER.split(","))
    ages, wages = np.array([row[0] for row in ROWS]), np.array([row[5] for row in ROWS])
    heights = np.array([float(row[1]) for row in ROWS])
    expected = [
        (0, round(ages.mean(), 6), round(ages.std(), 6), ages.min(), ages.max()),
        (2, round(heights.mean(), 6), round(heights.std(), 6), 1.5, 1.9),
        tuple(sorted(CITIES)),
        ("no", "yes"),
        ("0", "1"),
        (None, round(wages.mean(), 6), round(wages.std(), 6), wages.min(), wages.max()),
    ]
    assert kinds(samples.codec) == expected
    first = [(ages[1] - ages.mean()) / ages.std(), (heights[1] - heights.mean()) / heights.std()]
    city = [1.0 if name == ROWS[1][2] else -1.0 for name in sorted(CITIES)]
    first += [*city, 1.0 if ROWS[1][3] == "yes" else -1.0, 1.0, (wages[1] - wages.mean()) / wages.std()]
    assert np.allclose(samples.values[1], first, atol=1e-6) and samples.values.shape == (60, 9)


@pytest.mark.parametrize("quantile", ["none", "heavy", "all"])
def test_what_was_encoded_comes_back(tmp_path: Path, quantile: str) -> None:
    source = table(tmp_path, quantile=quantile, clip=False, holdout=0.3)
    seen = []
    for split in ("train", "test"):
        samples = source.load(split)  # type: ignore[arg-type]
        assert isinstance(samples.codec, TableCodec)
        seen += samples.codec.rows(samples.values)
    expected = {(row[0], row[5]): row for row in ROWS}
    assert len(seen) == 60
    spread = max(row[5] for row in ROWS)
    for row in seen:
        nearest = min(expected, key=lambda key: abs(key[0] - row["age"]) * spread + abs(key[1] - row["wage"]))
        age, height, city, smoker, kids, wage = expected.pop(nearest)
        assert row == row | {"age": age, "height": float(height), "city": city, "smoker": smoker, "kids": kids}
        assert type(row["age"]) is int and type(row["kids"]) is int and type(row["height"]) is float
        assert abs(row["wage"] - wage) <= 1e-6 * max(wage, np.std([r[5] for r in ROWS]))  # type: ignore[operator]


def test_rows_keep_their_order_and_the_split_is_that_of_arrays(tmp_path: Path) -> None:
    source = table(tmp_path, holdout=0.25)
    where = np.arange(1, 61) * 0.6180339887498949 % 1 < 0.25
    for split, chosen in (("train", ~where), ("test", where)):
        samples = source.load(split)  # type: ignore[arg-type]
        ages = [row["age"] for row in samples.codec.rows(samples.values)]  # type: ignore[union-attr]
        low, high = samples.codec.columns[0].low, samples.codec.columns[0].high  # type: ignore[union-attr]
        assert ages == [min(max(row[0], low), high) for row, take in zip(ROWS, chosen, strict=True) if take]
    train = [row[0] for row, test in zip(ROWS, where, strict=True) if not test]  # statistics are the training rows'
    assert kinds(samples.codec)[0] == (0, round(np.mean(train), 6), round(np.std(train), 6), min(train), max(train))


def test_quantiles_are_midranks_of_the_normal_law(tmp_path: Path) -> None:
    heavy = table(tmp_path, quantile="heavy", holdout=0).load()
    alls = table(tmp_path, quantile="all", holdout=0).load()
    ranks = np.argsort(np.argsort([row[5] for row in ROWS]))
    assert np.allclose(heavy.values[:, 8], ndtri((ranks + 0.5) / 60), atol=1e-6)
    assert heavy.codec.columns[0].knots == () and len(heavy.codec.columns[5].knots) == 60  # type: ignore[union-attr]
    ages = np.array([row[0] for row in ROWS])
    below, equal = (ages < ages[7]).sum(), (ages == ages[7]).sum()
    assert equal > 1 and np.isclose(alls.values[7, 0], ndtri((below + equal / 2) / 60), atol=1e-6)


def test_beyond_the_knots_the_map_goes_on() -> None:
    column = Number("x", 0.0, 2.0, 0.0, 1.0, knots=((0.0, -1.0), (1.0, 3.0)))
    assert np.allclose(column.encode(["0.5", "-1", "5"])[:, 0], [1.0, -1.5, 5.0])
    assert np.allclose(column.decode(np.array([[1.0], [-1.5], [5.0]])), [0.5, -1.0, 5.0])
    assert np.allclose(column.decode(np.array([[1.0], [-1.5], [5.0]]), clip=True), [0.5, 0.0, 1.0])


def test_samples_are_rounded_clipped_and_argmaxed() -> None:
    columns = (
        Number("n", 10.0, 2.0, 5.0, 15.0, decimals=0),
        Number("f", 1.0, 0.5, 0.0, 2.0, decimals=1),
        Category("c", ("a", "b", "d")),
        Category("s", ("False", "True"), boolean=True),
    )
    x = torch.tensor([[0.3, 0.1, -0.2, 0.9, 0.8, -0.1], [9.0, -9.0, 3.0, 0.0, -1.0, 0.2]])
    assert TableCodec(columns).rows(x) == [
        {"n": 11, "f": 1.1, "c": "b", "s": False},  # 10.6, 1.05
        {"n": 15, "f": 0.0, "c": "a", "s": True},
    ]
    assert TableCodec(columns, clip=False).decode(x)[1].tolist() == [28.0, -3.5, 0.0, 1.0]
    assert TableCodec(columns).decode(x).dtype == torch.float64
    x[0], x[1, 3] = float("nan"), float("inf")
    assert TableCodec(columns).rows(x)[0] == dict.fromkeys("nfcs") and TableCodec(columns).rows(x)[1]["c"] is None
    with pytest.raises(ConfigError, match=r"given samples \(2, 5\), must be \(N, 6\)"):
        TableCodec(columns).decode(x[:, :5])


def test_a_codec_is_its_own_json(tmp_path: Path) -> None:
    for quantile in ("none", "all"):
        codec = table(tmp_path, quantile=quantile, label="city").load().codec
        again = build("codec", json.loads(json.dumps(spec(codec))))
        assert again == codec and again.label == "city" and again.rows(torch.ones(1, 5)) == codec.rows(torch.ones(1, 5))  # type: ignore[union-attr]


def test_labels(tmp_path: Path) -> None:
    samples = table(tmp_path, label="city", holdout=0).load()
    assert samples.classes == tuple(sorted(CITIES)) and samples.labels is not None and samples.cond is None
    assert [samples.classes[i] for i in samples.labels] == [row[2] for row in ROWS]
    assert "city" not in samples.codec.names and samples.codec.label == "city"  # type: ignore[union-attr]
    numbers = table(tmp_path, label="age", holdout=0).load()
    assert numbers.classes == tuple(map(str, sorted({row[0] for row in ROWS})))


def test_conditions(tmp_path: Path) -> None:
    samples = table(tmp_path, condition=("wage", "city"), holdout=0).load()
    wages = np.array([row[5] for row in ROWS])
    assert samples.cond is not None and samples.cond.shape == (60, 5) and samples.cond.dtype == torch.float32
    assert np.allclose(samples.cond[:, 0], (wages - wages.mean()) / wages.std(), atol=1e-6)
    codec = samples.codec
    assert isinstance(codec, TableCodec) and codec.names == ("age", "height", "smoker", "kids")
    assert torch.equal(codec.condition({"city": ["Rom"], "wage": [ROWS[2][5]]})[0, 1:], torch.tensor([-1.0, -1, -1, 1]))
    x, told = samples.take(torch.tensor([5, 0]))
    assert told is not None and torch.equal(told, samples.cond[[5, 0]]) and torch.equal(x, samples.values[[5, 0]])
    with pytest.raises(ConfigError, match="without condition columns"):
        table(tmp_path).load().codec.condition({})  # type: ignore[union-attr]


def test_columns_can_be_chosen_and_read_as_told(tmp_path: Path) -> None:
    codec = table(tmp_path, columns=("wage", "age", "kids"), numbers=("kids",), categories=("age",)).load().codec
    assert codec.names == ("wage", "age", "kids")  # type: ignore[union-attr]
    assert [type(column) for column in codec.columns] == [Number, Category, Number]  # type: ignore[union-attr]
    assert table(tmp_path, drop=("wage", "city")).load().codec.names == ("age", "height", "smoker", "kids")  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.csv.gz"])
def test_delimiters_and_packing(tmp_path: Path, name: str) -> None:
    plain = table(tmp_path).load()
    content = text(by="\t" if "tsv" in name else ";")
    file = tmp_path / name
    file.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else ("\ufeff" + content).encode())
    other = Table(str(file)).load()
    assert torch.equal(plain.values, other.values) and plain.codec == other.codec


GAPS = "a,b,c\n1,x,2.5\n,y,3.5\n3,x,NA\n6,,5.5\n10,x,1.5\n2,y,3\n"


def test_missing_cells(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"column 'a', line 3: a missing cell \(1 in this column\).*drop=\['a'\]"):
        table(tmp_path, GAPS, holdout=0).load()
    dropped = table(tmp_path, GAPS, holdout=0, missing="drop").load()
    expected = [(1, "x", 2.5), (10, "x", 1.5), (2, "y", 3.0)]
    assert [tuple(row.values()) for row in dropped.codec.rows(dropped.values)] == expected  # type: ignore[union-attr]
    filled = table(tmp_path, GAPS, holdout=0, missing="mean").load()
    rows = filled.codec.rows(filled.values)  # type: ignore[union-attr]
    assert [row["a"] for row in rows] == [1, 4, 3, 6, 10, 2] and "".join(row["b"] for row in rows) == "xyxxxy"
    assert [row["c"] for row in rows] == [2.5, 3.5, 3.2, 5.5, 1.5, 3.0]  # the mean is 3.2, of a 4.4
    named = table(tmp_path, GAPS.replace("NA", "-9"), holdout=0, missing="mean", na=("", "-9")).load()
    assert torch.equal(named.values, filled.values)


@pytest.mark.parametrize(
    ("content", "fields", "says"),
    [
        ("a,b\n1,2\n3\n", {}, "line 3 has 1 cells, the first line has 2"),
        ("1,2\n3,4\n", {}, "first line is all numbers"),
        ("a,a\n1,2\n", {}, "names 'a' twice"),
        ("a,\n1,2\n", {}, "no name for column 2"),
        ("a,b\n", {}, "a header but no rows"),
        ("", {}, "is empty"),
        ('a,b\n"1,2\n', {}, "cannot be read as a UTF-8 table"),
        ("a,b\n1,5\n2,5\n3,5\n", {}, r"column 'b' is constant \(5\): leave it out with drop=\['b'\]"),
        ("a,b\n1,x\n2,x\n3,x\n", {}, "column 'b' has one category, 'x'"),
        ("a,b\n1,\n2,\n3,\n", {"missing": "mean"}, "column 'b' is empty"),
        (
            "a,b\n1,x\n2,y\n3,z\n",
            {"most_levels": 2},
            "'b' has 3 different categories .line 2 holds 'x'.*most_levels is 2",
        ),
        ("a,b\n1,5\n2,oops\n3,7\n", {"numbers": ("b",)}, "column 'b', line 3: 'oops' is no number"),
        ("a,b\n1,5\n2,6\n3,7\n", {"label": "c"}, "label names 'c': allowed: a, b"),
        ("age,b\n1,5\n2,6\n3,7\n", {"drop": ("agee",)}, "drop names 'agee': did you mean 'age'"),
        ("a,b\n1,5\n2,6\n3,7\n", {"label": "a", "condition": ("b",)}, "one or the other"),
        ("a,b\n1,5\n2,6\n3,7\n", {"drop": ("a", "b")}, "no column is left"),
        ("a,b\n1,5\n100000000001,6\n3,7\n100000000003,8\n", {}, "cannot be told apart in float32"),
        ("a,b\n1,5\n2,6\n", {"missing": "error", "holdout": 0.9}, "none of its 2 rows is in the train split"),
        ("a\n1e300\n-1e300\n5\n", {}, "too wide"),
    ],
)
def test_refusals(tmp_path: Path, content: str, fields: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, FileError), match=says) as caught:
        table(tmp_path, content, **{"holdout": 0} | fields).load()
    assert "t.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_category_that_only_the_test_split_has(tmp_path: Path) -> None:
    test = int(np.flatnonzero(np.arange(1, 61) * 0.6180339887498949 % 1 < 0.2)[3])
    rows = [(*row[:2], "Paris" if i == test else row[2], *row[3:]) for i, row in enumerate(ROWS)]
    source = table(tmp_path, text(rows), holdout=0.2)
    assert "Paris" not in source.load().codec.columns[2].levels  # type: ignore[union-attr]
    says = rf"column 'city', line {test + 2}: 'Paris' is in the test split and in no training row: give rare='drop'"
    with pytest.raises(ConfigError, match=says + r" to leave such rows out \(1\)"):
        source.load("test")
    whole, dropped = table(tmp_path, holdout=0.2), table(tmp_path, text(rows), name="p.csv", holdout=0.2, rare="drop")
    held = np.flatnonzero(np.arange(1, 61) * 0.6180339887498949 % 1 < 0.2)
    assert torch.equal(dropped.load().values, whole.load().values)
    assert torch.equal(dropped.load("test").values, whole.load("test").values[torch.from_numpy(held != test)])
    told = table(tmp_path, text(rows), name="p.csv", holdout=0.2, rare="drop", label="city").load("test")
    kept = [rows[i][2] for i in held if i != test]
    assert told.labels is not None and [told.classes[i] for i in told.labels] == kept
    strange = [(*row[:2], f"x{i}" if i in held else row[2], *row[3:]) for i, row in enumerate(ROWS)]
    with pytest.raises(ConfigError, match="none of its 60 rows is in the test split with .*rare='drop'"):
        table(tmp_path, text(strange), name="q.csv", holdout=0.2, rare="drop").load("test")


def test_values_that_do_not_belong(tmp_path: Path) -> None:
    codec = table(tmp_path).load().codec
    assert isinstance(codec, TableCodec)
    row: dict[str, list[object]] = {name: [value] for name, value in zip(HEADER.split(","), ROWS[0], strict=True)}
    assert codec.rows(codec.encode(row))[0]["city"] == ROWS[0][2]
    with pytest.raises(ConfigError, match="'city': 'Ron' is no category of the training rows; did you mean 'Rom'"):
        codec.encode(row | {"city": ["Ron"]})
    with pytest.raises(ConfigError, match="'age': 'old' is no number"):
        codec.encode(row | {"age": ["old"]})
    with pytest.raises(ConfigError, match="no column 'wage'"):
        codec.encode({name: values for name, values in row.items() if name != "wage"})


def test_decoded_numbers_are_encoded_again(tmp_path: Path) -> None:
    train = table(tmp_path).load()
    assert isinstance(train.codec, TableCodec)
    assert torch.equal(train.codec.encode(train.codec.decode(train.values)), train.values)
    noisy = train.values + 0.05 * torch.randn(train.values.shape, generator=torch.Generator().manual_seed(0))
    settled = train.codec.encode(train.codec.decode(noisy))  # one-hot again, and rounded
    assert torch.allclose(train.codec.decode(settled), train.codec.decode(noisy), rtol=1e-4)
    assert settled[:, 2:6].unique().tolist() == [-1, 1] and not torch.equal(settled, noisy)
    codec = TableCodec((Number("n", 10.0, 2.0, 5.0, 15.0), Category("c", ("a", "b", "d")), Category("z", ("00", "01"))))
    assert codec.encode(torch.tensor([[12.0, 2, 1], [9.0, 0, 0]])).tolist() == [
        [1, -1, -1, 1, 1],
        [-0.5, 1, -1, -1, -1],
    ]
    for values, says in (
        ([[12.0, 3, 1]], "column 'c': given 3.0, must be a level's number, 0 to 2"),
        ([[12.0, 0.5, 1]], "column 'c': given 0.5"),
        ([[float("nan"), 0, 1]], "column 'n': 'nan' is no number"),
        ([[12.0, 0]], r"given \(1, 2\), must be \(N, 3\): n, c, z"),
    ):
        with pytest.raises(ConfigError, match=says):
            codec.encode(torch.tensor(values))


def test_codes_with_leading_zeros_are_categories(tmp_path: Path) -> None:
    codec = table(tmp_path, "zip,v\n007,1\n012,2\n099,5\n", holdout=0).load().codec
    assert codec.columns[0] == Category("zip", ("007", "012", "099"))  # type: ignore[union-attr]
    assert codec.rows(codec.encode({"zip": ["012"], "v": [2]}))[0]["zip"] == "012"  # type: ignore[union-attr]


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="gone.csv: does not exist"):
        Table(str(tmp_path / "gone.csv")).load()
    with pytest.raises(ConfigError, match="must end in one of .csv"):
        Table(str(tmp_path / "t.xls")).load()
    (tmp_path / "half.csv.gz").write_bytes(gzip.compress(text().encode())[:100])
    (tmp_path / "latin.csv").write_bytes("a,b\nKöln,1\n".encode("latin-1"))
    for name in ("half.csv.gz", "latin.csv"):
        with pytest.raises(FileError, match=f"{name}: cannot be read as a UTF-8 table"):
            Table(str(tmp_path / name)).load()


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingExtraError, match=r"fokker\[table\]"):
        Table(str(tmp_path / "t.parquet")).load()


def test_diabetes() -> None:
    train, test = Diabetes().load(), Diabetes().load("test")
    assert len(train) + len(test) == 442 and train.shape == (11,) and isinstance(train.codec, TableCodec)
    names = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6", "target")
    assert train.codec.names == names and train.codec.columns[1] == Category("sex", ("1", "2"))
    rows = [*train.codec.rows(train.values), *train.codec.rows(test.values)]
    assert rows[0] | {"s5": 4.8598} == dict(
        zip(names, [59, 2, 32.1, 101.0, 157, 93.2, 38.0, 4.0, 4.8598, 87, 151], strict=True)
    )
    # Efron et al. 2004 publish the first patient; 152 is the mean progress that scikit-learn's manual gives.
    assert round(np.mean([row["target"] for row in rows])) == 152 and sum(row["sex"] == 2 for row in rows) == 207
    assert torch.allclose(train.values[:, [0, *range(2, 11)]].mean(0), torch.zeros(10), atol=1e-6)


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    columns = dict(zip(HEADER.split(","), map(list, zip(*ROWS, strict=True)), strict=True))
    columns["height"] = [float(height) for height in columns["height"]]
    write_table(pa.table(columns | {"ok": [i % 3 == 0 for i in range(60)]}), tmp_path / "t.parquet")
    given, plain = Table(str(tmp_path / "t.parquet")).load(), table(tmp_path).load()
    assert torch.equal(given.values[:, :-1], plain.values) and given.codec.columns[:-1] == plain.codec.columns  # type: ignore[union-attr]
    row = given.codec.rows(given.values[:1])[0]  # type: ignore[union-attr]
    assert row["ok"] is True and type(row["age"]) is int
    write_table(pa.table({"a": [1, None, 3]}), tmp_path / "gap.parquet")
    with pytest.raises(ConfigError, match=r"gap\.parquet: column 'a', line 2: a missing cell"):
        Table(str(tmp_path / "gap.parquet"), holdout=0).load()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1, no more")
    with pytest.raises(FileError, match="cannot be read as parquet"):
        Table(str(tmp_path / "bad.parquet")).load()
