"""Examples of `clean`: each identity goes, and what only looks like one stays."""

from __future__ import annotations

import pytest
import torch

from fqx.ir.arg import Arg, DType, NodeRef, Training
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.ir.weight import Role
from fqx.judge.evaluate import evaluate
from fqx.passes.clean import clean
from fqx.testing.draft import Draft


def cleaned(graph: Graph) -> Graph:
    made = clean().run(graph).unwrap().graph
    assert clean().run(made).unwrap().graph is made, "clean is idempotent"
    return made


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph if node.op != "input"]


def start() -> tuple[Draft, NodeRef]:
    """An input and a dense value of shape (batch, 3, 4)."""
    draft = Draft()
    return draft, draft.call("neg", "first", x=draft.input("x", "batch", 3, 4))


GONE = [
    ("dropout", {"p": 0.5, "training": False}),
    ("to", {"dtype": DType.FLOAT32}),
    ("slice", {"start": None, "stop": None, "dim": 1}),
    ("slice", {"start": 0, "stop": None, "dim": 0}),
    ("permute", {"dims": (0, 1, 2)}),
    ("squeeze", {"dims": ()}),
    ("expand", {"shape": (-1, 3, 4)}),
    ("mul", {"y": 1}),
    ("mul", {"y": 1.0}),
    ("div", {"y": 1}),
    ("sub", {"y": 0}),
    ("pow", {"y": 1}),
    ("pad", {"pad": (0, 0, 0, 0)}),
]

STAYS = [
    ("dropout", {"p": 0.5, "training": Training()}),
    ("to", {"dtype": DType.FLOAT64}),
    ("slice", {"start": 1, "stop": None, "dim": 1}),
    ("slice", {"start": 0, "stop": None, "dim": 1, "step": 2}),
    ("permute", {"dims": (0, 2, 1)}),
    ("mul", {"y": 2}),
    ("div", {"y": 1, "rounding_mode": "floor"}),
    ("sub", {"y": 1}),
    ("add", {"y": 0.0}),
    ("pad", {"pad": (1, -1)}),
    ("contiguous", {}),
]


@pytest.mark.parametrize("op, given", GONE)
def test_an_identity_goes(op: str, given: dict[str, Arg]) -> None:
    draft, first = start()
    graph = draft.graph(draft.call(op, "second", x=first, **given))
    made = cleaned(graph)
    assert ops(made) == ["neg"]
    assert made.outputs == (first,)
    x = torch.randn(2, 3, 4)
    assert torch.equal(
        evaluate(graph, (x,)).unwrap(),  # type: ignore[arg-type]  # the judge gives objects
        evaluate(made, (x,)).unwrap(),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("op, given", STAYS)
def test_what_computes_something_stays(op: str, given: dict[str, Arg]) -> None:
    draft, first = start()
    graph = draft.graph(draft.call(op, "second", x=first, **given))
    assert cleaned(graph) is graph


def test_a_copy_of_a_view_stays() -> None:
    draft, first = start()
    view = draft.call("permute", "view", x=first, dims=(0, 2, 1))
    graph = draft.graph(draft.call("mul", "copy", x=view, y=1))
    assert cleaned(graph) is graph


def test_a_free_size_is_not_squeezed_away() -> None:
    draft, first = start()
    graph = draft.graph(draft.call("squeeze", "s", x=first, dims=(0,)))
    assert ops(cleaned(graph)) == ["neg", "squeeze"]


def test_permutes_merge() -> None:
    draft, first = start()
    one = draft.call("permute", "p1", x=first, dims=(0, 2, 1))
    two = draft.call("permute", "p2", x=one, dims=(2, 0, 1))
    made = cleaned(draft.graph(two))
    assert ops(made) == ["neg", "permute"]
    (merged,) = (node for node in made if node.op == "permute")
    assert merged.attrs["dims"] == (1, 0, 2)
    assert merged.id == "p2:permute"
    assert merged.origin.parents == ("p1", "p2")


def test_a_permute_and_its_inverse_go() -> None:
    draft, first = start()
    one = draft.call("permute", "p1", x=first, dims=(0, 2, 1))
    two = draft.call("permute", "p2", x=one, dims=(0, 2, 1))
    assert ops(cleaned(draft.graph(two, one))) == ["neg", "permute"]


def test_repeated_layouts_and_relus_go() -> None:
    draft, first = start()
    y = first
    for index in range(3):
        y = draft.call("relu", f"r{index}", x=y)
    for index in range(3):
        y = draft.call("contiguous", f"c{index}", x=y)
    assert ops(cleaned(draft.graph(y))) == ["neg", "relu", "contiguous"]


def test_dead_nodes_go_with_their_weights_and_inputs_stay() -> None:
    draft, first = start()
    unused = draft.input("unused", 3)
    dead = draft.call("linear", "dead", x=first, weight=draft.weight("w", torch.ones(2, 4)))
    draft.call("neg", "more", x=dead)
    draft.weight("never.read", torch.ones(1))
    made = cleaned(draft.graph(first))
    assert ops(made) == ["neg"]
    assert unused.id in made
    assert made.weights.keys() == (Path("never.read"),)


def test_an_update_keeps_its_node() -> None:
    draft, first = start()
    state = draft.weight("state", torch.ones(3, 4))
    value = draft.call("mul", "next", x=state, y=2.0)
    same = draft.call("mul", "same", x=value, y=1.0)
    draft.update("state", same)
    made = cleaned(draft.graph(first))
    assert made.updates[Path("state")] == NodeRef(NodeId("next"))


def test_each_edit_names_its_rule() -> None:
    draft, first = start()
    drop = draft.call("dropout", "drop", x=first, p=0.1)
    diff = clean().run(draft.graph(draft.call("relu", "r", x=drop))).unwrap().steps[0].diff
    lines = [line.split() for line in str(diff).splitlines()[1:]]
    assert [(line[0], line[1], line[-1]) for line in lines] == [
        ("-", "drop", "[clean.dropout]"),
        ("~", "r", "[clean.dropout]"),
    ]


def test_a_long_chain_is_cleaned_in_one_go() -> None:
    draft, y = start()
    for index in range(400):
        y = draft.call("dropout", f"d{index}", x=draft.call("neg", f"n{index}", x=y), p=0.5)
    graph = draft.graph(y)
    assert len(cleaned(graph)) == 402


def test_what_depends_on_constants_alone_is_computed() -> None:
    draft, first = start()
    steps = draft.call("arange", "a", start=0, stop=4, step=1, dtype=DType.INT64)
    row = draft.call("unsqueeze", "row", x=steps, dim=0)
    column = draft.call("permute", "column", x=row, dims=(1, 0))
    later = draft.call("gt", "later", x=row, y=column)
    zeros = draft.call("full", "zeros", shape=(), value=0.0, dtype=DType.FLOAT32)
    mask = draft.call("where", "mask", condition=later, x=float("-inf"), y=zeros)
    wide = draft.call("expand", "wide", x=mask, shape=(3, 4, 4))
    kept = draft.call("slice", "kept", x=wide, start=0, stop=1, dim=1)
    squeezed = draft.call("squeeze", "squeezed", x=kept, dims=(1,))
    graph = draft.graph(draft.call("add", "sum", x=first, y=squeezed))
    made = cleaned(graph)
    assert [node.id for node in made][:2] == ["@x", "first"]
    assert not {"arange", "full", "gt", "where"} & set(ops(made))
    assert {weight.role for weight in made.weights.values()} == {Role.CONSTANT}
    x = torch.randn(2, 3, 4)
    before, after = evaluate(graph, (x,)).unwrap(), evaluate(made, (x,)).unwrap()
    assert isinstance(before, torch.Tensor)
    assert isinstance(after, torch.Tensor)
    assert torch.equal(before, after)


@pytest.mark.parametrize("role", [Role.PARAMETER, Role.BUFFER])
def test_what_a_state_dict_may_change_is_not_computed(role: Role) -> None:
    draft, first = start()
    held = draft.weight("held", torch.ones(4), role)
    graph = draft.graph(draft.call("add", "sum", x=first, y=draft.call("neg", "n", x=held)))
    assert cleaned(graph) is graph


def test_large_or_inexact_constants_stay_nodes() -> None:
    draft, first = start()
    large = draft.call("full", "large", shape=(2000, 1, 3, 4), value=1, dtype=DType.FLOAT32)
    held = draft.weight("held", torch.ones(4), Role.CONSTANT)
    bent = draft.call("tanh", "bent", x=held)
    big = draft.call("expand", "big", x=large, shape=(2000, 100, 3, 4))
    total = draft.call("add", "s1", x=first, y=draft.call("contiguous", "c", x=big))
    made = cleaned(draft.graph(draft.call("add", "s2", x=total, y=bent)))
    assert {"contiguous", "tanh"} < set(ops(made))
