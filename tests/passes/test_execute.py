"""execute runs every operator of the catalogue as the judge does, and frees what nobody reads."""

from __future__ import annotations

import pytest
import torch

from fqx.ir.arg import Arg, Dots, DType, NodeRef, Slice, Training, WeightRef
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import NodeId, OpName, Path
from fqx.ir.node import Node
from fqx.ir.signature import Input, OpaqueType, Signature, TensorType, Tree
from fqx.ir.weight import Leaf, Role
from fqx.judge.evaluate import evaluate
from fqx.kit.frozen import FrozenMap
from fqx.num.tensors import dtype_of, fingerprint_of, weight_of
from fqx.ops.catalogue import OPS, make_node
from fqx.passes.calls import CALLS, torch_call
from fqx.passes.execute import Stopped, prepare, run

A, B, C, D, E = (NodeRef(NodeId(f"@{name}")) for name in "abcde")


def tensors(**given: torch.Tensor) -> dict[str, torch.Tensor]:
    return given


def program(given: dict[str, torch.Tensor], *nodes: Node) -> Graph:
    """A graph of the nodes, its inputs the given tensors, its output the last node."""
    inputs = tuple(Input(name, NodeId(f"@{name}"), _type(value)) for name, value in given.items())
    args = Tree("tuple", items=tuple(Tree("leaf", index) for index in range(len(inputs))))
    signature = Signature(
        inputs, args, Tree("dict"), Tree("leaf", NodeRef(nodes[-1].id)), FrozenMap(), tuple(given)
    )
    made = [make_node("input", NodeId(f"@{name}")) for name in given]
    return graph_of((*made, *nodes), {}, signature)


def _type(value: torch.Tensor) -> TensorType:
    dtype = dtype_of(value.dtype)
    assert dtype is not None
    return TensorType(dtype, tuple(value.shape))


def node(op: str, **given: Arg) -> Node:
    return make_node(op, NodeId("y"), **given)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


IDS = torch.tensor([[0, 2, 1], [3, 3, 0]])
X2, X3, X4, X5 = rand(4, 6), rand(2, 4, 9), rand(2, 4, 8, 8), rand(1, 4, 6, 6, 6)
SAME_SIZE = {"x": A, "y": B}
INTS = {"x": C, "y": 3}

CASES: list[tuple[dict[str, torch.Tensor], Node]] = [
    (tensors(a=X3, b=rand(6, 2, 3)), node("conv1d", x=A, weight=B, groups=2, padding=(1,))),
    (tensors(a=X4, b=rand(6, 4, 3, 3)), node("conv2d", x=A, weight=B, stride=(2, 1))),
    (tensors(a=X5, b=rand(2, 4, 3, 3, 3), c=rand(2)), node("conv3d", x=A, weight=B, bias=C)),
    (tensors(a=X3, b=rand(4, 2, 3)), node("conv_transpose1d", x=A, weight=B, stride=(2,))),
    (
        tensors(a=X4, b=rand(4, 2, 3, 3)),
        node("conv_transpose2d", x=A, weight=B, stride=(2, 2), output_padding=(1, 1), groups=2),
    ),
    (tensors(a=X5, b=rand(4, 2, 2, 2, 2)), node("conv_transpose3d", x=A, weight=B)),
    (tensors(a=X2, b=rand(3, 6), c=rand(3)), node("linear", x=A, weight=B, bias=C)),
    (tensors(a=IDS, b=rand(4, 5)), node("embedding", x=A, weight=B, padding_idx=1)),
    (
        tensors(a=IDS.reshape(-1), b=rand(4, 5), c=torch.tensor([0, 2, 6])),
        node("embedding_bag", x=A, weight=B, offsets=C, mode="max", include_last_offset=True),
    ),
    (tensors(a=X3, b=rand(9, 2)), node("matmul", x=A, y=B)),
    (tensors(a=X2, b=rand(6, 3)), node("mm", x=A, y=B)),
    (tensors(a=X3, b=rand(2, 9, 3)), node("bmm", x=A, y=B)),
    (tensors(a=rand(3), b=X2, c=rand(6, 3)), node("addmm", input=A, x=B, y=C, beta=2, alpha=0.5)),
    (tensors(a=rand(3), b=X3, c=rand(2, 9, 3)), node("baddbmm", input=A, x=B, y=C, beta=0.5)),
    (tensors(a=X2, b=rand(5, 6)), node("einsum", xs=(A, B), equation="ij,kj->ik")),
    (
        tensors(a=X4, b=rand(2, 4, 5, 8), c=rand(2, 4, 5, 8), d=rand(8, 5)),
        node("scaled_dot_product_attention", q=A, k=B, v=C, mask=D, scale=0.3),
    ),
    (
        tensors(a=X4, b=rand(4), c=rand(4), d=rand(4), e=rand(4).abs()),
        node("batch_norm", x=A, weight=B, bias=C, mean=D, var=E, training=Training()),
    ),
    (tensors(a=X4, b=rand(4)), node("instance_norm", x=A, weight=B)),
    (tensors(a=X2, b=rand(6)), node("layer_norm", x=A, weight=B, shape=(6,))),
    (tensors(a=X4, b=rand(4), c=rand(4)), node("group_norm", x=A, weight=B, bias=C, groups=2)),
    (tensors(a=X2, b=rand(6)), node("rms_norm", x=A, weight=B, shape=(6,))),
    (tensors(a=X2), node("softmax", x=A, dim=1, dtype=DType.FLOAT64)),
    (tensors(a=X2), node("log_softmax", x=A, dim=0)),
    (tensors(a=X2), node("clamp", x=A, low=-0.5)),
    (tensors(a=X2), node("clamp", x=A, low=0.0, high=6.0)),
    (tensors(a=X2), node("hardtanh", x=A)),
    (tensors(a=X2), node("leaky_relu", x=A, negative_slope=0.2)),
    (tensors(a=X2), node("elu", x=A, alpha=0.5)),
    (tensors(a=X2), node("elu", x=A, alpha=0.5, scale=2.0, input_scale=0.5)),
    (tensors(a=X2), node("celu", x=A, alpha=0.5)),
    (tensors(a=X4, b=rand(4)), node("prelu", x=A, weight=B)),
    (tensors(a=X2), node("gelu", x=A, approximate="tanh")),
    (tensors(a=X2), node("softplus", x=A, beta=2, threshold=1)),
    (tensors(a=X2), node("threshold", x=A, threshold=0.1, value=-1.0)),
    (tensors(a=X2), node("dropout", x=A, p=0.5, training=Training())),
    (tensors(a=X4), node("feature_dropout", x=A, p=0.5, training=False)),
    (tensors(a=X2), node("alpha_dropout", x=A, p=0.5)),
    (tensors(a=IDS), node("bitwise_not", x=A)),
    (tensors(a=IDS), node("logical_not", x=A)),
    (tensors(a=X2, b=rand(6)), node("add", x=A, y=B, alpha=3)),
    (tensors(a=X2), node("add", x=2, y=A)),
    (tensors(a=X2), node("add", x=2.5, y=A, alpha=3)),
    (tensors(a=X2, b=rand(6)), node("sub", x=A, y=B, alpha=0.5)),
    (tensors(a=X2), node("sub", x=1, y=A)),
    (tensors(a=X2), node("sub", x=1, y=A, alpha=2)),
    (tensors(a=X2), node("mul", x=0.3, y=A)),
    (tensors(a=X2), node("div", x=A, y=0.3)),
    (tensors(a=X2), node("div", x=0.3, y=A)),
    (tensors(a=X2, b=rand(6)), node("div", x=A, y=B, rounding_mode="floor")),
    (tensors(a=IDS), node("div", x=A, y=2, rounding_mode="trunc")),
    (tensors(a=X2), node("remainder", x=A, y=0.7)),
    (tensors(a=X2), node("pow", x=2.0, y=A)),
    (tensors(a=X2), node("pow", x=A, y=2)),
    (tensors(a=X2, b=rand(6)), node("maximum", **SAME_SIZE)),
    (tensors(a=X2, b=rand(6)), node("minimum", **SAME_SIZE)),
    *(
        (tensors(a=X2, b=rand(6)), node(op, **SAME_SIZE))
        for op in ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor")
    ),
    (tensors(a=X2), node("lt", x=0.5, y=A)),
    *(
        (tensors(a=IDS, b=IDS + 1), node(op, **SAME_SIZE))
        for op in ("bitwise_and", "bitwise_or", "bitwise_xor")
    ),
    (tensors(a=X2 > 0, b=X2), node("where", condition=A, x=B, y=0.0)),
    (tensors(a=X2, b=rand(2, 6)), node("cat", xs=(A, B), dim=0)),
    (tensors(a=X2, b=rand(4, 6)), node("stack", xs=(A, B), dim=1)),
    (tensors(a=X2), node("chunk", x=A, chunks=4, dim=1)),
    (tensors(a=X2), node("split", x=A, size=(1, 3), dim=0)),
    (tensors(a=X2), node("split", x=A, size=4, dim=1)),
    (tensors(a=X2), node("unbind", x=A, dim=0)),
    (tensors(a=X3), node("max_pool1d", x=A, kernel_size=(3,), stride=(2,))),
    (tensors(a=X4), node("max_pool2d", x=A, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))),
    (tensors(a=X5), node("max_pool3d", x=A, kernel_size=(2, 2, 2), stride=(2, 2, 2))),
    (tensors(a=X3), node("avg_pool1d", x=A, kernel_size=(3,), stride=(2,), padding=(1,))),
    (
        tensors(a=X4),
        node("avg_pool2d", x=A, kernel_size=(3, 3), stride=(2, 2), divisor_override=7),
    ),
    (tensors(a=X5), node("avg_pool3d", x=A, kernel_size=(2, 2, 2), stride=(2, 2, 2))),
    (tensors(a=X3), node("adaptive_max_pool1d", x=A, output_size=(4,))),
    (tensors(a=X4), node("adaptive_max_pool2d", x=A, output_size=(3, 2))),
    (tensors(a=X5), node("adaptive_max_pool3d", x=A, output_size=(2, 2, 2))),
    (tensors(a=X3), node("adaptive_avg_pool1d", x=A, output_size=(4,))),
    (tensors(a=X4), node("adaptive_avg_pool2d", x=A, output_size=(3, 2))),
    (tensors(a=X5), node("adaptive_avg_pool3d", x=A, output_size=(2, 2, 2))),
    *(
        (tensors(a=X4), node(op, x=A, dim=dim, keepdim=keep))
        for op in ("mean", "sum", "amax", "amin", "var", "linalg_vector_norm", "all", "any")
        for dim, keep in ((None, False), ((2, 3), True), ((1,), False))
    ),
    (tensors(a=X4), node("argmax", x=A, dim=1)),
    (tensors(a=X4), node("argmax", x=A)),
    (tensors(a=X2), node("cumsum", x=A, dim=1)),
    (tensors(a=X4), node("reshape", x=A, shape=(2, -1, 4))),
    (tensors(a=X4), node("flatten", x=A, start_dim=1)),
    (tensors(a=X4), node("unflatten", x=A, sizes=(2, 2), dim=1)),
    (tensors(a=X4), node("permute", x=A, dims=(0, 2, 3, 1))),
    (tensors(a=rand(1, 3, 1)), node("squeeze", x=A, dims=(0, 1))),
    (tensors(a=X2), node("unsqueeze", x=A, dim=1)),
    (tensors(a=rand(1, 6)), node("expand", x=A, shape=(2, 3, -1))),
    (tensors(a=X2), node("repeat", x=A, repeats=(2, 1, 3))),
    (tensors(a=X4), node("contiguous", x=A, memory_format="channels_last")),
    (tensors(a=X4), node("pad", x=A, pad=(1, 0, 2, 1), value=0.5)),
    (tensors(a=X4), node("pad", x=A, pad=(1, 1, 2, 1), mode="reflect")),
    (tensors(a=X4), node("roll", x=A, shifts=(1, -2), dims=(2, 3))),
    (tensors(a=X4), node("roll", x=A, shifts=(3,))),
    (tensors(a=X4), node("flip", x=A, dims=(1, 3))),
    (tensors(a=X4), node("pixel_shuffle", x=A, factor=2)),
    (tensors(a=X4), node("pixel_unshuffle", x=A, factor=2)),
    (tensors(a=X4), node("channel_shuffle", x=A, groups=2)),
    (tensors(a=X2), node("tril", x=A, diagonal=1)),
    (tensors(a=X2), node("triu", x=A)),
    (tensors(a=X4), node("interpolate", x=A, size=(5, 12))),
    (
        tensors(a=X4),
        node("interpolate", x=A, scale_factor=(2.0, 1.5), mode="bilinear", align_corners=False),
    ),
    (tensors(a=X4), node("slice", x=A, start=1, stop=7, dim=2, step=2)),
    (tensors(a=X4), node("slice", x=A, stop=1)),
    (tensors(a=X4), node("select", x=A, index=2, dim=1)),
    (tensors(a=X4, b=torch.tensor([0, 3])), node("index", x=A, indices=(None, B))),
    (tensors(a=X2, b=X2 > 0), node("index", x=A, indices=(B,))),
    (tensors(a=X2, b=IDS), node("gather", x=A, index=B, dim=0)),
    (tensors(a=X2, b=torch.tensor([2, 0])), node("index_select", x=A, index=B, dim=1)),
    (
        tensors(a=X2, b=rand(4, 2)),
        node("slice_scatter", x=A, source=B, start=1, stop=5, dim=1, step=2),
    ),
    (tensors(a=X2, b=rand(6)), node("select_scatter", x=A, source=B, index=1, dim=0)),
    (
        tensors(a=X2, b=torch.tensor([1, 1]), c=rand(4, 2)),
        node("index_put", x=A, indices=(None, B), value=C, accumulate=True),
    ),
    (
        tensors(a=X2, b=torch.tensor([2, 0]), c=rand(2, 6)),
        node("index_copy", x=A, index=B, source=C, dim=0),
    ),
    (tensors(a=X2, b=IDS, c=rand(2, 3)), node("scatter", x=A, index=B, source=C, dim=0)),
    (tensors(a=X2), node("to", x=A, dtype=DType.BFLOAT16)),
    (tensors(a=X2), node("full", shape=(2, 3), value=1.5, dtype=DType.FLOAT32)),
    (tensors(a=X2), node("full_like", x=A, value=2.0)),
    (tensors(a=X2), node("arange", start=1, stop=9, step=2, dtype=DType.INT64)),
    (
        tensors(a=rand(5, 2, 4), b=rand(1, 2, 3), c=rand(12, 4), d=rand(12, 3)),
        node("lstm", x=A, hx=(B, B), weights=(C, D), has_biases=False),
    ),
    *(
        (
            tensors(a=rand(5, 2, 4), b=rand(1, 2, 3), c=rand(gates, 4), d=rand(gates, 3)),
            node(op, x=A, hx=B, weights=(C, D), has_biases=False),
        )
        for op, gates in (("gru", 9), ("rnn_tanh", 3), ("rnn_relu", 3))
    ),
    (
        tensors(a=rand(2, 4), b=rand(2, 3), c=rand(12, 4), d=rand(12, 3)),
        node("lstm_cell", x=A, hx=(B, B), w_ih=C, w_hh=D),
    ),
    *(
        (
            tensors(a=rand(2, 4), b=rand(2, 3), c=rand(gates, 4), d=rand(gates, 3), e=rand(gates)),
            node(op, x=A, hx=B, w_ih=C, w_hh=D, b_ih=E, b_hh=E),
        )
        for op, gates in (("gru_cell", 9), ("rnn_tanh_cell", 3), ("rnn_relu_cell", 3))
    ),
    (tensors(a=X2), node("size", x=A, dim=1)),
    (tensors(a=X2), node("observe", x=A, observer=FrozenMap({"kind": "minmax"}))),
    (tensors(a=X2), node("choose_qparams", x=A, qmin=0, qmax=255)),
    (
        tensors(a=torch.arange(24, dtype=torch.uint8).reshape(4, 6) * 9),
        node("unpack_nibbles", x=A, width=11),
    ),
    (tensors(a=X2), node("choose_qparams", x=A, qmin=-127, qmax=127, symmetric=True)),
    (
        tensors(a=X2),
        node("quantize", x=A, scale=0.02, zero_point=9, qmin=0, qmax=255, dtype=DType.UINT8),
    ),
    (
        tensors(a=X2, b=torch.tensor([0.1, 0.2, 0.3, 0.4])),
        node("quantize", x=A, scale=B, zero_point=0, qmin=-127, qmax=127, dtype=DType.INT8, axis=0),
    ),
    (
        tensors(
            a=torch.arange(12, dtype=torch.uint8).reshape(3, 4), b=torch.tensor([0.1, 0.2, 0.3])
        ),
        node("dequantize", x=A, scale=B, zero_point=7, dtype=DType.FLOAT32, axis=0),
    ),
]

UNARY = (
    *("relu", "selu", "silu", "mish", "hardswish", "hardsigmoid", "sigmoid", "tanh", "log_sigmoid"),
    *("exp", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "reciprocal", "erf", "sin", "cos"),
    *("abs", "neg", "square", "sign", "floor", "ceil", "round", "isnan", "isinf"),
)
CASES += [(tensors(a=X2.abs() + 0.1), node(op, x=A)) for op in UNARY]


def _same(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and one.stride() == two.stride() and torch.equal(one, two)
    if isinstance(one, (tuple, list)) and isinstance(two, (tuple, list)):
        return all(_same(a, b) for a, b in zip(one, two, strict=True))
    return one == two


@pytest.mark.parametrize(
    ("given", "made"), CASES, ids=[f"{made.op}-{index}" for index, (_, made) in enumerate(CASES)]
)
def test_runs_as_the_judge_evaluates(given: dict[str, torch.Tensor], made: Node) -> None:
    graph = program(given, made)
    args = tuple(given.values())
    assert _same(run(graph, args).unwrap(), evaluate(graph, args, {}).unwrap())


def test_every_operator_has_a_row_and_a_case() -> None:
    assert set(CALLS) == set(OPS) - {"input", "leaf"}
    ints = {"int_add", "int_sub", "int_mul", "int_floordiv", "int_mod", "int_neg", "getitem"}
    assert {made.op for _, made in CASES} | ints == set(CALLS)


def test_sizes_are_computed_at_run_time() -> None:
    parts: list[Node] = [make_node("size", NodeId("n"), x=A, dim=0)]
    n = NodeRef(NodeId("n"))
    for op in ("int_add", "int_sub", "int_mul", "int_floordiv", "int_mod"):
        parts.append(make_node(op, NodeId(op), x=n, y=2))
    parts.append(make_node("int_neg", NodeId("int_neg"), x=n))
    shape = (NodeRef(NodeId("int_floordiv")), NodeRef(NodeId("int_neg")))
    parts.append(make_node("full", NodeId("y"), shape=(shape[0], 2), value=n, dtype=DType.INT64))
    graph = program(tensors(a=X2), *parts)
    assert _same(run(graph, (X2,)).unwrap(), torch.full((2, 2), 4))


def test_getitem_takes_slices_and_dots() -> None:
    whole = make_node("chunk", NodeId("pair"), x=A, chunks=2, dim=0)
    part = make_node("getitem", NodeId("one"), x=NodeRef(NodeId("pair")), index=1)
    index = (Dots(), Slice(0, None, 2))
    cut = make_node("getitem", NodeId("y"), x=NodeRef(NodeId("one")), index=index)
    graph = program(tensors(a=X2), whole, part, cut)
    assert _same(run(graph, (X2,)).unwrap(), X2[2:, ::2])


def test_foreign_operators_run_by_name() -> None:
    text = '{"opaque":""}'
    made = Node(
        NodeId("y"),
        OpName("aten.clone.default"),
        (A,),
        FrozenMap({"memory_format": "channels_last", "type": text}),
    )
    out = run(program(tensors(a=X4), made), (X4,)).unwrap()
    assert isinstance(out, torch.Tensor)
    assert out.is_contiguous(memory_format=torch.channels_last)
    unknown = Node(NodeId("y"), OpName("aten.nosuch.default"), (A,), FrozenMap({"type": text}))
    fault = run(program(tensors(a=X4), unknown), (X4,)).failure()
    assert (fault.kind, fault.at) == (FaultKind.NO_IMPLEMENTATION, "y")


def test_kernels_are_not_run_here() -> None:
    made = Node(NodeId("y"), OpName("onednn.qconv2d"), (A,))
    assert torch_call(made).failure().kind is FaultKind.NO_IMPLEMENTATION


def test_leaves_come_from_the_graph_or_the_caller() -> None:
    held = Leaf("Doubler", fingerprint_of(X2), "asked", payload=lambda x: x * 2)
    leaf = make_node("leaf", NodeId("l"), xs=(A,), path="m", type='{"opaque":""}')
    first = make_node("getitem", NodeId("y"), x=NodeRef(NodeId("l")), index=0)
    graph = program(tensors(a=X2), leaf, first)
    bare = graph_of(tuple(graph), {}, graph.signature, leaves={Path("m"): held})
    assert _same(run(bare, (X2,)).unwrap(), X2 * 2)
    given = run(graph, (X2,), leaves={"m": lambda x: x * 3}).unwrap()
    assert _same(given, X2 * 3)
    assert run(graph, (X2,)).failure().kind is FaultKind.MISSING_LEAF


def test_missing_values_and_wrong_inputs_are_faults() -> None:
    weight = weight_of(rand(3, 6), Role.PARAMETER)
    made = make_node("linear", NodeId("y"), x=A, weight=WeightRef(Path("w")))
    graph = program(tensors(a=X2), made)
    assert run(graph, (X2,)).failure().kind is FaultKind.UNBOUND_NAME
    whole = graph_of(tuple(graph), {Path("w"): weight}, graph.signature)
    assert run(whole, (X2[:, :5],)).failure().kind is FaultKind.INPUT_DOES_NOT_FIT
    assert run(whole, ()).failure().kind is FaultKind.INPUT_DOES_NOT_FIT
    assert run(whole, (), {"a": X2}).map(lambda _: True).value_or(False)


def test_what_torch_raises_names_the_node() -> None:
    opaque = Input("a", NodeId("@a"), OpaqueType())
    graph = program(tensors(a=X2), make_node("matmul", NodeId("y"), x=A, y=A))
    signature = graph.signature
    loose = Signature(
        (opaque,), signature.args, signature.kwargs, signature.output, FrozenMap(), ("a",)
    )
    fault = run(graph_of(tuple(graph), {}, loose), (X2,)).failure()
    assert (fault.kind, fault.at) == (FaultKind.CALIBRATION_FAILED, "y")


def test_a_tap_sees_every_value_and_may_stop_the_run() -> None:
    double = make_node("add", NodeId("d"), x=A, y=A)
    last = make_node("relu", NodeId("y"), x=NodeRef(NodeId("d")))
    graph = program(tensors(a=X2), double, last)
    seen: list[str] = []
    run(graph, (X2,), tap=lambda name, _: seen.append(name)).unwrap()
    assert seen == ["@a", "d", "y"]
    fault = run(graph, ()).failure()

    def stop(name: NodeId, _: object) -> None:
        if name == "d":
            raise Stopped(fault)

    assert run(graph, (X2,), tap=stop).failure() is fault


def test_values_are_freed_after_their_last_use() -> None:
    nodes = [make_node("add", NodeId("n0"), x=A, y=1.0)]
    for index in range(1, 6):
        nodes.append(
            make_node("add", NodeId(f"n{index}"), x=NodeRef(NodeId(f"n{index - 1}")), y=1.0)
        )
    ready = prepare(program(tensors(a=X2), *nodes)).unwrap()
    assert [step.frees for step in ready.steps] == [(0,), (1,), (2,), (3,), (4,), (5,)]


def test_maximum_with_a_number_is_one_side_of_a_clamp() -> None:
    made = run(program(tensors(a=X2), node("maximum", x=0.5, y=A)), (X2,)).unwrap()
    assert _same(made, X2.clamp(min=0.5))
