"""What a trail holds in memory beside the model it came from."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fqx.ir.graph import Graph
from fqx.ir.trail import Trail


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of weights: those one graph of a trail reads, and what no graph before it held."""

    name: str
    held: int
    new: int


def held(trail: Trail) -> tuple[Held, ...]:
    """Every graph of the trail in order, the captured one first; shared storage counts once."""
    names = ("capture", *(step.name for step in trail.steps))
    seen: dict[int, int] = {}
    found: list[Held] = []
    for name, graph in zip(names, trail.graphs(), strict=True):
        mine = dict(_storages(graph))
        new = sum(size for place, size in mine.items() if place not in seen)
        seen.update(mine)
        found.append(Held(name, sum(mine.values()), new))
    return tuple(found)


def peak() -> int:
    """The most bytes this process has had in memory so far."""
    kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kept if sys.platform == "darwin" else kept * 1024


def held_table(rows: tuple[Held, ...]) -> str:
    """One row a graph, in megabytes."""
    head = f"{'graph after':<14}{'holds MB':>12}{'of its own':>12}"
    lines = [f"{row.name:<14}{row.held / 1e6:>12.1f}{row.new / 1e6:>12.1f}" for row in rows]
    total = f"{'together':<26}{sum(row.new for row in rows) / 1e6:>12.1f}"
    return "\n".join((head, *lines, total))


def _storages(graph: Graph) -> Iterator[tuple[int, int]]:
    """Address and bytes of everything the graph's weights lie in."""
    for weight in graph.weights.values():
        if isinstance(weight.payload, torch.Tensor):
            storage = weight.payload.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()
    for block in graph.blocks.values():
        yield from _storages(block)
