"""Architectures of the `transformers` library, small, with weights drawn from a seed.

Nothing is downloaded: each is built from a configuration. They are other people's code with all its
branches, so they go through `torch.export` only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fqx.testing.zoo.pictures import pictures
from fqx.testing.zoo.seeded import seeded

__all__ = ["ARCHITECTURES", "Architecture"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to make one model, and one input of `count` samples drawn from a seed.

    `multiplies` says where its arithmetic is: in convolutions, or in linears and attention.
    """

    name: str
    make: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Tensor]
    multiplies: str

    def model(self, seed: int = 0) -> nn.Module:
        """The model in eval mode, its weights drawn from `seed`."""
        return seeded(self.make, self.inputs(32, seed + 1), seed)

    def inputs(self, count: int, seed: int = 0) -> Tensor:
        """Its input for `count` samples, drawn from `seed`."""
        return self.draw(count, torch.Generator().manual_seed(seed))


def _images(side: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda count, generator: pictures(count, side, int(generator.initial_seed()))


def _tokens(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 100, (count, 16), generator=generator)


def _mels(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 16, 64, generator=generator)


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64, 64, 128], depths=[1, 1, 1, 1], num_labels=10
    )
    model: nn.Module = ResNetForImageClassification(config)
    return model


def _mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.35, image_size=64, num_labels=10)
    model: nn.Module = MobileNetV2ForImageClassification(config)
    return model


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    model: nn.Module = ViTForImageClassification(config)
    return model


def _convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 1, 1], num_labels=10)
    model: nn.Module = ConvNextForImageClassification(config)
    return model


def _swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=10,
    )
    model: nn.Module = SwinForImageClassification(config)
    return model


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
    )
    model: nn.Module = BertModel(config)
    return model


def _whisper() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        num_mel_bins=16,
        max_source_positions=32,
    )
    model: nn.Module = WhisperEncoder(config)
    return model


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("resnet", _resnet, _images(64), "conv"),
    Architecture("mobilenet_v2", _mobilenet_v2, _images(64), "conv"),
    Architecture("vit", _vit, _images(32), "linear"),
    Architecture("convnext", _convnext, _images(64), "conv"),
    Architecture("swin", _swin, _images(32), "linear"),
    Architecture("bert", _bert, _tokens, "linear"),
    Architecture("whisper_encoder", _whisper, _mels, "linear"),
)
"""One small instance of each."""
