"""What torch.ao's patterns take: the standings of nodes are those torch's own observers show."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import (
    QConfig,
    default_dynamic_qconfig,
    default_per_channel_qconfig,
    default_weight_observer,
    float_qparams_weight_only_qconfig,
)
from torch.ao.quantization.observer import default_fixed_qparams_range_0to1_observer
from torch.nn import functional

from fqx.compat.backend import rulings
from fqx.compat.custom import stock_backend

pytestmark = pytest.mark.filterwarnings("ignore")


class Told(nn.Module):
    """A linear, a convolution with its norm, a table, and a function of the input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.line, self.conv, self.norm = nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.table, self.act, self.single = nn.Embedding(4, 4), nn.ReLU(), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        """The function."""
        return self.function(self, x)


def told(function: Callable[[Any, Tensor], Tensor], qconfig: Any) -> list[str]:
    """The standings of the function's calls, in order."""
    traced = fx.symbolic_trace(Told(function))
    calls = [n.name for n in traced.graph.nodes if n.op.startswith("call")]
    found = rulings(traced, dict.fromkeys(calls, qconfig), stock_backend(None).unwrap())
    said = [found[name] for name in calls]
    return [("refused" if r.refusal else "taken") if r.is_matched else "free" for r in said]


MAKE: Any = QConfig
STATIC, DYNAMIC = default_per_channel_qconfig, default_dynamic_qconfig
FIXED = MAKE(default_fixed_qparams_range_0to1_observer, default_weight_observer)


@pytest.mark.parametrize(
    ("function", "qconfig", "expected"),
    [
        (lambda m, x: m.act(m.norm(m.conv(x))), STATIC, ["taken"] * 3),
        (lambda m, x: m.act(m.norm(m.conv(x))), DYNAMIC, ["refused"] * 3),
        (lambda m, x: m.line(x), DYNAMIC, ["taken"]),
        (lambda m, x: m.single(x), STATIC, ["free"]),
        (lambda _, x: torch.relu(x), STATIC, ["free"]),
        (lambda _, x: torch.relu(x + x), STATIC, ["taken", "taken"]),
        (lambda _, x: operator.matmul(x, x), STATIC, ["free"]),
        (lambda _, x: torch.matmul(x, x), STATIC, ["taken"]),
        (lambda _, x: torch.sigmoid(x), STATIC, ["refused"]),
        (lambda _, x: torch.sigmoid(x), FIXED, ["taken"]),
        (lambda m, x: functional.layer_norm(x, (4,), m.norm.weight), STATIC, ["refused"]),
        (lambda m, x: m.table(x), STATIC, ["refused"]),
        (lambda m, x: m.table(x), float_qparams_weight_only_qconfig, ["taken"]),
        (lambda _, x: x.view(4, 4), STATIC, ["taken"]),
        (lambda _, x: x.flatten(), STATIC, ["free"]),
        (lambda _, x: functional.silu(x), STATIC, ["free"]),
    ],
)
def test_a_node_stands_as_torch_takes_it(
    function: Callable[[Any, Tensor], Tensor], qconfig: Any, expected: list[str]
) -> None:
    assert told(function, qconfig) == expected
