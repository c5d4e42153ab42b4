"""No integer kernels at all: every unit runs in float between dequantize and quantize."""

from __future__ import annotations

from dataclasses import replace

from fqx.ir.names import OpName
from fqx.policy.target import INT8_SYMMETRIC, UINT8, Target
from fqx.policy.units import Mode, Need, UnitKind
from fqx.targets import native as _native
from fqx.targets import onednn as _onednn
from fqx.targets.shapes import shape_kinds

_FLOAT_KERNELS: tuple[UnitKind, ...] = (
    UnitKind("sub", OpName("sub"), None, (), ("x", "y"), asked=True),
)
"""What no target has a kernel for, between its own quantize and dequantize."""

_OF_KERNELS = frozenset(
    {Need.FLOAT32, Need.SAME_SHAPE, Need.NORMED_RANK, Need.CHANNELED, Need.MATRICES}
)


def _without_kernel(kind: UnitKind) -> UnitKind:
    return replace(kind, kernel=None, needs=kind.needs - _OF_KERNELS)


_HELD = frozenset(
    (kind.anchor, kind.absorbs, Need.A_NUMBER in kind.needs)
    for kind in _onednn.UNITS
    if kind.mode is Mode.STATIC
)

UNITS: tuple[UnitKind, ...] = (
    *(_without_kernel(kind) for kind in _onednn.UNITS if not kind.shares),
    *(
        _without_kernel(kind)
        for kind in _native.WEIGHTLESS
        if (kind.anchor, kind.absorbs, Need.A_NUMBER in kind.needs) not in _HELD
    ),
    *_FLOAT_KERNELS,
    *shape_kinds("reference"),
)


def reference() -> Target:
    """The portable reference program: the ranges of VNNI machines, no kernels."""
    return Target("reference", "", "vnni", UINT8, INT8_SYMMETRIC, UNITS)
