"""Residual networks (He et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from fqx.testing.zoo.parts import conv_norm


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, ins: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(ins, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, ins, H, W] to [N, width, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        activated: Tensor = self.relu(out)
        return activated


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut; the stride is in the 3×3 one."""

    expansion = 4

    def __init__(self, ins: int, width: int, stride: int) -> None:
        super().__init__()
        outs = width * self.expansion
        self.reduce = conv_norm(ins, width, 1)
        self.filter = conv_norm(width, width, 3, stride=stride)
        self.expand = conv_norm(width, outs, 1, act=None)
        self.shortcut = _shortcut(ins, outs, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, ins, H, W] to [N, 4 · width, H / stride, W / stride]."""
        out: Tensor = self.relu(self.expand(self.filter(self.reduce(x))) + self.shortcut(x))
        return out


def _shortcut(ins: int, outs: int, stride: int) -> nn.Module:
    if stride == 1 and ins == outs:
        return nn.Identity()
    return conv_norm(ins, outs, 1, stride=stride, act=None)


class ResNet(nn.Module):
    """A stem, four stages of blocks, global average pooling and a linear classifier."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        classes: int,
        width: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        ins, stages = width, []
        for index, depth in enumerate(depths):
            inner = width * 2**index
            blocks: list[nn.Module] = []
            for position in range(depth):
                blocks.append(block(ins, inner, 2 if index > 0 and position == 0 else 1))
                ins = inner * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(ins, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits [N, classes]."""
        x = self.pool(self.stages(self.stem(x)))
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def resnet18(classes: int = 1000, width: int = 64, in_channels: int = 3) -> ResNet:
    """ResNet-18; `width` is the number of channels of the first stage."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, width, in_channels)


def resnet50(classes: int = 1000, width: int = 64, in_channels: int = 3) -> ResNet:
    """ResNet-50; `width` is the inner number of channels of the first stage."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, width, in_channels)
