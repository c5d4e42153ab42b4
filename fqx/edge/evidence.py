"""Evidence from files: the plans, statistics and lowerings that steps carry."""

from __future__ import annotations

from dataclasses import dataclass

from fqx.ir.arg import Json
from fqx.ir.trail import Evidence, Trail


@dataclass(frozen=True, slots=True)
class Recorded:
    """Evidence as it stood in a file: plain data of a kind."""

    name: str
    value: Json

    @property
    def kind(self) -> str:
        """Name of the kind of evidence."""
        return self.name

    def to_json(self) -> Json:
        """The evidence as plain data."""
        return self.value


def decode_evidence(code: Json) -> Evidence | None:
    """The evidence of a step; ValueError if it is none."""
    match code:
        case None:
            return None
        case {"kind": str() as kind, "value": value}:
            return Recorded(kind, value)
        case _:
            raise ValueError("evidence has a kind and a value")


def target_of(trail: Trail) -> Json:
    """The target the last graph was made for, as plain data; None if for none yet."""
    for step in reversed(trail.steps):
        if step.evidence is None or step.evidence.kind == "stats":
            continue
        value = step.evidence.to_json()
        if isinstance(value, dict) and value.get("target") is not None:
            return value["target"]
    return None
