"""What a kernel's call costs in microseconds: measured where it was, by a formula elsewhere.

    time = fixed + per_mac · multiply-accumulates + per_byte · bytes read and written

the linear model of a core with a throughput and a bandwidth, fitted per kernel. Kernels pad
channels to whole vectors, so multiply-accumulates are counted padded. A table is a plain value: it
goes into files and, as an option of `lower`, into trails.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

from fqx.ir.arg import Arg, DType, Json, canonical
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import OpName
from fqx.ir.text import show_arg
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Result, Success, attempt

VERSION = 1


@dataclass(frozen=True, slots=True)
class Shaped:
    """A tensor operand of a call; four-dimensional activations are channels-last."""

    dtype: DType
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype.value}[{','.join(map(str, self.shape))}]"


Given: TypeAlias = Shaped | tuple[Shaped, ...] | Arg
"""An operand: a tensor, several, or a literal."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a kernel or a float operator, as far as its time depends on it.

    Scales are nominal and zero points 0 or `SHIFTED`: only whether one is 0 costs time.
    """

    op: OpName
    given: tuple[Given, ...]
    out: tuple[int, ...]
    attrs: FrozenMap[Arg] = field(default_factory=FrozenMap)

    @property
    def text(self) -> str:
        """The call in one line; equal calls have equal texts."""
        given = ", ".join(_show(item) for item in self.given)
        attrs = ", ".join(f"{name}={show_arg(value)}" for name, value in self.attrs.items())
        return f"{self.op}({given}; {attrs})" if attrs else f"{self.op}({given})"


SCALE, SHIFTED = 0.05, 64
"""The nominal scale and the nominal zero point that is not 0."""


def nominal(attrs: FrozenMap[Arg]) -> FrozenMap[Arg]:
    """Attributes of a kernel with nominal scales and zero points.

    A scale of 1 stays: it is that of a float result, which takes no other.
    """
    found: dict[str, Arg] = {}
    for name, value in attrs.items():
        if name.endswith("scale") and isinstance(value, float) and value != 1.0:
            value = SCALE
        elif name.endswith("zero_point") and value != 0:
            value = SHIFTED
        found[name] = value
    return FrozenMap(found)


@dataclass(frozen=True, slots=True)
class Formula:
    """Microseconds of a call, per million multiply-accumulates, per KiB."""

    fixed: float
    per_mac: float = 0.0
    per_byte: float = 0.0

    def at(self, macs: int, size: int) -> float:
        """Microseconds of a call with that many multiply-accumulates and bytes."""
        return self.fixed + self.per_mac * macs / 1e6 + self.per_byte * size / 1024


_AMONG_OTHERS = Formula(18.7, 0.0, 0.059)
"""What a packed kernel takes more in a network than timed alone: fixed, and per KiB.

Least squares over whole networks with packed kernels and without, taking turns; docs/costs.md.
"""


def among_others(call: Call) -> float:
    """Microseconds to add to the price of a call that was timed alone."""
    return _AMONG_OTHERS.at(*work(call)) if call.op.startswith(PACKED) else 0.0


def formula_among_others(name: str, formula: Formula) -> Formula:
    """A kernel's formula with these, where it was fitted to calls that were timed alone."""
    if not name.startswith(PACKED):
        return formula
    more = _AMONG_OTHERS
    return Formula(
        formula.fixed + more.fixed, formula.per_mac + more.per_mac, formula.per_byte + more.per_byte
    )


PACKED = "packed."
"""How the names of kernels begin that have a peer which gives the same integers unpacked."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Prices of kernels on one kind of machine, for one number of threads.

    `measured` holds microseconds by the text of a call, `formulas` what is said of other calls, by
    kernel; `sizes` the sizes that named dimensions are priced at, 1 where they are not told.
    """

    name: str
    isa: str
    threads: int
    formulas: FrozenMap[Formula]
    measured: FrozenMap[float] = field(default_factory=FrozenMap)
    sizes: FrozenMap[int] = field(default_factory=FrozenMap)

    def of(self, call: Call) -> float | None:
        """Microseconds of a call; None for a kernel the table knows nothing of."""
        if self.measured:
            exact = self.measured.get(call.text)
            if exact is not None:
                return exact
        names = (*_wider(family(call), call.op), _kind(call.op))
        found = (self.formulas.get(name) for name in names)
        formula = next((item for item in found if item is not None), None)
        return None if formula is None else formula.at(*work(call))

    @property
    def digest(self) -> str:
        """SHA-256 of the table's canonical JSON."""
        return hashlib.sha256(canonical(self.to_json()).encode()).hexdigest()

    def sized(self, sizes: Mapping[str, int]) -> Costs:
        """The table for other sizes of named dimensions."""
        return replace(self, sizes=FrozenMap(sizes))

    def to_json(self) -> Json:
        """The table as plain data; `costs_from_json` is the inverse."""
        return {
            "version": VERSION,
            "name": self.name,
            "isa": self.isa,
            "threads": self.threads,
            "formulas": {
                name: [item.fixed, item.per_mac, item.per_byte]
                for name, item in self.formulas.items()
            },
            "measured": dict(self.measured.items()),
            "sizes": dict(self.sizes.items()),
        }

    def __repr__(self) -> str:
        return (
            f"Costs {self.name} ({self.isa}, {self.threads} thread(s)): {len(self.measured)} calls "
            f"measured, {len(self.formulas)} formulas, {self.digest[:12]}"
        )


def costs_from_json(code: Json) -> Result[Costs, Fault]:
    """The table of some plain data; BAD_ARGUMENT for anything else."""
    return attempt(lambda: _costs(code), _no_table)


def costs_to_arg(costs: Costs) -> str:
    """A table as an option of a pass."""
    return canonical(costs.to_json())


def costs_from_arg(arg: Arg) -> Result[Costs | None, Fault]:
    """The table `costs_to_arg` wrote, None for None; BAD_ARGUMENT for anything else."""
    if arg is None:
        return Success(None)
    read: Result[Json, Fault] = attempt(lambda: json.loads(str(arg)), _no_table)
    return read.bind(costs_from_json).map(_either)


def _either(costs: Costs) -> Costs | None:
    return costs


def _no_table(error: object) -> Fault:
    return Fault(
        FaultKind.BAD_ARGUMENT,
        f"this is no table of costs: {error}",
        "hand in what Costs.to_json wrote",
    )


def _costs(code: Json) -> Costs:
    match code:
        case {
            "version": int() as version,
            "name": str() as name,
            "isa": str() as isa,
            "threads": int() as threads,
            "formulas": dict() as formulas,
            "measured": dict() as measured,
            "sizes": dict() as sizes,
        } if version == VERSION:
            return Costs(
                name,
                isa,
                threads,
                FrozenMap({key: Formula(*_numbers(item)) for key, item in formulas.items()}),
                FrozenMap({key: _time(item) for key, item in measured.items()}),
                FrozenMap({key: _size(item) for key, item in sizes.items()}),
            )
        case _:
            raise ValueError("it has other fields or another version")


def _numbers(code: Json) -> tuple[float, ...]:
    if not isinstance(code, list) or len(code) != 3:
        raise ValueError("a formula has three numbers")
    return tuple(_time(item) for item in code)


def _time(code: Json) -> float:
    if not isinstance(code, (int, float)) or isinstance(code, bool) or not 0 <= code < math.inf:
        raise ValueError(f"not a time: {code!r}")
    return float(code)


def _size(code: Json) -> int:
    if not isinstance(code, int) or isinstance(code, bool) or code < 1:
        raise ValueError(f"not a size: {code!r}")
    return code


# What a call does.


def family(call: Call) -> str:
    """The formula a call is priced by: its kernel, and what makes another kernel of it.

    Convolutions of one and three dimensions are priced as those of two.
    """
    name: str = call.op.replace("conv1d", "conv2d").replace("conv3d", "conv2d")
    engine = call.attrs.get("engine")
    if isinstance(engine, str):
        name = f"{name}/{engine}"
    base, first, second = _base(call.op), *(*call.given, None, None)[:2]
    if not isinstance(second, Shaped) or not isinstance(first, Shaped):
        return name
    if base == "conv":
        name += _window(call, second)
    if base == "linear" and math.prod(first.shape[:-1]) == 1:
        name += ".row"
    if base in _LANES and call.attrs.get("x_zero_point") not in (None, 0):
        name += ".shifted"
    if base in ("add", "mul") and first.shape != second.shape:
        name += ".broadcast"
    return name


def _wider(name: str, op: OpName) -> Iterator[str]:
    """A family, and those it is a part of: `conv2d.points.shifted`, `conv2d.points`, `conv2d`."""
    yield name
    while name.count(".") > op.count("."):
        name = name.rpartition(".")[0]
        yield name


def _window(call: Call, weight: Shaped) -> str:
    if call.attrs.get("groups") not in (None, 1):
        return ".depthwise" if weight.shape[1] == 1 else ".grouped"
    return ".points" if math.prod(weight.shape[2:]) == 1 else ""


_LANES: Mapping[str, tuple[int, int]] = MappingProxyType({"conv": (16, 4), "linear": (16, 4)})
"""What outputs and inputs are padded to: a vector of float32, four bytes of a dot product."""


def work(call: Call) -> tuple[int, int]:
    """Multiply-accumulates, channels padded, and bytes of all operands and of the result."""
    size = sum(_bytes(item) for item in call.given)
    size += math.prod(call.out) * _width(call)
    weight = call.given[1] if len(call.given) > 1 else None
    base = _base(call.op)
    if base not in _LANES or not isinstance(weight, Shaped):
        return 0, size
    lanes, depth = _LANES[base]
    places = math.prod(call.out) // max(weight.shape[0], 1)
    window = math.prod(weight.shape[2:])
    groups = call.attrs.get("groups")
    groups = groups if isinstance(groups, int) and weight.shape[1] > 1 else 1
    inside = 1 if weight.shape[1] == 1 else _up(weight.shape[1], depth)
    return places * groups * _up(weight.shape[0] // groups, lanes) * inside * window, size


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def _base(op: OpName) -> str:
    """`conv` for every convolution, else the operator without its target and additions."""
    plain = op.rpartition(".")[2]
    if plain.startswith("conv_transpose"):
        return plain
    if plain.startswith("conv"):
        return "conv"
    return "linear" if plain.startswith("linear") else plain


def _kind(op: OpName) -> str:
    """The formula of kernels without one of their own; products have none."""
    head, mark, plain = op.rpartition(".")
    if plain in _PRODUCTS or plain.startswith("conv_transpose"):
        return ""
    return "view" if plain in VIEWS else f"{head}.other" if mark else "other"


_PRODUCTS = frozenset({"matmul", "mm", "bmm", "scaled_dot_product_attention", "leaf"})
VIEWS = frozenset(
    {
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
        "contiguous",
        "slice",
        "select",
    }
)
"""Movements that torch does on quantized tensors too, without touching an integer."""
"""Operators that mostly copy nothing; `native` names them after itself."""


def _width(call: Call) -> int:
    """Bytes of an element of the result."""
    output = call.attrs.get("output")
    if isinstance(output, str):
        return 4 if output == "float32" else 1
    if "quantize" in call.op:
        return 4 if "dequantize" in call.op else 1
    if call.op.startswith(("onednn.", "native.")):
        return 1
    first = call.given[0] if call.given else None
    first = first[0] if isinstance(first, tuple) and first else first
    return _WIDTHS.get(first.dtype, 4) if isinstance(first, Shaped) else 4


_WIDTHS: Mapping[DType, int] = MappingProxyType(
    {DType.UINT8: 1, DType.INT8: 1, DType.BOOL: 1, DType.FLOAT16: 2, DType.BFLOAT16: 2}
)


def _bytes(item: Given) -> int:
    if isinstance(item, tuple):
        return sum(_bytes(inner) for inner in item)
    if isinstance(item, Shaped):
        return math.prod(item.shape) * _WIDTHS.get(item.dtype, 4)
    return 0


def _show(item: Given) -> str:
    if isinstance(item, Shaped):
        return str(item)
    if isinstance(item, tuple) and any(isinstance(inner, Shaped) for inner in item):
        return f"({', '.join(_show(inner) for inner in item)})"
    return show_arg(item)  # type: ignore[arg-type]  # no tensor is in it
