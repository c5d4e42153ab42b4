"""Examples of `smooth` and `equalize_inputs`: channels are levelled, folded or left as they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch.ao.quantization.fx._equalize import (
    _InputEqualizationObserver,
    _WeightEqualizationObserver,
    calculate_equalization_scale,
)

from fqx.ir.arg import NodeRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.ir.trail import Trail
from fqx.judge.evaluate import evaluate, values
from fqx.num.tensors import tensor_of
from fqx.passes.calibrate import calibrate
from fqx.passes.convert import convert
from fqx.passes.observe import observe
from fqx.passes.smooth import Smoothed, equalize_inputs, smooth
from fqx.passes.statistics import observers_in
from fqx.policy.plan import Plan
from fqx.policy.recipe import int8_static
from fqx.policy.verdicts import Reason
from fqx.targets.onednn import onednn
from fqx.testing.chains import watching_channels
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


def watched(graph: Graph, *inputs: torch.Tensor) -> Trail:
    road = observe(watching_channels(), onednn()) | calibrate([inputs], progress=False)
    return (road | equalize_inputs()).run(graph).unwrap()


def factors(graph: Graph, path: str) -> torch.Tensor:
    """What the channels were divided by."""
    return 1.0 / tensor_of(graph.weights[Path(path)]).unwrap().flatten()


def test_inputs_are_equalized_as_torch_does_to_the_nearest_power_of_two() -> None:
    graph, x = plain(), outliers(100)
    trail = watched(graph, x)
    weight = tensor_of(graph.weights[Path("fc.weight")]).unwrap()
    eq = _InputEqualizationObserver()
    weights = _WeightEqualizationObserver()
    eq(x)
    weights(weight)
    wanted = 1.0 / calculate_equalization_scale(eq, weights)
    assert torch.equal(factors(trail.graph, "fc.smooth_factor"), wanted.log2().round().exp2())
    assert torch.equal(output(trail.graph, x), output(graph, x))
    evidence = trail.steps[-1].evidence
    assert isinstance(evidence, Smoothed)
    assert evidence.choices[0].smoothed > evidence.choices[0].plain
    made = convert(onednn()).run(trail).unwrap()
    plan = made.steps[-1].evidence
    assert isinstance(plan, Plan)
    assert plan[NodeId("fc")].reason is Reason.SMOOTHED
    assert "equalized against the weight" in plan[NodeId("fc")].text


def output(graph: Graph, *inputs: torch.Tensor) -> torch.Tensor:
    made = evaluate(graph, inputs, {}).unwrap()
    parts = made if isinstance(made, tuple) else (made,)
    return torch.cat([part.flatten() for part in parts])


def grouped(groups: int) -> Graph:
    """A convolution of 8 channels whose weights are uneven too."""
    draft = Draft()
    weight = noise(6 if groups < 8 else 8, 8 // groups, 3, 3, seed=2)
    weight[:, 0] *= 37.0
    x = draft.input("x", "batch", 8, 6, 6)
    held = draft.weight("conv.weight", weight)
    y = draft.call(
        "conv2d",
        "conv",
        x=x,
        weight=held,
        groups=groups,
        stride=(1, 1),
        padding=(1, 1),
        dilation=(1, 1),
    )
    return draft.graph(y)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_input_of_a_convolution_is_equalized_by_channel(groups: int) -> None:
    graph = grouped(groups)
    x = noise(4, 8, 6, 6)
    x[:, 5] *= 300.0
    trail = watched(graph, x)
    found = factors(trail.graph, "conv.smooth_factor")
    assert found.shape == (8,)
    assert float(found[5]) > 4 * float(found[4])
    assert torch.equal(output(trail.graph, x), output(graph, x))
    seen = observers_in(trail.graph).unwrap().of[NodeId("@x:smooth")][0].state
    levelled = x / found.view(8, 1, 1)
    assert (float(seen.low), float(seen.high)) == (float(levelled.min()), float(levelled.max()))


def test_a_chain_of_equalized_layers_is_observed_as_it_is() -> None:
    """The range between two equalized layers is the one of the values that are there."""
    draft = Draft()
    x, sizes = draft.input("x", "batch", CHANNELS), (CHANNELS, 16, 4)
    for index, (size, out) in enumerate(zip(sizes, (16, 4, 4), strict=True)):
        uneven = torch.logspace(2, -2, size)
        weight = draft.weight(f"fc{index}.weight", noise(out, size, seed=index) * uneven)
        x = draft.call(
            "relu", f"relu{index}", x=draft.call("linear", f"fc{index}", x=x, weight=weight)
        )
    graph, data = draft.graph(x), noise(256, CHANNELS)
    made = watched(graph, data).graph
    assert torch.equal(output(made, data), output(graph, data))
    known = values(made, (data,), {}).unwrap()
    for name, listed in observers_in(made).unwrap().of.items():
        value = known[name]
        assert isinstance(value, torch.Tensor)
        for observer in listed:
            ends = float(observer.state.low), float(observer.state.high)
            assert ends == (float(value.min()), float(value.max())), name


def test_other_readers_of_an_equalized_value_read_it_as_it_was() -> None:
    draft = Draft()
    x = draft.input("x", "batch", CHANNELS)
    relu = draft.call("relu", "my_relu", x=x)
    outputs = [linear(draft, name, relu) for name in ("one", "three")]
    graph = draft.graph(*outputs, draft.call("exp", ":exp", x=relu))
    data = outliers(0.01)
    made = watched(graph, data).graph
    assert made[NodeId(":exp")].args[0] == NodeRef(NodeId("my_relu"))
    readers = {made[NodeId(name)].args[0] for name in ("one", "three")}
    assert readers == {NodeRef(NodeId("my_relu:smooth"))}
    assert torch.equal(output(made, data), output(graph, data))


def test_equalizing_inputs_folds_into_a_layer_norm_to_the_bit() -> None:
    graph, x = normed(extra=False), noise(256, CHANNELS)
    made = watched(graph, x).graph
    assert not any(node.op == "mul" for node in made)
    assert made.weights[Path("norm.weight")] != graph.weights[Path("norm.weight")]
    assert torch.equal(output(made, x), output(graph, x))


def test_an_input_that_is_always_zero_is_not_equalized() -> None:
    trail = watched(plain(), torch.zeros(4, CHANNELS))
    assert trail.steps[-1].graph is trail.steps[-2].graph
