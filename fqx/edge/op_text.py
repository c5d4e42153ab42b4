"""The call of a kernel as text: its attributes, and where its tensors stand among its operands.

That text is the one argument of a custom op beside the tensors, so it goes into a saved program.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fqx.ir.arg import Arg, DType, NodeRef, decode_arg, encode_arg
from fqx.ir.names import NodeId
from fqx.kit.frozen import FrozenMap
from fqx.num.tensors import dtype_of
from fqx.passes.calls import as_torch

QParams = tuple[float, int]
"""The scale and zero point of a quantized tensor."""


@dataclass(frozen=True, slots=True)
class OpCall:
    """A kernel's call without its tensors: `operands` has a `NodeRef` of the n-th where it stands.

    `seen` are the qparams of the tensors that the kernel takes as torch's quantized ones; None for
    the others.
    """

    attrs: Mapping[str, Any]
    operands: tuple[Arg, ...]
    seen: tuple[QParams | None, ...]

    def arrange(self, tensors: Sequence[Any]) -> tuple[Any, ...]:
        """The operands with the tensors in their places."""
        return tuple(_placed(item, tensors) for item in self.operands)


def write_call(
    operands: Sequence[Any],
    attrs: Mapping[str, Any],
    is_tensor: Callable[[Any], bool],
    seen_of: Callable[[Any], QParams | None],
) -> tuple[list[Any], str]:
    """The tensors among the operands, and the text of the rest.

    `is_tensor` says what stands for a tensor, `seen_of` with which qparams a kernel sees it.
    """
    tensors: list[Any] = []

    def taken(value: Any) -> Arg:
        if is_tensor(value):
            tensors.append(value)
            return NodeRef(NodeId(str(len(tensors) - 1)))
        if isinstance(value, (tuple, list)):
            return tuple(map(taken, value))
        return _as_arg(value)

    places = tuple(map(taken, operands))
    parts = {
        "operands": encode_arg(places),
        "seen": [list(pair) if (pair := seen_of(item)) else None for item in tensors],
        "attrs": {name: encode_arg(_as_arg(value)) for name, value in attrs.items()},
    }
    return tensors, json.dumps(parts, sort_keys=True)


def read_call(text: str) -> OpCall:
    """The call that `write_call` wrote."""
    parts = json.loads(text)
    operands = decode_arg(parts["operands"])
    attrs = {name: as_torch(decode_arg(value)) for name, value in parts["attrs"].items()}
    seen = tuple(None if pair is None else (pair[0], pair[1]) for pair in parts["seen"])
    return OpCall(attrs, operands if isinstance(operands, tuple) else (), seen)


def _placed(item: Arg, tensors: Sequence[Any]) -> Any:
    if isinstance(item, NodeRef):
        return tensors[int(item.id)]
    if isinstance(item, tuple):
        return tuple(_placed(inner, tensors) for inner in item)
    return as_torch(item)


def _as_arg(value: Any) -> Arg:
    """The inverse of `as_torch`."""
    if isinstance(value, torch.dtype):
        found: DType | None = dtype_of(value)
        assert found is not None, value
        return found
    if isinstance(value, Mapping):
        return FrozenMap({str(key): _as_arg(item) for key, item in value.items()})
    if isinstance(value, (tuple, list)):
        return tuple(map(_as_arg, value))
    assert not isinstance(value, Tensor)
    return value  # type: ignore[no-any-return]
