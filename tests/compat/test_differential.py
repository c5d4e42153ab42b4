"""Every row of torch.ao's FX flow through torch.ao and the drop-in: bits, errors, kernels executed.

Where the bits differ `fqx.compat.differences` says why, and the test holds it to what it says.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Iterator, Sequence
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
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.observer import HistogramObserver
from torch.utils._python_dispatch import TorchDispatchMode

import fqx.compat.quantize_fx as new
from fqx.compat.differences import DIFFERENCES, Difference, differences_of
from fqx.testing.fx_rows import ROWS, Row

pytestmark = pytest.mark.filterwarnings("ignore")

ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")


@pytest.fixture(autouse=True)
def _engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
    torch.backends.quantized.engine = before


@dataclass(frozen=True, slots=True)
class Case:
    """A row, what it is quantized to, and the engine."""

    row: Row
    kind: str
    engine: str

    def __str__(self) -> str:
        return f"{self.row.name}-{self.kind}-{self.engine}"

    @property
    def difference(self) -> Difference | None:
        """What is listed of it, at most once."""
        found = differences_of(self.row.name, self.kind, self.engine)
        assert len(found) <= 1, found
        return found[0] if found else None


def cases() -> Iterator[Case]:
    """Every row in each of its kinds on x86, and rows with kernels per engine on all engines."""
    for row in ROWS:
        for kind in row.kinds:
            kinds = ("8 bits", "4 bits") if kind == "weight only" else (kind,)
            engines = ENGINES if row.engines and kind in ("static", "dynamic") else ENGINES[:1]
            yield from (Case(row, one, engine) for one in kinds for engine in engines)


CASES = tuple(cases())


def static(engine: str) -> QConfigMapping:
    """The engine's default mapping with ranges as they were seen instead of histograms."""
    mapping = get_default_qconfig_mapping(engine)
    mapping.set_global(_as_seen(mapping.global_qconfig))
    for kind, qconfig in list(mapping.object_type_qconfigs.items()):
        per_tensor = "ConvTranspose" in str(kind) or "conv_transpose" in str(kind)
        held: Any = qconfig
        if per_tensor and engine == "onednn":
            # its default asks for one scale per channel, which torch.ao refuses
            held = get_default_qconfig_mapping("x86").object_type_qconfigs[kind]
        mapping.set_object_type(kind, _as_seen(held))
    return mapping


def _as_seen(qconfig: Any) -> Any:
    made = qconfig.activation()
    if not isinstance(made, HistogramObserver):
        return qconfig
    reduced = (made.quant_min, made.quant_max) == (0, 127)
    make: Any = QConfig
    seen = MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=reduced)
    return make(seen, qconfig.weight)


def mapping_of(case: Case) -> QConfigMapping:
    """The mapping of a kind."""
    plain = QConfigMapping()
    match case.kind:
        case "static":
            return static(case.engine)
        case "dynamic":
            return plain.set_global(default_dynamic_qconfig)
        case "float16":
            return plain.set_global(float16_dynamic_qconfig)
        case "8 bits":
            table = float_qparams_weight_only_qconfig
        case _:
            table = float_qparams_weight_only_qconfig_4bit
    plain.set_object_type(nn.Embedding, table)
    return plain.set_object_type(nn.EmbeddingBag, table)


def through(flow: Any, case: Case, model: nn.Module) -> Any:
    """The model quantized by one of the flows, calibrated on three batches."""
    prepared = flow.prepare_fx(copy.deepcopy(model), mapping_of(case), case.row.data(1))
    for seed in (1, 2, 3):
        prepared(*case.row.data(seed))
    return flow.convert_fx(prepared)


class Executed(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Counts the operators of the model that run as kernels on integers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.count = 0
        self.pooling = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        count = operators_in(func, args)
        # a pool axis by axis is one operator, of many maxima in a row
        pools = func._opname == "maximum" and _has_integers(args)
        self.count += count + (pools and not self.pooling)
        self.pooling = (self.pooling or pools) and not count
        return func(*args, **(kwargs or {}))


COMPUTES = re.compile(
    r"(quantized_)?(lstm|gru|rnn|sigmoid|tanh|hardsigmoid|hardswish|leaky_relu|elu|celu|softmax"
    r"|_?adaptive_avg_pool|avg_pool|mean|max_pool|upsample|matmul|bmm|mul|add|linear|conv|prelu"
    r"|embedding|batch_norm|layer_norm|group_norm|instance_norm)"
)
"""Operators that compute. Quantizing, packing and moving are no operators of the model, and a
relu or a clamp is a bound of another's result: as often as not it costs no step of its own."""


BEHIND = ("sum", "add", "tanh", "leaky_relu", "hardswish", "swish", "gelu")
"""What oneDNN's kernels compute behind their product, bounds again left out."""


def operators_in(func: Any, args: Sequence[Any]) -> int:
    """How many operators of the model one call runs on integers: a fused kernel runs several."""
    space, name = func.namespace, func._opname
    onto = name.removeprefix("q") if space == "onednn" else name
    if "pack" in name or not COMPUTES.match(onto):
        return 0
    if space == "aten" and not (name.startswith("quantized_") or _has_integers(args)):
        return 0
    if space not in ("aten", "quantized", "onednn"):
        return 0
    tails = re.findall(r"_(add|leaky_relu|tanh)(?=_|$)", onto)
    fused = onto.startswith(("conv", "linear"))
    # oneDNN is told by name what to compute behind
    behind = [arg for arg in args if isinstance(arg, str) and arg in BEHIND]
    return 1 + (len(tails) if fused else 0) + len(behind)


def _has_integers(arg: Any) -> bool:
    if isinstance(arg, (tuple, list)):
        return any(map(_has_integers, arg))
    kinds = (torch.quint8, torch.qint8, torch.uint8, torch.int8)
    return isinstance(arg, Tensor) and arg.dtype in kinds


def executed(module: Any, inputs: tuple[Tensor, ...]) -> int:
    """How many operators of the model a call runs on integers."""
    with Executed() as mode:
        module(*inputs)
    return int(mode.count)


def outputs(module: Any, case: Case) -> list[Tensor]:
    """Results on data of calibration, on data like it, and on wider data."""
    batches = [case.row.data(seed) for seed in (1, 7, 8, 9)]
    wide = [tuple(3.0 * x if x.is_floating_point() else x for x in xs) for xs in batches[1:2]]
    return [module(*xs) for xs in (*batches, *wide)]


def error(found: list[Tensor], truth: list[Tensor]) -> float:
    """Root of the summed squared differences, where the data is like that of calibration."""
    pairs = list(zip(found, truth, strict=True))[:4]
    squared = sum(float((one - two).double().square().sum()) for one, two in pairs)
    return math.sqrt(squared)


@pytest.mark.parametrize("case", [c for c in CASES if c.difference is None], ids=str)
def test_both_give_the_same_bits(case: Case) -> None:
    torch.backends.quantized.engine = case.engine
    model = case.row.model()
    ours, theirs = through(new, case, model), through(old, case, model)
    pairs = zip(outputs(ours, case), outputs(theirs, case), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    inputs = case.row.data(7)
    assert executed(ours, inputs) >= executed(theirs, inputs)


def _differing(*sorts: str) -> list[Case]:
    return [c for c in CASES if c.difference is not None and c.difference.sort in sorts]


@pytest.mark.parametrize("case", _differing("closer", "wrong"), ids=str)
def test_where_bits_differ_the_drop_in_is_closer_to_float(case: Case) -> None:
    torch.backends.quantized.engine = case.engine
    assert case.difference is not None
    ours, theirs, same = 0.0, 0.0, True
    for seed in range(case.difference.models):
        model = case.row.model(seed)
        made, other = through(new, case, model), through(old, case, model)
        truth, left, right = (outputs(module, case) for module in (model, made, other))
        same &= all(torch.equal(one, two) for one, two in zip(left, right, strict=True))
        ours, theirs = ours + error(left, truth) ** 2, theirs + error(right, truth) ** 2
    assert not same, "the row is bit-equal: take it off the list"
    assert ours <= theirs
    inputs = case.row.data(7)
    if case.difference.sort == "closer":
        assert executed(made, inputs) >= executed(other, inputs)
    else:
        # what torch's kernel gives has nothing to do with the operator
        assert theirs > 25.0 * ours


@pytest.mark.parametrize("case", _differing("fails"), ids=str)
def test_where_torch_fails_the_drop_in_works(case: Case) -> None:
    torch.backends.quantized.engine = case.engine
    model = case.row.model()
    with pytest.raises(Exception):  # noqa: B017  # torch raises all kinds
        outputs(through(old, case, model), case)
    found, truth = outputs(through(new, case, model), case), outputs(model, case)
    # quantized somewhere, and near the float model
    assert error(found, truth) <= 0.05 * error(truth, [torch.zeros_like(x) for x in truth])


def test_every_difference_is_one() -> None:
    for item in DIFFERENCES:
        assert any(case.difference is item for case in CASES), item
