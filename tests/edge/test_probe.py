"""Probing finds out what a machine computes wrong."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from fqx.edge.probe import probe, trials
from fqx.ir.fault import FaultKind
from fqx.ir.names import OpName
from fqx.policy.target import UINT7, UINT8
from fqx.targets.native import ENGINES, native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference

X86 = platform.machine().lower() in ("x86_64", "amd64")

SCRIPT = """
from fqx.edge.probe import probe, trials
from fqx.targets.onednn import onednn
found = probe(onednn()).unwrap()
wrong = [t for t in trials(onednn()) if not t.passes]
print(found.label, found.activation.qmax, bool(wrong), all(t.passes for t in trials(found)))
"""


@pytest.mark.skipif(not X86, reason="oneDNN's ISA limit is of x86")
def test_without_vnni_the_range_is_narrow() -> None:
    limits = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=limits, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["onednn@any", "127", "True", "True"]


@pytest.mark.parametrize("name", ["onednn", *ENGINES])
def test_what_comes_out_is_right_here(name: str) -> None:
    target = onednn() if name == "onednn" else native(name).unwrap()
    found = probe(target).unwrap()
    assert all(trial.passes for trial in trials(found))
    assert found.activation in (UINT8, UINT7)
    assert target.activation.contains(found.activation)
    assert probe(found).unwrap() == found


def test_probing_leaves_torch_alone() -> None:
    before = (torch.backends.quantized.engine, torch.get_num_threads(), torch.is_grad_enabled())
    for engine in ENGINES:
        probe(native(engine).unwrap()).unwrap()
    after = (torch.backends.quantized.engine, torch.get_num_threads(), torch.is_grad_enabled())
    assert before == after


def test_a_target_without_kernels_is_as_it_is() -> None:
    assert probe(reference()).unwrap() == reference()


def test_fbgemm_sums_depthwise_products_in_int16() -> None:
    """Why its range is narrow on every machine."""
    wide = replace(native("fbgemm").unwrap(), activation=UINT8, isa="vnni")
    if all(trial.passes for trial in trials(wide)):
        pytest.skip("this fbgemm is exact")
    found = probe(wide).unwrap()
    assert found.activation == UINT7
    assert {trial.kernel for trial in trials(wide) if not trial.passes} <= {
        "native.conv2d",
        "native.conv3d",
        "native.linear",
        "native.conv1d",
    }


def test_an_engine_that_is_not_there_is_a_fault() -> None:
    target = native("fbgemm").unwrap()
    absent = replace(target, engine="nosuch", units=target.units)
    fault = probe(absent).failure()
    assert fault.kind is FaultKind.UNSUPPORTED_TARGET
    assert "native/nosuch" in fault.reason
    assert "reference" in fault.remedy


def test_a_wrong_kernel_leaves_the_target() -> None:
    """A kernel of plain integers among those of quantized tensors."""
    moved = [kind for kind in onednn().units if kind.name == "linear_gelu"]
    target = native("qnnpack").unwrap()
    with_wrong = replace(target, units=(*target.units, *moved))
    assert OpName("onednn.linear") in {
        trial.kernel for trial in trials(with_wrong) if not trial.passes
    }
    found = probe(with_wrong).unwrap()
    assert "linear_gelu" not in {kind.name for kind in found.units}
    assert found.kinds(OpName("conv2d"))
