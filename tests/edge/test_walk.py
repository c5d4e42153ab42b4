"""A program run one call at a time is the module's own program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fqx.edge.materialize import materialize
from fqx.edge.walk import Site, Walk
from fqx.ir.names import NodeId
from fqx.passes.lower import lower
from fqx.targets.onednn import onednn
from fqx.testing.small import batches, quantized_trail


def test_a_walk_computes_what_the_module_computes() -> None:
    trail = lower(onednn()).run(quantized_trail()).unwrap()
    module = materialize(trail.graph).unwrap()
    walk, seen = Walk(module), list[Site]()

    def visit(site: Site, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        seen.append(site)
        return run(*args, **kwargs)

    for x in batches():
        seen.clear()
        assert torch.equal(walk(visit, (x,), {}), module(x))
    assert [site.node for site in seen] == [node.id for node in trail.graph if node.op != "input"]
    assert Site("conv2", "conv2", trail.graph.nodes[NodeId("conv2")].op) in seen
    by_name = walk(visit, (), {"x": batches()[0]})
    assert torch.equal(by_name, module(batches()[0]))
