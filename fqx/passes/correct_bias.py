"""`correct_bias`: take out of every quantized layer the error it makes on average.

    y = w·x + b       b' = b + E[y of the float program] - E[y of the quantized program]

per output channel, over the batches (Nagel et al. 2019, eq. 17, the expectations measured). Layers
are corrected in program order, each behind corrected ones, since a correction changes what all
layers behind it read; so the batches are read once for the float program and once for every layer.
Sums are in float64, the new bias is rounded once to its own type.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, TypeAlias

import torch
from torch.utils._pytree import tree_map

from fqx.ir.arg import DType, Json, NodeRef, WeightRef
from fqx.ir.compare import edits_between
from fqx.ir.diff import rewritten
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph, weight_users
from fqx.ir.names import NodeId, Path, RuleName, Stage
from fqx.ir.node import Node
from fqx.ir.weight import Role, Weight
from fqx.kit.progress import track
from fqx.kit.result import Failure, Result, Success, fold
from fqx.num.tensors import tensor_of, torch_dtype, weight_of
from fqx.ops.catalogue import operand, with_operand
from fqx.passes.calibrate import Inputs, machine, run_batch
from fqx.passes.execute import Leaves, Program, prepare
from fqx.passes.fuse_norms import RANKS
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite
from fqx.policy.units import stored_weight

NAME = RuleName("correct_bias")


@dataclass(frozen=True, slots=True)
class Corrected:
    """Of every corrected layer the largest mean error of a channel, as it was found."""

    batches: int
    layers: Mapping[NodeId, float]
    machine: Mapping[str, Json] = field(default_factory=dict)

    kind = "correction"

    def to_json(self) -> Json:
        """Batches, machine, and the layers with their errors."""
        return {
            "batches": self.batches,
            "machine": dict(self.machine),
            "layers": {str(name): error for name, error in self.layers.items()},
        }

    def __repr__(self) -> str:
        return f"Corrected({self.batches} batches, {len(self.layers)} layers)"


def correct_bias(
    reference: Graph,
    batches: Iterable[object],
    inputs: Inputs | None = None,
    progress: bool = True,
    leaves: Leaves | None = None,
) -> Pass:
    """Shift the biases of quantized layers until each gives the reference's mean on the batches.

    Takes and gives QUANTIZED graphs; layers with weights of half precision count as well.
    `reference` is the float graph it was converted from: the CALIBRATED, OBSERVED or FUSED one of
    the same trail, whose nodes have the same ids. Batches are as in `calibrate`. They are read once
    for every layer, one at a time: a list or a data loader again from its start, what can be read
    only once out of a temporary file.

    Faults: CONFLICTING_PLAN if the reference lacks a quantized layer, EMPTY_CALIBRATION if there
    are no batches, or another number of them when they are read again,
    EMPTY_BATCH, BATCH_DOES_NOT_FIT, NOT_FINITE naming the layer, CALIBRATION_FAILED, INTERRUPTED,
    MISSING_LEAF, MISSING_PAYLOAD, NO_IMPLEMENTATION.
    """

    def rewrite(graph: Graph) -> Result[Rewrite, Fault]:
        with _readings(batches, inputs or _whole) as data:
            return _corrected(graph, reference, data, progress, leaves)

    return Pass(
        NAME, NO_OPTIONS, frozenset({Stage.QUANTIZED}), Stage.QUANTIZED, rewrite, portable=False
    )


def _whole(batch: object) -> object:
    return batch


_Data: TypeAlias = Callable[[], Iterator[object]]
"""Gives the batches from the first one on, each time it is called."""


@contextmanager
def _readings(batches: Iterable[object], pick: Inputs) -> Iterator[_Data]:
    """The batches to be read several times, with no more than one in memory."""
    if not isinstance(batches, Iterator):
        yield lambda: map(pick, batches)
        return
    with tempfile.TemporaryFile() as file:
        for batch in map(pick, batches):
            # of a view the file would get everything it is a view of
            pickle.dump(tree_map(_copied, batch), file, pickle.HIGHEST_PROTOCOL)
        end = file.tell()
        yield lambda: _read(file, end)


def _copied(leaf: object) -> object:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _read(file: IO[bytes], end: int) -> Iterator[object]:
    file.seek(0)
    while file.tell() < end:
        yield pickle.load(file)


def _empty(reason: str) -> Fault:
    return Fault(FaultKind.EMPTY_CALIBRATION, reason, "give the batches of the calibration")


def _corrected(
    graph: Graph,
    reference: Graph,
    data: _Data,
    progress: bool,
    leaves: Leaves | None,
) -> Result[Rewrite, Fault]:
    layers = tuple(node.id for node in graph if is_quantized_layer(graph, node))
    strange = next((name for name in layers if not _is_same_layer(graph, reference, name)), None)
    if strange is not None:
        return Failure(_other_program(graph[strange]))
    try:
        return prepare(reference, leaves).bind(
            lambda program: _means(program, layers, data).bind(
                lambda wanted: (
                    _through(graph, layers, wanted, data, progress, leaves)
                    if wanted.batches
                    else Failure(_empty("there are no batches to measure the mean error on"))
                )
            )
        )
    except KeyboardInterrupt:
        return Failure(
            Fault(
                FaultKind.INTERRUPTED,
                "the correction of biases was interrupted",
                "run the pass again, or go on with the graph before it",
            )
        )


def is_quantized_layer(graph: Graph, node: Node) -> bool:
    """Whether a linear or a convolution reads integers, or half precision, as its weight."""
    weight, bias = (
        operand(node, name) if node.op in RANKS else None for name in ("weight", "bias")
    )
    reader = graph[weight.id] if isinstance(weight, NodeRef) else None
    if reader is None or stored_weight(graph, reader) is None:
        return False
    # a cast may be the model's own; convert's is made for the layer
    ours = reader.op == "dequantize" or reader.origin.parents == (node.id,)
    return ours and (bias is None or isinstance(bias, WeightRef))


def _is_same_layer(graph: Graph, reference: Graph, name: NodeId) -> bool:
    return name in reference and reference[name].op == graph[name].op


def _other_program(node: Node) -> Fault:
    return Fault(
        FaultKind.CONFLICTING_PLAN,
        f"the reference has no {node.op} called {node.id}",
        "give the graph of the same trail that `convert` was given",
        at=node.id,
        module=node.origin.module,
        source=node.origin.source,
    )


@dataclass(frozen=True, slots=True)
class _Means:
    """The mean of every output channel of some layers, over so many batches."""

    of: Mapping[NodeId, torch.Tensor]
    batches: int


@dataclass(slots=True)
class _Mean:
    """The sum of a layer's values by output channel, and of how many."""

    total: torch.Tensor
    count: int

    @property
    def value(self) -> torch.Tensor:
        return self.total / max(self.count, 1)


def by_channel(op: str, value: torch.Tensor) -> torch.Tensor:
    """The value of a layer as float64 [n, channels]; a convolution may be without a batch."""
    from_front = 1 if value.dim() == RANKS[op] else 0
    axis = value.dim() - 1 if op == "linear" else from_front
    return (
        value.to(torch.float64).movedim(axis, -1).flatten(0, -2)
        if value.dim() > 1
        else (value.to(torch.float64)[None])
    )


def _means(program: Program, layers: tuple[NodeId, ...], data: _Data) -> Result[_Means, Fault]:
    """The mean of every output channel of the layers."""
    found: dict[NodeId, _Mean] = {}
    wanted = frozenset(layers)

    def tap(name: NodeId, value: object) -> None:
        if name in wanted and isinstance(value, torch.Tensor):
            rows = by_channel(program.graph[name].op, value)
            was = found.get(name)
            total = rows.sum(0) if was is None else was.total + rows.sum(0)
            found[name] = _Mean(total, rows.shape[0] + (0 if was is None else was.count))

    batches = 0
    for batch in data():
        fault = fold(run_batch(program, batch, batches, tap), lambda _: None, lambda error: error)
        if fault is not None:
            return Failure(fault)
        batches += 1
    return Success(_Means({name: mean.value for name, mean in found.items()}, batches))


def _through(
    graph: Graph,
    layers: tuple[NodeId, ...],
    wanted: _Means,
    data: _Data,
    progress: bool,
    leaves: Leaves | None,
) -> Result[Rewrite, Fault]:
    """Measure and correct layer after layer."""
    made, errors = graph, dict[NodeId, float]()
    for name in track(layers, "correct biases", progress):
        step = _corrected_layer(made, name, wanted, data, leaves)
        fault = fold(step, lambda _: None, lambda error: error)
        if fault is not None:
            return Failure(fault)
        made, errors[name] = step.unwrap()
    evidence = Corrected(wanted.batches, errors, machine())
    edits = edits_between(graph, made, lambda _: NAME)
    return rewritten(graph, edits).map(lambda done: Rewrite(done.graph, done.diff, evidence))


def _corrected_layer(
    graph: Graph,
    name: NodeId,
    wanted: _Means,
    data: _Data,
    leaves: Leaves | None,
) -> Result[tuple[Graph, float], Fault]:
    def shifted(means: _Means) -> Result[tuple[Graph, float], Fault]:
        if means.batches != wanted.batches:
            return Failure(
                _empty(f"there were {wanted.batches} batches, and {means.batches} when read again")
            )
        return _shifted(graph, graph[name], wanted.of[name] - means.of[name])

    return prepare(graph, leaves).bind(lambda program: _means(program, (name,), data)).bind(shifted)


def _shifted(graph: Graph, node: Node, error: torch.Tensor) -> Result[tuple[Graph, float], Fault]:
    if not bool(torch.isfinite(error).all()):
        return Failure(
            Fault(
                FaultKind.NOT_FINITE,
                f"the mean of {node.id} is not finite",
                "look for NaN and infinity in the batches",
            ).located(node.id, node.origin.module, node.origin.source)
        )
    worst = float(error.abs().max()) if error.numel() else 0.0
    held = operand(node, "bias")
    if not isinstance(held, WeightRef):
        made = weight_of(error.to(torch_dtype(_dtype(graph, node))), Role.PARAMETER)
        return Success((_with_bias(graph, node, _new_path(graph, node), made), worst))
    path = graph.ties.get(held.path) or held.path
    was = graph.weights[path]
    return tensor_of(was).map(
        lambda tensor: (_replaced(graph, node, path, was, tensor, error), worst)
    )


def _replaced(
    graph: Graph, node: Node, path: Path, was: Weight, tensor: torch.Tensor, error: torch.Tensor
) -> Graph:
    """The graph with the bias shifted, beside the old one where others read that too."""
    shifted = (tensor.to(torch.float64) + error).to(tensor.dtype)
    made = replace(weight_of(shifted, was.role), persistent=was.persistent)
    made = replace(made, requires_grad=was.requires_grad)
    if made == was:
        return graph
    alone = len(weight_users(graph).get(path, ())) == 1 and path not in graph.updates
    return _with_bias(graph, node, path if alone else _free(graph, node), made)


def _with_bias(graph: Graph, node: Node, path: Path, made: Weight) -> Graph:
    held = operand(node, "bias")
    old = (graph.ties.get(held.path) or held.path) if isinstance(held, WeightRef) else None
    new = node if old == path else with_operand(node, "bias", WeightRef(path))
    return replace(
        graph, nodes=graph.nodes.edit({node.id: new}), weights=graph.weights.put(path, made)
    )


def _dtype(graph: Graph, node: Node) -> DType:
    """The type of a layer's weight as it is computed with."""
    weight = operand(node, "weight")
    assert isinstance(weight, NodeRef)
    dtype = graph[weight.id].attrs["dtype"]
    assert isinstance(dtype, DType)
    return dtype


def _new_path(graph: Graph, node: Node) -> Path:
    """Beside the weight, where the layer is its only reader and nothing is there."""
    weight = operand(node, "weight")
    assert isinstance(weight, NodeRef)
    held = graph[weight.id].args[0]
    if isinstance(held, WeightRef) and held.path.endswith(".weight"):
        beside = Path(held.path.removesuffix("weight") + "bias")
        if beside not in graph.weights and beside not in graph.ties:
            return beside
    return _free(graph, node)


def _free(graph: Graph, node: Node) -> Path:
    stem, index = f"{node.id}.corrected_bias", 0
    path = Path(stem)
    while path in graph.weights or path in graph.ties:
        index += 1
        path = Path(f"{stem}_{index}")
    return path
