"""From what was observed to scale and zero point, in a fixed order.

In float64 unless the observer's formula is float32; see `fqx.num.single` for that.

With low' = min(low, 0) and high' = max(high, 0), so that zero is exact:
affine: scale = (high' - low') / (qmax - qmin), zero = qmin - rint(low' / scale);
symmetric: scale = max(-low', high') / ((qmax - qmin) / 2), zero = the middle of the integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from fqx.ir.arg import DType
from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import Failure, Result, Success
from fqx.num import affine, search, single
from fqx.num.observers import State
from fqx.num.scheme import QSpec, check_qspec
from fqx.num.tensors import torch_dtype


@dataclass(frozen=True, slots=True, eq=False)
class QParams:
    """Scale float32 and zero point int32, both [] or [channels], and the integers they serve."""

    scale: torch.Tensor
    zero_point: torch.Tensor
    qmin: int
    qmax: int
    dtype: DType
    axis: int | None = None

    @property
    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """float64: the values of qmin and qmax."""
        scale, zero = self.scale.to(torch.float64), self.zero_point.to(torch.float64)
        return (self.qmin - zero) * scale, (self.qmax - zero) * scale

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QParams) and (
            (self.qmin, self.qmax, self.dtype, self.axis)
            == (other.qmin, other.qmax, other.dtype, other.axis)
            and torch.equal(self.scale, other.scale)
            and torch.equal(self.zero_point, other.zero_point)
        )

    def __hash__(self) -> int:
        return hash((tuple(self.scale.reshape(-1).tolist()), self.qmin, self.qmax, self.dtype))


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """Integers, scale float32, and zero point int32 or None where every one is zero.

    With a spec of `float_zero` the zero points are float32. Weights of FLOAT16 have scale one and
    are clamped to what half precision holds.
    """

    tensor: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None


def qparams_of(spec: QSpec, state: State) -> Result[QParams, Fault]:
    """Scale and zero point for what was observed; see `qparams_of_all` for the faults."""
    return qparams_of_all(((spec, state),))[0]


def qparams_of_all(asked: Iterable[tuple[QSpec, State]]) -> tuple[Result[QParams, Fault], ...]:
    """Scale and zero point for many edges at once, ranges searched together.

    Each answer fails with MISSING_STATISTICS if nothing was observed or per-channel ranges are
    asked of a state without them, and with BAD_RECIPE if its spec is wrong.
    """
    listed = tuple(asked)
    checked = [_ready(spec, state) for spec, state in listed]
    searched = [
        index
        for index, (spec, _) in enumerate(listed)
        if spec.observer.search != "minmax"
        and spec.axis is None
        and checked[index].value_or(None) is not None
    ]
    found = dict(zip(searched, _searched([listed[i] for i in searched]), strict=True))
    return tuple(
        _answer(ready, spec, found.get(index))
        for index, (ready, (spec, _)) in enumerate(zip(checked, listed, strict=True))
    )


def _answer(
    ready: Result[State, Fault], spec: QSpec, found: tuple[torch.Tensor, torch.Tensor] | None
) -> Result[QParams, Fault]:
    return ready.map(
        lambda state: qparams_between(spec, *(found if found else _extremes(spec, state)))
    )


def qparams_between(spec: QSpec, low: torch.Tensor, high: torch.Tensor) -> QParams:
    """Scale and zero point that cover `low` to `high`, both [] or [channels], finite."""
    if spec.observer.formula == "float32":
        return _single(spec, low, high)
    low = low.to(torch.float64).clamp(max=0.0)
    high = high.to(torch.float64).clamp(min=0.0)
    span = affine.span_of(low, high, spec.symmetric)
    scale = affine.scale_for(span, spec.qmin, spec.qmax, spec.observer.least_scale)
    zero = affine.zero_for(low, scale, spec.qmin, spec.qmax, spec.symmetric, spec.zero)
    axis = spec.axis if scale.dim() else None
    return QParams(scale.to(torch.float32), zero, spec.qmin, spec.qmax, spec.dtype, axis)


def _single(spec: QSpec, low: torch.Tensor, high: torch.Tensor) -> QParams:
    least, zero = spec.observer.least_scale, spec.zero
    if zero is None and spec.symmetric:
        zero = (spec.qmin + spec.qmax + 1) // 2
    scale, zero_point = single.scale_and_zero(low, high, spec.qmin, spec.qmax, least, zero)
    axis = spec.axis if scale.dim() else None
    return QParams(scale, zero_point, spec.qmin, spec.qmax, spec.dtype, axis)


def quantize_weight(tensor: torch.Tensor, spec: QSpec) -> Result[QuantizedWeight, Fault]:
    """The integers of a weight with the qparams of its own range, per tensor or along `spec.axis`.

    With `search="mse"` each range is the shrunk one of least squared error. Fails with NOT_FINITE
    if the weight holds NaN or infinity, EMPTY_BATCH if it is empty, BAD_RECIPE if the spec is
    wrong.
    """
    return check_qspec(spec).bind(lambda _: _finite(tensor)).map(lambda _: _weight(tensor, spec))


def weight_qparams(tensor: torch.Tensor, spec: QSpec) -> QParams:
    """Scale and zero point of a finite, non-empty weight."""
    low, high = weight_range(tensor, spec.axis)
    if spec.observer.search == "mse":
        return _shrunk(tensor, spec, low, high)
    return qparams_between(spec, low, high)


def weight_range(tensor: torch.Tensor, axis: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 least and greatest value, of the whole or of each channel."""
    plain = tensor.detach()
    dims = [dim for dim in range(plain.dim()) if axis is None or dim != axis % plain.dim()]
    if not dims:
        return plain.to(torch.float64), plain.to(torch.float64)
    return plain.amin(dims).to(torch.float64), plain.amax(dims).to(torch.float64)


def predicted_sqnr(state: State, qparams: QParams) -> float:
    """Signal to quantization noise in dB that the qparams give on what was observed.

    Read from the histogram, values spread evenly inside each bin; without a histogram values are
    taken as spread evenly over the observed range. Infinite where nothing but zeros was seen.
    """
    scale, zero = float(qparams.scale.max()), int(qparams.zero_point.reshape(-1)[0])
    if state.counts is not None and state.exponent is not None:
        power, noise = search.power_and_noise(
            state.counts, int(state.exponent), scale, zero, qparams.qmin, qparams.qmax
        )
    else:
        power, noise = search.even_power_and_noise(
            *state.range, scale, zero, qparams.qmin, qparams.qmax
        )
    if noise <= 0.0 or power <= 0.0:
        return math.inf
    return 10.0 * math.log10(power / noise)


def _ready(spec: QSpec, state: State) -> Result[State, Fault]:
    if spec.observer.kind == "fixed":
        return check_qspec(spec).map(lambda _: state)
    if state.is_empty:
        return Failure(_missing("nothing was observed", "give calibration batches that reach it"))
    if spec.axis is not None and state.channel_low is None:
        return Failure(
            _missing("no per-channel range was observed", "use a channel_minmax observer")
        )
    if spec.observer.search != "minmax" and state.counts is None:
        return Failure(_missing("no histogram was observed", "use a histogram observer"))
    return check_qspec(spec).map(lambda _: state)


def _missing(reason: str, remedy: str) -> Fault:
    return Fault(FaultKind.MISSING_STATISTICS, reason, remedy)


def _extremes(spec: QSpec, state: State) -> tuple[torch.Tensor, torch.Tensor]:
    if spec.observer.kind == "fixed":
        low, high = spec.observer.low, spec.observer.high
        return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
    if spec.axis is not None and state.channel_low is not None and state.channel_high is not None:
        return state.channel_low, state.channel_high
    return state.low, state.high


def _searched(asked: Sequence[tuple[QSpec, State]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ranges, by groups whose histograms have one size and whose searches are one."""
    groups: dict[object, list[int]] = {}
    for index, (spec, state) in enumerate(asked):
        bins = 0 if state.counts is None else state.counts.numel()
        kind = (spec.observer.search, spec.observer.percentile, bins)
        groups.setdefault((*kind, spec.qmin, spec.qmax, spec.symmetric), []).append(index)
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for members in groups.values():
        spec = asked[members[0]][0]
        lows, highs = search.ranges(spec, [asked[index][1] for index in members])
        found.update((index, (lows[at], highs[at])) for at, index in enumerate(members))
    return [found[index] for index in range(len(asked))]


def _finite(tensor: torch.Tensor) -> Result[None, Fault]:
    if not tensor.numel():
        return Failure(Fault(FaultKind.EMPTY_BATCH, "a weight without elements", "leave it float"))
    if not bool(torch.isfinite(tensor).all()):
        return Failure(
            Fault(FaultKind.NOT_FINITE, "a weight holds NaN or infinity", "repair the checkpoint")
        )
    return Success(None)


def _weight(tensor: torch.Tensor, spec: QSpec) -> QuantizedWeight:
    if spec.dtype is DType.FLOAT16:
        largest = torch.finfo(torch.float16).max
        rounded = tensor.detach().clamp(-largest, largest).to(torch.float16)
        return QuantizedWeight(rounded, torch.ones((), dtype=torch.float32), None)
    if spec.float_zero:
        return _rows(tensor, spec)
    made = weight_qparams(tensor, spec)
    integers = affine.quantize(
        tensor.detach(), made.scale, made.zero_point, spec.qmin, spec.qmax, spec.dtype, made.axis
    )
    return QuantizedWeight(
        integers, made.scale, made.zero_point if bool(made.zero_point.any()) else None
    )


def _rows(tensor: torch.Tensor, spec: QSpec) -> QuantizedWeight:
    """Rows over their own ranges: `q = clamp(rint(x * (1/s) + z))`, `s` and `z` float32.

    s = (high - low) / (qmax - qmin), 1 where that is at most the least scale, which is 2^-23 unless
    told; z = qmin - low / s, unrounded (per-row uniform quantization, Guan et al. 2019,
    "Post-training 4-bit quantization on embedding tables", eq. 1).
    """
    plain = tensor.detach().to(torch.float32)
    low, high = (end.to(torch.float32) for end in weight_range(plain, spec.axis))
    scale = (high - low) / float(spec.qmax - spec.qmin)
    least = torch.tensor(spec.observer.least_scale or 2.0**-23, dtype=torch.float32)
    scale = torch.where(scale > least, scale, torch.ones_like(scale))
    zero = spec.qmin - low / scale
    shape = [1] * plain.dim()
    if spec.axis is not None:
        shape[spec.axis] = -1
    steps = plain * (1.0 / scale).reshape(shape) + zero.reshape(shape)
    integers = steps.round_().clamp_(spec.qmin, spec.qmax).to(torch_dtype(spec.dtype))
    return QuantizedWeight(integers, scale, zero)


_FRACTIONS = tuple(1.0 - 0.025 * step for step in range(20))


def _shrunk(tensor: torch.Tensor, spec: QSpec, low: torch.Tensor, high: torch.Tensor) -> QParams:
    """Of twenty shrunk ranges, the one of least squared error, channel by channel."""
    plain = tensor.detach()
    fractions = torch.ones_like(low)
    least = torch.full_like(low, math.inf)
    for fraction in _FRACTIONS:
        made = qparams_between(spec, low * fraction, high * fraction)
        seen = affine.fake_quantize(
            plain.to(torch.float32), made.scale, made.zero_point, spec.qmin, spec.qmax, made.axis
        )
        error = _squares(plain.to(torch.float64) - seen.to(torch.float64), spec.axis)
        better = error < least
        least = torch.where(better, error, least)
        fractions = torch.where(better, torch.full_like(low, fraction), fractions)
    return qparams_between(spec, low * fractions, high * fractions)


def _squares(error: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Sum of squares, of the whole or along all dims but one, in the order of `tree_sum`."""
    if axis is None:
        return search.tree_sum(error.reshape(1, -1).square())[0]
    return search.tree_sum(error.movedim(axis, 0).reshape(error.shape[axis], -1).square())
