"""Every kernel is a custom op with a rule, or is traced through; which of them is listed here."""

from __future__ import annotations

import torch

from fqx.edge.custom_ops import operator
from fqx.edge.fakes import SEVERAL
from fqx.edge.kernels import BINDERS
from fqx.targets.shapes import AVERAGING, MOVING, ZERO_AWARE

TRACED = {
    "quantize",
    "dequantize",
    "native.dequantize",
    "native.wrap",
    "native.unwrap",
    "plain.shift",
    "plain.quantize_scaled",
    "plain.channels_last",
    "plain.linear_weight_only",
    "plain.relu",
    "plain.clamp",
    "plain.pad",
    "plain.max_pool3d",
    *(f"plain.{op}" for op in AVERAGING),
    # on the integers of their values
    *(f"native.{op}" for op in (*MOVING, *ZERO_AWARE) if op != "interpolate"),
}


def test_every_kernel_is_an_operator_or_is_traced_through() -> None:
    assert {str(op) for op in BINDERS if operator(op) is None} == TRACED


def test_results_are_as_many_as_the_kernels() -> None:
    for op in BINDERS:
        made = operator(op)
        if made is not None:
            assert (str(made._schema.returns[0].type) == "List[Tensor]") == (op in SEVERAL)


def test_operators_have_rules_for_sizes_that_are_not_known() -> None:
    for op in BINDERS:
        made = operator(op)
        if made is not None:
            entry = torch._library.simple_registry.singleton.find(f"fqx::{made._opname}")
            assert entry.fake_impl.kernel is not None
