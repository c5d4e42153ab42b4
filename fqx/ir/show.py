"""Graphs as programs one can read, and read back: `read(show(graph)) == graph`.

    graph float
    dim batch = 1..
    input x = @x of float32[batch, 1, 8, 8]
    args (0,)
    kwargs {}

    @x = input()
    conv = conv2d(@x, $conv.weight, None; dilation=(1, 1), groups=1, padding=(1, 1), stride=(1, 1))
    return conv

    weight conv.weight = float32[16, 1, 3, 3] parameter grad sha256:…

What stands behind a `#` is a remark: types and source lines, where they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from fqx.ir.diff import Diff
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.ir.signature import Input, Signature, Type, borders_to_arg
from fqx.ir.text import (
    WIDTH,
    show_arg,
    show_edit,
    show_name,
    show_node,
    show_tree,
    show_type,
    show_weight,
    wrap,
)

__all__ = ["show", "show_diff", "show_edit", "show_fault", "show_node"]


def show(graph: Graph, types: Mapping[NodeId, Type] | None = None, sources: bool = False) -> str:
    """The whole graph as a program, weights by fingerprint; remarks give types and source lines.

    Everything the digest covers is in the text; payloads and origins are not.
    """
    return "\n".join(_lines(graph, types or {}, sources)) + "\n"


def show_diff(diff: Diff) -> str:
    """A diff as a change of the program: one edit a line, with the rule that made it."""
    return str(diff)


def show_fault(fault: Fault, graph: Graph, around: int = 3) -> str:
    """A fault with the lines of the program around its place."""
    if fault.at not in graph:
        return str(fault)
    order = list(graph.order)
    at = order.index(NodeId(str(fault.at)))
    lines: list[str] = []
    for name in order[max(0, at - around) : at + around + 1]:
        text = show_node(graph[name])
        mark = ">" if name == fault.at else " "
        lines.append(f"{mark} {text if len(text) <= WIDTH - 2 else text[: WIDTH - 5] + '...'}")
        lines += [f"  {'^' * min(len(text), WIDTH - 2)}"] if name == fault.at else []
    return "\n".join((*lines, str(fault)))


def _lines(graph: Graph, types: Mapping[NodeId, Type], sources: bool) -> Iterator[str]:
    yield f"graph {graph.stage.value}"
    yield from _signature(graph.signature)
    yield ""
    for node in graph:
        yield _remarked(wrap(show_node(node)), _remark(node, types, sources))
    for path, ref in graph.updates.items():
        yield f"update {show_name(path)} = {show_arg(ref)}"
    yield wrap(f"return {show_tree(graph.signature.output)}")
    if len(graph.weights) or len(graph.leaves) or len(graph.blocks):
        yield ""
    yield from _stores(graph)


def _signature(signature: Signature) -> Iterator[str]:
    for name, (least, most) in signature.dims.items():
        yield f"dim {show_name(name)} = {least}..{'' if most is None else most}"
    for item in signature.inputs:
        yield wrap(f"input {show_name(item.name)} = {_input(item)} of {show_type(item.type)}")
    yield wrap(f"args {show_tree(signature.args)}")
    yield wrap(f"kwargs {show_tree(signature.kwargs)}")
    if signature.params:
        yield wrap(f"params {show_arg(signature.params)}")
    if signature.borders:
        yield wrap(f"borders {show_arg(borders_to_arg(signature.borders))}")


def _input(item: Input) -> str:
    constant = f"constant {show_arg(item.constant)}"
    if item.node is None:
        return constant
    name = show_name(item.node)
    return name if item.constant is None else f"{name} {constant}"


def _stores(graph: Graph) -> Iterator[str]:
    for path, weight in graph.weights.items():
        text = f"weight {show_name(path)} = {show_weight(weight)}"
        head, _, mark = text.rpartition(" ")
        yield text if len(text) <= WIDTH else f"{head}\n    {mark}"
    for path, first in graph.ties.items():
        yield f"tie {show_name(path)} = {show_name(first)}"
    for path, leaf in graph.leaves.items():
        words = (leaf.type, leaf.fingerprint, leaf.reason)
        yield f"leaf {show_name(path)} = {' '.join(json.dumps(word) for word in words)}"
    for name, block in graph.blocks.items():
        inner = "".join(f"    {line}\n" if line else "\n" for line in show(block).splitlines())
        yield f"block {show_name(name)} {{\n{inner}}}"


def _remark(node: Node, types: Mapping[NodeId, Type], sources: bool) -> str:
    kind = types.get(node.id)
    source = node.origin.source if sources else None
    parts = (show_type(kind) if kind is not None else "", source or "")
    return "  ".join(part for part in parts if part).replace("\n", " ")


def _remarked(text: str, remark: str) -> str:
    if not remark:
        return text
    *lines, last = text.split("\n")
    column = 56
    return "\n".join((*lines, f"{last.ljust(column)}  # {remark}"))
