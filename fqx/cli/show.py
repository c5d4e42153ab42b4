"""`fqx show`: what an artefact holds."""

from __future__ import annotations

import argparse
import json

from fqx.audit.coverage import coverage
from fqx.cli.console import OK, USAGE, fail, say, show_table
from fqx.cli.tables import coverage_rows, step_rows
from fqx.edge.artefact import Artefact, read
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.show import show
from fqx.ir.trail import Trail
from fqx.kit.result import Failure, Result, Success, fold


def run(args: argparse.Namespace) -> int:
    """Print the summary, one program, one diff or the verdicts."""
    return fold(read(args.artefact), lambda found: _shown(found, args), lambda h: fail(h.fault))


def _shown(found: Artefact, args: argparse.Namespace) -> int:
    trail = found.trail
    if args.json:
        say(json.dumps(_summary(found), indent=2))
        return OK
    if args.graph is not None:
        return fold(
            step_index(trail, args.graph),
            lambda index: _said(show(trail.graphs()[index])),
            lambda fault: fail(fault, USAGE),
        )
    if args.diff is not None:
        return fold(
            step_index(trail, args.diff).bind(lambda index: _has_diff(index)),
            lambda index: _said(str(trail.steps[index - 1].diff)),
            lambda fault: fail(fault, USAGE),
        )
    if args.verdicts:
        show_table(*coverage_rows(coverage(trail)), right=(2, 3))
        return OK
    say(repr(found))
    if found.kind == "trail":
        show_table(*step_rows(trail), right=(0, 2, 3))
    else:
        say(f"  decided by {', '.join(step.name or step.text for step in trail.steps)}")
    for note in trail.notes:
        say(f"note: {note}")
    say(repr(coverage(trail)))
    return OK


def _said(text: str) -> int:
    say(text)
    return OK


def step_index(trail: Trail, name: str) -> Result[int, Fault]:
    """The step meant by a number (0 is capture, -1 the last) or by a pass's name."""
    count = len(trail.steps)
    if name.lstrip("-").isdigit():
        index = int(name)
        index = index + count + 1 if index < 0 else index
        if 0 <= index <= count:
            return Success(index)
    named = [i for i, step in enumerate(trail.steps, 1) if step.text.split("(")[0] == name]
    if named:
        return Success(named[-1])
    if name == "capture":
        return Success(0)
    steps = ", ".join(step.text.split("(")[0] for step in trail.steps)
    return Failure(
        Fault(
            FaultKind.BAD_ARGUMENT,
            f"the artefact has no step {name!r}",
            f"its steps are 0 to {count}: capture, {steps}",
        )
    )


def _has_diff(index: int) -> Result[int, Fault]:
    if index:
        return Success(index)
    return Failure(Fault(FaultKind.BAD_ARGUMENT, "capture has no diff", "show it with --graph 0"))


def _summary(found: Artefact) -> dict[str, object]:
    table = coverage(found.trail)
    return {
        "kind": found.kind,
        "digest": found.trail.graph.digest,
        "base": found.trail.base.digest,
        "stage": found.trail.graph.stage.value,
        "nodes": len(found.trail.graph),
        "target": found.target,
        "made": dict(found.made.items()),
        "steps": [
            {"pass": step.text, "edits": len(step.diff), "digest": step.after}
            for step in found.trail.steps
        ],
        "int8_share": table.int8_share,
        "verdicts": [
            {
                "op": row.op,
                "verdict": row.verdict.value,
                "reason": row.reason,
                "nodes": list(row.nodes),
                "macs": row.macs,
            }
            for row in table.rows
        ],
    }
