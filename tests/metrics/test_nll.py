"""Negative log-likelihood of a data set: against the probability of its own law."""

import json
import math

import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker import noise
from fokker.calculus import Hutchinson
from fokker.data import Category, Number, Samples, SignalCodec, TableCodec, to_uint8
from fokker.errors import ConfigError
from fokker.likelihood import ddpm_bound, elbo, optimal_variance
from fokker.metrics import log_volume, nll

VAR = torch.tensor([0.3, 0.8]).double()
LAW = fk.exact.Gaussian(torch.zeros(2).double(), VAR)


def chosen(data: Samples, n: int, number: int, seed: int = 0) -> Tensor:
    return data.take(noise.permutation(seed, len(data), number)[:n])[0]


def test_vectors_in_nats_with_their_intervals() -> None:
    test, train = Samples(LAW.sample(300, seed=1)), Samples(3.0 * LAW.sample(200, seed=2))
    calls: list[tuple[str, int, int]] = []
    report = nll(
        LAW.denoiser(fk.VP()), train, test, n=100, draws=16, batch_size=60, progress=lambda *a: calls.append(a)
    )
    assert report.unit == "nats"
    assert [(row.name, row.split, row.n) for row in report.rows] == [
        (name, split, 100) for split in ("held out", "train") for name in ("flow", "bound")
    ]
    assert calls[0] == ("flow, held out", 0, 400) and calls[1] == ("flow, held out", 60, 400)
    assert calls[-1] == ("bound, train", 400, 400)
    for number, data in enumerate((test, train)):
        costs = -LAW.log_prob(chosen(data, 100, number).double())
        flow, bound = report.rows[2 * number], report.rows[2 * number + 1]
        assert abs(flow.value - float(costs.mean())) < 1e-2  # t_min in place of 0, N(0, I) in place of p_T
        reach = 1.96 * float(costs.std()) / 10.0
        assert abs((flow.high - flow.low) / 2 - reach) < 0.01 * reach and flow.low + flow.high == 2 * flow.value
        wide = (bound.high - bound.low) / 2
        assert abs(bound.value - flow.value) < 2.0 * wide and wide > reach
    whole = json.loads(report.to_json(model="m"))
    assert whole["format"] == "fokker-nll-1" and whole["unit"] == "nats" and whole["model"] == "m"
    assert whole["probes"] == 0 and whole["nll"][0]["value"] == report.rows[0].value
    lines = report.markdown().splitlines()
    assert lines[0] == "| negative log-likelihood | nats (95 %) | n |" and lines[2].startswith("| flow, held out |")
    assert f"{report.rows[0].value:.4g} ± " in lines[2] and report.table().row_count == 10


class Squares:
    """The Gaussian N(0, v) of four pixels, as pictures (1, 2, 2)."""

    def __init__(self, law: fk.exact.Gaussian, process: fk.VP) -> None:
        self.denoiser = law.denoiser(process)
        self.process, self.lam_range = process, self.denoiser.lam_range
        self.shape, self.reading = (1, 2, 2), None

    def __call__(self, x: Tensor, s: float | Tensor, cond: object = None) -> fk.Prediction:
        inner = self.denoiser(x.flatten(1), s)
        return fk.Prediction(self.process, x, s, x0=inner.x0.reshape(x.shape), noise=inner.noise.reshape(x.shape))


def test_a_chain_has_its_own_row() -> None:
    train, test = Samples(LAW.sample(300, seed=2)), Samples(LAW.sample(200, seed=1))
    process, calls, way = fk.DiscreteVP(steps=100), [], {"solver": "rk4", "steps": 10}
    report = nll(LAW.denoiser(process), train, test, n=60, draws=8, progress=lambda *a: calls.append(a), **way)
    assert [row.name for row in report.rows] == ["flow", "bound", "ddpm"] * 2 and calls[-1] == ("ddpm, train", 360, 360)
    assert report.facts["variance"] == "optimal"
    for number, data in enumerate((test, train)):
        flow, bound, chain = report.rows[3 * number : 3 * number + 3]
        x = chosen(data, 60, number)
        table = optimal_variance(LAW.denoiser(process), chosen(train, 256, 2))
        value = ddpm_bound(LAW.denoiser(process), x, variance=table, draws=8).value
        assert abs(chain.value + float(value.mean())) < 1e-9
        parts = dict(chain.parts)
        simple = parts.pop("L_simple")
        assert list(parts) == ["prior", "diffusion", "reconstruction"] and abs(sum(parts.values()) - chain.value) < 1e-9
        terms = [fk.Denoising.ddpm().terms(LAW.denoiser(process), x, step=k).error.mean() for k in range(8)]
        assert simple == pytest.approx(float(torch.stack(terms).mean()), rel=1e-6) and 0.05 < simple < 1.0
        assert abs(sum(bound.parts.values()) - bound.value) < 1e-9 and not flow.parts
        assert abs(chain.value - flow.value) < 1.5 * (chain.high - chain.low)  # 6 standard errors

    class Says:
        """The exact denoiser with beta for a variance."""

        process, shape, reading, learned_variance = fk.DiscreteVP(steps=100), (2,), None, True
        lam_range = LAW.denoiser(process).lam_range

        def __call__(self, x: Tensor, s: float | Tensor, cond: object = None) -> fk.Prediction:
            x0 = LAW.denoiser(self.process)(x, s).x0
            return fk.Prediction(self.process, x, s, x0=x0, variance=torch.ones_like(x))

    report = nll(Says(), train, n=50, draws=4, **way)
    value = ddpm_bound(Says(), chosen(train, 50, 0), variance="learned", draws=4).value
    assert report.facts["variance"] == "learned" and report.rows[2].name == "ddpm"
    assert abs(report.rows[2].value + float(value.mean())) < 1e-9


@pytest.mark.parametrize("probes", [None, Hutchinson(probes=2)])
def test_pictures_in_bits_per_dimension(probes: Hutchinson | None) -> None:
    law = fk.exact.Gaussian(torch.zeros(4), torch.full((4,), 0.09))
    test = Samples(to_uint8(law.sample(400, seed=1)).reshape(400, 1, 2, 2))
    report = nll(Squares(law, fk.VP()), test, n=200, probes=probes, draws=16, solver="rk4", steps=15, seed=3)
    x = chosen(test, 200, 0, seed=3).double().flatten(1)
    cell = torch.special.ndtr((x[..., None] + torch.tensor([-1.0, 1.0]) / 255) / 0.3).diff()[..., 0]
    bits = float(-(cell.log2().mean()))  # about log2(0.3 sqrt(2 pi e) 127.5) = 7.3
    flow, bound = report.rows
    assert report.unit == "bits/dim" and flow.split == "train"
    assert abs(flow.value - bits) < 5e-3
    assert abs(bound.value - bits) < 0.06 and (bound.high - bound.low) / 2 < 0.1


def test_the_density_is_of_the_datas_own_numbers() -> None:
    codec = SignalCodec(mean=(1.0, 2.0), std=(3.0, 0.5))
    signals = Samples(torch.zeros(10, 2, 7), codec=codec)
    assert abs(log_volume(signals) - 7 * math.log(1.5)) < 1e-12 and log_volume(Samples(torch.zeros(3, 2))) == 0.0
    number = Number("a", 0.0, 4.0, -1.0, 1.0)
    table = TableCodec((number, Number("b", 0.0, 0.1, -1.0, 1.0)))
    assert abs(log_volume(Samples(torch.zeros(3, 2), codec=table)) - math.log(0.4)) < 1e-12
    # A model of standardised rows: p(v) = p(x) / std.
    plain, scaled = (Samples(LAW.sample(50, seed=1), codec=c) for c in (None, table))
    way = {"n": 20, "draws": 2, "solver": "rk4", "steps": 20}
    a, b = (nll(LAW.denoiser(fk.VP()), data, **way) for data in (plain, scaled))
    for before, after in zip(a.rows, b.rows, strict=True):
        assert abs(after.value - before.value - math.log(0.4)) < 1e-9


def test_what_has_no_density_is_refused() -> None:
    number, rounded = Number("a", 0.0, 4.0, -1.0, 1.0), Number("age", 0.0, 4.0, -1.0, 1.0, decimals=0)
    mapped = Number("pay", 0.0, 1.0, 0.0, 1.0, knots=((0.0, -1.0), (1.0, 1.0)))
    category = Category("kind", ("x", "y"))
    for column, why in ((rounded, "'age' is rounded"), (mapped, "'pay' is rounded or"), (category, "'kind' is a cat")):
        with pytest.raises(ConfigError, match=why):
            log_volume(Samples(torch.zeros(3, 2), codec=TableCodec((number, column))))
    data = Samples(torch.zeros(5, 3))
    with pytest.raises(ConfigError, match=r"the model's samples have shape \(2,\), the data's \(3,\)"):
        nll(LAW.denoiser(fk.VP()), data)
    with pytest.raises(ConfigError, match="n: given 1, and 50 rows are train: must be at least 2"):
        nll(LAW.denoiser(fk.VP()), Samples(LAW.sample(50)), n=1)


def test_large_data_by_probes() -> None:
    law = fk.exact.Gaussian(torch.zeros(20), torch.full((20,), 0.4))
    data = Samples(law.sample(60, seed=1))
    report = nll(law.denoiser(fk.Flow()), data, n=30, seed=2)
    costs = -law.log_prob(chosen(data, 30, 0, seed=2).double())
    assert report.facts == {"seed": 2, "draws": 64, "probes": 1, "conditional": False}
    bound = elbo(law.denoiser(fk.Flow()), chosen(data, 30, 0, seed=2), draws=64, seed=2).value
    assert abs(report.rows[1].value + float(bound.mean())) < 1e-9
    assert abs(report.rows[0].value - float(costs.mean())) < 2e-2  # signs are exact for an isotropic law
