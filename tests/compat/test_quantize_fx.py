"""The drop-in for torch.ao's FX functions, side by side with torch.ao."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.ao.quantization.quantize_fx as old
from torch import Tensor, nn
from torch.ao.quantization import (
    MinMaxObserver,
    QConfig,
    QConfigMapping,
    default_dynamic_qconfig,
    default_per_channel_weight_observer,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig

import fqx.compat.quantize_fx as new
from fqx.ir.fault import FaultKind
from fqx.ir.trail import Halt
from fqx.passes.observe import intents_of
from fqx.testing.zoo import ZOO

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("on_x86")]


def minmax(reduced: bool = False) -> QConfigMapping:
    """Ranges as they were seen, so that every scale can be computed by hand."""
    qconfig: Any = QConfig
    activation = MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=reduced)
    return QConfigMapping().set_global(qconfig(activation, default_per_channel_weight_observer))


def perceptron() -> nn.Module:
    """Linears alone."""
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)
    )


def convolutions() -> nn.Module:
    """Convolutions, a pool and a head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


class Residual(nn.Module):
    """A sum of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 3, padding=1)
        self.two = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        return torch.relu(self.one(x) + self.two(x))


def normed() -> nn.Module:
    """A convolution and a norm with statistics of its own."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return model


@dataclass(frozen=True)
class Case:
    """A model and data for it."""

    model: nn.Module
    batch: Tensor


def cases() -> dict[str, Case]:
    """The models compared side by side."""
    torch.manual_seed(0)
    picture = torch.randn(32, 3, 8, 8)
    return {
        "mlp": Case(perceptron().eval(), torch.randn(64, 16)),
        "cnn": Case(convolutions().eval(), picture),
        "residual": Case(Residual().eval(), picture),
        "normed": Case(normed().eval(), picture),
    }


def by_fqx(case: Case, mapping: Any) -> Any:
    """The model quantized by the drop-in."""
    prepared = new.prepare_fx(case.model, mapping, (case.batch,))
    prepared(case.batch)
    return new.convert_fx(prepared)


def by_torch(case: Case, mapping: Any) -> Any:
    """The model quantized by torch.ao."""
    prepared = old.prepare_fx(copy.deepcopy(case.model), mapping, (case.batch,))
    prepared(case.batch)
    return old.convert_fx(prepared)


def distance(one: Tensor, two: Tensor) -> float:
    """Root of the mean squared difference."""
    return float((one - two).detach().pow(2).mean().sqrt())


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("engine", ["x86", "fbgemm", "onednn", "qnnpack"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_both_give_the_same_bits_where_ranges_are_as_seen(
    name: str, engine: str, reduced: bool
) -> None:
    torch.backends.quantized.engine = engine
    case = cases()[name]
    ours, theirs = by_fqx(case, minmax(reduced)), by_torch(case, minmax(reduced))
    # three times as wide as what was calibrated
    for batch in (case.batch, 3.0 * torch.randn_like(case.batch)):
        assert torch.equal(ours(batch), theirs(batch))


@pytest.mark.parametrize("name", list(cases()))
def test_the_default_mapping_stays_as_close_to_float_as_torch(name: str) -> None:
    case = cases()[name]
    with torch.no_grad():
        truth = case.model(case.batch)
    ours = distance(by_fqx(case, get_default_qconfig_mapping("x86"))(case.batch), truth)
    theirs = distance(by_torch(case, get_default_qconfig_mapping("x86"))(case.batch), truth)
    # both search their histograms for least squared error over bins of other widths: neither is
    # the optimum of the other's, and one bin more or less is a tenth of the error
    assert ours <= theirs * 1.1


def test_the_parameters_are_those_of_torch() -> None:
    for name in (
        "fuse_fx",
        "prepare_fx",
        "prepare_qat_fx",
        "convert_fx",
        "convert_to_reference_fx",
    ):
        ours = inspect.signature(getattr(new, name)).parameters
        theirs = inspect.signature(getattr(old, name)).parameters
        assert [(p.name, p.default) for p in ours.values()] == [
            (p.name, p.default) for p in theirs.values()
        ]


def test_a_deep_network_stays_as_close_to_float_as_torch() -> None:
    specimen = next(item for item in ZOO if item.name == "resnet18")
    case = Case(specimen.model(), specimen.images(32, 3))
    unseen = specimen.images(32, 9)
    with torch.no_grad():
        truth = case.model(unseen)
    mapping = get_default_qconfig_mapping("x86")
    ours = distance(by_fqx(case, mapping)(unseen), truth)
    theirs = distance(by_torch(case, mapping)(unseen), truth)
    # as above: a tenth for histograms with bins of other widths
    assert ours <= theirs * 1.1


def test_the_model_and_the_mapping_are_as_before_after_every_call() -> None:
    case = cases()["normed"]
    mapping = get_default_qconfig_mapping("x86")
    weights = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    modules = dict(case.model.named_modules())
    fields = {name: set(vars(module)) for name, module in modules.items()}
    told = repr(mapping)
    prepared = new.prepare_fx(case.model, mapping, (case.batch,))
    prepared(case.batch)
    text = (prepared.code, {k: v.clone() for k, v in prepared.state_dict().items()})
    new.fuse_fx(case.model)
    new.convert_fx(prepared)
    new.convert_to_reference_fx(prepared)
    new.convert_to_reference_decomposed_fx(prepared)
    assert repr(mapping) == told
    assert dict(case.model.named_modules()) == modules
    assert {name: set(vars(module)) for name, module in modules.items()} == fields
    for name, tensor in case.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert prepared.code == text[0]
    assert prepared.state_dict().keys() == text[1].keys()
    assert all(torch.equal(tensor, text[1][k]) for k, tensor in prepared.state_dict().items())


def test_a_prepared_module_computes_the_float_model() -> None:
    case = cases()["cnn"]
    prepared = new.prepare_fx(case.model, minmax(), case.batch)
    assert torch.equal(prepared(case.batch), case.model(case.batch))


def test_a_prepared_module_is_copied_pickled_and_loaded() -> None:
    case = cases()["mlp"]
    prepared = new.prepare_fx(case.model, minmax(), (case.batch,))
    fresh = new.prepare_fx(case.model, minmax(), (case.batch,))
    twin = copy.deepcopy(prepared)
    prepared(case.batch)
    with pytest.raises(Halt) as empty:
        new.convert_fx(twin)
    assert empty.value.fault.kind is FaultKind.MISSING_STATISTICS
    expected = new.convert_fx(prepared)(case.batch)
    fresh.load_state_dict(prepared.state_dict())
    others = (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared)), fresh)
    for other in others:
        assert torch.equal(new.convert_fx(other)(case.batch), expected)


def test_weights_loaded_into_a_prepared_module_are_those_converted() -> None:
    case = cases()["mlp"]
    torch.manual_seed(7)
    trained = Case(perceptron().eval(), case.batch)
    prepared = new.prepare_fx(case.model, minmax(), (case.batch,))
    prepared.load_state_dict(trained.model.state_dict(), strict=False)
    prepared(case.batch)
    assert torch.equal(new.convert_fx(prepared)(case.batch), by_fqx(trained, minmax())(case.batch))


def test_casting_a_prepared_module_leaves_the_states_as_they_are() -> None:
    case = cases()["mlp"]
    prepared = new.prepare_fx(case.model, minmax(), (case.batch,)).float()
    prepared(case.batch)
    assert prepared.state_dict()["activation_post_process_0.low"].dtype is torch.float64


@pytest.mark.parametrize("name", list(cases()))
def test_the_three_conversions_agree(name: str) -> None:
    case = cases()[name]
    prepared = new.prepare_fx(case.model, minmax(), (case.batch,))
    prepared(case.batch)
    reference = new.convert_to_reference_fx(prepared)(case.batch)
    decomposed = new.convert_to_reference_decomposed_fx(prepared)
    assert torch.equal(decomposed(case.batch), reference)
    called = {str(node.target) for node in decomposed.graph.nodes}
    assert "quantized_decomposed.quantize_per_tensor.default" in called
    assert "quantized_decomposed.dequantize_per_channel.default" in called
    # float convolutions sum in another order than integer ones, which can move a result by a step
    lowered = new.convert_fx(prepared)(case.batch)
    assert distance(lowered, reference) <= float(reference.detach().abs().max()) / 255


@pytest.mark.parametrize("engine", ["x86", "fbgemm", "onednn", "qnnpack"])
def test_the_reference_agrees_on_every_engine(engine: str) -> None:
    torch.backends.quantized.engine = engine
    case = cases()["cnn"]
    prepared = new.prepare_fx(case.model, minmax(reduced=True), (case.batch,))
    prepared(case.batch)
    reference = new.convert_to_reference_fx(prepared)(case.batch)
    lowered = new.convert_fx(prepared)(case.batch)
    # qnnpack rounds halves away from zero; each of three layers may then be a step off
    assert distance(lowered, reference) <= float(reference.detach().abs().max()) / 127


def test_none_in_the_mapping_leaves_a_module_float() -> None:
    case = cases()["mlp"]
    mapping = minmax().set_module_name("2", None)
    ours, theirs = by_fqx(case, mapping), by_torch(case, mapping)
    # torch.ao quantizes what enters the activation behind the float linear too, fqx what leaves it
    assert distance(ours(case.batch), theirs(case.batch)) <= 0.02
    assert ours.get_parameter("2.weight").dtype is torch.float32
    classes = minmax().set_object_type(nn.Linear, None)
    ours, theirs = by_fqx(case, classes), by_torch(case, classes)
    # the activations between the float linears are quantized all the same, as torch.ao does
    assert distance(ours(case.batch), theirs(case.batch)) <= 0.02
    assert all(value.dtype is torch.float32 for value in ours.parameters())


class Bag(nn.Module):
    """The mean of looked-up rows through a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 16), nn.Linear(16, 4)

    def forward(self, rows: Tensor) -> Tensor:
        """The head of the mean."""
        made: Tensor = self.head(self.table(rows).mean(1))
        return made


class Recurrent(nn.Module):
    """A recurrence over the first axis, whose length a captured program fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """The head of every step."""
        steps, _ = self.cells(x)
        made: Tensor = self.head(steps)
        return made


def test_float16_weights_give_the_bits_of_torch() -> None:
    case = cases()["mlp"]
    mapping = QConfigMapping().set_global(float16_dynamic_qconfig)
    assert torch.equal(by_fqx(case, mapping)(case.batch), by_torch(case, mapping)(case.batch))


@pytest.mark.parametrize("name", ["linear", "embedding", "lstm"])
def test_other_kinds_of_qconfig_stay_as_close_to_float_as_torch(name: str) -> None:
    torch.manual_seed(1)
    dynamic = QConfigMapping().set_global(default_dynamic_qconfig)
    tables = QConfigMapping().set_object_type(nn.Embedding, float_qparams_weight_only_qconfig)
    case, mapping = {
        "linear": (Case(perceptron().eval(), torch.randn(64, 16)), dynamic),
        "embedding": (Case(Bag().eval(), torch.randint(0, 20, (16, 5))), tables),
        "lstm": (Case(Recurrent().eval(), torch.randn(6, 16, 8)), dynamic),
    }[name]
    with torch.no_grad():
        truth = case.model(case.batch)
    prepared = new.prepare_fx(case.model, mapping, (case.batch,))
    # a recurrence is captured step by step, whose sums round in another order
    torch.testing.assert_close(prepared(case.batch), truth)
    ours = distance(new.convert_fx(prepared)(case.batch), truth)
    theirs = distance(by_torch(case, mapping)(case.batch), truth)
    # something was rounded, and no more than a hundredth worse than by torch
    assert 0.0 < ours <= theirs * 1.01
    reference = new.convert_to_reference_fx(prepared)(case.batch)
    decomposed = new.convert_to_reference_decomposed_fx(prepared)(case.batch)
    assert torch.equal(reference, decomposed)


class Gated(nn.Module):
    """Known ranges, read by a product, moved, and multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Both gates of a product, one of them reshaped before."""
        one = torch.sigmoid(self.gate(x)).reshape(-1, 16)
        return torch.sigmoid(self.down(torch.mul(torch.tanh(self.up(x)), one)))


@pytest.mark.parametrize("engine", ["x86", "fbgemm", "qnnpack"])
def test_known_ranges_have_the_steps_of_torch(engine: str) -> None:
    torch.backends.quantized.engine = engine
    torch.manual_seed(2)
    case = Case(Gated().eval(), torch.randn(64, 16))
    mapping = minmax(reduced=True)
    default = get_default_qconfig_mapping("x86").object_type_qconfigs
    for kind in (torch.sigmoid, torch.tanh):
        mapping.set_object_type(kind, default[kind])
    for batch in (case.batch, 3.0 * torch.randn_like(case.batch)):
        assert torch.equal(by_fqx(case, mapping)(batch), by_torch(case, mapping)(batch))


class Mixed(nn.Module):
    """Functions, methods and a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Two calls of one linear, two functional ones, and a method between them."""
        weight, bias = self.inner.weight, self.inner.bias
        once = self.inner(self.inner(x))
        twice = nn.functional.linear(once, weight, bias).relu()
        return nn.functional.linear(twice, weight, bias)


def schemes(model: nn.Module, mapping: QConfigMapping) -> dict[str, bool]:
    """Which linears of a prepared model are to be integers."""
    prepared = new.prepare_fx(model, mapping, (torch.randn(4, 8),))
    graph = prepared.fqx_preparation.graph
    told = {
        name: intent.scheme is not None
        for item in graph
        if item.op == "observe"
        for intent in intents_of(item).unwrap()
        for name in intent.nodes
    }
    return {str(name): quantized for name, quantized in told.items() if graph[name].op == "linear"}


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda m: m.set_object_type(nn.functional.linear, None), {":linear", ":linear.1"}),
        (lambda m: m.set_object_type(nn.Linear, None), {"inner", "inner@1"}),
        (lambda m: m.set_module_name("inner", None), {"inner", "inner@1"}),
        (lambda m: m.set_module_name_regex("inn", None), {"inner", "inner@1"}),
        (
            lambda m: m.set_module_name_object_type_order("", nn.functional.linear, 1, None),
            {":linear.1"},
        ),
        (lambda m: m.set_module_name_object_type_order("", nn.Linear, 1, None), {"inner@1"}),
    ],
)
def test_every_part_of_a_mapping_finds_the_nodes_torch_finds(
    change: Callable[[QConfigMapping], object], left: set[str]
) -> None:
    model, mapping = Mixed().eval(), minmax()
    change(mapping)
    told = schemes(model, mapping)
    assert told == {name: name not in left for name in told}
    assert len(told) == 4


def test_a_mapping_reaches_a_model_that_torch_cannot_trace() -> None:
    case = Case(Branching().eval(), torch.randn(4, 8))
    ours = by_fqx(case, minmax().set_module_name("two", None))
    assert ours.get_parameter("one.weight").dtype is torch.int8
    assert ours.get_parameter("two.weight").dtype is torch.float32


class Branching(nn.Module):
    """Its shape decides which way it goes, which torch.fx alone cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Both linears where the input has eight columns."""
        return self.two(self.one(x)) if x.shape[1] == 8 else x


def test_none_in_the_mapping_of_convert_leaves_a_module_float() -> None:
    case = cases()["mlp"]
    mapping = minmax().set_module_name("2", minmax().global_qconfig)
    prepared = new.prepare_fx(case.model, mapping, (case.batch,))
    prepared(case.batch)
    made: Any = new.convert_fx(
        prepared, qconfig_mapping=copy.deepcopy(mapping).set_module_name("2", None)
    )
    assert made.get_parameter("2.weight").dtype is torch.float32
    assert made.get_parameter("0.weight").dtype is torch.int8
    with pytest.raises(new.BadConfig, match="global"):
        new.convert_fx(prepared, qconfig_mapping=QConfigMapping())


class Chained(nn.Module):
    """Three functional linears in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        """The weight applied three times."""
        for _ in range(3):
            x = nn.functional.linear(x, self.weight)
        return x


def ordered(qconfig: Any, position: int = 1) -> QConfigMapping:
    """The plain mapping with an entry for one of the linears of `Chained`."""
    return minmax().set_module_name_object_type_order("", nn.functional.linear, position, qconfig)


def test_an_order_entry_at_convert_takes_effect_and_has_to_agree() -> None:
    torch.manual_seed(4)
    case = Case(Chained().eval(), torch.randn(16, 8))
    whole = minmax()
    for before, now in (
        (ordered(minmax(reduced=True).global_qconfig), whole),
        (ordered(None), whole),
        (ordered(minmax(reduced=True).global_qconfig), ordered(whole.global_qconfig)),
        (whole, ordered(minmax(reduced=True).global_qconfig)),
    ):
        prepared = new.prepare_fx(case.model, before, (case.batch,))
        prepared(case.batch)
        with pytest.raises(new.BadConfig, match="mapping of convert"):
            new.convert_fx(prepared, qconfig_mapping=now)
    prepared = new.prepare_fx(case.model, whole, (case.batch,))
    prepared(case.batch)
    twin = pickle.loads(pickle.dumps(prepared))
    for item in (prepared, twin):
        code = new.convert_fx(item, qconfig_mapping=ordered(None)).code
        assert code.count("native_linear(") == 2


def test_a_grouped_transposed_convolution_takes_the_norm_behind_it() -> None:
    torch.manual_seed(4)
    norm = nn.BatchNorm2d(6, affine=False)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), norm).eval()
    fused = new.fuse_fx(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(fused(x), model(x))


class Stepping(nn.Module):
    """A recurrence over its first axis, handed on by position."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 8)

    def forward(self, *given: Tensor) -> Tensor:
        """Every step's state."""
        steps: Tensor = self.cells(given[0])[0]
        return steps


def test_a_recurrence_is_prepared_whatever_its_inputs_are_called() -> None:
    torch.manual_seed(4)
    model, x = Stepping().eval(), torch.randn(5, 3, 8)
    prepared = new.prepare_fx(model, minmax(), (x,))
    torch.testing.assert_close(prepared(x), model(x))


def test_attributes_to_keep_are_kept() -> None:
    case = cases()["mlp"]
    model: Any = case.model
    model.labels = ("cat", "dog")
    config = PrepareCustomConfig().set_preserved_attributes(["labels", "missing"])
    prepared: Any = new.prepare_fx(case.model, minmax(), (case.batch,), config)
    prepared(case.batch)
    made: Any = new.convert_fx(prepared)
    assert prepared.labels == made.labels == ("cat", "dog")


def test_original_weights_are_kept_with_their_biases() -> None:
    case = cases()["normed"]
    last: Any = case.model[3]  # type: ignore[index]
    last.bias = None
    prepared = new.prepare_fx(case.model, minmax().set_object_type(nn.ReLU, None), (case.batch,))
    prepared(case.batch)
    made: Any = new.convert_fx(prepared, keep_original_weights=True)
    assert not hasattr(new.convert_fx(prepared), "original_weights_lookup")
    folded = torch.nn.utils.fuse_conv_bn_eval(case.model[0], case.model[1])  # type: ignore[index]
    weight, bias = made.original_weights_lookup["0.weight"]
    torch.testing.assert_close(weight, folded.weight.detach())
    torch.testing.assert_close(bias, folded.bias.detach())
    # torch.ao's list holds a scale there
    assert made.original_weights_lookup["3.weight"][1] is None
    assert torch.equal(made.original_weights_lookup["3.weight"][0], last.weight.detach())
    assert made.get_parameter("3.weight").dtype is torch.int8


def test_fuse_folds_a_norm_and_leaves_one_whose_convolution_is_shared() -> None:
    case = cases()["normed"]
    fused = new.fuse_fx(case.model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(case.batch), case.model(case.batch))
    shared = SharedConvolution().eval()
    torch.testing.assert_close(new.fuse_fx(shared)(case.batch), shared(case.batch))
    with pytest.raises(Halt) as training:
        new.fuse_fx(normed().train())
    assert training.value.fault.kind is FaultKind.MODEL_IN_TRAINING


# Where torch.ao is silently wrong.


class Twice(nn.Module):
    """One module called twice, with results of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """The inner linear of itself, enlarged."""
        return torch.cat([self.inner(x), self.inner(x * 100.0)], 1)


class SharedConvolution(nn.Module):
    """One convolution under two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        with torch.no_grad():
            self.two.weight.fill_(7.0)
            self.two.bias.fill_(3.0)

    def forward(self, x: Tensor) -> Tensor:
        """Both norms, side by side."""
        return torch.cat([self.one(self.conv(x)), self.two(self.conv(x))], 1)


class Squashed(nn.Module):
    """A sigmoid of the input itself."""

    def forward(self, x: Tensor) -> Tensor:
        """The sigmoid."""
        return torch.sigmoid(x)


class Weighted(nn.Module):
    """A sum in which one side counts ten times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """The weighted sum."""
        return torch.add(self.inner(x), x, alpha=10)


def wrong_cases() -> dict[str, Case]:
    """Ordinary models of which torch.ao's program computes something else."""
    torch.manual_seed(3)
    return {
        "a module called twice": Case(Twice().eval(), torch.randn(64, 8)),
        "a convolution under two norms": Case(SharedConvolution().eval(), torch.randn(8, 3, 6, 6)),
        "a sigmoid of the input": Case(Squashed().eval(), torch.linspace(-4, 4, 64).reshape(8, 8)),
        "an addition with alpha": Case(Weighted().eval(), torch.randn(64, 8)),
    }


@pytest.mark.parametrize("name", list(wrong_cases()))
def test_fqx_is_right_where_torch_is_silently_wrong(name: str) -> None:
    case = wrong_cases()[name]
    mapping = get_default_qconfig_mapping("x86")
    with torch.no_grad():
        truth = case.model(case.batch)
    size = float(truth.pow(2).mean().sqrt())
    # 127 steps over a range of a few times the size, through at most three layers of rounding
    assert distance(by_fqx(case, mapping)(case.batch), truth) <= 0.05 * size
    # more than a third of the signal is gone
    assert distance(by_torch(case, mapping)(case.batch), truth) > 0.3 * size


# Misuse.


def test_what_was_not_prepared_is_not_converted() -> None:
    case = cases()["mlp"]
    for convert in (
        new.convert_fx,
        new.convert_to_reference_fx,
        new.convert_to_reference_decomposed_fx,
    ):
        with pytest.raises(ValueError, match="must be a GraphModule that prepare_fx made"):
            convert(case.model)
        with pytest.raises(AssertionError, match="never prepared, or it is converted already"):
            convert(torch.fx.symbolic_trace(case.model))
    prepared = new.prepare_fx(case.model, minmax(), (case.batch,))
    prepared(case.batch)
    with pytest.raises(new.NotPrepared, match="converted already"):
        new.convert_fx(new.convert_fx(prepared))
    again = new.convert_fx(prepared)
    assert torch.equal(again(case.batch), new.convert_fx(prepared)(case.batch))


def test_a_prepared_module_that_was_edited_is_not_converted() -> None:
    case = cases()["mlp"]
    prepared = new.prepare_fx(case.model, minmax(), (case.batch,))
    prepared(case.batch)
    relu = next(node for node in prepared.graph.nodes if node.target is torch.relu)
    relu.target = torch.tanh
    prepared.recompile()
    with pytest.raises(new.NotPrepared, match="was edited"):
        new.convert_fx(prepared)


def test_wrong_configs_are_named() -> None:
    case = cases()["mlp"]
    wrong: Any = None
    with pytest.raises(AssertionError, match="NoneType, not a QConfigMapping"):
        new.prepare_fx(case.model, wrong, (case.batch,))
    with pytest.raises(new.BadConfig, match="arrives with quantization-aware training"):
        new.prepare_qat_fx(case.model, minmax(), (case.batch,))
    config = PrepareCustomConfig().set_input_quantized_indexes([1])
    with pytest.raises(new.BadConfig, match="there is no input 1, only 1"):
        new.prepare_fx(case.model, minmax(), (case.batch,), config)
    with pytest.raises(new.BadConfig, match="'tensorflow'"):
        new.prepare_fx(case.model, minmax(), (case.batch,), backend_config={"name": "tensorflow"})


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"output_quantized_idxs": [2]}, "output_quantized_indexes: there is no output 2"),
        ({"float_to_observed_custom_module_class": {"static": {nn.ReLU: nn.ELU}}}, "from_float"),
        ({"non_traceable_module_nam": ["0"]}, "no part 'non_traceable_module_nam'"),
    ],
)
def test_a_dict_of_a_custom_config_is_read_like_the_object(given: Any, reason: str) -> None:
    case = cases()["mlp"]
    with pytest.raises(new.BadConfig, match=reason):
        new.prepare_fx(case.model, minmax(), (case.batch,), given)


def test_an_entry_that_takes_nothing_is_told() -> None:
    case = cases()["mlp"]
    mapping = minmax().set_module_name("haed", None).set_object_type(nn.Conv3d, None)
    with pytest.warns(UserWarning, match="taken by module_name 'haed' of the QConfigMapping"):
        new.prepare_fx(case.model, mapping, (case.batch,))


def test_a_tensor_that_cannot_be_measured_names_the_node() -> None:
    case = cases()["mlp"]
    prepared = new.prepare_fx(case.model, minmax(), (case.batch,))
    with pytest.raises(Halt) as halt:
        prepared(torch.full((4, 16), float("nan")))
    assert halt.value.fault.kind is FaultKind.NOT_FINITE
    assert halt.value.fault.at == "@input"
    assert int(prepared.state_dict()["activation_post_process_0.count"]) == 0


def test_the_state_of_another_kind_of_observer_is_not_loaded() -> None:
    case = cases()["mlp"]
    prepared = new.prepare_fx(case.model, minmax(), (case.batch,))
    state = dict(prepared.state_dict())
    state["activation_post_process_0.low"] = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="not the state of a minmax observer"):
        prepared.load_state_dict(state)
    del state["activation_post_process_0.low"]
    with pytest.raises(RuntimeError, match=r"Missing key.*activation_post_process_0\.low"):
        prepared.load_state_dict(state)
