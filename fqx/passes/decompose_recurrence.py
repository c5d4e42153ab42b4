"""Recurrent layers and cells written out: what one step is, and how steps make a layer.

    lstm   i, f, o = sigmoid(…), g = tanh(…)    c' = f·c + i·g    h' = W_hr·(o·tanh(c'))
    gru    r, z = sigmoid(…), n = tanh(W_in·x + r·(W_hn·h))       h' = n + z·(h - n)
    rnn    h' = tanh(W_ih·x + W_hh·h), or relu of it

The part of the input is one linear for a whole sequence; only the part of the state is taken step
by step. Weights keep their paths, each linear reads what the layer read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

from fqx.ir.arg import Arg, NodeRef
from fqx.ir.names import NodeId, RuleName
from fqx.ir.node import Node
from fqx.ir.signature import TensorType
from fqx.match.pattern import anything, op
from fqx.match.rule import Change, Made, Rule, Rules, rules
from fqx.match.search import Match, Miss
from fqx.ops.catalogue import attr, make_node, operand
from fqx.ops.recurrence import Side, at_place, sides_of

States: TypeAlias = tuple[Arg, ...]
"""The hidden state, and the cell state of an LSTM behind it."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What one layer reads in one direction; biases and the projection may be None."""

    w_ih: Arg
    w_hh: Arg
    b_ih: Arg = None
    b_hh: Arg = None
    w_hr: Arg = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """Nodes written down one behind the other, named after the match's root."""

    found: Match
    nodes: list[Node] = field(default_factory=list)

    def put(self, name: str, role: str, /, **given: Arg) -> NodeRef:
        """Another node of the catalogue."""
        root = self.found.root
        origin = replace(root.origin, parents=(root.id,))
        node = make_node(name, self.found.fresh(root.id, role), origin, **given)
        self.nodes.append(node)
        return NodeRef(node.id)

    def linear(self, role: str, x: Arg, weight: Arg, bias: Arg) -> NodeRef:
        """x·Wᵀ + b."""
        return self.put("linear", role, x=x, weight=weight, bias=bias)

    def part(self, role: str, x: Arg, index: int, width: int) -> NodeRef:
        """Part `index` of a value whose last of two axes holds parts of `width`."""
        start = index * width
        return self.put("slice", role, x=x, start=start, stop=start + width, dim=1)

    def needed(self, values: tuple[Arg, ...]) -> tuple[Node, ...]:
        """The nodes that lead to the values."""
        wanted: set[NodeId] = {value.id for value in values if isinstance(value, NodeRef)}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if node.id in wanted:
                kept.append(node)
                wanted.update(node.inputs())
        return tuple(reversed(kept))


Step: TypeAlias = Callable[[Sheet, str, Arg, States, Weights, int], States]
"""The next states from the input's part, the states, the weights and the width of a gate.

The text stands before the roles of the new nodes.
"""


def _lstm(sheet: Sheet, at: str, x: Arg, states: States, weights: Weights, width: int) -> States:
    hidden, cell = states
    recurrent = sheet.linear(f"{at}recurrent", hidden, weights.w_hh, weights.b_hh)
    gates = sheet.put("add", f"{at}gates", x=x, y=recurrent)

    def gate(index: int, function: str, role: str) -> NodeRef:
        part = sheet.part(f"{at}{role}.part", gates, index, width)
        return sheet.put(function, f"{at}{role}", x=part)

    enter = gate(0, "sigmoid", "enter")
    forget = gate(1, "sigmoid", "forget")
    candidate = gate(2, "tanh", "candidate")
    leave = gate(3, "sigmoid", "leave")
    kept = sheet.put("mul", f"{at}kept", x=forget, y=cell)
    learnt = sheet.put("mul", f"{at}learnt", x=enter, y=candidate)
    new = sheet.put("add", f"{at}cell", x=kept, y=learnt)
    shown = sheet.put("tanh", f"{at}shown", x=new)
    out = sheet.put("mul", f"{at}hidden", x=leave, y=shown)
    if weights.w_hr is not None:
        out = sheet.linear(f"{at}projected", out, weights.w_hr, None)
    return out, new


def _gru(sheet: Sheet, at: str, x: Arg, states: States, weights: Weights, width: int) -> States:
    (hidden,) = states
    recurrent = sheet.linear(f"{at}recurrent", hidden, weights.w_hh, weights.b_hh)

    def parts(index: int, role: str) -> tuple[NodeRef, NodeRef]:
        return (
            sheet.part(f"{at}{role}.input", x, index, width),
            sheet.part(f"{at}{role}.state", recurrent, index, width),
        )

    def gate(index: int, role: str) -> NodeRef:
        one, two = parts(index, role)
        return sheet.put(
            "sigmoid", f"{at}{role}", x=sheet.put("add", f"{at}{role}.sum", x=one, y=two)
        )

    reset, keep = gate(0, "reset"), gate(1, "keep")
    one, two = parts(2, "candidate")
    remembered = sheet.put("mul", f"{at}remembered", x=reset, y=two)
    total = sheet.put("add", f"{at}candidate.sum", x=one, y=remembered)
    candidate = sheet.put("tanh", f"{at}candidate", x=total)
    apart = sheet.put("sub", f"{at}apart", x=hidden, y=candidate)
    kept = sheet.put("mul", f"{at}kept", x=keep, y=apart)
    return (sheet.put("add", f"{at}hidden", x=candidate, y=kept),)


def _rnn(
    function: str, sheet: Sheet, at: str, x: Arg, states: States, weights: Weights, width: int
) -> States:
    del width
    (hidden,) = states
    recurrent = sheet.linear(f"{at}recurrent", hidden, weights.w_hh, weights.b_hh)
    total = sheet.put("add", f"{at}sum", x=x, y=recurrent)
    return (sheet.put(function, f"{at}hidden", x=total),)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of recurrence: the gates that lie behind each other in its weights, and its step."""

    gates: int
    step: Step


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "lstm": Kind(4, _lstm),
        "gru": Kind(3, _gru),
        "rnn_tanh": Kind(1, partial(_rnn, "tanh")),
        "rnn_relu": Kind(1, partial(_rnn, "relu")),
    }
)
"""Every recurrence by its op; its cell's op has `_cell` behind it."""


# -- cells --


def _cell(found: Match) -> Made:
    root = found.root
    kind = KINDS[root.op.removesuffix("_cell")]
    held = _weights(root)
    weights = held[0] if held else None
    width = _width(found, weights, kind) if weights else None
    if weights is None or width is None:
        return Miss("the shape of its weights is not known", root.id)
    sheet = Sheet(found)
    inputs = sheet.linear("inputs", operand(root, "x"), weights.w_ih, weights.b_ih)
    states = kind.step(sheet, "", inputs, _states(root), weights, width)
    if root.op != "lstm_cell":
        return Change(states[0], tuple(sheet.nodes))
    return _taken_apart(found, sheet, states)


def _states(root: Node) -> States:
    hx = operand(root, "hx")
    return hx if isinstance(hx, tuple) else (hx,)


def _width(found: Match, weights: Weights, kind: Kind) -> int | None:
    """The width of a gate."""
    held = found.type_of(weights.w_hh)
    rows = held.dims[0] if isinstance(held, TensorType) and held.dims else None
    return rows // kind.gates if isinstance(rows, int) else None


def _taken_apart(found: Match, sheet: Sheet, values: tuple[Arg, ...]) -> Made:
    """The change of a root whose value is a tuple, with what is read of it and no more."""
    root = found.root
    reads = {
        attr(node, "index")
        for node in found.view.nodes.values()
        if node.op == "getitem" and operand(node, "x") == NodeRef(root.id)
    }
    if not reads:
        return Miss("nobody reads it", root.id)
    read = tuple(value if index in reads else None for index, value in enumerate(values))
    return Change(read, sheet.needed(read))


def _picked(found: Match) -> Made:
    """An item of a tuple that is written out."""
    items, index = operand(found.root, "x"), attr(found.root, "index")
    if not isinstance(items, tuple) or not isinstance(index, int):
        return Miss("its operand is one value", found.root.id)
    return Change(items[index])


# -- layers --


@dataclass(frozen=True, slots=True)
class Layout:
    """The options of a recurrent op, and what its shapes say."""

    kind: Kind
    weights: tuple[Weights, ...]
    sides: int
    steps: int
    axis: int
    width: int


def _sequence(found: Match) -> Made:
    layout = _layout(found)
    if isinstance(layout, str):
        return Miss(layout, found.root.id)
    sheet = Sheet(found)
    x, starts = operand(found.root, "x"), _states(found.root)
    last: list[States] = []
    layers = len(layout.weights) // layout.sides
    for layer in range(layers):
        sides: list[Arg] = []
        for side in range(layout.sides):
            at = f"layer{layer}.reverse." if side else f"layer{layer}."
            index = layer * layout.sides + side
            start = _at_start(sheet, at, starts, index)
            values, end = _run(sheet, at, x, start, layout, index)
            sides.append(values)
            last.append(end)
        x = _joined(sheet, f"layer{layer}.", sides)
        if layer + 1 < layers:
            x = _dropped(sheet, f"layer{layer}.", x)
    ends = (
        sheet.put("stack", f"last_{name}", xs=tuple(states), dim=0)
        for name, states in zip(("hidden", "cell"), zip(*last, strict=True), strict=False)
    )
    return _taken_apart(found, sheet, (x, *ends))


def _layout(found: Match) -> Layout | str:
    root = found.root
    kind, axis = KINDS[root.op], 1 if attr(root, "batch_first") is True else 0
    held = found.type_of(operand(root, "x"))
    dims = held.dims if isinstance(held, TensorType) else None
    steps = dims[axis] if dims is not None and len(dims) == 3 else None
    if not isinstance(steps, int) or steps < 1:
        return "the length of its sequences is not known beforehand"
    sides = 2 if attr(root, "bidirectional") is True else 1
    weights = _weights(root)
    width = _width(found, weights[0], kind) if weights else None
    if weights is None or width is None:
        return "its weights are not as torch lays them out"
    return Layout(kind, weights, sides, steps, axis, width)


def _weights(root: Node) -> tuple[Weights, ...] | None:
    """What every layer reads in each direction; None if torch lays it out otherwise."""
    sides = sides_of(root)
    return None if sides is None else tuple(_read(root, side) for side in sides)


def _read(root: Node, side: Side) -> Weights:
    places = (side.w_ih, side.w_hh, side.b_ih, side.b_hh, side.w_hr)
    return Weights(*(at_place(root, place) for place in places))


def _at_start(sheet: Sheet, at: str, starts: States, index: int) -> States:
    return tuple(
        sheet.put("select", f"{at}first_{name}", x=state, index=index, dim=0)
        for name, state in zip(("hidden", "cell"), starts, strict=False)
    )


def _run(
    sheet: Sheet, at: str, x: Arg, states: States, layout: Layout, index: int
) -> tuple[Arg, States]:
    """The sequence of hidden states of one layer in one direction, and the last states."""
    weights = layout.weights[index]
    inputs = sheet.linear(f"{at}inputs", x, weights.w_ih, weights.b_ih)
    forward = range(layout.steps)
    seen: dict[int, Arg] = {}
    for step in reversed(forward) if index % layout.sides else forward:
        here = f"{at}step{step}."
        now = sheet.put("select", f"{here}input", x=inputs, index=step, dim=layout.axis)
        states = layout.kind.step(sheet, here, now, states, weights, layout.width)
        seen[step] = states[0]
    values = tuple(seen[step] for step in forward)
    return sheet.put("stack", f"{at}outputs", xs=values, dim=layout.axis), states


def _joined(sheet: Sheet, at: str, sides: list[Arg]) -> Arg:
    if len(sides) == 1:
        return sides[0]
    return sheet.put("cat", f"{at}both", xs=tuple(sides), dim=2)


def _dropped(sheet: Sheet, at: str, x: Arg) -> Arg:
    """What the next layer gets: in training some values are dropped between layers."""
    p, training = attr(sheet.found.root, "dropout"), attr(sheet.found.root, "training")
    if not p or training is False:
        return x
    return sheet.put("dropout", f"{at}dropout", x=x, p=p, training=training)


RECURRENCES: Rules = rules(
    *(
        rule
        for name in KINDS
        for rule in (
            Rule(RuleName(f"decompose.{name}"), op(name)(...), _sequence),
            Rule(RuleName(f"decompose.{name}_cell"), op(f"{name}_cell")(...), _cell),
        )
    ),
    # getitem((h, c); 1) -> c
    Rule(RuleName("decompose.getitem"), op("getitem")(anything("x")), _picked),
)
"""Rules that write recurrent layers out."""
