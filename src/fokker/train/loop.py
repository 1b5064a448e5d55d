"""One training in progress: its step, its state, its pictures.

What step k draws (batch, times, noise, dropped conditions, augmentation) is a function of (seed, k, position in the
global batch); what dropout draws, of (seed, k, rank). Neither history nor the number of processes matters.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import noise as philox
from ..classic import Model
from ..data import Samples, picture
from ..denoiser import NetDenoiser
from ..errors import ConfigError, FileError
from ..files import write_whole
from ..objectives import Denoising, Terms
from .drawing import class_count, draw, is_conditional
from .ema import Averages, write_snapshot
from .journal import Tally
from .optim import SELF_SKIPPING, make_optimiser
from .parallel import Team, quiet_gradients, shard_of, whole
from .recipe import Recipe
from .state import State

__all__ = ["Loop", "batch_rows"]

PATIENCE = 10  # steps in a row whose numbers are not finite


def batch_rows(seed: int, step: int, batch: int, n: int, known: dict[int, Tensor] | None = None) -> Tensor:
    """The rows of the training set in batch `step`: every epoch is one permutation of all n, keyed by (seed, epoch).

    Args:
        seed, step, batch, n: the batch holds places [step batch, (step + 1) batch) of the endless list of epochs.
        known: keeps permutations between calls.
    """
    known = {} if known is None else known
    places = torch.arange(step * batch, (step + 1) * batch)
    epochs = range(int(places[0]) // n, int(places[-1]) // n + 1)
    for epoch in epochs:
        if epoch not in known:
            known[epoch] = philox.permutation(seed, n, epoch)
    for old in [epoch for epoch in known if epoch not in epochs]:
        del known[old]
    return torch.cat([known[e][places[places // n == e] % n] for e in epochs])


class Step(nn.Module):
    """The losses of a part of a batch as a module, so that what wraps it sees every parameter."""

    def __init__(self, model: NetDenoiser | Model, objective: Denoising) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.learned = nn.ModuleDict() if isinstance(model, Model) else objective.learned(model.process)

    def forward(self, x0: Tensor, cond: Tensor | None, keys: dict[str, Any]) -> Terms:
        """x0 (B, *event), cond (B, ...) or None, keys of the randomness -> terms."""
        if isinstance(self.model, Model):
            loss = self.model.losses(x0, **{name: keys[name] for name in ("seed", "step", "positions")})
            zero = torch.zeros_like(loss.detach())
            return Terms(loss, zero, loss.detach(), zero + 1.0, zero)
        terms = self.objective.terms(self.model, x0, cond, learned=self.learned, **keys)
        self.objective.observe(self.learned, terms)  # here, where split weights are whole
        return terms


def _blocks(net: nn.Module) -> list[nn.Module]:
    """The entries of a network's lists of modules: what is gathered at once when weights are split."""
    lists = [module for module in net.modules() if isinstance(module, nn.ModuleList)]
    entries = [block for one in lists for block in one if not isinstance(block, nn.ModuleList)]
    return [block for block in entries if next(block.parameters(), None) is not None]


class Loop:
    """The model, its optimiser and averages, and how they go one step further.

    Args:
        recipe: what to train.
        samples: the training set.
        model: a fresh one.
        team: the processes.
    """

    def __init__(self, recipe: Recipe, samples: Samples, model: NetDenoiser | Model, team: Team) -> None:
        self.recipe, self.options, self.samples, self.team = recipe, recipe.train, samples, team
        options, self.device = recipe.train, team.device
        if options.batch < team.size * options.accumulate:
            raise ConfigError(
                f"train.batch: given {options.batch}, fewer than {team.size} processes times "
                f"train.accumulate={options.accumulate}"
            )
        self.split = options.shard and team.size > 1
        if self.split and options.channels_last:
            raise ConfigError(
                "train.channels_last: given True with train.shard=True, which torch cannot; leave one out"
            )
        classic = isinstance(model, Model)
        for name in ("compile", "shard"):
            if classic and getattr(options, name):
                raise ConfigError(f"train.{name}: given True, which {type(model).__name__} cannot; leave it out")
        if isinstance(model, Model) and model.alone and team.size > 1:
            raise ConfigError(
                f"model: {type(model).__name__} with these fields keeps what one process alone can, and {team.size} "
                "were started: start one, or change them (of an energy: model.objective=dsm)"
            )
        self.conditional = is_conditional(model)
        # Pictures of a model without classes are drawn for conditions of the data.
        known = samples.take(torch.arange(min(recipe.sampling.n, len(samples))))[1]
        self.examples = known if self.conditional and not class_count(model) else None
        if options.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.to(self.device).train()
        # Holds an average while it is looked at; where weights are split, on the CPU until it is.
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False).to("cpu" if self.split else self.device)
        self.module = Step(model, recipe.objective).to(self.device)
        net = model if isinstance(model, Model) else model.net
        if options.compile:
            net.compile()
        self.wrapped = team.wrap(self.module, _blocks(net), self.split)
        self.parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.weights = {
            name.removeprefix("model."): p for name, p in self.parameters.items() if name.startswith("model.")
        }
        self.beside = [p for name, p in self.parameters.items() if not name.startswith("model.")]
        self.optimiser = make_optimiser(
            options.optimiser,
            self.weights.values(),
            options.lr,
            options.weight_decay,
            options.optimiser_options,
            self.beside,
        )
        self.averages = Averages(self.weights, options.ema)
        self.precision = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        # Such an optimiser leaves out a step itself, so that the host need not wait to know.
        fused = bool(self.optimiser.defaults.get("fused")) and isinstance(self.optimiser, SELF_SKIPPING)
        self.skips_itself = fused and not self.split and not self.scaler.is_enabled()
        self.skipped, self.streak = (torch.zeros((), dtype=torch.int64, device=self.device) for _ in range(2))
        self.tally = Tally(self.device, None if isinstance(model, Model) else model.process.T)
        self.since = 0
        self.data = _fingerprint(samples)
        self.orders: dict[int, Tensor] = {}

    def fetch(self, rows: Tensor, positions: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Rows of the training set, augmented, on the device."""
        began = time.perf_counter()
        x0, cond = self.samples.take(rows)
        x0 = self.samples.augment(x0, seed=self.options.seed, step=step, positions=positions)
        x0 = (x0.pin_memory() if self.device.type == "cuda" else x0).to(self.device, non_blocking=True)
        if self.options.channels_last and x0.ndim == 4:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        cond = cond.to(self.device, non_blocking=True) if cond is not None and self.conditional else None
        self.tally.wait += time.perf_counter() - began
        return x0, cond

    def step(self, step: int, stop: bool = False) -> bool:
        """One update. `stop`: this process was asked to stop; returns whether any was (known every few steps on a GPU).

        Raises:
            ConfigError: ten steps in a row were not finite.
        """
        options, team = self.options, self.team
        rows = batch_rows(options.seed, step, options.batch, len(self.samples), self.orders)
        mine = torch.arange(options.batch).tensor_split(team.size)[team.rank]
        parts = mine.tensor_split(options.accumulate)
        for group in self.optimiser.param_groups:
            group["lr"] = options.rate(step)
        torch.manual_seed(_dropout_seed(options.seed, step, team.rank))
        self.optimiser.zero_grad(set_to_none=True)
        bad = torch.zeros((), dtype=torch.bool, device=self.device)
        for i, part in enumerate(parts):
            x0, cond = self.fetch(rows[part], part, step)
            positions = torch.arange(int(part[0]), int(part[-1]) + 1, device=self.device)
            keys = {"seed": options.seed, "step": step, "positions": positions, "total": options.batch}
            with quiet_gradients(self.wrapped, i + 1 == len(parts)):
                with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
                    terms = self.wrapped(x0, cond, keys)
                # Copies and shards average their gradients over the processes; the batch's mean is asked for.
                share = terms.loss.sum() * (team.size / options.batch)
                self.scaler.scale(share).backward()
            self.tally.losses(terms.loss, terms.error / terms.ratio, terms.t)
            bad |= ~terms.loss.detach().isfinite().all()
        self.scaler.unscale_(self.optimiser)
        norm = whole(nn.utils.clip_grad_norm_(self.weights.values(), options.clip).detach())
        bad |= ~norm.isfinite()
        if self.beside:  # what the objective learns is not clipped
            bad |= ~whole(nn.utils.clip_grad_norm_(self.beside, math.inf).detach()).isfinite()
        flags = torch.stack([bad.to(norm.dtype), torch.full_like(norm, float(stop))])
        flags = team.any(flags)
        self._update(flags[0])
        self.tally.norm(norm)
        self.averages.update(step)
        if self.module.learned:
            self.recipe.objective.refresh(self.module.learned, step, team.sum)
        self.since += 1
        # Reading a number waits for the device: on the CPU there is nothing to wait for.
        if self.device.type == "cpu" or (step + 1) % PATIENCE == 0:
            self._give_up(step)
            return bool(flags[1])
        return False

    def _update(self, bad: Tensor) -> None:
        """Move the weights, unless this step's numbers are not finite."""
        if self.scaler.is_enabled():
            if not bool(bad):
                self.scaler.step(self.optimiser)
            self.scaler.update()
        elif self.skips_itself:
            self.optimiser.found_inf = bad.float()  # type: ignore[attr-defined]
            self.optimiser.step()
        elif not bool(bad):
            self.optimiser.step()
        self.skipped += bad.long()
        self.streak.add_(1).mul_(bad.long())

    def _give_up(self, step: int) -> None:
        if int(self.streak) >= PATIENCE:
            raise ConfigError(
                f"the loss or its gradient was not finite in {int(self.streak)} steps in a row, up to step {step + 1}: "
                f"lower train.lr (now {self.options.lr:g}), lengthen train.warmup, lower train.clip, "
                "or use train.precision=no; then start anew, or with --resume from the last state"
            )

    def record(self, step: int) -> dict[str, Any]:
        """The line of the log after step `step`; the sums start again. Raises ConfigError as `step` does."""
        self._give_up(step)
        record = self.tally.record(self.team.sum, self.since * self.options.batch)
        self.tally.clear()
        self.since = 0
        return {"step": step + 1, **record, "lr": self.options.rate(step), "skipped": int(self.skipped)}

    # ---- state

    def state(self, step: int) -> State:
        """Everything that the next step needs; every process must ask for it."""
        if self.team.size > 1 and self.module.learned:
            self.recipe.objective.gather(self.module.learned, self.team.sum)
        tensors = {f"model/{name}": self._kept(value) for name, value in self.module.state_dict().items()}
        tensors |= {f"average/{name}": value for name, value in self._averages().items()}
        numbers: dict[str, dict[str, Any]] = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser/{name}/{key}"] = self._kept(value)
                else:
                    numbers.setdefault(name, {})[key] = value
        scaler = self.scaler.state_dict()
        facts = {"skipped": int(self.skipped), "streak": int(self.streak), "optimiser": numbers, "scaler": scaler}
        return State(step, tensors, facts | {"data": self.data})

    def _averages(self) -> dict[str, Tensor]:
        shards = self.averages.state().items()
        return {name: self._kept(value, self.weights[name.partition("/")[2]]) for name, value in shards}

    def _kept(self, value: Tensor, like: Tensor | None = None) -> Tensor:
        """A whole tensor for a file. One that was split leaves the device at once, and is kept by the first process."""
        full = whole(value, like)
        return full if not self.split else full.cpu() if self.team.first else full.new_empty(0)

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Take up a state. Raises FileError if it does not fit this recipe or data."""
        if state.facts.get("data") != self.data:
            raise FileError(
                f"the data has changed since the state of step {state.step} was saved: "
                f"then {state.facts.get('data')} (number, shape and checksum of samples), now {self.data}"
            )
        tensors = dict(state.tensors)
        try:
            for name, value in self.module.state_dict().items():
                value.copy_(shard_of(tensors.pop(f"model/{name}"), value))
            average = {}
            for name in self.averages.state():
                shard: Any = shard_of(tensors.pop(f"average/{name}"), self.weights[name.partition("/")[2]])
                average[name] = shard.to_local() if hasattr(shard, "to_local") else shard
            self.averages.load(average)
            if self.team.size > 1 and self.module.learned:  # what one process had counted counts once
                self.recipe.objective.gather(self.module.learned, lambda value: value)
            kept: dict[int, dict[str, Any]] = {}
            for i, (name, parameter) in enumerate(self.parameters.items()):
                values: dict[str, Any] = dict(state.facts["optimiser"].get(name, {}))
                prefix = f"optimiser/{name}/"
                for key in [key for key in tensors if key.startswith(prefix)]:
                    value = tensors.pop(key)
                    if value.shape == parameter.shape:
                        value = shard_of(value, parameter)
                        if not self.split:  # fused optimisers need the parameter's own layout
                            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                    values[key.removeprefix(prefix)] = value
                if values:
                    kept[i] = values
            if tensors:
                raise KeyError(next(iter(tensors)))
            groups = self.optimiser.state_dict()["param_groups"]
            self.optimiser.load_state_dict({"state": kept, "param_groups": groups})
            if self.scaler.is_enabled() and state.facts["scaler"]:
                self.scaler.load_state_dict(state.facts["scaler"])
            self.skipped.fill_(state.facts["skipped"])
            self.streak.fill_(state.facts["streak"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise FileError(f"the state of step {state.step} does not fit this recipe ({error})") from None

    # ---- what others look at

    def snapshot(self, folder: Path, step: int) -> None:
        """Keep all averages as they are (`fokker ema`); every process must ask for it."""
        tensors = self._averages()
        if self.team.first:
            write_snapshot(folder, step, self.averages, tensors)

    @torch.no_grad()
    def look(self) -> NetDenoiser | Model:
        """The model with (the first of) its averages as weights; every process must ask for it."""
        own = dict(self.averaged.named_parameters())
        for name, value in self.averages.values(0).items():
            full = whole(value, self.weights[name])
            if self.team.first:
                own[name].copy_(full)
        for mine, theirs in zip(self.averaged.buffers(), self.module.model.buffers(), strict=True):
            mine.copy_(whole(theirs))
        return self.averaged

    def picture(self, path: Path) -> None:
        """Draw the averaged model's samples; every process must ask for it, the first one draws."""
        began = time.perf_counter()
        model = self.look()
        if self.team.first:
            model.to(self.device)
            classes = class_count(model)  # one class a column
            x, _ = draw(model, self.recipe.sampling, cond=self.examples)
            image = picture(x.cpu(), classes if 0 < classes <= 20 else 8, self.samples.codec)
            if image is not None:
                write_whole(path, lambda temporary: image.save(temporary, format="PNG"))
        if self.split:
            model.to("cpu")
        self.team.wait()
        self.tally.began += time.perf_counter() - began  # drawing is not training


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """What seeds torch's own generator, which dropout draws from: a function of (seed, step, rank)."""
    words: Any = philox.philox([step, rank, 0, philox.DOMAINS["training"]], (seed & 0xFFFFFFFF, seed >> 32))  # type: ignore[list-item]
    return int(words[0]) << 31 ^ int(words[1])


def _fingerprint(samples: Samples) -> list[int | str]:
    """What tells one training set from another: number, shape, and a checksum of a thousand samples and all labels."""
    rows = torch.linspace(0, len(samples) - 1, min(len(samples), 1000)).long()
    digest = hashlib.sha256(samples.values[rows].numpy().tobytes())
    for told in (samples.labels, samples.cond):
        digest.update(b"" if told is None else told.numpy().tobytes())
    return [len(samples), *samples.shape, digest.hexdigest()[:16]]
