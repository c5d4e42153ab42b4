"""Spellings that say more than another name: each takes a bound aten call to canonical calls.

One function per family. `None` means the call stays foreign, always the safe answer.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Final

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.names import OpName
from fqx.ops.bound import (
    Bound,
    Canonical,
    Same,
    Translate,
    Translation,
    call,
    calls,
    local,
    sizes_of,
)
from fqx.ops.catalogue import OPS

END: Final = 2**63 - 1
"""What torch writes for the end of a slice without one."""

_ALIASES: Final = MappingProxyType(
    {
        "x": ("self", "input", "a", "indices"),
        "y": ("other", "mat2", "exponent", "b"),
        "xs": ("tensors",),
        "low": ("min",),
        "high": ("max",),
        "source": ("src", "value"),
        "training": ("train",),
        "mean": ("running_mean",),
        "var": ("running_var",),
        "stop": ("end",),
    }
)
"""What aten calls an operand or attribute, where it is not our own name."""


def renamed(op: str, item: int | None = None, /, **names: str) -> Translate:
    """The call of `op` with aten's arguments under our names: `names`, the same, or an alias."""

    def translate(bound: Bound) -> Translation:
        given = {ours: bound[_find(bound, ours, names)] for ours in _names(op, bound, names)}
        first = next(
            (names.get(n) or _find(bound, n, names) for n in ("x", "xs") if n in given), ""
        )
        return call(op, bound.rank(first), item, **given)

    return translate


def _names(op: str, bound: Bound, names: dict[str, str]) -> tuple[str, ...]:
    row = OPS[OpName(op)]
    every = [item.name for item in row.operands] + [item.name for item in row.attrs]
    return tuple(name for name in every if _find(bound, name, names) in bound.args)


def _find(bound: Bound, ours: str, names: dict[str, str]) -> str:
    if ours in names:
        return names[ours]
    options = (ours, *_ALIASES.get(ours, ()))
    return next((name for name in options if name in bound.args), ours)


def with_attrs(translate: Translate, **fixed: Arg) -> Translate:
    """The same spelling with attributes it fixes: `floor_divide` is div with a rounding mode."""

    def fix(bound: Bound) -> Translation:
        made = translate(bound)
        if not isinstance(made, Canonical):
            return made
        attrs = made.attrs
        for name, value in fixed.items():
            attrs = attrs.put(name, value)
        return Canonical(made.op, made.args, attrs, made.item)

    return fix


# -- the call itself, or nothing


def identity(bound: Bound) -> Translation:
    """detach, alias: the argument as it is."""
    return Same(next(iter(bound.args.values())))


def copied(bound: Bound) -> Translation:
    """lift_fresh_copy: the argument in storage of its own."""
    return Same(next(iter(bound.args.values())), fresh=True)


def nothing(bound: Bound) -> Translation:
    """An assertion: no value."""
    del bound
    return Same(None)


# -- convolutions and products


def padded_conv(bound: Bound) -> Translation:
    """conv with padding='valid' or 'same'; an uneven 'same' pads explicitly on the right first."""
    weight = bound.dims("weight")
    if weight is None:
        return None
    count = len(weight) - 2
    made = renamed(f"conv{count}d")(bound)
    if not isinstance(made, Canonical):
        return None
    if bound["padding"] == "valid":
        return Canonical(made.op, made.args, made.attrs.put("padding", (0,) * count))
    totals = _same_totals(weight[2:], made.attrs["dilation"])
    if bound["padding"] != "same" or len(totals) != count:
        return None
    attrs = made.attrs.put("padding", tuple(total // 2 for total in totals))
    if not any(total % 2 for total in totals):
        return Canonical(made.op, made.args, attrs)
    extra = tuple(size for total in reversed(totals) for size in (0, total % 2))
    grown = call("pad", None, x=bound["input"], pad=extra)
    return calls(grown, Canonical(made.op, (local(0), *made.args[1:]), attrs))


def _same_totals(kernel: tuple[object, ...], dilation: Arg) -> tuple[int, ...]:
    pairs = zip(kernel, dilation if isinstance(dilation, tuple) else (), strict=True)
    return tuple(d * (k - 1) for k, d in pairs if isinstance(k, int) and isinstance(d, int))


def convolution(bound: Bound) -> Translation:
    """aten.convolution: a convolution or a transposed one, by the weight's rank."""
    rank = bound.rank("weight")
    if rank is None or rank not in (3, 4, 5) or not isinstance(bound["transposed"], bool):
        return None
    op = f"conv{'_transpose' if bound['transposed'] else ''}{rank - 2}d"
    return renamed(op)(bound)


def embedding_bag(bound: Bound) -> Translation:
    """embedding_bag; the mode by name, the value is item 0 of aten's four."""
    return _bags(bound, bound.args.get("padding_idx", -1))


def padded_embedding_bag(bound: Bound) -> Translation:
    """embedding_bag.padding_idx: None is no padding, a negative index counts from the end."""
    padding, weight = bound["padding_idx"], bound.dims("weight")
    if isinstance(padding, int) and padding < 0:
        rows = weight[0] if weight else None
        return _bags(bound, padding + rows) if isinstance(rows, int) else None
    return _bags(bound, -1 if padding is None else padding)


def _bags(bound: Bound, padding: Arg) -> Translation:
    mode = bound["mode"]
    if not isinstance(mode, int):
        return None
    return call(
        "embedding_bag",
        None,
        0,
        x=bound["indices"],
        weight=bound["weight"],
        offsets=bound["offsets"],
        per_sample_weights=bound["per_sample_weights"],
        mode=("sum", "mean", "max")[mode],
        include_last_offset=bound["include_last_offset"],
        padding_idx=padding,
    )


# -- activations


def clamp(bound: Bound) -> Translation:
    """clamp, clip, clamp_min, clamp_max: bounds as floats on float tensors; [0, ∞) is relu."""
    names = {"low": ("min", "min_val"), "high": ("max", "max_val")}
    low, high = (
        next((bound[n] for n in options if n in bound.args), None) for options in names.values()
    )
    return _clamp(bound, low, high)


def relu6(bound: Bound) -> Translation:
    """relu6 is clamp(0, 6)."""
    return _clamp(bound, 0, 6)


def hardtanh(bound: Bound) -> Translation:
    """hardtanh is a clamp, except on integers, where it casts the bounds."""
    kind = bound.dtype("self")
    if kind is not None and kind.is_float:
        return _clamp(bound, bound["min_val"], bound["max_val"])
    return renamed("hardtanh", low="min_val", high="max_val")(bound)


def _clamp(bound: Bound, low: Arg, high: Arg) -> Translation:
    x, kind = bound["self"], bound.dtype("self")
    floats = kind is not None and kind.is_float
    # a float bound would make an integer tensor float, which relu does not
    if _is_zero(low) and high is None and (floats or isinstance(low, int)):
        return call("relu", None, x=x)
    if floats:
        low, high = _as_float(low), _as_float(high)
    return call("clamp", None, x=x, low=low, high=high)


def _is_zero(value: Arg) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and value == 0 and math.copysign(1, float(str(value))) > 0


def _as_float(value: Arg) -> Arg:
    return float(value) if isinstance(value, int) else value


def rrelu(bound: Bound) -> Translation:
    """rrelu in evaluation is leaky_relu with the mean slope."""
    low, high = bound["lower"], bound["upper"]
    if bound["training"] is not False or not isinstance(low, (int, float)):
        return None
    if not isinstance(high, (int, float)):
        return None
    return call("leaky_relu", None, x=bound["self"], negative_slope=(low + high) / 2)


def plain_softmax(op: str) -> Translate:
    """_softmax: softmax where it does not widen half precision."""

    def translate(bound: Bound) -> Translation:
        if bound["half_to_float"] is not False:
            return None
        return call(op, bound.rank("self"), x=bound["self"], dim=bound["dim"])

    return translate


# -- choice


def masked_fill(bound: Bound) -> Translation:
    """masked_fill is where(mask, value, x) unless the value would widen the result."""
    kind, value = bound.dtype("self"), bound["value"]
    if kind is None or not _fits(value, bound.dtype("value"), kind):
        return None
    return call("where", None, condition=bound["mask"], x=value, y=bound["self"])


def _fits(value: Arg, of: DType | None, kind: DType) -> bool:
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return kind is not DType.BOOL
    if isinstance(value, float):
        return kind.is_float
    return of is kind


# -- joining and taking apart


def hstack(bound: Bound) -> Translation:
    """hstack joins along axis 1, vectors along axis 0."""
    rank = bound.rank("tensors")
    return call("cat", rank, xs=bound["tensors"], dim=min(rank - 1, 1)) if rank else None


def vstack(bound: Bound) -> Translation:
    """vstack joins along axis 0; vectors stay foreign."""
    rank = bound.rank("tensors")
    return call("cat", rank, xs=bound["tensors"], dim=0) if rank and rank > 1 else None


def tensor_split(bound: Bound) -> Translation:
    """tensor_split into sections of a static axis is split by sizes."""
    axis, dims, count = bound.axis(bound["dim"], "self"), bound.dims("self"), bound["sections"]
    total = dims[axis] if dims and axis is not None else None
    if not isinstance(total, int) or not isinstance(count, int):
        return None
    sizes = tuple(total // count + (index < total % count) for index in range(count))
    return call("split", bound.rank("self"), x=bound["self"], size=sizes, dim=axis)


# -- reductions


def reduce_all(op: str) -> Translate:
    """max() and min() over all axes."""
    return lambda bound: call(op, bound.rank("self"), x=bound["self"], dim=None)


def variance(bound: Bound) -> Translation:
    """var in its three spellings: unbiased or a correction, which defaults to 1."""
    unbiased, correction = bound.args.get("unbiased", True), bound.args.get("correction")
    return call(
        "var",
        bound.rank("self"),
        x=bound["self"],
        dim=bound.args.get("dim"),
        correction=int(unbiased is True) if correction is None else correction,
        keepdim=bound.args.get("keepdim", False),
    )


# -- shapes


def shaped_like(op: str) -> Translate:
    """view_as, reshape_as, expand_as: the shape of another tensor."""

    def translate(bound: Bound) -> Translation:
        found = sizes_of(bound, "other")
        return found and calls(*found[0], call(op, None, x=bound["self"], shape=found[1]))

    return translate


def ravel(bound: Bound) -> Translation:
    """ravel is flatten."""
    return call("flatten", bound.rank("self"), x=bound["self"])


def transpose(bound: Bound) -> Translation:
    """transpose, swapaxes, swapdims: a permute that exchanges two axes."""
    one, two = (value for name, value in bound.args.items() if name != "self")
    return _exchange(bound, bound.axis(one, "self"), bound.axis(two, "self"))


def matrix_transpose(bound: Bound) -> Translation:
    """mT, and adjoint of a real tensor: exchange the last two axes."""
    rank, kind = bound.rank("self"), bound.dtype("self")
    if rank is None or rank < 2 or kind in (None, DType.COMPLEX64, DType.COMPLEX128):
        return None
    return _exchange(bound, rank - 2, rank - 1)


def reverse_axes(bound: Bound) -> Translation:
    """t and numpy_T: all axes in reverse; a vector stays as it is."""
    rank = bound.rank("self")
    if rank is None or rank < 2:
        return None if rank is None else Same(bound["self"])
    return call("permute", rank, x=bound["self"], dims=tuple(reversed(range(rank))))


def move_axes(bound: Bound) -> Translation:
    """movedim and moveaxis."""
    rank = bound.rank("self")
    source, destination = _axes(bound, "source"), _axes(bound, "destination")
    if rank is None or source is None or destination is None:
        return None
    rest = iter(axis for axis in range(rank) if axis not in source)
    put = dict(zip(destination, source, strict=True))
    dims = tuple(put[axis] if axis in put else next(rest) for axis in range(rank))
    return call("permute", rank, x=bound["self"], dims=dims)


def _axes(bound: Bound, name: str) -> tuple[int, ...] | None:
    value = bound[name]
    found = [bound.axis(v, "self") for v in (value if isinstance(value, tuple) else (value,))]
    return tuple(axis for axis in found if axis is not None) if None not in found else None


def _exchange(bound: Bound, one: int | None, two: int | None) -> Translation:
    rank = bound.rank("self")
    if rank is None or one is None or two is None:
        return None
    if rank == 0:
        return Same(bound["self"])
    dims = list(range(rank))
    dims[one], dims[two] = two, one
    return call("permute", rank, x=bound["self"], dims=tuple(dims))


def squeeze(bound: Bound) -> Translation:
    """squeeze; without axes it drops those that are statically of size one."""
    dims, given = bound.dims("self"), bound.args.get("dim")
    if given is None:
        if dims is None:
            return None
        given = tuple(axis for axis, size in enumerate(dims) if size == 1)
    axes = given if isinstance(given, tuple) else (given,)
    return call("squeeze", bound.rank("self"), x=bound["self"], dims=axes)


def tile(bound: Bound) -> Translation:
    """tile is repeat with ones in front."""
    rank, dims = bound.rank("self"), bound["dims"]
    if rank is None or not isinstance(dims, tuple):
        return None
    return call("repeat", rank, x=bound["self"], repeats=(1,) * (rank - len(dims)) + dims)


def clone(bound: Bound) -> Translation:
    """clone is a fresh copy; with a memory format it is contiguous."""
    layout = bound["memory_format"]
    if layout in (None, "preserve"):
        return Same(bound["self"], fresh=True)
    return call("contiguous", None, x=bound["self"], memory_format=layout)


def pad(mode: str | None) -> Translate:
    """pad, constant_pad_nd, reflection_pad, replication_pad."""

    def translate(bound: Bound) -> Translation:
        how = mode if mode is not None else bound["mode"]
        value = _pad_value(bound, bound.args.get("value"), how)
        amounts = bound[next(n for n in ("pad", "padding") if n in bound.args)]
        return call("pad", None, x=bound["self"], pad=amounts, mode=how, value=value)

    return translate


def _pad_value(bound: Bound, value: Arg, how: Arg) -> Arg:
    kind = bound.dtype("self")
    if how != "constant" or value is None:
        return 0.0
    return _as_float(value) if kind is not None and kind.is_float else value


def roll(bound: Bound) -> Translation:
    """roll by one shift per axis."""
    shifts, dims = (v if isinstance(v, tuple) else (v,) for v in (bound["shifts"], bound["dims"]))
    return call("roll", bound.rank("self"), x=bound["self"], shifts=shifts, dims=dims)


def interpolate(mode: str, antialias: bool = False) -> Translate:
    """upsample_*: by size or by scale factors, whichever was given."""

    def translate(bound: Bound) -> Translation:
        scales = [v for n, v in bound.args.items() if n.startswith("scales") and v is not None]
        if scales:
            return None
        return call(
            "interpolate",
            None,
            x=bound["input" if "input" in bound.args else "self"],
            size=bound["output_size"],
            scale_factor=bound.args.get("scale_factors"),
            mode=mode,
            align_corners=bound.args.get("align_corners"),
            antialias=antialias,
        )

    return translate


# -- indexing


def slice_axis(bound: Bound) -> Translation:
    """slice with open ends where nothing is cut off; a slice of everything is its operand."""
    axis, dims = bound.axis(bound["dim"], "self"), bound.dims("self")
    size = dims[axis] if dims and axis is not None else None
    start = _slice_end(bound["start"], size, opens=0)
    stop = _slice_end(bound["end"], size, opens=size)
    if start is None and stop is None and bound["step"] == 1:
        return Same(bound["self"])
    return call(
        "slice",
        bound.rank("self"),
        x=bound["self"],
        start=start,
        stop=stop,
        dim=bound["dim"],
        step=bound["step"],
    )


def _slice_end(value: Arg, size: object, opens: object) -> Arg:
    if not isinstance(value, int):
        return value
    if isinstance(size, int):
        value = min(max(value + size if value < 0 else value, 0), size)
    return None if value == opens or value >= END else value


def slice_scatter(bound: Bound) -> Translation:
    """slice_scatter with open ends as in `slice`."""
    axis, dims = bound.axis(bound["dim"], "self"), bound.dims("self")
    size = dims[axis] if dims and axis is not None else None
    return call(
        "slice_scatter",
        bound.rank("self"),
        x=bound["self"],
        source=bound["src"],
        start=_slice_end(bound["start"], size, opens=0),
        stop=_slice_end(bound["end"], size, opens=size),
        dim=bound["dim"],
        step=bound["step"],
    )


def narrow(bound: Bound) -> Translation:
    """narrow(dim, start, length) is slice."""
    start, length = bound["start"], bound["length"]
    if not isinstance(start, int) or not isinstance(length, int):
        return None
    end = END if start < 0 and start + length == 0 else start + length
    ends: dict[str, Arg] = {"start": start, "end": end, "step": 1}
    return slice_axis(Bound({**bound.args, **ends}, bound.types))


def select(bound: Bound) -> Translation:
    """select with a non-negative index where the axis is static."""
    axis, dims, index = bound.axis(bound["dim"], "self"), bound.dims("self"), bound["index"]
    size = dims[axis] if dims and axis is not None else None
    if isinstance(index, int) and isinstance(size, int) and index < 0:
        index = index + size
    return call("select", bound.rank("self"), x=bound["self"], index=index, dim=bound["dim"])


# -- casts and factories


def cast(bound: Bound) -> Translation:
    """to, type_as, _to_copy: a cast where the dtype changes, then a layout where one is asked."""
    x, kind = bound["self"], bound.dtype("self")
    wanted = bound.dtype("other") if "other" in bound.args else bound.args.get("dtype")
    layout = bound.args.get("memory_format")
    made: list[Canonical | None] = []
    if wanted is not None and wanted is not kind:
        made.append(call("to", None, x=x, dtype=wanted))
    if layout not in (None, "preserve"):
        made.append(call("contiguous", None, x=local(0) if made else x, memory_format=layout))
    if len(made) > 1:
        return calls(*made)
    return made[0] if made else Same(x, fresh=bound.args.get("copy", True) is True)


def full(value: Arg = None) -> Translate:
    """full, zeros, ones and their new_ forms; the dtype is torch's default for the value."""

    def translate(bound: Bound) -> Translation:
        fill = bound.args.get("fill_value", value)
        like = bound.dtype("self") if "self" in bound.args else None
        kind = bound.args.get("dtype") or like or _dtype_of(fill, "fill_value" in bound.args)
        if not isinstance(kind, DType):
            return None
        shape = bound.args.get("size", ())
        return call("full", None, shape=shape, value=_of_dtype(fill, kind), dtype=kind)

    return translate


def full_like(value: Arg = None) -> Translate:
    """full_like, zeros_like, ones_like, fill, zero: a constant of another tensor's shape."""

    def translate(bound: Bound) -> Translation:
        fill = bound.args.get("fill_value", bound.args.get("value", value))
        kind = bound.args.get("dtype") or bound.dtype("self")
        if not isinstance(kind, DType) or isinstance(fill, WeightRef):
            return None
        if isinstance(fill, NodeRef) and "value" in bound.types:
            return None
        return call("full_like", None, x=bound["self"], value=_of_dtype(fill, kind), dtype=kind)

    return translate


def scalar_tensor(bound: Bound) -> Translation:
    """scalar_tensor is full with no axes."""
    kind = bound["dtype"] or DType.FLOAT32
    if not isinstance(kind, DType):
        return None
    return call("full", None, shape=(), value=_of_dtype(bound["s"], kind), dtype=kind)


def _dtype_of(value: Arg, given: bool) -> DType | None:
    """torch's default: float32, but a given bool or int fill value decides."""
    if isinstance(value, bool) and given:
        return DType.BOOL
    if isinstance(value, (int, NodeRef)) and given:
        return DType.INT64
    return DType.FLOAT32


def _of_dtype(value: Arg, kind: DType) -> Arg:
    if not isinstance(value, (int, float)):
        return value
    if kind is DType.BOOL:
        return bool(value)
    if kind.is_float:
        return float(value)
    return int(value) if math.isfinite(value) else value


def arange(bound: Bound) -> Translation:
    """arange from 0 by 1; ints give int64, floats float32."""
    ends = (bound.args.get("start", 0), bound["end"], bound.args.get("step", 1))
    floats = any(isinstance(value, float) for value in ends)
    kind = bound["dtype"] or (DType.FLOAT32 if floats else DType.INT64)
    return call("arange", None, start=ends[0], stop=ends[1], step=ends[2], dtype=kind)


def copy(bound: Bound) -> Translation:
    """copy(x, source): the source in x's dtype and shape."""
    x, source = bound.tensor("self"), bound.tensor("src")
    if x is None or source is None or x.dims is None:
        return None
    cast_first = x.dtype is not source.dtype
    if x.dims == source.dims:
        made = call("to", None, x=bound["src"], dtype=x.dtype)
        return made if cast_first else Same(bound["src"], fresh=True)
    found = sizes_of(bound, "self")
    if found is None:
        return None
    sizes, shape = found
    casts = (call("to", None, x=bound["src"], dtype=x.dtype),) if cast_first else ()
    value = local(len(sizes)) if cast_first else bound["src"]
    return calls(*sizes, *casts, call("expand", None, x=value, shape=shape))


def fill_tensor(bound: Bound) -> Translation:
    """fill with a tensor of no axes is copy."""
    args = {"self": bound["self"], "src": bound["value"]}
    types = {"src" if name == "value" else name: kind for name, kind in bound.types.items()}
    return copy(Bound(args, types))


# -- Python ints


def size(bound: Bound) -> Translation:
    """sym_size: a number where the axis is static."""
    axis, dims = bound.axis(bound["dim"], "self"), bound.dims("self")
    static = dims[axis] if dims and axis is not None else None
    if isinstance(static, int):
        return Same(static)
    return call("size", bound.rank("self"), x=bound["self"], dim=bound["dim"])


def numel(bound: Bound) -> Translation:
    """sym_numel: the product of the sizes, the static ones as one factor."""
    found = sizes_of(bound, "self")
    if found is None:
        return None
    sizes, shape = found
    static = math.prod(side for side in shape if isinstance(side, int))
    factors: list[Arg] = [*(local(index) for index in range(len(sizes)))]
    factors += [static] if static != 1 or not sizes else []
    made: list[Canonical | None] = list(sizes)
    value = factors[0]
    for factor in factors[1:]:
        made.append(call("int_mul", None, x=value, y=factor))
        value = local(len(made) - 1)
    return calls(*made) if made else Same(value)
