"""Units of activations that torch has quantized kernels of, and that do not pay by themselves.

Their kernels compute in float32 between a dequantize and a quantize of their own, so only schemes
with `lone=True` get them. `plain` integers are seen as quantized tensors over the same memory.
"""

from __future__ import annotations

from dataclasses import replace

from fqx.ir.names import OpName
from fqx.ops.catalogue import OPS
from fqx.policy.target import Kernel
from fqx.policy.units import Need, UnitKind

CONTRACTIONS: tuple[str, ...] = ("matmul", "mm", "bmm")
"""Products of two activations; torch multiplies them in float32."""

NORMS: tuple[str, ...] = ("layer_norm", "group_norm", "instance_norm", "batch_norm")

_OPS = (*CONTRACTIONS, "prelu", "softmax", *NORMS)
_OUT = ("scale", "zero_point", "qmin", "qmax")
_PLAIN = ("x_scale", "x_zero_point", "output")


def lone_kinds(form: str) -> tuple[UnitKind, ...]:
    """Their rows, whose kernels are called `<form>.<op>`."""

    def row(op: str, int8: tuple[str, ...], *needs: Need, relu: bool = False) -> UnitKind:
        return UnitKind(
            f"{op}_relu" if relu else op,
            OpName(op),
            OpName(f"{form}.{op}"),
            (OpName("relu"),) if relu else (),
            int8,
            needs=frozenset({Need.FLOAT32, *needs}),
            asked=True,
        )

    return (
        *(row(op, ("x", "y"), Need.MATRICES) for op in CONTRACTIONS),
        row("prelu", ("x",)),
        row("softmax", ("x",), Need.PLAIN_DTYPE),
        row("layer_norm", ("x",)),
        row("group_norm", ("x",), Need.CHANNELED),
        row("instance_norm", ("x",), Need.OWN_STATISTICS, Need.CHANNELED),
        *(
            row("batch_norm", ("x",), Need.EVAL, Need.NORMED_RANK, relu=relu)
            for relu in (True, False)
        ),
    )


def alone_kernel(form: str, op: str) -> Kernel:
    """The schema of a kernel of one operator: its operands, and its attributes behind the result's.

    What the operator calls `scale` is a `factor` there.
    """
    row = OPS[OpName(op)]
    own = ("factor" if item.name == "scale" else item.name for item in row.attrs)
    operands = tuple(item.name for item in row.operands)
    return Kernel(OpName(f"{form}.{op}"), operands, (*_OUT, *own, "engine"))


def lone_kernels(form: str) -> tuple[Kernel, ...]:
    """The schemas of their kernels."""
    return tuple(_kernel(form, op) for op in _OPS)


def _kernel(form: str, op: str) -> Kernel:
    made = alone_kernel(form, op)
    relu = ("relu",) if op == "batch_norm" else ()
    if form == "native":
        return replace(made, attrs=(*made.attrs, *relu))
    second = ("y_scale", "y_zero_point") if op in CONTRACTIONS else ()
    own = tuple(name for name in made.attrs if name != "engine")
    return replace(made, attrs=(*own, *_PLAIN, *second, *relu))
