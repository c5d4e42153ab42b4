"""What was decided about each node, and why: a closed set of verdicts and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TypeAlias, assert_never

from fqx.ir.arg import DType, Json, decode_arg, encode_arg
from fqx.ir.names import NodeId
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import fold
from fqx.num.scheme import QSpec, qspec_from_arg, qspec_to_arg


class Verdict(Enum):
    """How a node is computed."""

    INT8 = "int8"
    WEIGHT = "weight"
    HALF = "half"
    FLOAT = "float"
    OUTSIDE = "outside"


class Reason(Enum):
    """Why; the value is the sentence reports start with."""

    # int8
    KERNEL = "the target runs it on integers"
    ABSORBED = "it runs inside the kernel of the node before it"
    MOVES_INTEGERS = "it moves or compares integers and keeps their qparams"
    SMOOTHED = "it runs on integers, its input smoothed into the weight"
    DYNAMIC = "it runs on integers scaled to each call's own range"
    # weight
    WEIGHT_ONLY = "its weight is held in integers and read as float"
    HALF = "its weight is held in half precision and read as float"
    HALVES = "its operands and its result are rounded to half precision, and it computes in float32"
    # float
    BY_RECIPE = "the recipe leaves it float"
    NOT_PLANNED = "no rule planned it when observers were put"
    NO_KERNEL = "the target has no kernel for it"
    UNFIT = "the target's kernel does not take this call"
    FOREIGN = "it is an operator outside the catalogue"
    LEAF = "it is a module kept whole"
    CUSTOM = "it is a module kept whole, quantized at its borders"
    BETWEEN_FLOATS = "its neighbours are float, so integers would not pay"
    DIVISION = "it divides by what smoothing put into a weight"
    RUINOUS_INPUT = "a per-tensor scale would ruin its input"
    NOT_OBSERVED = "an operand was not observed"
    FASTER_IN_FLOAT = "float costs less here, conversions counted"
    MASKED = "no scale holds both scores and the mask that is added to them before a softmax"
    UNFIT_SCHEME = "the target has no kernel for the integers the recipe asks for"
    # outside
    NO_ARITHMETIC = "it computes nothing"
    NO_ACTIVATION = "it is computed from integers and constants alone"
    INTEGERS = "it works on integers of the model itself"


VERDICTS: Mapping[Reason, Verdict] = MappingProxyType(
    {
        Reason.KERNEL: Verdict.INT8,
        Reason.ABSORBED: Verdict.INT8,
        Reason.MOVES_INTEGERS: Verdict.INT8,
        Reason.SMOOTHED: Verdict.INT8,
        Reason.DYNAMIC: Verdict.INT8,
        Reason.WEIGHT_ONLY: Verdict.WEIGHT,
        Reason.HALF: Verdict.WEIGHT,
        Reason.HALVES: Verdict.HALF,
        Reason.NO_ARITHMETIC: Verdict.OUTSIDE,
        Reason.NO_ACTIVATION: Verdict.OUTSIDE,
        Reason.INTEGERS: Verdict.OUTSIDE,
    }
)
"""The verdict a reason belongs to; FLOAT for those not listed."""


@dataclass(frozen=True, slots=True)
class Own:
    """Scale and zero point of its own."""

    spec: QSpec


@dataclass(frozen=True, slots=True)
class SharedWith:
    """The scale and zero point of another node's value."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Derived:
    """Scale and zero point computed from others' by a named formula."""

    of: tuple[NodeId, ...]
    formula: str
    spec: QSpec


@dataclass(frozen=True, slots=True)
class Fixed:
    """Scale and zero point known beforehand."""

    scale: float
    zero_point: int
    spec: QSpec


@dataclass(frozen=True, slots=True)
class Float:
    """Not quantized."""

    dtype: DType | None = None


Source: TypeAlias = Own | SharedWith | Derived | Fixed | Float
"""Where the qparams of an edge come from."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """The decision about one node.

    `inputs` maps an operand (`x`, `weight`, `xs.0`) to the source of its qparams; operands that
    cannot be quantized are left out. `unit` names the row of the target's table and the unit's
    anchor: `conv2d_relu of layer1.0.conv1`.
    """

    reason: Reason
    text: str
    inputs: FrozenMap[Source]
    output: Source
    unit: str = ""

    @property
    def verdict(self) -> Verdict:
        """How the node is computed."""
        return VERDICTS.get(self.reason, Verdict.FLOAT)

    def __str__(self) -> str:
        unit = f" [{self.unit}]" if self.unit else ""
        return f"{self.verdict.value}{unit}: {self.text or self.reason.value}"

    def to_json(self) -> Json:
        """The annotation as plain data."""
        return {
            "verdict": self.verdict.value,
            "reason": self.reason.name,
            "text": self.text,
            "unit": self.unit,
            "inputs": {name: encode_source(source) for name, source in self.inputs.items()},
            "output": encode_source(self.output),
        }


def encode_source(source: Source) -> Json:
    """A source as plain data."""
    match source:
        case Own(spec=spec):
            return {"own": encode_arg(qspec_to_arg(spec))}
        case SharedWith(node=node):
            return {"shared": node}
        case Derived(of=of, formula=formula, spec=spec):
            names: list[Json] = list(of)
            return {"derived": [names, formula, encode_arg(qspec_to_arg(spec))]}
        case Fixed(scale=scale, zero_point=zero, spec=spec):
            return {"fixed": [scale, zero, encode_arg(qspec_to_arg(spec))]}
        case Float(dtype=dtype):
            return {"float": dtype.value if dtype else None}
        case _:
            assert_never(source)


def decode_source(code: Json) -> Source:
    """Inverse of `encode_source`; ValueError on anything else."""
    match code:
        case {"own": spec}:
            return Own(_spec(spec))
        case {"shared": str() as node}:
            return SharedWith(NodeId(node))
        case {"derived": [list() as of, str() as formula, spec]}:
            return Derived(tuple(NodeId(str(name)) for name in of), formula, _spec(spec))
        case {"fixed": [float() as scale, int() as zero, spec]}:
            return Fixed(scale, zero, _spec(spec))
        case {"float": None}:
            return Float()
        case {"float": str() as dtype}:
            return Float(DType(dtype))
        case _:
            raise ValueError(f"not a source: {code!r}")


def decode_annotation(code: Json) -> Annotation:
    """Inverse of `Annotation.to_json`; ValueError or KeyError on anything else."""
    match code:
        case {
            "reason": str() as reason,
            "text": str() as text,
            "unit": str() as unit,
            "inputs": dict() as inputs,
            "output": output,
        }:
            sources = FrozenMap({name: decode_source(item) for name, item in inputs.items()})
            return Annotation(Reason[reason], text, sources, decode_source(output), unit)
        case _:
            raise ValueError(f"not an annotation: {code!r}")


def _spec(code: Json) -> QSpec:
    def refuse(reason: object) -> QSpec:
        raise ValueError(str(reason))

    return fold(qspec_from_arg(decode_arg(code)), lambda spec: spec, refuse)
