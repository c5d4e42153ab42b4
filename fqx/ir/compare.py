"""The edits that lead from one graph to another: one per thing that differs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import TypeVar

from fqx.ir.edit import (
    Added,
    BlockAt,
    Changed,
    Edit,
    Item,
    LeafAt,
    Moved,
    Removed,
    Staged,
    TieAt,
    UpdateAt,
    WeightAt,
)
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path, RuleName
from fqx.ir.node import Node
from fqx.kit.frozen import Table

_K = TypeVar("_K", bound=str)
_V = TypeVar("_V")


def edits_between(before: Graph, after: Graph, by: Callable[[Item], RuleName]) -> tuple[Edit, ...]:
    """Edits that make `after` of `before`, in program order; `by` says who made each.

    A node that keeps its id and place is kept or changed, one that stands elsewhere is moved; the
    weights a node reads are edited just before it. The time is n log n in the number of nodes.
    """
    weights = {
        _path(edit): edit for edit in _table_edits(before.weights, after.weights, WeightAt, by)
    }
    edits: list[Edit] = []
    for edit in _node_edits(before, after, by):
        for path in _weights_of(edit):
            if path in weights:
                edits.append(weights.pop(path))
        edits.append(edit)
    edits += weights.values()
    edits += _table_edits(before.ties, after.ties, TieAt, by)
    edits += _table_edits(before.leaves, after.leaves, LeafAt, by)
    edits += _table_edits(before.blocks, after.blocks, BlockAt, by)
    edits += _table_edits(before.updates, after.updates, UpdateAt, by)
    if before.signature is not after.signature and before.signature != after.signature:
        edits.append(Changed(before.signature, after.signature, by(after.signature)))
    if before.stage is not after.stage:
        edits.append(Staged(before.stage, after.stage, by(after.signature)))
    return tuple(edits)


def _table_edits(
    before: Table[_K, _V],
    after: Table[_K, _V],
    item: Callable[[_K, _V], Item],
    by: Callable[[Item], RuleName],
) -> Iterator[Added | Removed | Changed]:
    if before is after:
        return
    was, now = dict(before.items()), dict(after.items())
    for key in sorted({*was, *now}):
        old, new = was.get(key), now.get(key)
        if old is new:
            continue
        if old is None and new is not None:
            yield Added(made := item(key, new), by(made))
        elif old is not None and new is None:
            yield Removed(made := item(key, old), by(made))
        elif old is not None and new is not None and old != new:
            yield Changed(item(key, old), made := item(key, new), by(made))


def _path(edit: Added | Removed | Changed) -> Path:
    item = edit.new if isinstance(edit, Changed) else edit.item
    return item.path if isinstance(item, WeightAt) else Path("")


class _Line:
    """The nodes of a graph in order, as a list that can be cut and joined anywhere."""

    def __init__(self, order: Iterable[NodeId]) -> None:
        names: list[NodeId | None] = [None, *order, None]
        self.next: dict[NodeId | None, NodeId | None] = dict(pairwise(names))
        self.last: dict[NodeId | None, NodeId | None] = {two: one for one, two in pairwise(names)}
        self.next[None] = names[1]

    def cut(self, name: NodeId) -> NodeId | None:
        """Take the node out; gives the one it stood behind."""
        before, behind = self.last.pop(name), self.next.pop(name)
        self.next[before], self.last[behind] = behind, before
        return before

    def join(self, name: NodeId, after: NodeId | None) -> None:
        behind = self.next[after]
        self.next[after], self.last[name] = name, after
        self.next[name], self.last[behind] = behind, name


def _node_edits(before: Graph, after: Graph, by: Callable[[Item], RuleName]) -> Iterator[Edit]:
    """Walk the new order along the old one; what stands before the cursor is final."""
    line, steady = _Line(before.order), _steady(before, after)
    last: NodeId | None = None
    for name in after.order:
        new, old = after.nodes[name], before.nodes.get(name)
        stop = name if name in steady else None
        yield from _removals(line, last, stop, before, after, by)
        if old is None:
            line.join(name, last)
            yield Added(new, by(new), last)
        elif name not in steady:
            stood = line.cut(name)
            line.join(name, last)
            yield Moved(name, stood, last, by(new))
        if old is not None and old is not new and old != new:
            yield Changed(old, new, by(new))
        last = name
    yield from _removals(line, last, None, before, after, by)


def _removals(
    line: _Line,
    last: NodeId | None,
    stop: NodeId | None,
    before: Graph,
    after: Graph,
    by: Callable[[Item], RuleName],
) -> Iterator[Edit]:
    """Removed nodes behind `last`: all up to `stop`, or only the next ones where there is none.

    Nodes that move away later are stepped over.
    """
    cursor = last
    name = line.next[cursor]
    while name is not None and name != stop:
        if name not in after.nodes:
            line.cut(name)
            yield Removed(before.nodes[name], by(before.nodes[name]), cursor)
        elif stop is None:
            return
        else:
            cursor = name
        name = line.next[cursor]


def _steady(before: Graph, after: Graph) -> frozenset[NodeId]:
    """The largest set of nodes whose mutual order is the same in both graphs."""
    place = {name: index for index, name in enumerate(before.order)}
    names = [name for name in after.order if name in place]
    places = [place[name] for name in names]
    if all(one < two for one, two in pairwise(places)):
        return frozenset(names)
    return frozenset(names[index] for index in _longest_rise(places))


def _longest_rise(values: list[int]) -> list[int]:
    """Indices of a longest increasing subsequence (patience sorting)."""
    tops: list[int] = []
    heads: list[int] = []
    below: list[int] = []
    for index, value in enumerate(values):
        pile = bisect_left(tops, value)
        below.append(heads[pile - 1] if pile else -1)
        if pile == len(tops):
            tops.append(value)
            heads.append(index)
        else:
            tops[pile], heads[pile] = value, index
    rise: list[int] = []
    at = heads[-1] if heads else -1
    while at >= 0:
        rise.append(at)
        at = below[at]
    return rise[::-1]


def _weights_of(edit: Edit) -> tuple[Path, ...]:
    match edit:
        case Added(item=Node() as node) | Removed(item=Node() as node):
            return node.weights()
        case Changed(old=Node() as old, new=Node() as new):
            return (*old.weights(), *new.weights())
        case _:
            return ()
