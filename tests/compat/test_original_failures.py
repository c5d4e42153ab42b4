"""Where torch.ao's FX quantization fails on ordinary models, each beside fqx on the same model.

A docstring's first paragraph says what torch.ao does and its second what fqx does; docs/defects.md
is made of them. What RIGHT stands for is derived in `fqx.testing.side_by_side`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization.quantize_fx as old
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import (
    MinMaxObserver,
    QConfig,
    QConfigMapping,
    default_dynamic_qconfig,
    default_per_channel_weight_observer,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.backend_config import (
    get_onednn_backend_config,
    get_qnnpack_backend_config,
)
from torch.ao.quantization.fx._equalize import default_equalization_qconfig
from torch.ao.quantization.qconfig_mapping import _get_symmetric_qnnpack_qconfig_mapping

import fqx
import fqx.compat.quantize_fx as new
from fqx.ir.fault import FaultKind
from fqx.ir.trail import Halt
from fqx.testing.chains import watching_channels
from fqx.testing.side_by_side import (
    RIGHT,
    Calls,
    finished,
    quantized_by_fqx,
    relative_error,
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("on_x86", "seeded")]

Inputs = tuple[Tensor, ...]


def everywhere(qconfig: Any = None) -> QConfigMapping:
    """A mapping of one QConfig, of ranges as they were seen if none is given."""
    made: Any = QConfig
    seen = MinMaxObserver.with_args(dtype=torch.quint8)
    plain = made(seen, default_per_channel_weight_observer)
    return QConfigMapping().set_global(plain if qconfig is None else qconfig)


def default() -> QConfigMapping:
    """torch.ao's own mapping for the engine that is chosen."""
    return get_default_qconfig_mapping(torch.backends.quantized.engine)


def fails(
    kind: type[Exception], text: str, model: nn.Module, inputs: Inputs, mapping: Any, **more: Any
) -> None:
    """torch.ao raises somewhere on the road; both roads of fqx give what the model gives."""
    model = model.eval()
    with pytest.raises(kind, match=text):
        finished(old, "convert_fx", model, inputs, mapping, **more)(*inputs)
    ours = finished(new, "convert_fx", model, inputs, mapping, **more)
    assert relative_error(ours, model, inputs) <= RIGHT
    assert relative_error(quantized_by_fqx(model, inputs), model, inputs) <= RIGHT


@pytest.mark.parametrize("op", [F.leaky_relu, torch.tanh], ids=lambda op: op.__name__)
def test_an_activation_function_behind_a_linear_cannot_be_fused_on_onednn(
    op: Callable[[Tensor], Tensor], use_engine: Callable[[str], None]
) -> None:
    """Takes a linear and the function behind it for its fused module under the onednn backend
    config, and then finds that the function is no module: AssertionError.

    Writes functions and modules as one operator before anything is matched.
    """
    use_engine("onednn")
    model = Calls(lambda own, x: op(own.inner(x)), inner=nn.Linear(8, 8))
    more = {"backend_config": get_onednn_backend_config()}
    fails(AssertionError, "", model, (torch.randn(64, 8),), default(), **more)


@pytest.mark.parametrize(
    ("run", "shape", "size"),
    [
        (lambda own, x: F.linear(x, weight=own.weight, bias=None), (8, 8), (64, 8)),
        (lambda own, x: F.conv2d(x, weight=own.weight), (4, 4, 3, 3), (2, 4, 8, 8)),
    ],
    ids=["linear", "conv2d"],
)
def test_a_weight_given_by_keyword_stops_the_lowering(
    run: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...], size: tuple[int, ...]
) -> None:
    """Looks for the weight among the positional arguments alone when it lowers a function, and
    fails an assertion.

    Reads arguments by the operator's schema.
    """
    model = Calls(run, weight=nn.Parameter(torch.randn(shape)))
    fails(AssertionError, "", model, (torch.randn(size),), everywhere())


def test_an_input_given_by_keyword_stops_a_dynamic_linear() -> None:
    """Looks for the operands of a dynamic `F.linear(input=x, weight=w)` among the positional
    arguments when it lowers the call: ValueError.

    Reads arguments by the operator's schema.
    """
    model = Calls(
        lambda own, x: F.linear(input=x, weight=own.weight), weight=nn.Parameter(torch.randn(8, 8))
    )
    mapping = everywhere(default_dynamic_qconfig)
    fails(ValueError, "not enough values", model, (torch.randn(64, 8),), mapping)


def test_a_mapping_of_one_type_of_a_fused_pair_is_a_lookup_error() -> None:
    """Demands that every type of a fused pair has one QConfig: a mapping that names the convolution
    and not the relu behind it is a LookupError.

    Asks the mapping for the convolution, whose result the relu is part of.
    """
    mapping = QConfigMapping().set_object_type(nn.Conv2d, everywhere().global_qconfig)
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    fails(LookupError, "same qconfigs", model, (torch.randn(2, 4, 8, 8),), mapping)


def test_a_linear_and_a_tanh_contradict_onednns_own_mapping(
    use_engine: Callable[[str], None],
) -> None:
    """Gives tanh a QConfig of its own in the default mapping and demands one of the fused pair
    linear and tanh under the onednn backend config: LookupError.

    Quantizes the linear and runs the tanh behind it.
    """
    use_engine("onednn")
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    more = {"backend_config": get_onednn_backend_config()}
    fails(LookupError, "same qconfigs", model, (torch.randn(64, 8),), default(), **more)


def test_a_transposed_convolution_contradicts_onednns_own_mapping(
    use_engine: Callable[[str], None],
) -> None:
    """Gives every module weights per channel in the default mapping of onednn, and refuses them
    for a transposed convolution: AssertionError.

    Leaves float what the engine has no kernel for.
    """
    use_engine("onednn")
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    fails(AssertionError, "Per channel", model, (torch.randn(2, 4, 8, 8),), default())


def test_an_embedding_contradicts_the_mapping_for_training() -> None:
    """Gives an embedding per-channel symmetric weights in the default mapping for training, and
    refuses them: AssertionError.

    Quantizes the model after training; preparing for training itself arrives with it.
    """
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8)).eval()
    inputs = (torch.randint(0, 20, (16, 5)),)
    trained = copy.deepcopy(model).train()
    with pytest.raises(AssertionError, match="Embedding weights requires"):
        old.prepare_qat_fx(trained, get_default_qat_qconfig_mapping("x86"), inputs)
    ours = finished(new, "convert_fx", model, inputs, default())
    assert relative_error(ours, model, inputs) <= RIGHT
    assert relative_error(quantized_by_fqx(model, inputs), model, inputs) <= RIGHT


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (lambda: nn.LSTM(8, 8, bias=False), KeyError),
        (lambda: nn.LSTM(8, 8, proj_size=4), RuntimeError),
    ],
    ids=["no bias", "projected"],
)
def test_a_dynamic_lstm_has_to_have_biases_and_no_projection(
    cells: Callable[[], nn.Module], kind: type[Exception]
) -> None:
    """Reads biases that an LSTM without them does not have, a KeyError, and packs a projected LSTM
    as if it were not, a RuntimeError.

    Runs the recurrence as it is defined.
    """
    mapping = QConfigMapping().set_object_type(nn.LSTM, default_dynamic_qconfig)
    model = Calls(lambda own, x: own.cells(x)[0], cells=cells()).eval()
    inputs = (torch.randn(5, 3, 8),)
    with pytest.raises(kind):
        finished(old, "convert_fx", model, inputs, mapping)(*inputs)
    ours = finished(new, "convert_fx", model, inputs, mapping)
    assert relative_error(ours, model, inputs) <= RIGHT
    done = fqx.quantize(
        model,
        inputs,
        recipe=fqx.int8_dynamic(),
        dynamic_shapes={"x": {}},  # the first axis is time and not a batch
        progress=False,
    ).unwrap()
    assert relative_error(done.materialize().unwrap(), model, inputs) <= RIGHT


def test_a_grouped_transposed_convolution_cannot_take_its_norm() -> None:
    """Multiplies the weight of a grouped transposed convolution by a norm of other size when it
    folds one into the other: RuntimeError.

    Folds every group by itself.
    """
    norm = nn.BatchNorm2d(8)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 8, 3, groups=2), norm)
    inputs = (torch.randn(2, 4, 8, 8),)
    fails(RuntimeError, "must match the size", model, inputs, default())
    with pytest.raises(RuntimeError, match="must match the size"):
        old.fuse_fx(copy.deepcopy(model))
    assert relative_error(new.fuse_fx(model), model, inputs) < 1e-6


def test_parameters_used_by_functions_cannot_be_equalized() -> None:
    """Assigns a plain tensor to a Parameter when it equalizes a functional linear: TypeError.

    Equalizes modules and functions alike, into new weights.
    """
    model = Calls(
        lambda own, x: F.linear(F.linear(x, own.one), own.two),
        one=nn.Parameter(torch.randn(8, 8)),
        two=nn.Parameter(torch.randn(8, 8)),
    ).eval()
    inputs = (torch.randn(64, 8) * torch.logspace(1, -1, 8),)
    config: Any = default_equalization_qconfig
    more: Any = {"_equalization_config": QConfigMapping().set_global(config)}
    with pytest.raises(TypeError, match="as parameter 'one'"):
        finished(old, "convert_fx", model, inputs, default(), **more)
    target = fqx.onednn()
    road = fqx.clean() | fqx.fuse() | fqx.observe(watching_channels(), target)
    road = road | fqx.calibrate([inputs], progress=False) | fqx.equalize_inputs()
    road = road | fqx.convert(target) | fqx.fold() | fqx.lower(target)
    trail = fqx.capture(model, inputs).bind(road.run).unwrap()
    assert relative_error(fqx.materialize(trail.graph).unwrap(), model, inputs) <= RIGHT


def test_a_model_cannot_return_a_number() -> None:
    """Knows no results but tensors: a number or a text among them is a bare Exception.

    Hands constants through.
    """
    model = Calls(lambda own, x: (own.inner(x), 7, "name"), inner=nn.Linear(8, 8)).eval()
    inputs = (torch.randn(64, 8),)
    fails(Exception, "Unhandled type for returned node", model, inputs, everywhere())
    assert finished(new, "convert_fx", model, inputs, everywhere())(*inputs)[1:] == (7, "name")
    assert quantized_by_fqx(model, inputs)(*inputs)[1:] == (7, "name")


@pytest.mark.parametrize(
    "mapping", [lambda: default(), lambda: everywhere()], ids=["default", "min and max"]
)
def test_integers_cannot_be_added(mapping: Callable[[], QConfigMapping]) -> None:
    """Observes additions of integers like those of floats: calibrating with histograms raises
    NotImplementedError, and with minima and maxima the program raises RuntimeError.

    Leaves what works on integers of the model's own alone.
    """
    model = Calls(
        lambda own, x: own.head(own.table(x + x)), table=nn.Embedding(20, 8), head=nn.Linear(8, 8)
    )
    inputs = (torch.randint(0, 10, (16, 5)),)
    fails(RuntimeError, "Long", model, inputs, mapping())


def test_what_is_prepared_cannot_be_prepared_again() -> None:
    """Traces the observers of a prepared module and stumbles over their branches: TraceError.

    Prepares the float model that a prepared module of the drop-in runs. A model that is quantized,
    or prepared by torch.ao, is reported as such: WrongStage with the module.
    """
    model, inputs = nn.Sequential(nn.Linear(8, 8)).eval(), (torch.randn(64, 8),)
    theirs = old.prepare_fx(copy.deepcopy(model), everywhere(), inputs)
    with pytest.raises(Exception, match="symbolically traced variables") as again:
        old.prepare_fx(theirs, everywhere(), inputs)
    assert type(again.value).__name__ == "TraceError"
    once = finished(new, "convert_fx", model, inputs, everywhere())
    prepared = new.prepare_fx(model, everywhere(), inputs)
    twice = finished(new, "convert_fx", prepared, inputs, everywhere())
    assert torch.equal(once(*inputs), twice(*inputs))
    theirs(*inputs)
    done = (
        theirs,
        old.convert_fx(copy.deepcopy(theirs)),
        old.convert_to_reference_fx(copy.deepcopy(theirs)),
        once,
        quantized_by_fqx(model, inputs),
    )
    for quantized in done:
        whole = nn.Sequential(quantized)
        with pytest.raises(Halt, match="quantized or prepared") as halt:
            new.prepare_fx(whole, everywhere(), inputs)
        assert halt.value.fault.kind is FaultKind.WRONG_STAGE
        fault = fqx.quantize(whole, inputs, [inputs], progress=False).failure().fault
        assert fault.kind is FaultKind.WRONG_STAGE
        assert str(fault.module).startswith("0")
    plain = fqx.materialize(fqx.capture(model, inputs).unwrap().graph).unwrap()
    assert torch.equal(
        finished(new, "convert_fx", plain, inputs, everywhere())(*inputs), once(*inputs)
    )


class Inner(nn.Module):
    """A functional linear inside of a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """The linear."""
        return F.linear(x, self.layer.weight, self.layer.bias)


def outer() -> nn.Module:
    """A model that calls it."""
    return Calls(lambda own, x: own.inner(x), inner=Inner()).eval()


@pytest.mark.parametrize("nested", [False, True])
def test_packed_weights_of_submodules_cannot_be_loaded(nested: bool) -> None:
    """Saves packed weights under names that loading does not expect where the function is called in
    a submodule or the program is part of another module: unexpected keys, RuntimeError.

    Saves plain integer tensors under the model's own names, wherever the program stands.
    """
    inputs = (torch.randn(16, 8),)
    model = outer()
    theirs, ours, twin = (
        nn.Sequential(made) if nested else made
        for fx in (old, new, new)
        for made in (finished(fx, "convert_fx", model, inputs, everywhere()),)
    )
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\)[\s\S]*inner_packed_weight_0"):
        theirs.load_state_dict(theirs.state_dict())
    state = ours.state_dict()
    assert state[f"{'0.' * nested}inner.layer.weight"].dtype is torch.int8
    twin.load_state_dict(state)
    assert torch.equal(twin(*inputs), ours(*inputs))


class Long(nn.Module):
    """A linear and 1200 calls behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """The linear, its sign changed again and again."""
        x = self.layer(x)
        for _ in range(1200):
            x = torch.neg(x)
        return x


def test_a_long_chain_is_too_deep() -> None:
    """Asks about a node by asking about the one in front of it: in a chain of 1200 calls prepare
    hits Python's limit of recursion.

    Walks the nodes in their order.
    """
    fails(RecursionError, "", Long(), (torch.randn(4, 8),), everywhere())


def test_qnnpacks_symmetric_mapping_gives_what_qnnpack_cannot_run(
    use_engine: Callable[[str], None],
) -> None:
    """Prepares and converts by the symmetric mapping of qnnpack, whose signed activations its
    convolution then rejects at run time: RuntimeError.

    Leaves float what asks for signed activations, for which the engine has no kernel.
    """
    use_engine("qnnpack")
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    inputs = (torch.randn(2, 4, 8, 8),)
    mapping = _get_symmetric_qnnpack_qconfig_mapping()
    model, backend = model.eval(), get_qnnpack_backend_config()
    observed = old.prepare_fx(copy.deepcopy(model), mapping, inputs, backend_config=backend)
    observed(*inputs)
    theirs = old.convert_fx(observed, backend_config=backend)
    with pytest.raises(RuntimeError, match="Expected activation data type QUInt8 but got QInt8"):
        theirs(*inputs)
    ours = finished(new, "convert_fx", model, inputs, mapping, backend_config=backend)
    assert relative_error(ours, model, inputs) <= RIGHT
    own = quantized_by_fqx(model, inputs, target="native/qnnpack")
    assert relative_error(own, model, inputs) <= RIGHT
