"""What the observers of a calibrated graph hold, read back from its nodes and weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.ir.weight import Role
from fqx.kit.frozen import row
from fqx.kit.result import Result, Success, gather
from fqx.num.observers import State, is_monoid, merge
from fqx.num.scheme import ObserverSpec, collected
from fqx.num.states import state_at
from fqx.passes.observe import Intent, intents_of
from fqx.policy.recipe import Choice


@dataclass(frozen=True, slots=True)
class Observer:
    """One observer: its node, the value it watches, what it collects and what it has seen."""

    node: NodeId
    value: NodeId
    spec: ObserverSpec
    state: State
    intents: tuple[Intent, ...]


@dataclass(frozen=True, slots=True)
class Observers:
    """The observers of a graph, by the value they watch."""

    of: Mapping[NodeId, tuple[Observer, ...]]

    def choices(self) -> dict[NodeId, Choice]:
        """What the recipe says of every node that some observer speaks of."""
        return {
            name: Choice(intent.scheme, intent.rule)
            for listed in self.of.values()
            for observer in listed
            for intent in observer.intents
            for name in intent.nodes
        }

    def find(self, value: NodeId, spec: ObserverSpec) -> Observer | None:
        """The observer of a value that serves the spec best: one that collects the same,
        else the first that knows the range of the whole."""
        listed = self.of.get(value, ())
        if len(listed) == 1:
            return listed[0]
        same = [o for o in listed if _of_the_whole(o.spec) == _of_the_whole(spec)]
        whole = [o for o in listed if o.spec.kind != "channel_minmax"]
        return next(iter((*same, *whole, *listed)), None)

    def channels(self, value: NodeId) -> Observer | None:
        """The observer that knows the range of each channel of a value."""
        return next(
            (o for o in self.of.get(value, ()) if o.state.channel_low is not None),
            None,
        )


def observers_in(graph: Graph) -> Result[Observers, Fault]:
    """Every observer of the graph; BAD_RECIPE, MISSING_STATISTICS or MISSING_PAYLOAD if one
    cannot be read."""
    return gather(_read(graph, node) for node in graph if node.op == "observe").map(_by_value)


def without_observers(graph: Graph) -> Graph:
    """The graph without observers and statistics, its stage unchanged."""
    taps = [node.id for node in graph if node.op == "observe"]
    statistics = [path for path, held in graph.weights.items() if held.role is Role.STATISTIC]
    gone = frozenset(taps)
    return replace(
        graph,
        nodes=graph.nodes.edit({}, taps),
        order=row(name for name in graph.order if name not in gone),
        weights=graph.weights.edit({}, statistics),
    )


def joined(spec: ObserverSpec, states: Iterable[State]) -> Result[State, Fault]:
    """One state for values that share their qparams: their merge, or the hull of their ranges."""
    first, *rest = states
    made: Result[State, Fault] = Success(first)
    for state in rest:
        made = made.bind(lambda held, state=state: _join(spec, held, state))  # type: ignore[misc]
    return made


def _join(spec: ObserverSpec, one: State, two: State) -> Result[State, Fault]:
    both_count = (one.counts is None) == (two.counts is None)
    if is_monoid(spec) and both_count:
        return merge(spec, _whole(one), _whole(two))
    return Success(
        State(one.count + two.count, torch.minimum(one.low, two.low), one.high.maximum(two.high))
    )


def _whole(state: State) -> State:
    return replace(state, channel_low=None, channel_high=None)


def _of_the_whole(spec: ObserverSpec) -> tuple[object, ...]:
    """What decides the statistics an observer keeps of the tensor as a whole."""
    kind, _, *rest = collected(spec)
    return kind, *rest


def _by_value(listed: tuple[Observer, ...]) -> Observers:
    found: dict[NodeId, list[Observer]] = {}
    for observer in listed:
        found.setdefault(observer.value, []).append(observer)
    return Observers({name: tuple(observers) for name, observers in found.items()})


def _read(graph: Graph, node: Node) -> Result[Observer, Fault]:
    return state_at(graph, node.id).bind(
        lambda seen: intents_of(node).map(
            lambda intents: Observer(node.id, seen.value, seen.spec, seen.state, intents)
        )
    )


def is_seen(observer: Observer | None) -> bool:
    """Whether an observer is there and has seen something, or needs to see nothing."""
    return observer is not None and (observer.spec.kind == "fixed" or not observer.state.is_empty)
