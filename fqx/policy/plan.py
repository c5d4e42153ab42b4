"""What will happen to every node of a graph on a target, and why: one annotation each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fqx.ir.arg import DType, Json, encode_arg
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName
from fqx.ir.node import Node
from fqx.ir.signature import TensorType, Type
from fqx.kit.frozen import FrozenMap, Table
from fqx.kit.result import Result
from fqx.ops.catalogue import OPS, Trait, is_foreign
from fqx.ops.types import types
from fqx.policy.arrange import (
    CUSTOM,
    Arrangement,
    Params,
    Scene,
    Seat,
    Tap,
    Veto,
    activation_spec,
    arrange,
    kinds_in,
    schemes_of,
)
from fqx.policy.recipe import Choice, Recipe, Resolution, Scheme, resolve, scheme_to_arg
from fqx.policy.target import Target
from fqx.policy.units import Mode
from fqx.policy.verdicts import (
    Annotation,
    Fixed,
    Float,
    Own,
    Reason,
    SharedWith,
    Source,
    Verdict,
    decode_annotation,
)

__all__ = ["Plan", "Planned", "decode_annotations", "make_plan", "plan_scene", "without_node"]

DIVISION = "smooth"
"""The rule under which `smooth` leaves its divisions float."""

_RECURRENT = tuple(
    f"{name}{form}" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for form in ("", "_cell")
)
WRITERS: Mapping[OpName, str] = MappingProxyType(
    {
        **dict.fromkeys(map(OpName, _RECURRENT), "decompose_recurrent"),
        OpName("scaled_dot_product_attention"): "decompose_attention",
    }
)
"""Passes that write an operator without a kernel out as operators of which some have one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Every node of a graph with its annotation, for one target.

    `schemes` are what the recipe asks of the nodes that run on integers, `taps` the values to be
    observed, `remarks` what is worth a line in a report (rules without effect).
    """

    target: Target
    annotations: Table[NodeId, Annotation]
    order: tuple[NodeId, ...]
    schemes: Table[NodeId, Scheme]
    taps: tuple[Tap, ...]
    remarks: tuple[str, ...] = ()

    kind = "plan"

    def __getitem__(self, name: NodeId) -> Annotation:
        return self.annotations[name]

    def __len__(self) -> int:
        return len(self.annotations)

    def counts(self) -> dict[Verdict, int]:
        """How many nodes have each verdict."""
        found = dict.fromkeys(Verdict, 0)
        for name in self.order:
            found[self.annotations[name].verdict] += 1
        return found

    def __str__(self) -> str:
        width = max((len(name) for name in self.order), default=0)
        return "\n".join(f"{name:<{width}}  {self.annotations[name]}" for name in self.order)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {verdict.value}" for verdict, count in self.counts().items())
        reasons: dict[Reason, int] = {}
        for name in self.order:
            found = self.annotations[name]
            if found.verdict is Verdict.FLOAT:
                reasons[found.reason] = reasons.get(found.reason, 0) + 1
        top = sorted(reasons.items(), key=lambda item: (-item[1], item[0].name))[:5]
        lines = [f"Plan for {self.target.label}: {counts}"]
        lines += [f"  float: {count} × {reason.value}" for reason, count in top]
        lines += [f"  {remark}" for remark in self.remarks[:3]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{repr(self).replace('<', '&lt;')}</pre>"

    def to_json(self) -> Json:
        """The plan as plain data."""
        listed: dict[Scheme, int] = {}
        for scheme in self.schemes.values():
            listed.setdefault(scheme, len(listed))
        return {
            "target": self.target.to_json(),
            "label": self.target.label,
            "nodes": {name: self.annotations[name].to_json() for name in self.order},
            "schemes": [encode_arg(scheme_to_arg(scheme)) for scheme in listed],
            "asked": {name: listed[scheme] for name, scheme in self.schemes.items()},
            "remarks": list(self.remarks),
        }


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan with the arrangement it describes."""

    plan: Plan
    arrangement: Arrangement


def make_plan(graph: Graph, recipe: Recipe, target: Target) -> Result[Plan, Fault]:
    """The plan of a recipe for a target, before anything is measured: one annotation per node.

    Faults: BAD_RECIPE, UNMATCHED_RULE and SHADOWED_RULE, see `resolve`.
    """
    return resolve(recipe, graph).map(lambda found: plan_resolved(graph, found, target).plan)


def plan_resolved(graph: Graph, found: Resolution, target: Target) -> Planned:
    """The plan of choices already made, with its arrangement."""
    scene = Scene(graph, types(graph), found.choices, target, {})
    planned = plan_scene(scene)
    return replace(planned, plan=replace(planned.plan, remarks=found.remarks))


def plan_scene(scene: Scene) -> Planned:
    """Arrange the scene and say of every node what was decided."""
    made = arrange(scene)
    annotations = {
        node.id: _annotate(scene, made, node) for node in scene.graph if node.op != "observe"
    }
    plan = Plan(
        scene.target,
        Table(annotations),
        tuple(annotations),
        Table(schemes_of(made.seats.values(), scene.choices)),
        made.taps,
    )
    return Planned(plan, made)


def without_node(plan: Plan, name: NodeId) -> Plan:
    """The plan with one node left float; what it shared with others is planned again later."""
    was = plan.annotations[name]
    left = Annotation(Reason.BY_RECIPE, "the plan was edited", was.inputs, Float())
    return replace(
        plan,
        annotations=plan.annotations.put(name, left),
        schemes=plan.schemes.drop(name),
    )


def decode_annotations(code: Json) -> dict[NodeId, Annotation]:
    """The annotations of a plan's plain data; ValueError or KeyError if it is none."""
    match code:
        case {"nodes": dict() as nodes}:
            return {NodeId(name): decode_annotation(item) for name, item in nodes.items()}
        case _:
            raise ValueError("a plan has nodes")


def _annotate(scene: Scene, made: Arrangement, node: Node) -> Annotation:
    anchor = made.seat_of.get(node.id)
    if anchor is None:
        veto = _why_float(scene, made, node)
        return Annotation(veto.reason, veto.text, FrozenMap(), _float_output(made, node))
    seat = made.seats[anchor]
    unit = f"{seat.unit.kind.name} of {anchor}"
    inputs = FrozenMap(_inputs(scene.target, made, seat, node))
    output = _output(made, node)
    if node.id != anchor:
        inside = _FLOAT_REASONS.get(seat.unit.kind.mode, Reason.ABSORBED)
        return Annotation(inside, f"it runs inside {anchor}", inputs, output, unit)
    if seat.unit.kind.shares:
        return Annotation(Reason.MOVES_INTEGERS, "", inputs, output, unit)
    reason = _MODE_REASONS.get(seat.unit.kind.mode)
    if reason is not None:
        return Annotation(reason, "", inputs, output, unit)
    text = _narrowing(scene.target, seat)
    if seat.unit.kind == CUSTOM:
        return Annotation(Reason.CUSTOM, text, inputs, output, unit)
    if seat.scheme.note:
        note = "; ".join(part for part in (seat.scheme.note, text) if part)
        return Annotation(Reason.SMOOTHED, note, inputs, output, unit)
    return Annotation(Reason.KERNEL, text, inputs, output, unit)


_FLOAT_REASONS: Mapping[Mode, Reason] = MappingProxyType(
    {
        Mode.WEIGHT_ONLY: Reason.WEIGHT_ONLY,
        Mode.FLOAT16: Reason.HALF,
        Mode.FLOAT16_STATIC: Reason.HALVES,
    }
)
"""The reasons of modes that compute in float."""
_MODE_REASONS: Mapping[Mode, Reason] = MappingProxyType(
    {**_FLOAT_REASONS, Mode.DYNAMIC: Reason.DYNAMIC}
)


def _inputs(target: Target, made: Arrangement, seat: Seat, node: Node) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for edge in seat.edges:
        if edge.user == node.id:
            params = made.wanted[edge.user, edge.at]
            given = made.given.get(edge.value)
            found[edge.name] = SharedWith(edge.value) if params == given else _source(params)
    if node.id == seat.unit.anchor and seat.unit.kind.mode is Mode.DYNAMIC:
        found["x"] = Own(activation_spec(seat.scheme, seat.unit.kind, target) or seat.scheme.static)
    if node.id == seat.unit.anchor and seat.weight_spec is not None:
        found |= {held.name: Own(seat.weight_spec) for held in seat.weights}
        bias = OPS[node.op].position("bias") if node.op in OPS else None
        if bias is not None and node.args[bias] is not None:
            found["bias"] = Float(DType.FLOAT32)
    return found


def _output(made: Arrangement, node: Node) -> Source:
    params = made.given.get(node.id)
    if params is None:
        return _float_output(made, node)
    if params.leader == node.id or params.fixed is not None:
        return _source(params)
    return SharedWith(params.leader)


def _source(params: Params) -> Source:
    if params.fixed is not None:
        return Fixed(*params.fixed, params.spec)
    return Own(params.spec)


def _float_output(made: Arrangement, node: Node) -> Float:
    found: Type | None = made.types.get(node.id)
    return Float(found.dtype if isinstance(found, TensorType) else None)


def _narrowing(target: Target, seat: Seat) -> str:
    asked = seat.scheme.activation
    if asked is None:
        return ""
    limits = target.activation_of(asked.dtype)
    if limits.qmin <= asked.qmin and asked.qmax <= limits.qmax:
        return ""
    return (
        f"activations narrowed to {max(asked.qmin, limits.qmin)}..{min(asked.qmax, limits.qmax)}:"
        f" sums of full 8-bit products saturate on {target.label}"
    )


def _why_float(scene: Scene, made: Arrangement, node: Node) -> Veto:
    row = OPS.get(node.op)
    if row is not None and (
        node.op == "input" or row.traits & {Trait.PURE_INT, Trait.FACTORY, Trait.COMPARISON}
    ):
        return Veto(Reason.NO_ARITHMETIC, "")
    if node.op == "leaf":
        return Veto(Reason.LEAF, "")
    if is_foreign(node):
        return Veto(Reason.FOREIGN, f"{node.op} is an operator outside the catalogue")
    return _why_no_seat(scene, made, node)


def _why_no_seat(scene: Scene, made: Arrangement, node: Node) -> Veto:
    choice: Choice | None = scene.choices.get(node.id)
    scheme = None if choice is None else choice.scheme
    mode = Mode.STATIC if scheme is None else scheme.mode
    kinds = kinds_in(scene.target, node.op, mode)
    found = made.float_because.get(node.id)
    if not kinds:
        only = mode is Mode.STATIC and not scene.target.kinds(node.op)
        what = "" if only else f"{mode.value} "
        writer = WRITERS.get(node.op)
        hint = f"; {writer} makes operators of it that have some" if writer else ""
        text = f"{scene.target.label} has no {what}kernel for {node.op}{hint}"
        return Veto(Reason.NO_KERNEL, text)
    if choice is None:
        return Veto(Reason.NOT_PLANNED, "")
    if choice.rule == DIVISION and choice.scheme is None:
        return Veto(Reason.DIVISION, Reason.DIVISION.value)
    if choice.scheme is None:
        return Veto(Reason.BY_RECIPE, f"the recipe leaves it float: {choice.rule}")
    if found is not None:
        return found
    return Veto(Reason.UNFIT, Reason.UNFIT.value)
