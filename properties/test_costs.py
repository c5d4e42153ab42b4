"""The cut that chooses between integers and float costs least, of all labels there are."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from fqx.policy.cut import Choices, Problem, Shared, cheapest, price

_PRICES = st.integers(0, 60)


@st.composite
def problems(draw: st.DrawFn, most: int = 10) -> Problem:
    """Up to ten units, some of which run in one way only, and values between any of them."""
    count = draw(st.integers(1, most))
    units = tuple(
        Choices(*draw(st.sampled_from([(one, two), (one, two), (None, two), (one, None)])))
        for one, two in draw(st.lists(st.tuples(_PRICES, _PRICES), min_size=count, max_size=count))
    )
    places = st.integers(0, count - 1)
    values = []
    for _ in range(draw(st.integers(0, 2 * count))):
        maker, up = draw(places), draw(_PRICES)
        readers = tuple(reader for reader in draw(st.lists(places, max_size=4)) if reader != maker)
        values.append(Shared(maker, readers, up, draw(_PRICES), draw(st.integers(0, up))))
    return Problem(units, tuple(values))


@given(problems())
def test_the_cut_equals_brute_force(problem: Problem) -> None:
    found = cheapest(problem)
    prices = [
        price(problem, labels) for labels in product((False, True), repeat=len(problem.units))
    ]
    assert price(problem, found.floating) == min(cost for cost in prices if cost is not None)


@given(problems(most=40))
def test_the_price_of_the_labels_is_the_flow(problem: Problem) -> None:
    found = cheapest(problem)
    assert price(problem, found.floating) == found.flow


@given(problems(most=40))
def test_the_cut_is_no_dearer_than_all_float_or_all_int8(problem: Problem) -> None:
    best = cheapest(problem).flow
    for label in (False, True):
        cost = price(problem, (label,) * len(problem.units))
        assert cost is None or best <= cost


@given(problems(most=40))
def test_the_cut_is_the_same_again(problem: Problem) -> None:
    assert cheapest(problem) == cheapest(Problem(problem.units, problem.values))


@given(problems())
def test_of_equal_cuts_the_one_with_most_integers_is_taken(problem: Problem) -> None:
    found = cheapest(problem)
    equal = (
        labels
        for labels in product((False, True), repeat=len(problem.units))
        if price(problem, labels) == found.flow
    )
    assert sum(found.floating) == min(sum(labels) for labels in equal)
