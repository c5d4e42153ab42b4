"""A standalone module has a recipe, scales and units of its own."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fqx.edge.artefact import load, save_trail
from fqx.edge.capture import capture
from fqx.edge.materialize import materialize
from fqx.ir.arg import NodeRef
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.trail import Trail
from fqx.kit.result import is_success
from fqx.num.scheme import int8_channel, uint8_affine
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.passes.smooth import smooth
from fqx.policy.homes import homes_in
from fqx.policy.plan import make_plan
from fqx.policy.recipe import (
    Recipe,
    Scheme,
    float_,
    int8_static,
    leave_float,
    recipe_from_arg,
    recipe_to_arg,
    use,
    within,
)
from fqx.policy.selectors import everything, op
from fqx.policy.target import Target
from fqx.policy.verdicts import Reason
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference

TARGETS = (onednn(), native("onednn").unwrap(), reference())


class Block(nn.Module):
    """What a user would want to be standalone: it pools, convolves and adds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(x)
        z: Tensor = self.two(self.one(y).relu()) + y
        return z


class Net(nn.Module):
    """A stem, the block, and a head that begins with what the block's last unit could absorb."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = Block()
        self.relu = nn.ReLU()
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.relu(self.block(self.stem(x))))
        return out


def images() -> list[Tensor]:
    drawn = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, 10, 10, generator=drawn) for _ in range(2)]


@cache
def fused() -> Trail:
    torch.manual_seed(0)
    return capture(Net().eval(), (images()[0],)).bind((clean() | fuse()).run).unwrap()


def quantized(recipe: Recipe, target: Target) -> Trail:
    road = (
        observe(recipe, target)
        | calibrate(images(), progress=False)
        | smooth()
        | convert(target)
        | fold()
    )
    return road.run(fused()).unwrap()


def standalone() -> Recipe:
    return int8_static() | within("block", int8_static())


def crossings(graph: Graph) -> list[tuple[str, str]]:
    """Edges across the border, with what the value is there."""
    homes = homes_in(graph, ["block"])
    return [
        (graph[name].op, node.id)
        for node in graph
        for name in node.inputs()
        if homes.apart(name, node.id)
    ]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_what_crosses_the_border_is_float(target: Target) -> None:
    shut = crossings(quantized(standalone(), target).graph)
    # kernels of native give integers only: there a dequantize stands at the edge
    floats = {"dequantize", "add"} if target.form == "quantized" else {"conv2d", "add"}
    assert {op for op, _ in shut} == floats
    assert "block.pool" in {reader for _, reader in shut}
    opened = crossings(quantized(int8_static(), target).graph)
    assert "dequantize" in {op for op, _ in opened}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_no_unit_reaches_across(target: Target) -> None:
    plan = make_plan(fused().graph, standalone(), target).unwrap()
    homes = homes_in(fused().graph, ["block"])
    anchors = {
        name: NodeId(plan[name].unit.rpartition(" of ")[2])
        for name in fused().graph.order
        if plan[name].unit
    }
    assert {homes.of(anchor) for anchor in anchors.values()} == {"", "block"}
    assert not [name for name, anchor in anchors.items() if homes.apart(name, anchor)]
    assert plan[NodeId("block.pool")].reason is Reason.UNFIT
    assert "standalone" in plan[NodeId("block.pool")].text


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_computes_what_the_model_does(target: Target) -> None:
    trail = quantized(standalone(), target)
    lowered = lower(target).run(trail).unwrap().graph
    x = images()[1]
    with torch.no_grad():
        truth = materialize(fused().graph).unwrap()(x)
        reference_gives = materialize(trail.graph).unwrap()(x)
        made = materialize(lowered).unwrap()(x)
    noise = (truth - made).pow(2).mean() / truth.pow(2).mean()
    # eight bits at five tensors in a row keep well over 20 dB
    assert 10 * torch.log10(1 / noise) > 20
    # a kernel rounds once where the reference rounds once: a quantum of one of 255 steps each
    assert (made - reference_gives).abs().max() <= 2 * truth.abs().max() / 255


def test_the_own_recipe_rules_inside_only() -> None:
    recipe = int8_static() | within("block", float_())
    graph = quantized(recipe, onednn()).graph
    inside = [node.op for node in graph if homes_in(graph, ["block"]).of(node.id) == "block"]
    assert "quantize" not in inside
    assert len([node for node in graph if node.op == "quantize"]) == 2


def test_a_module_alone_is_quantized() -> None:
    only = float_() | within("block", int8_static())
    graph = quantized(only, onednn()).graph
    weights = [node for node in graph if node.id.endswith(":weight")]
    assert [node.id for node in weights] == ["block.one:weight", "block.two:weight"]


def test_inside_has_its_own_scales() -> None:
    coarse = Scheme(uint8_affine(), int8_channel())
    recipe = int8_static() | within("block", Recipe((use(everything(), coarse),)))
    graph = quantized(recipe, onednn()).graph
    for node in graph:
        if node.op == "quantize" and isinstance(node.args[0], NodeRef):
            maker = graph[node.args[0].id]
            assert maker.op != "dequantize", f"{node.id} quantizes what is integers already"


def test_a_quantized_border_lets_integers_pass() -> None:
    recipe = int8_static() | within("block", int8_static(), border="quantized")
    opened, plain = quantized(recipe, onednn()), quantized(int8_static(), onednn())
    assert opened.graph.digest == plain.graph.digest


def test_a_misspelt_module_is_a_fault_even_of_a_preset() -> None:
    made = observe(int8_static() | within("blok", int8_static()), onednn()).run(fused())
    fault = made.failure().fault
    assert fault.kind is FaultKind.UNMATCHED_RULE
    assert "'block'" in fault.remedy
    # a rule of the inner recipe that the module has no use for is none
    assert is_success(observe(standalone(), onednn()).run(fused()))
    inner = int8_static() | leave_float(op("linear"))
    assert is_success(observe(within("block", inner), onednn()).run(fused()))


def test_the_recipe_is_data(tmp_path: object) -> None:
    recipe = standalone()
    assert recipe_from_arg(recipe_to_arg(recipe)).unwrap() == recipe
    plan = make_plan(fused().graph, recipe, onednn()).unwrap()
    assert json.dumps(plan.to_json())
    trail = quantized(recipe, onednn())
    file = f"{tmp_path}/trail.fqx"
    save_trail(file, trail).unwrap()
    assert load(file).unwrap().trail.graph.digest == trail.graph.digest


def test_homes_nest() -> None:
    graph = fused().graph
    homes = homes_in(graph, ["block", "block.one", ""])
    assert homes.of(NodeId("block.one")) == "block.one"
    assert homes.of(NodeId("block.two")) == "block"
    assert homes.of(NodeId("stem")) == ""
    assert homes.apart(NodeId("block.one"), NodeId("block.two"))
    assert not homes_in(graph, [""]).apart(NodeId("block.one"), NodeId("stem"))
