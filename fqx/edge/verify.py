"""Proving that a trail is what it says: replay every step and compare digests.

The base graph's weights come from the file or from the caller's state_dict, the statistics from the
file. Every portable pass is made again from its name and options and run. A measurement, a pass
this library does not make and one whose recipe holds a function are applied from the recorded diff,
and the proof says which and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from fqx.edge.capture import capture
from fqx.edge.modules import Module
from fqx.edge.rebuild import rebuild
from fqx.ir.arg import Arg, Json
from fqx.ir.compare import edits_between
from fqx.ir.diff import apply
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import Digest, Path, RuleName
from fqx.ir.signature import Poly, Signature, TensorType
from fqx.ir.trail import Halt, Step, Trail
from fqx.ir.tree import build
from fqx.ir.weight import Role, Weight
from fqx.kit.result import Failure, Result, Success, fold, is_success
from fqx.num.lent import unchanged
from fqx.num.tensors import fingerprint_of, memory_format, torch_dtype
from fqx.passes.calibrate import calibrate
from fqx.passes.pipeline import Pass

Outcome = Literal["run again", "applied, not replayed"]


@dataclass(frozen=True, slots=True)
class Checked:
    """One step: its text, whether its pass was run again (if not, why), the digest it came to."""

    text: str
    outcome: Outcome
    digest: Digest
    why: str = ""


@dataclass(frozen=True, slots=True)
class Closeness:
    """A second measurement beside the recorded one.

    Of `observers` as many as `equal` have bit-equal states. `largest` is the largest difference of
    an end of a range, relative to the recorded range's largest magnitude, found at observer `at`.
    """

    observers: int
    equal: int
    largest: float
    at: str

    def __repr__(self) -> str:
        if self.equal == self.observers:
            return f"measured again: all {self.observers} observers bit-equal"
        return (
            f"measured again: {self.equal} of {self.observers} observers bit-equal,"
            f" ranges differ by at most {self.largest:.2%} ({self.at or 'none'})"
        )


@dataclass(frozen=True, slots=True)
class Verified:
    """A proof: the final digest, how each step was checked, and the trail with all its weights."""

    digest: Digest
    steps: tuple[Checked, ...]
    trail: Trail
    model: bool = False
    closeness: Closeness | None = None

    def __repr__(self) -> str:
        rest = [step for step in self.steps if step.outcome != "run again"]
        again = len(self.steps) - len(rest)
        lines = [f"Verified {self.digest}", f"  {again} of {len(self.steps)} steps run again"]
        lines += [f"  {_name(step)} applied, not replayed: {step.why}"[:120] for step in rest[:4]]
        lines += [f"  and {len(rest) - 4} more steps not replayed"] if len(rest) > 4 else []
        lines += ["  captured again: the same base graph"] if self.model else []
        lines += [f"  {self.closeness!r}"] if self.closeness else []
        return "\n".join(lines)


def _name(step: Checked) -> str:
    return step.text.split("(")[0]


def verify(
    trail: Trail,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    model: Module | None = None,
    calibration: Iterable[object] | None = None,
    inputs: Callable[[object], object] | None = None,
) -> Result[Verified, Halt]:
    """Replay the trail from the float weights and the recorded statistics; prove its last digest.

    `state_dict` gives the float weights (a detached trail needs it; an attached one is checked
    against it), `model` is captured again and its digest compared, `calibration` is measured again
    and compared (`inputs` as in calibrate). Faults: DIGEST_DIFFERS naming the weight or the step,
    MISSING_PAYLOAD, BAD_ARGUMENT for a trail without steps, STORAGE_CHANGED for weights shared with
    the caller, and those of capture and calibrate.
    """
    if not any(step.name for step in trail.steps) or all(not len(s.diff) for s in trail.steps):
        return Failure(Halt(_nothing_to_replay(), trail))
    given = state_dict if state_dict is not None else _state_of(model)
    return (
        unchanged(trail.graphs())
        .bind(lambda _: restored(trail.base, given))
        .alt(lambda fault: Halt(fault, trail))
        .bind(lambda base: _replayed(base, trail))
        .bind(lambda proof: _recaptured(proof, model))
        .bind(lambda proof: _remeasured(proof, calibration, inputs))
    )


def restored(graph: Graph, state_dict: Mapping[str, torch.Tensor] | None) -> Result[Graph, Fault]:
    """The graph with the values of a state_dict in its weights, each proven by its fingerprint.

    Faults: DIGEST_DIFFERS naming a key that is absent or holds other values; MISSING_PAYLOAD if
    there are values neither in the graph nor in the state_dict.
    """
    made: dict[Path, Weight] = {}
    aliases: dict[Path, list[Path]] = {}
    for alias, first in graph.ties.items():
        aliases.setdefault(first, []).append(alias)
    for path, weight in graph.weights.items():
        from_state = weight.role in (Role.PARAMETER, Role.BUFFER) and weight.persistent
        if state_dict is not None and from_state:
            names = (path, *aliases.get(path, ()))
            tensor = next((state_dict[name] for name in names if name in state_dict), None)
            if tensor is None or fingerprint_of(tensor) != weight.fingerprint:
                return Failure(_other_weight(path, weight, tensor))
            if weight.payload is None:
                made[path] = _held(weight, tensor)
        elif weight.payload is None:
            return Failure(_absent(path))
    return Success(replace(graph, weights=graph.weights.edit(made)) if made else graph)


def _held(weight: Weight, tensor: torch.Tensor) -> Weight:
    copy = tensor.detach().clone(memory_format=memory_format(weight.layout))
    return replace(weight, payload=copy)


def _state_of(model: Module | None) -> Mapping[str, torch.Tensor] | None:
    return None if model is None else model.state_dict()


def _replayed(base: Graph, trail: Trail) -> Result[Verified, Halt]:
    done: Result[Verified, Halt] = Success(Verified(base.digest, (), Trail(base, (), trail.notes)))
    for step in trail.steps:
        done = done.bind(partial(_replay, step))
    return done


def _replay(step: Step, proof: Verified) -> Result[Verified, Halt]:
    graph = proof.trail.graph
    not_portable: Result[Pass, str] = Failure("its arithmetic is not the same on every machine")
    made = rebuild(step.name, step.options)
    again = made if step.portable or not is_success(made) else not_portable
    return (
        fold(
            again,
            lambda item: _run_again(graph, step, item),
            lambda why: apply(step.diff, graph).map(lambda found: _Found(found, why)),
        )
        .map(
            lambda found: Verified(
                found.graph.digest,
                (*proof.steps, _checked(step, found)),
                proof.trail.plus((replace(step, graph=found.graph),)),
            )
        )
        .alt(lambda fault: Halt(fault, proof.trail))
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """The graph after a step, and why its pass was not run; empty where it was."""

    graph: Graph
    why: str = ""


def _checked(step: Step, found: _Found) -> Checked:
    outcome: Outcome = "applied, not replayed" if found.why else "run again"
    return Checked(step.text, outcome, found.graph.digest, found.why)


def _run_again(graph: Graph, step: Step, item: Pass) -> Result[_Found, Fault]:
    return (
        item.run(graph)
        .alt(lambda halt: halt.fault)
        .bind(
            lambda trail: (
                Success(_Found(trail.graph))
                if trail.graph.digest == step.after
                else Failure(_differs(step, trail.graph))
            )
        )
    )


def _differs(step: Step, made: Graph) -> Fault:
    edits = edits_between(step.graph, made, lambda _: RuleName("replay"))
    first = f"; the first of {len(edits)} differences: {str(edits[0])[:160]}" if edits else ""
    return Fault(
        FaultKind.DIGEST_DIFFERS,
        f"{step.text[:80]} run again gives {made.digest[:12]}, the trail says {step.after[:12]}"
        + first,
        "the trail was edited, or was written by a version whose passes differ; see its record",
    )


def _recaptured(proof: Verified, model: Module | None) -> Result[Verified, Halt]:
    if model is None:
        return Success(proof)
    base = proof.trail.base
    args, kwargs = example_call(base.signature)
    again = _capture(model, base, args, kwargs, "export").lash(
        lambda _: _capture(model, base, args, kwargs, "symbolic")
    )
    return again.bind(
        lambda found: (
            Success(replace(proof, model=True))
            if found.base.digest == base.digest
            else Failure(Halt(_other_model(base, found.base), proof.trail))
        )
    )


def _capture(
    model: Module,
    base: Graph,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    how: Literal["export", "symbolic"],
) -> Result[Trail, Halt]:
    return capture(
        model,
        args,
        kwargs=kwargs,
        how=how,
        leaves=tuple(base.leaves),
        dynamic=_dynamic(base.signature),
    )


def example_call(signature: Signature) -> tuple[tuple[object, ...], dict[str, object]]:
    """Arguments of zeros that fit a signature; named dimensions get 2, or their least size."""
    sizes = {name: max(2, least) for name, (least, _) in signature.dims.items()}

    def value(leaf: Arg) -> object:
        item = signature.inputs[leaf] if isinstance(leaf, int) else None
        if item is None or item.node is None or not isinstance(item.type, TensorType):
            return item.constant if item is not None else None
        dims = [_size(dim, sizes) for dim in item.type.dims or ()]
        return torch.zeros(dims, dtype=torch_dtype(item.type.dtype))

    args, kwargs = build(signature.args, value), build(signature.kwargs, value)
    listed = tuple(args) if isinstance(args, (tuple, list)) else (args,)
    named = {str(key): item for key, item in kwargs.items()} if isinstance(kwargs, dict) else {}
    return listed, named


def _size(dim: object, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if isinstance(dim, Poly):
        total = 0
        for atoms, factor in dim.terms:
            product = factor
            for atom in atoms:
                product *= sizes.get(atom, 2)
            total += product
        return total
    return 2


def _dynamic(signature: Signature) -> dict[str, dict[int, str]] | None:
    """The dimensions beside the batch that were captured as free."""
    found: dict[str, dict[int, str]] = {}
    for item in signature.inputs:
        if not isinstance(item.type, TensorType):
            continue
        for axis, dim in enumerate(item.type.dims or ()):
            if isinstance(dim, Poly) and str(dim) != "batch":
                found.setdefault(item.name, {})[axis] = str(dim)
    return found or None


def _remeasured(
    proof: Verified,
    batches: Iterable[object] | None,
    inputs: Callable[[object], object] | None,
) -> Result[Verified, Halt]:
    if batches is None:
        return Success(proof)
    graphs = proof.trail.graphs()
    found = [
        (before, step)
        for before, step in zip(graphs, proof.trail.steps, strict=False)
        if step.evidence is not None and step.evidence.kind == "stats"
    ]
    if not found:
        return Failure(Halt(_not_measured(), proof.trail))
    before, recorded = found[-1]
    return (
        calibrate(batches, inputs=inputs)
        .run(before)
        .map(lambda again: replace(proof, closeness=closeness(recorded, again.steps[-1])))
    )


def closeness(recorded: Step, measured: Step) -> Closeness:
    """How far two calibrations of one observed graph lie apart."""
    ours, theirs = _ranges(recorded), _ranges(measured)
    equal = [name for name in ours if _states(recorded, name) == _states(measured, name)]
    apart = {name: _apart(low_high, theirs.get(name)) for name, low_high in ours.items()}
    worst = max(apart, key=lambda name: apart[name], default="")
    return Closeness(len(ours), len(equal), apart.get(worst, 0.0), worst)


def _ranges(step: Step) -> dict[str, tuple[float, float]]:
    code = step.evidence.to_json() if step.evidence else None
    match code:
        case {"observers": dict() as observers}:
            return {name: found for name, item in observers.items() if (found := _range(item))}
        case _:
            return {}


def _range(code: Json) -> tuple[float, float] | None:
    match code:
        case {"low": int() | float() as low, "high": int() | float() as high}:
            return float(low), float(high)
        case _:
            return None


def _states(step: Step, observer: str) -> dict[Path, Digest]:
    return {
        path: weight.fingerprint
        for path, weight in step.graph.weights.items()
        if weight.role is Role.STATISTIC and path.startswith(f"{observer}.")
    }


def _apart(one: tuple[float, float], two: tuple[float, float] | None) -> float:
    if two is None:
        return float("inf")
    scale = max(abs(one[0]), abs(one[1])) or 1.0
    return max(abs(one[0] - two[0]), abs(one[1] - two[1])) / scale


def _nothing_to_replay() -> Fault:
    return Fault(
        FaultKind.BAD_ARGUMENT,
        "there are no steps to replay; a model artefact records only where it ended",
        "save the trail (Quantized.save(path, what='trail'), fqx quantize --trail) and verify that",
    )


def _other_weight(path: Path, weight: Weight, tensor: torch.Tensor | None) -> Fault:
    found = "is not there" if tensor is None else "has other values"
    if tensor is not None and tuple(tensor.shape) != weight.shape:
        found = f"has shape {tuple(tensor.shape)} instead of {weight.shape}"
    return Fault(
        FaultKind.DIGEST_DIFFERS,
        f"{path} {found} in the state_dict given",
        "hand in the state_dict of the model the trail was captured from",
        module=path,
    )


def _absent(path: Path) -> Fault:
    return Fault(
        FaultKind.MISSING_PAYLOAD,
        f"the trail was saved without the values of {path}",
        "hand in the model's state_dict",
        module=path,
    )


def _other_model(base: Graph, found: Graph) -> Fault:
    edits = edits_between(base, found, lambda _: RuleName("capture"))
    first = f"; the first of {len(edits)} differences: {str(edits[0])[:160]}" if edits else ""
    return Fault(
        FaultKind.DIGEST_DIFFERS,
        f"the model captured again gives {found.digest[:12]}, the trail starts at"
        f" {base.digest[:12]}{first}",
        "hand in the model the trail was captured from, in the same mode",
    )


def _not_measured() -> Fault:
    return Fault(
        FaultKind.BAD_ARGUMENT,
        "the trail holds no calibration to compare with",
        "leave calibration= out",
    )
