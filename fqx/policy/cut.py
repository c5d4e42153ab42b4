"""Which units run on integers and which in float, so that the whole costs least: a minimum cut.

Every unit takes one of two labels. A unit has a price under each, and a value has prices that
depend on its maker's and its readers' labels. Each price is paid once for a value, however many
read it:

    maker int8,  a reader float    up       dequantize
    maker float, a reader int8     down     quantize
    maker float, a reader float    plain    what stands in for the rounding nobody needs; <= up

Such an energy is least at a minimum cut (Kolmogorov and Zabih, "What energy functions can be
minimized via graph cuts?", PAMI 26(2), 2004; project selection is the same construction). Units
on the source's side are int8. A value gets one auxiliary node per kind of reader:

    source --plain--> f --∞--> every reader     f is on the sink's side if some reader is float
    maker --(up - plain)--> f                    and then pays, more if the maker is int8
    every reader --∞--> i --down--> maker        i is on the source's side if some reader is int8

The flow is Dinic's (1970), over integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SOURCE, SINK = 0, 1


@dataclass(frozen=True, slots=True)
class Choices:
    """What a unit costs on integers and in float; None where it cannot run so."""

    int8: int | None
    floating: int | None


@dataclass(frozen=True, slots=True)
class Shared:
    """A value between units, by their places in the problem; see the module for the prices."""

    maker: int
    readers: tuple[int, ...]
    up: int
    down: int
    plain: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """Units and values, prices in whole nanoseconds; every unit can run in one way at least."""

    units: tuple[Choices, ...]
    values: tuple[Shared, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """The labels of least cost: for each unit whether it is float; `flow` is the cut's value."""

    floating: tuple[bool, ...]
    flow: int


def price(problem: Problem, floating: tuple[bool, ...]) -> int | None:
    """What some labels cost together; None where a unit cannot run so."""
    total = 0
    for unit, is_float in zip(problem.units, floating, strict=True):
        own = unit.floating if is_float else unit.int8
        if own is None:
            return None
        total += own
    for value in problem.values:
        labels = {floating[reader] for reader in value.readers}
        if floating[value.maker]:
            total += value.down if False in labels else 0
            total += value.plain if True in labels else 0
        else:
            total += value.up if True in labels else 0
    return total


def uniform(problem: Problem) -> tuple[int | None, int | None]:
    """What it costs with every unit on integers, and in float, that can run so."""
    rows = (
        tuple(unit.int8 is None for unit in problem.units),
        tuple(unit.floating is not None for unit in problem.units),
    )
    return price(problem, rows[0]), price(problem, rows[1])


def cheapest(problem: Problem) -> Cut:
    """Labels whose price is least; of several such cuts the one with the most units in int8.

    The price of the labels is `flow`. Deterministic: nothing depends on hashes or on time.
    """
    net = _network(problem)
    flow = net.saturate()
    sinks = net.reaching_sink()
    return Cut(tuple(at + 2 in sinks for at in range(len(problem.units))), flow)


def _network(problem: Problem) -> _Network:
    prices = [own for unit in problem.units for own in (unit.int8, unit.floating)]
    above = 1 + sum(own or 0 for own in prices)
    above += sum(value.up + value.down + value.plain for value in problem.values)
    net = _Network(2 + len(problem.units))
    for at, unit in enumerate(problem.units, 2):
        net.edge(SOURCE, at, above if unit.floating is None else unit.floating)
        net.edge(at, SINK, above if unit.int8 is None else unit.int8)
    for value in problem.values:
        readers = tuple(dict.fromkeys(reader + 2 for reader in value.readers))
        if readers:
            _join(net, value, readers, above)
    return net


def _join(net: _Network, value: Shared, readers: tuple[int, ...], above: int) -> None:
    maker, plain = value.maker + 2, min(value.plain, value.up)
    if len(readers) == 1:
        # one reader needs no node of its own
        reader = readers[0]
        net.edge(SOURCE, reader, plain)
        net.pair(maker, reader, value.up - plain, value.down)
        return
    some_float, some_int8 = net.node(), net.node()
    net.edge(SOURCE, some_float, plain)
    net.edge(maker, some_float, value.up - plain)
    net.edge(some_int8, maker, value.down)
    for reader in readers:
        net.edge(some_float, reader, above)
        net.edge(reader, some_int8, above)


@dataclass(slots=True)
class _Network:
    """A network while flow is pushed: edge `e` and its reverse `e ^ 1`, by residual capacity."""

    count: int
    heads: list[int] = field(default_factory=list)
    room: list[int] = field(default_factory=list)
    out: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.out = [[] for _ in range(self.count)]

    def node(self) -> int:
        """A new node."""
        self.out.append([])
        self.count += 1
        return self.count - 1

    def edge(self, tail: int, head: int, capacity: int) -> None:
        """An edge of that capacity; none at all where it is zero."""
        if capacity > 0:
            self.pair(tail, head, capacity, 0)

    def pair(self, tail: int, head: int, capacity: int, back: int) -> None:
        """An edge with another capacity in the other direction."""
        if capacity or back:
            self.out[tail].append(len(self.heads))
            self.out[head].append(len(self.heads) + 1)
            self.heads += (head, tail)
            self.room += (capacity, back)

    def saturate(self) -> int:
        """Push as much as fits from the source to the sink; returns how much that is."""
        flow = self._straight()
        while (level := self._levels())[SOURCE] >= 0:
            places = [0] * self.count
            while pushed := self._push(level, places):
                flow += pushed
        return flow

    def _straight(self) -> int:
        """The flow over paths of one node between source and sink, most of all there is."""
        room, total = self.room, 0
        left = {self.heads[e]: e for e in self.out[SOURCE] if room[e]}
        ends = {self.heads[e]: e ^ 1 for e in self.out[SINK]}
        for node, first in left.items():
            second = ends.get(node)
            if second is not None:
                step = min(room[first], room[second])
                total += step
                for edge in (first, second):
                    room[edge] -= step
                    room[edge ^ 1] += step
        return total

    def _levels(self) -> list[int]:
        """Each node's distance to the sink in the residual network, -1 where there is no way."""
        level = [-1] * self.count
        level[SINK] = 0
        heads, room, out = self.heads, self.room, self.out
        last = [SINK]
        while last:
            wave: list[int] = []
            for node in last:
                for edge in out[node]:
                    before = heads[edge]
                    if level[before] < 0 and room[edge ^ 1]:
                        level[before] = level[node] + 1
                        wave.append(before)
            last = wave
        return level

    def _push(self, level: list[int], places: list[int]) -> int:
        """One path that goes down the levels, filled; 0 where none is left.

        `places` says how far each node's edges were tried.
        """
        heads, room, out = self.heads, self.room, self.out
        path: list[int] = []
        node = SOURCE
        while node != SINK:
            edges, at = out[node], places[node]
            down = level[node] - 1
            while at < len(edges) and not (room[edges[at]] and level[heads[edges[at]]] == down):
                at += 1
            places[node] = at
            if at < len(edges):
                path.append(edges[at])
                node = heads[edges[at]]
            elif path:
                node = heads[path.pop() ^ 1]
                places[node] += 1
            else:
                return 0
        step = min(room[edge] for edge in path)
        for edge in path:
            room[edge] -= step
            room[edge ^ 1] += step
        return step

    def reaching_sink(self) -> set[int]:
        """The nodes with room on some way to the sink."""
        return {node for node, level in enumerate(self._levels()) if level >= 0}
