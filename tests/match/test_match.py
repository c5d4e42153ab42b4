"""Patterns: what they take, what they bind, and what a miss says."""

from __future__ import annotations

import pytest
import torch

from fqx.ir.arg import NodeRef, WeightRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName, Path, RuleName
from fqx.match.explain import explain
from fqx.match.pattern import Call, anything, each, either, number, op, optional, stored
from fqx.match.rule import Change, Rule, Rules, index_of, rules
from fqx.match.search import Match, Miss, match
from fqx.testing.draft import Draft


def graph() -> Graph:
    """relu(conv(x, w) + 1), and a cat of the convolution with itself."""
    draft = Draft()
    x = draft.input("x", "batch", 3, 8, 8)
    weight = draft.weight("w", torch.ones(4, 3, 1, 1))
    conv = draft.call("conv2d", "conv", x=x, weight=weight, groups=1)
    plus = draft.call("add", "plus", x=1, y=conv)
    relu = draft.call("relu", "relu", x=plus)
    return draft.graph(draft.call("cat", "cat", xs=(conv, conv), dim=1), relu)


def found(pattern: Call, at: str) -> Match:
    made = match(graph(), pattern, NodeId(at))
    assert isinstance(made, Match), made
    return made


def missed(pattern: Call, at: str) -> Miss:
    made = match(graph(), pattern, NodeId(at))
    assert isinstance(made, Miss), made
    return made


conv = op("conv2d")(anything("x"), stored("w"), ...)


def test_a_match_binds_names_and_covers_nodes() -> None:
    made = found(op("relu")(op("add")(number("n"), conv.named("conv"))), "relu")
    assert made.arg("n") == 1
    assert made.arg("x") == NodeRef(NodeId("@x"))
    assert made.path("w") == "w"
    assert made.node("conv") == graph()[NodeId("conv")]
    assert [node.id for node in made.nodes] == ["relu", "plus", "conv"]
    assert made.arg("nothing") is None
    assert not made.has("nothing")


def test_operands_may_swap() -> None:
    straight = op("add")(conv, 1)
    assert missed(straight, "plus").why == "1 is not conv2d"
    assert found(straight.commuting(), "plus").root.id == "plus"


def test_one_name_means_one_argument() -> None:
    pair = op("cat")(each(anything("same"), "all"))
    assert found(pair, "cat").arg("all") == (NodeRef(NodeId("conv")),) * 2
    both = op("add")(anything("y"), anything("y"))
    assert missed(both, "plus").why == "conv is not 1, the same y"


def test_alternatives_are_tried_in_order_and_again() -> None:
    # the first alternative binds n to 1, which only fails at the second operand
    pattern = op("add")(either(number("n"), anything("m")), either(number("n"), op("conv2d")))
    assert found(pattern, "plus").arg("n") == 1
    again = op("add")(either(anything("a"), 1), anything("a"))
    assert found(again, "plus").arg("a") == NodeRef(NodeId("conv"))


def test_absent_operands() -> None:
    pattern = op("conv2d")(anything(), stored(), optional(stored("bias")))
    assert not found(pattern, "conv").has("bias")


THREE_USES = "the value of conv has 3 uses, it must have one"


@pytest.mark.parametrize(
    "pattern, at, why, place",
    [
        (op("relu")(op("conv2d")), "relu", "plus is add, not conv2d", "plus"),
        (op("relu")(op("conv2d", "linear")), "relu", "plus is add, not conv2d or linear", "plus"),
        (
            op("add")(1, conv.alone()),
            "plus",
            "the value of conv has 3 uses, it must have one",
            "conv",
        ),
        (op("conv2d").having(groups=2), "conv", "groups is 1, not 2", "conv"),
        (op("conv2d").having(axis=2), "conv", "conv2d has no attribute axis", "conv"),
        (op("conv2d").where("too thin", lambda _: False), "conv", "too thin", "conv"),
        (op("conv2d")(anything()), "conv", "conv2d has 3 operands, not 1", "conv"),
        (op("conv2d")(stored(), ...), "conv", "@x is not a weight", "conv"),
        (op("add")(number(), number()), "plus", "conv is not a number", "plus"),
        (op("add")(2, ...), "plus", "1 is not 2", "plus"),
        (op("add")(1.0, ...), "plus", "1 is not 1.0", "plus"),
        (op("add")(each(anything()), ...), "plus", "1 is not a tuple of operands", "plus"),
        (op("relu"), "gone", "there is no node gone", "gone"),
    ],
)
def test_a_miss_says_why_and_where(pattern: Call, at: str, why: str, place: str) -> None:
    miss = missed(pattern, at)
    assert (miss.why, miss.at) == (why, place)


def test_the_deepest_miss_is_told() -> None:
    shallow, deep = op("relu")(1), op("relu")(op("add")(1, op("conv2d").having(groups=2)))
    pattern = op("relu")(either(1, op("add")(1, op("conv2d").having(groups=2))))
    assert missed(shallow, "relu").depth < missed(deep, "relu").depth
    assert missed(pattern, "relu").why == "groups is 1, not 2"


def test_a_shared_or_tied_weight_is_not_alone() -> None:
    lonely = op("linear")(anything(), stored("w").alone(), ...)
    for case in ("alone", "shared", "tied", "updated"):
        draft = Draft()
        x, weight = draft.input("x", 3, 3), draft.weight("w", torch.ones(3, 3))
        y = draft.call("linear", "fc", x=x, weight=weight)
        if case == "shared":
            draft.call("linear", "fc2", x=y, weight=WeightRef(Path("w")))
        if case == "tied":
            draft.tie("v", "w")
        if case == "updated":
            draft.update("w", y)
        made = match(draft.graph(y), lonely, NodeId("fc"))
        assert isinstance(made, Match) == (case == "alone")
        assert isinstance(made, Match) or made.why == "weight w is used elsewhere"


def keep(_: Match) -> Change:
    return Change(None)


def test_rules_are_a_monoid_indexed_by_root() -> None:
    one, two, any_op = (
        Rule(RuleName(name), pattern, keep)
        for name, pattern in (("one", op("relu")), ("two", op("relu", "add")), ("any", op()))
    )
    listed = rules(one) + rules(two, any_op)
    assert listed == Rules() + listed == listed + Rules()
    index = index_of(listed)
    assert [rule.name for rule in index.of(OpName("relu"))] == ["one", "two", "any"]
    assert [rule.name for rule in index.of(OpName("add"))] == ["two", "any"]
    assert [rule.name for rule in index.of(OpName("cat"))] == ["any"]


def test_explain_sorts_near_misses_by_depth() -> None:
    rule = Rule(
        RuleName("sum_of_conv"),
        op("add", "relu", "cat")(either(1, op("add")), conv.alone()),
        keep,
    )
    made = explain(rule, graph())
    assert made.applies == ()
    assert [near.root for near in made.misses] == ["plus", "relu", "cat"]
    assert str(made).splitlines()[:2] == [
        "sum_of_conv applies at 0 nodes",
        "  not at plus: the value of conv has 3 uses, it must have one",
    ]


def test_explain_takes_a_refusal_for_the_nearest_miss() -> None:
    rule = Rule(RuleName("never"), op("relu"), lambda _: Miss("I would rather not"))
    assert str(explain(rule, graph()).misses[0]) == "relu: I would rather not"
    assert explain(Rule(RuleName("yes"), op("relu"), keep), graph()).applies == ("relu",)
