"""From torch's spellings to the catalogue: aten overloads and their canonical form.

Three tables. `_SAME`: overloads whose arguments carry our names or their usual aliases, under the
op's own name. `_OTHER`: the same with other names, grouped by the op they mean. `_SPECIAL`: those
that a function of `fqx.ops.translate` has to look at. In-place twins are not listed:
`aten.relu_.default` is `aten.relu.default` with its value written back.

Conventions for the bound arguments: a dtype is a `DType`, a memory format one of the strings of
the `contiguous` row, a device or layout a string or None.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fqx.ir.arg import Arg
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.ir.signature import TensorType, Type
from fqx.ops import translate as to
from fqx.ops.bound import Bound, Canonical, Same, Translate, Translation, call, local
from fqx.ops.catalogue import OPS
from fqx.ops.schema import Call

__all__ = [
    "SPELLINGS",
    "Canonical",
    "Same",
    "Translation",
    "canonical_call",
    "functional_name",
    "local",
    "writes",
]

# An overload without a dot is `.default`.
_SAME: Final = """
conv1d conv2d conv3d conv_transpose1d linear embedding matmul mm bmm einsum instance_norm batch_norm
relu leaky_relu elu selu celu prelu gelu silu mish hardswish hardsigmoid sigmoid tanh softplus
threshold log_sigmoid dropout feature_dropout alpha_dropout
exp expm1 log log2 log1p sqrt rsqrt reciprocal erf sin cos abs neg square sign floor ceil round
bitwise_not logical_not isnan isinf
maximum minimum logical_and logical_or logical_xor
cat stack chunk
max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
mean sum amax amin linalg_vector_norm argmax all any cumsum
reshape permute unsqueeze repeat flip channel_shuffle tril triu gather index_select index_copy
lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
"""

_OTHER: Final[Mapping[str, str]] = MappingProxyType(
    {
        "conv_transpose2d": "conv_transpose2d.input",
        "conv_transpose3d": "conv_transpose3d.input",
        "softmax": "softmax.int special_softmax",
        "log_softmax": "log_softmax.int special_log_softmax",
        "sigmoid": "special_expit",
        "erf": "special_erf",
        "expm1": "special_expm1",
        "log1p": "special_log1p",
        "round": "special_round",
        "abs": "absolute",
        "neg": "negative",
        "add": "add.Tensor add.Scalar",
        "sub": "sub.Tensor sub.Scalar subtract.Tensor subtract.Scalar",
        "mul": "mul.Tensor mul.Scalar multiply.Tensor multiply.Scalar",
        "div": """div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode divide.Tensor divide.Scalar
        divide.Tensor_mode divide.Scalar_mode true_divide.Tensor true_divide.Scalar""",
        "pow": "pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar",
        "remainder": "remainder.Tensor remainder.Scalar remainder.Scalar_Tensor",
        "maximum": "max.other",
        "minimum": "min.other",
        "eq": "eq.Tensor eq.Scalar",
        "ne": "ne.Tensor ne.Scalar not_equal.Tensor not_equal.Scalar",
        "lt": "lt.Tensor lt.Scalar less.Tensor less.Scalar",
        "le": "le.Tensor le.Scalar less_equal.Tensor less_equal.Scalar",
        "gt": "gt.Tensor gt.Scalar greater.Tensor greater.Scalar",
        "ge": "ge.Tensor ge.Scalar greater_equal.Tensor greater_equal.Scalar",
        "bitwise_and": """bitwise_and.Tensor bitwise_and.Scalar bitwise_and.Scalar_Tensor
        __and__.Tensor __and__.Scalar""",
        "bitwise_or": """bitwise_or.Tensor bitwise_or.Scalar bitwise_or.Scalar_Tensor
        __or__.Tensor __or__.Scalar""",
        "bitwise_xor": """bitwise_xor.Tensor bitwise_xor.Scalar bitwise_xor.Scalar_Tensor
        __xor__.Tensor __xor__.Scalar""",
        "cat": "concat concatenate",
        "chunk": "unsafe_chunk",
        "unbind": "unbind.int",
        "mean": "mean.dim",
        "sum": "sum.dim_IntList",
        "all": "all.dim all.dims",
        "any": "any.dim any.dims",
        "flatten": "flatten.using_ints",
        "unflatten": "unflatten.int",
        "channel_shuffle": "native_channel_shuffle",
        "index": "index.Tensor index.Tensor_hacked_twin",
        "scatter": "scatter.src scatter.value",
        "int_add": "operator.add",
        "int_sub": "operator.sub",
        "int_mul": "operator.mul",
        "int_floordiv": "operator.floordiv",
        "int_mod": "operator.mod",
        "int_neg": "operator.neg",
    }
)

# What only says something of the program, and what gives its operand.
_ASSERTS: Final = """
_assert_tensor_metadata _assert_scalar _assert_async.msg _assert_async sym_constrain_range
sym_constrain_range_for_size
"""
_IDENTITIES: Final = "detach alias lift_fresh positive"

_RECURRENT: Final = MappingProxyType({"weights": "params"})
_FLOOR: Final = to.renamed("div")

_SPECIAL: Final[Mapping[str, Translate]] = MappingProxyType(
    {
        "conv1d.padding": to.padded_conv,
        "conv2d.padding": to.padded_conv,
        "conv3d.padding": to.padded_conv,
        "convolution": to.convolution,
        "_convolution": to.convolution,
        "addmm": to.renamed("addmm", input="self", x="mat1", y="mat2"),
        "baddbmm": to.renamed("baddbmm", input="self", x="batch1", y="batch2"),
        "embedding_bag": to.embedding_bag,
        "embedding_bag.padding_idx": to.padded_embedding_bag,
        "_embedding_bag": to.embedding_bag,
        "scaled_dot_product_attention": to.renamed(
            "scaled_dot_product_attention", q="query", k="key", v="value", mask="attn_mask"
        ),
        "_native_batch_norm_legit_no_training": to.renamed("batch_norm", 0),
        "layer_norm": to.renamed("layer_norm", shape="normalized_shape"),
        "native_layer_norm": to.renamed("layer_norm", 0, shape="normalized_shape"),
        "rms_norm": to.renamed("rms_norm", shape="normalized_shape"),
        "group_norm": to.renamed("group_norm", groups="num_groups"),
        "native_group_norm": to.renamed("group_norm", 0, groups="group"),
        "_softmax": to.plain_softmax("softmax"),
        "_log_softmax": to.plain_softmax("log_softmax"),
        "relu6": to.relu6,
        "hardtanh": to.hardtanh,
        "clamp": to.clamp,
        "clamp.Tensor": to.clamp,
        "clip": to.clamp,
        "clip.Tensor": to.clamp,
        "clamp_min": to.clamp,
        "clamp_min.Tensor": to.clamp,
        "clamp_max": to.clamp,
        "clamp_max.Tensor": to.clamp,
        "rrelu": to.rrelu,
        "rsub.Tensor": to.renamed("sub", x="other", y="self"),
        "rsub.Scalar": to.renamed("sub", x="other", y="self"),
        "floor_divide": to.with_attrs(_FLOOR, rounding_mode="floor"),
        "floor_divide.Scalar": to.with_attrs(_FLOOR, rounding_mode="floor"),
        "where.self": to.renamed("where", x="self", y="other"),
        "where.ScalarOther": to.renamed("where", x="self", y="other"),
        "where.ScalarSelf": to.renamed("where", x="self", y="other"),
        "where.Scalar": to.renamed("where", x="self", y="other"),
        "masked_fill.Scalar": to.masked_fill,
        "masked_fill.Tensor": to.masked_fill,
        "hstack": to.hstack,
        "vstack": to.vstack,
        "split.Tensor": to.renamed("split", size="split_size"),
        "split.sizes": to.renamed("split", size="split_size"),
        "split": to.renamed("split", size="split_sizes"),
        "split_with_sizes": to.renamed("split", size="split_sizes"),
        "unsafe_split.Tensor": to.renamed("split", size="split_size"),
        "unsafe_split_with_sizes": to.renamed("split", size="split_sizes"),
        "tensor_split.sections": to.tensor_split,
        "max_pool1d_with_indices": to.renamed("max_pool1d", 0),
        "max_pool2d_with_indices": to.renamed("max_pool2d", 0),
        "max_pool3d_with_indices": to.renamed("max_pool3d", 0),
        "adaptive_max_pool1d": to.renamed("adaptive_max_pool1d", 0),
        "adaptive_max_pool2d": to.renamed("adaptive_max_pool2d", 0),
        "adaptive_max_pool3d": to.renamed("adaptive_max_pool3d", 0),
        "max": to.reduce_all("amax"),
        "min": to.reduce_all("amin"),
        "max.dim": to.renamed("amax", 0),
        "min.dim": to.renamed("amin", 0),
        "var": to.variance,
        "var.dim": to.variance,
        "var.correction": to.variance,
        "view": to.renamed("reshape", shape="size"),
        "_unsafe_view": to.renamed("reshape", shape="size"),
        "view_as": to.shaped_like("reshape"),
        "reshape_as": to.shaped_like("reshape"),
        "ravel": to.ravel,
        "transpose.int": to.transpose,
        "swapaxes": to.transpose,
        "swapdims": to.transpose,
        "t": to.reverse_axes,
        "numpy_T": to.reverse_axes,
        "mT": to.matrix_transpose,
        "mH": to.matrix_transpose,
        "adjoint": to.matrix_transpose,
        "movedim.int": to.move_axes,
        "movedim.intlist": to.move_axes,
        "moveaxis.int": to.move_axes,
        "moveaxis.intlist": to.move_axes,
        "squeeze": to.squeeze,
        "squeeze.dim": to.squeeze,
        "squeeze.dims": to.squeeze,
        "expand": to.renamed("expand", shape="size"),
        "broadcast_to": to.renamed("expand", shape="size"),
        "expand_as": to.shaped_like("expand"),
        "tile": to.tile,
        "contiguous": to.renamed("contiguous"),
        "clone": to.clone,
        "pad": to.pad(None),
        "constant_pad_nd": to.pad("constant"),
        "reflection_pad1d": to.pad("reflect"),
        "reflection_pad2d": to.pad("reflect"),
        "reflection_pad3d": to.pad("reflect"),
        "replication_pad1d": to.pad("replicate"),
        "replication_pad2d": to.pad("replicate"),
        "replication_pad3d": to.pad("replicate"),
        "roll": to.roll,
        "pixel_shuffle": to.renamed("pixel_shuffle", factor="upscale_factor"),
        "pixel_unshuffle": to.renamed("pixel_unshuffle", factor="downscale_factor"),
        "slice.Tensor": to.slice_axis,
        "slice_scatter": to.slice_scatter,
        "narrow": to.narrow,
        "select.int": to.select,
        "select_scatter": to.renamed("select_scatter", source="src"),
        "index_put": to.renamed("index_put", value="values"),
        "index_put.hacked_twin": to.renamed("index_put", value="values"),
        "_index_put_impl": to.renamed("index_put", value="values"),
        "to.dtype": to.cast,
        "to.dtype_layout": to.cast,
        "to.device": to.cast,
        "to.other": to.cast,
        "type_as": to.cast,
        "_to_copy": to.cast,
        "full": to.full(),
        "zeros": to.full(0),
        "ones": to.full(1),
        "new_full": to.full(),
        "new_zeros": to.full(0),
        "new_ones": to.full(1),
        # Memory that nobody has written yet may as well hold zeros.
        "empty.memory_format": to.full(0),
        "new_empty": to.full(0),
        "full_like": to.full_like(),
        "zeros_like": to.full_like(0),
        "ones_like": to.full_like(1),
        "empty_like": to.full_like(0),
        "fill.Scalar": to.full_like(),
        "fill.Tensor": to.fill_tensor,
        "zero": to.full_like(0),
        "copy": to.copy,
        "scalar_tensor": to.scalar_tensor,
        "arange": to.arange,
        "arange.start": to.arange,
        "arange.start_step": to.arange,
        "lstm.input": to.renamed("lstm", **_RECURRENT),
        "gru.input": to.renamed("gru", **_RECURRENT),
        "rnn_tanh.input": to.renamed("rnn_tanh", **_RECURRENT),
        "rnn_relu.input": to.renamed("rnn_relu", **_RECURRENT),
        "sym_size.int": to.size,
        "sym_numel": to.numel,
        "lift_fresh_copy": to.copied,
        **{
            f"{name}{axes}d{form}": to.interpolate(mode, antialias)
            for name, axes, mode, antialias in (
                *(("upsample_nearest", axes, "nearest", False) for axes in (1, 2, 3)),
                *(("_upsample_nearest_exact", axes, "nearest-exact", False) for axes in (1, 2, 3)),
                ("upsample_linear", 1, "linear", False),
                ("upsample_bilinear", 2, "bilinear", False),
                ("upsample_trilinear", 3, "trilinear", False),
                ("upsample_bicubic", 2, "bicubic", False),
            )
            for form in ("", ".vec")
        },
        "_upsample_bilinear2d_aa": to.interpolate("bilinear", antialias=True),
        "_upsample_bilinear2d_aa.vec": to.interpolate("bilinear", antialias=True),
        "_upsample_bicubic2d_aa": to.interpolate("bicubic", antialias=True),
        "_upsample_bicubic2d_aa.vec": to.interpolate("bicubic", antialias=True),
    }
)


def _full_name(name: str) -> str:
    stem = name if name.startswith("operator.") else f"aten.{name}"
    return stem if "." in name else f"{stem}.default"


SPELLINGS: Final[Mapping[str, Translate]] = MappingProxyType(
    {
        **{_full_name(name): to.renamed(name) for name in _SAME.split()},
        **{_full_name(n): to.renamed(op) for op, names in _OTHER.items() for n in names.split()},
        **{_full_name(name): to.nothing for name in _ASSERTS.split()},
        **{_full_name(name): to.identity for name in _IDENTITIES.split()},
        **{_full_name(name): translate for name, translate in _SPECIAL.items()},
    }
)
"""Every functional spelling by its full name, `aten.add.Tensor`."""

_TWINS: Final = MappingProxyType(
    {
        "aten.pow_.Scalar": "aten.pow.Tensor_Scalar",
        "aten.pow_.Tensor": "aten.pow.Tensor_Tensor",
        "aten.floor_divide_.Tensor": "aten.floor_divide.default",
        "aten._index_put_impl_.default": "aten._index_put_impl.default",
    }
)
"""In-place twins whose functional form has another overload name."""


def writes(name: str) -> bool:
    """Whether the overload writes into its first argument: `aten.add_.Tensor`."""
    stem = name.split(".")[1] if name.count(".") == 2 else ""
    return (stem.endswith("_") and not stem.endswith("__")) or stem.startswith("__i")


def functional_name(name: str) -> str:
    """The functional form of an in-place overload: `aten.add_.Tensor` gives `aten.add.Tensor`."""
    if name in _TWINS or not writes(name):
        return _TWINS.get(name, name)
    space, stem, overload = name.split(".")
    plain = f"__{stem[3:]}" if stem.startswith("__i") else stem.removesuffix("_")
    return f"{space}.{plain}.{overload}"


def canonical_call(name: str, bound: Mapping[str, Arg], types: Mapping[str, Type]) -> Translation:
    """The canonical form of the call of aten overload `name` (`aten.relu.default`).

    `bound` holds every argument of the aten schema by its schema name, defaults filled in, and
    `types` the types of those that hold references (a TupleType for lists). In-place twins are
    given by their own name (`aten.relu_.default`) and give the functional call, cast to the dtype
    of the tensor written to. None: the call stays foreign.
    """
    translate = SPELLINGS.get(functional_name(name))
    if translate is None:
        return None
    made = translate(Bound(bound, types))
    return _as_written(made, Bound(bound, types)) if writes(name) else made


def _as_written(made: Translation, bound: Bound) -> Translation:
    """The value an in-place call leaves behind has the dtype of the tensor it is written to."""
    kind = bound.tensor("self")
    if not isinstance(made, Canonical) or kind is None:
        return made
    known = {bound[name]: found for name, found in bound.types.items() if name in bound.args}
    node = Node(NodeId("%"), made.op, made.args, made.attrs)
    found = OPS[made.op].infer(Call(node, OPS[made.op], lambda ref: known[ref]))
    if not isinstance(found, TensorType) or found.dtype is kind.dtype:
        return made
    cast = call("to", None, x=local(0), dtype=kind.dtype)
    return made if cast is None else (made, cast)
