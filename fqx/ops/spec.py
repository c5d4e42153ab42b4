"""What a well-formed graph is, stage by stage.

Every pass's result is checked against the spec of its stage: names are defined once and before
they are used, nodes fit their rows, operands fit each other, and the stage's own rule holds:

    FLOAT, FUSED   no observer, no quantizer, no kernel
    OBSERVED       observers without states; otherwise as FLOAT
    CALIBRATED     observers with states; otherwise as FLOAT
    QUANTIZED      no observer, no kernel, no statistic
    LOWERED        no observer, no statistic
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fqx.ir.arg import Arg, NodeRef, WeightRef, refs_in
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path, Stage
from fqx.ir.node import Node
from fqx.ir.signature import IntType, TensorType, Type
from fqx.ir.weight import Role
from fqx.kit.result import Failure, Result, Success
from fqx.ops.catalogue import OPS, is_kernel, malformed, operand
from fqx.ops.schema import Trait
from fqx.ops.types import Lookup, type_lookup, type_or_misfit


@dataclass(frozen=True, slots=True)
class _Spec:
    """What a stage allows beside catalogue ops, foreign calls and leaves."""

    observers: bool = False
    states: bool = False
    quantizers: bool = False
    kernels: bool = False


_SPECS: Final = MappingProxyType(
    {
        Stage.FLOAT: _Spec(),
        Stage.FUSED: _Spec(),
        Stage.OBSERVED: _Spec(observers=True),
        Stage.CALIBRATED: _Spec(observers=True, states=True),
        Stage.QUANTIZED: _Spec(quantizers=True),
        Stage.LOWERED: _Spec(quantizers=True, kernels=True),
    }
)

_CONTAINERS: Final = frozenset(name for name, row in OPS.items() if Trait.CONTAINER in row.traits)


def check(graph: Graph, stage: Stage) -> Result[None, Fault]:
    """Whether the graph is well formed and of this stage; the first fault in program order.

    Faults: WRONG_STAGE, DUPLICATE_NAME, UNBOUND_NAME, MALFORMED_NODE, TYPE_DISAGREES. Linear in
    the nodes.
    """
    for fault in _faults(graph, stage):
        return Failure(fault)
    return Success(None)


def _faults(graph: Graph, stage: Stage) -> Iterator[Fault]:
    yield from _stage_faults(graph, stage)
    yield from _name_faults(graph)
    yield from _node_faults(graph, _SPECS[stage])
    yield from _boundary_faults(graph)
    for block in graph.blocks.values():
        yield from _faults(block, block.stage)


def _stage_faults(graph: Graph, stage: Stage) -> Iterator[Fault]:
    if graph.stage is not stage:
        reason = f"the graph is at stage {graph.stage.value}, not {stage.value}"
        yield Fault(FaultKind.WRONG_STAGE, reason)
    if _SPECS[stage].states:
        return
    for path, weight in graph.weights.items():
        if weight.role is Role.STATISTIC:
            reason = f"a graph at stage {stage.value} holds the statistic {path}"
            yield Fault(FaultKind.WRONG_STAGE, reason)


def _name_faults(graph: Graph) -> Iterator[Fault]:
    listed = set(graph.order)
    if len(listed) != len(graph.order):
        twice = next(name for name in graph.order if list(graph.order).count(name) > 1)
        yield Fault(FaultKind.DUPLICATE_NAME, "the program order names it twice", at=twice)
    if len(listed) != len(graph.nodes) or any(name not in graph.nodes for name in listed):
        odd = min(listed.symmetric_difference(graph.nodes.keys()))
        yield Fault(FaultKind.UNBOUND_NAME, "nodes and program order do not agree", at=odd)


def _node_faults(graph: Graph, spec: _Spec) -> Iterator[Fault]:
    lookup, known = type_lookup(graph)
    inputs = set(known)
    seen: dict[NodeId, Node] = {}
    for node in graph:
        reason = _misnamed(node, graph, seen, inputs) or _misplaced(node, spec)
        if reason:
            yield _at(node, *reason)
            return
        fault = malformed(node)
        if fault is not None:
            yield fault
        found = type_or_misfit(node, lookup)
        if isinstance(found, str):
            yield _at(node, FaultKind.TYPE_DISAGREES, f"operands do not fit: {found}")
            return
        misfit = _unfit_operands(node, lookup)
        if misfit:
            yield _at(node, FaultKind.TYPE_DISAGREES, misfit)
            return
        if node.id not in inputs:
            known[node.id] = found
        seen[node.id] = node


def _at(node: Node, kind: FaultKind, reason: str) -> Fault:
    return Fault(kind, reason).located(node.id, node.origin.module, node.origin.source)


_Reason = tuple[FaultKind, str] | None


def _misnamed(node: Node, graph: Graph, seen: dict[NodeId, Node], inputs: set[NodeId]) -> _Reason:
    if node.op == "input" and node.id not in inputs:
        return FaultKind.UNBOUND_NAME, "the signature does not know this input"
    if node.op == "leaf" and node.attrs.get("path") not in graph.leaves:
        return FaultKind.UNBOUND_NAME, f"there is no leaf {node.attrs.get('path')!r}"
    for _, ref in node.refs():
        if isinstance(ref, WeightRef):
            if not _is_weight(ref.path, graph):
                return FaultKind.UNBOUND_NAME, f"there is no weight {ref.path}"
        elif ref.id not in seen:
            later = "defined only later" if ref.id in graph.nodes else "not defined"
            return FaultKind.UNBOUND_NAME, f"it uses {ref.id}, which is {later}"
        elif seen[ref.id].op in _CONTAINERS and node.op != "getitem":
            return FaultKind.MALFORMED_NODE, f"only getitem takes the tuple {ref.id} apart"
    return None


def _is_weight(path: Path, graph: Graph) -> bool:
    return path in graph.weights or graph.ties.get(path) in graph.weights


def _misplaced(node: Node, spec: _Spec) -> _Reason:
    allowed = True
    if node.op == "observe":
        allowed = spec.observers and (spec.states or len(node.args) == 1)
    elif node.op in ("choose_qparams", "quantize", "dequantize", "unpack_nibbles"):
        allowed = spec.quantizers
    elif node.op not in OPS and is_kernel(node):
        allowed = spec.kernels
    return None if allowed else (FaultKind.WRONG_STAGE, f"{node.op} does not belong to the stage")


def _boundary_faults(graph: Graph) -> Iterator[Fault]:
    for item in graph.signature.inputs:
        if item.node is not None and item.node not in graph.nodes:
            yield Fault(FaultKind.UNBOUND_NAME, f"input {item.name} has no node", at=item.node)
    for leaf in graph.outputs:
        yield from _unbound("the output", leaf, graph)
    for path, value in graph.updates.items():
        yield from _unbound(f"the update of {path}", value, graph)
    for path, first in graph.ties.items():
        if first not in graph.weights:
            yield Fault(FaultKind.UNBOUND_NAME, f"{path} is tied to {first}, which does not exist")


def _unbound(what: str, value: Arg, graph: Graph) -> Iterator[Fault]:
    for _, ref in refs_in(value):
        if isinstance(ref, NodeRef) and ref.id not in graph.nodes:
            yield Fault(FaultKind.UNBOUND_NAME, f"{what} names {ref.id}, which does not exist")
        elif isinstance(ref, WeightRef) and not _is_weight(ref.path, graph):
            yield Fault(FaultKind.UNBOUND_NAME, f"{what} names {ref.path}, which does not exist")


# -- operands that must fit each other, per op; what is not known fits


def _unfit_operands(node: Node, lookup: Lookup) -> str:
    fits = _FITS.get(node.op)
    return fits(node, lookup) if fits is not None else ""


def _tensor(node: Node, name: str, lookup: Lookup) -> TensorType | None:
    arg = operand(node, name)
    found: Type = lookup(arg) if isinstance(arg, NodeRef | WeightRef) else IntType()
    return found if isinstance(found, TensorType) else None


def _fit_weight(node: Node, lookup: Lookup) -> str:
    """A weighted op multiplies equal types over equally many channels."""
    x, weight = _tensor(node, "x", lookup), _tensor(node, "weight", lookup)
    if x is None or weight is None:
        return ""
    if x.dtype is not weight.dtype:
        return f"{node.op} of {x.dtype.value} with a weight of {weight.dtype.value}"
    if not x.dims or weight.dims is None:
        return ""
    groups = node.attrs.get("groups") if node.op.startswith("conv") else 1
    at = 1 - len(weight.dims) if node.op.startswith("conv") else -1
    channels = x.dims[at] if -at <= len(x.dims) else None
    rows = weight.dims[0 if "transpose" in node.op else 1] if len(weight.dims) > 1 else None
    if not isinstance(rows, int) or not isinstance(channels, int) or not isinstance(groups, int):
        return ""
    wanted = rows if "transpose" in node.op else rows * groups
    return "" if wanted == channels else f"{channels} channels meet a weight for {wanted}"


def _fit_quantize(node: Node, lookup: Lookup) -> str:
    x = _tensor(node, "x", lookup)
    return "" if x is None or x.dtype.is_float else f"quantize takes {x.dtype.value}"


def _fit_dequantize(node: Node, lookup: Lookup) -> str:
    x = _tensor(node, "x", lookup)
    return "" if x is None or not x.dtype.is_float else f"dequantize takes {x.dtype.value}"


_FITS: Final[Mapping[str, Callable[[Node, Lookup], str]]] = MappingProxyType(
    {
        **{name: _fit_weight for name, row in OPS.items() if Trait.WEIGHTED in row.traits},
        "quantize": _fit_quantize,
        "dequantize": _fit_dequantize,
    }
)
