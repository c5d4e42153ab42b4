"""Units that read and give floats: weights alone in int8, rows of 8 or 4 bits, half precision.

Dynamic units stand with the static ones of their target, since they run its integer kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from fqx.ir.names import OpName
from fqx.policy.target import Kernel
from fqx.policy.units import Form, Mode, Need, UnitKind
from fqx.targets.shapes import AVERAGING

FLOATS = frozenset({Form.FLOAT})
"""The results of units that give floats alone."""

_SUFFIX: Mapping[Mode, str] = MappingProxyType(
    {Mode.DYNAMIC: "dynamic", Mode.WEIGHT_ONLY: "weight_only", Mode.FLOAT16: "float16"}
)
_CONSTANT = frozenset({Need.CONSTANT_WEIGHT, Need.FLOAT32})
_LINEAR = _CONSTANT | {Need.CONSTANT_BIAS}


def float_kind(
    anchor: str,
    mode: Mode,
    kernel: str | None,
    absorbs: tuple[str, ...] = (),
    needs: frozenset[Need] = _LINEAR,
) -> UnitKind:
    """A row whose unit reads and gives floats; its name ends in its mode."""
    return UnitKind(
        "_".join((anchor, *absorbs, _SUFFIX[mode])),
        OpName(anchor),
        None if kernel is None else OpName(kernel),
        tuple(OpName(op) for op in absorbs),
        (),
        "weight",
        FLOATS,
        needs=needs,
        mode=mode,
    )


def _half_kind(
    anchor: str, operands: tuple[str, ...], *needs: Need, absorbs: tuple[str, ...] = ()
) -> UnitKind:
    """A row whose unit computes in float32 what it reads and gives in half precision."""
    number = ("number",) if Need.A_NUMBER in needs else ()
    return UnitKind(
        "_".join((anchor, *number, *absorbs, "float16_static")),
        OpName(anchor),
        None,
        tuple(OpName(op) for op in absorbs),
        operands,
        needs=frozenset({Need.FLOAT32, *needs}),
        mode=Mode.FLOAT16_STATIC,
    )


_PAIRS = ("add", "mul", "matmul", "mm", "bmm")
_SINGLES = ("sigmoid", "tanh", "hardsigmoid", "softmax", "clamp", "interpolate", *AVERAGING)

HALF_KINDS: tuple[UnitKind, ...] = (
    *(
        replace(
            _half_kind("linear", ("x",), *_LINEAR, absorbs=absorbs),
            weight="weight",
            kernel=OpName("native.linear_float16"),
        )
        for absorbs in (("relu",), ())
    ),
    *(_half_kind(op, ("x", "y"), Need.NO_NUMBERS) for op in _PAIRS),
    *(_half_kind(op, ("x",), Need.A_NUMBER) for op in ("add", "mul")),
    *(_half_kind(op, ("x",)) for op in _SINGLES),
)
"""torch's `float16_static_qconfig`: a value that only moves is as round as it was.

Rounding commutes with relu, so none but linears, whose kernel has one, absorb it.
"""

FLOAT_KINDS: tuple[UnitKind, ...] = (
    float_kind("linear", Mode.WEIGHT_ONLY, "plain.linear_weight_only"),
    float_kind("embedding", Mode.WEIGHT_ONLY, "plain.embedding_weight_only", (), _CONSTANT),
    float_kind("embedding_bag", Mode.WEIGHT_ONLY, "plain.embedding_bag_weight_only", (), _CONSTANT),
    float_kind("linear", Mode.FLOAT16, "native.linear_float16", ("relu",)),
    float_kind("linear", Mode.FLOAT16, "native.linear_float16"),
    *HALF_KINDS,
)
"""Rows of every target with kernels."""

FLOAT_KERNELS: tuple[Kernel, ...] = (
    Kernel(OpName("plain.channels_last"), ("x",), ()),
    Kernel(
        OpName("plain.linear_weight_only"), ("x", "weight", "weight_scale", "bias"), ("output",)
    ),
    Kernel(
        OpName("plain.embedding_weight_only"),
        ("x", "weight", "weight_scale", "weight_zero_point"),
        ("padding_idx", "width", "output"),
    ),
    Kernel(
        OpName("plain.embedding_bag_weight_only"),
        ("x", "weight", "offsets", "per_sample_weights", "weight_scale", "weight_zero_point"),
        ("mode", "include_last_offset", "padding_idx", "width", "output"),
    ),
    Kernel(OpName("native.linear_float16"), ("x", "weight", "bias"), ("relu", "output")),
)
"""The schemas of their kernels."""
