"""Rows, spreads and tables of planted numbers."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest

from fqx.audit.profile import Profile, Spent
from fqx.bench.plot import plot
from fqx.bench.report import Attributed, Report, Row, Status, spread
from fqx.bench.surroundings import Surroundings, surroundings
from fqx.bench.tables import END, START, into_page, markdown, screen_rows

HERE = Surroundings("a processor", 2, "AVX2", False, {"torch": "2.13.0"})
NODES = (
    Spent("conv", "conv", "onednn.conv2d", 0.002, 1_000_000, 0),
    Spent("x:quantize", "", "quantize", 0.001, 0, 0),
    Spent("conv:dequantize", "conv", "dequantize", 0.001, 0, 0),
)


def planted(interrupted: bool = False) -> Report:
    """Float32 at 8 ms, int8 at 2 ms, and a contestant that is not installed."""
    rows = (
        Row("net", "fp32", 1, 1, Status.MEASURED, spread([0.008, 0.009, 0.007]), math.inf, 0.1),
        Row("net", "fqx", 1, 1, Status.MEASURED, spread([0.002]), 33.333, 0.5, "all int8"),
        Row("net", "ort", 1, 1, Status.ABSENT, note="onnxruntime is not installed"),
    )
    taken = Attributed("net", "fqx", 1, 1, Profile(NODES, 0.005, 3), 1e9)
    return Report(HERE, 3, rows, (taken,), interrupted)


def test_a_spread_has_the_median_and_the_quartiles() -> None:
    found = spread([0.005, 0.001, 0.003, 0.002, 0.004])
    assert (found.lower, found.median, found.upper) == (0.002, 0.003, 0.004)
    assert (found.best, found.calls) == (0.001, 5)
    assert spread([0.001, 0.002]).median == 0.0015
    assert spread([0.25]).upper == 0.25


def test_the_table_compares_with_eager_float32() -> None:
    rows = screen_rows(planted(), 1)
    assert rows[0][3:7] == ("8", "7.5 to 8.5", "1.00x", "exact")
    assert rows[1][3:] == ("2", "2 to 2", "4.00x", "33.3", "all int8")
    assert rows[2][3:] == ("", "", "", "", "absent: onnxruntime is not installed")
    assert screen_rows(planted(), 2) == []


def test_the_json_is_plain_and_whole() -> None:
    read = json.loads(json.dumps(planted(interrupted=True).to_json(), allow_nan=False))
    assert read["format"] == 1
    assert read["interrupted"] is True
    assert read["surroundings"] == {
        "processor": "a processor",
        "cores": 2,
        "isa": "AVX2",
        "vnni": False,
        "versions": {"torch": "2.13.0"},
    }
    first, second, third = read["rows"]
    assert first["sqnr"] == "exact"
    assert first["seconds"] == {
        "median": 0.008,
        "lower": 0.0075,
        "upper": 0.0085,
        "best": 0.007,
        "calls": 3,
    }
    assert second["sqnr"] == 33.333
    assert (third["status"], third["seconds"], third["sqnr"]) == ("absent", None, None)
    assert [node["group"] for node in read["profiles"][0]["profile"]["nodes"]] == [
        "int8",
        "quantize",
        "dequantize",
    ]


def test_utilisation_is_work_by_time_by_peak() -> None:
    taken = planted().profiles[0]
    assert taken.utilisation == pytest.approx(1_000_000 / 0.002 / 1e9)
    assert taken.convolutions == taken.utilisation
    assert [total.name for total in taken.profile.groups()] == ["int8", "quantize", "dequantize"]


def test_markdown_goes_between_the_marks_of_a_page() -> None:
    text = markdown(planted(interrupted=True))
    assert "a processor, 2 cores, AVX2, no VNNI; torch 2.13.0. 3 rounds." in text
    assert "interrupted" in text
    assert "| net | fqx | 1 | 2 | 2 to 2 | 4.00x | 33.3 | all int8 |" in text
    page = f"# Title\n\n{START}\nold\n{END}\n\nafter\n"
    once = into_page(page, text)
    assert once.startswith("# Title\n\n")
    assert once.endswith("\n\nafter\n")
    assert "old" not in once
    assert into_page(once, text) == once
    assert into_page("", "all").strip() == "all"


def test_the_surroundings_name_this_machine() -> None:
    found = surroundings()
    assert found.cores >= 1
    assert found.processor
    assert "torch" in found.versions


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot_is_there_whole_or_not_at_all(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plot.{suffix}"
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(ModuleNotFoundError):
            plot(planted(), str(path))
        assert list(tmp_path.iterdir()) == []
        return
    plot(planted(), str(path))
    start = path.read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" if suffix == "png" else start.startswith(b"<?xml")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="nonsense"):
        plot(planted(), str(tmp_path / "plot.nonsense"))
    assert list(tmp_path.iterdir()) == [path]
