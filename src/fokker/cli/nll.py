"""`fokker evaluate RUN --nll`: how likely a model finds data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from ..errors import ConfigError
from .bars import Bar, new_folder

__all__ = ["measure_nll"]


def measure_nll(
    run: str,
    source: Any,
    info: dict[str, Any],
    about: dict[str, Any],
    output: Path,
    held_out: Callable[[Any], Any],
    options: dict[str, Any],
) -> None:
    """Bits per dimension or nats of held-out and training rows: a table, nll.json and nll.md in a folder of their own.

    Args:
        run: a run folder or a model file.
        source: its data.
        info: the model's header.
        about: facts for the JSON file.
        output: the folder, numbered on if it is there.
        held_out: loads the source's test split.
        options: n, batch_size, seed, and solver, steps, nfe, grid of the flow.
    """
    import torch
    from rich.console import Console

    from ..data import Latents
    from ..files import write_text
    from ..metrics import nll
    from ..registry import build, spec
    from ..train import load
    from ..train.drawing import class_count, is_conditional

    if isinstance(source, Latents):
        raise ConfigError("--nll: this model's data are latents: their density says nothing of the pictures")
    train = source.load("train")
    codec = build("codec", info["codec"]) if info.get("codec") else None
    if codec is not None and codec != train.codec:
        raise ConfigError("--nll: the data has changed since the model was trained on it: its codec is another one")
    denoiser = load(run).to("cuda" if torch.cuda.is_available() else "cpu")
    told = is_conditional(denoiser) if train.labels is None else class_count(denoiser) > 0
    way = {name: options[name] for name in ("steps", "nfe")}
    for family in ("solver", "grid"):
        given = options[family]
        way[family] = None if given is None else spec(build(family, given), inline=2**20)
    with new_folder(output) as folder:
        with Bar() as advance:
            report = nll(denoiser, train, held_out(source), told=told, progress=advance, **options)
        write_text(folder / "nll.json", report.to_json(**about, flow=way))
        write_text(folder / "nll.md", report.markdown())
    Console().print(report.table())
    typer.echo(f"negative log-likelihood, low is good: {folder}")
