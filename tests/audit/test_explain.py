"""Verdicts, blame and coverage of a small trail."""

from __future__ import annotations

from pathlib import Path

import torch

import fqx
from fqx.audit.blame import blame
from fqx.audit.coverage import coverage
from fqx.audit.explain import explain
from fqx.edge.artefact import read, save_trail
from fqx.ir.names import NodeId
from fqx.ir.trail import Trail
from fqx.ops.work import macs_of
from fqx.policy.verdicts import Verdict
from fqx.testing.small import batches, quantized_trail, small_net


def test_every_planned_node_has_one_row() -> None:
    table = coverage(quantized_trail())
    fused = quantized_trail().steps[1].graph
    listed = [name for row in table.rows for name in row.nodes]
    assert sorted(listed) == sorted(fused.order)
    assert sum(table.count(verdict) for verdict in Verdict) == len(fused)


def test_multiply_accumulates_are_those_of_the_arithmetic() -> None:
    graph = quantized_trail().base
    found = macs_of(graph)
    assert found[NodeId("conv")] == 8 * 8 * 8 * 3 * 9
    assert found[NodeId("conv2")] == 8 * 8 * 8 * 8 * 9
    assert found[NodeId("head")] == 8 * 4
    assert coverage(quantized_trail()).macs == sum(found.values())
    assert coverage(quantized_trail()).int8_share > 0.9


def test_explanation_tells_verdict_history_and_place() -> None:
    told = explain(quantized_trail(), "conv")
    text = str(told)
    assert told.found
    assert "int8" in told.accounts[0].verdict
    assert "fuse.batch_norm" in text
    assert "conv:weight" in text
    assert "small.py" in text
    assert len(repr(told).splitlines()) <= 10
    assert "<pre>" in told._repr_html_()


def test_a_node_that_is_gone_names_the_rule() -> None:
    told = explain(quantized_trail(), "bn")
    assert told.accounts[0].verdict == "not planned: fuse.batch_norm took it out"
    assert blame(quantized_trail(), NodeId("bn")).gone == "fuse.batch_norm"


def test_foreign_nodes_say_so() -> None:
    node = next(n for n in quantized_trail().base if n.op.startswith("aten."))
    assert "float" in explain(quantized_trail(), node.id).accounts[0].verdict


def test_weights_and_modules_can_be_asked_for() -> None:
    assert explain(quantized_trail(), "conv2.weight").accounts[0].node == "conv2"
    assert explain(quantized_trail(), "bn").accounts[0].node == "bn"


def test_unknown_names_get_the_nearest() -> None:
    told = explain(quantized_trail(), "conv_2")
    assert not told.found
    assert "conv2" in told.near
    assert "did you mean" in str(told)


def test_all_verdicts_are_one_line_each() -> None:
    told = explain(quantized_trail())
    assert len(str(told).splitlines()) == len(quantized_trail().base)


def test_before_a_plan_there_is_no_verdict() -> None:
    trail = fqx.capture(small_net(), (batches()[0],)).unwrap()
    assert "nothing was planned" in str(explain(trail, "conv"))
    assert coverage(trail).rows == ()
    assert coverage(Trail(trail.base)).int8_share == 0.0


def test_trails_from_files_are_explained_alike(tmp_path: Path) -> None:
    save_trail(tmp_path / "t.fqx", quantized_trail()).unwrap()
    found = read(tmp_path / "t.fqx").unwrap().trail
    for name in ("conv", "bn", "head", None):
        assert str(explain(found, name)) == str(explain(quantized_trail(), name))
    assert coverage(found) == coverage(quantized_trail())
    assert len(repr(coverage(found)).splitlines()) <= 10
    assert "<table>" in coverage(found)._repr_html_()


def test_work_is_counted_where_lowering_leaves_every_node() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    done = fqx.quantize(
        torch.nn.Linear(8, 3), (x,), [x], objective="balanced", progress=False
    ).unwrap()
    assert [(row.op, row.macs) for row in done.coverage().rows if row.macs] == [("linear", 24)]
    assert done.coverage().int8_share == 1.0
