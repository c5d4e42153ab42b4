"""From the name of a target to the target of this machine, and whether a program fits it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace

from fqx.edge.probe import probe
from fqx.ir.arg import Arg, DType, Json
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import OpName, Stage
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success
from fqx.policy.target import IntRange, Target, target_to_arg
from fqx.targets import native as native_target
from fqx.targets import onednn as onednn_target
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference

NAMES = ("onednn", "native", *(f"native/{name}" for name in native_target.ENGINES), "reference")
"""What a target may be called on the command line and in `quantize(target=…)`."""


def kernel_ops() -> frozenset[OpName]:
    """The lowered operators of all targets."""
    return frozenset(kernel.op for kernel in (*onednn_target.KERNELS, *native_target.KERNELS))


def target_named(name: str) -> Result[Target, Fault]:
    """The target of that name as its makers promise it: `onednn`, `native/fbgemm`, `reference`.

    Fails with UNSUPPORTED_TARGET for another name.
    """
    head, _, engine = name.partition("/")
    if head == "native":
        return native(engine) if engine else native()
    if name == "onednn":
        return Success(onednn())
    if name == "reference":
        return Success(reference())
    return Failure(
        Fault(
            FaultKind.UNSUPPORTED_TARGET,
            f"there is no target called {name!r}",
            f"use one of {', '.join(NAMES)}",
        )
    )


def target_from_arg(arg: Arg) -> Result[Target, Fault]:
    """The target that `target_to_arg` wrote: narrowed, and with the units, that it then had.

    Fails with UNSUPPORTED_TARGET if no target of this library has that name or those tables.
    """
    fields = dict(arg.items()) if isinstance(arg, FrozenMap) else {}
    match tuple(fields.get(name) for name in ("name", "engine", "isa", "units")):
        case (str() as name, str() as engine, str() as isa, tuple() as units):
            return target_named(f"{name}/{engine}" if engine else name).bind(
                lambda found: _as_recorded(found, isa, units, fields)
            )
        case _:
            return Failure(_unnamed(str(arg)))


def _as_recorded(
    found: Target, isa: str, units: tuple[Arg, ...], fields: Mapping[str, Arg]
) -> Result[Target, Fault]:
    known = {kind.name: kind for kind in found.units}
    one, two = _range_from_arg(fields.get("activation")), _range_from_arg(fields.get("weight"))
    if one is None or two is None:
        return Failure(_unnamed(found.label))
    kept = tuple(known[name] for name in units if isinstance(name, str) and name in known)
    made = replace(found, isa=isa, activation=one, weight=two, units=kept)
    if target_to_arg(made) == FrozenMap(fields):
        return Success(made)
    return Failure(
        Fault(
            FaultKind.UNSUPPORTED_TARGET,
            f"{made.label} has other tables of units in this library",
            "use the version of the library the trail was made with",
        )
    )


def _range_from_arg(arg: Arg) -> IntRange | None:
    match arg:
        case (DType() as dtype, int() as qmin, int() as qmax):
            return IntRange(dtype, qmin, qmax)
        case _:
            return None


def usual_target() -> Result[Target, Fault]:
    """What `quantize` takes if no target is given: onednn on x86, native qnnpack on ARM."""
    arm = platform.machine().lower() in ("aarch64", "arm64", "armv7l", "armv8l")
    return target_named("native/qnnpack" if arm else "onednn")


def probed(target: Target) -> Result[Target, Fault]:
    """The target narrowed to what this machine computes exactly; see `fqx.edge.probe`."""
    return probe(target)


def target_of_json(code: Json) -> Result[Target, Fault]:
    """The target a file names, with the ranges and the ISA it names.

    Fails with UNSUPPORTED_TARGET if the file names one that does not exist.
    """
    match code:
        case {
            "name": str() as name,
            "engine": str() as engine,
            "isa": str() as isa,
            "activation": activation,
            "weight": weight,
        }:
            full = f"{name}/{engine}" if engine else name
            ranges = (_range(activation), _range(weight))
            one, two = ranges
            if one is None or two is None:
                return Failure(_unnamed(code))
            return target_named(full).map(
                lambda found: Target(
                    found.name, found.engine, isa, one, two, found.units, found.kernels, found.form
                )
            )
        case _:
            return Failure(_unnamed(code))


def fits_machine(graph: Graph, code: Json) -> Result[None, Fault]:
    """Whether a lowered program computes here what it computes where it was made.

    Programs that are not lowered call no kernel and fit everywhere. Faults: WIDER_MACHINE,
    UNSUPPORTED_TARGET.
    """
    if graph.stage is not Stage.LOWERED or code is None:
        return Success(None)
    called = frozenset(node.op for node in graph) & kernel_ops()
    return target_of_json(code).bind(lambda made_for: _fits(made_for, called))


def _fits(made_for: Target, called: frozenset[OpName]) -> Result[None, Fault]:
    here = target_named("/".join(part for part in (made_for.name, made_for.engine) if part))
    return here.bind(probed).bind(lambda target: _covers(target, made_for, called))


def _covers(here: Target, made_for: Target, called: frozenset[OpName]) -> Result[None, Fault]:
    if not here.covers(made_for):
        return Failure(_wider(made_for))
    absent = sorted(called - {kernel.op for kernel in here.kernels})
    return Failure(_without(made_for, absent[0])) if absent else Success(None)


def _wider(made_for: Target) -> Fault:
    return Fault(
        FaultKind.WIDER_MACHINE,
        f"the program was made for {made_for.label}, whose kernels sum full 8-bit products exactly;"
        " here they saturate silently",
        "convert and lower the trail again here (fqx quantize, or probe(target) before convert),"
        " or run it on a machine with VNNI",
    )


def _without(made_for: Target, kernel: OpName) -> Fault:
    return Fault(
        FaultKind.WIDER_MACHINE,
        f"the program was made for {made_for.label} and calls {kernel}, which does not work here",
        "convert and lower the trail again here, or install the torch it was made with",
    )


def _range(code: Json) -> IntRange | None:
    match code:
        case {"dtype": str() as dtype, "qmin": int() as qmin, "qmax": int() as qmax}:
            known = {item.value: item for item in DType}
            return IntRange(known[dtype], qmin, qmax) if dtype in known else None
        case _:
            return None


def _unnamed(code: Json) -> Fault:
    return Fault(
        FaultKind.UNSUPPORTED_TARGET,
        f"the file names no target of this library: {str(code)[:80]}",
        f"targets are {', '.join(NAMES)}",
    )
