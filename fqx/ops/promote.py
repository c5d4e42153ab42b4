"""torch's promotion of element types and broadcasting of shapes, as pure functions.

Promotion follows torch's three priorities: tensors with axes, tensors without, Python numbers; a
lower one decides only if it is of a higher category (bool < int < float < complex).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Final

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.signature import Dim, IntType, TensorType
from fqx.ops.schema import Call

Dims = tuple[Dim, ...] | None

_INTS: Final = (DType.UINT8, DType.INT8, DType.INT16, DType.INT32, DType.INT64)
_FLOATS: Final = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64)
_COMPLEX: Final = (DType.COMPLEX64, DType.COMPLEX128)
_LADDER: Final = (DType.BOOL, *_INTS, *_FLOATS, *_COMPLEX)


def category(kind: DType) -> int:
    """0 bool, 1 int, 2 float, 3 complex."""
    return 0 if kind is DType.BOOL else 1 if kind in _INTS else 2 if kind in _FLOATS else 3


def promote(one: DType, two: DType) -> DType:
    """The smallest type that holds values of both (uint8 and int8 give int16, the halves float32).

    >>> promote(DType.UINT8, DType.INT8)
    <DType.INT16: 'int16'>
    """
    if one is two:
        return one
    low, high = sorted((one, two), key=_LADDER.index)
    if {low, high} == {DType.UINT8, DType.INT8}:
        return DType.INT16
    if {low, high} == {DType.FLOAT16, DType.BFLOAT16}:
        return DType.FLOAT32
    if (low, high) == (DType.FLOAT64, DType.COMPLEX64):
        return DType.COMPLEX128
    return high


def _combine(higher: DType | None, lower: DType | None) -> DType | None:
    if higher is None or lower is None:
        return lower if higher is None else higher
    if category(lower) <= category(higher):
        return higher
    if category(lower) == 3 and category(higher) == 2:
        return promote(higher, DType.COMPLEX64)
    return promote(higher, lower) if category(higher) < 2 else higher


def operand_dtype(call: Call, names: Iterable[str]) -> DType | None:
    """torch's result type of the operands called `names`; None if one is not understood."""
    kinds: tuple[list[DType], list[DType], list[DType]] = ([], [], [])
    for arg in map(call.arg, names):
        if arg is None:
            continue
        found = _priority(call, arg)
        if found is None:
            return None
        kinds[found[0]].append(found[1])
    with_axes, without, numbers = (reduce(promote, kind) if kind else None for kind in kinds)
    return _combine(with_axes, _combine(without, numbers))


def _priority(call: Call, arg: Arg) -> tuple[int, DType] | None:
    if isinstance(arg, bool):
        return 2, DType.BOOL
    if isinstance(arg, int):
        return 2, DType.INT64
    if isinstance(arg, float):
        return 2, DType.FLOAT32
    found = call.type_of(arg) if isinstance(arg, NodeRef | WeightRef) else None
    if isinstance(found, IntType):
        return 2, DType.INT64
    if isinstance(found, TensorType) and found.dtype in _LADDER:
        return (1 if found.dims == () else 0), found.dtype
    return None


def broadcast_dim(one: Dim, two: Dim) -> Dim:
    """The size two broadcast axes have together; an int other than 1 decides."""
    if one == two or two == 1:
        return one
    if one == 1:
        return two
    if isinstance(one, int):
        return one
    return two if isinstance(two, int) else None


def broadcast(shapes: Iterable[Dims]) -> Dims:
    """The broadcast of several shapes, aligned on the right; None if a rank is unknown."""
    out: tuple[Dim, ...] = ()
    for dims in shapes:
        if dims is None:
            return None
        count = max(len(out), len(dims))
        left, right = ((1,) * (count - len(part)) + part for part in (out, dims))
        out = tuple(map(broadcast_dim, left, right))
    return out


def operand_dims(call: Call, names: Iterable[str]) -> Dims:
    """The broadcast of the operands called `names`; numbers have no axes."""
    shapes: list[Dims] = []
    for arg in map(call.arg, names):
        found = call.type_of(arg)
        if isinstance(found, TensorType):
            shapes.append(found.dims)
        elif found is not None and not isinstance(found, IntType):
            return None
    return broadcast(shapes)
