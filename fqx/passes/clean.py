"""`clean`: away with what computes nothing.

Every rule here is exact in bits *and* in strides: what a later op sees lies in memory as before, so
its own last bits cannot change either. An identity that copies (`x * 1`) therefore goes only where
its operand is a freshly computed, dense tensor.
"""

from __future__ import annotations

from dataclasses import replace

from fqx.ir.arg import NodeRef
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import RuleName, Stage
from fqx.ir.node import Node
from fqx.ir.signature import TensorType
from fqx.kit.result import Result
from fqx.match.pattern import anything, either, op
from fqx.match.rewrite import rewrite
from fqx.match.rule import Change, Made, Rule, Rules, rules
from fqx.match.search import Match, Miss
from fqx.ops.catalogue import attr, make_node, op_of
from fqx.ops.schema import Trait
from fqx.ops.types import types
from fqx.passes.clean_constants import CONSTANTS
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite

x = anything("x")
one = either(1, 1.0)
zero = either(0, 0.0)


def clean() -> Pass:
    """Removes eval-mode dropout, identities and nodes nobody uses; bit for bit the same program.

    What depends on constants alone becomes a constant. Inputs stay even where they are not used.
    Takes float and fused graphs and keeps their stage. Faults: MISSING_PAYLOAD where a constant is
    not loaded.
    """
    return Pass("clean", NO_OPTIONS, frozenset({Stage.FLOAT, Stage.FUSED}), None, _clean)


def _clean(graph: Graph) -> Result[Rewrite, Fault]:
    made = rewrite(graph, RULES + CONSTANTS, types=types(graph), dead=RuleName("clean.dead"))
    return made.map(lambda done: Rewrite(done.graph, done.diff))


def _operand(found: Match) -> Made:
    """The value is that of the operand."""
    return Change(found.arg("x"))


def _if_same_type(found: Match) -> Made:
    """The value is that of the operand, if no size and no dtype differs or is unknown."""
    before, after = found.type_of(found.arg("x")), found.type_of(NodeRef(found.root.id))
    if not isinstance(before, TensorType) or not _is_known(before) or before != after:
        return Miss("the result may have another type than the operand", found.root.id)
    return Change(found.arg("x"))


def _if_not_squeezed(found: Match) -> Made:
    """As `_if_same_type`, where no size asked about is free: a batch of one would go."""
    kind, dims = found.type_of(found.arg("x")), attr(found.root, "dims")
    sizes = kind.dims if isinstance(kind, TensorType) and kind.dims is not None else (None,)
    asked = dims if isinstance(dims, tuple) else tuple(range(len(sizes)))
    if not all(isinstance(sizes[d], int) for d in asked if isinstance(d, int) and d < len(sizes)):
        return Miss("a size is free and may be one", found.root.id)
    return _if_same_type(found)


def _if_dense(found: Match) -> Made:
    """As `_if_same_type`, where a copy would lie in memory exactly as the operand does."""
    producer = found.node("x")
    if producer is None or not _is_dense(producer):
        return Miss("the operand may be a view, which the copy makes dense", found.root.id)
    return _if_same_type(found)


def _is_known(kind: TensorType) -> bool:
    return kind.dims is not None and None not in kind.dims


def _is_dense(node: Node) -> bool:
    row = op_of(node)
    fresh = Trait.WEIGHTED, Trait.ELEMENTWISE, Trait.NORM
    views = Trait.VIEW, Trait.MAYBE_VIEW
    return row is not None and not row.traits.isdisjoint(fresh) and row.traits.isdisjoint(views)


def _merge_permutes(found: Match) -> Made:
    inner, outer = found.node("inner"), attr(found.root, "dims")
    dims = attr(inner, "dims") if inner is not None else None
    if inner is None or not isinstance(dims, tuple) or not isinstance(outer, tuple):
        return Miss("the axes are not literals", found.root.id)
    merged = tuple(dims[axis] for axis in outer if isinstance(axis, int))
    if merged == tuple(range(len(merged))):
        return Change(found.arg("x"))
    if found.view.uses.get(inner.id, 0) != 1:
        return Miss(f"the value of {inner.id} has other uses, nothing would be saved", inner.id)
    name = found.fresh(found.root.id, "permute")
    origin = replace(found.root.origin, parents=(inner.id, found.root.id))
    made = make_node("permute", name, origin, x=found.arg("x"), dims=merged)
    return Change(NodeRef(name), (made,))


def _if_same_format(found: Match) -> Made:
    inner = found.node("x")
    if inner is None or attr(inner, "memory_format") != attr(found.root, "memory_format"):
        return Miss("the memory formats differ", found.root.id)
    return Change(found.arg("x"))


def _is_range(node: Node) -> bool:
    dims = attr(node, "dims")
    return isinstance(dims, tuple) and dims == tuple(range(len(dims)))


def _is_zero_pad(node: Node) -> bool:
    sizes = node.args[1]
    zeros = isinstance(sizes, tuple) and all(size == 0 for size in sizes)
    return zeros and attr(node, "mode") == "constant"


RULES: Rules = rules(
    # dropout(x; training=False) -> x
    Rule(
        RuleName("clean.dropout"),
        op("dropout", "feature_dropout", "alpha_dropout")(x).having(training=False),
        _operand,
    ),
    # to(x; the dtype it has) -> x
    Rule(RuleName("clean.cast"), op("to")(x), _if_same_type),
    # reshape(x, the shape it has) -> x, and its kin
    Rule(
        RuleName("clean.reshape"),
        op("reshape", "flatten", "expand", "unflatten")(x, ...),
        _if_same_type,
    ),
    # squeeze(x; axes that are longer than one) -> x
    Rule(RuleName("clean.squeeze"), op("squeeze")(x), _if_not_squeezed),
    # slice(x, 0, None; step=1) -> x
    Rule(RuleName("clean.slice"), op("slice")(x, either(None, 0), None).having(step=1), _operand),
    # permute(x; (0, 1, 2)) -> x
    Rule(
        RuleName("clean.permute"),
        op("permute")(x).where("the axes change places", _is_range),
        _operand,
    ),
    # permute(permute(x; a); b) -> permute(x; a[b])
    Rule(
        RuleName("clean.permutes"),
        op("permute")(op("permute")(x).named("inner")),
        _merge_permutes,
    ),
    # contiguous(contiguous(x; f); f) -> contiguous(x; f)
    Rule(
        RuleName("clean.contiguous"),
        op("contiguous")(op("contiguous").named("x")),
        _if_same_format,
    ),
    # relu(relu(x)) -> relu(x)
    Rule(RuleName("clean.relu"), op("relu")(op("relu").named("x")), _operand),
    # x * 1, x / 1, x - 0, x ** 1, pad(x, zeros) -> x
    Rule(RuleName("clean.mul_one"), op("mul")(x, one).commuting(), _if_dense),
    Rule(RuleName("clean.div_one"), op("div")(x, one).having(rounding_mode=None), _if_dense),
    Rule(RuleName("clean.sub_zero"), op("sub")(x, zero), _if_dense),
    Rule(RuleName("clean.pow_one"), op("pow")(x, one), _if_dense),
    Rule(
        RuleName("clean.pad"),
        op("pad")(x, ...).where("it pads", _is_zero_pad),
        _if_dense,
    ),
)
