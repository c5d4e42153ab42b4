"""Examples of the decompositions: every layout of the layers, what stays whole, what int8 takes."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import fqx
from fqx.ir.arg import Arg, DType
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.judge.evaluate import evaluate
from fqx.match.explain import explain
from fqx.num.scheme import int8_channel, uint8_affine
from fqx.ops.types import types
from fqx.passes.decompose import decompose_attention, decompose_recurrent
from fqx.passes.decompose_attention import ATTENTIONS
from fqx.passes.fuse import fuse
from fqx.passes.pipeline import Pass
from fqx.policy.selectors import everything
from fqx.testing.draft import Draft
from fqx.testing.laws import IDEMPOTENT, PASS_LAWS, ROUNDS_WELL, tensors_in, violations

RECURRENT = frozenset(
    f"{name}{form}" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for form in ("", "_cell")
)


class Whole(nn.Module):
    """A recurrent layer on inputs that bring its initial state, everything it gives as output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *states: Tensor) -> object:
        return self.layer(x, (states if len(states) > 1 else states[0]) if states else None)


def captured(
    model: nn.Module, *inputs: Tensor, dynamic: Mapping[str, Mapping[int, str]] | None = None
) -> Graph:
    return fqx.capture(model.eval(), inputs, dynamic=dynamic).unwrap().graph


def written_out(rewrite: Pass, graph: Graph, *inputs: Tensor) -> Graph:
    """What the pass gives of a graph; all it does obeys the laws of passes."""
    broken = violations(rewrite, graph, (*PASS_LAWS, IDEMPOTENT), inputs)
    assert not broken, "\n\n".join(map(str, broken))
    return rewrite.run(graph).unwrap().graph


def assert_rounds_well(model: nn.Module, graph: Graph, *inputs: Tensor) -> None:
    """The bound of the law `rounds_well`: both programs round each sum and product once, in another
    order, so the error against float64 is at most eight times that of the module, where one unit in
    the last place of the largest value is granted for a module that happens to be exact.
    """
    double = copy.deepcopy(model).double()
    exact = tensors_in(double(*(x.double() for x in inputs)))
    before, after = tensors_in(model(*inputs)), tensors_in(evaluate(graph, inputs).unwrap())
    assert len(exact) == len(after)
    for truth, one, two in zip(exact, before, after, strict=True):
        assert one.shape == two.shape
        unit = truth.abs().max().item() * 2.0**-23
        allowed = 8 * ((one.double() - truth).abs().max().item() + unit)
        assert (two.double() - truth).abs().max().item() <= allowed


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("layers", "both", "bias"),
    [(1, False, True), (1, True, False), (3, False, True), (2, True, False)],
)
def test_a_layer_is_its_steps(
    kind: type[nn.LSTM | nn.GRU | nn.RNN],
    given: bool,
    first: bool,
    layers: int,
    both: bool,
    bias: bool,
) -> None:
    torch.manual_seed(0)
    layer = kind(3, 4, layers, bias=bias, batch_first=first, bidirectional=both)
    model = Whole(layer).eval()
    x = torch.randn(2, 5, 3) if first else torch.randn(5, 2, 3)
    states = [torch.randn(layers * (2 if both else 1), 2, 4) for _ in range(1 + (kind is nn.LSTM))]
    inputs = (x, *(states if given else ()))
    fixed: dict[str, dict[int, str]] = {
        "x": {},
        **{f"states.{at}": {} for at in range(len(inputs) - 1)},
    }
    graph = written_out(decompose_recurrent(), captured(model, *inputs, dynamic=fixed), *inputs)
    assert RECURRENT.isdisjoint(node.op for node in graph)
    assert_rounds_well(model, graph, *inputs)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("both", [True, False])
def test_a_projected_lstm_is_its_steps(both: bool) -> None:
    torch.manual_seed(0)
    model = Whole(nn.LSTM(3, 6, 2, proj_size=2, bidirectional=both, batch_first=True)).eval()
    x = torch.randn(2, 4, 3)
    graph = written_out(decompose_recurrent(), captured(model, x), x)
    assert RECURRENT.isdisjoint(node.op for node in graph)
    assert_rounds_well(model, graph, torch.randn(3, 4, 3))


def test_a_relu_recurrence_keeps_its_relu() -> None:
    torch.manual_seed(0)
    model = Whole(nn.RNN(3, 4, nonlinearity="relu", batch_first=True)).eval()
    x = torch.randn(2, 4, 3)
    graph = written_out(decompose_recurrent(), captured(model, x), x)
    assert sum(node.op == "relu" for node in graph) == 4
    assert_rounds_well(model, graph, x)


def test_a_free_length_leaves_the_layer_whole_with_no_edit() -> None:
    draft = Draft()
    x, state = draft.input("x", 2, "length", 4), draft.input("h", 1, 2, 4)
    weights = (draft.weight("w_ih", torch.randn(12, 4)), draft.weight("w_hh", torch.randn(12, 4)))
    layer = draft.call("gru", "g", x=x, hx=state, weights=weights, has_biases=False,
                       batch_first=True)  # fmt: skip
    graph = draft.graph(draft.call("getitem", "o", x=layer, index=0))
    trail = decompose_recurrent().run(graph).unwrap()
    assert trail.graph is graph
    assert not trail.steps[-1].diff.edits
    fault = decompose_recurrent(everything()).run(graph).failure().fault
    assert fault.kind is FaultKind.BAD_ARGUMENT
    assert fault.at == "g"
    assert "the length of its sequences is not known beforehand" in fault.reason


def test_only_what_is_read_is_written_out() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            _, (hidden, _) = self.rnn(x)
            last: Tensor = hidden[-1]
            return last

    x = torch.randn(2, 3, 3)
    graph = written_out(decompose_recurrent(), captured(Last(), x), x)
    assert NodeId("rnn:lstm:layer0.step2.forget") in graph
    assert NodeId("rnn:lstm:layer0.outputs") not in graph
    assert NodeId("rnn:lstm:last_hidden") in graph
    assert NodeId("rnn:lstm:last_cell") not in graph


def test_values_are_dropped_between_layers_where_the_layer_trained() -> None:
    draft = Draft()
    x, state = draft.input("x", 3, 2, 4), draft.input("h", 2, 2, 4)
    weights = tuple(draft.weight(f"w{index}", torch.randn(12, 4)) for index in range(4))
    layer = draft.call("gru", "g", x=x, hx=state, weights=weights, has_biases=False, num_layers=2,
                       dropout=0.25, training=True)  # fmt: skip
    graph = draft.graph(draft.call("getitem", "o", x=layer, index=0))
    after = decompose_recurrent().run(graph).unwrap().graph
    drops = [node for node in after if node.op == "dropout"]
    assert [(node.id, node.attrs["p"]) for node in drops] == [("g:layer0.dropout", 0.25)]


@pytest.mark.parametrize("bias", [True, False])
def test_cells_are_their_gates(bias: bool) -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTMCell(4, 3, bias=bias)
            self.gru = nn.GRUCell(3, 3, bias=bias)
            self.tanh = nn.RNNCell(3, 3, bias=bias)
            self.relu = nn.RNNCell(3, 3, bias=bias, nonlinearity="relu")

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden, cell = self.lstm(x)
            return self.relu(self.tanh(self.gru(hidden, hidden))), cell

    torch.manual_seed(0)
    model, x = Cells().eval(), torch.randn(3, 4)
    graph = written_out(decompose_recurrent(), captured(model, x), x)
    assert RECURRENT.isdisjoint(node.op for node in graph)
    assert NodeId("lstm:lstm_cell:forget") in graph
    assert_rounds_well(model, graph, x)


def test_a_written_out_lstm_runs_on_integers() -> None:
    torch.manual_seed(0)
    model, x = Whole(nn.LSTM(8, 16, batch_first=True)).eval(), torch.randn(4, 6, 8)
    graph = decompose_recurrent().run(captured(model, x)).unwrap().graph
    target = fqx.native("x86").unwrap()
    passes = (
        fqx.observe(fqx.int8_static(), target)
        | fqx.calibrate([(x,)], progress=False)
        | fqx.convert(target)
        | fqx.fold()
        | fqx.lower(target)
    )
    lowered = passes.run(graph).unwrap().graph
    # one for the inputs of the whole sequence, one for the state of each of six steps
    assert sum(node.op == "native.linear" for node in lowered) == 7
    assert "linear" not in {node.op for node in lowered}


# -- attention --


def attention(rank: int, mask: str = "", length: int | str = 5, **given: Arg) -> Graph:
    draft = Draft()
    lead = ("batch", 2, 3)[: rank - 2]
    q = draft.input("q", *lead, length, 4)
    k, v = (draft.input(name, *lead, 6, width) for name, width in (("k", 4), ("v", 7)))
    dtype = DType.BOOL if mask == "bool" else DType.FLOAT32
    term = draft.input("mask", length, 6, dtype=dtype) if mask else None
    out = draft.call("scaled_dot_product_attention", "a", q=q, k=k, v=v, mask=term, **given)
    return draft.graph(out)


def values(rank: int, mask: str = "", length: int = 5) -> tuple[Tensor, ...]:
    torch.manual_seed(rank)
    lead = (3, 2, 3)[: rank - 2]
    q, k, v = (torch.randn(*lead, *size) for size in ((length, 4), (6, 4), (6, 7)))
    closed = torch.rand(length, 6) < 0.4
    closed[1] = True
    closed[2] = False
    if mask == "bool":
        return q, k, v, ~closed
    if mask == "float":
        return q, k, v, torch.randn(length, 6).masked_fill(closed, float("-inf"))
    return q, k, v


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("mask", ["", "bool", "float", "causal"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_two_products(rank: int, mask: str, scale: float | None) -> None:
    causal = mask == "causal"
    kind = "" if causal else mask
    graph, inputs = attention(rank, kind, is_causal=causal, scale=scale), values(rank, kind)
    broken = violations(decompose_attention(), graph, (*PASS_LAWS, IDEMPOTENT, ROUNDS_WELL), inputs)
    assert not broken, "\n\n".join(map(str, broken))
    after = decompose_attention().run(graph).unwrap().graph
    assert sum(node.op == "matmul" for node in after) == 2
    if kind:
        closed = evaluate(after, inputs).unwrap()
        assert isinstance(closed, Tensor)
        assert not closed[..., 1, :].any(), "a query closed to every key gives zero"
        assert closed[..., 2, :].any()


def test_a_causal_mask_is_as_long_as_the_queries_are() -> None:
    graph = attention(4, length="queries", is_causal=True)
    after = decompose_attention().run(graph).unwrap().graph
    for length in (3, 6):
        inputs = values(4, length=length)
        broken = violations(decompose_attention(), graph, (ROUNDS_WELL,), inputs)
        assert not broken, "\n\n".join(map(str, broken))
    assert "a:q.length" in after


def test_an_attention_that_drops_weights_stays_whole() -> None:
    graph = attention(4, dropout_p=0.1)
    assert decompose_attention().run(graph).unwrap().graph is graph
    rule = next(rule for rule in ATTENTIONS if rule.name == "decompose.attention")
    assert "drops weights" in str(explain(rule, graph, types(graph)))


@pytest.mark.parametrize("alpha", [1, 2])
def test_a_product_with_something_added_is_two_ops_unless_it_scales(alpha: int) -> None:
    torch.manual_seed(0)
    draft = Draft()
    mask, x, y = draft.input("m", 2, 3, 5), draft.input("x", 2, 3, 4), draft.input("y", 2, 4, 5)
    graph = draft.graph(draft.call("baddbmm", "b", input=mask, x=x, y=y, alpha=alpha))
    inputs = (torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randn(2, 4, 5))
    after = written_out(decompose_attention(), graph, *inputs)
    assert {node.op for node in after} - {"input"} == (
        {"bmm", "add"} if alpha == 1 else {"baddbmm"}
    )
    assert not violations(decompose_attention(), graph, (ROUNDS_WELL,), inputs)


def shared(heads: tuple[int, int, int]) -> Graph:
    """An attention in which queries share the heads of keys and values."""
    draft = Draft()
    parts = {
        name: draft.input(name, "batch", count, *size)
        for name, count, size in zip("qkv", heads, ((5, 4), (6, 4), (6, 7)), strict=True)
    }
    return draft.graph(draft.call("scaled_dot_product_attention", "a", **parts, enable_gqa=True))


@pytest.mark.parametrize("heads", [(6, 2, 3), (4, 4, 1), (2, 2, 2)])
def test_queries_share_heads(heads: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    sizes = ((5, 4), (6, 4), (6, 7))
    inputs = tuple(torch.randn(2, n, *size) for n, size in zip(heads, sizes, strict=True))
    graph = shared(heads)
    broken = violations(decompose_attention(), graph, (*PASS_LAWS, IDEMPOTENT, ROUNDS_WELL), inputs)
    assert not broken, "\n\n".join(map(str, broken))
    after = decompose_attention().run(graph).unwrap().graph
    assert "scaled_dot_product_attention" not in {node.op for node in after}


def test_heads_that_do_not_divide_stay_whole() -> None:
    graph = shared((6, 4, 2))
    assert decompose_attention().run(graph).unwrap().graph is graph


def test_an_encoder_layer_without_its_attention_op() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    x = torch.randn(4, 5, 16)
    graph = (fuse() | decompose_attention()).run(captured(model, x)).unwrap().graph
    assert "scaled_dot_product_attention" not in {node.op for node in graph}
    assert_rounds_well(model, graph, x)


def test_the_products_of_attention_run_on_integers_where_a_recipe_asks() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    x, target = torch.randn(4, 5, 16), fqx.native("x86").unwrap()
    alone = fqx.Scheme(uint8_affine(), int8_channel(), lone=True)
    passes = (
        fuse()
        | decompose_attention()
        | fqx.observe(fqx.int8_static() | fqx.use(fqx.op("matmul"), alone), target)
        | fqx.calibrate([(x,)], progress=False)
        | fqx.convert(target)
        | fqx.fold()
        | fqx.lower(target)
    )
    lowered = passes.run(captured(model, x)).unwrap().graph
    assert sum(node.op == "native.matmul" for node in lowered) == 2
    assert "matmul" not in {node.op for node in lowered}
