"""Type rules of ops that compute: the type of the value from the types of the operands.

A rule never guesses: what it cannot know is None (a dim), dims None (the rank) or OpaqueType. Sizes
are taken to fit, as they did when the program was captured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import reduce as fold_left
from typing import Final

from fqx.ir.arg import Arg, DType
from fqx.ir.signature import (
    Dim,
    IntType,
    OpaqueType,
    TensorType,
    TupleType,
    Type,
    add_dims,
    decode_type,
    div_dims,
    mod_dims,
    mul_dims,
    sub_dims,
)
from fqx.ops.promote import broadcast, broadcast_dim, category, operand_dims, operand_dtype
from fqx.ops.schema import Call

UNKNOWN: Final = OpaqueType()

# -- boundaries


def unknown(call: Call) -> Type:
    """Told by the signature, not by a rule."""
    del call
    return UNKNOWN


def declared(call: Call) -> Type:
    """Told by the `type` attribute."""
    return declared_type(call.attr("type"))


def declared_type(text: Arg) -> Type:
    """The type a `type` attribute spells; unknown if it spells none."""
    try:
        return decode_type(json.loads(text)) if isinstance(text, str) else UNKNOWN
    except ValueError:
        return UNKNOWN


# -- one value


def same_type(call: Call) -> Type:
    """The type of `x`."""
    return call.tensor("x") or UNKNOWN


def with_dtype(call: Call) -> Type:
    """The shape of `x` in the `dtype` attribute, or in its own where that is None."""
    x, kind = call.tensor("x"), call.attr("dtype")
    return _typed(x, kind if isinstance(kind, DType) else None)


def unpacked(call: Call) -> Type:
    """The shape of `x` with rows of the `width` attribute."""
    x, width = call.tensor("x"), call.attr("width")
    if x is None or x.dims is None or not isinstance(width, int):
        return UNKNOWN
    return TensorType(x.dtype, (*x.dims[:-1], width))


def to_float(call: Call) -> Type:
    """The shape of `x`; integers become float32."""
    x = call.tensor("x")
    return UNKNOWN if x is None else TensorType(_float_of(x.dtype), x.dims)


def to_bool(call: Call) -> Type:
    """The shape of `x`, boolean."""
    return _typed(call.tensor("x"), DType.BOOL)


def square(call: Call) -> Type:
    """The type of `x`; booleans become int64."""
    x = call.tensor("x")
    return _typed(x, DType.INT64 if x is not None and x.dtype is DType.BOOL else None)


def _typed(x: TensorType | None, kind: DType | None) -> Type:
    return UNKNOWN if x is None else TensorType(kind or x.dtype, x.dims)


def _float_of(kind: DType) -> DType:
    return DType.FLOAT32 if category(kind) < 2 else kind


# -- several values, broadcast


def elementwise(call: Call) -> Type:
    """All operands broadcast, in torch's result type."""
    names = [item.name for item in call.op.operands]
    kind = operand_dtype(call, names)
    return UNKNOWN if kind is None else TensorType(kind, operand_dims(call, names))


def div(call: Call) -> Type:
    """As `elementwise`; true division of integers gives float32."""
    made = elementwise(call)
    if not isinstance(made, TensorType) or call.attr("rounding_mode") is not None:
        return made
    return TensorType(_float_of(made.dtype), made.dims)


def compare(call: Call) -> Type:
    """All operands broadcast, boolean."""
    return TensorType(DType.BOOL, operand_dims(call, ("x", "y")))


def where(call: Call) -> Type:
    """The choices' result type, broadcast with the condition."""
    kind = operand_dtype(call, ("x", "y"))
    dims = operand_dims(call, ("condition", "x", "y"))
    return UNKNOWN if kind is None else TensorType(kind, dims)


# -- windows


def conv(call: Call) -> Type:
    """Channels of the weight, ⌊(n + 2p − d(k−1) − 1)/s⌋ + 1 along each spatial axis."""
    return _spatial(call, _conv_channels, _conv_size)


def conv_transpose(call: Call) -> Type:
    """groups · weight.dims[1] channels, (n−1)s − 2p + d(k−1) + output_padding + 1 per axis."""
    return _spatial(call, _transposed_channels, _transposed_size)


def _spatial(
    call: Call,
    channels: Callable[[Call, tuple[Dim, ...]], Dim],
    size: Callable[[Call, int, Dim, Dim], Dim],
) -> Type:
    x, weight = call.tensor("x"), call.tensor("weight")
    if x is None or weight is None:
        return UNKNOWN
    if x.dims is None or weight.dims is None:
        return TensorType(x.dtype, None)
    count = len(weight.dims) - 2
    sizes = tuple(
        size(call, at, x.dims[at - count], weight.dims[at - count]) for at in range(count)
    )
    lead = x.dims[: len(x.dims) - count - 1]
    return TensorType(x.dtype, (*lead, channels(call, weight.dims), *sizes))


def _conv_channels(call: Call, weight: tuple[Dim, ...]) -> Dim:
    del call
    return weight[0]


def _transposed_channels(call: Call, weight: tuple[Dim, ...]) -> Dim:
    return mul_dims(weight[1], call.dim(call.attr("groups")))


def _conv_size(call: Call, at: int, size: Dim, kernel: Dim) -> Dim:
    return _windows(call, at, size, kernel, rounded_up=False)


def _transposed_size(call: Call, at: int, size: Dim, kernel: Dim) -> Dim:
    grown = mul_dims(sub_dims(size, 1), _nth(call, "stride", at))
    cut = mul_dims(2, _nth(call, "padding", at))
    reach = mul_dims(_nth(call, "dilation", at), sub_dims(kernel, 1))
    more = add_dims(_nth(call, "output_padding", at), 1)
    return add_dims(add_dims(sub_dims(grown, cut), reach), more)


def _windows(call: Call, at: int, size: Dim, kernel: Dim, rounded_up: bool) -> Dim:
    stride, padding = _nth(call, "stride", at), _nth(call, "padding", at)
    dilation = _nth(call, "dilation", at) if "dilation" in call.node.attrs else 1
    reach = add_dims(mul_dims(dilation, sub_dims(kernel, 1)), 1)
    room = sub_dims(add_dims(size, mul_dims(2, padding)), reach)
    if not rounded_up:
        return add_dims(div_dims(room, stride), 1)
    values = (room, stride, size, padding)
    known = [value for value in values if isinstance(value, int)]
    return _count_up(known) if len(known) == len(values) else None


def _count_up(values: list[int]) -> int:
    """Windows counted with ceil; one that starts in the right padding is left out."""
    room, stride, size, padding = values
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding else count


def _nth(call: Call, name: str, at: int) -> Dim:
    values = call.attr(name)
    value = values[at] if isinstance(values, tuple) and at < len(values) else None
    return value if isinstance(value, int) else None


def pool(call: Call) -> Type:
    """The window count along the last axes; ceil_mode rounds up."""
    x, kernel = call.tensor("x"), call.attr("kernel_size")
    if x is None or x.dims is None or not isinstance(kernel, tuple):
        return _typed(x, None) if x is None else TensorType(x.dtype, None)
    count, up = len(kernel), call.attr("ceil_mode") is True
    lead = x.dims[: len(x.dims) - count]
    sizes = (
        _windows(call, at, x.dims[at - count], call.dim(kernel[at]), up) for at in range(count)
    )
    return TensorType(x.dtype, (*lead, *sizes))


def adaptive_pool(call: Call) -> Type:
    """output_size along the last axes."""
    x, wanted = call.tensor("x"), call.attr("output_size")
    if x is None or x.dims is None or not isinstance(wanted, tuple):
        return UNKNOWN if x is None else TensorType(x.dtype, None)
    kept = x.dims[len(x.dims) - len(wanted) :]
    sizes = (old if new is None else call.dim(new) for new, old in zip(wanted, kept, strict=True))
    return TensorType(x.dtype, (*x.dims[: len(x.dims) - len(wanted)], *sizes))


def interpolate(call: Call) -> Type:
    """`size`, or ⌊n · scale⌋ along the last axes."""
    x, scales, wanted = call.tensor("x"), call.attr("scale_factor"), call.shape("size")
    if x is None or x.dims is None:
        return _typed(x, None)
    if wanted is None and isinstance(scales, tuple):
        tail = x.dims[len(x.dims) - len(scales) :]
        wanted = tuple(map(_scaled, tail, scales))
    if wanted is None:
        return TensorType(x.dtype, None)
    return TensorType(x.dtype, (*x.dims[: len(x.dims) - len(wanted)], *wanted))


def _scaled(size: Dim, scale: Arg) -> Dim:
    if not isinstance(scale, (int, float)):
        return None
    if isinstance(size, int):
        return math.floor(float(size) * scale)
    return mul_dims(size, int(scale)) if float(scale).is_integer() else None


# -- products


def linear(call: Call) -> Type:
    """The last axis becomes the weight's rows."""
    x, weight = call.tensor("x"), call.tensor("weight")
    if x is None:
        return UNKNOWN
    if weight is None or x.dims is None or weight.dims is None:
        return TensorType(x.dtype, None)
    return TensorType(x.dtype, (*x.dims[:-1], *weight.dims[:-1]))


def embedding(call: Call) -> Type:
    """One row of the weight per index."""
    x, weight = call.tensor("x"), call.tensor("weight")
    if weight is None:
        return UNKNOWN
    if x is None or x.dims is None or weight.dims is None:
        return TensorType(weight.dtype, None)
    return TensorType(weight.dtype, (*x.dims, *weight.dims[1:]))


def embedding_bag(call: Call) -> Type:
    """One row per bag: per row of indices, or per offset."""
    x, weight, offsets = call.tensor("x"), call.tensor("weight"), call.tensor("offsets")
    if weight is None:
        return UNKNOWN
    if x is None or x.dims is None or weight.dims is None:
        return TensorType(weight.dtype, None)
    bags = x.dims[0] if len(x.dims) == 2 else offsets.dims[0] if offsets and offsets.dims else None
    last = len(x.dims) == 1 and call.attr("include_last_offset") is True
    return TensorType(weight.dtype, (sub_dims(bags, int(last)), *weight.dims[1:]))


def matmul(call: Call) -> Type:
    """torch.matmul: batch axes broadcast, vectors lose their axis."""
    x, y = call.tensor("x"), call.tensor("y")
    if x is None:
        return UNKNOWN
    if y is None or not x.dims or not y.dims:
        return TensorType(x.dtype, None)
    lead = broadcast((x.dims[:-2], y.dims[:-2]))
    rows, columns = x.dims[-2:-1], y.dims[-1:] if len(y.dims) > 1 else ()
    return TensorType(x.dtype, None if lead is None else (*lead, *rows, *columns))


def addmm(call: Call) -> Type:
    """The product's type."""
    return matmul(call)


def einsum(call: Call) -> Type:
    """The axes the equation's right side names; implicit outputs and ellipses included."""
    xs, equation = call.tensors("xs"), call.attr("equation")
    if xs is None or not isinstance(equation, str):
        return UNKNOWN
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    sizes: dict[str, Dim] = {}
    dots: tuple[Dim, ...] = ()
    for term, x in zip(terms, xs, strict=True):
        if x.dims is None:
            return TensorType(xs[0].dtype, None)
        named, extra = _label(term, x.dims)
        dots = broadcast((dots, extra)) or ()
        for label, size in named:
            sizes[label] = broadcast_dim(sizes[label], size) if label in sizes else size
    return TensorType(xs[0].dtype, _einsum_dims(right if arrow else _implied(terms), sizes, dots))


def _label(term: str, dims: tuple[Dim, ...]) -> tuple[list[tuple[str, Dim]], tuple[Dim, ...]]:
    head, dots, tail = term.partition("...")
    if not dots:
        return list(zip(head, dims, strict=True)), ()
    end = len(dims) - len(tail)
    named = [*zip(head, dims[: len(head)], strict=True), *zip(tail, dims[end:], strict=True)]
    return named, dims[len(head) : end]


def _implied(terms: list[str]) -> str:
    letters = "".join(terms).replace(".", "")
    once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
    return ("..." if any("..." in term for term in terms) else "") + "".join(once)


def _einsum_dims(right: str, sizes: dict[str, Dim], dots: tuple[Dim, ...]) -> tuple[Dim, ...]:
    head, has_dots, tail = right.partition("...")
    middle = dots if has_dots else ()
    return (*(sizes[i] for i in head), *middle, *(sizes[i] for i in tail))


def attention(call: Call) -> Type:
    """The query's shape with the values' last axis."""
    q, v = call.tensor("q"), call.tensor("v")
    if q is None:
        return UNKNOWN
    if v is None or not q.dims or not v.dims:
        return TensorType(q.dtype, None)
    return TensorType(q.dtype, (*q.dims[:-1], v.dims[-1]))


def recurrent(call: Call) -> Type:
    """The sequence of hidden states, then the last state(s)."""
    x, arg = call.tensor("x"), call.arg("hx")
    states = [call.type_of(item) for item in (arg if isinstance(arg, tuple) else (arg,))]
    hidden = states[0]
    if x is None or not x.dims or not isinstance(hidden, TensorType) or not hidden.dims:
        return UNKNOWN
    width = mul_dims(hidden.dims[-1], 2 if call.attr("bidirectional") is True else 1)
    out = TensorType(x.dtype, (*x.dims[:-1], width))
    return TupleType((out, *(state if state is not None else UNKNOWN for state in states)))


def cell(call: Call) -> Type:
    """The type of the state `hx`."""
    return call.tensor("hx") or UNKNOWN


def lstm_cell(call: Call) -> Type:
    """The types of the two states."""
    hx = call.arg("hx")
    states = [call.type_of(item) for item in (hx if isinstance(hx, tuple) else (hx,))]
    return TupleType(tuple(state if state is not None else UNKNOWN for state in states))


def qparams(call: Call) -> Type:
    """Scale and zero point for the whole of `x`."""
    del call
    return TupleType((TensorType(DType.FLOAT32, ()), TensorType(DType.INT32, ())))


# -- reductions


def reduce(call: Call) -> Type:
    """`x` without the reduced axes, or with size one where keepdim; the dtype attribute counts."""
    x, kind = call.tensor("x"), call.attr("dtype")
    return _reduced(call, x, kind if isinstance(kind, DType) else None)


def total(call: Call) -> Type:
    """As `reduce`; integers sum in int64."""
    x, kind = call.tensor("x"), call.attr("dtype")
    return _reduced(call, x, kind if isinstance(kind, DType) else _sum_dtype(x))


def cumulative(call: Call) -> Type:
    """The shape of `x`; integers add up in int64."""
    x, kind = call.tensor("x"), call.attr("dtype")
    return _typed(x, kind if isinstance(kind, DType) else _sum_dtype(x))


def reduce_to_index(call: Call) -> Type:
    """As `reduce`, int64."""
    return _reduced(call, call.tensor("x"), DType.INT64)


def reduce_to_bool(call: Call) -> Type:
    """As `reduce`, boolean; torch keeps uint8."""
    x = call.tensor("x")
    keeps = x is not None and x.dtype is DType.UINT8
    return _reduced(call, x, None if keeps else DType.BOOL)


def _sum_dtype(x: TensorType | None) -> DType | None:
    return DType.INT64 if x is not None and category(x.dtype) < 2 else None


def _reduced(call: Call, x: TensorType | None, kind: DType | None) -> Type:
    if x is None or x.dims is None:
        return _typed(x, kind)
    dim, keep = call.attr("dim"), call.attr("keepdim") is True
    wanted = dim if isinstance(dim, tuple) else (dim,) if dim is not None else range(len(x.dims))
    axes = {axis % len(x.dims) for axis in wanted if isinstance(axis, int) and x.dims}
    dims = [1 if at in axes else size for at, size in enumerate(x.dims) if keep or at not in axes]
    return TensorType(kind or x.dtype, tuple(dims))


# -- Python ints


def size(call: Call) -> Type:
    """The size of one axis."""
    x, axis = call.tensor("x"), call.attr("dim")
    known = x is not None and x.dims is not None and isinstance(axis, int)
    return IntType(x.dims[axis] if known and x and x.dims and isinstance(axis, int) else None)


def _int(change: Callable[[Dim, Dim], Dim]) -> Callable[[Call], Type]:
    def rule(call: Call) -> Type:
        return IntType(fold_left(change, (call.dim(arg) for arg in call.node.args)))

    return rule


int_add = _int(add_dims)
int_sub = _int(sub_dims)
int_mul = _int(mul_dims)
int_floordiv = _int(div_dims)
int_mod = _int(mod_dims)


def int_neg(call: Call) -> Type:
    """The negated int."""
    return IntType(mul_dims(-1, call.dim(call.arg("x"))))


# -- factories


def full(call: Call) -> Type:
    """The `shape` operand in the `dtype` attribute."""
    kind = call.attr("dtype")
    return TensorType(kind, call.shape("shape")) if isinstance(kind, DType) else UNKNOWN


def arange(call: Call) -> Type:
    """⌈(stop − start) / step⌉ elements."""
    kind, step = call.attr("dtype"), call.arg("step")
    start, stop = call.arg("start"), call.arg("stop")
    if not isinstance(kind, DType):
        return UNKNOWN
    if all(isinstance(value, (int, float)) for value in (start, stop, step)):
        return TensorType(kind, (_count(start, stop, step),))
    if step != 1:
        return TensorType(kind, (None,))
    return TensorType(kind, (sub_dims(call.dim(stop), call.dim(start)),))


def _count(start: Arg, stop: Arg, step: Arg) -> Dim:
    if not isinstance(start, (int, float)) or not isinstance(stop, (int, float)):
        return None
    return math.ceil((stop - start) / step) if isinstance(step, (int, float)) and step else None
