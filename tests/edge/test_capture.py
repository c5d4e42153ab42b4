"""Capture: what the graph of a model looks like, and that it computes the model's bits."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqx.edge.capture import How, capture
from fqx.ir.graph import Graph
from fqx.ir.names import Stage
from fqx.ir.weight import Role
from fqx.judge.evaluate import evaluate
from fqx.ops.spec import check
from fqx.testing.architectures import ARCHITECTURES, Architecture
from fqx.testing.zoo import ZOO, Specimen

BOTH: tuple[How, ...] = ("export", "symbolic")


@pytest.fixture(autouse=True)
def _comparable_arithmetic() -> Iterator[None]:
    """One thread, and no fused transformer kernels, which eager mode alone would take."""
    threads, fast = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    torch.manual_seed(0)
    yield
    torch.backends.mha.set_fastpath_enabled(fast)
    torch.set_num_threads(threads)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv(x)))
        y += x
        out: Tensor = self.relu(y)
        return out


class Net(nn.Module):
    """A block called twice between a convolution and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.block = Block()
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.block(self.stem(x)))
        out: Tensor = self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return out


def graph_of(model: nn.Module, *inputs: Tensor, how: How = "export") -> Graph:
    return capture(model, inputs, how=how).unwrap().graph


def check_bits(model: nn.Module, graph: Graph, *inputs: Tensor) -> None:
    check(graph, Stage.FLOAT).unwrap()
    with torch.no_grad():
        wanted = model(*(item.clone() for item in inputs))
    got = evaluate(graph, tuple(item.clone() for item in inputs), {}).unwrap()
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, check_stride=True)


@pytest.mark.parametrize("how", BOTH)
def test_a_call_of_a_module_is_named_after_it(how: How) -> None:
    graph = graph_of(Net().eval(), torch.randn(2, 3, 8, 8), how=how)
    assert list(graph.order) == [
        "@x",
        "stem",
        "block.conv",
        "block.bn",
        "block.relu",
        "block:add",
        "block.relu@1",
        "block.conv@1",
        "block.bn@1",
        "block.relu@2",
        "block@1:add",
        "block.relu@3",
        ":adaptive_avg_pool2d",
        ":flatten",
        "head",
    ]
    origin = next(node.origin for node in graph if node.id == "block@1:add")
    assert origin.scope == (("", "Net"), ("block", "Block"))
    assert (origin.call, origin.module_type) == (1, "Block")
    assert origin.source is not None
    assert origin.source.split(":")[0].endswith("test_capture.py")


@pytest.mark.parametrize("how", BOTH)
def test_one_graph_serves_every_batch(how: How) -> None:
    model = Net().eval()
    graph = graph_of(model, torch.randn(1, 3, 8, 8), how=how)
    assert graph.signature.dims["batch"] == (1, None)
    for batch in (1, 2, 5):
        check_bits(model, graph, torch.randn(batch, 3, 8, 8))


@pytest.mark.parametrize("specimen", ZOO, ids=lambda specimen: specimen.name)
def test_both_ways_give_one_graph(specimen: Specimen) -> None:
    model, images = specimen.model(), specimen.images(2)
    one, two = (capture(model, (images,), how=how).unwrap() for how in BOTH)
    assert one.graph == two.graph
    assert [node.origin for node in one.graph] == [node.origin for node in two.graph]
    assert one.notes == two.notes == ()
    check_bits(model, one.graph, specimen.images(3))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda found: found.name)
def test_other_peoples_transformers_keep_their_bits(architecture: Architecture) -> None:
    model = architecture.model()
    trail = capture(model, (architecture.inputs(1),)).unwrap()
    assert not [node.op for node in trail.graph if "type" in node.attrs]
    for count in (1, 3):
        check_bits(model, trail.graph, architecture.inputs(count))


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("how", BOTH)
def test_attention_is_the_ops_it_is_made_of(how: How, weights: bool) -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
            out: tuple[Tensor, Tensor | None] = self.attention(x, x, x, need_weights=weights)
            return out

    model = Attend().eval()
    graph = graph_of(model, torch.randn(2, 5, 16), how=how)
    ops = {node.op for node in graph}
    assert ("scaled_dot_product_attention" in ops) is not weights
    check_bits(model, graph, torch.randn(3, 5, 16))


@pytest.mark.parametrize("how", BOTH)
def test_an_encoder_layer_is_the_ops_it_is_made_of(how: How) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    graph = graph_of(model, torch.randn(2, 5, 16), how=how)
    assert "layers.0.self_attn:scaled_dot_product_attention" in graph
    assert "layers.1.linear2" in graph
    check_bits(model, graph, torch.randn(3, 5, 16))


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("bias", [True, False])
def test_recurrent_cells_are_rows_of_the_catalogue(how: How, bias: bool) -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTMCell(4, 3, bias=bias)
            self.gru = nn.GRUCell(3, 3, bias=bias)
            self.tanh = nn.RNNCell(3, 3, bias=bias)
            self.relu = nn.RNNCell(3, 3, bias=bias, nonlinearity="relu")

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden, cell = self.lstm(x)
            return self.relu(self.tanh(self.gru(hidden))), cell

    model = Cells().eval()
    graph = graph_of(model, torch.randn(2, 4), how=how)
    cells = [node.op for node in graph if node.op.endswith("_cell")]
    assert cells == ["lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"]
    check_bits(model, graph, torch.randn(3, 4))


@pytest.mark.parametrize("how", BOTH)
def test_tied_weights_and_shared_modules_keep_their_first_name(how: How) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 6)
            self.inner = nn.Linear(6, 6)
            self.out = nn.Linear(6, 10, bias=False)
            self.out.weight = self.embed.weight
            self.again = self.inner
            self.place: Tensor
            self.register_buffer("place", torch.randn(1, 5, 6), persistent=False)
            self.scale = torch.tensor([2.0])

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x) + self.place[:, : x.shape[1]]
            h = self.again(self.inner(h)) * self.scale + torch.tensor([1.0, 2, 3, 4, 5, 6])
            out: Tensor = self.out(h)
            return out

    model = Tied().eval()
    tokens = torch.randint(0, 10, (1, 5))
    graph = graph_of(model, tokens, how=how)
    assert dict(graph.ties.items()) == {
        "again.bias": "inner.bias",
        "again.weight": "inner.weight",
        "out.weight": "embed.weight",
    }
    assert "inner@1" in graph
    assert not graph.weights["place"].persistent  # type: ignore[index]  # a path is a str
    roles = {path: weight.role for path, weight in graph.weights.items()}
    assert roles["scale"] is roles["const"] is Role.CONSTANT  # type: ignore[index]  # as above
    check_bits(model, graph, tokens)


@pytest.mark.parametrize("how", BOTH)
def test_sizes_are_ints_of_the_graph(how: How) -> None:
    class Sizes(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
            batch, channels = x.shape
            folded = x.view(batch, 2, channels // 2).sum(1).repeat(1, x.size(0))
            return folded, torch.zeros(x.shape[0] * 2, 3), torch.arange(batch), batch

    model = Sizes()
    graph = graph_of(model, torch.randn(2, 4), how=how)
    assert "@x:size.0" in graph
    for batch in (1, 4):
        check_bits(model, graph, torch.randn(batch, 4))


def test_what_the_catalogue_does_not_know_stays_a_foreign_call() -> None:
    class Foreign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumprod(x, 1) + x[x > 0].sum()

    graph = graph_of(Foreign(), torch.randn(2, 3))
    foreign = [node for node in graph if node.op == "aten.cumprod.default"]
    assert [node.id for node in foreign] == [":cumprod"]
    assert "type" in foreign[0].attrs
    check_bits(Foreign(), graph, torch.randn(4, 3))


def test_layouts_are_kept() -> None:
    class Layouts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding="same")
            weight = self.conv.weight.detach().contiguous(memory_format=torch.channels_last)
            self.conv.weight = nn.Parameter(weight)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first: Tensor = self.conv(x.to(memory_format=torch.channels_last))
            return first, self.conv(x).contiguous()

    model = Layouts().eval()
    graph = graph_of(model, torch.randn(2, 3, 6, 6))
    check_bits(model, graph, torch.randn(2, 3, 6, 6))


def test_capture_changes_nothing_of_the_caller() -> None:
    model = Net().eval()
    model.block.extra = torch.ones(3)
    image = torch.randn(1, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    held = {path: dict(vars(module)) for path, module in model.named_modules()}
    versions = [tensor._version for tensor in model.state_dict(keep_vars=True).values()]
    random = torch.get_rng_state()
    for how in BOTH:
        assert len(graph_of(model, image, how=how))
    assert torch.equal(torch.get_rng_state(), random)
    assert versions == [t._version for t in model.state_dict(keep_vars=True).values()]
    for path, module in model.named_modules():
        assert {name: id(value) for name, value in vars(module).items()} == {
            name: id(value) for name, value in held[path].items()
        }
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.is_grad_enabled()


def test_weights_are_copies_unless_shared() -> None:
    model = nn.Linear(2, 2).eval()
    own = capture(model, (torch.ones(2, 2),)).unwrap().graph
    lent = capture(model, (torch.ones(2, 2),), share=True).unwrap().graph
    path = own.weights.keys()[1]
    assert path == "weight"
    kept, shared = own.weights[path].payload, lent.weights[path].payload
    assert isinstance(kept, Tensor)
    assert isinstance(shared, Tensor)
    assert shared.data_ptr() == model.weight.data_ptr() != kept.data_ptr()
    assert own == lent


def test_capture_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for how in BOTH:
            capture(Net().eval(), (torch.randn(1, 3, 8, 8),), how=how).unwrap()
    assert capfd.readouterr() == ("", "")


def test_captures_in_two_threads_wait_for_each_other() -> None:
    found: list[Graph] = []
    model, image = Net().eval(), torch.randn(1, 3, 8, 8)

    def run(how: How) -> None:
        found.append(graph_of(model, image, how=how))

    threads = [threading.Thread(target=run, args=(how,)) for how in BOTH * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({graph.digest for graph in found}) == 1


def test_the_digest_does_not_depend_on_the_process() -> None:
    program = (
        "import torch; from torch import nn; from fqx.edge.capture import capture;"
        "torch.manual_seed(3); m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(6, 2));"
        "digest = capture(m, (torch.ones(2, 3, 8, 8),)).unwrap().graph.digest"
    )
    said = subprocess.run(
        [sys.executable, "-c", f"{program}; print(digest)"],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here: dict[str, str] = {}
    exec(program, here)
    assert said.strip() == here["digest"]


def test_eval_is_asked_for_and_noted() -> None:
    model = Net()
    trail = capture(model, (torch.randn(1, 3, 8, 8),), eval=True).unwrap()
    assert trail.notes == ("captured in eval mode at the caller's request",)
    assert model.training
    assert model.block.bn.training
    check_bits(model.eval(), trail.graph, torch.randn(2, 3, 8, 8))
