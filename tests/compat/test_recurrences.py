"""The drop-in on recurrent layers and cells: torch.ao's own bits, and what torch.ao cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    QConfigMapping,
    default_dynamic_qconfig,
    float16_dynamic_qconfig,
    per_channel_dynamic_qconfig,
)
from torch.ao.quantization import quantize_fx as old

from fqx.compat import quantize_fx as new
from fqx.edge.packing import hush

ENGINES = [
    name
    for name in ("x86", "fbgemm", "onednn", "qnnpack")
    if name in torch.backends.quantized.supported_engines
]
# torch.ao warns of its own deprecation, and of what its observers do
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    yield request.param
    torch.backends.quantized.engine = before


class Layer(nn.Module):
    """A recurrent layer, from zeros or from given states; batches of three, sequences of four."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], given: bool, **options: Any) -> None:
        super().__init__()
        self.cells, self.pairs, self.given = kind(5, 6, **options), kind is nn.LSTM, given
        sides = options["num_layers"] * (2 if options["bidirectional"] else 1)
        self.register_buffer("start", torch.linspace(-0.5, 0.5, sides * 18).view(sides, 3, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hx: Any = (self.start, self.start) if self.pairs else self.start
        out, last = self.cells(x, hx) if self.given else self.cells(x)
        return (out, last[0], last[1]) if self.pairs else (out, last)


class Loop(nn.Module):
    """One cell called once a step."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell, self.pairs = cell, isinstance(cell, nn.LSTMCell)

    def forward(self, x: Tensor) -> Tensor:
        held: Any = self.cell(x[0])
        for step in range(1, 4):
            held = self.cell(x[step], (held[0], held[1]) if self.pairs else held)
        out: Tensor = held[0] + held[1] if self.pairs else held
        return out


def both(model: nn.Module, x: Tensor, qconfig: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What fqx's and torch's functions make of the model, on x."""
    hush()
    mapping = QConfigMapping().set_global(qconfig)
    made: list[list[Tensor]] = []
    for library in (new, old):
        with torch.no_grad():
            prepared = library.prepare_fx(model, mapping, (x,))
            out = library.convert_fx(prepared)(x)
        made.append([out] if isinstance(out, Tensor) else list(out))
    return made[0], made[1]


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    ("layers", "sides", "first", "given"),
    [(1, False, True, False), (2, True, False, True), (3, True, True, True)],
)
def test_a_dynamic_layer_gives_the_bits_of_torch(
    engine: str, kind: type[nn.LSTM | nn.GRU], layers: int, sides: bool, first: bool, given: bool
) -> None:
    torch.manual_seed(layers)
    options = {"num_layers": layers, "bidirectional": sides, "batch_first": first}
    model = Layer(kind, given, **options).eval()
    x = torch.randn(3, 4, 5) if first else torch.randn(4, 3, 5)
    ours, theirs = both(model, x, default_dynamic_qconfig)
    assert [torch.equal(*pair) for pair in zip(ours, theirs, strict=True)] == [True] * len(theirs)
    with torch.no_grad():
        assert not torch.equal(ours[0], model(x)[0])


CELLS = (
    nn.LSTMCell(5, 6),
    nn.GRUCell(5, 6),
    nn.RNNCell(5, 6),
    nn.RNNCell(5, 6, nonlinearity="relu"),
)


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_dynamic_cell_gives_the_bits_of_torch(engine: str, cell: nn.RNNCellBase) -> None:
    torch.manual_seed(3)
    ours, theirs = both(Loop(cell).eval(), torch.randn(4, 3, 5), default_dynamic_qconfig)
    assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("engine", [e for e in ENGINES if e in ("x86", "fbgemm")], indirect=True)
def test_half_precision_and_scales_of_rows_give_the_bits_of_torch(engine: str) -> None:
    torch.manual_seed(4)
    x = torch.randn(4, 3, 5)
    options = {"num_layers": 2, "bidirectional": True, "batch_first": False}
    for qconfig in (float16_dynamic_qconfig, per_channel_dynamic_qconfig):
        models = (Layer(nn.LSTM, True, **options), Layer(nn.GRU, False, **options))
        for model in (*models, *map(Loop, CELLS)):
            ours, theirs = both(model.eval(), x, qconfig)
            assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_a_layer_without_biases_is_one_with_biases_of_zero() -> None:
    """torch.ao raises KeyError('bias_ih_l0') for the first."""
    torch.manual_seed(5)
    options = {"num_layers": 2, "bidirectional": False, "batch_first": True}
    bare, zeroed = Layer(nn.LSTM, False, bias=False, **options), Layer(nn.LSTM, False, **options)
    missing, unknown = zeroed.load_state_dict(bare.state_dict(), strict=False)
    assert missing
    assert not unknown
    for name in missing:
        nn.init.zeros_(zeroed.get_parameter(name))
    x, mapping = torch.randn(3, 4, 5), QConfigMapping().set_global(default_dynamic_qconfig)
    with pytest.raises(KeyError, match="bias_ih_l0"):
        old.convert_fx(old.prepare_fx(bare.eval(), mapping, (x,)))
    ours = new.convert_fx(new.prepare_fx(bare.eval(), mapping, (x,)))(x)
    _, theirs = both(zeroed.eval(), x, default_dynamic_qconfig)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
