"""What was seen of the user's data, and the commented recipe that follows from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["Line", "Look"]

Line = tuple[str, Any, str]  # key, value, why


@dataclass
class Look:
    """What was seen and what follows.

    Args:
        seen: (what, value) for the user to read.
        data, net, train: lines of these sections of a recipe: key, value, why.
        n: number of training samples, about.
        classes: number of classes, 0 for none.
        image: whether samples are pictures (or feature maps).
        large: whether these have more than 32 pixels a side.
    """

    seen: list[tuple[str, str]]
    data: list[Line]
    net: list[Line]
    n: int
    classes: int = 0
    image: bool = False
    large: bool = False

    def recipe(self, name: str) -> str:
        """The commented YAML. `fokker.train.read` accepts it."""
        signals = self.data[0][1] == "signals"
        batch = 64 if signals or self.large else 128 if self.image else 256
        while batch > max(8, self.n):
            batch //= 2
        rounds = 30 if self.image else 60 if signals else 400
        steps = min(20000, max(1000, round(rounds * self.n / batch, -2)))
        rate = 1e-3 if self.image else 5e-4
        train: list[Line] = [
            (
                "steps",
                int(steps),
                f"about {max(1, round(steps * batch / self.n))} times through the data; see samples/",
            ),
            ("batch", batch, "halve it if memory runs out"),
            ("lr", rate, "halve it if the loss jumps"),
            ("ema", 0.999 if steps >= 5000 else 0.995, "the average over the last 1 / (1 - ema) steps is what samples"),
            ("sample_every", max(100, int(steps) // 5), "steps between pictures in samples/"),
        ]
        objective: list[Line] = [
            ("predict", "velocity", "flow matching"),
            ("stratified", True, "times spread evenly over each batch: less noise in the loss"),
        ]
        sampling: list[Line] = [
            ("solver", "heun", "two network calls a step, second order"),
            ("steps", 20, "more is finer and slower"),
            ("n", 64 if self.image or signals else 500, "samples in a picture"),
        ]
        if self.image:
            objective.insert(1, ("times", {"kind": "logit-normal"}, "more training at the middle times"))
        if self.classes:
            objective.append(("cond_dropout", 0.1, "a tenth is trained without its class, which guidance needs"))
            sampling.append(("guidance", 2.0, "above 1: more typical of the class, less varied; 1 is none"))
        parts = [("data", self.data), ("net", self.net), ("objective", objective), ("train", train)]
        lines = [f"# {name}: a first recipe, written after looking at the data. Train it: fokker train FILE"]
        lines += [f"name: {json.dumps(name)}", "process: flow  # straight paths from data to noise"]
        for section, body in [*parts, ("sampling", sampling)]:
            lines += [f"{section}:", *(_line(*line) for line in body)]
        return "\n".join(lines) + "\n"


def _line(key: str, value: Any, why: str) -> str:
    if not key:
        return f"  # {why}"
    return f"  {key}: {json.dumps(value, ensure_ascii=False)}" + (f"  # {why}" if why else "")
