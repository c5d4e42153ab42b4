"""`fqx explain`: why a node is, or is not, int8."""

from __future__ import annotations

import argparse

from fqx.audit.coverage import coverage
from fqx.audit.explain import explain
from fqx.cli.console import OK, USAGE, fail, say, show_table
from fqx.cli.tables import coverage_rows
from fqx.edge.artefact import Artefact, read
from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import fold


def run(args: argparse.Namespace) -> int:
    """Explain one node, or list every verdict."""
    return fold(
        read(args.artefact), lambda found: _told(found, args.node), lambda halt: fail(halt.fault)
    )


def _told(found: Artefact, name: str | None) -> int:
    told = explain(found.trail, name)
    if name is None:
        show_table(
            ("node", "op", "verdict"),
            [(item.node, item.op, item.verdict) for item in told.accounts],
        )
        show_table(*coverage_rows(coverage(found.trail)))
        return OK
    if not told.found:
        remedy = "fqx explain FILE lists all of them"
        return fail(Fault(FaultKind.BAD_ARGUMENT, str(told), remedy), USAGE)
    say(str(told))
    return OK
