"""`fokker demo`: from data to picture in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError

__all__ = ["demo"]


def demo(
    folder: Annotated[Path, typer.Option(help="Where the run is kept; numbered on if it exists.")] = Path("runs/demo"),
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes, such as train.steps=50.")] = None,
) -> None:
    """Train the recipe `fashion`, draw every class, and let a classifier judge the result.

    Overrides may change its data, to other labelled images.
    """
    import torch

    from ..data import picture
    from ..files import write_whole
    from ..metrics import class_agreement, train_classifier
    from ..train import fit, load, read
    from ..train.drawing import class_count, draw
    from .judges import classifiable

    chosen, number = folder, 1
    while chosen.exists():
        number += 1
        chosen = folder.with_name(f"{folder.name}-{number}")
    recipe = read("fashion", [*(overrides or ()), f"run.dir={chosen}"])
    train, test = recipe.data.load("train"), recipe.data.load("test")
    classes = len(train.classes)
    if not classifiable(train) or class_count(recipe.fresh(train)) != classes:
        raise ConfigError(
            f"data: given samples {train.shape} of {classes} classes; the demo needs labelled images, of at least 8 "
            "pixels a side, and a network that is told the classes (net.classes)"
        )
    fit(recipe)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    denoiser = load(chosen).to(device)
    typer.echo(f"drawing {20 * classes} samples, 20 of each class ...")
    told = torch.arange(classes)
    x, labels = draw(denoiser, recipe.sampling, 20 * classes, cond=told, seed=1, batch_size=100, progress=True)
    x = x.cpu()
    assert labels is not None
    image = picture(x[: 8 * classes], columns=classes)
    assert image is not None
    write_whole(chosen / "demo.png", lambda path: image.save(path, format="PNG"))
    typer.echo("training a classifier on the real images to judge them ...")
    classifier = train_classifier(train)
    held_out, truth = test.take(torch.arange(len(test)))
    assert truth is not None
    real, ours = class_agreement(classifier, held_out, truth), class_agreement(classifier, x, labels)
    typer.echo(f"the classifier agrees with the label of {real:.1%} of real held-out images")
    typer.echo(f"the classifier agrees with the asked label of {ours:.1%} of our samples ({ours / real:.2f} of real)")
    typer.echo(f"picture (one class a column): {chosen / 'demo.png'}")
