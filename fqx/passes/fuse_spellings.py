"""Hand-written spellings made the one op they mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from fqx.ir.arg import Arg, NodeRef, WeightRef
from fqx.ir.fault import Fault
from fqx.ir.names import Path, RuleName
from fqx.ir.node import Origin
from fqx.ir.signature import TensorType
from fqx.ir.weight import Weight
from fqx.kit.result import fold
from fqx.match.pattern import Call, Fits, Pattern, anything, either, number, op, stored
from fqx.match.rule import Change, Made, Rule, Rules, rules
from fqx.match.search import Match, Miss
from fqx.num.tensors import tensor_of, weight_of
from fqx.ops.catalogue import attr, make_node, with_operand

x = anything("x")


def _near(value: float) -> Fits:
    """A literal that means this number."""
    return Fits(f"{value:.6g}", lambda arg: _is_near(arg, value))


def _is_near(arg: Arg, value: float) -> bool:
    if isinstance(arg, bool) or not isinstance(arg, int | float):
        return False
    return math.isclose(arg, value, rel_tol=1e-8)


def _tensor_type(found: Match, arg: Arg) -> TensorType | None:
    kind = found.type_of(arg)
    return kind if isinstance(kind, TensorType) and kind.dims is not None else None


def _rank(found: Match, arg: Arg) -> int | None:
    kind = _tensor_type(found, arg)
    return None if kind is None or kind.dims is None else len(kind.dims)


def _origin(found: Match) -> Origin:
    """The origin of what stands for a match: the root's, made of all that it covers."""
    return replace(found.root.origin, parents=tuple(node.id for node in found.nodes))


def _instead(found: Match, name: str, **given: Arg) -> Change:
    """One new node of the op for the whole match, named after its root."""
    made = make_node(name, found.fresh(found.root.id, name), _origin(found), **given)
    return Change(NodeRef(made.id), (made,))


# -- activations --


def _activation(name: str, **attrs: Arg) -> Callable[[Match], Made]:
    def make(found: Match) -> Made:
        kind = _tensor_type(found, found.arg("x"))
        if kind is None or not kind.dtype.is_float:
            return Miss(f"{name} takes float tensors only", found.root.id)
        return _instead(found, name, x=found.arg("x"), **attrs)

    return make


def _plus(one: Pattern, two: Pattern) -> Call:
    return op("add")(one, two).commuting().having(alpha=1)


def _times(one: Pattern, two: Pattern) -> Call:
    return op("mul")(one, two).commuting()


_three, _six, _zero, _one, _half = _near(3.0), _near(6.0), either(0, 0.0), _near(1.0), _near(0.5)
_ramp = op("clamp")(_plus(x, _three).alone(), _zero, _six).alone()
_erf = op("erf")(
    either(
        op("div")(x, _near(math.sqrt(2.0))).having(rounding_mode=None).alone(),
        _times(x, _near(math.sqrt(0.5))).alone(),
    )
).alone()
_cube = _times(op("pow")(x, _near(3.0)).alone(), _near(0.044715)).alone()
_tanh = op("tanh")(_times(_plus(x, _cube).alone(), _near(math.sqrt(2.0 / math.pi))).alone()).alone()


def _gelus(name: str, inner: Call, approximate: str) -> Rules:
    """`0.5 · x · (1 + inner)`, however the product is bracketed."""
    grown = _plus(inner, _one).alone()
    make = _activation("gelu", approximate=approximate)
    return rules(
        Rule(RuleName(f"fuse.{name}"), _times(_times(x, _half).alone(), grown), make),
        Rule(RuleName(f"fuse.{name}"), _times(_times(x, grown).alone(), _half), make),
        Rule(RuleName(f"fuse.{name}"), _times(x, _times(grown, _half).alone()), make),
    )


ACTIVATIONS: Rules = rules(
    # x * sigmoid(x) -> silu(x)
    Rule(RuleName("fuse.silu"), _times(x, op("sigmoid")(x).alone()), _activation("silu")),
    # x * tanh(softplus(x)) -> mish(x)
    Rule(
        RuleName("fuse.mish"),
        _times(x, op("tanh")(op("softplus")(x).having(beta=1, threshold=20).alone()).alone()),
        _activation("mish"),
    ),
    # clamp(x + 3, 0, 6) / 6 -> hardsigmoid(x)
    Rule(
        RuleName("fuse.hardsigmoid"),
        op("div")(_ramp, _six).having(rounding_mode=None),
        _activation("hardsigmoid"),
    ),
    Rule(RuleName("fuse.hardsigmoid"), _times(_ramp, _near(1 / 6)), _activation("hardsigmoid")),
    # x * hardsigmoid(x) -> hardswish(x)
    Rule(
        RuleName("fuse.hardswish"),
        _times(x, op("hardsigmoid")(x).alone()),
        _activation("hardswish"),
    ),
    # x * clamp(x + 3, 0, 6) / 6 -> hardswish(x)
    Rule(
        RuleName("fuse.hardswish"),
        op("div")(_times(x, _ramp).alone(), _six).having(rounding_mode=None),
        _activation("hardswish"),
    ),
)
"""Activations written out in arithmetic."""

GELUS: Rules = _gelus("gelu", _erf, "none") + _gelus("gelu_tanh", _tanh, "tanh")
"""The two usual ways to write gelu (Hendrycks & Gimpel 2016)."""


# -- linears --


def _linear(found: Match) -> Made:
    """`x @ w.T` and `bias + x @ w.T` with `w` of shape (out, in)."""
    return _linear_of(found, found.arg("weight"), {})


def _linear_of_transposed(found: Match) -> Made:
    """`x @ w` with `w` of shape (in, out): the linear gets a transposed weight under a new path."""
    weight, path = found.weight("weight"), found.path("weight")
    if weight is None or path is None or len(weight.shape) != 2:
        return Miss("the weight is not a matrix", found.root.id)
    return fold(
        tensor_of(weight),
        lambda tensor: _with_transposed(
            found,
            path,
            weight_of(
                # a copy even where one row or column makes the transposed tensor contiguous
                tensor.t().clone(memory_format=torch.contiguous_format),
                weight.role,
                persistent=weight.persistent,
                requires_grad=weight.requires_grad,
                share=True,
            ),
        ),
        _itself,
    )


def _itself(fault: Fault) -> Made:
    return fault


def _with_transposed(found: Match, path: Path, weight: Weight) -> Made:
    there = found.weight_at(Path(f"{path}_t"))
    new = Path(f"{path}_t") if there == weight else found.fresh_path(f"{path}_t")
    return _linear_of(found, WeightRef(new), {new: weight}, weight.shape)


def _linear_of(
    found: Match, weight: Arg, weights: dict[Path, Weight], shape: tuple[int, ...] | None = None
) -> Made:
    bias = found.weight("bias")
    kind = _tensor_type(found, weight)
    dims = shape if shape is not None else kind.dims if kind is not None else None
    if dims is None or len(dims) != 2:
        return Miss("the weight is not a matrix", found.root.id)
    if not isinstance(found.arg("x"), NodeRef):
        return Miss("the operand is no value of a node", found.root.id)
    if found.has("bias") and (bias is None or bias.shape != (dims[0],)):
        return Miss("what is added is not one number for each output channel", found.root.id)
    change = _instead(found, "linear", x=found.arg("x"), weight=weight, bias=found.arg("bias"))
    return replace(change, weights=weights)


def _linear_bias(found: Match) -> Made:
    layer, weight, bias = found.node("layer"), found.weight("weight"), found.weight("bias")
    if layer is None or weight is None or bias is None or bias.shape != weight.shape[:1]:
        return Miss("what is added is not one number for each output channel", found.root.id)
    if bias.dtype is not weight.dtype:
        return Miss("what is added has another dtype than the weight", found.root.id)
    made = with_operand(layer, "bias", found.arg("bias"))
    origin = replace(layer.origin, parents=(found.root.id,))
    return Change(NodeRef(layer.id), (replace(made, origin=origin),))


_flipped = op("permute")(stored("weight")).having(dims=(1, 0))
_addmm = op("addmm").where(
    "it scales one of its terms",
    lambda node: _is_near(attr(node, "beta"), 1.0) and _is_near(attr(node, "alpha"), 1.0),
)

LINEARS: Rules = rules(
    # x @ w.T -> linear(x, w)
    Rule(RuleName("fuse.linear"), op("matmul", "mm")(x, _flipped), _linear),
    # x @ w -> linear(x, w.T)
    Rule(
        RuleName("fuse.linear_transposed"),
        op("matmul", "mm")(x, stored("weight")),
        _linear_of_transposed,
    ),
    # addmm(b, x, w.T) -> linear(x, w, b), addmm(b, x, w) -> linear(x, w.T, b)
    Rule(RuleName("fuse.linear"), _addmm(stored("bias"), x, _flipped), _linear),
    Rule(
        RuleName("fuse.linear_transposed"),
        _addmm(stored("bias"), x, stored("weight")),
        _linear_of_transposed,
    ),
    # linear(x, w) + b -> linear(x, w, b)
    Rule(
        RuleName("fuse.linear_bias"),
        _plus(
            op("linear")(x, stored("weight"), None).named("layer").alone(),
            stored("bias"),
        ),
        _linear_bias,
    ),
)
"""Linears written as matrix products."""


# -- attention --


def _attention(found: Match) -> Made:
    """softmax(q @ k.T · scale + mask) @ v, all four of one rank and one set of leading axes.

    Rows that the mask closes entirely are NaN before and zero after.
    """
    query, values, keys = found.arg("q"), found.arg("v"), found.arg("k")
    ranks = {_rank(found, query), _rank(found, values), _rank(found, keys)}
    rank = ranks.pop()
    if ranks or rank is None or rank < 3:
        return Miss("query, keys and values are not of one rank, three or more", found.root.id)
    why = _attention_obstacle(found, rank)
    if why is not None:
        return Miss(why, found.root.id)
    upright = _upright(found, rank)
    change = _instead(
        found,
        "scaled_dot_product_attention",
        q=query,
        k=upright.value,
        v=values,
        mask=found.arg("mask"),
        scale=_scale(found),
    )
    return replace(change, nodes=(*upright.nodes, *change.nodes))


def _attention_obstacle(found: Match, rank: int) -> str | None:
    softmax = found.node("softmax")
    if softmax is None or attr(softmax, "dim") not in (-1, rank - 1):
        return "the softmax is not over the keys"
    kinds = [_tensor_type(found, found.arg(name)) for name in ("q", "k", "v")]
    leading = {None if kind is None or kind.dims is None else kind.dims[:-2] for kind in kinds}
    if len(leading) != 1 or any(None in (dims or (None,)) for dims in leading):
        return "query, keys and values do not share their leading axes"
    dtypes = {None if kind is None else kind.dtype for kind in kinds}
    if len(dtypes) != 1 or attr(softmax, "dtype") not in (None, *dtypes):
        return "query, keys and values are not of one dtype"
    if not found.has("mask"):
        return None
    mask = _tensor_type(found, found.arg("mask"))
    if mask is None or mask.dims is None or len(mask.dims) < 2 or mask.dtype not in dtypes:
        return "the mask is not a float tensor of rank two or more"
    return None


def _scale(found: Match) -> float:
    scale, divisor = found.arg("scale"), found.arg("divisor")
    if isinstance(divisor, int | float):
        return 1.0 / float(divisor)
    return float(scale) if isinstance(scale, int | float) else 1.0


def _upright(found: Match, rank: int) -> Change:
    """The keys with their last two axes as they were before the transposition."""
    keys = found.arg("k")
    node = found.node("k")
    is_permute = node is not None and node.op == "permute"
    below = node.args[0] if node is not None and is_permute else keys
    dims = attr(node, "dims") if node is not None and is_permute else tuple(range(rank))
    order = dims if isinstance(dims, tuple) else ()
    turned = (*order[:-2], order[-1], order[-2])
    if turned == tuple(range(rank)):
        return Change(below)
    name = found.fresh(found.root.id, "keys")
    made = make_node("permute", name, _origin(found), x=below, dims=turned)
    return Change(NodeRef(name), (made,))


_keys = either(op("permute").named("k"), anything("k"))
_scores = op("matmul", "bmm")(anything("q"), _keys).alone()
_scaled = either(
    _scores,
    op("mul")(_scores, number("scale")).commuting().alone(),
    op("div")(_scores, number("divisor")).having(rounding_mode=None).alone(),
)
_masked = either(_scaled, _plus(_scaled, anything("mask")).alone())

ATTENTIONS: Rules = rules(
    Rule(
        RuleName("fuse.attention"),
        op("matmul", "bmm")(op("softmax")(_masked).named("softmax").alone(), anything("v")),
        _attention,
    ),
)
"""Attention written as two matrix products and a softmax (Vaswani et al. 2017)."""

SPELLINGS: Rules = ACTIVATIONS + GELUS + LINEARS + ATTENTIONS
"""All spellings `fuse` knows."""
