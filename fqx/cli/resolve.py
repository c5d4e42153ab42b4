"""`MODULE:NAME` on the command line: the user's own Python objects."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import cast

from fqx.edge.modules import Module
from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import Failure, Result, Success, attempt


def resolve(spec: str) -> Result[object, Fault]:
    """The object `package.module:name`, or `file.py:name`, names; the working folder is importable.

    Fails with BAD_ARGUMENT, saying what is there instead.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        return Failure(_bad(f"{spec!r} is not of the form MODULE:NAME"))
    return _module(place).bind(lambda module: _member(module, place, name))


def model_of(spec: str) -> Result[Module, Fault]:
    """The model: a module, or what the factory of that name returns."""
    return resolve(spec).bind(
        lambda found: _called(spec, found, isinstance(found, Module)).bind(
            lambda made: (
                Success(made)
                if isinstance(made, Module)
                else Failure(_bad(f"{spec} gives a {type(made).__name__}, not a torch module"))
            )
        )
    )


def batches_of(spec: str) -> Result[Iterable[object], Fault]:
    """The calibration set: an iterable, or what the function of that name returns."""
    return resolve(spec).bind(
        lambda found: _called(spec, found, isinstance(found, Iterable)).bind(
            lambda made: (
                Success(made)
                if isinstance(made, Iterable)
                else Failure(_bad(f"{spec} gives a {type(made).__name__}, not batches"))
            )
        )
    )


def function_of(spec: str) -> Result[Callable[[object], object], Fault]:
    """A function of one argument, such as `inputs=`."""
    return resolve(spec).bind(
        lambda found: (
            Success(cast("Callable[[object], object]", found))
            if callable(found)
            else Failure(_bad(f"{spec} is a {type(found).__name__}, not a function"))
        )
    )


def value_of(spec: str) -> Result[object, Fault]:
    """A value, or what the function of that name returns."""
    return resolve(spec).bind(lambda found: _called(spec, found, not callable(found)))


def _called(spec: str, found: object, ready: bool) -> Result[object, Fault]:
    if ready:
        return Success(found)
    if not callable(found):
        return Success(found)
    return attempt(
        found, lambda error: _bad(f"{spec}() raises {type(error).__name__}: {str(error)[:300]}")
    )


def _module(place: str) -> Result[ModuleType, Fault]:
    return attempt(
        lambda: _from_file(Path(place)) if place.endswith(".py") else _by_name(place),
        lambda error: _bad(f"{place} cannot be imported: {type(error).__name__}: {error}"),
    )


def _by_name(place: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(place)


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _member(module: ModuleType, place: str, name: str) -> Result[object, Fault]:
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [item for item in vars(module) if not item.startswith("_")]
            return Failure(_bad(f"{place} has no {name}; it has {', '.join(public[:12])}"))
        found = getattr(found, part)
    return Success(found)


def _bad(reason: str) -> Fault:
    return Fault(
        FaultKind.BAD_ARGUMENT,
        reason,
        "write it as package.module:name or path/file.py:name, seen from the working folder",
    )
