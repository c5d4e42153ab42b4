"""The contestants: each makes something that can be called out of one float model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_map

import fqx
from fqx.api import Objective
from fqx.audit.measure import Call
from fqx.bench.onnx import onnx_float, onnx_int8
from fqx.bench.peers import torch_ao, torchao_pt2e
from fqx.bench.runner import Absent, Runner, calling
from fqx.bench.subject import Loaded
from fqx.policy.recipe import Recipe

Prepare = Callable[[Loaded, int], Runner]
"""From a model and a number of threads to a runner; raises `Absent`, or what goes wrong."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to run a model. `prepare` is called in the contestant's process: it is picklable.

    `attributable` if it runs an int8 program of fqx, whose nodes `--profile` times.
    """

    name: str
    about: str
    prepare: Prepare
    attributable: bool = False


def plain(loaded: Loaded, _: int) -> Runner:
    """The model itself, its tensors contiguous."""
    return calling(loaded.model)


def channels_last(loaded: Loaded, _: int) -> Runner:
    """The model itself, with its weights and its images in channels-last layout."""
    if not loaded.images:
        raise Absent("no input has four axes")
    turned = loaded.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Runner(lambda call: calling(turned).bind(_turned(call)))


def _turned(call: Call) -> Call:
    def turn(item: object) -> object:
        four = isinstance(item, torch.Tensor) and item.dim() == 4
        return item.contiguous(memory_format=torch.channels_last) if four else item  # type: ignore[attr-defined]

    found: Call = tree_map(turn, call)
    return found


def fused(loaded: Loaded, _: int) -> Runner:
    """The captured program, cleaned and fused, in float32."""
    args, kwargs = loaded.example
    trail = fqx.capture(loaded.model, args, kwargs=kwargs)
    program = trail.bind((fqx.clean() | fqx.fuse()).run).unwrap()
    module = fqx.materialize(program.graph).unwrap()
    return calling(module, program=module)


def quantized(
    loaded: Loaded,
    _: int,
    target: str,
    objective: Objective = "speed",
    recipe: Callable[[], Recipe] | None = None,
) -> Runner:
    """`fqx.quantize` for a target, with no recipe unless one is given."""
    args, kwargs = loaded.example
    done = fqx.quantize(
        loaded.model,
        args,
        [args or kwargs for args, kwargs in loaded.calibration],
        kwargs=kwargs,
        target=target,
        objective=objective,
        recipe=recipe() if recipe else None,
        progress=False,
    ).unwrap()
    module = done.materialize().unwrap()
    share = done.coverage().int8_share
    return calling(module, program=module, note=f"{share:.0%} of MACs planned int8")


def _fqx(name: str, about: str, target: str, **options: Any) -> Contestant:
    return Contestant(name, about, partial(quantized, target=target, **options), True)


CONTESTANTS: tuple[Contestant, ...] = (
    Contestant("fp32", "eager PyTorch", plain),
    Contestant("fp32-nhwc", "eager PyTorch in channels-last layout", channels_last),
    Contestant("fqx-float", "fqx's captured, cleaned and fused program", fused),
    _fqx("fqx", "fqx int8 for onednn, no recipe", "onednn"),
    _fqx("fqx-accuracy", "the same, objective accuracy", "onednn", objective="accuracy"),
    _fqx("fqx-coverage", "the same, objective coverage", "onednn", objective="coverage"),
    _fqx("fqx-dynamic", "fqx int8_dynamic() for onednn", "onednn", recipe=fqx.int8_dynamic),
    _fqx("fqx-native", "fqx int8 for torch's quantized:: kernels", "native"),
    _fqx("fqx-reference", "fqx int8 written in float operators", "reference"),
    Contestant("torch.ao", "FX int8 with the mapping of x86; dynamic for text", torch_ao),
    Contestant("torchao", "PT2E int8, compiled by Inductor", torchao_pt2e),
    Contestant("ort", "onnxruntime in float32", onnx_float),
    Contestant("ort-int8", "onnxruntime static QDQ per channel; dynamic for text", onnx_int8),
)
"""All contestants, in the order of the tables."""
