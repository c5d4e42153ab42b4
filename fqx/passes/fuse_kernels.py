"""`fuse_kernels`: kernels of one program that do in one call what took several; the same bits.

    x -> onednn.linear(q) -> …                 x -> onednn.linear(q | k | v) -> slice -> …
    x -> onednn.linear(k) -> …                                              -> slice -> …
    x -> onednn.linear(v) -> …                                              -> slice -> …

    x -> mul(factor) -> quantize               x -> plain.quantize_scaled(factor)

Every column of an integer product is a sum of its own, so linears that read the same integers with
the same scale are one linear on weights put behind each other, and their results are views of its
result. A dynamic linear takes the range of its input in the call; together they take it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.compare import edits_between
from fqx.ir.diff import rewritten
from fqx.ir.edit import Item
from fqx.ir.fault import Fault
from fqx.ir.graph import OUTPUT, Graph, Use, fresh_id, users, weight_users
from fqx.ir.names import NodeId, OpName, Path, RuleName, Stage
from fqx.ir.node import Node, Origin
from fqx.ir.signature import TensorType, Type
from fqx.ir.weight import Role, Weight
from fqx.kit.frozen import FrozenMap, row
from fqx.kit.result import Result, Success, gather
from fqx.match.pattern import anything, op, stored
from fqx.match.rewrite import rewrite
from fqx.match.rule import Change, Made, Rule, rules
from fqx.match.search import Match, Miss
from fqx.num.tensors import tensor_of, weight_of
from fqx.ops.catalogue import attr, make_node, op_of, operand
from fqx.ops.schema import Trait
from fqx.ops.types import types
from fqx.passes.pipeline import Pass, Rewrite
from fqx.policy.target import Target, target_to_arg

NAME = RuleName("fuse_kernels.linears")
LINEARS = frozenset((OpName("onednn.linear"), OpName("onednn.linear_dynamic")))
SCALED = OpName("plain.quantize_scaled")
_VIEWS = frozenset((Trait.VIEW, Trait.MAYBE_VIEW))
_SPLITTING = frozenset(("reshape", "unflatten", "flatten"))


def fuse_kernels(target: Target) -> Pass:
    """Joins linears that read one value, and multiplications with the quantizer behind them.

    Takes and gives LOWERED graphs; the results are the same bit for bit. Linears are joined where
    nobody else reads their weights and their results go on as views, so that nothing is copied;
    the joined weight lies beside theirs, which go: `attention.query_key_value.weight`. Idempotent
    and portable. Fails with MISSING_PAYLOAD where such a weight is not loaded.
    """
    options: dict[str, Arg] = {"target": target_to_arg(target)}
    return Pass(
        "fuse_kernels",
        FrozenMap(options),
        frozenset({Stage.LOWERED}),
        Stage.LOWERED,
        lambda graph: _fused(graph, target),
        brief=FrozenMap({"target": target.label}),
    )


def _fused(graph: Graph, target: Target) -> Result[Rewrite, Fault]:
    listed = rules(*(rule for rule in (_SCALE,) if _has(target, SCALED)))
    return rewrite(graph, listed, types=types(graph)).bind(
        lambda made: _joined(made.graph).bind(lambda done: _told(graph, done))
    )


def _has(target: Target, kernel: OpName) -> bool:
    return any(item.op == kernel for item in target.kernels)


def _told(before: Graph, after: Graph) -> Result[Rewrite, Fault]:
    def by(item: Item) -> RuleName:
        scaling = isinstance(item, Node) and (item.op == SCALED or item.op == "mul")
        return _SCALE.name if scaling else NAME

    edits = () if after is before else edits_between(before, after, by)
    return rewritten(before, edits).map(lambda made: Rewrite(made.graph, made.diff))


# Multiplications in front of quantizers.


def _scaled(found: Match) -> Made:
    """quantize(mul(x, $factor), s, z) -> quantize_scaled(x, $factor), a factor a column."""
    scale, zero = operand(found.root, "scale"), operand(found.root, "zero_point")
    dtype, factor = attr(found.root, "dtype"), found.weight("factor")
    if not isinstance(scale, float) or not isinstance(zero, int) or not isinstance(dtype, DType):
        return Miss("scale and zero point are not literals", found.root.id)
    kind = found.type_of(found.arg("x"))
    if not isinstance(kind, TensorType) or kind.dtype is not DType.FLOAT32 or not kind.dims:
        return Miss("the value is not known to be float32", found.root.id)
    if factor is None or factor.dtype is not DType.FLOAT32 or factor.shape != kind.dims[-1:]:
        return Miss("the factor is not one float32 for each column", found.root.id)
    attrs = {
        "scale": scale,
        "zero_point": zero,
        "qmin": attr(found.root, "qmin"),
        "qmax": attr(found.root, "qmax"),
        "output": dtype.value,
    }
    args = (found.arg("x"), found.arg("factor"))
    made = Node(found.root.id, SCALED, args, FrozenMap(attrs), found.root.origin)
    return Change(NodeRef(made.id), (made,))


_SCALE = Rule(
    RuleName("fuse_kernels.scale"),
    op("quantize")(
        op("mul")(anything("x"), stored("factor")).named("mul").alone(), anything(), anything()
    ).having(axis=None, block=None),
    _scaled,
)


# Linears that read one value.


def _joined(graph: Graph) -> Result[Graph, Fault]:
    """The graph with every group of linears as one."""
    groups = tuple(_groups(graph))
    if not groups:
        return Success(graph)
    return gather(_made_of(graph, group) for group in groups).map(
        lambda found: _with(graph, tuple(zip(groups, found, strict=True)), types(graph))
    )


def _groups(graph: Graph) -> Iterator[tuple[Node, ...]]:
    """Two linears and more of one kernel, input and attributes, in program order."""
    by_input: dict[tuple[Arg, ...], list[Node]] = {}
    uses, readers, known = users(graph), weight_users(graph), types(graph)
    tied = {path for pair in graph.ties.items() for path in pair}
    for node in graph:
        if node.op not in LINEARS or not _owns(graph, node, readers, tied):
            continue
        if not all(_goes_on_as_view(graph, use, node.id, uses, known) for use in uses[node.id]):
            continue
        x, weight, _, bias = node.args
        assert isinstance(weight, WeightRef)
        width = graph.weights[weight.path].shape[1]
        key = (node.op, x, node.attrs, bias is None, width)
        by_input.setdefault(key, []).append(node)
    yield from (tuple(group) for group in by_input.values() if len(group) > 1)


def _owns(
    graph: Graph, node: Node, readers: Mapping[Path, tuple[Use, ...]], tied: set[Path]
) -> bool:
    """Whether the node alone reads its weight, scales and bias, which have no second name."""
    _, weight, scale, bias = node.args
    if not isinstance(weight, WeightRef) or not isinstance(scale, float | WeightRef):
        return False
    held = [arg for arg in (weight, scale, bias) if arg is not None]
    paths = [arg.path for arg in held if isinstance(arg, WeightRef)]
    refs = all(isinstance(arg, float | WeightRef) for arg in held)
    return refs and all(
        path in graph.weights and path not in tied and len(readers[path]) == 1 for path in paths
    )


def _goes_on_as_view(
    graph: Graph,
    use: Use,
    name: NodeId,
    uses: Mapping[NodeId, tuple[Use, ...]],
    known: Mapping[NodeId, Type],
) -> bool:
    """Whether a reader takes columns of a wider matrix as it takes a matrix of its own."""
    if use.user == OUTPUT:
        return False
    node = graph[use.user]
    row_of = op_of(node)
    if row_of is None or node.op in ("quantize", "as_strided", "contiguous"):
        return False
    if row_of.traits.isdisjoint(_VIEWS):
        return True
    if node.op in _SPLITTING:
        return _keeps_rows(known.get(name), known.get(node.id)) and all(
            later.user != OUTPUT for later in uses[node.id]
        )
    return all(_goes_on_as_view(graph, later, node.id, uses, known) for later in uses[node.id])


def _keeps_rows(before: Type | None, after: Type | None) -> bool:
    """Whether a reshape only splits the last axis, or leaves it alone and joins those before."""
    if not isinstance(before, TensorType) or not isinstance(after, TensorType):
        return False
    if not before.dims or not after.dims or None in before.dims or None in after.dims[:-1]:
        return False
    inner = len(before.dims) - 1
    return before.dims[-1:] == after.dims[-1:] or before.dims[:inner] == after.dims[:inner]


def _made_of(graph: Graph, group: tuple[Node, ...]) -> Result[dict[str, torch.Tensor], Fault]:
    """Weight, scales and bias of the joined linear, by their names."""

    def tensors(at: int) -> Result[tuple[torch.Tensor, ...], Fault]:
        return gather(_tensor(graph, node, at) for node in group)

    places = {"weight": 1, "weight_scale": 2, "bias": 3}
    named = {name: at for name, at in places.items() if group[0].args[at] is not None}
    return gather(tensors(at) for at in named.values()).map(
        lambda found: {
            name: torch.cat(list(parts)) for name, parts in zip(named, found, strict=True)
        }
    )


def _tensor(graph: Graph, node: Node, at: int) -> Result[torch.Tensor, Fault]:
    """An operand; a scale for the whole weight is repeated for each of its rows."""
    held, weight = node.args[at], node.args[1]
    assert isinstance(weight, WeightRef)
    rows = graph.weights[weight.path].shape[0]
    if isinstance(held, WeightRef):
        return tensor_of(graph.weights[held.path]).map(
            lambda tensor: tensor if at == 1 else tensor.reshape(-1).expand(rows)
        )
    return Success(torch.full((rows,), held, dtype=torch.float32))  # type: ignore[arg-type]


def _with(
    graph: Graph,
    found: tuple[tuple[tuple[Node, ...], dict[str, torch.Tensor]], ...],
    known: Mapping[NodeId, Type],
) -> Graph:
    nodes: dict[NodeId, Node] = {}
    before: dict[NodeId, NodeId] = {}
    weights: dict[Path, Weight] = {}
    gone: list[Path] = []
    for group, tensors in found:
        first = group[0]
        owned = [arg.path for node in group for arg in node.args if isinstance(arg, WeightRef)]
        gone += owned
        stem = _stem(graph, group, tensors, frozenset(weights))
        role = graph.weights[owned[0]].role
        for name, tensor in tensors.items():
            held = role if name != "weight_scale" else Role.BUFFER
            weights[Path(f"{stem}.{name}")] = weight_of(tensor, held, share=True)
        refs = tuple(
            WeightRef(Path(f"{stem}.{name}")) if name in tensors else None
            for name in ("weight", "weight_scale", "bias")
        )
        made = fresh_id(graph.nodes, first.id, "joined")
        origin = replace(first.origin, parents=tuple(node.id for node in group))
        nodes[made] = Node(made, first.op, (first.args[0], *refs), first.attrs, origin)
        before[first.id] = made
        nodes.update({node.id: node for node in _slices(graph, group, made, known)})
    order = [new for name in graph.order for new in _placed(name, before)]
    return replace(
        graph,
        nodes=graph.nodes.edit(nodes),
        order=row(order),
        weights=graph.weights.edit(weights, gone),
    )


def _placed(name: NodeId, before: Mapping[NodeId, NodeId]) -> tuple[NodeId, ...]:
    return (before[name], name) if name in before else (name,)


def _slices(
    graph: Graph, group: tuple[Node, ...], joined: NodeId, known: Mapping[NodeId, Type]
) -> Iterator[Node]:
    """Each linear's own columns, under its own name."""
    kind, start = known[group[0].id], 0
    dim = len(kind.dims) - 1 if isinstance(kind, TensorType) and kind.dims else -1
    for node in group:
        weight = node.args[1]
        assert isinstance(weight, WeightRef)
        stop = start + graph.weights[weight.path].shape[0]
        origin = Origin(node.origin.scope, node.origin.call, node.origin.source, (joined,))
        yield make_node(
            "slice", node.id, origin, x=NodeRef(joined), start=start, stop=stop, dim=dim, step=1
        )
        start = stop


def _stem(
    graph: Graph, group: tuple[Node, ...], tensors: Mapping[str, object], taken: frozenset[Path]
) -> str:
    """`layer.query` and `layer.key` give `layer.query_key`."""
    owners = [str(node.args[1].path).rpartition(".")[0] for node in group]  # type: ignore[union-attr]
    scope = owners[0].rpartition(".")[0]
    together = all(owner.rpartition(".")[0] == scope for owner in owners)
    names = [owner.rpartition(".")[2] if together else owner.replace(".", "_") for owner in owners]
    base = "_".join(dict.fromkeys(names)) or "joined"
    stem = f"{scope}.{base}" if together and scope else base
    index, free = 0, stem
    while any(
        Path(f"{free}.{name}") in held
        for name in tensors
        for held in (graph.weights, graph.ties, taken)
    ):
        index += 1
        free = f"{stem}_{index}"
    return free
