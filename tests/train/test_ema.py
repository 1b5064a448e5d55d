"""The average of the weights: the formula by hand, ramp and all."""

import torch
from torch import nn

from fokker.train import EMA

F64 = torch.float64


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=F64))
        self.b = nn.Parameter(torch.tensor(0.5, dtype=F64))
        self.register_buffer("seen", torch.tensor(0))


def test_five_steps_by_hand_from_the_ramp_into_the_long_run() -> None:
    model = Model().train()
    average = EMA(model, 0.3)  # the ramp .1, 2/11, .25, then 4/13 > .3: the cap takes over
    shadow = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    kept = [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3]
    for step, d in enumerate(kept):
        with torch.no_grad():
            model.w.add_(torch.tensor([0.7, -0.1 * step], dtype=F64))
            model.b.mul_(-1.5)
            model.seen.fill_(step + 1)
        weights = torch.cat([model.w.detach(), model.b.detach()[None]])
        shadow = d * shadow + (1 - d) * weights
        average.update(model, step)
        got = torch.cat([average.model.w, average.model.b[None]])
        assert torch.allclose(got, shadow, rtol=1e-14, atol=0)
        assert abs(average.rate(step) - (1 - d)) < 1e-15 and average.model.seen == step + 1
    assert not torch.equal(average.model.w, model.w)


def test_the_ramp_ends_at_the_decay_and_zero_decay_is_the_model() -> None:
    assert abs(EMA(Model(), 0.999).rate(10**6) - 0.001) < 1e-15
    assert abs(EMA(Model(), 0.999).rate(8989) - (1 - 8990 / 8999)) < 1e-12  # the last step below the cap .999
    model = Model()
    average = EMA(model, 0.0)
    with torch.no_grad():
        model.w.fill_(7.25)
    average.update(model, 3)
    assert torch.equal(average.model.w, model.w)


def test_the_shadow_is_a_frozen_copy_in_evaluation_mode() -> None:
    model = Model().train()
    average = EMA(model, 0.9)
    assert not average.model.training and model.training and average.model is not model
    assert all(not p.requires_grad for p in average.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    model.w.sum().backward()
    average.update(model, 0)
    assert average.model.w.grad is None and model.w.grad is not None
