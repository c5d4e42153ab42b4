"""What a table of costs said of each unit of a program, and of the program: evidence of `lower`."""

from __future__ import annotations

from dataclasses import dataclass

from fqx.ir.arg import Json
from fqx.ir.names import NodeId

FLOAT = "float"
"""The name of the candidate that runs as the float operators of the reference program."""


@dataclass(frozen=True, slots=True)
class Priced:
    """What a table of costs said of one unit: its nodes, and the candidates by their prices.

    `prices` are the candidates' microseconds, in float last; None for what the table does not know.
    `chosen` names the one that runs. `margin` is what the whole program would take more, were this
    unit alone in float instead of on integers or the other way; None where it has no other way.
    """

    anchor: NodeId
    unit: str
    nodes: tuple[NodeId, ...]
    chosen: str
    prices: tuple[tuple[str, float | None], ...]
    margin: float | None

    @property
    def floating(self) -> bool:
        """Whether the unit runs in float."""
        return self.chosen == FLOAT

    def __str__(self) -> str:
        known = [(name, price) for name, price in self.prices if price is not None]
        listed = sorted(known, key=lambda item: (item[0] != self.chosen, item[1], item[0]))
        told = "; ".join(f"{name} {price:.3g} µs" for name, price in listed)
        if self.margin is None:
            return told
        other = "on integers" if self.floating else FLOAT
        return f"{told}; {other}, conversions counted, {self.margin:+.3g} µs"

    def to_json(self) -> Json:
        """The prices as plain data."""
        return {
            "anchor": self.anchor,
            "unit": self.unit,
            "nodes": list(self.nodes),
            "chosen": self.chosen,
            "prices": dict(self.prices),
            "margin": self.margin,
        }


def priced_from_json(code: Json) -> Priced:
    """Inverse of `Priced.to_json`; ValueError on anything else."""
    match code:
        case {
            "anchor": str() as anchor,
            "unit": str() as unit,
            "nodes": list() as nodes,
            "chosen": str() as chosen,
            "prices": dict() as prices,
            "margin": margin,
        }:
            names = tuple(NodeId(str(name)) for name in nodes)
            listed = tuple((name, _price(item)) for name, item in prices.items())
            return Priced(NodeId(anchor), unit, names, chosen, listed, _price(margin))
        case _:
            raise ValueError(f"not the prices of a unit: {code!r}")


def _price(code: Json) -> float | None:
    if code is None or (isinstance(code, (int, float)) and not isinstance(code, bool)):
        return code
    raise ValueError(f"not a price: {code!r}")


@dataclass(frozen=True, slots=True)
class Estimate:
    """The table a lowering went by, its digest, and what it says of what a choice can change.

    Microseconds of the program as chosen, with every unit on integers, and with every unit in float
    that can be.
    """

    table: str
    digest: str
    chosen: float
    int8: float
    floating: float

    def to_json(self) -> Json:
        """The estimate as plain data."""
        return {
            "table": self.table,
            "digest": self.digest,
            "chosen": self.chosen,
            "int8": self.int8,
            "float": self.floating,
        }
