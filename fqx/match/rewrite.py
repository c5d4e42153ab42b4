"""The engine: the only place where a program is walked and changed.

One walk goes over the nodes in program order. At each node the operands are already in their new
form; the first rule that makes a change wins. Walks go on until one changes nothing or the fuel is
spent. What comes out is compared with what went in, so the diff has one edit for each thing that
differs, under the name of the rule that made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from fqx.ir.arg import Arg, ArgPath, NodeRef, Ref, WeightRef, map_refs, refs_in
from fqx.ir.compare import edits_between
from fqx.ir.diff import Edit, Item, Rewritten, WeightAt, rewritten
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName, Path, RuleName
from fqx.ir.node import Node
from fqx.ir.signature import Signature, Tree, Type
from fqx.ir.weight import Weight
from fqx.kit.frozen import Table, row
from fqx.kit.result import Failure, Result
from fqx.match.rule import Change, Index, Rule, Rules, index_of
from fqx.match.search import Match, Miss, View, held_weights, match

INPUT = OpName("input")

_K = TypeVar("_K", bound=str)
_V = TypeVar("_V")


def rewrite(
    graph: Graph,
    rules: Rules,
    fuel: int | None = None,
    types: Mapping[NodeId, Type] | None = None,
    dead: RuleName | None = None,
    closing: tuple[Edit, ...] = (),
) -> Result[Rewritten, Fault]:
    """Apply the rules until nothing changes; an empty diff gives the same graph object.

    `fuel` bounds the number of changes (ten for each node, unless told). `types` are facts that
    rules may ask for. With `dead`, nodes nobody uses go in the end, under that name; inputs stay.
    `closing` edits follow, such as the step to another stage.

    Faults: OUT_OF_FUEL, naming the rule and the node; what a rule reports.
    """
    work = _Work(graph, types or {})
    index = index_of(rules)
    most = fuel if fuel is not None else 10 * len(graph) + 100
    total, changed = 0, bool(rules.listed)
    while changed:
        spent = work.walk(index, total, most)
        if isinstance(spent, Fault):
            return Failure(spent)
        total, changed = spent, spent > total
    if dead is not None:
        work.sweep(dead)
    made = work.freeze()
    edits = () if made is graph else edits_between(graph, made, work.maker)
    return rewritten(graph, (*edits, *closing))


class _Work:
    """A program under rewrite: plain tables, frozen once in the end."""

    def __init__(self, graph: Graph, types: Mapping[NodeId, Type]) -> None:
        self.graph = graph
        self.nodes: dict[NodeId, Node] = {node.id: node for node in graph}
        self.order: list[NodeId] = list(graph.order)
        self.weights: dict[Path, Weight] = dict(graph.weights.items())
        self.uses: dict[NodeId, int] = dict.fromkeys(graph.order, 0)
        self.readers: dict[Path, int] = dict.fromkeys(graph.weights, 0)
        self.types: dict[NodeId, Type] = dict(types)
        self.stands_for: dict[NodeId, Arg] = {}
        self.retired: set[NodeId] = set()
        self.fixed = _fixed(graph)
        self.by_node: dict[NodeId, RuleName] = {}
        self.by_weight: dict[Path, RuleName] = {}
        self.by_rest = RuleName("rewrite")
        self.view = View(
            self.nodes,
            self.weights,
            graph.ties,
            self.uses,
            self.readers,
            held_weights(graph),
            self.types,
            self.retired,
        )
        self.changed = False
        for node in graph:
            self.hold(node.refs(), 1)
        for arg in (*graph.outputs, *graph.updates.values()):
            self.hold(refs_in(arg), 1)

    # -- one walk --

    def walk(self, index: Index, spent: int, fuel: int) -> int | Fault:
        """Visit every node once; gives the number of changes, those `spent` before included."""
        order: list[NodeId] = []
        for name in self.order:
            if name not in self.nodes:
                continue
            self.resolve(name)
            done = self.visit(name, index, order)
            if isinstance(done, Fault):
                return done
            if isinstance(done, Rule):
                spent += 1
                if spent > fuel:
                    return _out_of_fuel(done, name, fuel)
            if name in self.nodes:
                order.append(name)
        self.order = [name for name in order if name in self.nodes]
        return spent

    def resolve(self, name: NodeId) -> None:
        """Let the node read what stands for its operands now."""
        if not self.stands_for:
            return
        node = self.nodes[name]
        # By whom a node is rerouted is known only where no rule makes the node itself.
        for ref in node.inputs():
            if ref in self.stands_for:
                self.by_node.setdefault(name, self.by_node[ref])
        self.nodes[name] = node.map_refs(self.resolved)

    def resolved(self, ref: Ref) -> Arg:
        """What a reference means now; a long line of replacements is followed without recursion."""
        while isinstance(ref, NodeRef) and ref.id in self.stands_for:
            value = self.stands_for[ref.id]
            if not isinstance(value, NodeRef):
                return map_refs(value, self.resolved)
            ref = value
        return ref

    def visit(self, name: NodeId, index: Index, order: list[NodeId]) -> Rule | Fault | None:
        for rule in index.of(self.nodes[name].op):
            found = match(self.view, rule.find, name)
            if isinstance(found, Miss):
                continue
            made = rule.make(found)
            if isinstance(made, Fault):
                return made.located(name, found.root.origin.module, found.root.origin.source)
            if isinstance(made, Change) and self.fits(found, made):
                self.put(rule, found, made, order)
                return rule
        return None

    def fits(self, found: Match, made: Change) -> bool:
        """Outputs and updates stay values of nodes, and a change has to change something."""
        if found.root.id in self.fixed and not isinstance(made.value, NodeRef):
            return False
        same_value = made.value == NodeRef(found.root.id)
        new = any(self.nodes.get(node.id) != node for node in made.nodes)
        return (
            new
            or not same_value
            or any(self.weights.get(path) != weight for path, weight in made.weights.items())
        )

    # -- one change --

    def put(self, rule: Rule, found: Match, made: Change, order: list[NodeId]) -> None:
        self.changed = True
        for path, weight in made.weights.items():
            self.weights[path] = weight
            self.readers.setdefault(path, 0)
            self.by_weight[path] = rule.name
        for node in made.nodes:
            self.put_node(rule, node, order)
        self.reroute(rule, found.root.id, made.value)
        kept = {node.id for node in made.nodes}
        for node in found.nodes:
            if node.id not in kept and node.id in self.nodes and node.op != INPUT:
                self.drop_if_unused(rule.name, node.id)
        for path in made.drops:
            if path in self.weights and not self.readers.get(path) and path not in self.view.held:
                del self.weights[path]
                self.by_weight[path] = rule.name

    def put_node(self, rule: Rule, node: Node, order: list[NodeId]) -> None:
        old = self.nodes.get(node.id)
        if old is None:
            order.append(node.id)
            self.uses[node.id] = 0
        self.nodes[node.id] = node
        self.by_node[node.id] = rule.name
        self.hold(node.refs(), 1)
        if old is not None:
            self.hold(old.refs(), -1)
            self.drop_weights(rule.name, old)

    def reroute(self, rule: Rule, root: NodeId, value: Arg) -> None:
        if value == NodeRef(root):
            return
        self.stands_for[root] = value
        self.by_node[root] = rule.name
        self.by_rest = rule.name
        count, self.uses[root] = self.uses[root], 0
        self.hold(refs_in(value), count)
        if isinstance(value, NodeRef) and root in self.types:
            self.types.setdefault(value.id, self.types[root])

    def hold(self, refs: Iterable[tuple[ArgPath, Ref]], count: int) -> None:
        for _, ref in refs:
            match ref:
                case NodeRef(id=name):
                    self.uses[name] = self.uses.get(name, 0) + count
                case WeightRef(path=path):
                    first = self.view.first(path)
                    self.readers[first] = self.readers.get(first, 0) + count

    def drop_if_unused(self, rule: RuleName, name: NodeId) -> None:
        if self.uses.get(name, 0):
            return
        node = self.nodes.pop(name)
        self.retired.add(name)
        self.by_node[name] = rule
        self.hold(node.refs(), -1)
        self.drop_weights(rule, node)
        self.changed = True

    def drop_weights(self, rule: RuleName, node: Node) -> None:
        for path in node.weights():
            first = self.view.first(path)
            if first in self.weights and not self.readers[first] and first not in self.view.held:
                del self.weights[first]
                self.by_weight[first] = rule

    # -- the end --

    def sweep(self, rule: RuleName) -> None:
        """Nodes nobody uses go, the last ones first."""
        for name in reversed(self.order):
            if self.nodes[name].op != INPUT:
                self.drop_if_unused(rule, name)
        self.order = [name for name in self.order if name in self.nodes]

    def freeze(self) -> Graph:
        graph = self.graph
        if not self.changed:
            return graph
        return replace(
            graph,
            nodes=_changed(graph.nodes, self.nodes),
            order=row(self.order),
            weights=_changed(graph.weights, self.weights),
            signature=self.signature(),
            updates=self.updates(),
        )

    def signature(self) -> Signature:
        signature = self.graph.signature
        output = _map_tree(signature.output, self)
        return signature if output is signature.output else replace(signature, output=output)

    def updates(self) -> Table[Path, NodeRef]:
        table = self.graph.updates
        for path, ref in table.items():
            value = self.resolved(ref)
            if isinstance(value, NodeRef):
                table = table.put(path, value)
        return table

    def maker(self, item: Item) -> RuleName:
        match item:
            case Node(id=name):
                return self.by_node.get(name, self.by_rest)
            case WeightAt(path=path):
                return self.by_weight.get(path, self.by_rest)
            case _:
                return self.by_rest


def _changed(table: Table[_K, _V], now: Mapping[_K, _V]) -> Table[_K, _V]:
    """The table with what is there now, sharing what did not change."""
    puts = {key: value for key, value in now.items() if table.get(key) is not value}
    return table.edit(puts, [key for key in table if key not in now])


def _fixed(graph: Graph) -> frozenset[NodeId]:
    """Nodes whose value leaves the graph."""
    leaving = (*graph.outputs, *graph.updates.values())
    refs = [ref for leaf in leaving for _, ref in refs_in(leaf)]
    return frozenset(ref.id for ref in refs if isinstance(ref, NodeRef))


def _map_tree(tree: Tree, work: _Work) -> Tree:
    """The tree with every reference resolved; the same object if none changed."""
    if tree.kind == "leaf":
        leaf = map_refs(tree.leaf, work.resolved)
        return tree if leaf is tree.leaf else replace(tree, leaf=leaf)
    items = tuple(_map_tree(item, work) for item in tree.items)
    kept = all(new is old for new, old in zip(items, tree.items, strict=True))
    return tree if kept else replace(tree, items=items)


def _out_of_fuel(rule: Rule, name: NodeId, fuel: int) -> Fault:
    return Fault(
        FaultKind.OUT_OF_FUEL,
        f"the rewrite did not come to rest: rule {rule.name} still applies after {fuel} changes",
        "a rule undoes what another does, or makes what it looks for; give more fuel if neither",
        at=name,
    )
