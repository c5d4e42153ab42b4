"""Examples of reading parameters as values: what is read so, and that nothing else changes."""

from __future__ import annotations

import torch

from fqx.compat.parameters import read_parameters
from fqx.ir.arg import NodeRef
from fqx.ir.graph import Graph
from fqx.judge.evaluate import evaluate
from fqx.passes.fuse import fuse
from fqx.testing.draft import Draft


def read(graph: Graph) -> tuple[Graph, Graph]:
    """The fused graph and the one behind the pass."""
    trail = fuse().run(graph).unwrap()
    return trail.graph, read_parameters().run(trail).unwrap().graph


def test_parameters_between_activations_become_values() -> None:
    torch.manual_seed(0)
    draft = Draft()
    x, held = draft.input("x", 2, 3), draft.weight("held", torch.randn(2, 3))
    total = draft.call("add", "a", x=x, y=held)
    graph = draft.graph(draft.call("cat", "c", xs=(total, held, held), dim=0))
    before, after = read(graph)
    assert [node.op for node in after] == [
        "input", "contiguous", "add", "contiguous", "contiguous", "cat",
    ]  # fmt: skip
    assert all(
        isinstance(arg, NodeRef) for node in after if node.op in ("add",) for arg in node.args[:2]
    )
    batch = (torch.randn(2, 3),)
    one, two = (evaluate(each, batch, {}).unwrap() for each in (before, after))
    assert isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor)
    assert torch.equal(one, two)


def test_a_weight_of_a_layer_stays_a_weight() -> None:
    draft = Draft()
    weight = draft.weight("w", torch.randn(4, 3))
    graph = draft.graph(draft.call("linear", "l", x=draft.input("x", 2, 3), weight=weight))
    before, after = read(graph)
    assert after is before
