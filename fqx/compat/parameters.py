"""Parameters that a model adds, multiplies or concatenates, as values like any other.

torch.ao observes those and quantizes them in each call, as it does activations.
"""

from __future__ import annotations

from dataclasses import replace

from fqx.ir.arg import Arg, NodeRef, WeightRef
from fqx.ir.compare import edits_between
from fqx.ir.diff import rewritten
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph, fresh_id
from fqx.ir.names import NodeId, OpName, RuleName, Stage
from fqx.ir.node import Node
from fqx.kit.frozen import Table, row
from fqx.kit.result import Result
from fqx.ops.catalogue import make_node
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite

BETWEEN: frozenset[OpName] = frozenset(
    map(OpName, ("add", "mul", "matmul", "mm", "bmm", "cat", "stack"))
)
"""Operators of activations alone, which may read parameters too."""


def read_parameters() -> Pass:
    """Each parameter such an operator reads becomes a node's value; the bits stay the same.

    Takes FUSED graphs and keeps their stage.
    """
    stages = frozenset({Stage.FUSED})
    return Pass("read_parameters", NO_OPTIONS, stages, None, _read, portable=False)


def _read(graph: Graph) -> Result[Rewrite, Fault]:
    nodes: dict[NodeId, Node] = {}
    for node in graph:
        kept = node
        if node.op in BETWEEN:
            made: dict[NodeId, Node] = {}
            args = tuple(_as_value(arg, node, made, nodes) for arg in node.args)
            nodes.update(made)
            kept = node.with_args(args) if made else node
        nodes[node.id] = kept
    if len(nodes) == len(graph.order):
        return rewritten(graph, ()).map(lambda done: Rewrite(done.graph, done.diff))
    after = replace(graph, nodes=Table(nodes), order=row(nodes))
    rule = RuleName("read_parameters")
    return rewritten(graph, edits_between(graph, after, lambda _: rule)).map(
        lambda done: Rewrite(done.graph, done.diff)
    )


def _as_value(arg: Arg, node: Node, made: dict[NodeId, Node], taken: dict[NodeId, Node]) -> Arg:
    if isinstance(arg, tuple):
        return tuple(_as_value(item, node, made, taken) for item in arg)
    if not isinstance(arg, WeightRef):
        return arg
    name = fresh_id({**taken, **made}, node.id, "parameter")
    made[name] = make_node("contiguous", name, node.origin, x=arg)
    return NodeRef(name)
