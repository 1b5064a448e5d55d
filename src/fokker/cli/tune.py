"""`fokker tune RUN`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, FileError
from .grids import SUFFIXES, parse_component, written

if TYPE_CHECKING:
    from torch import Tensor

    from ..train.drawing import Drawing

__all__ = ["tune"]


def tune(
    run: Annotated[str, typer.Argument(help="A run folder or a model.safetensors file.")],
    nfe: Annotated[int | None, typer.Option(help="The network evaluations a sample may cost; default 6.")] = None,
    steps: Annotated[int | None, typer.Option(help="In place of nfe: steps of the solver.")] = None,
    solver: Annotated[
        str | None, typer.Option(help="A deterministic one: ddim, heun, ...; default the recipe's.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="A class, by number or name; default: all in turn.")] = None,
    cond: Annotated[
        Path | None, typer.Option(help="A .npy file with rows of conditions, taken in turn by the samples.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", "--n", help="Noises that are tuned on (default 64; as many others judge) or measured (512)."
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="How many grids are tried; default 300.")] = None,
    fine: Annotated[
        int | None, typer.Option(help="Steps of the fine solution, four evaluations each; default 64.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The noises; the same seed finds the same grid.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Samples per network call.")] = 64,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where the times go: .yaml or .json; default grid.yaml.")
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(help="Measure the statistics of the solver dpmv3 instead and write them here: .safetensors."),
    ] = None,
    per: Annotated[
        str | None,
        typer.Option(help="With --statistics: event (the default), one number for all of it, or coordinate."),
    ] = None,
) -> None:
    """Find the times at which few steps of a solver err least on a model, and write them to a file.

    The error is the distance from a fine solution of the probability-flow ODE; the table shows it on noises that the
    search has not seen, for the grids known by name and for the one found.
    """
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Table

    from ..files import trial as probe
    from ..files import write_text
    from ..launch import place
    from ..train import read_header
    from ..train.checkpoint import load_denoiser
    from ..train.drawing import settle
    from ..train.options import Sampling
    from ..tuning import Trial, named_grids, search
    from .sample import _condition
    from .stopping import stopping

    if steps is not None and nfe is not None:
        raise ConfigError(f"--steps, --nfe: give one of them (given steps={steps}, nfe={nfe})")
    searching = (("--solver", solver), ("--steps", steps), ("--nfe", nfe), ("--trials", trials), ("--fine", fine))
    if statistics is not None:
        for option, given in (*searching, ("--output", output)):
            if given is not None:
                raise ConfigError(
                    f"{option}: given {str(given)!r}, but --statistics measures the model, for any grid: leave it"
                )
    elif per is not None:
        raise ConfigError(f"--per: given {per!r}, but it is how --statistics measures: give both, or neither")
    n = (64 if statistics is None else 512) if n is None else n
    trials, fine = 300 if trials is None else trials, 64 if fine is None else fine
    output, per = output or Path("grid.yaml"), per or "event"
    for option, count in (("--n", n), ("--trials", trials), ("--batch-size", batch_size)):
        if count < 1:
            raise ConfigError(f"{option}: given {count}, must be at least 1")
    if statistics is not None:
        if statistics.suffix != ".safetensors":
            raise ConfigError(f"--statistics: given {str(statistics)!r}, must end in .safetensors")
        if statistics.exists():
            raise FileError(f"{statistics} exists and is left as it is; choose another name")
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"--output: given {str(output)!r}, must end in {', '.join(SUFFIXES)}")
    if statistics is None and output.exists():
        raise FileError(f"{output} exists and is left as it is; choose another name with -o")
    with probe(output if statistics is None else statistics):
        pass
    nfe = 6 if steps is None and nfe is None else nfe
    _, info = read_header(run)
    denoiser = load_denoiser(run).to(place().device)
    defaults = info.get("recipe", {}).get("sampling")
    way = settle(
        denoiser,
        None if defaults is None else Sampling(**defaults),
        cond=_condition(denoiser, info.get("classes", []), label, cond),
        guidance=guidance,
        solver=None if solver is None else parse_component(solver, "--solver"),
    )

    if statistics is not None:
        _measure(way, statistics, n=n, per=per, seed=seed, batch_size=batch_size)
        again = ["fokker", "sample", run, "--solver", f"dpmv3:statistics={statistics}"]
        typer.echo(f"use it: {_call(again, label, cond, guidance)}")
        return

    def trial(first: int) -> Trial:
        numbers = torch.arange(first, first + n)
        keys: dict[str, Any] = {"seed": seed, "cond": way.rows(numbers), "batch_size": batch_size, "fine": fine}
        return Trial(way.denoiser, way.options["solver"], indices=numbers, **keys)

    console, columns = Console(stderr=True), (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with stopping(lambda: "nothing was written"):
        seen = trial(0)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("trying grids", total=trials)
            grids = named_grids(seen, steps, nfe)
            if max(map(len, grids.values())) < 3:
                much = f"--steps: given {steps}" if nfe is None else f"--nfe: given {nfe}"
                raise ConfigError(f"{much}, which is one step of {seen.solver} with nothing to tune; give more")
            found = search(seen, grids, trials, lambda tried, least: bar.advance(task)).values.value
        fresh = trial(n)
        errors = {name: fresh(times) for name, times in named_grids(fresh, steps, nfe).items()}
    chosen, cost = seen.solver, seen.solver.plan(seen.process, found).nfe
    head = f"for {chosen}, {cost} evaluations, guidance {way.guidance:g}: RMS error {fresh(found):.4g}"
    write_text(output, _text(found, head, output.suffix))
    least = min(errors, key=lambda name: errors[name])
    table = Table("grid", "RMS error", box=None)
    for name, value in sorted(errors.items(), key=lambda item: item[1]):
        table.add_row(name, f"{value:.4g}")
    table.add_row("found", f"{fresh(found):.4g}")
    Console().print(table)
    typer.echo(
        f"{cost} evaluations of {chosen}, on {n} noises not tuned on; {_verdict(errors[least], fresh(found), least)}"
    )
    typer.echo(f"times: {output}")
    again = ["fokker", "sample", run, "--solver", written(chosen), "--grid", str(output)]
    typer.echo(f"use it: {_call(again, label, cond, guidance)}")


def _call(words: list[str], label: str | None, cond: Path | None, guidance: float | None) -> str:
    """A command as a shell takes it, with the condition it is for."""
    for option, given in (("--label", label), ("--cond", cond), ("--guidance", guidance)):
        words += [] if given is None else [option, str(given)]
    return shlex.join(words)


def _measure(way: Drawing, output: Path, **keys: Any) -> None:
    """Compute the statistics of a model and write them."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from ..statistics import compute_statistics
    from .stopping import stopping

    console, columns = Console(stderr=True), (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with stopping(lambda: "nothing was written"):
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("measuring samples", total=keys["n"])
            cond = way.rows(torch.arange(keys["n"]))
            found = compute_statistics(way.denoiser, cond=cond, progress=lambda k: bar.advance(task, k), **keys)
        found.save(output)
    typer.echo(f"statistics of {keys['n']} samples at {len(found.lam)} values of lam: {output}")


def _verdict(before: float, after: float, name: str) -> str:
    if after < before:
        return f"{before / after:.2f} times less error than {name}, the best of the others"
    return f"no better than {name}: try more noises (-n) or trials (--trials)"


def _text(times: Tensor, head: str, suffix: str) -> str:
    import json

    body = json.dumps({"kind": "times", "values": times.tolist()})
    if suffix == ".json":
        return body + "\n"
    lines = "\n".join(f"- {value!r}" for value in times.tolist())
    return f"# times found by fokker tune {head}\nkind: times\nvalues:\n{lines}\n"
