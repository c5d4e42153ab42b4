"""Histogram observers of torch.ao against the histograms that stand for them, in dB."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import pytest
import torch
from torch.ao.quantization import observer

from fqx.compat.observers import spec_of_observer
from fqx.num import observers
from fqx.num.affine import fake_quantize
from fqx.num.qparams import qparams_of

Batches = list[torch.Tensor]

# both search for least squares, over other bins: their best ends can lie one bin apart
MOST_LOST = 0.2

OBSERVERS: Mapping[str, Any] = {
    "quint8": observer.HistogramObserver,
    "reduced": observer.HistogramObserver.with_args(reduce_range=True),
    "qint8": observer.HistogramObserver.with_args(dtype=torch.qint8, eps=2.0**-12),
    "symmetric": observer.HistogramObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_tensor_symmetric
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")


def samples(seed: int) -> dict[str, Batches]:
    """Three batches of each shape that activations have."""
    made = torch.Generator().manual_seed(seed)

    def three(shape: Callable[[torch.Tensor], torch.Tensor]) -> Batches:
        return [shape(torch.randn(64, 64, generator=made)) for _ in range(3)]

    spike = torch.zeros(64, 64)
    spike[3, 5] = 50.0
    return {
        "normal": three(lambda x: x),
        "rectified": three(torch.relu),
        "even": three(lambda x: torch.special.ndtr(x) * 6 - 1),
        "peaked": three(lambda x: x * x.roll(1, 0)),
        "heavy": three(lambda x: x / x.roll(1, 0).abs().clamp(min=0.05)),
        "one outlier": three(lambda x: x + spike),
        "growing": [x * scale for x, scale in zip(three(lambda x: x), (0.1, 1, 5), strict=True)],
        "shifted": three(lambda x: x + 4),
        "positive": three(lambda x: (x / 2).exp()),
        "gated": three(lambda x: (2 * x).sigmoid()),
    }


def sqnr(batches: Batches, scale: torch.Tensor, zero: torch.Tensor, peer: Any) -> float:
    x = torch.cat(batches)
    seen = fake_quantize(x, scale.reshape(()), zero.reshape(()), peer.quant_min, peer.quant_max)
    noise = (x.double() - seen.double()).square().sum()
    return 10 * math.log10(float(x.double().square().sum() / noise))


def gained(constructor: Any, batches: Batches) -> float:
    """How many dB the spec's qparams keep more than torch.ao's."""
    peer, spec = constructor(), spec_of_observer(constructor).unwrap()
    assert spec is not None
    state = observers.empty(spec.observer)
    for batch in batches:
        peer(batch)
        state = observers.observe(spec.observer, state, batch).unwrap()
    made = qparams_of(spec, state).unwrap()
    ours = sqnr(batches, made.scale, made.zero_point, peer)
    scale, zero = peer.calculate_qparams()
    return ours - sqnr(batches, scale, zero, peer)


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_histogram_keeps_as_much_as_that_of_torch(name: str) -> None:
    found = {shape: gained(OBSERVERS[name], seen) for shape, seen in samples(11).items()}
    assert min(found.values()) >= -MOST_LOST, found
    assert fmean(found.values()) >= 0.0, found
