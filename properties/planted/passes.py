"""Passes, each wrong in one way, and the law that must say so.

Every one would be a plausible slip: writing where a copy was meant, a diff that tells half, a
counter for fresh names, a constant where a free dimension was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeAlias

import torch

from fqx.ir.arg import DType, Json, NodeRef, WeightRef
from fqx.ir.codec import encode_diff, encode_graph
from fqx.ir.compare import edits_between
from fqx.ir.diff import Added, Changed, Diff, Edit, Removed, invert, invert_edit, rewritten
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph, fresh_id
from fqx.ir.names import NodeId, OpName, Path, RuleName, Stage
from fqx.ir.node import Node, Origin
from fqx.ir.show import show
from fqx.ir.signature import Tree
from fqx.ir.weight import Role
from fqx.kit.frozen import Row, row
from fqx.kit.result import Result, Success
from fqx.num.tensors import tensor_of, weight_of
from fqx.ops.catalogue import make_node, with_operand
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite
from fqx.testing.draft import Draft
from fqx.testing.laws import (
    EXACT,
    IDEMPOTENT,
    PASS_LAWS,
    ROUNDS_WELL,
    Codec,
    Law,
    Notation,
    Subject,
    diff_inverts,
    survives_json,
    survives_text,
)

BY = RuleName("planted")
Change: TypeAlias = Callable[[Graph], Result[Rewrite, Fault]]
ALL = (*PASS_LAWS, EXACT, IDEMPOTENT)
INEXACT = (*PASS_LAWS, ROUNDS_WELL, IDEMPOTENT)


@dataclass(frozen=True, slots=True)
class Planted:
    """A wrong pass, the group of laws it claims to obey, and the one it breaks."""

    law: str
    title: str
    rewrite: Pass
    laws: tuple[Law[Subject], ...] = ALL


def sample() -> Graph:
    """relu(linear(x) + 0.1) / 3, one weight tied; made anew, as one plant writes into it."""
    draft = Draft()
    generator = torch.Generator().manual_seed(7)
    x = draft.input("x", "batch", 4)
    w = draft.weight("fc.weight", torch.randn(16, 4, generator=generator))
    draft.tie("twin.weight", "fc.weight")
    y = draft.call("add", "sum", x=draft.call("linear", "fc", x=x, weight=w), y=0.1)
    return draft.graph(draft.call("div", "third", x=draft.call("relu", "relu", x=y), y=3))


def inputs() -> tuple[torch.Tensor, ...]:
    """A batch of two, since one plant fixes that."""
    return (torch.randn(2, 4, generator=torch.Generator().manual_seed(8)),)


def _pass(name: str, change: Change) -> Pass:
    return Pass(name, NO_OPTIONS, frozenset({Stage.FLOAT}), None, change)


def _edits(make: Callable[[Graph], Iterable[Edit]]) -> Change:
    def change(graph: Graph) -> Result[Rewrite, Fault]:
        return rewritten(graph, make(graph)).map(lambda made: Rewrite(made.graph, made.diff))

    return change


def _honest(graph: Graph) -> Result[Rewrite, Fault]:
    """A right pass: what is read twice as x / 3 is not touched, a dead relu is removed."""
    return rewritten(graph, ()).map(lambda made: Rewrite(made.graph, made.diff))


def _relu(graph: Graph, name: NodeId, parents: tuple[NodeId, ...]) -> Added:
    """A node nobody reads, at the end of the program."""
    node = Node(name, OpName("relu"), (NodeRef(NodeId("fc")),), origin=Origin(parents=parents))
    return Added(node, BY, graph.order[-1])


def _with_dead(name: str, parents: tuple[str, ...] = ("fc",)) -> Change:
    wanted = NodeId(name)
    held = tuple(NodeId(parent) for parent in parents)
    return _edits(lambda graph: () if wanted in graph else (_relu(graph, wanted, held),))


# -- the plants, in the order of the laws --


def _writes_into_a_weight(graph: Graph) -> Result[Rewrite, Fault]:
    tensor_of(next(iter(graph.weights.values()))).unwrap().mul_(0.5)
    return _honest(graph)


def _tells_half(graph: Graph) -> Result[Rewrite, Fault]:
    if "one" in graph:
        return _honest(graph)
    parents = (NodeId("fc"),)
    one, two = _relu(graph, NodeId("one"), parents), _relu(graph, NodeId("two"), parents)
    return rewritten(graph, (one, two)).map(
        lambda made: Rewrite(made.graph, replace(made.diff, edits=row((two,))))
    )


def _copies(graph: Graph) -> Result[Rewrite, Fault]:
    return Success(Rewrite(replace(graph), Diff(row(), graph.digest, graph.digest)))


def _quantizes_early(graph: Graph) -> Iterable[Edit]:
    if "early" not in graph:
        node = make_node(
            "quantize",
            NodeId("early"),
            Origin(parents=(NodeId("fc"),)),
            x=NodeRef(NodeId("fc")),
            scale=0.1,
            zero_point=0,
            qmin=0,
            qmax=255,
            dtype=DType.UINT8,
        )
        yield Added(node, BY, graph.order[-1])


def _fixes_the_batch(graph: Graph) -> Iterable[Edit]:
    if "flat" not in graph:
        last = graph.order[-1]
        origin = Origin(parents=(last,))
        flat = make_node("reshape", NodeId("flat"), origin, x=NodeRef(last), shape=(2, 16))
        yield Added(flat, BY, last)
        output = Tree("leaf", NodeRef(flat.id))
        yield Changed(graph.signature, replace(graph.signature, output=output), BY)


def _renames_in_place(graph: Graph) -> Iterable[Edit]:
    node = graph[NodeId("relu")]
    if node.op == "relu":
        after = graph.order[list(graph.order).index(node.id) - 1]
        origin = Origin(parents=(after,))
        clamp = make_node("clamp", node.id, origin, x=node.args[0], low=0)
        yield Removed(node, BY, after)
        yield Added(clamp, BY, after)


def _counting() -> Change:
    numbers: Iterator[int] = count()

    def edits(graph: Graph) -> Iterable[Edit]:
        if not any(name.startswith("fresh_") for name in graph.nodes):
            yield _relu(graph, NodeId(f"fresh_{next(numbers)}"), (NodeId("fc"),))

    return _edits(edits)


def _never_rests(graph: Graph) -> Iterable[Edit]:
    fresh = fresh_id(graph.nodes, NodeId("fc"), "more")
    yield _relu(graph, fresh, (NodeId("fc"),))


def _multiplies(graph: Graph, factor: float) -> Iterable[Edit]:
    node = graph[NodeId("third")]
    if node.op == "div":
        yield Changed(node, make_node("mul", node.id, x=node.args[0], y=factor), BY)


def _rounds_to_half(graph: Graph) -> Result[Rewrite, Fault]:
    """Computes its new weight in the wrong precision."""
    path, weight = next(iter(graph.weights.items()))
    coarse = tensor_of(weight).unwrap().to(torch.bfloat16).float()
    made = replace(graph, weights=graph.weights.put(path, weight_of(coarse, weight.role)))
    return rewritten(graph, edits_between(graph, made, lambda _: BY)).map(
        lambda done: Rewrite(done.graph, done.diff)
    )


def _equalizes_one_side(graph: Graph) -> Result[Rewrite, Fault]:
    """Takes a power of two out of a layer and gives it to nobody."""
    to = Path("fc.equalized_weight")
    if to in graph.weights:
        return _honest(graph)
    held = tensor_of(graph.weights[Path("fc.weight")]).unwrap()
    node = with_operand(graph[NodeId("fc")], "weight", WeightRef(to))
    made = replace(
        graph,
        nodes=graph.nodes.edit({node.id: node}),
        weights=graph.weights.put(to, weight_of(held / 4, Role.PARAMETER)),
    )
    return rewritten(graph, edits_between(graph, made, lambda _: BY)).map(
        lambda done: Rewrite(done.graph, done.diff)
    )


def _inverts_in_order(diff: Diff) -> Diff:
    """The inverse that forgets to go backwards."""
    return Diff(row(invert_edit(edit) for edit in diff.edits), diff.after, diff.before)


def _grows(graph: Graph) -> Iterable[Edit]:
    """An honest pass with two edits of which the second needs the first."""
    if "one" not in graph:
        first = _relu(graph, NodeId("one"), (NodeId("fc"),))
        yield first
        origin = Origin(parents=(NodeId("one"),), source="model.py:3")
        node = Node(NodeId("two"), OpName("neg"), (NodeRef(NodeId("one")),), origin=origin)
        yield Added(node, BY, NodeId("one"))


def _without_ties(graph: Graph) -> Json:
    code = encode_graph(graph)
    assert isinstance(code, dict)
    return {**code, "ties": {}}


def _without_order(diff: Diff) -> Json:
    edits: Row[Edit] = row(reversed(diff.edits))
    return encode_diff(replace(diff, edits=edits))


def _without_origins(code: Json) -> Json:
    match code:
        case dict():
            return {key: _without_origins(item) for key, item in code.items() if key != "source"}
        case list():
            return [_without_origins(item) for item in code]
        case _:
            return code


def _in_place_of(law: Law[Subject]) -> tuple[Law[Subject], ...]:
    """All laws, the one of that name replaced."""
    return tuple(law if old.name == law.name else old for old in ALL)


CASES: tuple[Planted, ...] = (
    Planted(
        "leaves_input_alone",
        "writes into a weight's payload",
        _pass("halve", _writes_into_a_weight),
    ),
    Planted("diff_replays", "tells half of what it did", _pass("half", _tells_half)),
    Planted(
        "diff_inverts",
        "undoes edits in the order they were made",
        _pass("grow", _edits(_grows)),
        _in_place_of(diff_inverts(_inverts_in_order)),
    ),
    Planted(
        "diff_inverts",
        "takes a diff for its own inverse",
        _pass("grow", _edits(_grows)),
        _in_place_of(diff_inverts(lambda diff: invert(invert(diff)))),
    ),
    Planted("unchanged_is_identical", "copies what it does not change", _pass("copy", _copies)),
    Planted(
        "output_is_well_formed",
        "quantizes in a FLOAT graph",
        _pass("early", _edits(_quantizes_early)),
    ),
    Planted("keeps_types", "bakes the batch size in", _pass("fix", _edits(_fixes_the_batch))),
    Planted("origins_are_total", "makes a node of nothing", _pass("orphan", _with_dead("new", ()))),
    Planted(
        "origins_are_total",
        "makes a node of one that never was",
        _pass("stray", _with_dead("new", ("nobody",))),
    ),
    Planted(
        "ids_are_never_reused",
        "gives a new node the name of the one it removed",
        _pass("rename", _edits(_renames_in_place)),
    ),
    Planted("deterministic", "names nodes by a counter of its own", _pass("count", _counting())),
    Planted(
        "survives_json",
        "forgets ties in JSON",
        _pass("grow", _edits(_grows)),
        _in_place_of(survives_json(Codec(encode_graph=_without_ties))),
    ),
    Planted(
        "survives_json",
        "forgets the order of edits in JSON",
        _pass("grow", _edits(_grows)),
        _in_place_of(survives_json(Codec(encode_diff=_without_order))),
    ),
    Planted(
        "survives_json",
        "forgets source lines in JSON",
        _pass("grow", _edits(_grows)),
        _in_place_of(
            survives_json(Codec(encode_diff=lambda diff: _without_origins(encode_diff(diff))))
        ),
    ),
    Planted(
        "survives_text",
        "prints three digits",
        _pass("grow", _edits(_grows)),
        _in_place_of(survives_text(Notation(write=lambda graph: show(graph).replace("0.1", "0")))),
    ),
    Planted(
        "survives_text",
        "prints fingerprints cut short",
        _pass("grow", _edits(_grows)),
        _in_place_of(
            survives_text(Notation(write=lambda graph: show(graph).replace("sha256:", "sha256:00")))
        ),
    ),
    Planted("idempotent", "adds one more each time", _pass("grow", _edits(_never_rests))),
    Planted(
        "keeps_meaning",
        "multiplies by a third instead of dividing by three",
        _pass("third", _edits(lambda graph: _multiplies(graph, 1 / 3))),
    ),
    Planted(
        "keeps_meaning",
        "equalizes a layer and forgets the one behind it",
        _pass("one side", _equalizes_one_side),
    ),
    Planted(
        "rounds_well",
        "rounds a constant to three digits",
        _pass("third", _edits(lambda graph: _multiplies(graph, 0.333))),
        INEXACT,
    ),
    Planted(
        "rounds_well",
        "computes a weight in bfloat16",
        _pass("coarse", _rounds_to_half),
        INEXACT,
    ),
)
"""At least one for every law of passes."""

HONEST: tuple[Pass, ...] = (
    _pass("nothing", _honest),
    _pass("grow", _edits(_grows)),
    _pass("dead", _with_dead("new")),
)
"""Right passes of the same make: a law that rejects these bites too much."""
