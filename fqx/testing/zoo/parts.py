"""Layers that several architectures of the zoo share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def rounded(channels: float, step: int = 8) -> int:
    """The multiple of `step` nearest to `channels`, but no more than 10 % below it."""
    near = max(step, int(channels + step / 2) // step * step)
    return near if near >= 0.9 * channels else near + step


def conv_norm(
    ins: int,
    outs: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution that keeps the size (divided by `stride`), batch norm, activation if any."""
    conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outs)]
    return nn.Sequential(*layers, *([act()] if act else []))


class SqueezeExcite(nn.Module):
    """Rescales channels by a gate computed from their means (Hu et al. 2018)."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        act: Callable[[], nn.Module],
        gate: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(channels, hidden, 1)
        self.act = act()
        self.up = nn.Conv2d(hidden, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        gate: Tensor = self.gate(self.up(self.act(self.down(self.pool(x)))))
        return gate * x


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, optionally gate, project; adds its input where shapes allow.

    Sandler et al. 2018 (MobileNetV2), with the gate of Howard et al. 2019 (MobileNetV3).
    """

    def __init__(
        self,
        ins: int,
        hidden: int,
        outs: int,
        kernel: int,
        stride: int,
        act: Callable[[], nn.Module],
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and ins == outs
        layers: list[nn.Module] = []
        if hidden != ins:
            layers.append(conv_norm(ins, hidden, 1, act=act))
        layers.append(conv_norm(hidden, hidden, kernel, stride=stride, groups=hidden, act=act))
        if gate is not None:
            layers.append(gate)
        layers.append(conv_norm(hidden, outs, 1, act=None))
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[N, ins, H, W] to [N, outs, H / stride, W / stride]."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y
