"""`decompose_recurrent` and `decompose_attention`: whole layers written out as the ops they are.

A recurrent layer or an attention is one op here, which runs in float. Written out, it is linears,
matrix products and elementwise ops, each of which a plan can give to an int8 kernel. The real
meaning stays exactly; what moves are last bits, because float32 sums are taken in another order.
Each written-out op does as many roundings as the kernel it replaces, so both stand equally far from
the value in float64: the law `rounds_well` holds the one to eight times the error of the other.
"""

from __future__ import annotations

from functools import partial

from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import Stage
from fqx.kit.result import Result
from fqx.match.rewrite import rewrite
from fqx.match.rule import Rules
from fqx.ops.types import types
from fqx.passes.decompose_attention import ATTENTIONS
from fqx.passes.decompose_recurrence import RECURRENCES
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite

STAGES = frozenset({Stage.FLOAT, Stage.FUSED})


def decompose_recurrent() -> Pass:
    """Gives a graph whose LSTMs, GRUs, RNNs and their cells are linears and gates, step by step.

    A layer whose sequence length is not known beforehand stays whole. New nodes are named by layer,
    direction, step and part: `encoder:lstm:layer0.reverse.step2.forget`. The graph stays at its
    stage. No faults of its own.
    """
    return Pass("decompose_recurrent", NO_OPTIONS, STAGES, None, partial(_decompose, RECURRENCES))


def decompose_attention() -> Pass:
    """Gives a graph whose attentions are two matrix products around a softmax.

    `fuse` makes one op of such products, so this pass stands behind it. An attention that drops
    weights at random, takes a causal and a given mask at once, or has sizes that its scale or its
    shared heads need and that are not known beforehand stays whole. The graph stays at its stage.
    No faults of its own.
    """
    return Pass("decompose_attention", NO_OPTIONS, STAGES, None, partial(_decompose, ATTENTIONS))


def _decompose(rules: Rules, graph: Graph) -> Result[Rewrite, Fault]:
    made = rewrite(graph, rules, types=types(graph))
    return made.map(lambda done: Rewrite(done.graph, done.diff))
