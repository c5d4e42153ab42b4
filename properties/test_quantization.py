"""Laws of the passes from observe to lower, on graphs drawn from the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume, given, note
from hypothesis import strategies as st
from torch import Tensor

from fqx.edge.kernels import bind
from fqx.edge.materialize import materialize
from fqx.ir.arg import Arg, NodeRef, WeightRef
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Stage
from fqx.ir.node import Node
from fqx.ir.show import show
from fqx.ir.trail import Halt, Step, Trail
from fqx.judge.evaluate import evaluate, values
from fqx.kit.result import Result
from fqx.num.tensors import tensor_of
from fqx.ops.catalogue import is_kernel, shares_qparams
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.lower import Lowering, lower
from fqx.passes.observe import observe
from fqx.passes.pipeline import Pipeline
from fqx.passes.smooth import smooth
from fqx.policy.plan import Plan
from fqx.policy.recipe import int8_static
from fqx.policy.target import Target
from fqx.policy.units import Form
from fqx.policy.verdicts import Reason
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.testing.graphs import Sample, samples
from fqx.testing.laws import EXACT, IDEMPOTENT, PASS_LAWS, Law, violations

TARGETS: tuple[Target, ...] = (
    onednn(),
    onednn().narrowed(),
    native("onednn").unwrap(),
    reference(),
)


def _passes(sample: Sample, target: Target) -> Pipeline:
    return (
        clean()
        | fuse()
        | observe(int8_static(), target)
        | calibrate([sample.inputs], progress=False)
        | smooth()
        | convert(target)
        | fold()
        | lower(target)
    )


@dataclass(frozen=True, repr=False)
class Road:
    """A drawn graph all the way down to kernels."""

    sample: Sample
    target: Target
    pipeline: Pipeline
    trail: Trail

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        # Hypothesis would print a dataclass field by field, kernels and all.
        printer.text(f"{self.target.label}: {self.sample!r}")

    def stage(self, name: str) -> tuple[Graph, Step]:
        """The graph a pass was given, and its step."""
        index = [item.name for item in self.pipeline.passes].index(name)
        return self.trail.graphs()[index], self.trail.steps[index]


def _overflows(result: Result[Trail, Halt]) -> bool:
    return result.swap().map(lambda halt: halt.fault.kind is FaultKind.NOT_FINITE).value_or(False)


@st.composite
def roads(draw: st.DrawFn) -> Road:
    """Samples whose values are finite, quantized for a drawn target."""
    sample, target = draw(samples()), draw(st.sampled_from(TARGETS))
    road = _passes(sample, target)
    note(show(sample.graph))
    result = road.run(sample.graph)
    # A graph whose values overflow is refused by name; every other fault is a bug.
    assume(not _overflows(result))
    trail = result.unwrap()
    note(show(trail.graph))
    return Road(sample, target, road, trail)


MORE: dict[str, tuple[Law, ...]] = {"fold": (EXACT, IDEMPOTENT)}


@given(roads())
def test_every_pass_obeys_the_laws(road: Road) -> None:
    for item, graph in zip(road.pipeline.passes, road.trail.graphs(), strict=False):
        laws = (*PASS_LAWS, *MORE.get(item.name, ()))
        broken = violations(item, graph, laws, road.sample.inputs)
        assert not broken, f"{item}\n" + "\n\n".join(map(str, broken))


@given(roads())
def test_every_node_has_one_verdict(road: Road) -> None:
    graph, step = road.stage("convert")
    assert isinstance(step.evidence, Plan)
    planned = {node.id for node in graph if node.op != "observe"}
    assert set(step.evidence.order) - {n.id for n in graph if n.op == "observe"} == planned
    assert set(step.evidence.order) == set(step.evidence.annotations)


def _plain(graph: Graph) -> list[tuple[str, ...]]:
    """The program with quantizers, observers and the names of weights left out."""
    through: dict[NodeId, Arg] = {}
    for node in graph:
        if node.op in ("quantize", "dequantize"):
            through[node.id] = node.args[0]

    def seen(ref: NodeRef | WeightRef) -> Arg:
        found: Arg = ref
        while isinstance(found, NodeRef) and found.id in through:
            found = through[found.id]
        return "a weight" if isinstance(found, WeightRef) else found

    kept = [n for n in graph if n.op not in ("quantize", "dequantize", "observe")]
    outputs = tuple(str(seen(leaf)) for leaf in graph.outputs if isinstance(leaf, NodeRef))
    return [(node.map_refs(seen).code,) for node in kept] + [outputs]


@given(roads())
def test_convert_puts_quantizers_on_edges_and_changes_nothing_else(road: Road) -> None:
    graph, step = road.stage("convert")
    assert _plain(graph) == _plain(step.graph)
    scales = {node.args[1:3] for node in step.graph if node.op == "quantize"}
    assert all(isinstance(zero_point, int) for _, zero_point in scales)


@given(roads())
def test_quantized_programs_compute_fake_quantization(road: Road) -> None:
    """dequantize(quantize(x)) is torch's fake quantization of x, bit for bit."""
    _, step = road.stage("convert")
    found = values(step.graph, road.sample.inputs, {}).unwrap()
    for node in step.graph:
        if node.op != "dequantize" or not isinstance(node.args[0], NodeRef):
            continue
        quantizer = step.graph[node.args[0].id]
        source, scale, zero_point = quantizer.args
        low, high = quantizer.attrs["qmin"], quantizer.attrs["qmax"]
        assert isinstance(source, NodeRef)
        assert isinstance(scale, float) and isinstance(zero_point, int)
        assert isinstance(low, int) and isinstance(high, int)
        x, y = found[source.id], found[node.id]
        assert isinstance(x, Tensor) and isinstance(y, Tensor)
        fake = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
        assert torch.equal(fake, y), node.id


@given(roads())
def test_weights_are_within_half_a_step(road: Road) -> None:
    graph, step = road.stage("convert")
    found = values(step.graph, road.sample.inputs, {}).unwrap()
    for node in step.graph:
        if node.op == "dequantize" and isinstance(node.args[0], WeightRef):
            path, scale = node.args[0].path, node.args[1]
            old = graph.weights.get(path)
            if old is None or old.dtype == step.graph.weights[path].dtype:
                continue
            made = found[node.id]
            assert isinstance(made, Tensor) and isinstance(scale, WeightRef)
            steps = tensor_of(step.graph.weights[scale.path]).unwrap()
            axis = node.attrs["axis"]
            assert isinstance(axis, int)
            shape = [-1 if index == axis else 1 for index in range(made.dim())]
            error = (tensor_of(old).unwrap() - made).abs()
            assert bool((error <= steps.view(shape) * 0.5001 + 1e-12).all())


def _grid(graph: Graph, node: Node) -> tuple[Arg, ...] | None:
    """Scale, zero point and range of the quantizer a value is read through."""
    if node.op != "dequantize" or not isinstance(node.args[0], NodeRef):
        return None
    quantizer = graph[node.args[0].id]
    return (*quantizer.args[1:3], quantizer.attrs["dtype"]) if quantizer.op == "quantize" else None


@given(roads())
def test_movers_of_integers_keep_their_qparams(road: Road) -> None:
    _, step = road.stage("convert")
    graph = step.graph
    assert isinstance(step.evidence, Plan)
    given_by = {
        node.args[0].id: (*node.args[1:3], node.attrs["dtype"])
        for node in graph
        if node.op == "quantize" and isinstance(node.args[0], NodeRef)
    }
    for name in step.evidence.order:
        moves = step.evidence[name].reason is Reason.MOVES_INTEGERS
        if moves and name in graph and shares_qparams(graph[name]) and name in given_by:
            read = [_grid(graph, graph[source]) for source in graph[name].inputs()]
            assert all(grid == given_by[name] for grid in read), name


@given(roads())
def test_no_float_value_enters_an_int8_kernel(road: Road) -> None:
    graph, step = road.stage("lower")
    assert isinstance(step.evidence, Lowering)
    held = _lowered_values(road)
    integers = (torch.uint8, torch.int8, torch.quint8, torch.qint8)
    for unit in step.evidence.units:
        node = step.graph[unit.anchor]
        first = node.args[0][0] if isinstance(node.args[0], tuple) else node.args[0]
        assert isinstance(first, NodeRef)
        value = held[first.id]
        assert isinstance(value, Tensor)
        assert value.dtype in integers, (unit, value.dtype)
    assert graph.stage is Stage.QUANTIZED


def _as_read(graph: Graph, arg: Arg, held: dict[NodeId, object]) -> Any:
    match arg:
        case NodeRef(id=name):
            return held[name]
        case WeightRef(path=path):
            return tensor_of(graph.weights[graph.ties.get(path) or path]).unwrap()
        case tuple():
            return tuple(_as_read(graph, item, held) for item in arg)
        case _:
            return arg


def _lowered_values(road: Road) -> dict[NodeId, object]:
    """Every value of the lowered program, each node fed what the reference program computed.

    A kernel's own result is kept under its id with a `!` in front, beside the reference's.
    """
    graph, step = road.stage("lower")
    truth = values(graph, road.sample.inputs, {}).unwrap()
    assert isinstance(step.evidence, Lowering)
    quantizers = {
        node.args[0].id: node.id
        for node in graph
        if node.op == "quantize" and isinstance(node.args[0], NodeRef)
    }
    units = {unit.anchor: unit for unit in step.evidence.units}
    held: dict[NodeId, object] = {}
    for node in step.graph:
        if is_kernel(node):
            run = bind(node.op, node.attrs)
            made = run(*(_as_read(step.graph, arg, held) for arg in node.args))
            held[NodeId(f"!{node.id}")] = made
            unit = units.get(node.id)
            if unit is None:
                held[node.id] = truth.get(node.id, made) if node.op != "native.quantize" else made
            elif unit.form is Form.FLOAT:
                held[node.id] = truth[unit.nodes[-1]]
            else:
                held[node.id] = _like(made, truth[quantizers[unit.nodes[-1]]])
        else:
            held[node.id] = (
                truth[node.id] if node.id in truth else _recomputed(step.graph, node, held)
            )
    return held


def _recomputed(graph: Graph, node: Node, held: dict[NodeId, object]) -> object:
    operands = tuple(_as_read(graph, arg, held) for arg in node.args)
    return bind(node.op, node.attrs)(*operands)


def _like(made: object, integers: object) -> object:
    """The reference's integers in the form the kernel gave: plain, or torch's quantized dtype."""
    assert isinstance(made, Tensor) and isinstance(integers, Tensor)
    if not made.is_quantized:
        return integers.to(made.dtype)
    with _no_deprecation():
        return torch._make_per_tensor_quantized_tensor(
            integers.to(torch.uint8), made.q_scale(), made.q_zero_point()
        )


def _no_deprecation() -> Any:
    import warnings

    return warnings.catch_warnings(action="ignore", category=UserWarning)


@given(roads())
def test_kernels_compute_their_reference_units(road: Road) -> None:
    """Fed the same integers: within one quantum, and equal but for a thousandth of the elements."""
    _, step = road.stage("lower")
    assert isinstance(step.evidence, Lowering)
    held = _lowered_values(road)
    for unit in step.evidence.units:
        made, truth = held[NodeId(f"!{unit.anchor}")], held[unit.anchor]
        assert isinstance(made, Tensor) and isinstance(truth, Tensor)
        if unit.form is Form.FLOAT:
            allowed = 1e-5 * truth.abs().max().clamp(min=1e-3)
            assert bool(((made - truth).abs() <= allowed).all()), unit
            continue
        ours = (made.int_repr() if made.is_quantized else made).int()
        theirs = (truth.int_repr() if truth.is_quantized else truth).int()
        apart = (ours - theirs).abs()
        assert int(apart.max()) <= 1 if apart.numel() else True, unit
        assert int((apart > 0).sum()) <= 1 + 0.001 * apart.numel(), unit


@given(roads(), st.integers(1, 4))
def test_one_module_serves_every_batch_size(road: Road, batch: int) -> None:
    module = materialize(road.trail.graph).unwrap()
    inputs = tuple(item[:1].repeat(batch, *(1,) * (item.dim() - 1)) for item in road.sample.inputs)
    with torch.no_grad(), _no_deprecation():
        whole, one = module(*inputs), module(*(item[:1] for item in road.sample.inputs))
    for many, single in zip(_tensors(whole), _tensors(one), strict=True):
        assert many.dtype == single.dtype
    expected = _tensors(evaluate(road.trail.base, inputs).unwrap())
    assert [item.shape for item in expected] == [item.shape for item in _tensors(whole)]


def _tensors(value: object) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [v for v in value if isinstance(v, Tensor)]  # type: ignore[attr-defined]


GRAPH_LAWS: tuple[Callable[[], None], ...] = (
    test_every_pass_obeys_the_laws,
    test_every_node_has_one_verdict,
    test_convert_puts_quantizers_on_edges_and_changes_nothing_else,
    test_quantized_programs_compute_fake_quantization,
    test_weights_are_within_half_a_step,
    test_movers_of_integers_keep_their_qparams,
    test_no_float_value_enters_an_int8_kernel,
    test_kernels_compute_their_reference_units,
    test_one_module_serves_every_batch_size,
)
"""What `python -m properties` runs on drawn graphs."""
