"""A picture of how pass time grows: against nodes, and against observers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fqx.bench.passes import Road
from fqx.bench.plot import save, sheet

BY_OBSERVERS = ("calibrate", "convert")


def curves(roads: Sequence[Road], path: str) -> None:
    """Write processor seconds of every pass against nodes, of two against observers, log-log.

    A slope of one is linear. Raises what `sheet` and `save` raise.
    """
    figure = sheet(2, 1)
    nodes, observers = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    names = [item.name for item in roads[0].passes]
    for name in names:
        _line(nodes, [road.nodes for road in roads], roads, name)
    for name in BY_OBSERVERS:
        _line(observers, [road.observers for road in roads], roads, name)
    _label(nodes, "nodes")
    _label(observers, "observers")
    save(figure, path)


def _line(axes: Any, places: Sequence[int], roads: Sequence[Road], name: str) -> None:
    times = [sum(item.processor for item in road.passes if item.name == name) for road in roads]
    axes.plot(places, times, marker="o", label=name)


def _label(axes: Any, what: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(what)
    axes.set_ylabel("processor seconds")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="x-small")
