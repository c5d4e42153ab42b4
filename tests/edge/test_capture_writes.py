"""In-place writes become values that every later reader of the storage sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqx.edge.capture import How, capture
from fqx.ir.fault import FaultKind
from fqx.ir.names import Stage
from fqx.judge.evaluate import evaluate
from fqx.ops.spec import check

Forward: TypeAlias = Callable[[Tensor], object]
BOTH: tuple[How, ...] = ("export", "symbolic")


class Runs(nn.Module):
    def __init__(self, call: Forward) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> object:
        return self.call(x)


def own_alias(x: Tensor) -> object:
    y = x * 2
    z = y
    y += 1
    return y * z


def slices(x: Tensor) -> object:
    y = x * 2
    early, flat, turned = y[:, 0], y.view(y.shape[0], -1), y.transpose(1, 2)
    y[:, 1:3].mul_(3.0)
    between = early + 1
    flat[:, 0] = 1
    turned[:, 0].relu_()
    y[..., -1] += 5
    return y, early, flat, turned, between


def parts(x: Tensor) -> object:
    y = x * 2
    left, right = y.chunk(2, 1)
    left.add_(1)
    rows = y.unbind(2)
    rows[1].zero_()
    first, rest = torch.split(y, [1, 3], 1)
    rest.copy_(first)
    return y, left, right, rows[0]


def late_views(x: Tensor) -> object:
    y = x * 2
    alias = y[:, :2]
    y.mul_(3.0)
    deeper = alias[:, 0]
    alias.sub_(1)
    return alias, deeper, y.flatten(1)


def reshaped(x: Tensor) -> object:
    y = x * 1
    seen, copied = y.reshape(-1), y.transpose(1, 2).reshape(-1)
    y.neg_()
    return seen, copied


def squeezed(x: Tensor) -> object:
    y = x * 1
    y.unsqueeze(1).squeeze(1).unsqueeze(0).mul_(2)
    y.squeeze(0).add_(1)
    return y


def turned_object(x: Tensor) -> object:
    y = x * 1
    z = y.transpose(1, 2)
    y.transpose_(1, 2)
    y.add_(z)
    return y, z


def masked(x: Tensor) -> object:
    y = x * 1
    y[y < 0] = 0
    y.masked_fill_(y > 1, 9.0)
    return y


def indexed(x: Tensor) -> object:
    y = x * 1
    y[:, [0, 2]] = 3.0
    y[:, :, torch.tensor([0, 1])] += 1
    return y


def made_here(x: Tensor) -> object:
    table = torch.zeros(4)
    table[1:3] = 2
    steps = torch.arange(4)
    steps += 2
    steps[1:] *= 3
    return x + table + steps


def other_dtype(x: Tensor) -> object:
    y = x * 1
    y += x.to(torch.float64)
    y.mul_(2)
    return y


def diagonal(x: Tensor) -> object:
    y = x * 1
    y.diagonal(0, 1, 2).zero_()
    return y


def clones_are_apart(x: Tensor) -> object:
    y = x * 1
    z = y.clone()
    y.add_(1)
    return y, z


def activations(x: Tensor) -> object:
    y = x * 1
    z = F.relu(y, inplace=True)
    return z + 1, F.hardtanh(y, 0.0, 0.5, inplace=True), y, F.dropout(z, 0.5, False, inplace=True)


CASES: tuple[Forward, ...] = (
    own_alias,
    slices,
    parts,
    late_views,
    reshaped,
    squeezed,
    turned_object,
    masked,
    indexed,
    made_here,
    other_dtype,
    diagonal,
    clones_are_apart,
    activations,
)


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_later_readers_see_the_write(case: Forward, how: How) -> None:
    graph = capture(Runs(case), (torch.randn(2, 4, 4),), how=how).unwrap().graph
    check(graph, Stage.FLOAT).unwrap()
    assert not [node.op for node in graph if node.op.endswith("_")]
    for batch in (1, 3):
        x = torch.randn(batch, 4, 4)
        with torch.no_grad():
            wanted = case(x.clone())
        got = evaluate(graph, (x,), {}).unwrap()
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_both_ways_agree_on_writes(case: Forward) -> None:
    one, two = (capture(Runs(case), (torch.randn(2, 4, 4),), how=how).unwrap() for how in BOTH)
    assert one.graph == two.graph


@pytest.mark.parametrize("how", BOTH)
def test_a_written_input_stays_the_callers(how: How) -> None:
    def write(x: Tensor) -> Tensor:
        y = x
        y += 1
        return x * y

    trail = capture(Runs(write), (torch.randn(2, 4),), how=how).unwrap()
    assert len(trail.notes) == 1
    assert "input x is written in place" in trail.notes[0]
    x = torch.randn(2, 4)
    kept = x.clone()
    got = evaluate(trail.graph, (x,), {}).unwrap()
    assert torch.equal(x, kept)
    assert isinstance(got, Tensor)
    assert torch.equal(got, write(kept.clone()))


def test_an_impossible_write_names_both_lines() -> None:
    fault = capture(Lines(), (torch.randn(2, 4),)).failure().fault
    assert fault.kind is FaultKind.UNFUNCTIONAL_WRITE
    assert "aten.as_strided.default" in fault.reason
    assert fault.reason.count("test_capture_writes.py:") == 2
    assert fault.source is not None
    lines = [part.split(" ")[0].rstrip(",") for part in fault.reason.split("writes.py:")[1:]]
    assert int(lines[0]) == int(lines[1]) + 1


class Lines(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        view = torch.as_strided(x * 1, (2, 2), (1, 2))
        view.add_(1)
        return view
