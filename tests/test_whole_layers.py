"""Recurrent layers and attention, statically quantized part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fqx
from fqx.api import Quantized
from fqx.audit.measure import sqnr
from fqx.edge.rebuild import rebuild
from fqx.ir.fault import FaultKind
from fqx.ir.names import NodeId
from fqx.num.scheme import ObserverSpec, histogram, int8_channel, uint8_affine
from fqx.policy.verdicts import Verdict

TARGETS = ("onednn", "native/x86", "native/fbgemm", "native/qnnpack")


class Layer(nn.Module):
    """A recurrent layer and all it gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.rnn = layer

    def forward(self, x: Tensor) -> object:
        return self.rnn(x)


class Attention(nn.Module):
    """Self-attention with a mask of one kind."""

    def __init__(self, layer: nn.MultiheadAttention, kind: str, need_weights: bool) -> None:
        super().__init__()
        self.mha, self.kind, self.need_weights = layer, kind, need_weights

    def forward(self, x: Tensor, mask: Tensor | None = None) -> object:
        padding = mask if self.kind == "padding" else None
        among = None if self.kind == "padding" else mask
        return self.mha(
            *(x, x, x),
            key_padding_mask=padding,
            attn_mask=among,
            is_causal=self.kind == "causal",
            need_weights=self.need_weights,
        )


def recurrent(kind: type[nn.LSTM | nn.GRU | nn.RNN], **options: int | bool) -> Layer:
    torch.manual_seed(0)
    layer = kind(8, 16, dropout=0.5 if options.get("num_layers", 1) > 1 else 0.0, **options)
    # torch draws weights of a size that leaves the gates near the middle, where they carry little
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2.0)
    return Layer(layer).eval()


def batches(*shape: int, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def written(
    model: nn.Module,
    data: list[Tensor],
    target: str,
    recipe: fqx.Recipe | None = None,
    shapes: Mapping[str, Mapping[int, str]] | None = None,
) -> Quantized:
    return fqx.quantize(
        model,
        (data[0],),
        data,
        recipe=recipe,
        target=target,
        rewrites=fqx.decompose_recurrent(fqx.path("rnn")),
        dynamic_shapes=shapes,
        objective="balanced",
        progress=False,
    ).unwrap()


def kernels(made: Quantized) -> Counter[str]:
    return Counter(str(node.op) for node in made.graph)


LAYOUTS = (
    {"batch_first": True},
    {"batch_first": False, "bias": False},
    {"batch_first": True, "num_layers": 3, "bidirectional": True},
)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
def test_a_recurrent_layer_is_quantized_part_by_part(
    kind: type[nn.LSTM | nn.GRU | nn.RNN], layout: int, target: str
) -> None:
    options = LAYOUTS[layout]
    first, sides = options["batch_first"], 2 if options.get("bidirectional") else 1
    model, data = recurrent(kind, **options), batches(*((6, 4, 8) if first else (4, 6, 8)))
    made = written(model, data, target, shapes=None if first else {"x": {}})
    assert_close(made, model, batches(*data[0].shape, count=5)[-1])
    found = kernels(made)
    assert "linear" not in found
    # one linear of the inputs and one for the state of each of four steps, layer by layer; onednn
    # runs some with the addition behind them
    name = "onednn.linear" if target == "onednn" else "native.linear"
    linears = sum(count for op, count in found.items() if op.startswith(name))
    assert linears == options.get("num_layers", 1) * sides * 5
    if target != "onednn":
        # the first step reads a state of zeros and the last is read as float; between only a GRU
        # has floats, because a difference has no kernel
        assert made.plan is not None
        inner = [name for name in made.plan.order if ".step1." in name or ".step2." in name]
        left = {name for name in inner if made.plan[name].verdict is not Verdict.INT8}
        assert all(name.endswith(".apart") for name in left)
        assert bool(left) == (kind is nn.GRU)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("target", ["onednn", "native/x86"])
@pytest.mark.parametrize("both", [False, True])
def test_a_projected_lstm_is_quantized_part_by_part(target: str, both: bool) -> None:
    model = recurrent(nn.LSTM, proj_size=4, num_layers=2, bidirectional=both, batch_first=True)
    data = batches(6, 4, 8)
    made = written(model, data, target)
    assert_close(made, model, batches(6, 4, 8, count=5)[-1])
    assert "linear" not in kernels(made)


def assert_close(made: Quantized, model: nn.Module, *inputs: Tensor) -> None:
    """Each result is a value with 20 dB of signal or more.

    With seven bits for about eight standard deviations a rounding leaves 35 dB, and with known
    ranges of gates that are mostly small five less; some ten of them add up in a step, and a step
    hands half of that on, which makes a factor of twenty, or 13 dB.
    """
    module = made.materialize().unwrap()
    with torch.no_grad():
        pairs = zip(tree_leaves(module(*inputs)), tree_leaves(model(*inputs)), strict=True)
    for ours, truth in pairs:
        assert sqnr(truth, ours) > 20.0


def test_every_part_of_an_lstm_has_the_scheme_a_rule_gives_it() -> None:
    model, data = recurrent(nn.LSTM, batch_first=True), batches(6, 3, 8)
    ranges: dict[str, ObserverSpec] = {
        "inputs$": histogram(bins=512),
        "recurrent$": ObserverSpec("minmax"),
        "cell$": ObserverSpec("moving_average", rate=0.5),
        "hidden$": histogram("percentile"),
    }
    recipe = fqx.int8_static()
    for part, observer in ranges.items():
        scheme = fqx.Scheme(uint8_affine(observer), int8_channel())
        recipe = recipe | fqx.use(fqx.path("rnn") & fqx.regex(part), scheme)
    recipe = recipe | fqx.leave_float(fqx.node("rnn:lstm:layer0.step1.candidate"))
    made = written(model, data, "native/x86", recipe)
    assert made.plan is not None
    seen = {str(tap.value): tap.observer.kind for tap in made.plan.taps}
    at = "rnn:lstm:layer0."
    assert seen[f"{at}inputs"] == "histogram"
    assert {seen[f"{at}step{step}.recurrent"] for step in (1, 2)} == {"minmax"}
    assert {seen[f"{at}step{step}.cell"] for step in (0, 1)} == {"moving_average"}
    searches = {
        tap.observer.search for tap in made.plan.taps if str(tap.value).endswith("step1.hidden")
    }
    assert searches == {"percentile"}
    candidate = made.plan[NodeId(f"{at}step1.candidate")]
    assert candidate.verdict is Verdict.FLOAT
    assert made.plan[NodeId(f"{at}step0.leave")].verdict is Verdict.INT8
    assert_close(made, model, batches(6, 3, 8, count=5)[-1])


def test_the_length_of_a_sequence_is_fixed_and_says_so() -> None:
    model, data = recurrent(nn.LSTM, batch_first=True), batches(6, 4, 8)
    module = written(model, data, "onednn").materialize().unwrap()
    module(torch.randn(9, 4, 8))
    with pytest.raises(Exception, match=r"the shape \[batch, 4, 8\] was captured"):
        module(torch.randn(6, 5, 8))


def test_a_name_that_no_layer_has_is_a_fault() -> None:
    model, data = recurrent(nn.GRU, batch_first=True), batches(6, 4, 8)
    run = fqx.quantize(
        model, (data[0],), data, rewrites=fqx.decompose_recurrent(fqx.path("rn")), progress=False
    )
    fault = run.failure().fault
    assert fault.kind is FaultKind.UNMATCHED_RULE
    assert "'rnn'" in fault.remedy


def test_only_what_is_selected_is_written_out() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.LSTM(8, 8, batch_first=True)
            self.two = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.two(self.one(x)[0])[0]
            return made

    x = torch.randn(2, 3, 8)
    trail = fqx.capture(Two().eval(), (x,)).unwrap()
    for chosen in (fqx.decompose_recurrent(fqx.path("two")), *_rebuilt(fqx.path("two"))):
        after = chosen.run(trail).unwrap().graph
        assert [node.id for node in after if node.op == "lstm"] == ["one:lstm"]
        assert NodeId("two:lstm:layer0.step2.hidden") in after


def _rebuilt(select: fqx.Selector) -> tuple[fqx.Pass, ...]:
    """The pass as a trail's record of it gives it back."""
    made = fqx.decompose_recurrent(select)
    return (rebuild(made.name, made.options).unwrap(),)


def test_a_layer_left_whole_tells_what_writes_it_out() -> None:
    model, data = recurrent(nn.LSTM, batch_first=True), batches(6, 4, 8)
    made = fqx.quantize(model, (data[0],), data, target="onednn", progress=False).unwrap()
    assert "decompose_recurrent makes operators of it" in str(made.explain("rnn:lstm"))


MASKS = ("", "bool", "float", "padding", "causal")
FORMS: tuple[dict[str, bool | int], ...] = (
    {},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"kdim": 16, "vdim": 16},
)


def mask_of(kind: str, batch: int, length: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(2)
    closed = torch.rand(batch if kind == "padding" else length, length, generator=generator) < 0.4
    closed[:, 0] = False
    match kind:
        case "bool" | "padding":
            return closed
        case "float":
            return torch.randn(length, length, generator=generator).masked_fill(closed, -torch.inf)
        case "causal":
            return torch.full((length, length), -torch.inf).triu(1)
        case _:
            return None


def attention_of(
    form: Mapping[str, bool | int],
    mask: str,
    need_weights: bool,
    first: bool,
    target: str,
    recipe: fqx.Recipe | None = None,
) -> tuple[Quantized, Attention, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, batch_first=first, **form)
    model = Attention(layer, mask, need_weights).eval()
    data = batches(*((6, 5, 16) if first else (5, 6, 16)), count=5)
    among = mask_of(mask, 6, 5)
    calls = [(x,) if among is None else (x, among) for x in data]
    alone = replace(fqx.int8_static().rules[0].scheme or schemeless(), lone=True)
    made = fqx.quantize(
        model,
        calls[0],
        calls[:4],
        recipe=recipe or fqx.int8_static() | fqx.use(fqx.op("matmul", "bmm"), alone),
        target=target,
        rewrites=fqx.decompose_attention(fqx.path("mha")),
        dynamic_shapes={name: {} for name in ("x", "mask")[: len(calls[0])]},
        objective="balanced",
        progress=False,
    ).unwrap()
    return made, model, calls[4]


def schemeless() -> fqx.Scheme:
    raise AssertionError("int8_static has a scheme for everything")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    ("form", "mask"),
    [(0, mask) for mask in MASKS]
    + [(form, mask) for form in (1, 2, 3, 4) for mask in ("", "bool")],
)
def test_attention_is_quantized_part_by_part(
    form: int, mask: str, need_weights: bool, first: bool
) -> None:
    made, model, inputs = attention_of(FORMS[form], mask, need_weights, first, "native/x86")
    assert_close(made, model, *inputs)
    found = kernels(made)
    assert found["native.linear"] == 2
    assert found["native.bmm"] + found["native.matmul"] == 2
    assert {"linear", "bmm", "matmul", "baddbmm"}.isdisjoint(found)
    assert "scaled_dot_product_attention" not in found


@pytest.mark.parametrize("mask", MASKS)
def test_attention_keeps_its_products_float_where_no_kernel_is(mask: str) -> None:
    made, model, inputs = attention_of({}, mask, False, True, "onednn")
    assert_close(made, model, *inputs)
    assert kernels(made)["onednn.linear"] == 2


@pytest.mark.parametrize("mask", MASKS[1:])
def test_masks_stay_float_where_everything_else_is_asked_for(mask: str) -> None:
    lone = replace(fqx.int8_static().rules[0].scheme or schemeless(), lone=True)
    recipe = fqx.int8_static() | fqx.use(fqx.regex(""), lone)
    made, model, inputs = attention_of({}, mask, False, True, "native/x86", recipe)
    assert_close(made, model, *inputs)
    found = kernels(made)
    assert found["native.bmm"] + found["native.matmul"] == 2
    assert found["native.softmax"] == 0
    assert found["softmax"] == 1
