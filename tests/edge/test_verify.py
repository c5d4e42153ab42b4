"""Replaying a trail proves its digest, and says which weight or step does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fqx
from fqx.edge.artefact import read, save_model, save_trail
from fqx.edge.rebuild import rebuild
from fqx.edge.verify import Verified, example_call, verify
from fqx.ir.arg import Arg
from fqx.ir.diff import rewritten
from fqx.ir.edit import Changed
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import RuleName
from fqx.ir.trail import Halt, Trail
from fqx.ir.weight import Role
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Result, fold
from fqx.testing.small import batches, quantized_trail, small_net


def fault_of(result: Result[Verified, Halt]) -> Fault:
    return fold(result, lambda value: pytest.fail(f"no fault: {value!r}"), lambda h: h.fault)


def test_every_portable_pass_is_run_again() -> None:
    trail = quantized_trail()
    proof = verify(trail).unwrap()
    assert proof.digest == trail.graph.digest
    applied = [step.text.split("(")[0] for step in proof.steps if step.outcome == "applied"]
    assert applied == ["calibrate"]
    assert len(repr(proof).splitlines()) <= 10


def test_detached_trail_is_completed_from_the_state_dict(tmp_path: Path) -> None:
    save_trail(tmp_path / "d.fqx", quantized_trail(), "detached").unwrap()
    found = read(tmp_path / "d.fqx").unwrap().trail
    assert fault_of(verify(found)).kind is FaultKind.MISSING_PAYLOAD
    proof = verify(found, small_net().state_dict()).unwrap()
    assert proof.digest == quantized_trail().graph.digest
    x = batches()[0]
    one = fqx.materialize(quantized_trail().graph).unwrap()
    two = fqx.materialize(proof.trail.graph).unwrap()
    with torch.no_grad():
        assert torch.equal(one(x), two(x))


def test_other_weights_are_named() -> None:
    state = small_net().state_dict()
    state["conv2.weight"] = state["conv2.weight"] + 1
    fault = fault_of(verify(quantized_trail(), state))
    assert fault.kind is FaultKind.DIGEST_DIFFERS
    assert "conv2.weight" in fault.reason
    del state["conv2.weight"]
    assert "is not there" in fault_of(verify(quantized_trail(), state)).reason


def test_model_is_captured_again() -> None:
    assert verify(quantized_trail(), model=small_net()).unwrap().model
    other = small_net()
    other.relu = torch.nn.Hardswish()  # type: ignore[assignment]  # another model on purpose
    fault = fault_of(verify(quantized_trail(), model=other))
    assert fault.kind is FaultKind.DIGEST_DIFFERS
    assert "captured again" in fault.reason


def test_calibration_is_measured_again() -> None:
    again = verify(quantized_trail(), calibration=reversed(batches())).unwrap().closeness
    assert again is not None
    assert again.equal == again.observers > 0
    wider = [batch * 1.5 for batch in batches()]
    found = verify(quantized_trail(), calibration=wider).unwrap().closeness
    assert found is not None
    assert found.equal < found.observers
    assert 0.1 < found.largest < 1.0


def test_forged_step_is_named() -> None:
    """A diff that leads where its pass does not: every digest fits, the replay does not."""
    trail = quantized_trail()
    index = next(i for i, step in enumerate(trail.steps) if step.name == "convert")
    before, step = trail.graphs()[index], trail.steps[index]
    node = next(node for node in step.graph if node.op == "quantize")
    scale = node.args[1]
    assert isinstance(scale, float)
    other = node.with_args((node.args[0], scale * 2, *node.args[2:]))
    edits = (*step.diff.edits, Changed(node, other, RuleName("convert")))
    forged = rewritten(before, edits).unwrap()
    steps = (*trail.steps[:index], replace(step, diff=forged.diff, graph=forged.graph))
    fault = fault_of(verify(Trail(trail.base, steps)))
    assert fault.kind is FaultKind.DIGEST_DIFFERS
    assert "convert" in fault.reason


def test_model_artefacts_have_nothing_to_replay(tmp_path: Path) -> None:
    save_model(tmp_path / "m.fqx", quantized_trail()).unwrap()
    found = read(tmp_path / "m.fqx").unwrap()
    assert fault_of(verify(found.trail)).kind is FaultKind.BAD_ARGUMENT
    assert fault_of(verify(fqx.Trail(found.trail.base))).kind is FaultKind.BAD_ARGUMENT


def test_no_calibration_to_compare_with() -> None:
    road = fqx.clean() | fqx.fuse()
    trail = fqx.capture(small_net(), (batches()[0],)).bind(road.run).unwrap()
    assert verify(trail).unwrap().digest == trail.graph.digest
    assert fault_of(verify(trail, calibration=batches())).kind is FaultKind.BAD_ARGUMENT


def test_passes_are_made_again_from_their_options() -> None:
    target = fqx.onednn().narrowed()
    for item in (
        fqx.clean(),
        fqx.fuse(),
        fqx.fold(),
        fqx.smooth(),
        fqx.observe(fqx.int8_static(), target, fqx.reference()),
        fqx.convert(target),
        fqx.lower(target),
        fqx.lower(fqx.native("fbgemm").unwrap()),
    ):
        again = rebuild(item.name, item.options).unwrap()
        assert again is not None, item.name
        assert str(again) == str(item)
    assert rebuild("mine", FrozenMap[Arg]()).unwrap() is None
    custom = fqx.int8_static() | fqx.leave_float(
        fqx.predicate(lambda node: node.op == "tanh", "tanhs")
    )
    mine = fqx.observe(custom, target)
    assert rebuild(mine.name, mine.options).unwrap() is None


def test_example_call_fits_the_signature() -> None:
    args, kwargs = example_call(quantized_trail().base.signature)
    assert [tuple(item.shape) for item in args if isinstance(item, torch.Tensor)] == [(2, 3, 8, 8)]
    assert not kwargs


def test_statistics_are_what_calibrate_recorded() -> None:
    trail = quantized_trail()
    calibrated = next(step.graph for step in trail.steps if step.name == "calibrate")
    assert any(weight.role is Role.STATISTIC for weight in calibrated.weights.values())
