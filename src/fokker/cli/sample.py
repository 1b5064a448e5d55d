"""`fokker sample RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ..errors import ConfigError, FileError, closest

__all__ = ["sample"]


def sample(
    run: Annotated[str, typer.Argument(help="A run folder or a model.safetensors file.")],
    n: Annotated[int, typer.Option("--n", help="How many samples.")] = 64,
    solver: Annotated[
        str | None, typer.Option(help="euler, heun, rk4, ddim, ancestral, ...; fields as in ddim:eta=0.5.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver.")] = None,
    nfe: Annotated[int | None, typer.Option(help="In place of steps: the most network evaluations allowed.")] = None,
    grid: Annotated[str | None, typer.Option(help="t, lam, karras, quadratic.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
    label: Annotated[str | None, typer.Option(help="A class, by number or name; default: all in turn.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per network call.")] = 64,
    output: Annotated[Path, typer.Option("-o", "--output", help=".png for a picture, .npy for numbers.")] = Path(
        "samples.png"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
) -> None:
    """Draw samples from a trained model and write them as a picture or as numbers."""
    import numpy as np
    import torch

    from ..files import write_whole
    from ..guidance import CFG
    from ..sampling import sample as draw
    from ..train import load, read_header
    from ..train.trainer import class_count

    if n < 1:
        raise ConfigError(f"--n: given {n}, must be at least 1")
    if output.suffix not in (".png", ".npy"):
        raise ConfigError(f"--output: given {str(output)!r}; must end in .png or .npy")
    if output.exists() and not overwrite:
        raise FileError(f"{output} exists and is left as it is; choose another name or give --overwrite")
    _, info = read_header(run)
    denoiser = load(run).to("cuda" if torch.cuda.is_available() else "cpu")
    defaults: dict[str, Any] = info.get("recipe", {}).get("sampling", {})
    count = class_count(denoiser)
    cond = _labels(label, count, info.get("classes", []), n)
    scale = defaults.get("guidance", 1.0) if guidance is None else guidance
    if cond is None and guidance is not None and guidance != 1.0:
        raise ConfigError("--guidance: this model has no classes to be guided to")
    guided = denoiser if cond is None or scale == 1.0 else CFG(denoiser, scale)
    x = draw(
        guided,
        n=n,
        solver=_component(solver) if solver is not None else defaults.get("solver"),
        grid=grid if grid is not None else defaults.get("grid"),
        steps=steps if steps is not None or nfe is not None else defaults.get("steps"),
        nfe=nfe,
        cond=cond,
        seed=seed,
        batch_size=min(batch_size, n) if batch_size > 0 else batch_size,
        pad=True,
        progress=n > batch_size,
    )
    if output.suffix == ".npy":
        numbers = x.cpu().numpy()

        def write_numbers(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, numbers, allow_pickle=False)

        write_whole(output, write_numbers)
    else:
        from ..data import picture

        image = picture(x, columns=max(1, round(n**0.5)))
        if image is None:
            raise ConfigError(f"--output: samples of shape {tuple(x.shape[1:])} have no picture; write a .npy file")
        write_whole(output, lambda path: image.save(path, format="PNG"))
    if not torch.isfinite(x).all():
        typer.echo("fokker: warning: some samples are not finite", err=True)
    typer.echo(f"{n} samples: {output}")


def _labels(label: str | None, count: int, names: list[str], n: int) -> Any:
    import torch

    if count == 0:
        if label is not None:
            raise ConfigError(f"--label: given {label!r}, but this model has no classes")
        return None
    if label is None:
        return torch.arange(n) % count
    by_name = {name.casefold(): i for i, name in enumerate(names)}
    if label.casefold() in by_name:
        return torch.full((n,), by_name[label.casefold()])
    if label.isdecimal() and int(label) < count:
        return torch.full((n,), int(label))
    numbers = f"0 to {count - 1}"
    raise ConfigError(f"--label: given {label!r}; allowed: {numbers}{'; ' + closest(label, names) if names else ''}")


def _component(text: str) -> Any:
    """`ddim:eta=0.5,...` as a recipe."""
    kind, _, rest = text.partition(":")
    values: dict[str, Any] = {"kind": kind}
    for item in filter(None, rest.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--solver: given {text!r}; fields are written kind:name=value,name=value")
        try:
            values[name.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):  # YAML takes 2024-13-45 for a date
            raise ConfigError(f"--solver: given {text!r}; {value!r} is no value") from None
    return values
