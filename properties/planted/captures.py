"""Captures and float modules, each wrong in one way, and the law that must say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fqx.edge.materialize import materialize
from fqx.ir.arg import NodeRef, canonical
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName
from fqx.ir.node import Node
from fqx.ir.signature import encode_type
from fqx.kit.frozen import row
from fqx.ops.types import types
from fqx.testing.captures import Captured, How, captured, taken
from fqx.testing.laws import tensors_in
from fqx.testing.models import Drawn, Instruction, ModelSample

Take: TypeAlias = Callable[[nn.Module, tuple[Tensor, ...], How], Graph]

SAMPLE = ModelSample(
    (
        Instruction("module:conv:0", 0, (0,)),
        Instruction("unary_:relu", 0, (2,)),
        Instruction("unary:double", 0, (1,)),
        Instruction("binary:add", 0, (2, 3)),
        Instruction("move:turned", 0, (5,)),
        Instruction("binary:mul", 0, (4, 6)),
    ),
    "tuple",
    3,
)
"""A convolution whose value is written by relu_ and read again under both names."""

OTHER = replace(
    SAMPLE,
    instructions=tuple(
        replace(item, spelling=1) if item.what in ("unary:double", "binary:add") else item
        for item in SAMPLE.instructions
    ),
)
"""The same in other spellings."""


@dataclass(frozen=True, slots=True)
class Planted:
    """A wrong capture or module, and the law it breaks."""

    law: str
    title: str
    take: Take = taken
    module: Callable[[Graph], Callable[..., object]] | None = None

    def subject(self) -> Captured:
        """The sample, taken in this way."""
        if self.module is None:
            return captured(SAMPLE, OTHER, self.take)
        return captured(SAMPLE, OTHER, self.take, self.module)


def _first(graph: Graph, op: str) -> Node:
    return next(node for node in graph if node.op == op)


def _put(graph: Graph, node: Node) -> Graph:
    return replace(graph, nodes=graph.nodes.put(node.id, node))


def _renaming(model: nn.Module, inputs: tuple[Tensor, ...], how: How) -> Graph:
    """relu_ renamed to relu: who reads the written value under its old name reads the old one."""
    graph = taken(model, inputs, how)
    conv, add = _first(graph, "conv2d"), _first(graph, "add")
    return _put(graph, add.with_args((NodeRef(conv.id), *add.args[1:])))


def _symbolic_alone(model: nn.Module, inputs: tuple[Tensor, ...], how: How) -> Graph:
    """One front end gives a scope that the other does not know."""
    graph = taken(model, inputs, how)
    if how == "export":
        return graph
    conv = _first(graph, "conv2d")
    return _put(graph, replace(conv, origin=replace(conv.origin, scope=())))


def _marking(model: nn.Module, inputs: tuple[Tensor, ...], how: How) -> Graph:
    """Leaves an attribute on the model."""
    model.captured = True  # type: ignore[assignment]  # nn.Module types its attributes as modules
    return taken(model, inputs, how)


def _hooking(model: nn.Module, inputs: tuple[Tensor, ...], how: How) -> Graph:
    """Leaves a hook on the model."""
    model.register_forward_hook(lambda *_: None)
    return taken(model, inputs, how)


def _counting() -> Take:
    """Another name on every third call."""
    numbers: Iterator[int] = count()

    def take(model: nn.Module, inputs: tuple[Tensor, ...], how: How) -> Graph:
        return _with_dead(taken(model, inputs, how), f"call_{next(numbers) % 3 // 2}")

    return take


def _with_dead(graph: Graph, name: str) -> Graph:
    dead = Node(NodeId(name), OpName("relu"), (NodeRef(NodeId("@x")),))
    order = row((*graph.order, dead.id))
    return replace(graph, nodes=graph.nodes.put(dead.id, dead), order=order)


def _sharing(model: nn.Module, inputs: tuple[Tensor, ...], how: How) -> Graph:
    """Keeps the model's own tensors."""
    return taken(model, inputs, how, share=True)


def _literal(model: nn.Module, inputs: tuple[Tensor, ...], how: How) -> Graph:
    """Keeps a trace of how the model was spelled."""
    graph = taken(model, inputs, how)
    spelled = isinstance(model, Drawn) and any(item.spelling for item in model.instructions)
    return _with_dead(graph, "torch_mul") if spelled else graph


def _foreign(model: nn.Module, inputs: tuple[Tensor, ...], how: How) -> Graph:
    """Leaves an operator of the catalogue as torch calls it."""
    graph = taken(model, inputs, how)
    relu = _first(graph, "relu")
    return _put(graph, _aten(graph, relu))


def _aten(graph: Graph, relu: Node) -> Node:
    held = canonical(encode_type(types(graph)[relu.id]))
    return replace(relu, op=OpName("aten.relu.default"), attrs=relu.attrs.put("type", held))


def _channels_last(graph: Graph) -> Callable[..., object]:
    """A module whose outputs lie channels last whatever the model's do."""
    module = materialize(graph).unwrap()

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        made = tensors_in(module(*given))
        return tuple(item.contiguous(memory_format=torch.channels_last) for item in made)

    return run


def _coarse(graph: Graph) -> Callable[..., object]:
    """A module that computes in another precision."""
    module = materialize(graph).unwrap()
    return lambda *given: tuple(item.bfloat16().float() for item in tensors_in(module(*given)))


MODULES: Mapping[str, Callable[[Graph], Callable[..., object]]] = MappingProxyType(
    {"other memory formats": _channels_last, "another precision": _coarse}
)

CASES: tuple[Planted, ...] = (
    Planted("means_the_model", "relu_ renamed to relu, its value read again", _renaming),
    Planted("front_ends_agree", "a scope that one front end loses", _symbolic_alone),
    Planted("leaves_model_alone", "an attribute left on the model", _marking),
    Planted("leaves_model_alone", "a hook left on the model", _hooking),
    Planted("capture_is_deterministic", "a counter that outlives the call", _counting()),
    Planted("graph_is_isolated", "the model's own tensors kept", _sharing),
    Planted("spelling_is_free", "torch.mul kept apart from *", _literal),
    Planted("is_canonical", "a foreign call where a row would do", _foreign),
    *(
        Planted("module_computes_its_graph", title, module=module)
        for title, module in MODULES.items()
    ),
)
"""At least one for every law of capture."""
