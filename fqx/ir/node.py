"""A node: one call of one operator, with one value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fqx.ir.arg import (
    Arg,
    ArgPath,
    Json,
    NodeRef,
    Ref,
    WeightRef,
    canonical,
    encode_arg,
    map_refs,
    refs_in,
)
from fqx.ir.names import NodeId, OpName, Path
from fqx.kit.frozen import FrozenMap

NO_ATTRS: FrozenMap[Arg] = FrozenMap()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a node comes from: module scope (outermost first), call index, source line, parents.

    `scope` holds (module path, class name) pairs, `call` counts the calls of the innermost module,
    `source` is `file:line` of the user's innermost frame, `parents` the nodes a pass made it of.
    Origins take no part in equality or digests.
    """

    scope: tuple[tuple[Path, str], ...] = ()
    call: int = 0
    source: str | None = None
    parents: tuple[NodeId, ...] = ()
    note: str = ""

    @property
    def module(self) -> Path:
        """Path of the innermost module, empty at the root."""
        return self.scope[-1][0] if self.scope else Path("")

    @property
    def module_type(self) -> str:
        """Class name of the innermost module, empty if unknown."""
        return self.scope[-1][1] if self.scope else ""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One call: `args` are the operands in schema order, `attrs` the literal parameters by name."""

    id: NodeId
    op: OpName
    args: tuple[Arg, ...] = ()
    attrs: FrozenMap[Arg] = NO_ATTRS
    origin: Origin = Origin()
    _code: list[str] = field(default_factory=list, init=False, repr=False)
    _refs: list[tuple[tuple[ArgPath, Ref], ...]] = field(
        default_factory=list, init=False, repr=False
    )

    @property
    def code(self) -> str:
        """Canonical encoding of id, op, args and attrs; computed once."""
        if not self._code:
            self._code.append(canonical(self.to_json()))
        return self._code[0]

    def to_json(self) -> Json:
        """The node without its origin."""
        return {
            "id": self.id,
            "op": self.op,
            "args": [encode_arg(arg) for arg in self.args],
            "attrs": {name: encode_arg(value) for name, value in self.attrs.items()},
        }

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Node) and self.code == other.code)

    def __hash__(self) -> int:
        return hash(self.code)

    def refs(self) -> Iterator[tuple[ArgPath, Ref]]:
        """References in `args` with their places (attrs hold none); collected once."""
        if not self._refs:
            self._refs.append(tuple(refs_in(self.args)))
        return iter(self._refs[0])

    def inputs(self) -> tuple[NodeId, ...]:
        """The nodes this node reads, in order, with repetitions."""
        return tuple(ref.id for _, ref in self.refs() if isinstance(ref, NodeRef))

    def weights(self) -> tuple[Path, ...]:
        """The weights this node reads, in order, with repetitions."""
        return tuple(ref.path for _, ref in self.refs() if isinstance(ref, WeightRef))

    def with_args(self, args: tuple[Arg, ...]) -> Node:
        """With other operands; the same object if they are the same objects."""
        kept = len(args) == len(self.args) and all(
            new is old for new, old in zip(args, self.args, strict=True)
        )
        return self if kept else Node(self.id, self.op, args, self.attrs, self.origin)

    def map_refs(self, change: Callable[[Ref], Arg]) -> Node:
        """With every reference replaced; the same object if none changed."""
        return self.with_args(tuple(map_refs(arg, change) for arg in self.args))
