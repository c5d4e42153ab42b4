"""What the user asks for: ordered rules from selectors to schemes; later rules win.

recipe = int8_static() | leave_float(path("classifier")) | use(op("conv2d"), scheme)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fqx.ir.arg import Arg, DType
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success, fold, gather
from fqx.num.scheme import (
    QSpec,
    check_qspec,
    half,
    histogram,
    int8_channel,
    qspec_from_arg,
    qspec_to_arg,
    uint8_affine,
    uint8_dynamic,
    uint8_rows,
)
from fqx.ops.recurrence import CELLS, LAYERS
from fqx.policy.selectors import (
    Selector,
    bad_pattern,
    everything,
    names_no_module,
    near_misses,
    op,
    path,
    selector_from_arg,
    selector_to_arg,
    selects,
    speaks_of_modules,
)
from fqx.policy.units import Mode

__all__ = [
    "Choice",
    "Recipe",
    "Resolution",
    "Rule",
    "Scheme",
    "Smoothing",
    "custom_module",
    "float_",
    "float16",
    "float16_static",
    "int8_dynamic",
    "int8_static",
    "leave_float",
    "recipe_from_arg",
    "recipe_to_arg",
    "resolve",
    "spelt",
    "use",
    "weight_only",
    "within",
]


@dataclass(frozen=True, slots=True)
class Smoothing:
    """When an input is smoothed into the weights, and when it is left alone, in dB.

    The predicted signal to noise ratio of the product is compared with `plain_above` (no need to
    smooth) and the gain with `least_gain`; where the input itself, under one scale, keeps less
    than `float_below`, a few channels hold the range and the product stays float.
    """

    plain_above: float = 32.0
    least_gain: float = 1.0
    float_below: float = 19.5


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a node's operands become integers; `note` says what a pass did to make it possible.

    Without an `activation` only the weight is quantized. `lone` lets light operators (additions,
    pools, activations) run on integers even where no neighbour does. `home` is the path of the
    standalone module the scheme is for: no unit and no scale is shared with what lies outside.
    `custom` asks for a module kept whole to be quantized at its borders, `integers_out` for results
    to be integers even where nothing reads them so: outputs then can be exposed.
    """

    activation: QSpec | None
    weight: QSpec
    smoothing: Smoothing | None = None
    note: str = ""
    lone: bool = False
    home: str = ""
    custom: bool = False
    integers_out: bool = False

    @property
    def mode(self) -> Mode:
        """What becomes integers, and when its scales are known."""
        if self.activation is None:
            return Mode.FLOAT16 if self.weight.dtype is DType.FLOAT16 else Mode.WEIGHT_ONLY
        if self.activation.dtype is DType.FLOAT16:
            return Mode.FLOAT16_STATIC
        return Mode.DYNAMIC if self.activation.when == "dynamic" else Mode.STATIC

    @property
    def static(self) -> QSpec:
        """The activation spec of a scheme that has one; a mistake of the caller otherwise."""
        assert self.activation is not None
        return self.activation


@dataclass(frozen=True, slots=True)
class Rule:
    """Nodes and the scheme they get; None leaves them float.

    `by` is the preset the rule belongs to, empty for the user's own. A strict rule that matches
    nothing, or that later rules take entirely, is a fault; others are reported. `note` is what
    reports say of the rule instead of its selector.
    """

    select: Selector
    scheme: Scheme | None
    by: str = ""
    strict: bool = False
    note: str = ""

    def required(self) -> Rule:
        """The same rule, strict."""
        return replace(self, strict=True)

    @property
    def is_strict(self) -> bool:
        """Whether not taking effect is a fault: asked for, or the user spelt a name."""
        return self.strict or (not self.by and self.select.is_named)

    def __str__(self) -> str:
        what = "float" if self.scheme is None else _show(self.scheme)
        return f"{self.select} -> {what}"


_SHOWN = 8
"""Rules in the short form of a recipe."""


@dataclass(frozen=True, slots=True, repr=False)
class Recipe:
    """Rules in order; `|` puts rules or recipes behind, and the later rule wins."""

    rules: tuple[Rule, ...] = ()

    def __or__(self, other: Recipe | Rule) -> Recipe:
        more = (other,) if isinstance(other, Rule) else other.rules
        return Recipe((*self.rules, *more))

    def __str__(self) -> str:
        return "; ".join(str(rule) for rule in self.rules) or "nothing"

    def __repr__(self) -> str:
        more = len(self.rules) - _SHOWN
        lines = [f"  {rule}" for rule in self.rules[:_SHOWN]]
        return "\n".join(["Recipe", *lines, *([f"  and {more} more rules"] if more > 0 else [])])


@dataclass(frozen=True, slots=True)
class Choice:
    """What the recipe says about one node, and by which rule."""

    scheme: Scheme | None
    rule: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """The choice for every node a rule takes, and remarks about rules without effect."""

    choices: Mapping[NodeId, Choice]
    remarks: tuple[str, ...]


def int8_static() -> Recipe:
    """Static int8: per-channel symmetric weights, per-tensor affine activations.

    Activation ranges are searched in histograms for least squared error. Inputs of linears also
    keep each channel's range, from which `smooth` and `convert` see what one scale would ruin.
    """
    plain = Scheme(uint8_affine(), int8_channel())
    linear = Scheme(uint8_affine(histogram(axis=-1)), int8_channel(), Smoothing())
    return Recipe(
        (Rule(everything(), plain, "int8_static"), Rule(op("linear"), linear, "int8_static"))
    )


def int8_dynamic() -> Recipe:
    """Dynamic int8: per-channel symmetric weights, activations with the scale of each call's range.

    No calibration is needed. Takes linears, convolutions and recurrent layers; the rest stays
    float.
    """
    scheme = Scheme(uint8_dynamic(), int8_channel())
    return Recipe((Rule(everything(), scheme, "int8_dynamic"),))


def weight_only(bits: int = 8) -> Recipe:
    """Weights alone: tables of embeddings in rows of `bits` (8 or 4), linears in int8 channels."""
    table = Scheme(None, uint8_rows(bits))
    return Recipe(
        (
            Rule(op("linear"), Scheme(None, int8_channel()), "weight_only"),
            Rule(op("embedding", "embedding_bag"), table, "weight_only"),
        )
    )


def float16() -> Recipe:
    """Weights of linears and recurrences in half precision, everything computed in float32."""
    names = ("linear", *sorted(LAYERS), *sorted(CELLS))
    return Recipe((Rule(op(*names), Scheme(None, half()), "float16"),))


def float16_static() -> Recipe:
    """Operands, weights and results rounded to half precision, everything computed in float32.

    Takes linears, products, sums, averages, clamps and activations of fixed range; what only moves
    or compares values rounds nothing. No calibration is needed.
    """
    return Recipe((Rule(everything(), Scheme(half("static"), half()), "float16_static"),))


def float_() -> Recipe:
    """Everything stays float."""
    return Recipe((Rule(everything(), None, "float"),))


def use(select: Selector, scheme: Scheme) -> Rule:
    """Nodes the selector takes are quantized by this scheme."""
    return Rule(select, scheme)


def leave_float(select: Selector) -> Rule:
    """Nodes the selector takes stay float."""
    return Rule(select, None)


def within(module: str, recipe: Recipe, border: Literal["float", "quantized"] = "float") -> Recipe:
    """The recipe, applied to the module at this path and to nothing else.

    With a border of `float` the module is standalone: what comes in is quantized inside by scales
    of its own, what goes out is float at the edge, and no unit or scale is shared across. With
    `quantized` integers pass where both sides have them. Paths in the recipe are those of the whole
    model. A path that names no module is a fault of `resolve`.
    """
    inner = path(module)
    home = module if border == "float" else ""
    return Recipe(tuple(_moved_in(rule, inner, home) for rule in recipe.rules))


def _moved_in(rule: Rule, inner: Selector, home: str) -> Rule:
    scheme = rule.scheme if rule.scheme is None else replace(rule.scheme, home=home)
    select = inner if rule.select == everything() else inner & rule.select
    # a part of a recipe that the module has no use for is no mistake, unless it was one before
    by = rule.by or ("" if rule.is_strict else "within")
    return Rule(select, scheme, by, rule.strict, rule.note)


def custom_module(module: str, scheme: Scheme | None = None) -> Rule:
    """The module at this path, kept whole at capture, is quantized at its borders.

    Its operands and its result are observed and quantized by the scheme's activations; what runs
    inside is for `materialize(custom=...)` to say. It must take tensors by position and give one.
    """
    plain = scheme if scheme is not None else Scheme(uint8_affine(), int8_channel())
    return Rule(path(module), replace(plain, custom=True))


def spelt(recipe: Recipe) -> Selector | None:
    """What the user asked to quantize in so many words; None where only presets ask for anything.

    The nodes whose last rule has a scheme, and is the user's own (`use`) or speaks of a part of the
    model (`within`).
    """
    found: Selector | None = None
    for rule in recipe.rules:
        if rule.scheme is not None and (not rule.by or speaks_of_modules(rule.select)):
            found = rule.select if found is None else found | rule.select
        elif found is not None:
            found = None if rule.select == everything() else found & ~rule.select
    return found


def resolve(recipe: Recipe, graph: Graph) -> Result[Resolution, Fault]:
    """The last rule that takes each node.

    Faults: BAD_RECIPE for a scheme or a pattern that cannot be, UNMATCHED_RULE for a strict rule
    that takes no node (with names that look like the ones it spells), SHADOWED_RULE for a strict
    rule of which later rules take every node.
    """
    found = next((fault for rule in recipe.rules if (fault := _check(rule))), None)
    if found is not None:
        return Failure(found)
    nodes = [node for node in graph if node.op not in ("input", "observe")]
    winner: dict[NodeId, int] = {}
    taken: list[list[NodeId]] = []
    for index, rule in enumerate(recipe.rules):
        matched = [node.id for node in nodes if selects(rule.select, node)]
        taken.append(matched)
        winner.update(dict.fromkeys(matched, index))
    faults, remarks = _without_effect(recipe, graph, winner, taken)
    if faults:
        return Failure(faults[0])
    made = [Choice(rule.scheme, rule.note or str(rule)) for rule in recipe.rules]
    return Success(
        Resolution({name: made[index] for name, index in winner.items()}, tuple(remarks))
    )


def _without_effect(
    recipe: Recipe, graph: Graph, winner: Mapping[NodeId, int], taken: Iterable[list[NodeId]]
) -> tuple[list[Fault], list[str]]:
    faults: list[Fault] = []
    remarks: list[str] = []
    kept = set(winner.values())
    for index, (rule, names) in enumerate(zip(recipe.rules, taken, strict=True)):
        if index in kept:
            continue
        fault = _shadowed(recipe, winner, index, names) if names else _unmatched(rule, graph)
        if rule.is_strict or (not names and names_no_module(rule.select, graph)):
            faults.append(fault)
        elif not rule.by:
            remarks.append(fault.reason)
    return faults, remarks


def _unmatched(rule: Rule, graph: Graph) -> Fault:
    close = near_misses(rule.select, graph)
    remedy = (
        f"did you mean {', '.join(map(repr, close))}?"
        if close
        else "print the graph to see its names; clean and fuse take nodes away before"
    )
    return Fault(FaultKind.UNMATCHED_RULE, f"the rule `{rule}` matches no node", remedy)


def _shadowed(
    recipe: Recipe, winner: Mapping[NodeId, int], index: int, names: list[NodeId]
) -> Fault:
    later = sorted({winner[name] for name in names})
    by = " and ".join(f"`{recipe.rules[other]}`" for other in later)
    return Fault(
        FaultKind.SHADOWED_RULE,
        f"the rule `{recipe.rules[index]}` has no effect: {by} takes all of its {len(names)} nodes",
        "put the rule behind those, since later rules win, or drop it",
    )


def _check(rule: Rule) -> Fault | None:
    why = bad_pattern(rule.select)
    if why is not None:
        return Fault(FaultKind.BAD_RECIPE, why, "correct the pattern")
    if rule.scheme is None:
        return None
    activation, weight = rule.scheme.activation, rule.scheme.weight
    if activation is not None and (activation.when == "weight" or activation.axis is not None):
        return Fault(
            FaultKind.BAD_RECIPE,
            f"the rule `{rule}` asks for activations that are not static or dynamic per tensor",
            "use fqx.num.scheme.uint8_affine or uint8_dynamic",
        )
    halved = activation is not None and activation.dtype is DType.FLOAT16
    if halved and (rule.scheme.mode is not Mode.FLOAT16_STATIC or weight.dtype != DType.FLOAT16):
        return Fault(
            FaultKind.BAD_RECIPE,
            f"the rule `{rule}` asks for activations of half precision beside other weights, or"
            " scaled in each call",
            "use fqx.float16_static(), or fqx.float16() for the weights alone",
        )
    if weight.when != "weight":
        return Fault(
            FaultKind.BAD_RECIPE,
            f"the rule `{rule}` gives weights a spec for activations",
            "use fqx.num.scheme.int8_channel",
        )
    checked = check_qspec(weight)
    if activation is not None:
        given = activation
        checked = checked.bind(lambda _: check_qspec(given))
    return fold(checked, lambda _: None, lambda fault: fault)


def _show(scheme: Scheme) -> str:
    if scheme.activation is None:
        return f"{scheme.mode.value} {_show_spec(scheme.weight)}"
    return f"{_show_spec(scheme.activation)} x {_show_spec(scheme.weight)}"


def _show_spec(spec: QSpec) -> str:
    if spec.dtype is DType.FLOAT16:
        return "float16"
    how = "symmetric" if spec.symmetric else "affine"
    where = "" if spec.axis is None else f" along {spec.axis}"
    seen = {"weight": "", "dynamic": " in each call"}.get(
        spec.when, f" by {spec.observer.kind} {spec.observer.search}"
    )
    return f"{spec.dtype.value} {spec.qmin}..{spec.qmax} {how}{where}{seen}"


def scheme_to_arg(scheme: Scheme) -> FrozenMap[Arg]:
    """A scheme as plain data for a node's attrs."""
    limits = scheme.smoothing
    smoothing: Arg = (
        None
        if limits is None
        else (float(limits.plain_above), float(limits.least_gain), float(limits.float_below))
    )
    return FrozenMap(
        {
            "activation": None if scheme.activation is None else qspec_to_arg(scheme.activation),
            "weight": qspec_to_arg(scheme.weight),
            "smoothing": smoothing,
            "note": scheme.note,
            "lone": scheme.lone,
            **({"home": scheme.home} if scheme.home else {}),
            **({"custom": True} if scheme.custom else {}),
            **({"integers_out": True} if scheme.integers_out else {}),
        }
    )


def scheme_from_arg(arg: Arg) -> Result[Scheme, Fault]:
    """Inverse of `scheme_to_arg`; BAD_RECIPE if the data is no scheme."""
    fields = dict(arg.items()) if isinstance(arg, FrozenMap) else {}
    home = str(fields.get("home", ""))
    smoothing, note = _smoothing(fields.get("smoothing")), str(fields.get("note", ""))
    custom, out = (fields.get(name) is True for name in ("custom", "integers_out"))
    lone, held = fields.get("lone") is True, fields.get("activation", False)
    nothing: Result[QSpec | None, Fault] = Success(None)
    activation = nothing if held is None else qspec_from_arg(held).map(_some_spec)
    return activation.bind(
        lambda given: qspec_from_arg(fields.get("weight")).map(
            lambda weight: Scheme(given, weight, smoothing, note, lone, home, custom, out)
        )
    )


def _some_spec(spec: QSpec) -> QSpec | None:
    return spec


def _smoothing(arg: Arg) -> Smoothing | None:
    match arg:
        case (float() as plain, float() as gain, float() as ruin):
            return Smoothing(plain, gain, ruin)
        case _:
            return None


def recipe_to_arg(recipe: Recipe) -> Arg:
    """A recipe as plain data for a pass's options; of predicates only their names."""
    return tuple(
        FrozenMap(
            {
                "select": selector_to_arg(rule.select),
                "scheme": None if rule.scheme is None else scheme_to_arg(rule.scheme),
                "by": rule.by,
                "strict": rule.strict,
                **({"note": rule.note} if rule.note else {}),
            }
        )
        for rule in recipe.rules
    )


def recipe_from_arg(arg: Arg) -> Result[Recipe, Fault]:
    """Inverse of `recipe_to_arg`; BAD_RECIPE if it has a predicate, or the data is no recipe."""
    if not isinstance(arg, tuple):
        return Failure(_no_recipe(arg))
    return gather(_rule_from_arg(item) for item in arg).map(Recipe)


def _rule_from_arg(arg: Arg) -> Result[Rule, Fault]:
    fields = dict(arg.items()) if isinstance(arg, FrozenMap) else {}
    by, strict, held = fields.get("by"), fields.get("strict"), fields.get("scheme")
    if "select" not in fields or not isinstance(by, str) or not isinstance(strict, bool):
        return Failure(_no_recipe(arg))
    none: Result[Scheme | None, Fault] = Success(None)
    scheme = none if held is None else scheme_from_arg(held).map(_some)
    return selector_from_arg(fields["select"]).bind(
        lambda select: scheme.map(
            lambda found: Rule(select, found, by, strict, str(fields.get("note", "")))
        )
    )


def _some(scheme: Scheme) -> Scheme | None:
    return scheme


def _no_recipe(arg: Arg) -> Fault:
    return Fault(FaultKind.BAD_RECIPE, f"not a recipe: {str(arg)[:120]}", "see fqx.int8_static")
