"""What a float model's own statistics advise: where per-channel weights pay, whose ranges wander,
which channels hold outliers, which inputs and weights want levelling, and a recipe of it all.

The measured numbers are values (`Seen`), the detectors pure functions of them, and every number is
defined where it is computed.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from fqx.audit.measure import call_of
from fqx.ir.arg import Json, NodeRef, WeightRef
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName, Stage
from fqx.ir.node import Node
from fqx.ir.trail import Halt, Trail
from fqx.kit.result import Failure, Result, Success, fold, gather
from fqx.num.affine import fake_quantize
from fqx.num.observers import State, empty, observe
from fqx.num.qparams import predicted_sqnr, qparams_between, weight_qparams
from fqx.num.scheme import ObserverSpec, QSpec, histogram, int8_channel, uint8_affine, uint8_dynamic
from fqx.num.tensors import tensor_of
from fqx.passes.clean import clean
from fqx.passes.execute import Leaves, Program, Stopped, prepare
from fqx.passes.fuse import fuse
from fqx.policy.recipe import Recipe, Scheme, int8_static, leave_float, use
from fqx.policy.selectors import node as the_node

Choice = Literal["static", "dynamic", "float"]
"""How an operator is to run."""

DYNAMIC = Scheme(uint8_dynamic(), int8_channel())
"""The scheme of `int8_dynamic`."""

_CHANNELS: Mapping[OpName, int] = MappingProxyType(
    {
        OpName("linear"): -1,
        **{
            OpName(f"{name}{rank}d"): -1 - rank
            for name in ("conv", "conv_transpose")
            for rank in (1, 2, 3)
        },
    }
)
"""The operators advice is about, and where the channels of their inputs lie."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where the detectors draw their lines; the defaults are those of torch's ModelReport.

    `gain` and `float_below` are this library's own: the least gain in dB for which one scale for
    each channel of a weight pays, and the signal to noise ratio in dB below which an input ruins
    what is computed of it (as in `Smoothing`). `channel_ratio` has no default in torch.
    """

    gain: float = 3.0
    tolerance: float = 0.5
    percentile: float = 0.975
    outlier_ratio: float = 3.5
    enough: float = 0.95
    channel_ratio: float = 0.5
    channel_share: float = 0.4
    float_below: float = 19.5


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What was measured of one input, channels along one axis.

    `state` is a histogram with the range of each channel. Of each batch: `ranges` sums max − min;
    for each channel, `ratios` sums max|x| / p|x| (p the reference percentile, taken at the element
    below) over the `counted` batches in which p|x| > 0, and `constant` counts the batches in which
    all its elements are equal. `squares` sums x² of each channel, `elements` counts a channel's.
    """

    state: State
    batches: int
    ranges: float
    ratios: Tensor
    counted: Tensor
    constant: Tensor
    squares: Tensor
    elements: int


@dataclass(frozen=True, slots=True)
class PerChannel:
    """Predicted SQNR of a weight in dB with one scale, and with one for each output channel."""

    per_tensor: float
    per_channel: float
    pays: bool


def per_channel(weight: Tensor, axis: int, limits: Limits = Limits()) -> PerChannel:
    """10·log10(Σw² / Σ(w − ŵ)²) for ŵ the symmetric int8 weight of either kind.

    Per-channel scales pay where they gain at least `limits.gain` dB; 6 dB are one bit, and even
    channels of one distribution gain some 2 dB, for their largest values differ.
    """
    one, each = (_weight_sqnr(weight, int8_channel(axis), chosen) for chosen in (None, axis))
    # equal to the bit leaves an infinite difference undefined
    return PerChannel(one, each, each > one and each - one >= limits.gain)


def _weight_sqnr(weight: Tensor, spec: QSpec, axis: int | None) -> float:
    plain = weight.detach().float()
    chosen = QSpec(spec.dtype, spec.qmin, spec.qmax, True, axis, ObserverSpec(), "weight")
    made = weight_qparams(plain, chosen)
    seen = fake_quantize(plain, made.scale, made.zero_point, made.qmin, made.qmax, made.axis)
    noise = float((plain.double() - seen.double()).square().sum())
    power = float(plain.double().square().sum())
    return math.inf if noise == 0.0 else 10.0 * math.log10(power / noise)


@dataclass(frozen=True, slots=True)
class Wandering:
    """S, how much of the whole range an average batch takes, and whether it is too little."""

    stationarity: float
    dynamic: bool


def wandering(seen: Seen, limits: Limits = Limits()) -> Wandering:
    """S = mean over batches of (max − min) / (max − min over all batches), in (0, 1].

    An input whose S is at most `limits.tolerance` moves between batches: ranges computed while the
    program runs (dynamic quantization) fit it better than fixed ones. Always 1 where nothing
    varies. torch decides by S of the module's output; a linear's scale is that of its input.
    """
    low, high = seen.state.range
    s = 1.0 if high == low else seen.ranges / seen.batches / (high - low)
    return Wandering(s, s <= limits.tolerance)


@dataclass(frozen=True, slots=True)
class Outliers:
    """Channels with outliers, those constant in every batch, the largest mean ratio.

    `enough` says that each of the outlying channels was counted in enough batches.
    """

    channels: tuple[int, ...]
    constant: tuple[int, ...]
    largest: float
    enough: bool


def outliers(seen: Seen, limits: Limits = Limits()) -> Outliers:
    """r = mean over counted batches of max|x| / p|x| per channel; an outlier is r > 3.5.

    p is the `limits.percentile`, 3.5 is `limits.outlier_ratio`; a channel has `enough` batches if
    counted / batches ≥ `limits.enough`. torch takes percentiles of x, not of |x|.
    """
    ratios = torch.where(seen.counted > 0, seen.ratios / seen.counted.clamp(min=1), 0.0)
    found = ratios > limits.outlier_ratio
    enough = seen.counted / seen.batches >= limits.enough
    return Outliers(
        _indices(found),
        _indices(seen.constant == seen.batches),
        float(ratios.max()) if ratios.numel() else 0.0,
        bool(enough[found].all()),
    )


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(index) for index in mask.nonzero().reshape(-1))


@dataclass(frozen=True, slots=True)
class Levelling:
    """The share of channels that levelling inputs and weights would help; whether it pays."""

    share: float
    pays: bool


def levelling(
    low: Tensor, high: Tensor, weight_low: Tensor, weight_high: Tensor, limits: Limits = Limits()
) -> Levelling:
    """s_c = √(w_c / W) / √(x_c / X), where x_c and w_c are the ranges (max − min) of channel c of
    the input and of the weight that meets it, X and W those of the whole.

    A channel is helped if t ≤ s_c ≤ 1/t for t = `limits.channel_ratio`; equalization is advised if
    at least `limits.channel_share` of the channels are. Channels without a range are not helped.
    """
    x, w = high - low, weight_high - weight_low
    whole, weights = float(high.max() - low.min()), float(weight_high.max() - weight_low.min())
    if whole <= 0.0 or weights <= 0.0:
        return Levelling(0.0, False)
    s = ((w / weights) / (x / whole)).sqrt()
    t = limits.channel_ratio
    share = float(((s >= t) & (s <= 1.0 / t)).double().mean())
    return Levelling(share, share >= limits.channel_share)


def product_sqnr(seen: Seen, energy: Tensor) -> float:
    """What one 8-bit scale keeps of a product, in dB: 10·log10(Σ_c p_c·v_c / (Δ²/12 · Σ_c v_c)).

    p_c is the mean of x² in channel c, v_c the sum w² of the weights that meet it (`energy`), and
    Δ = (max(high, 0) − min(low, 0)) / 255 the step, whose rounding errors are even and independent.
    """
    low, high = seen.state.range
    step = (max(high, 0.0) - min(low, 0.0)) / 255.0
    power = float((seen.squares / max(seen.elements, 1) * energy).sum())
    noise = step * step / 12.0 * float(energy.sum())
    if noise == 0.0 or power == 0.0:
        return math.inf
    return 10.0 * math.log10(power / noise)


@dataclass(frozen=True, slots=True)
class Advised:
    """What the detectors say of one operator.

    `kept` is what one 8-bit scale over the whole range keeps of its input (`predicted_sqnr` of the
    histogram), `product` what it keeps of the result (`product_sqnr`), both in dB. `ruined` says
    that no static scale serves it: `kept` is below `Limits.float_below`, or `product` is and there
    is no smoothing, which only linears have.

    `choice` is what the recipe makes of it: `dynamic` for a linear whose input wanders, unless
    `kept` − 20·log10(S), with the step of an average batch, is below `float_below` still; `float`
    for what is ruined otherwise; `static` for the rest.
    """

    node: NodeId
    op: OpName
    weight: PerChannel
    input: Wandering
    outliers: Outliers
    levelling: Levelling
    kept: float
    product: float
    ruined: bool
    choice: Choice

    @property
    def advice(self) -> tuple[str, ...]:
        """One line for each detector that speaks up."""
        weight, seen = self.weight, self.outliers
        gain = weight.per_channel - weight.per_tensor
        share = f"{self.input.stationarity:.0%}"
        few = "" if seen.enough else ", in few batches"
        lines = (
            (self.ruined, f"one scale keeps {min(self.kept, self.product):.1f} dB: {self.choice}"),
            (weight.pays, f"scales per channel gain {gain:.1f} dB"),
            (
                self.input.dynamic,
                f"dynamic: a batch takes {share} of the range",
            ),
            (
                bool(seen.channels),
                f"outliers in {len(seen.channels)} channels, up to {seen.largest:.1f} times{few}",
            ),
            (bool(seen.constant), f"{len(seen.constant)} channels are constant"),
            (self.levelling.pays, f"levelling helps {self.levelling.share:.0%} of the channels"),
        )
        return tuple(line for holds, line in lines if holds)

    def to_json(self) -> Json:
        """The advice as plain data; JSON has no infinity, so an infinite number is null."""
        return {
            "node": self.node,
            "op": self.op,
            "per_tensor": _finite(self.weight.per_tensor),
            "per_channel": _finite(self.weight.per_channel),
            "stationarity": self.input.stationarity,
            "dynamic": self.input.dynamic,
            "outliers": list(self.outliers.channels),
            "largest": _finite(self.outliers.largest),
            "enough": self.outliers.enough,
            "constant": list(self.outliers.constant),
            "levelling": self.levelling.share,
            "kept": _finite(self.kept),
            "product": _finite(self.product),
            "ruined": self.ruined,
            "choice": self.choice,
            "advice": list(self.advice),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Advice:
    """What the detectors say of every operator with a weight, in program order."""

    batches: int
    rows: tuple[Advised, ...]

    kind = "advice"

    def __getitem__(self, name: str) -> Advised:
        """The advice on one operator."""
        row = next((row for row in self.rows if row.node == name), None)
        if row is None:
            raise KeyError(name)
        return row

    @property
    def recipe(self) -> Recipe:
        """For `fqx.quantize(recipe=...)`: static int8 but for the rows whose choice is another."""
        made = int8_static()
        for row in self.rows:
            match row.choice:
                case "float":
                    made = made | leave_float(the_node(row.node))
                case "dynamic":
                    made = made | use(the_node(row.node), DYNAMIC)
                case "static":
                    pass
        return made

    @property
    def code(self) -> str:
        """The recipe as Python to paste, behind `import fqx`."""
        dynamic = "fqx.use(fqx.node({!r}), fqx.int8_dynamic().rules[0].scheme)"
        forms = {"float": "fqx.leave_float(fqx.node({!r}))", "dynamic": dynamic}
        lines = ["fqx.int8_static()"]
        lines += [
            f"| {forms[row.choice].format(str(row.node))}"
            for row in self.rows
            if row.choice != "static"
        ]
        return lines[0] if len(lines) == 1 else "(\n    " + "\n    ".join(lines) + "\n)"

    def to_json(self) -> Json:
        """The advice as plain data."""
        return {
            "batches": self.batches,
            "rows": [row.to_json() for row in self.rows],
            "recipe": self.code,
        }

    def __repr__(self) -> str:
        """At most ten lines; the operators with most to say first."""
        lines = [f"Advice on {len(self.rows)} operators over {self.batches} batches"]
        ordered = sorted(self.rows, key=lambda row: (row.choice == "static", -len(row.advice)))
        told = [row for row in ordered if row.advice]
        lines += [f"  {row.node}: {'; '.join(row.advice)}" for row in told[:7]]
        lines += [f"  and {len(told) - 7} more"] if len(told) > 7 else []
        counts = [
            f", {count} operators {choice}"
            for choice in ("dynamic", "float")
            if (count := sum(row.choice == choice for row in self.rows))
        ]
        return "\n".join((*lines, f"  recipe: int8_static{''.join(counts)}"))

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><td>{html.escape(row.node)}</td><td>{row.op}</td>"
            f"<td>{html.escape('; '.join(row.advice))}</td></tr>"
            for row in self.rows
        )
        head = "<tr><th>operator</th><th>op</th><th>advice</th></tr>"
        return f"<table>{head}{body}</table><pre>{html.escape(self.code)}</pre>"


def advise(
    program: Trail | Graph,
    batches: Iterable[object],
    limits: Limits = Limits(),
    *,
    inputs: Callable[[object], object] | None = None,
    leaves: Leaves | None = None,
) -> Result[Advice, Halt]:
    """Run a float program on the batches and say how its convolutions and linears want to be int8.

    Takes a captured graph or trail (of a trail the base; it is cleaned and fused as `quantize`
    does, which keeps the names). `inputs` and `leaves` are those of `calibrate`.

    Faults: EMPTY_CALIBRATION without batches, NOT_FINITE naming the node, BAD_ARGUMENT for a graph
    that is quantized already, and those of `Program.run`.
    """
    graph = program.base if isinstance(program, Trail) else program
    trail = Trail(graph)
    if graph.stage not in (Stage.FLOAT, Stage.FUSED):
        return Failure(Halt(_not_float(graph), trail))
    picked = batches if inputs is None else map(inputs, batches)
    fused: Result[Trail, Halt] = Success(trail)
    ready = fused if graph.stage is Stage.FUSED else (clean() | fuse()).run(trail)
    return ready.bind(
        lambda done: (
            prepare(done.graph, leaves)
            .bind(lambda program: _advised(program, picked, limits))
            .alt(lambda fault: Halt(fault, done))
        )
    )


def _not_float(graph: Graph) -> Fault:
    return Fault(
        FaultKind.BAD_ARGUMENT,
        f"advice is about float programs, this one is {graph.stage.value}",
        "give the captured trail, or its base",
    )


def _advised(program: Program, batches: Iterable[object], limits: Limits) -> Result[Advice, Fault]:
    graph = program.graph
    reads = tuple((node, x) for node in graph if (x := _input_of(node)) is not None)
    axes = {x: _CHANNELS[node.op] for node, x in reads}
    return _measured(program, axes, batches, limits).bind(
        lambda seen: gather(_row(graph, node, seen[x], limits) for node, x in reads).map(
            lambda rows: Advice(next((held.batches for held in seen.values()), 0), rows)
        )
    )


def _input_of(node: Node) -> NodeId | None:
    """The value an operator of the table takes beside a constant weight."""
    if node.op not in _CHANNELS or not isinstance(node.args[1], WeightRef):
        return None
    return node.args[0].id if isinstance(node.args[0], NodeRef) else None


def _row(graph: Graph, node: Node, seen: Seen, limits: Limits) -> Result[Advised, Fault]:
    path = node.weights()[0]
    return tensor_of(graph.weights[graph.ties.get(path) or path]).map(
        lambda weight: advised(node, weight, seen, limits)
    )


def advised(node: Node, weight: Tensor, seen: Seen, limits: Limits = Limits()) -> Advised:
    """All detectors on one operator, its weight and what was seen of its input."""
    transposed = node.op.startswith("conv_transpose")
    state, meeting = seen.state, _by_input(node, weight)
    assert state.channel_low is not None
    assert state.channel_high is not None
    kept = predicted_sqnr(state, qparams_between(uint8_affine(), state.low, state.high))
    product = product_sqnr(seen, meeting.square().sum(1))
    level = levelling(
        state.channel_low, state.channel_high, meeting.amin(1), meeting.amax(1), limits
    )
    ruined = kept < limits.float_below or (product < limits.float_below and node.op != "linear")
    moves = wandering(seen, limits)
    return Advised(
        node.id,
        node.op,
        per_channel(weight, 1 if transposed else 0, limits),
        moves,
        outliers(seen, limits),
        level,
        kept,
        product,
        ruined,
        _choice(node.op, moves, kept, ruined, limits),
    )


def _choice(op: OpName, moves: Wandering, kept: float, ruined: bool, limits: Limits) -> Choice:
    if op == "linear" and moves.dynamic and moves.stationarity > 0.0:
        batch = kept - 20.0 * math.log10(moves.stationarity)
        return "dynamic" if batch >= limits.float_below else "float"
    return "float" if ruined else "static"


def _by_input(node: Node, weight: Tensor) -> Tensor:
    """float64 [channels of the input, weights that meet them]."""
    plain = weight.detach().double()
    if node.op.startswith("conv_transpose"):
        return plain.reshape(plain.shape[0], -1)
    groups = node.attrs.get("groups")
    count = groups if isinstance(groups, int) else 1
    # [groups, outputs, inputs, ...] of a weight that has the inputs of one group
    apart = plain.reshape(count, plain.shape[0] // count, plain.shape[1], -1)
    return apart.transpose(1, 2).reshape(count * plain.shape[1], -1)


# Measuring.


def _measured(
    program: Program, axes: Mapping[NodeId, int], batches: Iterable[object], limits: Limits
) -> Result[dict[NodeId, Seen], Fault]:
    found: dict[NodeId, Seen] = {}

    def tap(name: NodeId, value: object) -> None:
        axis = axes.get(name)
        if axis is None or not isinstance(value, Tensor):
            return
        held = found.get(name) or nothing_seen(axis, value.shape[axis])
        found[name] = fold(
            seen_more(held, axis, value, limits),
            lambda made: made,
            lambda fault: _stop(program.graph[name], fault),
        )

    count = 0
    for batch in batches:
        args, kwargs = call_of(batch)
        fault = fold(program.run(args, kwargs, tap), lambda _: None, lambda fault: fault)
        if fault is not None:
            return Failure(fault)
        count += 1
    return Success(found) if count else Failure(_no_batches())


def nothing_seen(axis: int, channels: int) -> Seen:
    """What was seen before any batch."""
    zeros = torch.zeros(channels, dtype=torch.float64)
    return Seen(empty(histogram(axis=axis)), 0, 0.0, zeros, zeros, zeros, zeros, 0)


def seen_more(seen: Seen, axis: int, value: Tensor, limits: Limits) -> Result[Seen, Fault]:
    """What was seen before and in one more batch; NOT_FINITE or EMPTY_BATCH as `observe` says."""
    return observe(histogram(axis=axis), seen.state, value).map(
        lambda state: _added(seen, state, value.detach().movedim(axis, 0).flatten(1), limits)
    )


def _added(seen: Seen, state: State, channels: Tensor, limits: Limits) -> Seen:
    size = channels.abs()
    count = channels.shape[1]
    reference = size.kthvalue(1 + math.floor(limits.percentile * (count - 1)), 1).values.double()
    counts = (reference > 0.0).double()
    ratio = size.amax(1).double() / torch.where(reference > 0.0, reference, 1.0)
    constant = (channels.amin(1) == channels.amax(1)).double()
    return Seen(
        state,
        seen.batches + 1,
        seen.ranges + float(channels.max()) - float(channels.min()),
        seen.ratios + ratio * counts,
        seen.counted + counts,
        seen.constant + constant,
        seen.squares + channels.double().square().sum(1),
        seen.elements + count,
    )


def _stop(node: Node, fault: Fault) -> Seen:
    raise Stopped(fault.located(node.id, node.origin.module, node.origin.source))


def _no_batches() -> Fault:
    return Fault(
        FaultKind.EMPTY_CALIBRATION,
        "there is no batch to run the program on",
        "give at least one batch; a generator that was used up gives none",
    )
