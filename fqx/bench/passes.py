"""How long the passes take, as the program grows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import fqx
from fqx.ir.trail import Trail
from fqx.policy.target import Target
from fqx.testing.large import chain, image, large_graph


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one thing."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Road:
    """A graph's size and the seconds of every pass over it, in order."""

    nodes: int
    passes: tuple[Timed, ...]

    @property
    def arithmetic(self) -> float:
        """Seconds of all passes but calibrate, which runs the model."""
        return sum(item.seconds for item in self.passes if item.name != "calibrate")


def road(nodes: int, target: Target | None = None) -> Road:
    """Time every pass from a float graph of about `nodes` nodes to a module.

    What a pass reports as a fault, this raises.
    """
    chosen = target if target is not None else fqx.onednn()
    trail = Trail(large_graph(nodes))
    size = len(trail.graph)
    timed: list[Timed] = []
    passes = fqx.pipeline(chosen, [image()], progress=False).passes
    for item in passes:
        start = time.perf_counter()
        trail = item.run(trail).unwrap()
        timed.append(Timed(item.name, time.perf_counter() - start))
    start = time.perf_counter()
    fqx.materialize(trail.graph).unwrap()
    timed.append(Timed("materialize", time.perf_counter() - start))
    return Road(size, tuple(timed))


def chain_seconds(blocks: int = 800) -> Timed:
    """Quantize a chain of conv-bn-relu blocks, from capture to a module, on one batch."""
    model = chain(blocks)
    start = time.perf_counter()
    done = fqx.quantize(model, (image(),), calibration=[image(seed=1)], progress=False).unwrap()
    done.materialize().unwrap()
    return Timed(f"chain of {blocks} conv-bn-relu, capture to module", time.perf_counter() - start)


def table(roads: Sequence[Road]) -> str:
    """One row a pass, one column a size; seconds."""
    names = [item.name for item in roads[0].passes]
    head = f"{'pass':<14}" + "".join(f"{f'{road.nodes} nodes':>14}" for road in roads)
    rows = [
        f"{name:<14}" + "".join(f"{road.passes[index].seconds:>14.2f}" for road in roads)
        for index, name in enumerate(names)
    ]
    total = f"{'but calibrate':<14}" + "".join(f"{road.arithmetic:>14.2f}" for road in roads)
    each = f"{'µs per node':<14}" + "".join(
        f"{road.arithmetic / road.nodes * 1e6:>14.0f}" for road in roads
    )
    return "\n".join((head, *rows, total, each))
