"""The law of mappings: each node has the QConfig torch.ao resolves for it, on drawn mappings."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.ao.quantization import QConfigMapping
from torch.ao.quantization.fx import qconfig_mapping_utils
from torch.ao.quantization.fx.tracer import QuantizationTracer

from fqx.compat.mapping import Resolved, resolve_qconfigs


class Block(nn.Module):
    """Modules, a function twice, a method, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = nn.ReLU()
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = F.relu(self.linear(x) + self.bias)
        return F.relu(self.act(self.linear(seen)).reshape(-1, 4))


class Nested(nn.Module):
    """Blocks inside sequences, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(Block(), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Block()))
        self.head = nn.Linear(4, 4)
        self.again = self.head
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(F.relu(self.head(self.features(x) * self.scale)))
        return torch.sigmoid(x).reshape(-1).sigmoid()


class Convolutions(nn.Module):
    """Another set of types, with names that begin alike."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.conv1 = nn.Conv2d(2, 2, 3)
        self.convs = nn.ModuleList([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(self.conv(x))
        for conv in self.convs:
            x = torch.add(conv(x), F.relu(x))
        return x.flatten(1)


MODELS = {kind.__name__: kind for kind in (Block, Nested, Convolutions)}
TYPES: tuple[Any, ...] = (
    *(nn.Linear, nn.ReLU, nn.Conv2d, nn.Sequential, Block, torch.fx.GraphModule),
    *(F.relu, torch.sigmoid, torch.add, "reshape", "sigmoid", "flatten"),
)
PATHS = (
    *("", "linear", "act", "head", "again", "features", "features.0", "features.0.linear"),
    *("features.1", "features.1.0", "features.1.2.act", "conv", "convs", "convs.1"),
)
PARENTS = ("", "linear", "features.0", "features.1", "features.1.2", "convs", "convs.0")
REPEATED: tuple[Any, ...] = (nn.Linear, nn.ReLU, nn.Conv2d, F.relu, torch.add, torch.sigmoid)
PATTERNS = ("lin", "conv", r"conv\d", r"features\.1", r".*act", "", r"convs\.[01]$")


@st.composite
def lines(draw: st.DrawFn) -> dict[str, Any]:
    """A mapping in its dict form, each QConfig a string of its own or None."""
    count = iter(range(1000))

    def qconfig() -> str | None:
        return None if draw(st.integers(0, 4)) == 0 else f"qconfig {next(count)}"

    def some(keys: tuple[Any, ...], most: int) -> list[tuple[Any, Any]]:
        drawn = draw(st.lists(st.sampled_from(keys), max_size=most))
        return [(key, qconfig()) for key in drawn]

    order = st.tuples(st.sampled_from(PARENTS), st.sampled_from(REPEATED), st.integers(0, 1))
    return {
        "": qconfig(),
        "object_type": some(TYPES, 6),
        "module_name_regex": some(PATTERNS, 3),
        "module_name": some(PATHS, 4),
        "module_name_object_type_order": [
            (*key, qconfig()) for key in draw(st.lists(order, max_size=6))
        ],
    }


def traced(model: nn.Module) -> tuple[torch.fx.GraphModule, dict[str, tuple[str, Any]]]:
    """The model as torch.ao traces it, with the scope of each node."""
    tracer: Any = QuantizationTracer([], [])
    graph = tracer.trace(model)
    return torch.fx.GraphModule(model, graph), dict(tracer.node_name_to_scope)


def peer(
    module: torch.fx.GraphModule, scopes: dict[str, tuple[str, Any]], mapping: QConfigMapping
) -> dict[str, Any]:
    """What torch.ao resolves, before it wraps the answers for the device of a module."""
    with mock.patch.object(
        qconfig_mapping_utils, "_add_module_to_qconfig_obs_ctr", lambda qconfig, _: qconfig
    ):
        held = dict(module.named_modules(remove_duplicate=False))
        return qconfig_mapping_utils._generate_node_name_to_qconfig(
            module, held, module.graph, mapping, scopes
        )


@pytest.mark.parametrize("name", MODELS)
@given(said=lines())
def test_each_node_has_the_qconfig_torch_resolves(name: str, said: dict[str, Any]) -> None:
    module, scopes = traced(MODELS[name]())
    mapping = QConfigMapping.from_dict(said)
    before = copy.deepcopy(mapping.to_dict())
    found = resolve_qconfigs(module, scopes, mapping).unwrap()
    assert dict(found.qconfigs) == peer(module, scopes, copy.deepcopy(mapping))
    assert mapping.to_dict() == before
    assert same(found, resolve_qconfigs(module, scopes, said).unwrap())


@pytest.mark.parametrize("name", MODELS)
@given(said=lines())
def test_entries_reported_without_effect_can_go(name: str, said: dict[str, Any]) -> None:
    module, scopes = traced(MODELS[name]())
    found = resolve_qconfigs(module, scopes, said).unwrap()
    useless = {(entry.field, entry.key) for entry in found.unmatched}
    rest: dict[str, Any] = {"": said[""]}
    for field in (field for field in said if field):
        keyed = [(line[0] if len(line) == 2 else tuple(line[:-1]), line) for line in said[field]]
        rest[field] = [line for key, line in keyed if (field, key) not in useless]
    left = resolve_qconfigs(module, scopes, rest).unwrap()
    assert not left.unmatched
    assert left.qconfigs == found.qconfigs


def same(one: Resolved, two: Resolved) -> bool:
    """Whether the object and the dict form say the same."""
    return one.qconfigs == two.qconfigs and set(one.unmatched) == set(two.unmatched)
