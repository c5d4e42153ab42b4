"""Operators that move, copy or compare values and so run on the quantized integers as they are."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from fqx.ir.names import OpName
from fqx.ops.catalogue import OPS
from fqx.policy.target import Kernel
from fqx.policy.units import Need, UnitKind

MOVING: tuple[str, ...] = (
    "chunk",
    "split",
    "unbind",
    "getitem",
    "flatten",
    "unflatten",
    "reshape",
    "permute",
    "squeeze",
    "unsqueeze",
    "expand",
    "repeat",
    "contiguous",
    "slice",
    "select",
    "index",
    "index_select",
    "gather",
    "flip",
    "roll",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "interpolate",
    "amax",
    "amin",
    "cat",
    "stack",
)
"""torch runs these on plain integers as they are, and the result needs no zero point."""

ZERO_AWARE: tuple[str, ...] = ("relu", "clamp", "pad", "max_pool1d", "max_pool2d", "max_pool3d")
"""These need the zero point, or a kernel of their own."""

AVERAGING: tuple[str, ...] = (
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "mean",
)
"""Averages lie within their values' range. A scheme has to ask for them: a range of their own is
narrower."""

JOINING: tuple[str, ...] = ("cat", "stack")
"""Operators whose first operand is a tuple of activations."""

_NEEDS = MappingProxyType(
    {
        "clamp": frozenset({Need.NUMBER_BOUNDS}),
        "pad": frozenset({Need.PLAIN_PAD}),
        "interpolate": frozenset({Need.NEAREST}),
        "avg_pool1d": frozenset({Need.COUNTS_PADDING}),
        "avg_pool2d": frozenset({Need.COUNTS_PADDING, Need.DIVIDES_ALL}),
        "avg_pool3d": frozenset({Need.DIVIDES_ALL}),
        "mean": frozenset({Need.PLAIN_DTYPE}),
    }
)


def shape_kinds(form: str) -> tuple[UnitKind, ...]:
    """Rows for the operators that keep their input's qparams.

    With `plain` tensors an operator of `MOVING` stays itself, on integers; all others, and all on
    torch's quantized tensors, are kernels called `<form>.<op>`. `reference` has no kernels.
    """
    kinds = tuple(_kind(form, op) for op in (*MOVING, *ZERO_AWARE, *AVERAGING))
    return kinds if form == "plain" else (*kinds, _bilinear(form))


def _bilinear(form: str) -> UnitKind:
    """Averages of four values in an image, as those of a pool."""
    kind = _kind(form, "interpolate")
    needs = frozenset({Need.BILINEAR, Need.RANK_4})
    return replace(kind, name="interpolate_bilinear", needs=needs, asked=True)


def _kind(form: str, op: str) -> UnitKind:
    own = form == "plain" and op in MOVING
    kernel = None if form == "reference" else OpName(op if own else f"{form}.{op}")
    int8 = ("xs",) if op in JOINING else ("x",)
    needs = _NEEDS.get(op, frozenset())
    asked = op in AVERAGING
    return UnitKind(op, OpName(op), kernel, (), int8, shares=True, needs=needs, asked=asked)


def shape_kernels(form: str) -> tuple[Kernel, ...]:
    """The schemas of the kernels among those rows."""
    listed = (*MOVING, *ZERO_AWARE, *AVERAGING)
    return tuple(_kernel(form, op) for op in listed if _named(form, op))


def _named(form: str, op: str) -> bool:
    return form == "native" or op not in MOVING


def _kernel(form: str, op: str) -> Kernel:
    row = OPS[OpName(op)]
    name = OpName(f"{form}.{op}")
    match op:
        case "relu":
            return Kernel(name, ("x",), ("zero_point",))
        case "clamp":
            return Kernel(name, ("x",), ("low", "high"))
        case "pad":
            return Kernel(name, ("x", "pad"), ("zero_point",))
        case _:
            operands = tuple(item.name for item in row.operands)
            more = ("zero_point",) if form == "plain" and op in AVERAGING else ()
            return Kernel(name, operands, (*(item.name for item in row.attrs), *more))
