"""Passes as values: text, order, contracts, and what a failure leaves behind."""

from __future__ import annotations

from dataclasses import replace

import torch

from fqx.ir.arg import Arg, DType, NodeRef
from fqx.ir.diff import Added, Diff, Removed, Staged, apply
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName, RuleName, Stage
from fqx.ir.node import Node
from fqx.ir.trail import Halt, Trail
from fqx.kit.frozen import FrozenMap, row
from fqx.kit.result import Failure, Result, Success
from fqx.passes.clean import clean
from fqx.passes.fuse import fuse
from fqx.passes.pipeline import NO_OPTIONS, Pass, Pipeline, Rewrite, conclude
from fqx.testing.draft import Draft

ANY = frozenset(Stage)
BY = RuleName("test")


def small() -> Graph:
    draft = Draft()
    x = draft.input("x", "batch", 3)
    layer = draft.call("linear", "fc", x=x, weight=draft.weight("fc.weight", torch.ones(2, 3)))
    return draft.graph(draft.call("dropout", "drop", x=layer, p=0.5))


def halt(result: Result[Trail, Halt]) -> Halt:
    return result.failure()


def test_a_pipeline_is_its_text() -> None:
    options: FrozenMap[Arg] = FrozenMap({"to": DType.INT8, "rate": 0.5, "paths": ("a", "b")})
    other = Pass("cast", options, ANY, None, lambda graph: conclude(graph, (), "cast"))
    assert str(clean() | fuse() | other) == (
        'clean | fuse | cast(paths=("a", "b"), rate=0.5, to=int8)'
    )


def test_pipelines_are_a_monoid() -> None:
    one, two, three = clean(), fuse(), clean()
    assert (one | two) | three == one | (two | three)
    assert Pipeline() | one == one | Pipeline() == Pipeline((one,))


def test_a_trail_has_one_step_for_each_pass() -> None:
    graph = small()
    trail = (clean() | fuse()).run(graph).unwrap()
    assert [step.text for step in trail.steps] == ["clean", "fuse"]
    assert trail.base is graph
    assert trail.graph.stage is Stage.FUSED
    before = graph
    for step in trail.steps:
        before = apply(step.diff, before).unwrap()
        assert before == step.graph


def test_running_on_a_trail_goes_on_with_it() -> None:
    first = clean().run(small()).unwrap()
    assert (fuse().run(first)).unwrap().steps[0] is first.steps[0]


def test_a_graph_of_another_stage_is_refused() -> None:
    graph = small()
    late = Pass("late", NO_OPTIONS, frozenset({Stage.QUANTIZED}), None, lambda _: nothing(graph))
    stopped = halt((clean() | late).run(graph))
    assert stopped.fault.kind is FaultKind.WRONG_STAGE
    assert stopped.fault.reason == "late takes a graph of stage quantized, this one is float"
    assert stopped.trail is not None
    assert [step.name for step in stopped.trail.steps] == ["clean"]


def nothing(graph: Graph) -> Result[Rewrite, Fault]:
    return conclude(graph, (), "nothing")


def broken(rewrite: Rewrite, gives: Stage | None = None) -> Fault:
    wrong = Pass("wrong", NO_OPTIONS, ANY, gives, lambda _: Success(rewrite))
    fault = halt(wrong.run(small())).fault
    assert fault.kind is FaultKind.BROKEN_CONTRACT
    return fault


def test_a_promised_stage_is_reached() -> None:
    graph = small()
    still = Rewrite(graph, Diff(row(), graph.digest, graph.digest))
    assert "promises stage fused and gives float" in broken(still, Stage.FUSED).reason


def test_a_diff_leads_to_its_graph() -> None:
    graph = small()
    other = conclude(graph, (Staged(Stage.FLOAT, Stage.FUSED, BY),), "x").unwrap().graph
    made = Rewrite(other, Diff(row(), graph.digest, graph.digest))
    assert "does not lead to its graph" in broken(made, Stage.FUSED).reason


def test_an_empty_diff_gives_the_same_object() -> None:
    graph = small()
    copy = replace(graph)
    made = Rewrite(copy, Diff(row(), graph.digest, graph.digest))
    assert "another graph and an empty diff" in broken(made).reason


def test_the_result_is_well_formed() -> None:
    graph = small()
    layer = graph[NodeId("fc")]
    made = conclude(graph, (Removed(layer, BY, NodeId("@x")),), "wrong").unwrap()
    fault = broken(made)
    assert "UnboundName" in fault.reason
    assert fault.at == "drop"


def test_a_new_node_has_to_fit_its_operator() -> None:
    graph = small()
    bad = Node(NodeId("bad"), OpName("relu"), (NodeRef(NodeId("@x")), 1))
    made = conclude(graph, (Added(bad, BY, NodeId("drop")),), "wrong").unwrap()
    assert broken(made).at == "bad"


def test_a_malformed_graph_is_not_the_fault_of_the_pass() -> None:
    graph = small()
    layer = graph[NodeId("fc")]
    cut = conclude(graph, (Removed(layer, BY, NodeId("@x")),), "wrong").unwrap().graph
    fault = halt(clean().run(cut)).fault
    assert (fault.kind, fault.at) == (FaultKind.UNBOUND_NAME, "drop")


def test_a_fault_of_a_pass_is_located() -> None:
    failing = Pass(
        "failing",
        NO_OPTIONS,
        ANY,
        None,
        lambda _: Failure(Fault(FaultKind.NO_KERNEL, "no", at=NodeId("fc"))),
    )
    stopped = halt(failing.run(small()))
    assert (stopped.fault.at, stopped.fault.module) == ("fc", "")
    assert str(stopped).startswith("NoKernel: no\n  node fc, module (root)")
