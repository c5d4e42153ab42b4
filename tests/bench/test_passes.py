"""The measurements of passes run, and their rows and curves come out."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

import fqx
from fqx.bench.curves import curves
from fqx.bench.memory import held, held_table
from fqx.bench.passes import road, table
from fqx.testing.large import chain, image


def test_a_road_has_every_pass_the_observers_and_the_memory() -> None:
    found = road(14)
    assert [item.name for item in found.passes] == [
        *(item.name for item in fqx.pipeline(fqx.onednn(), [image()]).passes),
        "materialize",
    ]
    assert found.observers > 0
    assert found.peak > 1_000_000
    assert f"{found.nodes} nodes" in table([found])


def test_a_trail_shares_weights_that_no_pass_changed() -> None:
    model = chain(3)
    done = fqx.quantize(
        model, (image(),), calibration=[image(seed=1)], objective="coverage", progress=False
    ).unwrap()
    rows = {row.name: row for row in held(done.trail)}
    assert rows["capture"].new == rows["capture"].held > 0
    assert rows["clean"].new == rows["observe"].new == rows["lower"].new == 0
    assert rows["convert"].held < rows["fuse"].held
    assert "together" in held_table(tuple(rows.values()))


def test_curves_are_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    found, path = road(14), tmp_path / "passes.svg"
    roads = [found, replace(found, nodes=28, observers=9)]
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(ModuleNotFoundError):
            curves(roads, str(path))
        assert list(tmp_path.iterdir()) == []
        return
    curves(roads, str(path))
    assert path.read_text().startswith("<?xml")
