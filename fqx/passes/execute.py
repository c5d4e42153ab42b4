"""Runs a graph in torch, node by node, and shows every value to a tap as it comes into being."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch

from fqx.ir.arg import Arg, NodeRef, WeightRef
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName, Path
from fqx.ir.node import Node
from fqx.ir.tree import build, call_leaf, fit_call
from fqx.kit.result import Failure, Result, Success, attempt, gather
from fqx.num.tensors import tensor_of
from fqx.passes.calls import Function, TorchCall, as_torch, torch_call

Tap: TypeAlias = Callable[[NodeId, object], None]
"""Told each node's value; it may raise `Stopped` to end the run."""

Put: TypeAlias = Callable[[NodeId, object], object]
"""Given each called node's value before anybody reads it; gives the value that is read."""

Leaves: TypeAlias = Mapping[str, Callable[..., object]]
"""Modules kept whole, by path."""

CallOf: TypeAlias = Callable[[Node], Result[TorchCall, Fault]]
"""The torch call of a node; `torch_call` knows the catalogue, `fqx.edge` the kernels too."""


class Stopped(Exception):
    """Raised by a tap: the run ends with this fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@dataclass(frozen=True, slots=True)
class _Slot:
    """A value computed before, by its place among the values of the run."""

    at: int


@dataclass(frozen=True, slots=True)
class _Step:
    """One call: where its value goes, and which values nobody reads afterwards."""

    node: Node
    at: int
    function: Function
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    frees: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A graph ready to be run any number of times; weights are read once."""

    graph: Graph
    steps: tuple[_Step, ...]
    inputs: tuple[_Slot | None, ...]
    outputs: Mapping[int, object]
    size: int

    def run(
        self,
        args: tuple[object, ...],
        kwargs: Mapping[str, object] | None = None,
        tap: Tap | None = None,
        put: Put | None = None,
    ) -> Result[object, Fault]:
        """The output of one call, without gradients; memory is freed after each value's last use.

        `tap` is shown the values that are read, `put` may give others in their place.
        Fails with INPUT_DOES_NOT_FIT, with the fault a tap stopped for, or with CALIBRATION_FAILED
        naming the node at which torch raised.
        """
        return fit_call(self.graph.signature, args, kwargs or {}).bind(
            lambda values: self._run(values, tap, put)
        )

    def _run(
        self, given: tuple[object, ...], tap: Tap | None, put: Put | None
    ) -> Result[object, Fault]:
        values: list[object] = [None] * self.size
        reached: list[_Step] = []
        for slot, value in zip(self.inputs, given, strict=True):
            if slot is not None:
                values[slot.at] = value
        with torch.no_grad():
            return attempt(
                lambda: self._values(values, tap, put, reached),
                lambda error: _raised(error, reached[-1].node if reached else None),
            ).map(self._output)

    def _values(
        self, values: list[object], tap: Tap | None, put: Put | None, reached: list[_Step]
    ) -> list[object]:
        if tap is not None:
            for item, slot in zip(self.graph.signature.inputs, self.inputs, strict=True):
                if slot is not None and item.node is not None:
                    tap(item.node, values[slot.at])
        for step in self.steps:
            reached[:] = (step,)
            args = [_filled(arg, values) for arg in step.args]
            kwargs = {name: _filled(arg, values) for name, arg in step.kwargs.items()}
            made = step.function(*args, **kwargs)
            if put is not None:
                made = put(step.node.id, made)
            values[step.at] = made
            if tap is not None:
                tap(step.node.id, made)
            for place in step.frees:
                values[place] = None
        return values

    def _output(self, values: list[object]) -> object:
        leaves = iter(range(len(self.outputs)))
        return build(
            self.graph.signature.output, lambda _: _filled(self.outputs[next(leaves)], values)
        )


def run(
    graph: Graph,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None = None,
    tap: Tap | None = None,
    leaves: Leaves | None = None,
) -> Result[object, Fault]:
    """The output of one call of a graph; see `prepare` and `Program.run` for the faults."""
    return prepare(graph, leaves).bind(lambda program: program.run(args, kwargs, tap))


def prepare(
    graph: Graph, leaves: Leaves | None = None, call_of: CallOf = torch_call
) -> Result[Program, Fault]:
    """A program of a graph; modules kept whole come from `leaves`, else from the graph.

    `call_of` gives the calls of nodes: the kernels of a LOWERED graph need that of `fqx.edge`.

    Fails with MISSING_PAYLOAD, MISSING_LEAF or NO_IMPLEMENTATION, naming the node.
    """
    places = {name: at for at, name in enumerate(graph.order)}
    tensors: dict[Path, torch.Tensor] = {}

    def of_weight(path: Path) -> Result[torch.Tensor, Fault]:
        first = graph.ties.get(path) or path
        if first in tensors:
            return Success(tensors[first])
        weight = graph.weights.get(first)
        if weight is None:
            return Failure(_unbound(path))
        return tensor_of(weight).map(lambda tensor: tensors.setdefault(first, tensor))

    last = _last_uses(graph)
    frees: dict[NodeId, list[int]] = {}
    for name, user in last.items():
        frees.setdefault(user, []).append(places[name])
    called = [node for node in graph if node.op != "input"]
    return gather(
        _call_of(graph, node, leaves or {}, call_of)
        .bind(lambda call: _bound(call, places, of_weight))
        .map(lambda call, node=node: _step(node, call, places, frees))  # type: ignore[misc]
        .alt(lambda fault, node=node: _at(fault, node))  # type: ignore[misc]
        for node in called
    ).bind(lambda steps: _program(graph, steps, places, of_weight))


def _at(fault: Fault, node: Node) -> Fault:
    return fault.located(node.id, node.origin.module, node.origin.source)


def _step(
    node: Node, call: TorchCall, places: Mapping[NodeId, int], frees: Mapping[NodeId, list[int]]
) -> _Step:
    return _Step(
        node, places[node.id], call.function, call.args, call.kwargs, tuple(frees.get(node.id, ()))
    )


def _last_uses(graph: Graph) -> dict[NodeId, NodeId]:
    """The node after which each value is not read any more; outputs are kept to the end."""
    last: dict[NodeId, NodeId] = {}
    for node in graph:
        # a value nobody reads dies where it is born
        last[node.id] = node.id
        for name in node.inputs():
            last[name] = node.id
    kept = {ref.id for ref in _output_refs(graph)}
    return {name: user for name, user in last.items() if name not in kept}


def _output_refs(graph: Graph) -> tuple[NodeRef, ...]:
    return tuple(leaf for leaf in graph.outputs if isinstance(leaf, NodeRef)) + tuple(
        graph.updates.values()
    )


def _call_of(graph: Graph, node: Node, leaves: Leaves, call_of: CallOf) -> Result[TorchCall, Fault]:
    if node.op != OpName("leaf"):
        return call_of(node)
    path, how = Path(str(node.attrs["path"])), str(node.attrs["call"])
    held = graph.leaves.get(path)
    module = leaves.get(path) or (held.payload if held is not None else None)
    if not callable(module):
        return Failure(
            Fault(
                FaultKind.MISSING_LEAF,
                f"the module kept whole at {path} was not handed in",
                f"hand it in: leaves={{{path!r}: model.get_submodule({path!r})}}",
                module=path,
            )
        )
    return Success(TorchCall(partial(call_leaf, module, how), (as_torch(node.args[0]),), {}))


_Weights: TypeAlias = Callable[[Path], Result[torch.Tensor, Fault]]


def _bound(
    call: TorchCall, places: Mapping[NodeId, int], of_weight: _Weights
) -> Result[TorchCall, Fault]:
    names = tuple(call.kwargs)
    both = (*call.args, *call.kwargs.values())
    return gather(_place(arg, places, of_weight) for arg in both).map(
        lambda bound: TorchCall(
            call.function,
            bound[: len(call.args)],
            dict(zip(names, bound[len(call.args) :], strict=True)),
        )
    )


def _place(arg: object, places: Mapping[NodeId, int], of_weight: _Weights) -> Result[object, Fault]:
    """The argument with weights in place of their refs and slots in place of nodes."""
    match arg:
        case NodeRef(id=name):
            return Success(_Slot(places[name])) if name in places else Failure(_unbound(name))
        case WeightRef(path=path):
            return of_weight(path).map(lambda tensor: tensor)
        case tuple():
            return gather(_place(item, places, of_weight) for item in arg).map(lambda made: made)
        case slice(start=start, stop=stop, step=step):
            return gather(_place(item, places, of_weight) for item in (start, stop, step)).map(
                lambda ends: slice(*ends)
            )
        case _:
            return Success(arg)


def _filled(arg: object, values: list[object]) -> object:
    """The argument with values in place of slots."""
    kind = type(arg)
    if kind is _Slot:
        return values[arg.at]  # type: ignore[attr-defined]  # kind is _Slot
    if kind is tuple:
        return tuple(_filled(item, values) for item in arg)  # type: ignore[attr-defined]  # as above
    if kind is slice:
        ends = (arg.start, arg.stop, arg.step)  # type: ignore[attr-defined]  # as above
        return slice(*(_filled(end, values) for end in ends))
    return arg


def _program(
    graph: Graph, steps: tuple[_Step, ...], places: Mapping[NodeId, int], of_weight: _Weights
) -> Result[Program, Fault]:
    inputs = tuple(
        None if item.node is None or item.node not in places else _Slot(places[item.node])
        for item in graph.signature.inputs
    )
    return gather(_output_of(leaf, places, of_weight) for leaf in graph.outputs).map(
        lambda outputs: Program(graph, steps, inputs, dict(enumerate(outputs)), len(places))
    )


def _output_of(
    leaf: Arg, places: Mapping[NodeId, int], of_weight: _Weights
) -> Result[object, Fault]:
    if isinstance(leaf, WeightRef):
        # the caller may write into what it is given, never into the graph
        return of_weight(leaf.path).map(torch.clone)
    return _place(as_torch(leaf), places, of_weight)


def _unbound(name: str) -> Fault:
    return Fault(FaultKind.UNBOUND_NAME, f"{name} is not defined", "check the graph")


def _raised(error: Exception, node: Node | None) -> Fault:
    if isinstance(error, Stopped):
        return error.fault
    fault = Fault(
        FaultKind.CALIBRATION_FAILED,
        f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}",
        "run the float model on the same inputs and see whether it raises too",
        detail=str(error),
    )
    return fault if node is None else _at(fault, node)
