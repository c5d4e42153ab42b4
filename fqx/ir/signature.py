"""What a graph takes and gives: named inputs with types, and trees of values.

A dimension is an int, a named dimension, an expression of named dimensions, or unknown (None).
Expressions are integer polynomials in canonical form, so that equal expressions are equal values.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from typing import TypeAlias

from fqx.ir.arg import Arg, DType, Json, canonical, decode_arg, encode_arg
from fqx.ir.names import NodeId
from fqx.kit.frozen import FrozenMap


@dataclass(frozen=True, slots=True)
class Poly:
    """An integer polynomial: terms map a sorted product of atoms to its coefficient.

    An atom is a named dimension (`batch`) or a quotient written `(a)//(b)` or `(a)%(b)`. The empty
    product is the constant term. A Poly always has at least one non-constant term; `dim` makes an
    int of any other.
    """

    terms: tuple[tuple[tuple[str, ...], int], ...]

    def __str__(self) -> str:
        def one(atoms: tuple[str, ...], factor: int) -> str:
            body = "*".join(atoms)
            return str(factor) if not atoms else body if factor == 1 else f"{factor}*{body}"

        return "+".join(one(atoms, factor) for atoms, factor in self.terms)


Dim: TypeAlias = int | Poly | None


def named(name: str) -> Poly:
    """The dimension called `name`."""
    return Poly((((name,), 1),))


def _terms(dim: int | Poly) -> dict[tuple[str, ...], int]:
    return {(): dim} if isinstance(dim, int) else dict(dim.terms)


def _dim(terms: dict[tuple[str, ...], int]) -> int | Poly:
    kept = {atoms: factor for atoms, factor in terms.items() if factor}
    if set(kept) <= {()}:
        return kept.get((), 0)
    order = sorted(kept, key=lambda atoms: (-len(atoms), atoms))
    return Poly(tuple((atoms, kept[atoms]) for atoms in order))


def add_dims(one: Dim, two: Dim) -> Dim:
    """The sum; unknown if either is."""
    if isinstance(one, int) and isinstance(two, int):
        return one + two
    if one is None or two is None:
        return None
    terms = _terms(one)
    for atoms, factor in _terms(two).items():
        terms[atoms] = terms.get(atoms, 0) + factor
    return _dim(terms)


def mul_dims(one: Dim, two: Dim) -> Dim:
    """The product; zero if either is zero, unknown if either is unknown."""
    if isinstance(one, int) and isinstance(two, int):
        return one * two
    if one == 0 or two == 0:
        return 0
    if one is None or two is None:
        return None
    terms: dict[tuple[str, ...], int] = {}
    for left, factor in _terms(one).items():
        for right, other in _terms(two).items():
            atoms = tuple(sorted((*left, *right)))
            terms[atoms] = terms.get(atoms, 0) + factor * other
    return _dim(terms)


def sub_dims(one: Dim, two: Dim) -> Dim:
    """The difference; unknown if either is."""
    return add_dims(one, mul_dims(-1, two))


def div_dims(one: Dim, two: Dim) -> Dim:
    """The floor quotient: exact where every term divides, else an atom; unknown if either is."""
    if one is None or two is None or two == 0:
        return None
    if isinstance(one, int) and isinstance(two, int):
        return one // two
    if one == two:
        return 1
    if isinstance(two, int) and all(factor % two == 0 for factor in _terms(one).values()):
        return _dim({atoms: factor // two for atoms, factor in _terms(one).items()})
    exact = _exact_quotient(one, two)
    return exact if exact is not None else named(f"({one})//({two})")


def _exact_quotient(one: int | Poly, two: int | Poly) -> int | Poly | None:
    divisor = _terms(two)
    if len(divisor) != 1:
        return None
    ((atoms, factor),) = divisor.items()
    out: dict[tuple[str, ...], int] = {}
    for term, count in _terms(one).items():
        rest = list(term)
        for atom in atoms:
            if atom not in rest:
                return None
            rest.remove(atom)
        if count % factor:
            return None
        out[tuple(rest)] = count // factor
    return _dim(out)


def mod_dims(one: Dim, two: Dim) -> Dim:
    """The remainder: zero where the quotient is exact, else an atom; unknown if either is."""
    if one is None or two is None or two == 0:
        return None
    if isinstance(one, int) and isinstance(two, int):
        return one % two
    if isinstance(two, int) and all(factor % two == 0 for factor in _terms(one).values()):
        return 0
    if one == two or _exact_quotient(one, two) is not None:
        return 0
    return named(f"({one})%({two})")


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype and dims of a tensor value; dims None means unknown rank."""

    dtype: DType
    dims: tuple[Dim, ...] | None


@dataclass(frozen=True, slots=True)
class IntType:
    """A Python int computed from sizes."""

    value: Dim = None


@dataclass(frozen=True, slots=True)
class TupleType:
    """The value of an op with several results."""

    items: tuple[Type, ...]


@dataclass(frozen=True, slots=True)
class OpaqueType:
    """A value of which nothing is known; also non-tensor inputs."""

    note: str = ""


Type: TypeAlias = TensorType | IntType | TupleType | OpaqueType


@dataclass(frozen=True, slots=True)
class Input:
    """One leaf of the argument tree.

    `name` is its readable path in the call (`x`, `d.y.0`); `node` the input node, or None for an
    argument that is a constant of the captured call (`constant` then holds it, and a call with
    another value is refused).
    """

    name: str
    node: NodeId | None
    type: Type
    constant: Arg = None


@dataclass(frozen=True, slots=True)
class Tree:
    """A container or a leaf: `kind` is leaf, tuple, list, dict or named.

    A leaf of an input tree holds the index of its `Input`; a leaf of the output tree holds a Ref or
    a constant. `keys` are the dict keys or field names, `name` the registered class of a named one.
    """

    kind: str
    leaf: Arg = None
    keys: tuple[str | int | bool, ...] = ()
    items: tuple[Tree, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Border:
    """An input or output that is integers of one scale: `value = (integer - zero_point) * scale`.

    `side` is input or output, `index` counts the signature's inputs or the leaves of its output
    tree, `name` is the readable path there. The integers lie in qmin..qmax: the program is told so
    and does not look.
    """

    side: str
    index: int
    name: str
    dtype: DType
    scale: float
    zero_point: int
    qmin: int
    qmax: int


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """Inputs by position, trees of arguments and outputs, and the named dimensions.

    `args` and `kwargs` are trees whose leaves are indices into `inputs`; `params` are the names of
    the positional parameters of the model's forward. `dims` gives each named dimension's inclusive
    (least, greatest or None). `borders` are the inputs and outputs that are integers.
    """

    inputs: tuple[Input, ...]
    args: Tree
    kwargs: Tree
    output: Tree
    dims: FrozenMap[tuple[int, int | None]]
    params: tuple[str, ...] = ()
    borders: tuple[Border, ...] = ()

    @property
    def code(self) -> str:
        """Canonical encoding."""
        return canonical(encode_signature(self))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Signature) and self.code == other.code)

    def __hash__(self) -> int:
        return hash(self.code)


def encode_dim(dim: Dim) -> Json:
    """A dimension as JSON: int, null, or a list of terms."""
    if isinstance(dim, Poly):
        return [[list(atoms), factor] for atoms, factor in dim.terms]
    return dim


def decode_dim(code: Json) -> Dim:
    """Inverse of `encode_dim`; ValueError on anything else."""
    if code is None or (isinstance(code, int) and not isinstance(code, bool)):
        return code
    if not isinstance(code, list):
        raise ValueError(f"not a dimension: {code!r}")
    terms: list[tuple[tuple[str, ...], int]] = []
    for item in code:
        match item:
            case [list() as atoms, int() as factor]:
                terms.append((tuple(str(atom) for atom in atoms), factor))
            case _:
                raise ValueError(f"not a dimension: {code!r}")
    return Poly(tuple(terms))


def encode_type(value: Type) -> Json:
    """A type as JSON."""
    match value:
        case TensorType(dtype=dtype, dims=dims):
            sizes: Json = None if dims is None else [encode_dim(dim) for dim in dims]
            return {"tensor": [dtype.value, sizes]}
        case IntType(value=dim):
            return {"int": encode_dim(dim)}
        case TupleType(items=items):
            return {"tuple": [encode_type(item) for item in items]}
        case OpaqueType(note=note):
            return {"opaque": note}


def decode_type(code: Json) -> Type:
    """Inverse of `encode_type`; ValueError on anything else."""
    match code:
        case {"tensor": [str() as dtype, None]}:
            return TensorType(DType(dtype), None)
        case {"tensor": [str() as dtype, list() as dims]}:
            return TensorType(DType(dtype), tuple(decode_dim(dim) for dim in dims))
        case {"int": dim}:
            return IntType(decode_dim(dim))
        case {"tuple": list() as items}:
            return TupleType(tuple(decode_type(item) for item in items))
        case {"opaque": str() as note}:
            return OpaqueType(note)
        case _:
            raise ValueError(f"not a type: {code!r}")


def encode_tree(tree: Tree) -> Json:
    """A tree as JSON."""
    if tree.kind == "leaf":
        return {"leaf": encode_arg(tree.leaf)}
    keys: list[Json] = list(tree.keys)
    items: list[Json] = [encode_tree(item) for item in tree.items]
    return {"kind": tree.kind, "keys": keys, "items": items, "name": tree.name}


def decode_tree(code: Json) -> Tree:
    """Inverse of `encode_tree`; ValueError on anything else."""
    match code:
        case {"leaf": leaf}:
            return Tree("leaf", decode_arg(leaf))
        case {
            "kind": str() as kind,
            "keys": list() as keys,
            "items": list() as items,
            "name": str() as name,
        }:
            names = tuple(key for key in keys if isinstance(key, (str, int)))
            return Tree(kind, None, names, tuple(decode_tree(item) for item in items), name)
        case _:
            raise ValueError(f"not a tree: {code!r}")


def borders_to_arg(borders: tuple[Border, ...]) -> Arg:
    """Borders as an argument, for texts and files."""
    return tuple(astuple(border) for border in borders)


def borders_from_arg(arg: Arg) -> tuple[Border, ...]:
    """Inverse of `borders_to_arg`; ValueError on anything else."""
    return tuple(_border(item) for item in arg) if isinstance(arg, tuple) else (_border(arg),)


def _border(arg: Arg) -> Border:
    match arg:
        case (
            str() as side,
            int() as index,
            str() as name,
            DType() as dtype,
            float() as scale,
            int() as zero_point,
            int() as qmin,
            int() as qmax,
        ) if side in ("input", "output"):
            return Border(side, index, name, dtype, scale, zero_point, qmin, qmax)
        case _:
            raise ValueError(f"not a border: {arg!r}")


def encode_signature(signature: Signature) -> Json:
    """A signature as JSON; one without borders says nothing of them."""
    held = encode_arg(borders_to_arg(signature.borders))
    borders: dict[str, Json] = {"borders": held} if signature.borders else {}
    return {
        **borders,
        "inputs": [
            {
                "name": item.name,
                "node": item.node,
                "type": encode_type(item.type),
                "constant": encode_arg(item.constant),
            }
            for item in signature.inputs
        ],
        "args": encode_tree(signature.args),
        "kwargs": encode_tree(signature.kwargs),
        "output": encode_tree(signature.output),
        "dims": {name: [least, most] for name, (least, most) in signature.dims.items()},
        "params": list(signature.params),
    }


def decode_signature(code: Json) -> Signature:
    """Inverse of `encode_signature`; ValueError, KeyError or TypeError on anything else."""
    match code:
        case {
            "inputs": list() as inputs,
            "args": args,
            "kwargs": kwargs,
            "output": output,
            "dims": dict() as dims,
            "params": list() as params,
        }:
            return Signature(
                tuple(_decode_input(item) for item in inputs),
                decode_tree(args),
                decode_tree(kwargs),
                decode_tree(output),
                FrozenMap({name: _decode_bounds(bounds) for name, bounds in dims.items()}),
                tuple(str(name) for name in params),
                _decode_borders(code),
            )
        case _:
            raise ValueError("not a signature")


def _decode_borders(code: Json) -> tuple[Border, ...]:
    held = code.get("borders", []) if isinstance(code, dict) else []
    return borders_from_arg(decode_arg(held))


def _decode_bounds(code: Json) -> tuple[int, int | None]:
    match code:
        case [int() as least, None]:
            return (least, None)
        case [int() as least, int() as most]:
            return (least, most)
        case _:
            raise ValueError(f"not bounds: {code!r}")


def _decode_input(code: Json) -> Input:
    match code:
        case {"name": str() as name, "node": node, "type": kind, "constant": constant}:
            at = NodeId(node) if isinstance(node, str) else None
            return Input(name, at, decode_type(kind), decode_arg(constant))
        case _:
            raise ValueError(f"not an input: {code!r}")


def map_leaves(tree: Tree, change: Callable[[int, Arg], Arg]) -> Tree:
    """The tree with `change(index, leaf)` in place of every leaf, counted from the left."""
    return _mapped_leaves(tree, change, itertools.count())


def _mapped_leaves(tree: Tree, change: Callable[[int, Arg], Arg], at: Iterator[int]) -> Tree:
    if tree.kind == "leaf":
        return replace(tree, leaf=change(next(at), tree.leaf))
    return replace(tree, items=tuple(_mapped_leaves(item, change, at) for item in tree.items))


def tree_leaves(tree: Tree) -> tuple[Arg, ...]:
    """The leaves, left to right."""
    if tree.kind == "leaf":
        return (tree.leaf,)
    return tuple(leaf for item in tree.items for leaf in tree_leaves(item))
