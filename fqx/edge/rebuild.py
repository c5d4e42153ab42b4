"""A pass from its name and options, as a step of a trail records them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fqx.edge.machine import target_labelled
from fqx.ir.arg import Arg
from fqx.ir.fault import Fault
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Result, Success, gather
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.passes.pipeline import Pass
from fqx.passes.smooth import smooth
from fqx.policy.recipe import float_, int8_static

Options = FrozenMap[Arg]


def rebuild(name: str, options: Options) -> Result[Pass | None, Fault]:
    """The pass of that name with these options; None if this library cannot make it from them.

    None for a pass of the caller's own, for `observe` with a recipe that is not a preset (a
    recipe may hold functions), for an edited plan. Fails with UNSUPPORTED_TARGET if the options
    name a target that does not exist.
    """
    make = _MAKERS.get(name)
    made: Result[Pass | None, Fault] = make(options) if make is not None else Success(None)
    return made.map(lambda found: found if found and found.options == options else None)


def _plain(make: Callable[[], Pass]) -> Callable[[Options], Result[Pass | None, Fault]]:
    def made(_: Options) -> Result[Pass | None, Fault]:
        return Success(make())

    return made


def _observe(options: Options) -> Result[Pass | None, Fault]:
    presets = {str(recipe): recipe for recipe in (int8_static(), float_())}
    recipe = presets.get(str(options.get("recipe")))
    labels = options.get("targets")
    if recipe is None or not isinstance(labels, tuple):
        return Success(None)
    return gather(target_labelled(str(label)) for label in labels).map(
        lambda targets: observe(recipe, *targets)
    )


def _convert(options: Options) -> Result[Pass | None, Fault]:
    return target_labelled(str(options.get("target"))).map(convert)


def _lower(options: Options) -> Result[Pass | None, Fault]:
    return target_labelled(str(options.get("target"))).map(lower)


_MAKERS: Mapping[str, Callable[[Options], Result[Pass | None, Fault]]] = MappingProxyType(
    {
        "clean": _plain(clean),
        "fuse": _plain(fuse),
        "fold": _plain(fold),
        "smooth": _plain(smooth),
        "observe": _observe,
        "convert": _convert,
        "lower": _lower,
    }
)
