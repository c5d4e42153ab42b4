"""`smooth` and `equalize_inputs`: move range from the inputs of layers into their weights.

    x -> linear(w)       x -> mul(1/s) -> linear(w * s)

A tensor in which a few channels are much larger than the rest loses the rest under one scale.
Dividing each channel by a factor and multiplying the weight's column by it changes nothing in exact
arithmetic and levels the channels (Xiao et al. 2022, SmoothQuant): s = max|x|^a / max|w|^(1-a).
Where the input comes from a layer norm that nobody else reads, its affine takes the division.

`smooth` does so for linears whose statistics ask for it, by the strength that predicts the least
noise. `equalize_inputs` does so for every linear and convolution, by the square root of the ratio
of both ranges (torch's input-weight equalization) rounded to a power of two, and is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from fqx.ir.arg import DType, Json, NodeRef, WeightRef
from fqx.ir.compare import edits_between
from fqx.ir.diff import rewritten
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph, Use, fresh_id, users, weight_users
from fqx.ir.names import NodeId, Path, RuleName, Stage
from fqx.ir.node import Node, Origin
from fqx.ir.signature import TensorType, Type
from fqx.ir.weight import Role, Weight
from fqx.kit.frozen import row
from fqx.kit.result import Result, gather
from fqx.num.observers import State
from fqx.num.qparams import predicted_sqnr, qparams_between
from fqx.num.scheme import ObserverSpec, spec_to_arg
from fqx.num.search import tree_sum
from fqx.num.states import state_weights, with_state
from fqx.num.tensors import tensor_of, weight_of
from fqx.ops.catalogue import make_node, operand, with_attr, with_operand
from fqx.ops.types import types
from fqx.passes.equalize import (
    by_input_channel,
    groups_of,
    half_exponent,
    power_of_two,
    scaled_inputs,
    within,
)
from fqx.passes.fuse_norms import RANKS
from fqx.passes.observe import Intent, intents_to_arg
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite
from fqx.passes.statistics import Observer, Observers, observers_in
from fqx.policy.plan import DIVISION
from fqx.policy.recipe import Scheme, Smoothing

NAME = RuleName("smooth")
_LEVELS, _WEIGHT_LEVELS = 255.0, 127.0
_LEAST = 2.0**-12
# A channel that asks for more is not worth what float32 may lose of its smallest values.
_MOST_PLACES = 60


@dataclass(frozen=True, slots=True)
class Choice:
    """What was done about the input of some linears that read one value, and why.

    `input` is what one scale keeps of the value, `plain` and `smoothed` the predicted signal to
    noise ratios of the products without and with smoothing, in dB; `strength` is the exponent a,
    0 where nothing was done.
    """

    value: NodeId
    linears: tuple[NodeId, ...]
    input: float
    plain: float
    smoothed: float
    strength: float
    into: str


@dataclass(frozen=True, slots=True)
class Smoothed:
    """The choices of a `smooth` pass, in program order."""

    choices: tuple[Choice, ...]

    kind = "smoothing"

    def to_json(self) -> Json:
        """The choices as plain data."""
        return {
            "choices": [
                {
                    "value": choice.value,
                    "linears": list(choice.linears),
                    "input_db": _finite(choice.input),
                    "plain_db": _finite(choice.plain),
                    "smoothed_db": _finite(choice.smoothed),
                    "strength": choice.strength,
                    "into": choice.into,
                }
                for choice in self.choices
            ]
        }

    def __repr__(self) -> str:
        done = [choice for choice in self.choices if choice.strength]
        lines = [f"Smoothed {len(done)} of {len(self.choices)} inputs of linears"]
        lines += [
            f"  {c.value}: {c.plain:.1f} -> {c.smoothed:.1f} dB by {c.into}" for c in done[:7]
        ]
        return "\n".join(lines)


def smooth() -> Pass:
    """Levels the channels of linears' inputs where their statistics ask for it.

    Takes and gives CALIBRATED graphs; which nodes, and how far, stands in their schemes
    (`Smoothing`). Arithmetic is portable. Fails with MISSING_STATISTICS or MISSING_PAYLOAD if
    statistics or weights are not there.
    """
    return Pass(
        "smooth",
        NO_OPTIONS,
        frozenset({Stage.CALIBRATED}),
        Stage.CALIBRATED,
        lambda graph: _moved(graph, _SMOOTH),
    )


def equalize_inputs() -> Pass:
    """Levels the channels of layers' inputs against their weights, bit for bit the same program.

    Takes and gives CALIBRATED graphs. A layer, linear or convolution, takes part where its scheme
    has `Smoothing` and its activation's observer an axis, that of its input's channels: -1 for a
    linear, 1 for a convolution. Layers that read one value share the factors, others go on reading
    the value as it was. Between two layers `equalize` does as much and needs no multiplication.
    Idempotent and portable. Fails with MISSING_STATISTICS or MISSING_PAYLOAD if statistics or
    weights are not there.
    """
    return Pass(
        "equalize_inputs",
        NO_OPTIONS,
        frozenset({Stage.CALIBRATED}),
        Stage.CALIBRATED,
        lambda graph: _moved(graph, _EQUALIZE),
    )


@dataclass(frozen=True, slots=True)
class _Way:
    """One of the two passes: its layers, how it chooses factors, and what it says of it."""

    name: RuleName
    ops: frozenset[str]
    choose: Callable[[_Group, torch.Tensor], _Weighed]
    counts: bool
    note: str


def _moved(graph: Graph, way: _Way) -> Result[Rewrite, Fault]:
    return observers_in(graph).bind(
        lambda seen: gather(
            _weighed(graph, group, way.choose) for group in _groups(graph, seen, way)
        ).bind(lambda found: _written(graph, seen, found, way))
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """Linears that read one value, and what was seen of that value."""

    value: NodeId
    linears: tuple[NodeId, ...]
    observer: Observer
    scheme: Scheme
    limits: Smoothing


@dataclass(frozen=True, slots=True, eq=False)
class _Weighed:
    """A group with the choice made for it and its factors s, float32 [channels]."""

    group: _Group
    choice: Choice
    factors: torch.Tensor | None


def _groups(graph: Graph, seen: Observers, way: _Way) -> tuple[_Group, ...]:
    choices, kinds = seen.choices(), types(graph)
    by_value: dict[NodeId, list[NodeId]] = {}
    for node in graph:
        choice = choices.get(node.id)
        if node.op not in way.ops or choice is None or choice.scheme is None:
            continue
        x, weight = operand(node, "x"), operand(node, "weight")
        if not (isinstance(x, NodeRef) and isinstance(weight, WeightRef)):
            continue
        observer = seen.channels(x.id)
        # a float32 factor would widen what is narrower and round what is wider
        if graph.weights[_path(graph, node)].dtype is not DType.FLOAT32:
            continue
        if choice.scheme.smoothing and _is_along(node, observer, kinds[x.id]):
            by_value.setdefault(x.id, []).append(node.id)
    found: list[_Group] = []
    for value, linears in by_value.items():
        observer = seen.channels(value)
        scheme = choices[linears[0]].scheme
        if observer is None or scheme is None or (way.counts and observer.state.counts is None):
            continue
        if any(choices[name].scheme != scheme for name in linears):
            continue
        if scheme.smoothing is not None and not observer.state.is_empty:
            found.append(_Group(value, tuple(linears), observer, scheme, scheme.smoothing))
    return tuple(found)


def _is_along(node: Node, observer: Observer | None, kind: Type) -> bool:
    """Whether the observer watches the axis of the value that the layer sums over."""
    if observer is None or observer.spec.axis is None:
        return False
    rank = len(kind.dims) if isinstance(kind, TensorType) and kind.dims is not None else 0
    if node.op == "linear":
        return observer.spec.axis in (-1, rank - 1)
    return rank == RANKS[node.op] and observer.spec.axis % rank == 1


def _weighed(graph: Graph, group: _Group, choose: _Choose) -> Result[_Weighed, Fault]:
    nodes = {_path(graph, graph[name]): graph[name] for name in group.linears}
    return gather(
        tensor_of(graph.weights[path]).map(lambda held, node=node: _columns(node, held))  # type: ignore[misc]
        for path, node in nodes.items()
    ).map(
        lambda weights: (
            choose(group, torch.cat(list(weights)))
            if len({weight.shape[1] for weight in weights}) == 1
            else _left(group, math.nan, math.nan)
        )
    )


def _columns(node: Node, weight: torch.Tensor) -> torch.Tensor:
    """The weight as float64 [n, input channels]."""
    wide = weight.to(torch.float64)
    return wide if node.op == "linear" else by_input_channel(wide, groups_of(node)).t()


def _path(graph: Graph, node: Node) -> Path:
    held = operand(node, "weight")
    assert isinstance(held, WeightRef)
    return graph.ties.get(held.path) or held.path


def _choose_equal(group: _Group, weight: torch.Tensor) -> _Weighed:
    """sqrt of input range by weight range, to the nearest power of two; 1 for a dead channel."""
    state, spec = group.observer.state, group.scheme.static
    low, high = state.channel_low, state.channel_high
    assert low is not None
    assert high is not None
    counted = state.counts is not None
    kept = predicted_sqnr(state, qparams_between(spec, state.low, state.high)) if counted else 0.0
    if weight.shape[1] != low.numel() or state.low == state.high == 0.0:
        return _left(group, kept, math.inf)
    inputs, columns = high - low, weight.amax(0) - weight.amin(0)
    usable = (inputs > 0) & (columns > 0) & torch.isfinite(inputs) & torch.isfinite(columns)
    ratio = torch.where(usable, inputs, 1.0) / torch.where(usable, columns, 1.0)
    usable &= torch.isfinite(ratio) & (ratio > 0)
    places = torch.where(usable, half_exponent(torch.where(usable, ratio, 1.0)), 0)
    usable &= (places.abs() <= _MOST_PLACES) & within(weight.abs().t(), power_of_two(places))
    factors = power_of_two(torch.where(usable, places, 0))
    picture = _Picture(low, high, kept, weight)
    plain = picture.sqnr(torch.ones_like(factors))
    if bool((factors == 1.0).all()):
        return _left(group, kept, plain)
    better = picture.sqnr(factors)
    choice = Choice(group.value, group.linears, kept, plain, better, 0.5, "")
    return _Weighed(group, choice, factors.to(torch.float32))


def _choose(group: _Group, weight: torch.Tensor) -> _Weighed:
    """Compare the strengths by the predicted noise of the product."""
    state, limits = group.observer.state, group.limits
    assert state.channel_low is not None
    assert state.channel_high is not None
    spec = group.scheme.static
    kept = predicted_sqnr(state, qparams_between(spec, state.low, state.high))
    if weight.shape[1] != state.channel_low.numel() or state.low == state.high == 0.0:
        return _left(group, kept, math.inf)
    picture = _Picture(state.channel_low, state.channel_high, kept, weight)
    plain = picture.sqnr(torch.ones_like(picture.peak))
    if kept < limits.float_below or plain >= limits.plain_above:
        return _left(group, kept, plain)
    strength, factors, best = max(
        ((a, s, picture.sqnr(s)) for a, s in picture.candidates()), key=lambda item: item[2]
    )
    if best - plain < limits.least_gain:
        return _left(group, kept, plain)
    choice = Choice(group.value, group.linears, kept, plain, best, strength, "")
    return _Weighed(group, choice, factors.to(torch.float32))


def _left(group: _Group, kept: float, plain: float) -> _Weighed:
    return _Weighed(group, Choice(group.value, group.linears, kept, plain, plain, 0.0, ""), None)


class _Picture:
    """What is known of a product x @ w.T: each channel's range, the input's power, the weight."""

    def __init__(
        self, low: torch.Tensor, high: torch.Tensor, kept: float, weight: torch.Tensor
    ) -> None:
        self.low, self.high, self.weight = low, high, weight
        peak = torch.maximum(-low, high)
        self.peak = peak.clamp(min=float(peak.max()) * _LEAST)
        columns = weight.abs().amax(0)
        self.columns = columns.clamp(min=max(float(columns.max()), 2.0**-100) * _LEAST)
        self.squares = tree_sum(weight.t().square())
        # the power of each channel is taken in proportion to the square of its peak
        step = _step(low, high)
        power = 10.0 ** (kept / 10.0) * step * step / 12.0 if math.isfinite(kept) else 1.0
        peaks = self.peak.square()
        self.powers = peaks * (power * peaks.numel() / float(tree_sum(peaks[None])[0]))
        self.signal = float(tree_sum((self.powers * self.squares)[None])[0])

    def candidates(self) -> Iterable[tuple[float, torch.Tensor]]:
        """Strengths and factors; powers of eighths are products of square roots, so portable."""
        x = _roots(self.peak)
        w = _roots(self.columns)
        yield 0.5, x[0] / w[0]
        yield 0.625, x[0] * x[2] / (w[1] * w[2])
        yield 0.75, x[0] * x[1] / w[1]
        yield 0.875, x[0] * x[1] * x[2] / w[2]

    def sqnr(self, factors: torch.Tensor) -> float:
        """Predicted dB of the product: rounding of inputs and of weights, independent of both."""
        step = _step(self.low / factors, self.high / factors)
        squares = factors.square()
        of_input = step * step / 12.0 * float(tree_sum((self.squares * squares)[None])[0])
        steps = (self.weight * factors).abs().amax(1) / _WEIGHT_LEVELS
        of_weight = float(tree_sum(steps.square()[None])[0]) / 12.0
        of_weight *= float(tree_sum((self.powers / squares)[None])[0])
        noise = of_input + of_weight
        return 10.0 * math.log10(self.signal / noise) if noise > 0 < self.signal else math.inf


def _step(low: torch.Tensor, high: torch.Tensor) -> float:
    return (max(float(high.max()), 0.0) - min(float(low.min()), 0.0)) / _LEVELS


def _roots(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The square, fourth and eighth roots."""
    second = values.sqrt()
    fourth = second.sqrt()
    return second, fourth, fourth.sqrt()


def _written(
    graph: Graph, seen: Observers, found: tuple[_Weighed, ...], way: _Way
) -> Result[Rewrite, Fault]:
    draft = _Draft(graph, seen, way, users(graph), weight_users(graph))
    choices = tuple(draft.apply(one) for one in found)
    evidence = Smoothed(choices)
    edits = edits_between(graph, draft.graph_after(), lambda _: way.name)
    return rewritten(graph, edits).map(lambda made: Rewrite(made.graph, made.diff, evidence))


@dataclass(slots=True)
class _Draft:
    """The graph under change."""

    graph: Graph
    seen: Observers
    way: _Way
    uses: Mapping[NodeId, tuple[Use, ...]]
    readers: Mapping[Path, tuple[Use, ...]]
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    behind: dict[NodeId, list[NodeId]] = field(default_factory=dict)
    weights: dict[Path, Weight] = field(default_factory=dict)
    drops: list[Path] = field(default_factory=list)

    def node(self, name: NodeId) -> Node:
        """The node in its present form."""
        return self.nodes.get(name) or self.graph[name]

    def graph_after(self) -> Graph:
        """The graph with every change; the same object if there was none."""
        if not self.nodes:
            return self.graph
        order = [name for old in self.graph.order for name in (old, *self.behind.get(old, ()))]
        return replace(
            self.graph,
            nodes=self.graph.nodes.edit(self.nodes),
            order=row(order),
            weights=self.graph.weights.edit(self.weights, self.drops),
        )

    def apply(self, one: _Weighed) -> Choice:
        """Smooth one group; the choice with where the division went."""
        if one.factors is None:
            return one.choice
        norm = self._norm(one.group, one.factors)
        choice = replace(one.choice, into="its layer norm" if norm else "a multiplication")
        scheme = replace(
            one.group.scheme,
            activation=replace(one.group.scheme.static, observer=ObserverSpec()),
            smoothing=None,
            note=(
                f"its input is {self.way.note} the weight by {choice.into}"
                f" ({choice.plain:.1f} -> {choice.smoothed:.1f} dB)"
            ),
        )
        self._untell(one.group.linears)
        intent = Intent(scheme, self.way.name, one.group.linears)
        if norm is not None:
            self._fold(norm, one.factors)
            self._observe(one, one.group.value, one.group.observer.node, intent)
        else:
            self._divide(one, one.factors, intent)
        for name in one.group.linears:
            self._scale(name, one.group, one.factors)
        return choice

    def _norm(self, group: _Group, factors: torch.Tensor) -> Node | None:
        """The layer norm that makes the value, if nobody but the group reads it."""
        node = self.node(group.value)
        if any(self.graph[name].op != "linear" for name in group.linears):
            return None
        if node.op != "layer_norm" or not isinstance(operand(node, "weight"), WeightRef):
            return None
        readers = {use.user for use in self.uses[group.value]}
        watchers = {observer.node for observer in self.seen.of.get(group.value, ())}
        if readers - watchers - set(group.linears) or len(watchers) != 1:
            return None
        held = self.graph.weights[self._resolve(operand(node, "weight"))]
        return node if held.shape == tuple(factors.shape) else None

    def _resolve(self, ref: object) -> Path:
        assert isinstance(ref, WeightRef)
        return self.graph.ties.get(ref.path) or ref.path

    def _fold(self, norm: Node, factors: torch.Tensor) -> None:
        for name in ("weight", "bias"):
            held = operand(norm, name)
            if isinstance(held, WeightRef):
                norm = self._with_weight(norm, name, held, 1.0 / factors, {norm.id})
        self.nodes[norm.id] = norm

    def _scale(self, name: NodeId, group: _Group, factors: torch.Tensor) -> None:
        node = self.node(name)
        held = operand(node, "weight")
        assert isinstance(held, WeightRef)
        self.nodes[name] = self._with_weight(node, "weight", held, factors, set(group.linears))

    def _with_weight(
        self, node: Node, name: str, held: WeightRef, factors: torch.Tensor, ours: set[NodeId]
    ) -> Node:
        """The node reading its weight times the factors, at the same path if the rest agrees."""
        path = self._resolve(held)
        was = self.graph.weights[path]
        alone = all(use.user in ours for use in self.readers.get(path, ()))
        to = path if alone else Path(f"{node.id}.smoothed_{name}")
        tensor = was.payload
        assert isinstance(tensor, torch.Tensor)
        shaped = factors if node.op == "layer_norm" else scaled_inputs(node, was.shape, factors)
        made = tensor * shaped
        self.weights[to] = weight_of(
            made, was.role, persistent=was.persistent, requires_grad=was.requires_grad, share=True
        )
        return with_operand(node, name, WeightRef(to)) if to != held.path else node

    def _divide(self, one: _Weighed, factors: torch.Tensor, intent: Intent) -> None:
        value = self.node(one.group.value)
        made = fresh_id(self.graph.nodes, value.id, "smooth")
        path = Path(f"{one.group.linears[0]}.smooth_factor")
        spatial = (1,) * (RANKS[self.graph[one.group.linears[0]].op] - 2)
        inverse = (1.0 / factors).reshape(-1, *spatial)
        self.weights[path] = weight_of(inverse, Role.BUFFER, share=True)
        origin = Origin(value.origin.scope, value.origin.call, value.origin.source, (value.id,))
        self.nodes[made] = make_node("mul", made, origin, x=NodeRef(value.id), y=WeightRef(path))
        watch = fresh_id(self.graph.nodes, made, "observe")
        self.behind.setdefault(value.id, []).extend((made, watch))
        self._observe(one, made, watch, intent, Intent(None, DIVISION, (made,)))
        for name in one.group.linears:
            self.nodes[name] = with_operand(self.node(name), "x", NodeRef(made))

    def _observe(self, one: _Weighed, value: NodeId, watch: NodeId, *intents: Intent) -> None:
        """An observer that knows the range of the levelled value."""
        spec = ObserverSpec()
        state = _levelled(one.group.observer.state, one.factors)
        old = self.nodes.get(watch) or self.graph.nodes.get(watch)
        held = old.attrs.get("intent") if old is not None else None
        told = held if isinstance(held, tuple) else ()
        added = intents_to_arg(intents)
        assert isinstance(added, tuple)
        node = make_node(
            "observe",
            watch,
            self.node(value).origin if old is None else old.origin,
            x=NodeRef(value),
            states=(),
            observer=spec_to_arg(spec),
            intent=(*told, *added),
        )
        made = state_weights(watch, spec, state)
        if old is not None:
            self.drops += [path for path in old.weights() if path not in made]
        self.weights.update(made)
        self.nodes[watch] = with_state(node, spec)

    def _untell(self, names: tuple[NodeId, ...]) -> None:
        """Take what was said of the linears out of every observer."""
        gone = set(names)
        for listed in self.seen.of.values():
            for observer in listed:
                if not any(gone & set(intent.nodes) for intent in observer.intents):
                    continue
                self._tell_rest(observer, gone)

    def _tell_rest(self, observer: Observer, gone: set[NodeId]) -> None:
        node = self.node(observer.node)
        held = node.attrs.get("intent")
        kept: list[object] = []
        for item in held if isinstance(held, tuple) else ():
            assert isinstance(item, tuple)
            scheme, rule, ids = item
            assert isinstance(ids, tuple)
            rest = tuple(name for name in ids if name not in gone)
            if rest:
                kept.append((scheme, rule, rest))
        self.nodes[node.id] = with_attr(node, "intent", tuple(kept) if kept else None)  # type: ignore[arg-type]


def _levelled(state: State, factors: torch.Tensor | None) -> State:
    """The range of x / s: rounding is monotone, so it is that of the rounded extremes."""
    assert factors is not None
    assert state.channel_low is not None
    assert state.channel_high is not None
    inverse = 1.0 / factors
    low = (state.channel_low.to(torch.float32) * inverse).min().to(torch.float64) + 0.0
    high = (state.channel_high.to(torch.float32) * inverse).max().to(torch.float64) + 0.0
    return State(state.count, low, high)


_Choose: TypeAlias = Callable[[_Group, torch.Tensor], _Weighed]

_SMOOTH = _Way(NAME, frozenset(("linear",)), _choose, counts=True, note="smoothed into")
_EQUALIZE = _Way(
    RuleName("equalize_inputs"),
    frozenset(("linear", "conv1d", "conv2d", "conv3d")),
    _choose_equal,
    counts=False,
    note="equalized against",
)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
