"""Quantized inputs and outputs of a converted program, as torch.ao has them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.ao.quantization.quantize_fx as old
from torch import Tensor, nn
from torch.ao.quantization import (
    MinMaxObserver,
    QConfig,
    QConfigMapping,
    default_weight_observer,
)
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig

import fqx.compat.quantize_fx as new

pytestmark = pytest.mark.filterwarnings("ignore")


class Forked(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both linears, and one of them again."""
        return self.one(x), self.two(self.one(y))


def mapping() -> QConfigMapping:
    """Ranges as seen."""
    qconfig: Any = QConfig
    return QConfigMapping().set_global(qconfig(MinMaxObserver, default_weight_observer))


def config() -> PrepareCustomConfig:
    """The first input and the second output are quantized tensors."""
    made = PrepareCustomConfig().set_input_quantized_indexes([0])
    return made.set_output_quantized_indexes([1])


def data() -> tuple[Any, Tensor, Tensor]:
    """A model and its inputs."""
    torch.manual_seed(0)
    return Forked().eval(), torch.randn(32, 8), torch.randn(32, 8)


def prepared(given: Any) -> tuple[Any, Tensor, Tensor]:
    """The drop-in's prepared model and its data."""
    model, x, y = data()
    made = new.prepare_fx(model, mapping(), (x, y), given)
    made(x, y)
    return made, x, y


@pytest.mark.parametrize(
    "convert",
    [new.convert_fx, new.convert_to_reference_fx, new.convert_to_reference_decomposed_fx],
)
def test_the_same_values_come_and_go_as_quantized_tensors(convert: Any) -> None:
    made, x, y = prepared(config())
    plain, _, _ = prepared(None)
    low, high = float(x.min()), float(x.max())
    scale = (high - low) / 255.0
    quantized = torch.quantize_per_tensor(x, scale, round(-low / scale), torch.quint8)
    program = convert(made)
    one, two = program(quantized, y)
    wanted = convert(plain)(quantized.dequantize(), y)
    assert torch.equal(one, wanted[0]) and not one.is_quantized
    assert two.dtype == torch.quint8 and torch.equal(two.dequantize(), wanted[1])
    assert torch.equal(program(x=quantized, y=y)[0], one)


def test_copies_and_pickles_take_and_gives_quantized_tensors_too() -> None:
    made, x, y = prepared(config())
    program = new.convert_fx(made)
    quantized = torch.quantize_per_tensor(x, 0.03, 120, torch.quint8)
    wanted = program(quantized, y)
    for twin in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        found = twin(quantized, y)
        assert torch.equal(found[0], wanted[0])
        assert found[1].is_quantized and torch.equal(found[1].int_repr(), wanted[1].int_repr())


def test_the_program_is_that_of_torch() -> None:
    model, x, y = data()
    theirs: Any = old.prepare_fx(copy.deepcopy(model), mapping(), (x, y), config())
    theirs(x, y)
    peer = old.convert_fx(theirs)
    made, _, _ = prepared(config())
    quantized = torch.quantize_per_tensor(x, 0.03, 120, torch.quint8)
    ours, wanted = new.convert_fx(made)(quantized, y), peer(quantized, y)
    assert ours[1].dtype == wanted[1].dtype and ours[1].q_scale() == wanted[1].q_scale()
    assert torch.equal(ours[1].int_repr(), wanted[1].int_repr())
    # torch reads the integers as they come, fqx in the range it has seen: half a step of each
    torch.testing.assert_close(ours[0], wanted[0], rtol=0, atol=0.05)


def test_an_output_that_stays_float_is_told() -> None:
    model, x, y = data()
    left = mapping().set_module_name("two", None)
    made = new.prepare_fx(model, left, (x, y), config())
    made(x, y)
    with pytest.warns(UserWarning, match="such outputs are float"):
        program = new.convert_fx(made)
    assert not program(x, y)[1].is_quantized
