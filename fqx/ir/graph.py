"""The immutable program."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fqx.ir.arg import Arg, ArgPath, NodeRef, WeightRef, canonical, encode_arg, refs_in
from fqx.ir.names import BlockName, Digest, NodeId, Path, Stage
from fqx.ir.node import Node
from fqx.ir.signature import Signature, tree_leaves
from fqx.ir.weight import Leaf, Weight
from fqx.kit.frozen import Row, Table, row

FORMAT = 1
"""Version of the canonical encoding; part of every digest."""


class Use(NamedTuple):
    """An edge: the consumer and where in its args the value stands; the output is `OUTPUT`."""

    user: NodeId
    at: ArgPath


OUTPUT = NodeId("@output")
"""The consumer of values that leave the graph through the output tree or an update."""


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Nodes in program order, the weights they read, and what goes in and out.

    `ties` maps a second path of a weight to its first. `updates` maps a buffer to its value after
    the call. Equality is equality of digests.
    """

    nodes: Table[NodeId, Node]
    order: Row[NodeId]
    weights: Table[Path, Weight]
    ties: Table[Path, Path]
    signature: Signature
    updates: Table[Path, NodeRef]
    blocks: Table[BlockName, Graph]
    leaves: Table[Path, Leaf]
    stage: Stage
    _digest: list[Digest] = field(default_factory=list, init=False, repr=False)

    def __iter__(self) -> Iterator[Node]:
        """Nodes in program order."""
        return (self.nodes[name] for name in self.order)

    def __len__(self) -> int:
        return len(self.order)

    def __contains__(self, name: object) -> bool:
        return name in self.nodes

    def __getitem__(self, name: NodeId) -> Node:
        return self.nodes[name]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Graph) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical encoding: format, stage, signature, nodes, weights, leaves.

        Origins, payloads, file paths and clocks take no part. Computed once per graph, from node
        encodings that are computed once per node.
        """
        if not self._digest:
            self._digest.append(_digest(self))
        return self._digest[0]

    @property
    def outputs(self) -> tuple[Arg, ...]:
        """Leaves of the output tree, left to right."""
        return tree_leaves(self.signature.output)

    def __repr__(self) -> str:
        ops: dict[str, int] = {}
        for node in self:
            ops[node.op] = ops.get(node.op, 0) + 1
        top = sorted(ops.items(), key=lambda item: (-item[1], item[0]))[:6]
        more = f", {len(ops) - len(top)} more" if len(ops) > len(top) else ""
        inputs = ", ".join(item.name for item in self.signature.inputs)
        return "\n".join(
            (
                f"Graph {self.stage.value} {self.digest[:12]}",
                f"  inputs  {inputs}",
                f"  nodes   {len(self)}: " + ", ".join(f"{n} {op}" for op, n in top) + more,
                f"  weights {len(self.weights)}",
            )
        )

    def _repr_html_(self) -> str:
        rows = "".join(f"<div>{line}</div>" for line in repr(self).splitlines())
        return f"<pre>{rows}</pre>"


def _digest(graph: Graph) -> Digest:
    code = hashlib.sha256()
    head = canonical({"format": FORMAT, "stage": graph.stage.value})
    lines: list[str] = [head, graph.signature.code]
    lines += [graph.nodes[name].code for name in graph.order]
    lines += [f"weight {path!r} {weight.code}" for path, weight in graph.weights.items()]
    lines += [f"tie {path!r} {first!r}" for path, first in graph.ties.items()]
    lines += [f"update {path!r} {canonical(encode_arg(r))}" for path, r in graph.updates.items()]
    lines += [f"block {name!r} {block.digest}" for name, block in graph.blocks.items()]
    lines += [f"leaf {path!r} {canonical(leaf.to_json())}" for path, leaf in graph.leaves.items()]
    code.update("\n".join(lines).encode())
    return Digest(code.hexdigest())


def graph_of(
    nodes: Iterable[Node],
    weights: Mapping[Path, Weight],
    signature: Signature,
    *,
    ties: Mapping[Path, Path] | None = None,
    updates: Mapping[Path, NodeRef] | None = None,
    blocks: Mapping[BlockName, Graph] | None = None,
    leaves: Mapping[Path, Leaf] | None = None,
    stage: Stage = Stage.FLOAT,
) -> Graph:
    """A graph of nodes in program order; `check` says whether it is well formed."""
    listed = tuple(nodes)
    return Graph(
        Table({node.id: node for node in listed}),
        row(node.id for node in listed),
        Table(weights),
        Table(ties or {}),
        signature,
        Table(updates or {}),
        Table(blocks or {}),
        Table(leaves or {}),
        stage,
    )


def users(graph: Graph) -> dict[NodeId, tuple[Use, ...]]:
    """Every use of every node in program order; uses by outputs and updates come last."""
    found: dict[NodeId, list[Use]] = {name: [] for name in graph.order}
    for node in graph:
        for at, ref in node.refs():
            if isinstance(ref, NodeRef) and ref.id in found:
                found[ref.id].append(Use(node.id, at))
    for index, leaf in enumerate(graph.outputs):
        for at, ref in refs_in(leaf, (index,)):
            if isinstance(ref, NodeRef) and ref.id in found:
                found[ref.id].append(Use(OUTPUT, at))
    for path, update in graph.updates.items():
        if update.id in found:
            found[update.id].append(Use(OUTPUT, (path,)))
    return {name: tuple(uses) for name, uses in found.items()}


def weight_users(graph: Graph) -> dict[Path, tuple[Use, ...]]:
    """Every use of every weight, in program order; ties are resolved to the first path."""
    found: dict[Path, list[Use]] = {path: [] for path in graph.weights}
    for node in graph:
        for at, ref in node.refs():
            if isinstance(ref, WeightRef):
                path = graph.ties.get(ref.path) or ref.path
                found.setdefault(path, []).append(Use(node.id, at))
    for index, leaf in enumerate(graph.outputs):
        for at, ref in refs_in(leaf, (index,)):
            if isinstance(ref, WeightRef):
                path = graph.ties.get(ref.path) or ref.path
                found.setdefault(path, []).append(Use(OUTPUT, at))
    return {path: tuple(uses) for path, uses in found.items()}


def fresh_id(
    taken: Mapping[NodeId, object] | Table[NodeId, Node], parent: NodeId, role: str
) -> NodeId:
    """A name for a node made by a pass: parent and role, numbered only where that is taken."""
    stem = f"{parent}:{role}"
    if stem not in taken:
        return NodeId(stem)
    index = 1
    while f"{stem}.{index}" in taken:
        index += 1
    return NodeId(f"{stem}.{index}")
