"""Scale, zero point and moving averages in float32, bit for bit those of torch.ao's observers.

Every step is one float32 operation, in the order in which torch.ao's `_calculate_qparams` and
`MovingAverageMinMaxObserver` make them:
affine: scale = max((high' - low') / (qmax - qmin), least), zero = qmin - rint(low' / scale);
symmetric: scale = max(max(-low', high') / ((qmax - qmin) / 2), least), zero as it is given.
"""

from __future__ import annotations

import torch

from fqx.num.affine import LEAST_SCALE

_GREATEST = torch.finfo(torch.float32).max


def scale_and_zero(
    low: torch.Tensor, high: torch.Tensor, qmin: int, qmax: int, least: float, zero: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale float32 and zero point int32 that cover `low` to `high`, both [] or [channels].

    `zero` is the zero point of a symmetric range, None for an affine one. Ranges wider than
    float32 get the greatest finite scale.
    """
    low = low.to(torch.float32).clamp(max=0.0)
    high = high.to(torch.float32).clamp(min=0.0)
    floor = torch.tensor(max(least, LEAST_SCALE), dtype=torch.float32)
    if zero is not None:
        scale = torch.maximum(-low, high) / (float(qmax - qmin) / 2)
        scale = torch.maximum(scale, floor)
        return scale, torch.full_like(scale, zero, dtype=torch.int32)
    scale = ((high - low) / float(qmax - qmin)).clamp(max=_GREATEST)
    scale = torch.maximum(scale, floor)
    steps = torch.round(low / scale).to(torch.int32)
    return scale, (qmin - steps).clamp(qmin, qmax)


def moved(was: float, seen: float, rate: float) -> float:
    """`was + rate * (seen - was)` in float32."""
    start = torch.tensor(was, dtype=torch.float32)
    return float(start + rate * (torch.tensor(seen, dtype=torch.float32) - start))
