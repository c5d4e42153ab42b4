"""Which values are activations: float tensors that a float input or a stored weight flows into.

What is computed from integer inputs, sizes and constants alone, as position buckets and masks are,
holds the same few values whatever the data, and often infinities: to quantize it gains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.ir.signature import IntType, TensorType, Type
from fqx.ir.weight import Role
from fqx.ops.catalogue import OPS, Trait, is_foreign


def activations(graph: Graph, types: Mapping[NodeId, Type]) -> frozenset[NodeId]:
    """The nodes whose value is an activation, or may be one where its type is not known.

    A parameter or a buffer that is read makes a float result an activation, the rows of an
    embedding among them; constants of the trace do not. Integers never carry one on.
    """
    found: set[NodeId] = set()
    for node in graph:
        starts = _starts(node, graph)
        if _may_be_float(types.get(node.id)) and (starts or not found.isdisjoint(node.inputs())):
            found.add(node.id)
    return frozenset(found)


def _starts(node: Node, graph: Graph) -> bool:
    """Whether activations come from the node itself, not from those it reads."""
    if node.op in ("input", "leaf"):
        return True
    row = OPS.get(node.op)
    if row is not None and Trait.FACTORY in row.traits:
        return False
    if is_foreign(node) and not node.inputs():
        return True
    stored = (graph.weights[graph.ties.get(path) or path] for path in node.weights())
    return any(weight.dtype.is_float and weight.role is not Role.CONSTANT for weight in stored)


def _may_be_float(found: Type | None) -> bool:
    match found:
        case TensorType(dtype=dtype):
            return dtype.is_float
        case IntType():
            return False
        case _:
            return True
