"""A bound aten call, and what spellings share when they make a canonical call of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef, refs_in
from fqx.ir.names import NodeId, OpName
from fqx.ir.signature import Dim, TensorType, TupleType, Type
from fqx.kit.frozen import FrozenMap
from fqx.ops.catalogue import OPS, make_node
from fqx.ops.schema import Trait


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
    """The call gives this argument as it is (detach, alias); None: it has no value (asserts).

    `fresh`: in torch the value never shares the argument's storage (clone).
    """

    value: Arg
    fresh: bool = False


Translation: TypeAlias = Canonical | Same | tuple[Canonical, ...] | None
"""One call, none, several in order (the last one's value counts), or None: foreign."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A call of an aten overload: every argument by schema name, and the types of references."""

    args: Mapping[str, Arg]
    types: Mapping[str, Type]

    def __getitem__(self, name: str) -> Arg:
        return self.args[name]

    def tensor(self, name: str) -> TensorType | None:
        """The type of a tensor argument, or of the first tensor of a list."""
        found = self.types.get(name)
        first = next(iter(found.items), None) if isinstance(found, TupleType) else found
        return first if isinstance(first, TensorType) else None

    def dims(self, name: str) -> tuple[Dim, ...] | None:
        """The dims of a tensor argument; None where the rank is unknown."""
        found = self.tensor(name)
        return found.dims if found is not None else None

    def rank(self, name: str) -> int | None:
        """The number of axes of a tensor argument."""
        dims = self.dims(name)
        return None if dims is None else len(dims)

    def dtype(self, name: str) -> DType | None:
        """The element type of a tensor argument."""
        found = self.tensor(name)
        return found.dtype if found is not None else None

    def axis(self, value: Arg, name: str) -> int | None:
        """An axis of a tensor argument as a non-negative int."""
        rank = self.rank(name)
        if not isinstance(value, int) or rank is None:
            return None
        return value + max(rank, 1) if value < 0 else value


Translate: TypeAlias = Callable[[Bound], Translation]
"""A spelling: from a bound call to its canonical form."""


def local(index: int) -> NodeRef:
    """The value of the `index`-th call of the same translation."""
    return NodeRef(NodeId(f"%{index}"))


def call(
    op: str, rank: int | None = None, item: int | None = None, /, **given: Arg
) -> Canonical | None:
    """A call of a row in normal form; None (foreign) if an attribute would hold a reference.

    `rank` is that of the first operand. Axes become non-negative, windows n-tuples.
    """
    node = make_node(op, NodeId("%"), **given)
    attrs = {name: _normal(op, name, value, rank) for name, value in node.attrs.items()}
    if attrs.get("stride") == () and "kernel_size" in attrs:
        attrs["stride"] = attrs["kernel_size"]
    if any(True for value in attrs.values() for _ in refs_in(value)):
        return None
    return Canonical(node.op, node.args, FrozenMap(attrs), item)


def calls(*made: Canonical | None) -> tuple[Canonical, ...] | None:
    """Several calls in order; None (foreign) if one of them is."""
    kept = tuple(one for one in made if one is not None)
    return kept if len(kept) == len(made) else None


_AXES: Final = ("dim", "dims", "start_dim", "end_dim")
_WINDOWS: Final = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")


def _normal(op: str, name: str, value: Arg, rank: int | None) -> Arg:
    if name in _WINDOWS and op[-2:] in ("1d", "2d", "3d"):
        return _window(value, int(op[-2]))
    if name not in _AXES:
        return value
    reduces = Trait.REDUCTION in OPS[OpName(op)].traits and op != "argmax"
    if reduces and (value == () or isinstance(value, int)):
        value = (value,) if isinstance(value, int) else None
    axes = None if rank is None else rank + 1 if op in ("stack", "unsqueeze") else max(rank, 1)
    return _non_negative(value, axes)


def _window(value: Arg, count: int) -> Arg:
    items = value if isinstance(value, tuple) else (value,)
    return items * count if len(items) == 1 else items


def _non_negative(value: Arg, axes: int | None) -> Arg:
    if isinstance(value, tuple):
        return tuple(_non_negative(item, axes) for item in value)
    return value + axes if isinstance(value, int) and axes is not None and value < 0 else value


def sizes_of(bound: Bound, name: str) -> tuple[tuple[Canonical, ...], tuple[Arg, ...]] | None:
    """The shape of a tensor argument: `size` calls for what is not static, and the shape itself."""
    dims, ref = bound.dims(name), bound[name]
    if dims is None or not isinstance(ref, NodeRef | WeightRef):
        return None
    made: list[Canonical] = []
    shape: list[Arg] = []
    for index, dim in enumerate(dims):
        size = None if isinstance(dim, int) else call("size", None, x=ref, dim=index)
        shape.append(dim if isinstance(dim, int) else local(len(made)))
        made += [] if size is None else [size]
    return tuple(made), tuple(shape)
