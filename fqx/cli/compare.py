"""`fqx compare A [B]`: two programs side by side, value by value."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable

from fqx.audit.compare import Comparison, compare
from fqx.cli.console import FAILED, OK, USAGE, fail, remark, say, show_table
from fqx.cli.resolve import batches_of, function_of
from fqx.cli.show import step_index
from fqx.edge.artefact import read
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import Stage
from fqx.ir.trail import Trail
from fqx.kit.result import Failure, Result, Success, fold

Inputs = Callable[[object], object] | None

_FLOAT = (Stage.FLOAT, Stage.FUSED, Stage.OBSERVED, Stage.CALIBRATED)


def run(args: argparse.Namespace) -> int:
    """Print the worst values; 1 if one is worse than `--min-sqnr`."""
    return fold(
        _job(args),
        lambda job: fold(
            compare(*job[0], job[1], args.isolated, inputs=job[2]),
            lambda found: _shown(found, args),
            lambda halt: fail(halt.fault),
        ),
        lambda fault: fail(fault, USAGE),
    )


def _job(
    args: argparse.Namespace,
) -> Result[tuple[tuple[Graph, Graph], Iterable[object], Inputs], Fault]:
    none: Result[Inputs, Fault] = Success(None)
    picked = function_of(args.inputs).map(_some) if args.inputs else none
    return batches_of(args.batches).bind(
        lambda batches: picked.bind(
            lambda inputs: _graphs(args).map(lambda graphs: (graphs, batches, inputs))
        )
    )


def _some(found: Callable[[object], object]) -> Inputs:
    return found


def _graphs(args: argparse.Namespace) -> Result[tuple[Graph, Graph], Fault]:
    first = _trail(args.a)
    second = _trail(args.b) if args.b else first
    return first.bind(
        lambda a: second.bind(
            lambda b: _chosen(a, args.step, alone=args.b is None).map(
                lambda graph: (graph, b.graph)
            )
        )
    )


def _trail(place: str) -> Result[Trail, Fault]:
    return read(place).map(lambda found: found.trail).alt(lambda halt: halt.fault)


def _chosen(trail: Trail, step: str | None, alone: bool) -> Result[Graph, Fault]:
    """The program after a step; without one the last, or of one trail the last in float."""
    if step is not None:
        return step_index(trail, step).map(lambda index: trail.graphs()[index])
    if not alone:
        return Success(trail.graph)
    floats = [graph for graph in trail.graphs() if graph.stage in _FLOAT]
    return Success(floats[-1]) if floats else Failure(_no_float())


def _no_float() -> Fault:
    return Fault(
        FaultKind.BAD_ARGUMENT,
        "the artefact holds no float program to compare with",
        "give a trail (quantize --trail), or a second artefact",
    )


def _shown(found: Comparison, args: argparse.Namespace) -> int:
    if args.json:
        say(json.dumps(found.to_json(), indent=2))
    else:
        say(repr(found).splitlines()[0])
        rows = [
            (row.name, row.op, f"{seen.sqnr:.1f}", f"{seen.l2:.3g}", f"{seen.cosine:.5f}")
            for row in found.worst(args.worst)
            for seen in (row.distance,)
        ]
        show_table(("value", "op", "SQNR dB", "l2", "cosine"), rows, right=(2, 3, 4))
        for name, why in found.skipped:
            remark(f"not compared: {name}: {why}")
    least = found.worst(1)
    if args.min_sqnr is not None and least and least[0].distance.sqnr < args.min_sqnr:
        worst = least[0]
        remark(f"check failed: {worst.name} has {worst.distance.sqnr:.1f} dB")
        return FAILED
    return OK
