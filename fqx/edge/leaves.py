"""Modules that a graph keeps whole: named in the file, handed in by the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from fqx.edge.capture_model import leaf_of
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import Path
from fqx.ir.trail import Trail
from fqx.ir.weight import Leaf
from fqx.kit.result import Failure, Result, Success, attempt, gather


def attach_leaves(trail: Trail, modules: Mapping[str, nn.Module]) -> Result[Trail, Fault]:
    """The trail with copies of the caller's modules in its leaves.

    Faults: MISSING_LEAF if one is not handed in, or is not of the class it was, or does not have
    the state it had.
    """
    needed = {path: leaf for graph in trail.graphs() for path, leaf in graph.leaves.items()}
    if not needed:
        return Success(trail)
    return gather(_fitting(path, leaf, modules) for path, leaf in needed.items()).map(
        lambda found: _with_leaves(trail, dict(zip(needed, found, strict=True)))
    )


def _fitting(path: Path, leaf: Leaf, modules: Mapping[str, nn.Module]) -> Result[Leaf, Fault]:
    module = modules.get(path)
    if module is None:
        return Failure(_missing(path, leaf, f"{path} ({leaf.type}) was not handed in"))
    return attempt(
        lambda: leaf_of(module, leaf.reason, share=False),
        lambda error: _missing(path, leaf, f"{path} cannot be copied ({error})"),
    ).bind(lambda given: _same(path, leaf, given))


def _same(path: Path, leaf: Leaf, given: Leaf) -> Result[Leaf, Fault]:
    if given.type != leaf.type:
        return Failure(_missing(path, leaf, f"{path} was a {leaf.type}, not a {given.type}"))
    if given.fingerprint != leaf.fingerprint:
        return Failure(_missing(path, leaf, f"{path} does not have the state it was captured with"))
    return Success(given)


def _missing(path: Path, leaf: Leaf, reason: str) -> Fault:
    return Fault(
        FaultKind.MISSING_LEAF,
        f"the program keeps a module whole, and {reason}",
        f"hand in the float module: leaves={{{path!r}: model.get_submodule({path!r})}}",
        module=path,
        detail=leaf.reason,
    )


def _with_leaves(trail: Trail, found: Mapping[Path, Leaf]) -> Trail:
    return replace(
        trail,
        base=_attached(trail.base, found),
        steps=tuple(replace(step, graph=_attached(step.graph, found)) for step in trail.steps),
    )


def _attached(graph: Graph, found: Mapping[Path, Leaf]) -> Graph:
    return replace(graph, leaves=graph.leaves.edit({path: found[path] for path in graph.leaves}))
