"""Attention written out: softmax(q·kᵀ·scale + mask)·v (Vaswani et al. 2017).

A query that its mask closes to every key gives zero in torch, where the plain formula gives 0 / 0.
The rows that are minus infinity all along are put to zero behind the softmax, so that this holds.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from fqx.ir.arg import Arg, DType, NodeRef
from fqx.ir.names import RuleName
from fqx.ir.node import Node
from fqx.ir.signature import Dim, TensorType
from fqx.match.pattern import op
from fqx.match.rule import Change, Made, Rule, Rules, rules
from fqx.match.search import Match, Miss
from fqx.ops.catalogue import attr, operand
from fqx.passes.decompose_recurrence import Sheet

Sizes: TypeAlias = tuple[Dim, ...]

WIDE = (DType.FLOAT32, DType.FLOAT64)
"""Types in which torch sums as it stores; narrower ones it widens inside of the op."""


def _attention(found: Match) -> Made:
    root = found.root
    kinds = _kinds(found)
    if isinstance(kinds, str):
        return Miss(kinds, root.id)
    query, keys, values = kinds
    scale, last = _scale(root, query[-1]), len(query) - 1
    if scale is None:
        return Miss("the width of its heads is not known beforehand", root.id)
    sheet, mask = Sheet(found), operand(root, "mask")
    turned = (*range(last - 1), last, last - 1)
    upright = sheet.put("permute", "keys", x=_heads(sheet, "k", query, keys), dims=turned)
    products = sheet.put("matmul", "scores", x=operand(root, "q"), y=upright)
    scores = sheet.put("mul", "scaled", x=products, y=scale)
    if attr(root, "is_causal") is True:
        scores = sheet.put("add", "masked", x=scores, y=_causal(sheet, query[-2], keys[-2]))
    elif mask is not None:
        scores = sheet.put("add", "masked", x=scores, y=_added(sheet, mask))
    weights = sheet.put("softmax", "softmax", x=scores, dim=last)
    if mask is not None:
        weights = _zero_where_closed(sheet, scores, weights, last)
    value = sheet.put("matmul", "values", x=weights, y=_heads(sheet, "v", query, values))
    return Change(value, tuple(sheet.nodes))


def _kinds(found: Match) -> tuple[Sizes, Sizes, Sizes] | str:
    """The dims of query, keys and values, or what keeps the attention whole."""
    root, mask = found.root, operand(found.root, "mask")
    if attr(root, "dropout_p") != 0:
        return "it drops weights at random"
    if attr(root, "is_causal") is True and mask is not None:
        return "it takes a causal and a given mask at once"
    held = [found.type_of(operand(root, name)) for name in ("q", "k", "v")]
    tensors = [kind for kind in held if isinstance(kind, TensorType)]
    dims = [kind.dims for kind in tensors if kind.dims]
    if len(dims) < 3 or len({len(sizes) for sizes in dims}) > 1 or len(dims[0]) < 2:
        return "query, keys and values are not of one rank, two or more"
    dtypes = {kind.dtype for kind in tensors}
    if len(dtypes) > 1 or not dtypes.issubset(WIDE):
        return "query, keys and values are not all float32, or all float64"
    if attr(root, "enable_gqa") is True and not _shares_evenly(*dims):
        return "it is not known how many queries share a head of the keys"
    return _mask_obstacle(found, dtypes, len(dims[0])) or (dims[0], dims[1], dims[2])


def _shares_evenly(*dims: Sizes) -> bool:
    heads = [sizes[-3] if len(sizes) > 2 else None for sizes in dims]
    counts = [count for count in heads if isinstance(count, int) and count > 0]
    return len(counts) == len(dims) and all(counts[0] % count == 0 for count in counts)


def _heads(sheet: Sheet, name: str, query: Sizes, held: Sizes) -> Arg:
    """Keys or values with each head as often, one behind the other, as queries share it."""
    x, rank = operand(sheet.found.root, name), len(held)
    if attr(sheet.found.root, "enable_gqa") is not True or query[-3] == held[-3]:
        return x
    many, few = query[-3], held[-3]
    times = many // few if isinstance(many, int) and isinstance(few, int) else 1
    apart = sheet.put("unsqueeze", f"{name}.apart", x=x, dim=rank - 2)
    repeats = (*(1,) * (rank - 2), times, 1, 1)
    again = sheet.put("repeat", f"{name}.repeated", x=apart, repeats=repeats)
    return sheet.put("flatten", f"{name}.heads", x=again, start_dim=rank - 3, end_dim=rank - 2)


def _mask_obstacle(found: Match, dtypes: set[DType], rank: int) -> str:
    mask = operand(found.root, "mask")
    if mask is None:
        return ""
    kind = found.type_of(mask)
    if not isinstance(kind, TensorType) or kind.dims is None or len(kind.dims) > rank:
        return "the shape of the mask is not known, or has more axes than the query"
    if kind.dtype not in {DType.BOOL, *dtypes}:
        return "the mask is neither boolean nor of the type of the query"
    return ""


def _scale(root: Node, width: Dim) -> float | None:
    """The factor of the scores: what is given, or one over the root of the width of a head."""
    given = attr(root, "scale")
    if isinstance(given, int | float):
        return float(given)
    return 1 / math.sqrt(width) if isinstance(width, int) and width > 0 else None


def _added(sheet: Sheet, mask: Arg) -> Arg:
    """The mask as a term of the scores; a boolean one is true where a key is open."""
    kind = sheet.found.type_of(mask)
    if isinstance(kind, TensorType) and kind.dtype is DType.BOOL:
        return sheet.put("where", "mask", condition=mask, x=0.0, y=-math.inf)
    return mask


def _causal(sheet: Sheet, queries: Dim, keys: Dim) -> NodeRef:
    """The term that closes each query to the keys behind its own position."""
    sizes = (_size(sheet, "q", queries), _size(sheet, "k", keys))
    ones = sheet.put("full", "pairs", shape=sizes, value=True, dtype=DType.BOOL)
    before = sheet.put("tril", "causal", x=ones)
    return sheet.put("where", "mask", condition=before, x=0.0, y=-math.inf)


def _size(sheet: Sheet, name: str, dim: Dim) -> Arg:
    """The length of a sequence, asked for at run time where it is not known."""
    if isinstance(dim, int):
        return dim
    x = operand(sheet.found.root, name)
    kind = sheet.found.type_of(x)
    rank = len(kind.dims) if isinstance(kind, TensorType) and kind.dims else 2
    return sheet.put("size", f"{name}.length", x=x, dim=rank - 2)


def _zero_where_closed(sheet: Sheet, scores: Arg, weights: Arg, last: int) -> NodeRef:
    shut = sheet.put("eq", "shut", x=scores, y=-math.inf)
    closed = sheet.put("all", "closed", x=shut, dim=(last,), keepdim=True)
    return sheet.put("where", "weights", condition=closed, x=0.0, y=weights)


def _added_product(found: Match) -> Made:
    """A batch of products and what is added to it."""
    root = found.root
    added, x, y = (operand(root, name) for name in ("input", "x", "y"))
    kinds = [found.type_of(arg) for arg in (added, x, y)]
    if len({kind.dtype if isinstance(kind, TensorType) else None for kind in kinds}) != 1:
        return Miss("its operands are not of one type", root.id)
    if attr(root, "beta") != 1 or attr(root, "alpha") != 1:
        return Miss("it scales its operands", root.id)
    sheet = Sheet(found)
    products = sheet.put("bmm", "scores", x=x, y=y)
    return Change(sheet.put("add", "masked", x=products, y=added), tuple(sheet.nodes))


ATTENTIONS: Rules = rules(
    # baddbmm(mask, q, kᵀ): the scores of nn.MultiheadAttention where its weights are wanted
    Rule(RuleName("decompose.added_product"), op("baddbmm")(...), _added_product),
    Rule(RuleName("decompose.attention"), op("scaled_dot_product_attention")(...), _attention),
)
"""The rules that write attention out."""
