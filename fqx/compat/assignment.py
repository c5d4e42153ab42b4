"""Which QConfig of a QConfigMapping each node of a graph gets, as a recipe.

torch decides for the nodes of its own trace. They are found again in the graph by the path of their
module and the number of its call, and, where a function is called, by the path around it, the
operator and its number there.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from fqx.compat.mapping import Entry, Resolved, order_keys, resolve_qconfigs
from fqx.compat.patterns import Standing, standings
from fqx.compat.qconfig import read_qconfig, scheme_of_qconfig
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.kit.result import Result, Success, attempt, gather
from fqx.ops.catalogue import OPS
from fqx.policy.recipe import Recipe, Rule, Scheme
from fqx.policy.selectors import Selector, everything, predicate
from fqx.policy.target import UINT8
from fqx.policy.units import Mode


def recipe_of(
    mapping: Any,
    model: nn.Module,
    graph: Graph,
    kept: Sequence[str] = (),
    replaced: Sequence[str] = (),
) -> Result[Recipe, Fault]:
    """One rule for the global QConfig, and one for every QConfig that some nodes have instead.

    `graph` is the model captured and fused; `kept` are paths of modules that are kept whole, and
    `replaced` those of modules that torch.ao replaces whatever patterns say. Faults as of
    `resolve_qconfigs` and `scheme_of_qconfig`.
    """
    return asked_of(mapping, model, graph, kept, replaced).bind(
        lambda chosen: _recipe(mapping.global_qconfig, chosen)
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """The QConfig of a node, and whether torch.ao has a pattern for it with those types."""

    qconfig: Any
    standing: Standing = "taken"
    bounded: bool = False
    """Whether the operator's results have a known range."""


def asked_of(
    mapping: Any,
    model: nn.Module,
    graph: Graph,
    kept: Sequence[str] = (),
    replaced: Sequence[str] = (),
) -> Result[Mapping[NodeId, Asked], Fault]:
    """The QConfig, or None, of every node but the inputs, and how torch.ao takes the node.

    Where torch.fx cannot trace the model, `qconfig_of` decides.
    """
    nodes = [item for item in graph if item.op not in ("input", "observe")]
    alone = {item.id: Asked(qconfig_of(mapping, item), bounded=_is_bounded(item)) for item in nodes}
    traced: _Trace | None = attempt(lambda: _trace(model, kept), str).value_or(None)
    if traced is None:
        return Success(alone)
    inside = {item.id for item in nodes if any(path in replaced for path, _ in item.origin.scope)}
    return resolve_qconfigs(traced.module, traced.scopes, mapping).map(
        lambda found: {
            **alone,
            **{
                name: replace(asked, standing="taken") if name in inside else asked
                for name, asked in _paired(traced, found, nodes)
            },
        }
    )


def _is_bounded(item: Node) -> bool:
    row = OPS.get(item.op)
    return row is not None and row.fixed is not None


Order: TypeAlias = tuple[str, str, int]
"""The path around a node, the name of what is called, and how often it was called there before."""


def orders_of(model: nn.Module, graph: Graph, kept: Sequence[str] = ()) -> Mapping[NodeId, Order]:
    """What an order entry of a mapping has to say to take a node, for every node it can take."""
    traced: _Trace | None = attempt(lambda: _trace(model, kept), str).value_or(None)
    if traced is None:
        return {}
    keys = order_keys(traced.module, traced.scopes)
    nodes = [item for item in graph if item.op not in ("input", "observe")]
    return {
        name: (keys[call][0], _name(keys[call][1]), keys[call][2])
        for name, call in _pairs(traced, nodes)
        if call in keys
    }


def unmatched(mapping: Any, model: nn.Module, kept: Sequence[str] = ()) -> tuple[Entry, ...]:
    """The entries of a mapping that take no node of the model; none where it cannot be traced."""
    traced: _Trace | None = attempt(lambda: _trace(model, kept), str).value_or(None)
    if traced is None:
        return ()
    found = resolve_qconfigs(traced.module, traced.scopes, mapping)
    return found.map(lambda seen: seen.unmatched).value_or(())


def qconfig_of(mapping: Any, item: Node, order: Order | None = None) -> Any:
    """The QConfig of a node as the node itself tells: by its `order`, by its module's path or a
    path around it, by a pattern of paths, by the class of its module or the function it calls, else
    the global one."""
    for (path, kind, position), qconfig in mapping.module_name_object_type_order_qconfigs.items():
        if order == (path, _name(kind), position):
            return qconfig
    paths = [str(path) for path, _ in reversed(item.origin.scope) if path]
    named = mapping.module_name_qconfigs
    for path in paths:
        if path in named:
            return named[path]
    for pattern, qconfig in mapping.module_name_regex_qconfigs.items():
        if paths and re.match(pattern, paths[0]):
            return qconfig
    for kind, qconfig in mapping.object_type_qconfigs.items():
        if _is_of(kind, item):
            return qconfig
    return mapping.global_qconfig


@dataclass(frozen=True, slots=True)
class _Trace:
    """A copy of the model as torch.ao traces it."""

    module: fx.GraphModule
    scopes: Mapping[str, tuple[str, Any]]


def _trace(model: nn.Module, kept: Sequence[str]) -> _Trace:
    from torch.ao.quantization.fx.tracer import QuantizationTracer

    # tracing runs the model's code, which may write into the model
    copied = copy.deepcopy(model)
    make: Any = QuantizationTracer
    tracer = make(list(kept), [])
    graph = tracer.trace(copied)
    return _Trace(fx.GraphModule(copied, graph), dict(tracer.node_name_to_scope))


def _paired(
    trace: _Trace, found: Resolved, nodes: Sequence[Node]
) -> Iterator[tuple[NodeId, Asked]]:
    """What torch decided, by the node of the graph that stands for the traced one."""
    held = found.qconfigs
    stands = standings(trace.module, held)
    bounded = {item.id: _is_bounded(item) for item in nodes}
    for name, call in _pairs(trace, nodes):
        if call in held:
            yield name, Asked(held[call], stands[call], bounded[name])


def _pairs(trace: _Trace, nodes: Sequence[Node]) -> Iterator[tuple[NodeId, str]]:
    """Nodes of a graph with the name of the traced one each stands for."""
    modules: defaultdict[str, list[str]] = defaultdict(list)
    functions: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for traced in trace.module.graph.nodes:
        if traced.op == "call_module":
            modules[str(traced.target)].append(traced.name)
        elif traced.op in ("call_function", "call_method"):
            place = trace.scopes[traced.name][0], _operator(traced.target)
            functions[place].append(traced.name)
    seen: Counter[tuple[str, str]] = Counter()
    for item in nodes:
        path = str(item.origin.module)
        place = path, str(item.op)
        inner = next((p for p, _ in reversed(item.origin.scope) if p in modules), None)
        if inner is not None:
            calls = modules[inner]
            number = item.origin.call if inner == path else 0
        else:
            calls, number = functions[place], seen[place]
            seen[place] += 1
        if calls:
            yield item.id, calls[min(number, len(calls) - 1)]


_OPERATORS: Mapping[str, str] = MappingProxyType(
    {
        "getitem": "slice",
        "iadd": "add",
        "imul": "mul",
        "truediv": "div",
        "itruediv": "div",
        "isub": "sub",
        "t": "permute",
        "transpose": "permute",
        "view": "reshape",
        "relu6": "clamp",
        "hardtanh": "clamp",
        "concat": "cat",
    }
)
"""Functions whose operator in a graph has another name."""


def _operator(target: Any) -> str:
    """The operator that a traced call of a function or a method becomes."""
    name = (target if isinstance(target, str) else getattr(target, "__name__", "")).strip("_")
    return _OPERATORS.get(name, name)


def _recipe(whole: Any, chosen: Mapping[NodeId, Asked]) -> Result[Recipe, Fault]:
    others: defaultdict[tuple[int, Standing, bool], list[NodeId]] = defaultdict(list)
    known: dict[tuple[int, Standing, bool], Asked] = {}
    for name, asked in chosen.items():
        if asked.qconfig is not whole or asked.standing != "taken" or asked.bounded:
            key = id(asked.qconfig), asked.standing, asked.bounded
            others[key].append(name)
            known[key] = asked
    apart = {key: names for key, names in others.items() if not _reuses_input(known[key].qconfig)}
    return scheme_of_qconfig(whole).bind(
        lambda scheme: gather(
            scheme_of_qconfig(known[key].qconfig).map(
                lambda other, key=key, names=names: Rule(  # type: ignore[misc]
                    any_of(names), _as_taken(known[key], other, scheme)
                )
            )
            for key, names in apart.items()
        ).map(lambda rules: Recipe((Rule(everything(), scheme, "QConfigMapping"), *rules)))
    )


def _as_taken(asked: Asked, scheme: Scheme | None, whole: Scheme | None) -> Scheme | None:
    """The scheme of a node as torch.ao takes it.

    What no pattern of torch's speaks of still moves integers, or joins a kernel, between integers.
    """
    if scheme is None or asked.standing == "taken":
        return _bounded(scheme, whole) if asked.bounded else scheme
    if scheme.mode is not Mode.STATIC or (asked.standing == "refused" and not asked.bounded):
        return None
    # torch lowers results of known range between integers whatever their QConfig says
    between = replace(scheme, lone=False)
    return _bounded(between, whole) if asked.bounded else between


def _bounded(scheme: Scheme | None, whole: Scheme | None) -> Scheme | None:
    """The scheme of an operator whose results have a known range, which has all integers.

    The catalogue knows that range; to it torch.ao cuts the operator's input too. Here the input
    is observed as the rest of the model is.
    """
    if scheme is None or scheme.activation is None:
        return scheme
    known = scheme.activation.observer.kind == "fixed"
    base = whole.activation if known and whole is not None else scheme.activation
    if base is None or base.when != "static":
        return scheme
    return replace(scheme, activation=replace(base, qmin=UINT8.qmin, qmax=UINT8.qmax))


def _reuses_input(qconfig: Any) -> bool:
    """Whether such nodes only move values, whose scale then is that of their input in any case."""
    reading = read_qconfig(qconfig).map(lambda found: found.reuses_input)
    return qconfig is not None and reading.value_or(False)


def any_of(names: Sequence[NodeId]) -> Selector:
    """These nodes, however many."""
    held = frozenset(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return predicate(lambda item: item.id in held, ", ".join(names[:3]) + more)


def _name(kind: Any) -> str:
    """A function or a class by its name, which can be pickled wherever it stands."""
    return f"{getattr(kind, '__module__', '')}:{getattr(kind, '__qualname__', kind)}"


def _is_of(kind: Any, item: Node) -> bool:
    if inspect.isclass(kind):
        module = item.origin.module_type
        return module in (kind.__name__, f"{kind.__module__}.{kind.__qualname__}")
    inside_leaf = item.origin.module_type in dir(torch.nn)
    return not inside_leaf and item.op == getattr(kind, "__name__", kind)
