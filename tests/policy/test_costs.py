"""Prices of calls: what is measured, what a formula says, and what is no table."""

from __future__ import annotations

import pytest

from fqx.ir.arg import Arg, DType, Json
from fqx.ir.fault import FaultKind
from fqx.ir.names import OpName
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import fold
from fqx.policy.costs import (
    SCALE,
    SHIFTED,
    Call,
    Costs,
    Formula,
    Shaped,
    among_others,
    costs_from_arg,
    costs_from_json,
    costs_to_arg,
    family,
    nominal,
    work,
)
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.targets.timings import VNNI, built_in_costs


def convolution(op: str = "conv2d", groups: int = 1, **more: Arg) -> Call:
    weight = Shaped(DType.FLOAT32, (24, 8 // groups, 3, 3))
    attrs: dict[str, Arg] = {"stride": (1, 1), "groups": groups, **more}
    x = Shaped(DType.FLOAT32, (1, 8, 10, 10))
    return Call(OpName(op), (x, weight, None), (1, 24, 10, 10), FrozenMap(attrs))


TABLE = Costs("mine", "vnni", 1, FrozenMap({"conv2d": Formula(10.0, 2.0, 1.0)}))


def test_a_formula_adds_time_work_and_bytes() -> None:
    macs, size = work(convolution())
    # 24 channels are padded to 32
    assert macs == 100 * 32 * 8 * 9
    assert size == 4 * (800 + 24 * 72 + 2400)
    assert TABLE.of(convolution()) == pytest.approx(10 + 2 * macs / 1e6 + size / 1024)


def test_a_family_without_a_formula_takes_that_of_the_wider_one() -> None:
    call = convolution("conv2d", groups=8)
    macs, size = work(call)
    assert TABLE.of(call) == pytest.approx(10 + 2 * macs / 1e6 + size / 1024)


def test_what_was_measured_wins() -> None:
    call = convolution()
    measured = Costs("mine", "vnni", 1, TABLE.formulas, FrozenMap({call.text: 7.5}))
    assert measured.of(call) == 7.5
    assert measured.of(convolution(dilation=(2, 2))) == TABLE.of(call)


def test_a_kernel_nobody_measured_has_no_price() -> None:
    assert TABLE.of(Call(OpName("matmul"), (), (1,))) is None


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (convolution(groups=8), "conv2d.depthwise"),
        (convolution(groups=2), "conv2d.grouped"),
        (convolution("conv3d"), "conv2d"),
        (convolution("onednn.conv2d", x_zero_point=3), "onednn.conv2d.shifted"),
        (convolution("packed.conv2d", engine="fbgemm", x_zero_point=0), "packed.conv2d/fbgemm"),
    ],
)
def test_a_call_is_priced_by_what_makes_another_kernel_of_it(call: Call, name: str) -> None:
    assert family(call) == name


def test_only_whether_a_zero_point_is_zero_matters() -> None:
    attrs = FrozenMap[Arg]({"x_scale": 0.3, "x_zero_point": 17, "zero_point": 0, "groups": 1})
    assert nominal(attrs) == FrozenMap(
        {"x_scale": SCALE, "x_zero_point": SHIFTED, "zero_point": 0, "groups": 1}
    )


def test_a_table_is_an_option_and_comes_back() -> None:
    assert costs_from_arg(costs_to_arg(TABLE)).unwrap() == TABLE
    assert costs_from_arg(None).unwrap() is None


@pytest.mark.parametrize(
    "code",
    [
        None,
        {},
        {"version": 1, "formulas": {}, "measured": {}, "sizes": {}},
        {"version": 2, "name": "", "isa": "", "threads": 1, "formulas": {}, "measured": {}}
        | {"sizes": {}},
        {"version": 1, "name": "", "isa": "", "threads": 1, "formulas": {"a": [1.0]}}
        | {"measured": {}, "sizes": {}},
        {"version": 1, "name": "", "isa": "", "threads": 1, "formulas": {}}
        | {"measured": {"a": -1.0}, "sizes": {}},
        {"version": 1, "name": "", "isa": "", "threads": 1, "formulas": {}}
        | {"measured": {}, "sizes": {"batch": 0}},
    ],
)
def test_what_is_no_table_is_refused(code: Json) -> None:
    kind = fold(costs_from_json(code), lambda _: None, lambda fault: fault.kind)
    assert kind is FaultKind.BAD_ARGUMENT


def test_packed_kernels_take_more_among_others_than_alone() -> None:
    packed = convolution("packed.conv2d", engine="onednn", x_zero_point=0)
    pointwise = convolution("onednn.conv2d")
    table = built_in_costs(onednn())
    assert table is not None
    row = VNNI.formulas["packed.conv2d/onednn"]
    extra = among_others(packed)
    assert extra > 18.0
    assert table.of(packed) == pytest.approx(row.at(*work(packed)) + extra)
    assert among_others(pointwise) == 0.0
    assert table.of(pointwise) == VNNI.of(pointwise)


def test_there_is_a_built_in_table_for_every_target_of_x86() -> None:
    for target in (onednn(), onednn().narrowed(), *(native(e).unwrap() for e in ("x86", "fbgemm"))):
        table = built_in_costs(target)
        assert table is not None
        assert (table.threads, table.measured) == (1, FrozenMap())
    assert built_in_costs(native("qnnpack").unwrap()) is None
    assert built_in_costs(reference()) is None
