"""Programs chosen by costs: the cut costs least of all labels, and the meaning is kept."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from types import MappingProxyType

import torch
from hypothesis import assume, given, note
from hypothesis import strategies as st

from fqx.api import pipeline
from fqx.ir.arg import NodeRef, Ref, WeightRef, canonical
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.ir.show import show
from fqx.judge.evaluate import values
from fqx.kit.frozen import FrozenMap
from fqx.num.tensors import tensor_of
from fqx.passes.lower import Lowering, decide, lower
from fqx.passes.pipeline import Pipeline
from fqx.policy.costs import Costs, Formula, costs_from_json
from fqx.policy.cut import Choices, Problem, Shared, cheapest, price
from fqx.policy.target import Target
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.timings import built_in_costs
from fqx.testing.graphs import Sample, samples
from fqx.testing.laws import PASS_LAWS, broken, violations
from fqx.testing.quantization import ROAD_LAWS, Road
from fqx.testing.webs import webs

NOT_FINITE = FaultKind.NOT_FINITE

_PRICES = st.integers(0, 60)


@st.composite
def problems(draw: st.DrawFn, most: int = 10) -> Problem:
    """Up to ten units, some of which run in one way only, and values between any of them."""
    count = draw(st.integers(1, most))
    units = tuple(
        Choices(*draw(st.sampled_from([(one, two), (one, two), (None, two), (one, None)])))
        for one, two in draw(st.lists(st.tuples(_PRICES, _PRICES), min_size=count, max_size=count))
    )
    places = st.integers(0, count - 1)
    values = []
    for _ in range(draw(st.integers(0, 2 * count))):
        maker, up = draw(places), draw(_PRICES)
        readers = tuple(reader for reader in draw(st.lists(places, max_size=4)) if reader != maker)
        values.append(Shared(maker, readers, up, draw(_PRICES), draw(st.integers(0, up))))
    return Problem(units, tuple(values))


@given(problems())
def test_the_cut_equals_brute_force(problem: Problem) -> None:
    found = cheapest(problem)
    prices = [
        price(problem, labels) for labels in product((False, True), repeat=len(problem.units))
    ]
    assert price(problem, found.floating) == min(cost for cost in prices if cost is not None)


@given(problems(most=40))
def test_the_price_of_the_labels_is_the_flow(problem: Problem) -> None:
    found = cheapest(problem)
    assert price(problem, found.floating) == found.flow


@given(problems(most=40))
def test_the_cut_is_no_dearer_than_all_float_or_all_int8(problem: Problem) -> None:
    best = cheapest(problem).flow
    for label in (False, True):
        cost = price(problem, (label,) * len(problem.units))
        assert cost is None or best <= cost


@given(problems(most=40))
def test_the_cut_is_the_same_again(problem: Problem) -> None:
    assert cheapest(problem) == cheapest(Problem(problem.units, problem.values))


@given(problems())
def test_of_equal_cuts_the_one_with_most_integers_is_taken(problem: Problem) -> None:
    found = cheapest(problem)
    equal = (
        labels
        for labels in product((False, True), repeat=len(problem.units))
        if price(problem, labels) == found.flow
    )
    assert sum(found.floating) == min(sum(labels) for labels in equal)


# Tables.


def table_of(seed: int) -> Costs:
    """The kernels of the built-in table at drawn prices."""
    whole = built_in_costs(onednn())
    assert whole is not None
    drawn = random.Random(seed)
    names = whole.formulas.keys()
    prices = {name: Formula(drawn.choice((0.0, 1.0, 5.0, 30.0)) + drawn.random()) for name in names}
    # kernels on integers that are no dearer than floats on average
    kernels = [name for name in names if name.startswith(("onednn.", "packed.", "native."))]
    prices |= {name: Formula(drawn.random() * 20.0) for name in kernels}
    return Costs(f"drawn {seed}", "vnni", 1, FrozenMap(prices))


SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.dictionaries(st.text(max_size=9), st.floats(0, 1e6)))
def test_a_table_comes_back_from_its_json(seed: int, measured: dict[str, float]) -> None:
    table = table_of(seed)
    whole = replace(table, measured=FrozenMap(measured), sizes=FrozenMap({"batch": 3}))
    read = costs_from_json(json.loads(canonical(whole.to_json()))).unwrap()
    assert read == whole
    assert read.digest == whole.digest


# Programs.


TARGETS: Mapping[str, Target] = MappingProxyType(
    {item.label: item for item in (onednn(), onednn().narrowed(), native().unwrap())}
)
LABELS = st.sampled_from(tuple(TARGETS))


def _road(sample: Sample, target: Target, table: Costs) -> Road:
    note(f"{target.label}\n{show(sample.graph)}")
    line = pipeline(target, [sample.inputs], progress=False)
    done = Pipeline(line.passes[:-2]).run(sample.graph)
    assume(not done.swap().map(lambda halt: halt.fault.kind is NOT_FINITE).value_or(False))
    trail = lower(target, table).run(done.unwrap()).unwrap()
    note(show(trail.graph))
    return Road(sample.inputs, target, trail)


def _lowering(road: Road) -> Lowering:
    found = road.trail.steps[-1].evidence
    assert isinstance(found, Lowering)
    return found


@given(samples() | webs(), LABELS, SEEDS)
def test_lowering_by_costs_obeys_the_laws(sample: Sample, label: str, seed: int) -> None:
    target, table = TARGETS[label], table_of(seed)
    road = _road(sample, target, table)
    found = violations(lower(target, table), road.before("lower"), PASS_LAWS, sample.inputs)
    assert not found, "\n\n".join(map(str, found))
    account = broken(ROAD_LAWS, road)
    assert not account, "\n\n".join(map(str, account))


@given(samples() | webs(), LABELS, SEEDS)
def test_the_program_costs_least(sample: Sample, label: str, seed: int) -> None:
    target, table = TARGETS[label], table_of(seed)
    road = _road(sample, target, table)
    estimate = _lowering(road).estimate
    assert estimate is not None
    assert estimate.chosen <= min(estimate.int8, estimate.floating)
    decision, _ = decide(road.before("lower"), target, table)
    assert estimate.chosen == decision.cut.flow / 1e3
    units = decision.problem.units
    if len(units) <= 12:
        every = (price(decision.problem, way) for way in product((False, True), repeat=len(units)))
        assert decision.cut.flow == min(cost for cost in every if cost is not None)


@given(samples() | webs(), LABELS, SEEDS)
def test_a_unit_in_float_keeps_its_operators_and_the_values_of_its_weights(
    sample: Sample, label: str, seed: int
) -> None:
    target, table = TARGETS[label], table_of(seed)
    road = _road(sample, target, table)
    before, after = road.before("lower"), road.trail.graph
    truth = values(before, road.inputs, {}).unwrap()
    for unit in _lowering(road).priced:
        for name in unit.nodes if unit.floating else ():
            old, new = before[name], after[name]
            assert (old.op, old.attrs) == (new.op, new.attrs)
            for one, two in _pairs(old, new):
                _same_value(before, after, one, two, truth)


def _pairs(old: Node, new: Node) -> Iterator[tuple[Ref, Ref]]:
    for (_, one), (_, two) in zip(old.refs(), new.refs(), strict=True):
        yield one, two


def _same_value(
    before: Graph, after: Graph, one: Ref, two: Ref, truth: Mapping[NodeId, object]
) -> None:
    """What is read now is what was read, but for the rounding of a value between float units."""
    if isinstance(two, WeightRef):
        wanted = before.weights[one.path] if isinstance(one, WeightRef) else None
        held = tensor_of(after.weights[two.path]).unwrap()
        was = truth[one.id] if isinstance(one, NodeRef) else tensor_of(wanted).unwrap()  # type: ignore[arg-type]
        assert isinstance(was, torch.Tensor)
        assert torch.equal(held, was)
        return
    assert isinstance(one, NodeRef)
    node = after[two.id]
    if node.op == "plain.channels_last":
        (two,) = (arg for arg in node.args if isinstance(arg, NodeRef))
        node = after[two.id]
    if two == one:
        return
    read = before[one.id]
    assert read.op == "dequantize"
    assert isinstance(read.args[0], NodeRef)
    quantizer = before[read.args[0].id]
    maker = quantizer.args[0]
    assert isinstance(maker, NodeRef)
    value, rounded = truth[maker.id], truth[one.id]
    assert isinstance(value, torch.Tensor)
    assert isinstance(rounded, torch.Tensor)
    if node.op == "clamp" and node.id not in before:
        assert node.args[0] == maker
        low, high = (float(str(end)) for end in node.args[1:])
        # half a quantum, and the rounding of a quotient of up to 255 quanta in float32
        off = (value.clamp(low, high) - rounded).abs()
        assert bool((off <= 0.5001 * float(str(read.args[1]))).all())
    else:
        # what only moves values gives what was rounded already
        assert two == maker
        assert torch.equal(value, rounded)
