"""The time of single kernel calls on this machine, as a table that `lower` chooses by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fqx.edge.kernels import BINDERS, bind
from fqx.edge.materialize import call_of
from fqx.ir.arg import Arg, NodeRef
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.kit.result import attempt, fold
from fqx.num.tensors import torch_dtype
from fqx.policy.costs import SCALE, SHIFTED, Call, Given, Shaped

Run = Callable[[], object]


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
    attrs = call.attrs.drop("x_zero_point") if call.op.startswith("native.") else call.attrs
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
