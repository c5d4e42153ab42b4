"""`convert`: from observers to integers, for one target.

    x -> conv            x -> quantize -> dequantize -> conv
    x -> observe                     weight -> dequantize ^

The plan is made again, from the graph alone: what the recipe asks stands in the observers, what
the ranges are in the statistics. What comes out is the portable reference program: every value
between `quantize` and `dequantize` is an integer of the target, and nothing else is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from fqx.ir.arg import Arg, ArgPath, DType, NodeRef, Ref, WeightRef
from fqx.ir.compare import edits_between
from fqx.ir.diff import rewritten
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import OUTPUT, Graph, Use, fresh_id, weight_users
from fqx.ir.names import NodeId, Path, RuleName, Stage
from fqx.ir.node import Node, Origin
from fqx.ir.signature import TensorType, Tree
from fqx.ir.weight import Role, Weight
from fqx.kit.frozen import FrozenMap, Table, row
from fqx.kit.result import Failure, Result, Success, gather
from fqx.num import nibbles
from fqx.num.observers import State
from fqx.num.qparams import (
    QParams,
    QuantizedWeight,
    predicted_sqnr,
    qparams_between,
    qparams_of_all,
    quantize_weight,
)
from fqx.num.scheme import QSpec
from fqx.num.tensors import tensor_of, weight_of
from fqx.ops.catalogue import make_node
from fqx.ops.types import types
from fqx.passes.pipeline import Pass, Rewrite
from fqx.passes.statistics import Observers, is_seen, joined, observers_in, without_observers
from fqx.policy.arrange import (
    Arrangement,
    Held,
    Params,
    Scene,
    Seat,
    Veto,
    activation_spec,
    is_heavy,
)
from fqx.policy.plan import Plan, Planned, plan_scene
from fqx.policy.target import Target, target_to_arg
from fqx.policy.units import Mode
from fqx.policy.verdicts import Reason

NAME = RuleName("convert")


def convert(target: Target) -> Pass:
    """Quantizes what the observers plan and the target can run; the reference program.

    Takes CALIBRATED graphs, gives QUANTIZED ones; its evidence is the plan. Arithmetic is portable:
    the same graph and target give the same digest everywhere.

    Faults: MISSING_STATISTICS if a value a kernel reads was not observed or no data came by,
    NOT_FINITE for a weight with NaN or infinity, MISSING_PAYLOAD for detached weights.
    """
    brief: FrozenMap[Arg] = FrozenMap(
        {
            "target": target.label,
            "activation": (target.activation.qmin, target.activation.qmax),
            "weight": (target.weight.qmin, target.weight.qmax),
        }
    )
    return Pass(
        "convert",
        FrozenMap({"target": target_to_arg(target)}),
        frozenset({Stage.CALIBRATED}),
        Stage.QUANTIZED,
        lambda graph: _convert(graph, target),
        brief=brief,
    )


def _convert(graph: Graph, target: Target) -> Result[Rewrite, Fault]:
    return observers_in(graph).bind(
        lambda seen: _decide(without_observers(graph), seen, target).bind(
            lambda decided: _written(graph, decided)
        )
    )


@dataclass(frozen=True, slots=True)
class _Decided:
    """The bare graph, what runs on integers, and the numbers."""

    graph: Graph
    planned: Planned
    qparams: Mapping[Params, QParams]


def _decide(graph: Graph, seen: Observers, target: Target) -> Result[_Decided, Fault]:
    scene = Scene(graph, types(graph), seen.choices(), target, {})
    return _observed(scene, seen).bind(lambda planned: _spared(scene, seen, planned))


def _observed(scene: Scene, seen: Observers) -> Result[Planned, Fault]:
    """The plan in which every kernel's values were observed.

    A light operator whose operand was not observed stays float; for others that is a fault.
    """
    planned = plan_scene(scene)
    vetoes: dict[NodeId, Veto] = {}
    lacking: list[NodeId] = []
    for seat in planned.arrangement.seats.values():
        missing = _missing(planned.arrangement, seat, seen)
        if missing is None:
            continue
        lights = [name for name in seat.unit.nodes if _is_light(scene.graph, seat, name)]
        if lights:
            vetoes[lights[0]] = Veto(Reason.NOT_OBSERVED, f"{missing} was not observed")
        else:
            lacking.append(missing)
    if not vetoes:
        return Failure(_unobserved(scene, lacking[0])) if lacking else Success(planned)
    # without the light ones, the others may need statistics of other values
    return _observed(replace(scene, vetoes={**scene.vetoes, **vetoes}), seen)


def _is_light(graph: Graph, seat: Seat, name: NodeId) -> bool:
    return not is_heavy(seat.unit.kind) or graph[name].op == "add"


def _missing(made: Arrangement, seat: Seat, seen: Observers) -> NodeId | None:
    """A value whose statistics the seat needs and nobody has."""
    read = [made.wanted[edge.user, edge.at] for edge in seat.edges]
    gives = made.given.get(seat.unit.last)
    if gives is not None:
        read.append(gives)
    measured = [params for params in read if params.is_measured]
    return next(
        (
            source
            for params in measured
            for source in params.sources
            if not is_seen(seen.find(source, params.spec.observer))
        ),
        None,
    )


def _unobserved(scene: Scene, name: NodeId) -> Fault:
    node = scene.graph[name]
    label = scene.target.label
    fault = Fault(
        FaultKind.MISSING_STATISTICS,
        f"{label} needs the range of {name}, and no statistics of it are there",
        f"give observe the target {label}, and calibration batches that reach this node",
    )
    return fault.located(name, node.origin.module, node.origin.source)


def _spared(scene: Scene, seen: Observers, planned: Planned) -> Result[_Decided, Fault]:
    """Leave float what the statistics call ruinous, then settle the numbers."""
    ruined = _ruined(planned.arrangement, seen)
    if not ruined:
        return _settled(scene, seen, planned)
    again = replace(scene, vetoes={**scene.vetoes, **ruined})
    return _observed(again, seen).bind(lambda spared: _settled(again, seen, spared))


def _ruined(made: Arrangement, seen: Observers) -> dict[NodeId, Veto]:
    found: dict[NodeId, Veto] = {}
    for anchor, seat in made.seats.items():
        limits = seat.scheme.smoothing
        if limits is None or not seat.weights:
            continue
        kept = input_sqnr(seen, seat.edges[0].value, made.wanted[_place(seat)])
        if kept is not None and kept < limits.float_below:
            found[anchor] = Veto(
                Reason.RUINOUS_INPUT,
                f"one scale keeps {kept:.1f} dB of its input, less than {limits.float_below:g}:"
                " a few channels hold the range",
            )
    return found


def _place(seat: Seat) -> tuple[NodeId, ArgPath]:
    return seat.edges[0].user, seat.edges[0].at


def input_sqnr(seen: Observers, value: NodeId, params: Params) -> float | None:
    """dB that one scale over the whole range keeps of a value; None if nothing is known of it."""
    if params.fixed is not None:
        return None
    for name in (value, *params.sources):
        observer = seen.find(name, params.spec.observer)
        if observer is not None and not observer.state.is_empty:
            state = observer.state
            return predicted_sqnr(state, qparams_between(params.spec, state.low, state.high))
    return None


def _settled(scene: Scene, seen: Observers, planned: Planned) -> Result[_Decided, Fault]:
    made = planned.arrangement
    listed = tuple(dict.fromkeys((*made.given.values(), *made.wanted.values())))
    measured = [params for params in listed if params.is_measured]
    return (
        gather(_measured(params, seen) for params in measured)
        .bind(lambda asked: gather(map(_located, measured, qparams_of_all(asked))))
        .map(
            lambda found: _Decided(
                scene.graph,
                planned,
                {
                    **dict(zip(measured, found, strict=True)),
                    **{params: _known(params) for params in listed if params.fixed is not None},
                },
            )
        )
    )


def _located(params: Params, found: Result[QParams, Fault]) -> Result[QParams, Fault]:
    return found.alt(lambda fault: fault.located(params.leader, None, None))


def _measured(params: Params, seen: Observers) -> Result[tuple[QSpec, State], Fault]:
    """What to search: the spec with the observer that is there, and all sources' state."""
    observers = [seen.find(source, params.spec.observer) for source in params.sources]
    states = [o.state for o in observers if o is not None]
    first = observers[0]
    if first is None or len(states) != len(observers):
        return Failure(
            Fault(FaultKind.MISSING_STATISTICS, "a value was not observed", at=params.leader)
        )
    same = all(o is not None and o.spec.kind == first.spec.kind for o in observers)
    search = params.spec.observer if _serves(first.spec.kind, params.spec) else first.spec
    observer = search if same else replace(first.spec, kind="minmax", search="minmax")
    spec = replace(params.spec, observer=observer)
    return joined(observer, states).map(lambda state: (spec, state))


def _serves(kind: str, spec: QSpec) -> bool:
    return kind == spec.observer.kind


def _known(params: Params) -> QParams:
    assert params.fixed is not None
    scale, zero = params.fixed
    return QParams(
        torch.tensor(scale, dtype=torch.float32),
        torch.tensor(zero, dtype=torch.int32),
        params.spec.qmin,
        params.spec.qmax,
        params.spec.dtype,
    )


def _written(graph: Graph, decided: _Decided) -> Result[Rewrite, Fault]:
    plan: Plan = decided.planned.plan
    return _weights(decided).bind(
        lambda weights: rewritten(
            graph, edits_between(graph, _program(decided, weights), lambda _: NAME)
        ).map(lambda made: Rewrite(made.graph, made.diff, plan))
    )


def _program(decided: _Decided, weights: _Weights) -> Graph:
    return _Writer(decided, weights, dict.fromkeys(decided.graph.order)).graph()


@dataclass(frozen=True, slots=True)
class _WeightPlan:
    """Where the integers of one weight under one spec go."""

    path: Path
    spec: QSpec
    to: Path
    scale: Path
    zero: Path


_Held: TypeAlias = Mapping[Held, _WeightPlan]
"""The weights of one unit and where their integers go."""


@dataclass(frozen=True, slots=True)
class _Weights:
    """The quantized weights, and what each anchor reads where it read the float ones."""

    table: Table[Path, Weight]
    of: Mapping[NodeId, _Held]
    zeros: frozenset[Path]


def _weights(decided: _Decided) -> Result[_Weights, Fault]:
    graph, seats = decided.graph, decided.planned.arrangement.seats
    plans: dict[tuple[Path, QSpec], _WeightPlan] = {}
    of: dict[NodeId, dict[Held, _WeightPlan]] = {}
    homes: set[Path] = set()
    readers = weight_users(graph)
    taken: dict[Path, None] = dict.fromkeys(graph.weights)
    for anchor, seat in seats.items():
        if seat.weight_spec is None:
            continue
        for held in seat.weights:
            key = (held.path, seat.weight_spec)
            if key not in plans:
                stays = _read_as_float(graph, readers[held.path], seats, held.path)
                keeps = not stays and held.path not in homes
                plans[key] = _weight_plan(*key, keeps=keeps, taken=taken)
                homes.add(held.path)
            of.setdefault(anchor, {})[held] = plans[key]
    return gather(_quantized(graph, plan) for plan in plans.values()).map(
        lambda made: _table(graph, tuple(plans.values()), made, of)
    )


def _read_as_float(
    graph: Graph, uses: Iterable[Use], seats: Mapping[NodeId, Seat], path: Path
) -> bool:
    """Whether somebody reads the weight as it was: another operator, an output, an update."""
    if path in graph.updates:
        return True
    return any(
        use.user == OUTPUT
        or use.user not in seats
        or all((held.at, held.path) != (use.at, path) for held in seats[use.user].weights)
        for use in uses
    )


def _weight_plan(path: Path, spec: QSpec, *, keeps: bool, taken: dict[Path, None]) -> _WeightPlan:
    to = path if keeps else _fresh(Path(f"{path}_int8"), taken)
    scale = _fresh(Path(f"{to}_scale"), taken)
    zero = _fresh(Path(f"{to}_zero_point"), taken)
    return _WeightPlan(path, spec, to, scale, zero)


def _fresh(path: Path, taken: dict[Path, None]) -> Path:
    name, index = path, 1
    while name in taken:
        name, index = Path(f"{path}_{index}"), index + 1
    taken[name] = None
    return name


def _quantized(graph: Graph, plan: _WeightPlan) -> Result[QuantizedWeight, Fault]:
    return (
        tensor_of(graph.weights[plan.path])
        .bind(lambda tensor: quantize_weight(tensor, plan.spec))
        .alt(lambda fault: replace(fault, reason=f"{plan.path}: {fault.reason}"))
    )


def _table(
    graph: Graph,
    plans: tuple[_WeightPlan, ...],
    made: tuple[QuantizedWeight, ...],
    of: Mapping[NodeId, _Held],
) -> _Weights:
    puts: dict[Path, Weight] = {}
    zeros: set[Path] = set()
    for plan, held in zip(plans, made, strict=True):
        was = graph.weights[plan.path]
        integers = nibbles.pack(held.tensor) if plan.spec.is_packed else held.tensor
        puts[plan.to] = weight_of(integers, was.role, persistent=was.persistent, share=True)
        if plan.spec.dtype is DType.FLOAT16:
            continue
        puts[plan.scale] = weight_of(held.scale, Role.BUFFER, persistent=was.persistent, share=True)
        if held.zero_point is not None:
            zeros.add(plan.zero)
            puts[plan.zero] = weight_of(
                held.zero_point, Role.BUFFER, persistent=was.persistent, share=True
            )
    return _Weights(graph.weights.edit(puts), of, frozenset(zeros))


@dataclass(slots=True)
class _Writer:
    """Writes the nodes out in order, quantizers behind the values they are for."""

    decided: _Decided
    weights: _Weights
    taken: dict[NodeId, None]
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    order: list[NodeId] = field(default_factory=list)
    reads: dict[NodeId, NodeId] = field(default_factory=dict)
    """What stands for a value that integer kernels make: its dequantize."""
    parts: dict[NodeId, dict[Params, NodeId]] = field(default_factory=dict)
    """The dequantizes of a value under params that are not its own."""
    dynamic: dict[tuple[NodeId, QSpec], NodeId] = field(default_factory=dict)
    """The dequantizes of a value whose qparams are chosen at run time."""

    def graph(self) -> Graph:
        """The whole program."""
        graph, made = self.decided.graph, self.decided.planned.arrangement
        wants = self._wants(made)
        for node in graph:
            held = {
                weight.at: self._weight(node, weight, plan)
                for weight, plan in self.weights.of.get(node.id, {}).items()
            }
            self._put(self._dynamic(self._rewired(node, made, held), made))
            self._quantizers(node, made, wants.get(node.id, ()))
        signature = replace(
            graph.signature, output=_map_tree(graph.signature.output, self._outward)
        )
        return replace(
            graph,
            nodes=Table(self.nodes),
            order=row(self.order),
            weights=self.weights.table,
            signature=signature,
            updates=graph.updates.map(self._update),
            stage=Stage.QUANTIZED,
        )

    def _wants(self, made: Arrangement) -> dict[NodeId, tuple[Params, ...]]:
        """For each value, the params somebody reads it with that are not its own."""
        found: dict[NodeId, dict[Params, None]] = {}
        for seat in made.seats.values():
            for edge in seat.edges:
                params = made.wanted[edge.user, edge.at]
                if params != made.given.get(edge.value):
                    found.setdefault(edge.value, {})[params] = None
        return {name: tuple(listed) for name, listed in found.items()}

    def _put(self, node: Node) -> NodeId:
        self.nodes[node.id] = node
        self.order.append(node.id)
        return node.id

    def _weight(self, node: Node, held: Held, plan: _WeightPlan) -> NodeId:
        """What gives the values of a quantized weight to the node."""
        dtype = self.decided.graph.weights[plan.path].dtype
        name, origin = self._fresh(node.id, held.name), _origin(node)
        if plan.spec.dtype is DType.FLOAT16:
            return self._put(make_node("to", name, origin, x=WeightRef(plan.to), dtype=dtype))
        return self._put(
            make_node(
                "dequantize",
                name,
                origin,
                x=self._integers(node, plan),
                scale=WeightRef(plan.scale),
                zero_point=WeightRef(plan.zero) if plan.zero in self.weights.zeros else 0,
                dtype=dtype,
                axis=plan.spec.axis,
            )
        )

    def _integers(self, node: Node, plan: _WeightPlan) -> Ref:
        """The integers of a weight, taken out of their bytes where these hold two."""
        held = WeightRef(plan.to)
        if not plan.spec.is_packed:
            return held
        name, width = self._fresh(node.id, "values"), self._width(plan.path)
        made = make_node("unpack_nibbles", name, _origin(node), x=held, width=width)
        return NodeRef(self._put(made))

    def _width(self, path: Path) -> int:
        return self.decided.graph.weights[path].shape[-1]

    def _fresh(self, parent: NodeId, role: str) -> NodeId:
        name = fresh_id(self.taken, parent, role)
        self.taken[name] = None
        return name

    def _rewired(self, node: Node, made: Arrangement, held: Mapping[ArgPath, NodeId]) -> Node:
        def read(at: ArgPath, ref: Ref) -> Arg:
            if isinstance(ref, WeightRef):
                return NodeRef(held[at]) if at in held else ref
            parts = self.parts.get(ref.id)
            params = made.wanted.get((node.id, at)) if parts else None
            part = parts.get(params) if parts and params is not None else None
            return NodeRef(part or self.reads.get(ref.id, ref.id))

        return node.with_args(tuple(_map_at(arg, (i,), read) for i, arg in enumerate(node.args)))

    def _dynamic(self, node: Node, made: Arrangement) -> Node:
        """The node with its input quantized by the scale of each call, if it is dynamic."""
        seat = made.seats.get(node.id)
        source = node.args[0] if node.args else None
        if seat is None or seat.unit.kind.mode is not Mode.DYNAMIC:
            return node
        assert isinstance(source, NodeRef)
        target = self.decided.planned.plan.target
        spec = activation_spec(seat.scheme, seat.unit.kind, target)
        assert spec is not None
        key = (source.id, spec)
        if key not in self.dynamic:
            kind = made.types.get(source.id)
            dtype = kind.dtype if isinstance(kind, TensorType) else DType.FLOAT32
            self.dynamic[key] = self._chosen(node, source, spec, dtype)
        return node.with_args((NodeRef(self.dynamic[key]), *node.args[1:]))

    def _chosen(self, node: Node, x: NodeRef, spec: QSpec, dtype: DType) -> NodeId:
        """The dequantize behind a quantizer whose scale and zero point are chosen at run time."""

        def put(op: str, role: str, **given: Arg) -> NodeRef:
            made = make_node(op, self._fresh(node.id, role), _origin(node), **given)
            return NodeRef(self._put(made))

        ends: dict[str, Arg] = {"qmin": spec.qmin, "qmax": spec.qmax}
        pair = put("choose_qparams", "choose_qparams", x=x, symmetric=spec.symmetric, **ends)
        scale = put("getitem", "scale", x=pair, index=0)
        zero = put("getitem", "zero_point", x=pair, index=1)
        given: dict[str, Arg] = {"scale": scale, "zero_point": zero}
        codes = put("quantize", "quantize", x=x, dtype=spec.dtype, **given, **ends)
        return put("dequantize", "dequantize", x=codes, dtype=dtype, **given).id

    def _quantizers(self, node: Node, made: Arrangement, wants: tuple[Params, ...]) -> None:
        kind = made.types.get(node.id)
        if not isinstance(kind, TensorType):
            return
        given = made.given.get(node.id)
        if given is not None:
            self.reads[node.id] = self._pair(node, node.id, given, "quantize", kind.dtype)
        for params in wants:
            again = given is not None
            role = "requantize" if again else "quantize"
            value = self.reads.get(node.id, node.id)
            made_of = self.parts.setdefault(node.id, {})
            made_of[params] = self._pair(node, value, params, role, kind.dtype)

    def _halved(self, node: Node, value: NodeId, role: str, dtype: DType) -> NodeId:
        """The value rounded to half precision, in its own dtype."""
        for to, name in ((DType.FLOAT16, role), (dtype, "dequantize")):
            made = self._fresh(node.id, name)
            value = self._put(make_node("to", made, _origin(node), x=NodeRef(value), dtype=to))
        return value

    def _pair(self, node: Node, value: NodeId, params: Params, role: str, dtype: DType) -> NodeId:
        if params.is_half:
            return self._halved(node, value, role, dtype)
        qparams = self.decided.qparams[params]
        scale, zero = float(qparams.scale), int(qparams.zero_point)
        integers = self._put(
            make_node(
                "quantize",
                self._fresh(node.id, role),
                _origin(node),
                x=NodeRef(value),
                scale=scale,
                zero_point=zero,
                qmin=qparams.qmin,
                qmax=qparams.qmax,
                dtype=qparams.dtype,
            )
        )
        return self._put(
            make_node(
                "dequantize",
                self._fresh(node.id, "dequantize"),
                _origin(node),
                x=NodeRef(integers),
                scale=scale,
                zero_point=zero,
                dtype=dtype,
            )
        )

    def _outward(self, arg: Arg) -> Arg:
        return _map_at(
            arg,
            (),
            lambda _, ref: (
                NodeRef(self.reads.get(ref.id, ref.id)) if isinstance(ref, NodeRef) else ref
            ),
        )

    def _update(self, ref: NodeRef) -> NodeRef:
        return NodeRef(self.reads.get(ref.id, ref.id))


def _origin(node: Node) -> Origin:
    return Origin(node.origin.scope, node.origin.call, node.origin.source, (node.id,))


def _map_at(arg: Arg, at: ArgPath, change: Callable[[ArgPath, Ref], Arg]) -> Arg:
    """`map_refs`, with the place of each reference."""
    match arg:
        case NodeRef() | WeightRef():
            made = change(at, arg)
            return arg if made == arg else made
        case tuple():
            items = tuple(_map_at(item, (*at, i), change) for i, item in enumerate(arg))
            return arg if all(new is old for new, old in zip(items, arg, strict=True)) else items
        case FrozenMap():
            return FrozenMap({name: _map_at(v, (*at, name), change) for name, v in arg.items()})
        case _:
            return arg


def _map_tree(tree: Tree, change: Callable[[Arg], Arg]) -> Tree:
    if tree.kind == "leaf":
        return replace(tree, leaf=change(tree.leaf))
    return replace(tree, items=tuple(_map_tree(item, change) for item in tree.items))
