"""`capture(share=True)`: nothing is copied, and nothing is read that has changed since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import fqx
from fqx.edge.artefact import save_model, save_trail
from fqx.edge.materialize import materialize
from fqx.edge.verify import verify
from fqx.ir.fault import FaultKind
from fqx.ir.trail import Halt, Trail
from fqx.kit.result import Result, fold
from fqx.testing.small import batches, small_net


def shared_trail(model: nn.Module) -> Trail:
    road = fqx.clean() | fqx.fuse()
    return fqx.capture(model, (batches()[0],), share=True).bind(road.run).unwrap()


def calls(folder: Path) -> dict[str, Callable[[Trail], Result[object, Halt]]]:
    """Every public call that reads weights."""
    observed = fqx.observe(fqx.int8_static(), fqx.reference())
    return {
        "run a pass": lambda trail: observed.run(trail),
        "run a pipeline": lambda trail: (observed | fqx.calibrate(batches())).run(trail),
        "materialize": lambda trail: materialize(trail.graph),
        "save a model": lambda trail: save_model(folder / "m.fqx", trail),
        "save a trail": lambda trail: save_trail(folder / "t.fqx", trail),
        "verify": lambda trail: verify(trail),
    }


NAMES = ("run a pass", "run a pipeline", "materialize", "save a model", "save a trail", "verify")


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_weight_is_found_by_every_call(name: str, tmp_path: Path) -> None:
    model = small_net()
    trail = shared_trail(model)
    call = calls(tmp_path)[name]
    call(trail).unwrap()
    for item in tmp_path.iterdir():
        item.unlink()
    with torch.no_grad():
        model.conv2.weight.data[0, 0, 0, 0] += 1.0
    fault = fold(call(trail), lambda _: pytest.fail("no fault"), lambda halt: halt.fault)
    assert fault.kind is FaultKind.STORAGE_CHANGED
    assert fault.module == "conv2.weight"
    assert not list(tmp_path.iterdir())
    with torch.no_grad():
        model.conv2.weight.data[0, 0, 0, 0] -= 1.0
    assert sorted(calls(tmp_path)) == sorted(NAMES)


def test_a_changed_leaf_is_found() -> None:
    model = small_net()
    graph = fqx.capture(model, (batches()[0],), share=True, leaves=("conv2",)).unwrap().graph
    materialize(graph).unwrap()
    with torch.no_grad():
        model.conv2.weight.zero_()
    fault = fold(materialize(graph), lambda _: pytest.fail("no fault"), lambda halt: halt.fault)
    assert (fault.kind, fault.module) == (FaultKind.STORAGE_CHANGED, "conv2")


def test_copies_do_not_care() -> None:
    model = small_net()
    graph = fqx.capture(model, (batches()[0],)).unwrap().graph
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
    materialize(graph).unwrap()


def test_a_weight_that_fuse_made_is_no_longer_shared() -> None:
    """What a pass computes is the graph's own, also a transposed column that torch calls dense."""

    class Spelt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w

    model = Spelt().eval()
    trail = fqx.capture(model, (torch.ones(2, 4),), share=True).bind(fqx.fuse().run).unwrap()
    made = [weight for path, weight in trail.graph.weights.items() if path.endswith("_t")]
    assert made, "fuse made a linear of it"
    with torch.no_grad():
        model.w.zero_()
    assert all(isinstance(w.payload, torch.Tensor) and w.payload.all() for w in made)
    fault = fold(materialize(trail.base), lambda _: None, lambda halt: halt.fault)
    assert fault is not None
    assert fault.module == "w"
