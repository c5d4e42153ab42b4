"""The observed program as an ordinary module: calling it calibrates.

The observers are modules named as torch names them (`activation_post_process_0`), whose buffers are
the states of `fqx.num.observers`; everything they compute is computed there. `state_dict`,
`load_state_dict`, `deepcopy` and pickling therefore work as for any module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fqx.edge.materialize import NODE, materialize
from fqx.ir.arg import NodeRef
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.ir.trail import Halt
from fqx.ir.weight import Weight
from fqx.kit.result import Result, fold
from fqx.num.observers import State, empty, observe, state_of
from fqx.num.scheme import ObserverSpec
from fqx.num.states import observers_of
from fqx.num.tensors import weight_of
from fqx.passes.calibrate import Stats, machine
from fqx.policy.plan import Plan

PREFIX = "activation_post_process_"
"""What torch calls an observer; a number follows."""


class Observer(nn.Module):
    """Hands its input on and keeps what it saw; `spec` says what that is.

    Raises the Halt of `fqx.num.observers.observe`, naming the observed node, on a tensor that
    cannot be measured; its state then is as it was.
    """

    def __init__(self, spec: ObserverSpec, value: Node) -> None:
        super().__init__()
        self.spec = spec
        self._value = value
        for name, tensor in empty(spec).tensors().items():
            self.register_buffer(name, tensor)

    @property
    def state(self) -> State:
        """What was seen so far, as a value."""
        return state_of({name: self.get_buffer(name) for name in self._buffers})

    def forward(self, x: object) -> object:
        """The input itself, which was looked at if it is a tensor."""
        if isinstance(x, Tensor):
            seen = observe(self.spec, self.state, x).alt(self._located)
            # a state is a value: the buffers are replaced and never written into
            self._buffers.update(fold(seen, State.tensors, _raise))
        return x

    def _located(self, fault: Fault) -> Halt:
        origin = self._value.origin
        return Halt(fault.located(self._value.id, origin.module, origin.source))

    def _apply(self, _fn: Callable[[Tensor], Tensor], _recurse: bool = True) -> Observer:
        """Nothing: a state keeps its dtypes, whatever the model around it is cast to."""
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        _metadata: Any,
        _strict: bool,
        missing_keys: list[str],
        _unexpected: list[str],
        error_msgs: list[str],
    ) -> None:
        # the number of channels is known after the first batch only, so shapes may differ
        for name, own in self._buffers.items():
            given = state_dict.get(prefix + name)
            if given is None:
                missing_keys.append(prefix + name)
            elif own is not None and (given.dtype, given.dim()) != (own.dtype, own.dim()):
                error_msgs.append(f"{prefix}{name} is not the state of a {self.spec.kind} observer")
            else:
                self._buffers[name] = given.detach().clone()

    def extra_repr(self) -> str:
        """What is collected and what was seen."""
        return f"{self.spec.kind}, {self.state!r}"


@dataclass(frozen=True, slots=True)
class Preparation:
    """The program an observed module runs, its observers by node, and what convert has to know.

    `plan` says of every node what becomes of it and why.
    """

    graph: Graph
    observers: Mapping[NodeId, str]
    settings: object
    plan: Plan


class Observed(fx.GraphModule):
    """An observed program; see `observed` for how it is made and `calibrated` for its data."""

    fqx_preparation: Preparation

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        preparation: Preparation,
    ) -> None:
        super().__init__(root, graph, "Observed")
        self.__dict__["fqx_preparation"] = preparation
        self.__dict__["_drawn"] = graph.python_code("self").src

    @property
    def fqx_plan(self) -> Plan:
        """What becomes of every node and why."""
        return self.fqx_preparation.plan

    @property
    def is_edited(self) -> bool:
        """Whether somebody changed the fx graph since it was made."""
        return bool(self.graph.python_code("self").src != self.__dict__["_drawn"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Observed:
        twin = _revived(
            self.fqx_preparation,
            copy.deepcopy(self.graph),
            copy.deepcopy(_tables(self), memo),
            self.training,
        )
        twin.__dict__["_drawn"] = self.__dict__["_drawn"]
        memo[id(self)] = twin
        return twin

    def __reduce__(self) -> Any:
        parts = (self.fqx_preparation, None, _tables(self), self.training)
        return _revived, parts


def observed(graph: Graph, settings: object, plan: Plan) -> Result[Observed, Halt]:
    """An OBSERVED graph as a module; `settings` and `plan` travel with it.

    Faults as of `materialize`.
    """
    return (
        observers_of(graph)
        .alt(Halt)
        .bind(
            lambda specs: materialize(graph).map(
                lambda module: _assembled(graph, specs, module, settings, plan)
            )
        )
    )


def calibrated(module: Observed) -> Stats:
    """What the module's observers have seen."""
    states = {
        name: module.get_submodule(path).state
        for name, path in module.fqx_preparation.observers.items()
    }
    return Stats(1, states, machine())  # type: ignore[arg-type]


def current(module: Observed) -> Graph:
    """The module's program with the weights the module holds now."""
    graph = module.fqx_preparation.graph
    held: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    held |= dict(module.named_buffers(remove_duplicate=False))
    changed = {
        path: _weight(weight, held[path])
        for path, weight in graph.weights.items()
        if path in held and not _is_same(held[path], weight.payload)
    }
    return replace(graph, weights=graph.weights.edit(changed, ())) if changed else graph


def kept_whole(module: Observed) -> dict[str, nn.Module]:
    """The modules the program keeps whole, by path."""
    return {str(path): module.get_submodule(path) for path in module.fqx_preparation.graph.leaves}


def _raise(halt: Halt) -> Any:
    raise halt


def _is_same(held: Tensor, payload: object) -> bool:
    return (
        isinstance(payload, Tensor) and held.dtype == payload.dtype and torch.equal(held, payload)
    )


def _weight(old: Weight, held: Tensor) -> Weight:
    return weight_of(held, old.role, persistent=old.persistent, requires_grad=old.requires_grad)


def _assembled(
    graph: Graph,
    specs: Mapping[NodeId, ObserverSpec],
    module: fx.GraphModule,
    settings: object,
    plan: Plan,
) -> Observed:
    """The materialized module with an observer behind every value that is watched."""
    root = nn.Module()
    for table, held in _tables(module).items():
        getattr(root, table).update(held)
    drawn = copy.deepcopy(module.graph)
    values = {node.meta[NODE]: node for node in drawn.nodes if NODE in node.meta}
    last_input = [node for node in drawn.nodes if node.op == "placeholder"][-1:]
    paths: dict[NodeId, str] = {}
    for (name, spec), path in zip(specs.items(), _names(root), strict=False):
        ref = graph[name].args[0]
        if not isinstance(ref, NodeRef):
            continue
        root.add_module(path, Observer(spec, graph[ref.id]))
        paths[name] = path
        value = values[str(ref.id)]
        behind = last_input[0] if value.op == "placeholder" else value
        with drawn.inserting_after(behind):
            watched = drawn.call_module(path, (value,))
        value.replace_all_uses_with(watched, lambda user, watched=watched: user is not watched)
        values[str(ref.id)] = watched
    return Observed(root.eval(), drawn, Preparation(graph, paths, settings, plan))


def _names(root: nn.Module) -> Iterator[str]:
    number = 0
    while True:
        if not hasattr(root, f"{PREFIX}{number}"):
            yield f"{PREFIX}{number}"
        number += 1


def _tables(module: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        table: dict(getattr(module, table)) for table in ("_parameters", "_buffers", "_modules")
    }


def _revived(
    preparation: Preparation,
    graph: fx.Graph | None,
    tables: Mapping[str, Mapping[str, Any]],
    training: bool,
) -> Observed:
    root = nn.Module()
    if graph is None:
        made = observed(preparation.graph, preparation.settings, preparation.plan)
        graph = fold(made, lambda found: found.graph, _raise)
    for table, held in tables.items():
        getattr(root, table).update(held)
    twin = Observed(root, graph, preparation)
    twin.train(training)
    return twin
