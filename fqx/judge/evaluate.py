"""The judge: what a graph means, computed node by node from the table of meanings.

Slow and plain on purpose. It knows no passes and no kernels; whatever runs a graph otherwise is
held against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from fqx.ir.arg import Arg, Block, Dots, DType, NodeRef, Slice, Training, WeightRef, refs_in
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.ir.node import Node
from fqx.ir.tree import build, call_leaf, fit_call
from fqx.judge.meaning import MEANINGS, memory_format
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success, attempt, gather, is_success
from fqx.num.tensors import TORCH_DTYPES, tensor_of

Leaves: TypeAlias = Mapping[str, Callable[..., object]]
"""Modules kept whole, by path."""

_Values: TypeAlias = dict[NodeId, object]


def evaluate(
    graph: Graph,
    args: tuple[object, ...] = (),
    kwargs: Mapping[str, object] | None = None,
    leaves: Leaves | None = None,
) -> Result[object, Fault]:
    """What a call of the graph gives, in the containers of its signature.

    Faults: INPUT_DOES_NOT_FIT for the call, MISSING_PAYLOAD and MISSING_LEAF for what the graph
    does not hold, NO_IMPLEMENTATION for a node that torch cannot execute here.
    """
    return values(graph, args, kwargs, leaves).bind(lambda known: _output(graph, known))


def values(
    graph: Graph,
    args: tuple[object, ...] = (),
    kwargs: Mapping[str, object] | None = None,
    leaves: Leaves | None = None,
) -> Result[dict[NodeId, object], Fault]:
    """The value of every node; faults as in `evaluate`."""
    return (
        fit_call(graph.signature, args, kwargs or {})
        .map(lambda given: _inputs(graph, given))
        .bind(lambda known: _run(graph, known, leaves or {}))
    )


def _inputs(graph: Graph, given: tuple[object, ...]) -> _Values:
    pairs = zip(graph.signature.inputs, given, strict=True)
    return {item.node: value for item, value in pairs if item.node is not None}


def _run(graph: Graph, known: _Values, leaves: Leaves) -> Result[_Values, Fault]:
    with torch.no_grad():
        for node in graph:
            if node.id in known:
                continue
            found = _value(graph, node, known, leaves)
            if not is_success(found):
                place = (node.id, node.origin.module, node.origin.source)
                return Failure(found.failure().located(*place))
            known[node.id] = found.unwrap()
    return Success(known)


def _value(graph: Graph, node: Node, known: _Values, leaves: Leaves) -> Result[object, Fault]:
    return _bound(graph, node.args, known).bind(
        lambda args: _function(graph, node, leaves).bind(
            lambda function: attempt(
                lambda: function(*args, **_keywords(node)), lambda error: _unable(node, error)
            )
        )
    )


def _unable(node: Node, error: Exception) -> Fault:
    reason = f"{node.op} cannot be executed: {type(error).__name__}: {error}"
    return Fault(FaultKind.NO_IMPLEMENTATION, reason.splitlines()[0], detail=str(error))


def _function(graph: Graph, node: Node, leaves: Leaves) -> Result[Callable[..., object], Fault]:
    if node.op in MEANINGS:
        return Success(MEANINGS[node.op])
    if node.op == "leaf":
        return _leaf(graph, node, leaves)
    found = attempt(lambda: _overload(node), lambda _: _unknown(node))
    return found if "type" in node.attrs else Failure(_unknown(node))


def _overload(node: Node) -> Callable[..., object]:
    """The torch operator a foreign node names: `aten.cumprod.default`."""
    found: object = torch.ops
    for part in node.op.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise LookupError(node.op)
    return found


def _unknown(node: Node) -> Fault:
    return Fault(
        FaultKind.NO_IMPLEMENTATION,
        f"the judge knows no operator {node.op}",
        "evaluate the graph as it was before `lower`",
    )


def _leaf(graph: Graph, node: Node, leaves: Leaves) -> Result[Callable[..., object], Fault]:
    path, how = str(node.attrs["path"]), str(node.attrs["call"])
    held = graph.leaves.get(Path(path))
    module = leaves.get(path, held.payload if held is not None else None)
    if not callable(module):
        remedy = f"hand it in: leaves={{{path!r}: module}}"
        return Failure(Fault(FaultKind.MISSING_LEAF, f"there is no module for {path}", remedy))
    return Success(lambda xs, **_: call_leaf(module, how, xs))


def _keywords(node: Node) -> dict[str, object]:
    """Attributes as torch takes them; a foreign call's declared type is not torch's concern."""
    listed = {name: _plain(value) for name, value in node.attrs.items() if name != "type"}
    if "memory_format" in listed:
        listed["memory_format"] = memory_format(listed["memory_format"])
    return listed


def _bound(
    graph: Graph, args: tuple[Arg, ...], known: _Values
) -> Result[tuple[object, ...], Fault]:
    """Operands with values in place of references."""
    paths = {ref.path for _, ref in refs_in(args) if isinstance(ref, WeightRef)}
    return gather(_weight(graph, path) for path in sorted(paths)).map(
        lambda tensors: tuple(
            _plain(arg, known, dict(zip(sorted(paths), tensors, strict=True))) for arg in args
        )
    )


def _weight(graph: Graph, path: Path) -> Result[torch.Tensor, Fault]:
    found = graph.weights.get(graph.ties.get(path) or path)
    if found is None:
        return Failure(Fault(FaultKind.UNBOUND_NAME, f"there is no weight {path}"))
    # a parameter that wants a gradient takes another path through torch's matmul even under no_grad
    trains = found.requires_grad and found.dtype.is_float
    return tensor_of(found).map(lambda t: t.detach().requires_grad_() if trains else t)


def _plain(
    arg: Arg,
    known: Mapping[NodeId, object] | None = None,
    weights: Mapping[Path, torch.Tensor] | None = None,
) -> object:
    """An argument as torch takes it."""
    match arg:
        case NodeRef(id=name):
            return (known or {})[name]
        case WeightRef(path=path):
            return (weights or {})[path]
        case DType():
            return TORCH_DTYPES[arg]
        case Training():
            return False
        case Slice(start=start, stop=stop, step=step):
            return slice(*(_plain(item, known, weights) for item in (start, stop, step)))
        case Dots():
            return ...
        case tuple():
            return tuple(_plain(item, known, weights) for item in arg)
        case FrozenMap() | Block():
            return arg
        case _:
            return arg


def _output(graph: Graph, known: _Values) -> Result[object, Fault]:
    return _bound(graph, graph.outputs, known).map(lambda leaves: _rebuilt(graph, leaves))


def _rebuilt(graph: Graph, leaves: tuple[object, ...]) -> object:
    ordered = iter(leaves)
    return build(graph.signature.output, lambda _: next(ordered))
