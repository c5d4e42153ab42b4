"""Every spelling of every row means what torch means by it, and has the type torch gives it.

For each aten overload the catalogue can spell: draw arguments, let torch compute, translate the
call, check the graph it makes, let the judge evaluate it and the passes' interpreter run it.
Values, dtype and sizes are the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, note

from fqx.ir.arg import Arg, NodeRef, refs_in
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import NodeId, Stage
from fqx.ir.node import Node
from fqx.ir.signature import (
    Dim,
    Input,
    IntType,
    Poly,
    Signature,
    TensorType,
    Tree,
    TupleType,
    Type,
    named,
)
from fqx.judge.evaluate import evaluate
from fqx.kit.frozen import FrozenMap
from fqx.num.tensors import dtype_of
from fqx.ops.catalogue import OPS, make_node
from fqx.ops.schema import Trait
from fqx.ops.spec import check
from fqx.ops.spellings import (
    SPELLINGS,
    Canonical,
    Same,
    Translation,
    canonical_call,
    functional_name,
    writes,
)
from fqx.ops.types import types
from fqx.passes.execute import run
from fqx.testing.spellings import Arguments, arguments, covers

_MEMORY_FORMATS = {
    torch.contiguous_format: "contiguous",
    torch.channels_last: "channels_last",
    torch.preserve_format: "preserve",
}
_INERT = {name for name in SPELLINGS if "assert" in name or "sym_constrain" in name}
_NAMES = sorted(set(SPELLINGS) - _INERT)

# Sizes that nobody knows before the mask is counted.
_DATA_DEPENDENT = ("aten.index.Tensor",)


def _overload(name: str) -> Callable[..., Any]:
    if name.startswith("operator."):
        return getattr(operator, name.removeprefix("operator."))  # type: ignore[no-any-return]
    _, packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Bound:
    """Arguments as the catalogue takes them, and the tensors behind the references."""

    args: dict[str, Arg]
    types: dict[str, Type]
    inputs: dict[NodeId, torch.Tensor]


def _schema_names(call: Callable[..., Any], given: Arguments) -> dict[str, object]:
    """Every argument of the schema that was drawn or has a default."""
    schema = getattr(call, "_schema", None)
    if schema is None:
        return dict(given)
    listed = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    known = {a.name for a in schema.arguments}
    return {**listed, **{name: value for name, value in given.items() if name in known}}


def _bind(given: Mapping[str, object], batch: int | None) -> Bound:
    """References in place of tensors; first axes of size `batch` become a named dimension."""
    inputs: dict[NodeId, torch.Tensor] = {}

    def arg(value: object, name: str) -> Arg:
        if isinstance(value, torch.Tensor):
            inputs[NodeId(f"@{name}")] = value
            return NodeRef(NodeId(f"@{name}"))
        if isinstance(value, (list, tuple)):
            return tuple(arg(item, f"{name}.{at}") for at, item in enumerate(value))
        if isinstance(value, torch.dtype):
            return dtype_of(value)
        if isinstance(value, torch.memory_format):
            return _MEMORY_FORMATS[value]
        if isinstance(value, torch.device):
            return str(value)
        assert value is None or isinstance(value, (bool, int, float, str))
        return value

    args = {name: arg(value, name) for name, value in given.items()}

    def kind(name: str, value: Arg) -> Type:
        if isinstance(value, tuple):
            return TupleType(tuple(kind(name, item) for item in value if item is not None))
        assert isinstance(value, NodeRef)
        return _type_of(inputs[value.id], batch if name in _BATCHED else None)

    referring = {name: value for name, value in args.items() if any(True for _ in refs_in(value))}
    return Bound(args, {name: kind(name, value) for name, value in referring.items()}, inputs)


_BATCHED = ("self", "input", "tensors", "query", "key", "value", "indices", "batch1", "batch2")


def _type_of(tensor: torch.Tensor, batch: int | None) -> TensorType:
    dims: tuple[Dim, ...] = tuple(tensor.shape)
    if batch is not None and dims[:1] == (batch,):
        dims = (named("batch"), *dims[1:])
    kind = dtype_of(tensor.dtype)
    assert kind is not None
    return TensorType(kind, dims)


def _graph(bound: Bound, made: Translation, batch: int | None, count: int) -> Graph:
    """The translation as a graph that gives its value; a tuple of `count` is taken apart."""
    if isinstance(made, Canonical):
        made = (made,)
    by_ref = {
        ref: kind
        for name, kind in bound.types.items()
        for ref, kind in _pairs(bound.args[name], kind)
    }
    inputs = tuple(
        Input(name.removeprefix("@"), name, by_ref.get(name, _type_of(value, batch)))
        for name, value in bound.inputs.items()
    )
    nodes = [make_node("input", name) for name in bound.inputs]
    calls = made if isinstance(made, tuple) else ()
    ids = {NodeId(f"%{at}"): NodeId(f"call.{at}") for at in range(len(calls))}
    for at, call in enumerate(calls):
        node = Node(NodeId(f"call.{at}"), call.op, call.args, call.attrs)
        nodes.append(node.map_refs(lambda ref: _renamed(ref, ids)))
    out: Arg = made.value if isinstance(made, Same) else NodeRef(nodes[-1].id)
    output = Tree("leaf", out)
    if calls and Trait.CONTAINER in OPS[calls[-1].op].traits:
        items = [make_node("getitem", NodeId(f"item.{i}"), x=out, index=i) for i in range(count)]
        nodes += items
        output = Tree("tuple", items=tuple(Tree("leaf", NodeRef(item.id)) for item in items))
    leaves = tuple(Tree("leaf", at) for at in range(len(inputs)))
    signature = Signature(
        inputs,
        Tree("tuple", items=leaves),
        Tree("dict"),
        output,
        FrozenMap({"batch": (1, None)}),
        tuple(item.name for item in inputs),
    )
    return graph_of(nodes, {}, signature)


def _pairs(arg: Arg, kind: Type) -> list[tuple[NodeId, Type]]:
    if isinstance(arg, NodeRef):
        return [(arg.id, kind)]
    if isinstance(arg, tuple) and isinstance(kind, TupleType):
        kept = [item for item in arg if item is not None]
        return [
            pair for item, one in zip(kept, kind.items, strict=True) for pair in _pairs(item, one)
        ]
    return []


def _renamed(ref: object, ids: Mapping[NodeId, NodeId]) -> Arg:
    assert isinstance(ref, NodeRef)
    return NodeRef(ids.get(ref.id, ref.id))


def _assert_equal(found: object, expected: object) -> None:
    if isinstance(expected, (tuple, list)):
        assert isinstance(found, (tuple, list))
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            _assert_equal(one, two)
    elif isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert found.dtype is expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(_bits(found), _bits(expected))
    else:
        assert found == expected


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The elements with one NaN: which bits a NaN has is not part of a meaning."""
    if not tensor.is_floating_point():
        return tensor
    made = torch.where(tensor.isnan(), torch.full_like(tensor, float("nan")), tensor)
    widths = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return made.contiguous().view(widths[made.element_size()])


def _size(dim: Dim, batch: int) -> Dim:
    if not isinstance(dim, Poly):
        return dim
    total = 0
    for atoms, factor in dim.terms:
        for atom in atoms:
            factor *= int(eval(atom, {"batch": batch}))
        total += factor
    return total


def _assert_type(kind: Type, expected: object, batch: int | None, exact: bool) -> None:
    """The dtype always; each size where it is known, and it is known where `exact`."""
    if not isinstance(expected, torch.Tensor):
        assert isinstance(kind, IntType)
        assert _size(kind.value, batch or 0) == expected
        return
    if not exact and not isinstance(kind, TensorType):
        return
    assert isinstance(kind, TensorType), kind
    assert kind.dtype is dtype_of(expected.dtype)
    assert kind.dims is not None or not exact
    if kind.dims is None:
        return
    sizes = tuple(_size(dim, batch or 0) for dim in kind.dims)
    assert len(sizes) == expected.dim()
    assert not exact or None not in sizes
    assert all(size in (None, side) for size, side in zip(sizes, expected.shape, strict=True)), (
        sizes
    )


def _compute(call: Callable[..., Any], full: Mapping[str, object]) -> object:
    """torch's own answer; None where torch refuses the arguments."""
    schema = getattr(call, "_schema", None)
    if schema is None:
        return call(*full.values())
    copied = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in full.items()}
    placed = [copied[a.name] for a in schema.arguments if not a.kwarg_only]
    named_only = {a.name: copied[a.name] for a in schema.arguments if a.kwarg_only}
    kept = {k: v for k, v in named_only.items() if v is not None}
    try:
        with torch.no_grad():
            return call(*placed, **kept)
    except (RuntimeError, IndexError, NotImplementedError):
        return None


def _assert_means(name: str, given: Arguments, batch: int | None) -> bool:
    """Whether torch took the arguments; an assertion fails where the catalogue disagrees."""
    call = _overload(name)
    full = _schema_names(call, given)
    expected = _compute(call, full)
    if expected is None:
        return False
    bound = _bind(full, batch)
    made = canonical_call(name, bound.args, bound.types)
    if made is None:
        return False
    last = made[-1] if isinstance(made, tuple) else made
    if isinstance(last, Canonical) and last.item is not None:
        assert isinstance(expected, (tuple, list))
        expected = expected[last.item]
    if "empty" in name:  # torch leaves such memory as it finds it
        expected = torch.zeros_like(torch.as_tensor(expected))
    graph = _graph(bound, made, batch, len(expected) if isinstance(expected, (tuple, list)) else 0)
    note("\n".join(map(str, graph)))
    assert check(graph, Stage.FLOAT).unwrap() is None
    inputs = tuple(bound.inputs.values())
    _assert_equal(evaluate(graph, inputs).unwrap(), expected)
    _assert_equal(run(graph, inputs).unwrap(), expected)
    exact = batch is None and name not in _DATA_DEPENDENT
    for leaf, value in zip(graph.outputs, _items(expected), strict=True):
        if isinstance(leaf, NodeRef):
            _assert_type(types(graph)[leaf.id], value, batch, exact)
    return True


def _items(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _first_side(given: Arguments) -> int | None:
    """A first axis that can be a named dimension: of size at least two."""
    for name in _BATCHED:
        value = given.get(name)
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, torch.Tensor) and first.dim() and first.shape[0] > 1:
            return int(first.shape[0])
    return None


@pytest.mark.parametrize("name", _NAMES)
def test_a_spelling_means_what_torch_means(name: str) -> None:
    taken: list[bool] = []

    @given(arguments(name))
    def holds(given: Arguments) -> None:
        taken.append(_assert_means(name, given, None))

    holds()
    assert sum(taken) >= 2, "torch and the catalogue took hardly any of the arguments"


@pytest.mark.parametrize("name", _NAMES)
def test_types_hold_for_a_named_batch(name: str) -> None:
    @given(arguments(name))
    def holds(given: Arguments) -> None:
        side = _first_side(given)
        if side is not None:
            _assert_means(name, given, side)

    holds()


def _twins() -> list[str]:
    """The in-place overloads of torch whose functional form has a spelling."""
    schemas = (str(schema) for schema in torch._C._jit_get_all_schemas())
    names = {text.split("(")[0] for text in schemas if text.startswith("aten::")}
    listed = (name.replace("aten::", "aten.") for name in names)
    full = (name if name.count(".") == 2 else f"{name}.default" for name in listed)
    return sorted(name for name in full if writes(name) and functional_name(name) in SPELLINGS)


@pytest.mark.parametrize("name", _twins())
def test_an_in_place_twin_leaves_the_functional_value_behind(name: str) -> None:
    @given(arguments(functional_name(name)))
    def holds(given: Arguments) -> None:
        known = {a.name for a in _overload(name)._schema.arguments}  # type: ignore[attr-defined]
        if "self" in known and "self" not in given and "input" in given:
            given = {"self" if k == "input" else k: v for k, v in given.items()}
        _assert_means(name, given, None)

    holds()


def test_every_spelling_can_be_drawn() -> None:
    assert [name for name in _NAMES if not covers(name)] == []
