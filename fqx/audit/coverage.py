"""How much of a program the plan runs in int8, and why the rest is not: counted, with reasons."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fqx.ir.arg import Json
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName, Stage
from fqx.ir.trail import Evidence, Trail
from fqx.kit.result import attempt
from fqx.ops.work import Work, work_of
from fqx.policy.plan import Plan, decode_annotations
from fqx.policy.priced import Priced, priced_from_json
from fqx.policy.verdicts import Annotation, Reason, Verdict


@dataclass(frozen=True, slots=True)
class Row:
    """One operator with one verdict and reason: how often, and how many multiply-accumulates."""

    op: OpName
    verdict: Verdict
    reason: str
    nodes: tuple[NodeId, ...]
    macs: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """The verdict table of a plan, the largest work first; macs are for one element of a batch."""

    target: str
    rows: tuple[Row, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole program."""
        return sum(row.macs for row in self.rows)

    @property
    def int8_share(self) -> float:
        """The part of the multiply-accumulates the plan runs in int8; 0 where there are none."""
        done = sum(row.macs for row in self.rows if row.verdict is Verdict.INT8)
        return done / self.macs if self.macs else 0.0

    def count(self, verdict: Verdict) -> int:
        """How many nodes have this verdict."""
        return sum(len(row.nodes) for row in self.rows if row.verdict is verdict)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.count(verdict)} {verdict.value}" for verdict in Verdict)
        head = f"int8     {self.int8_share:.1%} of {self.macs:,} multiply-accumulates"
        lines = [head, f"nodes    {counts}" + (f" on {self.target}" if self.target else "")]
        float_rows = [row for row in self.rows if row.verdict is Verdict.FLOAT]
        lines += [
            f"float    {len(row.nodes)} {row.op}: {row.reason}"[:96] for row in float_rows[:6]
        ]
        lines += [f"         and {len(float_rows) - 6} more"] if len(float_rows) > 6 else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "<tr><th>op</th><th>verdict</th><th>nodes</th><th>MACs</th><th>reason</th></tr>"
        body = "".join(
            f"<tr><td>{html.escape(row.op)}</td><td>{row.verdict.value}</td>"
            f"<td>{len(row.nodes)}</td><td>{row.macs:,}</td><td>{html.escape(row.reason)}</td></tr>"
            for row in self.rows
        )
        return f"<table>{head}{body}</table>"


@dataclass(frozen=True, slots=True)
class Decided:
    """What a plan says: a plan made in this process and one read from a file look the same here."""

    target: str
    annotations: Mapping[NodeId, Annotation]
    code: Json


def decided(trail: Trail) -> Decided | None:
    """The verdicts of the last step that planned; None where nothing was planned yet.

    What a lowering by costs decided behind it is in them.
    """
    priced: tuple[Priced, ...] = ()
    for step in reversed(trail.steps):
        if step.evidence is not None and step.evidence.kind == "lowering" and not priced:
            priced = _priced(step.evidence.to_json())
        if step.evidence is not None and step.evidence.kind == "plan":
            code = step.evidence.to_json()
            label = code.get("label") if isinstance(code, dict) else None
            planned = _annotations(step.evidence, code)
            return Decided(str(label or ""), _with_prices(planned, priced), code)
    return None


def _priced(code: Json) -> tuple[Priced, ...]:
    found = code.get("priced") if isinstance(code, dict) else None
    listed = found if isinstance(found, list) else []
    read = attempt(lambda: tuple(priced_from_json(item) for item in listed), lambda error: error)
    return read.value_or(())


def _with_prices(
    planned: Mapping[NodeId, Annotation], priced: tuple[Priced, ...]
) -> Mapping[NodeId, Annotation]:
    """The plan's verdicts with each unit's prices, and units that went back to float as such."""
    found = dict(planned)
    for unit in priced:
        for name in unit.nodes:
            note = found.get(name)
            if note is None:
                continue
            if unit.floating:
                found[name] = replace(note, reason=Reason.FASTER_IN_FLOAT, text=str(unit))
            elif name == unit.anchor:
                text = "; ".join(part for part in (note.text, str(unit)) if part)
                found[name] = replace(note, text=text)
    return found


def _annotations(evidence: Evidence, code: Json) -> Mapping[NodeId, Annotation]:
    if isinstance(evidence, Plan):
        return {name: evidence.annotations[name] for name in evidence.order}
    read = attempt(lambda: decode_annotations(code), lambda error: error)
    return read.value_or({})


def coverage(trail: Trail) -> Coverage:
    """The verdict table of a trail's last plan; empty where nothing was planned yet."""
    plan = decided(trail)
    if plan is None:
        return Coverage("", ())
    work = _work(trail, plan)
    macs = {name: item.macs for name, item in work.items()}
    groups: dict[tuple[OpName, Verdict, str], list[NodeId]] = {}
    for name, note in plan.annotations.items():
        op = work[name].op if name in work else OpName("?")
        groups.setdefault((op, note.verdict, note.reason.value), []).append(name)
    rows = [
        Row(
            op,
            verdict,
            reason,
            tuple(names),
            sum(macs.get(name, 0) for name in names),
        )
        for (op, verdict, reason), names in groups.items()
    ]
    return Coverage(plan.target, tuple(sorted(rows, key=lambda row: (-row.macs, row.op))))


def planned_graph(trail: Trail, plan: Decided) -> Graph:
    """The graph the plan speaks of: the last one of operators that has all its nodes."""
    names = tuple(plan.annotations)
    fitting = (
        graph
        for graph in reversed(trail.graphs())
        # kernels may stand under the same names, and tell nothing of the work they do
        if graph.stage is not Stage.LOWERED and all(NodeId(name) in graph for name in names)
    )
    return next(fitting, trail.graph)


def _work(trail: Trail, plan: Decided) -> Mapping[NodeId, Work]:
    """From the planned graph; a model artefact, which does not hold it, has the table."""
    match plan.code:
        case {"work": dict() as table}:
            return {
                NodeId(name): Work(OpName(str(item[0])), int(item[1]))
                for name, item in table.items()
                if isinstance(item, list) and len(item) == 2 and isinstance(item[1], int)
            }
        case _:
            return work_of(planned_graph(trail, plan))
