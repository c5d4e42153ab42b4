"""`fqx bench` on a small net of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fqx.cli.main import main

NET = ("bench", "fqx.testing.small:small_net", "--calibration", "fqx.testing.small:batches")
QUICK = ("--rounds", "1", "--budget", "0.001", "--contestants", "fp32,fqx")


def test_the_own_model_is_measured_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = tmp_path / "a.json", tmp_path / "a.md"
    code = main((*NET, *QUICK, "--json", str(places[0]), "--markdown", str(places[1])))
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "small_net" in shown.out
    assert shown.err == ""
    rows = json.loads(places[0].read_text())["rows"]
    assert [(row["contestant"], row["status"]) for row in rows] == [
        ("fp32", "measured"),
        ("fqx", "measured"),
    ]
    assert [row["batch"] for row in rows] == [None, None]
    assert "| small_net | fqx |" in places[1].read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--models", "nonsense"), "there is no model called 'nonsense'"),
        (("--models", "resnet18", "--contestants", "nobody"), "no contestant called 'nobody'"),
        (("fqx.testing.small:small_net",), "--calibration"),
        (("fqx.testing.small:nothing", "--calibration", NET[3]), "has no nothing"),
        (("--models", "resnet18", "--json", "no/such/folder/a.json"), "there is no folder"),
    ],
)
def test_what_cannot_be_run_is_said_before_the_run(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(("bench", *arguments)) == 2
    assert said in capsys.readouterr().err
