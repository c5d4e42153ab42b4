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

from fqx.compat.backend import Ruling, rulings
from fqx.compat.custom import Backend
from fqx.compat.mapping import Entry, Resolved, order_keys, resolve_qconfigs
from fqx.compat.qconfig import read_qconfig, scheme_of_qconfig
from fqx.ir.arg import DType
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.kit.result import Result, Success, attempt, gather
from fqx.num.scheme import ObserverSpec
from fqx.ops.catalogue import OPS
from fqx.policy.arrange import is_heavy
from fqx.policy.recipe import Recipe, Rule, Scheme, Smoothing
from fqx.policy.selectors import Selector, everything, predicate
from fqx.policy.target import UINT8, IntRange, Target
from fqx.policy.units import Mode


def _is_bounded(item: Node) -> bool:
    row = OPS.get(item.op)
    return row is not None and row.fixed is not None


Order: TypeAlias = tuple[str, str, int]
"""The path around a node, the name of what is called, and how often it was called there before."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """What one node gets.

    `note` says for a report who decided. What is not `alone` is quantized only between others, for
    the backend has no pattern that takes it. Results of what is `bounded` have a known range.
    `channels` is the axis along which an input is equalized against its weight, if it is.
    """

    qconfig: Any
    note: str = ""
    alone: bool = True
    bounded: bool = False
    channels: int | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """What every node but the inputs gets, and what the caller should hear.

    `orders` are what order entries of a mapping say to take a node, for every node they can take.
    `unmatched` entries of the mapping take no node, `refused` QConfigs were asked for and are not
    among the backend's. `kinds` are class and QConfig of modules whose weights are quantized.
    """

    chosen: Mapping[NodeId, Assigned]
    kinds: Mapping[NodeId, tuple[type[nn.Module], Any]]
    orders: Mapping[NodeId, Order]
    unmatched: tuple[Entry, ...] = ()
    refused: tuple[str, ...] = ()


def assign(
    mapping: Any,
    backend: Backend,
    model: nn.Module,
    graph: Graph,
    target: Target,
    kept: Sequence[str] = (),
    leveling: Any = None,
    replaced: Sequence[str] = (),
) -> Result[Assignment, Fault]:
    """What a mapping and a backend give every node of the model captured and fused.

    `kept` are paths of modules that are kept whole; `target` tells which operators only move
    integers; `leveling` is a mapping of EqualizationQConfigs; `replaced` are paths of modules that
    others stand for, whatever the backend says. Where torch.fx cannot trace
    the model, `qconfig_of` decides and the backend is not asked. Faults as of `resolve_qconfigs`.
    """
    nodes = [item for item in graph if item.op not in ("input", "observe")]
    lone = {
        item.id: Assigned(
            qconfig_of(mapping, item),
            bounded=_is_bounded(item),
            channels=None if leveling is None else _channels(qconfig_of(leveling, item), item),
        )
        for item in nodes
    }
    traced: _Trace | None = attempt(lambda: _trace(model, kept), str).value_or(None)
    if traced is None:
        return Success(Assignment(lone, {}, {}))
    return resolve_qconfigs(traced.module, traced.scopes, mapping).bind(
        lambda found: _leveled(traced, leveling).map(
            lambda leveled: _assigned(
                traced, found, leveled, backend, nodes, target, lone, tuple(replaced)
            )
        )
    )


def recipe_of(mapping: Any, assignment: Assignment) -> Result[Recipe, Fault]:
    """One rule for the global QConfig, and one for each other answer that some nodes have instead.

    Faults as of `scheme_of_qconfig`.
    """
    whole = mapping.global_qconfig
    others: dict[tuple[object, ...], list[NodeId]] = {}
    known: dict[tuple[object, ...], Assigned] = {}
    for name, got in assignment.chosen.items():
        if got == Assigned(whole, got.note):
            continue
        if _reuses_input(got.qconfig):
            continue
        key = id(got.qconfig), got.note, got.alone, got.bounded, got.channels
        others.setdefault(key, []).append(name)
        known[key] = got
    return scheme_of_qconfig(whole).bind(
        lambda scheme: gather(
            scheme_of_qconfig(known[key].qconfig).map(
                lambda other, key=key, names=names: Rule(  # type: ignore[misc]
                    any_of(names),
                    _made(other, scheme, known[key]),
                    note=known[key].note,
                )
            )
            for key, names in others.items()
        ).map(lambda rules: Recipe((Rule(everything(), scheme, "QConfigMapping"), *rules)))
    )


def _made(scheme: Scheme | None, whole: Scheme | None, got: Assigned) -> Scheme | None:
    if scheme is None or (not got.alone and scheme.mode is not Mode.STATIC):
        return None
    made = scheme if got.alone else replace(scheme, lone=False)
    made = _bounded(made, whole) if got.bounded else made
    if got.channels is None or made.mode is not Mode.STATIC:
        return made
    watched = replace(made.static, observer=replace(made.static.observer, axis=got.channels))
    return replace(made, activation=watched, smoothing=_LEVEL)


def _channels(leveling: Any, item: Node) -> int | None:
    """The axis of a layer's input along which its channels lie, if they are to be equalized."""
    if leveling is None or item.op not in ("linear", "conv1d", "conv2d", "conv3d"):
        return None
    return -1 if item.op == "linear" else 1


# no input is so poor that its layer stays float: equalizing is all that was asked for
_LEVEL = Smoothing(float_below=-1000.0)
INT8 = IntRange(DType.INT8, -128, 127)


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


def _leveled(trace: _Trace, leveling: Any) -> Result[Resolved, Fault]:
    """What the mapping of EqualizationQConfigs decides; nothing for None."""
    nothing: Result[Resolved, Fault] = Success(Resolved({}, ()))
    return nothing if leveling is None else resolve_qconfigs(trace.module, trace.scopes, leveling)


def _assigned(
    trace: _Trace,
    found: Resolved,
    leveled: Resolved,
    backend: Backend,
    nodes: Sequence[Node],
    target: Target,
    lone: Mapping[NodeId, Assigned],
    replaced: tuple[str, ...],
) -> Assignment:
    ruled = rulings(trace.module, found.qconfigs, backend)
    chosen, kinds, refused = (
        dict(lone),
        dict[NodeId, tuple[type[nn.Module], Any]](),
        dict[str, None](),
    )
    keys = order_keys(trace.module, trace.scopes)
    orders: dict[NodeId, Order] = {}
    for item, name in _pairs(trace, nodes):
        if name in keys:
            path, called, position = keys[name]
            orders[item.id] = path, _name(called), position
        if name not in found.decided:
            continue
        entry, ruling = found.decided[name], ruled.get(name)
        if any(path in replaced for path, _ in item.origin.scope):
            ruling = None
        channels = _channels(leveled.qconfigs.get(name), item)
        got = Assigned(entry and entry.qconfig, str(entry), True, _is_bounded(item), channels)
        chosen[item.id] = got if ruling is None else _under(ruling, got, item, target, backend)
        if ruling is not None and ruling.kind is not None and not ruling.refusal:
            kinds[item.id] = ruling.kind, got.qconfig
        if ruling is not None and ruling.is_bounded and got.qconfig is not None:
            refused[ruling.refusal] = None
    silent = (*found.unmatched, *leveled.unmatched)
    return Assignment(chosen, kinds, orders, silent, tuple(refused))


def _under(ruling: Ruling, got: Assigned, item: Node, target: Target, backend: Backend) -> Assigned:
    """What is left of a QConfig under what the backend says.

    What no pattern speaks of still moves integers, or joins a kernel, between integers; so do
    results of known range whatever their QConfig says, as torch lowers them.
    """
    if got.qconfig is None or (ruling.is_matched and not ruling.refusal):
        return got
    free = not ruling.is_matched and not any(map(is_heavy, target.kinds(item.op)))
    reason = ruling.refusal or f"the backend {backend.name!r} has no pattern that takes it"
    if free or got.bounded:
        return replace(got, note=reason, alone=False)
    return Assigned(None, reason)


def _pairs(trace: _Trace, nodes: Sequence[Node]) -> Iterator[tuple[Node, str]]:
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
            yield item, calls[min(number, len(calls) - 1)]


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


def _bounded(scheme: Scheme, whole: Scheme | None) -> Scheme:
    """The scheme of an operator whose results have a known range, which has all integers.

    The catalogue knows that range; to it torch.ao cuts the operator's input too. Here the input
    is observed as the rest of the model is.
    """
    if scheme.activation is None:
        return scheme
    known = scheme.activation.observer.kind == "fixed"
    base = whole.activation if known and whole is not None else scheme.activation
    if base is None or base.when != "static" or scheme.activation.dtype.is_float:
        return scheme
    if base.dtype.is_float:
        base = replace(scheme.activation, observer=ObserverSpec())
    if base.dtype != scheme.activation.dtype:
        base = replace(base, dtype=scheme.activation.dtype, zero=None)
    ends = UINT8 if base.dtype is DType.UINT8 else INT8
    return replace(scheme, activation=replace(base, qmin=ends.qmin, qmax=ends.qmax))


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
