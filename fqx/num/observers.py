"""Observers as values: what was seen at an edge, with an exact merge.

Every kind but `moving_average` is a commutative monoid: for one multiset of tensors the state is
the same bit for bit in every order, grouping and split, because least and greatest values are
exact, counts are integers, and a histogram's bin is `floor(x * 2^-k)` with k a function of the
largest |x| alone, so that a finer histogram turns into a coarser one by adding bins in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import Failure, Result, Success
from fqx.num import single
from fqx.num.scheme import ObserverSpec

NO_EXPONENT = -(1 << 20)
"""The exponent of a histogram that has seen nothing but zeros."""

_CHUNK = 1 << 18
_PART, _RUN = 1 << 17, 1 << 20
_MANY, _GLANCE = 1 << 15, 1 << 10
_SIGNED_LANES, _LANES = 2, 8


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What an observer has seen; equal when every tensor is, bit for bit.

    * `count` int64 []: elements seen (batches, for a moving average).
    * `low`, `high` float64 []: least and greatest value; +inf and -inf before any.
    * `counts` int64 [bins]: bin i counts floor(x * 2^-exponent) = i - bins/2.
    * `exponent` int64 [].
    * `channel_low`, `channel_high` float64 [channels]; [0] before any.

    What the kind does not collect is None.
    """

    count: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    counts: torch.Tensor | None = None
    exponent: torch.Tensor | None = None
    channel_low: torch.Tensor | None = None
    channel_high: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name, in the order of `state_names`."""
        named = {name: getattr(self, name) for name in STATE_NAMES}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def is_empty(self) -> bool:
        """Whether nothing was seen."""
        return int(self.count) == 0

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest value seen."""
        return float(self.low), float(self.high)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return False
        mine, theirs = self.tensors(), other.tensors()
        return mine.keys() == theirs.keys() and all(
            torch.equal(tensor.view(torch.int64), theirs[name].view(torch.int64))
            for name, tensor in mine.items()
        )

    def __hash__(self) -> int:
        return hash((int(self.count), *self.range))

    def __repr__(self) -> str:
        low, high = self.range
        return f"State({int(self.count)} seen, {low:.6g} to {high:.6g})"


STATE_NAMES = ("count", "low", "high", "counts", "exponent", "channel_low", "channel_high")


@cache
def state_names(spec: ObserverSpec) -> tuple[str, ...]:
    """The tensors a state of this spec has, in their order among a node's operands."""
    return () if spec.kind == "fixed" else tuple(empty(spec).tensors())


def state_of(tensors: Mapping[str, torch.Tensor]) -> State:
    """A state of its tensors by name; raises TypeError if `count`, `low` or `high` is missing."""
    return State(**tensors)


def is_monoid(spec: ObserverSpec) -> bool:
    """Whether states can be merged in any order; false for the moving average alone."""
    return spec.kind != "moving_average"


def empty(spec: ObserverSpec) -> State:
    """The state before any tensor: the unit of `merge`."""
    none = torch.tensor(0, dtype=torch.int64)
    low = torch.tensor(math.inf, dtype=torch.float64)
    nobody = torch.empty(0, dtype=torch.float64)
    channels = spec.axis is not None and spec.kind in ("channel_minmax", "histogram")
    counted = spec.kind == "histogram"
    return State(
        none,
        low,
        -low,
        torch.zeros(spec.bins, dtype=torch.int64) if counted else None,
        torch.tensor(NO_EXPONENT, dtype=torch.int64) if counted else None,
        nobody if channels else None,
        nobody if channels else None,
    )


def observe(spec: ObserverSpec, state: State, tensor: torch.Tensor) -> Result[State, Fault]:
    """The state after one more tensor of any real dtype and any layout.

    Fails with EMPTY_BATCH on a tensor without elements, NOT_FINITE on one holding NaN or infinity,
    BATCH_DOES_NOT_FIT where the number of channels is another one than before.
    """
    if spec.kind == "fixed":
        return Success(state)
    if not tensor.numel():
        return Failure(_empty(tensor))
    plain = tensor.detach()
    # the least and greatest value carry NaN and infinity of any element
    low, high = _extremes(plain)
    if not (math.isfinite(low) and math.isfinite(high)):
        return Failure(_not_finite(plain))
    if spec.kind == "moving_average":
        return Success(_averaged(spec, state, low, high))
    return _channels(spec, state, plain).map(
        lambda channels: _extended(spec, state, plain, low, high, channels)
    )


def merge(spec: ObserverSpec, one: State, two: State) -> Result[State, Fault]:
    """What both states have seen: associative, commutative, with `empty(spec)` as unit.

    Fails with BAD_RECIPE for a moving average, whose state depends on the order of batches, and
    with BATCH_DOES_NOT_FIT where the numbers of channels differ.
    """
    if not is_monoid(spec):
        return Failure(
            Fault(
                FaultKind.BAD_RECIPE,
                "moving averages depend on the order of batches and cannot be merged",
                "calibrate in one run, or use a minmax or histogram observer",
            )
        )
    return _channels_of(one, two.channel_low, two.channel_high).map(
        lambda channels: _merged(one, two, channels)
    )


def _merged(one: State, two: State, channels: _Channels) -> State:
    counts, exponent = None, None
    if one.exponent is not None and two.exponent is not None:
        k = max(int(one.exponent), int(two.exponent))
        counts = _at_exponent(one, k) + _at_exponent(two, k)
        exponent = torch.tensor(k, dtype=torch.int64)
    return State(
        one.count + two.count,
        torch.minimum(one.low, two.low),
        torch.maximum(one.high, two.high),
        counts,
        exponent,
        channels.low,
        channels.high,
    )


def exponent_for(largest: float, bins: int) -> int:
    """The k with bins/4 <= largest * 2^-k < bins/2; NO_EXPONENT for zero."""
    if largest == 0.0:
        return NO_EXPONENT
    return math.frexp(largest)[1] - (bins.bit_length() - 2)


def coarsened(counts: torch.Tensor, steps: int) -> torch.Tensor:
    """The counts [bins] of bins 2^steps times as wide: index i from the middle becomes i >> steps.

    Bins are counted from the middle, so the outer ones of the answer are zero.
    """
    if steps <= 0:
        return counts
    bins = counts.numel()
    # one bin on each side of zero is the coarsest there is
    width = 1 << min(steps, bins.bit_length() - 2)
    summed = counts.reshape(bins // width, width).sum(1)
    wide = torch.zeros_like(counts)
    start = bins // 2 - summed.numel() // 2
    wide[start : start + summed.numel()] = summed
    return wide


def bin_counts(
    tensor: torch.Tensor, exponent: int, bins: int, least: float = -math.inf
) -> torch.Tensor:
    """int64 [bins]: how many elements have floor(x * 2^-exponent) = i - bins/2.

    Every |x| must be below bins/2 * 2^exponent and no x below `least`.
    """
    flat = _flat(tensor)
    if exponent == NO_EXPONENT:
        counts = torch.zeros(bins, dtype=torch.int64)
        counts[bins // 2] = flat.numel()
        return counts
    narrow = flat.dtype in (torch.float32, torch.float16, torch.bfloat16)
    # scaling a float32 up by a power of two is exact; scaling down can lose the sign of tiny values
    if not narrow or not -126 <= exponent <= 0:
        return _careful_counts(flat.to(torch.float64), exponent, bins)
    factor, half = math.ldexp(1.0, -exponent), bins // 2
    if least < 0:
        return _fast_counts(flat, factor, _Bins(bins, half, _SIGNED_LANES))
    # what is not negative falls into the upper half, and turns into integers without a floor
    upper = _fast_counts(flat, factor, _Bins(half, 0, _LANES))
    return torch.cat((torch.zeros(half, dtype=torch.int64), upper))


@dataclass(frozen=True, slots=True)
class _Bins:
    """So many bins, the one of zero among them, and into how many histograms to count at a time.

    Neighbouring values go to histograms of their own: adding to one counter many times in a row,
    as zeros behind a relu do, waits for memory.
    """

    number: int
    zero: int
    lanes: int


def _fast_counts(flat: torch.Tensor, factor: float, bins: _Bins) -> torch.Tensor:
    """Counts of float32 values scaled up.

    Short parts, which stay in the cache, are turned into indices, and longer runs of these are
    counted, since each run has counters of its own to clear and add.
    """
    size, total = flat.numel(), torch.zeros(bins.number * bins.lanes, dtype=torch.int64)
    if size < _MANY or total.numel() > 1 << 15:
        scaled = flat.to(torch.float32).mul(factor).floor_()
        index = scaled.to(torch.int16 if bins.number <= 1 << 15 else torch.int32).add_(bins.zero)
        return torch.bincount(index, minlength=bins.number)
    offsets = _offsets(bins)
    scaled, indices = torch.empty(_PART), torch.empty(min(size, _RUN), dtype=torch.int16)
    for begin in range(0, size, _RUN):
        run = flat[begin : begin + _RUN]
        for start in range(0, run.numel(), _PART):
            part = run[start : start + _PART].to(torch.float32)
            into, index = scaled[: part.numel()], indices[start : start + part.numel()]
            torch.mul(part, factor, out=into)
            index.copy_(into.floor_() if bins.zero else into).add_(offsets[: part.numel()])
        total += torch.bincount(indices[: run.numel()], minlength=total.numel())
    return total.reshape(bins.lanes, bins.number).sum(0)


@lru_cache(maxsize=8)
def _offsets(bins: _Bins) -> torch.Tensor:
    """int16 [_PART]: from a scaled value to its bin in the histogram of its lane."""
    return (torch.arange(_PART) % bins.lanes * bins.number + bins.zero).to(torch.int16)


def _careful_counts(flat: torch.Tensor, exponent: int, bins: int) -> torch.Tensor:
    """Counts of float64 values at any exponent."""
    total = torch.zeros(bins, dtype=torch.int64)
    # two factors, since 2^-exponent alone may be no float64
    first = math.ldexp(1.0, -(exponent // 2))
    second = math.ldexp(1.0, -(exponent - exponent // 2))
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        index = part.mul(first).mul_(second).floor_().to(torch.int64)
        # a negative value that vanishes when scaled is still below zero
        index = torch.where((index == 0) & (part < 0), -1, index)
        total += torch.bincount(index + bins // 2, minlength=bins)
    return total


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in some order; dense layouts are not copied."""
    if tensor.is_contiguous():
        return tensor.reshape(-1)
    strides = tensor.stride()
    return tensor.permute(sorted(range(tensor.dim()), key=lambda dim: -strides[dim])).reshape(-1)


def _extremes(tensor: torch.Tensor) -> tuple[float, float]:
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.uint8)
    flat = _flat(tensor)
    low, high = _float32_extremes(flat) if flat.dtype == torch.float32 else torch.aminmax(flat)
    # + 0.0 makes one of the two zeros, whichever was seen first
    return float(low) + 0.0, float(high) + 0.0


def _float32_extremes(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `aminmax`, in half the time where no sign bit is set, as behind a relu.

    Such values are ordered as their bits are, infinity and NaN come behind all others.
    """
    bits = flat.resolve_neg().view(torch.int32)
    if flat.numel() >= _MANY and int(bits[:_GLANCE].amin()) >= 0:
        low, high = torch.aminmax(bits)
        if int(low) >= 0:
            return low.view(torch.float32), high.view(torch.float32)
    return torch.aminmax(flat)


@dataclass(frozen=True, slots=True)
class _Channels:
    low: torch.Tensor | None
    high: torch.Tensor | None


def _channels(spec: ObserverSpec, state: State, tensor: torch.Tensor) -> Result[_Channels, Fault]:
    if state.channel_low is None or spec.axis is None:
        return Success(_Channels(None, None))
    if not -tensor.dim() <= spec.axis < tensor.dim():
        return Failure(_misfit(f"a tensor of {tensor.dim()} dimensions has no axis {spec.axis}"))
    dims = [dim for dim in range(tensor.dim()) if dim != spec.axis % tensor.dim()]
    low, high = (tensor.amin(dims), tensor.amax(dims)) if dims else (tensor, tensor)
    return _channels_of(state, low.to(torch.float64) + 0.0, high.to(torch.float64) + 0.0)


def _channels_of(
    state: State, low: torch.Tensor | None, high: torch.Tensor | None
) -> Result[_Channels, Fault]:
    if state.channel_low is None or state.channel_high is None or low is None or high is None:
        return Success(_Channels(None, None))
    if not state.channel_low.numel() or not low.numel():
        seen = (low, high) if low.numel() else (state.channel_low, state.channel_high)
        return Success(_Channels(*seen))
    if state.channel_low.numel() != low.numel():
        return Failure(
            _misfit(f"{low.numel()} channels follow {state.channel_low.numel()} channels")
        )
    return Success(
        _Channels(torch.minimum(state.channel_low, low), torch.maximum(state.channel_high, high))
    )


def _extended(
    spec: ObserverSpec,
    state: State,
    tensor: torch.Tensor,
    low: float,
    high: float,
    channels: _Channels,
) -> State:
    counts, exponent = None, state.exponent
    if state.counts is not None and exponent is not None:
        was = int(exponent)
        k = max(was, exponent_for(max(-low, high), spec.bins))
        counts = bin_counts(tensor, k, spec.bins, low)
        if not state.is_empty:
            # the new counts are nobody else's yet
            counts.add_(coarsened(state.counts, k - was))
        exponent = exponent if k == was else torch.tensor(k, dtype=torch.int64)
    return State(
        state.count + tensor.numel(),
        state.low if float(state.low) <= low else torch.tensor(low, dtype=torch.float64),
        state.high if float(state.high) >= high else torch.tensor(high, dtype=torch.float64),
        counts,
        exponent,
        channels.low,
        channels.high,
    )


def _at_exponent(state: State, exponent: int) -> torch.Tensor:
    if state.counts is None or state.exponent is None:
        return torch.zeros(0, dtype=torch.int64)
    return coarsened(state.counts, exponent - int(state.exponent))


def _averaged(spec: ObserverSpec, state: State, low: float, high: float) -> State:
    was_low, was_high = (low, high) if state.is_empty else state.range
    if spec.formula == "float32":
        means = single.moved(was_low, low, spec.rate), single.moved(was_high, high, spec.rate)
    else:
        means = was_low + spec.rate * (low - was_low), was_high + spec.rate * (high - was_high)
    return State(state.count + 1, *(torch.tensor(mean, dtype=torch.float64) for mean in means))


def _empty(tensor: torch.Tensor) -> Fault:
    return Fault(
        FaultKind.EMPTY_BATCH,
        f"an observed tensor of shape {tuple(tensor.shape)} holds no elements",
        "leave empty batches out of the calibration set",
    )


def _not_finite(tensor: torch.Tensor) -> Fault:
    nans, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return Fault(
        FaultKind.NOT_FINITE,
        f"{nans} NaN and {infinite} infinite of {tensor.numel()} values were observed",
        "look at the input of this node: the calibration data or the model makes values that are "
        "not finite",
    )


def _misfit(reason: str) -> Fault:
    return Fault(FaultKind.BATCH_DOES_NOT_FIT, reason, "observe tensors of one rank and width")
