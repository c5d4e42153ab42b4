"""Signatures: any tree of inputs and outputs, constants of the call, axes that vary."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fqx.edge.capture import How, capture
from fqx.ir.fault import FaultKind
from fqx.ir.signature import TensorType, named
from fqx.ir.tree import build, fit_call
from fqx.judge.evaluate import evaluate

BOTH: tuple[How, ...] = ("export", "symbolic")
Pair = namedtuple("Pair", "one two")


@dataclass
class Record:
    one: Tensor
    two: object


class Takes(nn.Module):
    def forward(
        self,
        d: Mapping[str, Any],
        mask: Tensor | None = None,
        *,
        scale: float = 2.0,
        more: Tensor | None = None,
    ) -> dict[str, Any]:
        x, y = d["x"], d["y"]
        out = x * scale + y[0]
        if mask is not None:
            out = out * mask
        if more is not None:
            out = out + more
        return {"out": out, "none": None, "deep": (out, [3, "s", x.shape[0]])}


@pytest.mark.parametrize("how", BOTH)
def test_any_tree_goes_in_and_out(how: How) -> None:
    model = Takes()
    args = ({"x": torch.randn(2, 3), "y": [torch.randn(2, 3)]}, None)
    more = torch.randn(2, 3)
    graph = capture(model, args, kwargs={"more": more}, how=how).unwrap().graph
    names = [(item.name, item.node) for item in graph.signature.inputs]
    assert names == [("d.x", "@d.x"), ("d.y.0", "@d.y.0"), ("mask", None), ("more", "@more")]
    got = evaluate(graph, args, {"more": more}).unwrap()
    wanted = model(*args, more=more)
    assert isinstance(got, dict)
    assert torch.equal(got["out"], wanted["out"])
    assert got["none"] is None
    assert got["deep"][1] == [3, "s", 2]


@pytest.mark.parametrize("how", BOTH)
def test_constants_of_the_call_are_part_of_the_signature(how: How) -> None:
    example = {"d": {"x": torch.randn(2, 3), "y": [torch.randn(2, 3)]}, "scale": 3.0}
    graph = capture(Takes(), example, how=how).unwrap().graph
    constants = {i.name: i.constant for i in graph.signature.inputs if i.node is None}
    assert constants == {"scale": 3.0}
    refused = fit_call(graph.signature, (), {**example, "scale": 4.0}).failure()
    assert refused.kind is FaultKind.INPUT_DOES_NOT_FIT
    assert "scale" in refused.reason


@pytest.mark.parametrize("how", BOTH)
def test_containers_keep_their_classes(how: How) -> None:
    class Gives(nn.Module):
        def forward(self, given: Record) -> object:
            x = given.one
            return OrderedDict(pair=Pair(x, x + 1), record=Record(x, [x, {1: x}]))

    x = torch.randn(2, 3)
    graph = capture(Gives(), (Record(x, None),), how=how).unwrap().graph
    got = evaluate(graph, (Record(x, None),), {}).unwrap()
    assert type(got) is OrderedDict
    assert type(got["pair"]) is Pair
    assert type(got["record"]) is Record
    assert torch.equal(got["pair"].two, x + 1)


@pytest.mark.parametrize("how", BOTH)
def test_variadic_arguments(how: How) -> None:
    class Many(nn.Module):
        def forward(self, *xs: Tensor, **named: Tensor) -> Tensor:
            return sum(xs, named["last"])

    x = torch.randn(2, 3)
    graph = capture(Many(), (x, x), kwargs={"last": x}, how=how).unwrap().graph
    assert [item.name for item in graph.signature.inputs] == ["xs.0", "xs.1", "last"]
    got = evaluate(graph, (x, x), {"last": x}).unwrap()
    assert isinstance(got, Tensor)
    assert torch.equal(got, x + x + x)


def test_names_and_positions_are_one() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x - y

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    signature = capture(Two(), (x, y)).unwrap().graph.signature
    one = fit_call(signature, (x, y), {}).unwrap()
    two = fit_call(signature, (x,), {"y": y}).unwrap()
    three = fit_call(signature, (), {"y": y, "x": x}).unwrap()
    assert [id(v) for v in one] == [id(v) for v in two] == [id(v) for v in three]
    for args, kwargs, word in (
        ((x,), {}, "missing"),
        ((x, y, x), {}, "not among"),
        ((x, y), {"y": y}, "by position and by name"),
        ((x, y.double()), {}, "float32 was captured, got float64"),
        ((x, y[:, :2]), {}, "[batch, 3]"),
        ((x, torch.randn(5, 3)), {}, "[batch, 3]"),
        ((x, 3), {}, "a tensor was captured"),
    ):
        fault = fit_call(signature, args, kwargs).failure()
        assert fault.kind is FaultKind.INPUT_DOES_NOT_FIT
        assert word in fault.reason


@pytest.mark.parametrize("how", BOTH)
def test_more_axes_vary_where_asked(how: How) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return x.mean(1) + torch.arange(x.shape[1]).sum() + table.sum()

    example = (torch.randn(2, 1, 6), torch.randn(2))
    dynamic = {"x": {1: "height"}, "table": {}}
    graph = capture(Mean(), example, dynamic=dynamic, how=how).unwrap().graph
    kinds = [item.type for item in graph.signature.inputs]
    assert all(isinstance(kind, TensorType) for kind in kinds)
    dims = [kind.dims for kind in kinds if isinstance(kind, TensorType)]
    assert dims == [(named("batch"), named("height"), 6), (2,)]
    inputs = (torch.randn(3, 5, 6), example[1])
    got = evaluate(graph, inputs, {}).unwrap()
    torch.testing.assert_close(got, Mean()(*inputs), rtol=0, atol=0)


def test_a_wrong_name_for_an_axis_is_a_fault() -> None:
    model, x = nn.Linear(3, 3).eval(), torch.randn(2, 3)
    for dynamic in ({"y": {0: "n"}}, {"input": {5: "n"}}, {"input": {1: "not a name"}}):
        fault = capture(model, (x,), dynamic=dynamic).failure().fault
        assert fault.kind is FaultKind.INPUT_DOES_NOT_FIT


def test_building_restores_what_was_taken() -> None:
    x = torch.randn(2, 3)
    graph = capture(nn.Linear(3, 3).eval(), (x,)).unwrap().graph
    assert build(graph.signature.args, lambda leaf: leaf) == (0,)
