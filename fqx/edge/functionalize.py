"""In-place writes become values: storages, the views into them, and who reads what when.

Every tensor of the traced program is a `Handle`: a chain of views on a `Root`, the owner of a
storage. A write gives the root a new value and moves its generation on; a handle of an older
generation replays its chain when it is read next. A write through a view is carried outward, view
by view, to the root.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from fqx.edge.locate import keep_whole
from fqx.ir.arg import Arg, NodeRef, Ref, map_refs
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import OpName, Path
from fqx.ir.node import Node
from fqx.ir.signature import TensorType, Type
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success


class Owner(Enum):
    """Whose storage a root is."""

    PROGRAM = "made by the program"
    INPUT = "an input of the caller"
    STATE = "a parameter, buffer or attribute of the model"


@dataclass(slots=True)
class Root:
    """A storage: its current value, and how often it was written.

    `others` are storages the tracer saw that are this one when the model runs.
    """

    value: Arg
    type: Type
    storage: int | None
    owner: Owner
    name: str = ""
    generation: int = 0
    written: str | None = None
    others: set[int] = field(default_factory=set)
    replayed: dict[tuple[int, ...], tuple[Arg, Type]] = field(default_factory=dict)

    def owns(self, storage: int | None) -> bool:
        """Whether a tensor of that storage shares its elements with this root."""
        return storage is not None and (storage == self.storage or storage in self.others)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One step from a value to a view of it: the calls, and the types on both sides.

    `nodes` read the value by the reference `before`; the last one gives the view.
    """

    nodes: tuple[Node, ...]
    before: Arg
    type_before: Type
    type_after: Type
    source: str | None
    offset: int | None = None


@dataclass(slots=True)
class Handle:
    """A tensor of the traced program."""

    root: Root
    chain: tuple[View, ...]
    value: Arg
    type: Type
    generation: int = 0


Emit = Callable[[OpName, tuple[Arg, ...], FrozenMap[Arg], Type], Arg]
"""Adds a call made by functionalization and gives the reference to its value."""


def fresh(
    value: Arg,
    kind: Type,
    storage: int | None,
    owner: Owner = Owner.PROGRAM,
    name: str = "",
) -> Handle:
    """A handle on a storage of its own; `storage` is the tracer's identity of it."""
    return Handle(Root(value, kind, storage, owner, name), (), value, kind)


def viewed(of: Handle, view: View, value: Arg) -> Handle:
    """A handle on a view of another handle's storage, just read."""
    return Handle(of.root, (*of.chain, view), value, view.type_after, of.root.generation)


def alias(of: Handle) -> Handle:
    """Another tensor object with the same elements in the same storage."""
    return Handle(of.root, of.chain, of.value, of.type, of.generation)


def read(handle: Handle, emit: Emit) -> Arg:
    """The handle's value now; views of a storage written since are taken again."""
    root = handle.root
    if handle.generation != root.generation:
        handle.value = _along(handle, len(handle.chain), emit)[0]
        handle.generation = root.generation
    return handle.value


def write(handle: Handle, value: Arg, emit: Emit, source: str | None) -> Result[None, Fault]:
    """Give the handle's elements a new value; whatever shares them reads the new one from now on.

    Fails with UNFUNCTIONAL_WRITE, naming both lines, where a view cannot be written back through.
    """
    root = handle.root
    current, put = value, {_key(handle, len(handle.chain)): (value, handle.type)}
    for index in reversed(range(len(handle.chain))):
        view = handle.chain[index]
        base, kind = _along(handle, index, emit)
        back = _back(view, base, kind, current, emit)
        if back is None:
            return Failure(_unwritable(view, source))
        current = back
        put[_key(handle, index)] = (current, kind)
    root.value, root.written = current, source
    root.generation += 1
    root.replayed = put
    handle.value, handle.generation = value, root.generation
    return Success(None)


def _key(handle: Handle, count: int) -> tuple[int, ...]:
    return tuple(id(view) for view in handle.chain[:count])


def _along(handle: Handle, count: int, emit: Emit) -> tuple[Arg, Type]:
    root = handle.root
    value, kind = root.value, root.type
    for index in range(count):
        key = _key(handle, index + 1)
        known = root.replayed.get(key)
        if known is None:
            view = handle.chain[index]
            known = _replay(view, value, emit), view.type_after
            root.replayed[key] = known
        value, kind = known
    return value, kind


def _replay(view: View, value: Arg, emit: Emit) -> Arg:
    made: dict[Arg, Arg] = {view.before: value}

    def change(ref: Ref) -> Arg:
        return made.get(ref, ref)

    result = value
    for node in view.nodes:
        args = tuple(map_refs(arg, change) for arg in node.args)
        last = node is view.nodes[-1]
        result = emit(node.op, args, node.attrs, view.type_after if last else view.type_before)
        made[NodeRef(node.id)] = result
    return result


def _back(view: View, base: Arg, kind: Type, value: Arg, emit: Emit) -> Arg | None:
    """The base with its view replaced by `value`; None where that cannot be said."""
    last = view.nodes[-1]
    attrs = last.attrs

    def call(op: str, args: tuple[Arg, ...], **named: Arg) -> Arg:
        return emit(OpName(op), args, FrozenMap(named), kind)

    match last.op:
        case "slice":
            _, start, stop = last.args
            return call(
                "slice_scatter", (base, value, start, stop), dim=attrs["dim"], step=attrs["step"]
            )
        case "select":
            return call("select_scatter", (base, value, last.args[1]), dim=attrs["dim"])
        case "permute":
            return call("permute", (value,), dims=_inverse(attrs["dims"]))
        case "unsqueeze":
            return call("squeeze", (value,), dims=(attrs["dim"],))
        case "contiguous" | "to" | "dropout" | "feature_dropout" | "alpha_dropout":
            return value
        case "reshape" | "flatten" | "unflatten" | "squeeze":
            shape = _static_shape(kind)
            return None if shape is None else call("reshape", (value, shape))
        case "getitem" if len(view.nodes) == 2:
            return _part_back(view, base, value, call)
        case "aten.diagonal.default":
            return _diagonal_back(last, base, kind, value, emit)
        case _:
            return None


def _part_back(view: View, base: Arg, value: Arg, call: Callable[..., Arg]) -> Arg | None:
    container, index = view.nodes[0], view.nodes[1].attrs["index"]
    dim = container.attrs.get("dim")
    if container.op == "unbind":
        return call("select_scatter", (base, value, index), dim=dim)
    kind = view.type_after
    dims = kind.dims if isinstance(kind, TensorType) else None
    if container.op not in ("chunk", "split") or not isinstance(dim, int) or dims is None:
        return None
    size = dims[dim]
    if view.offset is None or not isinstance(size, int):
        return None
    return call("slice_scatter", (base, value, view.offset, view.offset + size), dim=dim, step=1)


def _diagonal_back(last: Node, base: Arg, kind: Type, value: Arg, emit: Emit) -> Arg:
    op = OpName("aten.diagonal_scatter.default")
    return emit(op, (base, value, *last.args[1:]), FrozenMap(), kind)


def _inverse(dims: Arg) -> Arg:
    order = [dim for dim in dims if isinstance(dim, int)] if isinstance(dims, tuple) else []
    return tuple(order.index(axis) for axis in range(len(order)))


def _static_shape(kind: Type) -> tuple[Arg, ...] | None:
    """The shape as literals, with -1 for the one size that may vary."""
    dims = kind.dims if isinstance(kind, TensorType) else None
    if dims is None or sum(not isinstance(dim, int) for dim in dims) > 1:
        return None
    return tuple(dim if isinstance(dim, int) else -1 for dim in dims)


def _unwritable(view: View, source: str | None) -> Fault:
    made = view.nodes[-1].op
    return Fault(
        FaultKind.UNFUNCTIONAL_WRITE,
        f"the write at {source or 'an unknown line'} goes through the view `{made}` made at"
        f" {view.source or 'an unknown line'}, which cannot be written back through",
        "write to a copy (.clone()) or compute the new value with torch.where or torch.cat",
        source=source,
    )


def state_fault(root: Root, source: str | None, module: str) -> Fault:
    """The program writes into the model's own state."""
    return Fault(
        FaultKind.UNFUNCTIONAL_WRITE,
        f"the write at {source or 'an unknown line'} changes {root.name!r}, which the model keeps"
        " from call to call; a graph keeps nothing",
        f"return the new value instead, or {keep_whole(module)}",
        module=Path(module),
        source=source,
    )
