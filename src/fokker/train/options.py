"""The sections of a recipe: how the network is read, trained and sampled, and where the run is kept."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ..component import component
from ..errors import ConfigError
from ..registry import build, resolves
from ..sampling import DEFAULT_GRID, DEFAULT_SOLVER
from ..solvers import Grid, Solver
from .ema import Constant, Power
from .optim import optimiser_class

__all__ = ["SECTIONS", "Reads", "Run", "Sampling", "Training"]

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


def _ema(given: Any) -> Any:
    """An average's recipe; a bare number is the decay of the constant one."""
    if not isinstance(given, (int, float)) or isinstance(given, bool):
        return build("ema", given)
    if not 0 <= given < 1:
        raise ConfigError(f"train.ema: given {given}, must be at least 0 and less than 1, or a kind of average")
    return Constant(given)


@component
class Reads:
    """How the network is used: see `NetDenoiser`."""

    key: ClassVar[str] = "denoiser"
    predict: str = "velocity"
    precondition: Literal["none", "edm"] = "none"
    time: str = "t"
    sigma_data: Positive = 0.5
    learned_variance: bool = False


@component
class Training:
    """The optimisation.

    Args:
        steps: updates in all.
        batch: samples per update, over all processes and accumulated parts.
        lr: learning rate at its height.
        schedule: of the learning rate after `warmup` linear steps: "constant", "cosine" (to `lr_end` at `steps`) or
            "inverse-sqrt" (lr / sqrt(max(1, step / reference)), Karras et al. 2024).
        lr_end: where cosine ends.
        warmup, reference: in steps; reference 0 stands for `warmup`.
        optimiser: a class of torch.optim by name.
        optimiser_options: its other arguments, such as {betas: [0.9, 0.99]}.
        weight_decay: decoupled in AdamW.
        clip: largest norm of the gradient; 1e9, say, for no clipping.
        ema: the average of the weights that is saved and sampled: a decay, or a component of the family "ema".
        seed: of everything that is drawn.
        accumulate: parts in which each process works off its share of the batch, to save memory.
        precision: "no" (float32), "bf16" or "fp16" (autocast; fp16 with a scaled loss).
        compile: compile the network with torch.compile.
        channels_last: memory format of images and convolutions.
        shard: split weights, gradients and optimiser state over the processes (FSDP2) instead of copying (DDP).
        log_every: steps per line of log.jsonl.
        sample_every: steps per picture, 0 for the last one only.
        checkpoint_every: steps per saved state (`--resume`), 0 for the last one only.
        snapshot_every: steps per kept snapshot of the averages (`fokker ema`), 0 for none.
        tensorboard: write what is logged for TensorBoard too (extra `log`).
    """

    key: ClassVar[str] = "train"
    steps: Count = 1000
    batch: Count = 128
    lr: Positive = 1e-3
    schedule: Literal["constant", "cosine", "inverse-sqrt"] = "constant"
    lr_end: Annotated[float, Field(ge=0)] = 0.0
    warmup: Natural = 100
    reference: Natural = 0
    optimiser: str = "AdamW"
    optimiser_options: dict[str, Any] = Field(default_factory=dict)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Positive = 1.0
    ema: Annotated[Constant | Power, BeforeValidator(_ema)] = Constant(0.999)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    accumulate: Count = 1
    precision: Annotated[
        Literal["no", "bf16", "fp16"], BeforeValidator(lambda given: "no" if given is False else given)
    ] = "no"
    compile: bool = False
    channels_last: bool = False
    shard: bool = False
    log_every: Count = 20
    sample_every: Natural = 500
    checkpoint_every: Natural = 500
    snapshot_every: Natural = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        optimiser_class(self.optimiser)
        if self.schedule == "inverse-sqrt" and not (self.warmup or self.reference):
            raise ConfigError("train.reference: given 0 with warmup=0; inverse-sqrt needs a step from which it falls")

    def rate(self, step: int) -> float:
        """The learning rate of 0-based step `step`, a function of it alone."""
        factor = min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "cosine" and step >= self.warmup:
            u = (step - self.warmup) / max(1, self.steps - self.warmup)
            low = self.lr_end / self.lr
            factor *= low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, u)))
        if self.schedule == "inverse-sqrt":
            factor /= math.sqrt(max(1.0, (step + 1) / max(1, self.reference or self.warmup)))
        return self.lr * factor


@component
class Sampling:
    """How pictures are drawn while training, and by default afterwards.

    Args:
        solver, grid: as in `sample`.
        steps, nfe: one of them: the number of steps (20 if neither is given), or the most evaluations allowed.
        guidance: classifier-free guidance's scale; 1 is none.
        n: how many samples.
    """

    key: ClassVar[str] = "sampling"
    solver: Annotated[Solver, resolves("solver")] = Field(default_factory=lambda: DEFAULT_SOLVER)
    grid: Annotated[Grid, resolves("grid")] = Field(default_factory=lambda: DEFAULT_GRID)
    steps: Count | None = None
    nfe: Count | None = None
    guidance: float = 1.0
    n: Count = 64

    def __post_init__(self) -> None:
        if self.steps is not None and self.nfe is not None:
            raise ConfigError(
                f"sampling: give steps or nfe, not both (given steps={self.steps}, nfe={self.nfe}; steps=null takes one"
                " away)"
            )
        if self.steps is None and self.nfe is None:
            object.__setattr__(self, "steps", 20)


@component
class Run:
    """Where a run is kept, default runs/<name>; and what tells its states from another's (set by training)."""

    key: ClassVar[str] = "run"
    dir: str = ""
    id: str = ""


SECTIONS = {"denoiser": Reads, "train": Training, "sampling": Sampling, "run": Run}
