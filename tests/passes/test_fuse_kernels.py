"""Examples of `fuse_kernels`: attention's projections, and what must not be joined."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fqx
from fqx.edge.kernels import bind
from fqx.ir.arg import Arg, DType, NodeRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName, Path
from fqx.kit.frozen import FrozenMap
from fqx.num.affine import quantize
from fqx.passes.fuse_kernels import fuse_kernels
from fqx.policy.recipe import Recipe, int8_dynamic, int8_static
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference


class Attention(nn.Module):
    """Queries of 32 columns in four heads, keys and values of 16 in two."""

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.output = nn.Linear(32, 32)
        if scaled:
            with torch.no_grad():
                self.norm.weight[3] *= 40.0
                for part in (self.query, self.key, self.value):
                    part.weight[:, 3] *= 0.01

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        y = self.norm(x)
        query, key, value = (
            part(y).reshape(batch, tokens, -1, 8).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        made = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        back: torch.Tensor = self.output(made.transpose(1, 2).reshape(batch, tokens, 32))
        return x + back


class Three(nn.Module):
    """Three linears on one input; what becomes of each is said by the caller."""

    def __init__(self, ends: tuple[str, str, str], tied: bool = False, bare: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(8, 8, bias=not bare) for _ in range(3))
        if tied:
            self.two.weight = self.one.weight
        self.ends = ends

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = []
        for part, end in zip((self.one, self.two, self.three), self.ends, strict=True):
            y = part(x)
            if end == "kernel":
                y = self.three(torch.relu(y))
            made.append(y if end == "out" else torch.sin(y))
        return tuple(made)


def both(
    net: nn.Module, x: torch.Tensor, recipe: Recipe | None = None
) -> tuple[Graph, Graph, fqx.Quantized]:
    """The program before and behind the pass, which give the same bits."""
    batches = [] if recipe == int8_dynamic() else [x]
    done = fqx.quantize(
        net.eval(),
        (x,),
        batches,
        recipe=recipe,
        target="onednn",
        objective="coverage",
        progress=False,
    ).unwrap()
    steps = {step.name: step.graph for step in done.trail.steps}
    before, after = steps["lower"], steps["fuse_kernels"]
    with torch.no_grad():
        one, two = (fqx.materialize(graph).unwrap()(x) for graph in (before, after))
    pairs = zip(*(item if isinstance(item, tuple) else (item,) for item in (one, two)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    return before, after, done


def joined(graph: Graph) -> list[str]:
    return [node.id for node in graph if node.id.endswith(":joined")]


@pytest.mark.parametrize("recipe", [int8_static(), int8_dynamic()], ids=["static", "dynamic"])
def test_the_projections_of_attention_are_one_linear(recipe: Recipe) -> None:
    torch.manual_seed(0)
    before, after, done = both(Attention(), torch.randn(2, 5, 32), recipe)
    assert joined(after) == ["query:joined"]
    count = [
        sum(node.op.startswith("onednn.linear") for node in graph) for graph in (before, after)
    ]
    assert count == [4, 2]
    # each projection keeps its name, as columns of the joined result
    cuts = [after[NodeId(name)] for name in ("query", "key", "value")]
    assert [node.op for node in cuts] == ["slice"] * 3
    assert [node.args for node in cuts] == [
        (NodeRef(NodeId("query:joined")), start, stop)
        for start, stop in ((0, 32), (32, 48), (48, 64))
    ]
    state = done.materialize().unwrap().state_dict()
    assert state["query_key_value.weight"].shape == (64, 32)
    assert state["query_key_value.bias"].shape == (64,)
    assert not {"query.weight", "key.weight", "value.weight"} & set(state)


def test_a_value_that_several_linears_read_is_quantized_once() -> None:
    torch.manual_seed(0)
    _, after, _ = both(Attention(), torch.randn(2, 5, 32))
    makers = [node for node in after if "quantize" in node.op]
    assert [node.id for node in makers] == ["norm:quantize", makers[1].id]
    (chosen,) = [node for node in after if node.id == "query:joined"]
    assert chosen.args[0] == NodeRef(makers[0].id)


def test_smoothing_moves_one_factor_for_all_that_read_the_value() -> None:
    torch.manual_seed(0)
    before, after, done = both(Attention(scaled=True), torch.randn(2, 5, 32))
    smoothed = next(step for step in done.trail.steps if step.name == "smooth")
    assert len(smoothed.diff)
    assert next(node.id for node in before if node.op == "quantize") == "norm:quantize"
    assert joined(after) == ["query:joined"]


def test_a_factor_in_front_of_a_quantizer_goes_into_it() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    with torch.no_grad():
        first.weight[3] *= 40.0
        second.weight[:, 3] *= 0.01
    net = nn.Sequential(first, nn.GELU(), second)
    before, after, _ = both(net, torch.randn(64, 16))
    assert before[NodeId("1:smooth")].op == "mul"
    assert NodeId("1:smooth") not in after
    assert after[NodeId("1:smooth:quantize")].op == "plain.quantize_scaled"


@pytest.mark.parametrize("size", [3, 700])
@pytest.mark.parametrize("zero_point", [0, 117])
def test_a_scaled_quantizer_rounds_twice_as_its_parts_do(size: int, zero_point: int) -> None:
    """Of a tensor taken whole and of one that is taken in parts."""
    random = torch.Generator().manual_seed(size)
    x = torch.randn(size, 3, 300, generator=random) * 3
    factor = torch.rand(300, generator=random) + 0.1
    attrs: dict[str, Arg] = {
        "scale": 0.03,
        "zero_point": zero_point,
        "qmin": 0,
        "qmax": 255,
        "output": "uint8",
    }
    kernel, plain = (
        bind(OpName(name), FrozenMap(attrs)) for name in ("plain.quantize_scaled", "quantize")
    )

    def wanted(values: torch.Tensor) -> torch.Tensor:
        return quantize(values, 0.03, zero_point, 0, 255, DType.UINT8)

    assert torch.equal(kernel(x, factor), wanted(x * factor))
    assert torch.equal(plain(x), wanted(x))
    turned = x.transpose(0, 1)
    assert torch.equal(kernel(turned, factor), wanted(turned * factor))
    assert torch.equal(plain(turned), wanted(turned))


@pytest.mark.parametrize("recipe", [int8_static(), int8_dynamic()], ids=["static", "dynamic"])
def test_what_leaves_the_program_stays_apart(recipe: Recipe) -> None:
    torch.manual_seed(0)
    _, after, _ = both(Three(("sin", "out", "sin")), torch.randn(3, 8), recipe)
    assert joined(after) == ["one:joined"]
    assert after[NodeId("two")].op.startswith("onednn.linear")


def test_a_weight_with_two_readers_stays_apart() -> None:
    torch.manual_seed(0)
    _, after, _ = both(Three(("sin", "sin", "sin"), tied=True), torch.randn(3, 8))
    assert joined(after) == []
    assert Path("one.weight") in after.weights


def test_linears_without_biases_are_joined_too() -> None:
    torch.manual_seed(0)
    _, after, _ = both(Three(("sin", "sin", "sin"), bare=True), torch.randn(3, 8))
    assert after[NodeId("one:joined")].args[3] is None


def test_the_reference_target_keeps_its_operators() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 32)
    done = fqx.quantize(
        Attention().eval(), (x,), [x], target=reference(), objective="coverage", progress=False
    ).unwrap()
    graph = next(step.graph for step in done.trail.steps if step.name == "lower")
    assert fuse_kernels(reference()).run(graph).unwrap().graph is graph
    assert fuse_kernels(onednn()).run(done.graph).unwrap().graph.stage is graph.stage
