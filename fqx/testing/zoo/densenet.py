"""DenseNet-BC (Huang et al. 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """Norm, relu, 1×1, norm, relu, 3×3: adds `growth` channels to what it was given."""

    def __init__(self, ins: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(ins)
        self.conv1 = nn.Conv2d(ins, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        """All feature maps so far [N, *, H, W] to the new one [N, growth, H, W]."""
        x = torch.cat(features, 1)
        x = self.conv1(F.relu(self.norm1(x)))
        added: Tensor = self.conv2(F.relu(self.norm2(x)))
        return added


class DenseBlock(nn.Module):
    """Layers that each see the outputs of all layers before them."""

    def __init__(self, ins: int, growth: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(ins + i * growth, growth) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """[N, ins, H, W] to [N, ins + count · growth, H, W]."""
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Dense blocks with transitions that halve channels and size."""

    def __init__(self, classes: int, growth: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        channels = 2 * growth
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
        for index, count in enumerate(blocks):
            layers.append(DenseBlock(channels, growth, count))
            channels += count * growth
            if index + 1 < len(blocks):
                layers += [
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(channels, channels // 2, 1, bias=False),
                    nn.AvgPool2d(2),
                ]
                channels //= 2
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, classes]."""
        x = F.relu(self.features(x), inplace=True)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def densenet(
    classes: int = 1000, growth: int = 32, blocks: tuple[int, ...] = (6, 12, 24, 16)
) -> DenseNet:
    """DenseNet-BC; `blocks` are the layers of each dense block (DenseNet-121 by default)."""
    return DenseNet(classes, growth, blocks)
