"""Where torch.ao's FX quantization is wrong without a word, each beside fqx on the same model.

A docstring's first paragraph says what torch.ao does and its second what fqx does; docs/defects.md
is made of them. What RIGHT and WRONG stand for is derived in `fqx.testing.side_by_side`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.ao.nn.quantizable as quantizable
import torch.ao.nn.quantized as quantized
import torch.ao.nn.quantized.reference as reference
import torch.ao.quantization as eager
import torch.ao.quantization.quantize_fx as old
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import (
    MinMaxObserver,
    QConfig,
    QConfigMapping,
    default_dynamic_qconfig,
    default_per_channel_weight_observer,
    default_weight_observer,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.backend_config import (
    BackendPatternConfig,
    DTypeConfig,
    ObservationType,
    get_native_backend_config,
    get_onednn_backend_config,
)
from torch.ao.quantization.fx._equalize import default_equalization_qconfig
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig

import fqx
import fqx.compat.quantize_fx as new
from fqx.ir.fault import FaultKind
from fqx.ir.trail import Halt, Trail
from fqx.testing.chains import watching_channels
from fqx.testing.side_by_side import (
    REFERENCE,
    RIGHT,
    WRONG,
    Calls,
    calibrated,
    calls,
    finished,
    quantized_by_fqx,
    relative_error,
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("on_x86", "seeded")]

EAGER: Any = eager
Inputs = tuple[Tensor, ...]


def plain(reduced: bool = False) -> Any:
    """A QConfig of ranges as they were seen."""
    made: Any = QConfig
    seen = MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=reduced)
    return made(seen, default_per_channel_weight_observer)


def everywhere(qconfig: Any = None) -> QConfigMapping:
    """A mapping of one QConfig."""
    return QConfigMapping().set_global(plain() if qconfig is None else qconfig)


def default() -> QConfigMapping:
    """torch.ao's own mapping."""
    return get_default_qconfig_mapping("x86")


def by_torch(model: nn.Module, inputs: Inputs, mapping: Any = None, **more: Any) -> Any:
    """The integer program of torch.ao."""
    return finished(old, "convert_fx", model, inputs, mapping or everywhere(), **more)


def by_dropin(model: nn.Module, inputs: Inputs, mapping: Any = None, **more: Any) -> Any:
    """The integer program of the drop-in."""
    return finished(new, "convert_fx", model, inputs, mapping or everywhere(), **more)


def reference_by(fx: Any, model: nn.Module, inputs: Inputs, mapping: Any = None) -> Any:
    """The reference program of torch.ao or the drop-in."""
    return finished(fx, REFERENCE, model, inputs, mapping or everywhere())


def compare(
    model: nn.Module,
    inputs: Inputs,
    mapping: Any = None,
    *,
    reference_too: bool = False,
    wrong: float = WRONG,
) -> None:
    """torch.ao's program is wrong; the drop-in's, both forms of it, and fqx's own are right."""
    model = model.eval()
    assert relative_error(by_torch(model, inputs, mapping), model, inputs) > wrong
    if reference_too:
        assert relative_error(reference_by(old, model, inputs, mapping), model, inputs) > wrong
    ours = calibrated(new, model, inputs, mapping or everywhere())
    for finish in (new.convert_fx, new.convert_to_reference_fx):
        assert relative_error(finish(ours), model, inputs) <= RIGHT
    assert relative_error(quantized_by_fqx(model, inputs), model, inputs) <= RIGHT


@pytest.mark.parametrize("op", [torch.sigmoid, torch.tanh, F.hardsigmoid], ids=lambda f: f.__name__)
def test_a_sigmoid_cuts_its_input(op: Callable[[Tensor], Tensor]) -> None:
    """Quantizes the input of an operator of known range (sigmoid, tanh, hardsigmoid) with the
    range of its result, so that the sigmoid of every negative number is a half.

    Reads the value by a scale of its own.
    """
    x = torch.linspace(-4, 4, 64).reshape(8, 8)
    compare(Calls(lambda _, x: op(x)), (x,), default(), wrong=0.2)


def equalized() -> QConfigMapping:
    """Equalization of everything."""
    config: Any = default_equalization_qconfig
    return QConfigMapping().set_global(config)


def equalized_by_fqx(model: nn.Module, inputs: Inputs) -> Trail:
    """The steps of fqx's own equalization of inputs against weights."""
    target = fqx.probe(fqx.onednn()).unwrap()
    road = (
        fqx.clean()
        | fqx.fuse()
        | fqx.observe(watching_channels(), target)
        | fqx.calibrate([inputs], progress=False)
        | fqx.equalize_inputs()
        | fqx.convert(target)
        | fqx.fold()
        | fqx.lower(target)
    )
    return fqx.capture(model, inputs).bind(road.run).unwrap()


def test_an_equalized_layer_in_front_of_another_keeps_its_old_range() -> None:
    """Rescales the weights of both of two equalized layers but keeps the range that was observed
    between them before; with columns of very different size the second layer reads cut values.

    Observes the value that is there. Equalizing leaves the result as close to float as before.
    """
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    second = model[1].weight
    assert isinstance(second, Tensor)
    second.mul_(torch.logspace(2, -2, 16))
    inputs = (torch.randn(256, 16),)
    assert relative_error(by_torch(model, inputs), model, inputs) <= RIGHT
    cut = by_torch(model, inputs, _equalization_config=equalized())
    assert relative_error(cut, model, inputs) > WRONG
    ours = fqx.materialize(equalized_by_fqx(model, inputs).graph).unwrap()
    assert relative_error(ours, model, inputs) <= RIGHT


def test_a_relu_in_front_of_an_equalized_layer_loses_its_factors() -> None:
    """Takes any producer with "relu" in its name for the end of an equalized layer: the factors
    that divide its result are dropped and the weights stay multiplied by them.

    Multiplies by the factors whatever the producer is called.
    """
    model = Calls(lambda own, x: own.layer(own.relu(x)), layer=nn.Linear(16, 16), relu=nn.ReLU())
    model = model.eval()
    inputs = (torch.randn(256, 16) * torch.logspace(1, -1, 16),)
    assert relative_error(by_torch(model, inputs), model, inputs) <= RIGHT
    lost = by_torch(model, inputs, _equalization_config=equalized())
    assert relative_error(lost, model, inputs) > WRONG
    trail = equalized_by_fqx(model, inputs)
    assert any("smooth" in node.id for node in trail.steps[-3].graph)
    assert relative_error(fqx.materialize(trail.graph).unwrap(), model, inputs) <= RIGHT


def test_an_addition_loses_its_alpha() -> None:
    """Drops the keywords of `torch.add(x, y, alpha=10)` when it lowers the addition.

    Keeps `alpha`.
    """
    model = Calls(lambda own, x: torch.add(own.inner(x), x, alpha=10), inner=nn.Linear(8, 8))
    compare(model, (torch.randn(64, 8),))


def norm(weight: float, bias: float) -> nn.BatchNorm2d:
    """A norm of three channels that multiplies and adds."""
    made = nn.BatchNorm2d(3)
    made.weight.fill_(weight)
    made.bias.fill_(bias)
    return made


@pytest.mark.parametrize("normed", [False, True])
def test_folding_a_norm_rewrites_other_calls_of_its_convolution(normed: bool) -> None:
    """Folds a norm into a convolution that is called elsewhere too, and so changes those calls;
    of two norms on one convolution the last wins everywhere.

    Folds each norm into a weight of its own call.
    """

    def run(own: Any, x: Tensor) -> Any:
        other = own.conv(x - 1)
        return own.norm(own.conv(x)), own.second(other) if normed else other

    model = Calls(run, conv=nn.Conv2d(3, 3, 3), norm=norm(7.0, 3.0), second=norm(1.0, 0.0))
    compare(model, (torch.randn(8, 3, 6, 6),), reference_too=True)


def test_a_norm_over_the_middle_axis_is_folded_into_the_last() -> None:
    """Folds a BatchNorm1d behind a linear of a three-dimensional input into the linear's outputs,
    though it speaks of the middle axis, wherever both are of one size.

    Knows the shapes and folds where both speak of one axis.
    """
    behind = nn.BatchNorm1d(6)
    assert behind.running_mean is not None
    behind.running_mean.copy_(torch.arange(6.0))
    behind.weight.copy_(torch.arange(1.0, 7.0))
    compare(nn.Sequential(nn.Linear(6, 6), behind), (torch.randn(16, 6, 6),), reference_too=True)


def test_a_module_called_twice_gets_the_scale_of_its_last_call() -> None:
    """Makes one integer module of a module that is called twice, with the last call's scale for
    the results of all of them.

    Gives each call a scale of its own.
    """
    model = Calls(lambda own, x: (own.inner(x * 100.0), own.inner(x)), inner=nn.Linear(8, 8))
    compare(model, (torch.randn(64, 8),), reference_too=True)


def test_a_static_layer_behind_a_dynamic_one_stays_float() -> None:
    """Believes that a dynamic layer gives integers, puts no observer behind it, and leaves the
    static layer that follows a float reference module inside of the integer program.

    Observes what the dynamic layer gives and runs both on integers.
    """
    model, inputs = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval(), (torch.randn(64, 8),)
    mapping = everywhere().set_module_name("0", default_dynamic_qconfig)
    theirs = by_torch(model, inputs, mapping)
    assert any(isinstance(module, reference.Linear) for module in theirs.modules())
    ours = by_dropin(model, inputs, mapping)
    assert (calls(ours, "native_linear_dynamic"), calls(ours, "native_linear")) == (1, 2)
    assert ours.get_parameter("1.weight").dtype is torch.int8
    assert relative_error(ours, model, inputs) <= RIGHT
    dynamic = fqx.int8_dynamic().rules[0].scheme
    assert dynamic is not None
    recipe = fqx.int8_static() | fqx.use(fqx.path("0"), dynamic)
    done = fqx.quantize(
        model, inputs, [inputs], recipe=recipe, objective="balanced", progress=False
    ).unwrap()
    assert done.coverage().int8_share == 1.0


def test_a_layer_behind_a_standalone_module_stays_float() -> None:
    """Believes that a standalone module gives integers, even if it gives floats: the layer that
    follows stays a float reference module inside of the integer program.

    Quantizes at the border what the layer behind it reads.
    """
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8)).eval()
    inputs = (torch.randn(64, 8),)
    custom = PrepareCustomConfig().set_standalone_module_name("0", None, inputs, None, None)
    theirs = by_torch(model, inputs, prepare_custom_config=custom)
    assert isinstance(theirs.get_submodule("1"), reference.Linear)
    ours = by_dropin(model, inputs, prepare_custom_config=custom)
    assert calls(ours, "native_linear") == 2
    assert relative_error(ours, model, inputs) <= RIGHT
    recipe = fqx.int8_static() | fqx.within("0", fqx.int8_static())
    done = fqx.quantize(
        model, inputs, [inputs], recipe=recipe, objective="balanced", progress=False
    ).unwrap()
    assert done.coverage().int8_share == 1.0
    assert relative_error(done.materialize().unwrap(), model, inputs) <= RIGHT


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_reference_convolution_pads_with_zeros(
    mode: Literal["reflect", "replicate", "circular"],
) -> None:
    """Ignores `padding_mode` in the reference program, which pads with zeros; the lowered one is
    right.

    Pads in both programs as the model does.
    """
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, padding_mode=mode)).eval()
    inputs = (torch.randn(2, 4, 8, 8) + 2,)
    assert relative_error(reference_by(old, model, inputs), model, inputs) > WRONG
    ours = calibrated(new, model, inputs, everywhere())
    for finish in (new.convert_fx, new.convert_to_reference_fx):
        assert relative_error(finish(ours), model, inputs) <= RIGHT
    assert relative_error(quantized_by_fqx(model, inputs), model, inputs) <= RIGHT


def test_a_reference_transposed_convolution_takes_no_output_size() -> None:
    """Hands Python's builtin `input` to the helper that finds the padding, an AttributeError; the
    lowered module has no such parameter, a TypeError.

    Pads to the size that was asked for.
    """
    model = Calls(
        lambda own, x: own.up(x, output_size=(16, 16)),
        up=nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1),
    ).eval()
    inputs = (torch.randn(2, 4, 8, 8),)
    made: Any = QConfig
    seen = MinMaxObserver.with_args(dtype=torch.quint8)
    mapping = everywhere(made(seen, default_weight_observer))
    with pytest.raises(AttributeError, match="no attribute 'dim'"):
        reference_by(old, model, inputs, mapping)(*inputs)
    with pytest.raises(TypeError, match="output_size"):
        by_torch(model, inputs, mapping)(*inputs)
    for finish in (REFERENCE, "convert_fx"):
        ours = finished(new, finish, model, inputs, mapping)
        assert ours(*inputs).shape[2:] == (16, 16)
        assert relative_error(ours, model, inputs) <= RIGHT
    # fbgemm and reference have a kernel for it, so there it is integers that are padded
    assert (
        relative_error(quantized_by_fqx(model, inputs, target="reference"), model, inputs) <= RIGHT
    )


def test_a_float16_reference_keeps_the_whole_weight() -> None:
    """Leaves the weights of a float16 reference program in float32 and rounds the activations
    instead; the lowered program does it the other way round.

    Rounds the weights in both programs, which differ by the order of float32 sums alone.
    """
    model, inputs = nn.Sequential(nn.Linear(64, 8)).eval(), (torch.randn(16, 64),)
    mapping = everywhere(float16_dynamic_qconfig)
    weight = model[0].weight
    assert isinstance(weight, Tensor)
    theirs, lowered = reference_by(old, model, inputs, mapping), by_torch(model, inputs, mapping)
    assert torch.equal(theirs.get_parameter("0.weight"), weight)
    ours, ours_lowered = (
        reference_by(new, model, inputs, mapping),
        by_dropin(model, inputs, mapping),
    )
    assert torch.equal(ours.get_parameter("0.weight"), weight.half())
    assert torch.equal(ours_lowered(*inputs), lowered(*inputs))
    # 64 products of float32, each rounded to 2^-24 of it
    assert relative_error(ours, ours_lowered, inputs) <= 64 * 2.0**-24
    assert relative_error(theirs, lowered, inputs) > 100 * relative_error(
        ours, ours_lowered, inputs
    )


def overlapping(own: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three cats of four values, the last over one of either."""
    a, b, c, d = (conv(x) for conv in own.convs)
    pairs = torch.cat((a, b), 1), torch.cat((c, d * 3), 1), torch.cat((b, c), 1)
    one, two, three = (end(pair) for end, pair in zip(own.ends, pairs, strict=True))
    return one, two, three


def test_overlapping_cats_are_left_with_two_scales() -> None:
    """Shares one observer among the parts of a cat, but not along cats that overlap: of three,
    one part keeps the scale of another group than the rest of its cat.

    Finds everything that has to share, however long the chain.
    """
    model = Calls(
        overlapping,
        convs=nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(4)),
        ends=nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(3)),
    ).eval()
    inputs = (torch.randn(4, 4, 8, 8),)
    theirs = reference_by(old, model, inputs)
    scales = [
        {float(getattr(theirs, str(part.args[0].args[1].target))) for part in node.args[0]}
        for node in theirs.graph.nodes
        if node.target is torch.cat
    ]
    assert sorted(map(len, scales)) == [1, 1, 2]
    ours = reference_by(new, model, inputs)
    shared = {
        part.args[0].kwargs["scale"]
        for node in ours.graph.nodes
        if node.target is torch.cat
        for part in node.args[0]
    }
    assert len(shared) == 1
    assert relative_error(by_dropin(model, inputs), model, inputs) <= RIGHT
    assert relative_error(quantized_by_fqx(model, inputs), model, inputs) <= RIGHT


def test_a_second_reader_gets_the_first_ones_observer() -> None:
    """Reuses an observer for a second reader whose QConfig has the same class and dtype, whatever
    else it asks for: `reduce_range` of the first holds for both.

    Quantizes the value once for every different wish.
    """
    model = Calls(lambda own, x: (own.a(x), own.b(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    model, inputs = model.eval(), (torch.randn(64, 8),)
    mapping = everywhere().set_module_name("a", plain(reduced=True))
    theirs = reference_by(old, model, inputs, mapping)
    ours = reference_by(new, model, inputs, mapping)
    made = [
        node
        for node in theirs.graph.nodes
        if node.target is torch.quantize_per_tensor and node.args[0].op == "placeholder"
    ]
    assert len(made) == 1
    found = {
        node.kwargs["scale"]
        for node in ours.graph.nodes
        if "scale" in node.kwargs and node.args[0].op == "placeholder"
    }
    low, high = inputs[0].min(), inputs[0].max()
    assert sorted(found) == pytest.approx([float(high - low) / 255, float(high - low) / 127])
    # half as fine where nothing asked for it
    second = [
        relative_error(lambda x, f=f: f(x)[1], lambda x: model(x)[1], inputs)
        for f in (theirs, ours)
    ]
    assert second[0] > 1.2 * second[1]


def test_a_backend_given_at_prepare_alone_leaves_fused_layers_float(
    use_engine: Callable[[str], None],
) -> None:
    """Does not keep the backend config of prepare: unless convert is given it again, the layers
    that it fused stay float inside of the integer program.

    Converts by what prepare was told.
    """
    use_engine("onednn")
    model = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU()).eval()
    inputs = (torch.randn(64, 8),)
    backend = get_onednn_backend_config()
    theirs = by_torch(model, inputs, backend_config=backend)
    assert isinstance(theirs.get_submodule("0.0"), nn.Linear)
    ours = by_dropin(model, inputs, backend_config=backend)
    assert ours.get_parameter("0.weight").dtype is torch.int8
    assert calls(ours, "native_linear") == 1
    assert relative_error(ours, model, inputs) <= RIGHT


def test_a_second_preparation_obeys_the_mapping_of_the_first() -> None:
    """Leaves a `qconfig` on every layer of the float model, and the next preparation obeys that
    and not its mapping: a layer that the first left float is not prepared for training, and one
    that the second leaves float is.

    Leaves nothing behind: a second preparation gives what a fresh model's would.
    """
    mapping = get_default_qat_qconfig_mapping("x86")
    inputs = (torch.randn(64, 8),)

    def fresh() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())

    def trained(model: nn.Module, asked: QConfigMapping) -> type:
        return type(old.prepare_qat_fx(model.train(), asked, inputs).get_submodule("0"))

    used = fresh().eval()
    old.prepare_fx(used, QConfigMapping(), inputs)
    assert trained(fresh(), mapping) is not nn.Linear
    assert trained(used, mapping) is nn.Linear
    used = fresh().eval()
    old.prepare_fx(used, everywhere(), inputs)
    spared = get_default_qat_qconfig_mapping("x86").set_object_type(nn.Linear, None)
    assert trained(fresh(), spared) is nn.Linear
    assert trained(used, spared) is not nn.Linear
    model = fresh().eval()
    first = by_dropin(model, inputs)(*inputs)
    for other in (QConfigMapping(), default()):
        new.prepare_fx(model, other, inputs)
    assert torch.equal(by_dropin(model, inputs)(*inputs), first)
    assert not any(hasattr(module, "qconfig") for module in model.modules())


def test_batch_first_attention_mixes_batch_and_steps() -> None:
    """Reshapes the projections of a batch-first attention without transposing them, so that steps
    of different sequences attend to each other.

    Captures the attention with its axes, and writes it out as linears and products if asked to.
    """
    attention: Any = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(6, 3, 16)
    attention.qconfig = None
    theirs = quantizable.MultiheadAttention.from_float(attention)  # type: ignore[no-untyped-call]
    del attention.qconfig
    assert (
        relative_error(lambda x: theirs(x, x, x)[0], lambda x: attention(x, x, x)[0], (x,)) > WRONG
    )
    model = Calls(lambda own, x: own.attention(x, x, x)[0], attention=attention).eval()
    assert relative_error(by_dropin(model, (x,)), model, (x,)) <= RIGHT
    assert relative_error(quantized_by_fqx(model, (x,)), model, (x,)) <= RIGHT
    assert relative_error(written_out(model, (x,)), model, (x,)) <= RIGHT


def written_out(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The program of fqx in which attention is written out before it is quantized."""
    target = fqx.probe(fqx.onednn()).unwrap()
    road = (
        fqx.clean()
        | fqx.fuse()
        | fqx.decompose_attention()
        | fqx.observe(fqx.int8_static(), target)
        | fqx.calibrate([inputs], progress=False)
        | fqx.smooth()
        | fqx.convert(target)
        | fqx.fold()
        | fqx.lower(target)
    )
    trail = fqx.capture(model, inputs).bind(road.run).unwrap()
    return fqx.materialize(trail.graph).unwrap()


ATTENTION = {nn.MultiheadAttention: quantizable.MultiheadAttention}
QUANTIZED_ATTENTION = {quantizable.MultiheadAttention: quantized.MultiheadAttention}


def test_the_bias_of_an_attentions_values_gets_the_scale_of_its_keys() -> None:
    """Computes the scale of `bias_v` from `bias_k` and cuts off what is larger.

    Leaves both biases in float, and is right whatever their sizes.
    """
    attention: Any = nn.MultiheadAttention(16, 4, add_bias_kv=True).eval()
    attention.bias_v.mul_(20.0)
    model = Calls(lambda own, x: own.attention(x, x, x)[0], attention=attention).eval()
    x = torch.randn(6, 3, 16)
    parent: Any = nn.Sequential(copy.deepcopy(attention))
    parent[0].qconfig = EAGER.get_default_qconfig("x86")
    observed: Any = EAGER.prepare(
        parent, prepare_custom_config_dict={"float_to_observed_custom_module_class": ATTENTION}
    )
    observed[0](x, x, x)
    theirs: Any = EAGER.convert(
        observed,
        convert_custom_config_dict={
            "observed_to_quantized_custom_module_class": QUANTIZED_ATTENTION
        },
    )
    kept = theirs[0].bias_v.dequantize()
    assert float((kept - attention.bias_v).norm() / attention.bias_v.norm()) > WRONG
    assert relative_error(quantized_by_fqx(model, (x,)), model, (x,)) <= RIGHT
    assert relative_error(by_dropin(model, (x,)), model, (x,)) <= RIGHT


def test_an_attention_as_a_custom_module_cannot_be_calibrated() -> None:
    """Observes the attention's result, a tuple, as if it were a tensor: calibration raises an
    AttributeError.

    Never observes a tuple, but the parts that are taken of it.
    """
    model = Calls(
        lambda own, x: own.attention(x, x, x)[0], attention=nn.MultiheadAttention(16, 4)
    ).eval()
    x = torch.randn(6, 3, 16)
    custom = PrepareCustomConfig()
    for given, made in ATTENTION.items():
        custom.set_float_to_observed_mapping(given, made)
    observed = old.prepare_fx(copy.deepcopy(model), default(), (x,), custom)
    with pytest.raises(AttributeError, match="'tuple' object has no attribute"):
        observed(x)
    for more in ({}, {"prepare_custom_config": custom}):
        ours = by_dropin(model, (x,), default(), **more)
        assert relative_error(ours, model, (x,)) <= RIGHT
    assert relative_error(quantized_by_fqx(model, (x,)), model, (x,)) <= RIGHT


def test_a_wide_factor_destroys_the_resolution_in_front_of_it() -> None:
    """Shares one observer between the operand and the result of a multiplication by a number: a
    factor of a thousand leaves the operand a scale a thousand times too coarse.

    Gives both sides a range of their own.
    """
    model = Calls(lambda own, x: own.b(own.a(x) * 1000.0), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    compare(model, (torch.randn(64, 8),), reference_too=True)
    compare(model, (torch.randn(64, 8),), default(), reference_too=True)


def test_an_instance_norm_gets_affine_for_its_momentum() -> None:
    """Passes `affine` into the place of `momentum` when it makes the integer module.

    Keeps every parameter by its name, in the program and in what is saved.
    """
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4, affine=True)).eval()
    inputs = (torch.randn(2, 4, 8, 8),)
    theirs: Any = by_torch(model, inputs)
    made = theirs.get_submodule("1")
    assert (made.momentum, made.affine) == (True, False)
    ours = by_dropin(model, inputs)
    node = next(node for node in ours.graph.nodes if "instance_norm" in str(node.target))
    assert (node.kwargs["momentum"], node.kwargs["eps"]) == (0.1, 1e-5)
    assert relative_error(ours, model, inputs) <= RIGHT
    assert relative_error(quantized_by_fqx(model, inputs), model, inputs) <= RIGHT


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_a_quantized_bag_always_sums(mode: Literal["mean", "max"]) -> None:
    """Sums the rows of every quantized EmbeddingBag, also of one that takes their mean or maximum.

    Keeps the mode.
    """
    model = nn.Sequential(nn.EmbeddingBag(20, 8, mode=mode))
    mapping = QConfigMapping().set_object_type(nn.EmbeddingBag, float_qparams_weight_only_qconfig)
    compare(model, (torch.randint(0, 20, (16, 5)),), mapping)


def test_a_quantized_bag_loses_its_padding_row_and_its_norm() -> None:
    """Drops `padding_idx` and `max_norm` of an EmbeddingBag: rows that should count for nothing
    count, and rows longer than allowed stay so.

    Keeps the padding row out. For `max_norm`, which rewrites the float table at every call, fqx
    reports UnfunctionalWrite and names the module.
    """
    mapping = QConfigMapping().set_object_type(nn.EmbeddingBag, float_qparams_weight_only_qconfig)
    rows = torch.randint(1, 20, (16, 5))
    rows[:, 0] = 0
    padded = nn.Sequential(nn.EmbeddingBag(20, 8, mode="sum", padding_idx=0))
    table = padded[0].weight
    assert isinstance(table, Tensor)
    table.normal_()
    compare(padded, (rows,), mapping)
    bounded = nn.Sequential(nn.EmbeddingBag(20, 8, mode="sum", max_norm=0.5)).eval()
    # a table alone is not calibrated, and a call of the prepared module would rewrite it
    wrong = old.convert_fx(old.prepare_fx(copy.deepcopy(bounded), mapping, (rows,)))
    with pytest.raises(Halt) as halt:
        new.prepare_fx(bounded, mapping, (rows,))
    assert halt.value.fault.kind is FaultKind.UNFUNCTIONAL_WRITE
    assert halt.value.fault.module == "0"
    assert relative_error(wrong, copy.deepcopy(bounded), (rows,)) > WRONG


def test_a_dynamic_lstm_stops_dropping_out() -> None:
    """Makes a dynamic LSTM of one in training mode that never drops anything out again, and says
    nothing.

    Reports ModelInTraining with the module.
    """
    model = Calls(lambda own, x: own.cells(x)[0], cells=nn.LSTM(8, 8, 2, dropout=0.5)).train()
    mapping = QConfigMapping().set_object_type(nn.LSTM, default_dynamic_qconfig)
    inputs = (torch.randn(5, 3, 8),)
    theirs = by_torch(model, inputs, mapping)
    assert torch.equal(theirs(*inputs), theirs(*inputs))
    assert not torch.equal(model(*inputs), model(*inputs))
    with pytest.raises(Halt) as halt:
        new.prepare_fx(model, mapping, inputs)
    assert halt.value.fault.kind is FaultKind.MODEL_IN_TRAINING
    assert halt.value.fault.module == "cells"


def transposed_with_relu() -> Any:
    """torch.ao's backend with a pattern of its own kind for a transposed convolution and a relu."""
    types = DTypeConfig(torch.quint8, torch.quint8, torch.qint8, torch.float)
    pattern = (
        BackendPatternConfig((F.conv_transpose2d, F.relu))
        .set_observation_type(ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
        .set_dtype_configs([types])
    )
    return get_native_backend_config().set_backend_pattern_config(pattern)


def test_a_relu_behind_a_transposed_convolution_is_lost(
    use_engine: Callable[[str], None],
) -> None:
    """Leaves the relu behind a functional transposed convolution out when it lowers both as one. No
    stock backend config names the pair; one that does makes convert fail, as the relu that nobody
    reads any more stands in front of what it reads.

    Has no such unit and runs the relu by itself.
    """
    use_engine("qnnpack")
    model = Calls(
        lambda own, x: F.relu(F.conv_transpose2d(x, own.weight, None, 2)),
        weight=nn.Parameter(torch.randn(4, 4, 3, 3)),
    ).eval()
    inputs = (torch.randn(2, 4, 8, 8),)
    made: Any = QConfig
    mapping = everywhere(
        made(MinMaxObserver.with_args(dtype=torch.quint8), default_weight_observer)
    )
    backend = transposed_with_relu()
    observed = old.prepare_fx(copy.deepcopy(model), mapping, inputs, backend_config=backend)
    observed(*inputs)
    with pytest.raises(RuntimeError, match="of Node 'relu' was used before it has been"):
        old.convert_fx(observed, backend_config=backend)
    assert relative_error(by_dropin(model, inputs, mapping), model, inputs) <= RIGHT
    assert (
        relative_error(quantized_by_fqx(model, inputs, target="native/qnnpack"), model, inputs)
        <= RIGHT
    )


@pytest.mark.parametrize("engine", ["x86", "onednn", "qnnpack"])
def test_a_dynamic_linear_reads_seven_bits_as_a_module_alone(
    engine: str, use_engine: Callable[[str], None]
) -> None:
    """Reads the input of a dynamic linear module with seven bits on every engine, that of a
    functional one as the engine asks: on onednn they differ, and the module's error is twice that
    of the call.

    Gives the same bits however the linear is written.
    """
    use_engine(engine)
    inner, inputs = nn.Linear(64, 64), (torch.randn(16, 64),)
    module = nn.Sequential(inner).eval()
    function = Calls(lambda own, x: F.linear(x, own.inner.weight, own.inner.bias), inner=inner)
    function = function.eval()
    mapping = everywhere(default_dynamic_qconfig)
    one, two = (by_torch(model, inputs, mapping) for model in (module, function))
    assert torch.equal(one(*inputs), two(*inputs)) is (engine != "onednn")
    if engine == "onednn":
        assert relative_error(one, module, inputs) > 1.5 * relative_error(two, function, inputs)
    ours, called = (by_dropin(model, inputs, mapping) for model in (module, function))
    assert torch.equal(ours(*inputs), called(*inputs))
    assert relative_error(ours, module, inputs) <= RIGHT
    programs = [quantized_by_fqx(model, inputs, fqx.int8_dynamic()) for model in (module, function)]
    assert torch.equal(programs[0](*inputs), programs[1](*inputs))


def test_a_transposed_convolution_in_three_dimensions_is_far_off_on_qnnpack(
    use_engine: Callable[[str], None],
) -> None:
    """Gives a result of the wrong values for a ConvTranspose3d on qnnpack, whose kernel is wrong.

    Probes kernels before it uses them, and leaves this one float on qnnpack.
    """
    use_engine("qnnpack")
    model = nn.Sequential(nn.ConvTranspose3d(4, 4, 3, stride=2)).eval()
    inputs = (torch.randn(2, 4, 4, 4, 4),)
    assert relative_error(by_torch(model, inputs, default()), model, inputs) > WRONG
    assert relative_error(by_dropin(model, inputs, default()), model, inputs) <= RIGHT
    for name in ("native/qnnpack", "native/fbgemm", "reference"):
        assert relative_error(quantized_by_fqx(model, inputs, target=name), model, inputs) <= RIGHT


def test_the_original_weights_hold_a_scale_for_a_bias() -> None:
    """Keeps of a layer without a bias the weight and, where the bias is documented to be, the
    weight's scale.

    Keeps the float weights, by name, in the prepared module, which converting leaves as it was.
    """
    model = Calls(lambda own, x: F.linear(x, own.weight), weight=nn.Parameter(torch.randn(8, 8)))
    model, inputs = model.eval(), (torch.randn(16, 8),)
    observed = old.prepare_fx(copy.deepcopy(model), everywhere(), inputs)
    observed(*inputs)
    theirs: Any = old.convert_fx(observed, keep_original_weights=True)
    (kept,) = theirs.original_weights_lookup.values()
    assert kept[1].shape == (8,)
    prepared = new.prepare_fx(model, everywhere(), inputs)
    prepared(*inputs)
    new.convert_fx(prepared)
    assert torch.equal(prepared.get_parameter("weight"), model.get_parameter("weight"))
    assert [name for name, _ in prepared.named_parameters()] == ["weight"]


def test_an_observer_without_data_gives_the_scale_one() -> None:
    """Warns and converts with scale 1 and zero point 0 if an observer saw no data.

    Reports MissingStatistics with the node.
    """
    model, inputs = nn.Sequential(nn.Linear(8, 8)).eval(), (torch.randn(16, 8),)
    theirs: Any = old.convert_fx(old.prepare_fx(copy.deepcopy(model), everywhere(), inputs))
    assert theirs.get_submodule("0").scale == 1.0
    assert relative_error(theirs, model, inputs) > WRONG
    with pytest.raises(Halt) as halt:
        new.convert_fx(new.prepare_fx(model, everywhere(), inputs))
    assert halt.value.fault.kind is FaultKind.MISSING_STATISTICS
    assert halt.value.fault.at == "@input"
    done = fqx.quantize(model, inputs, [], progress=False)
    assert done.failure().fault.kind is FaultKind.EMPTY_CALIBRATION


def ordered(position: int, qconfig: Any) -> QConfigMapping:
    """The plain mapping with an entry for one of the functional linears."""
    return everywhere().set_module_name_object_type_order("", F.linear, position, qconfig)


def test_order_entries_are_not_compared_with_those_of_prepare() -> None:
    """Compares the mapping of convert with that of prepare in every part but the order entries: one
    that is gone or says something else passes, as long as it takes no node.

    Compares every part, and reports BadRecipe with the entry.
    """
    model = Calls(lambda own, x: F.linear(x, own.weight), weight=nn.Parameter(torch.randn(8, 8)))
    model, inputs = model.eval(), (torch.randn(16, 8),)

    def converted(fx: Any, before: QConfigMapping, now: QConfigMapping) -> Any:
        observed = fx.prepare_fx(copy.deepcopy(model), before, inputs)
        observed(*inputs)
        return fx.convert_fx(observed, qconfig_mapping=now)

    for now in (everywhere(), ordered(5, plain())):
        converted(old, ordered(5, plain(reduced=True)), now)
        with pytest.raises(new.BadConfig, match="module_name_object_type_order"):
            converted(new, ordered(5, plain(reduced=True)), now)
    for fx, kernel in ((old, "quantized.linear"), (new, "native_linear")):
        assert not calls(converted(fx, everywhere(), ordered(0, None)), kernel)
        assert calls(converted(fx, everywhere(), everywhere()), kernel) == 1
