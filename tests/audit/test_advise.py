"""Advice from a model's own statistics: detectors on values worked by hand, then whole models."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.ao.quantization.fx._model_report.model_report_observer import ModelReportObserver

import fqx
from fqx.audit.advise import (
    Limits,
    Seen,
    advise,
    levelling,
    nothing_seen,
    outliers,
    per_channel,
    product_sqnr,
    seen_more,
    wandering,
)
from fqx.audit.measure import sqnr
from fqx.ir.fault import FaultKind
from fqx.policy.recipe import Recipe
from fqx.testing.digits import batches, load_digits, train


def _seen(*values: torch.Tensor, axis: int = -1) -> Seen:
    seen = nothing_seen(axis, values[0].shape[axis])
    for value in values:
        seen = seen_more(seen, axis, value, Limits()).unwrap()
    return seen


def test_scales_per_channel_pay_where_channels_differ() -> None:
    torch.manual_seed(0)
    even = torch.randn(8, 256)
    uneven = even * torch.logspace(-3, 0, 8)[:, None]
    assert not per_channel(torch.ones(4, 4), 0).pays
    assert not per_channel(even, 0).pays
    found = per_channel(uneven, 0)
    assert found.pays
    # each channel by its own scale is as good as `even` is, up to the spread of its maxima
    assert found.per_channel == pytest.approx(per_channel(even, 0).per_channel, abs=1.5)


def test_a_weight_is_judged_by_what_quantization_leaves_of_it() -> None:
    # 1 and 1/254 under the scale 1/127: the second is half a step and rounds to even, to zero
    weight = torch.tensor([[1.0, 1.0], [1 / 254, 1 / 254]])
    found = per_channel(weight, 0)
    wanted = 10 * math.log10((2 + 2 / 254**2) / (2 / 254**2))
    # float32 scales move each value by some 2^-24 of it
    assert found.per_tensor == pytest.approx(wanted, abs=1e-3)
    assert found.per_channel > 100.0


def test_stationarity_is_that_of_torch() -> None:
    torch.manual_seed(0)
    steady = [torch.randn(64, 4).clamp(-2, 2) for _ in range(6)]
    moving = [batch + 8.0 * step for step, batch in enumerate(steady)]
    for batches_, dynamic in ((steady, False), (moving, True)):
        theirs = ModelReportObserver()
        for batch in batches_:
            theirs(batch)
        found = wandering(_seen(*batches_))
        # theirs is kept in float32
        assert found.stationarity == pytest.approx(
            float(theirs.get_batch_to_epoch_ratio()), rel=1e-5
        )
        assert found.dynamic is dynamic


def test_constants_do_not_wander() -> None:
    assert wandering(_seen(torch.ones(3, 2), torch.ones(3, 2))).stationarity == 1.0


def test_outliers_are_those_of_torch() -> None:
    torch.manual_seed(0)
    values = [torch.rand(400, 5) + 0.5 for _ in range(3)]
    for value in values:
        value[7, 2] = 40.0
        value[:, 4] = 1.0
    theirs = ModelReportObserver(ch_axis=1, comp_percentile=0.975)
    for value in values:
        theirs(value)
    seen = _seen(*values)
    # of positive values the percentiles are those of the sizes
    assert torch.allclose(seen.ratios / 3, theirs.average_percentile_ratio.double(), rtol=1e-5)
    assert torch.equal(seen.constant.int(), theirs.constant_channels.int())
    found = outliers(seen)
    assert (found.channels, found.constant, found.enough) == ((2,), (4,), True)
    assert found.largest == pytest.approx(40.0 / 1.487, rel=0.02)


def test_outliers_in_few_batches_are_said_to_be() -> None:
    full = torch.ones(100, 1)
    full[0] = 10.0
    found = outliers(_seen(full, torch.zeros(100, 1)))
    assert (found.channels, found.enough) == ((0,), False)


def test_levelling_counts_channels_of_like_ratio() -> None:
    low, high = torch.zeros(4), torch.tensor([1.0, 1.0, 4.0, 100.0])
    weight = torch.tensor([1.0, 1.0, 1.0, 100.0])
    # s = 1, 1, 1/2, 1 against t = 1/2 and 0.9
    assert levelling(low, high, low, weight).share == 1.0
    assert levelling(low, high, low, weight, Limits(channel_ratio=0.9)).share == 0.75
    assert not levelling(low, high, low, weight, Limits(channel_ratio=0.9, channel_share=0.8)).pays
    assert levelling(low, low, low, weight).share == 0.0


def test_the_predicted_product_is_what_rounding_leaves() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(4096, 16), torch.randn(8, 16)
    seen = _seen(x)
    low, high = x.min().item(), x.max().item()
    step = (high - low) / 255
    rounded = (x / step).round() * step
    measured = sqnr(x @ w.T, rounded @ w.T)
    # 32768 outputs: chance moves either sum of squares by 1 %, 0.05 dB
    assert product_sqnr(seen, w.double().square().sum(0)) == pytest.approx(measured, abs=0.3)


class Ruined(nn.Module):
    """A convolution whose last input channel is a thousand times the others and weighs little."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.factors: torch.Tensor
        self.register_buffer("factors", torch.tensor([1.0, 1.0, 1.0, 1e3]).reshape(1, 4, 1, 1))
        with torch.no_grad():
            self.first.weight[:, 3] *= 1e-4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x * self.factors).relu()).relu()
        made: torch.Tensor = self.head(y.mean((2, 3)))
        return made


def test_the_recipe_saves_what_one_scale_would_ruin() -> None:
    torch.manual_seed(0)
    net = Ruined().eval()
    data = [torch.randn(4, 4, 8, 8) for _ in range(4)]
    base = fqx.capture(net, (data[0],)).unwrap()
    advice = advise(base, data).unwrap()
    assert [row.node for row in advice.rows if row.ruined] == ["first"]

    advised, preset = (
        fidelity(net, data, recipe, "onednn") for recipe in (advice.recipe, fqx.int8_static())
    )
    assert advised > preset + 10.0


def fidelity(net: nn.Module, data: list[torch.Tensor], recipe: Recipe, target: str) -> float:
    """dB of the first batch in int8 against float."""
    done = fqx.quantize(
        net,
        (data[0],),
        data,
        recipe=recipe,
        target=target,
        objective="balanced",
        progress=False,
    ).unwrap()
    module = done.materialize().unwrap()
    with torch.no_grad():
        return sqnr(net(data[0]), module(data[0]))


def test_the_code_makes_the_recipe() -> None:
    net = Ruined().eval()
    data = [torch.randn(4, 4, 8, 8)]
    advice = advise(fqx.capture(net, (data[0],)).unwrap(), data).unwrap()
    assert "leave_float" in advice.code
    assert eval(advice.code, {"fqx": fqx}) == advice.recipe


def test_an_input_that_wanders_is_left_to_each_call() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    data = [torch.randn(16, 32) * 4.0**power for power in range(5)]
    advice = advise(fqx.capture(net, (data[0],)).unwrap(), data).unwrap()
    assert [row.choice for row in advice.rows] == ["dynamic", "dynamic"]
    assert eval(advice.code, {"fqx": fqx}) == advice.recipe

    # the smallest batch has a 256th of the whole range: 8 bits, all that one scale has
    advised, preset = (
        fidelity(net, data, recipe, "native/fbgemm")
        for recipe in (advice.recipe, fqx.int8_static())
    )
    assert advised > preset + 20.0


def test_a_healthy_network_is_left_to_the_preset() -> None:
    digits = load_digits()
    net = train(digits, epochs=2, width=8)
    base = fqx.capture(net, (digits.train_images[:2],)).unwrap()
    advice = advise(base, batches(digits)).unwrap()
    convs = [node.id for node in base.graph if node.op in ("conv2d", "linear")]
    assert [row.node for row in advice.rows] == convs
    assert {row.choice for row in advice.rows} == {"static"}
    assert advice.code == "fqx.int8_static()"
    # depthwise weights, folded with batch norms, differ between channels
    assert advice["block2.body.1.0"].weight.pays
    assert advice == advise(base.graph, batches(digits)).unwrap()


def test_advice_prints_ten_lines_and_encodes() -> None:
    net = Ruined().eval()
    data = [torch.randn(4, 4, 8, 8)]
    advice = advise(fqx.capture(net, (data[0],)).unwrap(), data).unwrap()
    assert len(repr(advice).splitlines()) <= 10
    assert "dB: float" in repr(advice)
    assert "<td>first</td>" in advice._repr_html_()
    code = json.loads(json.dumps(advice.to_json(), allow_nan=False))
    assert [row["node"] for row in code["rows"]] == ["first", "second", "head"]
    with pytest.raises(KeyError):
        advice["nothing"]


def test_every_input_has_the_channels_of_its_operator() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=4), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 6, 1, groups=2)
    ).eval()
    x = torch.randn(2, 4, 6, 6)
    advice = advise(fqx.capture(net, (x,)).unwrap(), [x]).unwrap()
    assert [row.op for row in advice.rows] == ["conv2d", "conv_transpose2d", "conv2d"]
    assert all(math.isfinite(row.product) for row in advice.rows)


def test_what_cannot_be_advised_is_named() -> None:
    net = nn.Linear(4, 4).eval()
    x = torch.randn(2, 4)
    base = fqx.capture(net, (x,)).unwrap()
    done = fqx.quantize(net, (x,), [x], target="onednn", progress=False).unwrap()
    kinds = [
        advise(program, data).failure().fault.kind
        for program, data in (
            (base, []),
            (done.graph, [x]),
            (base, [torch.full((2, 4), math.nan)]),
        )
    ]
    assert kinds == [FaultKind.EMPTY_CALIBRATION, FaultKind.BAD_ARGUMENT, FaultKind.NOT_FINITE]
