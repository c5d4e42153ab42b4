"""The demo keeps its promises: accuracy, fidelity, one program, a verified record."""

from __future__ import annotations

from pathlib import Path

import pytest

from fqx.cli.demo import run_demo


def test_the_digits_demo_keeps_its_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo("digits", tmp_path) == 0
    said = capsys.readouterr().out
    assert "both captures give the same program" in said
    assert "computes the same bits" in said
    assert "captured again: the same base graph" in said
    assert "on every target: yes" in said
    assert (tmp_path / "digits-trail.fqx").stat().st_size < 4 << 20


def test_the_minilm_demo_keeps_its_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo("minilm", tmp_path) == 0
    said = capsys.readouterr().out
    assert "Verified" in said
    assert "no recipe given" in said
