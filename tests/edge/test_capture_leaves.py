"""Modules kept whole: opaque float calls with a reason, in any containers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from fqx.edge.capture import How, capture
from fqx.edge.materialize import materialize
from fqx.ir.fault import FaultKind
from fqx.ir.names import Path, Stage
from fqx.judge.evaluate import evaluate
from fqx.ops.spec import check

BOTH: tuple[How, ...] = ("export", "symbolic")


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, d: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, object]:
        y = self.linear(x) if x.sum() > 0 else -x
        return {"y": y * scale, "more": (d["k"] * 2, None, 3)}


class Numpy(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + y, torch.from_numpy(x.numpy() * 2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branching = Branching()
        self.plain = Numpy()
        self.linear = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.again = self.branching

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.linear(x)
        out = self.branching(h, {"k": x}, scale=2.0)
        a, b = self.plain(out["y"], out["more"][0])
        q = a.unsqueeze(1)
        q, _ = self.attention(q, b.unsqueeze(1), b.unsqueeze(1), need_weights=False)
        return self.linear(q), self.again(x, d={"k": a})["y"]


LEAVES = ("branching", "plain", "attention")


@pytest.mark.parametrize("how", BOTH)
def test_a_leaf_is_called_as_it_was(how: How) -> None:
    model = Model().eval()
    graph = capture(model, (torch.randn(1, 4),), how=how, leaves=LEAVES).unwrap().graph
    check(graph, Stage.FLOAT).unwrap()
    assert [node.id for node in graph if node.op == "leaf"] == [
        "branching:leaf",
        "plain:leaf",
        "attention:leaf",
        "branching@1:leaf",
    ]
    assert set(graph.weights.keys()) == {"linear.weight", "linear.bias"}
    leaf = graph.leaves[Path("branching")]
    assert leaf.type == "Branching"
    assert leaf.reason == "kept whole at the caller's request"
    for batch in (1, 3):
        x = torch.randn(batch, 4)
        with torch.no_grad():
            wanted = model(x)
        got = evaluate(graph, (x,), {}).unwrap()
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
        with torch.no_grad():
            made = materialize(graph).unwrap()(x)
        torch.testing.assert_close(made, wanted, rtol=0, atol=0)


def test_both_ways_agree_on_leaves() -> None:
    model, x = Model().eval(), torch.randn(1, 4)
    one, two = (capture(model, (x,), how=how, leaves=LEAVES).unwrap().graph for how in BOTH)
    assert one == two


def test_a_leaf_is_a_copy() -> None:
    model, x = Model().eval(), torch.randn(2, 4)
    graph = capture(model, (x,), leaves=LEAVES).unwrap().graph
    with torch.no_grad():
        wanted = model(x)
        model.branching.linear.weight.zero_()
    got = evaluate(graph, (x,), {}).unwrap()
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_an_unknown_leaf_names_near_misses() -> None:
    fault = capture(Model().eval(), (torch.randn(2, 4),), leaves=("branchin",)).failure().fault
    assert fault.kind is FaultKind.UNKNOWN_LEAF
    assert "'branching'" in fault.remedy


def test_a_leaf_that_cannot_be_one_says_why() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            return {x.shape}

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = Odd()
            self.idle = nn.Linear(2, 2)
            self.writing = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            self.odd(x)
            y: Tensor = self.writing(x * 1)
            return y

    for leaf, word in (("odd", "set"), ("idle", "not called"), ("writing", "writes")):
        found = capture(Idle().eval(), (torch.randn(2, 2),), leaves=(leaf,)).failure().fault
        assert found.kind is FaultKind.UNCAPTURABLE
        assert word in found.reason


def test_the_eager_run_for_leaves_changes_nothing() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x + self.calls

    counting = Counts()
    model = nn.Sequential(counting, nn.Linear(2, 2)).eval()
    example = torch.randn(2, 2)
    kept = example.clone()
    capture(model, (example,), leaves=("0",)).unwrap()
    assert float(counting.calls) == 0
    assert torch.equal(example, kept)
