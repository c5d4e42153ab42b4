"""Dynamically quantized recurrences: torch's own bits, and packs that follow their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fqx.edge.kernels import bind
from fqx.edge.packing import hush
from fqx.ir.arg import Arg
from fqx.ir.names import OpName
from fqx.kit.frozen import FrozenMap

ENGINES = [
    name
    for name in ("x86", "onednn", "qnnpack")
    if name in torch.backends.quantized.supported_engines
]
Parts = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def bound(op: str, **attrs: Arg) -> Any:
    return bind(OpName(op), FrozenMap(attrs))


@contextmanager
def engine_of(name: str) -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def dynamic(module: nn.Module, kind: str = "default_dynamic_qconfig") -> Any:
    """torch's dynamically quantized module, under one of torch's QConfigs."""
    from torch.ao.nn.quantized import dynamic as nnqd
    from torch.ao.quantization import qconfig

    hush()
    module.qconfig = getattr(qconfig, kind)
    peer: Any = getattr(nnqd, type(module).__name__)
    return peer.from_float(module)


def parts(weights: list[Tensor]) -> Parts:
    """Plain integers and scales of torch's quantized weights."""
    scales = (
        w.q_per_channel_scales().float()
        if w.qscheme() is torch.per_channel_affine
        else torch.tensor([w.q_scale()])
        for w in weights
    )
    return tuple(w.int_repr() for w in weights), tuple(scales)


def layer_parts(peer: Any) -> Parts:
    """In the order of the layer: for each direction the weight of the input, then of the state."""
    held = peer.get_weight()
    sides = ("", "_reverse") if peer.bidirectional else ("",)
    return parts([
        held[f"weight_{part}_l{layer}{side}"]
        for layer in range(peer.num_layers) for side in sides for part in ("ih", "hh")
    ])  # fmt: skip


def biases_of(module: nn.RNNBase) -> tuple[Tensor, ...]:
    sides = ("", "_reverse") if module.bidirectional else ("",)
    names = [
        f"bias_{part}_l{layer}{side}"
        for layer in range(module.num_layers) for side in sides for part in ("ih", "hh")
    ]  # fmt: skip
    return tuple(getattr(module, name).detach() for name in names)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(("layers", "both", "first"), [(1, False, True), (2, True, False)])
def test_a_layer_gives_torchs_bits(
    kind: type[nn.LSTM | nn.GRU], engine: str, layers: int, both: bool, first: bool
) -> None:
    torch.manual_seed(0)
    module = kind(5, 6, layers, bidirectional=both, batch_first=first).eval()
    x = torch.randn(3, 4, 5) if first else torch.randn(4, 3, 5)
    states = tuple(torch.randn(layers * (2 if both else 1), 3, 6) for _ in range(2))
    hx = states if kind is nn.LSTM else states[0]
    with engine_of(engine):
        peer = dynamic(module)
        out, last = peer(x, hx)
    weights, scales = layer_parts(peer)
    run = bound(
        f"native.{kind.__name__.lower()}_dynamic", num_layers=layers, bidirectional=both,
        batch_first=first, reduce_range=True, engine=engine,
    )  # fmt: skip
    wanted = (out, *(last if kind is nn.LSTM else (last,)))
    for _ in range(2):
        got = run(x, hx, weights, scales, biases_of(module))
        assert all(torch.equal(one, two) for one, two in zip(got, wanted, strict=True))


def cell_parts(peer: Any) -> Parts:
    held = peer.get_weight()
    return parts([held["weight_ih"], held["weight_hh"]])


CELLS: dict[str, Callable[[], nn.RNNCellBase]] = {
    "lstm_cell": lambda: nn.LSTMCell(5, 6),
    "gru_cell": lambda: nn.GRUCell(5, 6),
    "rnn_tanh_cell": lambda: nn.RNNCell(5, 6),
    "rnn_relu_cell": lambda: nn.RNNCell(5, 6, nonlinearity="relu"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("op", CELLS)
def test_a_cell_gives_torchs_bits(op: str, engine: str) -> None:
    torch.manual_seed(0)
    module, x = CELLS[op]().eval(), torch.randn(3, 5)
    hx = (torch.randn(3, 6), torch.randn(3, 6)) if op == "lstm_cell" else torch.randn(3, 6)
    with engine_of(engine):
        peer = dynamic(module)
        wanted = peer(x, hx)
    weights, scales = cell_parts(peer)
    assert isinstance(module.bias_ih, Tensor)
    assert isinstance(module.bias_hh, Tensor)
    biases = (module.bias_ih.detach(), module.bias_hh.detach())
    got = bound(f"native.{op}_dynamic", engine=engine)(x, hx, weights, scales, biases)
    for one, two in zip(
        got if op == "lstm_cell" else [got], wanted if op == "lstm_cell" else [wanted], strict=True
    ):
        assert torch.equal(one, two)


def test_a_scale_for_each_row_gives_torchs_bits() -> None:
    torch.manual_seed(0)
    module, x, hx = nn.GRU(5, 6).eval(), torch.randn(4, 3, 5), torch.zeros(1, 3, 6)
    with engine_of("x86"):
        peer = dynamic(module, "per_channel_dynamic_qconfig")
        out, last = peer(x, hx)
    weights, scales = layer_parts(peer)
    assert scales[0].numel() == 18
    run = bound("native.gru_dynamic", num_layers=1, bidirectional=False, batch_first=False,
                reduce_range=True, engine="x86")  # fmt: skip
    got = run(x, hx, weights, scales, biases_of(module))
    assert torch.equal(got[0], out)
    assert torch.equal(got[1], last)


def test_packs_follow_every_weight_and_bias() -> None:
    torch.manual_seed(0)
    x, hx = torch.randn(2, 3), torch.randn(2, 4)
    weights = tuple(torch.randint(-127, 128, (12, n), dtype=torch.int8) for n in (3, 4))
    scales = (torch.tensor([0.01]), torch.tensor([0.02]))
    biases = [torch.randn(12), torch.randn(12)]
    run = bound("native.gru_cell_dynamic", engine="x86")

    def fresh() -> Tensor:
        made = bound("native.gru_cell_dynamic", engine="x86")
        out: Tensor = made(x, hx, weights, scales, tuple(biases))
        return out

    first = run(x, hx, weights, scales, tuple(biases))
    assert torch.equal(first, fresh())
    weights[1].neg_()
    second = run(x, hx, weights, scales, tuple(biases))
    assert not torch.equal(first, second)
    assert torch.equal(second, fresh())
    biases[0] = biases[0] + 1
    third = run(x, hx, weights, scales, tuple(biases))
    assert not torch.equal(second, third)
    assert torch.equal(third, fresh())


def test_no_bias_is_a_bias_of_zero() -> None:
    torch.manual_seed(0)
    x, hx = torch.randn(2, 3), torch.randn(2, 4)
    weights = tuple(torch.randint(-127, 128, (4, n), dtype=torch.int8) for n in (3, 4))
    scales, zeros = (torch.tensor([0.01]), torch.tensor([0.02])), (torch.zeros(4), torch.zeros(4))
    run = bound("native.rnn_tanh_cell_dynamic", engine="x86")
    assert torch.equal(
        run(x, hx, weights, scales, (None, None)), run(x, hx, weights, scales, zeros)
    )


def halves(weights: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(weight.detach().half() for weight in weights)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_layer_of_half_precision_gives_torchs_bits(kind: type[nn.LSTM | nn.GRU]) -> None:
    torch.manual_seed(0)
    module = kind(5, 6, 2, bidirectional=True, batch_first=True).eval()
    x, states = torch.randn(3, 4, 5), tuple(torch.randn(4, 3, 6) for _ in range(2))
    hx = states if kind is nn.LSTM else states[0]
    with engine_of("x86"):
        out, last = dynamic(module, "float16_dynamic_qconfig")(x, hx)
    held = dict(module.named_parameters())
    names = [f"weight_{part}_l{layer}{side}"
             for layer in (0, 1) for side in ("", "_reverse") for part in ("ih", "hh")]  # fmt: skip
    run = bound(f"native.{kind.__name__.lower()}_float16", num_layers=2, bidirectional=True,
                batch_first=True)  # fmt: skip
    weights = halves([held[name] for name in names])
    wanted = (out, *(last if kind is nn.LSTM else (last,)))
    for got, one in zip(run(x, hx, weights, biases_of(module)), wanted, strict=True):
        assert torch.equal(got, one)
        assert not got.requires_grad


@pytest.mark.parametrize("op", CELLS)
def test_a_cell_of_half_precision_gives_torchs_bits(op: str) -> None:
    torch.manual_seed(0)
    module, x = CELLS[op]().eval(), torch.randn(3, 5)
    hx = (torch.randn(3, 6), torch.randn(3, 6)) if op == "lstm_cell" else torch.randn(3, 6)
    with engine_of("x86"):
        wanted = dynamic(module, "float16_dynamic_qconfig")(x, hx)
    held = dict(module.named_parameters())
    weights = halves([held["weight_ih"], held["weight_hh"]])
    biases = (held["bias_ih"].detach(), held["bias_hh"].detach())
    got = bound(f"native.{op}_float16")(x, hx, weights, biases)
    for one, two in zip(*((got, wanted) if op == "lstm_cell" else ([got], [wanted])), strict=True):
        assert torch.equal(one, two)
