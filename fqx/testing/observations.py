"""The laws of observers: merging is a commutative monoid, and observing is merging.

From the four laws of the algebra follows that a state depends on the multiset of tensors alone, in
every order, grouping and split over workers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import torch
from torch import Tensor

from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import Result, Success, fold
from fqx.num import observers
from fqx.num.observers import NO_EXPONENT, State, exponent_for
from fqx.num.scheme import ObserverSpec
from fqx.testing.laws import Law

__all__ = [
    "BIN_LAWS",
    "OBSERVER_LAWS",
    "Algebra",
    "Binned",
    "Bins",
    "Observed",
    "folded",
]

Made: TypeAlias = Result[State, Fault]


@dataclass(frozen=True, slots=True)
class Algebra:
    """What there is to do with states; the library's own unless said otherwise."""

    empty: Callable[[ObserverSpec], State] = observers.empty
    observe: Callable[[ObserverSpec, State, Tensor], Made] = observers.observe
    merge: Callable[[ObserverSpec, State, State], Made] = observers.merge


@dataclass(frozen=True, slots=True)
class Observed:
    """Three finite tensors of one number of channels that an observer sees."""

    spec: ObserverSpec
    seen: tuple[Tensor, Tensor, Tensor]
    algebra: Algebra = Algebra()

    def states(self) -> tuple[State, ...]:
        """A state of (a copy of) each tensor alone."""
        return tuple(folded(self.spec, (tensor.clone(),), self.algebra) for tensor in self.seen)

    def merged(self, one: State, two: State) -> State:
        """Both, by the algebra's merge."""
        return self.algebra.merge(self.spec, one, two).unwrap()


def folded(spec: ObserverSpec, seen: tuple[Tensor, ...], algebra: Algebra = Algebra()) -> State:
    """The state after all the tensors in order."""
    state: Made = Success(algebra.empty(spec))
    for tensor in seen:
        state = state.bind(lambda before, tensor=tensor: algebra.observe(spec, before, tensor))  # type: ignore[misc]  # a loop variable kept by a default has no type
    return state.unwrap()


def _is_associative(about: Observed) -> str | None:
    one, two, three = about.states()
    left = about.merged(about.merged(one, two), three)
    right = about.merged(one, about.merged(two, three))
    return None if left == right else f"(ab)c is {left!r}, a(bc) is {right!r}"


def _is_commutative(about: Observed) -> str | None:
    one, two, _ = about.states()
    there, back = about.merged(one, two), about.merged(two, one)
    return None if there == back else f"ab is {there!r}, ba is {back!r}"


def _has_unit(about: Observed) -> str | None:
    state, unit = about.states()[0], about.algebra.empty(about.spec)
    found = (about.merged(state, unit), about.merged(unit, state))
    return None if found == (state, state) else f"{state!r} with the empty state is {found!r}"


def _observing_is_merging(about: Observed) -> str | None:
    one, two, _ = about.states()
    seen = about.algebra.observe(about.spec, one, about.seen[1]).unwrap()
    together = about.merged(one, two)
    return None if seen == together else f"observed {seen!r}, merged {together!r}"


def _writes_nothing(about: Observed) -> str | None:
    sources = [tensor.clone() for tensor in about.seen]
    one, two, _ = about.states()
    held = [state.tensors() for state in (one, two)]
    kept = [{name: tensor.clone() for name, tensor in state.items()} for state in held]
    about.algebra.observe(about.spec, one, about.seen[2]).unwrap()
    about.merged(one, two)
    for before, after in zip(kept, held, strict=True):
        for name, tensor in before.items():
            if not torch.equal(tensor, after[name]):
                return f"{name} of a state was written into"
    same = all(torch.equal(x, y) for x, y in zip(sources, about.seen, strict=True))
    return None if same else "an observed tensor was written into"


def _ranges_are_exact(about: Observed) -> str | None:
    if about.spec.kind == "fixed":
        return None
    for state, tensor in zip(about.states(), about.seen, strict=True):
        wanted = (float(tensor.min()), float(tensor.max()))
        if state.range != wanted:
            return f"the range of one tensor is {state.range}, its ends are {wanted}"
    return None


def _refuses(about: Observed) -> str | None:
    if about.spec.kind == "fixed":
        return None
    for wrong in (math.nan, math.inf, -math.inf):
        spoilt = about.seen[0].clone()
        spoilt[(-1,) * spoilt.dim()] = wrong
        kind = _refusal(about, spoilt)
        if kind is not FaultKind.NOT_FINITE:
            return f"a tensor holding {wrong} is {kind}"
    kind = _refusal(about, about.seen[0][:0])
    return None if kind is FaultKind.EMPTY_BATCH else f"a tensor without elements is {kind}"


def _refusal(about: Observed, tensor: Tensor) -> FaultKind | None:
    start = about.algebra.empty(about.spec)
    return fold(
        about.algebra.observe(about.spec, start, tensor), lambda _: None, lambda fault: fault.kind
    )


OBSERVER_LAWS: tuple[Law[Observed], ...] = (
    Law("merge_is_associative", "(ab)c is a(bc)", _is_associative),
    Law("merge_is_commutative", "ab is ba", _is_commutative),
    Law("empty_is_the_unit", "nothing seen adds nothing", _has_unit),
    Law("observing_is_merging", "to observe is to merge what is seen alone", _observing_is_merging),
    Law("observing_writes_nothing", "states and tensors stay as they are", _writes_nothing),
    Law("ranges_are_exact", "what is seen alone gives its own ends", _ranges_are_exact),
    Law("refuses_what_is_not_finite", "NaN, infinity and nothing at all are faults", _refuses),
)
"""Laws of every observer but the moving average, whose batches have an order."""


@dataclass(frozen=True, slots=True)
class Bins:
    """How a histogram counts and widens; the library's own unless said otherwise."""

    count: Callable[[Tensor, int, int], Tensor] = observers.bin_counts
    coarsen: Callable[[Tensor, int], Tensor] = observers.coarsened


@dataclass(frozen=True, slots=True)
class Binned:
    """A finite tensor in `bins` bins, `coarser` steps wider than they had to be."""

    tensor: Tensor
    bins: int
    coarser: int
    by: Bins = Bins()

    @property
    def least(self) -> int:
        """The exponent that just holds the largest magnitude."""
        return exponent_for(float(self.tensor.abs().max()), self.bins)

    @property
    def exponent(self) -> int:
        """The exponent counted at."""
        return self.least if self.least == NO_EXPONENT else self.least + self.coarser


def _bins_are_floors(about: Binned) -> str | None:
    """In exact arithmetic: no rounding of x · 2^-k may move a value over a bin's edge."""
    exponent = about.exponent
    scale = Fraction(0) if exponent == NO_EXPONENT else Fraction(2) ** -exponent
    numbers = (Fraction(float(value)) for value in about.tensor.reshape(-1))
    wanted = Counter(math.floor(number * scale) for number in numbers)
    counts = about.by.count(about.tensor, exponent, about.bins).tolist()
    found = {index - about.bins // 2: count for index, count in enumerate(counts) if count}
    return None if found == wanted else f"at 2^{exponent} the counts are {found}, not {wanted}"


def _bins_pair_up(about: Binned) -> str | None:
    if about.exponent == NO_EXPONENT:
        return None
    fine = observers.bin_counts(about.tensor, about.least, about.bins)
    wide = observers.bin_counts(about.tensor, about.exponent, about.bins)
    made = about.by.coarsen(fine, about.coarser)
    return None if torch.equal(made, wide) else f"{made.tolist()} instead of {wide.tolist()}"


BIN_LAWS: tuple[Law[Binned], ...] = (
    Law("bins_are_floors", "a bin is floor(x · 2^-k)", _bins_are_floors),
    Law("bins_pair_up", "finer bins become coarser ones in pairs", _bins_pair_up),
)
"""Laws of histograms."""
