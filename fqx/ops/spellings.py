"""From torch's spellings to the catalogue: aten overload and bound arguments to canonical calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fqx.ir.arg import Arg, NodeRef
from fqx.ir.names import NodeId, OpName
from fqx.ir.signature import Type
from fqx.kit.frozen import FrozenMap


@dataclass(frozen=True, slots=True)
class Canonical:
    """One canonical call: the op, its operands in schema order, all its attributes.

    `item` set: the value is that item of the aten call's tuple of results; a program that uses
    another item keeps the call foreign. `NodeRef("%k")` in `args` is the value of the k-th call of
    the same translation.
    """

    op: OpName
    args: tuple[Arg, ...]
    attrs: FrozenMap[Arg]
    item: int | None = None


@dataclass(frozen=True, slots=True)
class Same:
    """The call gives this argument as it is (detach, alias); None: it has no value (asserts)."""

    value: Arg


Translation: TypeAlias = Canonical | Same | tuple[Canonical, ...] | None
"""One call, none, several in order (the last one's value counts), or None: foreign."""


def local(index: int) -> NodeRef:
    """The value of the `index`-th call of the same translation."""
    return NodeRef(NodeId(f"%{index}"))


def canonical_call(name: str, bound: Mapping[str, Arg], types: Mapping[str, Type]) -> Translation:
    """The canonical form of the call of aten overload `name` (`aten.relu.default`).

    `bound` holds every argument of the aten schema by its schema name, defaults filled in, and
    `types` the types of those that hold references (a TupleType for lists). In-place twins are
    given by their own name (`aten.relu_.default`) and give the functional call.
    """
    del name, bound, types
    return None
