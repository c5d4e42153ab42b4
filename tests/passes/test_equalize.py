"""Examples of `equalize`: channels are levelled, the program stays the same to the bit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fqx
from fqx.ir.arg import Arg, NodeRef
from fqx.ir.graph import Graph
from fqx.ir.names import Path
from fqx.judge.evaluate import evaluate
from fqx.num.tensors import tensor_of, weight_of
from fqx.passes.equalize import Equalized, Levelled, equalize, half_exponent, power_of_two
from fqx.testing.draft import Draft

CHANNELS = 6


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uneven(count: int) -> torch.Tensor:
    """2^-6, 2^-2, 2^2, 2^6, 2^-6, ..."""
    return torch.tensor([2.0 ** (4 * (index % 4) - 6) for index in range(count)])


def held(graph: Graph, path: str) -> torch.Tensor:
    return tensor_of(graph.weights[Path(path)]).unwrap()


def chain(*between: tuple[str, dict[str, Arg]], rank: int = 2) -> Graph:
    """linear, whatever stands between, linear; the rows of the first are uneven."""
    draft = Draft()
    x = draft.input("x", "batch", *(3,) * (rank - 2), 4)
    first = draft.weight("one.weight", noise(CHANNELS, 4) * uneven(CHANNELS)[:, None])
    bias = draft.weight("one.bias", noise(CHANNELS, seed=1))
    y = draft.call("linear", "one", x=x, weight=first, bias=bias)
    for index, (op, given) in enumerate(between):
        y = draft.call(op, f"{op}{index}", x=y, **given)
    second = draft.weight("two.weight", noise(5, CHANNELS, seed=2))
    return draft.graph(draft.call("linear", "two", x=y, weight=second))


def equalized(graph: Graph) -> tuple[Graph, tuple[Levelled, ...]]:
    trail = equalize().run(graph).unwrap()
    evidence = trail.steps[-1].evidence
    assert isinstance(evidence, Equalized)
    return trail.graph, evidence.pairs


def same(one: Graph, two: Graph, *inputs: torch.Tensor) -> bool:
    ours, theirs = (evaluate(item, inputs, {}).unwrap() for item in (one, two))
    assert isinstance(ours, torch.Tensor)
    assert isinstance(theirs, torch.Tensor)
    return torch.equal(ours, theirs)


def test_both_sides_of_every_channel_come_within_a_factor_of_two() -> None:
    graph = chain(("relu", {}))
    made, pairs = equalized(graph)
    before, after = (
        held(item, "one.weight").abs().amax(1) / held(item, "two.weight").abs().amax(0)
        for item in (graph, made)
    )
    assert float(before.max() / before.min()) > 1000
    assert bool((after <= 2).all())
    assert bool((after >= 0.5).all())
    assert same(graph, made, noise(32, 4, seed=3))
    assert pairs[0].channels == CHANNELS
    assert 0 < pairs[0].moved <= CHANNELS
    assert [node.id for node in made] == [node.id for node in graph]


def test_the_factors_are_those_of_the_paper_to_the_nearest_power_of_two() -> None:
    graph = chain(("relu", {}))
    made, _ = equalized(graph)
    ranges = (
        held(graph, "one.weight").abs().amax(1),
        held(graph, "two.weight").abs().amax(0),
    )
    exact = (ranges[0] * ranges[1]).sqrt() / ranges[1]
    found = held(graph, "one.bias") / held(made, "one.bias")
    assert torch.equal(found, exact.log2().round().exp2())


@pytest.mark.parametrize(
    "between",
    [
        (),
        (("relu", {}),),
        (("leaky_relu", {"negative_slope": 0.3}), ("abs", {})),
        (("neg", {}), ("dropout", {"p": 0.5, "training": False})),
    ],
    ids=str,
)
def test_factors_pass_what_is_homogeneous(between: tuple[tuple[str, dict[str, Arg]], ...]) -> None:
    graph = chain(*between)
    made, pairs = equalized(graph)
    assert pairs[0].moved
    assert same(graph, made, noise(32, 4, seed=3))


@pytest.mark.parametrize(
    "between",
    [
        ("sigmoid", {}),
        ("gelu", {"approximate": "none"}),
        ("hardtanh", {"low": 0.0, "high": 6.0}),
        ("clamp", {"low": 0.0}),
        ("add", {"y": 1.0}),
        ("softmax", {"dim": -1}),
        ("flip", {"dims": (1,)}),
    ],
    ids=lambda item: item[0],
)
def test_factors_stop_at_what_is_not(between: tuple[str, dict[str, Arg]]) -> None:
    graph = chain(between)
    made, pairs = equalized(graph)
    assert made is graph
    assert pairs == ()


def test_a_pool_over_the_features_of_a_linear_stops_them() -> None:
    pool: dict[str, Arg] = {"kernel_size": (3,), "stride": (1,), "padding": (1,)}
    graph = chain(("max_pool1d", pool), rank=3)
    assert equalized(graph)[0] is graph


def test_a_relu_that_is_no_ones_but_by_name_is_no_layer() -> None:
    """A relu of an input and a linear behind it: there is no layer to lend to."""
    draft = Draft()
    relu = draft.call("relu", "relu", x=draft.input("x", "batch", CHANNELS))
    weight = draft.weight("fc.weight", noise(5, CHANNELS) * uneven(CHANNELS))
    graph = draft.graph(draft.call("linear", "fc", x=relu, weight=weight))
    assert equalized(graph)[0] is graph


def test_an_operator_of_torch_alone_stops_the_factors() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.two(torch.cumprod(self.one(x), -1))
            return out

    graph = fqx.capture(Summed().eval(), (noise(2, 4),)).unwrap().graph
    assert "aten.cumprod.default" in {node.op for node in graph}
    assert equalize().run(graph).unwrap().graph is graph


@pytest.mark.parametrize("where", ["output", "reader"])
def test_a_value_others_see_keeps_its_range(where: str) -> None:
    draft = Draft()
    x = draft.input("x", "batch", CHANNELS)
    one = draft.weight("one.weight", noise(CHANNELS, CHANNELS) * uneven(CHANNELS)[:, None])
    two = draft.weight("two.weight", noise(5, CHANNELS, seed=1))
    y = draft.call("relu", "relu", x=draft.call("linear", "one", x=x, weight=one))
    other = y if where == "output" else draft.call("exp", ":exp", x=y)
    graph = draft.graph(draft.call("linear", "two", x=y, weight=two), other)
    assert equalized(graph)[0] is graph


@pytest.mark.parametrize("function", ["cumprod", "cat", "where", "addmm"])
def test_readers_of_every_shape_stop_them(function: str) -> None:
    """Operators outside the catalogue, of a list and of several operands."""

    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, CHANNELS), nn.Linear(CHANNELS, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            calls = {
                "cumprod": lambda: torch.cumprod(y, 0),
                "cat": lambda: torch.cat([y, torch.ones(3, CHANNELS)]),
                "where": lambda: torch.where(x[:, :1] > 0, y, torch.ones(CHANNELS)),
                "addmm": lambda: torch.addmm(y, x, torch.ones(4, CHANNELS)),
            }
            out: torch.Tensor = self.two(calls[function]())
            return out

    graph = fqx.capture(unbalanced(Read()), (noise(8, 4),)).unwrap().graph
    made, pairs = equalized(graph)
    assert made is graph
    assert pairs == ()


def test_a_shared_weight_is_scaled_for_each_layer_apart() -> None:
    draft = Draft()
    x: NodeRef = draft.input("x", "batch", CHANNELS)
    weight = draft.weight("fc.weight", noise(CHANNELS, CHANNELS) * uneven(CHANNELS)[:, None])
    for index in range(3):
        x = draft.call(
            "relu", f":relu{index}", x=draft.call("linear", f"fc@{index}", x=x, weight=weight)
        )
    graph = draft.graph(x)
    made, pairs = equalized(graph)
    assert [pair.moved > 0 for pair in pairs] == [True, True]
    assert made.weights[Path("fc.weight")] == graph.weights[Path("fc.weight")]
    assert Path("fc@1.equalized_weight") in made.weights
    assert same(graph, made, noise(32, CHANNELS, seed=3))
    assert equalized(made)[0] is made


def test_extreme_weights_and_dead_channels_stay() -> None:
    draft = Draft()
    x = draft.input("x", "batch", 4)
    first, second = noise(CHANNELS, 4) * 2.0**20, noise(5, CHANNELS, seed=1)
    first[0] = 0.0
    second[:, 1] = 0.0
    first[2, 0] = 2.0**-130
    second[0, 3] = torch.inf
    y = draft.call("linear", "one", x=x, weight=draft.weight("one.weight", first))
    graph = draft.graph(draft.call("linear", "two", x=y, weight=draft.weight("two.weight", second)))
    made, pairs = equalized(graph)
    assert pairs[0].moved == 2
    assert torch.equal(held(made, "one.weight")[:4], first[:4])
    assert bool((held(made, "one.weight")[4:] != first[4:]).all())


class Network(nn.Module):
    """Every kind of layer one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(12, 6, 3, groups=3, stride=2)
        self.last = nn.ConvTranspose2d(6, 5, 2)
        self.act = nn.PReLU(5)
        self.hidden = nn.Linear(5 * 4 * 4, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.plain(x)))
        x = self.grouped(F.leaky_relu(self.depthwise(x)))
        x = torch.relu(self.up(F.max_pool2d(x, 2)))
        x = F.adaptive_avg_pool2d(self.act(self.last(x)), 4)
        out: torch.Tensor = self.head(torch.relu(self.hidden(x.flatten(1))))
        return out


def unbalanced(model: nn.Module) -> nn.Module:
    """Every matrix with uneven rows and columns."""
    with torch.no_grad():
        for tensor in model.parameters():
            for axis in range(min(tensor.dim(), 2)):
                lengths = [-1 if index == axis else 1 for index in range(tensor.dim())]
                tensor.mul_(uneven(tensor.shape[axis]).roll(axis + tensor.dim()).reshape(lengths))
    return model.eval()


def test_all_kinds_of_layers_of_a_network_are_levelled() -> None:
    torch.manual_seed(0)
    x = noise(4, 3, 16, 16)
    graph = fqx.capture(unbalanced(Network()), (x,)).unwrap().graph
    trail = (fqx.clean() | fqx.fuse() | fqx.equalize()).run(graph).unwrap()
    evidence = trail.steps[-1].evidence
    assert isinstance(evidence, Equalized)
    found = [(pair.first, pair.second) for pair in evidence.pairs if pair.moved]
    names = ["plain", "depthwise", "grouped", "up", "last", "hidden", "head"]
    assert found == list(pairwise(names))
    assert same(trail.graphs()[-2], trail.graph, x)


def test_scales_per_tensor_lose_less_behind_it() -> None:
    """The weights of an unbalanced chain rounded to 8 bits by one scale each."""
    graph, x = chain(("relu", {})), noise(64, 4, seed=3)
    made, _ = equalized(graph)
    plain, levelled = (relative_error(rounded(item), graph, x) for item in (graph, made))
    assert levelled < 0.5 * plain


def rounded(graph: Graph) -> Graph:
    """The graph with its matrices on 255 levels, one scale for each."""
    coarse = {}
    for path, weight in graph.weights.items():
        tensor = tensor_of(weight).unwrap()
        if tensor.dim() > 1:
            step = tensor.abs().max() / 127
            coarse[path] = weight_of((tensor / step).round() * step, weight.role)
    return replace(graph, weights=graph.weights.edit(coarse))


def relative_error(graph: Graph, other: Graph, x: torch.Tensor) -> float:
    ours, theirs = (evaluate(item, (x,), {}).unwrap() for item in (graph, other))
    assert isinstance(ours, torch.Tensor)
    assert isinstance(theirs, torch.Tensor)
    return float((ours - theirs).norm() / theirs.norm())


def test_half_exponents_are_logarithms_to_the_nearest() -> None:
    ratios = torch.tensor(
        [2.0**-3, 0.25, 0.49, 0.5, 0.51, 1, 1.99, 2, 2.01, 7.99, 8, 8.01]
    ).double()
    assert half_exponent(ratios).tolist() == [-1, -1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 2]


def test_powers_of_two_are_exact() -> None:
    exponents = torch.arange(-1022, 1024)
    assert power_of_two(exponents).tolist() == [2.0**k for k in range(-1022, 1024)]
