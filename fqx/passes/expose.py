"""`expose`: the program takes and gives integers; quantizing is left to whoever stands around it.

    x -> quantize -> dequantize -> conv2d        x -> dequantize -> conv2d
    conv2d -> quantize -> dequantize -> return   conv2d -> quantize -> return

What went is not lost: the signature keeps scale, zero point and range of every such border.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from fqx.ir.arg import Arg, DType, Json, NodeRef, Ref, encode_arg, map_refs
from fqx.ir.compare import edits_between
from fqx.ir.diff import rewritten
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import OUTPUT, Graph, Use, users
from fqx.ir.names import NodeId, RuleName, Stage
from fqx.ir.node import Node
from fqx.ir.signature import Border, Input, TensorType, borders_to_arg, map_leaves
from fqx.ir.tree import leaf_names
from fqx.kit.frozen import FrozenMap, row
from fqx.kit.result import Failure, Result, Success, gather
from fqx.passes.pipeline import Pass, Rewrite

NAME = RuleName("expose")

Place: TypeAlias = int | str
"""An input or output by its index or by its name."""


@dataclass(frozen=True, slots=True)
class Borders:
    """What expose did: every input and output that is integers now."""

    items: tuple[Border, ...]

    kind = "borders"

    def to_json(self) -> Json:
        """The borders as plain data."""
        return {"borders": encode_arg(borders_to_arg(self.items))}

    def __repr__(self) -> str:
        lines = [f"Borders: {len(self.items)}"]
        lines += [
            f"  {item.side} {item.name}: {item.dtype.value} {item.qmin}..{item.qmax}, "
            f"scale {item.scale}, zero point {item.zero_point}"
            for item in self.items
        ]
        return "\n".join(lines)


def borders(graph: Graph) -> tuple[Border, ...]:
    """The inputs and outputs of the program that are integers, inputs first."""
    return graph.signature.borders


def expose(inputs: Sequence[Place] = (), outputs: Sequence[Place] = ()) -> Pass:
    """Moves the quantize of these inputs and the dequantize of these outputs out of the program.

    An input is named as in the signature (`x`, `d.y.0`) or by its index there; an output by its
    place in the returned value (`logits`, `0`), `output` if that is no container, or by its index
    among the leaves. The program then takes and gives plain integers, and between `quantize` and
    `dequantize` of its `borders` it computes bit for bit what it did.

    Takes and gives QUANTIZED graphs; its evidence is `Borders`. Faults: NO_BORDER for a
    place that does not exist, an input that is not quantized, has several quantizers or is read as
    float too, and an output that is no dequantize of integers under one scale.
    """
    asked_in, asked_out = tuple(inputs), tuple(outputs)
    return Pass(
        "expose",
        FrozenMap({"inputs": asked_in, "outputs": asked_out}),
        frozenset({Stage.QUANTIZED}),
        None,
        lambda graph: _expose(graph, asked_in, asked_out),
    )


@dataclass(frozen=True, slots=True)
class _Gate:
    """A border and the node that goes: an input's quantize, or an output's dequantize."""

    border: Border
    gone: tuple[NodeId, ...]
    stands: NodeId


def _expose(
    graph: Graph, inputs: tuple[Place, ...], outputs: tuple[Place, ...]
) -> Result[Rewrite, Fault]:
    read_by, types = users(graph), graph.signature.inputs
    in_names = tuple(item.name for item in types)
    out_names = tuple(name or "output" for name in leaf_names(graph.signature.output, ""))
    entries = _indices("input", inputs, in_names).bind(
        lambda found: gather(_entry(graph, read_by, at, types[at]) for at in found)
    )
    exits = _indices("output", outputs, out_names).bind(
        lambda found: gather(_exit(graph, at, out_names[at]) for at in found)
    )
    return entries.bind(
        lambda entered: exits.bind(lambda left: _rewritten(graph, read_by, entered, left))
    )


def _indices(
    side: str, places: Iterable[Place], names: Sequence[str]
) -> Result[tuple[int, ...], Fault]:
    return gather(_index(side, place, names) for place in places).map(
        lambda found: tuple(sorted(set(found)))
    )


def _index(side: str, place: Place, names: Sequence[str]) -> Result[int, Fault]:
    if isinstance(place, int) and 0 <= place < len(names):
        return Success(place)
    if isinstance(place, str) and place in names:
        return Success(names.index(place))
    listed = ", ".join(f"{index} {name}" for index, name in enumerate(names)) or "none"
    return Failure(
        Fault(
            FaultKind.NO_BORDER,
            f"there is no {side} {place!r}",
            f"the {side}s of this program are {listed}",
        )
    )


# Inputs.


def _entry(
    graph: Graph, read_by: Mapping[NodeId, tuple[Use, ...]], at: int, item: Input
) -> Result[_Gate, Fault]:
    """The quantizers of an input, all of one kind."""
    if any(held.side == "input" and held.index == at for held in graph.signature.borders):
        return Failure(_refused(f"input {item.name} is integers already", item.node))
    if item.node is None or not isinstance(item.type, TensorType):
        return Failure(_refused(f"input {item.name} is no tensor", item.node))
    uses = read_by[item.node]
    readers = [graph[use.user] for use in uses if use.user != OUTPUT]
    quantizers = [node for node in readers if node.op == "quantize"]
    if not quantizers:
        return Failure(_refused(f"input {item.name} is not quantized", item.node))
    other = next((node for node in readers if node.op != "quantize"), None)
    if other is not None or len(readers) < len(uses):
        who = "the output" if other is None else other.id
        return Failure(_refused(f"input {item.name} is read as float by {who} too", item.node))
    first = quantizers[0]
    if any(_grid(node) != _grid(first) for node in quantizers):
        listed = " and ".join(node.id for node in quantizers)
        return Failure(
            _refused(f"input {item.name} is quantized in different ways by {listed}", item.node)
        )
    gone, stands = tuple(node.id for node in quantizers), item.node
    return _border("input", at, item.name, first).map(lambda border: _Gate(border, gone, stands))


def _grid(node: Node) -> tuple[object, ...]:
    return (*node.args[1:], *node.attrs.items())


def _border(side: str, at: int, name: str, node: Node) -> Result[Border, Fault]:
    """The border a quantize is, if one literal scale and zero point say all of it."""
    _, scale, zero_point = node.args
    dtype, qmin, qmax = (node.attrs[key] for key in ("dtype", "qmin", "qmax"))
    if (
        isinstance(scale, float)
        and isinstance(zero_point, int)
        and isinstance(dtype, DType)
        and isinstance(qmin, int)
        and isinstance(qmax, int)
        and node.attrs["axis"] is None
    ):
        return Success(Border(side, at, name, dtype, scale, zero_point, qmin, qmax))
    return Failure(_refused(f"{side} {name} has no one scale known before the call", node.id))


# Outputs.


def _exit(graph: Graph, at: int, name: str) -> Result[_Gate, Fault]:
    """The quantize in front of an output's dequantize."""
    if any(held.side == "output" and held.index == at for held in graph.signature.borders):
        return Failure(_refused(f"output {name} is integers already", None))
    leaf = graph.outputs[at]
    node = graph.nodes.get(leaf.id) if isinstance(leaf, NodeRef) else None
    if node is None or node.op != "dequantize":
        what = "a constant" if node is None else f"the result of {node.op}"
        return Failure(
            _refused(f"output {name} is {what}, not integers", node.id if node else None)
        )
    held = node.args[0]
    maker = graph.nodes.get(held.id) if isinstance(held, NodeRef) else None
    if maker is None or maker.op != "quantize" or maker.args[1:] != node.args[1:]:
        return Failure(_refused(f"output {name} is not what a quantize made", node.id))
    return _border("output", at, name, maker).map(
        lambda border: _Gate(border, (node.id,), maker.id)
    )


def _refused(reason: str, at: NodeId | None) -> Fault:
    return Fault(
        FaultKind.NO_BORDER,
        reason,
        "leave it float, or let the recipe quantize what reads it in one way, and what makes it "
        "with integers_out",
        at=at,
    )


# The new graph.


def _rewritten(
    graph: Graph,
    read_by: Mapping[NodeId, tuple[Use, ...]],
    entries: tuple[_Gate, ...],
    exits: tuple[_Gate, ...],
) -> Result[Rewrite, Fault]:
    if not entries and not exits:
        return rewritten(graph, ()).map(lambda made: Rewrite(made.graph, made.diff, Borders(())))
    stands = {name: gate.stands for gate in entries for name in gate.gone}
    leaving = {gate.border.index: gate.stands for gate in exits}

    def inside(ref: Ref) -> Arg:
        return NodeRef(stands.get(ref.id, ref.id)) if isinstance(ref, NodeRef) else ref

    def outward(index: int, leaf: Arg) -> Arg:
        return map_refs(NodeRef(leaving[index]) if index in leaving else leaf, inside)

    dropped = {*stands, *_unread(read_by, exits)}
    nodes = {node.id: node.map_refs(inside) for node in graph if node.id not in dropped}
    signature = graph.signature
    inputs = list(signature.inputs)
    for gate in entries:
        inputs[gate.border.index] = _integer(inputs[gate.border.index], gate.border.dtype)
    new = tuple(gate.border for gate in (*entries, *exits))
    held = tuple(sorted((*signature.borders, *new), key=lambda item: (item.side, item.index)))
    made = replace(
        graph,
        nodes=graph.nodes.edit(nodes, dropped),
        order=row(name for name in graph.order if name not in dropped),
        signature=replace(
            signature,
            inputs=tuple(inputs),
            output=map_leaves(signature.output, outward),
            borders=held,
        ),
        updates=graph.updates.map(lambda ref: NodeRef(stands.get(ref.id, ref.id))),
    )
    edits = edits_between(graph, made, lambda _: NAME)
    return rewritten(graph, edits).map(lambda done: Rewrite(done.graph, done.diff, Borders(new)))


def _integer(item: Input, dtype: DType) -> Input:
    assert isinstance(item.type, TensorType)
    return replace(item, type=replace(item.type, dtype=dtype))


def _unread(read_by: Mapping[NodeId, tuple[Use, ...]], exits: Iterable[_Gate]) -> Iterable[NodeId]:
    """The dequantizes of outputs that nothing reads any more."""
    left = {(name, gate.border.index) for gate in exits for name in gate.gone}
    for gate in exits:
        for name in gate.gone:
            if all(use.user == OUTPUT and (name, use.at[0]) in left for use in read_by[name]):
                yield name
