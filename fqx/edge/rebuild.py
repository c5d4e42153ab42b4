"""A pass from its name and options, as a step of a trail records them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fqx.edge.machine import target_from_arg
from fqx.ir.arg import Arg
from fqx.ir.fault import Fault
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success, gather
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.decompose import decompose_attention, decompose_recurrent
from fqx.passes.equalize import equalize
from fqx.passes.expose import expose
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.fuse_kernels import fuse_kernels
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.passes.pipeline import Pass
from fqx.passes.smooth import equalize_inputs, smooth
from fqx.policy.costs import costs_from_arg
from fqx.policy.recipe import recipe_from_arg
from fqx.policy.selectors import Selector, selector_from_arg

Options = FrozenMap[Arg]


def rebuild(name: str, options: Options) -> Result[Pass, str]:
    """The pass of that name with these options; or why this library cannot make it from them.

    It cannot make a measurement, a pass of the caller's own, `observe` with a predicate (a function
    is no data) or with an edited plan, and passes for a target it does not have.
    """
    make = _MAKERS.get(name)
    if make is None:
        return Failure(_UNMADE.get(name, "it is not a pass of this library"))
    return make(options).alt(lambda fault: fault.reason).bind(lambda found: _same(found, options))


def _same(found: Pass, options: Options) -> Result[Pass, str]:
    if found.options == options:
        return Success(found)
    return Failure("this library gives the pass other options")


def _plain(make: Callable[[], Pass]) -> Callable[[Options], Result[Pass, Fault]]:
    def made(_: Options) -> Result[Pass, Fault]:
        return Success(make())

    return made


def _fuse(options: Options) -> Result[Pass, Fault]:
    return Success(fuse("float32" if options.get("formula") == "float32" else "float64"))


def _selecting(
    make: Callable[[Selector | None], Pass], option: str = "select"
) -> Callable[[Options], Result[Pass, Fault]]:
    def made(options: Options) -> Result[Pass, Fault]:
        held = options.get(option)
        return Success(make(None)) if held is None else selector_from_arg(held).map(make)

    return made


def _observe(options: Options) -> Result[Pass, Fault]:
    held = options.get("targets")
    listed = held if isinstance(held, tuple) else ()
    return recipe_from_arg(options.get("recipe")).bind(
        lambda recipe: gather(target_from_arg(item) for item in listed).map(
            lambda targets: observe(recipe, *targets)
        )
    )


def _convert(options: Options) -> Result[Pass, Fault]:
    return target_from_arg(options.get("target")).map(convert)


def _expose(options: Options) -> Result[Pass, Fault]:
    return Success(expose(_places(options.get("inputs")), _places(options.get("outputs"))))


def _places(arg: Arg) -> tuple[int | str, ...]:
    listed = arg if isinstance(arg, tuple) else ()
    return tuple(place for place in listed if isinstance(place, (int, str)))


def _lower(options: Options) -> Result[Pass, Fault]:
    return target_from_arg(options.get("target")).bind(
        lambda target: costs_from_arg(options.get("costs")).bind(
            lambda held: _selecting(lambda kept: lower(target, held, kept), "kept")(options)
        )
    )


def _fuse_kernels(options: Options) -> Result[Pass, Fault]:
    return target_from_arg(options.get("target")).map(fuse_kernels)


_MAKERS: Mapping[str, Callable[[Options], Result[Pass, Fault]]] = MappingProxyType(
    {
        "clean": _plain(clean),
        "fuse": _fuse,
        "decompose_recurrent": _selecting(decompose_recurrent),
        "decompose_attention": _selecting(decompose_attention),
        "fold": _plain(fold),
        "equalize": _plain(equalize),
        "smooth": _plain(smooth),
        "equalize_inputs": _plain(equalize_inputs),
        "observe": _observe,
        "convert": _convert,
        "lower": _lower,
        "fuse_kernels": _fuse_kernels,
        "expose": _expose,
    }
)

_UNMADE: Mapping[str, str] = MappingProxyType(
    {
        "calibrate": "a measurement",
        "correct_bias": "a measurement",
        "observe_plan": "the plan was made, or edited, by hand",
    }
)
