"""The only door to `returns`: a value or a fault, read with methods.

Read a `Result` with `.map`, `.bind`, `.alt`, `.lash`, `.value_or` or `fold`; pattern matching on
`Success(x)` loses the type of `x` under mypy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from returns.result import Failure, Result, Success

A = TypeVar("A")
B = TypeVar("B")
E = TypeVar("E")
F = TypeVar("F")

__all__ = ["Failure", "Result", "Success", "attempt", "ensure", "fold", "gather", "is_success"]


def fold(result: Result[A, E], success: Callable[[A], B], failure: Callable[[E], B]) -> B:
    """Leave the track: one function for the value, one for the fault, one answer."""
    if isinstance(result, Success):
        return success(result.unwrap())
    return failure(result.failure())


def is_success(result: Result[A, E]) -> bool:
    """Whether the result holds a value."""
    return fold(result, lambda _: True, lambda _: False)


def attempt(
    call: Callable[[], A],
    failure: Callable[[Exception], F],
    catch: tuple[type[Exception], ...] = (Exception,),
) -> Result[A, F]:
    """Run `call`; an exception of a class in `catch` becomes `failure(exception)`."""
    try:
        return Success(call())
    except catch as error:
        return Failure(failure(error))


def ensure(condition: bool, fault: Callable[[], E]) -> Result[None, E]:
    """`Success(None)` if the condition holds, else the fault."""
    return Success(None) if condition else Failure(fault())


def gather(results: Iterable[Result[A, E]]) -> Result[tuple[A, ...], E]:
    """All values in order, or the first fault; results behind the first fault are not drawn."""
    values: list[A] = []
    for result in results:
        if not isinstance(result, Success):
            return Failure(result.failure())
        values.append(result.unwrap())
    return Success(tuple(values))
