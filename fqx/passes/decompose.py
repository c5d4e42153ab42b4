"""`decompose_recurrent` and `decompose_attention`: whole layers written out as the ops they are.

A recurrent layer or an attention is one op here, which runs in float. Written out, it is linears,
matrix products and elementwise ops, each of which a plan can give to an int8 kernel. The real
meaning stays exactly; what moves are last bits, because float32 sums are taken in another order.
Each written-out op does as many roundings as the kernel it replaces, so both stand equally far from
the value in float64: the law `rounds_well` holds the one to eight times the error of the other.
"""

from __future__ import annotations

from dataclasses import replace

from fqx.ir.arg import Arg
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph, users
from fqx.ir.names import Stage
from fqx.ir.node import Node
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success
from fqx.match.explain import explain
from fqx.match.rewrite import rewrite
from fqx.match.rule import Made, Rule, Rules
from fqx.match.search import Match, Miss
from fqx.ops.types import types
from fqx.passes.decompose_attention import ATTENTIONS
from fqx.passes.decompose_recurrence import RECURRENCES
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite
from fqx.policy.selectors import Selector, near_misses, selector_to_arg, selects

STAGES = frozenset({Stage.FLOAT, Stage.FUSED})
_PARTS = frozenset({"getitem", "baddbmm"})
"""Operators the rules rewrite that are no layer by themselves."""


def decompose_recurrent(select: Selector | None = None) -> Pass:
    """Gives a graph whose LSTMs, GRUs, RNNs and their cells are linears and gates, step by step.

    The program then takes sequences of the captured length alone; a layer whose length is not known
    beforehand stays whole. New nodes are named by layer, direction, step and part:
    `encoder:lstm:layer0.reverse.step2.forget`. The graph stays at its stage.

    With `select` only the layers it takes are written out, and all of them. Faults then: a layer
    that would stay whole is BAD_ARGUMENT with the reason, a name that no node has UNMATCHED_RULE.
    """
    return _pass("decompose_recurrent", RECURRENCES, select)


def decompose_attention(select: Selector | None = None) -> Pass:
    """Gives a graph whose attentions are two matrix products around a softmax.

    `fuse` makes one op of such products, so this pass stands behind it. An attention that drops
    weights at random, takes a causal and a given mask at once, or has sizes that its scale or its
    shared heads need and that are not known beforehand stays whole. A product with something added
    (baddbmm: the scores of `nn.MultiheadAttention` that gives its weights) becomes two ops. The
    graph stays at its stage.

    `select` is as in `decompose_recurrent`, with the same faults.
    """
    return _pass("decompose_attention", ATTENTIONS, select)


def _pass(name: str, listed: Rules, select: Selector | None) -> Pass:
    if select is None:
        return Pass(name, NO_OPTIONS, STAGES, None, lambda graph: _decompose(listed, graph))
    options: FrozenMap[Arg] = FrozenMap({"select": selector_to_arg(select)})
    brief: FrozenMap[Arg] = FrozenMap({"select": str(select)})
    return Pass(
        name, options, STAGES, None, lambda graph: _selected(listed, select, graph), brief=brief
    )


def _decompose(listed: Rules, graph: Graph) -> Result[Rewrite, Fault]:
    made = rewrite(graph, listed, types=types(graph))
    return made.map(lambda done: Rewrite(done.graph, done.diff))


def _selected(listed: Rules, select: Selector, graph: Graph) -> Result[Rewrite, Fault]:
    if select.is_named and not any(selects(select, node) for node in graph):
        return Failure(_unmatched(select, graph))
    chosen = Rules(tuple(_only(rule, select) for rule in listed))
    return _decompose(chosen, graph).bind(lambda made: _all_of(listed, select, made))


def _only(rule: Rule, select: Selector) -> Rule:
    """The rule for selected layers; a getitem has no say, it reads what became of its operand."""

    def make(found: Match) -> Made:
        if found.root.op != "getitem" and not selects(select, found.root):
            return Miss("it is not selected", found.root.id)
        return rule.make(found)

    return replace(rule, make=make)


def _all_of(listed: Rules, select: Selector, made: Rewrite) -> Result[Rewrite, Fault]:
    """The rewrite, if it left nothing whole that was selected and is read."""
    names = {name for rule in listed for name in rule.find.ops if name not in _PARTS}
    read = users(made.graph)
    whole = [
        node for node in made.graph if node.op in names and read[node.id] and selects(select, node)
    ]
    return Failure(_stays(whole[0], listed, made.graph)) if whole else Success(made)


def _stays(node: Node, listed: Rules, graph: Graph) -> Fault:
    rule = next(rule for rule in listed if node.op in rule.find.ops)
    misses = explain(rule, graph, types(graph)).misses
    why = next((near.miss.why for near in misses if near.root == node.id), "no rule takes it")
    return Fault(
        FaultKind.BAD_ARGUMENT,
        f"{node.op} cannot be written out: {why}",
        "fix its sizes at capture, or select other layers and let it run in float",
    ).located(node.id, node.origin.module, node.origin.source)


def _unmatched(select: Selector, graph: Graph) -> Fault:
    close = ", ".join(map(repr, near_misses(select, graph)))
    return Fault(
        FaultKind.UNMATCHED_RULE,
        f"nothing in the graph is {select}",
        f"did you mean {close}?" if close else "print the graph to see its names",
    )
