"""How much of a program the plan runs in int8, and why the rest is not: counted, with reasons."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass

from fqx.ir.arg import Json, NodeRef, WeightRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName
from fqx.ir.signature import Dim, Poly, TensorType, Type
from fqx.ir.trail import Evidence, Trail
from fqx.kit.result import attempt
from fqx.ops.catalogue import OPS
from fqx.ops.schema import Trait
from fqx.ops.types import types
from fqx.policy.plan import Plan, decode_annotations
from fqx.policy.verdicts import Annotation, Verdict


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
    """The verdicts of the last step that planned; None where nothing was planned yet."""
    for step in reversed(trail.steps):
        if step.evidence is not None and step.evidence.kind == "plan":
            code = step.evidence.to_json()
            label = code.get("label") if isinstance(code, dict) else None
            return Decided(str(label or ""), _annotations(step.evidence, code), code)
    return None


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
    graph = planned_graph(trail, plan)
    work = macs_of(graph)
    groups: dict[tuple[OpName, Verdict, str], list[NodeId]] = {}
    for name, note in plan.annotations.items():
        node = graph.nodes.get(NodeId(name))
        key = (node.op if node else OpName("?"), note.verdict, _reason(note))
        groups.setdefault(key, []).append(NodeId(name))
    rows = [
        Row(op, verdict, reason, tuple(names), sum(work.get(name, 0) for name in names))
        for (op, verdict, reason), names in groups.items()
    ]
    return Coverage(plan.target, tuple(sorted(rows, key=lambda row: (-row.macs, row.op))))


def planned_graph(trail: Trail, plan: Decided) -> Graph:
    """The graph the plan speaks of: the last one that has all its nodes."""
    names = tuple(plan.annotations)
    fitting = (
        graph for graph in reversed(trail.graphs()) if all(NodeId(name) in graph for name in names)
    )
    return next(fitting, trail.graph)


def macs_of(graph: Graph) -> dict[NodeId, int]:
    """Multiply-accumulates of every contraction, by its types; named dimensions count as one."""
    known = types(graph)
    found: dict[NodeId, int] = {}
    for node in graph:
        row = OPS.get(node.op)
        if row is None or not row.traits & {Trait.WEIGHTED, Trait.CONTRACTION}:
            continue
        out = _numel(known.get(node.id))
        kinds = [_operand_type(graph, known, arg) for arg in node.args]
        depth = _depth(node.op, kinds, out)
        if depth:
            found[node.id] = depth
    return found


def _depth(op: OpName, kinds: list[Type | None], out: int) -> int:
    """Products of one call: result elements times the length of the contraction."""
    first, second = [*kinds, None, None][:2]
    if op.startswith("conv_transpose"):
        weight = _sizes(second)
        return _numel(first) * math.prod(weight[1:]) if weight else 0
    if op.startswith("conv"):
        weight = _sizes(second)
        return out * math.prod(weight[1:]) if weight else 0
    if op == "scaled_dot_product_attention":
        query, key = _sizes(first), _sizes(second)
        return 2 * math.prod(query) * key[-2] if len(query) > 1 and len(key) > 1 else 0
    if op in ("addmm", "baddbmm"):
        first = second
    sizes = _sizes(first)
    return out * sizes[-1] if sizes else 0


def _operand_type(graph: Graph, known: dict[NodeId, Type], arg: object) -> Type | None:
    if isinstance(arg, NodeRef):
        return known.get(arg.id)
    if isinstance(arg, WeightRef):
        weight = graph.weights.get(graph.ties.get(arg.path) or arg.path)
        return TensorType(weight.dtype, weight.shape) if weight else None
    return None


def _sizes(kind: Type | None) -> list[int]:
    if not isinstance(kind, TensorType) or kind.dims is None:
        return []
    return [_size(dim) for dim in kind.dims]


def _numel(kind: Type | None) -> int:
    sizes = _sizes(kind)
    return math.prod(sizes) if sizes else 0


def _size(dim: Dim) -> int:
    if isinstance(dim, int):
        return dim
    if isinstance(dim, Poly):
        return max(sum(factor for _, factor in dim.terms), 1)
    return 1


def _reason(note: Annotation) -> str:
    return note.reason.value
