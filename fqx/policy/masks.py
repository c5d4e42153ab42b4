"""Masks of attention: scores to which minus infinity, or nearly that, is added before a softmax.

No scale holds both such a mask and the scores it closes. Everything from the mask to the softmax
therefore stays float; the softmax's result, between 0 and 1, is an operand like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fqx.ir.arg import NodeRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName
from fqx.ir.node import Node
from fqx.ir.signature import TensorType, Type
from fqx.ir.weight import Role
from fqx.ops.catalogue import OPS, Trait, operand

SOFTMAX = frozenset(map(OpName, ("softmax", "log_softmax")))
ATTENTION = OpName("scaled_dot_product_attention")
CHOICE = OpName("where")
"""What `masked_fill` is, too."""
MASKERS = frozenset(map(OpName, ("add", "sub", "maximum", "minimum")))
LAYERS = frozenset({Trait.WEIGHTED, Trait.CONTRACTION})
_PASSING = frozenset({Trait.ELEMENTWISE, Trait.SHAPE_ONLY})


def masked(graph: Graph, types: Mapping[NodeId, Type]) -> frozenset[NodeId]:
    """The nodes from masks to the softmaxes that read them.

    A mask is a float that no layer computes, that is not only made of parameters and that shares no
    float input with the scores; or it is a choice between scores and something else.
    """
    scores, whole = _scores(graph), [node for node in graph if node.op == ATTENTION]
    if not scores and not whole:
        return frozenset()
    flow = _flow(graph, types)
    found: set[NodeId] = set()
    held = (operand(node, "mask") for node in whole)
    masks = {ref.id for ref in held if isinstance(ref, NodeRef)}
    for node in graph:
        if node.id not in scores:
            continue
        added = _masks(node, flow)
        masks.update(added)
        is_masked = bool(added) or node.op == CHOICE or _adds_stored(node, graph)
        if is_masked or not found.isdisjoint(node.inputs()):
            found.add(node.id)
    return frozenset(found | _given(graph, masks, flow.computed))


def _scores(graph: Graph) -> set[NodeId]:
    """The softmaxes, and what lies in front of them up to the layers."""
    found: set[NodeId] = set()
    read: set[NodeId] = set()
    for node in reversed(tuple(graph)):
        row = OPS.get(node.op)
        passes = node.id in read and row is not None and not row.traits.isdisjoint(_PASSING)
        if node.op in SOFTMAX or passes:
            found.add(node.id)
            read.update(node.inputs())
    return found


@dataclass(frozen=True, slots=True)
class _Flow:
    """What layers compute, what else may hold a mask, and of every float the inputs of the graph
    that it comes from, as bits."""

    computed: set[NodeId]
    able: set[NodeId]
    sources: Mapping[NodeId, int]


def _flow(graph: Graph, types: Mapping[NodeId, Type]) -> _Flow:
    computed: set[NodeId] = set()
    able: set[NodeId] = set()
    sources: dict[NodeId, int] = {}
    for position, node in enumerate(graph):
        row = OPS.get(node.op)
        traits = frozenset[Trait]() if row is None else row.traits
        is_layer, is_table = not traits.isdisjoint(LAYERS), Trait.LOOKUP in traits
        if is_layer or node.op == "leaf" or not computed.isdisjoint(node.inputs()):
            computed.add(node.id)
        elif _starts(node, graph) or (not is_table and not able.isdisjoint(node.inputs())):
            able.add(node.id)
        found = types.get(node.id)
        if isinstance(found, TensorType) and not found.dtype.is_float:
            continue
        bits = 1 << position if node.op == "input" else 0
        for name in node.inputs():
            bits |= sources.get(name, 0)
        sources[node.id] = bits
    return _Flow(computed, able, sources)


def _starts(node: Node, graph: Graph) -> bool:
    """Whether a mask may come from the node itself: all but what reads parameters alone."""
    return (not node.weights() and not node.inputs()) or _reads_stored(node, graph)


def _reads_stored(node: Node, graph: Graph) -> bool:
    stored = (graph.weights[graph.ties.get(path) or path] for path in node.weights())
    return any(weight.role is not Role.PARAMETER for weight in stored)


def _adds_stored(node: Node, graph: Graph) -> bool:
    return node.op in MASKERS and _reads_stored(node, graph)


def _masks(node: Node, flow: _Flow) -> tuple[NodeId, ...]:
    """The operands that are masks for the others, which layers compute."""
    if node.op not in MASKERS:
        return ()
    inputs, sources = node.inputs(), flow.sources
    theirs = [sources.get(name, 0) for name in inputs if name in flow.computed]
    if not theirs:
        return ()
    return tuple(
        name
        for name in inputs
        if name in flow.able and not any(bits & sources.get(name, 0) for bits in theirs)
    )


def _given(graph: Graph, masks: Iterable[NodeId], computed: set[NodeId]) -> set[NodeId]:
    """The masks and all they are made of, but for rows of tables."""
    found: set[NodeId] = set()
    rest = list(masks)
    while rest:
        node = graph[rest.pop()]
        row = OPS.get(node.op)
        is_table = row is not None and Trait.LOOKUP in row.traits
        if not is_table and node.id not in found and node.id not in computed:
            found.add(node.id)
            rest.extend(node.inputs())
    return found
