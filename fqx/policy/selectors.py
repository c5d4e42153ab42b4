"""Which nodes a recipe rule is about, as a value: `path("layer1") & ~op("add")`.

A selector is text, so that it prints, compares and goes into a pass's options; only `predicate`
holds a function, which is shown by the name it was given and is not recorded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType

from fqx.ir.arg import Arg
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.node import Node
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, gather

__all__ = [
    "EVERYTHING",
    "Kind",
    "Selector",
    "everything",
    "module_type",
    "names_no_module",
    "near_misses",
    "node",
    "op",
    "path",
    "predicate",
    "regex",
    "scope",
    "selector_from_arg",
    "selector_to_arg",
    "selects",
    "speaks_of_modules",
]


class Kind(Enum):
    """What a selector compares."""

    EVERYTHING = "everything"
    PATH = "path"
    REGEX = "regex"
    NODE = "node"
    MODULE_TYPE = "module_type"
    OP = "op"
    SCOPE = "scope"
    PREDICATE = "predicate"
    EITHER = "|"
    BOTH = "&"
    NOT = "~"


@dataclass(frozen=True, slots=True)
class Selector:
    """A set of nodes, closed under `|`, `&` and `~`."""

    kind: Kind
    text: str = ""
    parts: tuple[Selector, ...] = ()
    test: Callable[[Node], bool] | None = field(default=None, repr=False)

    def __or__(self, other: Selector) -> Selector:
        return Selector(Kind.EITHER, parts=(self, other))

    def __and__(self, other: Selector) -> Selector:
        return Selector(Kind.BOTH, parts=(self, other))

    def __invert__(self) -> Selector:
        return Selector(Kind.NOT, parts=(self,))

    @property
    def is_named(self) -> bool:
        """Whether the user spelt a name that can be misspelt: a path, a regex or a node id."""
        if self.kind in (Kind.PATH, Kind.REGEX, Kind.NODE):
            return True
        return any(part.is_named for part in self.parts)

    def __str__(self) -> str:
        match self.kind:
            case Kind.EITHER | Kind.BOTH:
                return "(" + f" {self.kind.value} ".join(str(part) for part in self.parts) + ")"
            case Kind.NOT:
                return f"~{self.parts[0]}"
            case Kind.EVERYTHING:
                return "everything()"
            case _:
                return f"{self.kind.value}({self.text!r})"


EVERYTHING = Selector(Kind.EVERYTHING)


def everything() -> Selector:
    """Every node."""
    return EVERYTHING


def path(module: str) -> Selector:
    """Every node of the module at `module` and of the modules inside it; all calls of it."""
    return Selector(Kind.PATH, module)


def regex(pattern: str) -> Selector:
    """Nodes whose id (`layer1.0.conv1`, `layer1.0:add`) contains a match of `pattern`."""
    return Selector(Kind.REGEX, pattern)


def node(name: str) -> Selector:
    """The node with the id `name`."""
    return Selector(Kind.NODE, name)


def module_type(kind: str | type) -> Selector:
    """Nodes whose innermost module is of this class, by class or by its name (`Linear`)."""
    return Selector(Kind.MODULE_TYPE, kind if isinstance(kind, str) else kind.__name__)


def op(*names: str) -> Selector:
    """Nodes that call one of these operators of the catalogue (`conv2d`, `linear`)."""
    first, *rest = (Selector(Kind.OP, name) for name in names)
    for other in rest:
        first = first | other
    return first


def scope(pattern: str) -> Selector:
    """Nodes anywhere inside a module whose path or class name matches the glob `pattern`."""
    return Selector(Kind.SCOPE, pattern)


def predicate(test: Callable[[Node], bool], name: str = "") -> Selector:
    """Nodes for which `test(node)` is true; `name` stands for it in texts."""
    return Selector(Kind.PREDICATE, name or getattr(test, "__name__", "predicate"), test=test)


def selects(selector: Selector, item: Node) -> bool:
    """Whether the selector takes the node."""
    match selector.kind:
        case Kind.EVERYTHING:
            return True
        case Kind.EITHER:
            return any(selects(part, item) for part in selector.parts)
        case Kind.BOTH:
            return all(selects(part, item) for part in selector.parts)
        case Kind.NOT:
            return not selects(selector.parts[0], item)
        case Kind.PREDICATE:
            return selector.test is not None and selector.test(item)
        case _:
            return _selects_by_name(selector, item)


def _selects_by_name(selector: Selector, item: Node) -> bool:
    text = selector.text
    match selector.kind:
        case Kind.PATH:
            return any(module == text for module, _ in item.origin.scope)
        case Kind.REGEX:
            return _compiled(text).search(item.id) is not None
        case Kind.NODE:
            return item.id == text
        case Kind.MODULE_TYPE:
            return _is_class(item.origin.module_type, text)
        case Kind.OP:
            return item.op == text
        case _:
            return any(
                fnmatchcase(module, text) or fnmatchcase(_last(kind), text)
                for module, kind in item.origin.scope
            )


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _is_class(name: str, wanted: str) -> bool:
    return name == wanted or ("." not in wanted and _last(name) == wanted)


def bad_pattern(selector: Selector) -> str | None:
    """Why a regex inside the selector cannot be read, or None."""
    if selector.kind is Kind.REGEX:
        try:
            re.compile(selector.text)
        except re.error as error:
            return f"{selector.text!r} is not a regular expression: {error}"
    return next((why for part in selector.parts if (why := bad_pattern(part))), None)


def near_misses(selector: Selector, graph: Graph) -> tuple[str, ...]:
    """Names of the graph that look like those the selector spells, nearest first, at most three."""
    names: dict[str, None] = {}
    for wanted in _named(selector):
        known = _names(graph, wanted.kind)
        text = re.sub(r"[\\^$]", "", wanted.text) if wanted.kind is Kind.REGEX else wanted.text
        for close in get_close_matches(text, known, n=3, cutoff=0.5):
            names[close] = None
    return tuple(names)[:3]


def names_no_module(selector: Selector, graph: Graph) -> bool:
    """Whether the selector spells the path of a module that no node of the graph lies in."""
    spelt = [part.text for part in _named(selector) if part.kind is Kind.PATH]
    return bool(spelt) and not set(spelt) <= set(_names(graph, Kind.PATH))


def speaks_of_modules(selector: Selector) -> bool:
    """Whether the selector compares more than operators, which presets do too."""
    if selector.parts:
        return any(speaks_of_modules(part) for part in selector.parts)
    return selector.kind not in (Kind.EVERYTHING, Kind.OP)


def _named(selector: Selector) -> Iterable[Selector]:
    if selector.parts:
        return tuple(found for part in selector.parts for found in _named(part))
    return () if selector.kind in (Kind.EVERYTHING, Kind.PREDICATE) else (selector,)


def _names(graph: Graph, kind: Kind) -> list[str]:
    match kind:
        case Kind.PATH | Kind.SCOPE:
            modules = {str(m): None for item in graph for m, _ in item.origin.scope if m}
            return list(modules)
        case Kind.MODULE_TYPE:
            return list({_last(item.origin.module_type): None for item in graph})
        case Kind.OP:
            return list({str(item.op): None for item in graph})
        case _:
            return [str(name) for name in graph.order]


def selector_to_arg(selector: Selector) -> Arg:
    """A selector as plain data; of a predicate only the name, since a function is no data."""
    parts = tuple(selector_to_arg(part) for part in selector.parts)
    return FrozenMap({"kind": selector.kind.value, "text": selector.text, "parts": parts})


def selector_from_arg(arg: Arg) -> Result[Selector, Fault]:
    """Inverse of `selector_to_arg`; BAD_RECIPE for a predicate, or data that is no selector."""
    fields = dict(arg.items()) if isinstance(arg, FrozenMap) else {}
    match (fields.get("kind"), fields.get("text"), fields.get("parts")):
        case (Kind.PREDICATE.value, str() as name, _):
            return Failure(
                Fault(
                    FaultKind.BAD_RECIPE,
                    f"the predicate {name!r} is a function, which is not recorded",
                    "select by path, regex, node, module type, op or scope",
                )
            )
        case (str() as kind, str() as text, tuple() as parts) if kind in _ARITY:
            if len(parts) != _ARITY[kind]:
                return Failure(_no_selector(arg))
            return gather(selector_from_arg(part) for part in parts).map(
                lambda made: Selector(Kind(kind), text, made)
            )
        case _:
            return Failure(_no_selector(arg))


_ARITY: Mapping[str, int] = MappingProxyType(
    {kind.value: {Kind.EITHER: 2, Kind.BOTH: 2, Kind.NOT: 1}.get(kind, 0) for kind in Kind}
)


def _no_selector(arg: Arg) -> Fault:
    return Fault(
        FaultKind.BAD_RECIPE, f"not a selector: {str(arg)[:120]}", "see fqx.path and others"
    )
