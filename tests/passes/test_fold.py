"""Examples of `fold`, each proven bit for bit by the judge."""

from __future__ import annotations

import pytest
import torch

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.graph import Graph
from fqx.ir.names import Path, Stage
from fqx.judge.evaluate import evaluate
from fqx.passes.fold import fold
from fqx.testing.draft import Draft

GRID: dict[str, Arg] = {
    "scale": 0.05,
    "zero_point": 3,
    "qmin": 0,
    "qmax": 255,
    "dtype": DType.UINT8,
}


def quantize(draft: Draft, name: str, x: Arg, **given: Arg) -> NodeRef:
    return draft.call("quantize", name, x=x, **{**GRID, **given})


def dequantize(draft: Draft, name: str, x: Arg, **given: Arg) -> NodeRef:
    parts = {"scale": GRID["scale"], "zero_point": GRID["zero_point"], "dtype": DType.FLOAT32}
    return draft.call("dequantize", name, x=x, **{**parts, **given})


def start() -> tuple[Draft, NodeRef]:
    draft = Draft(Stage.QUANTIZED)
    return draft, draft.input("x", "batch", 8)


def folded(graph: Graph) -> Graph:
    made = fold().run(graph).unwrap().graph
    assert fold().run(made).unwrap().graph is made, "fold is idempotent"
    # values far outside, at the ends and halfway between two integers
    x = torch.tensor([[-1e6, -3.0, -0.15, -0.025, 0.0, 0.125, 12.6, 1e6]])
    for value in (x, x * 0.5, x + 0.6, torch.randn(4, 8) * 5):
        before, after = (evaluate(one, (value,)).unwrap() for one in (graph, made))
        assert isinstance(before, torch.Tensor)
        assert isinstance(after, torch.Tensor)
        assert torch.equal(before, after)
    return made


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph if node.op != "input"]


def test_a_pair_with_one_grid_goes() -> None:
    draft, x = start()
    value = dequantize(draft, "d1", quantize(draft, "q1", x))
    graph = draft.graph(dequantize(draft, "d2", quantize(draft, "q2", value)))
    assert ops(folded(graph)) == ["quantize", "dequantize"]


@pytest.mark.parametrize(
    "given",
    [
        {"scale": 0.06},
        {"zero_point": 4},
        {"qmax": 127},
        {"dtype": DType.INT8, "qmax": 127},
    ],
)
def test_a_pair_with_two_grids_stays(given: dict[str, Arg]) -> None:
    draft, x = start()
    value = dequantize(draft, "d1", quantize(draft, "q1", x))
    graph = draft.graph(quantize(draft, "q2", value, **given))
    assert ops(folded(graph)) == ["quantize", "dequantize", "quantize"]


def test_a_pair_through_bfloat16_stays() -> None:
    draft, x = start()
    value = dequantize(draft, "d1", quantize(draft, "q1", x), dtype=DType.BFLOAT16)
    graph = draft.graph(quantize(draft, "q2", value))
    assert ops(folded(graph)) == ["quantize", "dequantize", "quantize"]


@pytest.mark.parametrize("zero_point", [0, 3])
def test_relu_goes_where_the_range_begins_at_zero(zero_point: int) -> None:
    draft, x = start()
    relu = draft.call("relu", "r", x=x)
    graph = draft.graph(quantize(draft, "q", relu, zero_point=zero_point))
    assert ops(folded(graph)) == (["quantize"] if zero_point == 0 else ["relu", "quantize"])


@pytest.mark.parametrize("high, goes", [(6.0, True), (3.05, True), (3.0, True), (2.9, False)])
def test_clamp_goes_where_the_range_ends_before_it(high: float, goes: bool) -> None:
    draft, x = start()
    clamp = draft.call("clamp", "c", x=x, low=0, high=high)
    graph = draft.graph(quantize(draft, "q", clamp, zero_point=0, qmax=60))
    assert ops(folded(graph)) == (["quantize"] if goes else ["clamp", "quantize"])


def test_a_clamp_that_others_read_stays() -> None:
    draft, x = start()
    relu = draft.call("relu", "r", x=x)
    value = dequantize(draft, "d", quantize(draft, "q", relu, zero_point=0), zero_point=0)
    graph = draft.graph(draft.call("add", "a", x=value, y=relu))
    assert ops(folded(graph)) == ops(graph)


@pytest.mark.parametrize("zero_point", [0, 3])
def test_relu_goes_where_no_integer_is_negative(zero_point: int) -> None:
    draft, x = start()
    integers = quantize(draft, "q", x, zero_point=zero_point)
    value = dequantize(draft, "d", integers, zero_point=zero_point)
    made = folded(draft.graph(draft.call("relu", "r", x=value)))
    assert ops(made) == ["quantize", "dequantize"] + ([] if zero_point == 0 else ["relu"])


def test_a_constant_is_stored_in_integers() -> None:
    draft, x = start()
    weight = draft.weight("bias", torch.randn(8))
    value = dequantize(draft, "d", quantize(draft, "q", weight))
    made = folded(draft.graph(draft.call("add", "a", x=x, y=value)))
    assert ops(made) == ["dequantize", "add"]
    assert made.weights[Path("bias")].dtype is DType.UINT8


def test_a_constant_that_others_read_keeps_its_values() -> None:
    draft, x = start()
    weight = draft.weight("bias", torch.randn(8))
    value = dequantize(draft, "d", quantize(draft, "q", weight))
    twice = draft.call("add", "b", x=draft.call("add", "a", x=x, y=value), y=weight)
    made = folded(draft.graph(twice))
    assert made.weights.keys() == ("bias", "bias_quantized")


def test_a_constant_with_a_scale_per_channel() -> None:
    draft, x = start()
    weight = draft.weight("w", torch.randn(4, 8))
    scale = draft.weight("w_scale", torch.rand(4) + 0.01)
    given: dict[str, Arg] = {"scale": scale, "zero_point": 0, "axis": 0}
    integers = quantize(draft, "q", weight, qmin=-127, qmax=127, dtype=DType.INT8, **given)
    value = draft.call("dequantize", "d", x=integers, dtype=DType.FLOAT32, **given)
    made = folded(draft.graph(draft.call("linear", "fc", x=x, weight=value)))
    assert ops(made) == ["dequantize", "linear"]
    assert made.weights[Path("w")].dtype is DType.INT8
    (node,) = (node for node in made if node.op == "dequantize")
    assert node.args[0] == WeightRef(Path("w"))
