"""calibrate: whole batches, exact statistics, named faults, and resuming after Ctrl-C."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.diff import apply, invert
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import NodeId, Path, Stage
from fqx.ir.node import Node, Origin
from fqx.ir.signature import Input, Signature, TensorType, Tree, named
from fqx.ir.trail import Halt
from fqx.ir.weight import Role
from fqx.kit.frozen import FrozenMap
from fqx.num.qparams import qparams_of
from fqx.num.scheme import ObserverSpec, histogram, spec_to_arg, uint8_affine
from fqx.num.states import state_at, statistics
from fqx.num.tensors import weight_of
from fqx.ops.catalogue import make_node
from fqx.passes.calibrate import Stats, calibrate, collect, join, settle

ORIGIN = Origin(scope=((Path("body.fc"), "Linear"),), source="model.py:7")


def observed(spec: ObserverSpec | None = None, more: tuple[Node, ...] = ()) -> Graph:
    """linear and relu on x [batch, 4], observed before, between and behind."""
    watch = spec_to_arg(spec or histogram(bins=256))
    x, fc, out = (NodeRef(NodeId(name)) for name in ("@x", "fc", "fc:relu"))

    def tap(value: NodeRef) -> Node:
        return make_node("observe", NodeId(f"{value.id}:observe"), ORIGIN, x=value, observer=watch)

    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
    nodes = (
        make_node("input", x.id),
        tap(x),
        make_node("linear", fc.id, ORIGIN, x=x, weight=WeightRef(Path("fc.weight"))),
        tap(fc),
        make_node("relu", out.id, ORIGIN, x=fc),
        tap(out),
        *more,
    )
    kind = TensorType(DType.FLOAT32, (named("batch"), 4))
    signature = Signature(
        (Input("x", x.id, kind),),
        Tree("tuple", items=(Tree("leaf", 0),)),
        Tree("dict"),
        Tree("leaf", out),
        FrozenMap({"batch": (1, None)}),
        ("x",),
    )
    held = {Path("fc.weight"): weight_of(weight, Role.PARAMETER)}
    return graph_of(nodes, held, signature, stage=Stage.OBSERVED)


def batches(count: int = 4, rows: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(rows, 4, generator=generator) * (k + 1) for k in range(count)]


def fault_of(graph: Graph, given: object, **options: object) -> Fault:
    halt = calibrate(given, progress=False, **options).run(graph).failure()  # type: ignore[arg-type]
    assert isinstance(halt, Halt)
    assert halt.trail is not None
    assert halt.trail.graph is graph
    return halt.fault


def test_statistics_are_in_the_graph() -> None:
    graph, given = observed(), batches()
    trail = calibrate(given, progress=False).run(graph).unwrap()
    assert trail.graph.stage is Stage.CALIBRATED
    everything = torch.cat(given)
    seen = statistics(trail.graph).unwrap()
    assert set(seen) == {"@x", "fc", "fc:relu"}
    (first,) = seen[NodeId("@x")]
    assert first.state.range == (float(everything.min()), float(everything.max()))
    assert int(first.state.count) == everything.numel()
    (last,) = seen[NodeId("fc:relu")]
    assert last.state.range[0] == 0.0
    assert int(qparams_of(uint8_affine(), last.state).unwrap().zero_point) == 0
    assert all(
        weight.role is Role.STATISTIC
        for path, weight in trail.graph.weights.items()
        if ":observe." in path
    )


def test_the_step_replays_and_says_what_was_seen() -> None:
    graph = observed()
    (step,) = calibrate(batches(), progress=False).run(graph).unwrap().steps
    assert str(step.text) == "calibrate"
    assert not step.portable
    assert apply(step.diff, graph).unwrap() == step.graph
    assert apply(invert(step.diff), step.graph).unwrap() == graph
    evidence = step.evidence
    assert evidence is not None
    assert evidence.kind == "stats"
    code = evidence.to_json()
    assert isinstance(code, dict)
    assert code["batches"] == 4
    assert isinstance(code["machine"], dict)
    assert {"torch", "isa", "threads"} <= set(code["machine"])
    assert repr(evidence) == "Stats(4 batches, 3 observers)"


def test_order_of_batches_does_not_matter() -> None:
    graph, given = observed(), batches()
    one = calibrate(given, progress=False).run(graph).unwrap().graph
    two = calibrate(given[::-1], progress=False).run(graph).unwrap().graph
    assert one.digest == two.digest


def test_parts_collected_apart_join() -> None:
    graph, given = observed(), batches()
    parts = [collect(graph, given[at::2], progress=False).unwrap() for at in range(2)]
    whole = calibrate(given, progress=False).run(graph).unwrap().graph
    assert settle(graph, join(graph, parts).unwrap()).unwrap().graph.digest == whole.digest
    scan = observed(ObserverSpec("moving_average"))
    ordered = [collect(scan, given, progress=False).unwrap()] * 2
    assert join(scan, ordered).failure().kind is FaultKind.BAD_RECIPE


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: [x],
        lambda x: {"x": x},
    ],
    ids=["tensor", "tuple", "list", "mapping"],
)
def test_every_form_of_batch(form: object) -> None:
    graph, given = observed(), batches()
    whole = calibrate(given, progress=False).run(graph).unwrap().graph
    made = [form(x) for x in given]  # type: ignore[operator]
    assert calibrate(made, progress=False).run(graph).unwrap().graph.digest == whole.digest


def test_inputs_are_picked_out_of_a_loader() -> None:
    graph, given = observed(), torch.cat(batches())
    loader = DataLoader(TensorDataset(given, torch.zeros(len(given))), batch_size=7)
    trail = calibrate(loader, inputs=lambda batch: batch[0], progress=False).run(graph)
    count = state_at(trail.unwrap().graph, NodeId("@x:observe")).unwrap().state.count
    assert int(count) == given.numel()
    fault = fault_of(graph, loader)
    assert fault.kind is FaultKind.BATCH_DOES_NOT_FIT
    # both the signature and the batch are shown
    assert "x float32[batch, 4]" in fault.reason
    assert "(float32[7, 4], float32[7])" in fault.reason
    assert "inputs=" in fault.remedy


def test_generators_of_batches_are_read_once() -> None:
    graph, given = observed(), batches()
    once = (x for x in given)
    calibrate(once, progress=False).run(graph).unwrap()
    assert fault_of(graph, once).kind is FaultKind.EMPTY_CALIBRATION


def test_no_batches_and_empty_batches() -> None:
    graph = observed()
    assert fault_of(graph, []).kind is FaultKind.EMPTY_CALIBRATION
    fault = fault_of(graph, [*batches(1), torch.zeros(0, 4)])
    assert fault.kind is FaultKind.EMPTY_BATCH
    assert "batch 1" in fault.reason


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_name_the_node(wrong: float) -> None:
    graph, given = observed(), batches()
    given[2][1, 1] = wrong
    fault = fault_of(graph, given)
    assert fault.kind is FaultKind.NOT_FINITE
    assert fault.at == "@x"
    assert "batch 2" in fault.reason
    # an overflow inside the model names the node where it is seen first
    fault = fault_of(graph, [torch.full((1, 4), 3e38)])
    assert (fault.kind, fault.at) == (FaultKind.NOT_FINITE, "fc")
    assert (fault.module, fault.source) == ("body.fc", "model.py:7")


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(2, 5),
        torch.zeros(2, 4, dtype=torch.float64),
        (),
        {"y": torch.zeros(2, 4)},
        "text",
        [torch.zeros(2, 4), torch.zeros(2)],
    ],
    ids=["width", "dtype", "nothing", "name", "type", "labels"],
)
def test_batches_that_do_not_fit(batch: object) -> None:
    fault = fault_of(observed(), [*batches(1), batch])
    assert fault.kind is FaultKind.BATCH_DOES_NOT_FIT
    assert "batch 1" in fault.reason
    assert "x float32[batch, 4]" in fault.reason


def interrupted(given: list[torch.Tensor], after: int) -> Iterator[torch.Tensor]:
    yield from given[:after]
    raise KeyboardInterrupt


def test_ctrl_c_keeps_what_was_collected() -> None:
    graph, given = observed(), batches()
    whole = calibrate(given, progress=False).run(graph).unwrap().graph
    fault = fault_of(graph, interrupted(given, 2))
    assert fault.kind is FaultKind.INTERRUPTED
    kept = fault.kept
    assert isinstance(kept, Stats)
    assert kept.batches == 2
    again = calibrate(given[2:], progress=False, resume=kept).run(graph).unwrap()
    assert again.graph.digest == whole.digest


def test_ctrl_c_inside_a_batch_counts_no_part_of_it() -> None:
    given = batches()
    plain = observed()
    calls: list[int] = []

    def inputs(batch: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return batch

    fault = fault_of(plain, given, inputs=inputs)
    kept = fault.kept
    assert isinstance(kept, Stats)
    assert kept.batches == 1
    alone = collect(plain, given[:1], progress=False).unwrap()
    assert dict(kept.states) == dict(alone.states)


def test_fixed_observers_need_no_data() -> None:
    graph = observed(ObserverSpec("fixed", low=-2.0, high=6.0))
    made = calibrate(batches(1), progress=False).run(graph).unwrap().graph
    assert made.stage is Stage.CALIBRATED
    held = state_at(made, NodeId("fc:observe")).unwrap()
    spec = uint8_affine(held.spec)
    scale = qparams_of(spec, held.state).unwrap().scale
    assert float(scale) == float(torch.tensor(8 / 255))


def test_missing_statistics_name_the_node() -> None:
    graph = observed()
    stats = collect(graph, batches(1), progress=False).unwrap()
    partial = Stats(1, {k: v for k, v in stats.states.items() if k != "fc:observe"})
    fault = settle(graph, partial).failure()
    assert (fault.kind, fault.at) == (FaultKind.MISSING_STATISTICS, "fc")
    bare = state_at(graph, NodeId("fc:observe")).failure()
    assert (bare.kind, bare.at) == (FaultKind.MISSING_STATISTICS, "fc:observe")


def test_what_the_model_raises_names_node_and_batch() -> None:
    wrong = make_node("linear", NodeId("bad"), ORIGIN, x=NodeRef(NodeId("fc")), weight=_ref())
    fault = fault_of(observed(more=(wrong,)), batches(1))
    assert (fault.kind, fault.at) == (FaultKind.CALIBRATION_FAILED, "bad")
    assert "batch 0" in fault.reason


def _ref() -> Arg:
    return WeightRef(Path("fc.weight"))


def test_the_graph_and_its_weights_are_left_alone() -> None:
    graph, given = observed(), batches()
    digest, held = graph.digest, [x.clone() for x in given]
    payload = graph.weights[Path("fc.weight")].payload
    assert isinstance(payload, torch.Tensor)
    before = payload.clone()
    calibrate(given, progress=False).run(graph).unwrap()
    assert graph.digest == digest
    assert torch.equal(payload, before)
    assert all(torch.equal(x, y) for x, y in zip(given, held, strict=True))


def test_memory_is_flat_in_batches() -> None:
    graph = observed()

    def alive() -> int:
        gc.collect()
        return sum(type(one) is torch.Tensor for one in gc.get_objects())

    start = alive()
    counts: list[int] = []

    def stream() -> Iterator[torch.Tensor]:
        for index in range(30):
            if index % 10 == 5:
                counts.append(alive() - start)
            yield torch.full((2, 4), float(index))

    collect(graph, stream(), progress=False).unwrap()
    assert counts[0] == counts[1] == counts[2]


def test_an_observer_that_sees_nothing_leaves_plain_json() -> None:
    fixed = observed(ObserverSpec("fixed", low=0.0, high=1.0))
    stats = collect(fixed, [torch.ones(2, 4)], progress=False).unwrap()
    code = stats.to_json()
    json.dumps(code, allow_nan=False)
    assert isinstance(code, dict) and isinstance(code["observers"], dict)
    assert code["observers"]["@x:observe"] == {"count": 0, "low": None, "high": None}
