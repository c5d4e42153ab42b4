"""What a torch.ao backend config says of each node of a traced model, exactly as torch.ao decides.

The longest pattern that ends at a node takes it and the nodes it spans. Such a node is quantized if
the QConfig's types and bounds are among those of the pattern; what no pattern takes stays float.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from fqx.compat.custom import Backend, BackendRow, Bound, Types
from fqx.compat.observers import made_observer

Pattern: TypeAlias = Any
"""A module class, a function, a method's name, or a tuple of one and the patterns of its args."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """Whether a pattern takes a node, and why the node stays float all the same; empty if not.

    `kind` is the class of a module whose weight the backend quantizes, as fusing leaves it;
    `is_bounded` tells that the types are there and a bound is not kept, of which torch.ao warns.
    """

    is_matched: bool
    refusal: str = ""
    kind: type[nn.Module] | None = None
    is_bounded: bool = False


def rulings(
    traced: fx.GraphModule, qconfigs: Mapping[str, Any], backend: Backend
) -> Mapping[str, Ruling]:
    """What the backend says of every call of a traced model, by the node's name.

    `qconfigs` are those of the nodes before anything is fused; the traced model is only read.
    """
    view = _View(backend, copy.deepcopy(traced.graph), _classes(traced))
    absorbed = view.fuse()
    matched = view.matched()
    judge = _Judge(backend, {})
    found: dict[str, Ruling] = {}
    for node in view.graph.nodes:
        if node.op not in _CALLS:
            continue
        match, qconfig = matched.get(node.name), qconfigs.get(node.name)
        if match is None:
            found[node.name] = Ruling(False)
        elif qconfig is None:
            found[node.name] = Ruling(True)
        else:
            kind = view.kind(node) if node.op == "call_module" else None
            found[node.name] = judge.ruling(match, node, kind, qconfig)
    for name, root in absorbed.items():
        found[name] = Ruling(True, found[root].refusal, None, found[root].is_bounded)
    return MappingProxyType(found)


def refusal_of_class(backend: Backend, kind: type[nn.Module], qconfig: Any) -> str:
    """Why a backend does not quantize modules of a class; empty if it does.

    This is all torch.ao asks of the backend config of convert.
    """
    return _Judge(backend, {}).of_class(kind, qconfig)


# Matching.


@dataclass(frozen=True, slots=True)
class _Match:
    row: BackendRow
    nodes: Any
    root: fx.Node


@dataclass(slots=True)
class _View:
    """A copy of a traced graph while fusions take nodes out of it."""

    backend: Backend
    graph: fx.Graph
    classes: Mapping[str, type[nn.Module]]
    fused: dict[str, type[nn.Module]] = field(default_factory=dict)

    def kind(self, node: fx.Node) -> type[nn.Module]:
        """The class of a called module, after fusing."""
        return self.fused.get(node.name) or self.classes[str(node.target)]

    def fuse(self) -> dict[str, str]:
        """Take out what fusing leaves out: the root's name by that of each node it absorbs."""
        rows = _longest_first(row for row in self.backend.rows if row.fuse is not None)
        absorbed: dict[str, str] = {}
        claimed: set[str] = set()
        for node in reversed(list(self.graph.nodes)):
            match = None if node.name in claimed else self._match(node, rows)
            if match is None or match.root.op != "call_module":
                continue
            members = list(_members(match.nodes, _nested(match.row)))
            if claimed & {member.name for member in members}:
                continue
            claimed.update(member.name for member in members)
            absorbed |= {m.name: match.root.name for m in members if m is not match.root}
            self._absorb(node, match, members)
        return absorbed

    def _absorb(self, last: fx.Node, match: _Match, members: list[fx.Node]) -> None:
        root, row = match.root, match.row
        kinds = [self.kind(m) if m.op == "call_module" else m.target for m in members]
        self.fused[root.name] = self._fused_class(row, self.kind(root), kinds)
        extra = () if row.extra_inputs is None else tuple(row.extra_inputs(match.nodes))
        last.replace_all_uses_with(root)
        root.args = (*root.args, *extra)
        for member in members:
            if member is not root:
                self.graph.erase_node(member)

    def _fused_class(
        self, row: BackendRow, root: type[nn.Module], kinds: list[Any]
    ) -> type[nn.Module]:
        """What fusing for evaluation makes: a norm behind the root is folded and gone."""
        if row.is_nested:
            return row.fused or root
        left = [kind for kind in kinds if kind not in _NORMS or kind is root]
        if left == [root]:
            return root
        fused = {_nested(other): other.fused for other in self.backend.rows}
        return fused.get(tuple(left)) or row.fused or root

    def matched(self) -> dict[str, _Match]:
        """The match that each node belongs to, by name."""
        rows = _longest_first(self.backend.rows)
        found: dict[str, _Match] = {}
        for node in reversed(list(self.graph.nodes)):
            match = None if node.name in found else self._match(node, rows)
            if match is not None:
                for member in _members(match.nodes, _nested(match.row)):
                    found[member.name] = match
        return found

    def _match(self, node: fx.Node, rows: tuple[BackendRow, ...]) -> _Match | None:
        row = next((row for row in rows if self._takes(node, _nested(row), None)), None)
        if row is None:
            return None
        nodes = _spanned(node, _nested(row))
        root = row.root_node(nodes) if row.root_node is not None else _innermost(nodes)
        return _Match(row, nodes, root) if isinstance(root, fx.Node) else None

    def _takes(self, node: Any, pattern: Pattern, most_users: int | None) -> bool:
        first, rest = _parts(pattern)
        if _is_wildcard(first) or (not isinstance(node, fx.Node) and node == pattern):
            return True
        if not isinstance(node, fx.Node):
            return False
        if most_users is not None and len(node.users) > most_users:
            return False
        if not self._is(node, first, pattern):
            return False
        if not rest:
            return True
        return len(rest) == len(node.args) and all(
            self._takes(arg, inner, 1) for arg, inner in zip(node.args, rest, strict=True)
        )

    def _is(self, node: fx.Node, first: Any, pattern: Pattern) -> bool:
        if isinstance(first, type) and issubclass(first, nn.Module):
            return node.op == "call_module" and self.kind(node) is first
        if isinstance(first, str):
            return node.op == "call_method" and node.target == first
        if node.op != "call_function" or node.target is not first:
            return False
        return first is not getattr or node.args[1] == pattern[1]


def _classes(traced: fx.GraphModule) -> dict[str, type[nn.Module]]:
    modules = traced.named_modules(remove_duplicate=False)
    return {path: type_before_parametrizations(module) for path, module in modules}


def _nested(row: BackendRow) -> Pattern:
    """The pattern with the last operator outermost."""
    if row.is_nested or not isinstance(row.pattern, tuple):
        return row.pattern
    if len(row.pattern) == 2:
        return row.pattern[1], row.pattern[0]
    first, second, third = row.pattern
    return third, (second, first)


def _longest_first(rows: Iterable[BackendRow]) -> tuple[BackendRow, ...]:
    """Rows in the order they are tried: tuples by their length, then single operators."""

    def length(pattern: Pattern) -> int:
        return sum(map(length, pattern)) if isinstance(pattern, tuple) else 1

    def key(row: BackendRow) -> int:
        pattern = _nested(row)
        return -length(pattern) if isinstance(pattern, tuple) else 1

    return tuple(sorted(rows, key=key))


def _parts(pattern: Pattern) -> tuple[Any, tuple[Pattern, ...]]:
    if not isinstance(pattern, tuple):
        return pattern, ()
    return pattern[0], () if pattern[0] is getattr else pattern[1:]


def _is_wildcard(pattern: Pattern) -> bool:
    from torch.ao.quantization.utils import MatchAllNode

    return isinstance(pattern, type) and issubclass(pattern, MatchAllNode)


def _spanned(node: Any, pattern: Pattern) -> Any:
    """What a matching pattern spans, nested as the pattern is."""
    _, rest = _parts(pattern)
    if not rest:
        return node
    return (node, *(_spanned(arg, inner) for arg, inner in zip(node.args, rest, strict=True)))


def _members(nodes: Any, pattern: Pattern) -> Iterator[fx.Node]:
    """The nodes of a match, the last one first, without those a wildcard stands for."""
    if isinstance(nodes, tuple) and isinstance(pattern, tuple):
        for inner, part in zip(nodes, pattern, strict=True):
            yield from _members(inner, part)
    elif isinstance(nodes, fx.Node) and not _is_wildcard(pattern):
        yield nodes


def _innermost(nodes: Any) -> Any:
    while isinstance(nodes, tuple):
        nodes = nodes[-1]
    return nodes


# The check of types.


@dataclass(frozen=True, slots=True)
class _Sides:
    """The observers a QConfig makes, looked at and thrown away; None for one it cannot make."""

    activation: Any
    weight: Any

    @property
    def is_dynamic(self) -> bool:
        """Whether activations are scaled by each call's range."""
        return bool(getattr(self.activation, "is_dynamic", False))

    @property
    def bias(self) -> torch.dtype:
        """The type of a bias: half only under static half precision."""
        half = {_dtype(self.activation), _dtype(self.weight)} == {torch.float16}
        return torch.float16 if half and not self.is_dynamic else torch.float32

    def __str__(self) -> str:
        how = ", of each call's range" if self.is_dynamic else ""
        held = f"activation {_short(_dtype(self.activation))}{how}"
        return f"{held}, weight {_short(_dtype(self.weight))}"


@dataclass(frozen=True, slots=True)
class _Judge:
    """Compares QConfigs with the types of rows; each QConfig is made once."""

    backend: Backend
    made: dict[int, tuple[Any, _Sides]]

    def ruling(
        self, match: _Match, node: fx.Node, kind: type[nn.Module] | None, qconfig: Any
    ) -> Ruling:
        """The ruling of one node of a match."""
        sides = self._sides(qconfig)
        weighted = kind if kind is not None and kind in self._weighted() else None
        misfits = [_misfit(types, match, node, sides) for types in match.row.types]
        refusal = self._refusal(sides, misfits)
        bounded = bool(refusal) and any(text != _OTHER_TYPES for text in misfits)
        if not refusal and weighted is not None:
            refusal = self.of_class(weighted, qconfig)
        return Ruling(True, refusal, weighted, bounded)

    def of_class(self, kind: type[nn.Module], qconfig: Any) -> str:
        """Why a module of a class is not quantized; empty if it is."""
        sides = self._sides(qconfig)
        rows = [row for row in self.backend.rows if row.pattern is kind]
        misfits = [_class_misfit(types, sides) for row in rows for types in row.types]
        return self._refusal(sides, misfits)

    def _weighted(self) -> set[type[nn.Module]]:
        """Classes whose weights a reference module quantizes, and those fused of them."""
        rows = self.backend.rows
        roots = {row.root for row in rows if row.root is not None and row.reference is not None}
        fused = {
            row.fused for row in rows if row.fused is not None and _first(row.pattern) in roots
        }
        return roots | fused

    def _refusal(self, sides: _Sides, misfits: list[str]) -> str:
        if "" in misfits:
            return ""
        # what a bound says is more telling than that other rows have other types
        why = next((text for text in misfits if text != _OTHER_TYPES), "")
        text = f"the backend {self.backend.name!r} does not run it with {sides}"
        return f"{text}: {why}" if why else text

    def _sides(self, qconfig: Any) -> _Sides:
        if id(qconfig) not in self.made:
            halves = (getattr(qconfig, name, None) for name in ("activation", "weight"))
            seen = [
                made_observer(half).value_or(None) if callable(half) else None for half in halves
            ]
            self.made[id(qconfig)] = qconfig, _Sides(*seen)
        return self.made[id(qconfig)][1]


def _first(pattern: Pattern) -> Any:
    return pattern[0] if isinstance(pattern, tuple) else pattern


def _misfit(types: Types, match: _Match, node: fx.Node, sides: _Sides) -> str:
    """Why a combination of types is not that of the QConfig at a node's match; empty if it is."""
    root = match.root
    at = match.row.operand_index if root is node and root.op == "call_function" else {}
    for arg in _tensors((*root.args, *root.kwargs.values())):
        if _is_operand("weight", arg, root, at):
            why = _bound_misfit(types.weight, sides.weight, "weight")
        elif _is_operand("bias", arg, root, at):
            why = "" if types.bias in (None, sides.bias) else _OTHER_TYPES
        else:
            dynamic = types.activation.dtype is None or types.is_dynamic == sides.is_dynamic
            why = _bound_misfit(types.activation, sides.activation, "activation")
            why = why if dynamic else _OTHER_TYPES
        if why:
            return why
    if types.result.dtype is None:
        return ""
    if sides.is_dynamic:
        return "" if types.result.dtype == torch.float32 else _OTHER_TYPES
    return _bound_misfit(types.result, sides.activation, "activation")


def _tensors(args: Iterable[Any]) -> Iterator[fx.Node]:
    for arg in args:
        if isinstance(arg, (list, tuple)):
            yield from _tensors(arg)
        elif isinstance(arg, fx.Node):
            yield arg


def _is_operand(name: str, arg: fx.Node, root: fx.Node, at: Mapping[str, int]) -> bool:
    index = at.get(name)
    by_place = index is not None and index < len(root.args) and root.args[index] is arg
    return by_place or root.kwargs.get(name) is arg


def _class_misfit(types: Types, sides: _Sides) -> str:
    def asked(bound: Bound) -> torch.dtype:
        return bound.dtype or torch.float32

    activation, weight = _dtype(sides.activation), _dtype(sides.weight)
    fits = asked(types.activation) == activation and asked(types.weight) == weight
    if types.is_dynamic:
        fits = fits and sides.is_dynamic and asked(types.result) == torch.float32
    else:
        fits = fits and asked(types.result) == activation
        fits = fits and (types.bias or torch.float32) == sides.bias
    return "" if fits else _OTHER_TYPES


def _bound_misfit(bound: Bound, observer: Any, side: str) -> str:
    if bound.dtype is None:
        return ""
    if _dtype(observer) != bound.dtype:
        return _OTHER_TYPES
    inner = getattr(observer, "activation_post_process", observer)
    low, high = getattr(inner, "quant_min", None), getattr(inner, "quant_max", None)
    if bound.qmin is not None and bound.qmax is not None:
        if low is None or high is None:
            return f"its {side} tells no quant_min and quant_max"
        if low < bound.qmin or high > bound.qmax:
            return f"its {side} is {low}..{high}, not within {bound.qmin}..{bound.qmax}"
    if bound.least_scale is not None:
        least = getattr(inner, "eps", None)
        if least is None:
            return f"its {side} tells no eps"
        if float(least) < bound.least_scale:
            return f"its {side} has eps {float(least):.3g}, less than {bound.least_scale:.3g}"
    return _known_misfit(bound, observer, inner)


def _known_misfit(bound: Bound, observer: Any, inner: Any) -> str:
    from torch.ao.quantization import FixedQParamsFakeQuantize, FixedQParamsObserver

    if bound.scale is None or bound.zero_point is None or bound.dtype == torch.float16:
        return ""
    if not isinstance(observer, (FixedQParamsObserver, FixedQParamsFakeQuantize)):
        return "its result has a known range, which asks for a FixedQParamsObserver"
    if (float(inner.scale), int(inner.zero_point)) != (bound.scale, bound.zero_point):
        known = f"scale {bound.scale:g} and zero point {bound.zero_point}"
        return f"its result is known to have {known}"
    return ""


def _dtype(observer: Any) -> torch.dtype | None:
    found = getattr(observer, "dtype", None)
    return found if isinstance(found, torch.dtype) else None


def _short(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


_CALLS = frozenset({"call_function", "call_method", "call_module"})
_NORMS = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d})
_OTHER_TYPES = "its types are others"
