"""What can change in a graph: items, and the edits that add, remove, change or move them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from fqx.ir.arg import NodeRef
from fqx.ir.graph import Graph
from fqx.ir.names import BlockName, NodeId, Path, RuleName, Stage
from fqx.ir.node import Node
from fqx.ir.signature import Signature
from fqx.ir.weight import Leaf, Weight


@dataclass(frozen=True, slots=True)
class WeightAt:
    """A weight at its path."""

    path: Path
    weight: Weight


@dataclass(frozen=True, slots=True)
class TieAt:
    """A second path of a weight."""

    path: Path
    first: Path


@dataclass(frozen=True, slots=True)
class UpdateAt:
    """A buffer's value after the call."""

    path: Path
    value: NodeRef


@dataclass(frozen=True, slots=True)
class BlockAt:
    """A sub-program under its name."""

    name: BlockName
    graph: Graph


@dataclass(frozen=True, slots=True)
class LeafAt:
    """A module kept whole, at its path."""

    path: Path
    leaf: Leaf


Item: TypeAlias = Node | WeightAt | TieAt | UpdateAt | BlockAt | LeafAt | Signature
"""What an edit can be about."""


@dataclass(frozen=True, slots=True)
class Added:
    """`item` is new; a node stands behind `after` (None: first)."""

    item: Item
    by: RuleName
    after: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """`item` is gone; a node stood behind `after` (None: first)."""

    item: Item
    by: RuleName
    after: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """`old` became `new` under the same key and in the same place."""

    old: Item
    new: Item
    by: RuleName


@dataclass(frozen=True, slots=True)
class Moved:
    """A node stood behind `before` and stands behind `after` now."""

    id: NodeId
    before: NodeId | None
    after: NodeId | None
    by: RuleName


@dataclass(frozen=True, slots=True)
class Staged:
    """The graph reached another stage."""

    before: Stage
    after: Stage
    by: RuleName


Edit: TypeAlias = Added | Removed | Changed | Moved | Staged


def invert_edit(edit: Edit) -> Edit:
    """The edit that undoes this one."""
    match edit:
        case Added(item=item, by=by, after=after):
            return Removed(item, by, after)
        case Removed(item=item, by=by, after=after):
            return Added(item, by, after)
        case Changed(old=old, new=new, by=by):
            return Changed(new, old, by)
        case Moved(id=name, before=before, after=after, by=by):
            return Moved(name, after, before, by)
        case Staged(before=stage, after=reached, by=by):
            return Staged(reached, stage, by)
        case _:
            assert_never(edit)
