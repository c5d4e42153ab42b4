"""What each pass did to a node, read off the diffs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from fqx.ir.edit import Added, Changed, Edit, Item, Moved, Removed, WeightAt
from fqx.ir.names import NodeId, Path, RuleName
from fqx.ir.node import Node
from fqx.ir.text import show_edit
from fqx.ir.trail import Trail


@dataclass(frozen=True, slots=True)
class Touched:
    """The edits one step made on a node and what came of it, as lines of text."""

    step: str
    rules: tuple[RuleName, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        head = f"{self.step}: {', '.join(self.rules)}"
        return "\n".join((head, *(f"    {line}" for line in self.lines)))


@dataclass(frozen=True, slots=True)
class Blame:
    """A node's life: the steps that touched it, and the nodes it lives on as in the last graph.

    `gone` is the rule that took the node itself out, None while it is there.
    """

    node: NodeId
    steps: tuple[Touched, ...]
    becomes: tuple[NodeId, ...]
    gone: RuleName | None = None


def blame(trail: Trail, name: NodeId) -> Blame:
    """Follow a node through the trail: edits of it, of its weights, and of nodes made from it.

    A node made by a pass names its parents; whoever descends from `name` belongs to its life. One
    walk over the edits.
    """
    alive: dict[NodeId, None] = {name: None}
    held = set(_weights(trail.base.nodes.get(name)))
    steps: list[Touched] = []
    gone: RuleName | None = None
    for step in trail.steps:
        mine: list[Edit] = []
        for edit in step.diff.edits:
            if _concerns(edit, alive, held):
                mine.append(edit)
                gone = edit.by if _removes(edit, name) else gone
                for node in _made(edit):
                    alive[node.id] = None
                    held.update(_weights(node))
        if mine:
            rules = tuple(dict.fromkeys(edit.by for edit in mine))
            lines = tuple(line for edit in mine for line in show_edit(edit).splitlines())
            steps.append(Touched(step.name or step.text.split("(")[0], rules, lines))
    return Blame(name, tuple(steps), tuple(item for item in alive if item in trail.graph), gone)


def _removes(edit: Edit, name: NodeId) -> bool:
    return isinstance(edit, Removed) and isinstance(edit.item, Node) and edit.item.id == name


def _weights(node: Node | None) -> tuple[Path, ...]:
    return node.weights() if node is not None else ()


def _concerns(edit: Edit, known: Collection[NodeId], held: Collection[Path]) -> bool:
    if isinstance(edit, Moved):
        return edit.id in known
    for item in _items(edit):
        if isinstance(item, Node) and (
            item.id in known or any(parent in known for parent in item.origin.parents)
        ):
            return True
        if isinstance(item, WeightAt) and item.path in held:
            return True
    return False


def _items(edit: Edit) -> tuple[Item, ...]:
    match edit:
        case Added(item=item) | Removed(item=item):
            return (item,)
        case Changed(old=old, new=new):
            return (old, new)
        case _:
            return ()


def _made(edit: Edit) -> Iterator[Node]:
    match edit:
        case Added(item=Node() as node) | Changed(new=Node() as node):
            yield node
        case _:
            return
