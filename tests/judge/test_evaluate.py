"""The judge on whole graphs: containers, weights, leaves, faults."""

from __future__ import annotations

import torch

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import Digest, NodeId, OpName, Path
from fqx.ir.node import Node
from fqx.ir.signature import Input, Signature, TensorType, Tree, named
from fqx.ir.weight import Leaf, Role, Weight
from fqx.judge.evaluate import evaluate, values
from fqx.kit.frozen import FrozenMap
from fqx.num.tensors import weight_of
from fqx.ops.catalogue import make_node

X = NodeRef(NodeId("@x"))
W = Path("fc.weight")


def graph(
    nodes: list[Node],
    output: Tree,
    weights: dict[Path, Weight] | None = None,
    leaves: dict[Path, Leaf] | None = None,
) -> Graph:
    signature = Signature(
        (Input("x", X.id, TensorType(DType.FLOAT32, (named("batch"), 4))),),
        Tree("tuple", items=(Tree("leaf", 0),)),
        Tree("dict"),
        output,
        FrozenMap({"batch": (1, None)}),
        ("x",),
    )
    ties = {Path("tied.weight"): W}
    nodes = [make_node("input", X.id), *nodes]
    return graph_of(nodes, weights or {}, signature, leaves=leaves or {}, ties=ties)


def leaf(arg: Arg) -> Tree:
    return Tree("leaf", arg)


def linear(path: str = W) -> Node:
    return make_node("linear", NodeId("fc"), x=X, weight=WeightRef(Path(path)))


def test_outputs_come_in_their_containers() -> None:
    held = torch.randn(3, 4)
    tree = Tree("dict", keys=("y", "n"), items=(leaf(NodeRef(NodeId("fc"))), leaf(7)))
    made = graph([linear()], tree, {W: weight_of(held, Role.PARAMETER)})
    x = torch.randn(2, 4)
    found = evaluate(made, (x,)).unwrap()
    assert isinstance(found, dict)
    assert torch.equal(found["y"], torch.nn.functional.linear(x, held))
    assert found["n"] == 7
    assert torch.equal(evaluate(made, (), {"x": x}).unwrap()["y"], found["y"])  # type: ignore[index]


def test_a_tied_path_reads_the_first() -> None:
    held = torch.randn(3, 4)
    made = graph(
        [linear("tied.weight")],
        leaf(NodeRef(NodeId("fc"))),
        {W: weight_of(held, Role.PARAMETER)},
    )
    x = torch.randn(2, 4)
    assert torch.equal(values(made, (x,)).unwrap()[NodeId("fc")], x @ held.T)  # type: ignore[arg-type]


def test_quantize_rounds_ties_to_even_and_clamps() -> None:
    q = make_node("quantize", NodeId("q"), x=X, scale=0.5, zero_point=3, qmin=0, qmax=9,
                  dtype=DType.UINT8)  # fmt: skip
    back = make_node("dequantize", NodeId("d"), x=NodeRef(q.id), scale=0.5, zero_point=3,
                     dtype=DType.BFLOAT16)  # fmt: skip
    found = values(graph([q, back], leaf(NodeRef(back.id))), (torch.tensor([[0.25, 0.75, 9, -9]]),))
    assert found.unwrap()[q.id].tolist() == [[3, 5, 9, 0]]  # type: ignore[attr-defined]
    assert found.unwrap()[back.id].dtype is torch.bfloat16  # type: ignore[attr-defined]


def test_quantize_per_channel() -> None:
    scales = weight_of(torch.tensor([0.5, 1.0, 2.0, 4.0]), Role.CONSTANT)
    q = make_node("quantize", NodeId("q"), x=X, scale=WeightRef(Path("s")), zero_point=0, qmin=-128,
                  qmax=127, dtype=DType.INT8, axis=1)  # fmt: skip
    made = graph([q], leaf(NodeRef(q.id)), {Path("s"): scales})
    assert evaluate(made, (torch.full((1, 4), 4.0),)).unwrap().tolist() == [[8, 4, 2, 1]]  # type: ignore[attr-defined]


def test_foreign_calls_and_leaves() -> None:
    foreign = Node(
        NodeId("f"), OpName("aten.cumprod.default"), (X, 1), FrozenMap({"type": '{"opaque":""}'})
    )
    kept = make_node("leaf", NodeId("l"), xs=(NodeRef(foreign.id),), path="inner", type="{}")
    item = make_node("getitem", NodeId("i"), x=NodeRef(kept.id), index=0)
    held = {Path("inner"): Leaf("Doubler", Digest("0"), "asked")}
    made = graph([foreign, kept, item], leaf(NodeRef(item.id)), leaves=held)
    x = torch.randn(2, 4)
    found = evaluate(made, (x,), leaves={"inner": lambda y: y * 2}).unwrap()
    assert torch.equal(found, x.cumprod(1) * 2)  # type: ignore[arg-type]
    assert evaluate(made, (x,)).failure().kind is FaultKind.MISSING_LEAF


def test_faults_name_the_node() -> None:
    x = torch.randn(2, 4)
    gone = Weight(DType.FLOAT32, (3, 4), Role.PARAMETER, Digest("0"))
    missing = evaluate(graph([linear()], leaf(X), {W: gone}), (x,)).failure()
    assert (missing.kind, missing.at) == (FaultKind.MISSING_PAYLOAD, "fc")
    kernel = Node(NodeId("k"), OpName("onednn.qadd"), (X, X))
    assert evaluate(graph([kernel], leaf(X)), (x,)).failure().kind is FaultKind.NO_IMPLEMENTATION
    wrong = make_node("reshape", NodeId("r"), x=X, shape=(5,))
    assert evaluate(graph([wrong], leaf(X)), (x,)).failure().at == "r"
    assert evaluate(graph([], leaf(X)), (x, x)).failure().kind is FaultKind.INPUT_DOES_NOT_FIT
