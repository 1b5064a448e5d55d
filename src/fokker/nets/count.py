"""How large a network is and how much it works: its parameters and the floating-point operations of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Count", "count"]


class Count(NamedTuple):
    """Numbers in a net's parameters, frozen ones too, and floating-point operations of one pass of one sample."""

    parameters: int
    flops: int


def count(net: nn.Module, shape: Sequence[int], cond: Tensor | None = None) -> Count:
    """A net's parameters, and the operations of net(x, time, cond) for one x of `shape`.

    Operations are two (multiply, add) for every multiply-add of a matrix product, convolution or attention; what is
    done element by element is not counted (`torch.utils.flop_counter`). Nothing is computed: the pass runs on the meta
    device, so the size of the net does not matter.

    Args:
        net: called as net(x (1, *shape), time (1,)) or net(x, time, cond); left as it is.
        shape: of an event.
        cond: a condition (1, ...); None: a full sequence where the net reads sequences (`cond_length`), else null.
    """
    config: dict[str, Any] = getattr(net, "config", {})
    if cond is None and config.get("cond_length"):
        length, dim = config["cond_length"], config["cond_dim"]
        cond = torch.zeros(1, length, dim) if dim else torch.zeros(1, length, dtype=torch.int64)
    given = (torch.empty(1, *shape), torch.empty(1), *([] if cond is None else [cond]))
    state = {name: value.to("meta") for name, value in [*net.named_parameters(), *net.named_buffers()]}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.func.functional_call(net, state, tuple(value.to("meta") for value in given))
    return Count(sum(p.numel() for p in net.parameters()), counter.get_total_flops())
