"""`lower`: each unit of the reference program becomes one kernel of the target.

    x -> dequantize -> conv2d -> relu -> quantize -> y        x -> onednn.conv2d -> y
         weight -> dequantize ^                            weight ^

Only what the reference program says is looked at, never a plan: a unit is an operator whose
operands come out of `dequantize`, with what it absorbs, up to the `quantize` behind it. Qparams
move into the kernel's attributes and do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

import torch

from fqx.ir.arg import Arg, DType, Json, NodeRef, Ref, WeightRef, map_refs, refs_in
from fqx.ir.compare import edits_between
from fqx.ir.diff import rewritten
from fqx.ir.fault import Fault
from fqx.ir.graph import OUTPUT, Graph, Use, fresh_id, users
from fqx.ir.names import NodeId, OpName, RuleName, Stage
from fqx.ir.node import Node, Origin
from fqx.ir.signature import Border, TensorType, Tree, Type, map_leaves
from fqx.kit.frozen import FrozenMap, Table, row
from fqx.kit.result import Result
from fqx.num.affine import quantize
from fqx.ops.catalogue import OPS, Trait
from fqx.ops.recurrence import LAYERS, at_place, is_recurrent
from fqx.ops.types import types
from fqx.passes.choose import Decision, Offer, choosing, packed_kernel
from fqx.passes.float_units import floated
from fqx.passes.pipeline import Pass, Rewrite
from fqx.policy.costs import Call, Costs, costs_to_arg
from fqx.policy.cut import price, uniform
from fqx.policy.priced import Estimate, Priced
from fqx.policy.selectors import Selector, selector_to_arg
from fqx.policy.target import Target, target_to_arg
from fqx.policy.units import (
    Form,
    Mode,
    Need,
    NoUnit,
    Place,
    Unit,
    UnitKind,
    biases_of,
    stored_weight,
    unit_at,
    weights_of,
)
from fqx.targets.shapes import AVERAGING

NAME = RuleName("lower")
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Lowered:
    """One unit that runs as a kernel: its nodes, the kernel, and the form of its result."""

    anchor: NodeId
    unit: str
    nodes: tuple[NodeId, ...]
    kernel: OpName
    form: Form


@dataclass(frozen=True, slots=True)
class Lowering:
    """What lower did: every unit that became a kernel, and why each other one stays float.

    With a table of costs also what it said: `priced` holds every unit with its candidates.
    """

    target: Target
    units: tuple[Lowered, ...]
    misses: tuple[NoUnit, ...]
    priced: tuple[Priced, ...] = ()
    estimate: Estimate | None = None

    kind = "lowering"

    def to_json(self) -> Json:
        """The lowering as plain data."""
        return {
            "target": self.target.to_json(),
            "label": self.target.label,
            "units": [
                {
                    "anchor": item.anchor,
                    "unit": item.unit,
                    "nodes": list(item.nodes),
                    "kernel": item.kernel,
                    "form": item.form.value,
                }
                for item in self.units
            ],
            "misses": [{"node": miss.at, "why": miss.why} for miss in self.misses],
            "priced": [item.to_json() for item in self.priced],
            "estimate": None if self.estimate is None else self.estimate.to_json(),
        }

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for item in self.units:
            counts[item.kernel] = counts.get(item.kernel, 0) + 1
        top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
        lines = [f"Lowering to {self.target.label}: {len(self.units)} kernels"]
        lines += [f"  {count} × {kernel}" for kernel, count in top]
        lines += [f"  float: {miss.at}: {miss.why}" for miss in self.misses[:3]]
        lines += [f"  float: {item.anchor}: {item}" for item in self.priced if item.floating][:3]
        return "\n".join(lines)


def lower(target: Target, costs: Costs | None = None, kept: Selector | None = None) -> Pass:
    """Replaces every unit the target has a kernel for; the others stay float, with a reason.

    Takes QUANTIZED graphs, gives LOWERED ones; its evidence is a `Lowering`. A unit fed the same
    integers gives the reference unit's within one quantum.

    With `costs` each unit takes its cheapest kernel, and runs in float where the whole program then
    costs less, conversions counted. A unit in float computes the reference program's operators on
    the reference program's weights. Between two units in float no value is rounded: it is clamped
    to the range it had, which moves it by at most half a quantum. Fails with MISSING_PAYLOAD
    where a weight goes back to float that is not loaded. What `kept` takes stays on integers, on
    its cheapest kernel.
    """
    options: dict[str, Arg] = {"target": target_to_arg(target)}
    brief: dict[str, Arg] = {"target": target.label}
    if costs is not None:
        options["costs"] = costs_to_arg(costs)
        brief["costs"] = f"{costs.name} {costs.digest[:12]}"
    if kept is not None:
        options["kept"] = selector_to_arg(kept)
        brief["kept"] = str(kept)
    return Pass(
        "lower",
        FrozenMap(options),
        frozenset({Stage.QUANTIZED}),
        Stage.LOWERED,
        lambda graph: _lower(graph, target, costs, kept),
        brief=FrozenMap(brief),
    )


def _lower(
    graph: Graph, target: Target, costs: Costs | None, kept: Selector | None
) -> Result[Rewrite, Fault]:
    first = _worked(_Shop(graph, target))
    if costs is None:
        return _made(graph, first)
    decision, _ = _decided(first, costs, kept)
    return floated(graph, decision, first.taken).bind(
        lambda done: _made(graph, _priced(done, target, costs, decision))
    )


def decide(
    graph: Graph, target: Target, costs: Costs, kept: Selector | None = None
) -> tuple[Decision, tuple[Call, ...]]:
    """What `lower` with these costs would do, and every call whose price that takes."""
    return _decided(_worked(_Shop(graph, target)), costs, kept)


def _decided(shop: _Shop, costs: Costs, kept: Selector | None) -> tuple[Decision, tuple[Call, ...]]:
    offers = tuple(shop.offers)
    return choosing(shop.source, offers, shop.target, costs, shop.users, shop.types, kept)


def _worked(shop: _Shop) -> _Shop:
    shop.work()
    return shop


def _made(graph: Graph, shop: _Shop) -> Result[Rewrite, Fault]:
    edits = edits_between(graph, shop.graph(), lambda _: NAME)
    return rewritten(graph, edits).map(lambda done: Rewrite(done.graph, done.diff, shop.lowering()))


def _priced(graph: Graph, target: Target, costs: Costs, decision: Decision) -> _Shop:
    """The rewritten graph, lowered as decided."""
    rulings = decision.rulings
    moved = frozenset(name for item in rulings if item.floating for name in item.offer.nodes)
    chosen = {item.offer.anchor: item.chosen.node for item in rulings if not item.offer.mover}
    shop = _Shop(graph, target, moved, chosen)
    shop.priced = tuple(
        Priced(
            item.offer.anchor,
            item.offer.unit,
            item.offer.nodes,
            item.chosen.name,
            tuple((one.name, one.price) for one in item.candidates),
            item.margin,
        )
        for item in rulings
    )
    prices = (price(decision.problem, decision.cut.floating), *uniform(decision.problem))
    whole, int8, floating = ((found or 0) / 1e3 for found in prices)
    shop.estimate = Estimate(costs.name, costs.digest, whole, int8, floating)
    return _worked(shop)


_Operands: TypeAlias = tuple[tuple[Arg, ...], dict[str, Arg]]
"""A kernel's operands and the attributes beside those of its anchor."""


@dataclass(frozen=True, slots=True)
class _Integers:
    """A value before its dequantize: the node, its qparams and the range it was clamped to."""

    node: NodeId
    scale: float
    zero_point: int
    dtype: DType
    qmin: int
    qmax: int

    @property
    def params(self) -> tuple[float, int, DType, int, int]:
        """Everything but the node."""
        return (self.scale, self.zero_point, self.dtype, self.qmin, self.qmax)


@dataclass(slots=True)
class _Shop:
    """A graph while its units are replaced.

    `barred` nodes stay float, `chosen` says which kernel an anchor gets; without it `offers` notes
    what could be chosen among. `borders` are the inputs that are integers, `wraps` what makes
    quantized tensors of them.
    `swaps` holds the new node at an id, `reads` what stands for a value now, `extra` the nodes
    that come right before an id, `late` the units by where they ended, `twins` the nodes
    on integers that take the names of those on floats where these are gone.
    """

    source: Graph
    target: Target
    barred: frozenset[NodeId] = frozenset()
    chosen: Mapping[NodeId, Node | None] | None = None
    users: dict[NodeId, tuple[Use, ...]] = field(init=False)
    position: dict[NodeId, int] = field(init=False)
    types: dict[NodeId, Type] = field(init=False)
    place: Place = field(init=False)
    kernels: frozenset[OpName] = field(init=False)
    borders: dict[NodeId, Border] = field(init=False)
    swaps: dict[NodeId, Node] = field(default_factory=dict)
    reads: dict[NodeId, NodeId] = field(default_factory=dict)
    wraps: dict[NodeId, Node] = field(default_factory=dict)
    extra: dict[NodeId, list[Node]] = field(default_factory=dict)
    late: dict[NodeId, NodeId] = field(default_factory=dict)
    claimed: set[NodeId] = field(default_factory=set)
    taken: dict[NodeId, None] = field(default_factory=dict)
    units: list[Lowered] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    priced: tuple[Priced, ...] = ()
    estimate: Estimate | None = None
    misses: dict[NodeId, str] = field(default_factory=dict)
    twins: dict[NodeId, NodeId] = field(default_factory=dict)
    heirs: set[NodeId] = field(default_factory=set)
    moved: dict[tuple[NodeId, tuple[float, int, DType, int, int]], NodeId | NoUnit] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        graph = self.source
        self.users, self.types = users(graph), types(graph)
        self.position = {name: index for index, name in enumerate(graph.order)}
        self.taken = dict.fromkeys(graph.order)
        self.borders = _integer_inputs(graph)
        self.kernels = frozenset(kernel.op for kernel in self.target.kernels)
        self.place = Place(
            graph,
            self.users,
            self.position,
            self.types,
            lambda name: name not in self.claimed and name not in self.barred,
        )

    # What is there.

    def work(self) -> None:
        """Replace what can be, in program order."""
        if self.target.form == "quantized":
            self._wrap()
        kinds: dict[OpName, tuple[UnitKind, ...]] = {}
        for node in self.source:
            if node.op == "quantize":
                self._move(node)
            elif node.op not in ("dequantize", "input") and node.id not in self.claimed:
                found = kinds.setdefault(node.op, self._kinds(node.op))
                self._anchor(node, tuple(row for row in found if row.mode is self._mode(node)))
        if self.target.form == "quantized":
            self._quantizers()

    def _mode(self, node: Node) -> Mode:
        """What of the node's operands is quantized, and when."""
        x = self._maker(at_place(node, (0,)))
        weight = self._maker(at_place(node, next(iter(weights_of(node)), None)))
        reads = weight is not None and stored_weight(self.source, weight) is not None
        reader = weight.op if weight is not None and reads else ""
        if reader == "to":
            return Mode.FLOAT16
        if x is not None and x.op == "dequantize":
            return Mode.STATIC if isinstance(x.args[1], float) else Mode.DYNAMIC
        return Mode.WEIGHT_ONLY if reader == "dequantize" else Mode.STATIC

    def _maker(self, arg: Arg) -> Node | None:
        """The node that makes an operand."""
        return self.source[arg.id] if isinstance(arg, NodeRef) else None

    def _kinds(self, op: OpName) -> tuple[UnitKind, ...]:
        """Rows to try, longest first; an addend that is read again is copied, not refused."""
        rows = [row for row in self.target.kinds(op) if not row.shares]
        freed = [replace(row, needs=row.needs - {Need.FREE_ADDEND}) for row in rows]
        return tuple(sorted(freed, key=lambda row: -len(row.absorbs)))

    def _anchor(self, node: Node, kinds: tuple[UnitKind, ...]) -> None:
        if node.id in self.barred:
            return
        if not kinds:
            self._miss_if_quantized(node)
            return
        why = ""
        for kind in kinds:
            unit, misses = unit_at(self.place, (kind,), node.id)
            if unit is None:
                why = misses[-1].why if misses else why
                continue
            made = self._kernel(unit)
            if not isinstance(made, NoUnit):
                return
            why = made.why
        if self._reads_integers(node):
            self.misses[node.id] = why

    def _miss_if_quantized(self, node: Node) -> None:
        row = OPS.get(node.op)
        same = row is not None and Trait.SAME_QPARAMS in row.traits
        moves = same or bool(self._movers(node))
        ends = all(
            use.user != OUTPUT and self.source[use.user].op == "quantize"
            for use in self.users[node.id]
        )
        if not moves and self._reads_integers(node) and ends and self.users[node.id]:
            self.misses[node.id] = f"{self.target.label} has no kernel for {node.op}"

    def _reads_integers(self, node: Node) -> bool:
        return any(self._integers(NodeRef(name)) is not None for name in node.inputs())

    def _integers(self, arg: Arg) -> _Integers | None:
        """What an operand is before its dequantize, if one scale and zero point say so."""
        node = self.source.nodes.get(arg.id) if isinstance(arg, NodeRef) else None
        if node is None or node.op != "dequantize" or node.attrs["axis"] is not None:
            return None
        held, scale, zero_point = node.args
        if not isinstance(held, NodeRef) or not isinstance(scale, float):
            return None
        maker = self.source[held.id]
        if not isinstance(zero_point, int):
            return None
        border = self.borders.get(held.id)
        if border is not None:
            ends = (border.dtype, border.qmin, border.qmax)
            return _Integers(held.id, scale, zero_point, *ends)
        if maker.op != "quantize":
            return None
        dtype, qmin, qmax = (maker.attrs[name] for name in ("dtype", "qmin", "qmax"))
        if not (isinstance(dtype, DType) and isinstance(qmin, int) and isinstance(qmax, int)):
            return None
        return _Integers(held.id, scale, zero_point, dtype, qmin, qmax)

    def _result(self, name: NodeId) -> Node | None:
        """The quantize that alone reads a value, if one does."""
        uses = self.users[name]
        if len(uses) != 1 or uses[0].user == OUTPUT:
            return None
        node = self.source[uses[0].user]
        return node if node.op == "quantize" and _quantizer(node) is not None else None

    def _at(self, name: NodeId) -> NodeId:
        """What stands for a value now."""
        return self.reads.get(name, name)

    # Kernels.

    def _kernel(self, unit: Unit) -> Lowered | NoUnit:
        anchor = self.source[unit.anchor]
        if unit.kind.mode is not Mode.STATIC:
            return self._float_kernel(unit)
        behind = self._result(unit.last)
        form = Form.FLOAT if behind is None else Form.INT8
        if form not in unit.kind.outputs or unit.kind.kernel is None:
            why = "its result is read as float" if unit.kind.kernel else "the unit has no kernel"
            return NoUnit(anchor.id, why)
        rank = _rank_wanted(anchor.op)
        if rank is not None and _rank(self.types, anchor.args[0]) != rank:
            return NoUnit(anchor.id, f"its input is not known to have {rank} dimensions")
        draft = self._draft(unit, None if behind is None else _quantizer(behind))
        if isinstance(draft, NoUnit):
            return draft
        self.offers.append(Offer(anchor.id, unit.kind.name, unit.nodes, draft, form))
        draft = self._chosen_kernel(draft)
        self._accept(unit, draft, behind)
        made = Lowered(anchor.id, unit.kind.name, unit.nodes, draft.op, form)
        self.units.append(made)
        return made

    def _chosen_kernel(self, draft: Node) -> Node:
        """The kernel by the costs, or the packed one where a zero point makes the other dear."""
        if self.chosen is None:
            return self._packed(draft)
        found = self.chosen.get(draft.id)
        if found is None:
            return draft
        return replace(draft, op=found.op, attrs=found.attrs)

    def _float_kernel(self, unit: Unit) -> Lowered | NoUnit:
        """The kernel of a unit that reads and gives floats."""
        anchor, kernel = self.source[unit.anchor], unit.kind.kernel
        if kernel is None:
            return NoUnit(anchor.id, "the unit has no kernel")
        rank = _rank_wanted(anchor.op)
        if rank is not None and _rank(self.types, anchor.args[0]) != rank:
            return NoUnit(anchor.id, f"its input is not known to have {rank} dimensions")
        if is_recurrent(anchor.op):
            read = self._recurrent_operands(unit, anchor)
        else:
            read = {
                Mode.DYNAMIC: self._dynamic_operands,
                Mode.WEIGHT_ONLY: self._weight_only_operands,
            }.get(unit.kind.mode, self._half_operands)(unit, anchor)
        if isinstance(read, NoUnit):
            return read
        args, attrs = read
        draft = Node(anchor.id, kernel, args, FrozenMap(attrs), self._origin(unit))
        self._accept(unit, draft, None)
        made = Lowered(anchor.id, unit.kind.name, unit.nodes, kernel, Form.FLOAT)
        self.units.append(made)
        return made

    def _dynamic_operands(self, unit: Unit, anchor: Node) -> _Operands | NoUnit:
        """What stands before the quantizer whose scale is chosen in each call, and its range."""
        chosen = self._chosen(anchor.args[0])
        if chosen is None:
            return NoUnit(anchor.id, "its input is not quantized by the range of each call")
        weight = self._weight(unit.kind, anchor)
        if isinstance(weight, NoUnit):
            return weight
        x, attrs = chosen
        last, acts = self.source[unit.last], unit.last != unit.anchor
        if str(unit.kind.kernel).startswith("native."):
            if (attrs["qmin"], attrs["symmetric"]) != (0, False) or attrs["qmax"] not in (127, 255):
                return NoUnit(anchor.id, "the kernel chooses among 0..255 or 0..127 only")
            attrs |= {"relu": acts, "engine": self.target.engine}
        else:
            attrs["activation"] = last.op if acts else "none"
            attrs["activation_args"] = _activation_args(last) if acts else ()
        return (x, *weight, anchor.args[2]), _float_attrs(anchor, attrs)

    def _chosen(self, arg: Arg) -> tuple[Arg, dict[str, Arg]] | None:
        """dequantize <- quantize <- choose_qparams, all of one value: the value and the range."""
        values = [self.source[arg.id]] if isinstance(arg, NodeRef) else []
        for op in ("dequantize", "quantize"):
            below = values[-1].args[0] if values and values[-1].op == op else None
            if not isinstance(below, NodeRef):
                return None
            values.append(self.source[below.id])
        out, codes, x = values
        item = self.source[codes.args[1].id] if isinstance(codes.args[1], NodeRef) else None
        if out.args[1:] != codes.args[1:] or codes.attrs["dtype"] is not DType.UINT8:
            return None
        pair = item.args[0] if item is not None and item.op == "getitem" else None
        chooser = self.source[pair.id] if isinstance(pair, NodeRef) else None
        if chooser is None or chooser.op != "choose_qparams" or chooser.args != (NodeRef(x.id),):
            return None
        attrs = dict(chooser.attrs.items())
        if (attrs["qmin"], attrs["qmax"]) != (codes.attrs["qmin"], codes.attrs["qmax"]):
            return None
        return NodeRef(self._at(x.id)), attrs

    def _weight_only_operands(self, unit: Unit, anchor: Node) -> _Operands | NoUnit:
        """The integers of the weight, with the scales and zero points of its rows."""
        if anchor.op == "linear":
            weight = self._weight(unit.kind, anchor)
            if isinstance(weight, NoUnit):
                return weight
            return (anchor.args[0], *weight, anchor.args[2]), _float_attrs(anchor)
        ref = anchor.args[1]
        node = self.source[ref.id] if isinstance(ref, NodeRef) else None
        if node is None or node.op != "dequantize" or node.attrs["axis"] != 0:
            return NoUnit(anchor.id, "its table is not quantized by rows")
        held = stored_weight(self.source, node)
        if held is None:
            return NoUnit(anchor.id, Need.CONSTANT_WEIGHT.value)
        below = node.args[0]
        width = self.source[below.id].attrs["width"] if isinstance(below, NodeRef) else None
        args = (anchor.args[0], held, *anchor.args[2:], *node.args[1:])
        return args, _float_attrs(anchor, {"width": width})

    def _half_operands(self, unit: Unit, anchor: Node) -> _Operands | NoUnit:
        """The weight in half precision."""
        held = self._half(anchor, anchor.args[1])
        if isinstance(held, NoUnit):
            return held
        attrs = _float_attrs(anchor, {"relu": unit.last != unit.anchor})
        return (anchor.args[0], held, anchor.args[2]), attrs

    def _half(self, anchor: Node, arg: Arg) -> WeightRef | NoUnit:
        """A stored weight of half precision."""
        node = self._maker(arg)
        held = node.args[0] if node is not None and node.op == "to" else None
        if not isinstance(held, WeightRef) or self._dtype(held) is not DType.FLOAT16:
            return NoUnit(anchor.id, "its weight is not in half precision")
        return held

    def _recurrent_operands(self, unit: Unit, anchor: Node) -> _Operands | NoUnit:
        """Input, states, all weights, their scales where they are integers, and all biases.

        The kernel rounds its input as the program before it does, and the states of each step too.
        """
        x, attrs = anchor.args[0], _layer_attrs(anchor)
        stored = tuple(at_place(anchor, at) for at in weights_of(anchor))
        biases = tuple(at_place(anchor, at) for at in biases_of(anchor))
        if unit.kind.mode is Mode.FLOAT16:
            halves = _all(self._half(anchor, arg) for arg in stored)
            if isinstance(halves, NoUnit):
                return halves
            return (x, anchor.args[1], halves, biases), attrs
        chosen = self._chosen(x)
        if chosen is None:
            return NoUnit(anchor.id, "its input is not quantized by the range of each call")
        x, seen = chosen
        engine = self.target.engine or self.target.name
        tops = (255,) if engine == "qnnpack" else (unit.kind.qmax or 255, 127)
        if (seen["qmin"], seen["symmetric"]) != (0, False) or seen["qmax"] not in tops:
            ends = " or ".join(f"0..{top}" for top in dict.fromkeys(tops))
            return NoUnit(anchor.id, f"the kernel chooses among {ends} only")
        pairs = _all(self._stored(unit.kind, anchor, arg) for arg in stored)
        if isinstance(pairs, NoUnit):
            return pairs
        weights, scales = zip(*pairs, strict=True)
        if anchor.op in LAYERS:
            attrs["reduce_range"] = seen["qmax"] == 127
        return (x, anchor.args[1], weights, scales, biases), {**attrs, "engine": engine}

    def _accept(self, unit: Unit, draft: Node, behind: Node | None) -> None:
        self.swaps[unit.anchor] = draft
        self.claimed.update(unit.nodes)
        for name in unit.nodes[1:]:
            self.reads[name] = unit.anchor
        if behind is not None:
            self.reads[behind.id] = unit.anchor
            self.claimed.add(behind.id)
        if len(unit.nodes) > 1:
            self.late[unit.last] = unit.anchor

    def _draft(self, unit: Unit, out: _Integers | None) -> Node | NoUnit:
        anchor = self.source[unit.anchor]
        if unit.kind.weight is None:
            return self._weightless(unit, out)
        x = self._operand(anchor.args[0], anchor.id)
        if isinstance(x, NoUnit):
            return x
        weight = self._weight(unit.kind, anchor)
        if isinstance(weight, NoUnit):
            return weight
        bias = anchor.args[2]
        attrs = self._attrs(unit, anchor, x, out)
        args: tuple[Arg, ...] = (NodeRef(x.node), *weight, bias)
        if unit.other is not None:
            other = self._operand(NodeRef(unit.other), anchor.id)
            if isinstance(other, NoUnit):
                return other
            if out is None or other.dtype != out.dtype:
                return NoUnit(anchor.id, "the addend has another integer type than the sum")
            args = (*args, NodeRef(other.node))
            attrs["keeps_other"] = True
            attrs |= {"other_scale": other.scale, "other_zero_point": other.zero_point}
        kernel = unit.kind.kernel
        assert kernel is not None
        return Node(anchor.id, kernel, args, FrozenMap(attrs), self._origin(unit))

    def _packed(self, draft: Node) -> Node:
        """The kernel of a packed weight instead, where the pointwise one pays for a zero point.

        It gives the same integers. Where the weight spans more than one pixel and the zero point is
        not 0, the pointwise kernel works its share of every sum out again in each call.
        """
        made = packed_kernel(draft, "onednn")
        if made is None or made.op not in self.kernels or draft.attrs["x_zero_point"] == 0:
            return draft
        weight = draft.args[1]
        assert isinstance(weight, WeightRef)
        return draft if all(size == 1 for size in self._weight_shape(weight)[2:]) else made

    def _weight_shape(self, ref: WeightRef) -> tuple[int, ...]:
        source = self.source
        return source.weights[source.ties.get(ref.path) or ref.path].shape

    def _origin(self, unit: Unit) -> Origin:
        origin = self.source[unit.anchor].origin
        return replace(origin, parents=unit.nodes) if len(unit.nodes) > 1 else origin

    def _operand(self, arg: Arg, at: NodeId) -> _Integers | NoUnit:
        held = self._integers(arg)
        if held is None:
            return NoUnit(at, "an operand is not quantized by one literal scale")
        now = replace(held, node=self._at(held.node))
        if held.dtype is DType.UINT8:
            return now
        if held.dtype is not DType.INT8 or self.target.form != "plain":
            return NoUnit(at, f"the kernel does not take {held.dtype.value} activations")
        return self._shifted(now, held.node, at)

    def _shifted(self, held: _Integers, name: NodeId, at: NodeId) -> _Integers:
        """The same values as uint8: code and zero point 128 higher, which is exact."""
        shift = fresh_id(self.taken, name, "shift")
        self.taken[shift] = None
        node = Node(
            shift,
            OpName("plain.shift"),
            (NodeRef(held.node),),
            FrozenMap(),
            replace(self.source[name].origin, parents=(name,)),
        )
        self.extra.setdefault(at, []).append(node)
        ends = (held.qmin + 128, held.qmax + 128)
        return _Integers(shift, held.scale, held.zero_point + 128, DType.UINT8, *ends)

    def _weight(self, kind: UnitKind, anchor: Node) -> tuple[Arg, Arg] | NoUnit:
        return self._stored(kind, anchor, anchor.args[1])

    def _stored(self, kind: UnitKind, anchor: Node, arg: Arg) -> tuple[Arg, Arg] | NoUnit:
        """The integers of a stored weight, and its scale."""
        node = self._maker(arg)
        if node is None or node.op != "dequantize":
            return NoUnit(anchor.id, "its weight is not quantized")
        weight, scale, zero_point = node.args
        if not isinstance(weight, WeightRef) or not isinstance(scale, (float, WeightRef)):
            return NoUnit(anchor.id, Need.CONSTANT_WEIGHT.value)
        if zero_point != 0 or self._dtype(weight) is not DType.INT8:
            return NoUnit(anchor.id, "the kernel takes symmetric int8 weights only")
        axis = node.attrs["axis"]
        if axis is not None and axis != kind.channel_axis:
            return NoUnit(anchor.id, "the kernel has no scales along that axis of the weight")
        return weight, scale

    def _dtype(self, ref: WeightRef) -> DType | None:
        weight = self.source.weights.get(self.source.ties.get(ref.path) or ref.path)
        return None if weight is None else weight.dtype

    def _attrs(
        self, unit: Unit, anchor: Node, x: _Integers, out: _Integers | None
    ) -> dict[str, Arg]:
        attrs: dict[str, Arg] = dict(anchor.attrs.items())
        last = self.source[unit.last]
        acts = unit.last != unit.anchor and last.op != "add"
        plain, posts = self.target.form == "plain", str(unit.kind.kernel).endswith("_post")
        attrs |= _out_attrs(out)
        if plain or posts or unit.kind.adds:
            attrs |= {"x_scale": x.scale, "x_zero_point": x.zero_point}
        if not plain:
            del attrs["output"]
            attrs["engine"] = self.target.engine
        if posts or (plain and not unit.kind.adds):
            attrs["activation"] = last.op if acts else "none"
            attrs["activation_args"] = _activation_args(last) if acts else ()
        elif not anchor.op.startswith("conv_transpose"):
            attrs["relu"] = acts
        return attrs

    def _weightless(self, unit: Unit, out: _Integers | None) -> Node | NoUnit:
        """A kernel of one or two activations; its other operands stay what they are."""
        anchor, kernel = self.source[unit.anchor], unit.kind.kernel
        assert out is not None
        assert kernel is not None
        if out.dtype is not DType.UINT8:
            return NoUnit(anchor.id, f"the kernel does not give {out.dtype.value}")
        if kernel.endswith(".table"):
            return self._table(unit, kernel, out)
        args, attrs = list(anchor.args), _out_attrs(out)
        for name in unit.kind.int8:
            at = OPS[anchor.op].position(name)
            assert at is not None
            held = self._operand(args[at], anchor.id)
            if isinstance(held, NoUnit):
                return held
            args[at] = NodeRef(held.node)
            if self.target.form == "plain":
                attrs |= {f"{name}_scale": held.scale, f"{name}_zero_point": held.zero_point}
        if self.target.form == "quantized":
            del attrs["output"]
            attrs["engine"] = self.target.engine
        attrs |= _own_attrs(anchor)
        if any("relu" in row.absorbs for row in self.target.kinds(anchor.op)):
            attrs["relu"] = unit.last != unit.anchor
        return Node(anchor.id, kernel, tuple(args), FrozenMap(attrs), self._origin(unit))

    def _table(self, unit: Unit, kernel: OpName, out: _Integers) -> Node | NoUnit:
        """A chain of functions of one activation, with all their other operands and attributes."""
        x = self._operand(self.source[unit.anchor].args[0], unit.anchor)
        if isinstance(x, NoUnit):
            return x
        attrs = {**_out_attrs(out), "x_scale": x.scale, "x_zero_point": x.zero_point}
        if self.target.form == "quantized":
            del attrs["output"]
            attrs["engine"] = self.target.engine
        chain = [self.source[name] for name in unit.nodes]
        attrs["steps"] = tuple((str(node.op), node.args[1:], node.attrs) for node in chain)
        origin = self._origin(unit)
        return Node(unit.anchor, kernel, (NodeRef(x.node),), FrozenMap(attrs), origin)

    # Operators that only move integers.

    def _move(self, node: Node) -> None:
        """dequantize -> movers -> quantize with the same qparams: the movers take the integers."""
        held = _quantizer(node)
        source = node.args[0]
        if held is None or not isinstance(source, NodeRef) or node.id in self.claimed:
            return
        maker = self.source[source.id]
        if maker.op == "dequantize":
            # the same integers again
            same = self._integers(source)
            if same is not None and same.params == held.params:
                self.reads[node.id] = self._at(same.node)
                self.claimed.add(node.id)
            return
        if not self._movers(maker):
            return
        if self.target.form == "quantized" and held.dtype is not DType.UINT8:
            why = f"{self.target.label} has no kernel for {held.dtype.value} activations"
            self.misses.setdefault(maker.id, why)
            return
        found = self._as_integers(source.id, held)
        if isinstance(found, NoUnit):
            if self._reads_integers(maker):
                self.misses.setdefault(maker.id, found.why)
            return
        self.reads[node.id] = found
        self.claimed.add(node.id)

    def _movers(self, node: Node) -> tuple[UnitKind, ...]:
        return tuple(row for row in self.target.kinds(node.op) if row.shares and row.kernel)

    def _as_integers(self, name: NodeId, held: _Integers) -> NodeId | NoUnit:
        """The node that gives a float value's integers, made if it has to be."""
        key = (name, held.params)
        if key not in self.moved:
            self.moved[key] = self._mover(name, held)
        return self.moved[key]

    def _mover(self, name: NodeId, held: _Integers) -> NodeId | NoUnit:
        node = self.source[name]
        if node.op == "dequantize":
            found = self._integers(NodeRef(name))
            if found is None or found.params != held.params:
                return NoUnit(name, "an operand has other qparams than the result")
            return self._at(found.node)
        kinds = self._movers(node)
        if not kinds or name in self.claimed or name in self.barred:
            return NoUnit(name, f"{node.op} computes in float")
        unit, misses = unit_at(self.place, kinds, name)
        if unit is None:
            return NoUnit(name, misses[-1].why)
        first = node.args[0]
        listed = first if isinstance(first, tuple) else (first,)
        inner: list[Arg] = []
        for arg in listed:
            if not isinstance(arg, NodeRef):
                return NoUnit(name, "an operand is no activation")
            below = self._as_integers(arg.id, held)
            if isinstance(below, NoUnit):
                return below
            inner.append(NodeRef(below))
        moved = tuple(inner) if isinstance(first, tuple) else inner[0]
        return self._put_mover(node, unit, moved, held)

    def _put_mover(self, node: Node, unit: Unit, first: Arg, held: _Integers) -> NodeId:
        made = NodeId(fresh_id(self.taken, node.id, "integers"))
        self.taken[made] = None
        args, attrs = _mover_form(node, first, held)
        kernel = unit.kind.kernel
        assert kernel is not None
        if kernel.startswith("plain.") and node.op in AVERAGING:
            attrs = attrs.put("zero_point", held.zero_point)
        origin = replace(node.origin, parents=(node.id,))
        draft = Node(made, kernel, args, attrs, origin)
        self.extra.setdefault(node.id, []).append(draft)
        if node.id not in self.heirs:
            self.offers.append(
                Offer(node.id, unit.kind.name, unit.nodes, draft, Form.INT8, mover=True)
            )
        if node.id not in self.heirs:
            self.heirs.add(node.id)
            self.twins[made] = node.id
        if kernel != node.op:
            form = Form.INT8
            self.units.append(Lowered(node.id, unit.kind.name, unit.nodes, kernel, form))
        return made

    # torch's quantized tensors.

    def _wrap(self) -> None:
        """Plain integers that come in become quantized tensors."""
        for name, border in self.borders.items():
            if border.dtype is DType.UINT8:
                attrs = {"scale": border.scale, "zero_point": border.zero_point}
                made = self._behind(self.source[name], "wrap", attrs)
                self.wraps[name] = made
                self.reads[name] = made.id

    def _unwrap(self, output: Tree, drafts: list[Node]) -> Tree:
        """Quantized tensors that go out become plain integers; the nodes come behind `drafts`."""
        borders = self.source.signature.borders
        outward = {
            border.index
            for border in borders
            if border.side == "output" and border.dtype is DType.UINT8
        }
        makers = {node.id: node for node in drafts}
        made: dict[NodeId, Node] = {}

        def plain(index: int, leaf: Arg) -> Arg:
            if index not in outward or not isinstance(leaf, NodeRef):
                return leaf
            if leaf.id not in made:
                made[leaf.id] = self._behind(makers[leaf.id], "unwrap", {})
            return NodeRef(made[leaf.id].id)

        unwrapped = map_leaves(output, plain)
        drafts += made.values()
        return unwrapped

    def _behind(self, node: Node, what: str, attrs: Mapping[str, Arg]) -> Node:
        name = fresh_id(self.taken, node.id, what)
        self.taken[name] = None
        origin = replace(node.origin, parents=(node.id,))
        op = OpName(f"native.{what}")
        return Node(name, op, (NodeRef(node.id),), FrozenMap(attrs), origin)

    def _quantizers(self) -> None:
        """Quantizers whose integers a kernel reads or makes deal in quantized tensors."""
        for node in self.source:
            if node.id in self.claimed or node.op not in ("quantize", "dequantize"):
                continue
            if node.op == "quantize":
                held = _quantizer(node)
                if held is not None and held.dtype is DType.UINT8:
                    attrs = _out_attrs(held)
                    del attrs["output"]
                    self.swaps[node.id] = _renamed(node, "native.quantize", node.args[:1], attrs)
            elif isinstance(node.args[0], NodeRef):
                found = self._integers(NodeRef(node.id))
                if found is not None and found.dtype is DType.UINT8:
                    self.swaps[node.id] = _renamed(
                        node, "native.dequantize", node.args[:1], {"dtype": node.attrs["dtype"]}
                    )

    # The new graph.

    def graph(self) -> Graph:
        """The program with kernels, without what only the replaced nodes read."""
        source = self.source
        drafts = list(self._drafts())
        output = _map_tree(source.signature.output, self._renew)
        if self.target.form == "quantized":
            output = self._unwrap(output, drafts)
        updates = source.updates.map(lambda ref: NodeRef(self._at(ref.id)))
        roots = [*_leaves(output), *updates.values()]
        live = _live(drafts, roots, keep=lambda node: node.op == "input")
        names = {
            made: name for made, name in self.twins.items() if made in live and name not in live
        }

        def rename(ref: Ref) -> Arg:
            return NodeRef(names.get(ref.id, ref.id)) if isinstance(ref, NodeRef) else ref

        listed = [
            _called(node, names.get(node.id, node.id)).map_refs(rename)
            for node in drafts
            if node.id in live
        ]
        output = _map_tree(output, lambda arg: map_refs(arg, rename))
        made = replace(
            source,
            nodes=Table({node.id: node for node in listed}),
            order=row(node.id for node in listed),
            signature=replace(source.signature, output=output),
            updates=updates.map(lambda ref: NodeRef(names.get(ref.id, ref.id))),
            stage=Stage.LOWERED,
        )
        return _with_free_addends(made)

    def _drafts(self) -> Iterator[Node]:
        """Every node in its new form; a unit stands where its last node stood."""
        behind: dict[NodeId, NodeId] = {anchor: last for last, anchor in self.late.items()}
        for node in self.source:
            if node.id in behind:
                continue
            name = self.late.get(node.id, node.id)
            for extra in (*self.extra.get(node.id, ()), *self._waiting(node.id, name)):
                yield extra.map_refs(self._renew_ref)
            yield self.swaps.get(name, self.source[name]).map_refs(self._renew_ref)
            if name in self.wraps:
                yield self.wraps[name]

    def _waiting(self, here: NodeId, name: NodeId) -> list[Node]:
        return self.extra.get(name, []) if name != here else []

    def _renew_ref(self, ref: Ref) -> Arg:
        return NodeRef(self._at(ref.id)) if isinstance(ref, NodeRef) else ref

    def _renew(self, arg: Arg) -> Arg:
        return map_refs(arg, self._renew_ref)

    def lowering(self) -> Lowering:
        """The evidence, units and misses in program order."""
        place = self.position
        units = sorted(self.units, key=lambda item: place[item.anchor])
        gone = {item.anchor for item in units} | self.barred
        misses = [NoUnit(name, why) for name, why in self.misses.items() if name not in gone]
        return Lowering(
            self.target,
            tuple(units),
            tuple(sorted(misses, key=lambda miss: place[miss.at])),
            tuple(sorted(self.priced, key=lambda item: place[item.anchor])),
            self.estimate,
        )


def _integer_inputs(graph: Graph) -> dict[NodeId, Border]:
    inputs = graph.signature.inputs
    listed = (border for border in graph.signature.borders if border.side == "input")
    return {name: border for border in listed if (name := inputs[border.index].node) is not None}


def _quantizer(node: Node) -> _Integers | None:
    """The qparams of a quantize with a literal scale for the whole tensor."""
    x, scale, zero_point = node.args
    dtype, qmin, qmax = (node.attrs[name] for name in ("dtype", "qmin", "qmax"))
    if node.attrs["axis"] is not None or not isinstance(scale, float):
        return None
    if not (isinstance(zero_point, int) and isinstance(qmin, int) and isinstance(qmax, int)):
        return None
    if dtype not in (DType.UINT8, DType.INT8) or not isinstance(dtype, DType):
        return None
    held = x.id if isinstance(x, NodeRef) else node.id
    return _Integers(held, scale, zero_point, dtype, qmin, qmax)


def _out_attrs(out: _Integers | None) -> dict[str, Arg]:
    if out is None:
        return {"scale": 1.0, "zero_point": 0, "qmin": 0, "qmax": 0, "output": "float32"}
    return {
        "scale": out.scale,
        "zero_point": out.zero_point,
        "qmin": out.qmin,
        "qmax": out.qmax,
        "output": out.dtype.value,
    }


def _float_attrs(node: Node, more: Mapping[str, Arg] | None = None) -> dict[str, Arg]:
    """The operator's attributes for a kernel that gives floats."""
    return {**dict(node.attrs.items()), **(more or {}), "output": "float32"}


def _layer_attrs(node: Node) -> dict[str, Arg]:
    """The attributes of a recurrent layer that its kernel has too; a cell has none of its own."""
    kept = ("num_layers", "bidirectional", "batch_first")
    return {name: node.attrs[name] for name in kept if name in node.attrs} | {"output": "float32"}


def _all(items: Iterable[A | NoUnit]) -> tuple[A, ...] | NoUnit:
    """Every item, or the first reason for one that is missing."""
    found: list[A] = []
    for item in items:
        if isinstance(item, NoUnit):
            return item
        found.append(item)
    return tuple(found)


def _own_attrs(node: Node) -> dict[str, Arg]:
    """The operator's attributes as its kernel calls them: `scale` there is the result's.

    An addition's `alpha` is 1 in every unit, and not passed on.
    """
    renamed = {"scale": "factor"}
    found = {renamed.get(name, name): value for name, value in node.attrs.items()}
    if node.op == "add":
        del found["alpha"]
    return found


def _activation_args(node: Node) -> tuple[Arg, ...]:
    match node.op:
        case "clamp":
            return node.args[1:]
        case "gelu":
            return (node.attrs["approximate"],)
        case "leaky_relu":
            return (node.attrs["negative_slope"],)
        case _:
            return ()


def _rank_wanted(op: OpName) -> int | None:
    """Convolutions without a batch dimension have no kernel."""
    return int(op[-2]) + 2 if op.startswith("conv") else None


def _rank(known: Mapping[NodeId, Type], arg: Arg) -> int | None:
    found = known.get(arg.id) if isinstance(arg, NodeRef) else None
    return len(found.dims) if isinstance(found, TensorType) and found.dims is not None else None


def _mover_form(node: Node, first: Arg, held: _Integers) -> tuple[tuple[Arg, ...], FrozenMap[Arg]]:
    """Operands and attributes of a mover on integers: bounds and fillings become integers."""
    if node.op == "clamp":
        low, high = (
            end if bound is None else _as_code(bound, held)
            for bound, end in zip(node.args[1:], (held.qmin, held.qmax), strict=True)
        )
        return (first,), FrozenMap({"low": low, "high": high})
    if node.op == "relu":
        return (first,), FrozenMap({"zero_point": held.zero_point})
    if node.op == "pad":
        return (first, *node.args[1:]), FrozenMap({"zero_point": held.zero_point})
    return (first, *node.args[1:]), node.attrs


def _as_code(bound: Arg, held: _Integers) -> int:
    """The integer a bound quantizes to: clamping integers there is clamping values here."""
    assert isinstance(bound, (int, float))
    value = torch.tensor(float(bound), dtype=torch.float32)
    ends = (held.qmin, held.qmax)
    return int(quantize(value, held.scale, held.zero_point, *ends, held.dtype))


def _renamed(node: Node, op: str, args: tuple[Arg, ...], attrs: dict[str, Arg]) -> Node:
    return Node(node.id, OpName(op), args, FrozenMap(attrs), node.origin)


def _map_tree(tree: Tree, change: Callable[[Arg], Arg]) -> Tree:
    if tree.kind == "leaf":
        return replace(tree, leaf=change(tree.leaf))
    return replace(tree, items=tuple(_map_tree(item, change) for item in tree.items))


def _leaves(tree: Tree) -> Iterator[Arg]:
    if tree.kind == "leaf":
        yield tree.leaf
    for item in tree.items:
        yield from _leaves(item)


def _live(drafts: list[Node], roots: list[Arg], keep: Callable[[Node], bool]) -> set[NodeId]:
    """Ids of nodes that something reads in the end."""
    live = {ref.id for root in roots for _, ref in refs_in(root) if isinstance(ref, NodeRef)}
    for node in reversed(drafts):
        if node.id in live or keep(node):
            live.add(node.id)
            live.update(node.inputs())
    return live


def _called(node: Node, name: NodeId) -> Node:
    return node if node.id == name else replace(node, id=name)


# Additions into the addend's own memory.


def _with_free_addends(graph: Graph) -> Graph:
    """Let kernels add into an addend that nobody reads behind them.

    Safe where a kernel made the addend (it is then no input and no view), every other reader came
    before and made memory of its own, and it does not leave the graph.
    """
    adding = [node for node in graph if node.attrs.get("keeps_other") is True]
    if not adding:
        return graph
    readers = users(graph)
    position = {name: index for index, name in enumerate(graph.order)}
    changes = {
        node.id: replace(node, attrs=node.attrs.put("keeps_other", False))
        for node in adding
        if _is_free(graph, node, readers, position)
    }
    return replace(graph, nodes=graph.nodes.edit(changes))


def _is_free(
    graph: Graph,
    node: Node,
    readers: Mapping[NodeId, tuple[Use, ...]],
    position: Mapping[NodeId, int],
) -> bool:
    other = node.args[-1]
    if not isinstance(other, NodeRef) or not _makes_memory(graph[other.id]):
        return False
    rest = [use.user for use in readers[other.id]]
    if rest.count(node.id) != 1 or OUTPUT in rest:
        return False
    before = [name for name in rest if name != node.id]
    return all(position[name] < position[node.id] and _makes_memory(graph[name]) for name in before)


_MAKING = (
    "onednn.",
    "packed.",
    "native.conv",
    "native.linear",
    "native.add",
    "native.mul",
    "native.quantize",
)
_MAKING_OPS = (
    *("quantize", "dequantize", "native.dequantize"),
    *("plain.relu", "plain.clamp", "plain.table", "native.table"),
)


def _makes_memory(node: Node) -> bool:
    """Whether the node's value never shares an operand's storage."""
    return node.op.startswith(_MAKING) or node.op in _MAKING_OPS
