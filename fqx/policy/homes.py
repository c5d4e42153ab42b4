"""Standalone modules: where their borders run, which nothing shared may cross."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path


@dataclass(frozen=True, slots=True)
class Homes:
    """The standalone modules of a graph, by path; every other node lives in the root, `""`."""

    graph: Graph
    paths: frozenset[str]

    def of(self, name: NodeId) -> Path:
        """The innermost standalone module around a node."""
        scope = self.graph[name].origin.scope if self.paths else ()
        inner = (path for path, _ in reversed(scope) if path in self.paths)
        return next(inner, Path(""))

    def apart(self, one: NodeId, two: NodeId) -> bool:
        """Whether a border runs between two nodes."""
        return bool(self.paths) and self.of(one) != self.of(two)


def homes_in(graph: Graph, paths: Iterable[str]) -> Homes:
    """The homes that schemes name."""
    return Homes(graph, frozenset(path for path in paths if path))
