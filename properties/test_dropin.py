"""The laws of the drop-in: pure, the same each time, and whole through every round trip."""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.ao.quantization import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PlaceholderObserver,
    QConfig,
    QConfigMapping,
    default_dynamic_qconfig,
    default_per_channel_weight_observer,
    default_reuse_input_qconfig,
    default_weight_observer,
    float16_dynamic_qconfig,
    float16_static_qconfig,
    get_default_qconfig_mapping,
    per_channel_dynamic_qconfig,
)

from fqx.compat.quantize_fx import convert_fx, convert_to_reference_fx, prepare_fx
from fqx.ir.fault import FaultKind
from fqx.ir.trail import Halt
from fqx.testing.models import Instruction, ModelSample, model_samples

pytestmark = pytest.mark.filterwarnings("ignore")
# each example goes the whole road several times
some = settings(max_examples=max(8, settings.default.max_examples // 3))  # type: ignore[union-attr]


def _qconfig(activation: Any, weight: Any) -> Any:
    made: Any = QConfig
    return made(activation, weight)


QCONFIGS: tuple[Any, ...] = (
    None,
    _qconfig(MinMaxObserver, default_weight_observer),
    _qconfig(MinMaxObserver.with_args(reduce_range=True), default_per_channel_weight_observer),
    _qconfig(MovingAverageMinMaxObserver, default_per_channel_weight_observer),
    _qconfig(HistogramObserver.with_args(bins=64), default_weight_observer),
    _qconfig(MinMaxObserver.with_args(dtype=torch.qint8), default_weight_observer),
    _qconfig(PlaceholderObserver.with_args(dtype=torch.float32), default_weight_observer),
    default_dynamic_qconfig,
    per_channel_dynamic_qconfig,
    float16_dynamic_qconfig,
    float16_static_qconfig,
    default_reuse_input_qconfig,
)
TYPES: tuple[Any, ...] = (
    *(nn.Conv2d, nn.Linear, nn.ReLU, nn.BatchNorm2d, nn.LayerNorm),
    *(torch.relu, nn.functional.relu, torch.cat, torch.add, "sigmoid", "reshape"),
)
NAMES = (
    "conv_0",
    "conv_1",
    "linear_0",
    "block_0",
    "block_0.one",
    "nested_0.0",
    "bn_0",
    "elsewhere",
)
PATTERNS = ("conv", r".*\.one", "block_[01]", "")
BACKENDS = (None, {"name": "x86"}, {"name": "qnnpack"}, {"name": "executorch"})


@st.composite
def mappings(draw: st.DrawFn) -> QConfigMapping:
    """The default mapping, or one QConfig for all; and entries of every part of a mapping."""
    one = st.sampled_from(QCONFIGS)
    made: QConfigMapping
    if draw(st.booleans()):
        made = get_default_qconfig_mapping("x86")
    else:
        made = QConfigMapping().set_global(draw(one))
    for kind in draw(st.lists(st.sampled_from(TYPES), max_size=2, unique_by=str)):
        made.set_object_type(kind, draw(one))
    for pattern in draw(st.lists(st.sampled_from(PATTERNS), max_size=1)):
        made.set_module_name_regex(pattern, draw(one))
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        made.set_module_name(name, draw(one))
    for number in draw(st.lists(st.integers(0, 1), max_size=1)):
        made.set_module_name_object_type_order("", nn.Conv2d, number, draw(one))
    return made


def prepared(sample: ModelSample, model: nn.Module, mapping: Any, backend: Any) -> Any:
    """The model prepared and calibrated; what the data or the mapping cannot give is drawn anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = prepare_fx(model, mapping, sample.inputs(4), None, None, backend)
            made(*sample.inputs(4))
        except Halt as halt:
            assume(halt.fault.kind is not FaultKind.NOT_FINITE)
            raise
    return made


def tensors(value: object) -> list[Tensor]:
    """Every tensor of an output, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    held = value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in held for tensor in tensors(item)]


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: Any, two: Any) -> bool:
    """Whether two states, or two outputs, hold the same bits."""
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() != two.keys():
        return False
    first, second = tensors(one), tensors(two)
    return len(first) == len(second) and all(map(torch.equal, first, second))


def shape(model: nn.Module) -> dict[str, set[str]]:
    """The attributes of every module."""
    return {path: set(vars(module)) for path, module in model.named_modules()}


@some
@given(model_samples(most=5, writes=False), mappings(), st.sampled_from(BACKENDS))
def test_nothing_handed_in_is_changed_and_twice_is_the_same(
    sample: ModelSample, mapping: QConfigMapping, backend: Any
) -> None:
    note(f"{sample}\n{mapping}")
    model = sample.model()
    before = state(model), shape(model), repr(mapping), copy.deepcopy(backend)
    one = prepared(sample, model, mapping, backend)
    held = state(one), one.code
    first, reference = convert_fx(one), convert_to_reference_fx(one)
    assert (shape(model), repr(mapping), backend) == before[1:]
    assert same(state(model), before[0])
    assert one.code == held[1] and same(state(one), held[0])
    x = sample.inputs(3)
    two = convert_fx(prepared(sample, sample.model(), copy.deepcopy(mapping), backend))
    again = convert_fx(one)
    for other in (two, again):
        assert other.code == first.code
        assert same(other.state_dict(), first.state_dict())
        assert same(other(*x), first(*x))
    assert same(convert_to_reference_fx(one)(*x), reference(*x))


@some
@given(model_samples(most=4, writes=False), mappings())
def test_prepared_and_converted_modules_go_whole_through_round_trips(
    sample: ModelSample, mapping: QConfigMapping
) -> None:
    note(f"{sample}\n{mapping}")
    one = prepared(sample, sample.model(), mapping, None)
    converted, x = convert_fx(one), sample.inputs(3)
    expected, seen = converted(*x), state(one)
    fresh = prepare_fx(sample.model(), mapping, sample.inputs(4))
    fresh.load_state_dict(seen)
    for twin in (fresh, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        made = convert_fx(twin)
        assert made.code == converted.code
        assert same(made.state_dict(), converted.state_dict())
        assert same(made(*x), expected)
    saved = io.BytesIO()
    torch.save(converted.state_dict(), saved)
    saved.seek(0)
    other = convert_fx(fresh)
    other.load_state_dict(torch.load(saved, weights_only=True))
    for twin in (other, copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert same(twin(*x), expected)


@some
@given(model_samples(most=2, writes=False), mappings())
def test_one_kernel_is_within_a_quantum_of_its_reference(
    sample: ModelSample, mapping: QConfigMapping
) -> None:
    note(f"{sample}\n{mapping}")
    one = prepared(sample, sample.model(), mapping, None)
    lowered, reference = convert_fx(one), convert_to_reference_fx(one)
    units = lowered.meta["fqx_lowering"].units
    # what follows a difference of one quantum may enlarge it
    assume(len(units) <= 1)
    quantum = max(scales(reference), default=0.0)
    x = sample.inputs(4)
    # float kernels sum in another order
    for ours, theirs in zip(tensors(lowered(*x)), tensors(reference(*x)), strict=True):
        slack = 1e-4 * float(theirs.detach().abs().max())
        assert float((ours - theirs).detach().abs().max()) <= 1.01 * quantum + slack


def scales(module: Any) -> list[float]:
    """The scales of activations that stand in a reference program."""
    return [
        float(node.kwargs["scale"])
        for node in module.graph.nodes
        if "quantize" in str(node.target) and isinstance(node.kwargs.get("scale"), float)
    ]


def digest() -> str:
    """A hash of the program, the state and the output that one fixed model becomes."""
    instructions = Instruction("module:nested:0", 0, (0,)), Instruction("binary:add", 1, (2, 1))
    sample = ModelSample(instructions, "tensor", 3)
    found = convert_fx(prepared(sample, sample.model(), get_default_qconfig_mapping("x86"), None))
    held = [*found.state_dict().values(), *tensors(found(*sample.inputs(2)))]
    parts = [found.code, *found.state_dict(), *(str(tensor.tolist()) for tensor in held)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def test_a_second_process_gives_the_same_program_and_bits() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "from properties.test_dropin import digest; print(digest())"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert said.stdout.strip() == digest()
