"""A pipeline's history as a value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from fqx.ir.arg import Arg, Json
from fqx.ir.diff import Diff
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import Digest
from fqx.ir.node import NO_ATTRS
from fqx.kit.frozen import FrozenMap


class Evidence(Protocol):
    """What a pass decided, beside what it changed: a Plan, Stats or a Lowering."""

    @property
    def kind(self) -> str:
        """Name of the kind of evidence, for files."""

    def to_json(self) -> Json:
        """The evidence as plain data."""


@dataclass(frozen=True, slots=True)
class Step:
    """One pass: its text, what it changed, the graph it gave and what it decided.

    `name` and `options` are the pass as data, from which a replay makes it again.
    """

    text: str
    diff: Diff
    graph: Graph
    evidence: Evidence | None = None
    portable: bool = True
    name: str = ""
    options: FrozenMap[Arg] = NO_ATTRS

    @property
    def before(self) -> Digest:
        """Digest of the graph the pass was given."""
        return self.diff.before

    @property
    def after(self) -> Digest:
        """Digest of the graph the pass gave."""
        return self.diff.after

    def __repr__(self) -> str:
        return f"Step {self.text}: {len(self.diff)} edits, {self.before[:12]} -> {self.after[:12]}"


@dataclass(frozen=True, slots=True)
class Trail:
    """The captured graph and every step since.

    `notes` are remarks of capture, in order.
    """

    base: Graph
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def graph(self) -> Graph:
        """The graph after the last step."""
        return self.steps[-1].graph if self.steps else self.base

    def graphs(self) -> tuple[Graph, ...]:
        """The base graph and the graph after each step."""
        return (self.base, *(step.graph for step in self.steps))

    def plus(self, steps: Iterable[Step]) -> Trail:
        """With more steps behind; the same object if there are none."""
        more = tuple(steps)
        return replace(self, steps=(*self.steps, *more)) if more else self

    def __repr__(self) -> str:
        lines = [f"Trail from {self.base.digest[:12]} to {self.graph.digest[:12]}"]
        shown = self.steps if len(self.steps) <= 8 else self.steps[:7]
        lines += [f"  {step.text[:60]}: {len(step.diff)} edits" for step in shown]
        lines += [f"  and {len(self.steps) - 7} more"] if len(self.steps) > 8 else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{repr(self).replace('<', '&lt;')}</pre>"


class Halt(Exception):
    """A fault and the trail up to it; `unwrap()` shows node, path, source line, reason, remedy."""

    def __init__(self, fault: Fault, trail: Trail | None = None) -> None:
        super().__init__(str(fault))
        self.fault = fault
        self.trail = trail

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Halt) and self.fault == other.fault and self.trail == other.trail

    def __hash__(self) -> int:
        return hash(self.fault)

    def __reduce__(self) -> tuple[type[Halt], tuple[Fault, Trail | None]]:
        return (Halt, (self.fault, self.trail))
