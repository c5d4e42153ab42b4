"""Which QConfig of a QConfigMapping each node of a traced model gets, exactly as torch.ao decides.

An order entry wins over a module's name, that over a pattern of names, that over a type, and that
over the global QConfig; a stored None is an answer like any other and leaves the node float.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

import torch

from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import Failure, Result, Success, attempt

Field: TypeAlias = Literal[
    "", "object_type", "module_name_regex", "module_name", "module_name_object_type_order"
]
"""The parts of a mapping by the names of its dict form; the empty one is the global QConfig."""

Scopes: TypeAlias = Mapping[str, tuple[str, Any]]
"""By a node's name the path and the type of the module whose code made it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a mapping: what it takes and the QConfig, which may be None, that those get."""

    field: Field
    key: Any
    qconfig: Any

    def __str__(self) -> str:
        return f"{self.field} {_spelt(self.key)}" if self.field else "the global QConfig"


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping that no longer changes: its global entry and the others in their order."""

    everything: Entry
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolved:
    """The entry that decides for each node, by name, and the entries that take no node.

    Nodes that torch.ao asks nothing about, observers among them, are not listed.
    """

    decided: Mapping[str, Entry | None]
    unmatched: tuple[Entry, ...]

    @property
    def qconfigs(self) -> Mapping[str, Any]:
        """The QConfig or None of each node; inputs and outputs have None."""
        return MappingProxyType(
            {name: entry and entry.qconfig for name, entry in self.decided.items()}
        )


def table_of(mapping: Any) -> Result[Table, Fault]:
    """A QConfigMapping, or its dict form, as a value; the caller's object is only read.

    Fails with BAD_RECIPE if it is neither, spells a part that does not exist, has a line of the
    wrong length, or a pattern that is no regular expression.
    """
    if isinstance(mapping, Mapping):
        return _lines_of_dict(mapping).bind(_table)
    lines = _lines_of_object(mapping)
    if lines is None:
        return Failure(_bad(f"{type(mapping).__qualname__} is no QConfigMapping"))
    return _table(lines)


def mapping_of(table: Table) -> Any:
    """A QConfigMapping that says what the table says."""
    from torch.ao.quantization import QConfigMapping

    made = QConfigMapping().set_global(table.everything.qconfig)
    for entry in table.entries:
        getattr(made, _ATTRIBUTES[entry.field])[entry.key] = entry.qconfig
    return made


def resolve_qconfigs(
    traced: torch.fx.GraphModule, scopes: Scopes, mapping: Any
) -> Result[Resolved, Fault]:
    """Who decides for each node of a traced model, and what decides for none.

    `scopes` are those of torch.ao's tracer, in which the outermost module has the type None.
    A function and a method stand under the type of the module around them first and under their
    own second. Fails as `table_of` does, and with BAD_RECIPE if a node has no scope.
    """
    missing = next(
        (node for node in traced.graph.nodes if node.op in _SCOPED and node.name not in scopes),
        None,
    )
    if missing is not None:
        return Failure(_bad(f"the node {missing.name} of the traced model has no scope"))
    return table_of(mapping).map(lambda table: _resolved(traced, scopes, table))


def order_keys(traced: torch.fx.GraphModule, scopes: Scopes) -> Mapping[str, tuple[str, Any, int]]:
    """The key by which an order entry takes each node that one can take."""
    modules = dict(traced.named_modules(remove_duplicate=False))
    seen: defaultdict[tuple[str, Any], int] = defaultdict(int)
    found: dict[str, tuple[str, Any, int]] = {}
    for node in traced.graph.nodes:
        path, around = scopes.get(node.name, ("", None))
        if node.op == "call_function":
            place = path, node.target
        elif node.op == "call_module" and not _is_observer(modules[node.target]):
            place = _parent(path), around
        else:
            continue
        found[node.name] = (*place, seen[place])
        seen[place] += 1
    return MappingProxyType(found)


def _resolved(traced: torch.fx.GraphModule, scopes: Scopes, table: Table) -> Resolved:
    index = _Index(table)
    decided: dict[str, Entry | None] = {}
    taking: set[int] = set()
    for name, entries in _candidates(traced, scopes, index):
        decided[name] = entries[0] if entries else None
        taking.update(map(id, entries))
    unmatched = tuple(entry for entry in table.entries if id(entry) not in taking)
    return Resolved(MappingProxyType(decided), unmatched)


def _candidates(
    traced: torch.fx.GraphModule, scopes: Scopes, index: _Index
) -> Iterator[tuple[str, list[Entry]]]:
    """Each node's name with all entries that take it, the one that decides first."""
    modules = dict(traced.named_modules(remove_duplicate=False))
    orders = order_keys(traced, scopes)
    for node in traced.graph.nodes:
        path, around = scopes.get(node.name, ("", None))
        target, found = node.target, list[Entry]()
        if node.op == "get_attr":
            owner = _parent(target)
            found = index.within(type(modules[owner]), owner)
        elif node.op == "call_function":
            found = [*index.ordered(orders[node.name])]
            found += [*index.within(around, path), *index.typed(target)]
        elif node.op == "call_method":
            found = [*index.within(around, path), *index.within(target, path)]
        elif node.op == "call_module":
            if _is_observer(modules[target]):
                continue
            found = [*index.ordered(orders[node.name])]
            found += index.within(type(modules[target]), target)
        yield node.name, [] if node.op in ("placeholder", "output") else [*found, index.everything]


class _Index:
    """A table by what its entries take."""

    def __init__(self, table: Table) -> None:
        self.everything = table.everything
        self.of = {(entry.field, entry.key): entry for entry in table.entries}
        self.patterns = [entry for entry in table.entries if entry.field == "module_name_regex"]

    def ordered(self, key: tuple[str, Any, int]) -> Iterator[Entry]:
        """The entry for one occurrence of a type in a module."""
        yield from self._held("module_name_object_type_order", key)

    def typed(self, kind: Any) -> Iterator[Entry]:
        """The entry for a type."""
        yield from self._held("object_type", kind)

    def within(self, kind: Any, path: str) -> list[Entry]:
        """The entries for a module's name, its parents', patterns of it, and a type."""
        names = [entry for name in _upward(path) for entry in self._held("module_name", name)]
        patterns = [entry for entry in self.patterns if re.match(entry.key, path)]
        return [*names, *patterns, *self.typed(kind)]

    def _held(self, field: Field, key: Any) -> Iterator[Entry]:
        entry = self.of.get((field, key))
        if entry is not None:
            yield entry


def _upward(path: str) -> Iterator[str]:
    """A path and those of the modules around it, without the outermost."""
    while path:
        yield path
        path = _parent(path)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _is_observer(module: torch.nn.Module) -> bool:
    from torch.ao.quantization import FakeQuantizeBase, ObserverBase

    return isinstance(module, (ObserverBase, FakeQuantizeBase))


_SCOPED = frozenset({"call_function", "call_method", "call_module"})
_FIELDS: tuple[Field, ...] = get_args(Field)
_ATTRIBUTES: Mapping[Field, str] = MappingProxyType(
    {
        "object_type": "object_type_qconfigs",
        "module_name_regex": "module_name_regex_qconfigs",
        "module_name": "module_name_qconfigs",
        "module_name_object_type_order": "module_name_object_type_order_qconfigs",
    }
)

Lines: TypeAlias = Iterable[tuple[Field, Any, Any]]


def _lines_of_object(mapping: Any) -> list[tuple[Field, Any, Any]] | None:
    """Field, key and QConfig of every entry; None if this is no QConfigMapping."""
    parts = {field: getattr(mapping, name, None) for field, name in _ATTRIBUTES.items()}
    if not hasattr(mapping, "global_qconfig"):
        return None
    lines: list[tuple[Field, Any, Any]] = [("", "", mapping.global_qconfig)]
    for field, held in parts.items():
        if not isinstance(held, Mapping):
            return None
        lines += [(field, key, qconfig) for key, qconfig in held.items()]
    return lines


def _lines_of_dict(held: Mapping[Any, Any]) -> Result[Lines, Fault]:
    unknown = [key for key in held if key not in _FIELDS]
    if unknown:
        parts = ", ".join(repr(field) for field in _FIELDS)
        return Failure(_bad(f"a QConfigMapping has no part {unknown[0]!r}, only {parts}"))
    lines: list[tuple[Field, Any, Any]] = [("", "", held.get(""))]
    for field in _FIELDS[1:]:
        width = 4 if field == "module_name_object_type_order" else 2
        for line in held.get(field) or ():
            if not isinstance(line, (tuple, list)) or len(line) != width:
                return Failure(_bad(f"a line of {field!r} has {width} items, unlike {line!r}"))
            *key, qconfig = line
            lines.append((field, tuple(key) if width == 4 else key[0], qconfig))
    return Success(lines)


def _table(lines: Lines) -> Result[Table, Fault]:
    """The lines as a table; a later line of the same key takes the place of the earlier."""
    held = {(field, key): Entry(field, key, qconfig) for field, key, qconfig in lines}
    everything = held.pop(("", ""))
    wrong = [
        fault
        for entry in held.values()
        if entry.field == "module_name_regex" and (fault := _unreadable(entry.key)) is not None
    ]
    return Failure(wrong[0]) if wrong else Success(Table(everything, tuple(held.values())))


def _unreadable(pattern: Any) -> Fault | None:
    compiled: Result[Fault | None, Fault] = attempt(
        lambda: re.compile(pattern),
        lambda error: _bad(f"the pattern {pattern!r} is no regular expression: {error}"),
        (re.error, TypeError),
    ).map(lambda _: None)
    return compiled.swap().value_or(None)


def _spelt(key: Any) -> str:
    if isinstance(key, tuple):
        return ", ".join(map(_spelt, key))
    return str(getattr(key, "__name__", None) or repr(key))


def _bad(reason: str) -> Fault:
    return Fault(
        FaultKind.BAD_RECIPE, reason, "see torch.ao.quantization.QConfigMapping for its parts"
    )
