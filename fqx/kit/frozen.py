"""The only door to `pyrsistent`: persistent collections with exact types.

`Table` is a persistent map whose iteration order is that of its sorted keys, so that nothing
printed or hashed depends on insertion or on hash seeds. `FrozenMap` is a small immutable map for
attributes and options. `Row` is pyrsistent's persistent vector.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from pyrsistent import PMap, pmap, pvector
from pyrsistent.typing import PVector

K = TypeVar("K", bound=str)
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
W = TypeVar("W")

Row = PVector

__all__ = ["FrozenMap", "Row", "Table", "row"]


def row(items: Iterable[V] = ()) -> PVector[V]:
    """A persistent vector of the items, in order."""
    made: PVector[V] = pvector(items)
    return made


class Table(Generic[K, V]):
    """A persistent map; every change gives a new table that shares what did not change.

    Iteration is in sorted key order. Setting a key to the value it has returns the same object.
    A table that is read often keeps a plain dict of itself, which is ten times as fast to read.
    """

    __slots__ = ("_map", "_plain", "_reads")

    def __init__(self, items: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._map: PMap[K, V] = pmap(dict(items))
        self._plain: dict[K, V] | None = None
        self._reads = 0

    @staticmethod
    def _of(inner: PMap[K, V]) -> Table[K, V]:
        made: Table[K, V] = Table.__new__(Table)
        made._map, made._plain, made._reads = inner, None, 0
        return made

    def _read(self) -> Mapping[K, V]:
        """What to look one key up in; the plain dict is made when it has paid for itself."""
        if self._plain is not None:
            return self._plain
        self._reads += 1
        return self._map if self._reads * 4 < len(self._map) else self._sorted()

    def _sorted(self) -> dict[K, V]:
        if self._plain is None:
            self._plain = dict(sorted(self._map.items(), key=lambda item: item[0]))
        return self._plain

    def __getitem__(self, key: K) -> V:
        return (self._plain or self._read())[key]

    def __contains__(self, key: object) -> bool:
        return key in (self._plain or self._read())

    def __len__(self) -> int:
        return len(self._map)

    def __iter__(self) -> Iterator[K]:
        return iter(self._sorted())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and (self is other or self._map == other._map)

    def __hash__(self) -> int:
        return hash(self._map)

    def __repr__(self) -> str:
        return f"Table({len(self)})"

    def get(self, key: K) -> V | None:
        """The value at `key`, or None."""
        return (self._plain or self._read()).get(key)

    def keys(self) -> tuple[K, ...]:
        """The keys, sorted."""
        return tuple(self._sorted())

    def values(self) -> tuple[V, ...]:
        """The values in key order."""
        return tuple(self._sorted().values())

    def items(self) -> ItemsView[K, V]:
        """Pairs in key order; a view, since nobody changes what it looks at."""
        return self._sorted().items()

    def put(self, key: K, value: V) -> Table[K, V]:
        """With `value` at `key`; the same object if it is there already."""
        changed = self._map.set(key, value)
        return self if changed is self._map else Table._of(changed)

    def drop(self, key: K) -> Table[K, V]:
        """Without `key`; the same object if it is absent."""
        return Table._of(self._map.remove(key)) if key in self._map else self

    def edit(self, puts: Mapping[K, V], drops: Iterable[K] = ()) -> Table[K, V]:
        """Many changes in one step: first the drops, then the puts."""
        evolver = self._map.evolver()
        for key in drops:
            if key in self._map:
                evolver.remove(key)
        for key, value in puts.items():
            evolver.set(key, value)
        changed: PMap[K, V] = evolver.persistent()
        return self if changed is self._map else Table._of(changed)

    def map(self, change: Callable[[V], W]) -> Table[K, W]:
        """The same keys with `change(value)`."""
        return Table({key: change(value) for key, value in self._map.items()})


class FrozenMap(Generic[V_co]):
    """A small immutable map from names to values, sorted by name and hashable."""

    __slots__ = ("_pairs", "_table")

    def __init__(self, items: Mapping[str, V_co] | Iterable[tuple[str, V_co]] = ()) -> None:
        self._table: Mapping[str, V_co] = dict(items)
        self._pairs: tuple[tuple[str, V_co], ...] = tuple(
            [(key, self._table[key]) for key in sorted(self._table)]
        )

    def __getitem__(self, key: str) -> V_co:
        return self._table[key]

    def __contains__(self, key: object) -> bool:
        return key in self._table

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenMap) and self._pairs == other._pairs

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name}: {value!r}" for name, value in self._pairs) + "}"

    def get(self, key: str) -> V_co | None:
        """The value at `key`, or None."""
        return self._table.get(key)

    def keys(self) -> tuple[str, ...]:
        """The names, sorted."""
        return tuple(self)

    def values(self) -> tuple[V_co, ...]:
        """The values in name order."""
        return tuple(value for _, value in self._pairs)

    def items(self) -> tuple[tuple[str, V_co], ...]:
        """Pairs in name order."""
        return self._pairs

    def put(self: FrozenMap[V], key: str, value: V) -> FrozenMap[V]:
        """With `value` at `key`."""
        return FrozenMap({**dict(self._pairs), key: value})

    def drop(self, key: str) -> FrozenMap[V_co]:
        """Without `key`; the same object if it is absent."""
        if key not in self:
            return self
        return FrozenMap((name, value) for name, value in self._pairs if name != key)
