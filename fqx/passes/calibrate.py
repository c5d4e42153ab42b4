"""calibrate: run the observed graph on data and keep what its observers saw."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fqx.ir.arg import Json, NodeRef
from fqx.ir.diff import Added, Changed, Edit, WeightAt
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, RuleName, Stage
from fqx.ir.signature import Signature, TensorType
from fqx.ir.tree import flatten
from fqx.kit.progress import track
from fqx.kit.result import Failure, Result, Success, fold
from fqx.num.observers import State, empty, merge, observe
from fqx.num.scheme import ObserverSpec
from fqx.num.states import observers_of, state_weights, with_state
from fqx.passes.execute import Leaves, Program, Stopped, Tap, prepare
from fqx.passes.pipeline import NO_OPTIONS, Pass, Rewrite, conclude

_NAME = "calibrate"

Inputs = Callable[[Any], object]
"""Picks a batch of inputs out of what the caller's loader yields."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What the observers saw in `batches` whole batches, and where it was measured."""

    batches: int
    states: Mapping[NodeId, State]
    machine: Mapping[str, Json] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Name of the kind of evidence."""
        return "stats"

    def to_json(self) -> Json:
        """Batches, machine, and count and range of every observer; counts are in the graph.

        An observer that saw nothing, as a fixed one, has null for the ends of its range.
        """
        return {
            "batches": self.batches,
            "machine": dict(self.machine),
            "observers": {name: _summary(state) for name, state in self.states.items()},
        }

    def __repr__(self) -> str:
        return f"Stats({self.batches} batches, {len(self.states)} observers)"


def calibrate(
    batches: Iterable[object],
    inputs: Inputs | None = None,
    progress: bool = True,
    leaves: Leaves | None = None,
    resume: Stats | None = None,
) -> Pass:
    """Run the graph on every batch and put what each observer saw into its weights.

    A batch is a tensor, a tuple or list of positional inputs, or a mapping of keyword inputs;
    `inputs` picks such a batch out of whatever `batches` yields. `leaves` gives modules kept whole
    by path. `resume` are the `Stats` that an INTERRUPTED fault kept: their batches count as seen,
    so give the batches that remain.

    Faults: EMPTY_CALIBRATION, EMPTY_BATCH, BATCH_DOES_NOT_FIT, NOT_FINITE naming the node,
    CALIBRATION_FAILED naming the node at which torch raised, INTERRUPTED on Ctrl-C (`fault.kept`
    holds the `Stats` so far), MISSING_LEAF, NO_IMPLEMENTATION.
    """

    def rewrite(graph: Graph) -> Result[Rewrite, Fault]:
        return collect(graph, batches, inputs, progress, leaves, resume).bind(
            lambda stats: settle(graph, stats)
        )

    return Pass(
        _NAME, NO_OPTIONS, frozenset({Stage.OBSERVED}), Stage.CALIBRATED, rewrite, portable=False
    )


def collect(
    graph: Graph,
    batches: Iterable[object],
    inputs: Inputs | None = None,
    progress: bool = True,
    leaves: Leaves | None = None,
    resume: Stats | None = None,
) -> Result[Stats, Fault]:
    """What the observers of an OBSERVED graph see in the batches; parameters as `calibrate`.

    The parts of a calibration set can be collected apart and joined with `join`.
    """
    return observers_of(graph).bind(
        lambda specs: prepare(graph, leaves).bind(
            lambda program: _collected(
                _Measurement(program, specs, inputs or _whole),
                track(batches, "calibrate", progress),
                resume or Stats(0, {}, {}),
            )
        )
    )


def join(graph: Graph, parts: Sequence[Stats]) -> Result[Stats, Fault]:
    """The statistics of all parts together, whatever their order.

    Fails with BAD_RECIPE if an observer is a moving average, whose batches have an order.
    """
    return observers_of(graph).bind(
        lambda specs: _joined(specs, Stats(0, {}, machine()), list(parts))
    )


def settle(graph: Graph, stats: Stats) -> Result[Rewrite, Fault]:
    """The graph with the statistics in its weights.

    Fails with MISSING_STATISTICS for an observer that has none.
    """
    return observers_of(graph).bind(lambda specs: _settled(graph, specs, stats))


def machine() -> dict[str, Json]:
    """What decides the last bits of float results here: versions, instruction set and threads."""
    return {
        "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "platform": platform.machine(),
    }


def _summary(state: State) -> Json:
    # a fixed observer sees nothing; its range has no ends, and JSON no infinities
    low, high = (None, None) if state.is_empty else state.range
    return {"count": int(state.count), "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class _Measurement:
    program: Program
    specs: Mapping[NodeId, ObserverSpec]
    inputs: Inputs


def _whole(batch: object) -> object:
    return batch


def _collected(
    measurement: _Measurement, batches: Iterable[object], start: Stats
) -> Result[Stats, Fault]:
    states = {name: start.states.get(name, empty(spec)) for name, spec in measurement.specs.items()}
    seen = Stats(start.batches, states, machine())
    if all(spec.kind == "fixed" for spec in measurement.specs.values()):
        # nothing is measured, so no data is needed: dynamic and weight-only schemes
        return Success(seen)
    try:
        for batch in batches:
            # states change only when a batch is through, so an interruption leaves whole batches
            after = _after(measurement, seen, batch)
            fault = fold(after, lambda _: None, lambda error: error)
            if fault is not None:
                return Failure(fault)
            seen = after.value_or(seen)
    except KeyboardInterrupt:
        return Failure(_interrupted(seen))
    return Success(seen) if seen.batches else Failure(_no_batches())


def _after(measurement: _Measurement, seen: Stats, batch: object) -> Result[Stats, Fault]:
    found = dict(seen.states)
    graph = measurement.program.graph

    def tap(name: NodeId, value: object) -> None:
        spec = measurement.specs.get(name)
        if spec is not None and isinstance(value, torch.Tensor):
            state = observe(spec, found[name], value)
            found[name] = fold(state, _identity, lambda fault: _stop(_about(graph, name, fault)))

    return run_batch(measurement.program, measurement.inputs(batch), seen.batches, tap).map(
        lambda _: replace(seen, batches=seen.batches + 1, states=found)
    )


def run_batch(program: Program, batch: object, index: int, tap: Tap) -> Result[object, Fault]:
    """Run a program on a batch, as `calibrate` takes them, every value shown to the tap.

    Faults: EMPTY_BATCH, BATCH_DOES_NOT_FIT, CALIBRATION_FAILED, and what the tap stops with.
    """
    return (
        _arguments(batch)
        .bind(lambda call: program.run(call.args, call.kwargs, tap))
        .alt(lambda fault: _in_batch(fault, index, program, batch))
    )


def _about(graph: Graph, observer: NodeId, fault: Fault) -> Fault:
    """The fault with the place of the value that is observed."""
    value = graph[observer].args[0]
    node = graph[value.id] if isinstance(value, NodeRef) else graph[observer]
    return fault.located(node.id, node.origin.module, node.origin.source)


def _identity(state: State) -> State:
    return state


def _stop(fault: Fault) -> State:
    raise Stopped(fault)


@dataclass(frozen=True, slots=True)
class _Arguments:
    args: tuple[object, ...]
    kwargs: Mapping[str, object]


def _arguments(picked: object) -> Result[_Arguments, Fault]:
    if isinstance(picked, Mapping):
        call = _Arguments((), {str(name): value for name, value in picked.items()})
    elif isinstance(picked, (tuple, list)):
        call = _Arguments(tuple(picked), {})
    else:
        call = _Arguments((picked,), {})
    leaves = flatten((call.args, dict(call.kwargs))).leaves
    if any(isinstance(leaf, torch.Tensor) and not leaf.numel() for leaf in leaves):
        return Failure(
            Fault(
                FaultKind.EMPTY_BATCH,
                f"it holds a tensor without elements: {_shown(picked)}",
                "leave empty batches out of the calibration set",
            )
        )
    return Success(call)


def _in_batch(fault: Fault, index: int, program: Program, batch: object) -> Fault:
    if fault.kind is not FaultKind.INPUT_DOES_NOT_FIT:
        # the node stays where it was found; the batch tells which data to look at
        return replace(fault, reason=f"batch {index}: {fault.reason}")
    signature = program.graph.signature
    return replace(
        fault,
        kind=FaultKind.BATCH_DOES_NOT_FIT,
        reason=(
            f"batch {index}: {fault.reason}; the model takes {_wanted(signature)}, "
            f"the batch is {_shown(batch)}"
        ),
        remedy="pick the inputs out of what the loader yields: inputs=lambda batch: batch[0]",
    )


def _wanted(signature: Signature) -> str:
    parts = [
        f"{item.name} {_typed(item.type)}" if isinstance(item.type, TensorType) else item.name
        for item in signature.inputs
    ]
    return "(" + ", ".join(parts) + ")"


def _typed(kind: TensorType) -> str:
    if kind.dims is None:
        return kind.dtype.value
    return f"{kind.dtype.value}[{', '.join('?' if dim is None else str(dim) for dim in kind.dims)}]"


def _shown(value: object) -> str:
    match value:
        case torch.Tensor():
            sizes = ", ".join(str(size) for size in value.shape)
            return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"
        case tuple() | list():
            return "(" + ", ".join(_shown(item) for item in value) + ")"
        case Mapping():
            return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
        case _:
            return type(value).__name__


def _no_batches() -> Fault:
    return Fault(
        FaultKind.EMPTY_CALIBRATION,
        "the calibration set has no batches",
        "give at least one batch; a generator that was used up gives none",
    )


def _interrupted(stats: Stats) -> Fault:
    return Fault(
        FaultKind.INTERRUPTED,
        f"calibration was interrupted after {stats.batches} batches",
        "calibrate again with the batches that remain and resume=halt.fault.kept",
        kept=stats,
    )


def _joined(
    specs: Mapping[NodeId, ObserverSpec], start: Stats, parts: Sequence[Stats]
) -> Result[Stats, Fault]:
    joined: Result[Stats, Fault] = Success(
        replace(start, states={name: empty(spec) for name, spec in specs.items()})
    )
    for part in parts:
        joined = joined.bind(lambda stats, part=part: _plus(specs, stats, part))  # type: ignore[misc]
    return joined


def _plus(specs: Mapping[NodeId, ObserverSpec], one: Stats, two: Stats) -> Result[Stats, Fault]:
    states = dict(one.states)
    for name, spec in specs.items():
        merged = merge(spec, one.states[name], two.states.get(name, empty(spec)))
        fault = fold(merged, lambda _: None, lambda error: error)
        if fault is not None:
            return Failure(replace(fault, at=name))
        states[name] = merged.value_or(states[name])
    return Success(replace(one, batches=one.batches + two.batches, states=states))


def _settled(
    graph: Graph, specs: Mapping[NodeId, ObserverSpec], stats: Stats
) -> Result[Rewrite, Fault]:
    edits: list[Edit] = []
    by = RuleName(_NAME)
    for name, spec in specs.items():
        state = stats.states.get(name)
        if state is None or (state.is_empty and spec.kind != "fixed"):
            missing = Fault(
                FaultKind.MISSING_STATISTICS,
                "the observer of this value has seen no data",
                "give calibration batches that reach it",
            )
            return Failure(_about(graph, name, missing))
        weights = state_weights(name, spec, state)
        edits += [Added(WeightAt(path, weight), by) for path, weight in weights.items()]
        changed = with_state(graph[name], spec)
        if changed is not graph[name]:
            edits.append(Changed(graph[name], changed, by))
    return conclude(graph, edits, _NAME, Stage.CALIBRATED, stats)
