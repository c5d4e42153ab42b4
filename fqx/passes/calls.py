"""How each operator of the catalogue is called in torch: a public function and its arguments.

One row per operator, in the notation of its call: `"x dim *dtype"` passes operand x and attribute
dim by position and dtype by keyword; `*min=low` passes `low` under torch's name for it. Rows say
nothing of passes or modules, so whatever runs a graph can share them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from fqx.ir.arg import Arg, Dots, DType, Slice, Training
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import OpName
from fqx.ir.node import Node
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success
from fqx.num import affine, nibbles
from fqx.num.tensors import torch_dtype
from fqx.ops.catalogue import OPS

Function: TypeAlias = Callable[..., Any]

MEMORY_FORMATS: Mapping[str, torch.memory_format] = MappingProxyType(
    {
        "contiguous": torch.contiguous_format,
        "channels_last": torch.channels_last,
        "channels_last_3d": torch.channels_last_3d,
        "preserve": torch.preserve_format,
    }
)
"""torch's memory formats by the names attributes use."""


@dataclass(frozen=True, slots=True)
class TorchCall:
    """A torch function with its arguments.

    Arguments hold refs where values come from the graph; everything else is as torch takes it
    (dtypes, memory formats, Python slices, whose ends may be refs).
    """

    function: Function
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


class Named:
    """Operands and attributes of a node by name, attributes as torch takes them."""

    __slots__ = ("_args", "_attrs", "_names")

    def __init__(self, node: Node) -> None:
        self._names = {item.name: at for at, item in enumerate(OPS[node.op].operands)}
        self._args, self._attrs = node.args, node.attrs

    def __getitem__(self, name: str) -> object:
        at = self._names.get(name)
        return self._attrs_value(name) if at is None else as_torch(self._args[at])

    def _attrs_value(self, name: str) -> object:
        return as_torch(self._attrs[name])


Row: TypeAlias = Callable[[Named], TorchCall]
"""From a node's operands and attributes to its call."""


def torch_call(node: Node) -> Result[TorchCall, Fault]:
    """The torch call of a node of the catalogue, or of a foreign torch operator.

    Inputs and leaves have none: whoever runs a graph gives their values. Fails with
    NO_IMPLEMENTATION for them, for kernels of a target, and for operators torch does not have.
    """
    row = CALLS.get(node.op)
    if row is not None:
        return Success(row(Named(node)))
    if "type" in node.attrs and node.op not in OPS:
        return _foreign(node)
    return Failure(_unknown(node))


def as_torch(arg: Arg) -> object:
    """An argument as torch takes it; refs stay. The training flag is False: graphs are run to
    infer.
    """
    match arg:
        case DType():
            return torch_dtype(arg)
        case Training():
            return False
        case Slice(start=start, stop=stop, step=step):
            return slice(as_torch(start), as_torch(stop), as_torch(step))
        case Dots():
            return ...
        case tuple():
            return tuple(as_torch(item) for item in arg)
        case FrozenMap():
            return {name: as_torch(value) for name, value in arg.items()}
        case _:
            return arg


def _call(function: Function, text: str) -> Row:
    """A row in the notation of this module."""
    ordered, _, keywords = text.partition("*")
    names = tuple(ordered.split())
    pairs = tuple(_pair(word) for word in keywords.split())

    def row(node: Named) -> TorchCall:
        args = tuple(node[name] for name in names)
        return TorchCall(function, args, {theirs: node[ours] for theirs, ours in pairs})

    return row


def _pair(word: str) -> tuple[str, str]:
    theirs, _, ours = word.partition("=")
    return theirs, ours or theirs


def _plain(function: Function, *args: object, **kwargs: object) -> TorchCall:
    return TorchCall(function, args, kwargs)


def _add(node: Named) -> TorchCall:
    # the operator takes numbers on either side, torch.add only on the right
    x, y, alpha = node["x"], node["y"], node["alpha"]
    if alpha == 1:
        return _plain(operator.add, x, y)
    if _is_number(x):
        return _plain(add_scaled, x, y, alpha)
    return _plain(torch.add, x, y, alpha=alpha)


def add_scaled(number: float, y: torch.Tensor, alpha: float) -> torch.Tensor:
    """number + alpha * y, for which torch has no function."""
    return y * alpha + number


def _sub(node: Named) -> TorchCall:
    x, y, alpha = node["x"], node["y"], node["alpha"]
    if alpha == 1:
        return _plain(operator.sub, x, y)
    if _is_number(x):
        return _plain(torch.rsub, y, x, alpha=alpha)
    return _plain(torch.sub, x, y, alpha=alpha)


def _div(node: Named) -> TorchCall:
    x, y, mode = node["x"], node["y"], node["rounding_mode"]
    if _is_number(x):
        return _plain(divide_number, x, y, mode)
    return _plain(torch.div, x, y, rounding_mode=mode)


def _bounded(function: Function, bound: str) -> Row:
    """maximum and minimum: with a number they are one side of a clamp."""

    def row(node: Named) -> TorchCall:
        x, y = node["x"], node["y"]
        if _is_number(x) or _is_number(y):
            value, number = (y, x) if _is_number(x) else (x, y)
            return TorchCall(torch.clamp, (value,), {bound: number})
        return _plain(function, x, y)

    return row


def divide_number(number: float, y: torch.Tensor, mode: str | None = None) -> torch.Tensor:
    """number / y with one rounding, where `number / y` in Python multiplies by a reciprocal."""
    kind = y.dtype if y.is_floating_point() else _kind_of(number)
    return torch.div(torch.scalar_tensor(number, dtype=kind), y, rounding_mode=mode)


def _kind_of(number: float) -> torch.dtype:
    return torch.int64 if isinstance(number, int) else torch.get_default_dtype()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _embedding(node: Named) -> TorchCall:
    return _plain(torch.embedding, node["weight"], node["x"], node["padding_idx"])


def _embedding_bag(node: Named) -> TorchCall:
    padding = node["padding_idx"]
    return _plain(
        F.embedding_bag,
        node["x"],
        node["weight"],
        node["offsets"],
        mode=node["mode"],
        per_sample_weights=node["per_sample_weights"],
        include_last_offset=node["include_last_offset"],
        padding_idx=None if isinstance(padding, int) and padding < 0 else padding,
    )


def _einsum(node: Named) -> TorchCall:
    xs = node["xs"]
    return _plain(torch.einsum, node["equation"], *(xs if isinstance(xs, tuple) else ()))


def _elu(node: Named) -> TorchCall:
    if node["scale"] == 1 and node["input_scale"] == 1:
        return _plain(F.elu, node["x"], node["alpha"])
    # no public function takes the two scales
    args = (node["x"], node["alpha"], node["scale"], node["input_scale"])
    return TorchCall(torch.ops.aten.elu, args, {})


def _reduction(function: Function, *keywords: str) -> Row:
    """A reduction that has a form without axes and one with axes."""

    def row(node: Named) -> TorchCall:
        kwargs = {name: node[name] for name in keywords}
        if node["dim"] is None and node["keepdim"] is False:
            return TorchCall(function, (node["x"],), kwargs)
        return TorchCall(function, (node["x"], node["dim"], node["keepdim"]), kwargs)

    return row


def _extreme(function: Function) -> Row:
    def row(node: Named) -> TorchCall:
        dim = node["dim"]
        return _plain(function, node["x"], () if dim is None else dim, node["keepdim"])

    return row


def _contiguous(node: Named) -> TorchCall:
    layout = MEMORY_FORMATS[str(node["memory_format"])]
    if layout is torch.preserve_format:
        return _plain(torch.clone, node["x"])
    return _plain(torch.Tensor.contiguous, node["x"], memory_format=layout)


def _pad(node: Named) -> TorchCall:
    value = node["value"] if node["mode"] == "constant" else None
    return _plain(F.pad, node["x"], node["pad"], mode=node["mode"], value=value)


def _interpolate(node: Named) -> TorchCall:
    kwargs = {name: node[name] for name in ("mode", "align_corners", "antialias")}
    return TorchCall(F.interpolate, (node["x"], node["size"], node["scale_factor"]), kwargs)


def _slice(node: Named) -> TorchCall:
    dim = node["dim"]
    before = (slice(None),) * (dim if isinstance(dim, int) and dim >= 0 else 0)
    cut = slice(node["start"], node["stop"], node["step"])
    index = (..., cut) if dim == -1 else (*before, cut)
    return _plain(operator.getitem, node["x"], index)


def _index(node: Named) -> TorchCall:
    indices = node["indices"]
    listed = indices if isinstance(indices, tuple) else ()
    # None means the whole axis here; in Python it would make a new one
    return _plain(
        operator.getitem, node["x"], tuple(slice(None) if i is None else i for i in listed)
    )


def _index_put(node: Named) -> TorchCall:
    indices = node["indices"]
    # the public function takes no open axes
    opened = isinstance(indices, tuple) and None in indices
    function = torch.ops.aten.index_put if opened else torch.index_put
    return TorchCall(function, (node["x"], indices, node["value"], node["accumulate"]), {})


def _slice_scatter(node: Named) -> TorchCall:
    kwargs = {"start": node["start"], "end": node["stop"], "step": node["step"]}
    return TorchCall(torch.slice_scatter, (node["x"], node["source"], node["dim"]), kwargs)


def _roll(node: Named) -> TorchCall:
    dims = node["dims"]
    return _plain(torch.roll, node["x"], node["shifts"], dims if dims != () else None)


def _same(node: Named) -> TorchCall:
    return _plain(unchanged, node["x"])


def unchanged(x: object) -> object:
    """What an observer's value is: its operand."""
    return x


_WINDOW = "kernel_size stride padding dilation ceil_mode"
_AVERAGE = "kernel_size stride padding ceil_mode count_include_pad"
_CONV = "x weight bias stride padding dilation groups"
_TRANSPOSED = "x weight bias stride padding output_padding groups dilation"
_RECURRENT = "x hx weights has_biases num_layers dropout training bidirectional batch_first"
_CELL = "x hx w_ih w_hh b_ih b_hh"


def _normalized(function: Function, text: str) -> Row:
    """A norm whose last argument says whether cuDNN may run it, which it may not."""
    inner = _call(function, text)

    def row(node: Named) -> TorchCall:
        made = inner(node)
        return TorchCall(function, (*made.args, False), made.kwargs)

    return row


def _unary(*functions: Function) -> dict[str, Row]:
    return {function.__name__: _call(function, "x") for function in functions}


def _binary(*functions: Function) -> dict[str, Row]:
    return {function.__name__: _call(function, "x y") for function in functions}


_ROWS: Mapping[str, Row] = {
    "conv1d": _call(torch.conv1d, _CONV),
    "conv2d": _call(torch.conv2d, _CONV),
    "conv3d": _call(torch.conv3d, _CONV),
    "conv_transpose1d": _call(torch.conv_transpose1d, _TRANSPOSED),
    "conv_transpose2d": _call(torch.conv_transpose2d, _TRANSPOSED),
    "conv_transpose3d": _call(torch.conv_transpose3d, _TRANSPOSED),
    "linear": _call(F.linear, "x weight bias"),
    "embedding": _embedding,
    "embedding_bag": _embedding_bag,
    **_binary(torch.matmul, torch.mm, torch.bmm),
    "addmm": _call(torch.addmm, "input x y *beta alpha"),
    "baddbmm": _call(torch.baddbmm, "input x y *beta alpha"),
    "einsum": _einsum,
    "scaled_dot_product_attention": _call(
        F.scaled_dot_product_attention,
        "q k v *attn_mask=mask dropout_p is_causal scale enable_gqa",
    ),
    "batch_norm": _normalized(torch.batch_norm, "x weight bias mean var training momentum eps"),
    "instance_norm": _normalized(
        torch.instance_norm, "x weight bias mean var use_input_stats momentum eps"
    ),
    "layer_norm": _normalized(torch.layer_norm, "x shape weight bias eps"),
    "group_norm": _normalized(torch.group_norm, "x groups weight bias eps"),
    "rms_norm": _call(torch.rms_norm, "x shape weight eps"),
    "softmax": _call(torch.softmax, "x dim *dtype"),
    "log_softmax": _call(torch.log_softmax, "x dim *dtype"),
    **_unary(torch.relu, torch.selu, torch.sigmoid, torch.tanh),
    **_unary(F.silu, F.mish, F.hardswish, F.hardsigmoid),
    "log_sigmoid": _call(F.logsigmoid, "x"),
    "clamp": _call(torch.clamp, "x *min=low max=high"),
    "hardtanh": _call(F.hardtanh, "x low high"),
    "leaky_relu": _call(F.leaky_relu, "x negative_slope"),
    "elu": _elu,
    "celu": _call(torch.celu, "x alpha"),
    "prelu": _call(torch.prelu, "x weight"),
    "gelu": _call(F.gelu, "x *approximate"),
    "softplus": _call(F.softplus, "x beta threshold"),
    "threshold": _call(torch.threshold, "x threshold value"),
    "dropout": _call(torch.dropout, "x p training"),
    "feature_dropout": _call(torch.feature_dropout, "x p training"),
    "alpha_dropout": _call(torch.alpha_dropout, "x p training"),
    **_unary(torch.exp, torch.expm1, torch.log, torch.log2, torch.log1p, torch.sqrt, torch.rsqrt),
    **_unary(torch.reciprocal, torch.erf, torch.sin, torch.cos, torch.abs, torch.neg),
    **_unary(torch.square, torch.sign, torch.floor, torch.ceil, torch.round, torch.bitwise_not),
    **_unary(torch.logical_not, torch.isnan, torch.isinf),
    "add": _add,
    "sub": _sub,
    "mul": _call(operator.mul, "x y"),
    "div": _div,
    **_binary(torch.remainder, torch.pow),
    "maximum": _bounded(torch.maximum, "min"),
    "minimum": _bounded(torch.minimum, "max"),
    **_binary(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    **_binary(torch.logical_and, torch.logical_or, torch.logical_xor),
    **_binary(torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor),
    "where": _call(torch.where, "condition x y"),
    "cat": _call(torch.cat, "xs dim"),
    "stack": _call(torch.stack, "xs dim"),
    "chunk": _call(torch.chunk, "x chunks dim"),
    "split": _call(torch.split, "x size dim"),
    "unbind": _call(torch.unbind, "x dim"),
    "getitem": _call(operator.getitem, "x index"),
    "max_pool1d": _call(torch.max_pool1d, f"x {_WINDOW}"),
    "max_pool2d": _call(torch.max_pool2d, f"x {_WINDOW}"),
    "max_pool3d": _call(torch.max_pool3d, f"x {_WINDOW}"),
    "avg_pool1d": _call(F.avg_pool1d, f"x {_AVERAGE}"),
    "avg_pool2d": _call(F.avg_pool2d, f"x {_AVERAGE} divisor_override"),
    "avg_pool3d": _call(F.avg_pool3d, f"x {_AVERAGE} divisor_override"),
    "adaptive_max_pool1d": _call(F.adaptive_max_pool1d, "x output_size"),
    "adaptive_max_pool2d": _call(F.adaptive_max_pool2d, "x output_size"),
    "adaptive_max_pool3d": _call(F.adaptive_max_pool3d, "x output_size"),
    "adaptive_avg_pool1d": _call(F.adaptive_avg_pool1d, "x output_size"),
    "adaptive_avg_pool2d": _call(F.adaptive_avg_pool2d, "x output_size"),
    "adaptive_avg_pool3d": _call(F.adaptive_avg_pool3d, "x output_size"),
    "mean": _reduction(torch.mean, "dtype"),
    "sum": _reduction(torch.sum, "dtype"),
    "amax": _extreme(torch.amax),
    "amin": _extreme(torch.amin),
    "var": _call(torch.var, "x dim *correction keepdim"),
    "linalg_vector_norm": _call(torch.linalg.vector_norm, "x ord dim keepdim *dtype"),
    "argmax": _call(torch.argmax, "x dim keepdim"),
    "all": _reduction(torch.all),
    "any": _reduction(torch.any),
    "cumsum": _call(torch.cumsum, "x dim *dtype"),
    "reshape": _call(torch.reshape, "x shape"),
    "flatten": _call(torch.flatten, "x start_dim end_dim"),
    "unflatten": _call(torch.unflatten, "x dim sizes"),
    "permute": _call(torch.permute, "x dims"),
    "squeeze": _call(torch.squeeze, "x dims"),
    "unsqueeze": _call(torch.unsqueeze, "x dim"),
    "expand": _call(torch.Tensor.expand, "x shape"),
    "repeat": _call(torch.Tensor.repeat, "x repeats"),
    "contiguous": _contiguous,
    "pad": _pad,
    "roll": _roll,
    "flip": _call(torch.flip, "x dims"),
    "pixel_shuffle": _call(torch.pixel_shuffle, "x factor"),
    "pixel_unshuffle": _call(torch.pixel_unshuffle, "x factor"),
    "channel_shuffle": _call(torch.channel_shuffle, "x groups"),
    "tril": _call(torch.tril, "x diagonal"),
    "triu": _call(torch.triu, "x diagonal"),
    "interpolate": _interpolate,
    "slice": _slice,
    "select": _call(torch.select, "x dim index"),
    "index": _index,
    "gather": _call(torch.gather, "x dim index"),
    "index_select": _call(torch.index_select, "x dim index"),
    "slice_scatter": _slice_scatter,
    "select_scatter": _call(torch.select_scatter, "x source dim index"),
    "index_put": _index_put,
    "index_copy": _call(torch.index_copy, "x dim index source"),
    "scatter": _call(torch.scatter, "x dim index source"),
    "to": _call(torch.Tensor.to, "x dtype"),
    "full": _call(torch.full, "shape value *dtype"),
    "full_like": _call(torch.full_like, "x value *dtype"),
    "arange": _call(torch.arange, "start stop step *dtype"),
    "lstm": _call(torch.lstm, _RECURRENT),
    "gru": _call(torch.gru, _RECURRENT),
    "rnn_tanh": _call(torch.rnn_tanh, _RECURRENT),
    "rnn_relu": _call(torch.rnn_relu, _RECURRENT),
    "lstm_cell": _call(torch.lstm_cell, _CELL),
    "gru_cell": _call(torch.gru_cell, _CELL),
    "rnn_tanh_cell": _call(torch.rnn_tanh_cell, _CELL),
    "rnn_relu_cell": _call(torch.rnn_relu_cell, _CELL),
    "size": _call(torch.Tensor.size, "x dim"),
    "int_add": _call(operator.add, "x y"),
    "int_sub": _call(operator.sub, "x y"),
    "int_mul": _call(operator.mul, "x y"),
    "int_floordiv": _call(operator.floordiv, "x y"),
    "int_mod": _call(operator.mod, "x y"),
    "int_neg": _call(operator.neg, "x"),
    "observe": _same,
}


def _quantize(node: Named) -> TorchCall:
    dtype = _element(node["dtype"])
    args = tuple(node[name] for name in ("x", "scale", "zero_point", "qmin", "qmax"))
    return _plain(affine.quantize, *args, dtype, node["axis"])


def _dequantize(node: Named) -> TorchCall:
    args = tuple(node[name] for name in ("x", "scale", "zero_point"))
    return _plain(affine.dequantize, *args, _element(node["dtype"]), node["axis"])


def _element(dtype: object) -> DType:
    return next(kind for kind in DType if torch_dtype(kind) is dtype)


CALLS: Mapping[OpName, Row] = MappingProxyType(
    {
        OpName(name): row
        for name, row in {
            **_ROWS,
            "choose_qparams": _call(affine.choose_qparams, "x qmin qmax symmetric"),
            "quantize": _quantize,
            "dequantize": _dequantize,
            "unpack_nibbles": _call(nibbles.unpack, "x width"),
        }.items()
    }
)
"""The row of every operator of the catalogue but `input` and `leaf`."""


def _foreign(node: Node) -> Result[TorchCall, Fault]:
    function = foreign_function(node.op)
    if function is None:
        return Failure(_unknown(node))
    schema = function._schema.arguments
    kinds = {argument.name: _kind(argument) for argument in schema}
    args = tuple(
        _typed(_kind(argument), as_torch(arg))
        for argument, arg in zip(schema, node.args, strict=False)
    )
    kwargs = {
        name: _typed(kinds.get(name, ""), as_torch(value))
        for name, value in node.attrs.items()
        if name != "type"
    }
    return Success(TorchCall(function, args, kwargs))


def foreign_function(op: str) -> torch._ops.OpOverload | None:
    """The torch operator called `namespace.name.overload`; None if this torch does not have it."""
    namespace, *rest = op.split(".")
    found: object = getattr(torch.ops, namespace, None)
    for part in rest:
        found = getattr(found, part, None)
    return found if isinstance(found, torch._ops.OpOverload) else None


def _kind(argument: torch.Argument) -> str:
    """The type as the schema writes it: memory formats and layouts are ints otherwise."""
    return str(argument.real_type)


def _typed(kind: str, value: object) -> object:
    """A string as the memory format or layout that the schema asks for."""
    if not isinstance(value, str):
        return value
    if "MemoryFormat" in kind:
        return MEMORY_FORMATS.get(value, value)
    if "Layout" in kind:
        return getattr(torch, value.removeprefix("torch."), value)
    return value


def _unknown(node: Node) -> Fault:
    return Fault(
        FaultKind.NO_IMPLEMENTATION,
        f"{node.op} is no operator that can be called here",
        "materialize a lowered graph to run its kernels; run others in the torch they came from",
    ).located(node.id, node.origin.module, node.origin.source)
