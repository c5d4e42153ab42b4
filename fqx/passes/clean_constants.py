"""What depends on constants alone, computed once: indices, attention masks, filled tensors.

Only operators whose results are the same bits everywhere take part: integer and boolean ones, IEEE
elementwise arithmetic, and such as only move elements. Parameters and buffers take no part, since a
state_dict may bring other values. A result that is no dense row-major tensor stays a node, because
a copy of it would lie in memory otherwise; what reads it may be a constant again.
"""

from __future__ import annotations

import torch

from fqx.ir.arg import DType, NodeRef, WeightRef, refs_in
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import graph_of
from fqx.ir.names import NodeId, OpName, RuleName
from fqx.ir.node import Node
from fqx.ir.signature import Signature, TensorType, Tree
from fqx.ir.weight import Role
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import fold
from fqx.match.pattern import Call
from fqx.match.rule import Change, Made, Rule, Rules, rules
from fqx.match.search import Match, Miss
from fqx.num.tensors import weight_of
from fqx.ops.catalogue import OPS, attr
from fqx.ops.schema import Trait
from fqx.passes.execute import run

LARGEST = 1 << 20
"""Elements of a tensor that is worth storing; larger ones are computed where they are used."""

DEEPEST = 8
"""How many views may stand between a constant and what is computed of it."""

_EXACT = frozenset({
    "abs", "add", "arange", "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "clamp",
    "full", "full_like", "maximum", "minimum", "mul", "neg", "sign", "sub", "to", "where",
})  # fmt: skip
_MOVES = frozenset(
    name
    for name, row in OPS.items()
    if Trait.SHAPE_ONLY in row.traits and Trait.CONTAINER not in row.traits and name != "getitem"
)
_TESTS = frozenset(name for name, row in OPS.items() if Trait.COMPARISON in row.traits)
_VIEWS = frozenset(
    name for name in _MOVES if not OPS[name].traits.isdisjoint({Trait.VIEW, Trait.MAYBE_VIEW})
)

FOLDED: frozenset[OpName] = frozenset(OpName(name) for name in _EXACT) | _MOVES | _TESTS
"""Operators that are folded where all they read is constant."""


def _constant(found: Match) -> Made:
    """The node's value as a weight."""
    root = found.root
    if not _is_exact(root):
        return Miss("its last bits depend on the machine", root.id)
    nodes = _needed(found, root, DEEPEST)
    if nodes is None:
        return Miss("it reads more than constants", root.id)
    kind = found.type_of(NodeRef(root.id))
    if not isinstance(kind, TensorType) or not _is_small(kind):
        return Miss("the value is large, or its size is free", root.id)
    weights = {path: found.view.weights[path] for node in nodes for path in node.weights()}
    output = Signature((), Tree("tuple"), Tree("dict"), Tree("leaf", NodeRef(root.id)), FrozenMap())
    return fold(
        run(graph_of(nodes, weights, output), ()),
        lambda value: _stored(found, value),
        lambda fault: _refused(found, fault),
    )


def _refused(found: Match, fault: Fault) -> Made:
    """A call that torch refuses stays: it is refused when the program runs."""
    missing = fault.kind is FaultKind.MISSING_PAYLOAD
    return fault if missing else Miss(fault.reason, found.root.id)


def _stored(found: Match, value: object) -> Made:
    if not isinstance(value, torch.Tensor) or not value.is_contiguous():
        return Miss("a stored value would lie in memory otherwise", found.root.id)
    module = found.root.origin.module
    path = found.fresh_path(f"{module}.const" if module else "const")
    new = weight_of(value, Role.CONSTANT, persistent=False)
    return Change(WeightRef(path), (), {path: new})


def _is_exact(node: Node) -> bool:
    """Whether its attributes keep the op exact: a sum with a factor may be one fused operation."""
    if node.op in ("add", "sub"):
        return attr(node, "alpha") == 1
    if node.op == "arange":
        return attr(node, "dtype") in (DType.INT64, DType.INT32)
    return True


def _is_small(kind: TensorType) -> bool:
    size = 1
    for dim in kind.dims if kind.dims is not None else (None,):
        if not isinstance(dim, int):
            return False
        size *= dim
    return size <= LARGEST


def _needed(found: Match, node: Node, depth: int) -> tuple[Node, ...] | None:
    """The nodes that compute the value, in order; None if it takes more than constants."""
    nodes: dict[NodeId, Node] = {}
    for _, ref in refs_in(node.args):
        if isinstance(ref, WeightRef):
            if not _is_constant(found, ref):
                return None
            continue
        below = found.view.nodes[ref.id]
        inner = _needed(found, below, depth - 1) if depth and below.op in _VIEWS else None
        if inner is None:
            return None
        nodes.update({item.id: item for item in inner})
    return (*nodes.values(), node)


def _is_constant(found: Match, ref: WeightRef) -> bool:
    weight = found.view.weights.get(ref.path)
    return weight is not None and weight.role is Role.CONSTANT and ref.path not in found.view.held


CONSTANTS: Rules = rules(
    # where($mask, -100.0, 0.0) -> $const
    Rule(RuleName("clean.constant"), Call(FOLDED), _constant),
)
"""Rules that compute constants."""
