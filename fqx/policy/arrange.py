"""Which nodes run on integers and which values are quantized: the arithmetic behind a plan.

Three questions, each answered in time linear in the graph. Which units of the target's table are
there? Which of the light ones (additions, concatenations, pools, whatever multiplies by no weight)
lie on a path from one weighted unit to another, so that integers pay? Which values have their
qparams in common, because an operator only moves integers?
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fqx.ir.arg import Arg, ArgPath, DType, NodeRef, WeightRef
from fqx.ir.graph import Graph, users
from fqx.ir.names import NodeId, OpName, Path
from fqx.ir.node import Node
from fqx.ir.signature import TensorType, TupleType, Type
from fqx.num.scheme import ObserverSpec, QSpec
from fqx.ops.catalogue import OPS, Trait, fixed_qparams
from fqx.ops.recurrence import at_place
from fqx.policy.homes import Homes, homes_in
from fqx.policy.masks import masked
from fqx.policy.reach import activations
from fqx.policy.recipe import Choice, Scheme
from fqx.policy.target import IntRange, Target
from fqx.policy.units import Form, Mode, NoUnit, Place, Unit, UnitKind, unit_at, weights_of
from fqx.policy.verdicts import Reason

ADD = OpName("add")
CUSTOM = UnitKind("custom", OpName("leaf"), None, (OpName("getitem"),), ("xs",))
"""A module kept whole and the one tensor it gives, which the user's own module computes."""
ASKED = "integers do not pay for it by themselves; a lone scheme takes it"


@dataclass(frozen=True, slots=True)
class Edge:
    """An operand that an integer kernel reads: the user, the place in its args, its name."""

    user: NodeId
    at: ArgPath
    name: str
    value: NodeId


@dataclass(frozen=True, slots=True)
class Params:
    """One scale and zero point: the values whose statistics give it, or a known pair."""

    leader: NodeId
    spec: QSpec
    sources: tuple[NodeId, ...]
    fixed: tuple[float, int] | None = None

    @property
    def is_half(self) -> bool:
        """Whether values are rounded to half precision: there is no scale."""
        return self.spec.dtype is DType.FLOAT16

    @property
    def is_measured(self) -> bool:
        """Whether scale and zero point come from statistics."""
        return self.fixed is None and not self.is_half


@dataclass(frozen=True, slots=True)
class Held:
    """A weight that a unit reads in integers: its place in the anchor's args, name and path."""

    at: ArgPath
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Seat:
    """A unit that runs on integers: its operands, its weights and the form of its result."""

    unit: Unit
    scheme: Scheme
    edges: tuple[Edge, ...]
    form: Form
    weights: tuple[Held, ...] = ()
    weight_spec: QSpec | None = None


@dataclass(frozen=True, slots=True)
class Tap:
    """A value and what is to be observed of it."""

    value: NodeId
    observer: ObserverSpec


@dataclass(frozen=True, slots=True)
class Veto:
    """Why a node may not run on integers, whatever the recipe says."""

    reason: Reason
    text: str


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where integers run.

    `seats` by anchor in program order, `seat_of` the anchor each member belongs to. `given` are the
    params of values that integer kernels produce (containers included), `wanted` those of the
    operands integer kernels read. `float_because` says why every other node stays float.
    """

    seats: Mapping[NodeId, Seat]
    seat_of: Mapping[NodeId, NodeId]
    given: Mapping[NodeId, Params]
    wanted: Mapping[tuple[NodeId, ArgPath], Params]
    taps: tuple[Tap, ...]
    float_because: Mapping[NodeId, Veto]
    types: Mapping[NodeId, Type]


@dataclass(frozen=True, slots=True)
class Scene:
    """What arranging reads: a graph without observers, its types, the recipe's choices."""

    graph: Graph
    types: Mapping[NodeId, Type]
    choices: Mapping[NodeId, Choice]
    target: Target
    vetoes: Mapping[NodeId, Veto]

    def homes(self) -> Homes:
        """The standalone modules that the choices name."""
        schemes = (choice.scheme for choice in self.choices.values())
        return homes_in(self.graph, (held.home for held in schemes if held is not None))


def arrange(scene: Scene) -> Arrangement:
    """The largest arrangement in which every light unit lies between weighted ones."""
    hall = _Hall(scene)
    while hall.drop_idle():
        pass
    seats = {seat.unit.anchor: seat for seat in hall.seats()}
    sharing = _share(scene, seats.values())
    return Arrangement(
        seats,
        {name: anchor for anchor, seat in seats.items() for name in seat.unit.nodes},
        sharing.given,
        sharing.wanted,
        _taps(sharing, seats.values()),
        hall.float_because(),
        scene.types,
    )


def narrowed(spec: QSpec, limits: IntRange) -> QSpec | None:
    """The spec within the target's integers; None if they are of another type."""
    if spec.dtype != limits.dtype:
        return None
    if limits.qmin <= spec.qmin and spec.qmax <= limits.qmax:
        return spec
    low, high = max(spec.qmin, limits.qmin), min(spec.qmax, limits.qmax)
    return replace(spec, qmin=low, qmax=high) if low < high else None


def within(spec: QSpec, target: Target) -> QSpec | None:
    """The spec of an activation within the target's integers; None if it has no such type."""
    return narrowed(spec, target.activation_of(spec.dtype))


def is_float(found: Type | None) -> bool:
    """Whether a value is a floating-point tensor, or a tuple of such."""
    match found:
        case TensorType(dtype=dtype):
            return dtype.is_float
        case TupleType(items=items):
            return bool(items) and all(is_float(item) for item in items)
        case _:
            return False


class _Hall:
    """Units under selection: found once per anchor, and again where a member was dropped."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        graph = scene.graph
        self.position = {name: index for index, name in enumerate(graph.order)}
        self.dropped: dict[NodeId, Veto] = {**_no_use(graph, scene.types), **scene.vetoes}
        self.misses: dict[NodeId, Veto] = {}
        self.place = Place(graph, users(graph), self.position, scene.types, self._allows)
        self.homes = scene.homes()
        self.kinds: dict[tuple[OpName, Mode], tuple[UnitKind, ...]] = {}
        self.found: dict[NodeId, Unit] = {}
        self.edges: dict[NodeId, tuple[Edge, ...]] = {}
        self._find(graph.order)

    def _allows(self, name: NodeId) -> bool:
        choice = self.scene.choices.get(name)
        return choice is not None and choice.scheme is not None and name not in self.dropped

    def _find(self, names: Iterable[NodeId]) -> None:
        inside = {name for unit in self.found.values() for name in unit.nodes}
        for name in names:
            if name in inside:
                continue
            unit = self._unit(name)
            if unit is not None:
                self.found[name] = unit
                inside.update(unit.nodes)

    def _unit(self, name: NodeId) -> Unit | None:
        node = self.scene.graph[name]
        choice = self.scene.choices.get(name)
        if choice is None or choice.scheme is None or not self._allows(name):
            return None
        mode = choice.scheme.mode
        kinds = self.kinds.setdefault((node.op, mode), kinds_in(self.scene.target, node.op, mode))
        if not choice.scheme.lone:
            kinds = tuple(kind for kind in kinds if not kind.asked) or kinds
        kinds = (CUSTOM,) if self._is_custom(node) else kinds
        if not kinds:
            return None
        unit, misses = unit_at(self._room(name), kinds, name)
        why = self._refusal(node, unit, misses)
        if why is not None or unit is None:
            self.misses[name] = why or Veto(Reason.UNFIT, Reason.UNFIT.value)
            return None
        return unit

    def _is_custom(self, node: Node) -> bool:
        """Whether the recipe quantizes a module kept whole: tensors in, one tensor out."""
        choice = self.scene.choices.get(node.id)
        if choice is None or choice.scheme is None or not choice.scheme.custom:
            return False
        is_plain = node.op == CUSTOM.anchor and node.attrs["call"] == ""
        return is_plain and choice.scheme.mode is CUSTOM.mode

    def _room(self, name: NodeId) -> Place:
        """The place as far as the border of the node's standalone module."""
        if not self.homes.paths:
            return self.place
        return replace(
            self.place, allows=lambda it: self._allows(it) and not self.homes.apart(it, name)
        )

    def _refusal(self, node: Node, unit: Unit | None, misses: tuple[NoUnit, ...]) -> Veto | None:
        if unit is None:
            return Veto(Reason.UNFIT, misses[-1].why if misses else Reason.UNFIT.value)
        choice = self.scene.choices[node.id]
        if choice.scheme is None or not _fits(choice.scheme, unit.kind, self.scene.target):
            return Veto(Reason.UNFIT_SCHEME, f"{self.scene.target.label} has other integers")
        if unit.kind.asked and not choice.scheme.lone:
            return Veto(Reason.UNFIT, ASKED)
        edges = _edges(self.scene.graph, unit) if unit.kind.int8 else ()
        if edges is None:
            return Veto(Reason.UNFIT, "an operand is no activation")
        if not all(is_float(self.scene.types.get(edge.value)) for edge in edges):
            return Veto(Reason.INTEGERS, Reason.INTEGERS.value)
        if unit.kind.shares and any(self._crosses(edge) for edge in edges):
            return Veto(Reason.UNFIT, "its operand comes into a standalone module as float")
        self.edges[node.id] = edges
        return None

    def _crosses(self, edge: Edge) -> bool:
        return self.homes.apart(edge.value, edge.user)

    def drop_idle(self) -> bool:
        """Drop what does not lie between weighted units; whether anything was dropped."""
        units = sorted(self.found.values(), key=lambda unit: self.position[unit.last])
        fed, feeds = self._fed(units), self._feeding(units)
        idle: list[Unit] = []
        for unit in units:
            if unit.kind.mode is not Mode.STATIC:
                continue
            if self._is_lone(unit) and (unit.anchor in fed or not self._reads_tuple(unit)):
                continue
            if is_heavy(unit.kind):
                if unit.kind.adds and unit.anchor not in feeds:
                    idle.append(unit)
            elif unit.anchor not in fed or unit.anchor not in feeds:
                idle.append(unit)
        for unit in idle:
            self._drop(unit)
        self._find(
            sorted((name for unit in idle for name in unit.nodes), key=self.position.__getitem__)
        )
        return bool(idle)

    def _is_lone(self, unit: Unit) -> bool:
        """Whether the recipe wants the unit on integers whatever its neighbours do."""
        scheme = self.scene.choices[unit.anchor].scheme
        return scheme is not None and scheme.lone

    def _reads_tuple(self, unit: Unit) -> bool:
        """Whether it takes a tuple apart, which is integers only where its maker gave them."""
        values = (self.scene.types.get(edge.value) for edge in self.edges[unit.anchor])
        return any(isinstance(value, TupleType) for value in values)

    def _drop(self, unit: Unit) -> None:
        del self.found[unit.anchor]
        why = Veto(Reason.BETWEEN_FLOATS, Reason.BETWEEN_FLOATS.value)
        if is_heavy(unit.kind):
            ops = (self.scene.graph[name] for name in unit.nodes)
            self.dropped.update({node.id: why for node in ops if node.op == ADD})
        else:
            self.dropped[unit.anchor] = why

    def _fed(self, units: list[Unit]) -> set[NodeId]:
        """Anchors that a static weighted unit reaches through light ones, itself included."""
        made_by = {unit.last: unit.anchor for unit in units}
        fed: set[NodeId] = set()
        for unit in units:
            inner = (edge for edge in self.edges[unit.anchor] if not self._crosses(edge))
            inputs = (made_by.get(edge.value) for edge in inner)
            lone = self._is_lone(unit) and not self._reads_tuple(unit)
            starts = unit.kind.mode is Mode.STATIC and (is_heavy(unit.kind) or lone)
            if starts or any(anchor in fed for anchor in inputs):
                fed.add(unit.anchor)
        return fed

    def _feeding(self, units: list[Unit]) -> set[NodeId]:
        """Anchors whose result reaches a weighted unit through light ones."""
        feeds: set[NodeId] = set()
        read: set[NodeId] = set()
        for unit in reversed(units):
            if unit.last in read:
                feeds.add(unit.anchor)
            if unit.kind.mode is not Mode.STATIC:
                continue
            for edge in self.edges[unit.anchor]:
                # the addend of an absorbed addition is a light operand of its unit
                light = not is_heavy(unit.kind) or edge.user != unit.anchor
                ours = not light or unit.anchor in feeds or self._is_lone(unit)
                if ours and not self._crosses(edge):
                    read.add(edge.value)
        return feeds

    def seats(self) -> tuple[Seat, ...]:
        """The units that are left, in program order."""
        order = sorted(self.found, key=lambda name: self.position[name])
        static = (name for name in order if self.found[name].kind.mode is Mode.STATIC)
        read = {
            edge.value for name in static for edge in self.edges[name] if not self._crosses(edge)
        }
        return tuple(self._seat(self.found[name], read) for name in order)

    def _seat(self, unit: Unit, read: set[NodeId]) -> Seat:
        choice = self.scene.choices[unit.anchor]
        assert choice.scheme is not None
        is_read = unit.last in read or choice.scheme.integers_out
        float_out = not is_read and Form.FLOAT in unit.kind.outputs
        form = Form.FLOAT if float_out or Form.INT8 not in unit.kind.outputs else Form.INT8
        edges = self.edges[unit.anchor]
        if unit.kind.weight is None:
            return Seat(unit, choice.scheme, edges, form)
        held = _held(self.scene.graph, self.scene.graph[unit.anchor])
        spec = _weight_spec(choice.scheme, unit.kind, self.scene.target)
        return Seat(unit, choice.scheme, edges, form, held, spec)

    def float_because(self) -> dict[NodeId, Veto]:
        """Why nodes in no unit are float, where looking for units said so."""
        return {**self.misses, **self.dropped}


def _no_use(graph: Graph, types: Mapping[NodeId, Type]) -> dict[NodeId, Veto]:
    """What stays float whatever is asked: masks and what is no activation."""
    live = activations(graph, types)
    masks = dict.fromkeys(masked(graph, types), Veto(Reason.MASKED, Reason.MASKED.value))
    still = (node.id for node in graph if node.id not in live)
    return {**masks, **dict.fromkeys(still, Veto(Reason.NO_ACTIVATION, ""))}


def kinds_in(target: Target, op: OpName, mode: Mode) -> tuple[UnitKind, ...]:
    """The target's rows for an operator whose scheme is of this mode."""
    return tuple(kind for kind in target.kinds(op) if kind.mode is mode)


def is_heavy(kind: UnitKind) -> bool:
    """Whether integers pay in such a unit by themselves: it multiplies over a contraction."""
    row = OPS.get(kind.anchor)
    if kind == CUSTOM:
        return True
    contracts = row is not None and Trait.CONTRACTION in row.traits
    return kind.weight is not None or contracts


def _held(graph: Graph, anchor: Node) -> tuple[Held, ...]:
    """The weights of a unit by their places."""
    found: list[Held] = []
    for at in weights_of(anchor):
        ref = at_place(anchor, at)
        assert isinstance(ref, WeightRef)
        name = OPS[anchor.op].operands[int(at[0])].name
        label = ".".join((name, *map(str, at[1:])))
        found.append(Held(at, label, graph.ties.get(ref.path) or ref.path))
    return tuple(found)


TABLES = frozenset({OpName("embedding"), OpName("embedding_bag")})
"""Operators that read rows of a table; these have float zero points."""


def _fits(scheme: Scheme, kind: UnitKind, target: Target) -> bool:
    if scheme.mode in (Mode.WEIGHT_ONLY, Mode.FLOAT16):
        # the axis of the scales decides between tables of rows and channels
        return scheme.weight.float_zero is (kind.anchor in TABLES)
    if scheme.mode is Mode.FLOAT16_STATIC:
        return True
    if activation_spec(scheme, kind, target) is None:
        return False
    return kind.weight is None or narrowed(scheme.weight, target.weight) is not None


def activation_spec(scheme: Scheme, kind: UnitKind, target: Target) -> QSpec | None:
    """The activations of a scheme as a unit of this kind takes them; None if it cannot."""
    limits = target.activation_of(scheme.static.dtype)
    if kind.qmax is not None and kind.qmax < limits.qmax:
        limits = replace(limits, qmax=kind.qmax)
    return narrowed(scheme.static, limits)


def _weight_spec(scheme: Scheme, kind: UnitKind, target: Target) -> QSpec:
    spec = narrowed(scheme.weight, target.weight) or scheme.weight
    axis = None if scheme.weight.axis is None else kind.channel_axis
    if axis is None:
        return replace(spec, axis=None, observer=replace(spec.observer, kind="minmax", axis=None))
    return replace(spec, axis=axis, observer=replace(spec.observer, axis=axis))


def _edges(graph: Graph, unit: Unit) -> tuple[Edge, ...] | None:
    """The integer operands of a unit; None if one is no node's value."""
    anchor = graph[unit.anchor]
    row = OPS[anchor.op]
    found: list[Edge] = []
    for name in unit.kind.int8:
        at = row.position(name)
        listed = _operands(anchor.args[at], name, at) if at is not None else []
        for label, path, arg in listed:
            if not isinstance(arg, NodeRef):
                return None
            found.append(Edge(anchor.id, path, label, arg.id))
    if unit.other is not None:
        add = next(graph[name] for name in unit.nodes if graph[name].op == ADD)
        place = next(i for i, arg in enumerate(add.args) if arg == NodeRef(unit.other))
        found.append(Edge(add.id, (place,), "other", unit.other))
    return tuple(found) if found else None


def _operands(arg: Arg, name: str, at: int) -> list[tuple[str, ArgPath, Arg]]:
    if isinstance(arg, tuple):
        return [(f"{name}.{i}", (at, i), item) for i, item in enumerate(arg)]
    return [(name, (at,), arg)]


class _Sets:
    """Union-find over values; the representative is the first member in program order."""

    def __init__(self) -> None:
        self.above: dict[NodeId, NodeId] = {}

    def top(self, name: NodeId) -> NodeId:
        root = name
        while (up := self.above.get(root, root)) != root:
            root = up
        while (up := self.above.get(name, name)) != root:
            self.above[name] = root
            name = up
        return root

    def join(self, one: NodeId, two: NodeId, position: Mapping[NodeId, int]) -> None:
        first, second = sorted((self.top(one), self.top(two)), key=lambda name: position[name])
        self.above[second] = first


@dataclass(frozen=True, slots=True)
class _Sharing:
    given: dict[NodeId, Params]
    wanted: dict[tuple[NodeId, ArgPath], Params]
    observed: dict[NodeId, dict[QSpec, None]]


def _share(scene: Scene, seats: Iterable[Seat]) -> _Sharing:
    """Params of every value integer kernels make or read."""
    seated = tuple(seats)
    listed = tuple(seat for seat in seated if seat.unit.kind.mode is not Mode.FLOAT16_STATIC)
    position = {name: index for index, name in enumerate(scene.graph.order)}
    sets = _Sets()
    for seat in listed:
        if seat.unit.kind.shares:
            for edge in seat.edges:
                sets.join(edge.value, seat.unit.last, position)
    multiplied = {
        sets.top(edge.value) for seat in listed if is_heavy(seat.unit.kind) for edge in seat.edges
    }
    desk = _Desk(scene, listed)
    groups: dict[NodeId, list[NodeId]] = {}
    for name in sorted(desk.sources, key=lambda name: position[name]):
        groups.setdefault(sets.top(name), []).append(name)
    params = {
        top: desk.settle(members, is_multiplied=top in multiplied)
        for top, members in groups.items()
    }
    return _with_halves(desk.written(params, sets), seated)


def _with_halves(sharing: _Sharing, seats: Iterable[Seat]) -> _Sharing:
    """The params of values rounded to half precision beside those of integers."""
    halves = [seat for seat in seats if seat.unit.kind.mode is Mode.FLOAT16_STATIC]
    given = {
        seat.unit.last: Params(seat.unit.last, seat.scheme.static, (seat.unit.last,))
        for seat in halves
    }
    wanted = {
        (edge.user, edge.at): Params(edge.value, seat.scheme.static, (edge.value,))
        for seat in halves
        for edge in seat.edges
    }
    return _Sharing({**sharing.given, **given}, {**sharing.wanted, **wanted}, sharing.observed)


class _Desk:
    """Who asks for which params, and what they get."""

    def __init__(self, scene: Scene, seats: tuple[Seat, ...]) -> None:
        self.scene = scene
        self.seats = seats
        self.maker = {seat.unit.last: seat for seat in seats if seat.form is Form.INT8}
        # by the identity of schemes: there are few, and seats keep them alive
        self.specs: dict[int, QSpec] = {}
        self.homes = scene.homes()
        self.asked: dict[NodeId, Seat] = {}
        edges = [(seat, edge) for seat in seats for edge in seat.edges]
        for seat, edge in sorted(edges, key=lambda item: self.crosses(item[1])):
            self.asked.setdefault(edge.value, seat)
        # values that come with params of their own: what no integer mover made
        made = [name for name, seat in self.maker.items() if not seat.unit.kind.shares]
        read = [name for name in self.asked if name not in self.maker]
        self.sources = dict.fromkeys((*made, *read))

    def crosses(self, edge: Edge) -> bool:
        """Whether the border of a standalone module runs across the edge."""
        return self.homes.apart(edge.value, edge.user)

    def spec(self, seat: Seat) -> QSpec:
        """The activation spec of a seat's scheme within the target's integers."""
        known = self.specs.get(id(seat.scheme))
        if known is None:
            spec = within(seat.scheme.static, self.scene.target)
            assert spec is not None
            known = self.specs[id(seat.scheme)] = replace(spec, observer=_whole(spec.observer))
        return known

    def request(self, name: NodeId, is_multiplied: bool = True) -> Params:
        """The params a source asks for: the maker's, else those of its first reader.

        A target narrows integers for the sums of its products; a value of known range that no
        product reads has the integers the scheme asks for.
        """
        seat = self.maker.get(name) or self.asked[name]
        spec, asked = self.spec(seat), seat.scheme.static
        row = OPS.get(self.scene.graph[name].op)
        if row is not None and row.fixed is not None and not is_multiplied:
            spec = replace(spec, qmin=asked.qmin, qmax=asked.qmax)
        fixed = fixed_qparams(row, spec.qmin, spec.qmax) if row is not None else None
        return Params(name, spec, (name,), fixed)

    def settle(self, members: list[NodeId], is_multiplied: bool) -> Params:
        """The params of a group of sources: the first member's integers, all members' statistics.

        A known pair holds only where every member knows the same one: it could not carry the
        range of another.
        """
        requests = [self.request(name, is_multiplied) for name in members]
        known = requests[0].fixed
        if any(request.fixed != known for request in requests):
            known = None
        return replace(requests[0], sources=tuple(members), fixed=known)

    def has_integers(self, seat: Seat, shared: Params) -> bool:
        """Whether a group's params have the integers the seat's scheme asks for."""
        return shared.fixed is not None or _integers(self.spec(seat)) == _integers(shared.spec)

    def written(self, groups: Mapping[NodeId, Params], sets: _Sets) -> _Sharing:
        given: dict[NodeId, Params] = {}
        wanted: dict[tuple[NodeId, ArgPath], Params] = {}
        for name, seat in self.maker.items():
            shared = groups[sets.top(name)]
            given[name] = shared
            if not seat.unit.kind.shares and not self.has_integers(seat, shared):
                given[name] = self.request(name)
        for seat in self.seats:
            for edge in seat.edges:
                wanted[edge.user, edge.at] = self._want(seat, edge, given, groups, sets)
        observed: dict[NodeId, dict[QSpec, None]] = {}
        for params in (*given.values(), *wanted.values()):
            for source in params.sources:
                observed.setdefault(source, {})[_observed(params)] = None
        return _Sharing(given, wanted, observed)

    def _want(
        self,
        seat: Seat,
        edge: Edge,
        given: Mapping[NodeId, Params],
        groups: Mapping[NodeId, Params],
        sets: _Sets,
    ) -> Params:
        shared = groups[sets.top(edge.value)]
        if seat.unit.kind.shares:
            return shared
        asks = self.spec(seat)
        if self.crosses(edge):
            # the value is float at the border, whatever it was made of
            return Params(edge.value, asks, (edge.value,))
        if edge.value in given:
            held = given[edge.value]
            same = held.fixed is not None or _lies_in(held.spec, asks)
            return held if same else Params(edge.value, asks, held.sources)
        if shared.fixed is not None or shared.spec == asks:
            return shared
        return Params(edge.value, asks, (edge.value,))


def _observed(params: Params) -> QSpec:
    """The spec whose observer the sources of params get: a known pair needs no statistic."""
    if params.fixed is None:
        return params.spec
    scale, zero = params.fixed
    low, high = (params.spec.qmin - zero) * scale, (params.spec.qmax - zero) * scale
    return replace(params.spec, observer=ObserverSpec("fixed", low=low, high=high))


def _whole(observer: ObserverSpec) -> ObserverSpec:
    """The observer without each channel's range, which does not change the range of the whole."""
    return replace(observer, axis=None) if observer.kind == "histogram" else observer


def _integers(spec: QSpec) -> tuple[object, ...]:
    return (spec.dtype, spec.qmin, spec.qmax, spec.symmetric, spec.axis)


def _lies_in(held: QSpec, asks: QSpec) -> bool:
    """Whether a kernel that takes the integers of `asks` takes those of `held` as they are."""
    ends = replace(asks, qmin=held.qmin, qmax=held.qmax)
    inside = asks.qmin <= held.qmin and held.qmax <= asks.qmax
    return inside and _integers(held) == _integers(ends)


def _taps(sharing: _Sharing, seats: Iterable[Seat]) -> tuple[Tap, ...]:
    """One observer for each value and kind of statistic, channels where a scheme may smooth."""
    channels: dict[NodeId, int] = {}
    for seat in seats:
        if seat.scheme.smoothing is not None and seat.weights:
            channels[seat.edges[0].value] = channel_axis(seat.scheme)
    taps: dict[Tap, None] = {}
    for value, specs in sharing.observed.items():
        for spec in specs:
            observer = spec.observer
            if value in channels and observer.kind == "histogram":
                observer = replace(observer, axis=channels.pop(value))
            taps[Tap(value, observer)] = None
    for value, axis in channels.items():
        taps[Tap(value, ObserverSpec("channel_minmax", axis=axis))] = None
    return tuple(taps)


def channel_axis(scheme: Scheme) -> int:
    """The axis of an input along which a smoothing scheme watches channels."""
    axis = scheme.static.observer.axis
    return -1 if axis is None else axis


def schemes_of(seats: Iterable[Seat], choices: Mapping[NodeId, Choice]) -> dict[NodeId, Scheme]:
    """The scheme of every member of every seat."""
    found: dict[NodeId, Scheme] = {}
    for seat in seats:
        for name in seat.unit.nodes:
            scheme = choices[name].scheme
            if scheme is not None:
                found[name] = scheme
    return found
