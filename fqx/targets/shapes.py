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
    "flip",
    "roll",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "relu",
    "max_pool1d",
    "max_pool2d",
)
"""Each result element is an element of the input (or the zero point)."""

JOINING: tuple[str, ...] = ("cat", "stack")
"""The same with several inputs."""


def shape_kinds(kernel: str) -> tuple[UnitKind, ...]:
    """Rows for the operators that keep their input's qparams, with kernels `<kernel>.<op>`."""
    moving = tuple(_kind(kernel, op, ("x",)) for op in MOVING)
    joining = tuple(_kind(kernel, op, ("xs",)) for op in JOINING)
    return (
        *moving,
        *joining,
        _kind(kernel, "clamp", ("x",), Need.NUMBER_BOUNDS),
        _kind(kernel, "pad", ("x",), Need.PLAIN_PAD),
        _kind(kernel, "interpolate", ("x",), Need.NEAREST),
    )


def _kind(kernel: str, op: str, int8: tuple[str, ...], *needs: Need) -> UnitKind:
    name = OpName(f"{kernel}.{op}")
    return UnitKind(op, OpName(op), name, (), int8, shares=True, needs=frozenset(needs))
