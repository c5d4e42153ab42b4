"""JSON of graphs, diffs and trails: exact, with origins, and suspicious of what it is given."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch

from fqx.ir.arg import Json, NodeRef
from fqx.ir.codec import (
    decode_diff,
    decode_edit,
    decode_graph,
    decode_trail,
    encode_diff,
    encode_edit,
    encode_graph,
    encode_trail,
)
from fqx.ir.diff import (
    Added,
    BlockAt,
    Changed,
    Edit,
    LeafAt,
    Moved,
    Removed,
    Staged,
    TieAt,
    UpdateAt,
    WeightAt,
)
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import BlockName, Digest, NodeId, OpName, Path, RuleName, Stage
from fqx.ir.node import Node, Origin
from fqx.ir.signature import Signature, Tree
from fqx.ir.trail import Trail
from fqx.ir.weight import Leaf, Role
from fqx.kit.frozen import FrozenMap
from fqx.passes.clean import clean
from fqx.passes.fuse import fuse
from fqx.testing.draft import Draft

BY = RuleName("test")

ORIGIN = Origin(((Path(""), "Net"), (Path("fc"), "Linear")), 2, "a.py:3", (NodeId("p"),), "note")


def example() -> Graph:
    draft = Draft()
    weight = draft.weight("fc.weight", torch.randn(2, 3), grad=True)
    y = draft.call("linear", "fc", x=draft.input("x", "batch", 3), weight=weight)
    draft.weight("state", torch.ones(1), Role.BUFFER)
    draft.tie("other", "fc.weight")
    draft.update("state", y)
    graph = draft.graph(draft.call("relu", "r", x=draft.call("dropout", "drop", x=y, p=0.5)))
    nodes = [replace(node, origin=ORIGIN) if node.id == "fc" else node for node in graph]
    signature = Signature((), Tree("tuple"), Tree("dict"), Tree("leaf"), FrozenMap())
    body = graph_of([Node(NodeId("n"), OpName("int_add"), (1, 2))], {}, signature)
    return graph_of(
        nodes,
        dict(graph.weights.items()),
        graph.signature,
        ties=dict(graph.ties.items()),
        updates=dict(graph.updates.items()),
        blocks={BlockName("body"): body},
        leaves={Path("m"): Leaf("pkg.Class", Digest("ab"), "why")},
    )


def through_text(code: Json) -> Json:
    made: Json = json.loads(json.dumps(code, allow_nan=False))
    return made


def test_a_graph_comes_back_with_origins_and_without_payloads() -> None:
    graph = example()
    made = decode_graph(through_text(encode_graph(graph))).unwrap()
    assert made == graph
    assert [node.origin for node in made] == [node.origin for node in graph]
    assert made.weights[Path("fc.weight")].payload is None


def edits() -> list[Edit]:
    graph = example()
    node, weight = graph[NodeId("fc")], graph.weights[Path("fc.weight")]
    return [
        Added(node, BY, NodeId("@x")),
        Removed(node, BY),
        Changed(node, replace(node, op=OpName("other")), BY),
        Added(WeightAt(Path("w"), weight), BY),
        Added(TieAt(Path("a"), Path("b")), BY),
        Added(UpdateAt(Path("a"), NodeRef(NodeId("fc"))), BY),
        Added(BlockAt(BlockName("b"), graph.blocks[BlockName("body")]), BY),
        Added(LeafAt(Path("m"), graph.leaves[Path("m")]), BY),
        Changed(graph.signature, replace(graph.signature, params=()), BY),
        Moved(NodeId("fc"), None, NodeId("r"), BY),
        Staged(Stage.FLOAT, Stage.FUSED, BY),
    ]


@pytest.mark.parametrize("edit", edits(), ids=lambda edit: type(edit).__name__)
def test_an_edit_comes_back(edit: Edit) -> None:
    assert decode_edit(through_text(encode_edit(edit))).unwrap() == edit


@dataclass(frozen=True)
class Note:
    """Evidence for this test."""

    text: str

    @property
    def kind(self) -> str:
        return "note"

    def to_json(self) -> Json:
        return {"text": self.text}


def read_note(code: Json) -> Note:
    match code:
        case {"text": str() as text}:
            return Note(text)
        case _:
            raise ValueError("not a note")


def trail() -> Trail:
    made = (clean() | fuse()).run(example()).unwrap()
    first, *rest = made.steps
    return Trail(made.base, (replace(first, evidence=Note("seen")), *rest), ("remark",))


def test_a_trail_comes_back() -> None:
    before = trail()
    after = decode_trail(through_text(encode_trail(before)), {"note": read_note}).unwrap()
    assert after == before
    assert after.steps[0].evidence == Note("seen")


def test_a_diff_comes_back() -> None:
    for step in trail().steps:
        assert decode_diff(through_text(encode_diff(step.diff))).unwrap() == step.diff


def test_evidence_of_an_unknown_kind_is_a_fault() -> None:
    fault = decode_trail(encode_trail(trail()), {}).failure()
    assert fault.kind is FaultKind.CORRUPT_FILE
    assert "unknown kind" in fault.reason


def test_a_graph_of_another_format_is_a_fault() -> None:
    code = encode_graph(example())
    assert isinstance(code, dict)
    assert decode_graph({**code, "format": 999}).failure().kind is FaultKind.UNKNOWN_VERSION


def test_an_edited_trail_is_a_fault() -> None:
    code = json.loads(json.dumps(encode_trail(trail())))
    code["steps"][0]["diff"]["edits"].pop()
    fault = decode_trail(code, {"note": read_note}).failure()
    assert fault.kind is FaultKind.DIFF_DOES_NOT_FIT


@pytest.mark.parametrize(
    "code",
    [
        None,
        [],
        "text",
        {},
        {"format": 1},
        {"base": 1, "steps": [], "notes": []},
    ],
)
def test_what_is_no_value_is_a_fault(code: Json) -> None:
    for decode in (decode_graph, decode_diff, decode_edit, lambda c: decode_trail(c, {})):
        result = decode(code)
        assert result.failure().kind is FaultKind.CORRUPT_FILE


@pytest.mark.parametrize("part", ["stage", "signature", "nodes", "weights", "updates", "leaves"])
@pytest.mark.parametrize("wrong", [None, 1, "x", [1], {"a": 1}, [{"id": "x"}]])
def test_a_graph_with_a_wrong_part_is_a_fault(part: str, wrong: Json) -> None:
    code = encode_graph(example())
    assert isinstance(code, dict)
    assert decode_graph({**code, part: wrong}).failure().kind is FaultKind.CORRUPT_FILE


def test_two_nodes_of_one_name_are_a_fault() -> None:
    code = encode_graph(example())
    assert isinstance(code, dict)
    nodes = code["nodes"]
    assert isinstance(nodes, list)
    twice = decode_graph({**code, "nodes": [*nodes, nodes[-1]]})
    assert "two nodes have the same name" in twice.failure().reason
