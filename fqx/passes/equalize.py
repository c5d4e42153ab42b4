"""`equalize`: level the channels between two layers, without changing one bit of what they compute.

    relu(w1·x + b1) -> w2       relu(w1/s·x + b1/s) -> w2·s

A factor per channel goes through whatever is positively homogeneous, f(s·x) = s·f(x), so a channel
with large weights before and small ones behind can lend some of its range (Nagel et al. 2019,
eq. 9 to 11: s = sqrt(r1 / r2), with r the largest magnitudes of the channel's weights on either
side). Here s is rounded to a power of two. Such a product only moves an exponent, and rounding does
not depend on the exponent: every sum and product on the way is the old one times the factor, to the
bit, so long as none leaves the normal range. Weights are therefore kept between 2^-80 and 2^80; a
float32 activation then has the room from 2^-46 to 2^46.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

import torch

from fqx.ir.arg import DType, Json, NodeRef, WeightRef
from fqx.ir.compare import edits_between
from fqx.ir.diff import rewritten
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph, Use, users, weight_users
from fqx.ir.names import NodeId, Path, RuleName, Stage
from fqx.ir.node import Node
from fqx.ir.signature import TensorType, Type
from fqx.ir.weight import Weight
from fqx.kit.result import Result, gather
from fqx.num.tensors import tensor_of, weight_of
from fqx.ops.catalogue import attr, operand, with_operand
from fqx.ops.types import types
from fqx.passes.fuse_norms import RANKS
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite

NAME = RuleName("equalize")

# Half precision has too few exponents to lend any.
_DTYPES = frozenset((DType.FLOAT32, DType.FLOAT64, DType.BFLOAT16))
_LEAST, _MOST = 2.0**-80, 2.0**80

_ELEMENTWISE = frozenset(("relu", "leaky_relu", "prelu", "abs", "neg", "dropout", "contiguous"))
_SPATIAL = frozenset(
    f"{kind}_pool{rank}d"
    for kind in ("max", "avg", "adaptive_max", "adaptive_avg")
    for rank in (1, 2, 3)
) | frozenset(("feature_dropout", "interpolate"))
_REDUCTIONS = frozenset(("mean", "sum", "amax", "amin"))


@dataclass(frozen=True, slots=True)
class Levelled:
    """What was done between two layers: how many of the channels moved, and at most how far.

    `most` is the largest number of binary places by which the range of a channel moved.
    """

    first: NodeId
    second: NodeId
    channels: int
    moved: int
    most: int


@dataclass(frozen=True, slots=True)
class Equalized:
    """The pairs of layers an `equalize` pass looked at, in program order."""

    pairs: tuple[Levelled, ...]

    kind = "equalization"

    def to_json(self) -> Json:
        """The pairs as plain data."""
        return {
            "pairs": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    "channels": pair.channels,
                    "moved": pair.moved,
                    "most": pair.most,
                }
                for pair in self.pairs
            ]
        }

    def __repr__(self) -> str:
        done = [pair for pair in self.pairs if pair.moved]
        lines = [f"Equalized {len(done)} of {len(self.pairs)} pairs of layers"]
        lines += [
            f"  {p.first} -> {p.second}: {p.moved} of {p.channels} channels, up to 2^{p.most}"
            for p in done[:7]
        ]
        return "\n".join(lines)


def equalize() -> Pass:
    """Evens out the weights of layers that follow each other, bit for bit the same program.

    Takes FLOAT and FUSED graphs; run it behind `fuse`, since a batch norm between two layers stands
    in the way. Layers are convolutions, transposed or not, and linears; between them may stand what
    is positively homogeneous and keeps channels apart. Nobody else may read a value on the way.
    Idempotent and portable. Fails with MISSING_PAYLOAD if a weight is not there.
    """
    return Pass("equalize", NO_OPTIONS, frozenset({Stage.FLOAT, Stage.FUSED}), None, _equalize)


def _equalize(graph: Graph) -> Result[Rewrite, Fault]:
    pairs = tuple(_pairs(graph))
    names = dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second))
    return gather(_layer(graph, graph[name]) for name in names).bind(
        lambda layers: _written(graph, pairs, {layer.node.id: layer for layer in layers})
    )


# Which layers follow each other.


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two layers, the channels between them, and how many inputs of the second one channel is."""

    first: NodeId
    second: NodeId
    channels: int
    spread: int


@dataclass(frozen=True, slots=True)
class _Lane:
    """The axis along which a value has its channels, of so many axes."""

    axis: int
    rank: int


def _pairs(graph: Graph) -> Iterator[_Pair]:
    uses, kinds = users(graph), types(graph)
    for node in graph:
        if _is_layer(graph, node):
            found = _behind(graph, node, uses, kinds)
            if found is not None:
                yield found


def _is_layer(graph: Graph, node: Node) -> bool:
    """Whether the weights of the node are float tensors of the graph that no call changes."""
    if node.op not in RANKS or not isinstance(operand(node, "weight"), WeightRef):
        return False
    held = [operand(node, name) for name in ("weight", "bias")]
    return all(item is None or _may_scale(graph, item) for item in held)


def _may_scale(graph: Graph, held: object) -> bool:
    if not isinstance(held, WeightRef):
        return False
    path = _resolve(graph, held)
    weight = graph.weights[path]
    return weight.dtype in _DTYPES and 0 not in weight.shape and path not in graph.updates


def _resolve(graph: Graph, held: WeightRef) -> Path:
    return graph.ties.get(held.path) or held.path


def _behind(
    graph: Graph,
    first: Node,
    uses: Mapping[NodeId, tuple[Use, ...]],
    kinds: Mapping[NodeId, Type],
) -> _Pair | None:
    """The pair that the layer is the first of, if the way to the next layer is clear."""
    lane, channels = _lane(first, kinds[first.id]), _channels(graph, first)
    node = first
    while lane is not None:
        # who asks for the size only does not see the values
        readers = [use for use in uses[node.id] if _node_op(graph, use) != "size"]
        if len(readers) != 1 or readers[0].user not in graph:
            return None
        reader = graph[readers[0].user]
        # what scales is the first operand of every layer and of all that a factor goes through
        if reader.args[:1] != (NodeRef(node.id),):
            return None
        if _is_layer(graph, reader):
            return _paired(graph, first, reader, lane, channels)
        lane, node = _through(reader, lane, kinds[reader.id]), reader
    return None


def _node_op(graph: Graph, use: Use) -> str:
    return graph[use.user].op if use.user in graph else ""


def _lane(layer: Node, kind: Type) -> _Lane | None:
    """Where a layer's value has its channels; None for a convolution without a batch."""
    rank = _rank(kind)
    if layer.op == "linear":
        return _Lane(rank - 1, rank) if rank else None
    return _Lane(1, rank) if rank == RANKS[layer.op] else None


def _rank(kind: Type) -> int:
    return len(kind.dims) if isinstance(kind, TensorType) and kind.dims is not None else 0


def _through(node: Node, lane: _Lane, kind: Type) -> _Lane | None:
    """Where the channels are behind the node; None if it mixes them or is not homogeneous."""
    if node.op in _ELEMENTWISE:
        return lane
    if node.op in _SPATIAL:
        return lane if lane.axis == 1 and lane.rank > 2 and _fits(node, lane) else None
    if node.op in _REDUCTIONS:
        return _reduced(node, lane, kind)
    if node.op == "flatten":
        start, end = attr(node, "start_dim"), attr(node, "end_dim")
        whole = start == 1 and end in (-1, lane.rank - 1)
        return _Lane(1, 2) if whole and lane.axis == 1 else None
    return None


def _fits(node: Node, lane: _Lane) -> bool:
    """Whether a pool works on all axes behind the channels, no more."""
    return "pool" not in node.op or node.op.endswith(f"{lane.rank - 2}d")


def _reduced(node: Node, lane: _Lane, kind: Type) -> _Lane | None:
    dims = attr(node, "dim")
    listed = dims if isinstance(dims, tuple) else (dims,)
    places = {item % lane.rank for item in listed if isinstance(item, int)}
    casts = node.attrs.get("dtype") is not None
    if casts or len(places) != len(listed) or any(place <= lane.axis for place in places):
        return None
    return _Lane(lane.axis, _rank(kind)) if _rank(kind) > lane.axis else None


def _paired(graph: Graph, first: Node, second: Node, lane: _Lane, channels: int) -> _Pair | None:
    expected = lane.rank - 1 if second.op == "linear" else 1
    fits = second.op == "linear" or lane.rank == RANKS[second.op]
    inputs = _inputs(graph, second)
    if lane.axis != expected or not fits or not channels or inputs % channels:
        return None
    return _Pair(first.id, second.id, channels, inputs // channels)


def _channels(graph: Graph, layer: Node) -> int:
    shape = _shape(graph, layer)
    return shape[1] * groups_of(layer) if _is_transposed(layer) else shape[0]


def _inputs(graph: Graph, layer: Node) -> int:
    shape = _shape(graph, layer)
    return shape[0] if _is_transposed(layer) else shape[1] * groups_of(layer)


def _shape(graph: Graph, layer: Node) -> tuple[int, ...]:
    held = operand(layer, "weight")
    assert isinstance(held, WeightRef)
    return graph.weights[_resolve(graph, held)].shape


def _is_transposed(layer: Node) -> bool:
    return layer.op.startswith("conv_transpose")


def groups_of(layer: Node) -> int:
    """How many groups a layer has; a linear has one."""
    groups = layer.attrs.get("groups")
    return groups if isinstance(groups, int) else 1


# What a layer's weights are along its channels.


@dataclass(slots=True)
class _Layer:
    """A layer with its weights as they are so far; each layer has its own, shared or not."""

    node: Node
    weight: torch.Tensor
    bias: torch.Tensor | None
    is_changed: bool = False

    def by_output(self) -> torch.Tensor:
        """The magnitudes that make each output channel, float64 [channels, n]."""
        weight = self.weight
        if _is_transposed(self.node):
            weight = by_input_channel(weight, groups_of(self.node))
        rows = weight.reshape(weight.shape[0], -1)
        return rows.to(torch.float64).abs()

    def by_input(self) -> torch.Tensor:
        """The magnitudes that each input channel meets, float64 [channels, n]."""
        weight = self.weight
        if not _is_transposed(self.node):
            weight = by_input_channel(weight, groups_of(self.node))
        return weight.reshape(weight.shape[0], -1).to(torch.float64).abs()

    def scale_outputs(self, factors: torch.Tensor) -> None:
        """Multiply every output channel by its factor."""
        weight, groups = self.weight, groups_of(self.node)
        shaped = factors[:, None]
        if _is_transposed(self.node):
            shaped = factors.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
        self._scale(shaped)
        if self.bias is not None:
            self.bias = self.bias * factors.to(self.bias.dtype)

    def scale_inputs(self, factors: torch.Tensor) -> None:
        """Multiply what every input channel meets by its factor."""
        shaped = scaled_inputs(self.node, tuple(self.weight.shape), factors)
        self.weight = self.weight * shaped.to(self.weight.dtype)
        self.is_changed = True

    def _scale(self, shaped: torch.Tensor) -> None:
        spatial = (1,) * (self.weight.dim() - 2)
        self.weight = self.weight * shaped.to(self.weight.dtype).reshape(*shaped.shape, *spatial)
        self.is_changed = True


def scaled_inputs(node: Node, shape: tuple[int, ...], factors: torch.Tensor) -> torch.Tensor:
    """A factor for each input channel, so shaped that they multiply the layer's weight."""
    shaped = factors[:, None]
    if not _is_transposed(node):
        groups = groups_of(node)
        shaped = factors.reshape(groups, -1).repeat_interleave(shape[0] // groups, 0)
    return shaped.reshape(*shaped.shape, *(1,) * (len(shape) - 2))


def by_input_channel(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[groups * m, n, ...] as [groups * n, m, ...]: axis 1 counts within the group of axis 0."""
    parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return parts.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def _layer(graph: Graph, node: Node) -> Result[_Layer, Fault]:
    refs = [operand(node, name) for name in ("weight", "bias")]
    held = [graph.weights[_resolve(graph, ref)] for ref in refs if isinstance(ref, WeightRef)]
    return gather(tensor_of(item) for item in held).map(
        lambda tensors: _Layer(node, tensors[0], tensors[1] if len(tensors) > 1 else None)
    )


# How far each channel moves.


def _levelled(
    pairs: tuple[_Pair, ...], layers: Mapping[NodeId, _Layer]
) -> dict[_Pair, torch.Tensor]:
    """Level pair after pair until all rest; the exponents each moved by, int64 [channels].

    A step makes the largest of what it scales smaller and nothing as large as that, and weights
    stay within bounds, so it ends. A pair is looked at again only if a layer of it changed.
    """
    total = {pair: torch.zeros(pair.channels, dtype=torch.int64) for pair in pairs}
    of_layer: dict[NodeId, list[_Pair]] = {}
    for pair in pairs:
        of_layer.setdefault(pair.first, []).append(pair)
        of_layer.setdefault(pair.second, []).append(pair)
    waiting = dict.fromkeys(pairs)
    while waiting:
        now, waiting = waiting, {}
        for pair in now:
            first, second = layers[pair.first], layers[pair.second]
            places = _places(pair, first, second)
            if not bool(places.any()):
                continue
            total[pair] += places
            first.scale_outputs(power_of_two(-places))
            second.scale_inputs(power_of_two(places).repeat_interleave(pair.spread))
            near = (*of_layer[pair.first], *of_layer[pair.second])
            waiting.update(dict.fromkeys(other for other in near if other != pair))
    return total


def _places(pair: _Pair, first: _Layer, second: _Layer) -> torch.Tensor:
    """log2 sqrt(r1 / r2), rounded; 0 where a channel is dead or would leave the bounds."""
    before = first.by_output()
    behind = second.by_input().reshape(pair.channels, -1)
    one, two = before.amax(1), behind.amax(1)
    usable = (one > 0) & (two > 0) & torch.isfinite(one) & torch.isfinite(two)
    ratio = torch.where(usable, one, 1.0) / torch.where(usable, two, 1.0)
    usable &= torch.isfinite(ratio) & (ratio > 0)
    places = torch.where(usable, half_exponent(ratio), 0)
    if first.bias is not None:
        before = torch.cat([before, first.bias.to(torch.float64).abs()[:, None]], 1)
    usable &= within(before, power_of_two(-places)) & within(behind, power_of_two(places))
    return torch.where(usable, places, 0)


def half_exponent(ratio: torch.Tensor) -> torch.Tensor:
    """log2 sqrt(ratio) rounded, halves towards zero, of finite positive float64; by integers alone.

    ratio = m * 2^e with m in [1/2, 1), so log2(ratio) / 2 lies in [(e - 1) / 2, e / 2), which
    rounds to floor(e / 2) but for an odd power of two, the half.
    """
    mantissa, exponent = torch.frexp(ratio)
    is_half = (mantissa == 0.5) & (exponent % 2 == 0) & (exponent >= 2)
    return exponent.to(torch.int64).div(2, rounding_mode="floor") - is_half.to(torch.int64)


def power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """2^k in float64 of int64 exponents between -1022 and 1023, made of its bits."""
    return ((exponents + 1023) << 52).view(torch.float64)


def within(magnitudes: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Whether all that is not zero is within bounds, now and times the factor."""
    least = torch.where(magnitudes > 0, magnitudes, math.inf).amin(1)
    most = magnitudes.amax(1)
    low, high = torch.minimum(least, least * factors), torch.maximum(most, most * factors)
    return (low >= _LEAST) & (high <= _MOST)


# Writing it down.


def _written(
    graph: Graph, pairs: tuple[_Pair, ...], layers: Mapping[NodeId, _Layer]
) -> Result[Rewrite, Fault]:
    moved = _levelled(pairs, layers)
    evidence = Equalized(tuple(_account(pair, moved[pair]) for pair in pairs))
    draft = _Draft(graph, weight_users(graph))
    for layer in layers.values():
        if layer.is_changed:
            draft.write(layer)
    edits = edits_between(graph, draft.graph_after(), lambda _: NAME)
    return rewritten(graph, edits).map(lambda made: Rewrite(made.graph, made.diff, evidence))


def _account(pair: _Pair, moved: torch.Tensor) -> Levelled:
    most = int(moved.abs().max()) if moved.numel() else 0
    return Levelled(pair.first, pair.second, pair.channels, int(moved.count_nonzero()), most)


@dataclass(slots=True)
class _Draft:
    """The graph under change."""

    graph: Graph
    readers: Mapping[Path, tuple[Use, ...]]
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    weights: dict[Path, Weight] = field(default_factory=dict)

    def write(self, layer: _Layer) -> None:
        """Give the layer its new weights, at the old path where nobody else reads it."""
        node = self._with(layer.node, "weight", layer.weight)
        if layer.bias is not None:
            node = self._with(node, "bias", layer.bias)
        self.nodes[node.id] = node

    def _with(self, node: Node, name: str, tensor: torch.Tensor) -> Node:
        held = operand(node, name)
        assert isinstance(held, WeightRef)
        path = _resolve(self.graph, held)
        was = self.graph.weights[path]
        made = weight_of(
            tensor.detach(),
            was.role,
            persistent=was.persistent,
            requires_grad=was.requires_grad,
            share=True,
        )
        if made == was:
            return node
        alone = len(self.readers.get(path, ())) == 1
        to = path if alone else self._free(f"{node.id}.equalized_{name}")
        self.weights[to] = made
        return node if alone else with_operand(node, name, WeightRef(to))

    def _free(self, stem: str) -> Path:
        names = (Path(f"{stem}_{index}" if index else stem) for index in count())
        return next(
            name
            for name in names
            if not any(name in taken for taken in (self.graph.weights, self.graph.ties))
            and name not in self.weights
        )

    def graph_after(self) -> Graph:
        """The graph with every change; the same object if there was none."""
        if not self.nodes:
            return self.graph
        return replace(
            self.graph,
            nodes=self.graph.nodes.edit(self.nodes),
            weights=self.graph.weights.edit(self.weights, ()),
        )
