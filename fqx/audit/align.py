"""Which values of two programs are the same value: what a comparison compares.

Passes keep ids, and a node made by a pass names the nodes it was made of, so most values are found
by name. A unit that became one node (a convolution with its batch norm, a kernel with its relu)
carries its anchor's id and stands for the unit's last value:

    float    conv ── relu ── pool              quantized    conv ── relu:quantize ── …
    lowered  conv ────────── pool              the kernel conv stands for relu
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.graph import OUTPUT, Graph, Use, users
from fqx.ir.names import NodeId, OpName
from fqx.ir.node import Node

_SCALED = OpName("plain.quantize_scaled")
_INTO = frozenset({OpName("quantize"), OpName("native.quantize"), _SCALED})
_BACK = frozenset({OpName("dequantize"), OpName("native.dequantize")})


@dataclass(frozen=True, slots=True)
class Pair:
    """One value in two programs: its name, and the node that computes it in each."""

    name: NodeId
    a: NodeId
    b: NodeId


@dataclass(frozen=True, slots=True)
class Reading:
    """How integers are read: `(q - zero_point) * scale`, the bounds they are clamped to.

    `scale` and `zero_point` are numbers or references, as in the args of `quantize`.
    """

    scale: Arg
    zero_point: Arg
    qmin: int
    qmax: int
    axis: int | None = None


def aligned(a: Graph, b: Graph) -> tuple[Pair, ...]:
    """The values both programs compute, in the program order of `a`.

    A value that one program quantizes is compared as quantized. A node that only one program has,
    and that alone reads a value both have, belongs to the other program's node of that value,
    unless a third node was made of it alone.
    """
    one, two = _view(a), _view(b)
    found: dict[NodeId, Pair] = {}
    for name in one.values:
        if name in two.values:
            last, at = _last(one, two, name)
            found[at] = Pair(last, at, _last(two, one, name)[1])
    return tuple(found[at] for at in a.order if at in found)


def readings(graph: Graph) -> dict[NodeId, Reading]:
    """How the integers of each node are read; nodes whose values are no integers are left out.

    A quantizer and a kernel say so themselves; what only moves integers keeps what it reads.
    """
    found: dict[NodeId, Reading] = {}
    for node in graph:
        made = _own(node)
        if made is None and _passes_on(node):
            held = (found.get(name) for name in node.inputs())
            made = next((item for item in held if item is not None), None)
            if made is not None and node.op == "plain.shift":
                made = _shifted(made)
        if made is not None:
            found[node.id] = made
    return found


def reads_weight(node: Node) -> bool:
    """Whether a quantizer's operand is a weight."""
    return node.op in _INTO | _BACK and isinstance(node.args[0], WeightRef)


def _is_dynamic(node: Node) -> bool:
    """Whether a quantizer's scale is computed: then it serves one operator, inside its unit."""
    return node.op in _INTO | _BACK and len(node.args) > 1 and isinstance(node.args[1], NodeRef)


def is_inside(graph: Graph, uses: tuple[Use, ...]) -> bool:
    """Whether a value is read by quantizers alone: the inside of a unit, which has not ended."""
    return bool(uses) and all(use.user != OUTPUT and graph[use.user].op in _INTO for use in uses)


def _own(node: Node) -> Reading | None:
    if node.op in _INTO and "qmin" in node.attrs and len(node.args) == 3:
        _, scale, zero_point = node.args
        axis = node.attrs.get("axis")
        return _reading(node, scale, zero_point, axis if isinstance(axis, int) else None)
    if "scale" in node.attrs and "zero_point" in node.attrs and node.op not in _BACK:
        floats = node.attrs.get("output") == "float32"
        return None if floats else _reading(node, node.attrs["scale"], node.attrs["zero_point"])
    return None


def _reading(node: Node, scale: Arg, zero_point: Arg, axis: int | None = None) -> Reading:
    low, high = node.attrs.get("qmin"), node.attrs.get("qmax")
    bounds = (low, high) if isinstance(low, int) and isinstance(high, int) else (0, 255)
    return Reading(scale, zero_point, *bounds, axis)


def _passes_on(node: Node) -> bool:
    return node.op not in _BACK and node.attrs.get("output") != "float32"


def _shifted(held: Reading) -> Reading:
    zero = held.zero_point
    assert isinstance(zero, int), "plain.shift moves integers with one literal zero point"
    return Reading(held.scale, zero + 128, held.qmin + 128, held.qmax + 128)


@dataclass(frozen=True, slots=True)
class _View:
    """A graph by value: the node that gives each value, and what was made of what."""

    graph: Graph
    users: dict[NodeId, tuple[Use, ...]]
    values: dict[NodeId, NodeId]
    names: dict[NodeId, NodeId]
    makers: dict[NodeId, frozenset[NodeId]]

    def has(self, name: NodeId) -> bool:
        return name in self.graph or name in self.values


def _view(graph: Graph) -> _View:
    own, into, back = (dict[NodeId, NodeId]() for _ in range(3))
    makers: dict[NodeId, set[NodeId]] = {}
    for node in graph:
        for parent in node.origin.parents:
            makers.setdefault(parent, set()).add(node.id)
        if node.op == "observe" or reads_weight(node) or _is_dynamic(node):
            continue
        parents = node.origin.parents
        table = into if node.op in _INTO else back if node.op in _BACK else own
        table.setdefault(parents[0] if table is not own and parents else node.id, node.id)
    values = {**back, **own, **into}
    names = {at: name for table in (back, own, into) for name, at in table.items()}
    return _View(
        graph,
        users(graph),
        values,
        names,
        {parent: frozenset(made) for parent, made in makers.items()},
    )


def _last(here: _View, there: _View, name: NodeId) -> tuple[NodeId, NodeId]:
    """The last value of the unit that starts at `name` and is one node in the other program."""
    at = name if name in here.graph else here.values[name]
    mine = frozenset({name, there.values[name]})
    taken = there.graph[there.values[name]].origin.parents
    while here.graph[here.values[name]].op not in _INTO:
        step = _only_user(here, at)
        if step is None:
            break
        label = here.names.get(step, step)
        held = {name, *here.graph[at].origin.parents}
        behind = label == step and held & set(here.graph[step].origin.parents)
        if behind or here.graph[step].op == _SCALED:
            # a pass put it behind the value, as smoothing does; the other program has it nowhere
            break
        # what was made before the programs parted is no heir
        heirs = there.makers.get(label, frozenset()) - here.makers.get(label, frozenset()) - mine
        if there.has(label) or there.has(step) or (heirs and label not in taken):
            break
        name = label
        at = step if step in here.graph else here.values[label]
    return name, here.values[name]


def _only_user(here: _View, at: NodeId) -> NodeId | None:
    found = {use.user for use in here.users[at]}
    found = {n for n in found if n == OUTPUT or here.graph[n].op != OpName("observe")}
    return next(iter(found)) if len(found) == 1 and OUTPUT not in found else None


def weight_readings(graph: Graph) -> Iterator[tuple[WeightRef, Reading]]:
    """The quantized weights of a graph and how their integers are read, in program order.

    The reference program reads them with `dequantize`, a kernel reads scales beside the weight.
    """
    for node in graph:
        for ref, scale in zip(node.args, node.args[1:], strict=False):
            if not isinstance(ref, WeightRef) or not _holds_integers(graph, ref):
                continue
            if not isinstance(scale, (float, WeightRef)):
                continue
            zero = node.args[2] if node.op in _BACK else 0
            yield ref, Reading(scale, zero, -128, 127, _axis(node, scale))


def _axis(node: Node, scale: Arg) -> int | None:
    if node.op in _BACK:
        axis = node.attrs.get("axis")
        return axis if isinstance(axis, int) else None
    transposed = "conv_transpose" in node.op
    return None if isinstance(scale, float) else 1 if transposed else 0


def _holds_integers(graph: Graph, ref: WeightRef) -> bool:
    weight = graph.weights.get(graph.ties.get(ref.path) or ref.path)
    return weight is not None and weight.dtype in (DType.INT8, DType.UINT8)
