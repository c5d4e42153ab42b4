"""The laws of a quantized program, from the plan to the kernels, on one whole pipeline.

A `Road` is a graph taken from FLOAT to LOWERED, with sample inputs; `broken(ROAD_LAWS, road)` says
which of the claims it breaks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fqx.edge import kernels
from fqx.edge.materialize import materialize
from fqx.ir.arg import Arg, DType, NodeRef, WeightRef, refs_in
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName
from fqx.ir.node import Node
from fqx.ir.show import show
from fqx.ir.trail import Step, Trail
from fqx.judge.evaluate import evaluate, values
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import attempt, fold
from fqx.num.affine import dequantize
from fqx.num.tensors import is_intact, tensor_of
from fqx.ops.catalogue import is_kernel, shares_qparams
from fqx.ops.recurrence import is_recurrent
from fqx.passes.lower import Lowered, Lowering
from fqx.policy.plan import Plan
from fqx.policy.target import Target
from fqx.policy.units import Form, Mode, stored_weight
from fqx.policy.verdicts import Reason
from fqx.testing.laws import Law, tensors_in
from fqx.testing.recurrences import near_recurrence

__all__ = ["ROAD_LAWS", "Road", "serves_batch_sizes"]

Bind: TypeAlias = Callable[[OpName, FrozenMap[Arg]], Callable[..., Any]]
Make: TypeAlias = Callable[[Graph], Callable[..., object]]

_CONVERTING = ("input", "quantize", "dequantize")
_INTEGERS = frozenset((torch.uint8, torch.int8, torch.quint8, torch.qint8))


def _module(graph: Graph) -> Callable[..., object]:
    return materialize(graph).unwrap()


@dataclass(frozen=True, slots=True, repr=False)
class Road:
    """A graph all the way down to kernels, what made the kernels callable, and sample inputs.

    The trail's steps must bear the names of the passes they are of; `bind` makes a kernel of its
    name and attributes, `module` a callable of a graph.
    """

    inputs: tuple[Tensor, ...]
    target: Target
    trail: Trail
    bind: Bind = kernels.bind
    module: Make = _module

    def __repr__(self) -> str:
        return f"{self.target.label}, from\n{show(self.trail.base)}"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        # Hypothesis would print a dataclass field by field, kernels and all.
        printer.text(repr(self))

    def step(self, name: str) -> Step:
        """The step of the pass of that name."""
        return next(step for step in self.trail.steps if step.name == name)

    def before(self, name: str) -> Graph:
        """The graph that pass was given."""
        names = [step.name for step in self.trail.steps]
        return self.trail.graphs()[names.index(name)]


# Plans.


def _one_verdict_each(road: Road) -> str | None:
    plan = road.step("convert").evidence
    if not isinstance(plan, Plan):
        return "convert gives no plan"
    nodes = {node.id for node in road.before("convert") if node.op != "observe"}
    missing = nodes - set(plan.annotations)
    strange = set(plan.annotations) - nodes
    twice = len(plan.order) - len(set(plan.order))
    if missing or strange:
        return f"no verdict: {sorted(missing)}; verdicts about nothing: {sorted(strange)}"
    if twice or set(plan.order) != set(plan.annotations):
        return "the plan's order and its annotations differ"
    return None


# Converted programs.


def _adds_quantizers_only(road: Road) -> str | None:
    before, after = _plain(road.before("convert")), _plain(road.step("convert").graph)
    pairs = zip(before, after, strict=False)
    apart = next((pair for pair in pairs if pair[0] != pair[1]), None)
    if apart or len(before) != len(after):
        return f"beside its quantizers the program changed: {apart or len(after) - len(before)}"
    return None


def _plain(graph: Graph) -> list[tuple[str, ...]]:
    """The program with quantizers, observers and the names of weights left out."""
    rounding = {name for pair in _halves(graph) for name in pair}
    through = {
        node.id: node.args[0]
        for node in graph
        if node.op in ("quantize", "dequantize", "unpack_nibbles")
        or _is_half(graph, node)
        or node.id in rounding
    }

    def seen(ref: NodeRef | WeightRef) -> Arg:
        found: Arg = ref
        while isinstance(found, NodeRef) and found.id in through:
            found = through[found.id]
        return "a weight" if isinstance(found, WeightRef) else found

    chosen = {node.id for node in graph if node.op == "choose_qparams"}
    kept = [
        node
        for node in graph
        if node.id not in through
        and node.op not in ("choose_qparams", "observe")
        and not (node.op == "getitem" and chosen.intersection(node.inputs()))
    ]
    outputs = tuple(str(seen(leaf)) for leaf in graph.outputs if isinstance(leaf, NodeRef))
    return [(node.map_refs(seen).code,) for node in kept] + [outputs]


def _is_half(graph: Graph, node: Node) -> bool:
    """Whether the node reads a weight of half precision as float."""
    match node.op, node.args:
        case "to", (WeightRef(path=path),):
            held = graph.weights.get(graph.ties.get(path) or path)
            return held is not None and held.dtype is DType.FLOAT16
        case _:
            return False


def _halves(graph: Graph) -> Iterator[tuple[NodeId, NodeId]]:
    """Pairs of nodes that convert put to round a value to half precision and read it again."""
    for node in graph:
        source = node.args[0] if node.op == "to" else None
        below = graph[source.id] if isinstance(source, NodeRef) else None
        rounds = below is not None and below.op == "to" and below.attrs["dtype"] is DType.FLOAT16
        if rounds and below is not None and node.origin.parents == below.origin.parents != ():
            yield below.id, node.id


def _halves_are_half(road: Road) -> str | None:
    step = road.step("convert")
    graph, plan = step.graph, step.evidence
    if not isinstance(plan, Plan):
        return None
    found = values(graph, road.inputs, {}).unwrap()
    for name in plan.order:
        note = plan[name]
        read = [ref for _, ref in refs_in(graph[name].args)] if note.reason is Reason.HALVES else []
        for ref in read:
            value = found[ref.id] if isinstance(ref, NodeRef) else None
            if isinstance(value, Tensor) and not torch.equal(value.half().to(value.dtype), value):
                return f"{name} reads a value that half precision does not hold"
    return None


def _fakes_quantization(road: Road) -> str | None:
    graph = road.step("convert").graph
    found = values(graph, road.inputs, {}).unwrap()
    for pair in _pairs(graph):
        x, y = found[pair.source], found[pair.name]
        assert isinstance(x, Tensor) and isinstance(y, Tensor)
        fake = torch.fake_quantize_per_tensor_affine(
            x, pair.scale, pair.zero_point, pair.low, pair.high
        )
        if not torch.equal(fake, y):
            worst = (fake - y).abs().max().item()
            return f"{pair.name} is {worst} off torch's fake quantization of {pair.source}"
    return None


@dataclass(frozen=True, slots=True)
class _Pair:
    """A dequantize that reads a quantize of literal, per-tensor parameters."""

    name: NodeId
    source: NodeId
    scale: float
    zero_point: int
    low: int
    high: int


def _pairs(graph: Graph) -> Iterator[_Pair]:
    for node in graph:
        if node.op != "dequantize" or not isinstance(node.args[0], NodeRef):
            continue
        quantizer = graph[node.args[0].id]
        if quantizer.op != "quantize":
            continue
        match quantizer.args, quantizer.attrs["qmin"], quantizer.attrs["qmax"]:
            case (NodeRef(id=source), float() as scale, int() as zero), int() as low, int() as high:
                yield _Pair(node.id, source, scale, zero, low, high)
            case _:
                pass


def _weights_are_near(road: Road) -> str | None:
    before, after = road.before("convert"), road.step("convert").graph
    found = values(after, road.inputs, {}).unwrap()
    for node in after:
        held = stored_weight(after, node) if node.op == "dequantize" else None
        if held is None:
            continue
        path, scale, axis = held.path, node.args[1], node.attrs["axis"]
        old, made = before.weights.get(path), found[node.id]
        if old is None or old.dtype == after.weights[path].dtype:
            continue
        assert isinstance(made, Tensor) and isinstance(scale, WeightRef)
        shape = [-1 if index == axis else 1 for index in range(made.dim())]
        step = tensor_of(after.weights[scale.path]).unwrap().view(shape)
        error = (tensor_of(old).unwrap() - made).abs()
        # half a step, and the rounding of the scale and of the product
        if not bool((error <= step * 0.5001 + 1e-12).all()):
            return f"{path} is {(error / step).max().item()} steps off"
    return None


def _movers_keep_qparams(road: Road) -> str | None:
    step = road.step("convert")
    graph, plan = step.graph, step.evidence
    if not isinstance(plan, Plan):
        return None
    gives = {
        node.args[0].id: (*node.args[1:3], node.attrs["dtype"])
        for node in graph
        if node.op == "quantize" and isinstance(node.args[0], NodeRef)
    }
    for name, annotation in plan.annotations.items():
        moves = annotation.reason is Reason.MOVES_INTEGERS and name in graph and name in gives
        if not moves or not shares_qparams(graph[name]):
            continue
        for source in graph[name].inputs():
            if _grid(graph, graph[source]) != gives[name]:
                return f"{name} moves integers of {source} and gives others"
    return None


def _grid(graph: Graph, node: Node) -> tuple[Arg, ...] | None:
    """Scale, zero point and type of the quantizer a value is read through."""
    if node.op != "dequantize" or not isinstance(node.args[0], NodeRef):
        return None
    quantizer = graph[node.args[0].id]
    return (*quantizer.args[1:3], quantizer.attrs["dtype"]) if quantizer.op == "quantize" else None


# Kernels.


def _kernels_take_integers(road: Road) -> str | None:
    held = _lowered_values(road)
    for unit in _units(road):
        if _mode(road, unit) is not Mode.STATIC:
            continue
        for name, value in _data(road, unit, held):
            if not _is_integer(value):
                return f"{unit.kernel} at {unit.anchor} reads {name}, which is no integer tensor"
    return None


def _kernels_compute_their_units(road: Road) -> str | None:
    held = _lowered_values(road)
    for unit in _units(road):
        mode = _mode(road, unit)
        whole = all(_is_integer(value) for _, value in _data(road, unit, held))
        if mode is Mode.STATIC and not whole:
            continue
        made, truth = held[NodeId(f"!{unit.anchor}")], held[unit.anchor]
        if is_recurrent(road.before("lower")[unit.anchor].op):
            account = _beyond_rounding(road, unit, held, made)
            if account:
                return f"{unit.kernel} at {unit.anchor} {account}"
            continue
        if not isinstance(made, Tensor) or not isinstance(truth, Tensor):
            return f"{unit.kernel} at {unit.anchor} gives {made!r}"
        if unit.kernel == "native.linear_dynamic":
            account = _beyond_a_quantum(road, unit, held, made - truth)
            if account:
                return f"{unit.kernel} at {unit.anchor} {account}"
            continue
        account = _apart(made, truth) if unit.form is not Form.FLOAT else _far(made, truth)
        if account:
            return f"{unit.kernel} at {unit.anchor} {account}"
    return None


def _units(road: Road) -> tuple[Lowered, ...]:
    lowering = road.step("lower").evidence
    return lowering.units if isinstance(lowering, Lowering) else ()


def _data(road: Road, unit: Lowered, held: dict[NodeId, object]) -> Iterator[tuple[NodeId, object]]:
    """The values a unit's kernel reads as its first operand, a list for cat and stack."""
    first = road.step("lower").graph[unit.anchor].args[0]
    for _, ref in refs_in(first):
        if isinstance(ref, NodeRef):
            yield ref.id, held[ref.id]


def _is_integer(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in _INTEGERS


def _mode(road: Road, unit: Lowered) -> Mode:
    """The mode of the row that a unit was found by."""
    return next(kind.mode for kind in road.target.units if kind.name == unit.unit)


def _beyond_a_quantum(
    road: Road, unit: Lowered, held: dict[NodeId, object], error: Tensor
) -> str | None:
    """Whether a result is further off than one quantum of every element of the input.

    torch's kernel chooses a scale in float64 and a zero point of its own, and raises tiny scales,
    so each element may be rounded to the neighbour of the reference's: |error| is at most
    scale · sum |w| of its row, with torch's least scale of 6.1e-5, and a float32 rounding.
    """
    node = road.step("lower").graph[unit.anchor]
    x, weight, scale = (_as_read(road.before("lower"), arg, held) for arg in node.args[:3])
    assert isinstance(x, Tensor)
    assert isinstance(weight, Tensor)
    if not x.numel():
        return None
    rows = dequantize(weight, scale if isinstance(scale, Tensor) else float(str(scale)), 0, axis=0)
    span = max(float(x.max()), 0.0) - min(float(x.min()), 0.0)
    qmax = node.attrs["qmax"]
    assert isinstance(qmax, int)
    quantum = max(span / qmax, 6.1e-5)
    allowed = quantum * rows.abs().sum(1) + 1e-5 * (1.0 + span * rows.abs().sum(1))
    return (
        "is more than a quantum off its reference" if bool((error.abs() > allowed).any()) else None
    )


def _beyond_rounding(
    road: Road, unit: Lowered, held: dict[NodeId, object], made: object
) -> str | None:
    """Whether a recurrence is further off than rounding its input and its states leads."""
    graph = road.before("lower")
    node = graph[unit.anchor]
    known = values(graph, road.inputs, {}).unwrap()

    def read(arg: Arg) -> Tensor:
        found = _as_read(graph, arg, known)
        assert isinstance(found, Tensor)
        return found

    ours, truths = tensors_in(made), tensors_in(held[unit.anchor])
    if len(ours) != len(truths):
        return f"gives {made!r}"
    bounds = near_recurrence(node, read, _chosen_range(graph, node))
    for one, truth, near in zip(ours, truths, bounds, strict=True):
        allowed = near.error + 1e-5 * (1.0 + near.value.abs())
        if one.shape != truth.shape or bool(((one - truth).abs() > allowed).any()):
            return "is further off its reference than rounding its states leads"
    return None


def _chosen_range(graph: Graph, node: Node) -> int | None:
    """The greatest integer of an input whose scale each call chooses; None for a float one."""
    source = node.args[0]
    back = graph[source.id] if isinstance(source, NodeRef) else None
    codes = back.args[0] if back is not None and back.op == "dequantize" else None
    qmax = graph[codes.id].attrs.get("qmax") if isinstance(codes, NodeRef) else None
    return qmax if isinstance(qmax, int) else None


def _far(made: Tensor, truth: Tensor) -> str | None:
    # float32 sums of a few hundred products in another order
    allowed = 1e-5 * truth.abs().max().clamp(min=1e-3) if truth.numel() else torch.tensor(0.0)
    worst = (made - truth).abs().max() if truth.numel() else torch.tensor(0.0)
    return f"is {float(worst)} off its reference" if bool(worst > allowed) else None


def _apart(made: Tensor, truth: Tensor) -> str | None:
    """Within one quantum, and equal but for a thousandth of the elements (one is always free)."""
    apart = (_plain_integers(made) - _plain_integers(truth)).abs()
    if not apart.numel():
        return None
    if int(apart.max()) > 1:
        return f"is {int(apart.max())} quanta off its reference"
    several = int((apart > 0).sum())
    if several > 1 + 0.001 * apart.numel():
        return f"differs from its reference in {several} of {apart.numel()} elements"
    return None


def _plain_integers(tensor: Tensor) -> Tensor:
    return (tensor.int_repr() if tensor.is_quantized else tensor).int()


def _lowered_values(road: Road) -> dict[NodeId, object]:
    """Every value of the lowered program, each node fed what the reference program computed.

    A kernel's own result is kept under its id with a `!` in front, beside the reference's; it is
    an exception where the kernel raised.
    """
    graph, lowered = road.before("lower"), road.step("lower").graph
    truth = values(graph, road.inputs, {}).unwrap()
    quantizers = {
        node.args[0].id: node.id
        for node in graph
        if node.op == "quantize" and isinstance(node.args[0], NodeRef)
    }
    units = {unit.anchor: unit for unit in _units(road)}
    held: dict[NodeId, object] = {}
    for node in lowered:
        if not is_kernel(node):
            # what moves integers as it is has the name of the node that moved values
            moves = node.op not in _CONVERTING and any(
                _is_integer(held[name]) for name in node.inputs()
            )
            name = quantizers.get(node.id, node.id) if moves else node.id
            held[node.id] = truth[name] if name in truth else _run(road, lowered, node, held)
            continue
        made = _run(road, lowered, node, held)
        held[NodeId(f"!{node.id}")] = made
        unit = units.get(node.id)
        if unit is None:
            held[node.id] = truth.get(node.id, made) if node.op != "native.quantize" else made
        elif unit.form is Form.FLOAT:
            held[node.id] = truth[unit.nodes[-1]]
        else:
            held[node.id] = _like(made, truth[quantizers[unit.nodes[-1]]])
    return held


def _run(road: Road, graph: Graph, node: Node, held: dict[NodeId, object]) -> object:
    def call() -> object:
        return road.bind(node.op, node.attrs)(*(_as_read(graph, arg, held) for arg in node.args))

    return fold(attempt(call, lambda error: error), _itself, _itself)


def _itself(value: object) -> object:
    return value


def _as_read(graph: Graph, arg: Arg, held: dict[NodeId, object]) -> object:
    match arg:
        case NodeRef(id=name):
            return held[name]
        case WeightRef(path=path):
            return tensor_of(graph.weights[graph.ties.get(path) or path]).unwrap()
        case tuple():
            return tuple(_as_read(graph, item, held) for item in arg)
        case _:
            return arg


def _like(made: object, integers: object) -> object:
    """The reference's integers in the form the kernel gave: plain, or torch's quantized dtype."""
    assert isinstance(integers, Tensor)
    if not isinstance(made, Tensor):
        return integers
    if not made.is_quantized:
        return integers.to(made.dtype)
    with _no_deprecation():
        return torch._make_per_tensor_quantized_tensor(
            integers.to(torch.uint8), made.q_scale(), made.q_zero_point()
        )


def _no_deprecation() -> warnings.catch_warnings[None]:
    return warnings.catch_warnings(action="ignore", category=UserWarning)


# Modules.


def serves_batch_sizes(*sizes: int) -> Law[Road]:
    """The law of batches: one module takes every batch size of the signature."""
    return Law(
        "serves_batch_sizes",
        "one module takes every batch size and gives the float program's shapes",
        lambda road: _serves(road, sizes),
    )


def _serves(road: Road, sizes: tuple[int, ...]) -> str | None:
    module = road.module(road.trail.graph)
    for size in sizes:
        inputs = tuple(item[:1].repeat(size, *(1,) * (item.dim() - 1)) for item in road.inputs)
        with torch.no_grad(), _no_deprecation():
            made = tensors_in(module(*inputs))
        expected = tensors_in(evaluate(road.trail.base, inputs).unwrap())
        ours, theirs = ([(x.dtype, x.shape) for x in side] for side in (made, expected))
        if ours != theirs:
            return f"a batch of {size} gives {ours}, the float program gives {theirs}"
    return None


def _is_isolated(road: Road) -> str | None:
    """Writing into a module's tensors reaches no graph, and no other module's results."""
    graph = road.trail.graph
    one, other = road.module(graph), road.module(graph)
    with torch.no_grad(), _no_deprecation():
        before = [x.clone() for x in tensors_in(other(*road.inputs))]
        for tensor in _written(one):
            tensor.add_(1)
        after = tensors_in(other(*road.inputs))
    spoiled = [path for path, weight in graph.weights.items() if not is_intact(weight)]
    if spoiled:
        return f"writing into the module changed the graph's {', '.join(spoiled)}"
    same = all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    return None if same else "writing into one module changed what another gives"


def _written(module: Callable[..., object]) -> Iterator[Tensor]:
    """What an optimizer or the caller would write: float parameters and buffers."""
    if isinstance(module, torch.nn.Module):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                yield tensor


ROAD_LAWS: tuple[Law[Road], ...] = (
    Law("one_verdict_each", "every node has exactly one verdict", _one_verdict_each),
    Law(
        "adds_quantizers_only",
        "convert puts quantizers on edges and changes nothing else",
        _adds_quantizers_only,
    ),
    Law(
        "fakes_quantization",
        "a converted value is torch's fake quantization of the float one, bit for bit",
        _fakes_quantization,
    ),
    Law("halves_are_half", "what half precision reads is held by it", _halves_are_half),
    Law("weights_are_near", "a quantized weight is within half a step", _weights_are_near),
    Law(
        "movers_keep_qparams",
        "what only moves integers reads and gives them with the same qparams",
        _movers_keep_qparams,
    ),
    Law("kernels_take_integers", "no float value enters an int8 kernel", _kernels_take_integers),
    Law(
        "kernels_compute_their_units",
        "fed the same integers a kernel is within one quantum of its reference unit",
        _kernels_compute_their_units,
    ),
    serves_batch_sizes(1, 2, 3),
    Law("modules_are_isolated", "writing into a module changes nothing else", _is_isolated),
)
"""Laws of every pipeline from a FLOAT graph to a LOWERED one."""
