"""The short road and the package's front door."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fqx
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import Stage
from fqx.kit.result import Result, fold
from fqx.testing.small import batches, small_net


def fault_of(result: Result[fqx.Quantized, fqx.Halt]) -> Fault:
    return fold(result, lambda value: pytest.fail(f"no fault: {value!r}"), lambda h: h.fault)


@pytest.fixture(scope="module")
def done() -> fqx.Quantized:
    return fqx.quantize(small_net(), (batches()[0],), batches(), progress=False).unwrap()


def test_quantize_gives_a_running_int8_module(done: fqx.Quantized) -> None:
    assert done.graph.stage is Stage.LOWERED
    module = done.materialize().unwrap()
    net, x = small_net(), batches()[0]
    with torch.no_grad():
        assert fqx.sqnr(net(x), module(x)) > 20.0
    assert fqx.count_macs(module, (x,)).share > 0.9


def test_the_callers_model_is_not_changed() -> None:
    net = small_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    keys = set(vars(net))
    fqx.quantize(net, (batches()[0],), batches(), progress=False).unwrap()
    assert set(vars(net)) == keys
    assert not net.training
    assert all(torch.equal(before[name], found) for name, found in net.state_dict().items())


def test_reprs_are_short_and_have_html(done: fqx.Quantized) -> None:
    assert len(repr(done).splitlines()) <= 10
    assert "<table>" in done._repr_html_()
    assert len(repr(done.coverage()).splitlines()) <= 10
    assert done.plan is not None
    assert "int8" in str(done.explain("conv"))


@pytest.mark.parametrize("what", ["model", "trail"])
def test_save_and_load(done: fqx.Quantized, tmp_path: Path, what: str) -> None:
    digest = done.save(tmp_path / "a.fqx", "model" if what == "model" else "trail").unwrap()
    found = fqx.load(tmp_path / "a.fqx", digest=digest).unwrap()
    x = batches()[1]
    with torch.no_grad():
        expected = done.materialize().unwrap()(x)
        assert torch.equal(found.materialize().unwrap()(x), expected)
    assert found.coverage() == done.coverage()


def test_the_whole_trail_verifies(done: fqx.Quantized) -> None:
    proof = fqx.verify(done.trail, small_net().state_dict(), small_net(), batches()).unwrap()
    assert proof.digest == done.graph.digest
    assert [step.outcome for step in proof.steps].count("applied, not replayed") == 1


@pytest.mark.parametrize("target", ["onednn", "native/fbgemm", "reference"])
def test_targets_by_name(target: str) -> None:
    found = fqx.quantize(
        small_net(), (batches()[0],), batches(), target=target, progress=False
    ).unwrap()
    net, x = small_net(), batches()[0]
    with torch.no_grad():
        assert fqx.sqnr(net(x), found.materialize().unwrap()(x)) > 20.0


X = batches()[0]
WRONG: dict[str, tuple[FaultKind, Callable[[], Result[fqx.Quantized, fqx.Halt]]]] = {
    "target": (FaultKind.UNSUPPORTED_TARGET, lambda: attempted([X], target="tpu")),
    "no batches": (FaultKind.EMPTY_CALIBRATION, lambda: attempted([])),
    "empty batch": (FaultKind.EMPTY_BATCH, lambda: attempted([X[:0]])),
    "nan": (FaultKind.NOT_FINITE, lambda: attempted([torch.full_like(X, float("nan"))])),
    "arity": (FaultKind.BATCH_DOES_NOT_FIT, lambda: attempted([(X, X)])),
    "training": (
        FaultKind.MODEL_IN_TRAINING,
        lambda: fqx.quantize(small_net().train(), (X,), [X], progress=False),
    ),
    "path": (
        FaultKind.UNMATCHED_RULE,
        lambda: attempted([X], recipe=fqx.int8_static() | fqx.leave_float(fqx.path("conv3"))),
    ),
    "leaf": (
        FaultKind.UNKNOWN_LEAF,
        lambda: fqx.quantize(small_net(), (X,), [X], leaves=("conv3",), progress=False),
    ),
}


def attempted(
    data: list[object], target: str | None = None, recipe: fqx.Recipe | None = None
) -> Result[fqx.Quantized, fqx.Halt]:
    return fqx.quantize(small_net(), (X,), data, target=target, recipe=recipe, progress=False)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_things_are_named_faults(name: str) -> None:
    kind, call = WRONG[name]
    fault = fault_of(call())
    assert fault.kind is kind
    assert fault.remedy


def image_of(pair: object) -> object:
    assert isinstance(pair, dict)
    return pair["image"]


def test_labels_are_picked_out() -> None:
    pairs = [{"image": batch, "label": torch.zeros(4)} for batch in batches()]
    one = fqx.quantize(
        small_net(), (batches()[0],), pairs, inputs=image_of, progress=False
    ).unwrap()
    two = fqx.quantize(small_net(), (batches()[0],), batches(), progress=False).unwrap()
    assert one.graph.digest == two.graph.digest


def test_both_captures_give_one_program(done: fqx.Quantized) -> None:
    other = fqx.quantize(
        small_net(), (batches()[0],), batches(), how="symbolic", progress=False
    ).unwrap()
    assert other.graph.digest == done.graph.digest


def test_objectives_are_recipes() -> None:
    target = fqx.probe(fqx.onednn()).unwrap()
    texts = {
        str(fqx.pipeline(target, batches(), objective=name))
        for name in ("balanced", "accuracy", "speed")
    }
    assert len(texts) >= 1


def test_public_names_are_all_there() -> None:
    for name in fqx.__all__:
        assert getattr(fqx, name) is not None
    assert set(fqx.__all__) <= set(dir(fqx))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = fqx.quantise


def test_parts_load_no_torch() -> None:
    code = "import sys, fqx, fqx.ir, fqx.match, fqx.cli.arguments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
