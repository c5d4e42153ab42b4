"""Architectures of the `transformers` library at their published size, weights drawn from a seed.

Nothing is downloaded. The library is imported when a model is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fqx.testing.zoo.seeded import seeded

__all__ = ["TOKENS", "bert_base", "convnext_tiny"]

TOKENS = 64
"""The length of every text."""


class Logits(nn.Module):
    """An image classifier of `transformers` that gives its logits alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, classes]."""
        logits: Tensor = self.inner(images).logits
        return logits


class States(nn.Module):
    """A text encoder of `transformers` that gives its last hidden states alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [N, T] twice to vectors [N, T, width]."""
        found: Any = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        states: Tensor = found.last_hidden_state
        return states


def convnext_tiny(seed: int = 0) -> nn.Module:
    """ConvNeXt-T (Liu et al. 2022), 28.6 million weights."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(num_labels=1000)
    return seeded(
        lambda: Logits(ConvNextForImageClassification(config)), torch.zeros(1, 3, 32, 32), seed
    )


def bert_base(seed: int = 0) -> nn.Module:
    """BERT-base (Devlin et al. 2019) without its pooler, 109 million weights."""
    from transformers import BertConfig, BertModel

    config = BertConfig()
    return seeded(lambda: States(BertModel(config, add_pooling_layer=False)), torch.zeros(1), seed)


def texts(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens and masks, int64 [count, 64]; texts are 16 tokens long or longer."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1000, 30000, (count, TOKENS), generator=generator)
    lengths = torch.randint(16, TOKENS + 1, (count, 1), generator=generator)
    mask = (torch.arange(TOKENS) < lengths).long()
    return tokens * mask, mask
