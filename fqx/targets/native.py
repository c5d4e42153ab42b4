"""torch's packed-weight kernels on quantized dtypes (`torch.ops.quantized.*`), per engine.

Only kernels that run whatever torch's global engine is. Its convolution with an addition and its
linears with a leaky relu or tanh need it to be onednn in every call, which two threads cannot set:
`native("onednn")` runs the same kernels of oneDNN on the integers instead, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import OpName
from fqx.kit.result import Failure, Result, Success
from fqx.policy.target import INT8_SYMMETRIC, UINT8, Kernel, Target
from fqx.policy.units import Form, Mode, Need, UnitKind
from fqx.targets.floats import FLOAT_KERNELS, FLOAT_KINDS, float_kind
from fqx.targets.lone import alone_kernel, lone_kernels, lone_kinds
from fqx.targets.onednn import DYNAMIC_CONVOLUTION_KERNELS, DYNAMIC_CONVOLUTIONS, tabled
from fqx.targets.recurrent import HALF_RECURRENCES, RECURRENT_KERNELS, dynamic_recurrences
from fqx.targets.shapes import shape_kernels, shape_kinds

ENGINES: tuple[str, ...] = ("x86", "fbgemm", "onednn", "qnnpack")

_WEIGHTED = frozenset({Need.CONSTANT_WEIGHT, Need.CONSTANT_BIAS, Need.FLOAT32})
_PAIR_NEEDS = frozenset({Need.UNSCALED, Need.NO_NUMBERS, Need.FLOAT32})
_CONV = ("stride", "padding", "dilation", "groups")
_RANGED = ("qmin", "qmax", "symmetric", "output")
_OUT = ("scale", "zero_point", "qmin", "qmax")


def _weighted(anchor: str, absorbs: tuple[str, ...], *needs: Need) -> UnitKind:
    return UnitKind(
        "_".join((anchor, *absorbs)),
        OpName(anchor),
        OpName(f"native.{anchor}"),
        tuple(OpName(op) for op in absorbs),
        ("x",),
        "weight",
        frozenset({Form.INT8}),
        needs=_WEIGHTED | set(needs),
    )


def _plain(anchor: str, absorbs: tuple[str, ...], int8: tuple[str, ...], *needs: Need) -> UnitKind:
    return UnitKind(
        "_".join((anchor, *absorbs)),
        OpName(anchor),
        OpName(f"native.{anchor}"),
        tuple(OpName(op) for op in absorbs),
        int8,
        needs=frozenset(needs) | {Need.FLOAT32},
    )


def _with_number(anchor: str, absorbs: tuple[str, ...]) -> UnitKind:
    """An activation and a number."""
    kind = _plain(anchor, absorbs, ("x",), Need.A_NUMBER, Need.UNSCALED)
    return replace(
        kind,
        name="_".join((anchor, "number", *absorbs)),
        kernel=OpName(f"native.{anchor}_number"),
    )


ALONE: tuple[str, ...] = (
    "sigmoid",
    "tanh",
    "hardsigmoid",
    "hardswish",
    "leaky_relu",
    "elu",
    "celu",
)
"""Activations that torch runs on quantized tensors, with a scale of their own for the result."""

WEIGHTLESS: tuple[UnitKind, ...] = (
    *(_plain("add", absorbs, ("x", "y"), *_PAIR_NEEDS) for absorbs in (("relu",), ())),
    *(_plain("mul", absorbs, ("x", "y"), Need.NO_NUMBERS) for absorbs in (("relu",), ())),
    # a product with a number has the integers of its input: a relu behind it only compares those
    *(_with_number("add", absorbs) for absorbs in (("relu",), ())),
    _with_number("mul", ()),
    *(_plain(op, (), ("x",)) for op in ALONE),
    # torch has no quantized kernel of these; in a quantized tensor a table pays only where it is
    # large: 8 us for 1024 elements and 0.13 ms for half a million, in float32 3 us and 0.24 ms
    *(replace(tabled(op, (), "native.table"), asked=True) for op in ("gelu", "silu")),
    *lone_kinds("native"),
)
"""Units of activations alone, whose results have a scale of their own."""

_EVERYWHERE: tuple[UnitKind, ...] = (
    *(_weighted(f"conv{n}d", absorbs) for n in (1, 2, 3) for absorbs in (("relu",), ())),
    *(_weighted("linear", absorbs) for absorbs in (("relu",), ())),
    *WEIGHTLESS,
    float_kind("linear", Mode.DYNAMIC, "native.linear_dynamic", ("relu",)),
    float_kind("linear", Mode.DYNAMIC, "native.linear_dynamic"),
    *FLOAT_KINDS,
    *shape_kinds("native"),
)


def _transposed(dims: tuple[int, ...], axis: int | None) -> tuple[UnitKind, ...]:
    """Transposed convolutions, with scales along this axis of their weights."""
    return tuple(replace(_weighted(f"conv_transpose{n}d", ()), channel_axis=axis) for n in dims)


_POINTWISE: tuple[UnitKind, ...] = (
    *(
        replace(_weighted("linear", (op,)), kernel=OpName("native.linear_post"))
        for op in ("leaky_relu", "tanh")
    ),
    # asked for, since this kernel rearranges a weight in every call whose input has a zero point:
    # 512 channels of 7 x 7 take 216 us without one and 1,024 with, a convolution and a sum 296
    *(
        replace(
            _weighted("conv2d", absorbs, Need.SAME_SHAPE, Need.UNSCALED, Need.FREE_ADDEND),
            kernel=OpName("native.conv2d_add"),
            asked=True,
        )
        for absorbs in (("add", "relu"), ("add",))
    ),
)
"""Kernels on plain integers that torch has for its engine onednn alone."""

_MORE: Mapping[str, tuple[UnitKind, ...]] = MappingProxyType(
    {
        # torch's own are wrong: onednn's (x86 takes those too) from one call to the next, fbgemm's
        # of two dimensions for windows of 2, qnnpack's of three everywhere; so these run as
        # convolutions. qnnpack's of one and two are right, with one scale per weight
        **{name: _transposed((1, 2, 3), 1) for name in ("x86", "fbgemm")},
        "onednn": (*_transposed((1, 2, 3), 1), *_POINTWISE),
        "qnnpack": (*_transposed((1, 2), None), *_transposed((3,), 1)),
    }
)


KERNELS: tuple[Kernel, ...] = (
    Kernel(OpName("native.quantize"), ("x",), _OUT),
    Kernel(OpName("native.dequantize"), ("x",), ("dtype",)),
    Kernel(OpName("native.wrap"), ("x",), ("scale", "zero_point")),
    Kernel(OpName("native.unwrap"), ("x",), ()),
    *(
        Kernel(
            OpName(f"native.conv{n}d"),
            ("x", "weight", "weight_scale", "bias"),
            (*_OUT, *_CONV, "relu", "engine"),
        )
        for n in (1, 2, 3)
    ),
    *(
        Kernel(
            OpName(f"native.conv_transpose{n}d"),
            ("x", "weight", "weight_scale", "bias"),
            (*_OUT, "stride", "padding", "output_padding", "groups", "dilation", "engine"),
        )
        for n in (1, 2, 3)
    ),
    Kernel(
        OpName("native.linear_post"),
        ("x", "weight", "weight_scale", "bias"),
        ("x_scale", "x_zero_point", *_OUT, "activation", "activation_args", "engine"),
    ),
    Kernel(
        OpName("native.conv2d_add"),
        ("x", "weight", "weight_scale", "bias", "other"),
        (
            *("x_scale", "x_zero_point", *_OUT, *_CONV),
            *("other_scale", "other_zero_point", "relu", "keeps_other", "engine"),
        ),
    ),
    Kernel(
        OpName("native.linear"),
        ("x", "weight", "weight_scale", "bias"),
        (*_OUT, "relu", "engine"),
    ),
    *RECURRENT_KERNELS,
    Kernel(OpName("native.table"), ("x",), ("x_scale", "x_zero_point", *_OUT, "steps", "engine")),
    Kernel(OpName("native.add"), ("x", "y"), (*_OUT, "relu", "engine")),
    Kernel(OpName("native.mul"), ("x", "y"), (*_OUT, "relu", "engine")),
    Kernel(OpName("native.add_number"), ("x", "y"), (*_OUT, "relu", "engine")),
    Kernel(OpName("native.mul_number"), ("x", "y"), (*_OUT, "relu", "engine")),
    *(alone_kernel("native", op) for op in ALONE),
    *lone_kernels("native"),
    Kernel(
        OpName("native.linear_dynamic"),
        ("x", "weight", "weight_scale", "bias"),
        (*_RANGED, "relu", "engine"),
    ),
    *DYNAMIC_CONVOLUTION_KERNELS,
    *FLOAT_KERNELS,
    *shape_kernels("native"),
)


def native(engine: str = "x86") -> Result[Target, Fault]:
    """The kernels of one engine: x86, fbgemm, onednn or qnnpack.

    Ranges are those of a machine with VNNI; `probe` narrows them where sums saturate. fbgemm's are
    narrow everywhere: its depthwise kernels sum in int16 whatever the machine; x86 hands it the
    convolutions of more than 100 groups. Fails with UNSUPPORTED_TARGET for another name.
    """
    if engine not in ENGINES:
        return Failure(
            Fault(
                FaultKind.UNSUPPORTED_TARGET,
                f"native has no engine {engine!r}",
                f"use one of {', '.join(ENGINES)}",
            )
        )
    # torch 2.13's dynamic convolutions write their result in the scale of their input, which
    # saturates; onednn's kernels on plain integers give floats, and need no quantized tensors
    convolutions = () if engine == "qnnpack" else DYNAMIC_CONVOLUTIONS
    recurrences = (*dynamic_recurrences(engine), *HALF_RECURRENCES)
    units = (*_MORE[engine], *_EVERYWHERE, *convolutions, *recurrences)
    target = Target("native", engine, "vnni", UINT8, INT8_SYMMETRIC, units, KERNELS, "quantized")
    return Success(target.narrowed() if engine in ("x86", "fbgemm") else target)
