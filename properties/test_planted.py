"""Every law bites: what is wrong in one way is rejected by exactly the law of that way."""

from __future__ import annotations

import pytest

from fqx.passes.pipeline import Pass
from fqx.testing.laws import violations
from properties.planted import passes
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
