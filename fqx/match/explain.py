"""Why a rule did not apply: its nearest misses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.signature import Type
from fqx.match.rule import Change, Made, Rule
from fqx.match.search import Match, Miss, View, match, view_of


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A node of the right op that is not a match, and why."""

    root: NodeId
    miss: Miss

    def __str__(self) -> str:
        return f"{self.root}: {self.miss.why}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a rule applies, and where it nearly does: the deepest miss first."""

    rule: Rule
    applies: tuple[NodeId, ...]
    misses: tuple[NearMiss, ...]

    def __str__(self) -> str:
        head = f"{self.rule.name} applies at {len(self.applies)} nodes"
        return "\n".join((head, *(f"  not at {near}" for near in self.misses)))


def explain(rule: Rule, graph: Graph, types: Mapping[NodeId, Type] | None = None) -> Explanation:
    """Try the rule everywhere and say what comes of it; nothing is changed."""
    view = view_of(graph, types)
    tried = {node.id: _tried(rule, view, node.id) for node in graph if _may(rule, node.op)}
    misses = [NearMiss(name, miss) for name, miss in tried.items() if isinstance(miss, Miss)]
    return Explanation(
        rule,
        tuple(name for name, made in tried.items() if isinstance(made, Change)),
        tuple(sorted(misses, key=lambda near: -near.miss.depth)),
    )


def _may(rule: Rule, name: str) -> bool:
    return not rule.find.ops or name in rule.find.ops


def _tried(rule: Rule, view: View, name: NodeId) -> Change | Miss:
    found = match(view, rule.find, name)
    return found if isinstance(found, Miss) else _as_miss(rule.make(found), found)


def _as_miss(made: Made, found: Match) -> Change | Miss:
    """A refusal by the rule itself is the nearest miss of all."""
    deepest = 1 << 20
    match made:
        case Change():
            return made
        case Miss(why=why, at=at):
            return Miss(why, at if at is not None else found.root.id, deepest)
        case Fault(reason=reason):
            return Miss(reason, found.root.id, deepest)
