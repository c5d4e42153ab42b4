"""Custom configs of torch.ao as values: objects and dict forms alike, and faults for the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao.quantization import QConfigMapping, default_qconfig
from torch.ao.quantization.backend_config import (
    BackendConfig,
    get_native_backend_config,
    get_qnnpack_backend_config,
)
from torch.ao.quantization.fx.custom_config import (
    ConvertCustomConfig,
    FuseCustomConfig,
    PrepareCustomConfig,
)

from fqx.compat.custom import (
    Backend,
    ConvertConfig,
    FuseConfig,
    PrepareConfig,
    Swap,
    backend_config,
    convert_config,
    fuse_config,
    prepare_config,
    stock_backend,
)


class Observed(nn.Linear):
    """A custom module while it is observed."""


class Quantized(nn.Linear):
    """A custom module when it is quantized."""


def prepared() -> PrepareCustomConfig:
    mapping = QConfigMapping().set_global(default_qconfig)
    inner = PrepareCustomConfig().set_preserved_attributes(["inner"])
    made = PrepareCustomConfig()
    made.set_standalone_module_name("head", mapping, (torch.ones(1),), inner, None)
    made.set_standalone_module_class(nn.Bilinear, None, (), None, BackendConfig("own"))
    made.set_float_to_observed_mapping(nn.Linear, Observed)
    made.set_non_traceable_module_names(["tail"]).set_non_traceable_module_classes([nn.LSTM])
    made.set_input_quantized_indexes([0]).set_output_quantized_indexes([1])
    return made.set_preserved_attributes(["kept"])


def test_every_part_of_a_prepare_config_is_read() -> None:
    found = prepare_config(prepared()).unwrap()
    named, classed = found.standalone
    assert named.select == "head" and classed.select is nn.Bilinear
    assert named.mapping is not None and named.mapping.everything.qconfig is default_qconfig
    assert named.prepare == PrepareConfig(preserved=("inner",))
    assert (named.backend, classed.backend) == (None, Backend("own", ()))
    assert classed.mapping is None and len(named.example_inputs) == 1
    assert found.observed == (Swap("static", nn.Linear, Observed),)
    assert found.is_leaf("tail", nn.Linear(1, 1)) and found.is_leaf("x", nn.LSTM(1, 1))
    assert not found.is_leaf("head", nn.Linear(1, 1))
    assert (found.quantized_inputs, found.quantized_outputs) == ((0,), (1,))
    assert found.preserved == ("kept",)


def test_the_dict_form_says_the_same_and_stays_as_it_was() -> None:
    said = prepared().to_dict()
    before = copy.copy(said)
    assert prepare_config(said).unwrap() == prepare_config(prepared()).unwrap()
    assert said == before


def test_what_the_caller_changes_later_changes_nothing() -> None:
    given = prepared()
    found = prepare_config(given).unwrap()
    given.preserved_attributes.append("late")
    given.float_to_observed_mapping.clear()
    assert found.preserved == ("kept",) and found.observed


def test_convert_and_fuse_configs_are_read() -> None:
    converted = ConvertCustomConfig().set_observed_to_quantized_mapping(Observed, Quantized)
    wanted = ConvertConfig((Swap("static", Observed, Quantized),))
    assert convert_config(converted).unwrap() == wanted
    assert convert_config(converted.to_dict()).unwrap() == wanted
    fused = FuseCustomConfig().set_preserved_attributes(["kept"])
    assert fuse_config(fused).unwrap() == FuseConfig(("kept",))
    assert fuse_config(fused.to_dict()).unwrap() == FuseConfig(("kept",))


def test_none_says_nothing() -> None:
    assert prepare_config(None).unwrap() == PrepareConfig()
    assert convert_config(None).unwrap() == ConvertConfig()
    assert fuse_config(None).unwrap() == FuseConfig()
    assert backend_config(None).unwrap() is None


@pytest.mark.parametrize("made", [get_native_backend_config, get_qnnpack_backend_config])
def test_every_row_of_a_backend_is_read(made: Callable[[], BackendConfig]) -> None:
    backend = made()
    found = backend_config(backend).unwrap()
    assert found is not None and found.name == backend.name
    assert len(found.rows) == len(backend.configs)
    for row, held in zip(found.rows, backend.configs, strict=True):
        assert row.pattern == (held._pattern_complex_format if row.is_nested else held.pattern)
        assert len(row.types) == len(held.dtype_configs)
        assert row.root is held.root_module and row.fuse is held.fuser_method
    linear = next(row for row in found.rows if row.pattern is nn.Linear)
    assert linear.observation == "different"
    assert [types.is_dynamic for types in linear.types].count(True) >= 1
    assert backend_config(backend.to_dict()).unwrap() == found


def test_a_bare_name_and_none_stand_for_stock_backends() -> None:
    for name in ("native", "x86", "fbgemm", "onednn", "qnnpack", "executorch", "tensorrt"):
        found = stock_backend({"name": name}).unwrap()
        assert found.name == name and found.rows
    assert stock_backend(None).unwrap().name == "native"
    assert stock_backend(BackendConfig("own")).unwrap() == Backend("own", ())
    assert "'mine'" in stock_backend({"name": "mine"}).failure().reason


def test_bounds_of_a_backend_are_kept() -> None:
    found = backend_config(get_qnnpack_backend_config()).unwrap()
    assert found is not None
    convolution = next(row for row in found.rows if row.pattern is nn.Conv2d)
    weights = {(types.weight.qmin, types.weight.least_scale) for types in convolution.types}
    assert (-127, 2.0**-12) in weights
    sigmoid = next(row for row in found.rows if row.pattern is torch.sigmoid)
    assert {(types.result.scale, types.result.zero_point) for types in sigmoid.types} >= {
        (1.0 / 256.0, 0)
    }


@pytest.mark.parametrize(
    ("read", "given", "reason"),
    [
        (prepare_config, {"non_traceable_modul_name": []}, "no part 'non_traceable_modul_name'"),
        (prepare_config, {"float_to_observed_custom_module_class": {"odd": {1: 2}}}, "'odd'"),
        (prepare_config, {"standalone_module_name": [("head",)]}, "is no PrepareCustomConfig"),
        (prepare_config, 3, "int is no PrepareCustomConfig"),
        (convert_config, PrepareCustomConfig(), "PrepareCustomConfig is no ConvertCustomConfig"),
        (backend_config, {"configs": [3]}, "is no BackendConfig"),
        (fuse_config, {"additional_fuser": {}}, "no part 'additional_fuser'"),
    ],
)
def test_what_is_no_config_is_a_fault(read: Callable[[Any], Any], given: Any, reason: str) -> None:
    fault = read(given).failure()
    assert fault.name == "BadRecipe"
    assert reason in fault.reason
