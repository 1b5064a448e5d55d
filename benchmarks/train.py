"""Training steps per second of fokker's networks beside diffusers' of equal FLOPs, in the same run.

    pip install -e '.[bench]'
    python benchmarks/train.py                      # some three minutes on two cores; --quick for one
    python benchmarks/train.py --threads 2 -o benchmarks/train.md
    python benchmarks/train.py --device cuda --compile --bf16

A step is: perturb, network, mean squared error of the velocity, backward pass, AdamW, average of the weights. Three
runners take turns, a few steps each, in every round: diffusers' network and ours in one hand-written loop (so that
networks are compared and nothing else), and ours through `NetDenoiser` and `Denoising` (what the library adds).
Reported are medians over the rounds; ratios are medians of the ratios within a round, which a busy machine blurs less.
The share of the matmul rate counts the operations of the forward and backward pass (a multiply-add is two) against
a product of two 2048 x 2048 matrices in float32 (with --bf16: bfloat16) on the same device, measured in every round.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fokker.denoiser import NetDenoiser
from fokker.nets import DiT, UNet, count
from fokker.objectives import Denoising
from fokker.train.ema import Averages, Constant

SHAPE = (3, 32, 32)
Loss = Callable[[Tensor, int], Tensor]


class Theirs(nn.Module):
    """A network of diffusers, called as ours are; their time is in steps of DDPM's 1000."""

    def __init__(self, net: nn.Module, labelled: bool) -> None:
        super().__init__()
        self.net, self.labelled = net, labelled

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, *SHAPE), t (B,) in [0, 1] -> like x."""
        labels = {"class_labels": torch.zeros(len(x), dtype=torch.int64, device=x.device)} if self.labelled else {}
        return self.net(x, 1000 * t, return_dict=False, **labels)[0]


def unets(width: int) -> tuple[nn.Module, nn.Module]:
    """The same widths, levels and attention; they have a block more per level going up and one more in the middle."""
    theirs = UNet2DModel(
        sample_size=SHAPE[-1],
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=64,
    )
    ours = UNet(3, width=width, multipliers=(1, 2), blocks=2, attention=(SHAPE[-1] // 2,), size=SHAPE[-1])
    return Theirs(theirs, False), ours


def transformers(width: int, depth: int) -> tuple[nn.Module, nn.Module]:
    """The same width, depth, heads and patches; they embed the time anew in every block and must have a class."""
    theirs = DiTTransformer2DModel(
        num_attention_heads=width // 64,
        attention_head_dim=64,
        in_channels=3,
        num_layers=depth,
        sample_size=SHAPE[-1],
        num_embeds_ada_norm=1000,
    )
    # With the labels' dropout their training would draw a mask on the host in every block.
    for module in theirs.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    return Theirs(theirs, True), DiT(3, SHAPE[-1], 2, width, depth, width // 64)


@dataclass
class Runner:
    """One side: a model, its optimiser and average, and what a step took in every round."""

    name: str
    net: nn.Module
    loss: Loss
    options: argparse.Namespace
    rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=1e-4)
        self.average, self.done = Averages(dict(self.net.named_parameters()), Constant(0.999)), 0

    def step(self, x0: Tensor) -> None:
        """One update."""
        device = self.options.device
        with torch.autocast(device, torch.bfloat16, enabled=self.options.bf16):
            loss = self.loss(x0, self.done)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.average.update(self.done)
        self.done += 1

    def round(self, x0: Tensor, steps: int) -> None:
        """A few timed steps."""
        wait(self.options.device)
        began = time.perf_counter()
        for _ in range(steps):
            self.step(x0)
        wait(self.options.device)
        self.rates.append(steps * len(x0) / (time.perf_counter() - began))

    def operations(self) -> int:
        """Of the forward and backward pass, per sample."""
        with FlopCounterMode(display=False) as counter:
            self.loss(torch.zeros(2, *SHAPE, device=self.options.device), 0).backward()
        self.optimiser.zero_grad(set_to_none=True)
        return counter.get_total_flops() // 2


def wait(device: str) -> None:
    """Until what was asked of the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def raw(net: nn.Module) -> Loss:
    """The hand-written objective: the velocity at uniform times."""

    def loss(x0: Tensor, step: int) -> Tensor:
        t = torch.rand(len(x0), device=x0.device)
        noise = torch.randn_like(x0)
        part = t[:, None, None, None]
        return nn.functional.mse_loss(net((1 - part) * x0 + part * noise, t).float(), noise - x0)

    return loss


def library(net: nn.Module) -> Loss:
    """The same through the library."""
    denoiser, objective = NetDenoiser(net, "flow", shape=SHAPE), Denoising.cfm()
    return lambda x0, step: objective(denoiser, x0, step=step)


def matmul_rate(options: argparse.Namespace) -> float:
    """Operations per second of a large matrix product: the best of three."""
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    n, repeats = (8192, 10) if options.device == "cuda" else (2048, 1)
    a, b = (torch.randn(n, n, device=options.device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(3):
        wait(options.device)
        began = time.perf_counter()
        for _ in range(repeats):
            a @ b
        wait(options.device)
        best = max(best, repeats * 2 * n**3 / (time.perf_counter() - began))
    return best


def compare(name: str, pair: tuple[nn.Module, nn.Module], options: argparse.Namespace) -> list[str]:
    """Rows of the table for one pair of networks."""
    theirs, ours = (net.to(options.device).train() for net in pair)
    counted = [count(net, SHAPE) for net in (theirs, ours)]
    gap = counted[1].flops / counted[0].flops - 1
    if abs(gap) > 0.04:
        raise SystemExit(f"{name}: the FLOPs differ by {100 * gap:.1f} %; nothing was measured")
    sides = [("diffusers", theirs, raw), ("fokker", ours, raw), ("fokker, its objective", copy.deepcopy(ours), library)]
    if options.channels_last:
        sides = [(who, net.to(memory_format=torch.channels_last), make) for who, net, make in sides]
    plain = [Runner(who, net, make(net), options).operations() for who, net, make in sides]
    runners = []
    for who, net, make in sides:
        compiled = torch.compile(net) if options.compile else net
        runners.append(Runner(who, net, make(compiled), options))
    x0 = torch.randn(options.batch, *SHAPE, device=options.device)
    if options.channels_last:
        x0 = x0.contiguous(memory_format=torch.channels_last)
    for runner in runners:
        runner.round(x0, 3 if options.compile else 1)
        runner.rates.clear()
    peaks = []
    for _ in range(options.rounds):
        peaks.append(matmul_rate(options))
        for runner in runners:
            runner.round(x0, options.steps)
    rows = []
    for runner, operations, (parameters, flops) in zip(runners, plain, [*counted, counted[1]], strict=True):
        ratio = statistics.median(a / b for a, b in zip(runner.rates, runners[0].rates, strict=True))
        share = statistics.median(operations * rate / peak for rate, peak in zip(runner.rates, peaks, strict=True))
        rows.append(
            f"| {name} | {runner.name} | {parameters / 1e6:.2f} | {flops / 1e9:.2f} | "
            f"{statistics.median(runner.rates):.1f} | {ratio:.2f} | {100 * share:.0f} % |"
        )
    return rows


def main() -> None:
    """Parse, measure, print; write only when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=("unet", "dit"), help="one of the two comparisons")
    parser.add_argument("--quick", action="store_true", help="small networks, few rounds")
    parser.add_argument("--rounds", type=int, help="rounds (default 5)")
    parser.add_argument("--steps", type=int, help="steps of each runner in a round (default 2; on a GPU 20)")
    parser.add_argument("--batch", type=int, help="samples a step (default 16; on a GPU 256)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch finds)")
    parser.add_argument("--compile", action="store_true", help="torch.compile all networks")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--channels-last", action="store_true", help="memory format of all networks")
    parser.add_argument("-o", dest="out", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    large = options.device == "cuda"
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.steps = options.steps or (20 if large else 2)
    options.batch = options.batch or (256 if large else 16)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pairs: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
        "unet": lambda: unets(128 if large else 32 if options.quick else 64),
        "dit": lambda: transformers(*((768, 12) if large else (128, 3) if options.quick else (256, 4))),
    }
    names = {"unet": "U-Net", "dit": "DiT"}
    where = torch.cuda.get_device_name() if large else f"{torch.get_num_threads()} threads, {platform.machine()}"
    modes = [word for word in ("compile", "bf16", "channels_last") if getattr(options, word)]
    lines = [
        f"torch {torch.__version__}, {where}; batch {options.batch} of {' x '.join(map(str, SHAPE))}; "
        f"{', '.join(modes) or 'float32'}; medians of {options.rounds} rounds of {options.steps} steps",
        "",
        "| net | runner | M parameters | GFLOP forward | samples/s | to diffusers | share of matmul rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, make in pairs.items():
        if options.only in (None, key):
            lines += compare(names[key], make(), options)
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text("\n".join(["# Training steps beside diffusers", "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
