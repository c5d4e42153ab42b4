"""Types of traced values: from fake tensors and symbolic sizes to the graph's types."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping

import sympy  # type: ignore[import-untyped]  # ships no types
import torch
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from fqx.ir.arg import DType
from fqx.ir.signature import (
    Dim,
    IntType,
    OpaqueType,
    Poly,
    TensorType,
    TupleType,
    Type,
    add_dims,
    div_dims,
    mod_dims,
    mul_dims,
    named,
)
from fqx.num.tensors import dtype_of

Symbols = Mapping[str, str]
"""The graph's names of the tracer's symbols."""


def type_of(value: object, symbols: Symbols) -> Type:
    """The type of what the tracer recorded for a node."""
    if isinstance(value, torch.Tensor):
        dtype = dtype_of(value.dtype)
        if dtype is None:
            return OpaqueType(str(value.dtype))
        return TensorType(dtype, tuple(dim_of(size, symbols) for size in value.shape))
    if isinstance(value, (torch.SymInt, int)) and not isinstance(value, bool):
        return IntType(dim_of(value, symbols))
    if isinstance(value, (tuple, list)):
        return TupleType(tuple(type_of(item, symbols) for item in value))
    return OpaqueType(type(value).__name__)


def dim_of(size: object, symbols: Symbols) -> Dim:
    """A size as a dimension; unknown if it is not made of the inputs' sizes by + * // %."""
    if isinstance(size, int):
        return size
    return _dim(size.node.expr, symbols) if isinstance(size, torch.SymInt) else None


def symbol_of(size: object) -> str | None:
    """The symbol that a size is, if it is one alone."""
    if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
        return str(size.node.expr)
    return None


def storage_of(value: object) -> int | None:
    """Identity of the storage a traced tensor lies in; None for what has none."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return None
    return int(value.untyped_storage()._cdata)


def agree(rule: Type, seen: Type) -> bool:
    """Whether a type rule says nothing that contradicts what was seen; it may know less."""
    match rule, seen:
        case OpaqueType(), _:
            return True
        case TensorType(dtype=one, dims=dims), TensorType(dtype=two, dims=found):
            return one is two and _same_dims(dims, found)
        case IntType(value=value), IntType(value=found):
            return _same_dim(value, found)
        case TupleType(items=items), TupleType(items=found):
            both = len(items) == len(found)
            return both and all(agree(a, b) for a, b in zip(items, found, strict=True))
        case _:
            return False


def dtype_in(kind: Type) -> DType | None:
    """The element type of a tensor type."""
    return kind.dtype if isinstance(kind, TensorType) else None


def _dim(expr: object, symbols: Symbols) -> Dim:
    match expr:
        case sympy.Integer():
            return int(expr)
        case sympy.Symbol():
            name = symbols.get(str(expr))
            return None if name is None else named(name)
        case sympy.Add():
            return _folded(add_dims, 0, (_dim(arg, symbols) for arg in expr.args))
        case sympy.Mul():
            return _folded(mul_dims, 1, (_dim(arg, symbols) for arg in expr.args))
        case sympy.Pow(exp=sympy.Integer() as power) if 0 < int(power) < 9:
            return _folded(mul_dims, 1, [_dim(expr.base, symbols)] * int(power))
        case FloorDiv():
            return div_dims(_dim(expr.args[0], symbols), _dim(expr.args[1], symbols))
        case Mod() | PythonMod():
            return mod_dims(_dim(expr.args[0], symbols), _dim(expr.args[1], symbols))
        case _:
            return None


def _folded(step: object, start: int, dims: Iterable[Dim]) -> Dim:
    total: Dim = start
    for dim in dims:
        total = add_dims(total, dim) if step is add_dims else mul_dims(total, dim)
    return total


def _same_dims(one: tuple[Dim, ...] | None, two: tuple[Dim, ...] | None) -> bool:
    if one is None or two is None:
        return True
    return len(one) == len(two) and all(_same_dim(a, b) for a, b in zip(one, two, strict=True))


def _same_dim(one: Dim, two: Dim) -> bool:
    if one is None or two is None or one == two:
        return True
    names = sorted(_names(one) | _names(two))
    if not names:
        return False
    # two ways of writing a quotient: equal where they agree at several sizes
    points = [{name: 2 + 3 * i + 7 * k for i, name in enumerate(names)} for k in range(6)]
    return all(_value(one, point) == _value(two, point) for point in points)


def _names(dim: Dim) -> set[str]:
    tree = ast.parse(str(dim), mode="eval") if isinstance(dim, Poly) else None
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} if tree is not None else set()


def _value(dim: Dim, point: Mapping[str, int]) -> int | None:
    return (
        dim
        if not isinstance(dim, Poly)
        else _evaluated(ast.parse(str(dim), mode="eval").body, point)
    )


def _evaluated(tree: ast.expr, point: Mapping[str, int]) -> int | None:
    match tree:
        case ast.Constant(value=int() as value):
            return value
        case ast.Name(id=name):
            return point[name]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            found = _evaluated(inner, point)
            return None if found is None else -found
        case ast.BinOp(left=left, op=op, right=right):
            one, two = _evaluated(left, point), _evaluated(right, point)
            return None if one is None or two is None else _combined(op, one, two)
        case _:
            return None


def _combined(op: ast.operator, one: int, two: int) -> int | None:
    match op:
        case ast.Add():
            return one + two
        case ast.Mult():
            return one * two
        case ast.FloorDiv():
            return one // two if two else None
        case ast.Mod():
            return one % two if two else None
        case _:
            return None
