"""`fqx advise MODEL`: what a float model's statistics advise, and a recipe to paste."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from itertools import chain, islice

from fqx.audit.advise import Advice, advise
from fqx.audit.measure import call_of
from fqx.cli.console import OK, USAGE, fail, say, show_table
from fqx.cli.resolve import batches_of, function_of, model_of
from fqx.edge.capture import capture
from fqx.edge.modules import Module
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.trail import Halt
from fqx.kit.result import Failure, Result, fold


def run(args: argparse.Namespace) -> int:
    """Print a line for each operator somebody has advice on, then the recipe."""
    return fold(
        model_of(args.model).bind(
            lambda model: batches_of(args.batches).map(lambda batches: (model, batches))
        ),
        lambda job: fold(
            _advised(args, *job),
            lambda found: _shown(found, args.json),
            lambda halt: fail(halt.fault),
        ),
        lambda fault: fail(fault, USAGE),
    )


def _advised(
    args: argparse.Namespace, model: Module, batches: Iterable[object]
) -> Result[Advice, Halt]:
    if not args.inputs:
        return _measured(args, model, batches)
    return (
        function_of(args.inputs)
        .alt(Halt)
        .bind(lambda pick: _measured(args, model, _picked(pick, batches)))
    )


def _picked(pick: Callable[[object], object], batches: Iterable[object]) -> Iterable[object]:
    return map(pick, batches)


def _measured(
    args: argparse.Namespace, model: Module, batches: Iterable[object]
) -> Result[Advice, Halt]:
    stream = iter(batches)
    first = tuple(islice(stream, 1))
    if not first:
        return Failure(Halt(_no_batches(args.batches)))
    inputs, kwargs = call_of(first[0])
    return capture(model, inputs, kwargs=kwargs, how=args.how).bind(
        lambda trail: advise(trail, chain(first, stream))
    )


def _no_batches(name: str) -> Fault:
    return Fault(
        FaultKind.EMPTY_CALIBRATION,
        f"{name} gives no batches",
        "hand in at least one batch of real inputs",
    )


def _shown(found: Advice, as_json: bool) -> int:
    if as_json:
        say(json.dumps(found.to_json(), indent=2))
        return OK
    say(f"{len(found.rows)} operators over {found.batches} batches")
    rows = [(row.node, row.op, "; ".join(row.advice)) for row in found.rows if row.advice]
    show_table(("operator", "op", "advice"), rows)
    say(found.code)
    return OK
