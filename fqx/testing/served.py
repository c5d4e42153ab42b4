"""Small models whose programs call every family of kernels, to export and to compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, gelu, interpolate

Inputs: TypeAlias = Callable[[int], tuple[Tensor, ...]]
"""Random inputs of a model for a batch size."""


class Convolutional(nn.Module):
    """[n, 3, 16, 16] to [n, 10]: residuals, a pool, a depthwise and pointwise layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.pool = nn.MaxPool2d(2)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16, padding=1)
        self.wide = nn.Sequential(nn.Conv2d(16, 32, 1), nn.Hardswish())
        self.narrow = nn.Conv2d(32, 16, 1)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y = torch.relu(self.stem(x))
        y = self.pool(torch.relu(self.body(y) + y))
        y = self.narrow(self.wide(self.depthwise(y))) + y
        y = torch.cat([y, y.flip(1)], 1)[:, :16]
        made: Tensor = self.head(self.mean(torch.sigmoid(y) * y).flatten(1))
        return made


class Perceptron(nn.Module):
    """[n, 24] to [n, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 48), nn.Linear(48, 48)
        self.last = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        y = gelu(self.first(x))
        made: Tensor = self.last(torch.relu(self.second(y) + y))
        return made


class Attending(nn.Module):
    """int64 [n, 7] to [n, 7, 32]: a block of an encoder behind its table of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors of the tokens."""
        x = self.table(tokens)
        y = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        made: Tensor = self.norm(y + self.down(gelu(self.up(y))))
        return made


class Mixed(nn.Module):
    """[n, 4, 16] to two values: convolutions of every rank, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.two = nn.Conv2d(8, 4, 3)
        self.three = nn.Conv3d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last convolution's values, and half of the first one's."""
        y = torch.relu(self.one(x))
        z = torch.relu(self.two(torch.relu(self.up(y.reshape(-1, 8, 4, 4)))))
        w = torch.relu(self.three(z.reshape(-1, 2, 2, 6, 6)))
        return torch.tanh(w), y.chunk(2, 1)[1]


class Normed(nn.Module):
    """[n, 4, 8, 8] to two values: norms, activations and a product, which lone schemes quantize."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.norm = nn.Sequential(nn.BatchNorm2d(8), nn.PReLU(), nn.AvgPool2d(2))
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8, affine=True))
        self.layer = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows mixed by their products, and an enlarged map."""
        y = self.point(self.norm(self.conv(x)))
        rows = self.layer(y.flatten(2))
        weights = torch.softmax(rows @ rows.transpose(1, 2), -1)
        large = interpolate(torch.sigmoid(y) + 1.5, scale_factor=2, mode="bilinear")
        return weights @ rows, elu(large) * large


class Recurrent(nn.Module):
    """[n, 5, 8] to its values and last state."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.layer = kind(8, 12, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values of each step, and the last hidden state."""
        y, state = self.layer(x)
        return self.head(y), state[0] if isinstance(state, tuple) else state


class Cells(nn.Module):
    """[n, 8] and two states [n, 12] through three cells."""

    def __init__(self) -> None:
        super().__init__()
        self.long, self.gated = nn.LSTMCell(8, 12), nn.GRUCell(12, 12)
        self.plain = nn.RNNCell(12, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The last cell's state and the first one's."""
        one, two = self.long(x, (h, c))
        return self.plain(self.gated(one, two), one[:, :4]), two


class Bagged(nn.Module):
    """int64 [n, 7] to [n, 4]: bags of embeddings, one of them with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = nn.EmbeddingBag(50, 16, mode="sum")
        self.means = nn.EmbeddingBag(50, 16, mode="mean", padding_idx=3)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        made: Tensor = self.head(self.sums(tokens) + self.means(tokens))
        return made


def _floats(*sizes: int) -> Inputs:
    return lambda batch: (torch.randn(batch, *sizes),)


def _tokens(batch: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 50, (batch, 7)),)


def _states(batch: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, 8), torch.randn(batch, 12), torch.randn(batch, 12)


_MODELS: Mapping[str, tuple[Callable[[], nn.Module], Inputs]] = MappingProxyType(
    {
        "convolutional": (Convolutional, _floats(3, 16, 16)),
        "perceptron": (Perceptron, _floats(24)),
        "attending": (Attending, _tokens),
        "mixed": (Mixed, _floats(4, 16)),
        "normed": (Normed, _floats(4, 8, 8)),
        "lstm": (lambda: Recurrent(nn.LSTM), _floats(5, 8)),
        "gru": (lambda: Recurrent(nn.GRU), _floats(5, 8)),
        "cells": (Cells, _states),
        "bagged": (Bagged, _tokens),
    }
)


def served(name: str) -> tuple[nn.Module, Inputs]:
    """A model with weights that are always the same, and its random inputs."""
    make, inputs = _MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval(), inputs
