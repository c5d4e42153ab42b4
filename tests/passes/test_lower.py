"""Each unit becomes one kernel that gives the reference unit's integers within one quantum."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from fqx.edge.materialize import materialize
from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import NodeId, OpName, Path, Stage
from fqx.ir.node import Node
from fqx.ir.signature import Input, Signature, TensorType, Tree
from fqx.ir.weight import Role, Weight
from fqx.kit.frozen import FrozenMap
from fqx.num.tensors import weight_of
from fqx.ops.catalogue import make_node
from fqx.ops.spec import check
from fqx.passes.lower import Lowering, lower
from fqx.policy.target import Target
from fqx.targets.native import ENGINES, native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference

TARGETS = (onednn(), *(native(engine).unwrap() for engine in ENGINES))
EXACT = tuple(target for target in TARGETS if target.engine != "qnnpack")
"""qnnpack requantizes in fixed point: within a quantum, but equal in fewer elements."""


class Program:
    """Writes a QUANTIZED graph: every value between quantize and dequantize."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.nodes: list[Node] = []
        self.weights: dict[Path, Weight] = {}
        self.inputs = inputs
        for name in inputs:
            self.add(Node(NodeId(f"@{name}"), make_node("input", NodeId("x")).op))

    def add(self, node: Node) -> NodeRef:
        self.nodes.append(node)
        return NodeRef(node.id)

    def op(self, op: str, id: str, /, **given: Arg) -> NodeRef:
        return self.add(make_node(op, NodeId(id), **given))

    def ints(
        self,
        x: NodeRef,
        scale: float = 0.05,
        zero: int = 64,
        most: int = 127,
        dtype: DType = DType.UINT8,
    ) -> NodeRef:
        """The value through quantize and dequantize."""
        ends: dict[str, Arg] = {"qmin": 0 if dtype is DType.UINT8 else -128, "qmax": most}
        where: dict[str, Arg] = {"scale": scale, "zero_point": zero}
        q = self.op("quantize", f"{x.id}:quantize", x=x, **where, **ends, dtype=dtype)
        return self.op("dequantize", f"{x.id}:dequantize", x=q, **where, dtype=DType.FLOAT32)

    def input(self, name: str, scale: float = 0.05, zero: int = 64) -> NodeRef:
        return self.ints(NodeRef(NodeId(f"@{name}")), scale, zero)

    def weight(self, id: str, shape: tuple[int, ...], axis: int | None = 0) -> NodeRef:
        drawn = torch.Generator().manual_seed(len(self.nodes))
        values = torch.randint(-127, 128, shape, generator=drawn, dtype=torch.int8)
        count = shape[axis] if axis is not None else 1
        scale = torch.rand(count, generator=drawn) * 0.004 + 0.001
        scale = scale if axis is not None else scale.reshape(())
        self.weights[Path(f"{id}.weight")] = weight_of(values, Role.PARAMETER)
        self.weights[Path(f"{id}.weight_scale")] = weight_of(scale, Role.BUFFER)
        return self.op(
            "dequantize",
            f"{id}:weight",
            x=WeightRef(Path(f"{id}.weight")),
            scale=WeightRef(Path(f"{id}.weight_scale")),
            zero_point=0,
            dtype=DType.FLOAT32,
            axis=axis,
        )

    def bias(self, id: str, count: int) -> WeightRef:
        drawn = torch.Generator().manual_seed(count)
        held = weight_of(torch.randn(count, generator=drawn), Role.PARAMETER)
        self.weights[Path(f"{id}.bias")] = held
        return WeightRef(Path(f"{id}.bias"))

    def graph(self, *outputs: NodeRef) -> Graph:
        leaves = tuple(Tree("leaf", index) for index in range(len(self.inputs)))
        signature = Signature(
            tuple(
                Input(name, NodeId(f"@{name}"), TensorType(DType.FLOAT32, shape))
                for name, shape in self.inputs.items()
            ),
            Tree("tuple", None, (), leaves),
            Tree("dict"),
            Tree("tuple", None, (), tuple(Tree("leaf", ref) for ref in outputs)),
            FrozenMap(),
            tuple(self.inputs),
        )
        made = graph_of(self.nodes, self.weights, signature, stage=Stage.QUANTIZED)
        assert check(made, Stage.QUANTIZED).value_or("bad") is None
        return made


def lowered(graph: Graph, target: Target) -> tuple[Graph, Lowering]:
    step = lower(target).run(graph).unwrap().steps[-1]
    assert isinstance(step.evidence, Lowering)
    return step.graph, step.evidence


def both(graph: Graph, target: Target) -> tuple[Graph, Lowering, list[Tensor], list[Tensor]]:
    """The lowered graph, its evidence, and what reference and kernels give for one input."""
    made, evidence = lowered(graph, target)
    drawn = torch.Generator().manual_seed(7)
    shapes = [
        item.type.dims for item in graph.signature.inputs if isinstance(item.type, TensorType)
    ]
    inputs = [torch.randn(shape, generator=drawn) * 1.5 for shape in shapes]  # type: ignore[arg-type]  # static dims
    with torch.no_grad():
        wanted = list(materialize(graph).unwrap()(*inputs))
        got = list(materialize(made).unwrap()(*inputs))
    return made, evidence, wanted, got


def agrees(graph: Graph, target: Target, scale: float, kernel: str, unequal: float = 0.001) -> None:
    """One kernel of this name, within one quantum, equal in 99.9 % of the elements.

    qnnpack's round their biases to integers and halves away from zero: 98 % there.
    """
    unequal = 0.02 if target.engine == "qnnpack" else unequal
    made, evidence, wanted, got = both(graph, target)
    ops = [node.op for node in made]
    assert kernel in ops or kernel.replace("onednn.", "packed.") in ops, ops
    assert not evidence.misses
    for one, two in zip(wanted, got, strict=True):
        quanta = ((one - two) / scale).abs()
        assert quanta.max() <= 1.001
        assert (quanta > 0.5).float().mean() <= unequal
        assert one.stride() == two.stride()


def name_of(target: Target) -> str:
    return target.label


CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Arg]]] = {
    "plain": ((2, 6, 9, 9), (8, 6, 3, 3), {}),
    "stride": ((2, 6, 9, 9), (8, 6, 3, 3), {"stride": (2, 1)}),
    "padding": ((1, 6, 9, 7), (8, 6, 3, 3), {"padding": (2, 1)}),
    "dilation": ((1, 6, 9, 9), (8, 6, 3, 3), {"dilation": (2, 2), "padding": (1, 1)}),
    "pointwise": ((3, 16, 5, 5), (32, 16, 1, 1), {}),
    "groups": ((2, 8, 7, 7), (12, 4, 3, 3), {"groups": 2, "padding": (1, 1)}),
    "depthwise": ((2, 16, 7, 7), (16, 1, 3, 3), {"groups": 16, "padding": (1, 1)}),
    "oblong": ((1, 3, 8, 12), (4, 3, 1, 5), {"padding": (0, 2)}),
}


def conv(
    case: str, *, after: str = "", axis: int | None = 0, bias: bool = True, zero: int = 64
) -> Graph:
    shape, weight, attrs = CONVS[case]
    p = Program(x=shape)
    x, w = p.input("x", 0.05, zero), p.weight("c", weight, axis)
    made = p.op(
        "conv2d", "c", x=x, weight=w, bias=p.bias("c", weight[0]) if bias else None, **attrs
    )
    if after == "clamp":
        made = p.op("clamp", "a", x=made, low=-0.5, high=0.75)
    elif after:
        made = p.op(after, "a", x=made)
    return p.graph(p.ints(made, 0.02, 50))


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_convolution(case: str, target: Target) -> None:
    agrees(conv(case), target, 0.02, f"{target.name}.conv2d")


@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_convolution_with_relu_one_scale_or_no_bias(target: Target) -> None:
    agrees(conv("padding", after="relu"), target, 0.02, f"{target.name}.conv2d")
    agrees(conv("padding", axis=None, bias=False, zero=0), target, 0.02, f"{target.name}.conv2d")


@pytest.mark.parametrize("op", ["clamp", "hardswish", "silu"])
def test_onednn_absorbs_activations(op: str) -> None:
    graph = conv("padding", after=op)
    agrees(graph, onednn(), 0.02, "onednn.conv2d")
    assert op not in [node.op for node in lowered(graph, onednn())[0]]


@pytest.mark.parametrize("target", TARGETS, ids=name_of)
@pytest.mark.parametrize("n", [1, 3])
def test_convolution_of_other_ranks(n: int, target: Target) -> None:
    p = Program(x=(2, 4, *(6,) * n))
    w = p.weight("c", (8, 2, *(3,) * n))
    attrs: dict[str, Arg] = {"padding": (1,) * n, "groups": 2}
    for name in ("stride", "dilation"):
        attrs[name] = (1,) * n
    made = p.op(f"conv{n}d", "c", x=p.input("x"), weight=w, bias=p.bias("c", 8), **attrs)
    agrees(p.graph(p.ints(made, 0.02, 50)), target, 0.02, f"{target.name}.conv{n}d")


@pytest.mark.parametrize("target", TARGETS, ids=name_of)
@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24), (2, 3, 2, 24), (1, 24)])
def test_linear(shape: tuple[int, ...], target: Target) -> None:
    p = Program(x=shape)
    made = p.op("linear", "l", x=p.input("x"), weight=p.weight("l", (10, 24)), bias=p.bias("l", 10))
    agrees(p.graph(p.ints(made, 0.02, 50)), target, 0.02, f"{target.name}.linear")


@pytest.mark.parametrize("op", ["relu", "gelu", "silu", "hardswish", "tanh", "leaky_relu"])
def test_onednn_linear_absorbs_activations(op: str) -> None:
    p = Program(x=(64, 24))
    made = p.op("linear", "l", x=p.input("x"), weight=p.weight("l", (10, 24)), bias=None)
    made = p.op(op, "a", x=made)
    agrees(p.graph(p.ints(made, 0.02, 50)), onednn(), 0.02, "onednn.linear")


@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_a_float_consumer_gets_a_float_result(op: str) -> None:
    p = Program(x=(2, 8, 4, 4))
    w = p.weight("c", (6, 8, 1, 1) if op == "conv2d" else (6, 4))
    made = p.op(op, "c", x=p.input("x"), weight=w, bias=None)
    graph = p.graph(p.op("exp", "e", x=made))
    lowered_graph, evidence, wanted, got = both(graph, onednn())
    assert [item.form.value for item in evidence.units] == ["float"]
    assert f"onednn.{op}" in [node.op for node in lowered_graph]
    # float32 sums of exact int32 products in another order
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-5)
    _, evidence, _, _ = both(graph, TARGETS[1])
    assert evidence.misses[0].why == "its result is read as float"


def residual(*, again: bool = False, relu: bool = True) -> Graph:
    p = Program(x=(2, 8, 6, 6))
    x = p.input("x")
    short = p.ints(
        p.op("conv2d", "s", x=x, weight=p.weight("s", (8, 8, 1, 1)), bias=None), 0.03, 70
    )
    made = p.op("conv2d", "c", x=x, weight=p.weight("c", (8, 8, 1, 1)), bias=None)
    made = p.op("add", "c:add", x=made, y=short)
    made = p.ints(p.op("relu", "r", x=made) if relu else made, 0.04, 60)
    if not again:
        return p.graph(made)
    later = p.op("conv2d", "d", x=short, weight=p.weight("d", (8, 8, 1, 1)), bias=None)
    return p.graph(made, p.ints(later, 0.04, 60))


@pytest.mark.parametrize("relu", [True, False])
def test_the_convolution_takes_the_addition(relu: bool) -> None:
    graph = residual(relu=relu)
    agrees(graph, onednn(), 0.04, "onednn.conv2d_add")
    node = next(node for node in lowered(graph, onednn())[0] if node.op == "onednn.conv2d_add")
    assert node.attrs["keeps_other"] is False


def test_an_addend_that_is_read_again_is_not_written_into() -> None:
    graph = residual(again=True)
    made, _, wanted, got = both(graph, onednn())
    node = next(node for node in made if node.op == "onednn.conv2d_add")
    assert node.attrs["keeps_other"] is True
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-6, atol=0)
    order = [node.id for node in made]
    assert order.index(NodeId("d")) > order.index(NodeId("c"))
    module = materialize(made).unwrap()
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        assert all(map(torch.equal, module(x), module(x)))


def test_an_addend_that_is_the_input_is_not_written_into() -> None:
    p = Program(x=(2, 8, 6, 6))
    x = p.input("x")
    made = p.op("conv2d", "c", x=x, weight=p.weight("c", (8, 8, 1, 1)), bias=None)
    graph = p.graph(p.ints(p.op("add", "s", x=x, y=made), 0.04, 60))
    agrees(graph, onednn(), 0.04, "onednn.conv2d_add")
    node = next(node for node in lowered(graph, onednn())[0] if node.op == "onednn.conv2d_add")
    assert node.attrs["keeps_other"] is True


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("again", [True, False])
def test_onednn_of_native_adds_too(relu: bool, again: bool) -> None:
    target = native("onednn").unwrap()
    graph = residual(relu=relu, again=again)
    if again:
        made, _, wanted, got = both(graph, target)
        torch.testing.assert_close(got[1], wanted[1], rtol=1e-6, atol=0)
    else:
        agrees(graph, target, 0.04, "native.conv2d_add")
        made = lowered(graph, target)[0]
    node = next(node for node in made if node.op == "native.conv2d_add")
    assert node.attrs["keeps_other"] is again
    assert node.attrs["relu"] is relu


@pytest.mark.parametrize("op", ["leaky_relu", "tanh"])
@pytest.mark.parametrize("most", [127, 255])
def test_onednn_of_native_takes_the_activation_behind_a_linear(op: str, most: int) -> None:
    target, p = native("onednn").unwrap(), Program(x=(3, 5, 24))
    attrs: dict[str, Arg] = {"negative_slope": 0.3} if op == "leaky_relu" else {}
    weight, bias = p.weight("l", (10, 24)), p.bias("l", 10)
    made = p.op("linear", "l", x=p.input("x"), weight=weight, bias=bias)
    graph = p.graph(p.ints(p.op(op, "a", x=made, **attrs), 0.0131, 60, most))
    agrees(graph, target, 0.0131, "native.linear_post")
    assert f"native.{op}" not in [node.op for node in lowered(graph, target)[0]]


PAIRS = [((2, 8, 6, 6), (2, 8, 6, 6)), ((2, 3, 5), (2, 3, 5)), ((4, 7), (4, 7))]


@pytest.mark.parametrize("target", TARGETS, ids=name_of)
@pytest.mark.parametrize("op", ["add", "mul", "add relu"])
@pytest.mark.parametrize("shapes", PAIRS, ids=str)
def test_two_activations(shapes: tuple[tuple[int, ...], ...], op: str, target: Target) -> None:
    p = Program(x=shapes[0], y=shapes[1])
    made = p.op(op.split()[0], "p", x=p.input("x"), y=p.input("y", 0.03, 40))
    made = p.op("relu", "r", x=made) if "relu" in op else made
    # 0.0437 shares no factor with the operands' scales, so that ties are rare
    agrees(p.graph(p.ints(made, 0.0437, 50)), target, 0.0437, f"{target.name}.{op.split()[0]}")


@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_a_product_takes_the_relu(target: Target) -> None:
    p = Program(x=(2, 5, 7), y=(2, 5, 7))
    made = p.op("mul", "p", x=p.input("x"), y=p.input("y", 0.03, 40))
    made = p.op("relu", "r", x=made)
    graph = p.graph(p.ints(made, 0.0437, 50))
    agrees(graph, target, 0.0437, f"{target.name}.mul")
    assert "relu" not in [node.op for node in lowered(graph, target)[0]]


@pytest.mark.parametrize("zero", [0, 64])
@pytest.mark.parametrize("most", [127, 255])
@pytest.mark.parametrize("reads", ["integers", "float"])
def test_a_convolution_of_three_dimensions_takes_the_relu(reads: str, most: int, zero: int) -> None:
    """torch's pointwise kernel does not; its results are bounded at zero instead."""
    p = Program(x=(2, 4, 5, 5, 5))
    x, w = p.input("x", 0.05, zero), p.weight("c", (6, 4, 3, 3, 3))
    attrs: dict[str, Arg] = {"padding": (1,) * 3, "stride": (1,) * 3, "dilation": (1,) * 3}
    made = p.op("conv3d", "c", x=x, weight=w, bias=p.bias("c", 6), **attrs)
    made = p.op("relu", "r", x=made)
    if reads == "integers":
        made = p.ints(made, 0.02, 50, most)
    made_graph, evidence, wanted, got = both(p.graph(made), onednn())
    assert "relu" not in [node.op for node in made_graph]
    assert [item.unit for item in evidence.units] == ["conv3d_relu"]
    quanta = ((wanted[0] - got[0]) / 0.02).abs()
    assert quanta.max() <= (1.001 if reads == "integers" else 1e-3)
    assert (quanta > 0.5).float().mean() <= 0.001


@pytest.mark.parametrize("op", ["add", "mul"])
@pytest.mark.parametrize(
    "shapes", [((2, 8, 6, 6), (2, 8, 1, 1)), ((3, 1, 4), (5, 1)), ((4,), (2, 4))]
)
def test_onednn_broadcasts(shapes: tuple[tuple[int, ...], ...], op: str) -> None:
    p = Program(x=shapes[0], y=shapes[1])
    made = p.op(op, "p", x=p.input("x"), y=p.input("y", 0.03, 40))
    agrees(p.graph(p.ints(made, 0.0437, 50)), onednn(), 0.0437, f"onednn.{op}")


NATIVE = TARGETS[1:]
ALONE: dict[str, dict[str, Arg]] = {
    "sigmoid": {},
    "tanh": {},
    "hardsigmoid": {},
    "hardswish": {},
    "leaky_relu": {"negative_slope": 0.3},
    "elu": {"alpha": 0.7, "scale": 1.1, "input_scale": 1.2},
    "celu": {"alpha": 0.7},
}
"""Scale and zero point of the result are apart from those of the operand."""


TABLED: dict[str, dict[str, Arg]] = {
    **ALONE,
    "gelu": {},
    "gelu tanh": {"approximate": "tanh"},
    "silu": {},
    "add": {"y": 0.37},
    "mul": {"y": -1.7},
    "add relu": {"y": 1},
    "mul relu": {"y": -0.7},
}


def form(target: Target) -> str:
    """What the names of light kernels start with."""
    return "plain" if target.form == "plain" else "native"


def narrow(target: Target) -> int:
    return target.activation.qmax


@pytest.mark.parametrize(
    ("target", "case"),
    [
        *((TARGETS[0], case) for case in TABLED),
        *((target, case) for target in TARGETS[1:] for case in ("gelu", "gelu tanh", "silu")),
    ],
    ids=str,
)
def test_a_table_is_its_reference_bit_for_bit(target: Target, case: str) -> None:
    op, *rest = case.split()
    p = Program(x=(2, 16, 31, 30))
    made = p.op(op, "a", x=p.input("x", 0.0413, 60), **TABLED[case])
    made = p.op("relu", "r", x=made) if "relu" in rest else made
    graph = p.graph(p.ints(made, 0.0191, 50, narrow(target)))
    lowered_graph, evidence, wanted, got = both(graph, target)
    kernel = "plain.table" if target.form == "plain" else "native.table"
    assert [node.op for node in lowered_graph].count(OpName(kernel)) == 1
    assert "relu" not in [node.op for node in lowered_graph]
    assert not evidence.misses
    assert torch.equal(wanted[0], got[0])


@pytest.mark.parametrize("op", ALONE)
@pytest.mark.parametrize("target", NATIVE, ids=name_of)
@pytest.mark.parametrize("shape", [(2, 8, 6, 6), (3, 5, 7), (35,)], ids=str)
def test_an_activation_alone(shape: tuple[int, ...], target: Target, op: str) -> None:
    p = Program(x=shape)
    made = p.op(op, "a", x=p.input("x", 0.0413, 60), **ALONE[op])
    # 0.0191 · (127 - 50) lies inside the values, so that both ends saturate
    ends = p.ints(made, 0.0191, 50, narrow(target))
    agrees(p.graph(ends), target, 0.0191, f"native.{op}")


@pytest.mark.parametrize("op", ["sigmoid", "tanh", "hardsigmoid"])
@pytest.mark.parametrize("most", [127, 255])
def test_an_activation_with_the_scale_of_its_own_range(op: str, most: int) -> None:
    p = Program(x=(2, 8, 6, 6))
    made = p.op(op, "a", x=p.input("x", 0.0413, 60))
    span, zero = (2.0, (most + 1) // 2) if op == "tanh" else (1.0, 0)
    graph = p.graph(p.ints(made, span / (most + 1), zero, most))
    agrees(graph, NATIVE[2], span / (most + 1), f"native.{op}")


@pytest.mark.parametrize("op", ["add", "mul", "add relu"])
@pytest.mark.parametrize("number", [0.37, -1.7, 3])
@pytest.mark.parametrize("target", NATIVE, ids=name_of)
def test_an_activation_and_a_number(op: str, number: float, target: Target) -> None:
    p = Program(x=(2, 8, 6, 6))
    name, *rest = op.split()
    made = p.op(name, "a", x=p.input("x", 0.0413, 60), y=number)
    made = p.op("relu", "r", x=made) if rest else made
    ends = p.ints(made, 0.0191, 50, narrow(target))
    agrees(p.graph(ends), target, 0.0191, f"native.{name}_number")


def norm(p: Program, op: str, x: NodeRef, count: int, **attrs: Arg) -> NodeRef:
    """A norm with weight, bias and, where the operator has them, stored statistics."""
    given: dict[str, Arg] = {"weight": p.bias("n", count), "bias": p.bias("b", count + 0)}
    if op == "batch_norm":
        drawn = torch.Generator().manual_seed(5)
        p.weights[Path("v.var")] = weight_of(torch.rand(count, generator=drawn) + 0.1, Role.BUFFER)
        given |= {"mean": p.bias("m", count), "var": WeightRef(Path("v.var"))}
    return p.op(op, "n", x=x, **given, **attrs)


NORMS: dict[str, tuple[tuple[int, ...], str, int, dict[str, Arg]]] = {
    "layer_norm": ((3, 5, 24), "layer_norm", 24, {"shape": (24,)}),
    "layer_norm odd": ((2, 7), "layer_norm", 7, {"shape": (7,), "eps": 0.1}),
    "group_norm": ((2, 8, 5, 5), "group_norm", 8, {"groups": 2}),
    "group_norm 3": ((2, 6, 7), "group_norm", 6, {"groups": 3}),
    "instance_norm": ((2, 8, 5, 5), "instance_norm", 8, {}),
    "batch_norm 1d": ((6, 7), "batch_norm", 7, {}),
    "batch_norm 1d long": ((2, 7, 9), "batch_norm", 7, {}),
    "batch_norm 2d": ((2, 8, 5, 5), "batch_norm", 8, {}),
    "batch_norm 3d": ((2, 5, 3, 4, 4), "batch_norm", 5, {}),
}


@pytest.mark.parametrize("acts", [False, True])
@pytest.mark.parametrize("case", NORMS)
@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_a_norm_alone(case: str, acts: bool, target: Target) -> None:
    shape, op, count, attrs = NORMS[case]
    p = Program(x=shape)
    made = norm(p, op, p.input("x", 0.0413, 60), count, **attrs)
    taken = acts and op == "batch_norm"
    made = p.op("relu", "r", x=made) if taken else made
    # narrow enough for both ends to saturate
    graph = p.graph(p.ints(made, 0.0191, 50, narrow(target)))
    agrees(graph, target, 0.0191, f"{form(target)}.{op}")
    assert not taken or "relu" not in [node.op for node in lowered(graph, target)[0]]


def test_a_batch_norm_without_weight() -> None:
    p = Program(x=(2, 8, 5, 5))
    x, mean = p.input("x", 0.0413, 60), p.bias("m", 8)
    p.weights[Path("v.var")] = weight_of(torch.rand(8) + 0.1, Role.BUFFER)
    made = p.op("batch_norm", "n", x=x, mean=mean, var=WeightRef(Path("v.var")))
    agrees(p.graph(p.ints(made, 0.0191, 50)), NATIVE[2], 0.0191, "native.batch_norm")


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_prelu(count: int, target: Target) -> None:
    p = Program(x=(2, 8, 5, 7))
    made = p.op("prelu", "a", x=p.input("x", 0.0413, 60), weight=p.bias("a", count))
    graph = p.graph(p.ints(made, 0.0191, 50, narrow(target)))
    agrees(graph, target, 0.0191, f"{form(target)}.prelu")


def test_norms_outside_their_kernels_stay_float() -> None:
    p = Program(x=(4, 6))
    made = norm(p, "group_norm", p.input("x"), 6, groups=2)
    _, evidence, wanted, got = both(p.graph(p.ints(made, 0.0191, 50)), NATIVE[2])
    assert "three dimensions" in evidence.misses[0].why
    assert torch.equal(wanted[0], got[0])


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("most", [127, 255])
@pytest.mark.parametrize("target", [TARGETS[0], NATIVE[2]], ids=name_of)
def test_softmax(target: Target, dim: int, most: int) -> None:
    p = Program(x=(3, 5, 7))
    made = p.op("softmax", "s", x=p.input("x", 0.0413, 60), dim=dim)
    graph = p.graph(p.ints(made, 1 / (most + 1), 0, most))
    agrees(graph, target, 1 / (most + 1), f"{form(target)}.softmax")


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        ("matmul", ((2, 3, 5, 7), (2, 3, 7, 6))),
        ("bmm", ((4, 9, 8), (4, 8, 3))),
        ("mm", ((5, 33), (33, 1))),
    ],
)
@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_matrix_products(op: str, shapes: tuple[tuple[int, ...], ...], target: Target) -> None:
    p = Program(x=shapes[0], y=shapes[1])
    made = p.op(op, "m", x=p.input("x"), y=p.input("y", 0.03, 40))
    agrees(
        p.graph(p.ints(made, 0.0191, 50, narrow(target))), target, 0.0191, f"{form(target)}.{op}"
    )


def test_matrix_products_of_unlike_batches_stay_float() -> None:
    p = Program(x=(2, 3, 4), y=(4, 5))
    made = p.op("matmul", "m", x=p.input("x"), y=p.input("y", 0.03, 40))
    _, evidence, wanted, got = both(p.graph(p.ints(made, 0.0191, 50)), NATIVE[2])
    assert "batches of one shape" in evidence.misses[0].why
    assert torch.equal(wanted[0], got[0])


def pool(n: int) -> dict[str, Arg]:
    return {"kernel_size": (3,) * n, "stride": (2,) * n, "padding": (1,) * n}


AVERAGES: dict[str, tuple[tuple[int, ...], str, dict[str, Arg]]] = {
    "avg_pool1d": ((2, 4, 9), "avg_pool1d", pool(1)),
    "avg_pool2d": ((2, 8, 6, 7), "avg_pool2d", pool(2)),
    "avg_pool2d unpadded": (
        (2, 8, 6, 7),
        "avg_pool2d",
        {**pool(2), "padding": (0, 0), "count_include_pad": False},
    ),
    "avg_pool2d ceil": ((2, 8, 6, 7), "avg_pool2d", {**pool(2), "ceil_mode": True}),
    "avg_pool3d": ((2, 3, 5, 5, 5), "avg_pool3d", pool(3)),
    "adaptive 1": ((2, 4, 9), "adaptive_avg_pool1d", {"output_size": (4,)}),
    "adaptive 2": ((2, 4, 9, 7), "adaptive_avg_pool2d", {"output_size": (4, 1)}),
    "adaptive 3": ((2, 4, 5, 5, 5), "adaptive_avg_pool3d", {"output_size": (2, 2, 1)}),
    "mean": ((2, 4, 9, 7), "mean", {"dim": (2, 3)}),
    "mean kept": ((2, 4, 9), "mean", {"dim": (1,), "keepdim": True}),
    "mean of all": ((3, 5), "mean", {}),
}


@pytest.mark.parametrize("case", AVERAGES)
@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_averages_keep_the_qparams(case: str, target: Target) -> None:
    """Equal but where the average of an even number of integers lies between two of them."""
    shape, op, attrs = AVERAGES[case]
    programs = (Program(x=shape), Program(x=shape))
    # the zero point lies near one end, so that padding with anything but it shows
    values = [p.op(op, "a", x=p.input("x", 0.0413, 11), **attrs) for p in programs]
    graph = programs[0].graph(programs[0].ints(values[0], 0.0413, 11))
    exact = materialize(programs[1].graph(values[1])).unwrap()
    made, evidence, wanted, got = both(graph, target)
    assert f"{form(target)}.{op}" in [node.op for node in made]
    assert not evidence.misses
    x = torch.randn(shape, generator=torch.Generator().manual_seed(7)) * 1.5
    # float32 sums of up to 63 values below 6: an error of 63 · 6 · 2^-24, in quanta of 0.0413
    between = ((exact(x)[0] / 0.0413).frac().abs() - 0.5).abs() < 1e-3
    quanta = ((wanted[0] - got[0]) / 0.0413).abs()
    assert quanta.max() <= 1.001
    assert not (quanta[~between] > 0.5).any()


def test_averages_that_leave_out_the_padding_stay_float() -> None:
    """torch's qnnpack counts it all the same, and is asked wherever it is the global engine."""
    p = Program(x=(2, 8, 6, 7))
    attrs = {**pool(2), "count_include_pad": False}
    made = p.op("avg_pool2d", "a", x=p.input("x", 0.0413, 11), **attrs)
    _, evidence, wanted, got = both(p.graph(p.ints(made, 0.0413, 11)), NATIVE[2])
    assert "counts the padding" in evidence.misses[0].why
    # a quantum where an average lies between two integers
    assert (wanted[0] - got[0]).abs().max() <= 0.0414


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """torch's global engine, which many of its kernels ask."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    yield request.param
    torch.backends.quantized.engine = before


@pytest.mark.parametrize("op", ["sigmoid", "tanh", "hardsigmoid", "hardswish", "leaky_relu", "elu"])
def test_activations_whatever_the_global_engine(op: str, engine: str) -> None:
    p = Program(x=(3, 5, 7))
    made = p.op(op, "a", x=p.input("x", 0.0413, 60), **ALONE[op])
    agrees(p.graph(p.ints(made, 0.0191, 50)), NATIVE[2], 0.0191, f"native.{op}")
    if op in ("sigmoid", "hardsigmoid"):
        made = (again := Program(x=(3, 5, 7))).op(op, "a", x=again.input("x", 0.0413, 60))
        agrees(again.graph(again.ints(made, 1 / 256, 0, 255)), NATIVE[2], 1 / 256, f"native.{op}")


@pytest.mark.parametrize(
    "case", ["avg_pool1d", "avg_pool2d", "avg_pool2d ceil", "adaptive 2", "mean"]
)
def test_averages_whatever_the_global_engine(case: str, engine: str) -> None:
    test_averages_keep_the_qparams(case, NATIVE[2])


MOVERS: dict[str, Callable[[Program, NodeRef], NodeRef]] = {
    "flatten": lambda p, x: p.op("flatten", "m", x=x, start_dim=1),
    "reshape": lambda p, x: p.op("reshape", "m", x=x, shape=(2, 4, 72)),
    "permute": lambda p, x: p.op("permute", "m", x=x, dims=(0, 2, 3, 1)),
    "slice": lambda p, x: p.op("slice", "m", x=x, start=1, stop=3, dim=1),
    "select": lambda p, x: p.op("select", "m", x=x, index=2, dim=1),
    "pad": lambda p, x: p.op("pad", "m", x=x, pad=(1, 2, 0, 1)),
    "relu": lambda p, x: p.op("relu", "m", x=x),
    "clamp": lambda p, x: p.op("clamp", "m", x=x, low=None, high=0.61),
    "roll": lambda p, x: p.op("roll", "m", x=x, shifts=(1,), dims=(2,)),
    "flip": lambda p, x: p.op("flip", "m", x=x, dims=(3,)),
    "stack": lambda p, x: p.op("stack", "m", xs=(x, x), dim=1),
    "cat": lambda p, x: p.op("cat", "m", xs=(x, x), dim=1),
    "amax": lambda p, x: p.op("amax", "m", x=x, dim=(2, 3)),
    "max_pool2d": lambda p, x: p.op(
        "max_pool2d", "m", x=x, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1)
    ),
    "interpolate": lambda p, x: p.op("interpolate", "m", x=x, size=(12, 9)),
    "pixel_shuffle": lambda p, x: p.op("pixel_shuffle", "m", x=x, factor=2),
    "channel_shuffle": lambda p, x: p.op("channel_shuffle", "m", x=x, groups=2),
    "expand": lambda p, x: p.op("expand", "m", x=x, shape=(2, 2, 8, 6, 6)),
    "chunk": lambda p, x: p.op("getitem", "m", x=p.op("chunk", "k", x=x, chunks=2, dim=1), index=1),
}


@pytest.mark.parametrize("op", MOVERS)
@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_movers_take_the_integers(op: str, target: Target) -> None:
    p = Program(x=(2, 8, 6, 6))
    graph = p.graph(p.ints(MOVERS[op](p, p.input("x"))))
    made, evidence, wanted, got = both(graph, target)
    assert not evidence.misses
    quantizers = [node.op for node in made if node.op.endswith("quantize")]
    assert [name.rpartition(".")[2] for name in quantizers] == ["quantize", "dequantize"]
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("target", TARGETS[:2], ids=name_of)
def test_max_pools_of_other_ranks(n: int, target: Target) -> None:
    p = Program(x=(2, 4, *(9,) * n))
    window: dict[str, Arg] = {"kernel_size": (3,) * n, "stride": (2,) * n, "padding": (1,) * n}
    attrs = {**window, "dilation": (1,) * n}
    graph = p.graph(p.ints(p.op(f"max_pool{n}d", "m", x=p.input("x"), **attrs)))
    agrees(graph, target, 0.05, f"{target.form.replace('quantized', 'native')}.max_pool{n}d")


def test_a_mover_between_other_qparams_stays_float_and_says_so() -> None:
    p = Program(x=(2, 8), y=(2, 8))
    joined = p.op("cat", "m", xs=(p.input("x"), p.input("y", 0.03, 40)), dim=1)
    _, evidence, wanted, got = both(p.graph(p.ints(joined)), onednn())
    assert evidence.misses[0].at == "m"
    assert "other qparams" in evidence.misses[0].why
    assert torch.equal(wanted[0], got[0])


@pytest.mark.parametrize("op", ["add", "mul", "add relu", "mul relu"])
@pytest.mark.parametrize("shape", [(2, 8, 1, 1), (8, 1, 1), (1,)])
@pytest.mark.parametrize("target", NATIVE, ids=name_of)
def test_two_activations_of_other_shapes(op: str, shape: tuple[int, ...], target: Target) -> None:
    p = Program(x=(2, 8, 6, 6), y=shape)
    name, *rest = op.split()
    made = p.op(name, "a", x=p.input("x", 0.0413, 60), y=p.input("y", 0.0321, 55))
    made = p.op("relu", "r", x=made) if rest else made
    graph = p.graph(p.ints(made, 0.0719, 50, narrow(target)))
    agrees(graph, target, 0.0719, f"native.{name}")


# thirds and products of sevenths and ninths: no average lies halfway between two integers
@pytest.mark.parametrize(("size", "corners"), [((15, 18), None), ((8, 10), True)])
@pytest.mark.parametrize("target", NATIVE, ids=name_of)
def test_bilinear_interpolation(
    target: Target, size: tuple[int, int], corners: bool | None
) -> None:
    p = Program(x=(2, 4, 5, 6))
    x = p.ints(NodeRef(NodeId("@x")), 0.05, 60, narrow(target))
    attrs: dict[str, Arg] = {"size": size, "mode": "bilinear", "align_corners": corners}
    graph = p.graph(p.ints(p.op("interpolate", "i", x=x, **attrs), 0.05, 60, narrow(target)))
    agrees(graph, target, 0.05, "native.interpolate")


TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Arg]]] = {
    "upsampling": ((2, 6, 5, 5), (6, 4, 2, 2), {"stride": (2, 2)}),
    "output padding": (
        (2, 6, 5, 5),
        (6, 4, 3, 3),
        {"stride": (2, 2), "padding": (1, 1), "output_padding": (1, 1)},
    ),
    "no stride": ((2, 6, 5, 7), (6, 8, 3, 3), {"padding": (1, 1)}),
    "oblong": ((1, 6, 5, 4), (6, 8, 4, 1), {"stride": (3, 1), "padding": (1, 0)}),
    "dilation": ((2, 4, 5, 5), (4, 8, 3, 2), {"dilation": (2, 3), "stride": (2, 2)}),
    "groups": ((2, 6, 5, 5), (6, 4, 3, 3), {"stride": (2, 2), "groups": 3}),
    "more padding than window": ((2, 4, 6, 6), (4, 8, 2, 2), {"padding": (3, 2), "stride": (2, 2)}),
    "32 of window 2": ((1, 16, 5, 5), (16, 32, 2, 2), {}),
    "one dimension": (
        (2, 6, 9),
        (6, 4, 3),
        {"stride": (2,), "padding": (1,), "output_padding": (1,), "groups": 2},
    ),
    "three dimensions": (
        (2, 6, 4, 3, 5),
        (6, 4, 2, 2, 3),
        {"stride": (2, 1, 2), "padding": (1, 0, 1), "output_padding": (1, 0, 0), "groups": 3},
    ),
}


@pytest.mark.parametrize("case", TRANSPOSED)
@pytest.mark.parametrize("target", EXACT, ids=name_of)
@pytest.mark.parametrize("axis", [None, 1])
def test_transposed_convolutions(axis: int | None, target: Target, case: str) -> None:
    agrees(transposed(case, axis), target, 0.0191, f"{target.name}.conv_transpose{rank(case)}d")


@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolutions_of_qnnpack(case: str) -> None:
    kernel = f"native.conv_transpose{rank(case)}d"
    agrees(transposed(case, None), native("qnnpack").unwrap(), 0.0191, kernel)


def test_qnnpack_has_one_scale_for_a_transposed_convolution() -> None:
    _, evidence, wanted, got = both(transposed("groups", 1), native("qnnpack").unwrap())
    assert "no scales along that axis" in evidence.misses[0].why
    assert torch.equal(wanted[0], got[0])


@pytest.mark.parametrize("after", ["relu", "clamp", "hardswish", "silu"])
def test_a_transposed_convolution_takes_the_activation(after: str) -> None:
    graph = transposed("output padding", 1, after)
    agrees(graph, onednn(), 0.0191, "onednn.conv_transpose2d")
    assert after not in [node.op for node in lowered(graph, onednn())[0]]


def rank(case: str) -> int:
    return len(TRANSPOSED[case][0]) - 2


def transposed(case: str, axis: int | None, after: str = "") -> Graph:
    shape, weight, attrs = TRANSPOSED[case]
    p, dims = Program(x=shape), len(shape) - 2
    w, groups = p.weight("t", weight, axis), attrs.get("groups", 1)
    assert isinstance(groups, int)
    none: dict[str, Arg] = {"dilation": (1,) * dims, "output_padding": (0,) * dims}
    still: dict[str, Arg] = {"stride": (1,) * dims, "padding": (0,) * dims, "groups": 1}
    given = {**none, **still, **attrs}
    bias, x = p.bias("t", weight[1] * groups), p.input("x", 0.05, 37)
    made = p.op(f"conv_transpose{dims}d", "t", x=x, weight=w, bias=bias, **given)
    if after:
        bounds: dict[str, Arg] = {"low": -0.5, "high": 0.75} if after == "clamp" else {}
        made = p.op(after, "a", x=made, **bounds)
    return p.graph(p.ints(made, 0.0191, 50))


def test_int8_activations_are_shifted() -> None:
    p = Program(x=(4, 24))
    x = p.ints(NodeRef(NodeId("@x")), 0.05, -3, 127, DType.INT8)
    made = p.op("linear", "l", x=x, weight=p.weight("l", (10, 24)), bias=None)
    graph = p.graph(p.ints(made, 0.02, 5, 127, DType.INT8))
    agrees(graph, onednn(), 0.02, "plain.shift")


def test_reference_has_no_kernels_and_changes_nothing_but_the_stage() -> None:
    made, evidence, wanted, got = both(conv("plain"), reference())
    assert evidence.misses[0].why == "the unit has no kernel"
    assert made.stage is Stage.LOWERED
    assert torch.equal(wanted[0], got[0])


def test_qparams_do_not_change() -> None:
    graph = conv("plain", after="relu")
    made, _ = lowered(graph, onednn())
    kernel = made[NodeId("c")]
    assert (kernel.attrs["scale"], kernel.attrs["zero_point"]) == (0.02, 50)
    assert (kernel.attrs["x_scale"], kernel.attrs["x_zero_point"]) == (0.05, 64)
    assert made.weights == graph.weights


def test_unbatched_convolutions_stay_float() -> None:
    p = Program(x=(6, 9, 9))
    made = p.op("conv2d", "c", x=p.input("x"), weight=p.weight("c", (8, 6, 3, 3)), bias=None)
    _, evidence, wanted, got = both(p.graph(p.ints(made, 0.02, 50)), onednn())
    assert "4 dimensions" in evidence.misses[0].why
    assert torch.equal(wanted[0], got[0])


def test_the_evidence_is_plain_data() -> None:
    _, evidence = lowered(residual(), onednn())
    code = evidence.to_json()
    assert isinstance(code, dict)
    assert code["label"] == "onednn"
    assert "onednn.conv2d_add" in repr(evidence)
    assert evidence.kind == "lowering"


def test_models_keep_working_in_training_code() -> None:
    """A lowered module inside an ordinary one, with gradients on, gives plain results."""
    module = materialize(lowered(conv("plain"), onednn())[0]).unwrap()
    outer = nn.Sequential(module)
    result = outer(torch.randn(2, 6, 9, 9))
    assert not result[0].requires_grad
