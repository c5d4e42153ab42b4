"""Operators that move, copy or compare values and so run on the quantized integers as they are."""

from __future__ import annotations

from fqx.ir.names import OpName
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

JOINING: tuple[str, ...] = ("cat", "stack")
"""Operators whose first operand is a tuple of activations."""

_NEEDS = {
    "clamp": frozenset({Need.NUMBER_BOUNDS}),
    "pad": frozenset({Need.PLAIN_PAD}),
    "interpolate": frozenset({Need.NEAREST}),
}


def shape_kinds(form: str) -> tuple[UnitKind, ...]:
    """Rows for the operators that keep their input's qparams.

    With `plain` tensors an operator of `MOVING` stays itself, on integers; all others, and all on
    torch's quantized tensors, are kernels called `<form>.<op>`. `reference` has no kernels.
    """
    return tuple(_kind(form, op) for op in (*MOVING, *ZERO_AWARE))


def _kind(form: str, op: str) -> UnitKind:
    own = form == "plain" and op in MOVING
    kernel = None if form == "reference" else OpName(op if own else f"{form}.{op}")
    int8 = ("xs",) if op in JOINING else ("x",)
    needs = _NEEDS.get(op, frozenset())
    return UnitKind(op, OpName(op), kernel, (), int8, shares=True, needs=needs)
