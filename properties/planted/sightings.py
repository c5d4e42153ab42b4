"""Observers and histograms, each wrong in one way, and the law that must say so."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fqx.kit.result import Success
from fqx.num import observers
from fqx.num.observers import State
from fqx.num.scheme import ObserverSpec
from fqx.testing.observations import Algebra, Binned, Bins, Made, Observed

SPEC = ObserverSpec("minmax")
SEEN = (
    torch.tensor([[1.0, 2.0, 3.0]]),
    torch.tensor([[2.0, 5.0, 6.0]]),
    torch.tensor([[0.5, 7.0, 1.0]]),
)


@dataclass(frozen=True, slots=True)
class Planted:
    """A wrong algebra, the observer it is for, and the law it breaks."""

    law: str
    title: str
    algebra: Algebra
    spec: ObserverSpec = SPEC

    def subject(self) -> Observed:
        """The algebra on three positive tensors, made anew."""
        one, two, three = SEEN
        return Observed(self.spec, (one.clone(), two.clone(), three.clone()), self.algebra)


@dataclass(frozen=True, slots=True)
class PlantedBins:
    """A wrong histogram and the law it breaks."""

    law: str
    title: str
    by: Bins

    def subject(self) -> Binned:
        """Values on both sides of zero, on edges and off, three steps too wide."""
        values = torch.tensor([-3.7, -1.0, -0.26, 0.0, 0.24, 0.25, 1.9, 3.99])
        return Binned(values, 64, 3, self.by)


def _by_merging(merge: Algebra) -> Algebra:
    """The algebra whose observe is its merge with what is seen alone."""

    def observe(spec: ObserverSpec, state: State, tensor: Tensor) -> Made:
        alone = observers.observe(spec, observers.empty(spec), tensor)
        return alone.bind(lambda seen: merge.merge(spec, state, seen))

    return replace(merge, observe=observe)


def _average(_: ObserverSpec, one: State, two: State) -> Made:
    """The mean of two ranges: commutative, but who comes last weighs most."""
    if one.is_empty or two.is_empty:
        return Success(two if one.is_empty else one)
    low, high = (one.low + two.low) / 2, (one.high + two.high) / 2
    return Success(replace(one, count=one.count + two.count, low=low, high=high))


def _latest(_: ObserverSpec, one: State, two: State) -> Made:
    """The later range replaces the earlier one."""
    if one.is_empty or two.is_empty:
        return Success(two if one.is_empty else one)
    return Success(replace(two, count=one.count + two.count))


def _from_zero(spec: ObserverSpec) -> State:
    """A range that starts at zero instead of nowhere."""
    zero = torch.zeros((), dtype=torch.float64)
    return replace(observers.empty(spec), low=zero, high=zero)


def _drifting(spec: ObserverSpec, state: State, tensor: Tensor) -> Made:
    """A moving average under the name of a minmax."""
    seen = observers.observe(spec, observers.empty(spec), tensor)
    if state.is_empty:
        return seen
    return seen.map(
        lambda new: replace(
            new,
            count=state.count + new.count,
            low=state.low + 0.1 * (new.low - state.low),
            high=state.high + 0.1 * (new.high - state.high),
        )
    )


def _sorting(spec: ObserverSpec, state: State, tensor: Tensor) -> Made:
    """Sorts what it is shown where it lies."""
    tensor.copy_(tensor.sort().values)
    return observers.observe(spec, state, tensor)


def _touching_zero(spec: ObserverSpec, one: State, two: State) -> Made:
    """Takes the range of a state that saw nothing for a range around zero."""
    made = observers.merge(spec, one, two)
    if not (one.is_empty or two.is_empty):
        return made
    return made.map(lambda both: replace(both, low=both.low.clamp(max=0.0)))


def _forgiving(spec: ObserverSpec, state: State, tensor: Tensor) -> Made:
    """Takes NaN for zero and infinity for the largest number."""
    return observers.observe(spec, state, tensor.nan_to_num())


def _forgets_halves(spec: ObserverSpec, one: State, two: State) -> Made:
    """Adds counts of different exponents as if they were of one."""
    return observers.merge(spec, one, two).map(
        lambda made: replace(made, counts=_sum(one.counts, two.counts))
    )


def _sum(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    return one + two if one is not None and two is not None else None


def _nearest(tensor: Tensor, exponent: int, bins: int) -> Tensor:
    """The nearest edge instead of the one below."""
    index = torch.round(tensor.double() * 2.0**-exponent).long() + bins // 2
    return torch.bincount(index.reshape(-1), minlength=bins)


def _towards_zero(tensor: Tensor, exponent: int, bins: int) -> Tensor:
    """Truncates: the bin around zero is twice as wide as the others."""
    index = (tensor.double() * 2.0**-exponent).long() + bins // 2
    return torch.bincount(index.reshape(-1), minlength=bins)


def _thinned(counts: Tensor, steps: int) -> Tensor:
    """Keeps every second bin instead of adding it to its neighbour."""
    made = observers.coarsened(counts, steps)
    return made - observers.coarsened(counts * (torch.arange(counts.numel()) % 2), steps)


CASES: tuple[Planted, ...] = (
    Planted(
        "merge_is_associative",
        "a merge that averages",
        _by_merging(Algebra(merge=_average)),
    ),
    Planted(
        "merge_is_commutative",
        "a merge in which the later one wins",
        _by_merging(Algebra(merge=_latest)),
    ),
    Planted("empty_is_the_unit", "nothing taken for zero", Algebra(merge=_touching_zero)),
    Planted("observing_is_merging", "a moving average", Algebra(observe=_drifting)),
    Planted(
        "observing_is_merging",
        "a histogram that adds counts of unlike bins",
        Algebra(merge=_forgets_halves),
        ObserverSpec("histogram", bins=64),
    ),
    Planted("observing_writes_nothing", "a tensor sorted in place", Algebra(observe=_sorting)),
    Planted("ranges_are_exact", "a range that starts at zero", Algebra(empty=_from_zero)),
    Planted("refuses_what_is_not_finite", "NaN taken for zero", Algebra(observe=_forgiving)),
)
"""At least one for every law of observers."""

BIN_CASES: tuple[PlantedBins, ...] = (
    PlantedBins("bins_are_floors", "values counted at the nearest edge", Bins(count=_nearest)),
    PlantedBins("bins_are_floors", "values truncated towards zero", Bins(count=_towards_zero)),
    PlantedBins("bins_pair_up", "every second bin lost", Bins(coarsen=_thinned)),
)
"""At least one for every law of histograms."""
