"""MobileNetV2 (Sandler et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from fqx.testing.zoo.parts import InvertedResidual, conv_norm, rounded

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Table 2 of the paper: expansion, channels, blocks, stride of the first block."""


class MobileNetV2(nn.Module):
    """Inverted residuals with ReLU6."""

    def __init__(self, classes: int, width: float) -> None:
        super().__init__()
        ins = rounded(32 * width)
        layers: list[nn.Module] = [conv_norm(3, ins, 3, stride=2, act=nn.ReLU6)]
        for expansion, channels, count, first in STAGES:
            outs = rounded(channels * width)
            for position in range(count):
                stride = first if position == 0 else 1
                layers.append(InvertedResidual(ins, ins * expansion, outs, 3, stride, nn.ReLU6))
                ins = outs
        last = rounded(1280 * max(1.0, width))
        layers.append(conv_norm(ins, last, 1, act=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, classes]."""
        logits: Tensor = self.classifier(self.features(x).mean([2, 3]))
        return logits


def mobilenet_v2(classes: int = 1000, width: float = 1.0) -> MobileNetV2:
    """MobileNetV2; `width` multiplies the numbers of channels."""
    return MobileNetV2(classes, width)
