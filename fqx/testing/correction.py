"""The laws of corrected biases, on one quantized program before and after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from fqx.ir.arg import NodeRef, WeightRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.judge.evaluate import values
from fqx.ops.catalogue import operand, with_operand
from fqx.testing.laws import Law

__all__ = ["CORRECTION_LAWS", "Correction"]


@dataclass(frozen=True, slots=True)
class Correction:
    """A float program, the quantized one before and after its correction, and the one batch."""

    reference: Graph
    before: Graph
    after: Graph
    inputs: tuple[Tensor, ...]


def _layers(graph: Graph) -> Iterator[Node]:
    for node in graph:
        weighted = node.op == "linear" or node.op.startswith("conv")
        weight = operand(node, "weight") if weighted else None
        reader = graph[weight.id] if isinstance(weight, NodeRef) else None
        if reader is not None and (reader.op == "dequantize" or _halves(reader, node)):
            yield node


def _halves(reader: Node, layer: Node) -> bool:
    """Whether a weight of half precision is read as float for this very layer."""
    return reader.op == "to" and reader.origin.parents == (layer.id,)


def _centred(subject: Correction) -> str | None:
    graphs = (subject.reference, subject.before, subject.after)
    truth, old, new = (values(graph, subject.inputs, {}).unwrap() for graph in graphs)
    for node in _layers(subject.after):
        if isinstance(operand(node, "bias"), NodeRef):
            continue
        was, now = (_off(node, made[node.id], truth[node.id]) for made in (old, new))
        allowed = _rounding(subject.after, node, new)
        # a channel's own error may stay; no channel's may grow beyond what float32 rounds
        worst = float((now - was).max()) if now.numel() else 0.0
        if worst > allowed:
            return f"a channel of {node.id} is on average {worst} further off, {allowed} rounding"
        if float(now.max()) > allowed:
            return f"a channel of {node.id} is on average {float(now.max())} off after all"
    return None


def _off(node: Node, made: object, truth: object) -> Tensor:
    """The mean error of every channel, float64."""
    assert isinstance(made, Tensor)
    assert isinstance(truth, Tensor)
    axis = made.dim() - 1 if node.op == "linear" else 1
    error = (made.double() - truth.double()).movedim(axis, 0)
    return error.flatten(1).mean(1).abs() if error.dim() > 1 else error.abs()


def _rounding(graph: Graph, node: Node, known: dict[NodeId, object]) -> float:
    """What k products and a bias may round by, in float32 and in any order.

    Each of k + 1 sums rounds by half a unit in the last place of at most k |x| |w| + |b|; that is
    granted twice, as the sums before and behind the correction round apart.
    """
    x, weight = operand(node, "x"), operand(node, "weight")
    assert isinstance(x, NodeRef)
    assert isinstance(weight, NodeRef)
    data, held = known[x.id], known[weight.id]
    assert isinstance(data, Tensor)
    assert isinstance(held, Tensor)
    count = held.numel() // held.shape[1 if "transpose" in node.op else 0]
    peak = float(data.abs().max()) * float(held.abs().max()) * count
    bias = operand(node, "bias")
    if isinstance(bias, WeightRef):
        tensor = graph.weights[graph.ties.get(bias.path) or bias.path].payload
        assert isinstance(tensor, Tensor)
        peak += float(tensor.abs().max())
    return (count + 1) * 2.0**-23 * peak


def _biases_only(subject: Correction) -> str | None:
    """Beside the biases of layers the program is the old one, its old weights included."""
    layers = {node.id for node in _layers(subject.after)}
    if tuple(subject.before.order) != tuple(subject.after.order):
        return "nodes came, went or moved"
    for old in subject.before:
        new = subject.after[old.id]
        if old.id in layers:
            new = replace(with_operand(new, "bias", operand(old, "bias")), origin=old.origin)
        if new != old:
            return f"{old.id} was {old} and is {new}"
    biases = {
        path
        for graph in (subject.before, subject.after)
        for node in _layers(graph)
        if isinstance(bias := operand(node, "bias"), WeightRef)
        for path in (graph.ties.get(bias.path) or bias.path,)
    }
    for path, weight in subject.before.weights.items():
        if path not in biases and subject.after.weights.get(path) != weight:
            return f"{path} changed, which is no layer's bias"
    return None


CORRECTION_LAWS: tuple[Law[Correction], ...] = (
    Law(
        "centres_errors",
        "no channel of a corrected layer is off on average, beyond rounding",
        _centred,
    ),
    Law("changes_biases_only", "a correction changes biases of layers, nothing else", _biases_only),
)
"""Laws of `correct_bias`, on the batch it measured."""
