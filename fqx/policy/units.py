"""Which operators a target runs as one kernel: the rows of its unit table, and how to find them.

A unit is an anchor and the operators it absorbs. Between its members no value is quantized. The
plan looks for units in float graphs and `lower` in quantized ones; both ask `unit_at`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from fqx.ir.arg import Arg, ArgPath, DType, NodeRef, WeightRef
from fqx.ir.graph import OUTPUT, Graph, Use
from fqx.ir.names import NodeId, OpName
from fqx.ir.node import Node
from fqx.ir.signature import TensorType, TupleType, Type
from fqx.ops.recurrence import at_place, bias_places, is_recurrent, sides_of, weight_places


class Form(Enum):
    """How a unit gives its result."""

    INT8 = "int8"
    FLOAT = "float"


class Mode(Enum):
    """What of a node's operands becomes integers, and when the scales are known.

    `static` and `dynamic` quantize the input and the weight, with scales from calibration or from
    each call's own range; `weight only` and `float16` (weights of half precision) leave the input
    float. `float16 static` rounds operands, weights and results to half precision and computes in
    float32. All but the two static ones give float results.
    """

    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight only"
    FLOAT16 = "float16"
    FLOAT16_STATIC = "float16 static"


class Need(Enum):
    """What a unit asks of its place, beside its operators; the value is the reason for a miss."""

    CONSTANT_WEIGHT = "the weight is computed at run time"
    CONSTANT_BIAS = "the bias is computed at run time"
    FLOAT32 = "the kernel computes in float32 and the model does not"
    SAME_SHAPE = "the operands are not known to have one shape"
    UNSCALED = "the second operand is scaled by alpha"
    NO_NUMBERS = "an operand is a number"
    A_NUMBER = "the second operand is no number"
    NUMBER_BOUNDS = "a bound is a tensor"
    RANK_4 = "the input is not known to have four dimensions"
    RANK_2 = "the input is not known to have two dimensions"
    FREE_ADDEND = "the other operand of the addition is used again"
    UNGROUPED = "the kernel takes no groups"
    PLAIN_PAD = "the padding mode or value has no integer kernel"
    NEAREST = "only the nearest mode keeps the quantized values"
    BILINEAR = "only the nearest and the bilinear mode have an integer kernel"
    EVAL = "batch norm in training mode"
    OWN_STATISTICS = "its statistics are stored ones"
    NORMED_RANK = "the input is not known to have two to five dimensions"
    CHANNELED = "the input is not known to have three dimensions or more"
    MATRICES = "the operands are not known to be matrices or batches of one shape"
    PLAIN_DTYPE = "it is asked for another dtype"
    UNPROJECTED = (
        "the kernel projects no states; decompose_recurrent() writes the layer out in linears"
    )
    UNDROPPED = "values are dropped between its layers"
    COUNTS_PADDING = "qnnpack's kernel counts the padding, and the average does not"
    DIVIDES_ALL = "the divisor is overridden"
    NO_OUTPUT_PADDING = "the kernel takes no output padding"


NEAREST: tuple[str, ...] = ("nearest", "nearest-exact")
"""Modes of interpolation that only repeat values."""


@dataclass(frozen=True, slots=True)
class UnitKind:
    """One row of a unit table.

    `anchor` starts the unit, `absorbs` follow it in order (`add` takes a second activation).
    `int8` are the operand names of the anchor that must be int8 activations, `weight` the operand
    that is a constant int8 tensor (of a recurrence the first of several, see `weight_places`).
    `shares` says that result and inputs have the same qparams (the kernel only moves integers or
    compares them). Without a `kernel` the unit runs as float between dequantize and quantize.
    `channel_axis` is the weight's axis along which scales may differ; None means one scale for the
    whole weight. `asked` units run in float inside or pay nothing by themselves: only a scheme
    with `lone` takes them. A `mode` other than static reads and gives floats: `int8` is empty and
    `outputs` holds FLOAT alone. `qmax` is the greatest integer of an activation where the kernel
    takes fewer than its target.
    """

    name: str
    anchor: OpName
    kernel: OpName | None = None
    absorbs: tuple[OpName, ...] = ()
    int8: tuple[str, ...] = ("x",)
    weight: str | None = None
    outputs: frozenset[Form] = frozenset({Form.INT8})
    shares: bool = False
    needs: frozenset[Need] = frozenset()
    channel_axis: int | None = 0
    asked: bool = False
    mode: Mode = Mode.STATIC
    qmax: int | None = None

    @property
    def adds(self) -> bool:
        """Whether the unit absorbs an addition behind its anchor."""
        return OpName("add") in self.absorbs


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit found in a graph: its nodes, anchor first; `other` is the absorbed add's addend."""

    kind: UnitKind
    nodes: tuple[NodeId, ...]
    other: NodeId | None = None

    @property
    def anchor(self) -> NodeId:
        """The node the unit is named after."""
        return self.nodes[0]

    @property
    def last(self) -> NodeId:
        """The node whose value the unit gives."""
        return self.nodes[-1]


@dataclass(frozen=True, slots=True)
class NoUnit:
    """Why a node starts no unit, or not a longer one."""

    at: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class Place:
    """A graph with the tables that looking for units reads.

    `allows` says whether a node may be a member (a recipe may have taken it out). `types` may lack
    nodes; what a unit needs to know of those it does not get.
    """

    graph: Graph
    users: Mapping[NodeId, tuple[Use, ...]]
    position: Mapping[NodeId, int]
    types: Mapping[NodeId, Type]
    allows: Callable[[NodeId], bool] = field(default=lambda _: True)


def unit_at(
    place: Place, kinds: tuple[UnitKind, ...], anchor: NodeId
) -> tuple[Unit | None, tuple[NoUnit, ...]]:
    """The longest unit that starts at `anchor`, and why longer ones do not.

    The kinds are tried longest first; those of equal length in the table's order.
    """
    node = place.graph[anchor]
    fitting = [kind for kind in kinds if kind.anchor == node.op]
    if not fitting:
        return None, (NoUnit(anchor, f"the target has no kernel for {node.op}"),)
    misses: list[NoUnit] = []
    for kind in sorted(fitting, key=lambda kind: -len(kind.absorbs)):
        found = _grow(place, kind, node)
        if isinstance(found, Unit):
            return found, tuple(misses)
        misses.append(found)
    return None, tuple(misses)


def _grow(place: Place, kind: UnitKind, node: Node) -> Unit | NoUnit:
    if not place.allows(node.id):
        return NoUnit(node.id, "the recipe leaves it float")
    members = [node.id]
    other: NodeId | None = None
    for op in kind.absorbs:
        behind = _only_user(place, members[-1])
        if isinstance(behind, NoUnit):
            return behind
        if behind.op != op:
            return NoUnit(behind.id, f"{behind.op} follows, not {op}")
        if not place.allows(behind.id):
            return NoUnit(behind.id, "the recipe leaves it float")
        if op == "add":
            addend = _addend(members[-1], behind)
            if isinstance(addend, NoUnit):
                return addend
            other = addend
        members.append(behind.id)
    unit = Unit(kind, tuple(members), other)
    for need in sorted(kind.needs, key=lambda need: need.name):
        if not _meets(place, unit, need):
            return NoUnit(node.id, need.value)
    return unit


def _only_user(place: Place, name: NodeId) -> Node | NoUnit:
    uses = place.users[name]
    if len(uses) != 1 or uses[0].user == OUTPUT:
        return NoUnit(name, "its value has another use")
    return place.graph[uses[0].user]


def _addend(ours: NodeId, add: Node) -> NodeId | NoUnit:
    left, right = add.args
    if not isinstance(left, NodeRef) or not isinstance(right, NodeRef):
        return NoUnit(add.id, "the addend is no activation")
    if left.id == right.id:
        return NoUnit(add.id, "a value is added to itself")
    return right.id if left.id == ours else left.id


def _meets(place: Place, unit: Unit, need: Need) -> bool:
    anchor = place.graph[unit.anchor]
    match need:
        case Need.CONSTANT_WEIGHT:
            return all(_is_constant(place, at_place(anchor, at)) for at in weights_of(anchor))
        case Need.CONSTANT_BIAS:
            biases = (at_place(anchor, at) for at in biases_of(anchor))
            return all(arg is None or isinstance(arg, WeightRef) for arg in biases)
        case Need.FLOAT32:
            return _dtype(place, unit.anchor) in (DType.FLOAT32, None)
        case Need.SAME_SHAPE:
            return _same_shape(place, unit)
        case Need.UNSCALED:
            adds = [place.graph[name] for name in unit.nodes if place.graph[name].op == "add"]
            return all(add.attrs.get("alpha") == 1 for add in adds)
        case Need.NO_NUMBERS:
            return all(isinstance(arg, NodeRef) for arg in anchor.args)
        case Need.A_NUMBER:
            return anchor.args[1] is not None and _is_number(anchor.args[1])
        case Need.NUMBER_BOUNDS:
            clamps = [place.graph[name] for name in unit.nodes if place.graph[name].op == "clamp"]
            return all(_is_number(bound) for clamp in clamps for bound in clamp.args[1:])
        case Need.RANK_4:
            return _rank(place, anchor) == 4
        case Need.RANK_2:
            return _rank(place, anchor) == 2
        case Need.FREE_ADDEND:
            return _free_addend(place, unit)
        case Need.UNGROUPED:
            return anchor.attrs.get("groups") == 1
        case Need.PLAIN_PAD:
            return anchor.attrs.get("mode") == "constant" and anchor.attrs.get("value") in (
                None,
                0,
                0.0,
            )
        case Need.NEAREST:
            return anchor.attrs.get("mode") in NEAREST
        case Need.BILINEAR:
            plain = anchor.attrs.get("antialias") in (False, None)
            return anchor.attrs.get("mode") == "bilinear" and plain
        case Need.EVAL:
            return anchor.attrs.get("training") is False and None not in anchor.args[3:5]
        case Need.OWN_STATISTICS:
            return anchor.attrs.get("use_input_stats") is True
        case Need.NORMED_RANK:
            return _rank(place, anchor) in (2, 3, 4, 5)
        case Need.CHANNELED:
            return (_rank(place, anchor) or 0) >= 3
        case Need.MATRICES:
            return _batches(place, anchor)
        case Need.PLAIN_DTYPE:
            return anchor.attrs.get("dtype") is None
        case Need.UNPROJECTED:
            sides = sides_of(anchor)
            return sides is not None and all(side.w_hr is None for side in sides)
        case Need.UNDROPPED:
            dropped = anchor.attrs.get("dropout") not in (None, 0, 0.0)
            return not dropped or anchor.attrs.get("training") is False
        case Need.COUNTS_PADDING:
            counts = anchor.attrs.get("count_include_pad") is True
            return counts or not any(_numbers(anchor.attrs.get("padding")))
        case Need.DIVIDES_ALL:
            return anchor.attrs.get("divisor_override") is None
        case Need.NO_OUTPUT_PADDING:
            return not any(_numbers(anchor.attrs.get("output_padding")))


def weights_of(node: Node) -> tuple[ArgPath, ...]:
    """The places of the weights that a unit of this anchor holds in integers or half precision."""
    return weight_places(node) if is_recurrent(node.op) else ((1,),)


def biases_of(node: Node) -> tuple[ArgPath | None, ...]:
    """The places of the biases that go with those weights."""
    return bias_places(node) if is_recurrent(node.op) else ((2,),)


def _is_constant(place: Place, arg: Arg) -> bool:
    """A weight, or in a quantized graph the dequantized one."""
    if isinstance(arg, WeightRef):
        return True
    if not isinstance(arg, NodeRef):
        return False
    return stored_weight(place.graph, place.graph[arg.id]) is not None


def stored_weight(graph: Graph, node: Node) -> WeightRef | None:
    """The weight that a dequantize or a cast reads, two values to a byte or as it is."""
    held = node.args[0] if node.op in ("dequantize", "to") else None
    if isinstance(held, NodeRef) and graph[held.id].op == "unpack_nibbles":
        held = graph[held.id].args[0]
    return held if isinstance(held, WeightRef) else None


def _numbers(arg: Arg) -> tuple[Arg, ...]:
    return arg if isinstance(arg, tuple) else (arg,)


def _is_number(arg: Arg) -> bool:
    return arg is None or (isinstance(arg, (int, float)) and not isinstance(arg, bool))


def _type(place: Place, name: NodeId) -> TensorType | None:
    found = place.types.get(name)
    return found if isinstance(found, TensorType) else None


def _dtype(place: Place, name: NodeId) -> DType | None:
    """The dtype of a value, of a tuple that of its first item."""
    found = place.types.get(name)
    if isinstance(found, TupleType):
        found = found.items[0] if found.items else None
    return found.dtype if isinstance(found, TensorType) else None


def _rank(place: Place, node: Node) -> int | None:
    source = node.args[0]
    found = _type(place, source.id) if isinstance(source, NodeRef) else None
    return len(found.dims) if found and found.dims is not None else None


def _same_shape(place: Place, unit: Unit) -> bool:
    for name in unit.nodes:
        node = place.graph[name]
        if node.op not in ("add", "mul"):
            continue
        sides = [_type(place, arg.id) for arg in node.args if isinstance(arg, NodeRef)]
        if len(sides) != 2 or sides[0] is None or sides[1] is None:
            return False
        dims = sides[0].dims
        if dims is None or None in dims or dims != sides[1].dims:
            return False
    return True


def _batches(place: Place, anchor: Node) -> bool:
    """Whether two operands have the same rank, two or more, and the same leading dimensions."""
    found = [_type(place, arg.id) for arg in anchor.args if isinstance(arg, NodeRef)]
    if len(found) != 2 or found[0] is None or found[1] is None:
        return False
    left, right = found[0].dims, found[1].dims
    if left is None or right is None or len(left) != len(right) or len(left) < 2:
        return False
    return left[:-2] == right[:-2] and None not in left[:-2]


def _free_addend(place: Place, unit: Unit) -> bool:
    """The later of two producers takes the add, and nobody reads the addend behind it."""
    if unit.other is None:
        return True
    add = next(name for name in unit.nodes if place.graph[name].op == "add")
    if place.position[unit.other] > place.position[unit.anchor] and _could_take(place, unit):
        return False
    return all(
        use.user != OUTPUT and place.position[use.user] <= place.position[add]
        for use in place.users[unit.other]
    )


def _could_take(place: Place, unit: Unit) -> bool:
    assert unit.other is not None
    other = _behind_quantization(place, unit.other)
    return other.op == unit.kind.anchor


def _behind_quantization(place: Place, name: NodeId) -> Node:
    """The producer of a value, seen through a dequantize and a quantize."""
    node = place.graph[name]
    while node.op in ("dequantize", "quantize") and isinstance(node.args[0], NodeRef):
        node = place.graph[node.args[0].id]
    return node
