"""Examples of `observe`, `convert` and what they give: the reference program."""

from __future__ import annotations

import math

import pytest
import torch

from fqx.ir.arg import NodeRef, WeightRef
from fqx.ir.diff import apply, invert
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path, Stage
from fqx.ir.trail import Trail
from fqx.judge.evaluate import evaluate
from fqx.kit.result import fold
from fqx.num.affine import fake_quantize
from fqx.num.scheme import ObserverSpec, int8_channel, uint8_affine
from fqx.num.tensors import tensor_of
from fqx.passes.calibrate import calibrate
from fqx.passes.convert import convert
from fqx.passes.observe import observe, observe_plan
from fqx.policy.plan import Plan, make_plan, without_node
from fqx.policy.recipe import Recipe, Scheme, float_, int8_static, use
from fqx.policy.selectors import op
from fqx.policy.target import Target
from fqx.policy.verdicts import Reason
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.testing.draft import Draft

TARGETS = (onednn(), reference(), native("x86").unwrap(), onednn().narrowed())


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(draft: Draft, name: str, x: NodeRef, path: str | None = None) -> NodeRef:
    weight = WeightRef(Path(path)) if path else draft.weight(f"{name}.weight", noise(8, 8, seed=3))
    return draft.call("linear", name, x=x, weight=weight)


def mlp() -> Graph:
    draft = Draft()
    x = draft.call("relu", "relu", x=linear(draft, "one", draft.input("x", "batch", 8)))
    return draft.graph(linear(draft, "two", x))


def calibrated(
    graph: Graph, *batches: object, recipe: Recipe | None = None, targets: object = TARGETS
) -> Trail:
    assert isinstance(targets, tuple)
    road = observe(recipe or int8_static(), *targets) | calibrate(batches, progress=False)
    return road.run(graph).unwrap()


def converted(trail: Trail, target: Target) -> Graph:
    return convert(target).run(trail).unwrap().graph


def sqnr(found: object, wanted: object) -> float:
    assert isinstance(found, torch.Tensor)
    assert isinstance(wanted, torch.Tensor)
    noise = (found - wanted).square().sum()
    return 10 * math.log10(float(wanted.square().sum() / noise))


def test_observers_change_no_value_and_need_no_plan_beside_them() -> None:
    trail = observe(int8_static(), *TARGETS).run(mlp()).unwrap()
    assert trail.graph.stage is Stage.OBSERVED
    x = noise(4, 8)
    before, after = (evaluate(graph, (x,), {}).unwrap() for graph in trail.graphs())
    assert isinstance(before, torch.Tensor)
    assert isinstance(after, torch.Tensor)
    assert torch.equal(before, after)
    observers = [node for node in trail.graph if node.op == "observe"]
    assert [node.args[0] for node in observers][:2] == [
        NodeRef(NodeId("@x")),
        NodeRef(NodeId("relu")),
    ]
    assert [node.attrs["intent"] is not None for node in observers] == [
        True,
        *[False] * (len(observers) - 1),
    ]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_one_calibrated_graph_converts_for_every_target(target: Target) -> None:
    graph, x = mlp(), noise(64, 8)
    trail = calibrated(graph, x)
    made = converted(trail, target)
    assert made.stage is Stage.QUANTIZED
    assert not any(node.op == "observe" for node in made)
    assert sqnr(evaluate(made, (x,), {}).unwrap(), evaluate(graph, (x,), {}).unwrap()) > 30


def test_the_program_is_the_float_graph_with_fake_quantization() -> None:
    graph, x = mlp(), noise(64, 8)
    made = converted(calibrated(graph, x), onednn())

    def fake(value: torch.Tensor, name: str) -> torch.Tensor:
        node = made[NodeId(f"{name}:quantize")]
        scale, zero = node.args[1], node.args[2]
        assert isinstance(scale, float)
        assert isinstance(zero, int)
        return fake_quantize(value, scale, zero, 0, 255)

    def weight(name: str) -> torch.Tensor:
        integers = tensor_of(made.weights[Path(f"{name}.weight")]).unwrap()
        scale = tensor_of(made.weights[Path(f"{name}.weight_scale")]).unwrap()
        assert integers.dtype == torch.int8
        return integers.to(torch.float32) * scale[:, None]

    hidden = torch.relu(torch.nn.functional.linear(fake(x, "@x"), weight("one")))
    wanted = torch.nn.functional.linear(fake(hidden, "relu"), weight("two"))
    found = evaluate(made, (x,), {}).unwrap()
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, wanted)


def test_convert_is_undone_by_its_diff() -> None:
    trail = convert(onednn()).run(calibrated(mlp(), noise(16, 8))).unwrap()
    step = trail.steps[-1]
    assert apply(invert(step.diff), step.graph).unwrap() == trail.steps[-2].graph


def test_a_linear_called_twice_keeps_a_scale_for_each_call() -> None:
    draft = Draft()
    small, large = draft.input("x", "batch", 8), draft.input("y", "batch", 8)
    one = linear(draft, "fc", small)
    graph = draft.graph(one, linear(draft, "fc@1", large, "fc.weight"))
    inputs = (noise(64, 8).clamp(-1, 1), noise(64, 8, seed=1).clamp(-1, 1) * 50)
    for target in TARGETS[:3]:
        made = converted(calibrated(graph, inputs), target)
        found, wanted = evaluate(made, inputs, {}).unwrap(), evaluate(graph, inputs, {}).unwrap()
        assert isinstance(found, tuple)
        assert isinstance(wanted, tuple)
        for ours, theirs in zip(found, wanted, strict=True):
            assert float((ours - theirs).abs().max() / theirs.abs().max()) < 0.02
        assert made.weights[Path("fc.weight")].dtype.value == "int8"


def test_a_weight_that_is_also_read_as_float_stays_beside_its_integers() -> None:
    draft = Draft()
    tokens = draft.input("ids", "batch", 4)
    made = draft.call("relu", "relu", x=tokens)
    weight = draft.weight("embedding.weight", noise(8, 8))
    ahead = linear(draft, "one", draft.input("x", "batch", 8))
    head = draft.call("linear", "head", x=ahead, weight=weight)
    graph = draft.graph(head, draft.call("mul", ":mul", x=weight, y=2.0), made)
    trail = calibrated(graph, (noise(4, 4), noise(4, 8)))
    weights = converted(trail, onednn()).weights
    assert weights[Path("embedding.weight")].dtype.value == "float32"
    assert weights[Path("embedding.weight_int8")].dtype.value == "int8"
    assert Path("embedding.weight_int8_scale") in weights


def test_an_unmatched_recipe_halts() -> None:
    fault = refusal(observe(int8_static() | use(op("conv2d"), SCHEME).required(), onednn()), mlp())
    assert fault.kind is FaultKind.UNMATCHED_RULE
    assert refusal(observe(int8_static()), mlp()).kind is FaultKind.UNSUPPORTED_TARGET


SCHEME = Scheme(uint8_affine(ObserverSpec()), int8_channel())


def refusal(step: object, start: object) -> Fault:
    from fqx.passes.pipeline import Pass

    assert isinstance(step, Pass)
    assert isinstance(start, (Graph, Trail))
    return fold(step.run(start), lambda made: pytest.fail(repr(made)), lambda halt: halt.fault)


def test_a_target_that_was_not_observed_for_is_a_fault() -> None:
    trail = calibrated(mlp(), noise(16, 8), targets=(onednn(),))
    fault = refusal(convert(native("x86").unwrap()), trail)
    assert fault.kind is FaultKind.MISSING_STATISTICS
    assert fault.at == "two"
    assert "native/x86" in fault.remedy


def test_a_weight_with_nan_is_a_fault_naming_it() -> None:
    draft = Draft()
    weight = draft.weight("fc.weight", torch.full((8, 8), math.nan))
    graph = draft.graph(draft.call("linear", "fc", x=draft.input("x", "batch", 8), weight=weight))
    fault = refusal(convert(onednn()), calibrated(graph, noise(16, 8), targets=(onednn(),)))
    assert fault.kind is FaultKind.NOT_FINITE
    assert "fc.weight" in fault.reason


def test_float_quantizes_nothing() -> None:
    trail = calibrated(mlp(), noise(16, 8), recipe=float_())
    assert [node.op for node in converted(trail, onednn())] == [node.op for node in mlp()]


def test_an_edited_plan_is_observed() -> None:
    graph = mlp()
    plan = without_node(make_plan(graph, int8_static(), onednn()).unwrap(), NodeId("two"))
    road = observe_plan(plan) | calibrate([noise(16, 8)], progress=False) | convert(onednn())
    trail = road.run(graph).unwrap()
    made = trail.steps[-1].evidence
    assert isinstance(made, Plan)
    assert made[NodeId("one")].reason is Reason.KERNEL
    assert made[NodeId("two")].reason is Reason.BY_RECIPE
    assert "two:weight" not in trail.graph
    other = Draft()
    stranger = other.graph(linear(other, "other", other.input("x", "batch", 8)))
    assert refusal(observe_plan(plan), stranger).kind is FaultKind.CONFLICTING_PLAN


def test_a_quantized_value_that_others_ask_in_other_integers_is_requantized() -> None:
    narrow = Scheme(uint8_affine(qmax=15), int8_channel())
    draft = Draft()
    first = linear(draft, "one", draft.input("x", "batch", 8))
    graph = draft.graph(linear(draft, "two", draft.call("relu", "relu", x=first)))
    from fqx.policy.selectors import node

    trail = calibrated(graph, noise(64, 8), recipe=int8_static() | use(node("two"), narrow))
    made = converted(trail, onednn())
    assert made[NodeId("relu:quantize")].attrs["qmax"] == 255
    assert made[NodeId("relu:requantize")].attrs["qmax"] == 15


def test_the_recipe_may_ask_for_other_observers() -> None:
    trail = calibrated(
        mlp(), noise(16, 8), recipe=int8_static() | use(op("linear", "relu"), SCHEME)
    )
    node = converted(trail, onednn())[NodeId("@x:quantize")]
    x = noise(16, 8)
    assert node.args[1] == pytest.approx(float(x.max() - x.min()) / 255)
