"""`fold`: away with what quantization makes superfluous; bit for bit the same results.

    quantize(x, s, z) = clamp(rint(x · (1/s)) + z, qmin, qmax)

is monotone and ends at qmin and qmax, so a clamp before it whose bounds already quantize to qmin
and qmax changes nothing, and `quantize(dequantize(q))` with one scale gives back q: the float32
roundings move (q - z) by less than 2⁻¹⁴ for any 8-bit q.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef, same
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import Path, RuleName, Stage
from fqx.ir.node import Node
from fqx.ir.signature import TensorType
from fqx.ir.weight import Weight
from fqx.kit.result import Result, Success
from fqx.kit.result import fold as answer
from fqx.match.pattern import anything, op, stored
from fqx.match.rewrite import rewrite
from fqx.match.rule import Change, Made, Rule, Rules, rules
from fqx.match.search import Match, Miss
from fqx.num.affine import dequantize, quantize
from fqx.num.tensors import tensor_of, weight_of
from fqx.ops.catalogue import attr, operand
from fqx.ops.types import types
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite

BYTES = frozenset({DType.INT8, DType.UINT8})
"""The integer types whose every value float32 carries through dequantize and back."""


def fold() -> Pass:
    """Quantizes constants, drops dequantize-quantize pairs and clamps the range already implies.

    Takes and gives QUANTIZED graphs. Faults: MISSING_PAYLOAD where a constant is not loaded.
    """
    return Pass("fold", NO_OPTIONS, frozenset({Stage.QUANTIZED}), Stage.QUANTIZED, _fold)


def _fold(graph: Graph) -> Result[Rewrite, Fault]:
    made = rewrite(graph, RULES, types=types(graph))
    return made.map(lambda done: Rewrite(done.graph, done.diff))


@dataclass(frozen=True, slots=True)
class _Grid:
    """The literal, per-tensor parameters of a quantize node."""

    scale: float
    zero: int
    qmin: int
    qmax: int
    dtype: DType

    def quantized(self, value: float) -> int:
        """The integer of one float32 value."""
        tensor = torch.tensor(value, dtype=torch.float32)
        return int(quantize(tensor, self.scale, self.zero, self.qmin, self.qmax, self.dtype))

    def value(self, integer: int) -> float:
        """The float32 value of an integer."""
        return float(dequantize(torch.tensor(integer, dtype=torch.int32), self.scale, self.zero))


def _grid(node: Node) -> _Grid | None:
    """The grid of a quantize node; None unless it is one of literals for the whole tensor."""
    parts = (operand(node, "scale"), operand(node, "zero_point"))
    match (*parts, attr(node, "qmin"), attr(node, "qmax"), attr(node, "dtype")):
        case (int() | float() as scale, int() as zero, int() as qmin, int() as qmax, DType() as to):
            return _Grid(float(scale), zero, qmin, qmax, to)
        case _:
            return None


# -- constants --


def _constant(found: Match) -> Made:
    """quantize($w, s, z) -> $w in integers."""
    weight, path = found.weight("x"), found.path("x")
    dtype = attr(found.root, "dtype")
    if weight is None or path is None or not isinstance(dtype, DType):
        return Miss("the operand is not in the graph", found.root.id)
    if attr(found.root, "block") is not None:
        return Miss("scales in blocks are not folded", found.root.id)
    return answer(
        _integers(found, weight, dtype),
        lambda tensor: _with_integers(found, path, weight, tensor),
        _itself,
    )


def _integers(found: Match, weight: Weight, dtype: DType) -> Result[torch.Tensor | None, Fault]:
    axis, qmin, qmax = (attr(found.root, name) for name in ("axis", "qmin", "qmax"))
    if not isinstance(qmin, int) or not isinstance(qmax, int):
        return Success(None)
    along = axis if isinstance(axis, int) else None
    return tensor_of(weight).bind(
        lambda values: _number(found, "scale").bind(
            lambda scale: _number(found, "zero").map(
                lambda zero: (
                    None
                    if scale is None or zero is None
                    else quantize(values, scale, zero, qmin, qmax, dtype, along)
                )
            )
        )
    )


def _number(found: Match, name: str) -> Result[torch.Tensor | None, Fault]:
    """A scale or zero point as a tensor; None if it is computed at run time."""
    arg, weight = found.arg(name), found.weight(name)
    if weight is not None:
        return tensor_of(weight).map(_itself_or_none)
    is_number = isinstance(arg, int | float) and not isinstance(arg, bool)
    return Success(torch.tensor(arg) if is_number else None)


def _itself_or_none(tensor: torch.Tensor) -> torch.Tensor | None:
    return tensor


def _itself(fault: Fault) -> Made:
    return fault


def _with_integers(found: Match, path: Path, weight: Weight, tensor: torch.Tensor | None) -> Made:
    if tensor is None:
        return Miss("scale or zero point are computed at run time", found.root.id)
    new = weight_of(tensor, weight.role, persistent=weight.persistent, share=True)
    there = found.weight_at(Path(f"{path}_quantized"))
    if there == new:
        return Change(WeightRef(Path(f"{path}_quantized")))
    place = path if found.is_alone(path) else found.fresh_path(f"{path}_quantized")
    return Change(WeightRef(place), (), {place: new})


# -- pairs --


def _pair(found: Match) -> Made:
    """quantize(dequantize(q, s, z), s, z) -> q."""
    inner = found.node("inner")
    if inner is None or attr(inner, "dtype") not in (DType.FLOAT32, DType.FLOAT64):
        return Miss("the value between is not float32", found.root.id)
    if any(not same(attr(inner, name), attr(found.root, name)) for name in ("axis", "block")):
        return Miss("the two have different axes", found.root.id)
    kind, dtype = found.type_of(found.arg("q")), attr(found.root, "dtype")
    if not isinstance(kind, TensorType) or kind.dtype is not dtype or dtype not in BYTES:
        return Miss("the integers are not 8-bit integers of one type", found.root.id)
    low, high = _bounds(found, kind.dtype)
    qmin, qmax = attr(found.root, "qmin"), attr(found.root, "qmax")
    if not isinstance(qmin, int) or not isinstance(qmax, int) or low < qmin or high > qmax:
        return Miss("the second range is narrower than the first", found.root.id)
    return Change(found.arg("q"))


def _bounds(found: Match, dtype: DType) -> tuple[int, int]:
    """Least and greatest integer that `q` can hold."""
    node = found.node("q")
    if node is not None and node.op == "quantize":
        low, high = attr(node, "qmin"), attr(node, "qmax")
        if isinstance(low, int) and isinstance(high, int):
            return low, high
    return (0, 255) if dtype is DType.UINT8 else (-128, 127)


# -- clamps --


def _limits(node: Node) -> tuple[float | None, float | None] | None:
    """Bounds of relu, clamp or hardtanh; None if one of them is not a number."""
    if node.op == "relu":
        return 0.0, None
    bounds = (
        (operand(node, "low"), operand(node, "high"))
        if node.op == "clamp"
        else (attr(node, "low"), attr(node, "high"))
    )
    low, high = bounds
    if not (_is_bound(low) and _is_bound(high)):
        return None
    return _bound(low), _bound(high)


def _is_bound(arg: Arg) -> bool:
    return arg is None or (isinstance(arg, int | float) and not isinstance(arg, bool))


def _bound(arg: Arg) -> float | None:
    return float(arg) if isinstance(arg, int | float) else None


def _clamp_before(found: Match) -> Made:
    """quantize(clamp(x, low, high)) -> quantize(x), where low and high quantize to the ends."""
    clamp, grid = found.node("clamp"), _grid(found.root)
    limits = _limits(clamp) if clamp is not None else None
    if clamp is None or grid is None or limits is None:
        return Miss("scale, zero point and bounds are not all literals", found.root.id)
    if not _is_float32(found, clamp.args[0]):
        return Miss("the value is not float32", clamp.id)
    low, high = limits
    if low is not None and grid.quantized(low) != grid.qmin:
        return Miss(f"{low} quantizes to more than the least integer", clamp.id)
    if high is not None and grid.quantized(high) != grid.qmax:
        return Miss(f"{high} quantizes to less than the greatest integer", clamp.id)
    made = found.root.with_args((clamp.args[0], *found.root.args[1:]))
    return Change(NodeRef(found.root.id), (made,))


def _clamp_after(found: Match) -> Made:
    """clamp(dequantize(q), low, high) -> dequantize(q), where no integer of q lies outside."""
    inner, source = found.node("inner"), found.node("q")
    grid = _grid(source) if source is not None else None
    limits = _limits(found.root)
    if inner is None or grid is None or limits is None:
        return Miss("scale, zero point and bounds are not all literals", found.root.id)
    if source is None or not all(same(inner.args[at], source.args[at]) for at in (1, 2)):
        return Miss("quantize and dequantize differ in scale or zero point", found.root.id)
    if attr(inner, "dtype") is not DType.FLOAT32:
        return Miss("the value is not float32", inner.id)
    low, high = limits
    if low is not None and grid.value(grid.qmin) < low:
        return Miss(f"integers below {low} exist", found.root.id)
    if high is not None and grid.value(grid.qmax) > high:
        return Miss(f"integers above {high} exist", found.root.id)
    return Change(NodeRef(inner.id))


def _is_float32(found: Match, arg: Arg) -> bool:
    kind = found.type_of(arg)
    return isinstance(kind, TensorType) and kind.dtype is DType.FLOAT32


_clamps = op("relu", "clamp", "hardtanh")
_scale, _zero = anything("scale"), anything("zero")

RULES: Rules = rules(
    # quantize($w, s, z) -> $w
    Rule(RuleName("fold.constant"), op("quantize")(stored("x"), _scale, _zero), _constant),
    # quantize(dequantize(q, s, z), s, z) -> q
    Rule(
        RuleName("fold.pair"),
        op("quantize")(
            op("dequantize")(anything("q"), _scale, _zero).named("inner"), _scale, _zero
        ),
        _pair,
    ),
    # quantize(relu(x), s, z) -> quantize(x, s, z)
    Rule(
        RuleName("fold.clamp_before"),
        op("quantize")(_clamps.named("clamp").alone(), ...).having(axis=None, block=None),
        _clamp_before,
    ),
    # relu(dequantize(q, s, z)) -> dequantize(q, s, z)
    Rule(
        RuleName("fold.clamp_after"),
        _clamps(
            op("dequantize")(op("quantize").having(axis=None, block=None).named("q"), ...)
            .having(axis=None, block=None)
            .named("inner"),
            ...,
        ),
        _clamp_after,
    ),
)
"""All rules of `fold`."""
