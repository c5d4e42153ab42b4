"""Where units run by a table of costs, on small programs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fqx
from fqx.edge.materialize import materialize
from fqx.edge.rebuild import rebuild
from fqx.ir.arg import NodeRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.kit.frozen import FrozenMap
from fqx.passes.lower import Lowering, decide, lower
from fqx.policy.costs import Costs, Formula
from fqx.policy.priced import Priced
from fqx.policy.selectors import path
from fqx.policy.target import Target
from fqx.targets.native import native
from fqx.targets.onednn import onednn

KERNELS = (
    "onednn.conv2d",
    "onednn.conv2d_as_linear",
    "packed.conv2d/onednn",
    "packed.conv2d/fbgemm",
    "native.conv2d/onednn",
    "native.conv2d/fbgemm",
)
CONVERSIONS = ("quantize", "dequantize", "native.quantize", "native.dequantize", "clamp", "other")
FREE = FrozenMap({name: Formula(0.0) for name in (*KERNELS, *CONVERSIONS, "conv2d")})


def table(**prices: float) -> Costs:
    """Everything costs nothing but what is told; `__` is a point and `_of_` a slash."""
    told = {k.replace("__", ".").replace("_of_", "/"): Formula(v) for k, v in prices.items()}
    return Costs("test", "vnni", 1, FrozenMap({**dict(FREE.items()), **told}))


class Net(nn.Module):
    """A convolution, a relu that quantization implies, a convolution of points, a relu."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).relu()
        z: torch.Tensor = self.second(y)
        return z.relu().exp()


def quantized(model: nn.Module, target: Target, shape: tuple[int, ...] = (2, 3, 8, 8)) -> Graph:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    line = fqx.pipeline(target, [x], progress=False)
    line = type(line)(line.passes[:-2])
    return fqx.capture(model, (x,)).bind(line.run).unwrap().graph


def lowering(graph: Graph, costs: Costs, target: Target | None = None) -> tuple[Graph, Lowering]:
    trail = lower(target or onednn(), costs).run(graph).unwrap()
    evidence = trail.steps[-1].evidence
    assert isinstance(evidence, Lowering)
    return trail.graph, evidence


def rulings(evidence: Lowering) -> dict[str, Priced]:
    return {item.anchor: item for item in evidence.priced}


def test_what_is_cheaper_in_float_runs_in_float_on_the_values_of_its_weight() -> None:
    graph = quantized(Net(), onednn())
    made, evidence = lowering(
        graph,
        table(
            onednn__conv2d=50.0,
            packed__conv2d_of_onednn=50.0,
            packed__conv2d_of_fbgemm=50.0,
            conv2d=10.0,
        ),
    )
    assert rulings(evidence)["first"].chosen == "float"
    assert made[NodeId("first")].op == "conv2d"
    weight = made.weights[Path("first.weight")]
    assert weight.dtype.value == "float32"
    assert Path("first.weight_scale") not in made.weights
    assert [unit.anchor for unit in evidence.units] == ["second"]


def test_what_is_kept_stays_on_integers_on_its_cheapest_kernel() -> None:
    graph = quantized(Net(), onednn())
    costs = table(onednn__conv2d=50.0, packed__conv2d_of_onednn=50.0)
    costs = replace(costs, formulas=costs.formulas.put("packed.conv2d/fbgemm", Formula(40.0)))
    assert rulings(lowering(graph, costs)[1])["first"].floating
    kept = lower(onednn(), costs, path("first"))
    trail = kept.run(graph).unwrap()
    evidence = trail.steps[-1].evidence
    assert isinstance(evidence, Lowering)
    first = rulings(evidence)["first"]
    assert (first.chosen, first.margin) == ("packed.conv2d/fbgemm", None)
    again = rebuild(kept.name, kept.options).unwrap().run(graph).unwrap()
    assert again.graph.digest == trail.graph.digest
    no_table = lower(onednn(), None, path("first")).run(graph).unwrap()
    assert no_table.graph.digest == lower(onednn()).run(graph).unwrap().graph.digest


def test_a_relu_that_quantization_implied_is_kept_where_nothing_is_quantized() -> None:
    graph = quantized(Net(), onednn())
    assert "relu" not in [node.op for node in graph][:6]
    dear = {name: Formula(50.0) for name in KERNELS}
    costs = Costs("test", "vnni", 1, FrozenMap({**dict(FREE.items()), **dear}))
    made, evidence = lowering(graph, costs)
    assert all(item.floating for item in evidence.priced)
    assert "quantize" not in [node.op for node in made if node.id != NodeId("@x:quantize")]
    assert made[NodeId("first:clamp")].args[:2] == (NodeRef(NodeId("first")), 0.0)
    x = torch.randn(2, 3, 8, 8)
    model = Net()
    with torch.no_grad():
        torch.testing.assert_close(materialize(made).unwrap()(x), model(x), rtol=0.05, atol=0.05)


def test_the_dearer_kernel_loses_and_the_evidence_says_by_how_much() -> None:
    graph = quantized(Net(), onednn())
    prices = {"onednn__conv2d__points": 41.0, "onednn__conv2d_as_linear__points": 38.0}
    more = {"packed__conv2d_of_onednn__points": 60.0, "packed__conv2d_of_fbgemm__points": 61.0}
    made, evidence = lowering(graph, table(**prices, **more, conv2d__points=55.0))
    told = rulings(evidence)["second"]
    assert told.chosen == "onednn.conv2d_as_linear"
    assert made[NodeId("second")].op == "onednn.conv2d_as_linear"
    assert str(told).startswith("onednn.conv2d_as_linear 38 µs; onednn.conv2d 41 µs; float 55 µs")
    assert told.margin == pytest.approx(17.0)
    code = evidence.to_json()
    assert isinstance(code, dict)
    assert code["estimate"]["chosen"] <= code["estimate"]["int8"]  # type: ignore[index,call-overload,operator]


@pytest.mark.parametrize("engine", ["onednn", "fbgemm"])
def test_native_takes_the_cheaper_engine_for_each_layer(engine: str) -> None:
    target = native().unwrap()
    graph = quantized(Net(), target)
    other = {"onednn": "fbgemm", "fbgemm": "onednn"}[engine]
    made, evidence = lowering(
        graph, table(**{f"native__conv2d_of_{other}": 9.0, "conv2d": 90.0}), target
    )
    assert rulings(evidence)["first"].chosen == f"native.conv2d/{engine}"
    assert made[NodeId("first")].attrs["engine"] == engine


def test_ties_take_the_first_kernel_and_stay_int8() -> None:
    _, evidence = lowering(quantized(Net(), onednn()), table())
    assert {item.chosen for item in evidence.priced} == {"onednn.conv2d"}


def test_named_dimensions_are_priced_at_the_tables_sizes() -> None:
    graph = quantized(Net(), onednn())
    for batch in (1, 7):
        _, calls = decide(graph, onednn(), table().sized({"batch": batch}))
        assert {call.out[0] for call in calls} == {batch}


def test_a_table_without_prices_leaves_everything_as_it_is() -> None:
    graph = quantized(Net(), onednn())
    nothing = Costs("empty", "vnni", 1, FrozenMap())
    made, evidence = lowering(graph, nothing)
    assert not any(item.floating for item in evidence.priced)
    assert len(evidence.units) == 2
    assert made[NodeId("first")].op == "onednn.conv2d"
