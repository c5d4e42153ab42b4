"""Mappings of torch.ao by example: what is reported, what is a fault, what stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.ao.quantization import QConfigMapping, default_qconfig, get_default_qconfig_mapping
from torch.ao.quantization.fx.tracer import QuantizationTracer

from fqx.compat.mapping import Resolved, resolve_qconfigs, table_of


class Network(nn.Module):
    """Two linears of which one stands in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.head(self.block(x)))


def resolved(mapping: Any) -> Resolved:
    model = Network()
    tracer: Any = QuantizationTracer([], [])
    graph = tracer.trace(model)
    module = torch.fx.GraphModule(model, graph)
    return resolve_qconfigs(module, dict(tracer.node_name_to_scope), mapping).unwrap()


def test_a_stored_none_wins_over_the_levels_below() -> None:
    mapping = {
        "": "global",
        "object_type": [(nn.Linear, "type")],
        "module_name": [("block", None)],
    }
    assert dict(resolved(mapping).qconfigs) == {
        "x": None,
        "block_0": None,
        "block_1": None,
        "head": "type",
        "sigmoid": "global",
        "output": None,
    }


def test_the_entry_that_decides_is_named() -> None:
    order = {"module_name_object_type_order": [("", torch.sigmoid, 0, "order")]}
    assert str(resolved(order).decided["sigmoid"]) == (
        "module_name_object_type_order '', sigmoid, 0"
    )
    assert str(resolved(order).decided["head"]) == "the global QConfig"


def test_entries_that_take_nothing_are_reported() -> None:
    mapping = QConfigMapping().set_module_name("haed", None).set_module_name_regex("bl", None)
    mapping.set_object_type(nn.Conv2d, None)
    assert list(map(str, resolved(mapping).unmatched)) == [
        "object_type Conv2d",
        "module_name 'haed'",
    ]


def test_the_default_mapping_of_torch_is_read() -> None:
    mapping: Any = get_default_qconfig_mapping("x86")
    found = resolved(mapping)
    assert found.qconfigs["head"] is mapping.global_qconfig
    assert found.qconfigs["sigmoid"] is mapping.object_type_qconfigs[torch.sigmoid]


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ({"modul_name": []}, "no part 'modul_name'"),
        ({"module_name": [("head",)]}, "has 2 items"),
        ({"module_name_object_type_order": [("", nn.Linear, None)]}, "has 4 items"),
        ({"module_name_regex": [("(", None)]}, "no regular expression"),
        (QConfigMapping().set_module_name_regex("[", None), "no regular expression"),
        (default_qconfig, "QConfig is no QConfigMapping"),
    ],
)
def test_what_is_no_mapping_is_a_fault(mapping: Any, reason: str) -> None:
    fault = table_of(mapping).failure()
    assert fault.name == "BadRecipe"
    assert reason in fault.reason


def test_a_node_without_a_scope_is_a_fault() -> None:
    module = torch.fx.symbolic_trace(Network())
    fault = resolve_qconfigs(module, {}, QConfigMapping()).failure()
    assert "block_0" in fault.reason
