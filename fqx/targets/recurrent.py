"""Recurrent layers and cells that torch runs on integers or half precision, states in float.

A kernel rounds its input by the range of the call and each hidden state by the range of its step.
"""

from __future__ import annotations

from dataclasses import replace

from fqx.ir.names import OpName
from fqx.policy.target import Kernel
from fqx.policy.units import Mode, Need, UnitKind
from fqx.targets.floats import float_kind

LAYERS: tuple[str, ...] = ("lstm", "gru")
CELLS: tuple[str, ...] = ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")

_NEEDS = frozenset(
    {
        Need.CONSTANT_WEIGHT,
        Need.CONSTANT_BIAS,
        Need.FLOAT32,
        Need.UNPROJECTED,
        Need.UNDROPPED,
    }
)
_LAYER = ("num_layers", "bidirectional", "batch_first", "output")
_READ = ("x", "hx", "weights", "biases")
_READ_SCALED = ("x", "hx", "weights", "weight_scales", "biases")


def _kinds(mode: Mode, suffix: str) -> tuple[UnitKind, ...]:
    return tuple(
        replace(
            float_kind(op, mode, f"native.{op}_{suffix}", (), _NEEDS),
            weight="w_ih" if op in CELLS else "weights",
        )
        for op in (*LAYERS, *CELLS)
    )


def dynamic_recurrences(engine: str) -> tuple[UnitKind, ...]:
    """Rows of an engine of `native`; its cells take seven bits, but for qnnpack's."""
    kinds = _kinds(Mode.DYNAMIC, "dynamic")
    if engine == "qnnpack":
        return kinds
    return tuple(replace(kind, qmax=127) if kind.anchor in CELLS else kind for kind in kinds)


HALF_RECURRENCES: tuple[UnitKind, ...] = _kinds(Mode.FLOAT16, "float16")
"""Rows of every target with kernels."""

RECURRENT_KERNELS: tuple[Kernel, ...] = (
    *(
        Kernel(OpName(f"native.{op}_dynamic"), _READ_SCALED, (*_LAYER, "reduce_range", "engine"))
        for op in LAYERS
    ),
    *(Kernel(OpName(f"native.{op}_dynamic"), _READ_SCALED, ("output", "engine")) for op in CELLS),
    *(Kernel(OpName(f"native.{op}_float16"), _READ, _LAYER) for op in LAYERS),
    *(Kernel(OpName(f"native.{op}_float16"), _READ, ("output",)) for op in CELLS),
)
"""The schemas of their kernels; weights and biases in torch's flat order, of input and of state."""
