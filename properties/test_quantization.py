"""Laws of the passes from observe to lower, on graphs drawn from the catalogue."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from hypothesis import assume, given, note
from hypothesis import strategies as st

from fqx.audit.align import aligned
from fqx.audit.compare import compare
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import Path
from fqx.ir.show import show
from fqx.ir.trail import Halt, Trail
from fqx.kit.result import Result, is_success
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.correct_bias import correct_bias
from fqx.passes.expose import expose
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.lower import Lowering, lower
from fqx.passes.observe import observe
from fqx.passes.pipeline import Pass, Pipeline
from fqx.passes.smooth import equalize_inputs, smooth
from fqx.policy.homes import homes_in
from fqx.policy.plan import plan_resolved
from fqx.policy.recipe import Recipe, int8_static, resolve, within
from fqx.policy.target import Target
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.testing.borders import BORDER_LAWS
from fqx.testing.chains import chains, watching_channels
from fqx.testing.correction import CORRECTION_LAWS, Correction
from fqx.testing.graphs import Sample, samples
from fqx.testing.laws import EXACT, IDEMPOTENT, PASS_LAWS, Law, Subject, broken, violations
from fqx.testing.quantization import ROAD_LAWS, Road

TARGETS: tuple[Target, ...] = (
    onednn(),
    onednn().narrowed(),
    native("onednn").unwrap(),
    reference(),
)
MORE: dict[str, tuple[Law[Subject], ...]] = {"fold": (EXACT, IDEMPOTENT)}


def _pipeline(sample: Sample, target: Target, recipe: Recipe | None = None) -> Pipeline:
    return (
        clean()
        | fuse()
        | observe(recipe or int8_static(), target)
        | calibrate([sample.inputs], progress=False)
        | smooth()
        | convert(target)
        | fold()
        | lower(target)
    )


def _overflows(result: Result[Trail, Halt]) -> bool:
    return result.swap().map(lambda halt: halt.fault.kind is FaultKind.NOT_FINITE).value_or(False)


def _taken(sample: Sample, target: Target, recipe: Recipe | None = None) -> Road:
    note(f"{target.label}\n{show(sample.graph)}")
    result = _pipeline(sample, target, recipe).run(sample.graph)
    # A graph whose values overflow is refused by name; every other fault is a bug.
    assume(not _overflows(result))
    trail = result.unwrap()
    note(show(trail.graph))
    return Road(sample.inputs, target, trail)


@given(samples(), st.sampled_from(TARGETS))
def test_every_pass_obeys_the_laws(sample: Sample, target: Target) -> None:
    road = _taken(sample, target)
    passes: tuple[Pass, ...] = _pipeline(sample, target).passes
    for item, graph in zip(passes, road.trail.graphs(), strict=False):
        found = violations(item, graph, (*PASS_LAWS, *MORE.get(item.name, ())), sample.inputs)
        assert not found, f"{item}\n" + "\n\n".join(map(str, found))


@given(samples(), st.sampled_from(TARGETS))
def test_every_road_obeys_the_laws(sample: Sample, target: Target) -> None:
    found = broken(ROAD_LAWS, _taken(sample, target))
    assert not found, "\n\n".join(map(str, found))


@given(samples(), st.sampled_from(TARGETS))
def test_what_is_exposed_is_missing_from_nothing_else(sample: Sample, target: Target) -> None:
    """Every input and output that can be exposed, all of them at once."""
    graph = _taken(sample, target).before("lower")
    count_in, count_out = len(graph.signature.inputs), len(graph.outputs)
    inputs = tuple(at for at in range(count_in) if is_success(expose((at,)).rewrite(graph)))
    outputs = tuple(at for at in range(count_out) if is_success(expose((), (at,)).rewrite(graph)))
    assume(inputs or outputs)
    found = violations(expose(inputs, outputs), graph, BORDER_LAWS, sample.inputs)
    assert not found, "\n\n".join(map(str, found))


@given(samples() | chains(), st.sampled_from(TARGETS))
def test_equalized_inputs_obey_the_laws(sample: Sample, target: Target) -> None:
    note(show(sample.graph))
    above = (
        clean()
        | fuse()
        | observe(watching_channels(), target)
        | calibrate([sample.inputs], progress=False)
    )
    result = above.run(sample.graph)
    assume(not _overflows(result))
    graph = result.unwrap().graph
    laws = (*PASS_LAWS, EXACT, IDEMPOTENT)
    found = violations(equalize_inputs(), graph, laws, sample.inputs)
    assert not found, "\n\n".join(map(str, found))
    made = (equalize_inputs() | convert(target) | fold() | lower(target)).run(result.unwrap())
    account = broken(ROAD_LAWS, Road(sample.inputs, target, made.unwrap()))
    assert not account, "\n\n".join(map(str, account))


@given(samples(), st.sampled_from(TARGETS))
def test_corrected_biases_obey_the_laws(sample: Sample, target: Target) -> None:
    road = _taken(sample, target)
    reference, before = road.before("convert"), road.before("lower")
    rewrite = correct_bias(reference, [sample.inputs], progress=False)
    found = violations(rewrite, before, PASS_LAWS, sample.inputs)
    assert not found, "\n\n".join(map(str, found))
    made = rewrite.run(before)
    assume(not _overflows(made))
    subject = Correction(reference, before, made.unwrap().graph, sample.inputs)
    account = broken(CORRECTION_LAWS, subject)
    assert not account, "\n\n".join(map(str, account))


@given(samples(), st.sampled_from(TARGETS))
def test_every_kernel_is_compared_with_its_whole_unit(sample: Sample, target: Target) -> None:
    road = _taken(sample, target)
    *_, before, after = road.trail.graphs()
    lowering = road.trail.steps[-1].evidence
    assert isinstance(lowering, Lowering)
    pairs = {pair.b: pair.a for pair in aligned(before, after)}
    for unit in lowering.units:
        last = unit.nodes[-1]
        behind = {node.id for node in before if node.op == "quantize" and last in node.inputs()}
        assert pairs[unit.anchor] in {last, *behind}, unit


@given(samples(), st.sampled_from(TARGETS), st.booleans())
def test_every_program_is_no_distance_from_itself(
    sample: Sample, target: Target, isolated: bool
) -> None:
    for graph in _taken(sample, target).trail.graphs():
        for row in compare(graph, graph, [sample.inputs], isolated).unwrap().rows:
            assert row.distance.noise == 0.0 or not math.isfinite(row.distance.signal), row


def _moved_in(graph: Graph, first: int, last: int) -> Graph:
    """The nodes from `first` to `last` as those of a module `home`."""
    scope = ((Path(""), "Drawn"), (Path("home"), "Home"))
    inside = [node for node in graph if node.op != "input"][first:last]
    moved = {node.id: replace(node, origin=replace(node.origin, scope=scope)) for node in inside}
    return replace(graph, nodes=graph.nodes.edit(moved))


@given(samples(), st.sampled_from(TARGETS), st.integers(0, 6), st.integers(1, 6))
def test_nothing_is_shared_across_the_border_of_a_standalone_module(
    sample: Sample, target: Target, first: int, count: int
) -> None:
    graph = _moved_in(sample.graph, first, first + count)
    homes = homes_in(graph, ["home"])
    recipe = int8_static() | within("home", int8_static())
    ready = (clean() | fuse()).run(graph).unwrap().graph
    assume(any(homes_in(ready, ["home"]).of(name) for name in ready.order))
    found = broken(ROAD_LAWS, _taken(replace(sample, graph=graph), target, recipe))
    assert not found, "\n\n".join(map(str, found))
    made = plan_resolved(graph, resolve(recipe, graph).unwrap(), target).arrangement
    for seat in made.seats.values():
        assert len({homes.of(name) for name in seat.unit.nodes}) == 1
        for edge in seat.edges:
            params = made.wanted[edge.user, edge.at]
            if homes.apart(edge.value, edge.user):
                assert params.sources == (edge.value,)
                assert params.fixed is None
    for params in (*made.given.values(), *made.wanted.values()):
        assert len({homes.of(name) for name in params.sources}) == 1


GRAPH_LAWS: tuple[Callable[[], None], ...] = (
    test_every_pass_obeys_the_laws,
    test_every_road_obeys_the_laws,
    test_equalized_inputs_obey_the_laws,
    test_corrected_biases_obey_the_laws,
    test_what_is_exposed_is_missing_from_nothing_else,
    test_every_kernel_is_compared_with_its_whole_unit,
    test_every_program_is_no_distance_from_itself,
    test_nothing_is_shared_across_the_border_of_a_standalone_module,
)
"""What `python -m properties` runs on drawn graphs."""
