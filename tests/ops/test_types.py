"""Type rules on named dimensions."""

from __future__ import annotations

import pytest

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.names import NodeId
from fqx.ir.signature import (
    Dim,
    IntType,
    OpaqueType,
    TensorType,
    TupleType,
    Type,
    add_dims,
    div_dims,
    mul_dims,
    named,
    sub_dims,
)
from fqx.ops.catalogue import make_node
from fqx.ops.promote import promote
from fqx.ops.types import infer

B, S = named("batch"), named("seq")
X, Y = NodeRef(NodeId("x")), NodeRef(NodeId("y"))


def of(op: str, x: Type, y: Type | None = None, /, **given: Arg) -> Type:
    types = {"x": x, "y": y or x, "n": IntType(S)}

    def lookup(ref: NodeRef | WeightRef) -> Type:
        return types[ref.id] if isinstance(ref, NodeRef) else OpaqueType()

    return infer(make_node(op, NodeId("v"), **given), lookup)


def floats(*dims: Dim) -> TensorType:
    return TensorType(DType.FLOAT32, dims)


def test_heads_of_a_transformer() -> None:
    heads = of("reshape", floats(B, S, 384), x=X, shape=(NodeRef(NodeId("n")), -1, 12, 32))
    assert heads == floats(S, B, 12, 32)
    split = of("reshape", floats(B, S, 384), x=X, shape=(-1, NodeRef(NodeId("n")), 12, 32))
    assert split == floats(B, S, 12, 32)
    turned = of("permute", floats(B, S, 12, 32), x=X, dims=(0, 2, 1, 3))
    assert turned == floats(B, 12, S, 32)
    scores = of("matmul", floats(B, 12, S, 32), floats(B, 12, 32, S), x=X, y=Y)
    assert scores == floats(B, 12, S, S)
    assert of("flatten", floats(B, S, 12, 32), x=X, start_dim=2) == floats(B, S, 384)


def test_windows_of_a_named_side() -> None:
    side = named("side")
    node: dict[str, Arg] = {"kernel_size": (3,), "stride": (2,), "padding": (1,)}
    found = of("max_pool1d", floats(B, 8, side), x=X, **node)
    assert found == floats(B, 8, add_dims(div_dims(sub_dims(side, 1), 2), 1))


def test_convolutions() -> None:
    x, weight = floats(B, 3, 32, 32), floats(16, 3, 3, 3)
    given: dict[str, Arg] = {"stride": (2, 2), "padding": (1, 1)}
    assert of("conv2d", x, weight, x=X, weight=Y, **given) == floats(B, 16, 16, 16)
    back = of("conv_transpose2d", floats(B, 16, 16, 16), floats(16, 4, 2, 2), x=X, weight=Y,
              stride=(2, 2), groups=2)  # fmt: skip
    assert back == floats(B, 8, 32, 32)


@pytest.mark.parametrize(
    ("start", "stop", "size"),
    [
        (None, -1, sub_dims(S, 1)),
        (1, None, sub_dims(S, 1)),
        (-1, None, 1),
        (0, 1, 1),
        (None, 7, None),
        (3, None, None),
        (None, X, None),
    ],
)
def test_slices_of_a_named_axis_are_exact_or_unknown(start: Arg, stop: Arg, size: Dim) -> None:
    assert of("slice", floats(B, S), x=X, start=start, stop=stop, dim=1) == floats(B, size)


def test_a_slice_up_to_a_named_size() -> None:
    assert of("slice", floats(1, 512), x=X, stop=NodeRef(NodeId("n")), dim=1) == floats(1, S)


def test_joining_adds_sizes_and_int_sizes_win() -> None:
    assert of("cat", floats(B, 3), floats(B, S), xs=(X, Y), dim=1) == floats(B, add_dims(S, 3))
    assert of("cat", floats(B, 3), floats(7, S), xs=(X, Y), dim=1) == floats(7, add_dims(S, 3))
    assert of("stack", floats(B, 3), xs=(X, X), dim=1) == floats(B, 2, 3)


def test_broadcasting_knows_what_it_can() -> None:
    assert of("add", floats(B, 1), floats(1, S), x=X, y=Y) == floats(B, S)
    assert of("add", floats(B), floats(S), x=X, y=Y) == floats(None)
    assert of("mul", floats(B, S), x=X, y=2) == floats(B, S)


def test_promotion() -> None:
    ints, half = TensorType(DType.INT64, (3,)), TensorType(DType.FLOAT16, (3,))
    assert of("add", ints, x=X, y=1.5) == floats(3)
    assert of("add", half, TensorType(DType.FLOAT32, ()), x=X, y=Y) == half
    assert of("add", half, floats(3), x=X, y=Y) == floats(3)
    assert of("div", ints, x=X, y=2) == floats(3)
    assert of("div", ints, x=X, y=2, rounding_mode="floor") == ints
    assert promote(DType.UINT8, DType.INT8) is DType.INT16


def test_ints_are_polynomials() -> None:
    n = NodeRef(NodeId("n"))
    assert of("size", floats(B, S), x=X, dim=1) == IntType(S)
    assert of("int_mul", floats(), x=n, y=4) == IntType(mul_dims(S, 4))
    assert of("int_floordiv", IntType(mul_dims(S, 4)), x=X, y=2) == IntType(mul_dims(S, 2))
    assert of("int_neg", IntType(S), x=X) == IntType(mul_dims(-1, S))


def test_tuples() -> None:
    parts = of("chunk", floats(B, 7), x=X, chunks=3, dim=1)
    assert parts == TupleType((floats(B, 3), floats(B, 3), floats(B, 1)))
    assert of("getitem", parts, x=X, index=2) == floats(B, 1)
    assert of("getitem", parts, x=X, index=3) == OpaqueType()


def test_what_does_not_fit_is_unknown() -> None:
    assert of("permute", floats(B, 3), x=X, dims=(0, 5)) == OpaqueType()
    assert of("relu", OpaqueType(), x=X) == OpaqueType()
