"""The laws every pass obeys, as values: a name, the claim in words, and a check.

A check gets a `Subject` (a pass, the graph it was given, the trail it gave) and returns None, or an
account of how the claim is broken. `violations` checks a pass on a graph against a group of laws:

    >>> from fqx.testing.laws import PASS_LAWS, violations
    >>> violations(my_pass, graph, PASS_LAWS)        # doctest: +SKIP
    ()

Laws of what lies around a pass (captures, quantized programs, observers) have subjects of their
own and are checked with `broken`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from fqx.ir.arg import DType, Json, canonical
from fqx.ir.codec import decode_diff, decode_graph, encode_diff, encode_graph
from fqx.ir.diff import Added, Changed, Diff, Removed, apply, invert, then
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.ir.node import Node
from fqx.ir.read import read
from fqx.ir.show import show
from fqx.ir.signature import TensorType, Type
from fqx.ir.trail import Step, Trail
from fqx.ir.weight import Weight
from fqx.judge.evaluate import evaluate
from fqx.kit.frozen import Table
from fqx.kit.result import Failure, Result, Success, attempt, fold
from fqx.num.tensors import is_intact, tensor_of, weight_of
from fqx.ops.spec import check
from fqx.ops.types import types
from fqx.passes.pipeline import Pass

__all__ = [
    "EXACT",
    "IDEMPOTENT",
    "JSON",
    "PASS_LAWS",
    "ROUNDS_WELL",
    "TEXT",
    "WELL_FORMED",
    "Codec",
    "Law",
    "Notation",
    "Subject",
    "Violation",
    "broken",
    "diff_inverts",
    "subject_of",
    "survives_json",
    "survives_text",
    "same_bits",
    "tensors_in",
    "violations",
]

S = TypeVar("S")


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
class Law(Generic[S]):
    """A claim about every subject of a kind, and the check that gives an account of a breach."""

    name: str
    claim: str
    check: Callable[[S], str | None]


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken law by name and claim, the account, and the program it was broken on."""

    law: str
    claim: str
    account: str
    program: str = ""

    def __str__(self) -> str:
        return "\n".join((f"{self.law}: {self.claim}", self.account, self.program)).rstrip()


def broken(laws: Iterable[Law[S]], subject: S, program: str = "") -> tuple[Violation, ...]:
    """Every law of the group that the subject breaks; a check that raises is an account too."""
    found = ((law, _account(law, subject)) for law in laws)
    return tuple(
        Violation(law.name, law.claim, account, program) for law, account in found if account
    )


def _account(law: Law[S], subject: S) -> str | None:
    return (
        attempt(
            lambda: law.check(subject), lambda error: f"{type(error).__name__}: {str(error)[:300]}"
        )
        .lash(Success)
        .unwrap()
    )


def subject_of(
    rewrite: Pass, graph: Graph, inputs: Sequence[object] = ()
) -> Result[Subject, Fault]:
    """The subject of a pass on a graph; the fault of the pass if it refuses the graph.

    The pass runs bare, without the contract that a pipeline holds it to: what it breaks, the laws
    tell.
    """
    if graph.stage not in rewrite.needs:
        return Failure(
            Fault(FaultKind.WRONG_STAGE, f"{rewrite.name} takes no {graph.stage.value} graph")
        )
    return rewrite.rewrite(graph).map(
        lambda made: Subject(
            rewrite,
            graph,
            tuple(inputs),
            Trail(
                graph,
                (
                    Step(
                        str(rewrite),
                        made.diff,
                        made.graph,
                        made.evidence,
                        rewrite.portable,
                        rewrite.name,
                        rewrite.options,
                    ),
                ),
            ),
        )
    )


def violations(
    rewrite: Pass, graph: Graph, laws: Iterable[Law[Subject]], inputs: Sequence[object] = ()
) -> tuple[Violation, ...]:
    """Every law of the group that the pass breaks on the graph; a refusal breaks none.

    What is malformed has no types, text or meaning to judge: it breaks that one law.
    """
    program = show(graph)
    return fold(
        subject_of(rewrite, graph, inputs),
        lambda subject: broken((WELL_FORMED,), subject, program) or broken(laws, subject, program),
        lambda fault: (
            (Violation(DIFF_REPLAYS.name, DIFF_REPLAYS.claim, str(fault), program),)
            if fault.kind is FaultKind.DIFF_DOES_NOT_FIT
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


Inverse = Callable[[Diff], Diff]


def diff_inverts(inverse: Inverse = invert) -> Law[Subject]:
    """The law of inverse diffs; whether a diff leads where it says is `diff_replays`' claim."""
    return Law(
        "diff_inverts",
        "the inverse of what replays leads back, and both together are empty",
        lambda subject: _inverts(subject, inverse),
    )


def _inverts(subject: Subject, inverse: Inverse) -> str | None:
    diff = subject.step.diff
    return fold(
        apply(diff, subject.before),
        lambda after: _leads_back(subject.before, diff, after, inverse),
        lambda _: None,
    )


def _leads_back(before: Graph, diff: Diff, after: Graph, inverse: Inverse) -> str | None:
    back = fold(
        apply(inverse(diff), after),
        lambda graph: None if graph == before else "the inverse gives another graph",
        str,
    )
    return back or fold(
        then(diff, inverse(diff)),
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


@dataclass(frozen=True, slots=True)
class Codec:
    """How graphs and diffs are written as plain data and read again."""

    encode_graph: Callable[[Graph], Json] = encode_graph
    decode_graph: Callable[[Json], Result[Graph, Fault]] = decode_graph
    encode_diff: Callable[[Diff], Json] = encode_diff
    decode_diff: Callable[[Json], Result[Diff, Fault]] = decode_diff


JSON = Codec()
"""The library's own."""


def survives_json(codec: Codec = JSON) -> Law[Subject]:
    """The law of JSON, for any codec."""
    return Law(
        "survives_json",
        "graph and diff survive a JSON round trip, origins included",
        lambda subject: _survives_json(subject, codec),
    )


def _survives_json(subject: Subject, codec: Codec) -> str | None:
    after, diff = subject.after, subject.step.diff
    # The yardstick is the library's full encoding: a lossy writer must not judge itself.
    graph = _returned(codec.decode_graph(_through_text(codec.encode_graph(after))), encode_graph)
    if graph != canonical(encode_graph(after)):
        return f"the graph does not survive JSON: {graph}"
    change = _returned(codec.decode_diff(_through_text(codec.encode_diff(diff))), encode_diff)
    if change != canonical(encode_diff(diff)):
        return f"the diff does not survive JSON: {change}"
    return None


def _through_text(code: Json) -> Json:
    read_again: Json = json.loads(json.dumps(code, allow_nan=False))
    return read_again


def _returned(made: Result[S, Fault], encode: Callable[[S], Json]) -> str:
    return fold(made, lambda value: canonical(encode(value)), str)


@dataclass(frozen=True, slots=True)
class Notation:
    """How graphs are printed as programs and read again."""

    write: Callable[[Graph], str] = show
    read: Callable[[str], Result[Graph, Fault]] = read


TEXT = Notation()
"""The library's own."""


def survives_text(notation: Notation = TEXT) -> Law[Subject]:
    """The law of printed programs, for any notation."""
    return Law(
        "survives_text",
        "reading the printed program gives the graph",
        lambda subject: _survives_text(subject, notation),
    )


def _survives_text(subject: Subject, notation: Notation) -> str | None:
    text = notation.write(subject.after)
    return fold(
        notation.read(text),
        lambda graph: (
            None if graph == subject.after else f"reading it gives another graph:\n{text}"
        ),
        lambda fault: f"{fault}\n{text}",
    )


WELL_FORMED: Law[Subject] = Law(
    "output_is_well_formed", "the output meets the spec of its stage", _well_formed
)

DIFF_REPLAYS: Law[Subject] = Law(
    "diff_replays", "applying the diff to the input gives the output", _replays
)

PASS_LAWS: tuple[Law[Subject], ...] = (
    Law(
        "leaves_input_alone", "a pass changes neither its input nor any weight", _leaves_input_alone
    ),
    DIFF_REPLAYS,
    diff_inverts(),
    Law("unchanged_is_identical", "an empty diff gives the same object", _unchanged_is_identical),
    WELL_FORMED,
    Law("keeps_types", "outputs keep dtype and dims", _keeps_types),
    Law("origins_are_total", "every new node names existing nodes it was made of", _has_origins),
    Law("ids_are_never_reused", "an id that was removed does not come back", _never_reuses_ids),
    Law("deterministic", "the same input gives the same diff and digest", _is_deterministic),
    survives_json(),
    survives_text(),
)
"""Laws of every pass, whatever it means."""


def _again_changes_nothing(subject: Subject) -> str | None:
    if subject.after.stage not in subject.rewrite.needs:
        return None
    return fold(
        subject_of(subject.rewrite, subject.after),
        lambda other: (
            None
            if not len(other.step.diff)
            else f"a second run changes it again:\n{other.step.diff}"
        ),
        str,
    )


IDEMPOTENT: Law[Subject] = Law("idempotent", "a second run changes nothing", _again_changes_nothing)
"""Holds for clean, fuse and fold."""


def _outputs(graph: Graph, inputs: tuple[object, ...]) -> Result[list[torch.Tensor], Fault]:
    return evaluate(graph, inputs).map(tensors_in)


def tensors_in(value: object) -> list[torch.Tensor]:
    """The tensors of a tree of containers, left to right."""
    match value:
        case torch.Tensor():
            return [value]
        case list() | tuple():
            return [tensor for item in value for tensor in tensors_in(item)]
        case dict():
            return [tensor for item in value.values() for tensor in tensors_in(item)]
        case _:
            return []


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether both hold the same numbers, NaN where the other has NaN."""
    both_nan = (one != one) & (two != two)
    return one.shape == two.shape and bool(((one == two) | both_nan).all())


def _means_the_same(subject: Subject) -> str | None:
    def compare(before: list[torch.Tensor], after: list[torch.Tensor]) -> str | None:
        for one, two in zip(before, after, strict=True):
            if one.dtype != two.dtype or one.shape != two.shape:
                return f"an output was {one.dtype} {one.shape}, is {two.dtype} {two.shape}"
            if not same_bits(one, two):
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


EXACT: Law[Subject] = Law("keeps_meaning", "outputs are bit for bit the same", _means_the_same)
"""Holds for clean and fold against the judge."""


def widened(graph: Graph) -> Graph:
    """The graph with every float32 weight and input in float64: the yardstick of rounding laws."""
    wide: dict[Path, Weight] = {}
    for path, weight in graph.weights.items():
        if weight.dtype is DType.FLOAT32:
            wide[path] = weight_of(tensor_of(weight).unwrap().double(), weight.role)
    inputs = tuple(replace(item, type=_widened_type(item.type)) for item in graph.signature.inputs)
    signature = replace(graph.signature, inputs=inputs)
    return replace(graph, weights=graph.weights.edit(wide), signature=signature)


def _widened_type(held: Type) -> Type:
    if isinstance(held, TensorType) and held.dtype is DType.FLOAT32:
        return replace(held, dtype=DType.FLOAT64)
    return held


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

    # what torch itself refuses before the pass has no meaning to keep
    return fold(
        _outputs(subject.before, subject.inputs),
        lambda before: fold(
            _outputs(widened(subject.before), double),
            lambda exact: fold(
                _outputs(subject.after, subject.inputs),
                lambda after: compare(exact, before, after),
                str,
            ),
            str,
        ),
        lambda _: None,
    )


ROUNDS_WELL: Law[Subject] = Law(
    "rounds_well",
    "the error against float64 is at most eight times that of the float32 graph before",
    _rounds_well,
)
"""Holds for fuse. One unit in the last place of the output's largest value is granted eight-fold
too, since a float32 graph that happens to be exact leaves no room at all."""
