"""Reports: what is compared with what, the floors, and the verdict on samples that are known."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fokker import noise
from fokker.data import Category, Number, Samples, SignalCodec, TableCodec, picture
from fokker.errors import ConfigError, FileError
from fokker.files import read_tensors, write_tensors
from fokker.metrics import (
    METRICS,
    Features,
    class_agreement,
    classifier,
    energy_distance,
    evaluate,
    frechet_distance,
    gaussian_kernel,
    kid,
    median_bandwidth,
    mmd2,
    report,
    sinkhorn_divergence,
    sliced_w2,
    support,
    train_classifier,
    wasserstein,
)
from fokker.metrics.classifier import kept_classifier
from fokker.metrics.report import Report


def points(n: int, seed: int) -> Tensor:
    return noise.normal(seed, torch.arange(n), (2,))


TRAIN, TEST = Samples(points(400, 1)), Samples(points(120, 2))


@pytest.fixture(scope="module")
def fresh() -> Report:
    return evaluate(points(150, 3), TRAIN, TEST, halves=6, seed=4)


def clouds(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four clouds, drawn as `evaluate` says: samples, reference, other training rows, held-out rows."""
    rows = noise.permutation(seed, 400)
    held = TEST.values[noise.permutation(seed, 120, 1)[:n]]
    x = points(150, 3)[noise.permutation(seed, 150, 2)[:n]]
    return x, TRAIN.values[rows[:n]], TRAIN.values[rows[n : 2 * n]], held


def test_each_number_is_its_metric_of_the_right_clouds(fresh: Report) -> None:
    x, a, b, held = clouds(150, 4)
    assert not set(map(tuple, a.tolist())) & set(map(tuple, b.tolist()))
    h = median_bandwidth(a)
    kernel = gaussian_kernel(h / 2, h, 2 * h)
    measures = {
        "w2": wasserstein,
        "sliced": lambda p, q: sliced_w2(p.double(), q.double(), seed=4),
        "energy": energy_distance,
        "mmd": lambda p, q: mmd2(p, q, kernel),
        "precision": lambda p, q: support(p, q).precision,
        "density": lambda p, q: support(p, q).density,
        "recall": lambda p, q: support(p, q).recall,
        "coverage": lambda p, q: support(p, q).coverage,
    }
    for name, measure in measures.items():
        row = fresh[f"{name}[identity]"]
        got = (row.value, row.floor_train, row.floor_held_out)
        expected = (float(measure(x, a)), float(measure(b, a)), float(measure(held, a[: len(held)])))
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-12), name
        assert row.low <= row.value <= row.high and (row.n, row.n_held_out) == (150, 120)
        better = {"density": "one"} | dict.fromkeys(("precision", "recall", "coverage"), "high")
        assert row.better == better.get(name, "low")
    assert fresh["copied[identity]"].better == "low" and fresh["nearness[identity]"].better == "half"
    names = [row.name.partition("[")[0] for row in fresh.rows]
    assert names == [
        "w2",
        "sliced",
        "energy",
        "mmd",
        "precision",
        "recall",
        "density",
        "coverage",
        "copied",
        "nearness",
    ]


def test_the_same_law_is_at_its_floors_and_a_shift_is_not(fresh: Report) -> None:
    for name in ("w2", "sliced", "energy", "mmd"):
        row = fresh[f"{name}[identity]"]
        assert row.low < row.floor_train < row.high
        wrong = evaluate(points(150, 3) + 0.8, TRAIN, TEST, metrics=[name], halves=6, seed=4)[row.name]
        assert wrong.low > max(wrong.floor_train, wrong.floor_held_out or 0.0)
        assert (wrong.floor_train, wrong.floor_held_out) == (row.floor_train, row.floor_held_out)


def test_copies_raise_the_alarm_and_fresh_samples_do_not(fresh: Report) -> None:
    assert fresh["copied[identity]"].low < 0 < fresh["copied[identity]"].high
    x = points(150, 3)
    x[:60] = TRAIN.values[100:160]
    caught = evaluate(x, TRAIN, TEST, metrics=["copied", "nearness"], halves=20)
    row = caught["copied[identity]"]
    assert row.low > 0.2 and row.value == pytest.approx(0.4, abs=0.12)
    assert abs(row.floor_train) < 0.15 and abs(row.floor_held_out or 0.0) < 0.2
    assert caught["nearness[identity]"].low > 0.55
    assert caught.nearest is not None and caught.nearest.shape == (3, 10, 2)
    assert torch.equal(caught.nearest[0], caught.nearest[1]) and not torch.equal(caught.nearest[0], caught.nearest[2])
    assert len(caught.rows) == 2


def bars(n: int, seed: int) -> Samples:
    """8 x 8 pictures with a bright bar: lying (0) or standing (1)."""
    labels = torch.arange(n) % 2
    values = (noise.uniform(seed, torch.arange(n), (1, 8, 8)) * 60).to(torch.uint8)
    place = (noise.uniform(seed + 1, torch.arange(n), ()) * 8).long()
    rows = torch.arange(n)
    lying, standing = rows[labels == 0], rows[labels == 1]
    values[lying, 0, place[lying]] = 255
    values[standing, 0, :, place[standing]] = 255
    return Samples(values, labels, ("lying", "standing"))


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(2), x.mean(3)], 2)[:, 0]


def test_images_are_compared_over_named_features() -> None:
    train, test, given = bars(200, 1), bars(80, 5), bars(90, 9)
    x, labels = given.take(torch.arange(90))
    classifier = train_classifier(train, epochs=4, batch=10)
    assert labels is not None
    asked = torch.where(torch.arange(90) < 30, 1 - labels, labels)
    over = [Features("bars/means", Means()), Features("inception-v3", Means())]
    keys = {"features": over, "classifier": classifier, "halves": 4}
    judged = evaluate(x, train, test, labels=asked, **keys)
    names = [row.name for row in judged.rows]
    assert names[:3] == ["frechet[bars/means]", "kid[bars/means]", "precision[bars/means]"]
    assert "frechet[inception-v3]" in names and names[-3:] == [
        "copied[pixels]",
        "nearness[pixels]",
        "agreement[classifier]",
    ]
    assert "fid" not in judged.to_json().lower()
    a, _ = train.take(noise.permutation(0, 200)[:90])
    row = judged["frechet[bars/means]"]
    order = noise.permutation(0, 90, 2)
    assert row.value == pytest.approx(float(frechet_distance(Means()(x[order]), Means()(a))), rel=1e-6)
    assert judged["kid[bars/means]"].value == pytest.approx(float(kid(Means()(x), Means()(a), subsets=1)), rel=1e-5)
    agreement = judged["agreement[classifier]"]
    assert agreement.value == pytest.approx(class_agreement(classifier, x, asked))
    assert agreement.value < 0.7 < 0.9 < min(agreement.floor_train, agreement.floor_held_out or 0.0)
    assert (agreement.n, agreement.n_held_out) == (90, 80)
    unasked = evaluate(x, train, test, classifier=classifier, halves=4)
    names = [row.name for row in unasked.rows]
    assert "agreement[classifier]" not in names and names[0] == "frechet[pixels]"
    picture = judged.picture()
    assert picture.size[1] > len(names) * 36 and len(picture.getcolors(1 << 20)) > 20


def test_the_classifier_is_kept_for_its_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, said = bars(60, 1), list[str]()
    first = kept_classifier(data, tmp_path, said.append)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    assert re.fullmatch(r"classifier-[0-9a-f]{8}\.safetensors", file.name) and len(said) == 1
    again = kept_classifier(data, tmp_path, said.append)
    assert file.read_bytes() == content and not again.training and len(said) == 1
    x, _ = data.take(torch.arange(60))
    assert torch.equal(first(x), again(x))
    other = kept_classifier(bars(60, 2), tmp_path)
    assert file.read_bytes() == content and not torch.equal(other(x), first(x)) and len(list(tmp_path.iterdir())) == 2
    monkeypatch.setitem(classifier.SETTINGS, "epochs", 1)  # another training is another classifier
    shorter = kept_classifier(data, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 and not torch.equal(shorter(x), first(x))
    assert torch.equal(shorter(x), train_classifier(data, epochs=1)(x))


@pytest.mark.parametrize("data", ["", "own"])
def test_a_file_in_a_classifiers_place_is_refused(tmp_path: Path, data: str) -> None:
    kept_classifier(bars(60, 1), tmp_path)
    (file,) = tmp_path.iterdir()
    _, texts = read_tensors(file, classifier.FORMAT)
    write_tensors(file, {"0.weight": torch.zeros(3)}, texts if data else texts | {"data": "another"})
    content = file.read_bytes()
    with pytest.raises(FileError, match=rf"{file.name}: is not the classifier of these images; move it away"):
        kept_classifier(bars(60, 1), tmp_path)
    assert file.read_bytes() == content


def test_without_held_out_rows(fresh: Report) -> None:
    for test in (None, Samples(points(20, 2))):
        found = evaluate(points(150, 3), TRAIN, test, halves=6, seed=4)
        assert [row.name for row in found.rows] == [row.name for row in fresh.rows[:8]]
        assert all(row.floor_held_out is None and row.n_held_out == 0 for row in found.rows)
        assert found["w2[identity]"].value == fresh["w2[identity]"].value
        assert "| - | 150/0 |" in found.markdown() and found.nearest is None
        with pytest.raises(ConfigError, match="'copied', which needs 24 held-out rows"):
            evaluate(points(150, 3), TRAIN, test, metrics=["copied"])


def test_n_is_at_most_half_of_the_training_rows() -> None:
    told: list[tuple[str, int, int]] = []
    found = evaluate(points(900, 3), TRAIN, TEST, metrics=["energy"], halves=2, progress=lambda *a: told.append(a))
    assert found["energy[identity]"].n == 200 and found.facts["n"] == 200
    assert [a[1:] for a in told] == [(0, 2), (1, 2), (2, 2)] and told[-1][0] == "done"


def test_costly_metrics_use_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    energy = next(group for group in report._GROUPS if group.names == ("energy",))
    monkeypatch.setattr(report, "_GROUPS", (replace(energy, most=50),))
    found = evaluate(points(150, 3), TRAIN, TEST, metrics=["energy"], halves=2, seed=4)
    x, a, _, held = clouds(150, 4)
    row = found.rows[0]
    assert (row.n, row.n_held_out, found.facts["n"]) == (50, 50, 150)
    assert row.value == pytest.approx(float(energy_distance(x[:50], a[:50])), rel=1e-9)
    assert row.floor_held_out == pytest.approx(float(energy_distance(held[:50], a[:50])), rel=1e-9)


def test_sinkhorn_is_in_units_of_the_data() -> None:
    pytest.importorskip("ot")
    found = evaluate(points(150, 3), TRAIN, None, metrics=["sinkhorn"], halves=2, seed=4)
    x, a, _, _ = clouds(150, 4)
    expected = sinkhorn_divergence(x, a, epsilon=0.1 * median_bandwidth(a) ** 2)
    assert found["sinkhorn[identity]"].value == pytest.approx(float(expected), rel=1e-6)


def test_json_table_and_markdown_say_the_same(fresh: Report) -> None:
    whole = json.loads(fresh.to_json(run="r"))
    assert whole["format"] == "fokker-evaluation-1" and whole["run"] == "r" and whole["seed"] == 4
    assert whole["metrics"] == [asdict(row) for row in fresh.rows]
    assert (whole["n"], whole["train"], whole["held_out"], whole["features"]) == (150, 400, 120, ["identity"])
    lines = fresh.markdown().splitlines()
    row = fresh["w2[identity]"]
    expected = f"| w2[identity] | {row.value:.3g} ± {(row.high - row.value):.2g} | {row.floor_train:.3g} |"
    assert lines[2].startswith(expected) and lines[2].endswith("| 150/120 | low |") and len(lines) == 12
    assert fresh.table().row_count == 10
    ways = {line.split("[")[0][2:]: line.rsplit("|", 2)[1].strip() for line in lines[2:]}
    assert ways == dict.fromkeys(("w2", "sliced", "energy", "mmd", "copied"), "low") | {
        "precision": "high",
        "recall": "high",
        "density": "at 1",
        "coverage": "high",
        "nearness": "at 1/2",
    }
    with pytest.raises(ConfigError, match=r"no row 'w2'.*w2\[identity\]"):
        fresh["w2"]
    assert fresh.picture().size[0] > 900  # two scatter plots beside one another


def test_only_what_is_asked_for_is_computed() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("no metric over features was asked for")

    found = evaluate(points(150, 3), TRAIN, TEST, features=[Features("never", Never())], metrics=["copied"], halves=2)
    assert [row.name for row in found.rows] == ["copied[identity]"] and found.facts["features"] == []


def test_the_picture_shows_what_the_codec_decodes() -> None:
    t = torch.arange(150)
    waves = (noise.normal(1, t, (2, 16)), SignalCodec((5.0, 0.0), (1.0, 5.0)))
    table = (noise.normal(1, t, (2,)), TableCodec((Number("a", 0.0, 1.0, -3.0, 3.0), Category("b", ("x", "y")))))
    for (x, codec), tall in ((waves, True), (table, False)):
        data = Samples(x, codec=codec)
        found = evaluate(x, data, data, metrics=["copied"], halves=2)
        sheet, bare = found.picture(), replace(found, codec=None).picture()
        top = picture(found.samples, 8, codec)
        assert top is not None and found.codec == codec
        box = (12, 12 + 18, 12 + top.width, 12 + 18 + top.height)  # below the margin and the title
        assert sheet.crop(box).tobytes() == top.convert("RGB").tobytes() and sheet.tobytes() != bare.tobytes()
        nearest = picture(found.nearest.flatten(0, 1), 10, codec) if tall and found.nearest is not None else None
        assert (
            sheet.height == 12 + (18 + top.height + 12) + (0 if nearest is None else 18 + nearest.height + 12) + 56 + 12
        )


def test_the_same_seed_gives_the_same_report(fresh: Report) -> None:
    again = evaluate(points(150, 3), TRAIN, TEST, halves=6, seed=4, metrics=["energy", "precision"])
    assert again.rows == tuple(row for row in fresh.rows if row.name.startswith(("energy", "precision")))
    other = evaluate(points(150, 3), TRAIN, TEST, halves=6, seed=5, metrics=["energy"])
    assert other.rows[0].value != again.rows[0].value


def test_mistakes_are_named() -> None:
    x = points(100, 3)
    broken = x.clone()
    broken[7, 0] = torch.nan
    for given, train, keys, says in (
        (x[:20], TRAIN, {}, "given 20 samples and 400 training rows, must be at least 24 and 48"),
        (x, Samples(points(40, 1)), {}, "given 100 samples and 40 training rows"),
        (x[:, :1], TRAIN, {}, r"events \(1,\), \(2,\) and \(2,\)"),
        (broken, TRAIN, {}, "samples: 1 of 100 points are not finite"),
        (x, TRAIN, {"metrics": ["mmd2"]}, "given 'mmd2': did you mean 'mmd'"),
        (x, TRAIN, {"metrics": ["FID"]}, "an FID is 'frechet' over Inception-v3"),
        (x, TRAIN, {"metrics": ["agreement"]}, "'agreement', which needs a classifier and the labels"),
        (x, TRAIN, {"labels": torch.zeros(3)}, r"labels of shape \(3,\), must be \(100,\)"),
    ):
        with pytest.raises(ConfigError, match=says):
            evaluate(given, train, TEST, **keys)
    assert len(set(METRICS)) == len(METRICS) == 14
