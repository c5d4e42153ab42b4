"""Why a node is, or is not, int8: its verdict, what each pass did to it, what nearly applied."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from fqx.audit.blame import Touched, blame
from fqx.audit.coverage import Decided, decided, planned_graph
from fqx.edge.machine import target_of_json
from fqx.ir.graph import Graph, users
from fqx.ir.names import NodeId, OpName, RuleName
from fqx.ir.node import Node
from fqx.ir.trail import Trail
from fqx.kit.result import fold
from fqx.match.search import Miss, match, view_of
from fqx.ops.types import types
from fqx.passes.fuse import RULES
from fqx.policy.units import Place, unit_at
from fqx.policy.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class Account:
    """All there is to say of one node."""

    node: NodeId
    op: OpName
    place: str
    verdict: str
    steps: tuple[Touched, ...]
    becomes: tuple[NodeId, ...]
    misses: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.node}: {self.op}" + (f"  ({self.place})" if self.place else "")]
        lines += [f"  verdict  {self.verdict}"]
        lines += [f"  {line}" for step in self.steps for line in str(step).splitlines()]
        shown = ", ".join(self.becomes[:8]) + (" …" if len(self.becomes) > 8 else "")
        lines += [f"  lives on as {shown}"] if self.becomes else ["  is not in the last graph"]
        lines += [f"  nearly   {miss}" for miss in self.misses]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Explanation:
    """The accounts asked for, or the names nearest to one that does not exist."""

    asked: str
    accounts: tuple[Account, ...]
    near: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """Whether there was something to explain."""
        return bool(self.accounts)

    def __str__(self) -> str:
        if self.accounts and not self.asked:
            width = max(len(item.node) for item in self.accounts)
            return "\n".join(f"{item.node:<{width}}  {item.verdict}" for item in self.accounts)
        if self.accounts:
            return "\n".join(str(item) for item in self.accounts)
        nearest = f"; did you mean {', '.join(self.near)}?" if self.near else ""
        return f"no node, module or weight of the trail is called {self.asked!r}{nearest}"

    def __repr__(self) -> str:
        lines = str(self).splitlines()
        return "\n".join(lines if len(lines) <= 10 else [*lines[:9], f"… {len(lines) - 9} more"])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def explain(trail: Trail, name: str | None = None) -> Explanation:
    """Account for a node: by its id, by its module's path, or by the path of a weight it reads.

    Without a name, for every node of the captured graph, verdicts only. A name that does not exist
    gives an explanation that says so and the nearest names.
    """
    plan = decided(trail)
    if name is None:
        return Explanation("", tuple(_brief(trail, plan, node) for node in trail.base))
    ids = _meant(trail, name)
    if not ids:
        modules = sorted({node.origin.module for node in trail.base})
        known = tuple(dict.fromkeys(str(item) for item in (*_names(trail), *modules) if item))
        near = get_close_matches(name, known, 3, 0.5)
        return Explanation(name, (), tuple(near))
    return Explanation(name, tuple(_account(trail, plan, item) for item in ids))


def _names(trail: Trail) -> tuple[NodeId, ...]:
    return tuple(dict.fromkeys(name for graph in trail.graphs() for name in graph.order))


def _meant(trail: Trail, name: str) -> tuple[NodeId, ...]:
    if any(NodeId(name) in graph for graph in trail.graphs()):
        return (NodeId(name),)
    inside = tuple(node.id for node in trail.base if node.origin.module == name)
    if inside:
        return inside
    below = tuple(node.id for node in trail.base if node.origin.module.startswith(f"{name}."))
    if below:
        return below
    return tuple(node.id for node in trail.base if name in node.weights())


def _node(trail: Trail, name: NodeId) -> Node:
    return next(graph[name] for graph in trail.graphs() if name in graph)


def _brief(trail: Trail, plan: Decided | None, node: Node) -> Account:
    return Account(node.id, node.op, "", _verdict(trail, plan, node.id, None), (), (node.id,), ())


def _account(trail: Trail, plan: Decided | None, name: NodeId) -> Account:
    node = _node(trail, name)
    life = blame(trail, name)
    origin = node.origin
    scope = f"{origin.module_type} {origin.module}".strip()
    place = ", ".join(part for part in (scope, origin.source or "") if part)
    return Account(
        name,
        node.op,
        place,
        _verdict(trail, plan, name, life.gone),
        life.steps,
        life.becomes,
        tuple(_misses(trail, plan, name)),
    )


def _verdict(trail: Trail, plan: Decided | None, name: NodeId, gone: RuleName | None) -> str:
    if plan is None:
        return "none yet: nothing was planned"
    note = plan.annotations.get(name)
    if note is not None:
        return str(note)
    if gone is not None:
        return f"not planned: {gone} took it out"
    if name in trail.base and name not in planned_graph(trail, plan):
        return "not planned: a pass before the plan took it out"
    return "not planned: a pass made it after the plan"


def _misses(trail: Trail, plan: Decided | None, name: NodeId) -> Iterator[str]:
    """Fusions at the node that did not apply; for a float one, units as well."""
    before = trail.base
    if name in before:
        view = view_of(before, types(before))
        for rule in RULES.listed:
            if rule.find.ops and before[name].op not in rule.find.ops:
                continue
            found = match(view, rule.find, name)
            if isinstance(found, Miss) and found.depth > 0:
                yield f"{rule.name}: {found.why}"
    if plan is not None:
        graph = planned_graph(trail, plan)
        note = plan.annotations.get(name)
        if name in graph and note is not None and note.verdict is Verdict.FLOAT:
            yield from _unit_misses(graph, plan, name)


def _unit_misses(graph: Graph, plan: Decided, name: NodeId) -> Iterator[str]:
    code = plan.code.get("target") if isinstance(plan.code, dict) else None
    target = fold(target_of_json(code), lambda found: (found,), lambda _: ())
    if not target or not target[0].kinds(graph[name].op):
        return
    position = {item: index for index, item in enumerate(graph.order)}
    place = Place(graph, users(graph), position, types(graph))
    _, misses = unit_at(place, target[0].units, name)
    for miss in dict.fromkeys(misses):
        yield f"a unit at {miss.at}: {miss.why}"
