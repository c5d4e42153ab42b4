"""Trees of containers: taking a call's arguments apart, building its outputs, fitting a call.

Knows tuples, lists, dicts, namedtuples and dataclasses (mappings that are dataclasses, as
transformers' outputs, included). Classes are named `module:Class` and looked up among the modules
already imported; nothing is imported because a file names it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fqx.ir.arg import Arg, DType, canonical, same
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.signature import (
    Dim,
    Input,
    Poly,
    Signature,
    TensorType,
    Tree,
    decode_tree,
    encode_tree,
    tree_leaves,
)
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success, fold, gather

__all__ = [
    "build",
    "call_leaf",
    "fit_call",
    "flatten",
    "leaf_arguments",
    "leaf_call",
    "leaf_names",
    "leaf_results",
    "pairs",
]

_ORDERED = "collections:OrderedDict"


@dataclass(frozen=True, slots=True)
class Flat:
    """A value taken apart: leaves left to right, and the tree whose leaves are their indices."""

    tree: Tree
    leaves: tuple[object, ...]


def flatten(value: object) -> Flat:
    """Take a value apart; whatever is no known container is a leaf (None too)."""
    leaves: list[object] = []
    tree = _taken(value, leaves)
    return Flat(tree, tuple(leaves))


def build(tree: Tree, of_leaf: Callable[[Arg], object]) -> object:
    """The containers of a tree around `of_leaf(leaf)` of every leaf.

    A named class that is not imported here becomes a plain dict of its fields.
    """
    if tree.kind == "leaf":
        return of_leaf(tree.leaf)
    items = tuple(build(item, of_leaf) for item in tree.items)
    if tree.kind == "tuple":
        return items
    if tree.kind == "list":
        return list(items)
    fields = dict(zip(tree.keys, items, strict=True))
    if tree.kind == "dict":
        return OrderedDict(fields) if tree.name == _ORDERED else fields
    known = _class_named(tree.name)
    return fields if known is None else known(**{str(key): item for key, item in fields.items()})


def leaf_names(tree: Tree, stem: str) -> tuple[str, ...]:
    """Readable names of the leaves below `stem`: `d.y.0`."""
    if tree.kind == "leaf":
        return (stem,)
    keys = tree.keys or tuple(range(len(tree.items)))
    return tuple(
        name
        for key, item in zip(keys, tree.items, strict=True)
        for name in leaf_names(item, f"{stem}.{key}" if stem else str(key))
    )


def pairs(tree: Tree, value: object, at: str = "") -> Result[tuple[tuple[Arg, object], ...], Fault]:
    """Each leaf of the tree with the part of `value` that stands there.

    Fails with INPUT_DOES_NOT_FIT where the containers differ, naming the place.
    """
    if tree.kind == "leaf":
        return Success(((tree.leaf, value),))
    return _parts(tree, value, at).bind(
        lambda parts: gather(
            pairs(item, part, f"{at}.{key}" if at else str(key))
            for (key, part), item in zip(parts, tree.items, strict=True)
        ).map(lambda found: tuple(pair for inner in found for pair in inner))
    )


def fit_call(
    signature: Signature, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Result[tuple[object, ...], Fault]:
    """The values of a call in the order of `signature.inputs`.

    What was captured by position may be given by name and the other way round. Fails with
    INPUT_DOES_NOT_FIT: a missing or unknown argument, another container, another constant, another
    dtype, rank or fixed size, or a named dimension with two sizes.
    """
    return (
        _slots(signature, args, kwargs)
        .bind(lambda slots: gather(pairs(tree, value, name) for name, tree, value in slots))
        .map(lambda found: _by_index(signature, (pair for inner in found for pair in inner)))
        .bind(lambda values: _checked(signature, values))
    )


def leaf_call(args: Tree, kwargs: Tree, output: Tree) -> str:
    """How a module kept whole is called, as text for a `leaf` node; empty for the plain way.

    The plain way: tensors by position, a tensor or a tuple of tensors in return. Else the leaves of
    the trees are indices of tensors, or constants as `{"constant": value}`.
    """
    by_position = all(item.leaf == index for index, item in enumerate(args.items))
    flat = output.kind == "tuple" and all(isinstance(item.leaf, int) for item in output.items)
    if by_position and not kwargs.items and (isinstance(output.leaf, int) or flat):
        return ""
    trees = {"args": args, "kwargs": kwargs, "output": output}
    return canonical({name: encode_tree(tree) for name, tree in trees.items()})


def call_leaf(module: Callable[..., object], call: str, xs: Sequence[object]) -> tuple[object, ...]:
    """Call a module kept whole with its tensors as the `call` of its node says: its results.

    TypeError or ValueError if the module returns other containers than it did at capture.
    """
    if not call:
        value = module(*xs)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    positional, named = leaf_arguments(call)

    def of_leaf(leaf: Arg) -> object:
        return leaf["constant"] if isinstance(leaf, FrozenMap) else xs[int(str(leaf))]

    args, kwargs = build(positional, of_leaf), build(named, of_leaf)
    value = module(*(args if isinstance(args, tuple) else ()), **_as_dict(kwargs))
    return leaf_results(value, call)


def leaf_arguments(call: str) -> tuple[Tree, Tree]:
    """The trees of positional and named arguments in the `call` of a leaf that has one."""
    code = json.loads(call)
    return decode_tree(code["args"]), decode_tree(code["kwargs"])


def leaf_results(value: object, call: str) -> tuple[object, ...]:
    """The tensors of what a module kept whole returned, as the `call` of its leaf numbers them.

    ValueError if the containers are not those of capture.
    """
    found = pairs(decode_tree(json.loads(call)["output"]), value)
    return fold(found, _in_order, lambda fault: _refuse(fault.reason))


def _as_dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _in_order(found: tuple[tuple[Arg, object], ...]) -> tuple[object, ...]:
    values = {leaf: value for leaf, value in found if isinstance(leaf, int)}
    return tuple(values[index] for index in sorted(values))


def _refuse(reason: str) -> tuple[object, ...]:
    raise ValueError(f"a leaf module returned something else than at capture: {reason}")


def _taken(value: object, leaves: list[object]) -> Tree:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        keys = tuple(value._fields)
        items = tuple(_taken(item, leaves) for item in value)
        return Tree("named", None, keys, items, _class_name(value))
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return Tree(kind, None, (), tuple(_taken(item, leaves) for item in value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _taken_fields(value, leaves)
    if isinstance(value, Mapping) and all(isinstance(key, (str, int)) for key in value):
        name = _ORDERED if type(value) is OrderedDict else ""
        items = tuple(_taken(item, leaves) for item in value.values())
        return Tree("dict", None, tuple(value), items, name)
    leaves.append(value)
    return Tree("leaf", len(leaves) - 1)


def _taken_fields(value: object, leaves: list[object]) -> Tree:
    if isinstance(value, Mapping):
        fields = {str(key): item for key, item in value.items()}
    else:
        listed = dataclasses.fields(value)  # type: ignore[arg-type]  # is_dataclass was asked above
        fields = {field.name: getattr(value, field.name) for field in listed}
    items = tuple(_taken(item, leaves) for item in fields.values())
    return Tree("named", None, tuple(fields), items, _class_name(value))


def _class_name(value: object) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _class_named(name: str) -> Callable[..., object] | None:
    module, _, path = name.partition(":")
    found: object = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        return None
    known = dataclasses.is_dataclass(found) or (
        issubclass(found, tuple) and hasattr(found, "_fields")
    )
    return found if known else None


def _misfit(at: str, reason: str) -> Fault:
    place = f"{at}: " if not at or at.startswith("argument ") else f"argument {at}: "
    return Fault(
        FaultKind.INPUT_DOES_NOT_FIT,
        place + reason if at else reason,
        "call with arguments shaped like the example inputs of capture",
    )


def _parts(tree: Tree, value: object, at: str) -> Result[tuple[tuple[str, object], ...], Fault]:
    count = len(tree.items)
    if tree.kind in ("tuple", "list"):
        if not isinstance(value, (tuple, list)):
            return Failure(_misfit(at, f"a {tree.kind} was captured, got {type(value).__name__}"))
        if len(value) != count:
            return Failure(_misfit(at, f"{count} items were captured, got {len(value)}"))
        return Success(tuple((str(index), item) for index, item in enumerate(value)))
    if isinstance(value, Mapping):
        fields = dict(value)
    else:
        fields = {key: getattr(value, str(key)) for key in tree.keys if hasattr(value, str(key))}
    if set(fields) != set(tree.keys):
        wanted = ", ".join(str(key) for key in tree.keys)
        given = ", ".join(str(key) for key in fields) or type(value).__name__
        return Failure(_misfit(at, f"the keys {wanted} were captured, got {given}"))
    return Success(tuple((str(key), fields[key]) for key in tree.keys))


_Slot = tuple[str, Tree, object]


def _slots(
    signature: Signature, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Result[tuple[_Slot, ...], Fault]:
    wanted = _wanted(signature)
    given: dict[str, object] = {}
    for index, value in enumerate(args):
        given[_slot_name(signature, index)] = value
    twice = sorted(set(given) & set(kwargs))
    if twice:
        return Failure(_misfit(twice[0], "given by position and by name"))
    given.update(kwargs)
    shown = ", ".join(wanted) or "nothing"
    unknown = [name for name in given if name not in wanted and given[name] is not None]
    if unknown:
        return Failure(_misfit(unknown[0], f"not among the captured arguments ({shown})"))
    missing = [name for name in wanted if name not in given]
    needed = [name for name in missing if _reads_values(signature, wanted[name])]
    if needed:
        return Failure(_misfit(needed[0], f"missing; the captured arguments are {shown}"))
    return Success(
        tuple((name, tree, given[name]) for name, tree in wanted.items() if name in given)
    )


def _wanted(signature: Signature) -> dict[str, Tree]:
    by_position = {
        _slot_name(signature, index): tree for index, tree in enumerate(signature.args.items)
    }
    by_name = zip(signature.kwargs.keys, signature.kwargs.items, strict=True)
    return {**by_position, **{str(name): tree for name, tree in by_name}}


def _slot_name(signature: Signature, index: int) -> str:
    count = len(signature.params)
    return signature.params[index] if index < count else f"argument {index}"


def _reads_values(signature: Signature, tree: Tree) -> bool:
    leaves = tree_leaves(tree)
    return any(isinstance(i, int) and signature.inputs[i].node is not None for i in leaves)


def _by_index(
    signature: Signature, found: Iterable[tuple[Arg, object]]
) -> tuple[tuple[Input, object], ...]:
    values = {index: value for index, value in found if isinstance(index, int)}
    return tuple(
        (item, values.get(index, item.constant)) for index, item in enumerate(signature.inputs)
    )


def _checked(
    signature: Signature, values: tuple[tuple[Input, object], ...]
) -> Result[tuple[object, ...], Fault]:
    sizes: dict[str, int] = {}
    for item, value in values:
        reason = _misfit_of(signature, item, value, sizes)
        if reason:
            return Failure(_misfit(item.name, reason))
    return Success(tuple(value for _, value in values))


def _misfit_of(signature: Signature, item: Input, value: object, sizes: dict[str, int]) -> str:
    if item.node is None:
        fits = _is_same(item.constant, value)
        return "" if fits else f"captured with {item.constant!r}, got {value!r}"
    if not isinstance(item.type, TensorType):
        return ""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape is None:
        return f"a tensor was captured, got {type(value).__name__}"
    if str(dtype) != f"torch.{item.type.dtype.value}":
        return f"{item.type.dtype.value} was captured, got {str(dtype).removeprefix('torch.')}"
    dims = item.type.dims
    if dims is None:
        return ""
    text = "[" + ", ".join(str(dim) for dim in dims) + "]"
    if len(dims) != len(shape):
        return f"the shape {text} was captured, got {list(shape)}"
    for dim, size in zip(dims, shape, strict=True):
        if not _admits(signature, dim, int(size), sizes):
            return f"the shape {text} was captured, got {list(shape)}"
    return ""


def _is_same(constant: Arg, value: object) -> bool:
    if isinstance(constant, DType):
        return str(value) in (str(constant), f"torch.{constant.value}")
    if not isinstance(value, (bool, int, float, str)):
        return constant is None and value is None
    return same(constant, value)


def _admits(signature: Signature, dim: Dim, size: int, sizes: dict[str, int]) -> bool:
    if dim is None:
        return True
    if isinstance(dim, int):
        return dim == size
    name = _sole_name(dim)
    if name is None:
        return True
    least, most = signature.dims.get(name) or (0, None)
    return sizes.setdefault(name, size) == size and least <= size and (most is None or size <= most)


def _sole_name(dim: Poly) -> str | None:
    match dim.terms:
        case (((str() as name,), 1),):
            return name
        case _:
            return None
