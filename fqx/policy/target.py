"""What a target is: its integer ranges, its units and its kernels, as one value."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from fqx.ir.arg import Arg, DType, Json, canonical
from fqx.ir.names import OpName
from fqx.kit.frozen import FrozenMap
from fqx.policy.units import UnitKind


@dataclass(frozen=True, slots=True)
class IntRange:
    """The integers a tensor may hold: `qmin <= q <= qmax` in `dtype`."""

    dtype: DType
    qmin: int
    qmax: int

    def to_json(self) -> Json:
        """The range as plain data."""
        return {"dtype": self.dtype.value, "qmin": self.qmin, "qmax": self.qmax}

    def contains(self, other: IntRange) -> bool:
        """Whether every integer of `other` is one of these."""
        return self.dtype == other.dtype and self.qmin <= other.qmin and other.qmax <= self.qmax


UINT8 = IntRange(DType.UINT8, 0, 255)
"""Activations of x86 kernels."""
UINT7 = IntRange(DType.UINT8, 0, 127)
"""Activations where a sum of two products has to fit int16."""
INT8_SYMMETRIC = IntRange(DType.INT8, -127, 127)
"""Weights, symmetric about zero."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """The schema of one lowered op: operand names in order, and attribute names."""

    op: OpName
    operands: tuple[str, ...]
    attrs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A place to run: what integers its kernels take exactly, which units and kernels it has.

    `engine` selects among the kernels of `native`, and is empty elsewhere. `isa` names the
    instructions the ranges rely on: `vnni` (products of full 8-bit ranges are summed exactly) or
    `any` (two neighbouring products are summed in int16, so the activation range is narrow).
    `form` is the tensor a quantized value is at run time: plain integers (`plain`) or torch's
    quantized dtypes (`quantized`). `also` are integers of other types that a recipe may ask of
    activations: no kernel takes them, and such units stay as `convert` writes them.
    """

    name: str
    engine: str
    isa: str
    activation: IntRange
    weight: IntRange
    units: tuple[UnitKind, ...]
    kernels: tuple[Kernel, ...] = ()
    form: str = "plain"
    also: tuple[IntRange, ...] = ()

    def activation_of(self, dtype: DType) -> IntRange:
        """The integers of activations of one type; those of the kernels if there are no such."""
        ranges = (self.activation, *self.also)
        return next((held for held in ranges if held.dtype == dtype), self.activation)

    @property
    def label(self) -> str:
        """Name, engine and ISA in one word: `native/fbgemm`, `onednn@any`."""
        engine = f"/{self.engine}" if self.engine else ""
        isa = "" if self.isa == "vnni" else f"@{self.isa}"
        return f"{self.name}{engine}{isa}"

    def narrowed(self) -> Target:
        """For machines without VNNI: activations 0..127, so that no int16 sum saturates.

        `2 · 127 · 127 = 32258 <= 32767`; the full range gives `2 · 255 · 127 = 64770`.
        """
        return replace(self, isa="any", activation=UINT7)

    def kinds(self, anchor: OpName) -> tuple[UnitKind, ...]:
        """The rows of the unit table with this anchor."""
        return tuple(kind for kind in self.units if kind.anchor == anchor)

    def covers(self, other: Target) -> bool:
        """Whether a program made for `other` computes the same integers here."""
        return (
            (self.name, self.engine) == (other.name, other.engine)
            and self.activation.contains(other.activation)
            and self.weight.contains(other.weight)
        )

    def to_json(self) -> Json:
        """What a file needs to know of it; the tables are found again by name and engine."""
        return {
            "name": self.name,
            "engine": self.engine,
            "isa": self.isa,
            "activation": self.activation.to_json(),
            "weight": self.weight.to_json(),
        }

    def __repr__(self) -> str:
        low, high = self.activation.qmin, self.activation.qmax
        return f"Target {self.label}: activations {low}..{high}, {len(self.units)} kinds of unit"


def target_to_arg(target: Target) -> FrozenMap[Arg]:
    """A target as plain data for a pass's options: its ranges and the names of its units.

    The units themselves are found again by name; `tables` is a mark of what they say, so that a
    target with another table under the same name is told apart.
    """
    return FrozenMap(
        {
            "name": target.name,
            "engine": target.engine,
            "isa": target.isa,
            "activation": range_to_arg(target.activation),
            "weight": range_to_arg(target.weight),
            "units": tuple(kind.name for kind in target.units),
            "tables": _mark(target),
            **({"also": tuple(map(range_to_arg, target.also))} if target.also else {}),
        }
    )


def range_to_arg(held: IntRange) -> Arg:
    """A range as plain data."""
    return (held.dtype, held.qmin, held.qmax)


def _mark(target: Target) -> str:
    units: list[Json] = [
        [
            kind.name,
            kind.anchor,
            kind.kernel,
            list(kind.absorbs),
            list(kind.int8),
            kind.weight,
            [*sorted(form.value for form in kind.outputs)],
            kind.shares,
            [*sorted(need.name for need in kind.needs)],
            kind.channel_axis,
            kind.asked,
            kind.mode.value,
            kind.qmax,
        ]
        for kind in target.units
    ]
    kernels: list[Json] = [
        [kernel.op, list(kernel.operands), list(kernel.attrs)] for kernel in target.kernels
    ]
    code = canonical([target.form, units, kernels])
    return hashlib.sha256(code.encode()).hexdigest()[:16]
