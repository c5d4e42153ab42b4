# ruff: noqa: E501 - a row of the table below is one line, however long its argument list
"""What every operator of the catalogue means, in one line of torch each.

Functions take the operands by position and the attributes by name. Nothing here is shared with
the passes or with what they run: this table is what those are judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from fqx.ir.names import OpName

Meaning: TypeAlias = Callable[..., object]

_LAYOUTS: Final = MappingProxyType(
    {
        "contiguous": torch.contiguous_format,
        "channels_last": torch.channels_last,
        "channels_last_3d": torch.channels_last_3d,
        "preserve": torch.preserve_format,
    }
)


def memory_format(name: object) -> object:
    """torch's memory format of that name; other values as they are."""
    return _LAYOUTS.get(name, name) if isinstance(name, str) else name


Value: TypeAlias = Tensor | float
"""A tensor, or a Python number (int, float or bool)."""


def _number(x: float, y: Tensor) -> Tensor:
    """A Python number as a tensor that does not widen `y`, but lifts integers as torch does."""
    floats = y.is_floating_point()
    return torch.scalar_tensor(x, dtype=y.dtype) if floats else torch.tensor(x)


def _add(x: Value, y: Value, alpha: float) -> Value:
    if isinstance(x, Tensor):
        return torch.add(x, y, alpha=alpha)
    return y + x if alpha == 1 else y * alpha + x


def _sub(x: Value, y: Value, alpha: float) -> Value:
    if isinstance(x, Tensor):
        return torch.sub(x, y, alpha=alpha)
    return torch.rsub(torch.as_tensor(y), x, alpha=alpha)


def _div(x: Value, y: Value, rounding_mode: str | None) -> Value:
    over = torch.as_tensor(y)
    if isinstance(x, Tensor):
        return torch.div(x, y, rounding_mode=rounding_mode)
    return torch.div(_number(x, over), over, rounding_mode=rounding_mode)


def _clamp(x: Tensor, low: Value | None, high: Value | None) -> Tensor:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return torch.clamp(x, min=_bound(x, low), max=_bound(x, high))
    return torch.clamp(x, min=low, max=high)


def _bound(x: Tensor, bound: Value | None) -> Tensor | None:
    return bound if bound is None or isinstance(bound, Tensor) else _number(bound, x)


def _all_axes(function: Callable[..., Tensor], x: Tensor, dim: object, keepdim: bool) -> Tensor:
    return function(x, tuple(range(x.dim())) if dim is None else dim, keepdim)


def _one_bag_axis(x: Tensor, offsets: Tensor | None) -> Tensor | None:
    return None if x.dim() == 2 else offsets


def _slice(x: Tensor, start: int | None, stop: int | None, dim: int, step: int) -> Tensor:
    return torch.ops.aten.slice.Tensor(x, dim, start, stop, step)  # type: ignore[no-any-return]


def _choose_qparams(x: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The scale and zero point under which the integers cover the values of x, and zero exactly."""
    wide = torch.cat([x.to(torch.float64).reshape(-1), torch.zeros(1, dtype=torch.float64)])
    low, high = float(wide.min()), float(wide.max())
    span = 2.0 * max(-low, high) if symmetric else high - low
    scale = torch.tensor(span / (qmax - qmin) if span else 1.0, dtype=torch.float64)
    scale = scale.clamp(min=2.0**-60).to(torch.float32)
    middle = (qmin + qmax + 1) // 2
    zero = torch.tensor(low, dtype=torch.float64) / scale.to(torch.float64)
    asymmetric = torch.clamp(qmin - torch.round(zero), qmin, qmax).to(torch.int32)
    return scale, torch.tensor(middle, dtype=torch.int32) if symmetric else asymmetric


def _unpack_nibbles(x: Tensor, width: int) -> Tensor:
    made = x.new_empty((*x.shape[:-1], 2 * x.shape[-1]))
    made[..., 0::2] = x % 16
    made[..., 1::2] = torch.div(x, 16, rounding_mode="floor")
    return made[..., :width]


def _quantize(
    x: Tensor,
    scale: object,
    zero_point: object,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
    axis: int | None,
    block: object,
) -> Tensor:
    """clamp(rint(x · (1/s)) + z, qmin, qmax); the product in float32, the rest exact."""
    del block
    inverse = torch.reciprocal(_column(scale, x, axis, torch.float32))
    steps = torch.round(x.to(torch.float32) * inverse).to(torch.float64)
    moved = steps + _column(zero_point, x, axis, torch.float64)
    return torch.clamp(moved, qmin, qmax).to(dtype)


def _dequantize(
    x: Tensor,
    scale: object,
    zero_point: object,
    dtype: torch.dtype,
    axis: int | None,
    block: object,
) -> Tensor:
    """(q − z)·s in float32, then in `dtype`."""
    del block
    if isinstance(zero_point, Tensor) and zero_point.is_floating_point():
        steps = x.to(torch.float32) - _column(zero_point, x, axis, torch.float32)
    else:
        steps = x.to(torch.int64) - _column(zero_point, x, axis, torch.int64)
    return (steps.to(torch.float32) * _column(scale, x, axis, torch.float32)).to(dtype)


def _column(value: object, x: Tensor, axis: int | None, dtype: torch.dtype) -> Tensor:
    made = torch.as_tensor(value, dtype=dtype)
    if axis is None or made.dim() == 0:
        return made.reshape(())
    sizes = [1] * x.dim()
    sizes[axis] = -1
    return made.reshape(sizes)


# fmt: off
_ROWS: Final[Mapping[str, Meaning]] = MappingProxyType({
    # weighted
    "conv1d": lambda x, w, b, stride, padding, dilation, groups: F.conv1d(x, w, b, stride, padding, dilation, groups),
    "conv2d": lambda x, w, b, stride, padding, dilation, groups: F.conv2d(x, w, b, stride, padding, dilation, groups),
    "conv3d": lambda x, w, b, stride, padding, dilation, groups: F.conv3d(x, w, b, stride, padding, dilation, groups),
    "conv_transpose1d": lambda x, w, b, **kw: F.conv_transpose1d(x, w, b, **kw),
    "conv_transpose2d": lambda x, w, b, **kw: F.conv_transpose2d(x, w, b, **kw),
    "conv_transpose3d": lambda x, w, b, **kw: F.conv_transpose3d(x, w, b, **kw),
    "linear": lambda x, w, b: F.linear(x, w, b),
    "embedding": lambda x, w, padding_idx: F.embedding(x, w, padding_idx if padding_idx >= 0 else None),
    "embedding_bag": lambda x, w, offsets, scales, mode, include_last_offset, padding_idx: F.embedding_bag(
        x, w, _one_bag_axis(x, offsets), mode=mode, per_sample_weights=scales,
        include_last_offset=include_last_offset and x.dim() == 1, padding_idx=padding_idx if padding_idx >= 0 else None),
    # contractions
    "matmul": lambda x, y: torch.matmul(x, y),
    "mm": lambda x, y: torch.mm(x, y),
    "bmm": lambda x, y: torch.bmm(x, y),
    "addmm": lambda i, x, y, beta, alpha: torch.addmm(i, x, y, beta=beta, alpha=alpha),
    "baddbmm": lambda i, x, y, beta, alpha: torch.baddbmm(i, x, y, beta=beta, alpha=alpha),
    "einsum": lambda xs, equation: torch.einsum(equation, *xs),
    "scaled_dot_product_attention": lambda q, k, v, mask, **kw: F.scaled_dot_product_attention(q, k, v, mask, **kw),
    # norms
    "batch_norm": lambda x, w, b, mean, var, training, momentum, eps: torch.batch_norm(x, w, b, mean, var, training, momentum, eps, False),
    "instance_norm": lambda x, w, b, mean, var, use_input_stats, momentum, eps: torch.instance_norm(
        x, w, b, mean, var, use_input_stats, momentum, eps, False),
    "layer_norm": lambda x, w, b, shape, eps: F.layer_norm(x, shape, w, b, eps),
    "group_norm": lambda x, w, b, groups, eps: torch.group_norm(x, groups, w, b, eps),
    "rms_norm": lambda x, w, shape, eps: F.rms_norm(x, shape, w, eps),
    "softmax": lambda x, dim, dtype: torch.softmax(x, dim, dtype=dtype),
    "log_softmax": lambda x, dim, dtype: torch.log_softmax(x, dim, dtype=dtype),
    # activations
    "relu": lambda x: torch.relu(x),
    "clamp": _clamp,
    "hardtanh": lambda x, low, high: F.hardtanh(x, low, high),
    "leaky_relu": lambda x, negative_slope: F.leaky_relu(x, negative_slope),
    "elu": lambda x, alpha, scale, input_scale: torch.ops.aten.elu.default(x, alpha, scale, input_scale),
    "selu": lambda x: F.selu(x),
    "celu": lambda x, alpha: F.celu(x, alpha),
    "prelu": lambda x, w: F.prelu(x, w),
    "gelu": lambda x, approximate: F.gelu(x, approximate=approximate),
    "silu": lambda x: F.silu(x),
    "mish": lambda x: F.mish(x),
    "hardswish": lambda x: F.hardswish(x),
    "hardsigmoid": lambda x: F.hardsigmoid(x),
    "sigmoid": lambda x: torch.sigmoid(x),
    "tanh": lambda x: torch.tanh(x),
    "softplus": lambda x, beta, threshold: F.softplus(x, beta, threshold),
    "threshold": lambda x, threshold, value: F.threshold(x, threshold, value),
    "log_sigmoid": lambda x: F.logsigmoid(x),
    "dropout": lambda x, p, training: F.dropout(x, p, training),
    "feature_dropout": lambda x, p, training: torch.feature_dropout(x, p, training),
    "alpha_dropout": lambda x, p, training: F.alpha_dropout(x, p, training),
    # functions of one value
    "exp": lambda x: torch.exp(x),
    "expm1": lambda x: torch.expm1(x),
    "log": lambda x: torch.log(x),
    "log2": lambda x: torch.log2(x),
    "log1p": lambda x: torch.log1p(x),
    "sqrt": lambda x: torch.sqrt(x),
    "rsqrt": lambda x: torch.rsqrt(x),
    "reciprocal": lambda x: torch.reciprocal(x),
    "erf": lambda x: torch.erf(x),
    "sin": lambda x: torch.sin(x),
    "cos": lambda x: torch.cos(x),
    "abs": lambda x: torch.abs(x),
    "neg": lambda x: torch.neg(x),
    "square": lambda x: torch.square(x),
    "sign": lambda x: torch.sign(x),
    "floor": lambda x: torch.floor(x),
    "ceil": lambda x: torch.ceil(x),
    "round": lambda x: torch.round(x),
    "bitwise_not": lambda x: torch.bitwise_not(x),
    "logical_not": lambda x: torch.logical_not(x),
    "isnan": lambda x: torch.isnan(x),
    "isinf": lambda x: torch.isinf(x),
    # arithmetic
    "add": _add,
    "sub": _sub,
    "mul": lambda x, y: x * y,
    "div": _div,
    "remainder": lambda x, y: torch.remainder(x, y),
    "pow": lambda x, y: torch.pow(x, y),
    "maximum": lambda x, y: torch.maximum(x, y),
    "minimum": lambda x, y: torch.minimum(x, y),
    # comparison, logic, choice
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "logical_and": lambda x, y: torch.logical_and(x, y),
    "logical_or": lambda x, y: torch.logical_or(x, y),
    "logical_xor": lambda x, y: torch.logical_xor(x, y),
    "bitwise_and": lambda x, y: x & y,
    "bitwise_or": lambda x, y: x | y,
    "bitwise_xor": lambda x, y: x ^ y,
    "where": lambda condition, x, y: torch.where(condition, x, y),
    # joining and taking apart
    "cat": lambda xs, dim: torch.cat(xs, dim),
    "stack": lambda xs, dim: torch.stack(xs, dim),
    "chunk": lambda x, chunks, dim: torch.chunk(x, chunks, dim),
    "split": lambda x, size, dim: torch.split(x, size, dim),
    "unbind": lambda x, dim: torch.unbind(x, dim),
    "getitem": lambda x, index: x[index],
    # pools
    "max_pool1d": lambda x, **kw: F.max_pool1d(x, **kw),
    "max_pool2d": lambda x, **kw: F.max_pool2d(x, **kw),
    "max_pool3d": lambda x, **kw: F.max_pool3d(x, **kw),
    "avg_pool1d": lambda x, **kw: F.avg_pool1d(x, **kw),
    "avg_pool2d": lambda x, **kw: F.avg_pool2d(x, **kw),
    "avg_pool3d": lambda x, **kw: F.avg_pool3d(x, **kw),
    "adaptive_max_pool1d": lambda x, output_size: F.adaptive_max_pool1d(x, output_size),
    "adaptive_max_pool2d": lambda x, output_size: F.adaptive_max_pool2d(x, output_size),
    "adaptive_max_pool3d": lambda x, output_size: F.adaptive_max_pool3d(x, output_size),
    "adaptive_avg_pool1d": lambda x, output_size: F.adaptive_avg_pool1d(x, output_size),
    "adaptive_avg_pool2d": lambda x, output_size: F.adaptive_avg_pool2d(x, output_size),
    "adaptive_avg_pool3d": lambda x, output_size: F.adaptive_avg_pool3d(x, output_size),
    # reductions
    "mean": lambda x, dim, keepdim, dtype: torch.mean(x, dim, keepdim, dtype=dtype),
    "sum": lambda x, dim, keepdim, dtype: torch.sum(x, dim, keepdim, dtype=dtype),
    "amax": lambda x, dim, keepdim: _all_axes(torch.amax, x, dim, keepdim),
    "amin": lambda x, dim, keepdim: _all_axes(torch.amin, x, dim, keepdim),
    "var": lambda x, dim, correction, keepdim: torch.var(x, dim, correction=correction, keepdim=keepdim),
    "linalg_vector_norm": lambda x, ord, dim, keepdim, dtype: torch.linalg.vector_norm(x, ord, dim, keepdim, dtype=dtype),
    "argmax": lambda x, dim, keepdim: torch.argmax(x, dim, keepdim),
    "all": lambda x, dim, keepdim: _all_axes(torch.all, x, dim, keepdim),
    "any": lambda x, dim, keepdim: _all_axes(torch.any, x, dim, keepdim),
    "cumsum": lambda x, dim, dtype: torch.cumsum(x, dim, dtype=dtype),
    # shapes
    "reshape": lambda x, shape: torch.reshape(x, shape),
    "flatten": lambda x, start_dim, end_dim: torch.flatten(x, start_dim, end_dim),
    "unflatten": lambda x, sizes, dim: torch.unflatten(x, dim, sizes),
    "permute": lambda x, dims: torch.permute(x, dims),
    "squeeze": lambda x, dims: torch.squeeze(x, dims),
    "unsqueeze": lambda x, dim: torch.unsqueeze(x, dim),
    "expand": lambda x, shape: x.expand(shape),
    "repeat": lambda x, repeats: x.repeat(repeats),
    "contiguous": lambda x, memory_format: x.contiguous(memory_format=memory_format),
    "pad": lambda x, pad, mode, value: F.pad(x, pad, mode, value if mode == "constant" else None),
    "roll": lambda x, shifts, dims: torch.roll(x, shifts, dims),
    "flip": lambda x, dims: torch.flip(x, dims),
    "pixel_shuffle": lambda x, factor: F.pixel_shuffle(x, factor),
    "pixel_unshuffle": lambda x, factor: F.pixel_unshuffle(x, factor),
    "channel_shuffle": lambda x, groups: torch.channel_shuffle(x, groups),
    "tril": lambda x, diagonal: torch.tril(x, diagonal),
    "triu": lambda x, diagonal: torch.triu(x, diagonal),
    "interpolate": lambda x, size, scale_factor, mode, align_corners, antialias: F.interpolate(
        x, size, scale_factor, mode, align_corners, antialias=antialias),
    # indexing
    "slice": _slice,
    "select": lambda x, index, dim: torch.select(x, dim, index),
    "index": lambda x, indices: x[tuple(slice(None) if at is None else at for at in indices)],
    "gather": lambda x, index, dim: torch.gather(x, dim, index),
    "index_select": lambda x, index, dim: torch.index_select(x, dim, index),
    "slice_scatter": lambda x, source, start, stop, dim, step: torch.slice_scatter(x, source, dim, start, stop, step),
    "select_scatter": lambda x, source, index, dim: torch.select_scatter(x, source, dim, index),
    "index_put": lambda x, indices, value, accumulate: torch.ops.aten.index_put.default(x, indices, value, accumulate),
    "index_copy": lambda x, index, source, dim: torch.index_copy(x, dim, index, source),
    "scatter": lambda x, index, source, dim: torch.scatter(x, dim, index, source),
    # casts and factories
    "to": lambda x, dtype: x.to(dtype),
    "full": lambda shape, value, dtype: torch.full(shape, value, dtype=dtype),
    "full_like": lambda x, value, dtype: torch.full_like(x, value, dtype=dtype),
    "arange": lambda start, stop, step, dtype: torch.arange(start, stop, step, dtype=dtype),
    # recurrent networks
    "lstm": lambda x, hx, weights, has_biases, num_layers, dropout, training, bidirectional, batch_first: torch.lstm(
        x, hx, weights, has_biases, num_layers, dropout, training, bidirectional, batch_first),
    "gru": lambda x, hx, weights, has_biases, num_layers, dropout, training, bidirectional, batch_first: torch.gru(
        x, hx, weights, has_biases, num_layers, dropout, training, bidirectional, batch_first),
    "rnn_tanh": lambda x, hx, weights, has_biases, num_layers, dropout, training, bidirectional, batch_first: torch.rnn_tanh(
        x, hx, weights, has_biases, num_layers, dropout, training, bidirectional, batch_first),
    "rnn_relu": lambda x, hx, weights, has_biases, num_layers, dropout, training, bidirectional, batch_first: torch.rnn_relu(
        x, hx, weights, has_biases, num_layers, dropout, training, bidirectional, batch_first),
    "lstm_cell": lambda x, hx, w_ih, w_hh, b_ih, b_hh: torch.lstm_cell(x, hx, w_ih, w_hh, b_ih, b_hh),
    "gru_cell": lambda x, hx, w_ih, w_hh, b_ih, b_hh: torch.gru_cell(x, hx, w_ih, w_hh, b_ih, b_hh),
    "rnn_tanh_cell": lambda x, hx, w_ih, w_hh, b_ih, b_hh: torch.rnn_tanh_cell(x, hx, w_ih, w_hh, b_ih, b_hh),
    "rnn_relu_cell": lambda x, hx, w_ih, w_hh, b_ih, b_hh: torch.rnn_relu_cell(x, hx, w_ih, w_hh, b_ih, b_hh),
    # Python ints
    "size": lambda x, dim: x.shape[dim],
    "int_add": lambda x, y: x + y,
    "int_sub": lambda x, y: x - y,
    "int_mul": lambda x, y: x * y,
    "int_floordiv": lambda x, y: x // y,
    "int_mod": lambda x, y: x % y,
    "int_neg": lambda x: -x,
    # boundaries
    "observe": lambda x, *_states, **_observer: x,
    "choose_qparams": _choose_qparams,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "unpack_nibbles": _unpack_nibbles,
})
# fmt: on

MEANINGS: Final[Mapping[OpName, Meaning]] = MappingProxyType(
    {OpName(name): meaning for name, meaning in _ROWS.items()}
)
"""Every operator but `input` and `leaf`, whose values come from outside."""
