"""Every kind of quantization a recipe can ask for, alone and mixed in one model."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fqx
from fqx.api import Quantized
from fqx.ir.fault import FaultKind
from fqx.ir.names import NodeId
from fqx.ir.names import Path as Path_
from fqx.num import nibbles
from fqx.num.qparams import quantize_weight
from fqx.num.scheme import int8_channel, uint8_dynamic, uint8_rows
from fqx.policy.recipe import Recipe, Scheme
from fqx.policy.verdicts import Reason, Verdict
from fqx.testing import minilm

TARGETS = ("onednn", "native", "native/onednn", "native/qnnpack", "reference")


class Text(nn.Module):
    """Tables, linears with a relu between, and a bag that leaves padding out."""

    def __init__(self, mode: str = "mean") -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 16)
        self.bag = nn.EmbeddingBag(50, 16, mode=mode, padding_idx=3)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down(torch.relu(self.up(self.table(x))))
        bag: Tensor = self.bag(x)
        return hidden.sum(1) + bag


class Convolutions(nn.Module):
    """One convolution of each dimension, all dynamic."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        self.first = kinds[dims](4, 8, 3, padding=1)
        self.second = kinds[dims](8, 8, 3, stride=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


def tokens() -> Tensor:
    return torch.randint(0, 50, (8, 7), generator=torch.Generator().manual_seed(1))


def made(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def run(done: Quantized, x: Tensor) -> Tensor:
    out: Tensor = done.materialize().unwrap()(x)
    return out


def decibels(wanted: Tensor, got: Tensor) -> float:
    error = float((wanted - got).norm())
    return 20 * math.log10(float(wanted.norm()) / error) if error else math.inf


def reasons(done: Quantized) -> dict[NodeId, Reason]:
    assert done.plan is not None
    return {name: done.plan[name].reason for name in done.plan.order}


# 6.02 dB a bit, minus the part of the range that values do not fill: 8 bits of weight and of input
# keep about 40 dB of one layer, 4 bits of a table about 20; half precision keeps 11 bits.
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("recipe", "least"),
    [
        (fqx.int8_dynamic(), 30.0),
        (fqx.weight_only(), 35.0),
        (fqx.weight_only(4), 18.0),
        (fqx.float16(), 60.0),
        (fqx.float16_static(), 55.0),
    ],
    ids=["dynamic", "weights", "four bits", "half", "halves"],
)
def test_a_kind_needs_no_data_and_stays_near_float(
    target: str, recipe: Recipe, least: float
) -> None:
    model, x = made(Text()), tokens()
    done = fqx.quantize(model, (x,), recipe=recipe, target=target).unwrap()
    with torch.no_grad():
        assert decibels(model(x), run(done, x)) > least


@pytest.mark.parametrize("target", TARGETS[:-1])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_dynamic_convolutions_run_integer_kernels(target: str, dims: int) -> None:
    model = made(Convolutions(dims))
    x = torch.randn(2, 4, *(9,) * dims, generator=torch.Generator().manual_seed(2))
    done = fqx.quantize(model, (x,), recipe=fqx.int8_dynamic(), target=target)
    ops = [str(node.op) for node in done.unwrap().graph]
    # torch's own dynamic convolutions saturate, so native takes onednn's, and qnnpack has none
    expected = 0 if target == "native/qnnpack" else 2
    assert ops.count(f"onednn.conv{dims}d_dynamic") == expected
    with torch.no_grad():
        # 7 bits of input on narrow targets, two layers
        assert decibels(model(x), run(done.unwrap(), x)) > 28.0


def test_a_static_convolution_of_three_dimensions_runs_with_a_relu_behind_it() -> None:
    """torch refuses the relu inside that kernel, so it bounds the result."""
    model = made(Convolutions(3))
    x = torch.randn(2, 4, 9, 9, 9, generator=torch.Generator().manual_seed(4))
    done = fqx.quantize(model, (x,), [(x,)], target="onednn", objective="balanced").unwrap()
    assert [str(node.op).endswith(".conv3d") for node in done.graph].count(True) == 2
    with torch.no_grad():
        assert decibels(model(x), run(done, x)) > 28.0


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("bits", [8, 4])
def test_bags_hold_every_mode_and_their_padding(mode: str, bits: int) -> None:
    """torch.ao's quantized bag always sums and forgets its padding."""
    model, x = made(Text(mode)), tokens()
    x[0, :3] = 3
    recipe = fqx.weight_only(bits) | fqx.leave_float(fqx.op("linear"))
    done = fqx.quantize(model, (x,), recipe=recipe, target="onednn").unwrap()
    assert "plain.embedding_bag_weight_only" in [node.op for node in done.graph]
    with torch.no_grad():
        assert decibels(model(x), run(done, x)) > (18.0 if bits == 4 else 38.0)


def test_tables_have_the_integers_of_torch() -> None:
    """Scales, zero points and integers are those of torch's float-qparams observer."""
    from torch.ao.quantization import PerChannelMinMaxObserver

    table = next(made(nn.Embedding(40, 24)).parameters()).detach()
    observer = PerChannelMinMaxObserver(
        dtype=torch.quint8, qscheme=torch.per_channel_affine_float_qparams, ch_axis=0
    )
    observer(table)
    scale, zero = observer.calculate_qparams()
    wanted = torch.quantize_per_channel(table, scale, zero, 0, torch.quint8)
    got = quantize_weight(table, uint8_rows()).unwrap()
    assert got.zero_point is not None
    assert torch.equal(got.scale, scale)
    assert torch.equal(got.zero_point, zero)
    assert torch.equal(got.tensor, wanted.int_repr())


@pytest.mark.parametrize("width", [16, 15])
def test_tables_of_four_bits_hold_two_values_in_a_byte(width: int, tmp_path: Path) -> None:
    """In the graph, the module and the file; and the values are those of one to a byte."""
    model = made(nn.Sequential(nn.Embedding(400, width)))
    x = tokens()
    held: dict[int, Quantized] = {
        bits: fqx.quantize(model, (x,), recipe=fqx.weight_only(bits), target="onednn").unwrap()
        for bits in (8, 4)
    }
    sizes = {bits: done.graph.weights[Path_("0.weight")].shape for bits, done in held.items()}
    assert sizes == {8: (400, width), 4: (400, (width + 1) // 2)}
    module = held[4].materialize().unwrap()
    assert module.state_dict()["0.weight"].numel() == 400 * ((width + 1) // 2)
    files = {bits: tmp_path / f"{bits}.fqx" for bits in held}
    for bits, done in held.items():
        done.save(files[bits]).unwrap()
    saved = files[8].stat().st_size - files[4].stat().st_size
    # the rest of the files is the same but for a few names and numbers
    assert abs(saved - 400 * (width // 2)) < 500
    again = fqx.load(files[4]).unwrap()
    with torch.no_grad():
        assert torch.equal(run(again, x), module(x))
        table = next(model.parameters()).detach()
        plain = quantize_weight(table, uint8_rows(4)).unwrap()
        assert plain.zero_point is not None
        wanted = (plain.tensor.float() - plain.zero_point[:, None]) * plain.scale[:, None]
        # torch adds q * s and -z * s: three roundings of values below 16 steps, 2^-24 of them each
        most = 3 * 16 * float(plain.scale.max()) * 2.0**-24
        assert float((module(x) - wanted[x]).abs().max()) <= most


def test_tables_of_four_bits_are_packed_as_torchs() -> None:
    table = next(made(nn.Embedding(40, 24)).parameters()).detach()
    held = quantize_weight(table, uint8_rows(4)).unwrap()
    assert held.zero_point is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.quantize_per_channel(table, held.scale, held.zero_point, 0, torch.quint4x2)
    assert torch.equal(nibbles.pack(held.tensor).reshape(-1), theirs.int_repr())
    assert torch.equal(nibbles.unpack(nibbles.pack(held.tensor), 24), held.tensor)


def test_kinds_mix_in_one_model() -> None:
    model, x = made(Text()), tokens()
    dynamic = Scheme(uint8_dynamic(), int8_channel())
    recipe = fqx.int8_static() | fqx.use(fqx.path("down"), dynamic) | fqx.weight_only().rules[1]
    done = fqx.quantize(
        model, (x,), [(x,)], recipe=recipe, target="onednn", objective="balanced"
    ).unwrap()
    found = reasons(done)
    assert found[NodeId("up")] in (Reason.KERNEL, Reason.SMOOTHED)
    assert found[NodeId("down")] is Reason.DYNAMIC
    assert found[NodeId("table")] is Reason.WEIGHT_ONLY
    bags = [reason for name, reason in found.items() if name.startswith("bag")]
    assert Reason.WEIGHT_ONLY in bags
    assert done.plan is not None
    assert done.plan[NodeId("table")].verdict is Verdict.WEIGHT
    with torch.no_grad():
        assert decibels(model(x), run(done, x)) > 30.0


def test_a_scale_follows_each_call() -> None:
    """A hundred times larger input keeps its precision: no range was frozen."""
    model = made(nn.Sequential(nn.Linear(16, 8)))
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))
    done = fqx.quantize(model, (x,), recipe=fqx.int8_dynamic(), target="onednn").unwrap()
    with torch.no_grad():
        for factor in (0.01, 1.0, 100.0):
            assert decibels(model(x * factor), run(done, x * factor)) > 30.0


def test_one_value_is_quantized_once_for_all_its_readers() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(16, 8), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.q(x) + self.k(x)
            return out

    x = torch.randn(4, 16)
    done = fqx.quantize(made(Heads()), (x,), recipe=fqx.int8_dynamic(), target="reference")
    ops = [node.op for node in done.unwrap().graph]
    assert ops.count("choose_qparams") == 1  # type: ignore[arg-type]


def test_operators_without_a_dynamic_kernel_say_so() -> None:
    done = fqx.quantize(made(Text()), (tokens(),), recipe=fqx.int8_dynamic(), target="onednn")
    plan = done.unwrap().plan
    assert plan is not None
    assert plan[NodeId("table")].text == "onednn has no dynamic kernel for embedding"


def test_weights_beyond_half_precision_are_clamped() -> None:
    model = made(nn.Sequential(nn.Linear(4, 4)))
    with torch.no_grad():
        next(model.parameters())[0, 0] = 1e6
    done = fqx.quantize(model, (torch.zeros(1, 4),), recipe=fqx.float16(), target="onednn")
    out = run(done.unwrap(), torch.zeros(1, 4))
    assert bool(torch.isfinite(out).all())


class Halves(nn.Module):
    """Whatever has a float16 row in torch.ao's legacy backend config."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        z = torch.sigmoid((y + self.second(y)) * y * 0.3 + 1.0)
        z = torch.tanh(z.reshape(-1, 2, 4).mean(1))
        z = torch.clamp(nn.functional.avg_pool1d(z, 2), 0.1, 0.7)
        return torch.matmul(z, torch.transpose(z, 0, 1))


@pytest.mark.parametrize("target", TARGETS)
def test_halves_are_torchs_bit_for_bit(target: str) -> None:
    """Against torch.ao's reference model, whose weights are rounded before: it does not itself."""
    from torch.ao.quantization import QConfigMapping, float16_static_qconfig
    from torch.ao.quantization.backend_config import native as backends
    from torch.ao.quantization.quantize_fx import convert_to_reference_fx, prepare_fx

    model, x = made(Halves()), torch.randn(6, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    backend = backends.get_test_only_legacy_native_backend_config()
    mapping = QConfigMapping().set_global(float16_static_qconfig)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(copy.deepcopy(model), mapping, (x,), backend_config=backend)
        theirs = convert_to_reference_fx(prepared, backend_config=backend)
    done = fqx.quantize(model, (x,), recipe=fqx.float16_static(), target=target).unwrap()
    ops = [node.op for node in done.graph]
    assert ops.count("native.linear_float16") == (0 if target == "reference" else 2)  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(run(done, x), theirs(x))
    found = reasons(done)
    assert found[NodeId("first")] is found[NodeId(":relu")] is Reason.HALVES
    assert Reason.KERNEL not in found.values()


def test_halves_and_integers_meet_in_one_model() -> None:
    model, x = made(Text()), tokens()
    halves = fqx.float16_static().rules[0].scheme
    assert halves is not None
    for path in ("up", "down"):
        recipe = fqx.int8_static() | fqx.use(fqx.path(path), halves)
        done = fqx.quantize(
            model, (x,), [(x,)], recipe=recipe, target="native", objective="balanced"
        ).unwrap()
        found = reasons(done)
        assert found[NodeId(path)] is Reason.HALVES
        assert {Reason.KERNEL, Reason.SMOOTHED} & set(found.values())
        with torch.no_grad():
            assert decibels(model(x), run(done, x)) > 30.0


def test_halves_stand_beside_no_integers() -> None:
    from fqx.num.scheme import half

    recipe = fqx.int8_static() | fqx.use(fqx.op("linear"), Scheme(half("static"), int8_channel()))
    done = fqx.quantize(made(Text()), (tokens(),), recipe=recipe, target="onednn")
    assert done.failure().fault.kind is FaultKind.BAD_RECIPE


def test_lone_light_operators_run_on_integers_when_asked() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    pair = (torch.randn(4, 16), torch.randn(4, 16))
    rule = fqx.int8_static().rules[0]
    assert rule.scheme is not None
    for lone in (False, True):
        scheme = Scheme(rule.scheme.activation, rule.scheme.weight, lone=lone)
        recipe = Recipe((fqx.use(fqx.op("add"), scheme),))
        done = fqx.quantize(Sum(), pair, [pair], recipe=recipe, target="native").unwrap()
        assert ("native.add" in [node.op for node in done.graph]) is lone


def test_a_sentence_encoder_needs_no_data_to_keep_fourteen_decibels() -> None:
    """Published weights and sentences nobody calibrated on: torch.ao's dynamic int8 keeps 7 dB."""
    model, held = minilm.encoder(), minilm.held_out_batches(count=2)
    done = fqx.quantize(model, held[0], recipe=fqx.int8_dynamic(), target="onednn").unwrap()
    module = done.materialize().unwrap()
    wanted, got = [], []
    with torch.no_grad():
        for tokens, mask in held:
            wanted.append(model(tokens, mask)[0][mask.bool()])
            got.append(module(tokens, mask)[0][mask.bool()])
    assert decibels(torch.cat(wanted), torch.cat(got)) > 14.0
