"""The laws of capture and of the float module, on a drawn model.

`captured` takes a model in through both front ends, again, and in another spelling, and keeps what
it saw on the way; `broken(CAPTURE_LAWS, captured(sample, other))` says which claims fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from fqx.edge import capture as front
from fqx.edge.materialize import materialize
from fqx.ir.graph import Graph
from fqx.judge.evaluate import evaluate
from fqx.num.tensors import is_intact
from fqx.ops.types import types
from fqx.testing.laws import Law, tensors_in
from fqx.testing.models import ModelSample

__all__ = ["BATCHES", "CAPTURE_LAWS", "Captured", "How", "captured", "taken"]

How = Literal["export", "symbolic"]
Take: TypeAlias = Callable[[nn.Module, tuple[Tensor, ...], How], Graph]
Make: TypeAlias = Callable[[Graph], Callable[..., object]]

BATCHES = (1, 2, 5)
"""Batch sizes every claim about values is checked at."""


def taken(model: nn.Module, inputs: tuple[Tensor, ...], how: How, share: bool = False) -> Graph:
    """The library's own capture."""
    return front.capture(model, inputs, how=how, share=share).unwrap().graph


def _module(graph: Graph) -> Callable[..., object]:
    return materialize(graph).unwrap()


@dataclass(frozen=True, slots=True, repr=False)
class Captured:
    """One model's graphs, and what capture left behind.

    `graphs` are of both front ends; `again` is a second export of a second instance whose
    parameters were written into afterwards; `respelled` is of the model in another spelling.
    `left` names what is not as it was on the models and inputs handed in.
    """

    sample: ModelSample
    graphs: Mapping[How, Graph]
    again: Graph
    respelled: Graph
    left: tuple[str, ...]
    module: Make = _module

    def __repr__(self) -> str:
        return str(self.sample)

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(repr(self))


def captured(
    sample: ModelSample, other: ModelSample, take: Take = taken, module: Make = _module
) -> Captured:
    """Capture a model in every way its laws speak of; `other` is the same in other spellings."""
    graphs: dict[How, Graph] = {}
    left: list[str] = []
    for how in ("export", "symbolic"):
        model, inputs = sample.model(), sample.inputs()
        before, held = _snapshot(model), [item.clone() for item in inputs]
        graphs[how] = take(model, inputs, how)
        left += [f"{name} ({how})" for name in _differences(before, _snapshot(model))]
        same = all(torch.equal(one, two) for one, two in zip(inputs, held, strict=True))
        left += [] if same else [f"an input ({how})"]
    victim = sample.model()
    again = take(victim, sample.inputs(), "export")
    with torch.no_grad():
        for tensor in (*victim.parameters(), *victim.buffers()):
            tensor.add_(1)
    respelled = take(other.model(), other.inputs(), "export")
    return Captured(sample, MappingProxyType(graphs), again, respelled, tuple(left), module)


def _snapshot(model: nn.Module) -> dict[str, object]:
    seen: dict[str, object] = {}
    for path, module in model.named_modules():
        seen[f"{path or 'the model'}'s type"] = type(module)
        for name, value in vars(module).items():
            seen[f"{path}.{name}"] = id(value)
        # hooks and submodules live in containers whose identity does not change
        for name in ("_forward_hooks", "_forward_pre_hooks", "_modules", "_parameters", "_buffers"):
            seen[f"{path}.{name} keys"] = tuple(vars(module)[name])
    for path, tensor in model.state_dict(keep_vars=True).items():
        content = tensor.detach().clone().numpy().tobytes()
        seen[f"{path}'s tensor"] = (id(tensor), tensor._version, content)
    return seen


def _differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    names = {**before, **after}
    return [name for name in names if before.get(name, ...) != after.get(name, ...)]


def _run(model: Callable[..., object], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(model(*(item.clone() for item in inputs)))


def _judged(graph: Graph, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return tensors_in(evaluate(graph, tuple(item.clone() for item in inputs)).unwrap())


def _apart(expected: list[Tensor], got: list[Tensor]) -> str | None:
    if len(expected) != len(got):
        return f"{len(got)} outputs instead of {len(expected)}"
    for index, (one, two) in enumerate(zip(expected, got, strict=True)):
        if one.shape != two.shape or one.dtype != two.dtype:
            return f"output {index} is {two.dtype}{list(two.shape)}"
        if not torch.equal(one, two):
            return f"output {index} is {(one - two).abs().max().item()} off"
    return None


def _means_the_model(seen: Captured) -> str | None:
    model = seen.sample.model()
    for batch in BATCHES:
        inputs = seen.sample.inputs(batch)
        account = _apart(_run(model, inputs), _judged(seen.graphs["export"], inputs))
        if account:
            return f"for a batch of {batch} {account}"
    return None


def _front_ends_agree(seen: Captured) -> str | None:
    one, two = seen.graphs["export"], seen.graphs["symbolic"]
    for ours, theirs in zip(one, two, strict=False):
        if ours != theirs or ours.origin.scope != theirs.origin.scope:
            return f"export gives {ours.code}, symbolic {theirs.code}"
    return None if one.digest == two.digest else "the two graphs differ beside their nodes"


def _leaves_model_alone(seen: Captured) -> str | None:
    return f"capture changed {', '.join(seen.left)}" if seen.left else None


def _is_deterministic(seen: Captured) -> str | None:
    same = seen.again.digest == seen.graphs["export"].digest
    return None if same else "a second instance gives another graph"


def _is_isolated(seen: Captured) -> str | None:
    spoiled = [path for path, weight in seen.again.weights.items() if not is_intact(weight)]
    return f"writing into the model changed {', '.join(spoiled)}" if spoiled else None


def _spelling_is_free(seen: Captured) -> str | None:
    one, two = seen.graphs["export"], seen.respelled
    pairs = zip(one, two, strict=False)
    apart = next((pair for pair in pairs if pair[0] != pair[1]), None)
    return None if one.digest == two.digest else f"another spelling gives another graph: {apart}"


def _is_canonical(seen: Captured) -> str | None:
    graph = seen.graphs["export"]
    foreign = [node.id for node in graph if node.op.startswith("aten.")]
    untyped = set(graph.nodes) - set(types(graph))
    return f"foreign: {foreign}, untyped: {sorted(untyped)}" if foreign or untyped else None


def _module_computes_its_graph(seen: Captured) -> str | None:
    module, model = seen.module(seen.graphs["export"]), seen.sample.model()
    for batch in BATCHES:
        inputs = seen.sample.inputs(batch)
        got = _run(module, inputs)
        account = _apart(_judged(seen.graphs["export"], inputs), got)
        if account:
            return f"for a batch of {batch} {account}"
        pairs = zip(_run(model, inputs), got, strict=True)
        if any(_is_dense(one) and _strides(one) != _strides(two) for one, two in pairs):
            return f"for a batch of {batch} the outputs lie otherwise in memory"
    return None


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of the axes that are stepped along at all."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tuple(stride for size, stride in pairs if size > 1)


def _is_dense(tensor: Tensor) -> bool:
    """Whether it has a memory format: a view into a larger tensor has none to keep."""
    return tensor.is_contiguous() or (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )


CAPTURE_LAWS: tuple[Law[Captured], ...] = (
    Law("means_the_model", "the graph computes the model bit for bit", _means_the_model),
    Law("front_ends_agree", "export and symbolic give one graph", _front_ends_agree),
    Law("leaves_model_alone", "nothing is left behind on the model", _leaves_model_alone),
    Law("capture_is_deterministic", "equal models give equal graphs", _is_deterministic),
    Law("graph_is_isolated", "writing into the model changes no graph", _is_isolated),
    Law("spelling_is_free", "every spelling gives the same graph", _spelling_is_free),
    Law("is_canonical", "catalogue operators stay no foreign calls", _is_canonical),
    Law(
        "module_computes_its_graph",
        "the float module computes its graph bit for bit, in the model's memory formats",
        _module_computes_its_graph,
    ),
)
"""Laws of every model made of what the catalogue knows."""
