"""The VAE: its decoders' laws, its bounds beside exact densities, what it makes of codes, and two short trainings."""

import json
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fokker import noise, registry
from fokker.classic import VAE, Affine, Diagonal, LinearChain, diagnose, log_aggregate, optimal_decoder, ppca
from fokker.classic.decoders import Decoder
from fokker.data import Fashion
from fokker.errors import ConfigError
from fokker.likelihood import bits_per_dim

from .affine import F64, covariance, hermite, last, linear_vae, normal, set_affine, sigma_points


class Says(torch.nn.Module):
    """A decoder's network that says the same whatever the code."""

    def __init__(self, *parts: Tensor) -> None:
        super().__init__()
        self.out = torch.stack(parts)[None]

    def forward(self, z: Tensor) -> Tensor:
        return self.out.expand(len(z), *self.out.shape[1:])


def chain(seed: int = 0) -> LinearChain:
    """3 numbers of 2 codes, and a diagonal encoder that is not the posterior."""
    down = Affine(normal(3, 2, seed=seed + 1), normal(3, seed=seed + 2), 0.4 * torch.eye(3, dtype=F64))
    up = Affine(normal(2, 3, seed=seed + 3) / 3, normal(2, seed=seed + 4) / 2, torch.diag(torch.tensor([0.3, 0.7])))
    return LinearChain((down,), (Affine(up.weight, up.bias, up.cov.double()),))


def orthogonal() -> LinearChain:
    """The same with orthogonal columns and the true posterior, which then is diagonal."""
    base = chain()
    U, s, _ = torch.linalg.svd(base.down[0].weight, full_matrices=False)
    law = LinearChain((Affine(U * s, base.down[0].bias, base.down[0].cov),), base.up).exact()
    up = law.up[0]
    return LinearChain(law.down, (Affine(up.weight, up.bias, torch.diag(up.cov.diagonal())),))


X = normal(4, 3, seed=60)


LEVELS = torch.arange(256, dtype=F64)[:, None] * (2 / 255) - 1


def chances_of(m: float, log_s: float) -> Tensor:
    """log P of the 256 levels of one coordinate."""
    law = Decoder(Says(torch.tensor([m], dtype=F64), torch.tensor([log_s], dtype=F64)), "bytes", None)
    return law.log_prob(LEVELS, torch.zeros(256, 1, dtype=F64))


@pytest.mark.parametrize(("m", "log_s"), [(0.1, -2.0), (-0.99, -4.5), (1.4, -1.0), (0.3, -6.9)])
def test_bytes_are_a_law_of_256_levels(m: float, log_s: float) -> None:
    found = chances_of(m, log_s)
    assert abs(float(found.exp().sum()) - 1.0) < 1e-12
    edges = ((LEVELS[:, 0] + 1 / 255 - m) / math.exp(log_s)).sigmoid()  # of the logistic law, cell by cell
    edges[-1] = 1.0
    cells = torch.cat([edges[:1], edges.diff()])
    torch.testing.assert_close(found.exp(), cells, rtol=0, atol=1e-12)
    assert float(cells.max()) > 1e-3


def test_bytes_far_from_the_centre_have_slopes() -> None:
    # Mass falls as e^{-|x - m| / s}, where a difference of sigmoids would be 0; at scales below e^-7 as at e^-7.
    steps = chances_of(0.9, -6.0).diff()[:200]
    torch.testing.assert_close(steps[1:], torch.full((199,), (2 / 255) * math.exp(6.0), dtype=F64), rtol=1e-9, atol=0)
    assert torch.equal(chances_of(0.9, -9.0), chances_of(0.9, -7.0))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("raw", [90.0, 120.0, 800.0])
def test_bytes_of_any_scale_have_slopes(raw: float, dtype: torch.dtype) -> None:
    """At scales above e^10 as at e^10: 1/2 at both ends, h / (4 s) in each level between."""
    parts = torch.tensor([[0.3], [raw]], dtype=dtype, requires_grad=True)
    told = Decoder(Says(*parts), "bytes", None).log_prob(LEVELS.to(dtype), torch.zeros(256, 1, dtype=dtype))
    torch.testing.assert_close(told.double(), chances_of(0.3, 10.0), rtol=1e-6, atol=1e-6)
    want = torch.tensor([0.5, *[math.exp(-10.0) / 510] * 254, 0.5], dtype=F64).log()
    torch.testing.assert_close(told.double(), want, rtol=0, atol=2e-4)
    (slope,) = torch.autograd.grad(told.sum(), parts)
    assert bool(slope.isfinite().all())


def test_gaussian_and_bernoulli_against_torch() -> None:
    m, x, z = normal(2, 3, seed=61), normal(5, 2, 3, seed=62), torch.zeros(5, 1, dtype=F64)
    law = torch.distributions.Normal(m, math.sqrt(0.3))
    found = Decoder(Says(m), "gaussian", 0.3).log_prob(x, z)
    torch.testing.assert_close(found, law.log_prob(x).sum((1, 2)), rtol=0, atol=1e-12)
    learned = Decoder(Says(m), "gaussian", None).double()
    learned.log_variance.data.fill_(math.log(0.3))
    torch.testing.assert_close(learned.log_prob(x, z), found, rtol=0, atol=1e-12)
    b = (x > 0).double()
    coin = torch.distributions.Bernoulli(logits=m)
    found = Decoder(Says(m), "bernoulli", None).log_prob(2 * b - 1, z)
    torch.testing.assert_close(found, coin.log_prob(b).sum((1, 2)), rtol=0, atol=1e-12)
    p = x.sigmoid()  # grey: the mean over pictures drawn with these chances
    soft = (p * coin.log_prob(torch.ones_like(p)) + (1 - p) * coin.log_prob(torch.zeros_like(p))).sum((1, 2))
    found = Decoder(Says(m), "bernoulli", None).log_prob(2 * p - 1, z)
    torch.testing.assert_close(found, soft, rtol=0, atol=1e-12)
    centres = [Decoder(Says(m, m), law, None).centre(z)[0] for law in ("gaussian", "bernoulli", "bytes")]  # type: ignore[arg-type]
    for centre, by_hand in zip(centres, (m, coin.mean * 2 - 1, m.clamp(-1, 1)), strict=True):
        torch.testing.assert_close(centre, by_hand, rtol=0, atol=1e-12)
    assert float(m.abs().max()) > 1.0


def test_draws_follow_the_decoders_law() -> None:
    n = 20_000
    index, z = torch.arange(n), torch.zeros(n, 1, dtype=F64)
    m, log_s = torch.tensor([0.2, -0.98], dtype=F64), torch.tensor([-3.0, -3.5], dtype=F64)
    law = Decoder(Says(m, log_s), "bytes", None)
    drawn = law.draw(z, 0, index)
    assert torch.equal(drawn, law.draw(z, 0, index)) and not torch.equal(drawn, law.draw(z, 1, index))
    levels = ((drawn + 1) * 127.5).round()
    assert float((drawn - (levels / 127.5 - 1)).abs().max()) < 1e-12
    assert int(levels.min()) == 0 and int(levels.max()) <= 255
    for j in range(2):
        chances = chances_of(float(m[j]), float(log_s[j])).exp()
        counts = torch.bincount(levels[:, j].long(), minlength=256).double()
        sd = (n * chances * (1 - chances)).sqrt() + 1.0
        assert float(((counts - n * chances) / sd).abs().max()) < 5.0
    heads = (Decoder(Says(m), "bernoulli", None).draw(z, 0, index) > 0).double().mean(0)
    assert float((heads - m.sigmoid()).abs().max()) < 4 * 0.5 / math.sqrt(n)
    white = Decoder(Says(m), "gaussian", 0.09).draw(z, 0, index)
    assert float((white.mean(0) - m).abs().max()) < 4 * 0.3 / math.sqrt(n)
    assert abs(float((white - m).square().mean()) - 0.09) < 4 * 0.09 / math.sqrt(n)


def test_kl_against_torch() -> None:
    a, b = (Diagonal(normal(4, 2, seed=s), normal(4, 2, seed=s + 1)) for s in (63, 65))
    laws = [torch.distributions.Normal(q.mean, (0.5 * q.log_var).exp()) for q in (a, b)]
    torch.testing.assert_close(a.kl(b), torch.distributions.kl_divergence(*laws), rtol=0, atol=1e-12)
    standard = Diagonal.standard(a.mean)
    printed = 0.5 * (a.mean**2 + a.log_var.exp() - 1 - a.log_var)
    torch.testing.assert_close(a.kl(standard), printed, rtol=0, atol=1e-12)
    torch.testing.assert_close(a.log_prob(b.mean), laws[0].log_prob(b.mean).sum(1), rtol=0, atol=1e-12)
    near = torch.tensor([[1e-3, -1e-3, 3e-4]])  # small ones have digits: r^2 / 4 + r^3 / 12
    r = near.double()
    found = Diagonal(torch.zeros(1, 3), near).kl(Diagonal.standard(near))
    torch.testing.assert_close(found.double(), r**2 / 4 + r**3 / 12, rtol=1e-3, atol=0)


def test_linear_vae_is_the_linear_chain() -> None:
    law = chain()
    model = linear_vae(law)
    points, chances = hermite(2)
    mean = sum(w * model.elbo(X, eps.expand(4, 2)) for eps, w in zip(points, chances, strict=True))
    torch.testing.assert_close(mean, law.elbo(X), rtol=0, atol=1e-12)
    ratio = sum(w * model.log_weight(X, eps.expand(4, 2)) for eps, w in zip(points, chances, strict=True))
    torch.testing.assert_close(ratio, law.elbo(X), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.terms(X, points[:4])[1].sum(1), law.terms(X).prior, rtol=0, atol=1e-12)
    assert float((law.log_prob(X) - law.elbo(X)).min()) > 0.1
    torch.testing.assert_close(model.decode(points), law.down[0].mean(points), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.reconstruct(X), law.down[0].mean(law.up[0].mean(X)), rtol=0, atol=1e-12)


def test_with_the_true_posterior_every_weight_is_the_density() -> None:
    law = orthogonal()
    model = linear_vae(law)
    for eps in hermite(2)[0]:
        torch.testing.assert_close(model.log_weight(X, eps.expand(4, 2)), law.log_prob(X), rtol=0, atol=1e-11)
    torch.testing.assert_close(model.importance_bound(X, 3), law.log_prob(X), rtol=0, atol=1e-11)


def test_bounds_rise_from_the_elbo_to_the_density() -> None:
    law, n = chain(), 4000
    model, x = linear_vae(law), X[:1].expand(4000, 3)
    exact, elbo = float(law.log_prob(X[:1])), float(law.elbo(X[:1]))
    found = {k: model.importance_bound(x, k, seed=1).detach() for k in (1, 2, 8, 64)}
    means = {k: float(v.detach().mean()) for k, v in found.items()}
    errors = {k: float(v.std()) / math.sqrt(n) for k, v in found.items()}
    assert abs(means[1] - elbo) < 4 * errors[1]
    kl_form = model.log_prob(x, seed=2).detach()
    assert abs(float(kl_form.mean()) - elbo) < 4 * float(kl_form.std()) / math.sqrt(n)
    for low, high in ((1, 2), (2, 8), (8, 64)):
        assert means[high] - means[low] > 4 * (errors[low] + errors[high])
    assert exact - 0.25 * (exact - elbo) < means[64] < exact + 4 * errors[64]
    weights = found[64].exp()  # the mean weight is the density itself, at any k
    assert abs(float(weights.mean()) - math.exp(exact)) < 4 * float(weights.std()) / math.sqrt(n)
    assert torch.equal(model.importance_bound(x[:2], 8, seed=1, indices=torch.tensor([7, 9])), found[8][[7, 9]])
    iwae = linear_vae(law, samples=8)
    torch.testing.assert_close(iwae.log_prob(x, seed=1), found[8], rtol=0, atol=1e-12)
    torch.testing.assert_close(iwae.losses(x[:5], seed=1, step=0), -_training(model, x[:5], 8), rtol=0, atol=1e-12)


def _training(model: VAE, x: Tensor, k: int) -> Tensor:
    eps = [noise.normal(1, torch.arange(len(x)), (2,), draw=i, domain="training", dtype=F64) for i in range(k)]
    return torch.stack([model.log_weight(x, e) for e in eps]).exp().mean(0).log()


def test_losses_by_value() -> None:
    law = chain()
    positions = torch.tensor([5, 2, 9, 4])
    eps = noise.normal(3, positions, (2,), draw=7 << 8, domain="training", dtype=F64)
    reconstruction, kl = (part.detach() for part in linear_vae(law).terms(X, eps))
    for fields, cost in (
        ({}, kl.sum(1)),
        ({"beta": 0.3}, 0.3 * kl.sum(1)),
        ({"free_bits": 0.5}, torch.maximum(kl, torch.full_like(kl, 0.5)).sum(1)),
    ):
        model = linear_vae(law, **fields)
        found = model.losses(X, seed=3, step=7, positions=positions)
        torch.testing.assert_close(found, cost - reconstruction, rtol=0, atol=1e-12)
        torch.testing.assert_close(model.log_prob(X), linear_vae(law).log_prob(X), rtol=0, atol=1e-12)
    assert float(kl.min()) < 0.5 < float(kl.max())
    held_out = noise.normal(3, positions, (2,), domain="probe", dtype=F64)  # other codes than any step's
    model = linear_vae(law)
    torch.testing.assert_close(model.log_prob(X, seed=3, indices=positions), model.elbo(X, held_out))
    found = model.importance_bound(X, 1, seed=3, indices=positions)
    torch.testing.assert_close(found, model.log_weight(X, held_out))


def test_draws_are_the_models() -> None:
    law, n = chain(), 8000
    model = linear_vae(law, draws="sample")
    x = model.sample(n, seed=5)
    mean, cov = law.marginals()[0]
    root = torch.linalg.cholesky(cov)
    white = torch.linalg.solve_triangular(root, (x - mean).mT, upper=False)
    assert float(white.mean(1).abs().max()) < 4 / math.sqrt(n)
    assert float((white @ white.mT / n - torch.eye(3)).abs().max()) < 4 * math.sqrt(2 / n)
    assert torch.equal(model.sample(indices=[17, 3], seed=5), x[[17, 3]])
    means = linear_vae(law).sample(4, seed=5)
    z = noise.normal(5, torch.arange(4), (2,), domain="prior", dtype=F64)
    torch.testing.assert_close(means, law.down[0].mean(z), rtol=0, atol=1e-12)


def trapezoid(span: float = 12.0, points: int = 8001) -> tuple[Tensor, float]:
    z = torch.linspace(-span, span, points, dtype=F64)
    return z[:, None], float(z[1] - z[0])


DATA = torch.tensor([[-1.5], [0.2], [2.5]], dtype=F64)
CODES = Diagonal(torch.tensor([[-1.8], [0.4], [2.1]], dtype=F64), torch.tensor([[0.25], [0.6], [0.3]], dtype=F64).log())


def test_best_decoder_divides_by_the_aggregate_not_the_prior() -> None:
    z = torch.tensor([[1.2], [-2.5], [0.0]], dtype=F64)
    each = torch.stack([CODES.log_prob(row) for row in z]).exp()  # q(z | x_n)
    best = optimal_decoder(z, DATA, CODES)
    torch.testing.assert_close(best, (each @ DATA) / each.sum(1, keepdim=True), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_aggregate(z, CODES), each.mean(1).log(), rtol=0, atol=1e-12)
    # As printed, p(x | z) = q(z | x) p_data(x) / p(z): it does not sum to 1, and its mean is no average of the data.
    prior = Diagonal.standard(z).log_prob(z).exp()
    mass, mean = each.mean(1) / prior, (each @ DATA)[:, 0] / 3 / prior
    assert float((mass - 1.0).abs().min()) > 0.15 and float(mass[1]) > 5.0
    assert float(mean[1]) < float(DATA.min()) and abs(float(mean[1]) - float(mass[1] * best[1, 0])) < 1e-12
    # Two data of overlapping codes: halfway between their codes the best picture is their average.
    twins = Diagonal(torch.tensor([[-0.1], [0.1]], dtype=F64), torch.zeros(2, 1, dtype=F64))
    blur = optimal_decoder(torch.zeros(1, 1, dtype=F64), DATA[:2], twins)
    assert abs(float(blur) - float(DATA[:2].mean())) < 1e-14


def test_kl_splits_into_information_and_aggregate() -> None:
    z, dz = trapezoid()
    q = torch.stack([Diagonal(m, v).log_prob(z) for m, v in zip(CODES.mean, CODES.log_var, strict=True)])
    log_q, log_p = log_aggregate(z, CODES), Diagonal.standard(z).log_prob(z)
    information = float((q.exp() * (q - log_q)).sum() * dz / 3)
    aggregate = float((log_q.exp() * (log_q - log_p)).sum() * dz)
    kl = float(CODES.kl(Diagonal.standard(CODES.mean)).mean())
    assert abs(kl - information - aggregate) < 1e-8 and 0.3 < information < math.log(3.0)
    model = VAE(shape=(1,), latent=1, depth=0).double().requires_grad_(False)

    def diagnosed(scale: float, offset: float, log_var: float) -> tuple[object, float, float]:
        set_affine(last(model.encoder), torch.tensor([[scale], [0.0]]), torch.tensor([offset, log_var]))
        found = diagnose(model, DATA.repeat(250, 1))
        codes = model.encode(DATA)
        at = torch.stack([Diagonal(m, v).log_prob(z) for m, v in zip(codes.mean, codes.log_var, strict=True)])
        mixed = log_aggregate(z, codes)
        told = float((at.exp() * (at - mixed)).sum() * dz / 3)
        return found, told, float(codes.kl(Diagonal.standard(codes.mean)).sum(1).mean())

    found, told, total = diagnosed(0.9, 0.1, -1.0)
    assert abs(found.information - told) < 4 * found.stderr < 0.2 and found.active == 1
    assert abs(float(found.kl.sum()) - total) < 1e-12
    assert abs(found.aggregate - (total - told)) < 4 * found.stderr
    collapsed, _, _ = diagnosed(0.0, 0.0, 0.0)
    assert collapsed.active == 0 and abs(collapsed.information) < 1e-12 and float(collapsed.kl.max()) == 0.0


def test_a_code_number_is_active_above_a_hundredth() -> None:
    model, x = VAE(shape=(1,), latent=3, depth=0).double(), normal(50, 1, seed=67)
    x = (x - x.mean()) / x.std()
    for variances, active in (((0.02, 0.005, 0.0), 1), ((0.012, 0.5, 0.009), 2)):
        weights = torch.tensor([*variances, 0.0, 0.0, 0.0], dtype=F64).sqrt()[:, None]
        set_affine(last(model.encoder), weights, torch.tensor([0.3, 2.0, 1.0, -1.0, 0.0, 0.0]))
        torch.testing.assert_close(model.encode(x).mean.var(0), torch.tensor(variances, dtype=F64))
        assert diagnose(model, x).active == active


def train(model: VAE, x: Tensor, steps: int, lr: float) -> VAE:
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        optimiser.zero_grad()
        model.losses(x, step=step).mean().backward()
        optimiser.step()
        schedule.step()
    return model


def test_a_trained_decoder_is_the_best_one() -> None:
    # Two data of codes that overlap: in between the best decoder, and a trained one, averages.
    x, model = DATA[:2], VAE(shape=(1,), latent=1, width=32, depth=2, variance=0.1).double()
    fixed = VAE(shape=(1,), latent=1, depth=0).double().encoder.requires_grad_(False)
    set_affine(last(fixed), torch.tensor([[0.9], [0.0]]), torch.tensor([0.6, 0.0]))
    model.encoder = fixed
    train(model, x.repeat(60, 1), 200, 1e-2)
    codes, (z, dz) = Diagonal.of(fixed(x)), trapezoid(8.0, 601)
    found = model.decode(z).detach()
    error = (found - optimal_decoder(z, x, codes))[:, 0].square()
    chances = log_aggregate(z, codes).exp() * dz
    assert float((chances * error).sum()) < 1e-3
    assert float((chances * (found - x.mean())[:, 0].square()).sum()) > 0.25  # and it is no constant


def test_a_trained_linear_vae_reaches_ppca() -> None:
    mean, cov = normal(4, seed=70), covariance(4, 71)
    x = sigma_points(mean, cov)
    best = ppca(mean, cov, 2)
    model = train(VAE(shape=(4,), latent=2, depth=0).double(), x.repeat(16, 1), 700, 3e-2)
    layer, log_var = last(model.decoder), float(model.decoder.log_var().detach())
    found = Affine(layer.weight.detach(), layer.bias.detach(), math.exp(log_var) * torch.eye(4, dtype=F64))
    encoder = Affine(torch.zeros(2, 4, dtype=F64), torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    top, reached = (float(LinearChain((link,), (encoder,)).log_prob(x).mean()) for link in (best, found))
    assert -1e-12 < top - reached < 3e-3
    assert abs(math.exp(log_var) / float(best.cov[0, 0]) - 1.0) < 0.03
    points, chances = hermite(2)
    with torch.no_grad():
        elbo = sum(w * model.elbo(x, e.expand(len(x), 2)) for e, w in zip(points, chances, strict=True)).mean()
    assert 0.0 < reached - float(elbo) < 5e-3  # and so its columns are orthogonal, its posteriors exact


def test_pictures_are_learnt() -> None:
    train_x, test_x = (
        avg_pool2d(Fashion().load(split).values[:400].float(), 2).round() / 127.5 - 1  # type: ignore[arg-type]
        for split in ("train", "test")
    )
    torch.manual_seed(0)
    model = VAE(shape=(1, 14, 14), latent=8, width=8, depth=1, decoder="bytes")
    before = bits_per_dim(model.log_prob(test_x), (1, 14, 14)).mean()
    train(model, train_x[:200], 60, 1e-2)
    with torch.no_grad():
        bound, tighter = model.log_prob(test_x), model.importance_bound(test_x, 8)
    bits = bits_per_dim(bound, (1, 14, 14)).mean()
    assert float(before) > 6.0 and float(bits) < 5.0
    assert float((tighter - bound).mean()) > 0.0
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in model.parameters())
    with torch.no_grad():
        found, expected = model.reconstruct(test_x), test_x
    assert float((found - expected).square().mean()) < 0.6 * float((expected - expected.mean(0)).square().mean())
    assert float(model.sample(8).abs().max()) <= 1.0
    with torch.autocast("cpu", dtype=torch.bfloat16):  # networks in half precision, laws in full
        low = model.log_prob(test_x[:50]).detach()
    assert low.dtype == torch.float32 and float((low / bound[:50] - 1.0).abs().mean()) < 0.02
    with pytest.raises(ConfigError, match="not one of 256 levels"):
        model.log_prob(test_x + 0.001)


def test_kind_and_fields() -> None:
    model = registry.build("model", {"kind": "vae", "shape": [3], "latent": 2, "decoder": "bernoulli", "depth": 1})
    written = json.loads(json.dumps(registry.spec(model)))
    again = registry.build("model", written)
    again.load_state_dict(model.state_dict())
    x = torch.rand(4, 3) * 2 - 1
    assert written["latent"] == 2 and torch.equal(again.log_prob(x), model.log_prob(x))
    assert [VAE((2,), decoder=law).levels for law in ("gaussian", "bernoulli", "bytes")] == [None, 2, 256]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"values beyond \[-1, 1\]"):
        model.log_prob(2 * x + 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent": 0}, "VAE.latent: given 0, must be at least 1"),
        ({"decoder": "bytes", "variance": 0.1}, "VAE.variance: given 0.1 with decoder='bytes'"),
        ({"variance": 0.0}, "VAE.variance: given 0.0, must be above 0"),
        ({"beta": -1.0}, "VAE.beta: given -1.0"),
        ({"free_bits": math.inf}, "VAE.free_bits: given inf"),
        ({"samples": 257}, "VAE.samples: given 257"),
        ({"samples": 2, "beta": 0.5}, "VAE.samples: given 2 with beta or free_bits"),
        ({"shape": (1, 28, 28), "depth": 3}, "depth: given 3 with pictures of 28 x 28"),
        ({"decoder": "poisson"}, "VAE.decoder: given 'poisson'"),
    ],
)
def test_refusals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VAE(**({"shape": (2,)} | fields))  # type: ignore[arg-type]
