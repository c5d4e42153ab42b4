"""Attributes of the original model that a materialized module carries."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import nn

from fqx import capture, materialize
from fqx.ir.fault import FaultKind


def graph() -> Any:
    """A linear."""
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    return capture(model, (torch.ones(3, 4),)).unwrap().graph


def test_attributes_go_along_with_copies_and_pickles() -> None:
    labels, table = ("cat", "dog"), torch.arange(3)
    module: Any = materialize(graph(), preserve={"labels": labels, "table": table}).unwrap()
    plain = materialize(graph()).unwrap()
    assert module.state_dict().keys() == plain.state_dict().keys()
    for twin in (
        module,
        copy.copy(module),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(pickle.loads(pickle.dumps(module))),
    ):
        assert twin.labels == labels and torch.equal(twin.table, table)
    assert copy.deepcopy(module).table is not table and copy.copy(module).table is table


def test_a_name_the_module_has_already_is_a_fault() -> None:
    for name in ("forward", "0", "training"):
        halt = materialize(graph(), preserve={name: 1}).failure()
        assert halt.fault.kind is FaultKind.BAD_ARGUMENT
        assert repr(name) in halt.fault.reason


def test_a_tensor_the_program_keeps_anyway_may_be_asked_for() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.arange(3.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.get_buffer("shift")

    model, x = Shifted(), torch.ones(2, 3)
    trail = capture(model, (x,)).unwrap()
    kept = {"shift": model.get_buffer("shift"), "note": "ours"}
    module = materialize(trail.graph, preserve=kept).unwrap()
    assert module.note == "ours"
    assert torch.equal(module(x), model(x))
    other = materialize(trail.graph, preserve={"shift": torch.zeros(3)})
    assert "'shift'" in str(other.failure())
