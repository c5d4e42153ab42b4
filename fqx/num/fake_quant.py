"""Quantization that keeps floats and passes gradients: what training and reference programs use."""

from __future__ import annotations

from typing import Any

import torch

from fqx.ir.arg import DType
from fqx.num import affine
from fqx.num.qparams import QParams


def fake_quantize(x: torch.Tensor, qparams: QParams) -> torch.Tensor:
    """What quantize and dequantize make of `x`, bit for bit, in its own dtype.

    Gradients pass unchanged where x lies inside the range of the integers and are zero outside
    (the straight-through estimator of Bengio et al., 2013, clipped); scale and zero point get none.
    """
    made: torch.Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]  # torch's own
        x,
        qparams.scale,
        qparams.zero_point,
        qparams.qmin,
        qparams.qmax,
        qparams.axis,
    )
    return made


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        qmin: int,
        qmax: int,
        axis: int | None,
    ) -> torch.Tensor:
        # one step more on each side tells what is clamped from what rounds to the last integer
        wide = affine.quantize(x, scale, zero_point, qmin - 1, qmax + 1, _WIDE, axis)
        ctx.save_for_backward((wide >= qmin) & (wide <= qmax))
        return affine.fake_quantize(x, scale, zero_point, qmin, qmax, axis)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return (gradients[0] * inside, None, None, None, None, None)


_WIDE = DType.INT64
