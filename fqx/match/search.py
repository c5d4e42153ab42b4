"""Whether a node looks like a pattern, and if not, how far it does and why not further."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType
from typing import NamedTuple, TypeAlias, assert_never

from fqx.ir.arg import Arg, NodeRef, WeightRef, same
from fqx.ir.graph import Graph, users, weight_users
from fqx.ir.names import NodeId, Path
from fqx.ir.node import Node
from fqx.ir.signature import TensorType, Type
from fqx.ir.text import show_arg
from fqx.ir.weight import Weight
from fqx.kit.frozen import FrozenMap, Table
from fqx.match.pattern import Anything, Call, Each, Exactly, Fits, OneOf, Pattern, Stored


@dataclass(frozen=True, slots=True)
class View:
    """What patterns and rules may ask of a program: tables, looked up by name.

    `uses` and `readers` count the places that read a node or weight, outputs and updates included;
    `held` are the weights that have a second path or an update, `retired` the names of nodes that
    are gone and must not come again.
    """

    nodes: Mapping[NodeId, Node] | Table[NodeId, Node]
    weights: Mapping[Path, Weight] | Table[Path, Weight]
    ties: Table[Path, Path]
    uses: Mapping[NodeId, int]
    readers: Mapping[Path, int]
    held: frozenset[Path]
    types: Mapping[NodeId, Type]
    retired: Set[NodeId] = frozenset()

    def first(self, path: Path) -> Path:
        """The first path of a weight that has several."""
        return self.ties.get(path) or path


@dataclass(frozen=True, slots=True)
class Match:
    """A node that looks like a pattern, with what its names are bound to.

    `nodes` are all nodes the pattern covers, the root first. A rule works from this alone.
    """

    root: Node
    bound: FrozenMap[Arg]
    nodes: tuple[Node, ...]
    view: View = field(repr=False, compare=False)

    def has(self, name: str) -> bool:
        """Whether a name is bound, and not to an absent operand."""
        return self.bound.get(name) is not None

    def arg(self, name: str) -> Arg:
        """What a name is bound to; None where it is not bound."""
        return self.bound.get(name)

    def node(self, name: str) -> Node | None:
        """The node a name is bound to."""
        arg = self.bound.get(name)
        return self.view.nodes.get(arg.id) if isinstance(arg, NodeRef) else None

    def path(self, name: str) -> Path | None:
        """The path of the weight a name is bound to; the first one of a tied weight."""
        arg = self.bound.get(name)
        return self.view.first(arg.path) if isinstance(arg, WeightRef) else None

    def weight(self, name: str) -> Weight | None:
        """The weight a name is bound to."""
        path = self.path(name)
        return self.view.weights.get(path) if path is not None else None

    def weight_at(self, path: Path) -> Weight | None:
        """The weight at a path."""
        return self.view.weights.get(self.view.first(path))

    def is_alone(self, path: Path) -> bool:
        """Whether one place reads this weight and nothing else holds it."""
        return _is_alone(self.view, path)

    def type_of(self, arg: Arg) -> Type | None:
        """The type of an argument, as far as it is known."""
        match arg:
            case NodeRef(id=name):
                return self.view.types.get(name)
            case WeightRef(path=path):
                weight = self.weight_at(path)
                return TensorType(weight.dtype, weight.shape) if weight else None
            case _:
                return None

    def fresh(self, parent: NodeId, role: str) -> NodeId:
        """A name for a new node, after its parent and its role."""
        view = self.view
        return NodeId(
            _fresh(lambda name: name in view.nodes or name in view.retired, f"{parent}:{role}")
        )

    def fresh_path(self, path: str) -> Path:
        """A path for a new weight: this one, numbered where it is taken.

        The number follows an underscore: a dot would make a module of the path it is put behind.
        """
        view = self.view
        return Path(_fresh(lambda name: name in view.weights or name in view.ties, path, "_"))


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a node is not like a pattern.

    `at` is the node where it failed, `depth` how many parts had fitted before.
    """

    why: str
    at: NodeId | None = None
    depth: int = 0

    def __str__(self) -> str:
        return f"{self.at}: {self.why}" if self.at is not None else self.why


Outcome: TypeAlias = Match | Miss


def view_of(graph: Graph, types: Mapping[NodeId, Type] | None = None) -> View:
    """The tables of a graph; `types` are optional facts about its nodes."""
    return View(
        graph.nodes,
        graph.weights,
        graph.ties,
        {name: len(uses) for name, uses in users(graph).items()},
        {path: len(uses) for path, uses in weight_users(graph).items()},
        held_weights(graph),
        types or {},
    )


def held_weights(graph: Graph) -> frozenset[Path]:
    """Paths that have a second path, or an update."""
    return frozenset((*graph.ties.keys(), *graph.ties.values(), *graph.updates.keys()))


def match(graph: Graph | View, pattern: Call, node: NodeId) -> Outcome:
    """How the node looks like the pattern, or the deepest reason why it does not.

    A view is made of a graph in linear time; hand one in to match many nodes.
    """
    view = graph if isinstance(graph, View) else view_of(graph)
    root = view.nodes.get(node)
    if root is None:
        return Miss(f"there is no node {node}", node)
    search = _Search(view)
    for found in search.ways(pattern, NodeRef(node), _State(root=node)):
        return Match(root, FrozenMap(found.bound), found.nodes, view)
    return search.best


def _is_alone(view: View, path: Path) -> bool:
    return view.readers.get(view.first(path), 0) <= 1 and path not in view.held


def _fresh(is_taken: Callable[[str], bool], stem: str, mark: str = ".") -> str:
    if not is_taken(stem):
        return stem
    return next(name for index in count(1) if not is_taken(name := f"{stem}{mark}{index}"))


class _State(NamedTuple):
    """What has fitted so far; `at` is the node whose operands are looked at.

    A named tuple, which is made in a third of the time of a dataclass: a search makes many.
    """

    root: NodeId
    at: NodeId | None = None
    bound: Mapping[str, Arg] = MappingProxyType({})
    nodes: tuple[Node, ...] = ()
    depth: int = 0

    def deeper(self) -> _State:
        return _State(self.root, self.at, self.bound, self.nodes, self.depth + 1)

    def bind(self, name: str, arg: Arg) -> _State:
        bound = {**self.bound, name: arg}
        return _State(self.root, self.at, bound, self.nodes, self.depth + 1)

    def inside(self, node: Node) -> _State:
        return _State(self.root, node.id, self.bound, (*self.nodes, node), self.depth + 2)

    def back(self, outer: _State) -> _State:
        return _State(self.root, outer.at, self.bound, self.nodes, self.depth)


_NOT_LOOKED_AT = Miss("it is not looked at", None, -1)


class _Search:
    """One search; keeps the deepest miss."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.best = _NOT_LOOKED_AT

    def miss(self, state: _State, why: str, at: NodeId | None = None) -> None:
        if state.depth > self.best.depth:
            self.best = Miss(why, at if at is not None else state.at, state.depth)

    def ways(self, pattern: Pattern, arg: Arg, state: _State) -> Iterator[_State]:
        """Every way the argument looks like the pattern."""
        match pattern:
            case Anything(name=name):
                yield from self.bind(name, arg, state)
            case Exactly(value=value):
                if same(value, arg):
                    yield state.deeper()
                else:
                    self.miss(state, f"{_said(arg)} is not {show_arg(value)}")
            case Fits(what=what, test=test, name=name):
                if test(arg):
                    yield from self.bind(name, arg, state)
                else:
                    self.miss(state, f"{_said(arg)} is not {what}")
            case Stored():
                yield from self.weight(pattern, arg, state)
            case Each(item=item, name=name):
                yield from self.items(item, name, arg, state)
            case OneOf(choices=choices):
                for choice in choices:
                    yield from self.ways(choice, arg, state)
            case Call():
                yield from self.call(pattern, arg, state)
            case _:
                assert_never(pattern)

    def bind(self, name: str, arg: Arg, state: _State) -> Iterator[_State]:
        if not name:
            yield state.deeper()
        elif name not in state.bound:
            yield state.bind(name, arg)
        elif same(state.bound[name], arg):
            yield state.deeper()
        else:
            self.miss(state, f"{_said(arg)} is not {_said(state.bound[name])}, the same {name}")

    def weight(self, pattern: Stored, arg: Arg, state: _State) -> Iterator[_State]:
        if not isinstance(arg, WeightRef):
            self.miss(state, f"{_said(arg)} is not a weight")
        elif pattern.lonely and not _is_alone(self.view, arg.path):
            self.miss(state, f"weight {arg.path} is used elsewhere")
        else:
            yield from self.bind(pattern.name, arg, state)

    def items(self, item: Pattern, name: str, arg: Arg, state: _State) -> Iterator[_State]:
        if not isinstance(arg, tuple):
            self.miss(state, f"{_said(arg)} is not a tuple of operands")
            return
        found: _State | None = state
        for part in arg:
            if found is None:
                return
            found = next(self.ways(item, part, found), None)
        if found is not None:
            yield from self.bind(name, arg, found.back(state))

    def all(
        self, patterns: tuple[Pattern, ...], args: tuple[Arg, ...], state: _State
    ) -> Iterator[_State]:
        if not patterns:
            yield state
            return
        for found in self.ways(patterns[0], args[0], state):
            yield from self.all(patterns[1:], args[1:], found.back(state))

    def call(self, pattern: Call, arg: Arg, state: _State) -> Iterator[_State]:
        node = self.view.nodes.get(arg.id) if isinstance(arg, NodeRef) else None
        if node is None:
            self.miss(state, f"{_said(arg)} is not {_ops(pattern)}")
            return
        why = self.reason(pattern, node, node.id == state.root)
        if why is not None:
            kin = not pattern.ops or node.op in pattern.ops
            self.miss(state.deeper() if kin else state, why, node.id)
            return
        for named in self.bind(pattern.name, arg, state.inside(node)):
            for found in self.operands(pattern, node, named):
                yield found.back(state)

    def reason(self, pattern: Call, node: Node, is_root: bool) -> str | None:
        """Why the node itself, its operands apart, is not the one looked for."""
        if pattern.ops and node.op not in pattern.ops:
            return f"{node.id} is {node.op}, not {_ops(pattern)}"
        for name, value in pattern.attrs.items():
            if name not in node.attrs:
                return f"{node.op} has no attribute {name}"
            if not same(node.attrs[name], value):
                return f"{name} is {show_arg(node.attrs[name])}, not {show_arg(value)}"
        uses = self.view.uses.get(node.id, 0)
        if pattern.lonely and not is_root and uses != 1:
            return f"the value of {node.id} has {uses} uses, it must have one"
        return next((guard.why for guard in pattern.guards if not guard.test(node)), None)

    def operands(self, pattern: Call, node: Node, state: _State) -> Iterator[_State]:
        if pattern.args is None:
            yield state
            return
        want, have = len(pattern.args), len(node.args)
        if have < want or (have > want and not pattern.open_ended):
            self.miss(state, f"{node.op} has {have} operands, not {want}")
            return
        yield from self.all(pattern.args, node.args[:want], state)
        if pattern.swaps and want > 1:
            one, two, *rest = node.args[:want]
            yield from self.all(pattern.args, (two, one, *rest), state)


def _ops(pattern: Call) -> str:
    return " or ".join(sorted(pattern.ops)) or "a node"


def _said(arg: Arg) -> str:
    text = show_arg(arg)
    return text if len(text) <= 60 else f"{text[:57]}..."
