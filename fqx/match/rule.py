"""Rules: a picture of what is there, and a function that makes what shall be there instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from fqx.ir.arg import Arg
from fqx.ir.fault import Fault
from fqx.ir.names import OpName, Path, RuleName
from fqx.ir.node import Node
from fqx.ir.weight import Weight
from fqx.match.pattern import Call
from fqx.match.search import Match, Miss


@dataclass(frozen=True, slots=True)
class Change:
    """What stands for a match from now on.

    `value` takes the place of the root's value wherever it is used; it does not read the root,
    unless it is the root (in a new form). `nodes` are new nodes, put
    before the root in this order, or covered nodes in a new form under their old id. `weights` are
    new or changed weights. Covered nodes that nobody uses any more go, and so do the weights that
    only they read; `drops` are weights that go besides, where they are there and unused.
    """

    value: Arg
    nodes: tuple[Node, ...] = ()
    weights: Mapping[Path, Weight] = field(default_factory=dict)
    drops: tuple[Path, ...] = ()


Made: TypeAlias = Change | Miss | Fault
"""A rule's answer to a match: the change, why it does not apply after all, or what went wrong."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rewrite: nodes that look like `find` become what `make` says.

    `make` is a pure function of the match. What it gives must not look like `find` again forever:
    the engine goes on until nothing changes, or the fuel is spent.
    """

    name: RuleName
    find: Call
    make: Callable[[Match], Made]


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules in order of preference; `+` puts two lists behind each other, `Rules()` is the unit."""

    listed: tuple[Rule, ...] = ()

    def __add__(self, other: Rules) -> Rules:
        """These rules, then the other's."""
        return Rules((*self.listed, *other.listed))

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.listed)

    def __len__(self) -> int:
        return len(self.listed)


def rules(*listed: Rule) -> Rules:
    """These rules, in this order."""
    return Rules(listed)


@dataclass(frozen=True, slots=True)
class Index:
    """The rules by the op of their root, each list in order of preference."""

    by_op: Mapping[OpName, tuple[Rule, ...]]
    of_any_op: tuple[Rule, ...]

    def of(self, name: OpName) -> tuple[Rule, ...]:
        """The rules that may apply to a node of this op."""
        return self.by_op.get(name, self.of_any_op)


def index_of(listed: Rules) -> Index:
    """Look rules up by op."""
    names = sorted({name for rule in listed for name in rule.find.ops})
    return Index(
        {
            name: tuple(rule for rule in listed if not rule.find.ops or name in rule.find.ops)
            for name in names
        },
        tuple(rule for rule in listed if not rule.find.ops),
    )
