"""Laws of observers: for one multiset of tensors one state, and bins that are what they say."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fqx.ir.fault import FaultKind
from fqx.num import observers
from fqx.num.observers import (
    State,
    bin_counts,
    empty,
    exponent_for,
    merge,
    state_names,
    state_of,
)
from fqx.num.qparams import qparams_of, qparams_of_all
from fqx.num.scheme import ObserverSpec, QSpec, histogram, uint8_affine
from fqx.testing import observations
from fqx.testing.laws import broken
from fqx.testing.observations import BIN_LAWS, OBSERVER_LAWS, Binned, Observed

BINS = 64
MONOIDS = (
    ObserverSpec("minmax"),
    ObserverSpec("channel_minmax", axis=-1),
    ObserverSpec("histogram", bins=BINS),
    ObserverSpec("histogram", axis=0, bins=BINS),
    ObserverSpec("fixed", low=-1.0, high=2.0),
)

# all magnitudes, subnormal and huge ones, and both zeros
WILD = st.floats(width=32, allow_nan=False, allow_infinity=False)
TAME = st.floats(-8.0, 8.0, width=32)
WIDE = st.floats(allow_nan=False, allow_infinity=False)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@st.composite
def tensors(draw: st.DrawFn, values: st.SearchStrategy[float] = WILD) -> torch.Tensor:
    """Two rows of three channels in one of torch's float types and one of two layouts."""
    numbers = draw(st.lists(values, min_size=6, max_size=6))
    dtype = draw(st.sampled_from(DTYPES))
    limit = torch.finfo(dtype).max
    made = torch.tensor(numbers, dtype=torch.float64).clamp(-limit, limit).to(dtype)
    rows = made.reshape(2, 3)
    return rows if draw(st.booleans()) else rows.t().contiguous().t()


SEEN = st.one_of(tensors(), tensors(TAME), tensors(WIDE))
LISTS = st.lists(SEEN, min_size=1, max_size=6)


def folded(spec: ObserverSpec, seen: list[torch.Tensor]) -> State:
    return observations.folded(spec, tuple(seen))


def merged(spec: ObserverSpec, states: list[State], data: st.DataObject) -> State:
    """Merge in a drawn tree until one is left."""
    left = list(states)
    while len(left) > 1:
        one = left.pop(data.draw(st.integers(0, len(left) - 1)))
        two = left.pop(data.draw(st.integers(0, len(left) - 1)))
        left.append(merge(spec, one, two).unwrap())
    return left[0]


@pytest.mark.parametrize("spec", MONOIDS, ids=str)
@given(data=st.data(), seen=LISTS)
def test_state_depends_on_the_multiset_alone(
    spec: ObserverSpec, data: st.DataObject, seen: list[torch.Tensor]
) -> None:
    whole = folded(spec, seen)
    shuffled = data.draw(st.permutations(seen))
    assert folded(spec, list(shuffled)) == whole
    cut = data.draw(st.integers(0, len(seen)))
    parts = [folded(spec, list(shuffled[:cut])), folded(spec, list(shuffled[cut:]))]
    parts += [empty(spec)] * data.draw(st.integers(0, 2))
    assert merged(spec, parts, data) == whole
    singles = [folded(spec, [tensor]) for tensor in seen]
    assert merged(spec, singles, data) == whole


@pytest.mark.parametrize("spec", MONOIDS, ids=str)
@given(seen=st.tuples(SEEN, SEEN, SEEN))
def test_observers_obey_the_laws(
    spec: ObserverSpec, seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    found = broken(OBSERVER_LAWS, Observed(spec, seen))
    assert not found, "\n".join(map(str, found))


@given(SEEN, st.integers(0, 40))
def test_histograms_obey_the_laws(tensor: torch.Tensor, coarser: int) -> None:
    found = broken(BIN_LAWS, Binned(tensor, BINS, coarser))
    assert not found, "\n".join(map(str, found))


@given(tensors(WIDE))
def test_cutting_a_tensor_changes_nothing(tensor: torch.Tensor) -> None:
    spec = ObserverSpec("histogram", bins=BINS)
    assert folded(spec, [tensor]) == folded(spec, [tensor[:1], tensor[1:]])


@given(st.floats(min_value=5e-324, allow_infinity=False, allow_nan=False))
def test_the_exponent_is_the_least_that_holds_the_largest(largest: float) -> None:
    exponent = exponent_for(largest, BINS)
    assert Fraction(BINS, 4) <= Fraction(largest) * Fraction(2) ** -exponent < Fraction(BINS, 2)


@pytest.mark.parametrize("size", [(1 << 15) - 1, 1 << 15, (1 << 18) + 77])
def test_every_way_of_counting_counts_alike(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    tensor = torch.randn(size, generator=generator).relu_() - 0.25
    exponent = exponent_for(float(tensor.abs().max()), 4096)
    index = torch.floor(tensor.double() * 2.0**-exponent).long() + 2048
    wanted = torch.bincount(index, minlength=4096)
    assert torch.equal(bin_counts(tensor, exponent, 4096), wanted)
    assert torch.equal(bin_counts(tensor.double(), exponent, 4096), wanted)


@given(data=st.data(), seen=LISTS)
def test_qparams_do_not_depend_on_the_order(data: st.DataObject, seen: list[torch.Tensor]) -> None:
    for search in ("minmax", "mse", "entropy", "percentile"):
        spec = uint8_affine(histogram(search, bins=BINS))
        shuffled = list(data.draw(st.permutations(seen)))
        one = qparams_of(spec, folded(spec.observer, seen)).unwrap()
        assert qparams_of(spec, folded(spec.observer, shuffled)).unwrap() == one


@given(st.lists(tensors(TAME), min_size=1, max_size=20))
def test_qparams_do_not_depend_on_the_company(seen: list[torch.Tensor]) -> None:
    for search in ("mse", "entropy", "percentile"):
        asked: list[tuple[QSpec, State]] = []
        for at, tensor in enumerate(seen):
            spec = uint8_affine(histogram(search, bins=BINS), qmax=255 if at % 3 else 127)
            asked.append((spec, folded(spec.observer, [tensor])))
        together = [found.unwrap() for found in qparams_of_all(asked)]
        assert together == [qparams_of(spec, state).unwrap() for spec, state in asked]


@given(LISTS)
def test_a_moving_average_is_an_ordered_scan(seen: list[torch.Tensor]) -> None:
    spec = ObserverSpec("moving_average", rate=0.25)
    assert not observers.is_monoid(spec)
    low, high = float(seen[0].min()), float(seen[0].max())
    for tensor in seen[1:]:
        low += 0.25 * (float(tensor.min()) - low)
        high += 0.25 * (float(tensor.max()) - high)
    state = folded(spec, seen)
    assert state.range == (low + 0.0, high + 0.0)
    assert merge(spec, state, state).failure().kind is FaultKind.BAD_RECIPE


@pytest.mark.parametrize("spec", MONOIDS, ids=str)
@given(seen=LISTS)
def test_a_state_is_its_tensors(spec: ObserverSpec, seen: list[torch.Tensor]) -> None:
    state = folded(spec, seen)
    held = state.tensors()
    assert state_of(held) == state
    assert state_names(spec) in (tuple(held), ())
