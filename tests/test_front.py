"""The front door: light to open, and every name behind it there."""

import subprocess
import sys
from importlib import import_module

import pytest

import fokker as fk
from fokker.errors import FokkerError
from fokker.registry import KINDS, lookup

HEAVY = ("matplotlib", "diffusers", "accelerate", "sklearn", "ot", "torchvision", "tensorboard", "fastapi", "pandas")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light() -> None:
    loaded = python("import sys, fokker; fokker.__version__; dir(fokker); print(*sys.modules)").split()
    found = {name.partition(".")[0] for name in loaded}
    assert not found & {*HEAVY, "torch", "scipy", "numpy", "pydantic", "typer", "rich", "PIL", "yaml"}


def test_every_name_together_stays_without_the_extras() -> None:
    code = (
        "import sys, fokker; [getattr(fokker, n) for n in fokker.__all__]; import fokker.cli.app; print(*sys.modules)"
    )
    found = {name.partition(".")[0] for name in python(code).split()}
    assert "torch" in found and not found & set(HEAVY)


def test_the_command_line_opens_without_torch() -> None:
    code = (
        "import sys\nfrom fokker.cli import main\nsys.argv = ['fokker', '--version']\n"
        "try: main()\nexcept SystemExit as e: assert e.code == 0\nprint(*sys.modules)"
    )
    version, *loaded = python(code).split()
    assert version == fk.__version__
    assert not {name.partition(".")[0] for name in loaded} & {*HEAVY, "torch", "scipy"}


@pytest.mark.parametrize("name", fk.__all__)
def test_every_name_resolves(name: str) -> None:
    assert getattr(fk, name) is not None
    assert name in dir(fk)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fokker' has no attribute 'smaple'"):
        fk.smaple
    assert not hasattr(fk, "__wrapped__")


def test_modules_and_names_are_the_same_objects() -> None:
    assert fk.VP is import_module("fokker.process").VP and fk.train is import_module("fokker.train")
    assert fk.sample is import_module("fokker.sampling").sample
    assert fk.DDPM is fk.DiscreteVP
    assert len(set(fk.__all__)) == len(fk.__all__)


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family in KINDS for kind in KINDS[family]])
def test_every_kind_is_a_class_that_exists(family: str, kind: str) -> None:
    cls = lookup(family, kind)
    assert isinstance(cls, type) and cls.__doc__
    assert lookup(family, kind.upper().replace("-", "_")) is cls


@pytest.mark.parametrize("module", [path for kinds in KINDS.values() for path in kinds.values()])
def test_what_recipes_build_is_public(module: str) -> None:
    where, name = module.split(":")
    assert name in import_module(where).__all__


def test_errors_are_one_family() -> None:
    errors = import_module("fokker.errors")
    kinds = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert len(kinds) == 5 and all(issubclass(kind, FokkerError) for kind in kinds)
