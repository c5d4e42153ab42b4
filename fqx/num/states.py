"""Statistics in a graph: an observer's state is kept in weights behind its `observe` node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fqx.ir.arg import NodeRef, WeightRef
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.ir.node import Node
from fqx.ir.weight import Role, Weight
from fqx.kit.result import Failure, Result, Success, gather
from fqx.num.observers import State, empty, state_names, state_of
from fqx.num.scheme import ObserverSpec, spec_from_arg
from fqx.num.tensors import tensor_of, weight_of


@dataclass(frozen=True, slots=True)
class Observed:
    """An observer of a calibrated graph: which value it saw, how, and what."""

    observer: NodeId
    value: NodeId
    spec: ObserverSpec
    state: State


def observers_of(graph: Graph) -> Result[dict[NodeId, ObserverSpec], Fault]:
    """The spec of every `observe` node, in program order; BAD_RECIPE if one holds none."""
    nodes = [node for node in graph if node.op == "observe"]
    return gather(spec_of(node) for node in nodes).map(
        lambda specs: {node.id: spec for node, spec in zip(nodes, specs, strict=True)}
    )


def spec_of(node: Node) -> Result[ObserverSpec, Fault]:
    """The observer spec of an `observe` node."""
    return spec_from_arg(node.attrs["observer"]).alt(
        lambda fault: fault.located(node.id, node.origin.module, node.origin.source)
    )


def state_weights(node: NodeId, spec: ObserverSpec, state: State) -> dict[Path, Weight]:
    """The state as weights of role statistic, at `<observe node>.<name>`."""
    tensors = state.tensors()
    return {
        Path(f"{node}.{name}"): weight_of(tensors[name], Role.STATISTIC)
        for name in state_names(spec)
    }


def with_state(node: Node, spec: ObserverSpec) -> Node:
    """The `observe` node reading its state's weights."""
    names = state_names(spec)
    return node.with_args((node.args[0], *(WeightRef(Path(f"{node.id}.{name}")) for name in names)))


def state_at(graph: Graph, observer: NodeId) -> Result[Observed, Fault]:
    """What one `observe` node of a calibrated graph saw.

    Fails with MISSING_STATISTICS if the graph is not calibrated there, MISSING_PAYLOAD if the
    statistics are not loaded.
    """
    node = graph[observer]
    return (
        spec_of(node)
        .bind(lambda spec: _observed(graph, node, spec))
        .alt(lambda fault: fault.located(node.id, node.origin.module, node.origin.source))
    )


def statistics(graph: Graph) -> Result[Mapping[NodeId, tuple[Observed, ...]], Fault]:
    """Everything observed in a calibrated graph by the value it is about; faults as `state_at`."""
    nodes = [node.id for node in graph if node.op == "observe"]
    return gather(state_at(graph, name) for name in nodes).map(_by_value)


def _by_value(found: tuple[Observed, ...]) -> Mapping[NodeId, tuple[Observed, ...]]:
    table: dict[NodeId, tuple[Observed, ...]] = {}
    for one in found:
        table[one.value] = (*table.get(one.value, ()), one)
    return table


def _observed(graph: Graph, node: Node, spec: ObserverSpec) -> Result[Observed, Fault]:
    names = state_names(spec)
    refs = [ref for ref in node.args[1:] if isinstance(ref, WeightRef)]
    held = [graph.weights.get(ref.path) for ref in refs]
    weights = [weight for weight in held if weight is not None]
    if len(weights) != len(names):
        return Failure(
            Fault(
                FaultKind.MISSING_STATISTICS,
                "this observer has seen no data",
                "calibrate the graph before it is converted",
            )
        )
    value = node.args[0]
    at = value.id if isinstance(value, NodeRef) else node.id
    if not names:
        return Success(Observed(node.id, at, spec, empty(spec)))
    return gather(tensor_of(weight) for weight in weights).map(
        lambda tensors: Observed(
            node.id, at, spec, state_of(dict(zip(names, tensors, strict=True)))
        )
    )
