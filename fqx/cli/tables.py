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
        rows.append((str(index), short(step.text), edits, str(len(step.graph)), step.after[:12]))
    return (("step", "pass", "edits", "nodes", "digest"), [tuple(row) for row in rows])


def short(text: str, width: int = 48) -> str:
    """A pass's text on one line of a table."""
    return text if len(text) <= width else f"{text[: width - 1]}…"
