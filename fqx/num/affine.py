"""Affine quantization of tensors, exactly as the graph's quantize and dequantize mean it.

`quantize(x, s, z) = clamp(rint(x * (1/s)) + z, qmin, qmax)` and `dequantize(q, s, z) = (q - z) * s`
in float32, ties to even. Every operation is an IEEE elementwise one, so results do not depend on
threads or instruction sets.
"""

from __future__ import annotations

import torch

from fqx.ir.arg import DType
from fqx.num.tensors import torch_dtype

LEAST_SCALE = 2.0**-60
"""No scale is smaller, so that 1/scale and products of two scales are normal float32 numbers."""


def scale_for(span: torch.Tensor, qmin: int, qmax: int, least: float = 0.0) -> torch.Tensor:
    """float64, rounded to float32: span / (qmax - qmin); 1 where the span is zero."""
    scale = (span / float(qmax - qmin)).clamp(min=max(least, LEAST_SCALE))
    scale = torch.where(span == 0.0, torch.ones_like(scale), scale)
    return scale.to(torch.float32).to(torch.float64)


def span_of(low: torch.Tensor, high: torch.Tensor, symmetric: bool) -> torch.Tensor:
    """The width that qmin..qmax must cover, for low <= 0 <= high."""
    return torch.maximum(-low, high) * 2.0 if symmetric else high - low


def zero_for(
    low: torch.Tensor,
    scale: torch.Tensor,
    qmin: int,
    qmax: int,
    symmetric: bool,
    zero: int | None = None,
) -> torch.Tensor:
    """int32: the integer that stands for 0.0, for low <= 0; `zero` in place of the middle."""
    if symmetric:
        middle = (qmin + qmax + 1) // 2 if zero is None else zero
        return torch.full_like(low, middle, dtype=torch.int32)
    return (qmin - (low / scale).round()).clamp(qmin, qmax).to(torch.int32)


def choose_qparams(
    x: torch.Tensor, qmin: int, qmax: int, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale float32 [] and zero point int32 [] that cover the range of `x`: dynamic quantization.

    The formulas of `fqx.num.qparams`; a tensor without elements has scale 1.
    """
    if not x.numel():
        low = high = torch.zeros((), dtype=torch.float64)
    else:
        low, high = (end.to(torch.float64) for end in torch.aminmax(x.detach()))
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = scale_for(span_of(low, high, symmetric), qmin, qmax)
    zero = zero_for(low, scale, qmin, qmax, symmetric)
    return scale.to(torch.float32), zero


def quantize(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | int,
    qmin: int,
    qmax: int,
    dtype: DType,
    axis: int | None = None,
) -> torch.Tensor:
    """The integers of `x`, in `dtype`.

    Scale and zero point are scalars, or hold one value for each index of `x` along `axis`.
    Values are brought to float32 first; NaN gives an unspecified integer.
    """
    inverse = 1.0 / _along(scale, x, axis, torch.float32)
    scaled = (x.to(torch.float32) * inverse).round_()
    if dtype in (DType.INT32, DType.INT64):
        # float32 does not hold the bounds of int32
        scaled = scaled.to(torch.float64)
    # an infinite value stays infinite here and is clamped
    shifted = scaled.add_(_along(zero_point, x, axis, scaled.dtype))
    return shifted.clamp_(qmin, qmax).to(torch_dtype(dtype))


def dequantize(
    q: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | int,
    dtype: DType = DType.FLOAT32,
    axis: int | None = None,
) -> torch.Tensor:
    """The values of integers `q`, computed in float32 and given in `dtype`."""
    wide = torch.float64 if q.dtype in (torch.int32, torch.int64) else torch.float32
    steps = q.to(wide).sub_(_along(zero_point, q, axis, wide)).to(torch.float32)
    return steps.mul_(_along(scale, q, axis, torch.float32)).to(torch_dtype(dtype))


def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | int,
    qmin: int,
    qmax: int,
    axis: int | None = None,
) -> torch.Tensor:
    """What quantize followed by dequantize makes of `x`, in its own dtype."""
    inverse = 1.0 / _along(scale, x, axis, torch.float32)
    zero = _along(zero_point, x, axis, torch.float32)
    steps = (x.to(torch.float32) * inverse).round_().add_(zero).clamp_(qmin, qmax).sub_(zero)
    return steps.mul_(_along(scale, x, axis, torch.float32)).to(x.dtype)


def _along(
    value: torch.Tensor | float, x: torch.Tensor, axis: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """`value` in `dtype`, shaped to broadcast along `axis` of `x`."""
    held = torch.as_tensor(value, device=x.device).to(dtype)
    if axis is None or held.dim() == 0:
        return held.reshape(()) if held.numel() == 1 else held
    shape = [1] * x.dim()
    shape[axis] = held.numel()
    return held.reshape(shape)
