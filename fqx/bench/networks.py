"""How fast and how close whole networks are in int8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

import fqx
from fqx.audit.macs import count_macs
from fqx.audit.measure import latency, sqnr
from fqx.edge.modules import Module
from fqx.testing import zoo


@dataclass(frozen=True, slots=True)
class Row:
    """One network on one target: seconds a call, in float32 and in int8, SQNR, share of int8."""

    name: str
    target: str
    floating: float
    int8: float
    sqnr: float
    share: float

    def __str__(self) -> str:
        return (
            f"{self.name:<20}{self.target:<12}{self.floating * 1e3:>10.2f}{self.int8 * 1e3:>10.2f}"
            f"{self.floating / self.int8:>9.2f}×{self.sqnr:>9.1f}{self.share:>9.1%}"
        )


HEAD = (
    f"{'network':<20}{'target':<12}{'fp32 ms':>10}{'int8 ms':>10}{'faster':>10}{'SQNR dB':>9}"
    f"{'int8':>9}"
)
"""Column titles of `Row`."""


def rows(side: int = 224, threads: int = 1) -> Iterator[Row]:
    """The networks of the zoo at their usual size on side × side noise, batch 1, on `onednn`."""
    makers: Mapping[str, Callable[[], Module]] = {
        "resnet18": zoo.resnet18,
        "resnet50": zoo.resnet50,
        "mobilenet_v2": zoo.mobilenet_v2,
        "mobilenet_v3_small": zoo.mobilenet_v3_small,
        "shufflenet_v2": zoo.shufflenet_v2,
    }
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, side, side, generator=generator)
    for name, make in makers.items():
        model = zoo.seeded(make, images)
        done = fqx.quantize(model, (images[:2],), calibration=[images], progress=False).unwrap()
        module = done.materialize().unwrap()
        one = images[:1]
        with torch.no_grad():
            fidelity = sqnr(model(images), module(images))
        yield Row(
            name,
            "onednn",
            latency(model, (one,)).median,
            latency(module, (one,)).median,
            fidelity,
            count_macs(module, (one,)).share,
        )
    torch.set_num_threads(before)
