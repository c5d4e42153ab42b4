"""The time of single kernel calls on this machine, as a table that `lower` chooses by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fqx.edge.kernels import BINDERS, bind
from fqx.edge.machine import probed, usual_target
from fqx.edge.materialize import call_of
from fqx.ir.arg import Arg, NodeRef
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Stage
from fqx.ir.node import Node
from fqx.ir.signature import Poly, TensorType
from fqx.ir.tree import fit_call
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success, attempt, fold
from fqx.num.tensors import torch_dtype
from fqx.passes.lower import decide
from fqx.policy.costs import SCALE, SHIFTED, Call, Costs, Given, Shaped, among_others
from fqx.policy.target import Target

Run = Callable[[], object]


def measure_costs(
    graph: Graph,
    inputs: object,
    target: Target | None = None,
    kwargs: Mapping[str, object] | None = None,
    rounds: int = 30,
    budget: float = 60.0,
) -> Result[Costs, Fault]:
    """Measure, here and now, every kernel and conversion that the units of a graph could use.

    Takes the QUANTIZED graph that `lower` will be given, and the inputs of one call: their sizes
    are those that are measured. Nothing is executed but single kernels on drawn tensors, on torch's
    present number of threads, for at most about `budget` seconds. `target` is this machine's where
    it is not told. A measurement: it is not the same twice, and a trail keeps the table. Faults:
    INPUT_DOES_NOT_FIT, WRONG_STAGE for a graph of another stage.
    """
    if graph.stage is not Stage.QUANTIZED:
        return Failure(
            Fault(
                FaultKind.WRONG_STAGE,
                f"costs are measured of a quantized graph, and this one is {graph.stage.value}",
                "hand in the graph behind convert and fold, as lower takes it",
            )
        )
    call = inputs if isinstance(inputs, tuple) else (inputs,)
    here = usual_target().bind(probed) if target is None else Success(target)
    return here.bind(
        lambda found: sizes_of(graph, call, kwargs).map(
            lambda sizes: _measured(graph, found, sizes, rounds, budget)
        )
    )


def _measured(
    graph: Graph, target: Target, sizes: Mapping[str, int], rounds: int, budget: float
) -> Costs:
    empty = Costs("measured", target.isa, torch.get_num_threads(), FrozenMap()).sized(sizes)
    _, calls = decide(graph, target, empty)
    times = measure_calls(calls, rounds, budget=budget)
    found = {call.text: float(f"{time + among_others(call):.4g}") for call, time in times.items()}
    return replace(empty, measured=FrozenMap(found))


def sizes_of(
    graph: Graph, args: tuple[object, ...], kwargs: Mapping[str, object] | None = None
) -> Result[dict[str, int], Fault]:
    """The sizes of a graph's named dimensions in a call; INPUT_DOES_NOT_FIT if it is none."""
    signature = graph.signature
    return fit_call(signature, args, kwargs or {}).map(
        lambda values: {
            str(dim): size
            for item, value in zip(signature.inputs, values, strict=True)
            if isinstance(item.type, TensorType) and isinstance(value, Tensor)
            for dim, size in zip(item.type.dims or (), value.shape, strict=False)
            if isinstance(dim, Poly)
        }
    )


def measure_calls(
    calls: Iterable[Call], rounds: int = 30, repeats: int = 3, budget: float = 60.0
) -> dict[Call, float]:
    """Microseconds of each call on torch's present number of threads: the fastest of many runs.

    The calls take turns, so that a busy moment of the machine hits all of them; no new round
    starts after `budget` seconds. A call that raises here has no time.
    """
    listed = tuple(dict.fromkeys(calls))
    runs = {call: run for call in listed if (run := _runner(call)) is not None}
    best: dict[Call, float] = {}
    start = time.perf_counter()
    with torch.no_grad():
        for done in range(rounds):
            for call, run in runs.items():
                took = _took(run, repeats)
                best[call] = min(best.get(call, took), took)
            if done and time.perf_counter() - start > budget:
                break
    return {call: took * 1e6 for call, took in best.items()}


def _took(run: Run, repeats: int) -> float:
    """Seconds of a call, the mean of a few in a row."""
    before = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - before) / repeats


def _runner(call: Call) -> Run | None:
    """The call on drawn tensors, run once; None where it raises."""

    def made() -> Run:
        run = _bound(call)
        with torch.no_grad():
            run()
        return run

    return fold(attempt(made, str), _itself, lambda _: None)


def _itself(run: Run) -> Run | None:
    return run


def _bound(call: Call) -> Run:
    weighted = len(call.given) > 1 and ("conv" in call.op or "linear" in call.op)
    quantized = call.op.startswith("native.") and call.op not in ("native.quantize", "native.wrap")
    zero = call.attrs.get("x_zero_point")
    zero_point = zero if isinstance(zero, int) else 0
    values: dict[NodeId, object] = {}

    def tensor(item: Shaped, weight: bool) -> NodeRef:
        made = _drawn(item, weight)
        if quantized and item.dtype.value == "uint8":
            made = torch._make_per_tensor_quantized_tensor(made, SCALE, zero_point)
        name = NodeId(f"operand{len(values)}")
        values[name] = made
        return NodeRef(name)

    def given(at: int, item: Given) -> Arg:
        if isinstance(item, Shaped):
            return tensor(item, weighted and at > 0)
        if isinstance(item, tuple):
            return tuple(given(at, inner) for inner in item)
        return item

    args = tuple(given(at, item) for at, item in enumerate(call.given))
    # a native kernel of a weight finds the zero point in its input
    held = weighted and quantized
    attrs = call.attrs.drop("x_zero_point") if held else call.attrs
    if call.op in BINDERS:
        run, operands = bind(call.op, attrs), tuple(_filled(arg, values) for arg in args)
        return lambda: run(*operands)
    made = call_of(Node(NodeId("call"), call.op, args, attrs)).unwrap()
    function = made.function
    positional = tuple(_filled(arg, values) for arg in made.args)
    named = {key: _filled(item, values) for key, item in made.kwargs.items()}
    return lambda: function(*positional, **named)


def _drawn(item: Shaped, weight: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = torch_dtype(item.dtype)
    if dtype.is_floating_point:
        made = torch.randn(item.shape, generator=generator).to(dtype)
    else:
        low, high = (-127, 128) if item.dtype.value == "int8" else (0, 2 * SHIFTED)
        made = torch.randint(low, high, item.shape, generator=generator).to(dtype)
    last = made.dim() == 4 and not weight
    return made.contiguous(memory_format=torch.channels_last) if last else made


def _filled(arg: object, values: Mapping[NodeId, object]) -> object:
    if isinstance(arg, NodeRef):
        return values[arg.id]
    if isinstance(arg, (tuple, list)):
        items = [_filled(item, values) for item in arg]
        return items if isinstance(arg, list) else tuple(items)
    return arg
