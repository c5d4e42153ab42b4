"""Laws of affine quantization: the formula, its inverse, and ranges that cover what they must."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fqx.ir.arg import DType
from fqx.num import affine
from fqx.num.fake_quant import fake_quantize
from fqx.num.observers import State, empty, observe
from fqx.num.qparams import (
    QParams,
    predicted_sqnr,
    qparams_between,
    qparams_of,
    quantize_weight,
)
from fqx.num.scheme import (
    ObserverSpec,
    QSpec,
    Search,
    histogram,
    int8_channel,
    qspec_from_arg,
    qspec_to_arg,
    spec_from_arg,
    spec_to_arg,
    uint8_affine,
)
from fqx.num.search import logarithm, tree_sum

FINITE = st.floats(-1e6, 1e6, width=32)
RANGES = {
    DType.UINT8: ((0, 255), (0, 127)),
    DType.INT8: ((-128, 127), (-127, 127), (-64, 63)),
    DType.INT32: ((-(2**31), 2**31 - 1),),
}
SEARCHES: tuple[Search, ...] = ("minmax", "percentile", "mse", "entropy")


@st.composite
def quantizers(draw: st.DrawFn, narrow: bool = False) -> QParams:
    """Qparams of a drawn range in a drawn type."""
    dtype = draw(st.sampled_from((DType.UINT8, DType.INT8) if narrow else tuple(RANGES)))
    qmin, qmax = draw(st.sampled_from(RANGES[dtype]))
    ends = sorted((draw(FINITE), draw(FINITE)))
    spec = QSpec(dtype, qmin, qmax, draw(st.booleans()))
    low, high = (torch.tensor(end, dtype=torch.float64) for end in ends)
    return qparams_between(spec, low, high)


def integers_of(x: torch.Tensor, made: QParams) -> torch.Tensor:
    return affine.quantize(
        x, made.scale, made.zero_point, made.qmin, made.qmax, made.dtype, made.axis
    )


def values_of(q: torch.Tensor, made: QParams) -> torch.Tensor:
    return affine.dequantize(q, made.scale, made.zero_point, axis=made.axis)


@given(quantizers(), st.lists(FINITE, min_size=1, max_size=8))
def test_quantize_is_its_formula(made: QParams, numbers: list[float]) -> None:
    scale, zero = np.float32(float(made.scale)), int(made.zero_point)
    inverse = np.float32(1.0) / scale
    wanted = [
        min(max(int(np.rint(np.float32(number) * inverse)) + zero, made.qmin), made.qmax)
        for number in numbers
    ]
    assert integers_of(torch.tensor(numbers), made).tolist() == wanted


@given(quantizers(narrow=True))
def test_integers_survive_the_round_trip(made: QParams) -> None:
    every = torch.arange(made.qmin, made.qmax + 1).to(getattr(torch, made.dtype.value))
    assert torch.equal(integers_of(values_of(every, made), made), every)


@given(quantizers(), FINITE)
def test_zero_is_exact_and_values_inside_are_near(made: QParams, x: float) -> None:
    zero = integers_of(torch.zeros(1), made)
    assert float(values_of(zero, made)) == 0.0
    low, high = (float(end) for end in made.range)
    assume(low <= x <= high)
    again = float(values_of(integers_of(torch.tensor([x]), made), made))
    step = float(made.scale)
    # half a step, and three roundings to float32 of values as large as the range
    assert abs(again - x) <= step / 2 + 3 * 2.0**-23 * max(abs(low), abs(high), abs(x))


@given(quantizers(narrow=True), st.lists(FINITE, min_size=2, max_size=8))
def test_quantize_keeps_order(made: QParams, numbers: list[float]) -> None:
    made_integers = integers_of(torch.tensor(sorted(numbers)), made).tolist()
    assert made_integers == sorted(made_integers)


@given(quantizers(narrow=True), st.lists(FINITE, min_size=1, max_size=8))
def test_fake_quantize_is_quantize_and_back(made: QParams, numbers: list[float]) -> None:
    x = torch.tensor(numbers, requires_grad=True)
    seen = fake_quantize(x, made)
    assert torch.equal(seen, values_of(integers_of(x.detach(), made), made))
    (slope,) = torch.autograd.grad(seen.sum(), x)
    inverse = 1.0 / made.scale
    free = (x.detach() * inverse).round() + made.zero_point
    assert torch.equal(slope, ((free >= made.qmin) & (free <= made.qmax)).float())


@given(st.floats(0.0, 2.0**99, width=32), st.floats(0.0, 2.0**99, width=32))
def test_what_is_never_negative_has_the_least_integer_for_zero(one: float, two: float) -> None:
    spec = uint8_affine(ObserverSpec())
    low, high = (torch.tensor(end, dtype=torch.float64) for end in sorted((one, two)))
    assert int(qparams_between(spec, low, high).zero_point) == 0


@given(quantizers())
def test_scales_are_positive_normal_float32(made: QParams) -> None:
    scale = float(made.scale)
    assert scale >= affine.LEAST_SCALE
    assert math.isfinite(1.0 / scale)
    assert made.qmin <= int(made.zero_point) <= made.qmax


@given(st.lists(FINITE, min_size=6, max_size=6), st.sampled_from((0, 1)), st.booleans())
def test_weights_are_covered_channel_by_channel(
    numbers: list[float], axis: int, searched: bool
) -> None:
    weight = torch.tensor(numbers).reshape(2, 3)
    plain = int8_channel(axis)
    spec = plain
    if searched:
        whole = ObserverSpec("histogram", "mse", axis)
        spec = QSpec(plain.dtype, plain.qmin, plain.qmax, True, axis, whole, "weight")
    made = quantize_weight(weight, spec).unwrap()
    assert made.tensor.dtype == torch.int8
    assert made.scale.shape == (weight.shape[axis],)
    assert made.zero_point is None
    seen = affine.dequantize(made.tensor, made.scale, 0, axis=axis)
    step = made.scale.reshape(-1, 1) if axis == 0 else made.scale
    if not searched:
        # the largest is 127 steps but for the rounding of the scale and of three products
        assert bool(((seen - weight).abs() <= step * 0.5001 + weight.abs() * 2.0**-21).all())
    error = float((seen.double() - weight.double()).square().sum())
    least = quantize_weight(weight, plain).unwrap()
    again = affine.dequantize(least.tensor, least.scale, 0, axis=axis)
    assert error <= float((again.double() - weight.double()).square().sum()) * (1 + 1e-9)


def seen_by(spec: QSpec, x: torch.Tensor) -> State:
    return observe(spec.observer, empty(spec.observer), x).unwrap()


def drawn(seed: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(4000, generator=generator)
    match kind:
        case "relu":
            return normal.relu()
        case "heavy":
            # Student's t with three degrees of freedom
            chi = torch.randn(3, 4000, generator=generator).square().sum(0) / 3
            return normal / chi.sqrt()
        case "gelu":
            return torch.nn.functional.gelu(normal * 3)
        case "shifted":
            return normal * 0.1 + 4.0
        case _:
            return normal


KINDS = st.sampled_from(("normal", "relu", "heavy", "gelu", "shifted"))


def sqnr(x: torch.Tensor, made: QParams) -> float:
    seen = values_of(integers_of(x, made), made)
    noise = (x.double() - seen.double()).square().sum()
    return float(10 * torch.log10(x.double().square().sum() / noise))


@pytest.mark.parametrize("symmetric", [False, True])
@given(seed=st.integers(0, 10**6), kind=KINDS, size=st.floats(1e-6, 1e6))
def test_searched_ranges_lie_within_what_was_seen(
    symmetric: bool, seed: int, kind: str, size: float
) -> None:
    x = drawn(seed, kind) * size
    for search in SEARCHES:
        spec = QSpec(DType.INT8, -128, 127, symmetric, None, histogram(search))
        made = qparams_of(spec, seen_by(spec, x)).unwrap()
        whole = qparams_between(spec, x.min().double(), x.max().double())
        assert float(made.scale) <= float(whole.scale) * (1 + 2.0**-22)
        if search == "mse":
            assert sqnr(x, made) >= sqnr(x, whole) - 0.1


@given(seed=st.integers(0, 10**6), kind=KINDS, search=st.sampled_from(SEARCHES))
def test_the_predicted_noise_is_the_measured_noise(seed: int, kind: str, search: Search) -> None:
    x = drawn(seed, kind)
    spec = uint8_affine(histogram(search))
    state = seen_by(spec, x)
    made = qparams_of(spec, state).unwrap()
    # a few thousand values do not lie evenly inside bins, least of all in the tails
    assert abs(predicted_sqnr(state, made) - sqnr(x, made)) < 0.6


@given(seed=st.integers(0, 10**6), kind=KINDS)
def test_no_range_on_a_grid_beats_the_searched_one(seed: int, kind: str) -> None:
    x = drawn(seed, kind)
    spec = uint8_affine(histogram("mse"))
    state = seen_by(spec, x)
    found = predicted_sqnr(state, qparams_of(spec, state).unwrap())
    low, high = x.min().double().clamp(max=0.0), x.max().double().clamp(min=0.0)
    for left in np.linspace(0.3, 1.0, 8):
        for right in np.linspace(0.3, 1.0, 8):
            rival = qparams_between(spec, low * float(left), high * float(right))
            assert predicted_sqnr(state, rival) <= found + 0.15


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=70))
def test_the_tree_sum_is_a_sum(numbers: list[float]) -> None:
    exact = sum((Fraction(number) for number in numbers), Fraction(0))
    made = float(tree_sum(torch.tensor(numbers, dtype=torch.float64)))
    # log2(70) < 7 roundings of partial sums no larger than the sum of the sizes
    assert abs(Fraction(made) - exact) <= 7 * sum(abs(n) for n in numbers) * 2.0**-52


@given(st.floats(1e-300, 1e300))
def test_the_logarithm_is_one(x: float) -> None:
    made = float(logarithm(torch.tensor([x], dtype=torch.float64)))
    assert abs(made - math.log(x)) <= 1e-9 * max(1.0, abs(math.log(x)))


SPECS = st.builds(
    ObserverSpec,
    kind=st.just("histogram"),
    search=st.sampled_from(SEARCHES),
    axis=st.none() | st.integers(-4, 4),
    bins=st.sampled_from((16, 2048, 4096)),
    percentile=st.floats(0.1, 100.0),
)


@given(SPECS, st.sampled_from(tuple(RANGES)), st.booleans(), st.none() | st.integers(-3, 3))
def test_specs_survive_as_plain_data(
    spec: ObserverSpec, dtype: DType, symmetric: bool, axis: int | None
) -> None:
    assert spec_from_arg(spec_to_arg(spec)).unwrap() == spec
    whole = QSpec(dtype, *RANGES[dtype][0], symmetric, axis, spec)
    assert qspec_from_arg(qspec_to_arg(whole)).unwrap() == whole
