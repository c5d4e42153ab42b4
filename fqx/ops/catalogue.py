"""The operator catalogue: every operator a graph may hold, one row each.

A row is a signature in the notation of `fqx.ops.schema`, the type rule of the value, and traits.
There is one row per meaning, not per spelling: `nn.ReLU`, `F.relu`, `x.relu_()` and
`clamp(min=0)` are all `relu` (`fqx.ops.spellings` maps torch's names to rows).

Conventions. Axes (`dim`, `dims`) are non-negative wherever the rank is known. Windows, strides and
paddings are n-tuples. A `shape` operand is a tuple of ints and references to ints. An operand that
torch lets be a number may be one. What is not here is a *foreign* node: its op is the aten
overload's name, its args follow the aten schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fqx.ir.arg import Arg, DType, refs_in
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import NodeId, OpName
from fqx.ir.node import Node, Origin
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success
from fqx.ops import rules, shapes
from fqx.ops.schema import Attr, Call, Op, Operand, Required, Rule, Trait, read_op

__all__ = [
    "OPS",
    "Attr",
    "Call",
    "Op",
    "Operand",
    "Trait",
    "attr",
    "check_node",
    "fixed_qparams",
    "is_foreign",
    "is_kernel",
    "make_node",
    "op_of",
    "operand",
    "shares_qparams",
    "with_attr",
    "with_operand",
]

UNKNOWN: Final = Origin()
"""The origin of a node that comes from nowhere."""

WEIGHTED, CONTRACTION, LOOKUP = Trait.WEIGHTED, Trait.CONTRACTION, Trait.LOOKUP
ACTIVATION, ELEMENTWISE, COMPARISON = Trait.ACTIVATION, Trait.ELEMENTWISE, Trait.COMPARISON
NORM, POOL, REDUCTION, CONVEX = Trait.NORM, Trait.POOL, Trait.REDUCTION, Trait.CONVEX
SHAPE_ONLY, SAME_QPARAMS, FIXED = Trait.SHAPE_ONLY, Trait.SAME_QPARAMS, Trait.FIXED_QPARAMS
VIEW, MAYBE_VIEW, CONTAINER = Trait.VIEW, Trait.MAYBE_VIEW, Trait.CONTAINER
PURE_INT, FACTORY, BOUNDARY = Trait.PURE_INT, Trait.FACTORY, Trait.BOUNDARY
RANDOM = Trait.RANDOM_IN_TRAINING
MOVES = (SHAPE_ONLY, SAME_QPARAMS)
ACTIVATES = (ELEMENTWISE, ACTIVATION)
COMPARES = (ELEMENTWISE, COMPARISON)


def _op(
    signature: str, infer: Rule, *traits: Trait, fixed: tuple[float, float] | None = None
) -> Op:
    return read_op(signature, infer, frozenset(traits), fixed)


# fmt: off
_ROWS: Final = (
    # Weighted: what int8 kernels are for.
    _op("conv1d(x, weight, bias?; stride=(1,), padding=(0,), dilation=(1,), groups=1)",
        rules.conv, WEIGHTED),
    _op("conv2d(x, weight, bias?; stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)",
        rules.conv, WEIGHTED),
    _op("conv3d(x, weight, bias?; stride=(1, 1, 1), padding=(0, 0, 0), dilation=(1, 1, 1),"
        " groups=1)", rules.conv, WEIGHTED),
    _op("conv_transpose1d(x, weight, bias?; stride=(1,), padding=(0,), output_padding=(0,),"
        " groups=1, dilation=(1,))", rules.conv_transpose, WEIGHTED),
    _op("conv_transpose2d(x, weight, bias?; stride=(1, 1), padding=(0, 0), output_padding=(0, 0),"
        " groups=1, dilation=(1, 1))", rules.conv_transpose, WEIGHTED),
    _op("conv_transpose3d(x, weight, bias?; stride=(1, 1, 1), padding=(0, 0, 0),"
        " output_padding=(0, 0, 0), groups=1, dilation=(1, 1, 1))", rules.conv_transpose, WEIGHTED),
    _op("linear(x, weight, bias?)",             rules.linear,    WEIGHTED),
    _op("embedding(x, weight; padding_idx=-1)", rules.embedding, LOOKUP),
    _op("embedding_bag(x, weight, offsets?, per_sample_weights?; mode='mean',"
        " include_last_offset=False, padding_idx=-1)", rules.embedding_bag, LOOKUP),

    # Contractions of values.
    _op("matmul(x, y)",                          rules.matmul, CONTRACTION),
    _op("mm(x, y)",                              rules.matmul, CONTRACTION),
    _op("bmm(x, y)",                             rules.matmul, CONTRACTION),
    _op("addmm(input, x, y; beta=1, alpha=1)",   rules.addmm,  CONTRACTION),
    _op("baddbmm(input, x, y; beta=1, alpha=1)", rules.addmm,  CONTRACTION),
    _op("einsum(xs*; equation)",                 rules.einsum, CONTRACTION),
    _op("scaled_dot_product_attention(q, k, v, mask?; dropout_p=0.0, is_causal=False, scale=None,"
        " enable_gqa=False)", rules.attention, CONTRACTION),

    # Norms.
    _op("batch_norm(x, weight?, bias?, mean?, var?; training=False, momentum=0.1, eps=1e-05)",
        rules.same_type, NORM),
    _op("instance_norm(x, weight?, bias?, mean?, var?; use_input_stats=True, momentum=0.1,"
        " eps=1e-05)", rules.same_type, NORM),
    _op("layer_norm(x, weight?, bias?; shape, eps=1e-05)", rules.same_type, NORM),
    _op("group_norm(x, weight?, bias?; groups, eps=1e-05)", rules.same_type, NORM),
    _op("rms_norm(x, weight?; shape, eps=None)", rules.same_type,  NORM),
    _op("softmax(x; dim, dtype=None)",           rules.with_dtype, FIXED, fixed=(0.0, 1.0)),
    _op("log_softmax(x; dim, dtype=None)",       rules.with_dtype),

    # Activations.
    _op("relu(x)",                         rules.same_type,   *ACTIVATES),
    _op("clamp(x, low?, high?)",           rules.elementwise, *ACTIVATES, SAME_QPARAMS),
    _op("hardtanh(x; low=-1.0, high=1.0)", rules.same_type,   *ACTIVATES),
    _op("leaky_relu(x; negative_slope=0.01)", rules.same_type, *ACTIVATES),
    _op("elu(x; alpha=1.0, scale=1.0, input_scale=1.0)", rules.same_type, *ACTIVATES),
    _op("selu(x)",                         rules.same_type,   *ACTIVATES),
    _op("celu(x; alpha=1.0)",              rules.same_type,   *ACTIVATES),
    _op("prelu(x, weight)",                rules.same_type,   *ACTIVATES),
    _op("gelu(x; approximate='none')",     rules.same_type,   *ACTIVATES),
    _op("silu(x)",                         rules.same_type,   *ACTIVATES),
    _op("mish(x)",                         rules.same_type,   *ACTIVATES),
    _op("hardswish(x)",                    rules.same_type,   *ACTIVATES),
    _op("hardsigmoid(x)",                  rules.same_type,   *ACTIVATES, FIXED, fixed=(0.0, 1.0)),
    _op("sigmoid(x)",                      rules.to_float,    *ACTIVATES, FIXED, fixed=(0.0, 1.0)),
    _op("tanh(x)",                         rules.to_float,    *ACTIVATES, FIXED, fixed=(-1.0, 1.0)),
    _op("softplus(x; beta=1, threshold=20)", rules.same_type, *ACTIVATES),
    _op("threshold(x; threshold, value)",  rules.same_type,   *ACTIVATES),
    _op("log_sigmoid(x)",                  rules.same_type,   *ACTIVATES),
    _op("dropout(x; p, training=False)",   rules.same_type,   ELEMENTWISE, RANDOM),
    _op("feature_dropout(x; p, training=False)", rules.same_type, ELEMENTWISE, RANDOM),
    _op("alpha_dropout(x; p, training=False)", rules.same_type, ELEMENTWISE, RANDOM),

    # Functions of one value.
    _op("exp(x)",         rules.to_float,  ELEMENTWISE),
    _op("expm1(x)",       rules.to_float,  ELEMENTWISE),
    _op("log(x)",         rules.to_float,  ELEMENTWISE),
    _op("log2(x)",        rules.to_float,  ELEMENTWISE),
    _op("log1p(x)",       rules.to_float,  ELEMENTWISE),
    _op("sqrt(x)",        rules.to_float,  ELEMENTWISE),
    _op("rsqrt(x)",       rules.to_float,  ELEMENTWISE),
    _op("reciprocal(x)",  rules.to_float,  ELEMENTWISE),
    _op("erf(x)",         rules.to_float,  ELEMENTWISE),
    _op("sin(x)",         rules.to_float,  ELEMENTWISE),
    _op("cos(x)",         rules.to_float,  ELEMENTWISE),
    _op("abs(x)",         rules.same_type, ELEMENTWISE),
    _op("neg(x)",         rules.same_type, ELEMENTWISE),
    _op("square(x)",      rules.square,    ELEMENTWISE),
    _op("sign(x)",        rules.same_type, ELEMENTWISE),
    _op("floor(x)",       rules.same_type, ELEMENTWISE),
    _op("ceil(x)",        rules.same_type, ELEMENTWISE),
    _op("round(x)",       rules.same_type, ELEMENTWISE),
    _op("bitwise_not(x)", rules.same_type, ELEMENTWISE),
    _op("logical_not(x)", rules.to_bool,   *COMPARES),
    _op("isnan(x)",       rules.to_bool,   *COMPARES),
    _op("isinf(x)",       rules.to_bool,   *COMPARES),

    # Arithmetic; either operand may be a number.
    _op("add(x, y; alpha=1)",            rules.elementwise, ELEMENTWISE),
    _op("sub(x, y; alpha=1)",            rules.elementwise, ELEMENTWISE),
    _op("mul(x, y)",                     rules.elementwise, ELEMENTWISE),
    _op("div(x, y; rounding_mode=None)", rules.div,         ELEMENTWISE),
    _op("remainder(x, y)",               rules.elementwise, ELEMENTWISE),
    _op("pow(x, y)",                     rules.elementwise, ELEMENTWISE),
    _op("maximum(x, y)",                 rules.elementwise, ELEMENTWISE),
    _op("minimum(x, y)",                 rules.elementwise, ELEMENTWISE),

    # Comparison, logic and choice.
    _op("eq(x, y)",               rules.compare,     *COMPARES),
    _op("ne(x, y)",               rules.compare,     *COMPARES),
    _op("lt(x, y)",               rules.compare,     *COMPARES),
    _op("le(x, y)",               rules.compare,     *COMPARES),
    _op("gt(x, y)",               rules.compare,     *COMPARES),
    _op("ge(x, y)",               rules.compare,     *COMPARES),
    _op("logical_and(x, y)",      rules.compare,     *COMPARES),
    _op("logical_or(x, y)",       rules.compare,     *COMPARES),
    _op("logical_xor(x, y)",      rules.compare,     *COMPARES),
    _op("bitwise_and(x, y)",      rules.elementwise, ELEMENTWISE),
    _op("bitwise_or(x, y)",       rules.elementwise, ELEMENTWISE),
    _op("bitwise_xor(x, y)",      rules.elementwise, ELEMENTWISE),
    _op("where(condition, x, y)", rules.where,       ELEMENTWISE),

    # Joining and taking apart.
    _op("cat(xs*; dim=0)",         shapes.cat,     *MOVES),
    _op("stack(xs*; dim=0)",       shapes.stack,   *MOVES),
    _op("chunk(x; chunks, dim=0)", shapes.chunk,   CONTAINER, *MOVES, VIEW),
    _op("split(x; size, dim=0)",   shapes.split,   CONTAINER, *MOVES, VIEW),
    _op("unbind(x; dim=0)",        shapes.unbind,  CONTAINER, *MOVES, VIEW),
    _op("getitem(x; index)",       shapes.getitem, *MOVES, VIEW),

    # Pools.
    _op("max_pool1d(x; kernel_size, stride, padding=(0,), dilation=(1,), ceil_mode=False)",
        rules.pool, POOL, SAME_QPARAMS),
    _op("max_pool2d(x; kernel_size, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False)",
        rules.pool, POOL, SAME_QPARAMS),
    _op("max_pool3d(x; kernel_size, stride, padding=(0, 0, 0), dilation=(1, 1, 1),"
        " ceil_mode=False)", rules.pool, POOL, SAME_QPARAMS),
    _op("avg_pool1d(x; kernel_size, stride, padding=(0,), ceil_mode=False, count_include_pad=True)",
        rules.pool, POOL, CONVEX),
    _op("avg_pool2d(x; kernel_size, stride, padding=(0, 0), ceil_mode=False,"
        " count_include_pad=True, divisor_override=None)", rules.pool, POOL, CONVEX),
    _op("avg_pool3d(x; kernel_size, stride, padding=(0, 0, 0), ceil_mode=False,"
        " count_include_pad=True, divisor_override=None)", rules.pool, POOL, CONVEX),
    _op("adaptive_max_pool1d(x; output_size)", rules.adaptive_pool, POOL, SAME_QPARAMS),
    _op("adaptive_max_pool2d(x; output_size)", rules.adaptive_pool, POOL, SAME_QPARAMS),
    _op("adaptive_max_pool3d(x; output_size)", rules.adaptive_pool, POOL, SAME_QPARAMS),
    _op("adaptive_avg_pool1d(x; output_size)", rules.adaptive_pool, POOL, CONVEX),
    _op("adaptive_avg_pool2d(x; output_size)", rules.adaptive_pool, POOL, CONVEX),
    _op("adaptive_avg_pool3d(x; output_size)", rules.adaptive_pool, POOL, CONVEX),

    # Reductions; dim None means all axes.
    _op("mean(x; dim=None, keepdim=False, dtype=None)", rules.reduce, REDUCTION, CONVEX),
    _op("sum(x; dim=None, keepdim=False, dtype=None)", rules.total, REDUCTION),
    _op("amax(x; dim=None, keepdim=False)",   rules.reduce,          REDUCTION, SAME_QPARAMS),
    _op("amin(x; dim=None, keepdim=False)",   rules.reduce,          REDUCTION, SAME_QPARAMS),
    _op("var(x; dim=None, correction=1, keepdim=False)", rules.reduce, REDUCTION),
    _op("linalg_vector_norm(x; ord=2, dim=None, keepdim=False, dtype=None)",
        rules.reduce, REDUCTION),
    _op("argmax(x; dim=None, keepdim=False)", rules.reduce_to_index, REDUCTION),
    _op("all(x; dim=None, keepdim=False)",    rules.reduce_to_bool,  REDUCTION, COMPARISON),
    _op("any(x; dim=None, keepdim=False)",    rules.reduce_to_bool,  REDUCTION, COMPARISON),
    _op("cumsum(x; dim, dtype=None)",         rules.cumulative),

    # Shapes.
    _op("reshape(x, shape)",                         shapes.reshape,         *MOVES, MAYBE_VIEW),
    _op("flatten(x; start_dim=0, end_dim=-1)",       shapes.flatten,         *MOVES, MAYBE_VIEW),
    _op("unflatten(x, sizes; dim)",                  shapes.unflatten,       *MOVES, MAYBE_VIEW),
    _op("permute(x; dims)",                          shapes.permute,         *MOVES, VIEW),
    _op("squeeze(x; dims)",                          shapes.squeeze,         *MOVES, VIEW),
    _op("unsqueeze(x; dim)",                         shapes.unsqueeze,       *MOVES, VIEW),
    _op("expand(x, shape)",                          shapes.expand,          *MOVES, VIEW),
    _op("repeat(x, repeats)",                        shapes.repeat,          *MOVES),
    _op("contiguous(x; memory_format='contiguous')", rules.same_type,        *MOVES, MAYBE_VIEW),
    _op("pad(x, pad; mode='constant', value=0.0)",   shapes.pad,             *MOVES),
    _op("roll(x; shifts, dims=())",                  rules.same_type,        *MOVES),
    _op("flip(x; dims)",                             rules.same_type,        *MOVES),
    _op("pixel_shuffle(x; factor)",                  shapes.pixel_shuffle,   *MOVES),
    _op("pixel_unshuffle(x; factor)",                shapes.pixel_unshuffle, *MOVES),
    _op("channel_shuffle(x; groups)",                rules.same_type,        *MOVES),
    _op("tril(x; diagonal=0)",                       rules.same_type,        *MOVES),
    _op("triu(x; diagonal=0)",                       rules.same_type,        *MOVES),
    _op("interpolate(x, size?; scale_factor=None, mode='nearest', align_corners=None,"
        " antialias=False)", rules.interpolate, CONVEX, SAME_QPARAMS),

    # Indexing. A `stop` of None means to the end.
    _op("slice(x, start?, stop?; dim=0, step=1)",          shapes.slice_axis,   *MOVES, VIEW),
    _op("select(x, index; dim)",                           shapes.select,       *MOVES, VIEW),
    _op("index(x, indices*)",                              shapes.index,        *MOVES),
    _op("gather(x, index; dim)",                           shapes.gather,       *MOVES),
    _op("index_select(x, index; dim)",                     shapes.index_select, *MOVES),
    _op("slice_scatter(x, source, start?, stop?; dim=0, step=1)", rules.same_type, *MOVES),
    _op("select_scatter(x, source, index; dim)",           rules.same_type,     *MOVES),
    _op("index_put(x, indices*, value; accumulate=False)", rules.same_type),
    _op("index_copy(x, index, source; dim)",               rules.same_type,     *MOVES),
    _op("scatter(x, index, source; dim)",                  rules.same_type),

    # Casts and factories.
    _op("to(x; dtype)",                     rules.with_dtype, ELEMENTWISE, MAYBE_VIEW),
    _op("full(shape, value; dtype)",        rules.full,       FACTORY),
    _op("full_like(x, value; dtype=None)",  rules.with_dtype, FACTORY),
    _op("arange(start, stop, step; dtype)", rules.arange,     FACTORY),

    # Recurrent networks, opaque; `weights` in torch's flat order.
    _op("lstm(x, hx*, weights*; has_biases=True, num_layers=1, dropout=0.0, training=False,"
        " bidirectional=False, batch_first=False)", rules.recurrent, CONTAINER),
    _op("gru(x, hx, weights*; has_biases=True, num_layers=1, dropout=0.0, training=False,"
        " bidirectional=False, batch_first=False)", rules.recurrent, CONTAINER),
    _op("rnn_tanh(x, hx, weights*; has_biases=True, num_layers=1, dropout=0.0, training=False,"
        " bidirectional=False, batch_first=False)", rules.recurrent, CONTAINER),
    _op("rnn_relu(x, hx, weights*; has_biases=True, num_layers=1, dropout=0.0, training=False,"
        " bidirectional=False, batch_first=False)", rules.recurrent, CONTAINER),
    _op("lstm_cell(x, hx*, w_ih, w_hh, b_ih?, b_hh?)",    rules.lstm_cell, CONTAINER),
    _op("gru_cell(x, hx, w_ih, w_hh, b_ih?, b_hh?)",      rules.cell),
    _op("rnn_tanh_cell(x, hx, w_ih, w_hh, b_ih?, b_hh?)", rules.cell),
    _op("rnn_relu_cell(x, hx, w_ih, w_hh, b_ih?, b_hh?)", rules.cell),

    # Python ints at run time.
    _op("size(x; dim)",       rules.size,         PURE_INT),
    _op("int_add(x, y)",      rules.int_add,      PURE_INT),
    _op("int_sub(x, y)",      rules.int_sub,      PURE_INT),
    _op("int_mul(x, y)",      rules.int_mul,      PURE_INT),
    _op("int_floordiv(x, y)", rules.int_floordiv, PURE_INT),
    _op("int_mod(x, y)",      rules.int_mod,      PURE_INT),
    _op("int_neg(x)",         rules.int_neg,      PURE_INT),

    # Boundaries. `type` is the canonical JSON of the value's type.
    _op("input()",                                    rules.unknown,   BOUNDARY),
    _op("leaf(xs*; path, type, call='')",             rules.declared,  BOUNDARY, CONTAINER),
    _op("observe(x, *states; observer, intent=None)", rules.same_type, BOUNDARY),
    _op("choose_qparams(x; qmin, qmax, symmetric=False)", rules.qparams, BOUNDARY,
        CONTAINER),
    _op("quantize(x, scale, zero_point; qmin, qmax, dtype, axis=None, block=None)",
        rules.with_dtype, BOUNDARY),
    _op("dequantize(x, scale, zero_point; dtype, axis=None, block=None)",
        rules.with_dtype, BOUNDARY),
    # integers of four bits, two to a byte
    _op("unpack_nibbles(x; width)",                   rules.unpacked,  BOUNDARY),
)
# fmt: on

OPS: Final[Mapping[OpName, Op]] = MappingProxyType({row.name: row for row in _ROWS})
"""Every operator by its name."""


def op_of(node: Node) -> Op | None:
    """The node's row; None for a foreign call or a kernel."""
    return OPS.get(node.op)


def is_foreign(node: Node) -> bool:
    """Whether the node calls a torch operator outside the catalogue: `aten.cumprod.default`."""
    return node.op not in OPS and "type" in node.attrs


def is_kernel(node: Node) -> bool:
    """Whether the node calls a kernel of a target: `onednn.qconv2d`."""
    return node.op not in OPS and "type" not in node.attrs


def operand(node: Node, name: str) -> Arg:
    """The operand called `name`; None where it is absent. `*rest` operands come as a tuple."""
    row = OPS[node.op]
    at = row.position(name)
    if at is None:
        raise KeyError(f"{node.op} has no operand {name!r}")
    return node.args[at:] if row.operands[at].rest else node.args[at]


def attr(node: Node, name: str) -> Arg:
    """The attribute called `name`, of any node."""
    return node.attrs[name]


def with_operand(node: Node, name: str, value: Arg) -> Node:
    """The node with another operand in place of `name`; the same object if it is the same one."""
    at = OPS[node.op].position(name)
    if at is None:
        raise KeyError(f"{node.op} has no operand {name!r}")
    return node.with_args((*node.args[:at], value, *node.args[at + 1 :]))


def with_attr(node: Node, name: str, value: Arg) -> Node:
    """The node with another attribute value."""
    return Node(node.id, node.op, node.args, node.attrs.put(name, value), node.origin)


def make_node(op: str, id: NodeId, origin: Origin = UNKNOWN, /, **given: Arg) -> Node:
    """A node of the catalogue from operands and attributes by name, defaults filled in.

    `*rest` operands are given as a tuple. A KeyError names a required one that is missing, a
    TypeError one the op does not have: both are mistakes in the calling code.
    """
    row = OPS[OpName(op)]
    known = {item.name for item in row.operands} | {item.name for item in row.attrs}
    if not known.issuperset(given):
        raise TypeError(f"{row.text} has no {sorted(set(given) - known)}")
    args: tuple[Arg, ...] = ()
    for item in row.operands:
        value = given.get(item.name) if item.optional else given[item.name]
        spread = value if isinstance(value, tuple) else ()
        args = (*args, *spread) if item.rest else (*args, value)
    attrs = FrozenMap({item.name: _filled(item, given) for item in row.attrs})
    return Node(id, row.name, args, attrs, origin)


def _filled(item: Attr, given: Mapping[str, Arg]) -> Arg:
    if item.name in given or isinstance(item.default, Required):
        return given[item.name]
    return item.default


def check_node(node: Node) -> Result[None, Fault]:
    """Whether the node fits its row: all positions, all attributes, references only in operands.

    Foreign calls and kernels have no row here; of them only the attributes are looked at.
    """
    fault = malformed(node)
    return Success(None) if fault is None else Failure(fault)


def malformed(node: Node) -> Fault | None:
    """What `check_node` fails with."""
    row = OPS.get(node.op)
    reason = _misfit(node, row) if row is not None else _ref_in_attrs(node)
    if not reason:
        return None
    remedy = f"the schema is {row.text}" if row is not None else "move it to the operands"
    fault = Fault(FaultKind.MALFORMED_NODE, reason, remedy)
    return fault.located(node.id, node.origin.module, node.origin.source)


def _misfit(node: Node, row: Op) -> str:
    rest = bool(row.operands) and row.operands[-1].rest
    fixed = len(row.operands) - rest
    if len(node.args) < fixed or (len(node.args) > fixed and not rest):
        return f"{row.name} has {len(node.args)} operands, its schema {fixed}"
    for item, arg in zip(row.operands[:fixed], node.args, strict=False):
        if arg is None and not item.optional:
            return f"operand {item.name!r} of {row.name} is missing"
        if item.variadic and not isinstance(arg, tuple):
            return f"operand {item.name!r} of {row.name} is not a tuple"
    if len(node.attrs) != len(row.attrs) or any(a.name not in node.attrs for a in row.attrs):
        return f"{row.name} has attributes {', '.join(node.attrs) or 'none'}"
    return _ref_in_attrs(node)


_PLAIN: Final = (bool, int, float, str, DType, type(None))
"""Types of literals that hold nothing."""


def _ref_in_attrs(node: Node) -> str:
    for name, value in node.attrs.items():
        if not isinstance(value, _PLAIN) and any(True for _ in refs_in(value)):
            return f"attribute {name!r} of {node.op} holds a reference"
    return ""


def shares_qparams(node: Node) -> bool:
    """Whether this very call works on the integers, its value sharing the operand's qparams.

    SAME_QPARAMS says so of the op; interpolate does only by picking neighbours, pad only with
    values of the operand or zero, which every affine range holds.
    """
    row = OPS.get(node.op)
    if row is None or Trait.SAME_QPARAMS not in row.traits:
        return False
    match node.op:
        case "interpolate":
            return node.attrs["mode"] in ("nearest", "nearest-exact")
        case "pad":
            return node.attrs["mode"] != "constant" or node.attrs["value"] == 0
        case _:
            return True


def fixed_qparams(op: Op, qmin: int, qmax: int) -> tuple[float, int] | None:
    """Scale and zero point that cover the op's known range with the integers qmin…qmax.

    The range [low, high) is cut into as many steps as there are integers: sigmoid in uint8 has
    scale 1/256 and zero point 0, tanh in int8 scale 1/128 and zero point 0.
    """
    if op.fixed is None:
        return None
    low, high = op.fixed
    scale = (high - low) / (qmax - qmin + 1)
    return scale, qmin - round(low / scale)
