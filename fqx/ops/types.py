"""The type of every value of a graph, from one pure rule per op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from fqx.ir.arg import DType, NodeRef, WeightRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName
from fqx.ir.node import Node
from fqx.ir.signature import TensorType, TupleType, Type
from fqx.kit.result import Result, attempt, fold
from fqx.ops.catalogue import OPS, is_kernel
from fqx.ops.rules import UNKNOWN, declared_type
from fqx.ops.schema import Call

Lookup: TypeAlias = Callable[[NodeRef | WeightRef], Type]
"""The type of what a reference names."""

_MISFITS: Final = (ArithmeticError, LookupError, TypeError, ValueError)
"""What a rule trips over when operands do not fit the op."""


def infer(node: Node, lookup: Lookup) -> Type:
    """The type of the node's value; unknown where the operands do not fit the op.

    Foreign calls and leaves declare theirs in the attribute `type`; an input is unknown here.
    """
    found = type_or_misfit(node, lookup)
    return UNKNOWN if isinstance(found, str) else found


def type_or_misfit(node: Node, lookup: Lookup) -> Type | str:
    """As `infer`, but of operands that do not fit the op it says how.

    Not a Result, since every pass asks it of every node.
    """
    row = OPS.get(node.op)
    try:
        if row is not None:
            return row.infer(Call(node, row, lookup))
        if is_kernel(node):
            return kernel_type(node, lookup)
    except _MISFITS as misfit:
        return str(misfit)
    declared: Result[Type, str] = attempt(lambda: declared_type(node.attrs.get("type")), str)
    return fold(declared, _either, _either)


def _either(found: Type | str) -> Type | str:
    return found


_SUFFIXES = ("_as_linear", "_add", "_post", "_dynamic", "_weight_only", "_float16", "_scaled")


def kernel_type(node: Node, lookup: Lookup) -> Type:
    """The type of a kernel's value: the dims of the operator it computes, the dtype it writes.

    A kernel is named `target.op`, with `_add` or `_post` for what it absorbs, `_scaled` where a
    factor comes first, `_as_linear` where it runs as one, and its mode where that is not static,
    and its operands start with those of the op. One with an attribute `output` writes that dtype,
    one with a `width` reads rows of so many values, two to a byte.
    """
    target, _, name = node.op.partition(".")
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    row = OPS.get(OpName(name))
    if row is None or name in ("quantize", "dequantize", "relu", "clamp", "pad"):
        row = OPS[OpName("pad")] if name == "pad" else OPS[OpName("relu")]
    made = row.infer(Call(node, row, lambda ref: _unquantized(lookup(ref))))
    written = node.attrs.get("output") or node.attrs.get("dtype")
    width = node.attrs.get("width")
    if isinstance(width, int) and isinstance(made, TensorType) and made.dims is not None:
        made = TensorType(made.dtype, (*made.dims[:-1], width))
    if target == "native" and written is None:
        return _of_dtype(made, DType.QUINT8)
    if name == "shift":
        return _of_dtype(made, DType.UINT8)
    return made if written is None else _of_dtype(made, DType(getattr(written, "value", written)))


def _unquantized(held: Type) -> Type:
    """A quantized tensor as one of the values it stands for: rules know no other."""
    if isinstance(held, TensorType) and held.dtype is DType.QUINT8:
        return TensorType(DType.FLOAT32, held.dims)
    return held


def _of_dtype(held: Type, dtype: DType) -> Type:
    match held:
        case TensorType(dims=dims):
            return TensorType(dtype, dims)
        case TupleType(items=items):
            return TupleType(tuple(_of_dtype(item, dtype) for item in items))
        case _:
            return held


def types(graph: Graph) -> dict[NodeId, Type]:
    """The type of every node, in program order; linear in the nodes."""
    lookup, known = type_lookup(graph)
    for node in graph:
        if node.id not in known:
            known[node.id] = infer(node, lookup)
    return {name: known[name] for name in graph.order}


def type_lookup(graph: Graph) -> tuple[Lookup, dict[NodeId, Type]]:
    """A lookup of weights, inputs and whatever is put into the table that comes with it."""
    known: dict[NodeId, Type] = {
        item.node: item.type for item in graph.signature.inputs if item.node is not None
    }

    def lookup(ref: NodeRef | WeightRef) -> Type:
        if isinstance(ref, NodeRef):
            return known.get(ref.id, UNKNOWN)
        weight = graph.weights.get(graph.ties.get(ref.path) or ref.path)
        return UNKNOWN if weight is None else TensorType(weight.dtype, weight.shape)

    return lookup, known
