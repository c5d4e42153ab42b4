"""Size, time and fidelity of a module, measured."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fqx.ir.graph import Graph
from fqx.ir.weight import Role

Call = tuple[tuple[object, ...], Mapping[str, object]]
"""Positional and keyword arguments of one call."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one call: the median and the fastest of `runs`, on `threads` threads."""

    median: float
    best: float
    runs: int
    threads: int

    def __repr__(self) -> str:
        return f"{show_seconds(self.median)} (best {show_seconds(self.best)} of {self.runs})"


def call_of(batch: object) -> Call:
    """A batch as a call: a mapping by name, a tuple or list by position, anything else alone."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)), {}


def latency(
    module: Callable[..., object],
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    runs: int = 20,
    budget: float = 2.0,
) -> Latency:
    """Time of a call after warming up; at most `runs` calls, and no new one after `budget` seconds.

    Runs under no_grad on torch's present number of threads. What the module raises, this raises.
    """
    named = dict(kwargs or {})
    times: list[float] = []
    with torch.no_grad():
        for _ in range(2):
            module(*args, **named)
        start = time.perf_counter()
        while len(times) < max(runs, 1):
            before = time.perf_counter()
            module(*args, **named)
            after = time.perf_counter()
            times.append(after - before)
            if after - start > budget:
                break
    return Latency(statistics.median(times), min(times), len(times), torch.get_num_threads())


@dataclass(frozen=True, slots=True)
class Contest:
    """Median seconds of a call in int8 and in float, taking turns, and how surely they are known.

    `spread` is `1.57 · IQR / sqrt(runs)`, of the wider interquartile range: medians further apart
    than that differ (McGill, Tukey and Larsen, "Variations of Box Plots", 1978).
    """

    int8: float
    floating: float
    spread: float
    runs: int

    @property
    def pays(self) -> bool:
        """Whether int8 is faster by more than the spread."""
        return self.floating - self.int8 > self.spread

    def __repr__(self) -> str:
        times = f"int8 {show_seconds(self.int8)}, float {show_seconds(self.floating)}"
        return f"{times}, spread {show_seconds(self.spread)} of {self.runs} runs"


def contest(
    int8: Callable[..., object],
    floating: Callable[..., object],
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    runs: int = 101,
    budget: float = 10.0,
) -> Contest:
    """Time two modules on one call, turn by turn; no new turn after `budget` seconds."""
    named = dict(kwargs or {})
    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for module in (int8, floating, int8, floating):
            module(*args, **named)
        start = time.perf_counter()
        while len(times[0]) < max(runs, 4):
            for module, taken in zip((int8, floating), times, strict=True):
                before = time.perf_counter()
                module(*args, **named)
                taken.append(time.perf_counter() - before)
            if time.perf_counter() - start > budget and len(times[0]) >= 4:
                break
    quarters = [statistics.quantiles(taken, n=4) for taken in times]
    wide = max(high - low for low, _, high in quarters)
    count = len(times[0])
    return Contest(quarters[0][1], quarters[1][1], 1.57 * wide / math.sqrt(count), count)


def sqnr(reference: object, found: object) -> float:
    """Signal to quantization noise in dB over all floating tensors of two equal output trees.

    `10 · log10(Σ reference² / Σ (reference − found)²)` in float64; infinite where nothing differs.
    """
    signal, noise = powers(reference, found)
    return decibels(signal, noise)


def sqnr_over(
    reference: Callable[..., object], found: Callable[..., object], calls: Iterable[Call]
) -> float:
    """`sqnr` of two modules over several calls, powers summed over all of them."""
    signal = noise = 0.0
    with torch.no_grad():
        for args, kwargs in calls:
            one, two = powers(reference(*args, **kwargs), found(*args, **kwargs))
            signal, noise = signal + one, noise + two
    return decibels(signal, noise)


def decibels(signal: float, noise: float) -> float:
    """The ratio of two powers in dB."""
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def weight_bytes(graph: Graph) -> int:
    """Bytes of the weights a graph reads, each fingerprint once; statistics not counted."""
    held = {
        weight.fingerprint: math.prod(weight.shape) * _WIDTHS.get(weight.dtype.value, 4)
        for weight in graph.weights.values()
        if weight.role is not Role.STATISTIC
    }
    return sum(held.values())


_WIDTHS: Mapping[str, int] = {
    "float16": 2,
    "bfloat16": 2,
    "float64": 8,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int64": 8,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
}


def show_seconds(seconds: float) -> str:
    """A time with three digits and its unit."""
    if seconds >= 1.0:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def show_bytes(count: int) -> str:
    """A size with its unit."""
    if count >= 1 << 20:
        return f"{count / (1 << 20):.3g} MiB"
    return f"{count / (1 << 10):.3g} KiB" if count >= 1 << 10 else f"{count} B"


def powers(reference: object, found: object) -> tuple[float, float]:
    """Σ reference² and Σ (reference − found)² over the floating tensors of two output trees.

    In float64. Raises ValueError if the trees do not hold equally many.
    """
    pairs = zip(_tensors(reference), _tensors(found), strict=True)
    signal = noise = 0.0
    for one, two in pairs:
        wide = one.detach().double()
        signal += float(wide.square().sum())
        noise += float((wide - two.detach().double()).square().sum())
    return signal, noise


def _tensors(tree: object) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [item for item in leaves if isinstance(item, torch.Tensor) and item.is_floating_point()]
