"""How far two programs are apart, value by value and weight by weight."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fqx.audit.align import Pair, Reading, aligned, is_inside, readings, weight_readings
from fqx.audit.measure import call_of as call_of_batch
from fqx.edge.materialize import call_of
from fqx.ir.arg import Arg, Json, NodeRef, WeightRef
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph, users
from fqx.ir.names import NodeId, Path, Stage
from fqx.ir.node import Node
from fqx.ir.trail import Halt, Trail
from fqx.ir.weight import Role
from fqx.kit.result import Failure, Result, Success, fold, gather
from fqx.num.tensors import tensor_of
from fqx.passes.execute import Leaves, Program, prepare

How = Literal["accumulated", "isolated", "weights"]


@dataclass(frozen=True, slots=True)
class Distance:
    """What two tensors x and y are apart, from sums over all their elements.

    With S = Σx², T = Σy², N = Σ(x − y)² and P = Σxy, all in float64:
    `sqnr` = 20·log10(√S / √N) in dB, infinite where N is 0; `l2` = √N / √S; `cosine` = P / √(S·T).
    Where x is all zeros, `sqnr` is −inf and `l2` inf unless y is zero too; where either is all
    zeros, `cosine` is 1 if both are, else 0.
    """

    signal: float = 0.0
    other: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    elements: int = 0

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise in dB; what is higher is better."""
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal > 0.0 else -math.inf

    @property
    def l2(self) -> float:
        """The norm of the difference in units of the norm of x."""
        if self.noise == 0.0:
            return 0.0
        return math.sqrt(self.noise / self.signal) if self.signal > 0.0 else math.inf

    @property
    def cosine(self) -> float:
        """The cosine of the angle between both."""
        if self.signal == 0.0 or self.other == 0.0:
            return 1.0 if self.signal == self.other else 0.0
        return self.product / math.sqrt(self.signal * self.other)

    def __add__(self, more: Distance) -> Distance:
        return Distance(
            self.signal + more.signal,
            self.other + more.other,
            self.noise + more.noise,
            self.product + more.product,
            self.elements + more.elements,
        )


def distance(x: Tensor, y: Tensor) -> Distance:
    """The sums of two tensors of one shape; nothing is rounded before it is added."""
    one, two = (item.detach().to(torch.float64).reshape(-1) for item in (x, y))
    return Distance(
        float(one.square().sum()),
        float(two.square().sum()),
        float((one - two).square().sum()),
        float(one @ two),
        one.numel(),
    )


@dataclass(frozen=True, slots=True)
class Compared:
    """One value or weight: its name, who computes it in each program, and the distance."""

    name: str
    a: str
    b: str
    op: str
    distance: Distance

    def to_json(self) -> Json:
        """The row as plain data; JSON has no infinity, so an infinite number is null."""
        seen = self.distance
        return {
            "name": self.name,
            "a": self.a,
            "b": self.b,
            "op": self.op,
            "sqnr": _finite(seen.sqnr),
            "l2": _finite(seen.l2),
            "cosine": seen.cosine,
            "elements": seen.elements,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows in the order of the first program, and the values that could not be compared, with why.

    `how` is `accumulated` (both programs run from end to end, so that errors are inherited),
    `isolated` (each unit of the second reads the first's values) or `weights`.
    """

    how: How
    a: str
    b: str
    batches: int
    rows: tuple[Compared, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    kind = "comparison"

    def worst(self, n: int = 10) -> tuple[Compared, ...]:
        """The `n` rows of the lowest SQNR, the lowest first."""
        return tuple(sorted(self.rows, key=lambda row: row.distance.sqnr)[:n])

    def __getitem__(self, name: str) -> Compared:
        """The row of a value by its name in either program."""
        found = (row for row in self.rows if name in (row.name, row.a, row.b))
        row = next(found, None)
        if row is None:
            raise KeyError(name)
        return row

    def to_json(self) -> Json:
        """The comparison as plain data."""
        return {
            "how": self.how,
            "a": self.a,
            "b": self.b,
            "batches": self.batches,
            "rows": [row.to_json() for row in self.rows],
            "skipped": [list(item) for item in self.skipped],
        }

    def __repr__(self) -> str:
        """At most ten lines, the worst value first."""
        over = f" over {self.batches} batches" if self.batches else ""
        lines = [f"Comparison {self.how} {self.a} with {self.b}: {len(self.rows)} values{over}"]
        shown = self.worst(7)
        if shown:
            width = max(len(row.name) for row in shown)
            lines += [f"  {'':{width}}  {'SQNR dB':>8}  {'l2':>9}  {'cosine':>9}"]
            lines += [_line(row, width) for row in shown]
        rest = len(self.rows) - len(shown)
        tail = [f"{rest} better"] if rest else []
        tail += [f"{len(self.skipped)} not compared"] if self.skipped else []
        return "\n".join((*lines, *([f"  and {', '.join(tail)}"] if tail else [])))

    def _repr_html_(self) -> str:
        names = ("value", "op", "SQNR dB", "l2", "cosine", "elements")
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(
            f"<tr><td>{html.escape(row.name)}</td><td>{html.escape(row.op)}</td>"
            f"<td>{row.distance.sqnr:.1f}</td><td>{row.distance.l2:.3g}</td>"
            f"<td>{row.distance.cosine:.5f}</td><td>{row.distance.elements:,}</td></tr>"
            for row in self.worst(len(self.rows))
        )
        return f"<table><tr>{head}</tr>{body}</table>"


def _line(row: Compared, width: int) -> str:
    seen = row.distance
    return f"  {row.name:{width}}  {seen.sqnr:8.1f}  {seen.l2:9.3g}  {seen.cosine:9.5f}"


def compare(
    a: Graph,
    b: Graph,
    batches: Iterable[object],
    isolated: bool = False,
    *,
    inputs: Callable[[object], object] | None = None,
    leaves: Leaves | None = None,
) -> Result[Comparison, Halt]:
    """Every value that both programs compute, side by side, quantized values as what they mean.

    Either may be of any stage: float and quantized, quantized and lowered, two targets. With
    `isolated`, what a unit of `b` reads is `a`'s value in `b`'s own integers, so a row shows what
    the unit itself adds; without, what all units before it added too. Sums run over all batches,
    and one batch is in memory at a time. `inputs` and `leaves` are those of `calibrate`.

    `smooth` and equalization scale values by channel, and such a value is another one afterwards:
    take as `a` a graph from behind them. A float operator that both have with other weights is
    left out as rescaled, and what has another shape is left out too; `skipped` tells.

    Faults: EMPTY_CALIBRATION without batches, and those of `Program.run`: INPUT_DOES_NOT_FIT,
    MISSING_PAYLOAD, MISSING_LEAF, NO_IMPLEMENTATION, CALIBRATION_FAILED naming the node.
    """
    picked = batches if inputs is None else map(inputs, batches)
    return (
        prepare(a, leaves, call_of)
        .bind(lambda one: prepare(b, leaves, call_of).map(lambda two: _bench(one, two, isolated)))
        .bind(lambda bench: _over(bench, picked))
        .alt(lambda fault: Halt(fault, Trail(b)))
    )


def compare_weights(a: Graph, b: Graph) -> Result[Comparison, Halt]:
    """Every weight that both programs hold under one path, integers as the values they stand for.

    `a` best is the graph from which `b` was converted: folding a batch norm or smoothing makes new
    weights. Fails with MISSING_PAYLOAD for a graph without its tensors.
    """
    one, two = dict(weight_readings(a)), dict(weight_readings(b))
    return (
        gather(
            _values(a, path, one).bind(
                lambda x, path=path: _values(b, path, two).map(lambda y: (path, x, y))  # type: ignore[misc]
            )
            for path, held in a.weights.items()
            if held.role in (Role.PARAMETER, Role.BUFFER) and path in b.weights
        )
        .map(lambda found: _compared_weights(a, b, found))
        .alt(lambda fault: Halt(fault, Trail(b)))
    )


def _compared_weights(
    a: Graph, b: Graph, found: Sequence[tuple[Path, Tensor, Tensor]]
) -> Comparison:
    rows, skipped = list[Compared](), list[tuple[str, str]]()
    for path, x, y in found:
        if x.shape != y.shape:
            skipped.append((path, _shapes(x, y)))
        elif x.is_floating_point() and y.is_floating_point():
            held = b.weights[path].dtype.value
            rows.append(Compared(path, path, path, held, distance(x, y)))
    return Comparison("weights", _label(a), _label(b), 0, tuple(rows), tuple(skipped))


def _values(graph: Graph, path: Path, found: Mapping[WeightRef, Reading]) -> Result[Tensor, Fault]:
    reading = found.get(WeightRef(path))
    return tensor_of(graph.weights[path]).map(
        lambda tensor: tensor if reading is None else _read(tensor, reading, _weight_arg(graph))
    )


def _label(graph: Graph) -> str:
    return f"{graph.stage.value} {graph.digest[:8]}"


def _shapes(x: Tensor, y: Tensor) -> str:
    return f"shapes differ: {tuple(x.shape)} and {tuple(y.shape)}"


# Integers as values, values as integers.

_Resolve = Callable[[Arg], Tensor]


def _weight_arg(graph: Graph) -> _Resolve:
    """The tensor of a scale or zero point that is a number or a weight."""

    def resolve(arg: Arg) -> Tensor:
        if isinstance(arg, WeightRef):
            path = graph.ties.get(arg.path) or arg.path
            return tensor_of(graph.weights[path]).unwrap()
        assert isinstance(arg, (int, float)), f"{arg!r} is no scale"
        return torch.tensor(arg)

    return resolve


def _read(value: Tensor, reading: Reading, resolve: _Resolve) -> Tensor:
    """What integers stand for."""
    scale, zero = (
        _spread(resolve(arg), value, reading.axis) for arg in (reading.scale, reading.zero_point)
    )
    return (value.to(torch.float64) - zero.to(torch.float64)).mul(scale.to(torch.float64)).float()


def _spread(given: Tensor, value: Tensor, axis: int | None) -> Tensor:
    """A scale for each index along an axis, in the shape that broadcasts."""
    if axis is None or given.dim() != 1:
        return given
    shape = [1] * value.dim()
    shape[axis] = given.numel()
    return given.reshape(shape)


def _written(value: Tensor, made: Tensor, reading: Reading, resolve: _Resolve) -> Tensor:
    """A value as the integers a node would have made of it, stored as the node stores them."""
    scale, zero = (_spread(resolve(arg), value, reading.axis) for arg in _both(reading))
    plain = torch.int_repr(made) if made.is_quantized else made
    steps = (value.double() / scale.double()).round() + zero.double()
    integers = torch.empty_like(plain).copy_(steps.clamp(reading.qmin, reading.qmax))
    if not made.is_quantized:
        return integers
    return torch._make_per_tensor_quantized_tensor(integers, float(scale), int(zero))


def _both(reading: Reading) -> tuple[Arg, Arg]:
    return reading.scale, reading.zero_point


# Running.


@dataclass(slots=True)
class _Side:
    """One program while it runs: how its integers are read, and the scales it computed."""

    program: Program
    readings: Mapping[NodeId, Reading]
    computed: frozenset[NodeId]
    seen: dict[NodeId, Tensor] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """What runs."""
        return self.program.graph

    def note(self, name: NodeId, value: object) -> None:
        """Keep a scale or zero point that later values are read with."""
        if name in self.computed and isinstance(value, Tensor):
            self.seen[name] = value

    def resolve(self, arg: Arg) -> Tensor:
        """The tensor of a scale or zero point."""
        return self.seen[arg.id] if isinstance(arg, NodeRef) else _weight_arg(self.graph)(arg)

    def meaning(self, name: NodeId, value: object) -> Tensor | None:
        """The floating tensor a value is or stands for; None for anything else."""
        if not isinstance(value, Tensor):
            return None
        if value.is_quantized:
            return value.dequantize()
        if value.is_floating_point():
            # a kernel may write into what it reads
            return value.clone() if self.graph.stage is Stage.LOWERED else value
        reading = self.readings.get(name)
        if reading is None or value.dtype not in (torch.uint8, torch.int8):
            return None
        return _read(value, reading, self.resolve)


def _side(program: Program) -> _Side:
    found = readings(program.graph)
    refs = (arg for reading in found.values() for arg in _both(reading))
    return _Side(program, found, frozenset(ref.id for ref in refs if isinstance(ref, NodeRef)))


@dataclass(slots=True)
class _Bench:
    """Two programs, what to compare, and the sums so far."""

    a: _Side
    b: _Side
    pairs: tuple[Pair, ...]
    isolated: bool
    inside: frozenset[NodeId]
    skipped: dict[NodeId, str]
    sums: dict[NodeId, Distance] = field(default_factory=dict)
    batches: int = 0

    def step(self, batch: object) -> Result[None, Fault]:
        """Run both programs on one batch and add what they are apart."""
        args, kwargs = call_of_batch(batch)
        of_a = {pair.a: pair for pair in self.pairs if pair.name not in self.skipped}
        of_b = {pair.b: pair for pair in of_a.values()}
        held: dict[NodeId, Tensor] = {}

        def keep(name: NodeId, value: object) -> None:
            self.a.note(name, value)
            pair = of_a.get(name)
            meant = None if pair is None else self.a.meaning(name, value)
            if pair is not None and meant is not None:
                held[pair.b] = meant

        def judge(name: NodeId, value: object) -> object:
            self.b.note(name, value)
            pair, x = of_b.get(name), held.pop(name, None)
            if pair is None or x is None or not isinstance(value, Tensor):
                return value
            y = self.b.meaning(name, value)
            if y is None:
                return value
            if x.shape != y.shape:
                self.skipped[pair.name] = _shapes(x, y)
                return value
            self.sums[pair.name] = self.sums.get(pair.name, Distance()) + distance(x, y)
            return self._fed(name, x, value) if self.isolated else value

        return (
            self.a.program.run(args, kwargs, tap=keep)
            .bind(lambda _: self.b.program.run(args, kwargs, put=judge))
            .map(lambda _: self._count())
        )

    def _fed(self, name: NodeId, x: Tensor, made: Tensor) -> Tensor:
        """The first program's value in place of the second's, where a unit has ended."""
        if name in self.inside:
            return made
        reading = self.b.readings.get(name)
        if reading is not None and not made.is_floating_point():
            return _written(x, made, reading, self.b.resolve)
        return torch.empty_like(made).copy_(x)

    def _count(self) -> None:
        self.batches += 1

    def done(self) -> Comparison:
        """What was found."""
        a, b = self.a.graph, self.b.graph
        rows = tuple(
            Compared(pair.name, pair.a, pair.b, b[pair.b].op, self.sums[pair.name])
            for pair in self.pairs
            if pair.name in self.sums and pair.name not in self.skipped
        )
        how: How = "isolated" if self.isolated else "accumulated"
        skipped = tuple((str(name), why) for name, why in self.skipped.items())
        return Comparison(how, _label(a), _label(b), self.batches, rows, skipped)


def _bench(one: Program, two: Program, isolated: bool) -> _Bench:
    a, b = one.graph, two.graph
    # what the caller hands in is the same on both sides
    pairs = tuple(pair for pair in aligned(a, b) if b[pair.b].op != "input")
    read = users(b)
    inside = frozenset(pair.b for pair in pairs if is_inside(b, read[pair.b]))
    rescaled = {
        pair.name: "rescaled: the operator has other weights"
        for pair in pairs
        if _is_rescaled(a, a[pair.a], b, b[pair.b])
    }
    return _Bench(_side(one), _side(two), pairs, isolated, inside, rescaled)


def _is_rescaled(a: Graph, one: Node, b: Graph, two: Node) -> bool:
    """Whether a float operator has other float weights: its value was given another scale."""
    if one.op != two.op or one.op in ("quantize", "dequantize"):
        return False
    held_a, held_b = ([_weight(g, path) for path in n.weights()] for g, n in ((a, one), (b, two)))
    # a quantized weight is read by a node of its own
    return len(held_a) == len(held_b) and held_a != held_b


def _weight(graph: Graph, path: Path) -> str:
    held = graph.weights.get(graph.ties.get(path) or path)
    return "" if held is None else held.fingerprint


def _over(bench: _Bench, batches: Iterable[object]) -> Result[Comparison, Fault]:
    for batch in batches:
        fault = fold(bench.step(batch), lambda _: None, lambda fault: fault)
        if fault is not None:
            return Failure(fault)
    return Success(bench.done()) if bench.batches else Failure(_no_batches())


def _no_batches() -> Fault:
    return Fault(
        FaultKind.EMPTY_CALIBRATION,
        "there is no batch to run the programs on",
        "give at least one batch; a generator that was used up gives none",
    )
