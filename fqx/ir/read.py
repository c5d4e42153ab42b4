"""Programs read back into graphs: the inverse of `fqx.ir.show`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fqx.ir.arg import Arg, Block, Dots, DType, NodeRef, Slice, Training, WeightRef
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import BlockName, Digest, NodeId, OpName, Path, Stage
from fqx.ir.node import Node
from fqx.ir.signature import (
    Border,
    Dim,
    Input,
    IntType,
    OpaqueType,
    Signature,
    TensorType,
    Tree,
    TupleType,
    Type,
    borders_from_arg,
)
from fqx.ir.text import BARE, read_dim, split
from fqx.ir.weight import Layout, Leaf, Role, Weight
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Result, attempt, gather

Known = Callable[[Node], Result[None, Fault]]
"""Whether a node is one the caller knows; `fqx.ops.catalogue.check_node` is such a function."""

_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NUMBER = re.compile(r"-?(?:inf|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)(?![\w.:@%])")
_INT = re.compile(r"-?\d+")
_BODY = re.compile(r'(?:[^"\[\]]|"(?:[^"\\]|\\.)*")*')


def read(text: str, known: Known | None = None) -> Result[Graph, Fault]:
    """The graph a program says; weights come without their values, nodes without origins.

    `known` judges every node. Faults: UNREADABLE_TEXT, with line and column; what `known` says.
    """
    cursor = _Cursor(text)
    made = attempt(
        lambda: _program(cursor, ""),
        lambda error: _unreadable(cursor, str(error)),
        (_Unreadable, ValueError, KeyError, TypeError),
    )
    return made if known is None else made.bind(lambda graph: _judged(graph, known))


def _judged(graph: Graph, known: Known) -> Result[Graph, Fault]:
    inner = gather(_judged(block, known) for block in graph.blocks.values())
    return inner.bind(lambda _: gather(known(node) for node in graph)).map(lambda _: graph)


def _unreadable(cursor: _Cursor, why: str) -> Fault:
    before = cursor.text[: cursor.at]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    shown = cursor.text[cursor.at :].split("\n")[0][:40]
    return Fault(
        FaultKind.UNREADABLE_TEXT,
        f"line {line}, column {column}: {why}" + (f", found {shown!r}" if shown else ""),
        "the grammar is that of what `show` prints",
    )


class _Unreadable(Exception):
    """The text goes on otherwise than the grammar says; never leaves this file."""


class _Cursor:
    """A place in the text; everything it takes, it takes with the blanks and remarks behind."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.skip()

    def skip(self) -> None:
        found = _BLANK.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def sees(self, mark: str) -> bool:
        return self.text.startswith(mark, self.at)

    def eats(self, mark: str) -> bool:
        if not self.sees(mark):
            return False
        self.at += len(mark)
        self.skip()
        return True

    def expect(self, mark: str) -> None:
        if not self.eats(mark):
            raise _Unreadable(f"expected {mark!r}")

    def take(self, shape: re.Pattern[str], what: str) -> str:
        found = shape.match(self.text, self.at)
        if found is None:
            raise _Unreadable(f"expected {what}")
        self.at = found.end()
        self.skip()
        return found.group()

    def string(self) -> str:
        return str(json.loads(self.take(_STRING, "a quoted text")))

    def name(self) -> str:
        return self.string() if self.sees('"') else self.take(BARE, "a name")

    def word(self, word: str) -> bool:
        """Take this very word, if it comes next."""
        found = BARE.match(self.text, self.at)
        if found is None or found.group() != word:
            return False
        self.at = found.end()
        self.skip()
        return True

    @property
    def done(self) -> bool:
        return self.at >= len(self.text)


@dataclass
class _Parts:
    """The statements of one program, as they come."""

    nodes: list[Node] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    dims: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    args: Tree = field(default_factory=lambda: Tree("tuple"))
    kwargs: Tree = field(default_factory=lambda: Tree("dict"))
    output: Tree = field(default_factory=lambda: Tree("leaf"))
    params: tuple[str, ...] = ()
    borders: tuple[Border, ...] = ()
    weights: dict[Path, Weight] = field(default_factory=dict)
    ties: dict[Path, Path] = field(default_factory=dict)
    updates: dict[Path, NodeRef] = field(default_factory=dict)
    blocks: dict[BlockName, Graph] = field(default_factory=dict)
    leaves: dict[Path, Leaf] = field(default_factory=dict)


def _program(cursor: _Cursor, end: str) -> Graph:
    if not cursor.word("graph"):
        raise _Unreadable("expected the word 'graph'")
    stage = Stage(cursor.name())
    parts = _Parts()
    while not (cursor.sees(end) if end else cursor.done):
        _statement(cursor, parts)
    signature = Signature(
        tuple(parts.inputs),
        parts.args,
        parts.kwargs,
        parts.output,
        FrozenMap(parts.dims),
        parts.params,
        parts.borders,
    )
    return graph_of(
        parts.nodes,
        parts.weights,
        signature,
        ties=parts.ties,
        updates=parts.updates,
        blocks=parts.blocks,
        leaves=parts.leaves,
        stage=stage,
    )


def _statement(cursor: _Cursor, parts: _Parts) -> None:
    start = cursor.at
    quoted = cursor.sees('"')
    first = cursor.name()
    if cursor.eats("="):
        parts.nodes.append(_node(cursor, NodeId(first)))
        return
    read_it = None if quoted else _STATEMENTS.get(first)
    if read_it is None:
        cursor.at = start
        raise _Unreadable("expected a statement")
    read_it(cursor, parts)


def _node(cursor: _Cursor, name: NodeId) -> Node:
    op = OpName(cursor.name())
    cursor.expect("(")
    args: list[Arg] = []
    while not (cursor.sees(";") or cursor.sees(")")):
        args.append(_arg(cursor))
        if not cursor.eats(","):
            break
    attrs: dict[str, Arg] = {}
    if cursor.eats(";"):
        attrs = _pairs(cursor, ")")
    cursor.expect(")")
    return Node(name, op, tuple(args), FrozenMap(attrs))


def _pairs(cursor: _Cursor, end: str) -> dict[str, Arg]:
    pairs: dict[str, Arg] = {}
    while not cursor.sees(end):
        key = cursor.name()
        cursor.expect("=")
        pairs[key] = _arg(cursor)
        if not cursor.eats(","):
            break
    return pairs


def _arg(cursor: _Cursor) -> Arg:
    if cursor.eats("..."):
        return Dots()
    if cursor.sees('"'):
        return cursor.string()
    if cursor.eats("("):
        items: list[Arg] = []
        while not cursor.sees(")"):
            items.append(_arg(cursor))
            if not cursor.eats(","):
                break
        cursor.expect(")")
        return tuple(items)
    if cursor.eats("{"):
        pairs = _pairs(cursor, "}")
        cursor.expect("}")
        return FrozenMap(pairs)
    if cursor.eats("%"):
        return NodeRef(NodeId(cursor.name()))
    if cursor.eats("$"):
        return WeightRef(Path(cursor.name()))
    if cursor.eats("&"):
        return Block(BlockName(cursor.name()))
    return _word(cursor)


def _word(cursor: _Cursor) -> Arg:
    if _NUMBER.match(cursor.text, cursor.at):
        text = cursor.take(_NUMBER, "a number")
        return int(text) if _INT.fullmatch(text) else float(text)
    word = cursor.take(BARE, "an argument")
    if word == "slice" and cursor.eats("("):
        parts = [_arg(cursor)]
        for _ in range(2):
            cursor.expect(",")
            parts.append(_arg(cursor))
        cursor.expect(")")
        return Slice(*parts)
    return _CONSTANTS[word] if word in _CONSTANTS else NodeRef(NodeId(word))


_CONSTANTS: Mapping[str, Arg] = MappingProxyType(
    {
        "None": None,
        "True": True,
        "False": False,
        "nan": float("nan"),
        "training": Training(),
        **{dtype.value: dtype for dtype in DType},
    }
)


def _type(cursor: _Cursor) -> Type:
    if cursor.eats("("):
        items: list[Type] = []
        while not cursor.sees(")"):
            items.append(_type(cursor))
            if not cursor.eats(","):
                break
        cursor.expect(")")
        return TupleType(tuple(items))
    if cursor.word("opaque"):
        return OpaqueType(cursor.string())
    if cursor.word("size"):
        return IntType(_size(cursor))
    dtype = DType(cursor.take(_DTYPE, "a type"))
    cursor.expect("[")
    if cursor.eats("..."):
        cursor.expect("]")
        return TensorType(dtype, None)
    body = cursor.take(_BODY, "sizes").strip()
    cursor.expect("]")
    sizes = tuple(read_dim(part.strip()) for part in split(body, ",")) if body else ()
    return TensorType(dtype, sizes)


_DTYPE = re.compile(r"[a-z]+\d*")
_SIZE = re.compile(r'"(?:[^"\\]|\\.)*"|[A-Za-z0-9_+*/%()?-]+')


def _size(cursor: _Cursor) -> Dim:
    # a size inside a tuple type ends where its brackets would close one more than they opened
    text = cursor.take(_SIZE, "a size")
    extra = max(0, text.count(")") - text.count("(")) if not text.startswith('"') else 0
    if extra:
        cursor.at = cursor.text.rfind(text, 0, cursor.at) + len(text) - extra
        text = text[:-extra]
    return read_dim(text)


def _tree(cursor: _Cursor) -> Tree:
    if cursor.word("literal"):
        return Tree("leaf", _arg(cursor))
    if cursor.eats("("):
        return Tree("tuple", items=_trees(cursor, ")"))
    if cursor.eats("["):
        return Tree("list", items=_trees(cursor, "]"))
    if cursor.eats("{"):
        return _keyed(cursor, "dict", "")
    start = cursor.at
    found = BARE.match(cursor.text, start)
    if found is not None and _is_kind(cursor, found.end()):
        kind = cursor.name()
        name = cursor.string()
        cursor.expect("{")
        return _keyed(cursor, kind, name)
    return Tree("leaf", _arg(cursor))


def _is_kind(cursor: _Cursor, at: int) -> bool:
    """Whether the word before `at` names a kind of container: a quoted name follows it."""
    return cursor.text[at : at + 2] == ' "'


def _trees(cursor: _Cursor, end: str) -> tuple[Tree, ...]:
    items: list[Tree] = []
    while not cursor.sees(end):
        items.append(_tree(cursor))
        if not cursor.eats(","):
            break
    cursor.expect(end)
    return tuple(items)


def _keyed(cursor: _Cursor, kind: str, name: str) -> Tree:
    keys: list[str | int | bool] = []
    items: list[Tree] = []
    while not cursor.sees("}"):
        keys.append(_key(cursor))
        cursor.expect(":")
        items.append(_tree(cursor))
        if not cursor.eats(","):
            break
    cursor.expect("}")
    return Tree(kind, None, tuple(keys), tuple(items), name)


_KEY = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+|true|false')


def _key(cursor: _Cursor) -> str | int | bool:
    key: object = json.loads(cursor.take(_KEY, "a key"))
    if isinstance(key, str | int):
        return key
    raise _Unreadable("expected a key")


def _dim_statement(cursor: _Cursor, parts: _Parts) -> None:
    name = cursor.name()
    cursor.expect("=")
    least = int(cursor.take(_INT, "a number"))
    cursor.expect("..")
    bounded = _INT.match(cursor.text, cursor.at) is not None
    parts.dims[name] = (least, int(cursor.take(_INT, "a number")) if bounded else None)


def _input_statement(cursor: _Cursor, parts: _Parts) -> None:
    name = cursor.name()
    cursor.expect("=")
    node = None if cursor.word("constant") else NodeId(cursor.name())
    has_constant = node is None or cursor.word("constant")
    constant = _arg(cursor) if has_constant else None
    if not cursor.word("of"):
        raise _Unreadable("expected the word 'of'")
    parts.inputs.append(Input(name, node, _type(cursor), constant))


def _weight_statement(cursor: _Cursor, parts: _Parts) -> None:
    path = Path(cursor.name())
    cursor.expect("=")
    kind = _type(cursor)
    if not isinstance(kind, TensorType):
        raise _Unreadable("expected a tensor type")
    shape = tuple(dim for dim in kind.dims or () if isinstance(dim, int))
    role = Role(cursor.name())
    flags: list[str] = []
    word = cursor.name()
    while not word.startswith("sha256:"):
        flags.append(word)
        word = cursor.name()
    layouts = [Layout(flag) for flag in flags if flag not in ("transient", "grad")]
    parts.weights[path] = Weight(
        kind.dtype,
        shape,
        role,
        Digest(word.removeprefix("sha256:")),
        layouts[0] if layouts else Layout.CONTIGUOUS,
        "transient" not in flags,
        "grad" in flags,
    )


def _tie_statement(cursor: _Cursor, parts: _Parts) -> None:
    path = Path(cursor.name())
    cursor.expect("=")
    parts.ties[path] = Path(cursor.name())


def _leaf_statement(cursor: _Cursor, parts: _Parts) -> None:
    path = Path(cursor.name())
    cursor.expect("=")
    parts.leaves[path] = Leaf(cursor.string(), Digest(cursor.string()), cursor.string())


def _block_statement(cursor: _Cursor, parts: _Parts) -> None:
    name = BlockName(cursor.name())
    cursor.expect("{")
    parts.blocks[name] = _program(cursor, "}")
    cursor.expect("}")


def _update_statement(cursor: _Cursor, parts: _Parts) -> None:
    path = Path(cursor.name())
    cursor.expect("=")
    value = _arg(cursor)
    if not isinstance(value, NodeRef):
        raise _Unreadable("expected a node")
    parts.updates[path] = value


def _args_statement(cursor: _Cursor, parts: _Parts) -> None:
    parts.args = _tree(cursor)


def _kwargs_statement(cursor: _Cursor, parts: _Parts) -> None:
    parts.kwargs = _tree(cursor)


def _params_statement(cursor: _Cursor, parts: _Parts) -> None:
    names = _arg(cursor)
    parts.params = tuple(str(name) for name in names) if isinstance(names, tuple) else ()


def _borders_statement(cursor: _Cursor, parts: _Parts) -> None:
    parts.borders = borders_from_arg(_arg(cursor))


def _return_statement(cursor: _Cursor, parts: _Parts) -> None:
    parts.output = _tree(cursor)


_STATEMENTS: Mapping[str, Callable[[_Cursor, _Parts], None]] = MappingProxyType(
    {
        "dim": _dim_statement,
        "input": _input_statement,
        "args": _args_statement,
        "kwargs": _kwargs_statement,
        "params": _params_statement,
        "borders": _borders_statement,
        "return": _return_statement,
        "update": _update_statement,
        "weight": _weight_statement,
        "tie": _tie_statement,
        "leaf": _leaf_statement,
        "block": _block_statement,
    }
)
