"""Rows, and what reads and makes nodes by them."""

from __future__ import annotations

import pytest

from fqx.ir.arg import DType, NodeRef, WeightRef
from fqx.ir.fault import FaultKind
from fqx.ir.names import NodeId, OpName, Path
from fqx.ir.node import Node
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import is_success
from fqx.ops.catalogue import (
    OPS,
    check_node,
    fixed_qparams,
    is_foreign,
    is_kernel,
    make_node,
    op_of,
    operand,
    shares_qparams,
    with_attr,
    with_operand,
)
from fqx.ops.schema import Trait, read_op
from fqx.ops.spellings import SPELLINGS

X = NodeRef(NodeId("@x"))
W = WeightRef(Path("conv.weight"))


def test_a_row_is_written_as_it_reads() -> None:
    assert all(read_op(row.text, row.infer, row.traits, row.fixed) == row for row in OPS.values())
    assert OPS[OpName("leaky_relu")].text == "leaky_relu(x; negative_slope=0.01)"
    assert OPS[OpName("observe")].operands[1].rest


def test_make_node_fills_defaults_and_positions() -> None:
    node = make_node("conv2d", NodeId("conv"), x=X, weight=W, padding=(1, 1))
    assert node.args == (X, W, None)
    assert dict(node.attrs.items()) == {
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
    }
    assert op_of(node) is OPS[OpName("conv2d")]
    assert operand(node, "weight") == W
    assert operand(with_operand(node, "bias", W), "bias") == W
    assert with_operand(node, "weight", W) is node
    assert with_attr(node, "groups", 2).attrs["groups"] == 2


def test_rest_operands_are_spread() -> None:
    node = make_node("observe", NodeId("x:observe"), x=X, states=(W, W), observer=None)
    assert node.args == (X, W, W)
    assert operand(node, "states") == (W, W)


def test_make_node_names_what_is_wrong() -> None:
    with pytest.raises(KeyError, match="weight"):
        make_node("linear", NodeId("fc"), x=X)
    with pytest.raises(KeyError, match="dims"):
        make_node("permute", NodeId("p"), x=X)
    with pytest.raises(TypeError, match="size"):
        make_node("relu", NodeId("r"), x=X, size=1)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Node(NodeId("n"), OpName("relu")), "has 0 operands"),
        (Node(NodeId("n"), OpName("relu"), (X, X)), "has 2 operands"),
        (Node(NodeId("n"), OpName("relu"), (None,)), "'x' of relu is missing"),
        (Node(NodeId("n"), OpName("cat"), (X,), FrozenMap({"dim": 0})), "is not a tuple"),
        (Node(NodeId("n"), OpName("softmax"), (X,), FrozenMap({"dim": 0})), "attributes dim"),
        (Node(NodeId("n"), OpName("getitem"), (X,), FrozenMap({"index": X})), "a reference"),
        (Node(NodeId("n"), OpName("aten.a.b"), (X,), FrozenMap({"type": X})), "a reference"),
    ],
)
def test_check_node_says_what_does_not_fit(node: Node, reason: str) -> None:
    fault = check_node(node).failure()
    assert fault.kind is FaultKind.MALFORMED_NODE
    assert reason in fault.reason
    assert fault.at == "n"


def test_foreign_calls_and_kernels_have_no_row() -> None:
    foreign = Node(NodeId("n"), OpName("aten.cumprod.default"), (X, 1), FrozenMap({"type": "{}"}))
    kernel = Node(NodeId("n"), OpName("onednn.qadd"), (X, X))
    assert is_foreign(foreign)
    assert not is_kernel(foreign)
    assert is_kernel(kernel)
    assert not is_foreign(kernel)
    assert is_success(check_node(foreign))
    assert op_of(kernel) is None


def test_fixed_ranges_give_power_of_two_scales() -> None:
    sigmoid, tanh = OPS[OpName("sigmoid")], OPS[OpName("tanh")]
    assert fixed_qparams(sigmoid, 0, 255) == (1 / 256, 0)
    assert fixed_qparams(sigmoid, -128, 127) == (1 / 256, -128)
    assert fixed_qparams(tanh, 0, 255) == (1 / 128, 128)
    assert fixed_qparams(tanh, -128, 127) == (1 / 128, 0)
    assert fixed_qparams(tanh, 0, 127) == (1 / 64, 64)
    assert fixed_qparams(OPS[OpName("relu")], 0, 255) is None


def test_sharing_qparams_depends_on_the_call() -> None:
    near = make_node("interpolate", NodeId("i"), x=X, scale_factor=(2.0, 2.0))
    assert shares_qparams(near)
    assert not shares_qparams(with_attr(near, "mode", "bilinear"))
    zeros = make_node("pad", NodeId("p"), x=X, pad=(1, 1))
    assert shares_qparams(zeros)
    assert not shares_qparams(with_attr(zeros, "value", 1.0))
    assert shares_qparams(with_attr(with_attr(zeros, "value", 1.0), "mode", "reflect"))
    assert not shares_qparams(make_node("relu", NodeId("r"), x=X))


def test_every_row_has_a_spelling() -> None:
    rows = {name for name, row in OPS.items() if Trait.BOUNDARY not in row.traits}
    stems = {name.split(".")[1] for name in SPELLINGS}
    # these go by other names: operator.add, upsample_nearest2d, sym_size; getitem is Python's
    ints = {name for name in rows if name.startswith("int_")}
    assert rows - stems == ints | {"getitem", "interpolate", "size"}


def test_dtype_attributes_default_to_none() -> None:
    node = make_node("to", NodeId("t"), x=X, dtype=DType.INT64)
    assert node.attrs["dtype"] is DType.INT64
    assert make_node("sum", NodeId("s"), x=X).attrs["dtype"] is None
