"""Observers of torch.ao read as specs, and the qparams those give held against torch.ao's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.ao.quantization import fake_quantize, observer, qconfig

from fqx.compat.observers import Constructor, read_observer, spec_of_observer
from fqx.compat.qconfig import read_qconfig, scheme_of_qconfig
from fqx.ir.arg import DType
from fqx.num import observers
from fqx.num.qparams import qparams_of, quantize_weight, weight_qparams
from fqx.num.scheme import QSpec
from fqx.policy.units import Mode

pytestmark = pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")

BITWISE: dict[str, Any] = {
    "quint8": observer.MinMaxObserver,
    "reduced": observer.MinMaxObserver.with_args(reduce_range=True),
    "reduced int8": observer.MinMaxObserver.with_args(dtype=torch.qint8, reduce_range=True),
    "symmetric quint8": observer.MinMaxObserver.with_args(qscheme=torch.per_tensor_symmetric),
    "symmetric custom quint8": observer.MinMaxObserver.with_args(
        qscheme=torch.per_tensor_symmetric, quant_min=0, quant_max=127
    ),
    "symmetric uint8": partial(
        observer.MinMaxObserver, dtype=torch.uint8, qscheme=torch.per_tensor_symmetric
    ),
    "symmetric lopsided int8": partial(
        observer.MinMaxObserver,
        dtype=torch.int8,
        qscheme=torch.per_tensor_symmetric,
        quant_min=-100,
        quant_max=27,
    ),
    "int32": observer.MinMaxObserver.with_args(dtype=torch.qint32),
    "average": observer.MovingAverageMinMaxObserver,
    "quick average": observer.MovingAverageMinMaxObserver.with_args(averaging_constant=0.3),
    "channels": observer.PerChannelMinMaxObserver.with_args(ch_axis=1),
    "symmetric channels": observer.default_per_channel_weight_observer,
    "fixed": observer.default_fixed_qparams_range_0to1_observer,
    "fixed around zero": observer.default_fixed_qparams_range_neg1to1_observer,
    "least scale": observer.weight_observer_range_neg_127_to_127,
    "fake": fake_quantize.default_fake_quant,
    "fused fake": fake_quantize.fused_wt_fake_quant_range_neg_127_to_127,
    "fixed fake": fake_quantize.default_fixed_qparams_range_neg1to1_fake_quant,
    "nested": observer.MinMaxObserver.with_args(dtype=torch.qint8).with_args(
        qscheme=torch.per_tensor_symmetric
    ),
    "on a device": observer.MinMaxObserver.with_callable_args(
        factory_kwargs=lambda: {"device": "cpu"}
    ),
}


def _pair(activation: object, weight: object) -> Any:
    return qconfig.QConfig(activation, weight)  # type: ignore[no-untyped-call]  # torch's own


def batches() -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(7)
    return [torch.randn(5, 4, generator=made) * size for size in (1.0, 3.0, 1e-3, 0.7)]


def spec_of(constructor: Constructor) -> QSpec:
    spec = spec_of_observer(constructor).unwrap()
    assert spec is not None
    return spec


@pytest.mark.parametrize("name", BITWISE)
def test_a_read_observer_gives_the_scale_and_zero_point_of_torch(name: str) -> None:
    peer, spec = BITWISE[name](), spec_of(BITWISE[name])
    peer = getattr(peer, "activation_post_process", peer)
    state = observers.empty(spec.observer)
    for batch in batches():
        peer(batch)
        state = observers.observe(spec.observer, state, batch).unwrap()
    made = qparams_of(spec, state).unwrap()
    scale, zero = peer.calculate_qparams()
    assert torch.equal(made.scale.reshape(-1), scale)
    assert made.zero_point.reshape(-1).tolist() == zero.tolist()
    assert (made.qmin, made.qmax) == (peer.quant_min, peer.quant_max)


@pytest.mark.parametrize("name", ["symmetric channels", "least scale", "average", "fake"])
def test_an_observer_of_a_weight_sees_it_once(name: str) -> None:
    weight, peer = batches()[1], BITWISE[name]()
    spec = spec_of_observer(BITWISE[name], "weight").unwrap()
    assert spec is not None and spec.when == "weight"
    peer = getattr(peer, "activation_post_process", peer)
    peer(weight)
    scale, zero = peer.calculate_qparams()
    made = weight_qparams(weight, spec)
    assert torch.equal(made.scale.reshape(-1), scale)
    assert made.zero_point.reshape(-1).tolist() == zero.tolist()


def test_a_histogram_is_searched_for_least_squares() -> None:
    spec = spec_of(observer.HistogramObserver.with_args(reduce_range=True, bins=1000))
    assert (spec.dtype, spec.qmin, spec.qmax) == (DType.UINT8, 0, 127)
    assert (spec.observer.kind, spec.observer.search, spec.observer.bins) == (
        "histogram",
        "mse",
        2048,
    )


@pytest.mark.parametrize(
    "constructor",
    [
        observer.PlaceholderObserver.with_args(dtype=torch.quint8, is_dynamic=True),
        observer.MovingAverageMinMaxObserver.with_args(averaging_constant=1, is_dynamic=True),
        fake_quantize.default_dynamic_fake_quant,
    ],
)
def test_dynamic_observers_ask_for_the_range_of_each_call(constructor: Constructor) -> None:
    spec = spec_of(constructor)
    assert (spec.dtype, spec.qmin, spec.qmax, spec.when) == (DType.UINT8, 0, 255, "dynamic")
    assert spec.observer.kind == "minmax"


def test_floats_stay_floats() -> None:
    assert spec_of_observer(observer.PlaceholderObserver).unwrap() is None
    assert spec_of_observer(torch.nn.Identity).unwrap() is None
    half = spec_of(observer.PlaceholderObserver.with_args(dtype=torch.float16))
    assert half.dtype is DType.FLOAT16
    reused = read_observer(observer.ReuseInputObserver).unwrap()
    assert reused.reuses and reused.spec is None


class Wider(observer.MinMaxObserver):
    """An observer of the user's own that sees something else."""

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        return x_orig


@pytest.mark.parametrize(
    ("constructor", "reason"),
    [
        (Wider, "Wider is no observer"),
        (observer.RecordingObserver, "RecordingObserver is no observer"),
        (lambda: 3, "int is no observer"),
        (partial(observer.MinMaxObserver, dtype=torch.float64), "cannot be made"),
        (partial(observer.MinMaxObserver, dtype=torch.uint16), "uint16 is not a type"),
        (partial(observer.PlaceholderObserver, dtype=torch.qint8), "is not dynamic"),
        (partial(observer.FixedQParamsObserver, 0.1, 300), "zero point 300"),
        (
            partial(
                observer.PerChannelMinMaxObserver,
                dtype=torch.uint8,
                qscheme=torch.per_channel_symmetric,
                reduce_range=True,
            ),
            "zero point 128",
        ),
        (observer.MovingAveragePerChannelMinMaxObserver, "average of each channel"),
    ],
)
def test_what_cannot_be_read_is_a_fault(constructor: Constructor, reason: str) -> None:
    fault = spec_of_observer(constructor).failure()
    assert fault.name == "BadRecipe"
    assert reason in fault.reason


def test_a_qconfig_is_a_scheme() -> None:
    default: Any = qconfig.get_default_qconfig("x86")  # type: ignore[no-untyped-call]  # torch's
    scheme = scheme_of_qconfig(default).unwrap()
    assert scheme is not None
    assert (scheme.static.qmin, scheme.static.qmax) == (0, 127)
    assert (scheme.weight.axis, scheme.weight.qmin, scheme.weight.qmax) == (0, -128, 127)


def test_a_float_weight_is_told_apart() -> None:
    norm = _pair(observer.default_observer, observer.default_placeholder_observer)
    assert read_qconfig(norm).unwrap().has_float_weight
    scheme = scheme_of_qconfig(norm).unwrap()
    default = scheme_of_qconfig(qconfig.default_qconfig).unwrap()
    assert scheme is not None and default is not None
    assert scheme.weight == default.weight


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        (qconfig.default_dynamic_qconfig, Mode.DYNAMIC),
        (qconfig.per_channel_dynamic_qconfig, Mode.DYNAMIC),
        (qconfig.default_weight_only_qconfig, Mode.WEIGHT_ONLY),
        (qconfig.float_qparams_weight_only_qconfig, Mode.WEIGHT_ONLY),
        (qconfig.float_qparams_weight_only_qconfig_4bit, Mode.WEIGHT_ONLY),
        (qconfig.float16_dynamic_qconfig, Mode.FLOAT16),
        (qconfig.default_symmetric_qnnpack_qconfig, Mode.STATIC),
    ],
)
def test_the_mode_follows_from_both_halves(given: Any, mode: Mode) -> None:
    scheme = scheme_of_qconfig(given).unwrap()
    assert scheme is not None and scheme.mode is mode


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_of_embeddings_has_the_qparams_of_torch(bits: int) -> None:
    table = torch.cat([*batches(), torch.full((1, 4), 0.25)])
    given: Any = (
        qconfig.float_qparams_weight_only_qconfig
        if bits == 8
        else qconfig.float_qparams_weight_only_qconfig_4bit
    )
    scheme, peer = scheme_of_qconfig(given).unwrap(), given.weight()
    assert scheme is not None and (scheme.weight.qmin, scheme.weight.qmax) == (0, 2**bits - 1)
    peer(table)
    scale, zero = peer.calculate_qparams()
    made = quantize_weight(table, scheme.weight).unwrap()
    assert made.zero_point is not None
    assert torch.equal(made.scale, scale) and torch.equal(made.zero_point, zero)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            _pair(qconfig.float16_dynamic_qconfig.activation, observer.default_weight_observer),
            "need a float16 weight",
        ),
        (
            _pair(observer.default_observer, qconfig.float16_dynamic_qconfig.weight),
            "by a float16 weight",
        ),
    ],
)
def test_halves_that_do_not_go_together_are_a_fault(given: Any, reason: str) -> None:
    assert reason in scheme_of_qconfig(given).failure().reason


def test_static_halves_round_activations_and_weights() -> None:
    scheme = scheme_of_qconfig(qconfig.float16_static_qconfig).unwrap()
    assert scheme is not None and scheme.mode is Mode.FLOAT16_STATIC
    dynamic = scheme_of_qconfig(qconfig.float16_dynamic_qconfig).unwrap()
    assert dynamic is not None and dynamic.mode is Mode.FLOAT16


def test_nothing_is_asked_of_operators_left_alone() -> None:
    assert scheme_of_qconfig(None).unwrap() is None
    assert scheme_of_qconfig(qconfig._default_fp32_placeholder_qconfig).unwrap() is None
    reuse = qconfig.default_reuse_input_qconfig
    assert scheme_of_qconfig(reuse).unwrap() is None
    assert read_qconfig(reuse).unwrap().reuses_input


def test_what_is_no_qconfig_is_a_fault() -> None:
    assert "is no QConfig" in scheme_of_qconfig(object()).failure().reason
    assert (
        "is no QConfig"
        in scheme_of_qconfig(qconfig._default_quint8_placeholder_qconfig).failure().reason
    )
