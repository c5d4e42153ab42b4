"""How far a recurrence may be off whose input and states are rounded: its steps with their errors.

Every value goes with a bound on its error, and each operator bounds its result's from those of its
operands (midpoint-radius arithmetic): sigmoid has a slope of at most 1/4, tanh and relu of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear

from fqx.ir.arg import Arg
from fqx.ir.node import Node
from fqx.ops.recurrence import CELLS, Side, at_place, sides_of

LEAST = 6.1e-5
"""The least scale torch's kernels choose for a range."""
ROUNDING = 1e-5
"""The share of a float32 sum, taken of magnitudes, that another order may change it by."""


@dataclass(frozen=True, slots=True)
class Near:
    """A value in float64 and how far the one it stands for may be away, element by element."""

    value: Tensor
    error: Tensor

    def __add__(self, other: Near) -> Near:
        return Near(self.value + other.value, self.error + other.error)

    def __sub__(self, other: Near) -> Near:
        return Near(self.value - other.value, self.error + other.error)

    def __mul__(self, other: Near) -> Near:
        ours, theirs = self.value.abs(), other.value.abs()
        error = ours * other.error + self.error * theirs + self.error * other.error
        return Near(self.value * other.value, error)

    def each(self, change: Callable[[Tensor], Tensor]) -> Near:
        """Both moved in the same way."""
        return Near(change(self.value), change(self.error))


Step: TypeAlias = Callable[[Near, Near, tuple[Near, ...]], tuple[Near, ...]]
"""The next states from the input's and the state's products, and the states."""
Matrices: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Of input and state, then their biases."""


def near_recurrence(
    node: Node, read: Callable[[Arg], Tensor], qmax: int | None
) -> tuple[Near, ...]:
    """What a recurrent layer or cell gives, and how far its kernel may be away from that.

    `read` gives the tensor of an operand. The kernel has rounded the input by a quantum of its
    range at most, and rounds what each matrix meets behind that, each step's state among it, to
    0..qmax over its range; with None it rounds nothing but float32 sums.
    """
    x = exact(read(node.args[0]))
    rounding = _nothing if qmax is None else lambda held: rounded(held, qmax)
    entered = x if qmax is None else Near(x.value, x.error + quantum(x, qmax))
    hx = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    starts = tuple(exact(read(state)) for state in hx)
    sides = tuple(_matrices(node, side, read) for side in sides_of(node) or ())
    step = STEPS[node.op.removesuffix("_cell")]
    if node.op in CELLS:
        return _stepped(step, _inputs(entered, sides[0]), starts, sides[0], rounding)
    first = node.attrs["batch_first"] is True
    flow, ends = entered.each(lambda it: it.transpose(0, 1)) if first else entered, []
    both = 2 if node.attrs["bidirectional"] is True else 1
    for layer in range(len(sides) // both):
        parts: list[Near] = []
        for side in range(both):
            index = layer * both + side
            states = tuple(state.each(lambda it, at=index: it[at]) for state in starts)  # type: ignore[misc]
            fed = _inputs(flow if layer == 0 else rounding(flow), sides[index])
            outs: dict[int, Near] = {}
            steps = range(len(fed.value))
            for at in reversed(steps) if side else steps:
                now = fed.each(lambda it, at=at: it[at])  # type: ignore[misc]
                states = _stepped(step, now, states, sides[index], rounding)
                outs[at] = states[0]
            parts.append(_stacked([outs[at] for at in steps]))
            ends.append(states)
        flow = Near(*(torch.cat(held, -1) for held in zip(*map(_pair, parts), strict=True)))
    out = flow.each(lambda it: it.transpose(0, 1)) if first else flow
    return out, *(_stacked(list(last)) for last in zip(*ends, strict=True))


def exact(tensor: Tensor) -> Near:
    """A value that is what it is."""
    return Near(tensor.detach().double(), torch.zeros(tensor.shape, dtype=torch.float64))


def quantum(held: Near, qmax: int) -> float:
    """The greatest step between two integers that a kernel may choose for the value."""
    if not held.value.numel():
        return LEAST
    low, high = float((held.value - held.error).min()), float((held.value + held.error).max())
    return max((max(high, 0.0) - min(low, 0.0)) / qmax * (1 + ROUNDING), LEAST)


def rounded(held: Near, qmax: int) -> Near:
    """The value to the nearest of the integers that a kernel may choose for it."""
    return Near(held.value, held.error + quantum(held, qmax) / 2)


def _nothing(held: Near) -> Near:
    return held


def _pair(held: Near) -> tuple[Tensor, Tensor]:
    return held.value, held.error


def _stacked(parts: list[Near]) -> Near:
    return Near(*(torch.stack(held) for held in zip(*map(_pair, parts), strict=True)))


def _matrices(node: Node, side: Side, read: Callable[[Arg], Tensor]) -> Matrices:
    def tensor(place: Arg) -> Tensor | None:
        return None if place is None else read(place).detach().double()

    b_ih, b_hh = (tensor(at_place(node, place)) for place in (side.b_ih, side.b_hh))
    w_ih, w_hh = (read(at_place(node, place)).detach().double() for place in (side.w_ih, side.w_hh))
    return w_ih, w_hh, b_ih, b_hh


def _linear(x: Near, weight: Tensor, bias: Tensor | None) -> Near:
    sums = linear(x.value.abs(), weight.abs(), None if bias is None else bias.abs())
    return Near(
        linear(x.value, weight, bias), linear(x.error, weight.abs()) + ROUNDING * (1.0 + sums)
    )


def _inputs(x: Near, held: Matrices) -> Near:
    return _linear(x, held[0], held[2])


def _stepped(
    step: Step,
    inputs: Near,
    states: tuple[Near, ...],
    held: Matrices,
    rounding: Callable[[Near], Near],
) -> tuple[Near, ...]:
    return step(inputs, _linear(rounding(states[0]), held[1], held[3]), states)


def _sigmoid(x: Near) -> Near:
    return Near(x.value.sigmoid(), x.error / 4)


def _tanh(x: Near) -> Near:
    return Near(x.value.tanh(), x.error)


def _relu(x: Near) -> Near:
    return Near(x.value.relu(), x.error)


def _parts(x: Near, count: int) -> list[Near]:
    pairs = zip(x.value.chunk(count, -1), x.error.chunk(count, -1), strict=True)
    return [Near(value, error) for value, error in pairs]


def _lstm(inputs: Near, recurrent: Near, states: tuple[Near, ...]) -> tuple[Near, ...]:
    enter, forget, candidate, leave = _parts(inputs + recurrent, 4)
    cell = _sigmoid(forget) * states[1] + _sigmoid(enter) * _tanh(candidate)
    return _sigmoid(leave) * _tanh(cell), cell


def _gru(inputs: Near, recurrent: Near, states: tuple[Near, ...]) -> tuple[Near, ...]:
    reset, keep, one = _parts(inputs, 3)
    reset_h, keep_h, two = _parts(recurrent, 3)
    candidate = _tanh(one + _sigmoid(reset + reset_h) * two)
    return (candidate + _sigmoid(keep + keep_h) * (states[0] - candidate),)


STEPS: Mapping[str, Step] = MappingProxyType(
    {
        "lstm": _lstm,
        "gru": _gru,
        "rnn_tanh": lambda inputs, recurrent, _: (_tanh(inputs + recurrent),),
        "rnn_relu": lambda inputs, recurrent, _: (_relu(inputs + recurrent),),
    }
)
"""One step of every recurrence."""
