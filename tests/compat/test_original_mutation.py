"""What torch.ao's FX quantization changes of what it is given, each beside fqx.

A docstring's first paragraph says what torch.ao does and its second what fqx does; docs/defects.md
is made of them. tests/test_purity.py holds every public function to the second.
"""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
import torch.ao.quantization.quantize_fx as old
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import (
    QConfigMapping,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.backend_config import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    get_onednn_backend_config,
)
from torch.ao.quantization.fx._equalize import default_equalization_qconfig
from torch.ao.quantization.fx.custom_config import ConvertCustomConfig, PrepareCustomConfig

import fqx
import fqx.compat.quantize_fx as new
from fqx.compat.custom import backend_config
from fqx.testing.chains import watching_channels
from fqx.testing.side_by_side import Calls, told

pytestmark = pytest.mark.filterwarnings("ignore")

INPUTS = (torch.randn(16, 8, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture(autouse=True)
def _engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "x86"
    torch.manual_seed(0)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
    torch.backends.quantized.engine = before


def default() -> QConfigMapping:
    """torch.ao's own mapping."""
    return get_default_qconfig_mapping("x86")


def layers() -> nn.Module:
    """A linear and a relu, which torch.ao fuses, and another linear."""
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()


def prepared(fx: Any, model: nn.Module, **more: Any) -> Any:
    """The model itself prepared and calibrated."""
    made = fx.prepare_fx(model, default(), INPUTS, **more)
    made(*INPUTS)
    return made


def test_preparing_replaces_modules_of_the_model() -> None:
    """Replaces every FloatFunctional of the model that is prepared by another class.

    Leaves the model as it is.
    """

    def make() -> Any:
        inner = nn.Linear(8, 8)
        return Calls(
            lambda own, x: own.sum.add(own.inner(x), x), sum=FloatFunctional(), inner=inner
        )

    model = make().eval()
    prepared(old, model)
    assert type(model.sum) is not FloatFunctional
    model = make().eval()
    before = told(model)
    ours = prepared(new, model)
    assert told(model) == before
    assert type(model.sum) is FloatFunctional
    assert torch.equal(ours(*INPUTS), model(*INPUTS))


def test_preparing_leaves_attributes_on_the_model() -> None:
    """Leaves a `qconfig` on the modules of the float model.

    Leaves nothing.
    """
    model = layers()
    prepared(old, model)
    assert hasattr(model[0], "qconfig")  # type: ignore[index]
    model = layers()
    before = told(model)
    new.convert_fx(prepared(new, model))
    assert told(model) == before


def test_a_prepared_model_shares_the_parameters_of_the_float_one() -> None:
    """Gives the modules prepared for training, and fused containers, the parameters and the modules
    of the float model: what trains the one changes the other.

    Gives the prepared module tensors of its own.
    """
    model: Any = layers().train()
    trained: Any = old.prepare_qat_fx(model, get_default_qat_qconfig_mapping("x86"), INPUTS)
    assert trained.get_submodule("0").weight is model[0].weight
    model = layers()
    assert prepared(old, model).get_submodule("0.0") is model[0]
    model = layers()
    ours = prepared(new, model)
    mine = {id(part) for part in model.modules()}
    assert not mine & {id(part) for part in ours.modules()}
    theirs = {tensor.data_ptr() for tensor in model.state_dict().values()}
    held = (value for value in ours.state_dict().values() if value.numel())
    assert not theirs & {tensor.data_ptr() for tensor in held}
    before = told(model)
    for parameter in ours.parameters():
        parameter.zero_()
    assert told(model) == before


def test_converting_takes_the_prepared_module_apart() -> None:
    """Rewrites the graph of the prepared module and puts integer and reference modules in the place
    of its own.

    Reads the prepared module, which can be converted any number of times.
    """
    theirs = prepared(old, layers())
    before, text = theirs.get_submodule("0.0"), str(theirs.graph)
    old.convert_fx(theirs)
    assert theirs.get_submodule("0.0") is not before
    assert str(theirs.graph) != text
    ours = prepared(new, layers())
    seen = told(ours)
    first = new.convert_fx(ours)(*INPUTS)
    for convert in (new.convert_to_reference_fx, new.convert_to_reference_decomposed_fx):
        convert(ours)
    assert told(ours) == seen
    assert torch.equal(new.convert_fx(ours)(*INPUTS), first)


def test_converting_moves_the_statistics_of_weights() -> None:
    """Runs the observers of weights once more when it converts, so that moving averages move: what
    is converted is not what was trained.

    Computes nothing but what the statistics say, and leaves them as they are.
    """
    mapping = get_default_qat_qconfig_mapping("x86")
    theirs: Any = old.prepare_qat_fx(layers().train(), mapping, INPUTS)
    theirs(*INPUTS)
    weight = theirs.get_submodule("2").weight
    observer = theirs.get_submodule("2").weight_fake_quant.activation_post_process
    weight.mul_(3.0)
    before = observer.max_val.clone()
    old.convert_fx(theirs)
    assert not torch.equal(observer.max_val, before)
    ours = prepared(new, layers())
    states = {name: value.clone() for name, value in ours.state_dict().items()}
    new.convert_fx(ours)
    assert all(torch.equal(value, states[name]) for name, value in ours.state_dict().items())


class Doubled(nn.Module):
    """A module of the user's own, its observed and its quantized form in one."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice the input."""
        return x * 2 if not x.is_quantized else x

    @classmethod
    def from_float(cls, given: nn.Module) -> nn.Module:
        """Its observed form."""
        made = Observed()
        made.qconfig = given.qconfig
        return made

    @classmethod
    def from_observed(cls, given: nn.Module) -> nn.Module:
        """Its quantized form."""
        return cls().train(given.training)


class Observed(Doubled):
    """The form that torch.ao swaps in."""


def test_converting_hangs_an_observer_on_a_custom_module() -> None:
    """Hangs the observer of its result on the observed form of a module of the user's own.

    Quantizes such a module at its borders and leaves it as it is.
    """
    model = nn.Sequential(nn.Linear(8, 8), Doubled()).eval()
    custom = PrepareCustomConfig().set_float_to_observed_mapping(Doubled, Doubled)
    theirs = prepared(old, copy.deepcopy(model), prepare_custom_config=custom)
    swapped = theirs.get_submodule("1")
    old.convert_fx(
        theirs, ConvertCustomConfig().set_observed_to_quantized_mapping(Observed, Doubled)
    )
    assert hasattr(swapped, "activation_post_process")
    before = told(model)
    recipe = fqx.int8_static() | fqx.custom_module("1")
    done = fqx.quantize(model, INPUTS, [INPUTS], recipe=recipe, leaves=("1",), progress=False)
    done.bind(lambda made: made.materialize(leaves={"1": model.get_submodule("1")})).unwrap()
    assert told(model) == before


def test_equalizing_rescales_the_weights_of_the_model() -> None:
    """Multiplies the weights of the user's float model, which the prepared one shares, by the
    factors of equalization when it converts.

    Puts the factors into new weights.
    """
    model: Any = layers()
    weight = model[2].weight.clone()
    config: Any = default_equalization_qconfig
    more: Any = {"_equalization_config": QConfigMapping().set_global(config)}
    old.convert_fx(prepared(old, model, **more))
    assert not torch.equal(model[2].weight, weight)
    model = layers()
    before = told(model)
    target = fqx.onednn()
    road = fqx.clean() | fqx.fuse() | fqx.observe(watching_channels(), target)
    road = road | fqx.calibrate([INPUTS], progress=False) | fqx.equalize_inputs()
    fqx.capture(model, INPUTS).bind((road | fqx.convert(target)).run).unwrap()
    assert told(model) == before


def test_configs_change_under_the_hand() -> None:
    """Changes a config in place and returns it, keeps the caller's list of dtype configs, and hands
    out one list of dtype configs for onednn to all callers.

    Has recipes that do not change, and copies what it reads of torch.ao's.
    """
    mapping = QConfigMapping()
    assert mapping.set_object_type(nn.Linear, None) is mapping
    listed = [DTypeConfig(torch.quint8, torch.quint8)]
    row = BackendPatternConfig(nn.Linear).set_dtype_configs(listed)
    assert row.dtype_configs is listed
    one, two = get_onednn_backend_config(), get_onednn_backend_config()
    shared = {id(row.dtype_configs) for row in one.configs}
    assert shared & {id(row.dtype_configs) for row in two.configs}
    read = backend_config(BackendConfig("native").set_backend_pattern_config(row)).unwrap()
    listed.append(DTypeConfig(torch.float, torch.float))
    assert read is not None
    assert len(read.rows[0].types) == 1
    recipe = fqx.int8_static()
    text = str(recipe)
    longer = recipe | fqx.leave_float(fqx.op("linear"))
    assert (str(recipe), len(longer.rules)) == (text, len(recipe.rules) + 1)
    with pytest.raises(FrozenInstanceError):
        recipe.rules = ()  # type: ignore[misc]
    model, asked = layers(), default()
    made = new.prepare_fx(model, asked, INPUTS)
    asked.set_global(None)
    made(*INPUTS)
    assert new.convert_fx(made).get_parameter("0.weight").dtype is torch.int8


def test_models_are_never_freed() -> None:
    """Remembers the device of every model and every prepared module in a table without limit, keyed
    by the module: none of them is ever freed.

    Keeps nothing of a model.
    """

    def freed(fx: Any) -> tuple[bool, bool]:
        model = layers()
        made = prepared(fx, model)
        fx.convert_fx(made)
        kept = weakref.ref(model), weakref.ref(made)
        del model, made
        gc.collect()
        return kept[0]() is None, kept[1]() is None

    assert freed(old) != (True, True)
    assert freed(new) == (True, True)
