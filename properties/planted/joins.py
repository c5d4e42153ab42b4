"""Joined kernels, each wrong in one way, which the law of their results must say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fqx.ir.arg import WeightRef
from fqx.ir.compare import edits_between
from fqx.ir.diff import rewritten
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path, RuleName
from fqx.kit.result import Result
from fqx.num.tensors import tensor_of, weight_of
from fqx.passes.calibrate import calibrate
from fqx.passes.convert import convert
from fqx.passes.fold import fold
from fqx.passes.fuse_kernels import fuse_kernels
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.passes.pipeline import Pass, Rewrite
from fqx.policy.recipe import int8_static
from fqx.targets.onednn import onednn
from fqx.testing.draft import Draft

NAMES = ("query", "key", "value")


@dataclass(frozen=True, slots=True)
class Planted:
    """A wrong change of the joined program."""

    title: str
    spoil: Callable[[Graph], Graph]

    def rewrite(self) -> Pass:
        """`fuse_kernels`, spoilt behind."""
        right = fuse_kernels(onednn())
        return replace(right, rewrite=lambda graph: _spoilt(right, graph, self.spoil))


def _spoilt(right: Pass, graph: Graph, spoil: Callable[[Graph], Graph]) -> Result[Rewrite, Fault]:
    def change(made: Rewrite) -> Result[Rewrite, Fault]:
        if made.graph is graph:
            return rewritten(graph, ()).map(lambda done: Rewrite(done.graph, done.diff))
        edits = edits_between(graph, spoil(made.graph), lambda _: RuleName("planted"))
        return rewritten(graph, edits).map(lambda done: Rewrite(done.graph, done.diff))

    return right.rewrite(graph).bind(change)


def sample() -> Graph:
    """Three linears on one value times a factor, each cut into heads; lowered for onednn."""
    draft, random = Draft(), torch.Generator().manual_seed(5)
    x = draft.input("x", "batch", 3, 8)
    factor = draft.weight("factor", 10.0 ** torch.randn(8, generator=random))
    x = draft.call("mul", "scaled", x=x, y=factor)
    outputs = []
    for name in NAMES:
        weight = draft.weight(f"{name}.weight", torch.randn(8, 8, generator=random))
        bias = draft.weight(f"{name}.bias", torch.randn(8, generator=random))
        y = draft.call("linear", name, x=x, weight=weight, bias=bias)
        outputs.append(draft.call("sin", f"{name}:sin", x=y))
    road = observe(int8_static(), onednn()) | calibrate([inputs()], progress=False)
    road = road | convert(onednn()) | fold() | lower(onednn())
    return road.run(draft.graph(*outputs)).unwrap().graph


def inputs() -> tuple[torch.Tensor, ...]:
    """A batch of two."""
    return (torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(6)),)


def _swapped(graph: Graph) -> Graph:
    """Keys where the values belong."""
    key, value = (graph[NodeId(name)] for name in ("key", "value"))
    return replace(
        graph,
        nodes=graph.nodes.edit(
            {
                key.id: key.with_args(value.args),
                value.id: value.with_args(key.args),
            }
        ),
    )


def _one_scale(graph: Graph) -> Graph:
    """The scales of the first weight for all three."""
    return _changed(graph, "weight_scale", lambda held: held[:8].repeat(3))


def _without_biases(graph: Graph) -> Graph:
    """Only the first bias."""
    return _changed(graph, "bias", lambda held: torch.cat((held[:8], torch.zeros(16))))


def _changed(graph: Graph, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Graph:
    path = Path(f"query_key_value.{name}")
    held = graph.weights[path]
    made = weight_of(change(tensor_of(held).unwrap()), held.role)
    return replace(graph, weights=graph.weights.put(path, made))


def _without_factor(graph: Graph) -> Graph:
    """The quantizer multiplies by one."""
    node = next(node for node in graph if node.op == "plain.quantize_scaled")
    factor = node.args[1]
    assert isinstance(factor, WeightRef)
    held = graph.weights[factor.path]
    made = weight_of(torch.ones(held.shape), held.role)
    return replace(graph, weights=graph.weights.put(factor.path, made))


CASES: tuple[Planted, ...] = (
    Planted("takes one part's columns for another's", _swapped),
    Planted("keeps the scales of one part for all", _one_scale),
    Planted("forgets the biases behind the first", _without_biases),
    Planted("loses the factor in front of the quantizer", _without_factor),
)
"""Wrong in one way each."""
