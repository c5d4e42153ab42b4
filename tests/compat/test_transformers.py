"""The drop-in on the architectures of transformers, small and with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.ao.quantization.quantize_fx as old
import transformers
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.utils._pytree import tree_leaves

import fqx.compat.quantize_fx as new
from fqx.audit.measure import sqnr

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("on_x86")]


@dataclass(frozen=True)
class Specimen:
    """An architecture and its inputs."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]


def images() -> tuple[Tensor]:
    return (torch.randn(4, 3, 32, 32),)


def tokens() -> tuple[Tensor]:
    return (torch.randint(1, 50, (4, 12)),)


def padded() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([[12], [7], [9], [12]])
    return (*tokens(), (torch.arange(12) < lengths).long())


def built(architecture: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """A model of an architecture with a configuration's options."""
    kind: Any = getattr(transformers, architecture)
    configuration: Any = getattr(transformers, config)
    return lambda: kind(configuration(**options))


TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
RESIDUAL = {**STAGES, "embedding_size": 8}

SPECIMENS = {
    "resnet": Specimen(
        built("ResNetModel", "ResNetConfig", layer_type="basic", **RESIDUAL), images
    ),
    "resnet head": Specimen(
        built("ResNetForImageClassification", "ResNetConfig", layer_type="basic", **RESIDUAL),
        images,
    ),
    "regnet": Specimen(built("RegNetModel", "RegNetConfig", groups_width=4, **RESIDUAL), images),
    "mobilenet": Specimen(
        built("MobileNetV2Model", "MobileNetV2Config", depth_multiplier=0.25), images
    ),
    "convnext": Specimen(built("ConvNextModel", "ConvNextConfig", num_stages=2, **STAGES), images),
    "convnext v2": Specimen(
        built("ConvNextV2Model", "ConvNextV2Config", num_stages=2, **STAGES), images
    ),
    "vit": Specimen(
        built(
            "ViTModel",
            "ViTConfig",
            image_size=32,
            patch_size=8,
            **{key: TEXT[key] for key in list(TEXT)[:4]},
        ),
        images,
    ),
    "swin": Specimen(
        built(
            "SwinModel",
            "SwinConfig",
            image_size=32,
            patch_size=4,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
        ),
        images,
    ),
    "bert": Specimen(built("BertModel", "BertConfig", **TEXT), padded),
    # as sentence embeddings are: six small layers of BERT's kind
    "minilm": Specimen(
        built("BertModel", "BertConfig", **{**TEXT, "num_hidden_layers": 6}), padded
    ),
    "distilbert": Specimen(
        built(
            "DistilBertModel",
            "DistilBertConfig",
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=32,
            vocab_size=50,
            max_position_embeddings=40,
        ),
        padded,
    ),
    # positions in buckets, which logarithms of integers choose
    "t5": Specimen(
        built(
            "T5EncoderModel",
            "T5Config",
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            vocab_size=50,
        ),
        padded,
    ),
    "mpnet": Specimen(built("MPNetModel", "MPNetConfig", **TEXT), padded),
    "llama": Specimen(
        built("LlamaModel", "LlamaConfig", num_key_value_heads=1, use_cache=False, **TEXT), tokens
    ),
}


def model_of(specimen: Specimen) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model, its norms with statistics as training leaves them."""
    torch.manual_seed(0)
    model = specimen.make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model, specimen.inputs()


def kernels_in(module: torch.fx.GraphModule) -> int:
    """How many integer linears and convolutions a program calls, of any rank and with any relu."""
    names = (getattr(node.target, "__name__", "") for node in module.graph.nodes)
    return sum(name.startswith(("native_linear", "native_conv")) for name in names)


@pytest.mark.parametrize("name", list(SPECIMENS))
def test_an_architecture_goes_through_the_drop_in(name: str) -> None:
    specimen = SPECIMENS[name]
    model, inputs = model_of(specimen)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        truth = model(*inputs)
    prepared = new.prepare_fx(model, get_default_qconfig_mapping("x86"), inputs)
    observed = prepared(*inputs)
    assert type(observed) is type(truth)
    torch.testing.assert_close(tree_leaves(observed), tree_leaves(truth), rtol=1e-3, atol=1e-4)
    fresh = copy.deepcopy(prepared)
    fresh.load_state_dict(prepared.state_dict())
    made = new.convert_fx(prepared)
    found = made(*inputs)
    assert type(found) is type(truth)
    # some twenty roundings of about 35 dB on the way, seven bits for eight standard deviations
    assert sqnr(truth[0], found[0]) > 20.0
    weighted = [item for item in model.modules() if isinstance(item, (nn.Linear, nn.Conv2d))]
    assert kernels_in(made) == len(weighted)
    for twin in (copy.deepcopy(made), new.convert_fx(fresh)):
        twin.load_state_dict(made.state_dict())
        assert torch.equal(twin(*inputs)[0], found[0])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet", "vit", "bert", "distilbert", "llama"])
def test_torch_traces_none_of_them(name: str) -> None:
    model, inputs = model_of(SPECIMENS[name])
    with pytest.raises((TypeError, torch.fx.proxy.TraceError)):
        old.prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), inputs)
