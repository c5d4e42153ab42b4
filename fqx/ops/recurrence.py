"""Where the weights of recurrent layers and cells stand in their nodes, in torch's flat order.

lstm(x, hx, (w_ih, w_hh, b_ih, b_hh, …); …)      one group a layer and direction
"""

from __future__ import annotations

from dataclasses import dataclass

from fqx.ir.arg import Arg, ArgPath
from fqx.ir.names import OpName
from fqx.ir.node import Node
from fqx.ops.catalogue import attr, op_of

KINDS: tuple[str, ...] = ("lstm", "gru", "rnn_tanh", "rnn_relu")
"""The recurrences, by the ops of their layers."""

LAYERS: frozenset[OpName] = frozenset(OpName(kind) for kind in KINDS)
CELLS: frozenset[OpName] = frozenset(OpName(f"{kind}_cell") for kind in KINDS)
"""The ops of one step each."""


@dataclass(frozen=True, slots=True)
class Side:
    """Places in a node's args of what one layer reads in one direction; some may be absent."""

    w_ih: ArgPath
    w_hh: ArgPath
    b_ih: ArgPath | None = None
    b_hh: ArgPath | None = None
    w_hr: ArgPath | None = None


def is_recurrent(op: OpName) -> bool:
    """Whether the op is a recurrent layer or a cell."""
    return op in LAYERS or op in CELLS


def sides_of(node: Node) -> tuple[Side, ...] | None:
    """The places of every layer and direction; None where the weights lie in another order.

    A cell has one side. For ops that are no recurrences the answer is None too.
    """
    row = op_of(node)
    if node.op in CELLS and row is not None:
        first = row.position("w_ih")
        assert first is not None
        places: list[ArgPath] = [(first + index,) for index in range(4)]
        return (Side(*places),)
    at = row.position("weights") if node.op in LAYERS and row is not None else None
    return None if at is None else _layers(node, at)


def _layers(node: Node, at: int) -> tuple[Side, ...] | None:
    flat, layers = node.args[at], attr(node, "num_layers")
    sides = 2 if attr(node, "bidirectional") is True else 1
    if not isinstance(flat, tuple) or not isinstance(layers, int) or not layers:
        return None
    biased = attr(node, "has_biases") is True
    size, rest = divmod(len(flat), layers * sides)
    plain = 4 if biased else 2
    if rest or size - plain not in ((0, 1) if node.op == "lstm" else (0,)):
        return None
    return tuple(_side(at, start, size, biased) for start in range(0, len(flat), size))


def _side(at: int, start: int, size: int, biased: bool) -> Side:
    places: list[ArgPath] = [(at, start + index) for index in range(size)]
    b_ih, b_hh = (places[2], places[3]) if biased else (None, None)
    rest = places[4 if biased else 2 :]
    return Side(places[0], places[1], b_ih, b_hh, rest[0] if rest else None)


def weight_places(node: Node) -> tuple[ArgPath, ...]:
    """The places of the matrices of input and state, side by side; none for other ops."""
    return tuple(place for side in sides_of(node) or () for place in (side.w_ih, side.w_hh))


def bias_places(node: Node) -> tuple[ArgPath | None, ...]:
    """The places of the biases that go with the matrices, None where there is no bias."""
    return tuple(place for side in sides_of(node) or () for place in (side.b_ih, side.b_hh))


def at_place(node: Node, place: ArgPath | None) -> Arg:
    """The operand at a place; None where there is none."""
    if place is None:
        return None
    found: Arg = node.args
    for index in place:
        held = found if isinstance(found, tuple) else ()
        found = held[index] if isinstance(index, int) and index < len(held) else None
    return found
