"""Where a materialized module spends its time: node by node, kernel by kernel."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fqx.audit.macs import Macs, count_macs
from fqx.edge.modules import GraphModule
from fqx.edge.walk import Site, Walk
from fqx.ir.arg import Json

LAYOUT = frozenset(
    {
        *("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute"),
        *("transpose", "contiguous", "to", "clone", "expand", "movedim", "t", "native.wrap"),
        *("native.unwrap", "as_laid_out"),
    }
)
"""Calls that move values or only rename them; they compute nothing."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of one node (the median over the walks) and the multiply-accumulates it executed."""

    node: str
    module: str
    kernel: str
    seconds: float
    int8_macs: int
    float_macs: int

    @property
    def group(self) -> str:
        """`quantize`, `dequantize`, `layout`, `int8` or `float` arithmetic, or `other`."""
        name = self.kernel.rpartition(".")[2]
        if "dequantize" in name:
            return "dequantize"
        if "quantize" in name:
            return "quantize"
        if self.kernel in LAYOUT:
            return "layout"
        if self.int8_macs:
            return "int8"
        return "float" if self.float_macs else "other"


@dataclass(frozen=True, slots=True)
class Total:
    """Nodes taken together: how many, their seconds, and their multiply-accumulates."""

    name: str
    nodes: int
    seconds: float
    int8_macs: int
    float_macs: int


@dataclass(frozen=True, slots=True)
class Profile:
    """All nodes in the order of the program; `whole` are the seconds of the module's own call.

    The nodes' seconds are taken one by one, so their sum and `whole` differ by what calls cost.
    """

    nodes: tuple[Spent, ...]
    whole: float
    walks: int

    @property
    def seconds(self) -> float:
        """The sum over the nodes."""
        return sum(node.seconds for node in self.nodes)

    def by(self, key: Callable[[Spent], str]) -> tuple[Total, ...]:
        """Totals of nodes with the same key, the longest time first."""
        groups: dict[str, list[Spent]] = {}
        for node in self.nodes:
            groups.setdefault(key(node), []).append(node)
        totals = [
            Total(
                name,
                len(nodes),
                sum(node.seconds for node in nodes),
                sum(node.int8_macs for node in nodes),
                sum(node.float_macs for node in nodes),
            )
            for name, nodes in groups.items()
        ]
        return tuple(sorted(totals, key=lambda total: -total.seconds))

    def kernels(self) -> tuple[Total, ...]:
        """Totals by kernel."""
        return self.by(lambda node: node.kernel)

    def groups(self) -> tuple[Total, ...]:
        """Totals by group."""
        return self.by(lambda node: node.group)

    def to_json(self) -> dict[str, Json]:
        """Plain data; seconds as float."""
        return {
            "seconds": self.seconds,
            "whole": self.whole,
            "walks": self.walks,
            "nodes": [{**asdict(node), "group": node.group} for node in self.nodes],
        }


def profile(
    module: GraphModule,
    args: tuple[object, ...] = (),
    kwargs: Mapping[str, object] | None = None,
    walks: int = 20,
    budget: float = 5.0,
) -> Profile:
    """Time every node of a materialized module on one call's inputs.

    Medians over at most `walks` runs after two that warm up, and no new one after `budget` seconds.
    Runs under no_grad on torch's present number of threads. What the module raises, this raises.
    """
    walk, named = Walk(module), dict(kwargs or {})
    times: dict[Site, list[float]] = {}

    def timed(site: Site, run: Callable[..., Any], a: Any, k: Any) -> Any:
        before = time.perf_counter()
        value = run(*a, **k)
        times.setdefault(site, []).append(time.perf_counter() - before)
        return value

    whole: list[float] = []
    with torch.no_grad():
        done = _counted(walk, args, named)
        walk(timed, args, named)
        times.clear()
        start = time.perf_counter()
        while len(whole) < max(walks, 1):
            walk(timed, args, named)
            before = time.perf_counter()
            module(*args, **named)
            whole.append(time.perf_counter() - before)
            if time.perf_counter() - start > budget:
                break
    nodes = tuple(
        Spent(
            site.node,
            site.module,
            site.kernel,
            statistics.median(taken),
            done[site].int8,
            done[site].floating,
        )
        for site, taken in times.items()
    )
    return Profile(nodes, statistics.median(whole), len(whole))


def _counted(walk: Walk, args: tuple[object, ...], named: dict[str, object]) -> dict[Site, Macs]:
    """The multiply-accumulates each node executes."""
    done: dict[Site, Macs] = {}

    def count(site: Site, run: Callable[..., Any], a: Any, k: Any) -> Any:
        values: list[Any] = []
        done[site] = count_macs(lambda *x, **y: values.append(run(*x, **y)), a, k)
        return values[0]

    walk(count, args, named)
    return done
