"""Counting executed kernels; size, time and fidelity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fqx.audit.macs import count_macs
from fqx.audit.measure import (
    Contest,
    call_of,
    contest,
    decibels,
    latency,
    show_bytes,
    show_seconds,
    sqnr,
    sqnr_over,
    weight_bytes,
)
from fqx.testing.small import quantized_trail

ONE = torch.zeros(8, dtype=torch.int64)


def test_float_modules_are_counted_as_flops_are() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
    found = count_macs(net, (torch.randn(2, 3, 8, 8),))
    assert (found.int8, found.floating) == (0, 2 * 8 * 36 * 27 + 2 * 288 * 10)
    assert found.share == 0.0


def test_depthwise_convolutions_count_their_groups() -> None:
    net = nn.Conv2d(8, 8, 3, groups=8)
    assert count_macs(net, (torch.randn(1, 8, 6, 6),)).floating == 8 * 16 * 9


@pytest.mark.parametrize("groups", [1, 4])
def test_plain_convolutions_are_counted_as_int8(groups: int) -> None:
    weight = torch.randint(-127, 127, (8, 4 // groups, 3, 3), dtype=torch.int8)
    scale = torch.full((8,), 0.01)
    shape = ([1, 1], [0, 0], [1, 1], groups)
    packed = torch.ops.onednn.qconv_prepack(weight, scale, 0.1, 0, *shape, None)

    def kernel(x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, 0.1, 0, packed, scale, ONE, None, *shape, 0.5, 0, torch.uint8, "none", [], ""
        )
        return made

    x = torch.randint(0, 255, (2, 4, 6, 6), dtype=torch.uint8)
    found = count_macs(kernel, (x,))
    assert (found.int8, found.floating) == (2 * 8 * 16 * 9 * 4 // groups, 0)
    assert found.share == 1.0
    assert "onednn.qconv2d_pointwise" in repr(found)


def test_plain_linears_are_counted_as_int8() -> None:
    weight = torch.randint(-127, 127, (10, 32), dtype=torch.int8)
    scale, zeros = torch.full((10,), 0.01), torch.zeros(10, dtype=torch.int64)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)

    def kernel(x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 0.1, 0, packed, scale, zeros, None, 0.5, 0, torch.uint8, "none", [], ""
        )
        return made

    x = torch.randint(0, 255, (2, 5, 32), dtype=torch.uint8)
    assert count_macs(kernel, (x,)).int8 == 2 * 5 * 320


def test_noise_is_measured_over_all_tensors() -> None:
    x = torch.ones(100)
    assert sqnr(x, x) == math.inf
    assert sqnr(x, x * 1.1) == pytest.approx(20.0, abs=1e-4)
    assert sqnr({"a": x, "n": 3}, {"a": x * 1.1, "n": 3}) == pytest.approx(20.0, abs=1e-4)
    assert sqnr_over(lambda t: t, lambda t: t * 1.1, [((x,), {}), ((2 * x,), {})]) == pytest.approx(
        20.0, abs=1e-4
    )
    assert decibels(0.0, 1.0) == -math.inf


def test_latency_stops_at_its_budget() -> None:
    found = latency(lambda: sum(range(1000)), runs=5)
    assert 0 < found.best <= found.median
    assert found.runs == 5
    assert latency(lambda: sum(range(200_000)), runs=10_000, budget=0.05).runs < 10_000


def test_weights_shrink() -> None:
    trail = quantized_trail()
    assert weight_bytes(trail.graph) < weight_bytes(trail.base) / 2


def test_units_are_readable() -> None:
    assert [show_bytes(n) for n in (12, 2048, 3 << 20)] == ["12 B", "2 KiB", "3 MiB"]
    assert [show_seconds(s) for s in (2.0, 0.002, 2e-6)] == ["2 s", "2 ms", "2 µs"]


def test_batches_are_calls() -> None:
    x = torch.zeros(1)
    assert call_of(x) == ((x,), {})
    assert call_of([x, 1]) == ((x, 1), {})
    assert call_of({"x": x}) == ((), {"x": x})


def test_a_contest_is_won_by_more_than_the_spread() -> None:
    assert Contest(1.0, 2.0, 0.5, 9).pays
    assert not Contest(1.0, 1.4, 0.5, 9).pays
    assert not Contest(2.0, 1.0, 0.1, 9).pays
    x = torch.randn(400, 400)
    found = contest(lambda: None, lambda: x @ x @ x, runs=5)
    assert found.runs == 5
    assert found.int8 < found.floating
