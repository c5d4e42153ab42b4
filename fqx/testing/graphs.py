"""Hypothesis strategies that draw graphs straight from the operator catalogue, without tracing.

A draw starts with one or two inputs and grows by rows of `MAKERS`: each looks at a value of the
pool and, where it fits, says which call comes next. Unary elementwise rows of the catalogue are
drawn from their traits, so a new activation is covered the moment it is in the table. Values stay
in the pool, so they get many users; weights of a fitting shape are used again, so they get shared;
what nobody reads is dead code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from hypothesis import strategies as st

from fqx.ir.arg import Arg, DType, NodeRef, Training, WeightRef
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import NodeId, OpName, Path
from fqx.ir.node import Node, Origin
from fqx.ir.show import show
from fqx.ir.signature import Dim, Input, Signature, TensorType, Tree, TupleType, Type, named
from fqx.ir.weight import Role, Weight
from fqx.kit.frozen import FrozenMap
from fqx.num.tensors import weight_of
from fqx.ops.catalogue import OPS, make_node
from fqx.ops.schema import Trait
from fqx.ops.types import infer

BATCH = "batch"


@dataclass(frozen=True, slots=True, repr=False)
class Sample:
    """A drawn graph with inputs for it."""

    graph: Graph
    inputs: tuple[torch.Tensor, ...]

    def __repr__(self) -> str:
        return f"batch {self.inputs[0].shape[0]} through\n{show(self.graph)}"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        # Hypothesis would print a dataclass field by field.
        printer.text(repr(self))


@dataclass(frozen=True, slots=True)
class Call:
    """The next call of a draw: operator, operands and attributes by name."""

    op: str
    values: Mapping[str, Arg]


@dataclass(slots=True)
class Sketch:
    """A graph that grows while it is drawn."""

    draw: st.DrawFn
    torch_seed: torch.Generator
    nodes: list[Node] = field(default_factory=list)
    weights: dict[Path, Weight] = field(default_factory=dict)
    types: dict[NodeId, Type] = field(default_factory=dict)

    def pick(self, *choices: Arg) -> Arg:
        """One of the choices."""
        return self.draw(st.sampled_from(choices))

    def weight(self, *shape: int, positive: bool = False, scale: float = 1.0) -> WeightRef:
        """A new weight, or now and then one of the same shape that is there already."""
        kind = "var" if positive else "w"
        held = [
            path
            for path, weight in self.weights.items()
            if weight.shape == shape and path.startswith(kind)
        ]
        again: bool = bool(held) and self.draw(st.booleans())
        if again:
            return WeightRef(self.draw(st.sampled_from(held)))
        path = Path(f"{kind}{len(self.weights)}")
        tensor = torch.randn(shape, generator=self.torch_seed) * scale
        tensor = tensor.abs() + 0.5 if positive else tensor
        self.weights[path] = weight_of(tensor, Role.PARAMETER)
        return WeightRef(path)

    def others(self, like: TensorType) -> list[NodeId]:
        """Values of exactly this type."""
        return [name for name, held in self.types.items() if held == like]

    def add(self, call: Call) -> NodeId:
        """Append the call; its type comes from the catalogue's own rule."""
        name = NodeId(f"n{len(self.nodes)}")
        node = make_node(call.op, name, Origin(source=f"drawn:{len(self.nodes)}"), **call.values)
        self.nodes.append(node)
        self.types[name] = infer(node, self.lookup)
        return name

    def lookup(self, arg: Arg) -> Type:
        """The type of an operand."""
        match arg:
            case NodeRef(id=name):
                return self.types[name]
            case WeightRef(path=path):
                weight = self.weights[path]
                return TensorType(weight.dtype, weight.shape)
            case _:
                raise TypeError(f"no type for {arg!r}")


Maker: TypeAlias = Callable[[Sketch, NodeRef, tuple[Dim, ...]], Call | None]
"""From a value of the pool and its dims to the next call, or None where it does not fit."""


def _size(dim: Dim) -> int:
    return dim if isinstance(dim, int) else 0


def _conv(rank: int, op: str) -> Maker:
    def make(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
        if len(dims) != rank + 2 or not _size(dims[1]):
            return None
        channels = _size(dims[1])
        kernel = int(sketch.draw(st.integers(1, 3)))
        if any(_size(dim) < kernel for dim in dims[2:]):
            return None
        groups = channels if sketch.draw(st.integers(0, 3)) == 0 else 1
        out = channels if groups > 1 else int(sketch.draw(st.integers(1, 4)))
        shape = (out, channels // groups) if op == "conv" else (channels, out // groups)
        padding = sketch.draw(st.integers(0, kernel // 2))
        values: dict[str, Arg] = {
            "x": x,
            "weight": sketch.weight(*shape, *(kernel,) * rank, scale=0.5),
            "bias": sketch.weight(out) if sketch.draw(st.booleans()) else None,
            "stride": (sketch.draw(st.integers(1, 2)),) * rank,
            "padding": (padding,) * rank,
            "dilation": (1,) * rank,
            "groups": groups,
        }
        if op == "conv_transpose":
            values["output_padding"] = (0,) * rank
        return Call(f"{op}{rank}d", values)

    return make


def _linear(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    if len(dims) < 2 or not _size(dims[-1]):
        return None
    out = int(sketch.draw(st.integers(1, 5)))
    bias = sketch.weight(out) if sketch.draw(st.booleans()) else None
    return Call("linear", {"x": x, "weight": sketch.weight(out, _size(dims[-1])), "bias": bias})


def _batch_norm(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    if len(dims) < 2 or not _size(dims[1]):
        return None
    channels = _size(dims[1])
    affine = sketch.draw(st.booleans())
    return Call(
        "batch_norm",
        {
            "x": x,
            "weight": sketch.weight(channels) if affine else None,
            "bias": sketch.weight(channels) if affine else None,
            "mean": sketch.weight(channels),
            "var": sketch.weight(channels, positive=True),
            "training": False,
            "momentum": 0.1,
            "eps": 1e-5,
        },
    )


def _layer_norm(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    if not dims or _size(dims[-1]) < 2:
        return None
    last = _size(dims[-1])
    return Call(
        "layer_norm",
        {
            "x": x,
            "weight": sketch.weight(last),
            "bias": sketch.weight(last),
            "shape": (last,),
            "eps": 1e-5,
        },
    )


def _group_norm(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    if len(dims) < 3 or not _size(dims[1]):
        return None
    channels = _size(dims[1])
    weight, bias = sketch.weight(channels), sketch.weight(channels)
    return Call("group_norm", {"x": x, "weight": weight, "bias": bias, "groups": 1, "eps": 1e-5})


def _binary(*ops: str) -> Maker:
    def make(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
        op = str(sketch.pick(*ops))
        number: Arg = sketch.draw(st.sampled_from([0.5, 2, -1.5, 3.0]))
        same = sketch.others(TensorType(DType.FLOAT32, dims))
        other: Arg = NodeRef(sketch.draw(st.sampled_from(same)))
        compares = op in ("maximum", "minimum")
        y = other if compares else sketch.pick(number, other, other)
        values: dict[str, Arg] = {"x": x, "y": y}
        if op in ("add", "sub") and sketch.draw(st.integers(0, 4)) == 0:
            values["alpha"] = 2
        return Call(op, values)

    return make


def _cat(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    same = sketch.others(TensorType(DType.FLOAT32, dims))
    chosen = sketch.draw(st.lists(st.sampled_from(same), min_size=1, max_size=2))
    parts: Arg = (x, *(NodeRef(name) for name in chosen))
    if sketch.draw(st.booleans()) and len(dims) > 1:
        return Call("cat", {"xs": parts, "dim": sketch.draw(st.integers(1, len(dims) - 1))})
    return Call("stack", {"xs": parts, "dim": 1}) if len(dims) in (1, 2, 3) else None


def _pool(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    if len(dims) not in (3, 4) or any(_size(dim) < 2 for dim in dims[2:]):
        return None
    rank = len(dims) - 2
    two: Arg = (2,) * rank
    zero: Arg = (0,) * rank
    one: Arg = (1,) * rank
    kind = sketch.draw(st.sampled_from(["max", "avg", "adaptive_avg", "adaptive_max"]))
    if kind == "max":
        return Call(
            f"max_pool{rank}d",
            {
                "x": x,
                "kernel_size": two,
                "stride": two,
                "padding": zero,
                "dilation": one,
                "ceil_mode": False,
            },
        )
    if kind == "avg":
        values: dict[str, Arg] = {"x": x, "kernel_size": two, "stride": one, "padding": zero}
        return Call(f"avg_pool{rank}d", {**values, "ceil_mode": False, "count_include_pad": True})
    return Call(f"{kind}_pool{rank}d", {"x": x, "output_size": one})


def _reduce(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    if len(dims) < 3:
        return None
    op = sketch.draw(st.sampled_from(["mean", "sum", "amax", "amin"]))
    keep = sketch.draw(st.booleans())
    return Call(op, {"x": x, "dim": (len(dims) - 1,), "keepdim": keep})


def _move(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    rank = len(dims)
    match sketch.draw(st.integers(0, 8)):
        case 0 if rank > 1:
            return Call("flatten", {"x": x, "start_dim": 1, "end_dim": rank - 1})
        case 1 if rank > 2:
            order = (0, *reversed(range(1, rank)))
            return Call("permute", {"x": x, "dims": order})
        case 2 if rank < 5:
            return Call("unsqueeze", {"x": x, "dim": rank})
        case 3 if rank > 1 and dims[-1] == 1:
            return Call("squeeze", {"x": x, "dims": (rank - 1,)})
        case 4 if rank == 4:
            pads: Arg = (1, 0, 0, 1)
            return Call("pad", {"x": x, "pad": pads, "mode": "constant", "value": 0.0})
        case 5 if rank > 1:
            return Call("roll", {"x": x, "shifts": (1,), "dims": (rank - 1,)})
        case 6 if rank > 1 and _size(dims[-1]) > 1:
            return Call("slice", {"x": x, "start": 1, "stop": None, "dim": rank - 1, "step": 1})
        case 7 if rank > 2 and _size(dims[1]):
            return Call("select", {"x": x, "index": 0, "dim": 1})
        case 8 if rank == 4 and _size(dims[1]) % 2 == 0 and _size(dims[1]):
            return Call("channel_shuffle", {"x": x, "groups": 2})
        case _:
            return Call("contiguous", {"x": x, "memory_format": "contiguous"})


def _split(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    if len(dims) < 2 or _size(dims[-1]) < 2:
        return None
    whole = sketch.add(Call("chunk", {"x": x, "chunks": 2, "dim": len(dims) - 1}))
    return Call("getitem", {"x": NodeRef(whole), "index": sketch.draw(st.integers(0, 1))})


def _clamp(sketch: Sketch, x: NodeRef, _: tuple[Dim, ...]) -> Call | None:
    low, high = sketch.draw(
        st.sampled_from([(0.0, 6.0), (0, 6), (-1.0, 1.0), (None, 0.5), (0, None)])
    )
    return Call("clamp", {"x": x, "low": low, "high": high})


def _softmax(_: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    return Call("softmax", {"x": x, "dim": len(dims) - 1, "dtype": None}) if dims else None


def _dropout(sketch: Sketch, x: NodeRef, _: tuple[Dim, ...]) -> Call | None:
    training = sketch.pick(False, Training())
    return Call("dropout", {"x": x, "p": 0.5, "training": training})


def _attention(_: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    if len(dims) not in (3, 4):
        return None
    return Call(
        "scaled_dot_product_attention",
        {"q": x, "k": x, "v": x, "mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None,
         "enable_gqa": False},
    )  # fmt: skip


def _masked_attention(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
    """An attention under a causal, boolean or float mask; some queries may see no key at all."""
    call = _attention(sketch, x, dims)
    if call is None:
        return None
    kind = sketch.pick("causal", "bool", "float")
    if kind == "causal":
        return Call(call.op, {**call.values, "is_causal": True})
    scores = sketch.weight(_size(dims[-2]), _size(dims[-2]))
    term = Call("gt", {"x": scores, "y": 0.5}) if kind == "bool" else Call("abs", {"x": scores})
    return Call(call.op, {**call.values, "mask": NodeRef(sketch.add(term))})


def _recurrent(op: str, gates: int) -> Maker:
    """A layer over the values, its states taken out of them too; and what is read of it."""

    def make(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
        if len(dims) < 3:
            return None
        if len(dims) > 3:
            x = NodeRef(
                sketch.add(Call("flatten", {"x": x, "start_dim": 1, "end_dim": len(dims) - 2}))
            )
        first, both, biased = (sketch.draw(st.booleans()) for _ in range(3))
        layers, sides = sketch.draw(st.integers(1, 2)), 2 if both else 1
        hidden, width = 3, _size(dims[-1])
        weights: list[Arg] = []
        for layer in range(layers):
            taken = hidden * sides if layer else width
            for _ in range(sides):
                weights += [sketch.weight(gates * hidden, size) for size in (taken, hidden)]
                weights += [sketch.weight(gates * hidden) for _ in range(2 * biased)]
        batch = sketch.add(Call("size", {"x": x, "dim": 0 if first else 1}))
        start = sketch.weight(layers * sides, 1, hidden)
        shape = (layers * sides, NodeRef(batch), hidden)
        state = NodeRef(sketch.add(Call("expand", {"x": start, "shape": shape})))
        layer_call = {
            "x": x, "hx": (state, state) if op == "lstm" else state, "weights": tuple(weights),
            "has_biases": biased, "num_layers": layers, "bidirectional": both,
            "batch_first": first,
        }  # fmt: skip
        made = sketch.add(Call(op, layer_call))
        index = sketch.draw(st.integers(0, 2 if op == "lstm" else 1))
        return Call("getitem", {"x": NodeRef(made), "index": index})

    return make


def _cell(op: str, gates: int) -> Maker:
    def make(sketch: Sketch, x: NodeRef, dims: tuple[Dim, ...]) -> Call | None:
        if len(dims) < 2:
            return None
        for _ in dims[2:]:
            x = NodeRef(sketch.add(Call("select", {"x": x, "index": 0, "dim": 1})))
        hidden, width = 3, _size(dims[-1])
        batch = sketch.add(Call("size", {"x": x, "dim": 0}))
        shape = (NodeRef(batch), hidden)
        state = NodeRef(sketch.add(Call("expand", {"x": sketch.weight(hidden), "shape": shape})))
        call = Call(
            op,
            {
                "x": x,
                "hx": (state, state) if op == "lstm_cell" else state,
                "w_ih": sketch.weight(gates * hidden, width),
                "w_hh": sketch.weight(gates * hidden, hidden),
                "b_ih": sketch.weight(gates * hidden),
                "b_hh": sketch.weight(gates * hidden),
            },
        )
        if op != "lstm_cell":
            return call
        made = sketch.add(call)
        return Call("getitem", {"x": NodeRef(made), "index": sketch.draw(st.integers(0, 1))})

    return make


def _unary(op: str) -> Maker:
    def make(_: Sketch, x: NodeRef, __: tuple[Dim, ...]) -> Call | None:
        return Call(op, {"x": x})

    return make


WILD = frozenset(
    (
        "exp",
        "expm1",
        "log",
        "log2",
        "log1p",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "sign",
        "floor",
        "ceil",
        "round",
        "square",
        "erf",
        "celu",
        "selu",
    )
)
"""Unary rows that turn ordinary activations into infinities, NaN or steps."""


def unary_rows(tame: bool) -> tuple[str, ...]:
    """Elementwise rows of one operand and no obligatory attribute, read off the catalogue."""
    return tuple(
        sorted(
            op.name
            for op in OPS.values()
            if op.traits & {Trait.ACTIVATION, Trait.ELEMENTWISE}
            and Trait.COMPARISON not in op.traits
            and len(op.operands) == 1
            and _has_defaults(op.name)
            and not (tame and op.name in WILD)
            and op.name not in ("dropout", "feature_dropout", "to", "bitwise_not", "logical_not")
        )
    )


def _has_defaults(name: str) -> bool:
    return all("REQUIRED" not in str(attr.default) for attr in OPS[OpName(name)].attrs)


HEAVY: tuple[Maker, ...] = (
    _conv(1, "conv"),
    _conv(2, "conv"),
    _conv(2, "conv"),
    _conv(3, "conv"),
    _conv(2, "conv_transpose"),
    _linear,
    _batch_norm,
    _batch_norm,
)
LIGHT: tuple[Maker, ...] = (
    _binary("add", "mul"),
    _binary("add", "sub", "mul", "maximum", "minimum"),
    _cat,
    _pool,
    _reduce,
    _move,
    _move,
    _split,
    _clamp,
    _layer_norm,
    _group_norm,
    _softmax,
    _dropout,
    _attention,
)

RECURRENT: tuple[Maker, ...] = tuple(
    make
    for op, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1))
    for make in (_recurrent(op, gates), _cell(f"{op}_cell", gates))
)
"""Recurrent layers and cells, for passes that write them out."""

ATTENTIVE: tuple[Maker, ...] = (_attention, _masked_attention)
"""Attentions, for passes that write them out."""

SHAPES: tuple[tuple[int, ...], ...] = ((2, 4, 4), (4, 5, 3), (3, 6), (5,), (2, 3, 4, 4))
"""Shapes of inputs behind the batch dimension."""


@st.composite
def samples(
    draw: st.DrawFn, tame: bool = True, most: int = 10, given: tuple[Maker, ...] = ()
) -> Sample:
    """A well-formed FLOAT graph of at most `most` calls, and inputs for it.

    The `given` makers are drawn from for the first calls, and as often as all others for the rest.
    `tame` leaves out rows that turn ordinary values into infinities or NaN, which calibration
    rightly refuses.
    """
    sketch = Sketch(draw, torch.Generator().manual_seed(draw(st.integers(0, 2**16))))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=2))
    for index, shape in enumerate(shapes):
        name = NodeId(f"@x{index}")
        sketch.nodes.append(Node(name, OpName("input"), origin=Origin(source=f"drawn:{index}")))
        sketch.types[name] = TensorType(DType.FLOAT32, (named(BATCH), *shape))
    unary = tuple(_unary(op) for op in unary_rows(tame))
    usual = (*HEAVY, *LIGHT, _unary("relu"), _unary("relu"))
    makers = (*usual, *given * (len(usual) // len(given))) if given else usual
    for _ in range(2 if given else 0):
        _grow(sketch, given, given)
    for _ in range(draw(st.integers(1, most))):
        _grow(sketch, makers, unary)
    graph = _finished(sketch, len(shapes))
    batch = draw(st.integers(1, 3))
    inputs = tuple(torch.randn(batch, *shape, generator=sketch.torch_seed) for shape in shapes)
    return Sample(graph, inputs)


def _grow(sketch: Sketch, makers: tuple[Maker, ...], unary: tuple[Maker, ...]) -> None:
    pool = [
        (name, held.dims)
        for name, held in sketch.types.items()
        if isinstance(held, TensorType) and held.dtype is DType.FLOAT32 and held.dims
    ]
    # The newest values come first, so that programs grow long before they grow wide.
    name, dims = sketch.draw(st.sampled_from(pool[::-1]))
    which = sketch.draw(st.integers(0, len(makers) + len(unary) // 3))
    maker = makers[which] if which < len(makers) else sketch.draw(st.sampled_from(unary))
    call = maker(sketch, NodeRef(name), dims)
    if call is not None:
        sketch.add(call)


def _finished(sketch: Sketch, inputs: int) -> Graph:
    values = [name for name, held in sketch.types.items() if isinstance(held, TensorType)]
    used = {name for node in sketch.nodes for name in node.inputs()}
    loose = [name for name in values if name not in used] or values[-1:]
    kept = loose if sketch.draw(st.booleans()) else loose[-1:]
    leaves = tuple(Tree("leaf", NodeRef(name)) for name in kept)
    output = leaves[0] if len(leaves) == 1 else Tree("tuple", items=leaves)
    signature = Signature(
        tuple(
            Input(f"x{index}", NodeId(f"@x{index}"), sketch.types[NodeId(f"@x{index}")])
            for index in range(inputs)
        ),
        Tree("tuple", items=tuple(Tree("leaf", index) for index in range(inputs))),
        Tree("dict"),
        output,
        FrozenMap({BATCH: (1, None)}),
        tuple(f"x{index}" for index in range(inputs)),
    )
    return graph_of(sketch.nodes, sketch.weights, signature)


def ops_in(graphs: Iterable[Graph]) -> frozenset[str]:
    """Names of all operators that occur."""
    return frozenset(node.op for graph in graphs for node in graph)


def is_tuple(held: Type) -> bool:
    """Whether only getitem can take the value apart."""
    return isinstance(held, TupleType)
