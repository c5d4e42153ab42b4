"""How arguments, nodes, types and weights are written; `fqx.ir.read` reads the same grammar.

A node is written `conv1`, or `%0` where the bare name would read as something else, a weight
`$conv1.weight`, a sub-program `&body`; names with unusual characters stand in quotes.
"""

from __future__ import annotations

import json
import math
import re
from typing import assert_never

from fqx.ir.arg import Arg, Block, Dots, DType, NodeRef, Slice, Training, WeightRef
from fqx.kit.frozen import FrozenMap

WIDTH = 100
"""Columns of a printed program."""

BARE = re.compile(r"[A-Za-z0-9_.:@%-]+")
"""Names that need no quotes behind a sigil or at the start of a statement."""

WORDS = frozenset({"None", "True", "False", "nan", "inf", "training", "slice", "literal"}) | {
    dtype.value for dtype in DType
}
"""Bare words that are not node names."""

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
            pairs = (f"{show_name(name)}: {show_arg(value)}" for name, value in arg.items())
            return "{" + ", ".join(pairs) + "}"
        case _:
            assert_never(arg)
