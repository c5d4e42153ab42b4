"""The tables of the targets: complete, consistent, plain data."""

from __future__ import annotations

import json

import pytest

from fqx.ir.fault import FaultKind
from fqx.ir.names import OpName
from fqx.ops.catalogue import OPS, Trait
from fqx.policy.target import UINT7, Target
from fqx.policy.units import Form
from fqx.targets import native as native_table
from fqx.targets import onednn as onednn_table
from fqx.targets.native import ENGINES, native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.targets.shapes import JOINING, MOVING, ZERO_AWARE

TARGETS = (onednn(), *(native(engine).unwrap() for engine in ENGINES), reference())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_rows_name_operators_and_operands_of_the_catalogue(target: Target) -> None:
    for kind in target.units:
        row = OPS[kind.anchor]
        names = [item.name for item in row.operands]
        assert set(kind.int8) <= set(names)
        assert kind.weight is None or kind.weight in names
        assert all(op in OPS for op in kind.absorbs)
        assert kind.outputs
        assert not kind.shares or kind.outputs == {Form.INT8}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_rows_are_there_once(target: Target) -> None:
    keys = [(k.anchor, k.absorbs, k.int8, k.mode, k.needs) for k in target.units]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_kernels_have_schemas(target: Target) -> None:
    schemas = {kernel.op for kernel in (*onednn_table.KERNELS, *native_table.KERNELS)}
    for kind in target.units:
        assert target.name != "reference" or kind.kernel is None
        assert kind.kernel is None or kind.kernel in schemas or kind.kernel in OPS


def test_schemas_are_there_once() -> None:
    for table in (onednn_table.KERNELS, native_table.KERNELS):
        assert len(table) == len({kernel.op for kernel in table})
    # kernels on floats stand in both tables, with one schema
    shared = {*onednn_table.KERNELS, *native_table.KERNELS}
    assert len(shared) == len({kernel.op for kernel in shared})


def test_movers_share_qparams_in_the_catalogue_too() -> None:
    for op in (*MOVING, *ZERO_AWARE):
        traits = OPS[OpName(op)].traits
        assert Trait.SAME_QPARAMS in traits or op == "relu"
    assert set(JOINING) <= set(MOVING)


def test_every_target_has_the_units_the_plan_needs() -> None:
    for target in TARGETS:
        for op in ("conv1d", "conv2d", "conv3d", "linear", "add", "mul", "cat", "max_pool2d"):
            assert target.kinds(OpName(op)), (target.label, op)
    names = {kind.name for kind in onednn().units}
    assert {"conv2d_add_relu", "conv2d_relu", "linear_gelu", "conv2d_silu", "add_relu"} <= names


def test_labels_and_plain_data() -> None:
    assert [target.label for target in TARGETS] == [
        "onednn",
        "native/x86@any",
        "native/fbgemm@any",
        "native/onednn",
        "native/qnnpack",
        "reference",
    ]
    for target in TARGETS:
        assert json.loads(json.dumps(target.to_json())) == target.to_json()
        assert target.label in repr(target)


def test_narrowing() -> None:
    wide, narrow = onednn(), onednn().narrowed()
    assert narrow.activation == UINT7
    assert wide.covers(narrow)
    assert not narrow.covers(wide)
    assert not wide.covers(native("onednn").unwrap())


def test_an_unknown_engine_is_a_fault() -> None:
    fault = native("cuda").failure()
    assert fault.kind is FaultKind.UNSUPPORTED_TARGET
    assert "x86" in fault.remedy
