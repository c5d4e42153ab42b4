"""`fuse`: batch norms folded into the weights before them, and spellings made the op they mean.

These rewrites change last bits, so each is an edit of the trail. Which ops run as one kernel is not
decided here: that is a unit, chosen by the plan from the target's table.
"""

from __future__ import annotations

from fqx.ir.arg import Arg
from fqx.ir.diff import Staged
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import RuleName, Stage
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Result
from fqx.match.rewrite import rewrite
from fqx.match.rule import Rules
from fqx.num.scheme import Formula
from fqx.ops.types import types
from fqx.passes.fuse_norms import foldings
from fqx.passes.fuse_spellings import SPELLINGS
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite

RULES: Rules = foldings() + SPELLINGS
"""What `fuse` rewrites by."""


def fuse(formula: Formula = "float64") -> Pass:
    """Gives a FUSED graph: foldings as new weights, canonical ops for hand-written ones.

    A norm is folded where nobody else reads the value before it; a weight that others read, or that
    has a second path, keeps its values and the fold gets a path of its own. Under the `formula`
    float32 folded weights have the bits of torch's own fusion, which depend on the machine. Faults:
    MISSING_PAYLOAD where the weights of a fold are not loaded.
    """
    options = NO_OPTIONS if formula == "float64" else FrozenMap[Arg]({"formula": formula})
    rules = foldings(formula) + SPELLINGS
    stages = frozenset({Stage.FLOAT, Stage.FUSED})
    return Pass("fuse", options, stages, Stage.FUSED, lambda graph: _fuse(graph, rules))


def _fuse(graph: Graph, rules: Rules) -> Result[Rewrite, Fault]:
    reached = Staged(graph.stage, Stage.FUSED, RuleName("fuse"))
    made = rewrite(graph, rules, types=types(graph), closing=(reached,))
    return made.map(lambda done: Rewrite(done.graph, done.diff))
