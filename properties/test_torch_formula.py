"""Laws of the float32 formula: the bits of torch.ao's observers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.ao.quantization import observer as torch_observers

from fqx.ir.arg import DType
from fqx.num import observers
from fqx.num.qparams import QParams, qparams_of, weight_qparams
from fqx.num.scheme import (
    ObserverSpec,
    QSpec,
    check_qspec,
    qspec_from_arg,
    qspec_to_arg,
)

EPS = torch.finfo(torch.float32).eps
TORCH = {DType.UINT8: torch.quint8, DType.INT8: torch.qint8, DType.INT32: torch.qint32}
RANGES = {
    DType.UINT8: ((0, 255), (0, 127), (0, 15)),
    DType.INT8: ((-128, 127), (-127, 127), (-64, 63), (-8, 7)),
    DType.INT32: ((-(2**31), 2**31 - 1),),
}
# the scale of wider ranges is infinite in torch.ao, and the greatest finite one here
NUMBERS = st.one_of(
    st.floats(-(2.0**120), 2.0**120, width=32), st.floats(-8.0, 8.0, width=32), st.just(0.0)
)
BATCH = st.lists(NUMBERS, min_size=6, max_size=6).map(lambda n: torch.tensor(n).reshape(2, 3))
BATCHES = st.lists(BATCH, min_size=1, max_size=4)


@st.composite
def specs(draw: st.DrawFn, kinds: tuple[str, ...]) -> QSpec:
    """What a torch.ao observer of these kinds can say."""
    kind = draw(st.sampled_from(kinds))
    dtype = draw(st.sampled_from(tuple(RANGES)))
    qmin, qmax = draw(st.sampled_from(RANGES[dtype]))
    symmetric = draw(st.booleans())
    axis = draw(st.sampled_from((0, 1))) if kind == "channel_minmax" else None
    observer = ObserverSpec(
        "channel_minmax"
        if axis is not None
        else "moving_average"
        if kind == "moving"
        else "minmax",
        axis=axis,
        rate=draw(st.sampled_from((0.01, 0.3, 1.0))) if kind == "moving" else 0.01,
        formula="float32",
        least_scale=draw(st.sampled_from((EPS, 2.0**-12))),
    )
    middle = (qmin + qmax) // 2 if dtype == DType.UINT8 else 0
    return QSpec(dtype, qmin, qmax, symmetric, axis, observer, zero=middle if symmetric else None)


def peer(spec: QSpec, batches: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of torch.ao's own observer after the batches."""
    where, how = spec.axis is not None, "symmetric" if spec.symmetric else "affine"
    said: dict[str, Any] = {
        "dtype": TORCH[spec.dtype],
        "qscheme": getattr(torch, f"per_{'channel' if where else 'tensor'}_{how}"),
        "eps": spec.observer.least_scale,
        # torch.ao takes no custom range for 32 bits, whose default is the whole
        **({} if spec.dtype == DType.INT32 else {"quant_min": spec.qmin, "quant_max": spec.qmax}),
    }
    made: Any
    if where:
        made = torch_observers.PerChannelMinMaxObserver(ch_axis=spec.axis, **said)
    elif spec.observer.kind == "moving_average":
        made = torch_observers.MovingAverageMinMaxObserver(spec.observer.rate, **said)
    else:
        made = torch_observers.MinMaxObserver(**said)
    for batch in batches:
        made(batch)
    scale, zero = made.calculate_qparams()
    return scale, zero


def same(made: QParams, scale: torch.Tensor, zero: torch.Tensor) -> bool:
    """Whether both are equal bit for bit."""
    bits = made.scale.reshape(-1).view(torch.int32)
    return torch.equal(bits, scale.view(torch.int32)) and torch.equal(
        made.zero_point.reshape(-1).to(torch.int64), zero.to(torch.int64)
    )


@given(spec=specs(("minmax", "moving", "channel_minmax")), batches=BATCHES)
def test_observed_ranges_give_the_bits_of_torch(spec: QSpec, batches: list[torch.Tensor]) -> None:
    state = observers.empty(spec.observer)
    for batch in batches:
        state = observers.observe(spec.observer, state, batch).unwrap()
    assert same(qparams_of(spec, state).unwrap(), *peer(spec, batches))


@given(spec=specs(("minmax", "channel_minmax")), weight=BATCH)
def test_weights_give_the_bits_of_torch(spec: QSpec, weight: torch.Tensor) -> None:
    assert same(weight_qparams(weight, replace(spec, when="weight")), *peer(spec, [weight]))


@given(spec=specs(("minmax", "moving", "channel_minmax")))
def test_specs_of_the_formula_are_plain_data(spec: QSpec) -> None:
    assert qspec_from_arg(qspec_to_arg(spec)).unwrap() == spec


@given(
    scale=st.floats(2.0**-20, 2.0**20, width=32),
    zero=st.integers(0, 255),
    qmax=st.sampled_from((127, 255)),
)
def test_a_fixed_pair_is_met_exactly(scale: float, zero: int, qmax: int) -> None:
    zero = min(zero, qmax)
    fixed = ObserverSpec("fixed", low=-zero * scale, high=(qmax - zero) * scale)
    spec = QSpec(DType.UINT8, 0, qmax, observer=fixed)
    made = qparams_of(spec, observers.empty(fixed)).unwrap()
    assert (float(made.scale), int(made.zero_point)) == (scale, zero)


@pytest.mark.parametrize(
    "spec",
    [
        QSpec(DType.UINT8, 0, 255, True, zero=256),
        QSpec(DType.UINT8, 0, 255, False, zero=128),
        QSpec(DType.UINT8, 0, 255, observer=ObserverSpec(least_scale=-1.0)),
        QSpec(DType.UINT8, 0, 255, observer=ObserverSpec(least_scale=float("inf"))),
    ],
)
def test_specs_that_cannot_be_are_faults(spec: QSpec) -> None:
    assert check_qspec(spec).failure().name == "BadRecipe"
