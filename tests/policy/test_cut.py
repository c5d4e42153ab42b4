"""Small programs whose cheapest labels can be seen by looking."""

from __future__ import annotations

from fqx.policy.cut import Choices, Problem, Shared, cheapest


def test_a_unit_between_integers_stays_int8_where_converting_costs_more_than_it_saves() -> None:
    units = (Choices(1, 50), Choices(9, 5), Choices(1, 50))
    values = (Shared(0, (1,), 3, 3), Shared(1, (2,), 3, 3))
    assert cheapest(Problem(units, values)).floating == (False, False, False)


def test_a_unit_between_integers_is_float_where_it_saves_more() -> None:
    units = (Choices(1, 50), Choices(19, 5), Choices(1, 50))
    values = (Shared(0, (1,), 3, 3), Shared(1, (2,), 3, 3))
    assert cheapest(Problem(units, values)).floating == (False, True, False)


def test_one_dequantize_serves_all_float_readers() -> None:
    # each reader alone would not pay for it
    units = (Choices(1, 50), Choices(9, 5), Choices(9, 5), Choices(9, 5))
    shared = Problem(units, (Shared(0, (1, 2, 3), 10, 10),))
    assert cheapest(shared).floating == (False, True, True, True)
    alone = Problem(units, tuple(Shared(0, (reader,), 10, 10) for reader in (1, 2, 3)))
    assert cheapest(alone).floating == (False, False, False, False)


def test_a_value_between_float_units_is_not_rounded_but_clamped() -> None:
    units = (Choices(20, 10), Choices(20, 10))
    assert cheapest(Problem(units, (Shared(0, (1,), 9, 9, 9),))).flow == 29
    assert cheapest(Problem(units, (Shared(0, (1,), 9, 9, 0),))).flow == 20


def test_equal_costs_stay_int8() -> None:
    assert cheapest(Problem((Choices(5, 5),), ())).floating == (False,)
