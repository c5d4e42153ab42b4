"""Tables that several commands print."""

from __future__ import annotations

from fqx.audit.coverage import Coverage
from fqx.ir.trail import Trail

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


def coverage_rows(found: Coverage) -> Rows:
    """The verdict table: columns and rows."""
    return (
        ("op", "verdict", "nodes", "MACs", "reason"),
        [
            (row.op, row.verdict.value, str(len(row.nodes)), f"{row.macs:,}", row.reason)
            for row in found.rows
        ],
    )


def step_rows(trail: Trail) -> Rows:
    """The steps of a trail: columns and rows."""
    rows = [("0", "capture", "", str(len(trail.base)), trail.base.digest[:12])]
    for index, step in enumerate(trail.steps, 1):
        edits = str(len(step.diff))
        rows.append((str(index), step.text[:60], edits, str(len(step.graph)), step.after[:12]))
    return (("step", "pass", "edits", "nodes", "digest"), [tuple(row) for row in rows])
