"""How arguments, nodes, types and weights are written; `fqx.ir.read` reads the same grammar.

A node is written `conv1`, or `%0` where the bare name would read as something else, a weight
`$conv1.weight`, a sub-program `&body`; names with unusual characters stand in quotes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from itertools import accumulate
from typing import assert_never

from fqx.ir.arg import Arg, Block, Dots, DType, NodeRef, Slice, Training, WeightRef
from fqx.ir.edit import (
    Added,
    BlockAt,
    Changed,
    Edit,
    Item,
    LeafAt,
    Moved,
    Removed,
    Staged,
    TieAt,
    UpdateAt,
    WeightAt,
)
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.ir.signature import (
    Dim,
    IntType,
    OpaqueType,
    Poly,
    Signature,
    TensorType,
    Tree,
    TupleType,
    Type,
    decode_dim,
    encode_dim,
)
from fqx.ir.weight import Layout, Weight
from fqx.kit.frozen import FrozenMap

WIDTH = 100
"""Columns of a printed program."""

BARE = re.compile(r"[A-Za-z0-9_.:@%-]+")
"""Names that need no quotes behind a sigil or at the start of a statement."""

WORDS = frozenset({"None", "True", "False", "nan", "inf", "training", "slice", "literal"}) | {
    dtype.value for dtype in DType
}
"""Bare words that are not node names."""

_EXPRESSION = re.compile(r"[A-Za-z0-9_+*/%()-]+")
_STOPS = re.compile(r'"(?:[^"\\]|\\.)*"|[^\w\s]')
_PLAIN = re.compile(r"[A-Za-z_@:][A-Za-z0-9_.:@%-]*")


def show_name(name: str) -> str:
    """A name, in quotes if it holds unusual characters."""
    return name if BARE.fullmatch(name) else json.dumps(name)


def show_arg(arg: Arg) -> str:
    """An argument; equal texts are equal arguments."""
    match arg:
        case None | bool() | int():
            return str(arg)
        case float():
            return "nan" if math.isnan(arg) else repr(arg)
        case str():
            return json.dumps(arg)
        case DType():
            return arg.value
        case NodeRef(id=name):
            plain = _PLAIN.fullmatch(name) is not None and name not in WORDS
            return name if plain else f"%{show_name(name)}"
        case WeightRef(path=path):
            return f"${show_name(path)}"
        case Block(name=block):
            return f"&{show_name(block)}"
        case Slice(start=start, stop=stop, step=step):
            return f"slice({', '.join(show_arg(part) for part in (start, stop, step))})"
        case Dots():
            return "..."
        case Training():
            return "training"
        case tuple():
            items = ", ".join(show_arg(item) for item in arg)
            return f"({items},)" if len(arg) == 1 else f"({items})"
        case FrozenMap():
            pairs = (f"{show_name(name)}={show_arg(value)}" for name, value in arg.items())
            return "{" + ", ".join(pairs) + "}"
        case _:
            assert_never(arg)


def show_dim(dim: Dim) -> str:
    """A dimension: an int, `?` where unknown, an expression, or quoted JSON of an unusual one."""
    if dim is None:
        return "?"
    text = str(dim)
    if isinstance(dim, int) or (_is_expression(text) and read_dim(text) == dim):
        return text
    return json.dumps(json.dumps(encode_dim(dim)))


def _is_expression(text: str) -> bool:
    depths = accumulate((char == "(") - (char == ")") for char in text)
    return _EXPRESSION.fullmatch(text) is not None and min(depths) >= 0


def read_dim(text: str) -> Dim:
    """Inverse of `show_dim`; ValueError on anything else."""
    if text == "?":
        return None
    if text.startswith('"'):
        return decode_dim(json.loads(json.loads(text)))
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return Poly(tuple(_read_term(term) for term in split(text, "+")))


def _read_term(text: str) -> tuple[tuple[str, ...], int]:
    parts = split(text, "*")
    if re.fullmatch(r"-?\d+", parts[0]):
        return tuple(parts[1:]), int(parts[0])
    return tuple(parts), 1


def split(text: str, mark: str) -> list[str]:
    """Parts between marks that stand outside brackets and quotes."""
    parts, depth, start = [], 0, 0
    for found in _STOPS.finditer(text):
        char = found.group()
        depth += (char in "([{") - (char in ")]}")
        if char == mark and depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    return [*parts, text[start:]]


def show_type(kind: Type) -> str:
    """A type: `float32[batch, 3]`, `float32[...]` of unknown rank, `size batch`, `(a, b)`."""
    match kind:
        case TensorType(dtype=dtype, dims=None):
            return f"{dtype.value}[...]"
        case TensorType(dtype=dtype, dims=dims):
            return f"{dtype.value}[{', '.join(show_dim(dim) for dim in dims or ())}]"
        case IntType(value=dim):
            return f"size {show_dim(dim)}"
        case TupleType(items=items):
            return f"({', '.join(show_type(item) for item in items)})"
        case OpaqueType(note=note):
            return f"opaque {json.dumps(note)}"
        case _:
            assert_never(kind)


def show_tree(tree: Tree) -> str:
    """A tree: `(a, b)`, `[a, b]`, `{"k": a}`, `Name{"k": a}`, or a leaf."""
    items = [show_tree(item) for item in tree.items]
    match tree.kind:
        case "leaf":
            text = show_arg(tree.leaf)
            return f"literal {text}" if isinstance(tree.leaf, tuple | FrozenMap) else text
        case "tuple":
            return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
        case "list":
            return f"[{', '.join(items)}]"
        case _:
            pairs = zip((json.dumps(key) for key in tree.keys), items, strict=True)
            inner = ", ".join(f"{key}: {item}" for key, item in pairs)
            name = "" if tree.kind == "dict" else f"{tree.kind} {json.dumps(tree.name)} "
            return f"{name}{{{inner}}}"


def show_weight(weight: Weight) -> str:
    """A weight in one line: type, role, flags, fingerprint."""
    kind = show_type(TensorType(weight.dtype, weight.shape))
    flags = [
        weight.layout.value if weight.layout is not Layout.CONTIGUOUS else "",
        "" if weight.persistent else "transient",
        "grad" if weight.requires_grad else "",
    ]
    words = (kind, weight.role.value, *flags, f"sha256:{weight.fingerprint}")
    return " ".join(word for word in words if word)


def show_node(node: Node) -> str:
    """A node as a statement: `y = conv2d(x, $w, None; stride=(1, 1))`."""
    return f"{show_id(node.id)} = {show_call(node)}"


def wrap(text: str, indent: str = "    ", width: int = WIDTH) -> str:
    """The text in lines of at most `width` columns, broken behind commas and semicolons."""
    if len(text) <= width:
        return text
    lines, line = [], ""
    for part in _breaks(text):
        if line.strip() and len(line) + len(part.rstrip()) > width:
            lines.append(line.rstrip())
            line = indent
        line += part
    return "\n".join((*lines, line.rstrip()))


def _breaks(text: str) -> list[str]:
    """Pieces that may start a line; quotes and inner brackets stay whole."""
    pieces, start, depth = [], 0, 0
    for found in _STOPS.finditer(text):
        char = found.group()
        depth += (char in "([{") - (char in ")]}")
        if char in ",;" and depth <= 1 and text[found.end() : found.end() + 1] == " ":
            pieces.append(text[start : found.end() + 1])
            start = found.end() + 1
    return [*pieces, text[start:]]


def show_id(name: NodeId) -> str:
    """A node's name where it is defined or mentioned."""
    return show_name(name)


def show_call(node: Node) -> str:
    """The right-hand side of a node's statement."""
    return _call(show_name(node.op), [show_arg(arg) for arg in node.args], _attrs(node))


def _attrs(node: Node) -> dict[str, str]:
    return {show_name(name): show_arg(value) for name, value in node.attrs.items()}


def _call(name: str, args: list[str], attrs: dict[str, str]) -> str:
    pairs = ", ".join(f"{key}={value}" for key, value in attrs.items())
    return f"{name}({', '.join(args)}{'; ' + pairs if pairs else ''})"


# -- edits --


def show_edit(edit: Edit) -> str:
    """An edit as a change of the program: `+` added, `-` removed, `~` changed, `>` moved."""
    match edit:
        case Added(item=item):
            return f"+ {show_item(item)}"
        case Removed(item=item):
            return f"- {show_item(item)}"
        case Changed(old=Node() as old, new=Node() as new):
            return f"~ {show_id(new.id)} = {_changed_call(old, new)}"
        case Changed(old=WeightAt(weight=old_weight), new=WeightAt(path=path, weight=weight)):
            return f"~ weight {show_name(path)} = {_changed_weight(old_weight, weight)}"
        case Changed(old=Signature() as before, new=Signature() as after):
            return f"~ {_changed_signature(before, after)}"
        case Changed(old=old_item, new=new_item):
            return f"~ {show_item(old_item)} -> {show_item(new_item)}"
        case Moved(id=name, after=after):
            return f"> {show_id(name)} behind {'nothing' if after is None else show_id(after)}"
        case Staged(before=before_stage, after=after_stage):
            return f"  stage {before_stage.value} -> {after_stage.value}"
        case _:
            assert_never(edit)


def show_edits(edits: Iterable[Edit]) -> str:
    """Edits one below the other, each with the rule that made it at the right margin."""
    return "\n".join(_with_rule(wrap(show_edit(edit), "      "), edit.by) for edit in edits)


def _with_rule(text: str, rule: str) -> str:
    *lines, last = text.split("\n")
    mark = f"[{rule}]"
    gap = WIDTH - len(last) - len(mark)
    tail = [f"{last}{' ' * gap}{mark}"] if gap >= 2 else [last, mark.rjust(WIDTH)]
    return "\n".join((*lines, *tail))


def show_item(item: Item) -> str:
    """What an edit is about, in one line; fingerprints and digests are cut to twelve digits."""
    match item:
        case Node():
            return show_node(item)
        case WeightAt(path=path, weight=weight):
            return f"weight {show_name(path)} = {_short_weight(weight)}"
        case TieAt(path=path, first=first):
            return f"tie {show_name(path)} = {show_name(first)}"
        case UpdateAt(path=path, value=value):
            return f"update {show_name(path)} = {show_arg(value)}"
        case BlockAt(name=name, graph=graph):
            return f"block {show_name(name)} {graph.digest[:12]}"
        case LeafAt(path=path, leaf=leaf):
            return f"leaf {show_name(path)} = {leaf.type} {leaf.fingerprint[:12]}"
        case Signature():
            return f"return {show_tree(item.output)}"
        case _:
            assert_never(item)


def _changed_call(old: Node, new: Node) -> str:
    """Both calls in one where only some arguments differ."""
    if old.op != new.op or len(old.args) != len(new.args) or old.attrs.keys() != new.attrs.keys():
        return f"{show_call(old)} -> {show_call(new)}"
    args = [
        _arrow(show_arg(one), show_arg(two)) for one, two in zip(old.args, new.args, strict=True)
    ]
    before, after = _attrs(old), _attrs(new)
    same = {name: value for name, value in after.items() if before[name] == value}
    changed = {n: _arrow(before[n], value) for n, value in after.items() if n not in same}
    return _call(show_name(new.op), args, changed or {})


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _short_weight(weight: Weight) -> str:
    return show_weight(weight).replace(f"sha256:{weight.fingerprint}", weight.fingerprint[:12])


def _changed_weight(old: Weight, new: Weight) -> str:
    words = _short_weight(old).split(" "), _short_weight(new).split(" ")
    if len(words[0]) != len(words[1]):
        return f"{_short_weight(old)} -> {_short_weight(new)}"
    return " ".join(_arrow(one, two) for one, two in zip(*words, strict=True))


def _changed_signature(before: Signature, after: Signature) -> str:
    if before.output == after.output:
        return "signature"
    return f"return {_arrow(show_tree(before.output), show_tree(after.output))}"
