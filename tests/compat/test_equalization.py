"""`_equalization_config`: inputs are equalized against weights, also where torch.ao goes wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
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
from torch.ao.quantization.fx import _equalize

import fqx.compat.quantize_fx as new
from fqx.ir.names import NodeId

EQUALIZED: Any = _equalize.default_equalization_qconfig
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Linears(nn.Module):
    """Two linears with a relu between, of which the first reads channels of very uneven size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 16) to (n, 8)."""
        made: Tensor = self.two(torch.relu(self.one(x)))
        return made


class Convolutions(nn.Module):
    """The same of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 16, 6, 6) to (n, 4, 4, 4)."""
        made: Tensor = self.two(torch.relu(self.one(x)))
        return made


def case(kind: str) -> tuple[Any, Tensor]:
    """A model and data whose channels differ by up to four orders of magnitude."""
    torch.manual_seed(0)
    sizes = torch.logspace(-2, 2, 16)
    if kind == "linear":
        model: Any = Linears().eval()
        batch = torch.randn(128, 16) * sizes
    else:
        model = Convolutions().eval()
        batch = torch.randn(32, 16, 6, 6) * sizes[:, None, None]
    with torch.no_grad():
        weight = model.one.weight
        weight /= sizes.reshape(1, 16, *[1] * (weight.dim() - 2))
    return model, batch


def plain() -> QConfigMapping:
    """Ranges as seen, one scale for each weight."""
    qconfig: Any = QConfig
    return QConfigMapping().set_global(qconfig(MinMaxObserver, default_weight_observer))


def equalized() -> QConfigMapping:
    """Everything equalized."""
    return QConfigMapping().set_global(EQUALIZED)


def sqnr(library: Any, model: Any, batch: Tensor, equalization: Any) -> float:
    """dB that quantizing keeps."""
    with torch.no_grad():
        truth = model(batch)
        prepared = library.prepare_fx(model, plain(), (batch,), None, equalization)
        prepared(batch)
        noise = library.convert_fx(prepared)(batch) - truth
    return float(20.0 * torch.log10(truth.norm() / noise.norm()))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_equalizing_gains_what_uneven_channels_lose(kind: str) -> None:
    model, batch = case(kind)
    assert sqnr(new, model, batch, equalized()) > sqnr(new, model, batch, None) + 20.0


def test_layer_behind_layer_is_right_where_torch_is_silently_wrong() -> None:
    model, batch = case("linear")
    # torch.ao keeps the range of the value between, and its relu, as they were before scaling
    assert sqnr(old, copy.deepcopy(model), batch, equalized()) < 10.0
    assert sqnr(new, model, batch, equalized()) > 30.0


def test_the_float_model_and_the_prepared_one_stay_as_they_are() -> None:
    model, batch = case("conv")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared = new.prepare_fx(model, plain(), (batch,), None, equalized())
    truth = prepared(batch)
    new.convert_fx(prepared)
    assert torch.equal(prepared(batch), truth)
    assert all(torch.equal(tensor, before[k]) for k, tensor in model.state_dict().items())


def test_an_equalization_mapping_takes_what_it_names() -> None:
    model, batch = case("linear")
    only = QConfigMapping().set_module_name("one", EQUALIZED)
    said = {"module_name": [("one", EQUALIZED)]}
    programs = []
    for given in (only, said):
        prepared = new.prepare_fx(model, plain(), (batch,), None, given)
        prepared(batch)
        programs.append(new.convert_fx(prepared))
    plan = programs[0].meta["fqx_plan"]
    assert "equalized against the weight" in plan[NodeId("one")].text
    assert "equalized" not in plan[NodeId("two")].text
    assert programs[0].code == programs[1].code
    assert torch.equal(programs[0](batch), programs[1](batch))


def test_an_equalization_entry_that_takes_nothing_is_told_and_another_type_refused() -> None:
    model, batch = case("linear")
    given = QConfigMapping().set_module_name("three", EQUALIZED)
    with pytest.warns(UserWarning, match="taken by module_name 'three'"):
        new.prepare_fx(model, plain(), (batch,), None, given)
    with pytest.raises(new.BadConfig, match="int, not a QConfigMapping"):
        new.prepare_fx(model, plain(), (batch,), None, 3)
