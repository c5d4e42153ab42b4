"""Replaying a trail proves its digest, and says which weight or step does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fqx
from fqx.api import Objective
from fqx.edge.artefact import read, save_model, save_trail
from fqx.edge.rebuild import rebuild
from fqx.edge.verify import Verified, example_call, verify
from fqx.ir.arg import Arg, DType, decode_arg, encode_arg
from fqx.ir.diff import rewritten
from fqx.ir.edit import Changed
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import RuleName
from fqx.ir.trail import Halt, Trail
from fqx.ir.weight import Role
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Result, fold
from fqx.num.scheme import histogram, int8_channel, uint8_affine
from fqx.policy.recipe import Scheme, recipe_from_arg, recipe_to_arg
from fqx.policy.target import IntRange
from fqx.testing.small import batches, quantized_trail, small_net


def fault_of(result: Result[Verified, Halt]) -> Fault:
    return fold(result, lambda value: pytest.fail(f"no fault: {value!r}"), lambda h: h.fault)


def test_every_portable_pass_is_run_again() -> None:
    trail = quantized_trail()
    proof = verify(trail).unwrap()
    assert proof.digest == trail.graph.digest
    applied = {step.text.split("(")[0]: step.why for step in proof.steps if step.why}
    assert applied == {"calibrate": "a measurement"}
    assert "calibrate applied, not replayed: a measurement" in repr(proof)
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
        fqx.decompose_recurrent(),
        fqx.decompose_attention(),
        fqx.fold(),
        fqx.smooth(),
        fqx.observe(fqx.int8_static(), target, fqx.reference()),
        fqx.convert(target),
        fqx.lower(target),
        fqx.lower(fqx.native("fbgemm").unwrap()),
    ):
        again = rebuild(item.name, item.options).unwrap()
        assert again == item
        assert str(again) == str(item)
        assert len(str(item)) < 300
    assert "not a pass" in rebuild("mine", FrozenMap[Arg]()).failure()


def test_every_selector_is_data_but_predicates() -> None:
    kept = fqx.path("conv2") | fqx.regex(r"^head$") & ~fqx.op("conv2d", "linear")
    kept = kept | fqx.node("head") | fqx.module_type("Linear") | fqx.scope("layer*")
    recipe = (
        fqx.int8_static()
        | fqx.use(fqx.op("linear"), Scheme(uint8_affine(histogram("entropy")), int8_channel()))
        | fqx.leave_float(kept).required()
        | fqx.float_()
    )
    held = decode_arg(json.loads(json.dumps(encode_arg(recipe_to_arg(recipe)))))
    assert recipe_from_arg(held).unwrap() == recipe
    named = fqx.leave_float(~fqx.predicate(lambda node: node.op == "tanh", "tanhs"))
    fault = recipe_from_arg(recipe_to_arg(recipe | named)).failure()
    assert fault.kind is FaultKind.BAD_RECIPE
    assert "'tanhs' is a function" in fault.reason
    for broken in (None, (None,), ({"select": None},), (FrozenMap[Arg]({"select": 1}),)):
        wrong: Any = broken
        assert recipe_from_arg(wrong).failure().kind is FaultKind.BAD_RECIPE


def without(target: fqx.Target, *kernels: str) -> fqx.Target:
    """A target as probe leaves it on a machine where these kernels are wrong."""
    return replace(target, units=tuple(kind for kind in target.units if kind.kernel not in kernels))


def road(recipe: fqx.Recipe, target: fqx.Target) -> fqx.Pipeline:
    return (
        fqx.clean()
        | fqx.fuse()
        | fqx.observe(recipe, target)
        | fqx.calibrate(batches(), progress=False)
        | fqx.smooth()
        | fqx.convert(target)
        | fqx.fold()
        | fqx.lower(target)
    )


def not_replayed(trail: Trail) -> dict[str, str]:
    """The steps of a trail, as a file gives it back, that verify only applies, and why."""
    proof = verify(trail).unwrap()
    assert proof.digest == trail.graph.digest
    return {step.text.split("(")[0]: step.why for step in proof.steps if step.why}


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(fqx.onednn().narrowed(), id="narrowed"),
        pytest.param(without(fqx.onednn(), "onednn.add", "onednn.conv2d_add"), id="no add"),
        pytest.param(
            without(fqx.native("x86").unwrap().narrowed(), "native.add"), id="narrowed native"
        ),
        pytest.param(
            replace(fqx.reference(), activation=IntRange(DType.UINT8, 0, 63)), id="other range"
        ),
    ],
)
def test_steps_for_the_targets_that_probe_gives_are_replayed(
    target: fqx.Target, tmp_path: Path
) -> None:
    recipe = fqx.int8_static() | fqx.leave_float(fqx.path("head"))
    done = fqx.capture(small_net(), (batches()[0],)).bind(road(recipe, target).run).unwrap()
    save_trail(tmp_path / "t.fqx", done).unwrap()
    assert not_replayed(read(tmp_path / "t.fqx").unwrap().trail) == {"calibrate": "a measurement"}


@pytest.mark.parametrize("objective", ["accuracy", "balanced", "coverage", "speed"])
def test_every_objective_is_replayed(objective: Objective) -> None:
    done = fqx.quantize(
        small_net(), (batches()[0],), batches(), objective=objective, progress=False
    ).unwrap()
    assert not_replayed(done.trail) == {"calibrate": "a measurement"}


def test_what_cannot_be_replayed_is_said() -> None:
    target = fqx.reference()
    first = target.units[0]
    odd = replace(target, units=(replace(first, shares=not first.shares), *target.units[1:]))
    recipe = fqx.int8_static() | fqx.leave_float(
        fqx.predicate(lambda node: node.op == "no", "nothing")
    )
    done = fqx.capture(small_net(), (batches()[0],)).bind(road(recipe, odd).run).unwrap()
    why = not_replayed(done)
    assert sorted(why) == ["calibrate", "convert", "lower", "observe"]
    assert "'nothing' is a function" in why["observe"]
    assert "other tables" in why["convert"]
    assert "applied, not replayed" in repr(verify(done).unwrap())


def test_a_pipeline_reads_well() -> None:
    text = str(road(fqx.int8_static(), fqx.onednn()))
    assert text.startswith("clean | fuse | observe(recipe=")
    assert 'lower(target="onednn")' in text
    assert len(text) < 600


def test_example_call_fits_the_signature() -> None:
    args, kwargs = example_call(quantized_trail().base.signature)
    assert [tuple(item.shape) for item in args if isinstance(item, torch.Tensor)] == [(2, 3, 8, 8)]
    assert not kwargs


def test_statistics_are_what_calibrate_recorded() -> None:
    trail = quantized_trail()
    calibrated = next(step.graph for step in trail.steps if step.name == "calibrate")
    assert any(weight.role is Role.STATISTIC for weight in calibrated.weights.values())
