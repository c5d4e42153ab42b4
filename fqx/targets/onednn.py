"""oneDNN kernels on plain `uint8`/`int8` tensors (`torch.ops.onednn.*`); the default on x86."""

from __future__ import annotations

from dataclasses import replace

from fqx.ir.names import OpName
from fqx.policy.target import INT8_SYMMETRIC, UINT8, Kernel, Target
from fqx.policy.units import Form, Mode, Need, UnitKind
from fqx.targets.floats import FLOAT_KERNELS, FLOAT_KINDS, float_kind
from fqx.targets.lone import lone_kernels, lone_kinds
from fqx.targets.recurrent import HALF_RECURRENCES, RECURRENT_KERNELS, dynamic_recurrences
from fqx.targets.shapes import shape_kernels, shape_kinds

_BOTH = frozenset({Form.INT8, Form.FLOAT})
_WEIGHTED = frozenset({Need.CONSTANT_WEIGHT, Need.CONSTANT_BIAS, Need.FLOAT32})
_CONV_ACTIVATIONS = ("relu", "clamp", "hardswish", "silu")
_LINEAR_ACTIVATIONS = (*_CONV_ACTIVATIONS, "gelu", "tanh", "leaky_relu")
_ADD_NEEDS = frozenset({Need.SAME_SHAPE, Need.UNSCALED, Need.FREE_ADDEND})
_PAIR_NEEDS = frozenset({Need.UNSCALED, Need.NO_NUMBERS, Need.FLOAT32})

_OUT = ("scale", "zero_point", "qmin", "qmax", "output")
_SCALED = ("x_scale", "x_zero_point", *_OUT)
_RANGED = ("qmin", "qmax", "symmetric", "output")
_POST = ("activation", "activation_args")
_PACK = ("relu", "engine")
_ADDED = ("other_scale", "other_zero_point")
_CONV = ("stride", "padding", "dilation", "groups")
_PAIR = ("x_scale", "x_zero_point", "y_scale", "y_zero_point", *_OUT)


def _weighted(anchor: str, activations: tuple[str, ...], kernel: str) -> tuple[UnitKind, ...]:
    """The anchor alone and with each activation behind it."""
    chains: tuple[tuple[OpName, ...], ...] = ((), *((OpName(op),) for op in activations))
    return tuple(
        UnitKind(
            "_".join((anchor, *chain)),
            OpName(anchor),
            OpName(kernel),
            chain,
            ("x",),
            "weight",
            _BOTH,
            needs=_WEIGHTED | {Need.NUMBER_BOUNDS},
        )
        for chain in chains
    )


def _transposed(dims: int, activations: tuple[str, ...]) -> tuple[UnitKind, ...]:
    """A transposed convolution, which runs as a convolution: output channels lie along axis 1."""
    name = f"conv_transpose{dims}d"
    rows = _weighted(name, activations, f"onednn.{name}")
    return tuple(replace(row, channel_axis=1) for row in rows)


def tabled(anchor: str, absorbs: tuple[str, ...] = (), kernel: str = "plain.table") -> UnitKind:
    """A function of one activation, looked up; sums and products are those with a number."""
    number = frozenset({Need.A_NUMBER, Need.UNSCALED}) if anchor in ("add", "mul") else frozenset()
    return UnitKind(
        "_".join((anchor, *(("number",) if number else ()), *absorbs)),
        OpName(anchor),
        OpName(kernel),
        tuple(OpName(op) for op in absorbs),
        ("x",),
        needs=number | {Need.FLOAT32},
    )


def _dynamic(anchor: str, activations: tuple[str, ...]) -> tuple[UnitKind, ...]:
    """The anchor on integers scaled in each call, alone and with each activation behind it."""
    needs = _WEIGHTED | {Need.NUMBER_BOUNDS}
    chains: tuple[tuple[str, ...], ...] = (*((op,) for op in activations), ())
    return tuple(
        float_kind(anchor, Mode.DYNAMIC, f"onednn.{anchor}_dynamic", chain, needs)
        for chain in chains
    )


def _added(anchor: str, kernel: str) -> tuple[UnitKind, ...]:
    """The anchor with an addition, and a relu behind that."""
    return tuple(
        UnitKind(
            "_".join((anchor, *chain)),
            OpName(anchor),
            OpName(kernel),
            tuple(OpName(op) for op in chain),
            ("x",),
            "weight",
            frozenset({Form.INT8}),
            needs=_WEIGHTED | _ADD_NEEDS,
        )
        for chain in (("add", "relu"), ("add",))
    )


DYNAMIC_CONVOLUTIONS: tuple[UnitKind, ...] = tuple(
    kind
    for n, activations in ((1, _CONV_ACTIVATIONS), (2, _CONV_ACTIVATIONS), (3, ()))
    for kind in _dynamic(f"conv{n}d", activations)
)
DYNAMIC_CONVOLUTION_KERNELS: tuple[Kernel, ...] = tuple(
    Kernel(
        OpName(f"onednn.conv{n}d_dynamic"),
        ("x", "weight", "weight_scale", "bias"),
        (*_RANGED, *_CONV, *_POST),
    )
    for n in (1, 2, 3)
)
"""`native` runs them too: its own dynamic convolutions saturate."""

FUNCTIONS: tuple[str, ...] = (
    "sigmoid",
    "tanh",
    "hardsigmoid",
    "hardswish",
    "leaky_relu",
    "elu",
    "celu",
    "gelu",
    "silu",
)
"""Functions of one activation, which a table of 256 integers holds whatever they are."""

LOOKUPS: tuple[UnitKind, ...] = (
    *(tabled(op) for op in FUNCTIONS),
    *(tabled(op, absorbs) for op in ("add", "mul") for absorbs in (("relu",), ())),
)

UNITS: tuple[UnitKind, ...] = (
    *_weighted("conv1d", _CONV_ACTIVATIONS, "onednn.conv1d"),
    *_weighted("conv2d", _CONV_ACTIVATIONS, "onednn.conv2d"),
    # oneDNN as torch calls it takes no activation behind a convolution of three dimensions; a relu
    # is a bound
    *_weighted("conv3d", ("relu",), "onednn.conv3d"),
    *_transposed(1, _CONV_ACTIVATIONS),
    *_transposed(2, _CONV_ACTIVATIONS),
    *_transposed(3, ()),
    *_added("conv2d", "onednn.conv2d_add"),
    *_weighted("linear", _LINEAR_ACTIVATIONS, "onednn.linear"),
    *_added("linear", "onednn.linear_add"),
    UnitKind(
        "add_relu",
        OpName("add"),
        OpName("onednn.add"),
        (OpName("relu"),),
        ("x", "y"),
        needs=_PAIR_NEEDS,
    ),
    UnitKind("add", OpName("add"), OpName("onednn.add"), (), ("x", "y"), needs=_PAIR_NEEDS),
    *(
        UnitKind(
            "_".join(("mul", *chain)),
            OpName("mul"),
            OpName("onednn.mul"),
            tuple(OpName(op) for op in chain),
            ("x", "y"),
            needs=frozenset({Need.NO_NUMBERS, Need.FLOAT32}),
        )
        for chain in (("relu",), ())
    ),
    *LOOKUPS,
    *lone_kinds("plain"),
    *_dynamic("linear", _LINEAR_ACTIVATIONS),
    *DYNAMIC_CONVOLUTIONS,
    *FLOAT_KINDS,
    *dynamic_recurrences("onednn"),
    *HALF_RECURRENCES,
    *shape_kinds("plain"),
)

KERNELS: tuple[Kernel, ...] = (
    *(
        Kernel(
            OpName(f"onednn.conv{n}d"),
            ("x", "weight", "weight_scale", "bias"),
            (*_SCALED, *_CONV, *_POST),
        )
        for n in (1, 2, 3)
    ),
    *(
        Kernel(
            OpName(f"packed.conv{n}d"),
            ("x", "weight", "weight_scale", "bias"),
            (*_SCALED, *_CONV, *_PACK),
        )
        for n in (1, 2, 3)
    ),
    Kernel(
        OpName("onednn.conv2d_as_linear"),
        ("x", "weight", "weight_scale", "bias"),
        (*_SCALED, *_CONV, *_POST),
    ),
    Kernel(
        OpName("onednn.conv2d_add"),
        ("x", "weight", "weight_scale", "bias", "other"),
        (*_SCALED, *_CONV, *_ADDED, "relu", "keeps_other"),
    ),
    *(
        Kernel(
            OpName(f"onednn.conv_transpose{n}d"),
            ("x", "weight", "weight_scale", "bias"),
            (*_SCALED, *_CONV, "output_padding", *_POST),
        )
        for n in (1, 2, 3)
    ),
    Kernel(OpName("onednn.linear"), ("x", "weight", "weight_scale", "bias"), (*_SCALED, *_POST)),
    Kernel(
        OpName("onednn.linear_add"),
        ("x", "weight", "weight_scale", "bias", "other"),
        (*_SCALED, *_ADDED, "relu", "keeps_other"),
    ),
    Kernel(OpName("onednn.add"), ("x", "y"), (*_PAIR, "relu")),
    Kernel(OpName("onednn.mul"), ("x", "y"), (*_PAIR, "relu")),
    Kernel(OpName("plain.table"), ("x",), (*_SCALED, "steps")),
    Kernel(OpName("plain.quantize_scaled"), ("x", "factor"), _OUT),
    Kernel(OpName("plain.shift"), ("x",), ()),
    *lone_kernels("plain"),
    Kernel(
        OpName("onednn.linear_dynamic"), ("x", "weight", "weight_scale", "bias"), _RANGED + _POST
    ),
    *DYNAMIC_CONVOLUTION_KERNELS,
    *FLOAT_KERNELS,
    *RECURRENT_KERNELS,
    *shape_kernels("plain"),
)


def onednn() -> Target:
    """oneDNN on a machine with VNNI: activations 0..255, weights -127..127, exact int32 sums."""
    return Target("onednn", "", "vnni", UINT8, INT8_SYMMETRIC, UNITS, KERNELS)
