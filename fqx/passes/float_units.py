"""Units that go back to float: on the values of their quantized weights, unrounded in between.

    conv -> quantize -> dequantize -> conv          conv -> clamp -> conv

Where both sides of a value run in float it is not rounded any more but clamped to the range its
integers had: `fold` may have taken out a relu that the range implied, so the clamp is what keeps
the meaning. It moves the value by at most half a quantum. A value that several units read in float
is clamped once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from fqx.ir.arg import Arg, NodeRef, Ref, WeightRef, map_refs
from fqx.ir.fault import Fault
from fqx.ir.graph import OUTPUT, Graph, Use, fresh_id, users, weight_users
from fqx.ir.names import NodeId, OpName, Path
from fqx.ir.node import Node
from fqx.ir.signature import Tree
from fqx.ir.weight import Weight
from fqx.kit.frozen import FrozenMap, Table, row
from fqx.kit.result import Result, Success, gather
from fqx.num.affine import dequantize
from fqx.num.tensors import tensor_of, weight_of
from fqx.passes.choose import Crossing, Decision
from fqx.policy.units import Form


def floated(graph: Graph, decision: Decision, taken: dict[NodeId, None]) -> Result[Graph, Fault]:
    """The program in which the units decided to be float read and give floats.

    `taken` are the names in use, to which those of new nodes are added. Fails with MISSING_PAYLOAD
    where a weight is not loaded.
    """
    moved = {name for item in decision.rulings if item.floating for name in item.offer.nodes}
    if not moved:
        return Success(graph)
    work = _Work(graph, decision, taken, moved)
    for crossing in decision.crossings:
        work.cross(crossing)
    return work.weights().map(lambda made: work.graph_with(made))


@dataclass(frozen=True, slots=True)
class _Stored:
    """A quantized weight that becomes float: its dequantize, its path, and the new path."""

    node: Node
    path: Path
    place: Path


@dataclass(slots=True)
class _Work:
    """A graph while values and weights go back to float.

    `reads` says what a reader reads instead of a dequantize, `behind` what comes after a node.
    """

    graph: Graph
    decision: Decision
    taken: dict[NodeId, None]
    moved: set[NodeId]
    users: dict[NodeId, tuple[Use, ...]] = field(init=False)
    paths: dict[Path, tuple[Use, ...]] = field(init=False)
    home: set[NodeId] = field(init=False)
    bytes: set[NodeId] = field(init=False)
    movers: set[NodeId] = field(init=False)
    reads: dict[tuple[NodeId, NodeId], Ref] = field(default_factory=dict)
    behind: dict[NodeId, list[Node]] = field(default_factory=dict)
    stored: list[_Stored] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.users, self.paths = users(self.graph), weight_users(self.graph)
        rulings = self.decision.rulings
        self.home = {name for item in rulings for name in item.offer.nodes}
        self.movers = {item.offer.anchor for item in rulings if item.offer.mover}
        self.bytes = {
            item.offer.nodes[-1]
            for item in rulings
            if not item.floating and (item.offer.mover or item.offer.form is Form.INT8)
        }

    # Values.

    def cross(self, crossing: Crossing) -> None:
        """Give the float readers of a value what they read now."""
        maker, quantizer = crossing.maker, crossing.quantizer
        floats = [
            (name, read)
            for name, read in crossing.readers
            if read != quantizer and (name in self.moved or name not in self.home)
        ]
        if maker != quantizer and maker not in self.bytes and floats:
            plain = maker if maker in self.movers else self._clamped(crossing)
            self.reads.update(dict.fromkeys(floats, NodeRef(plain)))
        if crossing.reorders:
            self._reorder(floats)

    def _clamped(self, crossing: Crossing) -> NodeId:
        """The value held to the range of its integers, in a node behind its maker."""
        quantizer = self.graph[crossing.quantizer]
        ends = (_value(quantizer, "qmin"), _value(quantizer, "qmax"))
        made = self._name(crossing.maker, "clamp")
        parents = (crossing.maker, quantizer.id)
        origin = replace(quantizer.origin, parents=parents)
        args: tuple[Arg, ...] = (NodeRef(crossing.maker), *ends)
        node = Node(made, OpName("clamp"), args, FrozenMap(), origin)
        self.behind.setdefault(crossing.maker, []).append(node)
        return made

    def _reorder(self, floats: list[tuple[NodeId, NodeId]]) -> None:
        """Hand convolutions a channels-last value, made once."""
        made: dict[Ref, NodeId] = {}
        for reader in floats:
            name, read = reader
            if name in self.moved and self.graph[name].op == "conv2d":
                held = self.reads.get(reader, NodeRef(read))
                assert isinstance(held, NodeRef)
                if held not in made:
                    made[held] = self._name(held.id, "channels_last")
                    origin = replace(self.graph[read].origin, parents=(held.id,))
                    op = OpName("plain.channels_last")
                    node = Node(made[held], op, (held,), FrozenMap(), origin)
                    self.behind.setdefault(held.id, []).append(node)
                self.reads[reader] = NodeRef(made[held])

    def _name(self, parent: NodeId, role: str) -> NodeId:
        name = fresh_id(self.taken, parent, role)
        self.taken[name] = None
        return name

    # Weights.

    def weights(self) -> Result[dict[Path, Weight], Fault]:
        """The float weights of the units, by their new paths."""
        places: dict[tuple[Arg, ...], Path] = {}
        for item in self.decision.rulings:
            anchor = self.graph[item.offer.anchor]
            arg = anchor.args[1] if len(anchor.args) > 1 and item.floating else None
            node = self.graph[arg.id] if isinstance(arg, NodeRef) else None
            stored = node.args[0] if node is not None and node.op == "dequantize" else None
            if node is None or not isinstance(stored, WeightRef):
                continue
            # call sites of one module read one weight
            key = (*node.args, node.attrs["axis"])
            if key not in places:
                alone = self._is_alone(stored.path, key)
                places[key] = stored.path if alone else self._path(stored.path, places.values())
                self.stored.append(_Stored(node, stored.path, places[key]))
            self.reads[anchor.id, node.id] = WeightRef(places[key])
        return gather(self._values(item) for item in self.stored).map(
            lambda made: {
                item.place: weight for item, weight in zip(self.stored, made, strict=True)
            }
        )

    def _is_alone(self, path: Path, key: tuple[Arg, ...]) -> bool:
        """Whether everybody who reads a weight reads it as these values, in float."""
        readers = [self.graph[use.user] for use in self.paths[path] if use.user in self.graph]
        if path in self.graph.ties.values() or len(readers) < len(self.paths[path]):
            return False
        return all(
            (*node.args, node.attrs.get("axis")) == key
            and all(use.user in self.moved for use in self.users[node.id])
            for node in readers
        )

    def _path(self, path: Path, made: Iterable[Path]) -> Path:
        """A free path for the values of a weight whose integers are still read."""
        taken = {*made, *self.graph.weights.keys(), *self.graph.ties.keys()}
        names = (f"{path}_float", *(f"{path}_float_{at}" for at in range(1, len(taken) + 1)))
        return next(place for name in names if (place := Path(name)) not in taken)

    def _values(self, item: _Stored) -> Result[Weight, Fault]:
        weight = self._weight(item.path)
        axis, scale = item.node.attrs["axis"], item.node.args[1]
        along = axis if isinstance(axis, int) else None
        factor = (
            tensor_of(self._weight(scale.path))
            if isinstance(scale, WeightRef)
            else Success(_number(scale))
        )

        def made(codes: torch.Tensor, held: torch.Tensor) -> Weight:
            values = dequantize(codes, held, 0, axis=along)
            return weight_of(values, weight.role, persistent=weight.persistent, share=True)

        return tensor_of(weight).bind(lambda codes: factor.map(lambda held: made(codes, held)))

    def _weight(self, path: Path) -> Weight:
        return self.graph.weights[self.graph.ties.get(path) or path]

    # The new graph.

    def graph_with(self, made: dict[Path, Weight]) -> Graph:
        """The program with these weights; the integers that nobody reads any more are gone."""
        graph = self.graph
        nodes = list(self._nodes())
        replaced = [item for item in self.stored if item.place == item.path]
        gone_paths = {item.path for item in replaced}
        scales = {item.node.args[1] for item in replaced}
        dropped = [scale.path for scale in scales if isinstance(scale, WeightRef)]
        dead = {use.user for path in gone_paths for use in self.paths[path]}
        nodes = [node for node in nodes if node.id not in dead]
        read = {path for node in nodes for path in node.weights()}
        gone = [path for path in dropped if path not in read and path not in graph.ties.values()]
        return replace(
            graph,
            nodes=Table({node.id: node for node in nodes}),
            order=row(node.id for node in nodes),
            weights=graph.weights.edit(made, gone),
            signature=replace(graph.signature, output=self._renewed(graph.signature.output)),
            updates=graph.updates.map(self._update),
        )

    def _nodes(self) -> Iterator[Node]:
        for node in self.graph:
            yield node.map_refs(partial(self._read, node.id))
            yield from self._tail(node.id)

    def _tail(self, name: NodeId) -> Iterator[Node]:
        for node in self.behind.get(name, ()):
            yield node
            yield from self._tail(node.id)

    def _read(self, name: NodeId, ref: Ref) -> Arg:
        return self.reads.get((name, ref.id), ref) if isinstance(ref, NodeRef) else ref

    def _renewed(self, tree: Tree) -> Tree:
        if tree.kind == "leaf":
            return replace(tree, leaf=map_refs(tree.leaf, lambda ref: self._read(OUTPUT, ref)))
        return replace(tree, items=tuple(self._renewed(item) for item in tree.items))

    def _update(self, ref: NodeRef) -> NodeRef:
        found = self._read(OUTPUT, ref)
        return found if isinstance(found, NodeRef) else ref


def _value(quantizer: Node, end: str) -> float:
    """What the least or greatest integer of a quantizer stands for."""
    _, scale, zero_point = quantizer.args
    code = quantizer.attrs[end]
    assert isinstance(scale, float)
    assert isinstance(zero_point, int)
    assert isinstance(code, int)
    return float(dequantize(_number(code), scale, zero_point))


def _number(arg: Arg) -> torch.Tensor:
    assert isinstance(arg, (int, float))
    return torch.tensor(arg)
