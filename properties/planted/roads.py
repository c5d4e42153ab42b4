"""Roads, each with one wrong turn: a convert, a plan, a lowering, a kernel or a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import torch

from fqx.edge import kernels
from fqx.edge.materialize import materialize
from fqx.ir.arg import Arg, DType, NodeRef
from fqx.ir.compare import edits_between
from fqx.ir.diff import rewritten
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName, Path, RuleName
from fqx.ir.node import Node
from fqx.ir.signature import Tree
from fqx.ir.trail import Step
from fqx.kit.frozen import FrozenMap, Table, row
from fqx.num.tensors import tensor_of, weight_of
from fqx.ops.catalogue import make_node
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.policy.plan import Plan
from fqx.policy.recipe import Recipe, float16_static, int8_dynamic, int8_static
from fqx.policy.target import Target
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.testing.draft import Draft
from fqx.testing.quantization import Road

Tamper: TypeAlias = Callable[[Graph], Graph]
ID = NodeId


@dataclass(frozen=True, slots=True)
class Planted:
    """A wrong road and the law it breaks."""

    law: str
    title: str
    make: Callable[[], Road]


def sample() -> Graph:
    """conv, relu, max pool, conv, leaky relu."""
    draft = Draft()
    generator = torch.Generator().manual_seed(0)
    x = draft.input("x", "batch", 4, 6, 6)
    one = draft.weight("one.weight", torch.randn(4, 4, 3, 3, generator=generator) * 0.3)
    two = draft.weight("two.weight", torch.randn(4, 4, 3, 3, generator=generator) * 0.3)
    bias = draft.weight("one.bias", torch.randn(4, generator=generator))
    y = draft.call("conv2d", "one", x=x, weight=one, bias=bias, padding=(1, 1))
    y = draft.call("relu", "relu", x=y)
    y = draft.call("max_pool2d", "pool", x=y, kernel_size=(2, 2), stride=(2, 2))
    y = draft.call("conv2d", "two", x=y, weight=two, padding=(1, 1))
    return draft.graph(draft.call("leaky_relu", "leaky", x=y, negative_slope=0.1))


@cache
def inputs() -> tuple[torch.Tensor, ...]:
    """A batch of three."""
    return (torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1)),)


def honest(target: Target, graph: Graph | None = None, recipe: Recipe | None = None) -> Road:
    """The right road; of the sample in int8 if nothing else is said."""
    pipeline = (
        clean()
        | fuse()
        | observe(int8_static() if recipe is None else recipe, target)
        | calibrate([inputs()], progress=False)
        | convert(target)
        | fold()
        | lower(target)
    )
    return Road(inputs(), target, pipeline.run(sample() if graph is None else graph).unwrap())


def _halved() -> Road:
    """The right road of a sigmoid that reads half precision."""
    draft = Draft()
    y = draft.call("sigmoid", "gate", x=draft.input("x", "batch", 4, 6, 6))
    return honest(reference(), draft.graph(y), float16_static())


def _tampered(road: Road, name: str, change: Tamper) -> Road:
    """The road with another outcome of one step, and the steps behind it taken from there."""
    names = [step.name for step in road.trail.steps]
    at = names.index(name)
    before, step = road.trail.graphs()[at], road.trail.steps[at]
    made = change(step.graph)
    edits = edits_between(before, made, lambda _: RuleName("planted"))
    done = rewritten(before, edits).unwrap()
    tampered: Step = replace(step, graph=done.graph, diff=done.diff)
    trail = replace(road.trail, steps=(*road.trail.steps[:at], tampered))
    behind = {"fold": fold(), "lower": lower(road.target)}
    for later in names[at + 1 :]:
        trail = behind[later].run(trail).unwrap()
    return replace(road, trail=trail)


def _with_nodes(graph: Graph, changes: Mapping[NodeId, Node]) -> Graph:
    return replace(graph, nodes=graph.nodes.edit(changes))


def _with_attr(graph: Graph, name: NodeId, attr: str, value: Arg) -> Graph:
    node = graph[name]
    return _with_nodes(graph, {name: replace(node, attrs=node.attrs.put(attr, value))})


# -- what goes wrong, in the order of the laws --


def _without_a_verdict(road: Road) -> Road:
    steps: list[Step] = []
    for step in road.trail.steps:
        plan = step.evidence
        if step.name == "convert" and isinstance(plan, Plan):
            order = tuple(name for name in plan.order if name != "leaky")
            kept = Table({name: plan.annotations[name] for name in order})
            steps.append(replace(step, evidence=replace(plan, annotations=kept, order=order)))
        else:
            steps.append(step)
    return replace(road, trail=replace(road.trail, steps=tuple(steps)))


def _other_slope(graph: Graph) -> Graph:
    return _with_attr(graph, ID("leaky"), "negative_slope", 0.01)


def _other_zero_point(graph: Graph) -> Graph:
    """The integers of a value are read with another zero point than they were made with."""
    node = graph[ID("@x:dequantize")]
    x, scale, zero = node.args
    assert isinstance(zero, int)
    return _with_nodes(graph, {node.id: node.with_args((x, scale, zero + 1))})


def _rounded_down(graph: Graph) -> Graph:
    """A weight truncated instead of rounded is up to a whole step off."""
    path = Path("one.weight")
    tensor = tensor_of(graph.weights[path]).unwrap()
    made = weight_of(tensor - (tensor > -127).to(torch.int8), graph.weights[path].role)
    return replace(graph, weights=graph.weights.put(path, made))


def _unrounded(graph: Graph) -> Graph:
    """The sigmoid reads the value before it was rounded to half precision."""
    gate = graph[ID("gate")]
    (again,) = gate.inputs()
    (half,) = graph[again].inputs()
    return _with_nodes(graph, {gate.id: gate.with_args(graph[half].args[:1])})


def _other_grid(graph: Graph) -> Graph:
    """A pool whose result has a scale of its own."""
    made: dict[NodeId, Node] = {}
    for name in (ID("pool:quantize"), ID("pool:dequantize")):
        x, scale, zero = graph[name].args
        assert isinstance(scale, float)
        made[name] = graph[name].with_args((x, scale * 1.5, zero))
    return _with_nodes(graph, made)


def _float_in(graph: Graph) -> Graph:
    """The pool runs on floats between a dequantize and a quantize, called a kernel all the same.

    It computes the right thing; nobody would notice that no integer kernel runs.
    """
    conv, pool, two = graph[ID("one")], graph[ID("pool")], graph[ID("two")]
    grid = {"scale": conv.attrs["scale"], "zero_point": conv.attrs["zero_point"], "axis": None}
    back = make_node(
        "dequantize", ID("back"), x=NodeRef(conv.id), dtype=DType.FLOAT32, block=None, **grid
    )
    there = make_node(
        "quantize",
        ID("there"),
        x=NodeRef(pool.id),
        dtype=DType.UINT8,
        qmin=0,
        qmax=255,
        block=None,
        **grid,
    )
    made = {
        back.id: back,
        pool.id: replace(pool, op=OpName("max_pool2d"), args=(NodeRef(back.id),)),
        there.id: there,
        two.id: two.with_args((NodeRef(there.id), *two.args[1:])),
    }
    order = list(graph.order)
    order.insert(order.index(pool.id), back.id)
    order.insert(order.index(pool.id) + 1, there.id)
    return replace(graph, nodes=graph.nodes.edit(made), order=row(order))


def _shifted(graph: Graph) -> Graph:
    """A kernel told another zero point for its result: off by two everywhere."""
    node = graph[ID("one")]
    zero = node.attrs["zero_point"]
    assert isinstance(zero, int)
    return _with_attr(graph, ID("one"), "zero_point", zero + 2)


def _without_zero_point(op: OpName, attrs: FrozenMap[Arg]) -> Callable[..., Any]:
    """A kernel that forgets its input's zero point, as if no input were negative."""
    if "x_zero_point" in attrs:
        return kernels.bind(op, attrs.put("x_zero_point", 0))
    return kernels.bind(op, attrs)


def _without_rounding(op: OpName, attrs: FrozenMap[Arg]) -> Callable[..., Any]:
    """A kernel off by one in most elements: each is within a quantum, the lot is not right."""
    run = kernels.bind(op, attrs)
    if not op.endswith("conv2d"):
        return run

    def wrong(*args: Any) -> Any:
        made = run(*args)
        return (made.int() - 1).clamp(min=0).to(made.dtype) if made.dtype == torch.uint8 else made

    return wrong


@cache
def cell_inputs() -> tuple[torch.Tensor, ...]:
    """A sequence for each of three."""
    return (torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1)),)


def recurrent() -> Road:
    """The right road of two recurrent layers, dynamic."""
    draft, generator = Draft(), torch.Generator().manual_seed(0)
    x = draft.input("x", "batch", 5, 4)
    shapes = {"ih": (12, 4), "hh": (12, 3), "b_ih": (12,), "b_hh": (12,)}
    weights = [
        draft.weight(
            f"l{layer}.{name}",
            torch.randn(shape if name != "ih" or not layer else (12, 3), generator=generator) * 0.5,
        )
        for layer in range(2)
        for name, shape in shapes.items()
    ]
    batch = draft.call("size", "batch", x=x, dim=0)
    start = draft.call("full", "start", shape=(2, batch, 3), value=0.0, dtype=DType.FLOAT32)
    made = draft.call(
        "lstm",
        "cells",
        x=x,
        hx=(start, start),
        weights=tuple(weights),
        num_layers=2,
        batch_first=True,
    )
    graph = draft.graph(draft.call("getitem", "out", x=made, index=0))
    target = onednn()
    pipeline = (
        observe(int8_dynamic(), target)
        | calibrate([cell_inputs()], progress=False)
        | convert(target)
        | lower(target)
    )
    return Road(cell_inputs(), target, pipeline.run(graph).unwrap())


def _forgetting(change: Callable[[list[Any]], list[Any]]) -> Callable[[], Road]:
    """A road whose recurrent kernel reads other operands than it is given."""

    def bind(op: OpName, attrs: FrozenMap[Arg]) -> Callable[..., Any]:
        run = kernels.bind(op, attrs)
        return (lambda *args: run(*change(list(args)))) if op.endswith("lstm_dynamic") else run

    return lambda: replace(recurrent(), bind=bind)


def _without_biases(args: list[Any]) -> list[Any]:
    return [*args[:4], tuple(None for _ in args[4])]


def _swapped_layers(args: list[Any]) -> list[Any]:
    """The state of each layer meets the matrix of the other."""
    return [*args[:2], *((it[0], it[3], it[2], it[1]) for it in args[2:4]), args[4]]


def _baked(graph: Graph) -> Graph:
    """The batch of the example written into a reshape."""
    last = graph.order[-1]
    flat = make_node("reshape", ID("flat"), x=NodeRef(last), shape=(3, 4, 3, 3))
    output = Tree("leaf", NodeRef(flat.id))
    return replace(
        graph,
        nodes=graph.nodes.put(flat.id, flat),
        order=row((*graph.order, flat.id)),
        signature=replace(graph.signature, output=output),
    )


def _sharing(graph: Graph) -> Callable[..., object]:
    """A module that reads the graph's own tensors."""
    module = materialize(graph).unwrap()
    for path, weight in graph.weights.items():
        owner, _, name = path.rpartition(".")
        holder = module.get_submodule(owner)
        held = getattr(holder, name)
        if held.is_floating_point():
            held.data = tensor_of(weight).unwrap()
    return module


def _road(target: Target, name: str, change: Tamper) -> Callable[[], Road]:
    return lambda: _tampered(honest(target), name, change)


# On the reference target nothing is lowered, so that a wrong convert shows in convert alone.
CASES: tuple[Planted, ...] = (
    Planted(
        "one_verdict_each",
        "a plan without a word on one node",
        lambda: _without_a_verdict(honest(reference())),
    ),
    Planted(
        "adds_quantizers_only",
        "a convert that also changes an attribute",
        _road(reference(), "convert", _other_slope),
    ),
    Planted(
        "fakes_quantization",
        "a quantizer with a wrong zero point",
        _road(reference(), "convert", _other_zero_point),
    ),
    Planted(
        "weights_are_near",
        "a weight off by more than half a step",
        _road(reference(), "convert", _rounded_down),
    ),
    Planted(
        "halves_are_half",
        "an operator that reads what was not rounded",
        lambda: _tampered(_halved(), "convert", _unrounded),
    ),
    Planted(
        "movers_keep_qparams",
        "a mover with other qparams",
        _road(reference(), "convert", _other_grid),
    ),
    Planted(
        "kernels_take_integers",
        "a float operator where the lowering says kernel",
        _road(onednn(), "lower", _float_in),
    ),
    Planted(
        "kernels_compute_their_units",
        "a lowering that is off by two",
        _road(onednn(), "lower", _shifted),
    ),
    Planted(
        "kernels_compute_their_units",
        "a kernel that forgets its zero point",
        lambda: replace(honest(onednn()), bind=_without_zero_point),
    ),
    Planted(
        "kernels_compute_their_units",
        "a kernel off by one nearly everywhere",
        lambda: replace(honest(onednn()), bind=_without_rounding),
    ),
    Planted(
        "kernels_compute_their_units",
        "a recurrent kernel that forgets its biases",
        _forgetting(_without_biases),
    ),
    Planted(
        "kernels_compute_their_units",
        "a recurrent kernel with the matrices of two layers swapped",
        _forgetting(_swapped_layers),
    ),
    Planted(
        "serves_batch_sizes",
        "a batch size baked into the program",
        _road(onednn(), "lower", _baked),
    ),
    Planted(
        "modules_are_isolated",
        "a module that reads the graph's own tensors",
        lambda: replace(honest(onednn()), module=_sharing),
    ),
)
"""At least one for every law of roads."""
