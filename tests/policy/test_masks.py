"""Examples of what stays float whatever is asked: masks, and what is no activation."""

from __future__ import annotations

import math

import pytest
import torch

from fqx.ir.arg import Arg, DType, NodeRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.weight import Role
from fqx.num.scheme import int8_channel, uint8_affine
from fqx.policy.plan import Plan, make_plan
from fqx.policy.recipe import Recipe, Rule, Scheme
from fqx.policy.selectors import everything
from fqx.policy.verdicts import Reason, Verdict
from fqx.targets.native import native
from fqx.testing.draft import Draft

LONE = Recipe((Rule(everything(), Scheme(uint8_affine(), int8_channel(), lone=True), "lone"),))


def plan_of(graph: Graph) -> Plan:
    return make_plan(graph, LONE, native("x86").unwrap()).unwrap()


def term(draft: Draft, kind: str, x: NodeRef) -> Arg:
    """What is added to scores."""
    where: dict[str, Arg] = {"x": 0.0, "y": -math.inf}
    match kind:
        case "input":
            return draft.input("mask", 4, 4)
        case "scaled input":
            mask = draft.input("mask", 4, 4)
            return draft.call("mul", ":mul", x=mask, y=-1e9)
        case "boolean":
            held = draft.input("mask", 4, 4, dtype=DType.BOOL)
            return draft.call("where", "mask:where", condition=held, **where)
        case "tokens":
            held = draft.input("mask", 4, 4, dtype=DType.INT64)
            wide = draft.call("to", "mask:to", x=held, dtype=DType.FLOAT32)
            return draft.call("mul", ":mul", x=wide, y=-1e9)
        case "full":
            return draft.call("full", ":full", shape=(4, 4), value=-1.0, dtype=DType.FLOAT32)
        case "buffer" | "parameter":
            role = Role.BUFFER if kind == "buffer" else Role.PARAMETER
            stored = draft.weight("m", torch.zeros(4, 4), role)
            return draft.call("contiguous", ":contiguous", x=stored)
        case _:
            return x


def scores(kind: str) -> Graph:
    """Scaled scores of a layer, and what a softmax makes of them and a term."""
    draft = Draft()
    x = draft.input("x", 4, 4)
    weight = draft.weight("fc.weight", torch.randn(4, 4))
    made = draft.call("linear", "fc", x=x, weight=weight)
    made = draft.call("mul", "scaled", x=made, y=made)
    made = draft.call("add", "masked", x=made, y=term(draft, kind, x))
    made = draft.call("softmax", "softmax", x=draft.call("relu", "relu", x=made), dim=1)
    last = draft.call("linear", "last", x=made, weight=weight)
    return draft.graph(last)


MASKS = ("input", "scaled input", "boolean", "tokens", "full", "buffer")


@pytest.mark.parametrize("kind", MASKS)
def test_all_from_a_mask_to_its_softmax_stays_float(kind: str) -> None:
    plan = plan_of(scores(kind))
    assert plan[NodeId("scaled")].verdict is Verdict.INT8
    for name in ("masked", "relu", "softmax"):
        assert plan[NodeId(name)].reason is Reason.MASKED
        assert "mask" in str(plan[NodeId(name)])
    assert plan[NodeId("last")].verdict is Verdict.INT8
    assert {tap.value for tap in plan.taps} <= {"@x", "fc", "scaled", "softmax", "last"}


@pytest.mark.parametrize("kind", ["parameter", "residual"])
def test_what_is_added_need_not_be_a_mask(kind: str) -> None:
    plan = plan_of(scores(kind))
    for name in ("scaled", "masked", "softmax"):
        assert plan[NodeId(name)].verdict is Verdict.INT8


def test_the_mask_of_a_whole_attention_stays_float() -> None:
    draft = Draft()
    q, ids = draft.input("q", 1, 4, 4), draft.input("ids", 4, 4, dtype=DType.INT64)
    rows = draft.call("embedding", "bias", x=ids, weight=draft.weight("w", torch.randn(9, 1)))
    rows = draft.call("squeeze", ":squeeze", x=rows, dims=(2,))
    wide = draft.call("to", ":to", x=ids, dtype=DType.FLOAT32)
    shut = draft.call("mul", ":mul", x=wide, y=-1e9)
    mask = draft.call("add", ":add", x=rows, y=shut)
    made = draft.call("scaled_dot_product_attention", "a", q=q, k=q, v=q, mask=mask)
    plan = plan_of(draft.graph(made))
    assert plan[NodeId(":add")].reason is Reason.MASKED
    assert plan[NodeId(":mul")].reason is Reason.NO_ACTIVATION
    assert not plan.taps


def test_what_integers_and_constants_give_is_not_observed() -> None:
    draft = Draft()
    ids, x = draft.input("ids", 4, 4, dtype=DType.INT64), draft.input("x", 4, 4)
    wide = draft.call("to", ":to", x=ids, dtype=DType.FLOAT32)
    ones = draft.call("full", ":full", shape=(4, 4), value=1.0, dtype=DType.FLOAT32)
    constant = draft.weight("c", torch.ones(4, 4), Role.CONSTANT)
    still = draft.call("add", ":add", x=wide, y=ones)
    still = draft.call("add", ":add.1", x=still, y=draft.call("contiguous", ":c", x=constant))
    flags = draft.call("gt", ":gt", x=x, y=0.0)
    shares = draft.call("to", ":to.1", x=flags, dtype=DType.FLOAT32)
    still = draft.call("mul", ":mul", x=still, y=shares)
    lively = draft.call("add", ":add.2", x=x, y=still)
    plan = plan_of(draft.graph(lively))
    for name in (":add", ":add.1", ":mul"):
        assert plan[NodeId(name)].reason is Reason.NO_ACTIVATION
        assert plan[NodeId(name)].verdict is Verdict.OUTSIDE
    assert plan[NodeId(":add.2")].verdict is Verdict.INT8
