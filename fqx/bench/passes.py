"""How long the passes take, as the program grows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import fqx
from fqx.bench.memory import peak
from fqx.ir.trail import Trail
from fqx.policy.target import Target
from fqx.testing.large import chain, image, large_graph


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one thing, by the clock on the wall and by the processor's."""

    name: str
    seconds: float
    processor: float


@dataclass(frozen=True, slots=True)
class Road:
    """A graph's size, its observers, the seconds of every pass over it in order, and the memory.

    `peak` is the most bytes the process has had so far, so measure small graphs first.
    """

    nodes: int
    passes: tuple[Timed, ...]
    observers: int = 0
    peak: int = 0

    @property
    def pure(self) -> Timed:
        """All passes but calibrate, which runs the model."""
        rest = [item for item in self.passes if item.name != "calibrate"]
        wall = sum(item.seconds for item in rest)
        return Timed("but calibrate", wall, sum(item.processor for item in rest))


def road(nodes: int, target: Target | None = None) -> Road:
    """Time every pass from a float graph of about `nodes` nodes to a module.

    What a pass reports as a fault, this raises.
    """
    chosen = target if target is not None else fqx.onednn()
    trail = Trail(large_graph(nodes))
    size = len(trail.graph)
    timed: list[Timed] = []
    observers = 0
    passes = fqx.pipeline(chosen, [image()], progress=False).passes
    for item in passes:
        clock = _Clock()
        trail = item.run(trail).unwrap()
        timed.append(clock.stop(item.name))
        observers = observers or sum(node.op == "observe" for node in trail.graph)
    clock = _Clock()
    fqx.materialize(trail.graph).unwrap()
    timed.append(clock.stop("materialize"))
    return Road(size, tuple(timed), observers, peak())


def chain_seconds(blocks: int = 800) -> Timed:
    """Quantize a chain of conv-bn-relu blocks, from capture to a module, on one batch."""
    model = chain(blocks)
    clock = _Clock()
    done = fqx.quantize(model, (image(),), calibration=[image(seed=1)], progress=False).unwrap()
    done.materialize().unwrap()
    return clock.stop(f"chain of {blocks} conv-bn-relu, capture to module")


def table(roads: Sequence[Road]) -> str:
    """One row a pass, one column a size; seconds."""
    names = [item.name for item in roads[0].passes]
    head = f"{'pass':<14}" + "".join(f"{f'{road.nodes} nodes':>14}" for road in roads)
    rows = [
        f"{name:<14}" + "".join(f"{road.passes[index].seconds:>14.2f}" for road in roads)
        for index, name in enumerate(names)
    ]
    pure = [road.pure for road in roads]
    wall = f"{'but calibrate':<14}" + "".join(f"{item.seconds:>14.2f}" for item in pure)
    busy = f"{'  processor':<14}" + "".join(f"{item.processor:>14.2f}" for item in pure)
    each = f"{'  µs per node':<14}" + "".join(
        f"{item.processor / road.nodes * 1e6:>14.0f}"
        for item, road in zip(pure, roads, strict=True)
    )
    seen = f"{'observers':<14}" + "".join(f"{road.observers:>14}" for road in roads)
    most = f"{'peak MB':<14}" + "".join(f"{road.peak / 1e6:>14.0f}" for road in roads)
    return "\n".join((head, *rows, wall, busy, each, seen, most))


class _Clock:
    """Started when made."""

    def __init__(self) -> None:
        self.wall = time.perf_counter()
        self.busy = time.process_time()

    def stop(self, name: str) -> Timed:
        """What has passed since."""
        return Timed(name, time.perf_counter() - self.wall, time.process_time() - self.busy)
