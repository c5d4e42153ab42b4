"""`fqx diff A B`: the edits that lead from one program to another."""

from __future__ import annotations

import argparse
from collections import Counter

from fqx.cli.console import FAILED, OK, fail, say, show_table
from fqx.edge.artefact import read
from fqx.ir.compare import edits_between
from fqx.ir.edit import Added, Changed, Edit, Removed
from fqx.ir.graph import Graph
from fqx.ir.names import RuleName
from fqx.ir.text import show_edit
from fqx.kit.result import fold


def run(args: argparse.Namespace) -> int:
    """Print the edits between two artefacts' programs; 1 if there are any."""
    return fold(
        read(args.a).bind(lambda a: read(args.b).map(lambda b: (a.trail, b.trail))),
        lambda pair: _compared(
            pair[0].base if args.base else pair[0].graph,
            pair[1].base if args.base else pair[1].graph,
            args.stat,
        ),
        lambda halt: fail(halt.fault),
    )


def _compared(before: Graph, after: Graph, stat: bool) -> int:
    edits = edits_between(before, after, lambda _: RuleName("diff"))
    say(f"{before.digest[:12]} -> {after.digest[:12]}: {len(edits)} edits")
    if not edits:
        return OK
    if stat:
        counts = Counter(_kind(edit) for edit in edits)
        show_table(("edit", "of", "count"), [(*key, str(n)) for key, n in sorted(counts.items())])
    else:
        for edit in edits:
            say(show_edit(edit))
    return FAILED


def _kind(edit: Edit) -> tuple[str, str]:
    match edit:
        case Added(item=item) | Removed(item=item):
            return type(edit).__name__.lower(), type(item).__name__.removesuffix("At").lower()
        case Changed(new=item):
            return "changed", type(item).__name__.removesuffix("At").lower()
        case _:
            return type(edit).__name__.lower(), "graph"
