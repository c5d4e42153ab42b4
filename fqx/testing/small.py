"""A small net with something of everything, and its quantized trail: what file tests are about."""

from __future__ import annotations

import os
from functools import cache
from typing import NoReturn

import torch
from torch import nn

from fqx.edge.capture import capture
from fqx.ir.trail import Trail
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.observe import observe
from fqx.policy.recipe import int8_static
from fqx.targets.onednn import onednn


class SmallNet(nn.Module):
    """Convolutions with batch norm, a foreign operator, a tied weight, a buffer and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.twin = nn.Linear(8, 4)
        self.twin.weight = self.head.weight
        self.register_buffer("shift", torch.linspace(-1, 1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn(self.conv(x)))
        y = self.relu(self.conv2(y) + y).mean((2, 3))
        z = torch.cumprod(self.head(y), 1) + self.twin(y)
        shifted: torch.Tensor = z + self.shift
        return shifted


def small_net() -> SmallNet:
    """The same net every time, in eval mode, with running statistics of its own."""
    torch.manual_seed(0)
    net = SmallNet()
    with torch.no_grad():
        net(torch.randn(16, 3, 8, 8))
    return net.eval()


def batches() -> list[torch.Tensor]:
    """Calibration data."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(3)]


def dies(*_: object) -> NoReturn:
    """Ends the process it is called in, as a fault in native code does."""
    os._exit(7)


@cache
def quantized_trail() -> Trail:
    """Captured and quantized for onednn, the reference program; not lowered."""
    road = (
        clean()
        | fuse()
        | observe(int8_static(), onednn())
        | calibrate(batches(), progress=False)
        | convert(onednn())
        | fold()
    )
    return capture(small_net(), (batches()[0],)).bind(road.run).unwrap()
