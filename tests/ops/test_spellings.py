"""Spellings that have to look at their arguments."""

from __future__ import annotations

from fqx.ir.arg import Arg, DType, NodeRef
from fqx.ir.names import NodeId
from fqx.ir.signature import Dim, TensorType, named
from fqx.ops.spellings import (
    Canonical,
    Same,
    Translation,
    canonical_call,
    functional_name,
    local,
    writes,
)

X = NodeRef(NodeId("@x"))
Y = NodeRef(NodeId("@y"))
BATCH = named("batch")


def floats(*dims: Dim) -> TensorType:
    return TensorType(DType.FLOAT32, dims)


def spell(name: str, x: TensorType, /, **args: Arg) -> Translation:
    return canonical_call(f"aten.{name}", {"self": X, **args}, {"self": x})


def one(made: Translation) -> Canonical:
    assert isinstance(made, Canonical)
    return made


def test_spellings_of_relu6_agree() -> None:
    six = spell("relu6.default", floats(2))
    assert six == spell("hardtanh.default", floats(2), min_val=0.0, max_val=6.0)
    assert six == spell("clamp.default", floats(2), min=0, max=6)
    assert six == spell("relu6_.default", floats(2))
    assert one(six).args == (X, 0.0, 6.0)


def test_clamp_at_zero_is_relu() -> None:
    assert one(spell("clamp_min.default", floats(2), min=0)).op == "relu"
    assert one(spell("clamp_min.default", floats(2), min=-0.0)).op == "clamp"
    assert one(spell("clamp_min.default", TensorType(DType.INT64, (2,)), min=0.0)).op == "clamp"


def test_axes_become_non_negative() -> None:
    assert one(spell("softmax.int", floats(BATCH, 3), dim=-1, dtype=None)).attrs["dim"] == 1
    assert one(spell("unsqueeze.default", floats(BATCH, 3), dim=-1)).attrs["dim"] == 2
    made = one(spell("mean.dim", floats(BATCH, 3, 4), dim=(-1, -2), keepdim=False, dtype=None))
    assert made.attrs["dim"] == (2, 1)
    assert one(spell("amax.default", floats(BATCH, 3), dim=(), keepdim=False)).attrs["dim"] is None


def test_windows_become_tuples_and_stride_defaults_to_the_kernel() -> None:
    given: dict[str, Arg] = {"kernel_size": (3,), "stride": (), "padding": 0, "dilation": 1}
    made = one(spell("max_pool2d.default", floats(1, 2, 8, 8), ceil_mode=False, **given))
    assert made.attrs["kernel_size"] == made.attrs["stride"] == (3, 3)
    assert made.attrs["padding"] == (0, 0)


def test_a_slice_of_everything_is_its_operand() -> None:
    whole: dict[str, Arg] = {"dim": 0, "start": 0, "end": 2**63 - 1, "step": 1}
    assert spell("slice.Tensor", floats(BATCH, 8), **whole) == Same(X)
    assert spell("slice.Tensor", floats(BATCH, 8), **{**whole, "dim": 1, "end": 8}) == Same(X)
    last = one(spell("slice.Tensor", floats(BATCH, 8), **{**whole, "dim": 1, "start": -2}))
    assert last.args == (X, 6, None)


def test_even_same_convolutions_pad_on_the_right_first() -> None:
    bound: dict[str, Arg] = {
        "input": X,
        "weight": Y,
        "bias": None,
        "stride": (1, 1),
        "padding": "same",
        "dilation": (1, 1),
        "groups": 1,
    }
    types = {"input": floats(BATCH, 3, 8, 8), "weight": floats(4, 3, 2, 3)}
    made = canonical_call("aten.conv2d.padding", bound, types)
    assert isinstance(made, tuple)
    pad, conv = made
    assert pad.args == (X, (0, 0, 0, 1))
    assert conv.args == (local(0), Y, None)
    assert conv.attrs["padding"] == (0, 1)


def test_a_named_size_becomes_a_node() -> None:
    made = canonical_call(
        "aten.view_as.default",
        {"self": X, "other": Y},
        {"self": floats(BATCH, 6), "other": floats(BATCH, 2, 3)},
    )
    assert isinstance(made, tuple)
    assert [call.op for call in made] == ["size", "reshape"]
    assert made[1].args == (X, (local(0), 2, 3))
    assert spell("sym_size.int", floats(BATCH, 6), dim=1) == Same(6)


def test_an_in_place_call_keeps_the_dtype_it_writes_to() -> None:
    types = {"self": TensorType(DType.FLOAT16, (2,)), "other": floats(2)}
    made = canonical_call("aten.add_.Tensor", {"self": X, "other": Y, "alpha": 1}, types)
    assert isinstance(made, tuple)
    assert [call.op for call in made] == ["add", "to"]
    assert made[1].attrs["dtype"] is DType.FLOAT16


def test_values_of_tuples_are_marked() -> None:
    made = spell("max.dim", floats(BATCH, 3), dim=1, keepdim=False)
    assert one(made).op == "amax"
    assert one(made).item == 0


def test_a_reference_where_a_literal_must_stand_keeps_the_call_foreign() -> None:
    assert spell("split.Tensor", floats(BATCH, 3), split_size=Y, dim=0) is None
    assert spell("cumprod.default", floats(BATCH, 3), dim=0) is None


def test_names_of_in_place_overloads() -> None:
    assert writes("aten.add_.Tensor")
    assert writes("aten.__iand__.Tensor")
    assert not writes("aten.__and__.Tensor")
    assert not writes("aten._to_copy.default")
    assert functional_name("aten.pow_.Scalar") == "aten.pow.Tensor_Scalar"
    assert functional_name("aten.__ior__.Tensor") == "aten.__or__.Tensor"
    assert functional_name("aten.relu.default") == "aten.relu.default"


def test_identities_and_assertions() -> None:
    assert spell("detach.default", floats(2)) == Same(X)
    assert spell("clone.default", floats(2), memory_format=None) == Same(X, fresh=True)
    assert canonical_call("aten._assert_scalar.default", {"self": X}, {}) == Same(None)
