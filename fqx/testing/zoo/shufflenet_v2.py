"""ShuffleNetV2 (Ma et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fqx.testing.zoo.parts import conv_norm


def shuffled(x: Tensor) -> Tensor:
    """[N, C, H, W] with the two halves of its channels interleaved."""
    batch, channels, height, width = x.size()
    x = x.view(batch, 2, channels // 2, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


def _branch(ins: int, inner: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv_norm(ins, inner, 1),
        conv_norm(inner, inner, 3, stride=stride, groups=inner, act=None),
        conv_norm(inner, inner, 1),
    )


class Unit(nn.Module):
    """One half of the channels passes through, the other is filtered; then they are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _branch(channels // 2, channels // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        kept, filtered = x.chunk(2, dim=1)
        return shuffled(torch.cat((kept, self.branch(filtered)), dim=1))


class DownUnit(nn.Module):
    """Both branches see every channel and halve the size."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        half = outs // 2
        self.short = nn.Sequential(
            conv_norm(ins, ins, 3, stride=2, groups=ins, act=None), conv_norm(ins, half, 1)
        )
        self.branch = _branch(ins, half, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, ins, H, W] to [N, outs, H / 2, W / 2]."""
        return shuffled(torch.cat((self.short(x), self.branch(x)), dim=1))


class ShuffleNetV2(nn.Module):
    """A stem, three stages of shuffle units, a 1×1 convolution and a linear classifier."""

    def __init__(self, classes: int, widths: tuple[int, int, int, int], last: int) -> None:
        super().__init__()
        stem, *stages = widths
        layers: list[nn.Module] = [conv_norm(3, stem, 3, stride=2), nn.MaxPool2d(3, 2, 1)]
        ins = stem
        for outs, count in zip(stages, (3, 7, 3), strict=True):
            layers.append(DownUnit(ins, outs))
            layers.extend(Unit(outs) for _ in range(count))
            ins = outs
        self.features = nn.Sequential(*layers, conv_norm(ins, last, 1))
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, classes]."""
        logits: Tensor = self.fc(self.features(x).mean([2, 3]))
        return logits


def shufflenet_v2(
    classes: int = 1000,
    widths: tuple[int, int, int, int] = (24, 116, 232, 464),
    last: int = 1024,
) -> ShuffleNetV2:
    """ShuffleNetV2; `widths` are the channels of the stem and the three stages (1.0×)."""
    return ShuffleNetV2(classes, widths, last)
