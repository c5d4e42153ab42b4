"""The closed union of what a node may carry as an argument, and its canonical encoding.

Two arguments are equal when their canonical encodings are: `1`, `1.0` and `True` differ, NaN
equals itself, `-0.0` is not `0.0`. Python's own `==` says otherwise, so `same` decides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, Union, assert_never

from fqx.ir.names import BlockName, NodeId, Path
from fqx.kit.frozen import FrozenMap

Json: TypeAlias = Union[None, bool, int, float, str, "list[Json]", "dict[str, Json]"]


class DType(Enum):
    """Element types, by torch's names without the prefix."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"
    COMPLEX64 = "complex64"
    COMPLEX128 = "complex128"
    QUINT8 = "quint8"
    QINT8 = "qint8"
    QINT32 = "qint32"

    @property
    def is_float(self) -> bool:
        """Whether values of this type are real floating-point numbers."""
        return self in (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64)


@dataclass(frozen=True, slots=True)
class NodeRef:
    """The value of a node."""

    id: NodeId


@dataclass(frozen=True, slots=True)
class WeightRef:
    """A weight of the graph, by its path."""

    path: Path


Ref: TypeAlias = NodeRef | WeightRef


@dataclass(frozen=True, slots=True)
class Block:
    """A sub-program of the graph, by its name."""

    name: BlockName


@dataclass(frozen=True, slots=True)
class Slice:
    """A Python slice inside an index."""

    start: Arg
    stop: Arg
    step: Arg


@dataclass(frozen=True, slots=True)
class Dots:
    """The ellipsis inside an index."""


@dataclass(frozen=True, slots=True)
class Training:
    """The training flag of the enclosing module at call time."""


Arg: TypeAlias = Union[
    None,
    bool,
    int,
    float,
    str,
    NodeRef,
    WeightRef,
    Block,
    DType,
    Slice,
    Dots,
    Training,
    "tuple[Arg, ...]",
    "FrozenMap[Arg]",
]

ArgPath: TypeAlias = tuple[int | str, ...]
"""Where an argument stands in a node: `(0,)` is args[0], `(0, 2)` the third item of a tuple."""


def encode_arg(arg: Arg) -> Json:
    """The argument as JSON; injective, and `decode_arg` is its inverse."""
    match arg:
        case None | bool() | int() | str():
            return arg
        case float():
            return arg if math.isfinite(arg) else {"float": "nan" if arg != arg else str(arg)}
        case DType():
            return {"dtype": arg.value}
        case NodeRef(id=name):
            return {"node": name}
        case WeightRef(path=path):
            return {"weight": path}
        case Block(name=block):
            return {"block": block}
        case Slice(start=start, stop=stop, step=step):
            return {"slice": [encode_arg(start), encode_arg(stop), encode_arg(step)]}
        case Dots():
            return {"dots": True}
        case Training():
            return {"training": True}
        case tuple():
            return [encode_arg(item) for item in arg]
        case FrozenMap():
            return {"map": {name: encode_arg(value) for name, value in arg.items()}}
        case _:
            assert_never(arg)


def decode_arg(code: Json) -> Arg:
    """The inverse of `encode_arg`; raises ValueError on anything that is not an argument."""
    match code:
        case None | bool() | int() | float() | str():
            return code
        case list():
            return tuple(decode_arg(item) for item in code)
        case dict() if len(code) == 1:
            ((tag, value),) = code.items()
            return _decode_tagged(tag, value)
        case _:
            raise ValueError(f"not an argument: {code!r}")


def _decode_tagged(tag: str, value: Json) -> Arg:
    match tag, value:
        case "float", str():
            return float(value)
        case "dtype", str():
            return DType(value)
        case "node", str():
            return NodeRef(NodeId(value))
        case "weight", str():
            return WeightRef(Path(value))
        case "block", str():
            return Block(BlockName(value))
        case "slice", [start, stop, step]:
            return Slice(decode_arg(start), decode_arg(stop), decode_arg(step))
        case "dots", True:
            return Dots()
        case "training", True:
            return Training()
        case "map", dict():
            return FrozenMap({name: decode_arg(item) for name, item in value.items()})
        case _:
            raise ValueError(f"not an argument: {tag!r}: {value!r}")


def canonical(code: Json) -> str:
    """Canonical JSON text: sorted keys, no blanks, ASCII, exact floats."""
    return _ENCODER.encode(code)


# made once: json.dumps makes an encoder for every call that is not plain; data made by `to_json`
# has no cycles to look for
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False
)


def same(one: Arg, two: Arg) -> bool:
    """Whether two arguments are the same value, by their canonical encodings."""
    if type(one) in _SIMPLE and type(two) in _SIMPLE:
        return type(one) is type(two) and one == two
    return one is two or canonical(encode_arg(one)) == canonical(encode_arg(two))


_SIMPLE = (type(None), bool, int, str, NodeRef, WeightRef, DType)
"""Types whose values have equal encodings where type and value are equal; floats have not."""


def refs_in(arg: Arg, at: ArgPath = ()) -> Iterator[tuple[ArgPath, Ref]]:
    """Every reference inside an argument with its place, left to right."""
    match arg:
        case NodeRef() | WeightRef():
            yield at, arg
        case tuple():
            for index, item in enumerate(arg):
                yield from refs_in(item, (*at, index))
        case FrozenMap():
            for name, value in arg.items():
                yield from refs_in(value, (*at, name))
        case Slice(start=start, stop=stop, step=step):
            for index, item in enumerate((start, stop, step)):
                yield from refs_in(item, (*at, index))
        case _:
            return


def map_refs(arg: Arg, change: Callable[[Ref], Arg]) -> Arg:
    """The argument with every reference replaced; the same object if none changed."""
    match arg:
        case NodeRef() | WeightRef():
            return change(arg)
        case tuple():
            items = tuple(map_refs(item, change) for item in arg)
            return arg if all(new is old for new, old in zip(items, arg, strict=True)) else items
        case FrozenMap():
            values = {name: map_refs(value, change) for name, value in arg.items()}
            return arg if all(values[name] is arg[name] for name in arg) else FrozenMap(values)
        case Slice(start=start, stop=stop, step=step):
            parts = tuple(map_refs(item, change) for item in (start, stop, step))
            kept = all(new is old for new, old in zip(parts, (start, stop, step), strict=True))
            return arg if kept else Slice(*parts)
        case _:
            return arg
