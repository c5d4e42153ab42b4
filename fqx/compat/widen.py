"""torch.ao's integers of results: 0..255, also where `reduce_range` computed a scale for 0..127."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from fqx.ir.arg import Arg, DType, NodeRef
from fqx.ir.diff import Changed
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, RuleName, Stage
from fqx.ir.node import Node
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Result
from fqx.ops.catalogue import OPS, fixed_qparams
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite, conclude

REDUCED = (DType.UINT8, 0, 127)
Grid: TypeAlias = tuple[Arg, Arg]
"""A scale and a zero point."""


def widen() -> Pass:
    """Results may go on to 255 where their scale was computed for 0..127.

    Nothing that was calibrated lies there; what lies beyond is kept instead of cut off. A range
    that is known beforehand, as that of a sigmoid, is cut into all 256 steps, also behind what only
    moves it. No faults of its own.
    """
    return Pass("widen", NO_OPTIONS, frozenset({Stage.QUANTIZED}), None, _widened)


def _widened(graph: Graph) -> Result[Rewrite, Fault]:
    finer: dict[NodeId, tuple[Grid, Grid]] = {}
    edits: list[Changed] = []
    for item in graph:
        made = _wider(graph, item, finer)
        if made is not item:
            edits.append(Changed(item, made, RuleName("widen")))
    return conclude(graph, edits, "widen")


def _wider(graph: Graph, item: Node, finer: dict[NodeId, tuple[Grid, Grid]]) -> Node:
    """The node in its wider form; `finer` has the old and new grids of values, by node."""
    source = item.args[0] if item.args else None
    if not isinstance(source, NodeRef):
        return item
    if item.op == "dequantize" and source.id in finer:
        finer[item.id] = finer[source.id]
        return _with(item, finer[item.id][1], {})
    is_literal = item.op == "quantize" and not isinstance(item.args[1], NodeRef)
    if not is_literal or tuple(item.attrs[name] for name in ("dtype", "qmin", "qmax")) != REDUCED:
        return item
    grid = (item.args[1], item.args[2])
    known = _known(graph[source.id], grid, finer)
    if known is not None:
        finer[item.id] = grid, known
    return _with(item, known or grid, {"qmax": 255})


def _known(made: Node, grid: Grid, finer: Mapping[NodeId, tuple[Grid, Grid]]) -> Grid | None:
    """The finer grid of a value whose range is known, or that moves such a one."""
    row = OPS.get(made.op)
    if row is not None and fixed_qparams(row, 0, 127) == grid:
        return fixed_qparams(row, 0, 255)
    moved = (finer[name] for name in made.inputs() if name in finer)
    return next((new for old, new in moved if old == grid), None)


def _with(item: Node, grid: Grid, attrs: Mapping[str, Arg]) -> Node:
    args = (item.args[0], *grid, *item.args[3:])
    return Node(item.id, item.op, args, FrozenMap({**item.attrs, **attrs}), item.origin)
