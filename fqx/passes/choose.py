"""What runs where: each unit's cheapest kernel, and int8 or float so that the program costs least.

Prices come from a table of costs, the labels from a minimum cut over the whole graph; see
`fqx.policy.cut`. Nothing is changed here: `lower` does what was decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.graph import OUTPUT, Graph, Use
from fqx.ir.names import NodeId, OpName
from fqx.ir.node import Node
from fqx.ir.signature import Dim, Poly, TensorType, Type
from fqx.ir.text import read_dim
from fqx.kit.frozen import FrozenMap
from fqx.policy.costs import SCALE, SHIFTED, Call, Costs, Given, Shaped, nominal
from fqx.policy.cut import Choices, Cut, Problem, Shared, cheapest
from fqx.policy.priced import FLOAT
from fqx.policy.selectors import Selector, selects
from fqx.policy.target import Target
from fqx.policy.units import Form


@dataclass(frozen=True, slots=True)
class Offer:
    """A unit that can run as a kernel: its nodes, the kernel's call, and the form of its result.

    A `mover` moves the integers it reads and keeps their qparams.
    """

    anchor: NodeId
    unit: str
    nodes: tuple[NodeId, ...]
    draft: Node
    form: Form
    mover: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a unit: the kernel's node (None for float), and its microseconds if known."""

    name: str
    node: Node | None
    price: float | None

    def __str__(self) -> str:
        return f"{self.name} {self.price:.3g} µs" if self.price is not None else self.name


@dataclass(frozen=True, slots=True)
class Ruling:
    """What was decided about one offer.

    `candidates` are in the order they were tried, `taken` is the place of the one that runs, and
    `margin` the microseconds the whole program would take more were this unit alone in float
    instead of on integers, or on integers instead of in float.
    """

    offer: Offer
    candidates: tuple[Candidate, ...]
    taken: int
    margin: float | None

    @property
    def chosen(self) -> Candidate:
        """The candidate that runs."""
        return self.candidates[self.taken]

    @property
    def floating(self) -> bool:
        """Whether the unit runs in float."""
        return self.chosen.node is None


@dataclass(frozen=True, slots=True)
class Crossing:
    """A quantized value between units: its maker, its quantizer, and who reads its values.

    A reader is a node, or `OUTPUT`, and what it reads: a dequantize, or the integers themselves.
    `reorders` says that a convolution reads it and its maker does not give channels-last.
    """

    maker: NodeId
    quantizer: NodeId
    readers: tuple[tuple[NodeId, NodeId], ...]
    reorders: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Every offer's ruling, the problem they solve, and the values between them."""

    rulings: tuple[Ruling, ...]
    problem: Problem
    cut: Cut
    crossings: tuple[Crossing, ...]


def choosing(
    graph: Graph,
    offers: tuple[Offer, ...],
    target: Target,
    costs: Costs,
    users: Mapping[NodeId, tuple[Use, ...]],
    known: Mapping[NodeId, Type],
    kept: Selector | None = None,
) -> tuple[Decision, tuple[Call, ...]]:
    """The labels and kernels of least cost by the table, and every call whose price was asked for.

    A unit that the table cannot price stays as it is, and one that `kept` takes on integers.
    """
    choice = _Choice(graph, offers, target, costs, users, known, kept)
    return choice.decision(), tuple(choice.asked)


OUTSIDE, CODES = 0, 1
"""The first two units of a problem: what is float, and what is integers, whatever is chosen."""


@dataclass(slots=True)
class _Choice:
    """A graph while its prices are put together."""

    graph: Graph
    offers: tuple[Offer, ...]
    target: Target
    costs: Costs
    users: Mapping[NodeId, tuple[Use, ...]]
    known: Mapping[NodeId, Type]
    kept: Selector | None = None
    home: dict[NodeId, int] = field(init=False)
    last: dict[NodeId, int] = field(init=False)
    groups: list[list[int]] = field(init=False)
    lasting: dict[NodeId, bool] = field(init=False)
    asked: dict[Call, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.groups = self._grouped()
        group = {offer: at for at, members in enumerate(self.groups) for offer in members}
        self.home, self.last = {}, {}
        for index, offer in enumerate(self.offers):
            at = group[index] + 2
            self.home.update(dict.fromkeys(offer.nodes, at))
            if offer.mover or offer.form is Form.INT8:
                self.last[offer.nodes[-1]] = at
        self.lasting = self._layouts()

    # Units.

    def _grouped(self) -> list[list[int]]:
        """Offers that share a label: movers that read one another with no quantizer between."""
        mover_at = {o.nodes[0]: at for at, o in enumerate(self.offers) if o.mover}
        leader = list(range(len(self.offers)))

        def find(at: int) -> int:
            while leader[at] != at:
                leader[at] = leader[leader[at]]
                at = leader[at]
            return at

        for name, at in mover_at.items():
            for source in self.graph[name].inputs():
                if source in mover_at:
                    one, two = sorted((find(at), find(mover_at[source])))
                    leader[two] = one
        found: dict[int, list[int]] = {}
        for at in range(len(self.offers)):
            found.setdefault(find(at), []).append(at)
        return list(found.values())

    def candidates(self, offer: Offer) -> tuple[Candidate, ...]:
        """The kernels first, in the order of preference, then float."""
        anchor = self.graph[offer.anchor]
        kernels = [self._candidate(node, anchor) for node in self._kernels(offer.draft)]
        calls = tuple(self._float_call(self.graph[name]) for name in offer.nodes)
        return (*kernels, Candidate(FLOAT, None, self._sum(calls)))

    def _candidate(self, node: Node, anchor: Node) -> Candidate:
        engine = node.attrs.get("engine")
        name = f"{node.op}/{engine}" if isinstance(engine, str) else str(node.op)
        return Candidate(name, node, self._price(self._kernel_call(node, anchor)))

    def _kernels(self, draft: Node) -> Iterator[Node]:
        """The kernels that compute what a drafted one does, the target's own first."""
        if draft.attrs.get("engine") == "x86" and draft.op in _PACKED:
            for engine in ("onednn", "fbgemm"):
                yield replace(draft, attrs=draft.attrs.put("engine", engine))
            return
        yield draft
        # fbgemm's grouped kernels sum pairs of products in int16 on every machine
        narrow = self.target.activation.qmax <= 127
        for engine in ("onednn", "fbgemm"):
            made = packed_kernel(draft, engine)
            if made is not None and (engine == "onednn" or narrow or draft.attrs["groups"] == 1):
                yield made
        if draft.op == "onednn.conv2d" and self._is_pointwise(draft):
            yield replace(draft, op=OpName("onednn.conv2d_as_linear"))

    def _is_pointwise(self, draft: Node) -> bool:
        """Whether a convolution reads one point at a time, and so is a linear over channels."""
        weight = self._given(draft.args[1], draft.args[1], DType.INT8)
        ones = {"stride": (1, 1), "padding": (0, 0), "groups": 1}
        plain = all(draft.attrs.get(name) == value for name, value in ones.items())
        return plain and isinstance(weight, Shaped) and weight.shape[2:] == (1, 1)

    def _kernel_call(self, node: Node, anchor: Node) -> Call | None:
        """The call of a drafted kernel: it reads bytes where its anchor reads values."""
        out = self._shape(anchor.id)
        if out is None:
            return None
        given: list[Given] = []
        for at, arg in enumerate(node.args):
            adds = "keeps_other" in node.attrs and at == len(node.args) - 1
            source = anchor.args[at] if at < len(anchor.args) else arg
            item = Shaped(DType.UINT8, out) if adds else self._given(arg, source, DType.UINT8)
            if item is _UNKNOWN:
                return None
            given.append(item)
        attrs = nominal(node.attrs)
        if self.target.form == "quantized" and isinstance(node.args[-1], (WeightRef, type(None))):
            attrs = attrs.put("x_zero_point", self._zero(anchor))
        return Call(node.op, tuple(given), out, attrs)

    def _float_call(self, node: Node) -> Call | None:
        out = self._shape(node.id)
        if out is None:
            return None
        given = tuple(self._given(arg, arg, DType.FLOAT32) for arg in node.args)
        return None if _UNKNOWN in given else Call(node.op, given, out, node.attrs)

    def _zero(self, anchor: Node) -> int:
        """Whether the input's zero point is 0, in nominal terms: a quantized tensor holds it."""
        arg = anchor.args[0]
        node = self.graph[arg.id] if isinstance(arg, NodeRef) else None
        return 0 if node is not None and node.op == "dequantize" and node.args[2] == 0 else SHIFTED

    def _given(self, arg: Arg, source: Arg, dtype: DType) -> Given:
        """An operand of a call; `source` is the operand in the reference program."""
        if isinstance(arg, tuple) and isinstance(source, tuple) and arg:
            if all(isinstance(item, NodeRef) for item in arg):
                items = [self._given(*pair, dtype) for pair in zip(arg, source, strict=True)]
                shaped = tuple(item for item in items if isinstance(item, Shaped))
                return shaped if len(shaped) == len(items) else _UNKNOWN
            return arg
        if isinstance(arg, WeightRef):
            weight = self.graph.weights.get(self.graph.ties.get(arg.path) or arg.path)
            return _UNKNOWN if weight is None else Shaped(weight.dtype, tuple(weight.shape))
        if not isinstance(arg, NodeRef):
            return arg
        if not isinstance(source, NodeRef):
            return _UNKNOWN
        shape = self._shape(source.id)
        return _UNKNOWN if shape is None else Shaped(dtype, shape)

    def _shape(self, name: NodeId) -> tuple[int, ...] | None:
        """The sizes of a node's value, named dimensions at the table's sizes."""
        found = self.known.get(name)
        if not isinstance(found, TensorType) or found.dims is None:
            return None
        sizes = [_size(dim, self.costs.sizes) for dim in found.dims]
        whole = tuple(size for size in sizes if size is not None)
        return whole if len(whole) == len(sizes) else None

    # Prices.

    def _price(self, call: Call | None) -> float | None:
        if call is None:
            return None
        self.asked.setdefault(call)
        return self.costs.of(call)

    def _sum(self, calls: tuple[Call | None, ...]) -> float | None:
        prices = [self._price(call) for call in calls]
        known = [price for price in prices if price is not None]
        return math.fsum(known) if len(known) == len(prices) else None

    # Values.

    def _layouts(self) -> dict[NodeId, bool]:
        """Whether a value of four dimensions is channels-last wherever its maker runs.

        Convolutions give it: those on integers always, those in float since they are handed it.
        """
        found: dict[NodeId, bool] = {}
        for node in self.graph:
            if node.op == "conv2d" and node.id in self.home:
                found[node.id] = True
            elif node.op not in _REORDERING:
                first = node.args[0] if node.args else None
                first = first[0] if isinstance(first, tuple) and first else first
                found[node.id] = isinstance(first, NodeRef) and found.get(first.id, False)
        return found

    def crossings(self) -> Iterator[Crossing]:
        """Every quantized value; those that neither maker nor readers can change are left out."""
        borders = self.graph.signature.borders
        inputs = self.graph.signature.inputs
        held = [inputs[border.index].node for border in borders if border.side == "input"]
        for node in self.graph:
            if node.op == "quantize":
                source = node.args[0]
                literal = node.attrs["axis"] is None and isinstance(node.args[1], float)
                maker = source.id if literal and isinstance(source, NodeRef) else None
            else:
                maker = node.id if node.id in held else None
            if maker is not None:
                made = Crossing(maker, node.id, tuple(self._readers(node.id)))
                made = replace(made, reorders=self._reorders(made))
                labels = {self.home.get(name) for name, _ in made.readers}
                if maker in self.last or (labels and None not in labels):
                    yield made

    def _readers(self, quantizer: NodeId) -> Iterator[tuple[NodeId, NodeId]]:
        """Who reads a value's integers: by dequantize nodes, or the integers themselves."""
        for use in self.users[quantizer]:
            node = None if use.user == OUTPUT else self.graph[use.user]
            if node is None or node.op != "dequantize":
                yield use.user, quantizer
                continue
            for inner in self.users[node.id]:
                yield inner.user, node.id

    def _label(self, reader: tuple[NodeId, NodeId], quantizer: NodeId) -> int:
        name, read = reader
        return CODES if read == quantizer else self.home.get(name, OUTSIDE)

    def shared(self, crossing: Crossing) -> Shared:
        """A value's maker, readers and prices."""
        border = crossing.maker == crossing.quantizer
        maker = CODES if border else self.last.get(crossing.maker, OUTSIDE)
        labels = (self._label(reader, crossing.quantizer) for reader in crossing.readers)
        readers = tuple(label for label in dict.fromkeys(labels) if label != maker)
        shape = self._shape(crossing.maker)
        if shape is None:
            return Shared(maker, readers, 0, 0, 0)
        up, down = self._conversions(shape)
        moves = maker > 1 and self.offers[self.groups[maker - 2][0]].mover
        clamp = Call(OpName("clamp"), (Shaped(DType.FLOAT32, shape), 0.0, 1.0), shape)
        plain = 0.0 if moves else self._price(clamp) or 0.0
        down_price, up_price = self._price(down) or 0.0, self._price(up) or 0.0
        if crossing.reorders:
            layouts = [_channels_last(dtype, shape) for dtype in (DType.FLOAT32, DType.UINT8)]
            plain += self._price(layouts[0]) or 0.0
            down_price += self._price(layouts[1]) or 0.0
            up_price += self._price(layouts[1]) or 0.0
        whole = [_whole(price) for price in (up_price, down_price, min(plain, up_price))]
        return Shared(maker, readers, *whole)

    def _reorders(self, crossing: Crossing) -> bool:
        shape = self._shape(crossing.maker)
        if shape is None or len(shape) != 4 or shape[2] * shape[3] == 1:
            return False
        names = (name for name, _ in crossing.readers if name in self.home)
        reads = any(self.graph[name].op == "conv2d" for name in names)
        return reads and not self.lasting.get(crossing.maker, False)

    def _conversions(self, shape: tuple[int, ...]) -> tuple[Call, Call]:
        """The dequantize and the quantize of a value."""
        codes, values = Shaped(DType.UINT8, shape), Shaped(DType.FLOAT32, shape)
        ends: dict[str, Arg] = {"scale": SCALE, "zero_point": SHIFTED, "qmin": 0, "qmax": 255}
        if self.target.form == "quantized":
            return (
                Call(OpName("native.dequantize"), (codes,), shape, _BACK),
                Call(OpName("native.quantize"), (values,), shape, FrozenMap(ends)),
            )
        back = _BACK.put("scale", SCALE).put("zero_point", SHIFTED)
        ends["output"] = "uint8"
        return (
            Call(OpName("dequantize"), (codes,), shape, back),
            Call(OpName("quantize"), (values,), shape, FrozenMap(ends)),
        )

    # The decision.

    def decision(self) -> Decision:
        """Solve it."""
        listed = [self.candidates(offer) for offer in self.offers]
        best = [_cheapest_kernel(candidates) for candidates in listed]
        units = [Choices(None, 0), Choices(0, None)]
        for members in self.groups:
            units.append(self._choices(members, listed, best))
        crossings = tuple(self.crossings())
        values = tuple(self.shared(crossing) for crossing in crossings)
        problem = Problem(tuple(units), values)
        cut = cheapest(problem)
        margins = _margins(problem, cut)
        rulings: list[Ruling | None] = [None] * len(self.offers)
        for at, members in enumerate(self.groups, 2):
            for offer in members:
                taken = len(listed[offer]) - 1 if cut.floating[at] else best[offer]
                rulings[offer] = Ruling(self.offers[offer], listed[offer], taken, margins[at])
        made = tuple(ruling for ruling in rulings if ruling is not None)
        return Decision(made, problem, cut, crossings)

    def _choices(
        self, members: list[int], listed: list[tuple[Candidate, ...]], best: list[int]
    ) -> Choices:
        """What a group of offers costs either way; on integers where that cannot be told."""
        kernels = [listed[at][best[at]].price for at in members]
        floats = [listed[at][-1].price for at in members]
        pairs = [
            (k, f) for k, f in zip(kernels, floats, strict=True) if k is not None and f is not None
        ]
        if len(pairs) < len(members) or not self._is_free(members):
            return Choices(sum(_whole(price or 0.0) for price in kernels), None)
        return Choices(sum(_whole(k) for k, _ in pairs), sum(_whole(f) for _, f in pairs))

    def _is_free(self, members: list[int]) -> bool:
        """Whether none is kept, and no mover's value is read as float beside its integers."""
        anchors = (self.graph[self.offers[at].anchor] for at in members)
        if self.kept is not None and any(selects(self.kept, anchor) for anchor in anchors):
            return False
        inside = {self.offers[at].nodes[0] for at in members if self.offers[at].mover}
        return all(
            use.user != OUTPUT and (use.user in inside or self.graph[use.user].op == "quantize")
            for name in inside
            for use in self.users[name]
        )


def packed_kernel(node: Node, engine: str) -> Node | None:
    """The kernel of a packed weight that gives the integers of a pointwise one, if there is one.

    It takes no activation but a relu, and gives integers only.
    """
    if not node.op.startswith("onednn.conv") or node.op[-2:] not in ("1d", "2d", "3d"):
        return None
    attrs = dict(node.attrs.items())
    activation = attrs.pop("activation")
    del attrs["activation_args"]
    if attrs["output"] != "uint8" or activation not in ("none", "relu"):
        return None
    attrs |= {"relu": activation == "relu", "engine": engine}
    op = OpName(node.op.replace("onednn.", "packed.", 1))
    return replace(node, op=op, attrs=FrozenMap(attrs))


def _margins(problem: Problem, cut: Cut) -> list[float | None]:
    """For each unit how many microseconds the whole costs more with that unit's label flipped."""
    labels = cut.floating
    margins: list[int | None] = []
    for choices, is_float in zip(problem.units, labels, strict=True):
        one, two = choices.int8, choices.floating
        margins.append(None if one is None or two is None else one - two if is_float else two - one)
    for value in problem.values:
        counts = [0, 0]
        for reader in value.readers:
            counts[labels[reader]] += 1
        now = _value_price(value, labels[value.maker], *counts)
        for unit in dict.fromkeys((value.maker, *value.readers)):
            maker, moved = labels[value.maker] ^ (unit == value.maker), list(counts)
            if unit in value.readers:
                moved[labels[unit]] -= 1
                moved[not labels[unit]] += 1
            margin = margins[unit]
            if margin is not None:
                margins[unit] = margin + _value_price(value, maker, *moved) - now
    return [None if margin is None else margin / 1e3 for margin in margins]


def _value_price(value: Shared, is_float: bool, int8: int, floats: int) -> int:
    if is_float:
        return (value.down if int8 else 0) + (value.plain if floats else 0)
    return value.up if floats else 0


def _cheapest_kernel(candidates: tuple[Candidate, ...]) -> int:
    """The first of the kernels of least price; the first of all where one has none."""
    prices = [item.price for item in candidates[:-1]]
    known = [price for price in prices if price is not None]
    return prices.index(min(known)) if len(known) == len(prices) else 0


def _channels_last(dtype: DType, shape: tuple[int, ...]) -> Call:
    return Call(OpName("plain.channels_last"), (Shaped(dtype, shape),), shape)


def _whole(price: float) -> int:
    """Microseconds as whole nanoseconds."""
    return round(price * 1e3)


def _size(dim: Dim, sizes: FrozenMap[int]) -> int | None:
    if not isinstance(dim, Poly):
        return dim
    total = 0
    for atoms, factor in dim.terms:
        for atom in atoms:
            held = _atom(atom, sizes)
            if held is None:
                return None
            factor *= held
        total += factor
    return max(total, 1)


def _atom(atom: str, sizes: FrozenMap[int]) -> int | None:
    """A named dimension, 1 where its size is not told, or a quotient `(a)//(b)`, `(a)%(b)`."""
    if not atom.startswith("("):
        found = sizes.get(atom)
        return 1 if found is None else found
    at = _closing(atom)
    left, rest = atom[1:at], atom[at + 1 :]
    op = "//" if rest.startswith("//") else "%"
    right = rest[len(op) + 1 : -1]
    one, two = (_size(read_dim(text), sizes) for text in (left, right))
    if one is None or not two:
        return None
    return one // two if op == "//" else one % two


def _closing(text: str) -> int:
    """Where the bracket that the text opens with is closed."""
    depth = 0
    for at, mark in enumerate(text):
        depth += (mark == "(") - (mark == ")")
        if depth == 0:
            return at
    return len(text)


_PACKED = ("native.conv1d", "native.conv2d", "native.conv3d", "native.linear")
"""What both engines compute exactly; of transposed convolutions each is wrong for some."""
_UNKNOWN = "?"
"""Stands for an operand whose sizes are not known."""
_BACK: FrozenMap[Arg] = FrozenMap({"dtype": DType.FLOAT32})
_REORDERING = frozenset(
    {
        "input",
        "permute",
        "transpose",
        "reshape",
        "flatten",
        "unflatten",
        "linear",
        "matmul",
        "bmm",
        "expand",
        "leaf",
        "conv2d",
    }
)
"""Operators whose result's layout does not follow their operand's; convolutions that run in float
whatever is chosen get what they get."""
