"""The average of the weights: the formula by hand, ramp and all."""

import torch

from fokker.train import Averages, Constant

F64 = torch.float64


def weights() -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([1.0, -2.0], dtype=F64), "b": torch.tensor(0.5, dtype=F64)}


def test_five_steps_by_hand_from_the_ramp_into_the_long_run() -> None:
    live = weights()
    average = Averages(live, Constant(0.3))  # the ramp .1, 2/11, .25, then 4/13 > .3: the cap takes over
    shadow = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    for step, d in enumerate([1 / 10, 2 / 11, 3 / 12, 0.3, 0.3]):
        live["w"].add_(torch.tensor([0.7, -0.1 * step], dtype=F64))
        live["b"].mul_(-1.5)
        shadow = d * shadow + (1 - d) * torch.cat([live["w"], live["b"][None]])
        average.update(step)
        got = average.values()
        assert torch.allclose(torch.cat([got["w"], got["b"][None]]), shadow, rtol=1e-14, atol=0)
        assert abs(average.ema.rates(step)[0] - (1 - d)) < 1e-15
    assert not torch.equal(average.values()["w"], live["w"])


def test_the_ramp_ends_at_the_decay_and_zero_decay_is_the_model() -> None:
    assert abs(Constant(0.999).rates(10**6)[0] - 0.001) < 1e-15
    assert abs(Constant(0.999).rates(8989)[0] - (1 - 8990 / 8999)) < 1e-12  # the last step below the cap .999
    live = weights()
    average = Averages(live, Constant(0.0))
    live["w"].fill_(7.25)
    average.update(3)
    assert torch.equal(average.values()["w"], live["w"])
