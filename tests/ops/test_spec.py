"""What `check` refuses, and how it says so."""

from __future__ import annotations

from collections.abc import Iterable
from time import process_time

import pytest

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import Digest, NodeId, OpName, Path, Stage
from fqx.ir.node import Node
from fqx.ir.signature import Input, Signature, TensorType, Tree, named
from fqx.ir.weight import Role, Weight
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import is_success
from fqx.ops.catalogue import make_node
from fqx.ops.spec import check
from fqx.ops.types import types

X = NodeRef(NodeId("@x"))
INPUT = make_node("input", X.id)
STATE = Path("@x:observe.low")


def weight(*shape: int, dtype: DType = DType.FLOAT32, role: Role = Role.PARAMETER) -> Weight:
    return Weight(dtype, shape, role, Digest("0"))


def graph(
    nodes: Iterable[Node],
    out: Arg = X,
    stage: Stage = Stage.FLOAT,
    weights: dict[Path, Weight] | None = None,
) -> Graph:
    kind = TensorType(DType.FLOAT32, (named("batch"), 8, 16, 16))
    signature = Signature(
        (Input("x", X.id, kind),),
        Tree("tuple", items=(Tree("leaf", 0),)),
        Tree("dict"),
        Tree("leaf", out),
        FrozenMap({"batch": (1, None)}),
        ("x",),
    )
    return graph_of((INPUT, *nodes), weights or {}, signature, stage=stage)


def relu(name: str, of: str) -> Node:
    return make_node("relu", NodeId(name), x=NodeRef(NodeId(of)))


def conv(**given: Arg) -> Node:
    return make_node("conv2d", NodeId("c"), x=X, weight=WeightRef(Path("w")), **given)


def observer(*states: Arg) -> Node:
    return make_node("observe", NodeId("@x:observe"), x=X, states=states, observer=None)


QUANTIZE = make_node(
    "quantize", NodeId("q"), x=X, scale=0.1, zero_point=0, qmin=0, qmax=255, dtype=DType.UINT8
)
KERNEL = Node(NodeId("k"), OpName("onednn.qadd"), (X, X))


@pytest.mark.parametrize(
    ("broken", "kind", "reason"),
    [
        (graph([relu("a", "b"), relu("b", "@x")]), FaultKind.UNBOUND_NAME, "only later"),
        (graph([relu("a", "z")]), FaultKind.UNBOUND_NAME, "not defined"),
        (graph([relu("a", "@x"), relu("a", "@x")]), FaultKind.DUPLICATE_NAME, "twice"),
        (graph([conv()]), FaultKind.UNBOUND_NAME, "no weight w"),
        (graph([], NodeRef(NodeId("z"))), FaultKind.UNBOUND_NAME, "the output names z"),
        (graph([Node(NodeId("a"), OpName("relu"))]), FaultKind.MALFORMED_NODE, "0 operands"),
        (graph([make_node("input", NodeId("@y"))]), FaultKind.UNBOUND_NAME, "signature"),
        (
            graph([conv()], weights={Path("w"): weight(4, 3, 3, 3)}),
            FaultKind.TYPE_DISAGREES,
            "8 channels meet a weight for 3",
        ),
        (
            graph([conv()], weights={Path("w"): weight(4, 8, 3, 3, dtype=DType.INT8)}),
            FaultKind.TYPE_DISAGREES,
            "float32 with a weight of int8",
        ),
        (
            graph([make_node("permute", NodeId("p"), x=X, dims=(0, 9))]),
            FaultKind.TYPE_DISAGREES,
            "operands do not fit",
        ),
        (
            graph(
                [
                    make_node("chunk", NodeId("c"), x=X, chunks=2, dim=1),
                    relu("a", "c"),
                ]
            ),
            FaultKind.MALFORMED_NODE,
            "only getitem",
        ),
    ],
)
def test_a_broken_graph_is_refused(broken: Graph, kind: FaultKind, reason: str) -> None:
    fault = check(broken, Stage.FLOAT).failure()
    assert fault.kind is kind
    assert reason in fault.reason


@pytest.mark.parametrize(
    ("nodes", "stages"),
    [
        ([relu("a", "@x")], set(Stage)),
        ([observer()], {Stage.OBSERVED, Stage.CALIBRATED}),
        ([observer(WeightRef(STATE))], {Stage.CALIBRATED}),
        ([QUANTIZE], {Stage.QUANTIZED, Stage.LOWERED}),
        ([KERNEL], {Stage.LOWERED}),
    ],
)
def test_each_stage_has_its_own_nodes(nodes: list[Node], stages: set[Stage]) -> None:
    held = (
        {STATE: weight(1, role=Role.STATISTIC)} if nodes[0].args[1:] == (WeightRef(STATE),) else {}
    )
    allowed = {s for s in Stage if is_success(check(graph(nodes, stage=s, weights=held), s))}
    assert allowed == stages


def test_the_stage_must_be_the_one_claimed() -> None:
    fault = check(graph([]), Stage.FUSED).failure()
    assert fault.kind is FaultKind.WRONG_STAGE


def test_ten_thousand_nodes_are_checked_in_no_time() -> None:
    nodes, last = [], "@x"
    for index in range(10_000):
        nodes.append(make_node("add", NodeId(f"n{index}"), x=NodeRef(NodeId(last)), y=1.0))
        last = f"n{index}"
    large = graph(nodes, NodeRef(NodeId(last)))
    started = process_time()
    assert is_success(check(large, Stage.FLOAT))
    assert len(types(large)) == 10_001
    # processor seconds; about 0.4 on an idle machine
    assert process_time() - started < 5
