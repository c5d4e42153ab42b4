"""Names of captured nodes: a pure function of the list of calls and their module scopes.

A call of a module without children that emitted one node gives it the module's path; any other
node is `path:op`, numbered where one scope has several. `@k` is the rank of a module's call among
those that emitted nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fqx.edge.capture_model import Names
from fqx.ir.arg import Arg, NodeRef, Ref, map_refs
from fqx.ir.names import NodeId, Path
from fqx.ir.node import Node, Origin


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call stands: canonical module path, which call of it, and the user's line.

    `raw` tells calls of one module apart as the tracer did; `written` marks a node that
    functionalization added.
    """

    path: str = ""
    raw: tuple[str, int] = ("", 0)
    source: str | None = None
    note: str = ""
    written: bool = False


def escaped(path: str) -> str:
    """A module path without the characters that separate the parts of an id."""
    return path.replace("%", "%25").replace(":", "%3A").replace("@", "%40")


def input_id(name: str) -> NodeId:
    """Id of an input node."""
    return NodeId("@" + escaped(name))


def name_nodes(
    nodes: Sequence[Node], places: Mapping[NodeId, Place], names: Names
) -> tuple[tuple[Node, ...], Mapping[NodeId, NodeId]]:
    """The nodes under their final ids with their origins, and the new name of each old one.

    Nodes without a place (inputs and their sizes) have their final ids already.
    """
    ranks = _ranks(nodes, places)
    counts: dict[tuple[str, int], int] = {}
    for node in nodes:
        if node.id in places and not places[node.id].written:
            key = _call(places[node.id], ranks)
            counts[key] = counts.get(key, 0) + 1
    renamed: dict[NodeId, NodeId] = {}
    used: dict[str, int] = {}
    for node in nodes:
        renamed[node.id] = _id(node, places, ranks, counts, used, names)
    final = tuple(_renamed(node, renamed, places, ranks, names) for node in nodes)
    return final, renamed


def _ranks(
    nodes: Sequence[Node], places: Mapping[NodeId, Place]
) -> dict[tuple[str, tuple[str, int]], int]:
    ranks: dict[tuple[str, tuple[str, int]], int] = {}
    seen: dict[str, int] = {}
    for node in nodes:
        place = places.get(node.id)
        if place is None or (place.path, place.raw) in ranks:
            continue
        ranks[place.path, place.raw] = seen.get(place.path, 0)
        seen[place.path] = ranks[place.path, place.raw] + 1
    return ranks


def _call(place: Place, ranks: Mapping[tuple[str, tuple[str, int]], int]) -> tuple[str, int]:
    return place.path, ranks[place.path, place.raw]


def _id(
    node: Node,
    places: Mapping[NodeId, Place],
    ranks: Mapping[tuple[str, tuple[str, int]], int],
    counts: Mapping[tuple[str, int], int],
    used: dict[str, int],
    names: Names,
) -> NodeId:
    place = places.get(node.id)
    if place is None:
        return node.id
    path, rank = _call(place, ranks)
    stem = escaped(path) + (f"@{rank}" if rank else "")
    alone = path and path in names.childless and counts.get((path, rank)) == 1
    if alone and not place.written and node.op != "leaf":
        return NodeId(stem)
    name = f"{stem}:{_short(node.op)}"
    count = used.get(name, 0)
    used[name] = count + 1
    return NodeId(f"{name}.{count}" if count else name)


def _short(op: str) -> str:
    """`cumprod` for the foreign `aten.cumprod.default`."""
    parts = op.split(".")
    return parts[1] if len(parts) == 3 else op


def _renamed(
    node: Node,
    renamed: Mapping[NodeId, NodeId],
    places: Mapping[NodeId, Place],
    ranks: Mapping[tuple[str, tuple[str, int]], int],
    names: Names,
) -> Node:
    def change(ref: Ref) -> Arg:
        return NodeRef(renamed[ref.id]) if isinstance(ref, NodeRef) else ref

    args = tuple(map_refs(arg, change) for arg in node.args)
    place = places.get(node.id)
    if place is None:
        return replace(node, args=args)
    path, rank = _call(place, ranks)
    scope = names.scope(path) or ((Path(path), ""),)
    origin = Origin(scope, rank, place.source, (), place.note)
    return Node(renamed[node.id], node.op, args, node.attrs, origin)
