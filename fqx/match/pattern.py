"""Pictures of program fragments.

A pattern is a value: what an argument of a node has to look like, and under which name it is
handed to the rule. `op("relu")(op("conv2d")(x, w, ...).named("conv").alone())` reads: a relu of a
convolution that nobody else reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import TypeAlias

from fqx.ir.arg import Arg
from fqx.ir.names import OpName
from fqx.ir.node import NO_ATTRS, Node
from fqx.kit.frozen import FrozenMap


@dataclass(frozen=True, slots=True)
class Anything:
    """Any argument at all; bound under `name` unless that is empty."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class Exactly:
    """This very argument, by canonical encoding."""

    value: Arg


@dataclass(frozen=True, slots=True)
class Fits:
    """An argument that passes a test; `what` completes the sentence "it is not …"."""

    what: str
    test: Callable[[Arg], bool]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight of the graph; `lonely` where nothing else may read or hold it."""

    name: str = ""
    lonely: bool = False

    def alone(self) -> Stored:
        """No other node reads it, it has no second path and no update."""
        return replace(self, lonely=True)


@dataclass(frozen=True, slots=True)
class Each:
    """A tuple of arguments, every one of them like `item`; bound as a whole under `name`.

    A name inside `item` has to be bound to the same in each. The first way an item fits is kept.
    """

    item: Pattern
    name: str = ""


@dataclass(frozen=True, slots=True)
class OneOf:
    """The first of the patterns that fits; later ones are tried where the whole fails."""

    choices: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition on a node; `why` says what it means that it fails."""

    why: str
    test: Callable[[Node], bool]


@dataclass(frozen=True, slots=True)
class Call:
    """A node: its op is one of `ops` (any, if that is empty), its operands look like `args`.

    `args` None leaves the operands open; `open_ended` allows more operands than there are patterns.
    `attrs` have to be there and equal. `lonely`: the value has exactly one use. `swaps`: the first
    two operands may stand the other way round.
    """

    ops: frozenset[OpName]
    args: tuple[Pattern, ...] | None = None
    open_ended: bool = False
    attrs: FrozenMap[Arg] = NO_ATTRS
    guards: tuple[Guard, ...] = ()
    name: str = ""
    lonely: bool = False
    swaps: bool = False

    def __call__(self, *args: Pattern | Arg | EllipsisType) -> Call:
        """With these operands; a literal stands for itself, a last `...` for all further ones."""
        open_ended = bool(args) and args[-1] is ...
        given = args[:-1] if open_ended else args
        return replace(self, args=tuple(_pattern(arg) for arg in given), open_ended=open_ended)

    def named(self, name: str) -> Call:
        """Bound under `name`."""
        return replace(self, name=name)

    def alone(self) -> Call:
        """With exactly one use: in the pattern."""
        return replace(self, lonely=True)

    def commuting(self) -> Call:
        """With the first two operands in either order."""
        return replace(self, swaps=True)

    def having(self, **attrs: Arg) -> Call:
        """With these attributes."""
        return replace(self, attrs=FrozenMap({**dict(self.attrs.items()), **attrs}))

    def where(self, why: str, test: Callable[[Node], bool]) -> Call:
        """Only nodes that pass the test; `why` is what a miss says."""
        return replace(self, guards=(*self.guards, Guard(why, test)))


Pattern: TypeAlias = Anything | Exactly | Fits | Stored | Each | OneOf | Call


def op(*names: str) -> Call:
    """A node of one of these ops; of any op without names."""
    return Call(frozenset(OpName(name) for name in names))


def anything(name: str = "") -> Anything:
    """Any argument."""
    return Anything(name)


def stored(name: str = "") -> Stored:
    """A weight."""
    return Stored(name)


def number(name: str = "") -> Fits:
    """An int or float literal."""
    return Fits("a number", _is_number, name)


def either(*choices: Pattern | Arg) -> OneOf:
    """One of these; literals stand for themselves."""
    return OneOf(tuple(_pattern(choice) for choice in choices))


def optional(pattern: Pattern) -> OneOf:
    """This, or an absent operand."""
    return either(pattern, None)


def each(item: Pattern, name: str = "") -> Each:
    """A tuple of any length, every item like this."""
    return Each(item, name)


def _is_number(arg: Arg) -> bool:
    return isinstance(arg, int | float) and not isinstance(arg, bool)


def _pattern(arg: Pattern | Arg | EllipsisType) -> Pattern:
    if isinstance(arg, Anything | Exactly | Fits | Stored | Each | OneOf | Call):
        return arg
    if isinstance(arg, EllipsisType):
        raise TypeError("`...` stands last, for all further operands")
    return Exactly(arg)
