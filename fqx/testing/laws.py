"""The laws every pass obeys, as values: a name, the claim in words, and a check.

A check gets a `Subject` (a pass, the graph it was given, the trail it gave) and returns None, or an
account of how the claim is broken. `violations` checks a pass on a graph against a group of laws:

    >>> from fqx.testing.laws import PASS_LAWS, violations
    >>> violations(my_pass, graph, PASS_LAWS)        # doctest: +SKIP
    ()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from fqx.ir.arg import DType, canonical
from fqx.ir.codec import decode_diff, decode_graph, encode_diff, encode_graph
from fqx.ir.diff import Added, Changed, Removed, apply, invert, then
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.ir.node import Node
from fqx.ir.read import read
from fqx.ir.show import show
from fqx.ir.trail import Step, Trail
from fqx.ir.weight import Weight
from fqx.judge.evaluate import evaluate
from fqx.kit.frozen import Table
from fqx.kit.result import Result, fold
from fqx.num.tensors import is_intact, tensor_of, weight_of
from fqx.ops.spec import check
from fqx.ops.types import types
from fqx.passes.pipeline import Pass

__all__ = [
    "EXACT",
    "IDEMPOTENT",
    "PASS_LAWS",
    "Law",
    "Subject",
    "Violation",
    "fuse_rounds_well",
    "subject_of",
    "violations",
]


@dataclass(frozen=True, slots=True)
class Subject:
    """A pass, the graph it was given, sample inputs for that graph, and what it gave."""

    rewrite: Pass
    before: Graph
    inputs: tuple[object, ...]
    trail: Trail

    @property
    def step(self) -> Step:
        """The pass's step."""
        return self.trail.steps[-1]

    @property
    def after(self) -> Graph:
        """The graph the pass gave."""
        return self.trail.graph


@dataclass(frozen=True, slots=True)
class Law:
    """A claim about every pass, and the check that gives an account where it is broken."""

    name: str
    claim: str
    check: Callable[[Subject], str | None]


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken law, the account, and the program it was broken on."""

    law: Law
    account: str
    program: str

    def __str__(self) -> str:
        return f"{self.law.name}: {self.law.claim}\n{self.account}\n{self.program}"


def subject_of(
    rewrite: Pass, graph: Graph, inputs: Sequence[object] = ()
) -> Result[Subject, Fault]:
    """The subject of a pass on a graph; the fault of the pass if it refuses the graph."""
    return (
        rewrite.run(graph)
        .map(lambda trail: Subject(rewrite, graph, tuple(inputs), trail))
        .alt(lambda halt: halt.fault)
    )


def violations(
    rewrite: Pass, graph: Graph, laws: Iterable[Law], inputs: Sequence[object] = ()
) -> tuple[Violation, ...]:
    """Every law of the group that the pass breaks on the graph; a refusal breaks none."""
    return fold(
        subject_of(rewrite, graph, inputs),
        lambda subject: tuple(
            Violation(law, account, show(graph))
            for law in laws
            for account in (law.check(subject),)
            if account is not None
        ),
        lambda fault: (
            (Violation(WELL_FORMED, str(fault), show(graph)),)
            if fault.kind is FaultKind.BROKEN_CONTRACT
            else ()
        ),
    )


def _leaves_input_alone(subject: Subject) -> str | None:
    graph = subject.before
    anew = replace(graph, nodes=Table({node.id: replace(node) for node in graph}))
    if anew.digest != graph.digest:
        return "the graph it was given has another encoding now"
    spoiled = [
        path
        for path, weight in (*graph.weights.items(), *subject.after.weights.items())
        if weight.payload is not None and not is_intact(weight)
    ]
    return f"weights were written into: {', '.join(spoiled)}" if spoiled else None


def _replays(subject: Subject) -> str | None:
    return fold(
        apply(subject.step.diff, subject.before),
        lambda graph: None if graph == subject.after else "the diff gives another graph",
        str,
    )


def _inverts(subject: Subject) -> str | None:
    diff = subject.step.diff
    back = fold(
        apply(invert(diff), subject.after),
        lambda graph: None if graph == subject.before else "the inverse gives another graph",
        str,
    )
    return back or fold(
        then(diff, invert(diff)),
        lambda both: (
            None if not len(both) else f"{len(both)} edits remain of a diff and its inverse"
        ),
        str,
    )


def _unchanged_is_identical(subject: Subject) -> str | None:
    if len(subject.step.diff) or subject.after is subject.before:
        return None
    return "the diff is empty but the graph is another object"


def _well_formed(subject: Subject) -> str | None:
    wanted = subject.rewrite.gives or subject.before.stage
    return fold(check(subject.after, wanted), lambda _: None, str)


def _keeps_types(subject: Subject) -> str | None:
    return (
        None
        if _output_types(subject.before) == _output_types(subject.after)
        else (
            f"outputs were {_output_types(subject.before)} and are {_output_types(subject.after)}"
        )
    )


def _output_types(graph: Graph) -> tuple[str, ...]:
    table = types(graph)
    from_nodes = (leaf for leaf in graph.outputs)
    return tuple(str(table.get(getattr(leaf, "id", NodeId("")), leaf)) for leaf in from_nodes)


def _has_origins(subject: Subject) -> str | None:
    known = set(subject.before.nodes)
    for edit in subject.step.diff.edits:
        match edit:
            case Added(item=Node() as node):
                strange = [parent for parent in node.origin.parents if parent not in known]
                if not node.origin.parents:
                    return f"{node.id} was made of nothing"
                if strange or node.id in node.origin.parents:
                    return f"{node.id} is said to come from {', '.join(strange) or 'itself'}"
                known.add(node.id)
            case _:
                pass
    return None


def _never_reuses_ids(subject: Subject) -> str | None:
    gone: set[NodeId] = set()
    for edit in subject.step.diff.edits:
        match edit:
            case Removed(item=Node(id=name)):
                gone.add(name)
            case Added(item=Node(id=name)) if name in gone:
                return f"{name} was removed and is used again"
            case Changed(old=Node(id=one), new=Node(id=two)) if one != two:
                return f"{one} became {two} in place"
            case _:
                pass
    return None


def _is_deterministic(subject: Subject) -> str | None:
    again = fold(
        subject_of(subject.rewrite, subject.before),
        lambda other: (other.after.digest, canonical(encode_diff(other.step.diff))),
        lambda fault: (str(fault), ""),
    )
    first = (subject.after.digest, canonical(encode_diff(subject.step.diff)))
    return None if again == first else "a second run gives something else"


def _survives_json(subject: Subject) -> str | None:
    graph = fold(decode_graph(encode_graph(subject.after)), lambda made: made.digest, str)
    if graph != subject.after.digest:
        return f"the graph does not survive JSON: {graph}"
    code = encode_diff(subject.step.diff)
    diff = fold(
        decode_diff(code),
        lambda made: canonical(encode_diff(made)) == canonical(code),
        lambda _: False,
    )
    return None if diff else "the diff does not survive JSON"


def _survives_text(subject: Subject) -> str | None:
    text = show(subject.after)
    return fold(
        read(text),
        lambda graph: (
            None if graph == subject.after else f"reading it gives another graph:\n{text}"
        ),
        lambda fault: f"{fault}\n{text}",
    )


WELL_FORMED = Law("output_is_well_formed", "the output meets the spec of its stage", _well_formed)
"""Also what a pass breaks that the pipeline stops for what it gave."""

PASS_LAWS: tuple[Law, ...] = (
    Law(
        "leaves_input_alone", "a pass changes neither its input nor any weight", _leaves_input_alone
    ),
    Law("diff_replays", "applying the diff to the input gives the output", _replays),
    Law("diff_inverts", "the inverse diff leads back, and both together are empty", _inverts),
    Law("unchanged_is_identical", "an empty diff gives the same object", _unchanged_is_identical),
    WELL_FORMED,
    Law("keeps_types", "outputs keep dtype and dims", _keeps_types),
    Law("origins_are_total", "every new node names existing nodes it was made of", _has_origins),
    Law("ids_are_never_reused", "an id that was removed does not come back", _never_reuses_ids),
    Law("deterministic", "the same input gives the same diff and digest", _is_deterministic),
    Law("survives_json", "graph and diff survive a JSON round trip", _survives_json),
    Law("survives_text", "reading the printed program gives the graph", _survives_text),
)
"""Laws of every pass, whatever it means."""


def _again_changes_nothing(subject: Subject) -> str | None:
    if subject.after.stage not in subject.rewrite.needs:
        return None
    return fold(
        subject_of(subject.rewrite, subject.after),
        lambda other: (
            None
            if other.after is subject.after
            else f"a second run changes it again:\n{other.step.diff}"
        ),
        str,
    )


IDEMPOTENT = Law("idempotent", "a second run changes nothing", _again_changes_nothing)
"""Holds for clean, fuse and fold."""


def _outputs(graph: Graph, inputs: tuple[object, ...]) -> Result[list[torch.Tensor], Fault]:
    return evaluate(graph, inputs).map(_tensors)


def _tensors(value: object) -> list[torch.Tensor]:
    match value:
        case torch.Tensor():
            return [value]
        case list() | tuple():
            return [tensor for item in value for tensor in _tensors(item)]
        case dict():
            return [tensor for item in value.values() for tensor in _tensors(item)]
        case _:
            return []


def _means_the_same(subject: Subject) -> str | None:
    def compare(before: list[torch.Tensor], after: list[torch.Tensor]) -> str | None:
        for one, two in zip(before, after, strict=True):
            if one.dtype != two.dtype or one.shape != two.shape:
                return f"an output was {one.dtype} {one.shape}, is {two.dtype} {two.shape}"
            if not torch.equal(torch.nan_to_num(one), torch.nan_to_num(two)):
                worst = (one.double() - two.double()).abs().max().item()
                return f"an output differs by {worst}"
        return None

    return fold(
        _outputs(subject.before, subject.inputs),
        lambda before: fold(
            _outputs(subject.after, subject.inputs), lambda after: compare(before, after), str
        ),
        # what torch itself refuses before the pass has no meaning to keep
        lambda _: None,
    )


EXACT = Law("keeps_meaning", "outputs are bit for bit the same", _means_the_same)
"""Holds for clean and fold against the judge."""


def widened(graph: Graph) -> Graph:
    """The graph with every float32 weight in float64: the yardstick of rounding laws."""
    wide: dict[Path, Weight] = {}
    for path, weight in graph.weights.items():
        if weight.dtype is DType.FLOAT32:
            wide[path] = weight_of(tensor_of(weight).unwrap().double(), weight.role)
    return replace(graph, weights=graph.weights.edit(wide))


def _rounds_well(subject: Subject) -> str | None:
    double = tuple(
        item.double() if isinstance(item, torch.Tensor) and item.is_floating_point() else item
        for item in subject.inputs
    )

    def compare(
        exact: list[torch.Tensor], before: list[torch.Tensor], after: list[torch.Tensor]
    ) -> str | None:
        for truth, one, two in zip(exact, before, after, strict=True):
            if not truth.is_floating_point() or not truth.numel():
                continue
            scale = truth.abs().max().item()
            allowed = 8 * (one.double() - truth).abs().max().item() + 8 * scale * 2.0**-23
            error = (two.double() - truth).abs().max().item()
            if error > allowed:
                return f"the error against float64 is {error}, allowed are {allowed}"
        return None

    return fold(
        _outputs(widened(subject.before), double),
        lambda exact: fold(
            _outputs(subject.before, subject.inputs),
            lambda before: fold(
                _outputs(subject.after, subject.inputs),
                lambda after: compare(exact, before, after),
                str,
            ),
            lambda _: None,
        ),
        lambda _: None,
    )


fuse_rounds_well = Law(
    "rounds_well",
    "the error against float64 is at most eight times that of the float32 graph before",
    _rounds_well,
)
"""Holds for fuse. One unit in the last place of the output's largest value is granted eight-fold
too, since a float32 graph that happens to be exact leaves no room at all."""
