"""Ranges from histograms, for many observers at once.

Counts are integers and every float64 operation here is elementwise or summed in a fixed order, so
a range depends on the counts alone. Positions are in bins: bin i covers i - H to i - H + 1, with H
half the number of bins, and a value x stands at x * 2^-exponent.

Squared error. With values spread evenly inside each bin, F their cumulative count and
G(t) the integral of F up to t, the error of a quantizer with step s, top level v and midpoints u_j
between neighbouring levels is, by partial summation,

    sum (x - Q(x))^2 = sum (x - v)^2 - 2 s sum_j G(u_j)

which needs one table look-up for each level instead of a pass over the bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import torch

from fqx.num import affine
from fqx.num.observers import NO_EXPONENT, State
from fqx.num.scheme import QSpec

MOST_LEVELS = 4096
"""Quantizers with more levels take the whole range: there is nothing to gain from clipping."""

# 5 observers x 25 candidates x 257 levels stay below the size from which torch shares an operation
# among threads, whose meeting points cost more than the work where cores are busy
_BLOCK = 5
# written out, since a library's power function may round differently elsewhere
_RATIO, _FINER, _FINEST = 0.8408964152537145, 0.9576032806985737, 0.9892280131939755
_JOINT = tuple(range(25))
_SINGLE = tuple(range(-6, 13))
_FINE = tuple(range(-4, 5))
_FAR = 2.0**50
_LN2 = 0.6931471805599453
_ROUNDS = ((_SINGLE, _RATIO), (_FINE, _FINER), (_FINE, _FINEST))


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """Histograms of several observers as look-up tables, flat over observers, float64.

    `counts`, `below` (F at each left edge) and `area` (G there) hold bins + 1 entries for each
    observer; `offset` is where an observer's entries start, `unit` the bins of a value of 1.
    `total`, `first` and `second` are the sums of 1, x and x^2 over what was seen, in bins.
    """

    bins: int
    counts: torch.Tensor
    below: torch.Tensor
    area: torch.Tensor
    offset: torch.Tensor
    total: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    unit: torch.Tensor


_Objective: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Cost [n, candidates] of ranges low, high [n, candidates] in values; less is better."""


def ranges(spec: QSpec, states: Sequence[State]) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 [n] low and high of each state by the spec's search; all have one number of bins."""
    low = torch.stack([state.low for state in states]).clamp(max=0.0)
    high = torch.stack([state.high for state in states]).clamp(min=0.0)
    if spec.observer.search == "minmax" or spec.qmax - spec.qmin >= MOST_LEVELS:
        return low, high
    # ranges with one free end need a fraction of the candidates, so they go by themselves
    free = bool(spec.symmetric) | (low == 0.0) | (high == 0.0)
    order = torch.argsort(free.to(torch.int8), stable=True).tolist()
    twos = int((~free).sum())
    blocks = [order[at : min(at + _BLOCK, twos)] for at in range(0, twos, _BLOCK)]
    blocks += [order[at : at + _BLOCK] for at in range(twos, len(order), _BLOCK)]
    found = [
        _block_ranges(spec, [states[i] for i in block], low[block], high[block], at_once)
        for block, at_once in ((block, bool(free[block[0]])) for block in blocks)
    ]
    back = torch.tensor(order).argsort()
    lows, highs = (torch.cat([pair[end] for pair in found])[back] for end in (0, 1))
    return lows, highs


def power_and_noise(
    counts: torch.Tensor, exponent: int, scale: float, zero: int, qmin: int, qmax: int
) -> tuple[float, float]:
    """Sum of squares of the values, and of their quantization errors, in one unit.

    `counts` is int64 [bins]; scale and zero point are those of a per-tensor quantizer.
    """
    if exponent == NO_EXPONENT:
        return 0.0, 0.0
    tables = _tables(_without_zeros(counts[None]), [exponent])
    step = torch.tensor([[scale]], dtype=torch.float64) * tables.unit
    zeros = torch.tensor([[float(zero)]], dtype=torch.float64)
    noise = _squared_error(tables, step, zeros, qmin, qmax)
    return float(tables.second[0]), max(float(noise[0, 0]), 0.0)


def even_power_and_noise(
    low: float, high: float, scale: float, zero: int, qmin: int, qmax: int
) -> tuple[float, float]:
    """Mean squares of values spread evenly from low to high, and of their quantization errors."""
    if high <= low:
        value = max(-low, high)
        level = min(max(round(low / scale) + zero, qmin), qmax)
        return value * value, (low - (level - zero) * scale) ** 2
    power = (high * high + high * low + low * low) / 3.0
    least, most = (qmin - zero) * scale, (qmax - zero) * scale
    inside = max(min(high, most) - max(low, least), 0.0) / (high - low)
    over, under = max(high - max(most, low), 0.0), max(min(least, high) - low, 0.0)
    clipped = (over**3 + under**3) / (3.0 * (high - low))
    return power, inside * scale * scale / 12.0 + clipped


def tree_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum over the last dimension, by halves: the same additions on every machine."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        summed = values[..., :half] + values[..., half : 2 * half]
        if values.shape[-1] % 2:
            summed[..., 0] += values[..., -1]
        values = summed
    return values[..., 0] if values.shape[-1] else values.sum(-1)


def logarithm(x: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of positive normal float64, to 1e-9, from elementwise + - * / alone.

    ln(m 2^e) = e ln 2 + 2 artanh((m - 1)/(m + 1)) with m in [sqrt(1/2), sqrt(2)); the series in
    r = (m - 1)/(m + 1), at most 0.172, is cut after r^9 / 9. torch's own logarithm may differ
    between instruction sets.
    """
    mantissa, exponent = torch.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, mantissa * 2.0, mantissa)
    power = exponent.to(torch.float64) - small.to(torch.float64)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    series = torch.full_like(ratio, 1.0 / 9.0)
    for odd in range(7, 0, -2):
        # two roundings each, never a fused multiply-add
        series.mul_(square).add_(1.0 / odd)
    return series.mul_(ratio).mul_(2.0).add_(power.mul_(_LN2))


def _block_ranges(
    spec: QSpec, states: Sequence[State], low: torch.Tensor, high: torch.Tensor, one_end: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if spec.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    counts = torch.stack([state.counts for state in states if state.counts is not None])
    exponents = [int(state.exponent) for state in states if state.exponent is not None]
    if spec.observer.search == "mse":
        tables = _tables(_without_zeros(counts), exponents)
        return _descend(_error_cost(spec, tables), low, high, one_end)
    tables = _tables(counts, exponents)
    if spec.observer.search == "entropy":
        return _descend(_entropy_cost(spec, tables), low, high, one_end)
    return _percentiles(spec, tables, low, high)


def _without_zeros(counts: torch.Tensor) -> torch.Tensor:
    """Counts without the exact zeros that relu and padding leave, which quantize without error.

    They stand in the first bin of the positive side; what it holds more than its neighbours is
    taken for zeros.
    """
    middle = counts.shape[1] // 2
    beside = torch.maximum(counts[:, middle - 1], counts[:, middle + 1])
    kept = counts.clone()
    kept[:, middle] = torch.minimum(counts[:, middle], beside)
    return kept


def _tables(counts: torch.Tensor, exponents: Sequence[int]) -> _Tables:
    observers, bins = counts.shape
    below = counts.cumsum(1)
    before = torch.zeros(observers, 1, dtype=torch.int64)
    below = torch.cat((before, below), 1)
    # twice the area is an integer
    doubled = (2 * below[:, :-1] + counts).cumsum(1)
    edges = torch.arange(bins, dtype=torch.float64) - bins // 2
    plain = counts.to(torch.float64)
    unit = torch.from_numpy(
        # of values too small for any scale the unit does not matter, so it may stay finite
        np.ldexp(np.ones(observers), [min(-k, 900) if k != NO_EXPONENT else 0 for k in exponents])
    )[:, None]
    return _Tables(
        bins,
        torch.cat((plain, before.to(torch.float64)), 1).reshape(-1),
        below.to(torch.float64).reshape(-1),
        torch.cat((before, doubled), 1).to(torch.float64).mul_(0.5).reshape(-1),
        (torch.arange(observers) * (bins + 1))[:, None],
        below[:, -1:].to(torch.float64),
        tree_sum(plain * (edges + 0.5))[:, None],
        tree_sum(plain * (edges * edges + edges + 1.0 / 3.0))[:, None],
        unit,
    )


def _descend(
    cost: _Objective, low: torch.Tensor, high: torch.Tensor, one_end: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best range on a geometric grid: both ends together, each end alone, then finer."""
    best = _best(cost, (low, high), (low, high), _JOINT, _JOINT, _RATIO)
    for steps, ratio in _ROUNDS[one_end:]:
        still = (0,) * len(steps)
        for lows, highs in [(steps, steps)] if one_end else [(still, steps), (steps, still)]:
            best = _best(cost, (low, high), best, lows, highs, ratio)
    return best


def _best(
    cost: _Objective,
    whole: tuple[torch.Tensor, torch.Tensor],
    start: tuple[torch.Tensor, torch.Tensor],
    low_steps: tuple[int, ...],
    high_steps: tuple[int, ...],
    ratio: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of least cost among `start` times powers of `ratio`, inside `whole`."""
    low = torch.maximum(start[0][:, None] * _powers(ratio, low_steps), whole[0][:, None])
    high = torch.minimum(start[1][:, None] * _powers(ratio, high_steps), whole[1][:, None])
    costs = cost(low, high)
    least = costs.amin(1, keepdim=True)
    places = torch.where(costs == least, torch.arange(costs.shape[1]), costs.shape[1])
    at = places.amin(1, keepdim=True).clamp(max=costs.shape[1] - 1)
    return low.gather(1, at)[:, 0], high.gather(1, at)[:, 0]


@cache
def _powers(ratio: float, steps: tuple[int, ...]) -> torch.Tensor:
    """ratio ** step by repeated multiplication, which every machine rounds alike."""
    made: list[float] = []
    for step in steps:
        value = 1.0
        for _ in range(abs(step)):
            value = value * ratio if step > 0 else value / ratio
        made.append(value)
    return torch.tensor(made, dtype=torch.float64)


def _error_cost(spec: QSpec, tables: _Tables) -> _Objective:
    def cost(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        scale, zero = _quantizer(spec, low, high)
        return _squared_error(tables, scale * tables.unit, zero, spec.qmin, spec.qmax)

    return cost


def _quantizer(
    spec: QSpec, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    span = affine.span_of(low, high, spec.symmetric)
    scale = affine.scale_for(span, spec.qmin, spec.qmax, spec.observer.least_scale)
    zero = affine.zero_for(low, scale, spec.qmin, spec.qmax, spec.symmetric, spec.zero)
    return scale, zero.to(torch.float64)


def _squared_error(
    tables: _Tables, step: torch.Tensor, zero: torch.Tensor, qmin: int, qmax: int
) -> torch.Tensor:
    """Sum of squared errors [n, candidates] in square bins, for steps in bins and zero points."""
    top = (qmax - zero) * step
    levels = torch.arange(qmin, qmax, dtype=torch.float64)[:, None, None] + 0.5
    # levels lead, so that the halves of the tree sum are contiguous
    places = ((levels - zero) * step).add_(tables.bins // 2).clamp_(0.0, _FAR)
    # places are not negative, so cutting off the fraction is the floor
    index = places.to(torch.int64).clamp_(max=tables.bins)
    inside = places.sub_(index)
    flat = index.add_(tables.offset)
    areas = _at(tables.counts, flat).mul_(0.5).mul_(inside).add_(_at(tables.below, flat))
    areas = areas.mul_(inside).add_(_at(tables.area, flat))
    from_top = tables.second - 2.0 * top * tables.first + top * top * tables.total
    return from_top - 2.0 * step * _fold(areas)


def _at(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The entries of a flat table; of torch's ways to read them the one that needs no threads."""
    return table.index_select(0, index.reshape(-1)).reshape(index.shape)


def _fold(values: torch.Tensor) -> torch.Tensor:
    """The sum over the first dimension, by halves."""
    while values.shape[0] > 1:
        half = values.shape[0] // 2
        summed = values[:half] + values[half : 2 * half]
        if values.shape[0] % 2:
            summed[0] += values[-1]
        values = summed
    return values[0]


def _entropy_cost(spec: QSpec, tables: _Tables) -> _Objective:
    """Kullback-Leibler divergence of the histogram, outliers moved to the ends of the range, from
    its quantized form: every level's mass spread evenly over the bins it holds that are not empty.
    """
    rows = tables.bins + 1
    counts = tables.counts.reshape(-1, rows)
    filled = _running(counts > 0)
    surprise = _running(_self_information(counts))

    def cost(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        scale, zero = _quantizer(spec, low, high)
        step = scale * tables.unit
        levels = torch.arange(spec.qmin, spec.qmax + 2, dtype=torch.float64)[:, None, None] - 0.5
        edges = ((levels - zero) * step).add_(tables.bins // 2).clamp_(0.0, float(tables.bins))
        flat = edges.add_(0.5).to(torch.int64).add_(tables.offset)
        below, cells = _at(tables.below, flat), _at(filled, flat)
        mass, width = below[1:] - below[:-1], cells[1:] - cells[:-1]
        under, over = below[0], tables.total - below[-1]
        held = below[-1] - below[0]
        # an end level without bins of its own still gets the outliers: one bin, one element
        mean = mass.clamp(min=1.0) / width.clamp(min=1.0)
        moved = mass.clone()
        moved[0] += under
        moved[-1] += over
        known = _at(surprise, flat[-1]) - _at(surprise, flat[0])
        ends = _moved(tables, flat[0], under) + _moved(tables, (flat[-1] - 1).clamp(min=0), over)
        total = tables.total
        spread = known + ends - _fold(moved * logarithm(mean))
        divergence = spread / total + logarithm(held.clamp(min=1.0)) - logarithm(total)
        usable = (flat[-1] - flat[0] >= (spec.qmax - spec.qmin) // 2) & (held > 0)
        return torch.where(usable, divergence, math.inf)

    return cost


def _moved(tables: _Tables, at: torch.Tensor, outliers: torch.Tensor) -> torch.Tensor:
    """How much the information of one bin grows when the outliers join it."""
    own = _at(tables.counts, at)
    return _self_information(own + outliers) - _self_information(own)


def _self_information(counts: torch.Tensor) -> torch.Tensor:
    return counts * logarithm(counts.clamp(min=1.0))


def _running(values: torch.Tensor) -> torch.Tensor:
    """Sums of the entries before each one, along a row, first to last; flat."""
    # numpy's accumulate adds in sequence by definition
    sums = np.add.accumulate(values.to(torch.float64).numpy(), axis=1)
    shifted = np.zeros_like(sums)
    shifted[:, 1:] = sums[:, :-1]
    return torch.from_numpy(shifted).reshape(-1)


def _percentiles(
    spec: QSpec, tables: _Tables, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The range that holds the percentile; what lies outside is shared by both ends."""
    share = 1.0 - spec.observer.percentile / 100.0
    counts = tables.counts.reshape(-1, tables.bins + 1)[:, :-1]
    if spec.symmetric:
        half = tables.bins // 2
        sizes = counts[:, half:] + counts[:, :half].flip(1)
        reach = _quantile(sizes, tables.total[:, 0] * (1.0 - share)) / tables.unit[:, 0]
        reach = torch.minimum(reach, high)
        return -reach, reach
    # a side without values beyond zero has no tail to give away
    two_sided = (low < 0.0) & (high > 0.0)
    tail = tables.total[:, 0] * torch.where(two_sided, share * 0.5, share)
    middle = float(tables.bins // 2)
    upper = (_quantile(counts, tables.total[:, 0] - tail) - middle) / tables.unit[:, 0]
    lower = (middle - _quantile(counts.flip(1), tables.total[:, 0] - tail)) / tables.unit[:, 0]
    return torch.maximum(low, lower.clamp(max=0.0)), torch.minimum(high, upper.clamp(min=0.0))


def _quantile(counts: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Where the running count reaches the target, evenly inside a bin, in bins from the left."""
    reached = counts.cumsum(1)
    at = (reached < target[:, None]).sum(1, keepdim=True).clamp(max=counts.shape[1] - 1)
    own = counts.gather(1, at)
    before = reached.gather(1, at) - own
    inside = ((target[:, None] - before) / own.clamp(min=1.0)).clamp(0.0, 1.0)
    return (at + inside)[:, 0]
