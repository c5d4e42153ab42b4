"""A whole road under torch.ao's observers gives torch.ao's own scales, zero points and integers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao.quantization import QConfig, QConfigMapping, observer
from torch.ao.quantization.quantize_fx import convert_to_reference_fx, prepare_fx

from fqx import capture
from fqx.compat.qconfig import scheme_of_qconfig
from fqx.ir.arg import DType
from fqx.ir.graph import Graph
from fqx.ir.names import Path
from fqx.num.tensors import tensor_of
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.fuse import fuse
from fqx.passes.observe import observe
from fqx.policy.recipe import Recipe, use
from fqx.policy.selectors import everything
from fqx.policy.target import IntRange
from fqx.targets.native import native

# torch.ao puts a convolution and its relu in a module of their own
WEIGHTS = {"0.weight": "0.0.weight", "2.weight": "2.weight", "4.weight": "4.weight"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]


def model() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(*layers).eval()


def batches() -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(5)
    return [torch.randn(2, 3, 8, 8, generator=made) * size for size in (1.0, 3.0, 0.5)]


def ours(qconfig: Any) -> Graph:
    scheme = scheme_of_qconfig(qconfig).unwrap()
    assert scheme is not None and scheme.activation is not None
    held = IntRange(DType.UINT8, scheme.activation.qmin, scheme.activation.qmax)
    target = replace(
        native("x86").unwrap(), activation=held, weight=IntRange(DType.INT8, -128, 127)
    )
    recipe = Recipe((use(everything(), scheme),))
    seen = observe(recipe, target) | calibrate([(x,) for x in batches()], progress=False)
    road = clean() | fuse() | seen | convert(target)
    return road.run(capture(model(), (batches()[0],)).unwrap()).unwrap().graph


def peer(qconfig: Any) -> dict[str, torch.Tensor]:
    module: Any = prepare_fx(
        copy.deepcopy(model()), QConfigMapping().set_global(qconfig), (batches()[0],)
    )
    for batch in batches():
        module(batch)
    return dict(convert_to_reference_fx(module).state_dict())


@pytest.mark.parametrize(
    "activation",
    [
        observer.MinMaxObserver.with_args(reduce_range=True),
        observer.MovingAverageMinMaxObserver,
        observer.MovingAverageMinMaxObserver.with_args(averaging_constant=0.3, eps=2.0**-6),
    ],
)
@pytest.mark.parametrize(
    "weight", [observer.default_weight_observer, observer.default_per_channel_weight_observer]
)
def test_a_network_gets_the_scales_and_integers_of_torch(activation: Any, weight: Any) -> None:
    qconfig = QConfig(activation, weight)  # type: ignore[no-untyped-call]  # torch's own
    graph, held = ours(qconfig), peer(qconfig)
    made = [node.args[1:] for node in graph if node.op == "quantize"]
    names = [name for name in held if "scale_" in name]
    zeros = [name.replace("scale_", "zero_point_") for name in names]
    wanted = [(float(held[s]), int(held[z])) for s, z in zip(names, zeros, strict=True)]
    # the reference program also quantizes behind the flatten, as ours does
    assert made == wanted and len(made) == 5
    for path, name in WEIGHTS.items():
        scale = held[f"{name}_scale"].reshape(-1)
        zero = held[f"{name}_zero_point"].reshape(-1)
        whole = held[name]
        integers = (
            torch.quantize_per_tensor(whole, float(scale), int(zero), torch.qint8)
            if scale.numel() == 1
            else torch.quantize_per_channel(whole, scale, zero, 0, torch.qint8)
        )
        assert torch.equal(tensor_of(graph.weights[Path(path)]).unwrap(), integers.int_repr())
