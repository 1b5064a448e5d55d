"""`fokker demo`: from data to picture in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    folder: Annotated[Path, typer.Option(help="Where the run is kept; numbered on if it exists.")] = Path("runs/demo"),
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, such as train.steps=50.")] = None,
) -> None:
    """Train the recipe `fashion`, draw every class, and let a classifier judge the result."""
    import torch

    from ..data import picture
    from ..files import write_whole
    from ..metrics import class_agreement, train_classifier
    from ..train import fit, load, read
    from ..train.drawing import draw

    chosen, number = folder, 1
    while chosen.exists():
        number += 1
        chosen = folder.with_name(f"{folder.name}-{number}")
    recipe = read("fashion", [*(overrides or ()), f"run.dir={chosen}"])
    fit(recipe)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    denoiser = load(chosen).to(device)
    typer.echo("drawing 200 samples, 20 of each class ...")
    x, labels = draw(denoiser, recipe.sampling, 200, cond=torch.arange(10), seed=1, batch_size=100, progress=True)
    x = x.cpu()
    assert labels is not None
    image = picture(x[:80], columns=10)
    assert image is not None
    write_whole(chosen / "demo.png", lambda path: image.save(path, format="PNG"))
    typer.echo("training a classifier on the real images to judge them ...")
    classifier = train_classifier(recipe.data.load("train"))
    test = recipe.data.load("test")
    held_out, truth = test.take(torch.arange(len(test)))
    assert truth is not None
    real, ours = class_agreement(classifier, held_out, truth), class_agreement(classifier, x, labels)
    typer.echo(f"the classifier agrees with the label of {real:.1%} of real held-out images")
    typer.echo(f"the classifier agrees with the asked label of {ours:.1%} of our samples ({ours / real:.2f} of real)")
    typer.echo(f"picture (one class a column): {chosen / 'demo.png'}")
