"""The packs behind the custom ops: one for each weight that a program was called with.

An entry is known by its kernel, by the text of its call, and by where its weights are stored, and
it holds none of them: when a weight's storage is gone, so is the entry by the next new one. A
weight that was written to is packed again in the place of the old pack.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fqx.edge.fakes import CONVOLUTION
from fqx.edge.kernels import BINDERS, Run
from fqx.edge.op_text import OpCall, read_call
from fqx.edge.packing import version_of
from fqx.ir.arg import NodeRef
from fqx.ir.names import OpName
from fqx.targets.recurrent import CELLS, LAYERS

Key: TypeAlias = tuple[object, ...]
Versions: TypeAlias = tuple[int | None, ...]
See: TypeAlias = Callable[[OpCall, Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A bound kernel, with stand-ins for the tensors that it has packed, by their numbers.

    `versions` and `sources` are those of the tensors themselves.
    """

    call: OpCall
    run: Run
    held: tuple[tuple[int, Tensor], ...] = ()
    versions: Versions = ()
    sources: tuple[StorageWeakRef, ...] = ()

    def __call__(self, tensors: Sequence[Any]) -> Any:
        """Run the kernel on tensors, those that are packed already aside."""
        if self.held:
            tensors = list(tensors)
            for number, stand_in in self.held:
                tensors[number] = stand_in
        return self.run(*self.call.arrange(tensors))

    def dead(self) -> bool:
        """Whether a storage it was made of is gone."""
        return any(map(_expired, self.sources))


class OpCache:
    """Bound kernels by their calls and weights; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[str, OpCall] = {}
        self._entries: dict[Key, Entry] = {}

    def __len__(self) -> int:
        """How many packs there are."""
        return sum(bool(entry.held) for entry in list(self._entries.values()))

    def read(self, text: str) -> OpCall:
        """The call of a text, read once."""
        found = self._calls.get(text)
        if found is None:
            found = self._calls[text] = read_call(text)
        return found

    def run(self, op: OpName, tensors: Sequence[Any], text: str, see: See) -> Any:
        """The kernel's result. `see` makes of tensors what the kernel takes them for."""
        call = self.read(text)
        packed = packed_numbers(op, call, tensors)
        # an entry's weak references keep the addresses of storages from being used again
        key = (op, text, *(_place(tensors[number]) for number in packed))
        versions = tuple(version_of(tensors[number]) for number in packed)
        entry = self._entries.get(key)
        if entry is not None and entry.versions == versions:
            return entry(see(call, tensors))
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.versions != versions:
                return self._first(key, versions, op, call, packed, tensors, see(call, tensors))
        return entry(see(call, tensors))

    def _first(
        self,
        key: Key,
        versions: Versions,
        op: OpName,
        call: OpCall,
        packed: tuple[int, ...],
        tensors: Sequence[Any],
        seen: Sequence[Any],
    ) -> Any:
        """Run a kernel for the first time, which packs; then let go of what it packed."""
        for known in [known for known, entry in self._entries.items() if entry.dead()]:
            del self._entries[known]
        weights = _weight_numbers(op, call) if packed else frozenset[int]()
        # of a pack's own version; scales and biases are small, and some kernels read them again
        held = tuple(
            (n, tensors[n].data if n in weights else tensors[n].detach().clone()) for n in packed
        )
        sources = tuple(_weak(tensors[number]) for number in packed)
        entry = Entry(call, BINDERS[op](call.attrs), held, versions, sources)
        result = entry(seen)
        for number, stand_in in held:
            if number in weights:
                _empty(stand_in)
        self._entries[key] = entry
        return result


def packed_numbers(op: OpName, call: OpCall, tensors: Sequence[Any]) -> tuple[int, ...]:
    """Which tensors go into a pack that is kept: the weights, their scales and biases."""
    if op in _TABLES and not _packs_table(call, tensors):
        return ()
    return tuple(number for place in _places(op) for number in _numbers(call.operands[place]))


def _weight_numbers(op: OpName, call: OpCall) -> frozenset[int]:
    """Which tensors are read when packing and never again."""
    return frozenset(_numbers(call.operands[_places(op)[0]]))


def _places(op: OpName) -> tuple[int, ...]:
    """The operands of a kernel that it packs, or that say how: the weights first."""
    found = _PACKED.get(op)
    if found is None:
        return (1, 2, 3) if CONVOLUTION.fullmatch(op) else ()
    return found


_TABLES: Mapping[OpName, tuple[int, ...]] = MappingProxyType(
    {
        OpName("plain.embedding_weight_only"): (1, 2, 3),
        OpName("plain.embedding_bag_weight_only"): (1, 4, 5),
    }
)

_PACKED: Mapping[OpName, tuple[int, ...]] = MappingProxyType(
    {
        **_TABLES,
        **{
            OpName(name): (1, 2, 3)
            for name in (
                "onednn.linear",
                "onednn.linear_add",
                "onednn.linear_dynamic",
                "native.linear",
                "native.linear_post",
                "native.linear_dynamic",
            )
        },
        OpName("native.linear_float16"): (1, 2),
        **{OpName(f"native.{name}_dynamic"): (2, 3, 4) for name in (*LAYERS, *CELLS)},
        **{OpName(f"native.{name}_float16"): (2, 3) for name in (*LAYERS, *CELLS)},
    }
)


def _packs_table(call: OpCall, tensors: Sequence[Any]) -> bool:
    """Whether torch's kernels take the table; else its rows are read in every call."""
    operands = call.arrange(tensors)
    weight, zero = operands[1], operands[-1]
    return call.attrs["width"] is None and weight.dtype == torch.uint8 and isinstance(zero, Tensor)


def _numbers(arg: object) -> tuple[int, ...]:
    if isinstance(arg, NodeRef):
        return (int(arg.id),)
    if isinstance(arg, tuple):
        return tuple(number for item in arg for number in _numbers(item))
    return ()


def _weak(tensor: Tensor) -> StorageWeakRef:
    make: Callable[[object], StorageWeakRef] = StorageWeakRef
    return make(tensor.untyped_storage())


def _expired(source: StorageWeakRef) -> bool:
    ask: Callable[[], bool] = source.expired
    return ask()


def _place(tensor: Tensor) -> Key:
    """Where a tensor's values are."""
    storage, at = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return storage, at, tensor.shape, tensor.stride(), tensor.dtype


def _empty(stand_in: Tensor) -> None:
    """Let go of the values; identity, version, dtype and sizes stay."""
    stand_in.data = torch.zeros((), dtype=stand_in.dtype).expand(stand_in.shape)
