"""MobileNetV3-Small (Howard et al. 2019)."""

from __future__ import annotations

from torch import Tensor, nn

from fqx.testing.zoo.parts import InvertedResidual, SqueezeExcite, conv_norm, rounded

ROWS = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
"""Table 2 of the paper: kernel, expanded and output channels, gated, hard-swish, stride."""


class MobileNetV3(nn.Module):
    """Inverted residuals with squeeze-and-excite gates and hard-swish."""

    def __init__(self, classes: int, width: float) -> None:
        super().__init__()
        ins = rounded(16 * width)
        layers: list[nn.Module] = [conv_norm(3, ins, 3, stride=2, act=nn.Hardswish)]
        for kernel, expanded, channels, gated, swish, stride in ROWS:
            hidden, outs = rounded(expanded * width), rounded(channels * width)
            gate = (
                SqueezeExcite(hidden, rounded(hidden / 4), nn.ReLU, nn.Hardsigmoid)
                if gated
                else None
            )
            act = nn.Hardswish if swish else nn.ReLU
            layers.append(InvertedResidual(ins, hidden, outs, kernel, stride, act, gate))
            ins = outs
        self.features = nn.Sequential(*layers, conv_norm(ins, 6 * ins, 1, act=nn.Hardswish))
        inner = rounded(1024 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * ins, inner),
            nn.Hardswish(inplace=True),
            nn.Dropout(0.2, inplace=True),
            nn.Linear(inner, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, classes]."""
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


def mobilenet_v3_small(classes: int = 1000, width: float = 1.0) -> MobileNetV3:
    """MobileNetV3-Small; `width` multiplies the numbers of channels."""
    return MobileNetV3(classes, width)
