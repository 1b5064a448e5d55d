"""`fokker info [RUN | RECIPE [key=value ...]]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..classic import Model
    from ..denoiser import NetDenoiser

__all__ = ["info"]


def info(
    what: Annotated[
        str | None, typer.Argument(help="A run folder, model file or recipe; nothing: the installation.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes of a recipe, such as net.width=64.")] = None,
) -> None:
    """Describe a trained model, what a recipe would train, or the installation and everything it can build."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False)
    for name, value in _installation() if what is None else _described(what, overrides or []):
        table.add_row(name, value)
    Console().print(table)


def _installation() -> list[tuple[str, str]]:
    import platform

    import torch

    from .. import __version__
    from ..registry import KINDS

    return [
        ("fokker", __version__),
        ("python, torch", f"{platform.python_version()}, {torch.__version__}"),
        ("device", torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"),
        *((family, ", ".join(kinds)) for family, kinds in KINDS.items()),
    ]


def _described(what: str, overrides: list[str]) -> list[tuple[str, str]]:
    from ..classic import Model
    from ..errors import ConfigError
    from ..train import load, read, read_header, recipe_names
    from ..train.checkpoint import model_path

    path, extra = Path(what), dict[str, Any]()
    if not path.is_dir() and (what in recipe_names() or path.suffix in (".yaml", ".yml")):
        recipe = read(what, overrides)
        samples = recipe.data.load("train")
        model = recipe.fresh(samples)
        rows, extra = [("recipe", what), ("data", f"{len(samples):,} samples")], {"classes": samples.classes}
    elif overrides:
        raise ConfigError(f"{overrides[0]!r}: only a recipe can be changed, and {what} is none")
    else:
        extra = read_header(what)[1]
        model, rows = load(what), [("file", str(model_path(what)))]
    rows += _classic(model) if isinstance(model, Model) else _denoiser(model)
    if extra.get("classes") and not isinstance(model, Model):
        rows += [("classes", ", ".join(f"{i} {name}" for i, name in enumerate(extra["classes"])))]
    if "step" in extra:
        rows += [("trained", f"{extra['step']} steps")]
    return rows


def _denoiser(denoiser: NetDenoiser) -> list[tuple[str, str]]:
    from ..nets import count
    from ..registry import spec

    low, high = denoiser.lam_range
    rows = []
    if denoiser.shape:
        parameters, operations = count(denoiser.net, denoiser.shape)
        rows += [("parameters", f"{parameters:,}")]
        rows += [("FLOPs", f"{operations:,} per sample and forward pass (a multiply-add is 2)")]
    return [
        *rows,
        ("event", " x ".join(map(str, denoiser.shape))),
        ("process", str(denoiser.process)),
        ("predicts", denoiser.reading.name),
        ("lam range", f"{low:.3f} to {high:.3f}"),
        ("network", ", ".join(f"{k}={v}" for k, v in spec(denoiser.net).items())),
    ]


def _classic(model: Model) -> list[tuple[str, str]]:
    from ..registry import spec

    told = {"exact": "exact", "bound": "a lower bound", "none": "none"}
    return [
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("event", " x ".join(map(str, model.shape))),
        ("model", ", ".join(f"{k}={v}" for k, v in spec(model).items())),
        ("log-likelihood", told[model.likelihood]),
    ]
