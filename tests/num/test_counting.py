"""Observers of tensors large enough for the fast ways of counting."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fqx.ir.fault import FaultKind
from fqx.kit.result import fold
from fqx.num.observers import empty, merge, observe
from fqx.num.scheme import ObserverSpec

MANY = 1 << 15
"""From here on parts are counted into several histograms at once."""

RUN = 1 << 20
"""From here on there is more than one run."""

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "signed": lambda x: x,
    "behind a relu": torch.relu,
    "below zero": lambda x: -x.abs(),
    "one below zero": lambda x: torch.cat((x.abs(), -x[:1].abs())),
    "minus zeros": lambda x: torch.relu(x) * -0.0,
    "on the edges of bins": lambda x: x.round(),
    "just below the edges": lambda x: torch.nextafter(torch.relu(x).round(), torch.tensor(0.0)),
    "every second": lambda x: torch.cat((x, x)).relu()[::2],
    "negated lazily": lambda x: torch.complex(x, x).conj().imag,
    "bfloat16": lambda x: x.relu().to(torch.bfloat16),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [MANY - 1, MANY, 3 * MANY + 5, RUN + 3])
@pytest.mark.parametrize("bins", [256, 4096, 1 << 16])
def test_float32_is_counted_as_float64_is(bins: int, size: int, shape: str) -> None:
    spec = ObserverSpec("histogram", bins=bins)
    seen = SHAPES[shape](3 * torch.randn(size, generator=torch.Generator().manual_seed(size)))
    exact = observe(spec, empty(spec), seen.to(torch.float64)).unwrap()
    assert observe(spec, empty(spec), seen).unwrap() == exact


@pytest.mark.parametrize("parts", [2, 7])
def test_a_large_tensor_is_the_sum_of_its_parts(parts: int) -> None:
    spec = ObserverSpec("histogram")
    seen = torch.randn(RUN + 3, generator=torch.Generator().manual_seed(0)).relu()
    summed = empty(spec)
    for part in seen.chunk(parts):
        summed = merge(spec, summed, observe(spec, empty(spec), part).unwrap()).unwrap()
    assert observe(spec, empty(spec), seen).unwrap() == summed


@pytest.mark.parametrize("at", [0, MANY, -1])
@pytest.mark.parametrize("bits", [0x7FC00000, -0x400000, 0x7F800000, -0x800000])
def test_nan_and_infinity_of_either_sign_are_found_anywhere(bits: int, at: int) -> None:
    spec, seen = ObserverSpec("histogram"), torch.rand(2 * MANY)
    seen.view(torch.int32)[at] = bits
    found = observe(spec, empty(spec), seen)
    kind = fold(found, lambda _: None, lambda fault: fault.kind)
    assert kind is FaultKind.NOT_FINITE
