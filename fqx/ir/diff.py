"""What a pass changed, as a value that can be applied, inverted and composed.

A diff is a sequence of edits between two digests. Edits form a free group under cancellation of
neighbouring inverses, so `then` is associative, has the empty diff as its unit, and
`then(d, invert(d))` is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar, assert_never

from fqx.ir.arg import NodeRef
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
    invert_edit,
)
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import BlockName, Digest, NodeId, Path
from fqx.ir.node import Node
from fqx.ir.signature import Signature
from fqx.ir.text import show_edits
from fqx.ir.weight import Leaf, Weight
from fqx.kit.frozen import Row, Table, row
from fqx.kit.result import Failure, Result, Success

__all__ = [
    "Added",
    "BlockAt",
    "Changed",
    "Diff",
    "Edit",
    "Item",
    "LeafAt",
    "Moved",
    "Removed",
    "Rewritten",
    "Staged",
    "TieAt",
    "UpdateAt",
    "WeightAt",
    "apply",
    "invert",
    "invert_edit",
    "reduced",
    "rewritten",
    "then",
    "touched",
]

_K = TypeVar("_K", bound=str)
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Diff:
    """Edits that lead from the graph with digest `before` to the graph with digest `after`."""

    edits: Row[Edit]
    before: Digest
    after: Digest

    def __len__(self) -> int:
        return len(self.edits)

    def __repr__(self) -> str:
        return f"Diff {self.before[:12]} -> {self.after[:12]}: {len(self)} edits"

    def __str__(self) -> str:
        head = f"# {len(self)} edits, {self.before[:12]} -> {self.after[:12]}"
        return "\n".join((head, show_edits(self.edits))) if self.edits else head


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A new graph and the diff that made it."""

    graph: Graph
    diff: Diff


def invert(diff: Diff) -> Diff:
    """The diff that leads back."""
    return Diff(row(invert_edit(edit) for edit in reversed(diff.edits)), diff.after, diff.before)


def then(first: Diff, second: Diff) -> Result[Diff, Fault]:
    """Both diffs as one; neighbouring edits that undo each other cancel.

    Fails with DIFF_DOES_NOT_FIT if the second does not start where the first ends.
    """
    if first.after != second.before:
        return Failure(
            _misfit(
                f"the first ends at {first.after[:12]}, the second starts at {second.before[:12]}"
            )
        )
    edits = reduced((*first.edits, *second.edits))
    return Success(Diff(row(edits), first.before, second.after))


def reduced(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """The same change in lowest terms: idle edits dropped, neighbours that undo each other gone."""
    kept: list[Edit] = []
    for edit in edits:
        if kept and _may_undo(kept[-1], edit) and kept[-1] == invert_edit(edit):
            kept.pop()
        elif not _is_idle(edit):
            kept.append(edit)
    return tuple(kept)


def _may_undo(last: Edit, edit: Edit) -> bool:
    """A cheap look before the inverse is made: most neighbours are of kinds that never cancel."""
    match edit:
        case Added():
            return isinstance(last, Removed)
        case Removed():
            return isinstance(last, Added)
        case _:
            return type(last) is type(edit)


def _is_idle(edit: Edit) -> bool:
    match edit:
        case Changed(old=old, new=new):
            return old == new
        case Moved(before=before, after=after) | Staged(before=before, after=after):
            return before == after
        case _:
            return False


def rewritten(graph: Graph, edits: Iterable[Edit]) -> Result[Rewritten, Fault]:
    """Apply edits and give the new graph with its diff; no edits give the same object back.

    Fails with DIFF_DOES_NOT_FIT if an edit does not fit the graph.
    """
    listed = reduced(edits)
    if not listed:
        return Success(Rewritten(graph, Diff(row(), graph.digest, graph.digest)))
    return _edited(graph, listed).map(
        lambda made: Rewritten(made, Diff(row(listed), graph.digest, made.digest))
    )


def apply(diff: Diff, graph: Graph) -> Result[Graph, Fault]:
    """The graph after the diff; an empty diff gives the same object.

    Fails with DIFF_DOES_NOT_FIT if the graph, or the outcome, is not the one the diff names.
    """
    if graph.digest != diff.before:
        return Failure(
            _misfit(f"the graph is {graph.digest[:12]}, the diff starts at {diff.before[:12]}")
        )
    if not diff.edits:
        return Success(graph)
    return _edited(graph, tuple(diff.edits)).bind(
        lambda made: (
            Success(made)
            if made.digest == diff.after
            else Failure(_misfit(f"it gives {made.digest[:12]} instead of {diff.after[:12]}"))
        )
    )


def _misfit(reason: str) -> Fault:
    return Fault(
        FaultKind.DIFF_DOES_NOT_FIT,
        f"the diff does not fit: {reason}",
        "apply a diff to the graph it was made from, in the order of the trail",
    )


class _Misfit(Exception):
    """An edit does not fit; never leaves this file."""


class _Draft:
    """A graph under edit: a linked list of nodes and plain dicts, frozen once at the end."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: dict[NodeId, Node | None] = {}
        self.weights: dict[Path, Weight | None] = {}
        self.ties: dict[Path, Path | None] = {}
        self.updates: dict[Path, NodeRef | None] = {}
        self.blocks: dict[BlockName, Graph | None] = {}
        self.leaves: dict[Path, Leaf | None] = {}
        self.signature = graph.signature
        self.stage = graph.stage
        order: list[NodeId | None] = [None, *graph.order, None]
        self.next: dict[NodeId | None, NodeId | None] = dict(pairwise(order))
        self.last: dict[NodeId | None, NodeId | None] = {b: a for a, b in pairwise(order)}
        # None stands for both ends, which share one entry per direction.
        self.next[None] = order[1]
        self.last[None] = order[-2]
        self.moved = False

    def link(self, name: NodeId, after: NodeId | None) -> None:
        if after is not None and after not in self.next:
            raise _Misfit(f"there is no node {after} to stand behind")
        behind = self.next[after]
        self.next[after], self.last[name] = name, after
        self.next[name], self.last[behind] = behind, name
        self.moved = True

    def unlink(self, name: NodeId, after: NodeId | None) -> None:
        if self.last[name] != after:
            raise _Misfit(f"node {name} does not stand behind {after}")
        before, behind = self.last.pop(name), self.next.pop(name)
        self.next[before], self.last[behind] = behind, before
        self.moved = True

    def order(self) -> Row[NodeId]:
        if not self.moved:
            return self.graph.order
        names: list[NodeId] = []
        name = self.next[None]
        while name is not None:
            names.append(name)
            name = self.next[name]
        return row(names)

    def freeze(self) -> Graph:
        graph = self.graph
        return replace(
            graph,
            nodes=_edit(graph.nodes, self.nodes),
            order=self.order(),
            weights=_edit(graph.weights, self.weights),
            ties=_edit(graph.ties, self.ties),
            updates=_edit(graph.updates, self.updates),
            blocks=_edit(graph.blocks, self.blocks),
            leaves=_edit(graph.leaves, self.leaves),
            signature=self.signature,
            stage=self.stage,
        )


def _edit(table: Table[_K, _V], changes: dict[_K, _V | None]) -> Table[_K, _V]:
    puts = {key: value for key, value in changes.items() if value is not None}
    return table.edit(puts, [key for key, value in changes.items() if value is None])


def _edited(graph: Graph, edits: tuple[Edit, ...]) -> Result[Graph, Fault]:
    draft = _Draft(graph)
    try:
        for edit in edits:
            _step(draft, edit)
    except _Misfit as misfit:
        return Failure(_misfit(str(misfit)))
    return Success(draft.freeze())


def _step(draft: _Draft, edit: Edit) -> None:
    match edit:
        case Added(item=Node() as node, after=after):
            _swap(draft.nodes, draft.graph.nodes, node.id, None, node)
            draft.link(node.id, after)
        case Removed(item=Node() as node, after=after):
            _swap(draft.nodes, draft.graph.nodes, node.id, node, None)
            draft.unlink(node.id, after)
        case Moved(id=name, before=before, after=after):
            if name not in draft.next:
                raise _Misfit(f"there is no node {name} to move")
            draft.unlink(name, before)
            draft.link(name, after)
        case Staged(before=stage, after=reached):
            if draft.stage != stage:
                raise _Misfit(f"the graph is {draft.stage.value}, not {stage.value}")
            draft.stage = reached
        case Added(item=item):
            _store(draft, None, item)
        case Removed(item=item):
            _store(draft, item, None)
        case Changed(old=old, new=new):
            _store(draft, old, new)
        case _:
            assert_never(edit)


def _store(draft: _Draft, old: Item | None, new: Item | None) -> None:
    graph = draft.graph
    match old if old is not None else new:
        case Node(id=name):
            _swap(draft.nodes, graph.nodes, name, _as_node(old), _as_node(new))
        case WeightAt(path=path):
            _swap(draft.weights, graph.weights, path, _as_weight(old), _as_weight(new))
        case TieAt(path=path):
            one = old.first if isinstance(old, TieAt) else None
            two = new.first if isinstance(new, TieAt) else None
            _swap(draft.ties, graph.ties, path, one, two)
        case UpdateAt(path=path):
            was = old.value if isinstance(old, UpdateAt) else None
            now = new.value if isinstance(new, UpdateAt) else None
            _swap(draft.updates, graph.updates, path, was, now)
        case BlockAt(name=block):
            before = old.graph if isinstance(old, BlockAt) else None
            after = new.graph if isinstance(new, BlockAt) else None
            _swap(draft.blocks, graph.blocks, block, before, after)
        case LeafAt(path=path):
            kept = old.leaf if isinstance(old, LeafAt) else None
            made = new.leaf if isinstance(new, LeafAt) else None
            _swap(draft.leaves, graph.leaves, path, kept, made)
        case Signature():
            if draft.signature != old or not isinstance(new, Signature):
                raise _Misfit("the signature is another one")
            draft.signature = new
        case None:
            raise _Misfit("an edit without an item")


def _as_node(item: Item | None) -> Node | None:
    return item if isinstance(item, Node) else None


def _as_weight(item: Item | None) -> Weight | None:
    return item.weight if isinstance(item, WeightAt) else None


def _swap(
    changes: dict[_K, _V | None], table: Table[_K, _V], key: _K, old: _V | None, new: _V | None
) -> None:
    present = changes[key] if key in changes else table.get(key)
    if present != old:
        raise _Misfit(f"{key} is {'another' if present is not None else 'absent'}")
    changes[key] = new


def touched(diff: Diff, keep: Callable[[Edit], bool] = lambda _: True) -> tuple[NodeId, ...]:
    """Ids of the nodes a diff adds, removes, changes or moves, each once, in order."""
    names: dict[NodeId, None] = {}
    for edit in diff.edits:
        if keep(edit):
            for name in _names(edit):
                names[name] = None
    return tuple(names)


def _names(edit: Edit) -> tuple[NodeId, ...]:
    match edit:
        case Added(item=Node(id=name)) | Removed(item=Node(id=name)) | Moved(id=name):
            return (name,)
        case Changed(old=Node(id=name)):
            return (name,)
        case _:
            return ()
