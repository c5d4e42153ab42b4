"""`observe`: plan, then put an observer wherever one of the targets needs a statistic.

    x -> conv            x -> conv
                         x -> observe

Observers are taps: nobody reads their value. What the recipe asks of the nodes that will read the
values on integers stands in the `intent` of the first one, so that `convert` needs the graph alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fqx.ir.arg import Arg, NodeRef
from fqx.ir.compare import edits_between
from fqx.ir.diff import Item, rewritten
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph, fresh_id
from fqx.ir.names import NodeId, RuleName, Stage
from fqx.ir.node import Node, Origin
from fqx.kit.frozen import FrozenMap, Table, row
from fqx.kit.result import Failure, Result, Success, gather
from fqx.num.scheme import ObserverSpec, spec_to_arg
from fqx.ops.catalogue import make_node
from fqx.passes.pipeline import Pass, Rewrite
from fqx.policy.arrange import Tap
from fqx.policy.plan import Plan, Planned, plan_resolved
from fqx.policy.recipe import (
    Choice,
    Recipe,
    Scheme,
    recipe_to_arg,
    resolve,
    scheme_from_arg,
    scheme_to_arg,
)
from fqx.policy.target import Target, target_to_arg
from fqx.policy.verdicts import Verdict

NAME = RuleName("observe")
_NEEDS = frozenset({Stage.FLOAT, Stage.FUSED})


@dataclass(frozen=True, slots=True)
class Intent:
    """What a rule of the recipe asks of some nodes; no scheme: to be left float."""

    scheme: Scheme | None
    rule: str
    nodes: tuple[NodeId, ...]


def observe(recipe: Recipe, *targets: Target) -> Pass:
    """Puts the observers that any of the targets needs; nothing is computed differently.

    Takes float and fused graphs and gives OBSERVED ones; its evidence is the first target's plan.
    Faults: BAD_RECIPE, UNMATCHED_RULE and SHADOWED_RULE for the recipe, UNSUPPORTED_TARGET if no
    target is given.
    """
    options: FrozenMap[Arg] = FrozenMap(
        {
            "recipe": recipe_to_arg(recipe),
            "targets": tuple(target_to_arg(target) for target in targets),
        }
    )
    brief: FrozenMap[Arg] = FrozenMap(
        {"recipe": str(recipe), "targets": tuple(target.label for target in targets)}
    )
    return Pass(
        "observe",
        options,
        _NEEDS,
        Stage.OBSERVED,
        lambda graph: _observe(graph, recipe, targets),
        brief=brief,
    )


def observe_plan(plan: Plan) -> Pass:
    """Puts the observers of a plan, edited or not; see `observe`.

    Fails with CONFLICTING_PLAN if the plan is that of another graph.
    """
    options: FrozenMap[Arg] = FrozenMap({"plan": plan.target.label, "nodes": len(plan.schemes)})
    return Pass("observe_plan", options, _NEEDS, Stage.OBSERVED, lambda g: _observe_plan(g, plan))


def intents_of(node: Node) -> Result[tuple[Intent, ...], Fault]:
    """The intents an observer carries; BAD_RECIPE if they cannot be read."""
    held = node.attrs.get("intent")
    pairs = held if isinstance(held, tuple) else ()
    return gather(_read_intent(pair) for pair in pairs)


def intents_to_arg(intents: Iterable[Intent]) -> Arg:
    """Intents as plain data for an observer's attrs."""
    return tuple(
        (
            None if intent.scheme is None else scheme_to_arg(intent.scheme),
            intent.rule,
            tuple(str(name) for name in intent.nodes),
        )
        for intent in intents
    )


def _read_intent(pair: Arg) -> Result[Intent, Fault]:
    match pair:
        case (None, str() as rule, tuple() as names):
            return Success(Intent(None, rule, tuple(NodeId(str(name)) for name in names)))
        case (FrozenMap() as scheme, str() as rule, tuple() as names):
            ids = tuple(NodeId(str(name)) for name in names)
            return scheme_from_arg(scheme).map(lambda found: Intent(found, rule, ids))
        case _:
            return Failure(Fault(FaultKind.BAD_RECIPE, f"not an intent: {pair!r}"))


def _observe(graph: Graph, recipe: Recipe, targets: tuple[Target, ...]) -> Result[Rewrite, Fault]:
    if not targets:
        return Failure(
            Fault(FaultKind.UNSUPPORTED_TARGET, "no target was given", "name at least one target")
        )
    return resolve(recipe, graph).bind(
        lambda found: _put(
            graph, [plan_resolved(graph, found, target) for target in targets], found.choices
        )
    )


def _put(
    graph: Graph, planned: list[Planned], choices: Mapping[NodeId, Choice]
) -> Result[Rewrite, Fault]:
    taps = tuple(dict.fromkeys(tap for one in planned for tap in one.plan.taps))
    kinds = {kind.anchor for one in planned for kind in one.plan.target.units}
    absorbed = {op for one in planned for kind in one.plan.target.units for op in kind.absorbs}
    told = {
        name: choice
        for name, choice in choices.items()
        if graph[name].op in kinds or graph[name].op in absorbed or _is_custom(choice)
    }
    return _tapped(graph, taps, told, planned[0].plan)


def _is_custom(choice: Choice) -> bool:
    return choice.scheme is not None and choice.scheme.custom


def _observe_plan(graph: Graph, plan: Plan) -> Result[Rewrite, Fault]:
    strangers = [name for name in plan.order if name not in graph]
    if strangers:
        return Failure(
            Fault(
                FaultKind.CONFLICTING_PLAN,
                f"the plan speaks of {strangers[0]}, which the graph does not have",
                "make the plan of this graph",
            )
        )
    told = {
        name: Choice(plan.schemes.get(name), f"a plan for {plan.target.label}")
        for name in plan.order
        if plan[name].verdict is not Verdict.OUTSIDE
    }
    return _tapped(graph, plan.taps, told, plan)


def _tapped(
    graph: Graph,
    taps: tuple[Tap, ...],
    choices: Mapping[NodeId, Choice],
    plan: Plan,
) -> Result[Rewrite, Fault]:
    if not taps and graph.order:
        # the intents need a carrier where nothing is measured; it collects nothing
        taps = (Tap(graph.order[0], ObserverSpec("fixed")),)
    at: dict[NodeId, list[Tap]] = {}
    for tap in taps:
        at.setdefault(tap.value, []).append(tap)
    told = _grouped({node.id: choices[node.id] for node in graph if node.id in choices})
    nodes = dict(graph.nodes.items())
    order: list[NodeId] = []
    for name in graph.order:
        order.append(name)
        for tap in at.get(name, ()):
            made = _tap(nodes, graph[name], tap, told)
            told = ()
            nodes[made.id] = made
            order.append(made.id)
    made_graph = replace(graph, nodes=Table(nodes), order=row(order), stage=Stage.OBSERVED)
    edits = edits_between(graph, made_graph, _by)
    return rewritten(graph, edits).bind(lambda made: Success(Rewrite(made.graph, made.diff, plan)))


def _by(_: Item) -> RuleName:
    return NAME


def _grouped(asked: Mapping[NodeId, Choice]) -> tuple[Intent, ...]:
    by_choice: dict[Choice, list[NodeId]] = {}
    for name, choice in asked.items():
        by_choice.setdefault(choice, []).append(name)
    return tuple(
        Intent(choice.scheme, choice.rule, tuple(names)) for choice, names in by_choice.items()
    )


def _tap(nodes: Mapping[NodeId, Node], value: Node, tap: Tap, intents: tuple[Intent, ...]) -> Node:
    origin = Origin(value.origin.scope, value.origin.call, value.origin.source, (value.id,))
    return make_node(
        "observe",
        fresh_id(nodes, value.id, "observe"),
        origin,
        x=NodeRef(value.id),
        states=(),
        observer=spec_to_arg(tap.observer),
        intent=intents_to_arg(intents) if intents else None,
    )
