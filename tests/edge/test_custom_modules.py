"""A module of the user's own: float when observed, another one in the program."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fqx.edge.capture import capture
from fqx.edge.custom_modules import CustomModule, OnIntegers
from fqx.edge.materialize import materialize
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.signature import Border
from fqx.ir.trail import Trail
from fqx.num.affine import dequantize, quantize
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.passes.smooth import smooth
from fqx.policy.plan import make_plan
from fqx.policy.recipe import Recipe, custom_module, int8_static, recipe_from_arg, recipe_to_arg
from fqx.policy.target import Target
from fqx.policy.verdicts import Reason
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference

TARGETS = (onednn(), native("onednn").unwrap(), native("x86").unwrap(), reference())


class Blend(nn.Module):
    """What no tracer follows: it looks at its values."""

    def __init__(self, weight: float = 0.25) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if float(x.abs().max()) == 0.0:
            return y
        return x * self.weight + torch.tanh(y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3)
        self.right = nn.Conv2d(3, 8, 3)
        self.blend = Blend()
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blend(self.left(x), self.right(x).relu()))
        return out


def images() -> list[Tensor]:
    drawn = torch.Generator().manual_seed(5)
    return [torch.randn(2, 3, 8, 8, generator=drawn) for _ in range(2)]


RECIPE = int8_static() | custom_module("blend")


@cache
def captured() -> Trail:
    torch.manual_seed(0)
    return capture(Net().eval(), (images()[0],), leaves=("blend",)).unwrap()


@cache
def quantized(target: Target, recipe: Recipe = RECIPE) -> Trail:
    road = (
        clean()
        | fuse()
        | observe(recipe, target)
        | calibrate(images(), progress=False)
        | smooth()
        | convert(target)
        | fold()
    )
    return road.run(captured()).unwrap()


def graphs(target: Target) -> list[Graph]:
    trail = quantized(target)
    return [trail.graph, lower(target).run(trail).unwrap().graph]


class Table(nn.Module):
    """A lookup of the float module over every pair of integers: the quantized module of a test."""

    def __init__(self, module: nn.Module, inputs: tuple[Border, ...], result: Border) -> None:
        super().__init__()
        one, two = (torch.arange(256, dtype=torch.uint8) for _ in inputs)
        x, y = (
            dequantize(codes, border.scale, border.zero_point)
            for codes, border in zip((one, two), inputs, strict=True)
        )
        with torch.no_grad():
            made = module(x[:, None].expand(256, 256), y[None].expand(256, 256))
        ends = (result.qmin, result.qmax, result.dtype)
        self.register_buffer("table", quantize(made, result.scale, result.zero_point, *ends))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        assert x.dtype is y.dtype is torch.uint8
        table = self.get_buffer("table")
        return table[x.long(), y.long()]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
@pytest.mark.parametrize("key", ["blend", Blend])
def test_a_table_of_integers_is_the_float_module_between_quantizers(
    target: Target, key: str | type
) -> None:
    for graph in graphs(target):
        plain = materialize(graph).unwrap()
        made = materialize(graph, custom={key: CustomModule(Table, integers=True)}).unwrap()
        assert isinstance(made.get_submodule("blend"), OnIntegers)
        with torch.no_grad():
            assert torch.equal(made(images()[1]), plain(images()[1]))
            assert torch.equal(copy.deepcopy(made)(images()[1]), plain(images()[1]))


def test_on_floats_a_module_gets_what_the_integers_stand_for() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self, inner: nn.Module, inputs: tuple[Border, ...], _: Border) -> None:
            super().__init__()
            self.inner, self.inputs = inner, inputs

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            seen.extend((x, y))
            out: Tensor = self.inner(x, y)
            return out

    for graph in graphs(onednn()):
        seen.clear()
        made = materialize(graph, custom={"blend": CustomModule(Spy)}).unwrap()
        with torch.no_grad():
            made(images()[1])
        spy = made.get_submodule("blend")
        assert isinstance(spy, Spy)
        for value, border in zip(seen, spy.inputs, strict=True):
            ends = (border.qmin, border.qmax, border.dtype)
            codes = quantize(value, border.scale, border.zero_point, *ends)
            assert torch.equal(dequantize(codes, border.scale, border.zero_point), value)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_its_borders_are_in_the_graph_and_in_the_plan(target: Target) -> None:
    graph = quantized(target).graph
    leaf = graph[NodeId("blend:leaf")]
    assert [graph[name].op for name in leaf.inputs()] == ["dequantize", "dequantize"]
    behind = [node.op for node in graph if NodeId("blend:getitem") in node.inputs()]
    assert behind == ["quantize"]
    plan = make_plan(captured().graph, RECIPE, target).unwrap()
    assert plan[leaf.id].reason is Reason.CUSTOM
    assert plan[NodeId("blend:getitem")].reason is Reason.ABSORBED
    left = make_plan(captured().graph, int8_static(), target).unwrap()
    assert left[leaf.id].reason is Reason.LEAF


def test_refusals_say_what_is_wrong() -> None:
    def refusal(graph: Graph, key: str | type, made: CustomModule) -> FaultKind:
        return materialize(graph, custom={key: made}).failure().fault.kind

    graph = quantized(onednn()).graph
    table = CustomModule(Table, integers=True)
    assert refusal(graph, "blond", table) is FaultKind.UNKNOWN_LEAF
    assert refusal(graph, nn.Linear, table) is FaultKind.UNKNOWN_LEAF
    unasked = quantized(onednn(), int8_static()).graph
    assert refusal(unasked, "blend", table) is FaultKind.NO_BORDER
    assert refusal(captured().graph, "blend", table) is FaultKind.NO_BORDER

    def broken(*_: object) -> nn.Module:
        raise RuntimeError("no table today")

    fault = materialize(graph, custom={"blend": CustomModule(broken)}).failure().fault
    assert fault.kind is FaultKind.MISSING_LEAF
    assert "no table today" in fault.reason


def test_the_recipe_is_data() -> None:
    assert recipe_from_arg(recipe_to_arg(RECIPE)).unwrap() == RECIPE
