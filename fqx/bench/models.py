"""The bundled models: by name, how to make one and the inputs it is measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from fqx.audit.measure import call_of
from fqx.bench.subject import Loaded, Subject, resized, sized
from fqx.edge.modules import Module
from fqx.testing import full_size, minilm, zoo

SIDE = 224
"""Pictures are 3 × 224 × 224."""

CALIBRATION, HELD_OUT = 64, 16
"""How many samples of each; no sample is in both."""


def _pictured(make: Callable[[], Module]) -> Loaded:
    """A network of the zoo at its usual size, weights drawn from a seed, on pictures."""
    return _on_pictures(zoo.seeded(make, zoo.pictures(CALIBRATION, SIDE, 2)))


def _on_pictures(model: Module) -> Loaded:
    calibration = zoo.pictures(CALIBRATION, SIDE, 0)
    held_out = zoo.pictures(HELD_OUT, SIDE, 1)
    batches = tuple(call_of(part) for part in torch.split(calibration, 8))
    singles = tuple(call_of(part) for part in torch.split(held_out, 1))
    return Loaded(model, batches, singles, singles[0])


def _convnext() -> Loaded:
    return _on_pictures(full_size.convnext_tiny())


def _bert() -> Loaded:
    calibration, held_out = full_size.texts(CALIBRATION, 0), full_size.texts(HELD_OUT, 1)
    return _on_texts(full_size.bert_base(), (calibration,), (held_out,))


def _minilm() -> Loaded:
    batches = minilm.calibration_batches()
    return _on_texts(minilm.encoder(), batches, minilm.held_out_batches(1, HELD_OUT))


def _on_texts(
    model: Module,
    calibration: tuple[tuple[Tensor, ...], ...],
    held_out: tuple[tuple[Tensor, ...], ...],
) -> Loaded:
    batches, calls = ([call_of(args) for args in found] for found in (calibration, held_out))
    singles = resized(calls, sized(calls[0], 1))
    return Loaded(model, tuple(batches), singles, singles[0])


MODELS: Mapping[str, Callable[[], Loaded]] = MappingProxyType(
    {
        "resnet18": partial(_pictured, zoo.resnet18),
        "resnet50": partial(_pictured, zoo.resnet50),
        "mobilenet_v2": partial(_pictured, zoo.mobilenet_v2),
        "mobilenet_v3_small": partial(_pictured, zoo.mobilenet_v3_small),
        "shufflenet_v2": partial(_pictured, zoo.shufflenet_v2),
        "efficientnet": partial(_pictured, zoo.efficientnet),
        "densenet": partial(_pictured, zoo.densenet),
        "convnext_tiny": _convnext,
        "vit_b_16": partial(_pictured, zoo.vit),
        "bert_base": _bert,
        "minilm": _minilm,
    }
)
"""All of them, in the order of the tables."""


def bundled(name: str) -> Subject:
    """The subject of one of `MODELS`."""
    return Subject(name, MODELS[name])
