"""Which QConfig of a QConfigMapping each node of a graph gets, as a recipe."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch

from fqx.compat.qconfig import read_qconfig, scheme_of_qconfig
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.kit.result import Result, gather
from fqx.policy.recipe import Recipe, Rule
from fqx.policy.selectors import Selector, everything, node


def recipe_of(mapping: Any, graph: Graph) -> Result[Recipe, Fault]:
    """One rule for the global QConfig, and one for every QConfig that some nodes have instead."""
    chosen = {item.id: qconfig_of(mapping, item) for item in graph if item.op != "input"}
    others: dict[int, list[NodeId]] = {}
    known = {id(mapping.global_qconfig): mapping.global_qconfig}
    for name, qconfig in chosen.items():
        if qconfig is not mapping.global_qconfig and not _reuses_input(qconfig):
            known[id(qconfig)] = qconfig
            others.setdefault(id(qconfig), []).append(name)
    return scheme_of_qconfig(mapping.global_qconfig).bind(
        lambda whole: gather(
            scheme_of_qconfig(known[key]).map(lambda scheme, names=names: Rule(_any(names), scheme))  # type: ignore[misc]
            for key, names in others.items()
        ).map(lambda rules: Recipe((Rule(everything(), whole, "QConfigMapping"), *rules)))
    )


def qconfig_of(mapping: Any, item: Node) -> Any:
    """The QConfig of a node: by its module's path or a path around it, by a pattern of paths, by
    the class of its module or the function it calls, else the global one."""
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


def _reuses_input(qconfig: Any) -> bool:
    """Whether such nodes only move values, whose scale then is that of their input in any case."""
    reading = read_qconfig(qconfig).map(lambda found: found.reuses_input)
    return qconfig is not None and reading.value_or(False)


def _any(names: list[NodeId]) -> Selector:
    first, *rest = (node(name) for name in names)
    for other in rest:
        first = first | other
    return first


def _is_of(kind: Any, item: Node) -> bool:
    if inspect.isclass(kind):
        module = item.origin.module_type
        return module in (kind.__name__, f"{kind.__module__}.{kind.__qualname__}")
    inside_leaf = item.origin.module_type in dir(torch.nn)
    return not inside_leaf and item.op == getattr(kind, "__name__", kind)
