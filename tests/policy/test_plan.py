"""Examples of plans: total, and integers only where they pay."""

from __future__ import annotations

import json

import pytest
import torch

from fqx.ir.arg import DType, NodeRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.num.scheme import QSpec, histogram, int8_channel, uint8_affine
from fqx.passes.observe import observe
from fqx.policy.plan import Plan, decode_annotations, make_plan
from fqx.policy.recipe import Recipe, Rule, Scheme, int8_static, leave_float, use
from fqx.policy.selectors import everything, node, op
from fqx.policy.target import Target
from fqx.policy.verdicts import Fixed, Float, Own, Reason, SharedWith, Verdict
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.testing.draft import Draft

TARGETS = (onednn(), reference(), native("x86").unwrap(), native("onednn").unwrap())


def conv(draft: Draft, name: str, x: NodeRef, kernel: int = 1) -> NodeRef:
    weight = draft.weight(f"{name}.weight", torch.randn(4, 4, kernel, kernel) * 0.3)
    return draft.call(
        "conv2d", name, x=x, weight=weight, bias=None, padding=(kernel // 2, kernel // 2)
    )


def linear(draft: Draft, name: str, x: NodeRef, size: int = 8) -> NodeRef:
    weight = draft.weight(f"{name}.weight", torch.randn(size, size) * 0.3)
    return draft.call("linear", name, x=x, weight=weight)


def residual() -> Graph:
    """Two residual blocks behind a stem, then a pool and a convolution."""
    draft = Draft()
    x = conv(draft, "stem", draft.input("x", "batch", 4, 8, 8))
    for block in ("a", "b"):
        y = draft.call("relu", f"{block}.relu", x=conv(draft, f"{block}.one", x))
        y = draft.call("add", f"{block}:add", x=conv(draft, f"{block}.two", y), y=x)
        x = draft.call("relu", f"{block}.out", x=y)
    x = draft.call("max_pool2d", "pool", x=x, kernel_size=(2, 2), stride=(2, 2))
    return draft.graph(conv(draft, "last", x))


def transformer() -> Graph:
    """Two pre-norm feed-forward blocks on a residual stream."""
    draft = Draft()
    x = draft.input("x", "batch", 5, 8)
    for block in ("a", "b"):
        weight = draft.weight(f"{block}.norm.weight", torch.ones(8))
        y = draft.call("layer_norm", f"{block}.norm", x=x, weight=weight, shape=(8,))
        y = draft.call("gelu", f"{block}.gelu", x=linear(draft, f"{block}.up", y))
        x = draft.call("add", f"{block}:add", x=linear(draft, f"{block}.down", y), y=x)
    return draft.graph(x)


def plan_of(graph: Graph, target: Target = TARGETS[0], recipe: Recipe | None = None) -> Plan:
    return make_plan(graph, recipe or int8_static(), target).unwrap()


def reason(plan: Plan, name: str) -> Reason:
    return plan[NodeId(name)].reason


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
@pytest.mark.parametrize("make", [residual, transformer])
def test_every_node_has_one_verdict(make: object, target: Target) -> None:
    graph = make()  # type: ignore[operator]
    plan = plan_of(graph, target)
    assert plan.order == tuple(graph.order)
    assert sum(plan.counts().values()) == len(graph)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_a_residual_network_runs_on_integers(target: Target) -> None:
    plan = plan_of(residual(), target)
    floats = [name for name in plan.order if plan[name].verdict is Verdict.FLOAT]
    assert floats == []


def test_the_later_convolution_takes_the_addition() -> None:
    plan = plan_of(residual())
    assert plan[NodeId("a.two")].unit == "conv2d_add_relu of a.two"
    assert reason(plan, "a:add") is Reason.ABSORBED
    assert reason(plan, "a.out") is Reason.ABSORBED
    assert reason(plan, "pool") is Reason.MOVES_INTEGERS
    assert plan[NodeId("pool")].output == SharedWith(NodeId("b.out"))


def test_operands_and_result_of_an_addition_keep_their_own() -> None:
    plan = plan_of(residual())
    assert isinstance(plan[NodeId("a.out")].output, Own)
    assert plan[NodeId("a:add")].inputs["other"] == SharedWith(NodeId("stem"))
    assert isinstance(plan[NodeId("stem")].output, Own)


def test_the_residual_stream_of_a_transformer_stays_float() -> None:
    plan = plan_of(transformer())
    for block in ("a", "b"):
        assert reason(plan, f"{block}.up") is Reason.KERNEL
        assert reason(plan, f"{block}.gelu") is Reason.ABSORBED
        assert reason(plan, f"{block}.down") is Reason.KERNEL
        assert reason(plan, f"{block}:add") is Reason.BETWEEN_FLOATS
        assert "a lone scheme takes it" in plan[NodeId(f"{block}.norm")].text
        assert plan[NodeId(f"{block}.down")].output == Float(DType.FLOAT32)


def test_a_light_operator_between_floats_stays_float() -> None:
    draft = Draft()
    x, y = draft.input("x", "batch", 4), draft.input("y", "batch", 4)
    plan = plan_of(draft.graph(draft.call("add", ":add", x=x, y=y)))
    assert reason(plan, ":add") is Reason.BETWEEN_FLOATS
    assert plan.taps == ()


def test_overlapping_cats_share_one_scale() -> None:
    draft = Draft()
    x = draft.input("x", "batch", 4, 8, 8)
    a, b, c = (conv(draft, name, x) for name in "abc")
    one = draft.call("cat", ":cat", xs=(a, b), dim=1)
    two = draft.call("cat", ":cat.1", xs=(b, c), dim=1)
    both = draft.call("cat", ":cat.2", xs=(one, two), dim=1)
    weight = draft.weight("last.weight", torch.randn(4, 16, 1, 1))
    plan = plan_of(draft.graph(draft.call("conv2d", "last", x=both, weight=weight)))
    assert isinstance(plan[NodeId("a")].output, Own)
    for name in ("b", "c", ":cat", ":cat.1", ":cat.2"):
        assert plan[NodeId(name)].output == SharedWith(NodeId("a"))


def test_a_known_range_needs_no_statistics() -> None:
    draft = Draft()
    x = conv(draft, "one", draft.input("x", "batch", 4, 8, 8))
    gate = draft.call("sigmoid", ":sigmoid", x=x)
    scaled = draft.call("mul", ":mul", x=x, y=gate)
    plan = plan_of(draft.graph(conv(draft, "two", scaled)))
    known = plan[NodeId(":sigmoid")].output
    assert isinstance(known, Fixed)
    assert plan[NodeId(":mul")].inputs["y"] == SharedWith(NodeId(":sigmoid"))
    assert (known.scale, known.zero_point) == (1 / 256, 0)
    observers = {tap.value: tap.observer for tap in plan.taps}
    assert observers[NodeId(":sigmoid")].kind == "fixed"


def test_a_known_range_does_not_bind_others_in_its_group() -> None:
    draft = Draft()
    x = conv(draft, "one", draft.input("x", "batch", 4, 8, 8))
    both = draft.call("cat", ":cat", xs=(draft.call("sigmoid", ":sigmoid", x=x), x), dim=1)
    weight = draft.weight("last.weight", torch.randn(4, 8, 1, 1))
    plan = plan_of(draft.graph(draft.call("conv2d", "last", x=both, weight=weight)))
    assert isinstance(plan[NodeId("one")].output, Own)
    assert {tap.observer.kind for tap in plan.taps} == {"histogram"}


def test_what_the_recipe_leaves_float_names_the_rule() -> None:
    plan = plan_of(residual(), recipe=int8_static() | leave_float(node("a.one")))
    assert reason(plan, "a.one") is Reason.BY_RECIPE
    assert "a.one" in plan[NodeId("a.one")].text
    assert reason(plan, "a.relu") is Reason.BETWEEN_FLOATS


def test_other_integers_than_the_targets_are_a_verdict() -> None:
    odd = Scheme(QSpec(DType.INT8, -128, 127, observer=histogram()), int8_channel())
    plan = plan_of(residual(), recipe=int8_static() | use(op("conv2d"), odd))
    assert reason(plan, "stem") is Reason.UNFIT_SCHEME


def test_without_vnni_activations_are_narrower_and_the_verdict_says_so() -> None:
    plan = plan_of(residual(), onednn().narrowed())
    made = plan[NodeId("stem")]
    assert "0..127" in made.text
    assert isinstance(made.output, Own)
    assert (made.output.spec.qmin, made.output.spec.qmax) == (0, 127)


def test_a_plan_goes_to_json_and_back() -> None:
    for graph in (residual(), transformer()):
        plan = plan_of(graph)
        code = json.loads(json.dumps(plan.to_json()))
        assert decode_annotations(code) == dict(plan.annotations.items())
        assert len(repr(plan).splitlines()) <= 10


def test_an_empty_recipe_plans_nothing() -> None:
    plan = plan_of(residual(), recipe=Recipe((Rule(node("stem"), None),)))
    assert plan.counts()[Verdict.INT8] == 0


def test_the_plan_of_a_chain_of_additions_is_linear() -> None:
    draft = Draft()
    x = draft.input("x", "batch", 5, 8)
    for index in range(400):
        x = draft.call("add", f"{index}:add", x=linear(draft, f"{index}", x), y=x)
    plan = plan_of(draft.graph(draft.call("softmax", ":softmax", x=x, dim=2)))
    assert reason(plan, "399:add") is Reason.BETWEEN_FLOATS
    assert uint8_affine().qmax == 255


@pytest.mark.parametrize("target", [native("x86").unwrap(), reference()], ids=lambda t: t.label)
def test_norms_run_on_integers_only_for_a_scheme_that_asks(target: Target) -> None:
    plan = make_plan(transformer(), int8_static(), target).unwrap()
    assert reason(plan, "b.norm") is Reason.UNFIT
    assert "lone scheme" in plan[NodeId("b.norm")].text


@pytest.mark.parametrize("target", [native("x86").unwrap(), reference()], ids=lambda t: t.label)
def test_a_lone_scheme_takes_norms_and_averages(target: Target) -> None:
    lone = Recipe((Rule(everything(), Scheme(uint8_affine(), int8_channel(), lone=True), "lone"),))
    plan = make_plan(transformer(), lone, target).unwrap()
    assert reason(plan, "b.norm") is Reason.KERNEL
    draft = Draft()
    x = draft.input("x", "batch", 4, 6, 6)
    made = draft.call("adaptive_avg_pool2d", "pool", x=x, output_size=(1, 1))
    plan = make_plan(draft.graph(made), lone, target).unwrap()
    assert reason(plan, "pool") is Reason.MOVES_INTEGERS
    assert plan[NodeId("pool")].output == SharedWith(x.id)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_a_lone_scheme_leaves_parts_of_a_float_tuple_float(target: Target) -> None:
    lone = Recipe((Rule(everything(), Scheme(uint8_affine(), int8_channel(), lone=True), "lone"),))
    draft = Draft()
    x = draft.input("x", 5, 3, 8)
    weights = tuple(
        draft.weight(f"w{index}", torch.ones(shape))
        for index, shape in enumerate(((8, 8), (8, 8), (8,), (8,)))
    )
    hx = draft.weight("hx", torch.zeros(1, 3, 8))
    made = draft.call(
        "rnn_tanh", "rnn", x=x, hx=hx, weights=weights, has_biases=True, num_layers=1,
        bidirectional=False, batch_first=False, dropout=0.0,
    )  # fmt: skip
    steps = draft.call("getitem", "rnn:getitem", x=made, index=0)
    halves = draft.call("chunk", ":chunk", x=x, chunks=2, dim=2)
    half = draft.call("getitem", ":getitem", x=halves, index=0)
    graph = draft.graph(steps, half)
    plan = make_plan(graph, lone, target).unwrap()
    assert plan[NodeId("rnn:getitem")].verdict is Verdict.FLOAT
    assert plan[NodeId(":getitem")].verdict is Verdict.INT8
    observed = observe(lone, target).run(graph).unwrap().graph
    assert "rnn:observe" not in observed


@pytest.mark.parametrize("is_multiplied", [True, False])
def test_a_known_range_has_all_integers_where_no_product_reads_it(is_multiplied: bool) -> None:
    draft = Draft()
    x = draft.input("x", "batch", 8)
    gate = draft.call("sigmoid", "gate", x=linear(draft, "a", x))
    read = gate if is_multiplied else draft.call("mul", "kept", x=gate, y=linear(draft, "b", x))
    graph = draft.graph(linear(draft, "c", read))
    narrow = native("x86").unwrap()
    assert narrow.activation.qmax == 127
    source = make_plan(graph, int8_static(), narrow).unwrap()[NodeId("gate")].output
    assert isinstance(source, Fixed)
    steps = 128 if is_multiplied else 256
    assert (source.scale, source.spec.qmax) == (1 / steps, steps - 1)
