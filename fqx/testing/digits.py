"""A small residual CNN and scikit-learn's handwritten digits: trains in seconds, downloads nothing.

The network has what integer inference stumbles over: a residual add, a depthwise convolution,
ReLU6 clamps, batch norms, an average pool in front of the classifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqx.testing.zoo.parts import InvertedResidual, conv_norm
from fqx.testing.zoo.resnet import BasicBlock
from fqx.testing.zoo.seeded import seeded

__all__ = ["Digits", "DigitsNet", "accuracy", "batches", "load_digits", "train"]


@dataclass(frozen=True, slots=True)
class Digits:
    """Images float32 [N, 1, 8, 8] in 0…1 and labels int64 [N], for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class DigitsNet(nn.Module):
    """Residual and inverted-residual blocks on 8×8 images."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = conv_norm(1, width, 3, act=nn.ReLU6)
        self.block1 = BasicBlock(width, width, 1)
        self.block2 = InvertedResidual(width, 4 * width, 2 * width, 3, 2, nn.ReLU6)
        self.block3 = InvertedResidual(2 * width, 4 * width, 2 * width, 3, 1, nn.ReLU6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 8, 8] to logits [N, 10]."""
        x = self.block3(self.block2(self.block1(self.stem(x))))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def load_digits(test: int = 500, seed: int = 0) -> Digits:
    """The 1797 digits of scikit-learn, shuffled by `seed`, the last `test` of them held out."""
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)[order] / 16.0
    targets = torch.tensor(labels, dtype=torch.int64)[order]
    return Digits(pixels[:-test], targets[:-test], pixels[-test:], targets[-test:])


def train(digits: Digits, epochs: int = 8, width: int = 32, seed: int = 0) -> DigitsNet:
    """A trained `DigitsNet` in eval mode; weights and batch order depend on `seed` alone.

    The result is the same bit for bit for one thread count and one build of torch.
    """
    net = seeded(lambda: DigitsNet(width), digits.train_images[:64], seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0, weight_decay=1e-2)
    steps = epochs * _count(digits, 64)
    net.train()
    for step, (images, labels) in enumerate(_epochs(digits, epochs, 64, generator)):
        rate = 4e-3 * min(1.0, step / 40) * (1.0 - step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = F.cross_entropy(net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        optimizer.step()
    return net.eval()


def batches(digits: Digits, count: int = 8, size: int = 64) -> tuple[Tensor, ...]:
    """The first `count` batches of `size` training images, for calibration."""
    images = digits.train_images
    return tuple(images[index * size : (index + 1) * size] for index in range(count))


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of `images` that `model` classifies as `labels` say."""
    with torch.no_grad():
        found: Tensor = model(images).argmax(1)
    return float((found == labels).double().mean())


def _count(digits: Digits, size: int) -> int:
    return len(digits.train_labels) // size


def _epochs(
    digits: Digits, epochs: int, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(epochs):
        order = torch.randperm(len(digits.train_labels), generator=generator)
        for index in range(_count(digits, size)):
            chosen = order[index * size : (index + 1) * size]
            yield digits.train_images[chosen], digits.train_labels[chosen]
