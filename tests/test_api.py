"""The short road and the package's front door."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch

import fqx
from fqx.api import Objective
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import Stage
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Result, fold
from fqx.passes.lower import Lowering
from fqx.testing.small import batches, small_net


def fault_of(result: Result[fqx.Quantized, fqx.Halt]) -> Fault:
    return fold(result, lambda value: pytest.fail(f"no fault: {value!r}"), lambda h: h.fault)


@pytest.fixture(scope="module")
def done() -> fqx.Quantized:
    return fqx.quantize(
        small_net(), (batches()[0],), batches(), objective="balanced", progress=False
    ).unwrap()


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
        small_net(), (batches()[0],), batches(), target=target, objective="balanced", progress=False
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
        small_net(),
        (batches()[0],),
        batches(),
        how="symbolic",
        objective="balanced",
        progress=False,
    ).unwrap()
    assert other.graph.digest == done.graph.digest


def test_objectives_are_recipes() -> None:
    target = fqx.probe(fqx.onednn()).unwrap()
    lines = [
        fqx.pipeline(target, batches(), objective=name).passes
        for name in ("balanced", "accuracy", "coverage", "speed")
    ]
    asked = [[item.options for item in line] for line in lines]
    assert all(one != two for one, two in combinations(asked, 2))


def floats_of(done: fqx.Quantized) -> list[str]:
    return [unit.anchor for unit in lowering_of(done).priced if unit.floating]


def lowering_of(done: fqx.Quantized) -> Lowering:
    found = (step.evidence for step in reversed(done.trail.steps))
    return next(item for item in found if isinstance(item, Lowering))


def test_speed_is_the_default_and_costs_no_more_than_either_extreme() -> None:
    made = fqx.quantize(small_net(), (batches()[0],), batches(), progress=False).unwrap()
    asked = fqx.quantize(
        small_net(), (batches()[0],), batches(), objective="speed", progress=False
    ).unwrap()
    assert made.graph.digest == asked.graph.digest
    lowering = lowering_of(made)
    assert lowering.estimate is not None
    assert lowering.estimate.chosen <= min(lowering.estimate.int8, lowering.estimate.floating)


SPEED_AND_BALANCED: tuple[Objective, ...] = ("speed", "balanced")


def test_a_target_without_a_table_runs_on_integers_what_it_can() -> None:
    made, all_int8 = (
        fqx.quantize(
            small_net(), (X,), [X], target="reference", objective=objective, progress=False
        ).unwrap()
        for objective in SPEED_AND_BALANCED
    )
    assert made.graph.digest == all_int8.graph.digest


def test_what_a_rule_of_the_user_asks_for_stays_on_integers() -> None:
    """A network so small that by the table every part of it is faster in float."""

    def made(recipe: fqx.Recipe | None) -> fqx.Quantized:
        return fqx.quantize(
            small_net(), (X[:1],), [X], recipe=recipe, target="onednn", progress=False
        ).unwrap()

    everywhere = floats_of(made(None))
    assert "conv" in everywhere
    # a preset is a wish like the default's
    assert floats_of(made(fqx.int8_static())) == everywhere
    scheme = fqx.int8_static().rules[0].scheme
    assert scheme is not None
    named = made(fqx.int8_static() | fqx.use(fqx.path("conv"), scheme))
    assert floats_of(named) == [name for name in everywhere if name != "conv"]
    assert fqx.verify(named.trail).unwrap().digest == named.graph.digest
    inside = made(fqx.int8_static() | fqx.within("conv", fqx.int8_static(), "quantized"))
    assert "conv" not in floats_of(inside)


def test_what_was_asked_for_by_name_is_not_given_up_where_measured_float_is_faster() -> None:
    scheme = fqx.int8_static().rules[0].scheme
    assert scheme is not None
    table = fqx.Costs("dear", "vnni", 1, FrozenMap(), FrozenMap({"another call": 1.0}))
    recipe = fqx.int8_static() | fqx.use(fqx.path("conv"), scheme)
    done = fqx.quantize(small_net(), (X,), [X], recipe=recipe, costs=table, progress=False).unwrap()
    assert done.timing is not None
    assert done.graph.stage is Stage.LOWERED


def test_speed_says_of_every_unit_what_each_way_to_run_it_costs() -> None:
    done = fqx.quantize(
        small_net(), (batches()[0],), batches(), objective="speed", progress=False
    ).unwrap()
    lowering = next(step.evidence for step in done.trail.steps if step.name == "lower")
    assert isinstance(lowering, Lowering)
    assert lowering.estimate is not None
    assert lowering.estimate.chosen <= lowering.estimate.int8
    assert lowering.priced
    for unit in lowering.priced:
        account = str(done.explain(unit.anchor))
        assert unit.chosen in account
        assert "µs" in account
    net, x = small_net(), batches()[0]
    with torch.no_grad():
        assert fqx.sqnr(net(x), done.materialize().unwrap()(x)) > 20.0
    share = sum(row.macs for row in done.coverage().rows if row.reason.startswith("float costs"))
    assert (share > 0) == any(unit.floating for unit in lowering.priced)


def test_verdicts_of_costs_come_back_from_a_file(tmp_path: Path) -> None:
    done = fqx.quantize(
        small_net(), (batches()[0],), batches(), objective="speed", progress=False
    ).unwrap()
    done.save(tmp_path / "model.fqx").unwrap()
    again = fqx.load(tmp_path / "model.fqx").unwrap()
    assert again.coverage() == done.coverage()
    assert again.graph.digest == done.graph.digest


def test_what_was_measured_is_timed_against_float_and_loses_with_a_note() -> None:
    net, x = small_net(), batches()[0]
    table = fqx.Costs("dear", "vnni", 1, FrozenMap(), FrozenMap({"another call": 1.0}))
    done = fqx.quantize(net, (x,), batches(), costs=table, progress=False).unwrap()
    assert done.timing is not None
    module = done.materialize().unwrap()
    with torch.no_grad():
        assert fqx.sqnr(net(x), module(x)) > 20.0
    if done.timing.pays:
        assert done.graph.stage is Stage.LOWERED
    else:
        assert done.graph.stage is Stage.FUSED
        assert "float was kept" in done.trail.notes[-1]


def test_costs_are_measured_of_a_quantized_graph_and_chosen_by() -> None:
    net, x = small_net(), batches()[0]
    target = fqx.probe(fqx.onednn()).unwrap()
    line = fqx.pipeline(target, batches(), progress=False)
    trail = fqx.capture(net, (x,)).bind(fqx.Pipeline(line.passes[:-2]).run).unwrap()
    table = fqx.measure_costs(trail.graph, (x,), target, rounds=2).unwrap()
    assert table.sizes["batch"] == x.shape[0]
    assert all(time > 0.0 for time in table.measured.values())
    lowering = fqx.lower(target, table).run(trail).unwrap().steps[-1].evidence
    assert isinstance(lowering, Lowering)
    assert lowering.estimate is not None
    assert lowering.estimate.digest == table.digest
    prices = [price for unit in lowering.priced for _, price in unit.prices]
    assert prices
    assert None not in prices
    wrong = fqx.measure_costs(trail.base, (x,), target)
    assert fold(wrong, lambda _: None, lambda fault: fault.kind) is FaultKind.WRONG_STAGE


def test_public_names_are_all_there() -> None:
    for name in fqx.__all__:
        assert getattr(fqx, name) is not None
    assert set(fqx.__all__) <= set(dir(fqx))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = fqx.quantise


def test_parts_load_no_torch() -> None:
    code = "import sys, fqx, fqx.ir, fqx.match, fqx.cli.arguments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
