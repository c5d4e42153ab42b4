"""Comparing two programs value by value: on a trained network, and on tensors worked by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn
from torch.ao.ns.fx.utils import (
    compute_cosine_similarity,
    compute_normalized_l2_error,
    compute_sqnr,
)

from fqx.api import Quantized, quantize
from fqx.audit.align import aligned
from fqx.audit.compare import Comparison, Distance, compare, compare_weights, distance
from fqx.edge.materialize import materialize
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph
from fqx.num.scheme import int8_channel, uint8_affine
from fqx.policy.recipe import (
    Recipe,
    Scheme,
    float16,
    int8_dynamic,
    int8_static,
    use,
    weight_only,
)
from fqx.policy.selectors import path
from fqx.testing.digits import DigitsNet, load_digits, train


@cache
def _digits() -> tuple[DigitsNet, tuple[torch.Tensor, ...]]:
    digits = load_digits()
    return train(digits, epochs=2, width=8), torch.tensor_split(digits.train_images[:96], 3)


@cache
def _quantized(target: str) -> Quantized:
    net, images = _digits()
    return quantize(
        net, (images[0],), images, target=target, objective="balanced", progress=False
    ).unwrap()


def _graph(step: str, target: str = "onednn") -> Graph:
    found = (s.graph for s in _quantized(target).trail.steps if s.name == step)
    return next(found)


def _compare(a: Graph, b: Graph, isolated: bool = False) -> Comparison:
    return compare(a, b, _digits()[1], isolated).unwrap()


def test_metrics_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 9, generator=generator)
    y = x + 0.1 * torch.randn(64, 9, generator=generator)
    found = distance(x, y)
    # torch sums in float32: 576 terms, an error of some 1e-6 relative at most
    assert found.sqnr == pytest.approx(float(compute_sqnr(x, y)), rel=1e-5)
    assert found.l2 == pytest.approx(float(compute_normalized_l2_error(x, y)), rel=1e-5)
    assert found.cosine == pytest.approx(float(compute_cosine_similarity(x, y)), rel=1e-5)


def test_zeros_and_equal_tensors_have_metrics_too() -> None:
    zeros, ones = torch.zeros(4), torch.ones(4)
    assert (distance(ones, ones).sqnr, distance(ones, ones).l2) == (math.inf, 0.0)
    assert (distance(zeros, zeros).cosine, distance(zeros, ones).cosine) == (1.0, 0.0)
    assert (distance(zeros, ones).sqnr, distance(zeros, ones).l2) == (-math.inf, math.inf)


def test_sums_of_batches_are_sums_of_the_whole() -> None:
    x, y = torch.arange(6.0), torch.arange(6.0) + 0.5
    parts = distance(x[:2], y[:2]) + distance(x[2:], y[2:])
    assert parts == distance(x, y) == Distance(55.0, 71.5, 1.5, 62.5, 6)


def test_kernels_stand_for_the_last_value_of_their_unit() -> None:
    fused, lowered = _graph("fuse"), _graph("lower")
    found = {str(pair.name): (pair.a, pair.b) for pair in aligned(fused, lowered)}
    # a clamp that quantization implies; an addition and a relu in one kernel with a convolution
    assert found["stem.2"] == ("stem.2", "stem.0")
    assert found["block1.relu@1"] == ("block1.relu@1", "block1.conv2")
    assert "stem.0" not in found
    assert "block1:add" not in found


def test_targets_with_other_units_meet_where_both_have_a_value() -> None:
    found = {
        str(pair.name): pair.b for pair in aligned(_graph("lower"), _graph("lower", "native/x86"))
    }
    assert found["block1.conv2"] == "block1:add"
    assert found["stem.0"] == "stem.2"


def test_a_convolution_with_its_batch_norm_stands_for_the_batch_norm() -> None:
    found = _compare(_quantized("onednn").trail.base, _graph("fuse"))
    assert found["stem.1"].b == "stem.0"
    # folding changes float32 roundings alone: 20·log10(2^-24) = -144 dB for each of a few
    assert all(row.distance.sqnr > 100.0 for row in found.rows)


@pytest.mark.parametrize("target", ["onednn", "native/x86"])
def test_the_output_is_as_far_as_the_modules_are(target: str) -> None:
    net, images = _digits()
    found = compare(_graph("fuse", target), _graph("lower", target), images).unwrap()
    module = materialize(_graph("lower", target)).unwrap()
    with torch.no_grad():
        wanted = sum((distance(net(x), module(x)) for x in images), Distance())
    # the fused program rounds otherwise than the model, by 1e-6 of the quantization error's 1e-2
    assert found["fc"].distance.sqnr == pytest.approx(wanted.sqnr, abs=0.01)


def test_isolated_errors_are_not_inherited() -> None:
    fused, lowered = _graph("fuse"), _graph("lower")
    together, alone = _compare(fused, lowered), _compare(fused, lowered, isolated=True)
    assert [row.name for row in together.rows] == [row.name for row in alone.rows]
    # the first unit inherits nothing
    assert alone["stem.2"].distance == together["stem.2"].distance
    late = ("block3.body.0.2", "block3.body.1.2", "fc")
    assert all(alone[n].distance.sqnr > together[n].distance.sqnr + 3.0 for n in late)
    # what stays float adds nothing of its own but a rounding
    assert alone["pool"].distance.sqnr > 100.0


def test_lowering_changes_a_unit_by_single_quanta() -> None:
    found = _compare(_graph("fold"), _graph("lower"), isolated=True)
    # one code in 255 off in every element of a uniform value: 20·log10(255/√3) = 43 dB
    assert len(found.rows) > 10
    assert all(row.distance.sqnr > 43.0 for row in found.rows)


def test_a_program_is_no_distance_from_itself() -> None:
    for step, target in (("fuse", "onednn"), ("fold", "onednn"), ("lower", "native/x86")):
        graph = _graph(step, target)
        assert {row.distance.sqnr for row in _compare(graph, graph).rows} == {math.inf}


@pytest.mark.parametrize("preset", [int8_dynamic, weight_only, float16])
def test_every_kind_of_quantization_is_compared(preset: Callable[[], Recipe]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    data = [torch.randn(16, 32) * scale for scale in (1.0, 4.0)]
    done = quantize(
        net, (data[0],), data, recipe=preset(), target="native/fbgemm", progress=False
    ).unwrap()
    steps = {step.name: step.graph for step in done.trail.steps}
    pairs = (("smooth", "fold", 30.0), ("smooth", "lower", 30.0), ("fold", "lower", 60.0))
    for a, b, least in pairs:
        for isolated in (False, True):
            found = compare(steps[a], steps[b], data, isolated).unwrap()
            assert {row.name for row in found.rows} >= {"1", "2"}
            assert not found.skipped
            # one 8-bit rounding of inputs and weights each; kernels round as the reference does
            assert found.worst(1)[0].distance.sqnr > least, (a, b)


def test_smoothing_belongs_to_no_unit() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    net = nn.Sequential(first, nn.GELU(), second).eval()
    with torch.no_grad():
        first.weight[3] *= 40.0
        second.weight[:, 3] *= 0.01
    x = torch.randn(64, 16)
    done = quantize(net, (x,), [x], target="onednn", objective="balanced", progress=False).unwrap()
    steps = {step.name: step.graph for step in done.trail.steps}
    assert "1:smooth" in steps["smooth"]
    for step in ("fuse", "smooth"):
        found = compare(steps[step], done.graph, [x]).unwrap()
        assert (found["1"].a, found["1"].b) == ("1", "0")
        # inputs of 8 bits over ±4 σ keep 41 dB, weights about as much; a scaled value keeps 0 dB
        assert found["1"].distance.sqnr > 30.0


def test_isolation_finds_the_unit_that_is_coarse() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)
    ).eval()
    x = torch.randn(64, 16)
    coarse = Scheme(uint8_affine(), int8_channel(limit=3))
    recipe = int8_static() | use(path("2"), coarse)
    done = quantize(
        net, (x,), [x], recipe=recipe, target="onednn", objective="balanced", progress=False
    ).unwrap()
    before = next(step.graph for step in done.trail.steps if step.name == "smooth")
    found = compare(before, done.graph, [x], isolated=True).unwrap()
    assert [(row.name, row.b) for row in found.rows][-2:] == [("3", "2"), ("4", "4")]
    assert found.worst(1)[0].b == "2"
    # inherited, the error is at the end too
    inherited = compare(before, done.graph, [x]).unwrap()
    assert inherited["4"].distance.sqnr < found["4"].distance.sqnr - 6.0
    assert compare_weights(before, done.graph).unwrap().worst(1)[0].name == "2.weight"


def test_weights_are_compared_as_what_they_stand_for() -> None:
    for target in ("onednn", "native/x86"):
        found = compare_weights(_graph("fuse", target), _graph("lower", target)).unwrap()
        rows = {row.name: row for row in found.rows}
        assert rows["fc.weight"].op == "int8"
        assert rows["fc.bias"].distance.sqnr == math.inf
        weight = _digits()[0].fc.weight.detach()
        step = weight.abs().amax(1, keepdim=True) / 127
        error = ((weight / step).round() * step - weight).double().square().sum()
        wanted = 10 * math.log10(float(weight.double().square().sum() / error))
        # the same formula; a scale rounded to float32 moves each value by 2^-24 of it
        assert rows["fc.weight"].distance.sqnr == pytest.approx(wanted, abs=1e-3)


def test_comparisons_print_ten_lines_and_encode() -> None:
    found = _compare(_graph("fuse"), _graph("lower"))
    assert len(repr(found).splitlines()) <= 10
    assert found.worst(2)[0].distance.sqnr <= found.worst(2)[1].distance.sqnr
    assert found._repr_html_().count("<tr>") == len(found.rows) + 1
    code = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert code["batches"] == 3
    assert len(code["rows"]) == len(found.rows)
    with pytest.raises(KeyError):
        found["nothing"]


def test_no_batches_and_wrong_ones_are_named() -> None:
    graph = _graph("fuse")
    kinds = [compare(graph, graph, b).failure().fault.kind for b in ((), [(1, 2, 3)])]
    assert kinds == [FaultKind.EMPTY_CALIBRATION, FaultKind.INPUT_DOES_NOT_FIT]
