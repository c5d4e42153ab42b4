"""Every law bites: what is wrong in one way is rejected by exactly the law of that way."""

from __future__ import annotations

import pytest

from fqx.passes.fuse_kernels import fuse_kernels
from fqx.passes.pipeline import Pass
from fqx.policy.target import Target
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.testing.captures import CAPTURE_LAWS, captured
from fqx.testing.correction import CORRECTION_LAWS
from fqx.testing.joins import RUNS_THE_SAME
from fqx.testing.laws import PASS_LAWS, broken, violations
from fqx.testing.observations import BIN_LAWS, OBSERVER_LAWS
from fqx.testing.quantization import ROAD_LAWS
from properties.planted import captures, corrections, joins, passes, roads, sightings
from properties.planted.passes import Planted


@pytest.mark.parametrize("case", passes.CASES, ids=lambda case: f"{case.law}: {case.title}")
def test_a_wrong_pass_breaks_its_law_alone(case: Planted) -> None:
    found = violations(case.rewrite, passes.sample(), case.laws, passes.inputs())
    assert {item.law for item in found} == {case.law}, "\n".join(map(str, found))


@pytest.mark.parametrize("rewrite", passes.HONEST, ids=str)
def test_a_right_pass_breaks_none(rewrite: Pass) -> None:
    assert not violations(rewrite, passes.sample(), passes.ALL, passes.inputs())


def test_every_pass_law_has_a_plant() -> None:
    laws = {law.name for law in (*passes.ALL, *passes.INEXACT)}
    assert {case.law for case in passes.CASES} == laws


@pytest.mark.parametrize("case", roads.CASES, ids=lambda case: f"{case.law}: {case.title}")
def test_a_wrong_road_breaks_its_law_alone(case: roads.Planted) -> None:
    found = broken(ROAD_LAWS, case.make())
    assert {item.law for item in found} == {case.law}, "\n".join(map(str, found))


@pytest.mark.parametrize("target", [onednn(), reference()], ids=lambda target: target.label)
def test_a_right_road_breaks_none(target: Target) -> None:
    assert not broken(ROAD_LAWS, roads.honest(target))


def test_every_road_law_has_a_plant() -> None:
    assert {case.law for case in roads.CASES} == {law.name for law in ROAD_LAWS}


@pytest.mark.parametrize("case", sightings.CASES, ids=lambda case: f"{case.law}: {case.title}")
def test_a_wrong_observer_breaks_its_law_alone(case: sightings.Planted) -> None:
    found = broken(OBSERVER_LAWS, case.subject())
    assert {item.law for item in found} == {case.law}, "\n".join(map(str, found))


@pytest.mark.parametrize("case", sightings.BIN_CASES, ids=lambda case: f"{case.law}: {case.title}")
def test_a_wrong_histogram_breaks_its_law_alone(case: sightings.PlantedBins) -> None:
    found = broken(BIN_LAWS, case.subject())
    assert {item.law for item in found} == {case.law}, "\n".join(map(str, found))


def test_every_observer_law_has_a_plant() -> None:
    assert {case.law for case in sightings.CASES} == {law.name for law in OBSERVER_LAWS}
    assert {case.law for case in sightings.BIN_CASES} == {law.name for law in BIN_LAWS}


@pytest.mark.parametrize("case", captures.CASES, ids=lambda case: f"{case.law}: {case.title}")
def test_a_wrong_capture_breaks_its_law_alone(case: captures.Planted) -> None:
    found = broken(CAPTURE_LAWS, case.subject())
    assert {item.law for item in found} == {case.law}, "\n".join(map(str, found))


def test_a_right_capture_breaks_none() -> None:
    assert not broken(CAPTURE_LAWS, captured(captures.SAMPLE, captures.OTHER))


def test_every_capture_law_has_a_plant() -> None:
    assert {case.law for case in captures.CASES} == {law.name for law in CAPTURE_LAWS}


@pytest.mark.parametrize("case", corrections.CASES, ids=lambda case: f"{case.law}: {case.title}")
def test_a_wrong_correction_breaks_its_law_alone(case: corrections.Planted) -> None:
    found = broken(CORRECTION_LAWS, case.subject())
    assert {item.law for item in found} == {case.law}, "\n".join(map(str, found))


def test_a_right_correction_breaks_none() -> None:
    assert not broken(CORRECTION_LAWS, corrections.honest())


def test_every_correction_law_has_a_plant() -> None:
    assert {case.law for case in corrections.CASES} == {law.name for law in CORRECTION_LAWS}


@pytest.mark.parametrize("case", joins.CASES, ids=lambda case: case.title)
def test_a_wrong_join_breaks_the_law_of_its_results_alone(case: joins.Planted) -> None:
    laws = (*PASS_LAWS, RUNS_THE_SAME)
    found = violations(case.rewrite(), joins.sample(), laws, joins.inputs())
    assert {item.law for item in found} == {RUNS_THE_SAME.name}, "\n".join(map(str, found))


def test_a_right_join_breaks_none() -> None:
    laws = (*PASS_LAWS, RUNS_THE_SAME)
    assert not violations(fuse_kernels(onednn()), joins.sample(), laws, joins.inputs())
