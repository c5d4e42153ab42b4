"""Examples of `smooth`: what one scale ruins is levelled, folded or left float."""

from __future__ import annotations

import math

import pytest
import torch

from fqx.ir.arg import NodeRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.ir.trail import Trail
from fqx.judge.evaluate import evaluate
from fqx.passes.calibrate import calibrate
from fqx.passes.convert import convert
from fqx.passes.observe import observe
from fqx.passes.smooth import Smoothed, smooth
from fqx.policy.plan import Plan
from fqx.policy.recipe import int8_static
from fqx.policy.verdicts import Reason
from fqx.targets.onednn import onednn
from fqx.testing.draft import Draft

CHANNELS = 32


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outliers(size: float, count: int = 256, seed: int = 0) -> torch.Tensor:
    """Noise in which one channel of 32 is `size` times as large."""
    values = noise(count, CHANNELS, seed=seed)
    values[:, 3] *= size
    return values


def linear(draft: Draft, name: str, x: NodeRef) -> NodeRef:
    weight = draft.weight(f"{name}.weight", noise(16, CHANNELS, seed=len(name)))
    return draft.call("linear", name, x=x, weight=weight)


def plain() -> Graph:
    draft = Draft()
    return draft.graph(linear(draft, "fc", draft.input("x", "batch", CHANNELS)))


def normed(extra: bool) -> Graph:
    """A layer norm with uneven affine and two linears behind; with `extra`, another reader."""
    draft = Draft()
    gain = torch.ones(CHANNELS)
    gain[5] = 30.0
    weight, bias = draft.weight("norm.weight", gain), draft.weight("norm.bias", gain * 0.1)
    x = draft.input("x", "batch", CHANNELS)
    y = draft.call("layer_norm", "norm", x=x, weight=weight, bias=bias, shape=(CHANNELS,))
    outputs = [linear(draft, "query", y), linear(draft, "key", y)]
    return draft.graph(*outputs, *([draft.call("exp", ":exp", x=y)] if extra else []))


def smoothed(graph: Graph, x: torch.Tensor) -> Trail:
    road = observe(int8_static(), onednn()) | calibrate([x], progress=False) | smooth()
    return road.run(graph).unwrap()


def error(graph: Graph, other: Graph, x: torch.Tensor) -> float:
    found, wanted = evaluate(graph, (x,), {}).unwrap(), evaluate(other, (x,), {}).unwrap()
    ours = found if isinstance(found, tuple) else (found,)
    theirs = wanted if isinstance(wanted, tuple) else (wanted,)
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def test_even_inputs_are_left_alone() -> None:
    trail = smoothed(plain(), noise(256, CHANNELS))
    assert trail.steps[-1].graph is trail.steps[-2].graph


def test_uneven_inputs_are_divided_and_the_weight_multiplied() -> None:
    graph, x = plain(), outliers(12)
    trail = smoothed(graph, x)
    made = trail.graph
    assert made[NodeId("@x:smooth")].op == "mul"
    assert made[NodeId("fc")].args[0] == NodeRef(NodeId("@x:smooth"))
    assert Path("fc.smooth_factor") in made.weights
    # float32 rounding of one product more in each term
    assert error(made, graph, x) < 1e-6
    plainly = convert(onednn()).run(Trail(trail.base, trail.steps[:-1])).unwrap()
    levelled = convert(onednn()).run(trail).unwrap()
    unseen = outliers(12, seed=1)
    assert error(levelled.graph, graph, unseen) < 0.7 * error(plainly.graph, graph, unseen)
    plan = levelled.steps[-1].evidence
    assert isinstance(plan, Plan)
    assert plan[NodeId("fc")].reason is Reason.SMOOTHED
    assert "dB" in plan[NodeId("fc")].text
    assert plan[NodeId("@x:smooth")].reason is Reason.DIVISION


def test_a_layer_norm_nobody_else_reads_takes_the_division() -> None:
    graph, x = normed(extra=False), noise(256, CHANNELS)
    trail = smoothed(graph, x)
    evidence = trail.steps[-1].evidence
    assert isinstance(evidence, Smoothed)
    assert [choice.into for choice in evidence.choices] == ["its layer norm"]
    assert evidence.choices[0].linears == ("query", "key")
    assert not any(node.op == "mul" for node in trail.graph)
    assert error(trail.graph, graph, x) < 1e-5
    assert error(convert(onednn()).run(trail).unwrap().graph, graph, x) < 0.03


def test_a_layer_norm_that_others_read_keeps_its_affine() -> None:
    graph, x = normed(extra=True), noise(256, CHANNELS)
    made = smoothed(graph, x).graph
    assert made.weights[Path("norm.weight")] == graph.weights[Path("norm.weight")]
    muls = [node for node in made if node.op == "mul"]
    assert len(muls) == 1
    assert error(made, graph, x) < 1e-5


def test_one_huge_channel_leaves_the_linear_float() -> None:
    x = noise(4096, CHANNELS)
    x[:, 3] = 0.0
    x[7, 3] = 400.0
    trail = smoothed(plain(), x)
    assert trail.steps[-1].graph is trail.steps[-2].graph
    made = convert(onednn()).run(trail).unwrap()
    plan = made.steps[-1].evidence
    assert isinstance(plan, Plan)
    assert plan[NodeId("fc")].reason is Reason.RUINOUS_INPUT
    assert "fc:weight" not in made.graph


@pytest.mark.parametrize("called", ["same input", "two inputs"])
def test_a_weight_of_two_calls_is_smoothed_for_each(called: str) -> None:
    draft = Draft()
    x, y = draft.input("x", "batch", CHANNELS), draft.input("y", "batch", CHANNELS)
    weight = draft.weight("fc.weight", noise(16, CHANNELS, seed=2))
    one = draft.call("linear", "fc", x=x, weight=weight)
    other = x if called == "same input" else y
    graph = draft.graph(one, draft.call("linear", "fc@1", x=other, weight=weight))
    inputs = (outliers(12), outliers(12, seed=4).roll(1, 1))
    road = observe(int8_static(), onednn()) | calibrate([inputs], progress=False) | smooth()
    made = road.run(graph).unwrap().graph
    found, wanted = (evaluate(item, inputs, {}).unwrap() for item in (made, graph))
    assert isinstance(found, tuple)
    assert isinstance(wanted, tuple)
    for ours, theirs in zip(found, wanted, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-6
    separate = Path("fc@1.smoothed_weight") in made.weights
    assert separate is (called == "two inputs")


def test_a_dead_channel_divides_by_no_zero() -> None:
    x = outliers(12)
    x[:, 9] = 0.0
    graph = plain()
    made = smoothed(graph, x).graph
    assert error(made, graph, x) < 1e-6
    assert math.isfinite(error(made, graph, outliers(12, seed=3)))
