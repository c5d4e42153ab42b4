"""How much arithmetic a program is: multiply-accumulates per node, from its types."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fqx.ir.arg import NodeRef, WeightRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName
from fqx.ir.node import Node
from fqx.ir.signature import Dim, Poly, TensorType, Type
from fqx.ops.catalogue import OPS
from fqx.ops.recurrence import at_place, is_recurrent, sides_of
from fqx.ops.schema import Trait
from fqx.ops.types import types


@dataclass(frozen=True, slots=True)
class Work:
    """A node's operator and its multiply-accumulates for one element of the batch."""

    op: OpName
    macs: int


def work_of(graph: Graph) -> dict[NodeId, Work]:
    """Every node's operator and multiply-accumulates."""
    counted = macs_of(graph)
    return {node.id: Work(node.op, counted.get(node.id, 0)) for node in graph}


def macs_of(graph: Graph) -> dict[NodeId, int]:
    """Multiply-accumulates of every contraction, by its types; named dimensions count as one."""
    known = types(graph)
    found: dict[NodeId, int] = {}
    for node in graph:
        if is_recurrent(node.op):
            found[node.id] = _recurrent(graph, known, node)
            continue
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


def _recurrent(graph: Graph, known: dict[NodeId, Type], node: Node) -> int:
    """Every step multiplies by every matrix once."""
    steps = math.prod(_sizes(_operand_type(graph, known, node.args[0]))[:-1])
    places = (place for side in sides_of(node) or () for place in (side.w_ih, side.w_hh, side.w_hr))
    kinds = (_operand_type(graph, known, at_place(node, place)) for place in places)
    return steps * sum(_numel(kind) for kind in kinds)


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
