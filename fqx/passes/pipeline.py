"""Passes as values, and the pipeline that runs them one behind the other.

A pass states the stages it takes and the stage it gives; the pipeline checks both, and that what
came out is a well-formed graph of its stage, after every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from fqx.ir.arg import Arg
from fqx.ir.diff import Diff, Edit, Staged, rewritten
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import RuleName, Stage
from fqx.ir.text import show_arg
from fqx.ir.trail import Evidence, Halt, Step, Trail
from fqx.kit.collector import uncollected
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success, fold
from fqx.num.lent import unchanged
from fqx.ops.spec import check

NO_OPTIONS: FrozenMap[Arg] = FrozenMap()


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What a pass made: the new graph, the diff that leads to it, and what was decided."""

    graph: Graph
    diff: Diff
    evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """One pure rewrite of a graph; `str` gives its text, two passes are equal by name and options.

    The options say everything a replay needs; where that is long, `brief` stands for it in the
    text.

    It takes graphs of the stages in `needs` and gives one of stage `gives` (None: of the stage it
    was given). A pass that cannot promise the same digest in every process and on every machine
    says `portable=False`.
    """

    name: str
    options: FrozenMap[Arg]
    needs: frozenset[Stage]
    gives: Stage | None
    rewrite: Callable[[Graph], Result[Rewrite, Fault]] = field(compare=False, repr=False)
    portable: bool = True
    brief: FrozenMap[Arg] | None = field(default=None, compare=False, repr=False)

    def __or__(self, other: Pass | Pipeline) -> Pipeline:
        """This pass, then the other."""
        return Pipeline((self,)) | other

    def __str__(self) -> str:
        told = self.options if self.brief is None else self.brief
        options = ", ".join(f"{name}={show_arg(value)}" for name, value in told.items())
        return f"{self.name}({options})" if options else self.name

    def run(self, start: Trail | Graph) -> Result[Trail, Halt]:
        """The trail with this pass as its next step; see `Pipeline.run` for the faults."""
        return Pipeline((self,)).run(start)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Passes in order; `|` puts two behind each other, the empty pipeline is the unit."""

    passes: tuple[Pass, ...] = ()

    def __or__(self, other: Pass | Pipeline) -> Pipeline:
        """These passes, then the other's."""
        more = (other,) if isinstance(other, Pass) else other.passes
        return Pipeline((*self.passes, *more))

    def __str__(self) -> str:
        return " | ".join(str(item) for item in self.passes)

    def run(self, start: Trail | Graph) -> Result[Trail, Halt]:
        """Run every pass on what the one before it gave.

        A failure carries the trail up to it. Faults: WRONG_STAGE if a pass does not take the
        graph it is given, BROKEN_CONTRACT if it gives a graph that breaks the spec of its stage,
        STORAGE_CHANGED if the caller's tensors were shared and have changed, and whatever the
        passes themselves report.
        """
        trail = Trail(start) if isinstance(start, Graph) else start
        reached: Result[Trail, Halt] = (
            unchanged((trail.graph,)).map(lambda _: trail).alt(lambda fault: Halt(fault, trail))
        )
        for item in self.passes:
            reached = reached.bind(partial(_advance, item))
        return reached


def conclude(
    graph: Graph,
    edits: Iterable[Edit],
    by: str,
    gives: Stage | None = None,
    evidence: Evidence | None = None,
) -> Result[Rewrite, Fault]:
    """Apply a pass's edits, and the step to stage `gives` where the graph is not there yet.

    Faults: DIFF_DOES_NOT_FIT if an edit does not fit the graph.
    """
    listed = tuple(edits)
    if gives is not None and graph.stage is not gives:
        listed = (*listed, Staged(graph.stage, gives, RuleName(by)))
    return rewritten(graph, listed).map(lambda made: Rewrite(made.graph, made.diff, evidence))


def _advance(item: Pass, trail: Trail) -> Result[Trail, Halt]:
    if not item.portable:
        return _advanced(item, trail)
    with uncollected():
        return _advanced(item, trail)


def _advanced(item: Pass, trail: Trail) -> Result[Trail, Halt]:
    graph = trail.graph
    return (
        _accepts(item, graph)
        .bind(lambda _: item.rewrite(graph))
        .bind(lambda made: _keeps_contract(item, graph, made))
        .map(
            lambda made: trail.plus(
                (
                    Step(
                        str(item),
                        made.diff,
                        made.graph,
                        made.evidence,
                        item.portable,
                        item.name,
                        item.options,
                    ),
                )
            )
        )
        .alt(lambda fault: Halt(_located(fault, graph), trail))
    )


def _accepts(item: Pass, graph: Graph) -> Result[None, Fault]:
    if graph.stage in item.needs:
        return Success(None)
    takes = " or ".join(stage.value for stage in Stage if stage in item.needs)
    return Failure(
        Fault(
            FaultKind.WRONG_STAGE,
            f"{item.name} takes a graph of stage {takes}, this one is {graph.stage.value}",
            _road(item, graph.stage),
        )
    )


def _road(item: Pass, stage: Stage) -> str:
    order = tuple(Stage)
    behind = any(order.index(stage) < order.index(need) for need in item.needs)
    if behind:
        return f"run the passes that come before {item.name} first"
    return f"run {item.name} on an earlier graph of the trail"


def _keeps_contract(item: Pass, graph: Graph, made: Rewrite) -> Result[Rewrite, Fault]:
    gives = item.gives if item.gives is not None else graph.stage
    if made.graph.stage is not gives:
        return Failure(
            _broken(item, f"promises stage {gives.value} and gives {made.graph.stage.value}")
        )
    if (made.diff.before, made.diff.after) != (graph.digest, made.graph.digest):
        return Failure(_broken(item, "gives a diff that does not lead to its graph"))
    if not made.diff.edits and made.graph is not graph:
        return Failure(_broken(item, "gives another graph and an empty diff"))
    if made.graph is graph:
        return Success(made)
    return (
        check(made.graph, gives).alt(lambda fault: _blamed(item, graph, fault)).map(lambda _: made)
    )


def _blamed(item: Pass, graph: Graph, fault: Fault) -> Fault:
    """The pass's defect, unless the graph it was given was malformed already."""
    mine = _broken(item, f"gives a graph in which {fault.reason} ({fault.name})", fault)
    return fold(check(graph, graph.stage), lambda _: mine, lambda earlier: earlier)


def _broken(item: Pass, what: str, cause: Fault | None = None) -> Fault:
    return Fault(
        FaultKind.BROKEN_CONTRACT,
        f"pass {item.name} {what}",
        "this is a defect of the pass; report it with the text of the pipeline and the trail",
        at=cause.at if cause else None,
        module=cause.module if cause else None,
        source=cause.source if cause else None,
        detail=str(cause) if cause else "",
    )


def _located(fault: Fault, graph: Graph) -> Fault:
    node = graph.nodes.get(fault.at) if fault.at is not None else None
    if node is None:
        return fault
    return fault.located(node.id, node.origin.module, node.origin.source)
