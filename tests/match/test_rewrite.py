"""The engine: one diff for what changed, fuel, and what goes with a match."""

from __future__ import annotations

import torch

from fqx.ir.arg import NodeRef, WeightRef
from fqx.ir.diff import Added, Changed, Moved, Removed, apply, invert
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path, RuleName
from fqx.ir.weight import Role
from fqx.match.pattern import anything, op, stored
from fqx.match.rewrite import rewrite
from fqx.match.rule import Change, Made, Rule, Rules, rules
from fqx.match.search import Match
from fqx.num.tensors import weight_of
from fqx.ops.catalogue import make_node, with_operand
from fqx.testing.draft import Draft

x = anything("x")

UNDO = Rule(RuleName("undo"), op("neg")(op("neg")(x).named("inner")), lambda m: Change(m.arg("x")))


def square(found: Match) -> Made:
    name = found.fresh(found.root.id, "square")
    return Change(NodeRef(name), (make_node("square", name, x=found.arg("x")),))


SQUARE = Rule(RuleName("square"), op("mul")(x, x), square)


def ids(graph: Graph) -> list[str]:
    return list(graph.order)


def chain(length: int) -> Graph:
    draft = Draft()
    y = draft.input("x", 2)
    for index in range(length):
        y = draft.call("neg", f"n{index}", x=y)
    return draft.graph(y)


def test_nothing_to_do_gives_the_same_graph() -> None:
    graph = chain(1)
    made = rewrite(graph, rules(UNDO, SQUARE)).unwrap()
    assert made.graph is graph
    assert len(made.diff) == 0
    assert rewrite(graph, Rules()).unwrap().graph is graph


def test_a_chain_falls_together_in_one_call() -> None:
    made = rewrite(chain(1000), rules(UNDO)).unwrap()
    assert ids(made.graph) == ["@x"]
    assert made.graph.outputs == (NodeRef(NodeId("@x")),)


def test_the_diff_leads_there_and_back() -> None:
    graph = chain(7)
    made = rewrite(graph, rules(UNDO)).unwrap()
    assert apply(made.diff, graph).unwrap() == made.graph
    assert apply(invert(made.diff), made.graph).unwrap() == graph


def test_a_value_that_others_read_stays() -> None:
    draft = Draft()
    one = draft.call("neg", "one", x=draft.input("x", 2))
    two = draft.call("neg", "two", x=one)
    made = rewrite(draft.graph(two, one), rules(UNDO)).unwrap()
    assert ids(made.graph) == ["@x", "one"]
    assert made.graph.outputs == (NodeRef(NodeId("@x")), NodeRef(NodeId("one")))


def test_new_nodes_stand_where_the_root_stood() -> None:
    draft = Draft()
    value = draft.input("x", 2)
    before = draft.call("neg", "before", x=value)
    product = draft.call("mul", "m", x=before, y=before)
    after = draft.call("relu", "after", x=product)
    graph = draft.graph(draft.call("add", "sum", x=after, y=product))
    made = rewrite(graph, rules(SQUARE)).unwrap()
    assert ids(made.graph) == ["@x", "before", "m:square", "after", "sum"]
    kinds = [(type(edit), edit.by) for edit in made.diff.edits if not isinstance(edit, Moved)]
    assert kinds == [
        (Removed, "square"),
        (Added, "square"),
        (Changed, "square"),
        (Changed, "square"),
    ]


def test_names_of_new_nodes_are_free() -> None:
    draft = Draft()
    value = draft.input("x", 2)
    taken = draft.call("neg", "m:square", x=value)
    graph = draft.graph(draft.call("mul", "m", x=taken, y=taken))
    assert ids(rewrite(graph, rules(SQUARE)).unwrap().graph)[-1] == "m:square.1"


def double(found: Match) -> Made:
    layer, path = found.node("layer"), found.path("w")
    if layer is None or path is None:
        return Fault(FaultKind.NO_KERNEL, "no layer")
    payload = found.view.weights[path].payload
    assert isinstance(payload, torch.Tensor)
    new = found.fresh_path("doubled")
    return Change(
        NodeRef(layer.id),
        (with_operand(layer, "weight", WeightRef(new)),),
        {new: weight_of(payload * 2, Role.PARAMETER)},
        (Path("left"), Path("read"), Path("gone")),
    )


DOUBLE = Rule(
    RuleName("double"), op("mul")(op("linear")(x, stored("w"), ...).named("layer"), 2), double
)


def linear_twice() -> Graph:
    draft = Draft()
    y = draft.call("linear", "fc", x=draft.input("x", 3), weight=draft.weight("w", torch.eye(3)))
    draft.weight("left", torch.ones(1))
    read = draft.weight("read", torch.ones(1))
    product = draft.call("mul", "m", x=y, y=2)
    return draft.graph(draft.call("add", "a", x=product, y=read))


def test_weights_come_and_go_with_their_nodes() -> None:
    made = rewrite(linear_twice(), rules(DOUBLE)).unwrap()
    assert ids(made.graph) == ["@x", "fc", "a"]
    assert made.graph.weights.keys() == ("doubled", "read")
    text = [line.split()[:3] for line in str(made.diff).splitlines()[1:]]
    assert text[0][:2] == ["-", "weight"]
    assert [line[2] for line in text if line[1] == "weight"] == ["w", "doubled", "left"]


def test_a_rule_may_fail() -> None:
    broken = Rule(DOUBLE.name, op("mul")(x, 2), double)
    fault = rewrite(linear_twice(), rules(broken)).failure()
    assert (fault.kind, fault.at) == (FaultKind.NO_KERNEL, "m")


def flip(name: str, to: str) -> Rule:
    def make(found: Match) -> Made:
        new = found.fresh(NodeId("n"), to)
        return Change(NodeRef(new), (make_node(to, new, x=found.arg("x")),))

    return Rule(RuleName(name), op("neg" if to == "abs" else "abs")(x), make)


def test_rules_that_undo_each_other_run_out_of_fuel() -> None:
    both = rules(flip("to_abs", "abs"), flip("to_neg", "neg"))
    fault = rewrite(chain(1), both, fuel=7).failure()
    assert fault.kind is FaultKind.OUT_OF_FUEL
    assert "still applies after 7 changes" in fault.reason
    assert rewrite(chain(3), both).failure().kind is FaultKind.OUT_OF_FUEL


def test_a_rule_that_changes_nothing_does_not_loop() -> None:
    same = Rule(RuleName("same"), op("neg"), lambda m: Change(NodeRef(m.root.id), (m.root,)))
    graph = chain(2)
    assert rewrite(graph, rules(same)).unwrap().graph is graph


def test_an_update_takes_nodes_only() -> None:
    draft = Draft()
    draft.weight("state", torch.ones(2))
    value = draft.call("add", "a", x=draft.input("x", 2), y=0)
    draft.update("state", value)
    to_weight = Rule(RuleName("w"), op("add")(x, 0), lambda _: Change(WeightRef(Path("state"))))
    graph = draft.graph(value)
    assert rewrite(graph, rules(to_weight)).unwrap().graph is graph


def test_time_grows_with_the_program() -> None:
    # a cat of a thousand changed values is one edit, not a thousand of growing size
    draft = Draft()
    value = draft.input("x", 2)
    parts = []
    for index in range(1000):
        one = draft.call("neg", f"a{index}", x=value)
        parts.append(draft.call("neg", f"b{index}", x=one))
    graph = draft.graph(draft.call("cat", "cat", xs=tuple(parts)))
    made = rewrite(graph, rules(UNDO)).unwrap()
    assert len(made.diff) == 2001
