"""Tensors and modules that a graph borrows from the caller, and whether they still are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import torch

from fqx.ir.arg import canonical
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import Digest, Path
from fqx.kit.result import Failure, Result, Success
from fqx.num.tensors import fingerprint_of


@runtime_checkable
class Stateful(Protocol):
    """What has named parameters and buffers, as a module has."""

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters by path."""

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Buffers by path."""


def state_fingerprint(module: Stateful) -> Digest:
    """SHA-256 over the class name and every parameter and buffer of a module."""
    held = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    state = {path: fingerprint_of(tensor) for path, tensor in held}
    code = canonical({"class": type(module).__qualname__, "state": dict(state)})
    return Digest(hashlib.sha256(code.encode()).hexdigest())


def unchanged(graphs: Iterable[Graph]) -> Result[None, Fault]:
    """Whether everything the graphs share with the caller has the values it was captured with.

    Graphs that share nothing cost a look at each weight; a shared tensor is read once for all of
    them. Fails with STORAGE_CHANGED naming the weight or the leaf.
    """
    seen: set[tuple[int, str]] = set()
    for graph in graphs:
        path = _changed(graph, seen)
        if path is not None:
            return Failure(_fault(path))
    return Success(None)


def _changed(graph: Graph, seen: set[tuple[int, str]]) -> Path | None:
    for path, weight in graph.weights.items():
        key = (id(weight.payload), weight.fingerprint)
        if weight.shared and isinstance(weight.payload, torch.Tensor) and key not in seen:
            seen.add(key)
            if fingerprint_of(weight.payload) != weight.fingerprint:
                return path
    for path, leaf in graph.leaves.items():
        key = (id(leaf.payload), leaf.fingerprint)
        if leaf.shared and isinstance(leaf.payload, Stateful) and key not in seen:
            seen.add(key)
            if state_fingerprint(leaf.payload) != leaf.fingerprint:
                return path
    inner = (_changed(block, seen) for block in graph.blocks.values())
    return next((path for path in inner if path is not None), None)


def _fault(path: Path) -> Fault:
    return Fault(
        FaultKind.STORAGE_CHANGED,
        f"{path} was captured with share=True and its values have changed since",
        "put the captured values back, or capture again; without share=True the graph has a copy",
        module=path,
    )
