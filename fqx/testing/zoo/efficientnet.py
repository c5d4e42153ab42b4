"""EfficientNet (Tan and Le 2019)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fqx.testing.zoo.parts import InvertedResidual, SqueezeExcite, conv_norm, rounded

STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""Table 1 of the paper: expansion, kernel, stride of the first block, channels, blocks."""


class EfficientNet(nn.Module):
    """Gated inverted residuals with SiLU, scaled in width and depth."""

    def __init__(self, classes: int, width: float, depth: float) -> None:
        super().__init__()
        ins = rounded(32 * width)
        layers: list[nn.Module] = [conv_norm(3, ins, 3, stride=2, act=nn.SiLU)]
        for expansion, kernel, first, channels, count in STAGES:
            outs = rounded(channels * width)
            for position in range(math.ceil(count * depth)):
                hidden = ins * expansion
                gate = SqueezeExcite(hidden, max(1, ins // 4), nn.SiLU, nn.Sigmoid)
                stride = first if position == 0 else 1
                layers.append(InvertedResidual(ins, hidden, outs, kernel, stride, nn.SiLU, gate))
                ins = outs
        last = rounded(1280 * width)
        self.features = nn.Sequential(*layers, conv_norm(ins, last, 1, act=nn.SiLU))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2, inplace=True)
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, classes]."""
        logits: Tensor = self.fc(self.dropout(self.pool(self.features(x)).flatten(1)))
        return logits


def efficientnet(classes: int = 1000, width: float = 1.0, depth: float = 1.0) -> EfficientNet:
    """EfficientNet; B0 by default, `width` and `depth` multiply channels and blocks."""
    return EfficientNet(classes, width, depth)
