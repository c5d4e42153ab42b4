"""Examples of `fuse`: what is folded, what is not and why, and that the meaning stays."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from fqx.ir.arg import Arg, DType, NodeRef, Training, WeightRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path, Stage
from fqx.ir.trail import Trail
from fqx.ir.weight import Layout, Role
from fqx.judge.evaluate import evaluate
from fqx.match.explain import explain
from fqx.num.tensors import tensor_of
from fqx.ops.types import types
from fqx.passes.fuse import fuse
from fqx.passes.fuse_norms import foldings
from fqx.testing.draft import Draft

torch.manual_seed(0)


def fused(graph: Graph) -> Graph:
    trail = fuse().run(graph).unwrap()
    assert isinstance(trail, Trail)
    again = fuse().run(trail.graph).unwrap()
    assert again.graph is trail.graph, "fuse is idempotent"
    return trail.graph


def close(graph: Graph, *inputs: torch.Tensor, rounding: float = 1e-5) -> None:
    """Fusing moves last bits only: float32 sums of some dozens of terms of size one."""
    before = evaluate(graph, inputs, {}).unwrap()
    after = evaluate(fused(graph), inputs, {}).unwrap()
    assert isinstance(before, torch.Tensor)
    assert isinstance(after, torch.Tensor)
    torch.testing.assert_close(after, before, rtol=rounding, atol=rounding)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph if node.op != "input"]


def norm(draft: Draft, name: str, x: Arg, channels: int, **given: Arg) -> NodeRef:
    parts: dict[str, Arg] = {
        "weight": draft.weight(f"{name}.weight", torch.rand(channels) + 0.5),
        "bias": draft.weight(f"{name}.bias", torch.randn(channels)),
        "mean": draft.weight(f"{name}.running_mean", torch.randn(channels), Role.BUFFER),
        "var": draft.weight(f"{name}.running_var", torch.rand(channels) + 0.1, Role.BUFFER),
    }
    draft.weight(f"{name}.num_batches_tracked", torch.tensor(7), Role.BUFFER)
    return draft.call("batch_norm", name, x=x, **{**parts, **given})


LAYERS = [
    ("conv1d", (4, 3, 3), (2, 3, 8), {"padding": (1,)}),
    ("conv2d", (4, 3, 3, 3), (2, 3, 8, 8), {"stride": (2, 2)}),
    ("conv2d", (6, 1, 3, 3), (2, 3, 8, 8), {"groups": 3}),
    ("conv3d", (4, 3, 1, 3, 3), (2, 3, 2, 8, 8), {}),
    ("conv_transpose1d", (3, 4, 3), (2, 3, 8), {}),
    ("conv_transpose2d", (6, 2, 3, 3), (2, 6, 5, 5), {"groups": 3, "stride": (2, 2)}),
    ("conv_transpose3d", (3, 4, 1, 2, 2), (2, 3, 2, 3, 3), {}),
    ("linear", (4, 3), (5, 3), {}),
]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("op, shape, size, attrs", LAYERS)
def test_a_norm_is_folded_into_the_layer_before_it(
    op: str, shape: tuple[int, ...], size: tuple[int, ...], attrs: dict[str, Arg], with_bias: bool
) -> None:
    draft = Draft()
    groups = attrs.get("groups", 1)
    assert isinstance(groups, int)
    channels = shape[1] * groups if "transpose" in op else shape[0]
    bias = draft.weight("layer.bias", torch.randn(channels)) if with_bias else None
    weight = draft.weight("layer.weight", torch.randn(shape), grad=True)
    layer = draft.call(op, "layer", x=draft.input("x", *size), weight=weight, bias=bias, **attrs)
    graph = draft.graph(norm(draft, "bn", layer, channels))
    made = fused(graph)
    assert ops(made) == [op]
    assert made.weights.keys() == ("layer.bias", "layer.weight")
    assert made[NodeId("layer")].args[1:] == (
        WeightRef(Path("layer.weight")),
        WeightRef(Path("layer.bias")),
    )
    assert made.weights[Path("layer.weight")].requires_grad
    assert made.outputs == (NodeRef(NodeId("layer")),)
    assert made.stage is Stage.FUSED
    close(graph, torch.randn(size))


@pytest.mark.parametrize("absent", [("weight",), ("bias",), ("weight", "bias")])
def test_a_norm_without_affine_part_is_folded(absent: tuple[str, ...]) -> None:
    draft = Draft()
    weight = draft.weight("c.weight", torch.randn(4, 3, 3, 3))
    conv = draft.call("conv2d", "c", x=draft.input("x", 2, 3, 6, 6), weight=weight)
    graph = draft.graph(norm(draft, "bn", conv, 4, **dict.fromkeys(absent)))
    assert ops(fused(graph)) == ["conv2d"]
    close(graph, torch.randn(2, 3, 6, 6))


def test_two_norms_behind_each_other_are_both_folded() -> None:
    draft = Draft()
    weight = draft.weight("c.weight", torch.randn(4, 3, 1, 1))
    conv = draft.call("conv2d", "c", x=draft.input("x", 2, 3, 6, 6), weight=weight)
    graph = draft.graph(norm(draft, "bn2", norm(draft, "bn1", conv, 4), 4))
    assert ops(fused(graph)) == ["conv2d"]
    close(graph, torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("op", ["conv2d", "conv_transpose2d", "linear"])
def test_single_precision_gives_the_bits_of_torch(op: str, biased: bool) -> None:
    # as wide as vectors and a rest, so that torch's vector and scalar code both have a part
    channels, transposed = 37, op == "conv_transpose2d"
    shape = {"linear": (channels, 5), "conv_transpose2d": (5, channels, 3, 3)}
    weight, bias = torch.randn(shape.get(op, (channels, 5, 3, 3))), torch.randn(channels)
    dims = (2, 5) if op == "linear" else (2, 5, 8, 8)
    draft = Draft()
    given: dict[str, Arg] = {"x": draft.input("x", *dims), "weight": draft.weight("c.w", weight)}
    given |= {"bias": draft.weight("c.b", bias)} if biased else {}
    graph = draft.graph(norm(draft, "bn", draft.call(op, "c", **given), channels))
    parts = {
        name: tensor_of(graph.weights[Path(f"bn.{name}")]).unwrap()
        for name in ("running_mean", "running_var", "weight", "bias")
    }
    held = (parts["running_mean"], parts["running_var"], 1e-5, parts["weight"], parts["bias"])
    wanted = (
        fuse_linear_bn_weights(weight, bias if biased else None, *held)
        if op == "linear"
        else fuse_conv_bn_weights(weight, bias if biased else None, *held, transpose=transposed)
    )
    made = fuse("float32").run(graph).unwrap().graph
    (node,) = (node for node in made if node.op == op)
    for place, tensor in zip((1, 2), wanted, strict=True):
        ref = node.args[place]
        assert isinstance(ref, WeightRef)
        assert torch.equal(tensor_of(made.weights[ref.path]).unwrap(), tensor)


def reasons(graph: Graph) -> str:
    (rule,) = foldings()
    return str(explain(rule, graph, types(graph)))


@pytest.mark.parametrize(
    "given, why",
    [
        ({"training": True}, "training is True, not False"),
        ({"training": Training()}, "training is training, not False"),
        ({"mean": None, "var": None}, "it normalizes by the statistics of the batch itself"),
    ],
)
def test_a_norm_over_the_batch_stays(given: dict[str, Arg], why: str) -> None:
    draft = Draft()
    weight = draft.weight("c.weight", torch.randn(4, 3, 3, 3))
    conv = draft.call("conv2d", "c", x=draft.input("x", 2, 3, 6, 6), weight=weight)
    graph = draft.graph(norm(draft, "bn", conv, 4, **given))
    assert ops(fused(graph)) == ["conv2d", "batch_norm"]
    assert why in reasons(graph)


def test_a_linear_of_rank_three_keeps_its_norm() -> None:
    draft = Draft()
    weight = draft.weight("fc.weight", torch.randn(4, 3))
    layer = draft.call("linear", "fc", x=draft.input("x", 2, 4, 3), weight=weight)
    graph = draft.graph(norm(draft, "bn", layer, 4))
    assert ops(fused(graph)) == ["linear", "batch_norm"]
    assert "rank 3, so axis 1, which the batch norm scales, is not its output" in reasons(graph)


def test_a_value_that_is_read_elsewhere_keeps_its_norm() -> None:
    draft = Draft()
    weight = draft.weight("c.weight", torch.randn(4, 3, 3, 3))
    conv = draft.call("conv2d", "c", x=draft.input("x", 2, 3, 6, 6), weight=weight)
    graph = draft.graph(norm(draft, "bn", conv, 4), conv)
    assert ops(fused(graph)) == ["conv2d", "batch_norm"]
    assert "the value of c has 2 uses, it must have one" in reasons(graph)


def test_a_variance_of_minus_eps_is_not_folded() -> None:
    draft = Draft()
    weight = draft.weight("c.weight", torch.randn(4, 3, 3, 3))
    conv = draft.call("conv2d", "c", x=draft.input("x", 2, 3, 6, 6), weight=weight)
    var = draft.weight("var", torch.full((4,), -1.0))
    graph = draft.graph(norm(draft, "bn", conv, 4, var=var))
    assert ops(fused(graph)) == ["conv2d", "batch_norm"]
    assert "would not be finite" in reasons(graph)


def test_a_weight_that_others_read_keeps_its_values() -> None:
    draft = Draft()
    x = draft.input("x", 2, 3, 6, 6)
    tensor = torch.randn(4, 3, 3, 3)
    weight = draft.weight("c.weight", tensor)
    one = norm(draft, "bn", draft.call("conv2d", "c", x=x, weight=weight), 4)
    two = draft.call("conv2d", "c@1", x=x, weight=weight)
    graph = draft.graph(draft.call("add", "sum", x=one, y=two))
    made = fused(graph)
    assert made.weights.keys() == ("c.fused_bias", "c.fused_weight", "c.weight")
    assert made.weights[Path("c.weight")] == graph.weights[Path("c.weight")]
    close(graph, torch.randn(2, 3, 6, 6))


def test_a_tied_weight_keeps_its_values() -> None:
    draft = Draft()
    weight = draft.weight("c.weight", torch.randn(4, 3, 3, 3))
    draft.tie("other.weight", "c.weight")
    conv = draft.call("conv2d", "c", x=draft.input("x", 2, 3, 6, 6), weight=weight)
    made = fused(draft.graph(norm(draft, "bn", conv, 4)))
    assert made.weights.keys() == ("c.fused_bias", "c.fused_weight", "c.weight")


@pytest.mark.parametrize("same_norm", [True, False])
def test_a_module_called_twice(same_norm: bool) -> None:
    draft = Draft()
    x = draft.input("x", 2, 3, 6, 6)
    weight = draft.weight("c.weight", torch.randn(3, 3, 1, 1))
    bias = draft.weight("c.bias", torch.randn(3))
    first = draft.call("conv2d", "c", x=x, weight=weight, bias=bias)
    one = norm(draft, "bn", first, 3)
    second = draft.call("conv2d", "c@1", x=one, weight=weight, bias=bias)
    if same_norm:
        kept = ("weight", "bias", "running_mean", "running_var")
        parts = [WeightRef(Path(f"bn.{name}")) for name in kept]
        names = ("weight", "bias", "mean", "var")
        two = draft.call("batch_norm", "bn@1", x=second, **dict(zip(names, parts, strict=True)))
    else:
        two = norm(draft, "other", second, 3)
    graph = draft.graph(two)
    made = fused(graph)
    assert ops(made) == ["conv2d", "conv2d"]
    if same_norm:
        assert made.weights.keys() == ("c.fused_bias", "c.fused_weight")
    else:
        assert len(made.weights) == 4
    close(graph, torch.randn(2, 3, 6, 6))


def test_a_folded_weight_keeps_its_layout() -> None:
    draft = Draft()
    held = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    weight = draft.weight("c.weight", held)
    conv = draft.call("conv2d", "c", x=draft.input("x", 2, 3, 6, 6), weight=weight)
    made = fused(draft.graph(norm(draft, "bn", conv, 4)))
    assert made.weights[Path("c.weight")].layout is Layout.CHANNELS_LAST
    assert made.weights[Path("c.bias")].layout is Layout.CONTIGUOUS


def test_folding_rounds_once_from_float64() -> None:
    draft = Draft()
    tensor = torch.randn(4, 3, 1, 1)
    weight = draft.weight("c.weight", tensor)
    conv = draft.call("conv2d", "c", x=draft.input("x", 2, 3, 6, 6), weight=weight)
    graph = draft.graph(norm(draft, "bn", conv, 4))
    parts = [
        graph.weights[Path(f"bn.{name}")].payload
        for name in ("weight", "bias", "running_mean", "running_var")
    ]
    gamma, beta, mean, var = (p.double() for p in parts if isinstance(p, torch.Tensor))
    factor = gamma / torch.sqrt(var + 1e-5)
    made = fused(graph)
    folded, bias = made.weights[Path("c.weight")].payload, made.weights[Path("c.bias")].payload
    assert isinstance(folded, torch.Tensor)
    assert isinstance(bias, torch.Tensor)
    assert torch.equal(folded, (tensor.double() * factor.reshape(4, 1, 1, 1)).float())
    assert torch.equal(bias, ((0.0 - mean) * factor + beta).float())


# -- spellings --


def linear_inputs() -> tuple[Draft, NodeRef]:
    draft = Draft()
    return draft, draft.input("x", "batch", 5, 3)


def test_a_product_with_a_transposed_weight_is_a_linear() -> None:
    draft, x = linear_inputs()
    w = draft.call("permute", "t", x=draft.weight("w", torch.randn(4, 3)), dims=(1, 0))
    product = draft.call("matmul", "m", x=x, y=w)
    graph = draft.graph(draft.call("add", "a", x=draft.weight("b", torch.randn(4)), y=product))
    made = fused(graph)
    assert ops(made) == ["linear"]
    assert made.weights == graph.weights
    close(graph, torch.randn(2, 5, 3))


def test_a_product_with_a_weight_is_a_linear() -> None:
    draft, x = linear_inputs()
    graph = draft.graph(draft.call("matmul", "m", x=x, y=draft.weight("w", torch.randn(3, 4))))
    made = fused(graph)
    assert ops(made) == ["linear"]
    assert made.weights.keys() == ("w_t",)
    close(graph, torch.randn(2, 5, 3))


@pytest.mark.parametrize("transposed", [True, False])
def test_addmm_is_a_linear(transposed: bool) -> None:
    draft = Draft()
    x, held = draft.input("x", "batch", 3), torch.randn(4, 3)
    if transposed:
        w: Arg = draft.call("permute", "t", x=draft.weight("w", held), dims=(1, 0))
    else:
        w = draft.weight("w", held.t())
    bias = draft.weight("b", torch.randn(4))
    graph = draft.graph(draft.call("addmm", "m", input=bias, x=x, y=w))
    assert ops(fused(graph)) == ["linear"]
    close(graph, torch.randn(2, 3))


def test_what_is_no_bias_is_not_taken_for_one() -> None:
    draft, x = linear_inputs()
    layer = draft.call("linear", "fc", x=x, weight=draft.weight("w", torch.randn(4, 3)))
    shift = draft.weight("shift", torch.randn(5, 1))
    assert ops(fused(draft.graph(draft.call("add", "a", x=layer, y=shift)))) == ["linear", "add"]


def test_silu_hardswish_and_mish_are_found() -> None:
    draft, x = linear_inputs()
    y = draft.call("mul", "m1", x=draft.call("sigmoid", "s", x=x), y=x)
    y = draft.call("mul", "m2", x=y, y=draft.call("hardsigmoid", "h", x=y))
    soft = draft.call("softplus", "sp", x=y)
    graph = draft.graph(draft.call("mul", "m3", x=y, y=draft.call("tanh", "t", x=soft)))
    assert ops(fused(graph)) == ["silu", "hardswish", "mish"]
    close(graph, torch.randn(2, 5, 3))


def test_hardswish_in_arithmetic() -> None:
    draft, x = linear_inputs()
    ramp = draft.call("clamp", "c", x=draft.call("add", "a", x=x, y=3), low=0, high=6.0)
    graph = draft.graph(draft.call("div", "d", x=draft.call("mul", "m", x=x, y=ramp), y=6))
    assert ops(fused(graph)) == ["hardswish"]
    close(graph, torch.randn(2, 5, 3) * 4)


@pytest.mark.parametrize("tanh", [True, False])
def test_gelu_in_arithmetic(tanh: bool) -> None:
    draft, x = linear_inputs()
    if tanh:
        cube = draft.call("mul", "k", x=0.044715, y=draft.call("pow", "p", x=x, y=3.0))
        inner = draft.call("add", "i", x=x, y=cube)
        scaled = draft.call("mul", "s", x=math.sqrt(2 / math.pi), y=inner)
        bent = draft.call("tanh", "t", x=scaled)
    else:
        bent = draft.call("erf", "e", x=draft.call("div", "d", x=x, y=math.sqrt(2)))
    half = draft.call("mul", "h", x=0.5, y=x)
    grown = draft.call("add", "g", x=1.0, y=bent)
    graph = draft.graph(draft.call("mul", "m", x=half, y=grown))
    made = fused(graph)
    assert ops(made) == ["gelu"]
    (gelu,) = (node for node in made if node.op == "gelu")
    assert gelu.attrs["approximate"] == ("tanh" if tanh else "none")
    close(graph, torch.randn(2, 5, 3))


def test_x_times_sigmoid_of_another_value_stays() -> None:
    draft, x = linear_inputs()
    other = draft.call("neg", "n", x=x)
    graph = draft.graph(draft.call("mul", "m", x=other, y=draft.call("sigmoid", "s", x=x)))
    assert ops(fused(graph)) == ["neg", "sigmoid", "mul"]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("divided", [True, False])
def test_attention_by_hand_is_one_op(masked: bool, divided: bool) -> None:
    draft = Draft()
    q, k, v = (draft.input(name, "batch", 2, 6, 4) for name in "qkv")
    mask = draft.input("mask", "batch", 1, 1, 6)
    turned = draft.call("permute", "kt", x=k, dims=(0, 1, 3, 2))
    scores = draft.call("matmul", "s", x=q, y=turned)
    if divided:
        scores = draft.call("div", "d", x=scores, y=2.0)
    else:
        scores = draft.call("mul", "d", x=scores, y=0.5)
    if masked:
        scores = draft.call("add", "m", x=scores, y=mask)
    weights = draft.call("softmax", "p", x=scores, dim=-1)
    graph = draft.graph(draft.call("matmul", "o", x=weights, y=v))
    made = fused(graph)
    assert ops(made) == ["scaled_dot_product_attention"]
    (node,) = (node for node in made if node.op == "scaled_dot_product_attention")
    assert node.args[:3] == (q, k, v)
    assert node.attrs["scale"] == 0.5
    close(graph, *(torch.randn(3, 2, 6, 4) for _ in "qkv"), torch.randn(3, 1, 1, 6))


def test_keys_in_another_order_are_turned_once() -> None:
    draft = Draft()
    q, v = (draft.input(name, "batch", 2, 6, 4) for name in "qv")
    k = draft.input("k", "batch", 6, 2, 4)
    turned = draft.call("permute", "kt", x=k, dims=(0, 2, 3, 1))
    weights = draft.call("softmax", "p", x=draft.call("matmul", "s", x=q, y=turned), dim=3)
    graph = draft.graph(draft.call("matmul", "o", x=weights, y=v))
    made = fused(graph)
    assert ops(made) == ["permute", "scaled_dot_product_attention"]
    close(graph, torch.randn(3, 2, 6, 4), torch.randn(3, 2, 6, 4), torch.randn(3, 6, 2, 4))


def test_int_values_stay() -> None:
    draft = Draft()
    x = draft.input("x", 3, dtype=DType.INT64)
    graph = draft.graph(draft.call("mul", "m", x=x, y=draft.call("sigmoid", "s", x=x)))
    assert ops(fused(graph)) == ["sigmoid", "mul"]
