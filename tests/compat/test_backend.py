"""Backend configs decide what is quantized, node by node as torch.ao decides."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    default_weight_observer,
    float16_dynamic_qconfig,
    float16_static_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.backend_config import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    DTypeWithConstraints,
)
from torch.ao.quantization.fx.tracer import QuantizationTracer
from torch.ao.quantization.qconfig_mapping import _get_symmetric_qnnpack_qconfig_mapping

import fqx.compat.quantize_fx as new
from fqx.compat.backend import rulings
from fqx.compat.custom import stock_backend
from fqx.compat.mapping import resolve_qconfigs
from fqx.ir.names import NodeId
from fqx.policy.verdicts import Verdict

STOCK = ("native", "x86", "fbgemm", "onednn", "qnnpack", "executorch", "tensorrt")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "x86"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.backends.quantized.engine = before


class Mixed(nn.Module):
    """Modules, functions, fusions, branches, and operators that backends do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.up, self.two = nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.alone, self.soft = nn.BatchNorm2d(4), nn.Softmax(1)
        self.line, self.leaky = nn.Linear(4, 4), nn.LeakyReLU()
        self.layer, self.head, self.tail = nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 8, 8) to (n, 4)."""
        x = self.act(self.norm(self.conv(x)))
        x = self.two(self.up(x))
        x = F.hardtanh(self.alone(x) + x)
        y = torch.cat([x, torch.add(x, 1.0)], 1)[:, :4]
        y = F.adaptive_avg_pool2d(y, 1).flatten(1)
        z = self.leaky(self.line(y))
        z = F.relu(F.linear(z, self.weight))
        z = torch.sigmoid(z) * self.soft(z).tanh()
        z = torch.matmul(z, self.weight) - operator.matmul(z, self.weight)
        return torch.relu(self.tail(self.head(self.layer(z))).sub(z))


class Tables(nn.Module):
    """A table and its bag."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.bag, self.head = nn.Embedding(9, 4), nn.EmbeddingBag(9, 4), nn.Linear(4, 2)

    def forward(self, rows: Tensor) -> Tensor:
        """The head of both sums."""
        made: Tensor = self.head(self.table(rows).sum(1) + self.bag(rows))
        return made


def symmetric() -> QConfigMapping:
    """qint8 activations."""
    made: QConfigMapping = _get_symmetric_qnnpack_qconfig_mapping()
    return made


def everywhere(qconfig: Any) -> QConfigMapping:
    """One QConfig for all."""
    return QConfigMapping().set_global(qconfig)


MAPPINGS: dict[str, Callable[[], QConfigMapping]] = {
    "default": lambda: get_default_qconfig_mapping("x86"),
    "qnnpack": lambda: get_default_qconfig_mapping("qnnpack"),
    "symmetric": symmetric,
    "dynamic": lambda: everywhere(default_dynamic_qconfig),
    "half": lambda: everywhere(float16_dynamic_qconfig),
    "tables": lambda: (
        QConfigMapping()
        .set_object_type(nn.Embedding, float_qparams_weight_only_qconfig)
        .set_object_type(nn.EmbeddingBag, float_qparams_weight_only_qconfig_4bit)
    ),
    "plain": lambda: everywhere(
        QConfig(MinMaxObserver, default_weight_observer)  # type: ignore[no-untyped-call]
    ),
}


@dataclass(frozen=True)
class Peer:
    """The nodes torch.ao leaves after fusing, those it observes, and modules it quantizes."""

    names: set[str]
    observed: set[str]
    weights: set[str]


def peer(model: nn.Module, mapping: QConfigMapping, backend: str, batch: Tensor) -> Peer:
    """What torch.ao does with a model."""
    config = stock(backend)
    held: Any = old.prepare_fx(copy.deepcopy(model), mapping, (batch,), backend_config=config)
    seen = set(held.meta["_observed_graph_module_attrs"].observed_node_names)
    names = {node.name for node in held.graph.nodes}
    made = old.convert_to_reference_fx(held, backend_config=config)
    weights = {
        name
        for name, module in made.named_modules()
        if hasattr(module, "weight_scale") or hasattr(module, "weight_dtype")
    }
    return Peer(names, seen, weights)


def stock(name: str) -> BackendConfig:
    """torch's backend of a name."""
    from torch.ao.quantization import backend_config as held
    from torch.ao.quantization.backend_config import x86

    module: Any = x86 if name == "x86" else held
    made: BackendConfig = getattr(module, f"get_{name}_backend_config")()
    return made


@pytest.mark.parametrize("backend", STOCK)
@pytest.mark.parametrize("kind", list(MAPPINGS))
def test_each_node_is_ruled_as_torch_rules(backend: str, kind: str) -> None:
    torch.manual_seed(0)
    for model, batch in (
        (Mixed().eval(), torch.randn(2, 3, 8, 8)),
        (Tables().eval(), torch.randint(0, 9, (2, 3))),
    ):
        mapping = MAPPINGS[kind]()
        theirs = peer(model, mapping, backend, batch)
        tracer: Any = QuantizationTracer([], [])
        graph = tracer.trace(model)
        traced = torch.fx.GraphModule(model, graph)
        qconfigs = resolve_qconfigs(traced, dict(tracer.node_name_to_scope), mapping).unwrap()
        found = rulings(traced, qconfigs.qconfigs, stock_backend(stock(backend)).unwrap())
        nodes = {node.name: node for node in graph.nodes}
        for name, ruling in found.items():
            if qconfigs.qconfigs[name] is None:
                continue
            taken = ruling.is_matched and not ruling.refusal
            path = str(nodes[name].target)
            if ruling.kind is not None:
                quantized = bool({path, f"{path}.0"} & theirs.weights)
                assert taken == quantized, (name, ruling)
            elif name in theirs.names:
                assert taken == (name in theirs.observed), (name, ruling)


class Chain(nn.Module):
    """Convolutions, a sum, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 8, 8) to (n, 5)."""
        x = self.one(x)
        return self.head(torch.flatten(x + self.two(x), 1))  # type: ignore[no-any-return]


def integers(activation: torch.dtype, **more: Any) -> QConfig:
    """Ranges as seen, so that both sides have the same scales."""
    qconfig: Any = QConfig
    made: QConfig = qconfig(
        MinMaxObserver.with_args(dtype=activation, **more), default_weight_observer
    )
    return made


def rows(activation: DTypeWithConstraints, *patterns: Any) -> BackendConfig:
    """A backend of some operators, all with one type of activations."""
    types = DTypeConfig(activation, activation, torch.qint8, torch.float)
    made = BackendConfig("own")
    for pattern in patterns:
        row = BackendPatternConfig(pattern).add_dtype_config(types)
        if pattern in (nn.Conv2d, nn.Linear):
            reference: Any = torch.ao.nn.quantized.reference
            row.set_root_module(pattern)
            row.set_reference_quantized_module(getattr(reference, pattern.__name__))
        made.set_backend_pattern_config(row)
    return made


def both(mapping: QConfigMapping, config: Any) -> tuple[Any, Any, Tensor]:
    """The drop-in's prepared module, torch's, and the data both have seen."""
    torch.manual_seed(0)
    model, batch = Chain().eval(), torch.randn(16, 3, 8, 8)
    ours = new.prepare_fx(model, mapping, (batch,), backend_config=config)
    theirs: Any = old.prepare_fx(copy.deepcopy(model), mapping, (batch,), backend_config=config)
    ours(batch), theirs(batch)
    return ours, theirs, batch


def test_integers_without_a_kernel_stay_in_the_reference_form() -> None:
    config = rows(DTypeWithConstraints(torch.qint8), nn.Conv2d, nn.Linear, operator.add)
    ours, theirs, batch = both(everywhere(integers(torch.qint8)), config)
    assert {ours.fqx_plan[name].verdict for name in ("one", "two", "head")} == {Verdict.INT8}
    reference = new.convert_to_reference_fx(ours, backend_config=config)
    wanted = old.convert_to_reference_fx(theirs, backend_config=config)
    assert torch.equal(reference(batch), wanted(batch))
    lowered = new.convert_fx(ours, backend_config=config)
    assert torch.equal(lowered(batch), reference(batch))
    assert "has no kernel for int8" in repr(lowered.meta["fqx_lowering"].misses)


def test_what_a_backend_has_no_row_for_stays_float() -> None:
    config = rows(DTypeWithConstraints(torch.quint8), nn.Conv2d, operator.add)
    ours, theirs, batch = both(everywhere(integers(torch.quint8)), config)
    head = ours.fqx_plan["head"]
    assert head.verdict is Verdict.FLOAT and "'own' has no pattern" in head.text
    made = new.convert_fx(ours)
    assert made.get_parameter("head.weight").dtype is torch.float32
    assert made.get_parameter("one.weight").dtype is torch.int8
    wanted = old.convert_fx(theirs, backend_config=config)
    torch.testing.assert_close(made(batch), wanted(batch), rtol=0, atol=2e-2)


def test_a_bound_that_is_not_kept_is_told_and_leaves_the_operator_float() -> None:
    bound = DTypeWithConstraints(torch.quint8, scale_min_lower_bound=2.0**-12)
    config = rows(bound, nn.Conv2d, nn.Linear)
    mapping = everywhere(integers(torch.quint8)).set_object_type(
        nn.Linear, integers(torch.quint8, eps=2.0**-12)
    )
    torch.manual_seed(0)
    model, batch = Chain().eval(), torch.randn(16, 3, 8, 8)
    with pytest.warns(UserWarning, match="eps 1.19e-07, less than 0.000244; it stays float"):
        prepared = new.prepare_fx(model, mapping, (batch,), backend_config=config)
    assert prepared.fqx_plan[NodeId("one")].verdict is Verdict.FLOAT
    assert "less than 0.000244" in prepared.fqx_plan[NodeId("one")].text
    assert prepared.fqx_plan[NodeId("head")].verdict is Verdict.INT8


def test_the_backend_of_convert_is_asked_once_more() -> None:
    full = rows(DTypeWithConstraints(torch.quint8), nn.Conv2d, nn.Linear)
    fewer = rows(DTypeWithConstraints(torch.quint8), nn.Conv2d)
    ours, _, batch = both(everywhere(integers(torch.quint8)), full)
    made = new.convert_fx(ours, backend_config=fewer)
    assert made.get_parameter("head.weight").dtype is torch.float32
    assert made.get_parameter("one.weight").dtype is torch.int8
    assert new.convert_fx(ours).get_parameter("head.weight").dtype is torch.int8
    assert made(batch).shape == (16, 5)


@pytest.mark.parametrize("backend", STOCK)
def test_every_stock_backend_is_taken_by_prepare_and_convert(backend: str) -> None:
    config = stock(backend)
    mapping = symmetric() if backend in ("executorch", "tensorrt") else MAPPINGS["default"]()
    torch.manual_seed(0)
    model, batch = Chain().eval(), torch.randn(16, 3, 8, 8)
    prepared = new.prepare_fx(model, mapping, (batch,), backend_config=config)
    prepared(batch)
    made = new.convert_fx(prepared, backend_config=config)
    assert made.get_parameter("one.weight").dtype is torch.int8
    assert float((made(batch) - model(batch)).detach().abs().max()) <= 0.05


def test_a_row_of_another_name_for_the_same_rows_gives_the_same_program() -> None:
    renamed = stock("native").set_name("own")
    one, _, batch = both(everywhere(integers(torch.quint8)), renamed)
    two, _, _ = both(everywhere(integers(torch.quint8)), None)
    assert torch.equal(new.convert_fx(one)(batch), new.convert_fx(two)(batch))
    assert new.convert_fx(one).code == new.convert_fx(two).code


class Halves(nn.Module):
    """What the backend with half precision takes: a linear, a sum, a known range."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 16) to (n, 16)."""
        y = self.one(x)
        return torch.sigmoid(self.two(y) + y)


def test_static_half_precision_is_taken_where_the_backend_has_it() -> None:
    from torch.ao.quantization.backend_config.native import (
        get_test_only_legacy_native_backend_config,
    )

    torch.manual_seed(0)
    model, batch, mapping = Halves().eval(), torch.randn(8, 16), everywhere(float16_static_qconfig)
    for config, verdict in (
        (None, Verdict.FLOAT),
        (get_test_only_legacy_native_backend_config(), Verdict.HALF),
    ):
        ours = new.prepare_fx(model, mapping, (batch,), backend_config=config)
        theirs: Any = old.prepare_fx(copy.deepcopy(model), mapping, (batch,), backend_config=config)
        names = map(NodeId, ("one", "two", ":add", ":sigmoid"))
        assert {ours.fqx_plan[name].verdict for name in names} == {verdict}
        made, wanted = new.convert_fx(ours), old.convert_fx(theirs, backend_config=config)
        # results below 1 in half precision: torch sums in another order, one step is 2 ** -11
        torch.testing.assert_close(made(batch), wanted(batch), rtol=0, atol=2.0**-11)
