"""Type rules of ops that move elements: what becomes of the dims.

Same promise as `fqx.ops.rules`: unknown rather than wrong.
"""

from __future__ import annotations

from collections.abc import Callable

from fqx.ir.arg import DType
from fqx.ir.signature import (
    Dim,
    Poly,
    TensorType,
    TupleType,
    Type,
    add_dims,
    div_dims,
    mul_dims,
    sub_dims,
)
from fqx.ops.promote import Dims, broadcast, promote
from fqx.ops.rules import UNKNOWN
from fqx.ops.schema import Call


def _with_dims(call: Call, change: Callable[[tuple[Dim, ...]], Dims]) -> Type:
    """The type of `x` with its dims changed; unknown dims stay unknown."""
    x = call.tensor("x")
    if x is None:
        return UNKNOWN
    return TensorType(x.dtype, None if x.dims is None else change(x.dims))


def _product(dims: tuple[Dim, ...]) -> Dim:
    out: Dim = 1
    for dim in dims:
        out = mul_dims(out, dim)
    return out


def _axis(call: Call, name: str, rank: int) -> int | None:
    value = call.attr(name)
    return value % rank if isinstance(value, int) and rank else None


def _put(dims: tuple[Dim, ...], axis: int | None, dim: Dim) -> Dims:
    return None if axis is None else (*dims[:axis], dim, *dims[axis + 1 :])


# -- joining and taking apart


def cat(call: Call) -> Type:
    """The sum along `dim`; a vector of no elements joins anything."""
    xs = call.tensors("xs")
    if xs is None:
        return UNKNOWN
    kind = _joined_dtype(xs)
    shapes = [x.dims for x in xs if x.dims != (0,)] or [(0,)]
    known = [dims for dims in shapes if dims is not None]
    if len(known) != len(shapes):
        return TensorType(kind, None)
    axis = _axis(call, "dim", len(known[0]))
    sizes = [dims[axis] if axis is not None else None for dims in known]
    along: Dim = 0
    for size in sizes:
        along = add_dims(along, size)
    return TensorType(kind, _put(_agreed(known), axis, along))


def _joined_dtype(xs: tuple[TensorType, ...]) -> DType:
    kind = xs[0].dtype
    for x in xs[1:]:
        kind = promote(kind, x.dtype)
    return kind


def _agreed(shapes: list[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """Sizes that are equal in all shapes: an int wins over what is not static."""
    columns = zip(*shapes, strict=True)
    return tuple(
        next((size for size in column if isinstance(size, int)), column[0]) for column in columns
    )


def stack(call: Call) -> Type:
    """A new axis with one place per operand."""
    xs, dim = call.tensors("xs"), call.attr("dim")
    if xs is None:
        return UNKNOWN
    known = [x.dims for x in xs if x.dims is not None]
    if len(known) != len(xs) or not isinstance(dim, int):
        return TensorType(_joined_dtype(xs), None)
    dims, axis = _agreed(known), dim % (len(known[0]) + 1)
    return TensorType(_joined_dtype(xs), (*dims[:axis], len(xs), *dims[axis:]))


def chunk(call: Call) -> Type:
    """`chunks` parts of ⌈n / chunks⌉, the last smaller."""
    x, count = call.tensor("x"), call.attr("chunks")
    if x is None or x.dims is None or not isinstance(count, int):
        return UNKNOWN
    axis = _axis(call, "dim", len(x.dims))
    size = x.dims[axis] if axis is not None else None
    if not isinstance(size, int):
        return _parts(x, axis, (None,) * count)
    return _parts(x, axis, _cut(size, -(-size // count) if size else 0, count))


def split(call: Call) -> Type:
    """Parts of one size, the last smaller, or of the sizes given."""
    x, size = call.tensor("x"), call.attr("size")
    if x is None or x.dims is None:
        return UNKNOWN
    axis = _axis(call, "dim", len(x.dims))
    if isinstance(size, tuple):
        return _parts(x, axis, tuple(call.dim(part) for part in size))
    whole = x.dims[axis] if axis is not None else None
    if not isinstance(whole, int) or not isinstance(size, int):
        return UNKNOWN
    return _parts(x, axis, _cut(whole, size, 1))


def _cut(whole: int, part: int, empty: int) -> tuple[Dim, ...]:
    if not whole:
        return (0,) * empty
    full, rest = divmod(whole, part)
    return (part,) * full + ((rest,) if rest else ())


def _parts(x: TensorType, axis: int | None, sizes: tuple[Dim, ...]) -> Type:
    return TupleType(tuple(TensorType(x.dtype, _put(x.dims or (), axis, s)) for s in sizes))


def unbind(call: Call) -> Type:
    """One value per place along `dim`."""
    x = call.tensor("x")
    if x is None or x.dims is None:
        return UNKNOWN
    axis = _axis(call, "dim", len(x.dims))
    count = x.dims[axis] if axis is not None else None
    if axis is None or not isinstance(count, int):
        return UNKNOWN
    return TupleType((TensorType(x.dtype, x.dims[:axis] + x.dims[axis + 1 :]),) * count)


def getitem(call: Call) -> Type:
    """One item of a tuple."""
    found, index = call.type_of(call.arg("x")), call.attr("index")
    if not isinstance(found, TupleType) or not isinstance(index, int):
        return UNKNOWN
    return found.items[index] if -len(found.items) <= index < len(found.items) else UNKNOWN


# -- shapes


def reshape(call: Call) -> Type:
    """The `shape` operand; −1 is what is left of the elements."""
    shape = call.shape("shape")
    return _with_dims(call, lambda dims: None if shape is None else _fill(shape, dims))


def _fill(shape: tuple[Dim, ...], dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    if -1 not in shape:
        return shape
    rest = tuple(dim for dim in shape if dim != -1)
    return tuple(_rest(dims, rest) if dim == -1 else dim for dim in shape)


def _rest(dims: tuple[Dim, ...], rest: tuple[Dim, ...]) -> Dim:
    """The quotient of the products, with equal factors cancelled first (unknown ones cannot be)."""
    over, under = list(dims), []
    for dim in rest:
        if dim is not None and dim in over:
            over.remove(dim)
        else:
            under.append(dim)
    below = _product(tuple(under))
    return None if below == 0 else div_dims(_product(tuple(over)), below)


def flatten(call: Call) -> Type:
    """Axes start_dim to end_dim become their product."""

    def change(dims: tuple[Dim, ...]) -> Dims:
        start, end = _axis(call, "start_dim", len(dims)), _axis(call, "end_dim", len(dims))
        if start is None or end is None:
            return (1,)
        return (*dims[:start], _product(dims[start : end + 1]), *dims[end + 1 :])

    return _with_dims(call, change)


def unflatten(call: Call) -> Type:
    """One axis becomes `sizes`; −1 is what is left of it."""
    sizes = call.shape("sizes")

    def change(dims: tuple[Dim, ...]) -> Dims:
        axis = _axis(call, "dim", len(dims))
        if axis is None or sizes is None:
            return None
        return (*dims[:axis], *_fill(sizes, (dims[axis],)), *dims[axis + 1 :])

    return _with_dims(call, change)


def permute(call: Call) -> Type:
    """Axes in the order of `dims`."""
    order = call.attr("dims")
    axes = [axis for axis in order if isinstance(axis, int)] if isinstance(order, tuple) else None
    return _with_dims(call, lambda dims: None if axes is None else tuple(dims[i] for i in axes))


def squeeze(call: Call) -> Type:
    """Without those of the axes that have size one; a named size is not one."""
    wanted = call.attr("dims")

    def change(dims: tuple[Dim, ...]) -> Dims:
        listed = wanted if isinstance(wanted, tuple) else (wanted,)
        axes = {axis % max(len(dims), 1) for axis in listed if isinstance(axis, int)}
        if any(dims[axis] is None for axis in axes if dims):
            return None
        return tuple(size for at, size in enumerate(dims) if at not in axes or size != 1)

    return _with_dims(call, change)


def unsqueeze(call: Call) -> Type:
    """A new axis of size one."""

    def change(dims: tuple[Dim, ...]) -> Dims:
        axis = _axis(call, "dim", len(dims) + 1)
        return None if axis is None else (*dims[:axis], 1, *dims[axis:])

    return _with_dims(call, change)


def expand(call: Call) -> Type:
    """The `shape` operand, aligned on the right; −1 keeps the size."""
    shape = call.shape("shape")

    def change(dims: tuple[Dim, ...]) -> Dims:
        if shape is None:
            return None
        kept = (1,) * (len(shape) - len(dims)) + dims
        return tuple(old if new == -1 else new for new, old in zip(shape, kept, strict=True))

    return _with_dims(call, change)


def repeat(call: Call) -> Type:
    """Sizes times `repeats`, aligned on the right."""
    repeats = call.shape("repeats")

    def change(dims: tuple[Dim, ...]) -> Dims:
        if repeats is None:
            return None
        kept = (1,) * (len(repeats) - len(dims)) + dims
        return tuple(map(mul_dims, kept, repeats))

    return _with_dims(call, change)


def pad(call: Call) -> Type:
    """The last axes grow by both of their amounts."""
    amounts = call.shape("pad")

    def change(dims: tuple[Dim, ...]) -> Dims:
        if amounts is None:
            return None
        out = list(dims)
        for at in range(0, len(amounts), 2):
            axis = len(dims) - 1 - at // 2
            out[axis] = add_dims(out[axis], add_dims(amounts[at], amounts[at + 1]))
        return tuple(out)

    return _with_dims(call, change)


def pixel_shuffle(call: Call) -> Type:
    """Channels over r², rows and columns times r."""
    factor = call.dim(call.attr("factor"))
    return _with_dims(
        call,
        lambda dims: (
            *dims[:-3],
            div_dims(dims[-3], mul_dims(factor, factor)),
            mul_dims(dims[-2], factor),
            mul_dims(dims[-1], factor),
        ),
    )


def pixel_unshuffle(call: Call) -> Type:
    """Channels times r², rows and columns over r."""
    factor = call.dim(call.attr("factor"))
    return _with_dims(
        call,
        lambda dims: (
            *dims[:-3],
            mul_dims(dims[-3], mul_dims(factor, factor)),
            div_dims(dims[-2], factor),
            div_dims(dims[-1], factor),
        ),
    )


# -- indexing


def slice_axis(call: Call) -> Type:
    """⌈(stop − start) / step⌉ along `dim`, both ends clamped to the axis."""

    def change(dims: tuple[Dim, ...]) -> Dims:
        axis, step = _axis(call, "dim", len(dims)), call.attr("step")
        if axis is None or not isinstance(step, int):
            return None
        start, stop = _end(call, "start", dims[axis], 0), _end(call, "stop", dims[axis], dims[axis])
        length = sub_dims(stop, start)
        if isinstance(length, int):
            length = max(length, 0)
        return _put(dims, axis, div_dims(add_dims(length, step - 1), step))

    return _with_dims(call, change)


def _end(call: Call, name: str, size: Dim, default: Dim) -> Dim:
    """One end of a slice, clamped; of a named size only what holds for every size of at least one.

    An end that is itself a named size is taken to lie inside.
    """
    arg = call.arg(name)
    if arg is None:
        return default
    value = call.dim(arg)
    if isinstance(value, int) and isinstance(size, int):
        return min(max(value + size if value < 0 else value, 0), size)
    if isinstance(value, Poly) or value is None:
        return value
    if value in (0, 1):
        return value
    return sub_dims(size, 1) if value == -1 else None


def select(call: Call) -> Type:
    """Without the axis `dim`."""

    def change(dims: tuple[Dim, ...]) -> Dims:
        axis = _axis(call, "dim", len(dims))
        return None if axis is None else dims[:axis] + dims[axis + 1 :]

    return _with_dims(call, change)


def index(call: Call) -> Type:
    """Advanced indexing: the indices broadcast, in place of theirs if they are neighbours.

    A boolean mask stands for as many axes as it has and gives a size nobody knows beforehand.
    """
    arg = call.arg("indices")
    places: list[Dims] = []
    for item in arg if isinstance(arg, tuple) else ():
        found = call.type_of(item)
        if item is None:
            places.append(None)
        elif not isinstance(found, TensorType) or found.dims is None:
            return _with_dims(call, lambda _: None)
        else:
            masks = found.dtype in (DType.BOOL, DType.UINT8)
            places += [(None,)] * len(found.dims) if masks else [found.dims]
    return _with_dims(call, lambda dims: _indexed(dims, places))


def _indexed(dims: tuple[Dim, ...], places: list[Dims]) -> Dims:
    used = [at for at, place in enumerate(places) if place is not None]
    if not used or len(places) > len(dims):
        return dims if not used else None
    made = broadcast(places[at] for at in used)
    if made is None:
        return None
    rest = [(at, size) for at, size in enumerate(dims) if at not in used]
    neighbours = used[-1] - used[0] + 1 == len(used)
    first = used[0] if neighbours else 0
    before = tuple(size for at, size in rest if at < first)
    return (*before, *made, *(size for at, size in rest if at >= first))


def gather(call: Call) -> Type:
    """The shape of the index."""
    at = call.tensor("index")
    return _with_dims(call, lambda _: None if at is None else at.dims)


def index_select(call: Call) -> Type:
    """As many places along `dim` as the index has."""
    at = call.tensor("index")
    count = 1 if at and at.dims == () else at.dims[0] if at and at.dims else None
    return _with_dims(call, lambda dims: _put(dims, _axis(call, "dim", len(dims)), count))
