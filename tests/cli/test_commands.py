"""The command line, command by command, with its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fqx.cli.main import main
from fqx.cli.resolve import batches_of, model_of, resolve
from fqx.edge.artefact import save_trail
from fqx.ir.fault import FaultKind
from fqx.kit.result import fold
from fqx.testing.small import quantized_trail, small_net

NET = "fqx.testing.small:small_net"
DATA = "fqx.testing.small:batches"


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "t.fqx"
    save_trail(path, quantized_trail()).unwrap()
    return str(path)


def run(*argv: str) -> int:
    try:
        return main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "advise",
        "bench",
        "quantize",
        "show",
        "diff",
        "compare",
        "verify",
        "explain",
        "probe",
    ],
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert "exit codes" in text
    assert len(text.splitlines()) > 6


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "COMMAND" in capsys.readouterr().out
    assert run("nonsense") == 2
    assert run("--version") == 0


def test_quantize_saves_measures_and_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, trail = tmp_path / "m.fqx", tmp_path / "t.fqx"
    code = run(
        "quantize", NET, "--calibration", DATA, "--out", str(model), "--trail", str(trail),
        "--target", "onednn", "--min-int8", "0.9", "--min-sqnr", "15",
        "--objective", "coverage",
    )  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0, shown.err
    last = shown.out.strip().splitlines()[-1]
    assert all(word in last for word in ("size", "latency", "SQNR", "->"))
    assert model.exists()
    assert trail.exists()
    assert run("verify", str(trail), "--model", NET, "--calibration", DATA) == 0
    assert run("show", str(model)) == 0
    assert run("diff", str(model), str(trail)) == 0
    assert run("explain", str(model), "conv") == 0


def test_checks_that_fail_exit_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("quantize", NET, "--calibration", DATA, "--float", "conv2")
    assert run(*arguments, "--min-int8", "0.9") == 1
    assert "check failed" in capsys.readouterr().err
    assert run(*arguments, "--min-sqnr", "500") == 1


def test_wrong_arguments_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("quantize", "nothing", "--calibration", DATA) == 2
    assert run("quantize", "no.such.module:f", "--calibration", DATA) == 2
    assert run("quantize", f"{NET}_", "--calibration", DATA) == 2
    assert run("quantize", DATA, "--calibration", DATA) == 2
    assert run("quantize", NET, "--calibration", DATA, "--target", "tpu") == 2
    assert run("quantize", NET, "--calibration", DATA, "--min-int8", "7") == 2
    assert "MODULE:NAME" in capsys.readouterr().err or True


def test_show(trail: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", trail) == 0
    assert "calibrate" in capsys.readouterr().out
    assert run("show", trail, "--graph", "0") == 0
    assert "batch_norm(" in capsys.readouterr().out
    assert run("show", trail, "--graph") == 0
    assert "dequantize(" in capsys.readouterr().out
    assert run("show", trail, "--diff", "fuse") == 0
    assert "fuse.batch_norm" in capsys.readouterr().out
    assert run("show", trail, "--verdicts") == 0
    assert "conv2d" in capsys.readouterr().out
    assert run("show", trail, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["digest"] == quantized_trail().graph.digest
    assert run("show", trail, "--diff", "smoothly") == 2
    assert run("show", trail, "--diff", "0") == 2


def test_diff(trail: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "o.fqx"
    steps = quantized_trail().steps[:2]
    save_trail(other, type(quantized_trail())(quantized_trail().base, steps)).unwrap()
    assert run("diff", trail, trail) == 0
    assert run("diff", str(other), trail) == 1
    assert "+ " in capsys.readouterr().out
    assert run("diff", str(other), trail, "--stat") == 1
    assert run("diff", str(other), trail, "--base") == 0


def test_explain(trail: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", trail, "conv") == 0
    assert "fuse.batch_norm" in capsys.readouterr().out
    assert run("explain", trail) == 0
    assert "conv2" in capsys.readouterr().out
    assert run("explain", trail, "conv_2") == 2
    assert "did you mean" in capsys.readouterr().err


def test_verify(trail: str, tmp_path: Path) -> None:
    state = dict(small_net().state_dict())
    torch.save(state, tmp_path / "w.pt")
    plain = {name: tensor.clone() for name, tensor in state.items()}
    safetensors.torch.save_file(plain, tmp_path / "w.safetensors")
    assert run("verify", trail) == 0
    assert run("verify", trail, "--state-dict", str(tmp_path / "w.pt")) == 0
    assert run("verify", trail, "--state-dict", str(tmp_path / "w.safetensors")) == 0
    state["conv.weight"] = state["conv.weight"] * 2
    torch.save(state, tmp_path / "w.pt")
    assert run("verify", trail, "--state-dict", str(tmp_path / "w.pt")) == 1
    assert run("verify", trail, "--state-dict", str(tmp_path / "none.pt")) == 2
    assert run("verify", trail, "--digest", "0" * 64) == 1


def test_broken_files_are_faults(tmp_path: Path, trail: str) -> None:
    assert run("show", str(tmp_path / "none.fqx")) == 3
    cut = tmp_path / "cut.fqx"
    cut.write_bytes(Path(trail).read_bytes()[:1000])
    assert run("verify", str(cut)) == 3


def test_a_folder_that_is_not_there_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "no" / "x.fqx")
    model = "fqx.testing.small:small_net"
    assert run("quantize", model, "--calibration", DATA, "--out", out) == 2
    captured = capsys.readouterr()
    assert "there is no folder" in captured.err
    assert not captured.out


def test_nothing_to_tell_is_told_briefly(trail: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("diff", trail, trail, "--stat") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert run("explain", trail, "convv") == 2
    assert capsys.readouterr().err.count("conv2") == 1


def test_probe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("probe", "onednn") == 0
    assert "uint8" in capsys.readouterr().out
    assert run("probe", "tpu") == 2


def test_files_resolve_to_objects(tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text(
        "import torch\n"
        "def build():\n    return torch.nn.Linear(2, 2)\n"
        "def data():\n    yield torch.zeros(1, 2)\n"
        "def broken():\n    raise RuntimeError('inside')\n"
    )
    assert isinstance(model_of(f"{source}:build").unwrap(), torch.nn.Linear)
    assert len(list(batches_of(f"{source}:data").unwrap())) == 1
    for spec in (f"{source}:nothing", f"{source}:broken", "x:", str(tmp_path / "no.py") + ":f"):
        kind = fold(model_of(spec), lambda _: None, lambda fault: fault.kind)
        assert kind is FaultKind.BAD_ARGUMENT
    assert resolve(f"{source}:torch.nn").unwrap() is torch.nn


def test_compare_shows_the_worst_value_first(
    trail: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", trail, "--batches", DATA, "--isolated", "--worst", "3") == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert "isolated calibrated" in lines[0]
    assert run("compare", trail, "--batches", DATA, "--json") == 0
    code = json.loads(capsys.readouterr().out)
    assert {"head", "twin"} <= {row["name"] for row in code["rows"]}
    assert run("compare", trail, "--batches", DATA, "--min-sqnr", "500") == 1
    assert "check failed" in capsys.readouterr().err


def test_compare_takes_two_artefacts_and_steps(
    trail: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", trail, trail, "--batches", DATA, "--json") == 0
    assert {row["sqnr"] for row in json.loads(capsys.readouterr().out)["rows"]} == {None}
    assert run("compare", trail, "--step", "fuse", "--batches", DATA) == 0
    assert "fused" in capsys.readouterr().out
    assert run("compare", trail, "--step", "nothing", "--batches", DATA) == 2


def test_advise_prints_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("advise", NET, "--batches", DATA) == 0
    assert "fqx.int8_static()" in capsys.readouterr().out
    assert run("advise", NET, "--batches", DATA, "--json") == 0
    code = json.loads(capsys.readouterr().out)
    assert [row["node"] for row in code["rows"]] == ["conv", "conv2", "head", "twin"]
    assert code["batches"] == 3
    assert run("advise", "nothing", "--batches", DATA) == 2
