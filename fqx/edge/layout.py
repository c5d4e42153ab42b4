"""Where the memory format of a value comes from: the layout outputs have in the float model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fqx.ir.arg import NodeRef, WeightRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.ir.weight import Layout

_REBUILT = frozenset({"reshape", "flatten", "unflatten", "linear", "full", "matmul", "bmm"})
_OPAQUE = frozenset({"permute", "leaf", "expand", "unbind", "chunk", "split", "getitem"})


@dataclass(frozen=True, slots=True)
class Layouts:
    """For each node the input whose layout it has, "" if contiguous, None if unknown."""

    sources: dict[NodeId, str | None]

    def source(self, name: NodeId) -> str | None:
        """The name of the input whose memory format the float model's value has."""
        return self.sources.get(name)


def layouts(graph: Graph) -> Layouts:
    """Follow memory formats from the inputs; convolutions, pools and arithmetic pass them on."""
    found: dict[NodeId, str | None] = {}
    names = {item.node: item.name for item in graph.signature.inputs if item.node is not None}
    for node in graph:
        found[node.id] = names.get(node.id) if node.op == "input" else _of(graph, node, found)
    return Layouts(found)


def _of(graph: Graph, node: Node, found: dict[NodeId, str | None]) -> str | None:
    if node.op in _OPAQUE or "type" in node.attrs:
        return None
    if node.op in _REBUILT:
        return ""
    if node.op == "contiguous":
        return "" if node.attrs["memory_format"] == "contiguous" else None
    if any(_is_channels_last(graph, arg) for arg in node.args):
        return None
    sources = [found.get(arg.id) for arg in _values(node) if isinstance(arg, NodeRef)]
    told = {source for source in sources if source != ""}
    return "" if not told else told.pop() if len(told) == 1 else None


def _values(node: Node) -> tuple[object, ...]:
    first = node.args[0] if node.args else None
    joined = first if isinstance(first, tuple) else (first,)
    pair = node.args[1:2] if node.op.rpartition(".")[2] in ("add", "sub", "mul", "div") else ()
    return (*joined, *pair)


def _is_channels_last(graph: Graph, arg: object) -> bool:
    if not isinstance(arg, WeightRef):
        return False
    weight = graph.weights.get(graph.ties.get(arg.path) or arg.path)
    return weight is not None and weight.layout is not Layout.CONTIGUOUS


def as_laid_out(value: Tensor, model: Tensor | None) -> Tensor:
    """`value` contiguous if `model` is (or there is none), else as it is."""
    if model is None or model.is_contiguous():
        return value.contiguous()
    if model.dim() == value.dim() == 4 and model.is_contiguous(memory_format=torch.channels_last):
        return value.contiguous(memory_format=torch.channels_last)
    return value
