"""Graphs and trails as files: save, read, load.

A *model* artefact holds the last graph of a trail with the plan behind it: what runs. A *trail*
artefact holds the captured graph, every step's diff and evidence: what happened. Both hold each
weight once, by its fingerprint. `read` gives a file's values and runs nothing; `load` also asks
whether this process may and can run the program.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn

from fqx.edge.admit import admit
from fqx.edge.container import Content, corrupt, interrupted, read_file, write_file
from fqx.edge.environment import environment
from fqx.edge.evidence import decode_evidence, target_of
from fqx.edge.leaves import attach_leaves
from fqx.edge.machine import fits_machine, kernel_ops
from fqx.ir.arg import Arg, DType, Json, decode_arg
from fqx.ir.codec import decode_diff, decode_graph, encode_graph, encode_step
from fqx.ir.diff import Diff, apply
from fqx.ir.edit import Added, BlockAt, Changed, Edit, Item, Removed, WeightAt
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import Digest, OpName, Stage
from fqx.ir.trail import Halt, Step, Trail
from fqx.ir.weight import Role, Weight
from fqx.kit.frozen import FrozenMap, row
from fqx.kit.result import Failure, Result, Success, attempt, gather
from fqx.num.lent import unchanged
from fqx.num.tensors import fingerprint_of, memory_format, tensor_of
from fqx.ops.catalogue import OPS
from fqx.ops.spec import check
from fqx.ops.work import work_of

Weights = Literal["attached", "detached"]
FilePath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Artefact:
    """What a file holds: `kind` is model or trail; `made` says where it was made.

    A model's trail starts at its last graph: its steps have empty diffs and carry the evidence.
    `absent` are the fingerprints a detached trail was saved without.
    """

    kind: str
    trail: Trail
    made: FrozenMap[Arg]
    target: Json = None
    absent: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        weights = f", {len(self.absent)} weights detached" if self.absent else ""
        made = ", ".join(f"{name} {value}" for name, value in self.made.items())
        graph = "\n".join(f"  {line}" for line in repr(self.trail.graph).splitlines())
        return f"Artefact {self.kind}{weights}\n  made with {made}\n{graph}"


def save_model(path: FilePath, trail: Trail) -> Result[Digest, Halt]:
    """Write the last graph of a trail with its plan; gives the digest that `load` can pin.

    The file at `path` is replaced as a whole or stays as it was. Faults: UNWRITABLE_FILE,
    MISSING_PAYLOAD (a detached trail), STORAGE_CHANGED, INTERRUPTED.
    """
    return _uninterrupted(path, trail, lambda: _save_model(path, trail))


def _save_model(path: FilePath, trail: Trail) -> Result[Digest, Halt]:
    graph = trail.graph
    body: dict[str, Json] = {
        "graph": encode_graph(graph),
        "evidence": [
            {"text": step.text, "name": step.name, "evidence": _evidence(step, before)}
            for before, step in zip(trail.graphs(), trail.steps, strict=False)
            if step.evidence is not None and step.evidence.kind != "stats"
        ],
    }
    return _save(path, "model", trail, body, dict(_graph_weights(graph)), frozenset())


def save_trail(path: FilePath, trail: Trail, weights: Weights = "attached") -> Result[Digest, Halt]:
    """Write the captured graph and every step; gives the digest that `load` can pin.

    With `weights="detached"` the float weights stay out: those a state_dict brings and those the
    passes compute of them; `verify` computes them again. Faults: as `save_model`.
    """
    return _uninterrupted(path, trail, lambda: _save_trail(path, trail, weights))


def _save_trail(path: FilePath, trail: Trail, weights: Weights) -> Result[Digest, Halt]:
    held = dict(_trail_weights(trail))
    absent = _detachable(trail) if weights == "detached" else frozenset[str]()
    body: dict[str, Json] = {
        "base": encode_graph(trail.base),
        "steps": [encode_step(step) for step in trail.steps],
        "notes": list(trail.notes),
    }
    kept = {name: weight for name, weight in held.items() if name not in absent}
    return _save(path, "trail", trail, body, kept, absent)


def _uninterrupted(
    path: FilePath, trail: Trail, save: Callable[[], Result[Digest, Halt]]
) -> Result[Digest, Halt]:
    """Ctrl-C before the file is begun is the same fault as while it is written."""
    try:
        return save()
    except KeyboardInterrupt:
        return Failure(Halt(interrupted(path), trail))


def read(path: FilePath, digest: str | None = None) -> Result[Artefact, Halt]:
    """The values in a file, every fingerprint and digest proven; nothing is run or looked up.

    What it gives may be shown, compared, explained and verified, on any machine. Faults:
    UNREADABLE_FILE, UNKNOWN_VERSION, CORRUPT_FILE, DIGEST_DIFFERS (not the pinned one).
    """
    return (
        read_file(path)
        .bind(lambda content: _decode(path, content))
        .bind(lambda found: _pinned(path, found, digest))
        .alt(Halt)
    )


def load(
    path: FilePath,
    digest: str | None = None,
    allow_ops: Sequence[str] = (),
    leaves: Mapping[str, nn.Module] | None = None,
) -> Result[Artefact, Halt]:
    """A file's values, ready to run here.

    Beyond `read`, faults: UNLISTED_OP (a foreign operator that writes, draws or opens a file, and
    is not in `allow_ops`), WIDER_MACHINE (made for kernels this machine does not have),
    MISSING_LEAF (a module the program keeps whole is not in `leaves`, or is another one).
    """
    known = frozenset((*OPS, *kernel_ops(), *_STRUCTURAL))
    return read(path, digest).bind(
        lambda found: (
            _admitted(found.trail, known, allow_ops)
            .bind(lambda _: fits_machine(found.trail.graph, found.target))
            .bind(lambda _: attach_leaves(found.trail, leaves or {}))
            .map(lambda trail: replace(found, trail=trail))
            .alt(lambda fault: Halt(fault, found.trail))
        )
    )


_STRUCTURAL = (OpName("input"), OpName("leaf"), OpName("getitem"))


def _admitted(
    trail: Trail, known: frozenset[OpName], allow_ops: Sequence[str]
) -> Result[None, Fault]:
    graph = trail.graph
    passed = check(graph, graph.stage).alt(
        lambda fault: replace(fault, kind=FaultKind.CORRUPT_FILE, detail=str(fault))
    )
    return passed.bind(
        lambda _: gather(admit(graph, known, allow_ops) for graph in trail.graphs())
    ).map(lambda _: None)


def _save(
    path: FilePath,
    kind: str,
    trail: Trail,
    body: dict[str, Json],
    weights: Mapping[str, Weight],
    absent: frozenset[str],
) -> Result[Digest, Halt]:
    graph = trail.graph
    whole: dict[str, Json] = {
        **body,
        "digest": graph.digest,
        "made": dict(environment()),
        "target": target_of(trail),
        "absent": [*sorted(absent)],
    }
    return (
        unchanged(trail.graphs())
        .bind(lambda _: _tensors(weights))
        .bind(lambda tensors: write_file(path, Content(kind, whole, tensors)))
        .map(lambda _: graph.digest)
        .alt(lambda fault: Halt(fault, trail))
    )


def _tensors(weights: Mapping[str, Weight]) -> Result[dict[str, torch.Tensor], Fault]:
    return gather(tensor_of(weight) for weight in weights.values()).map(
        lambda tensors: dict(zip(weights, tensors, strict=True))
    )


def _evidence(step: Step, before: Graph) -> Json:
    """A step's evidence; beside a plan stands what its nodes are, as the graph itself will not."""
    if step.evidence is None:
        return None
    value = step.evidence.to_json()
    if step.evidence.kind == "plan" and isinstance(value, dict) and "work" not in value:
        work = work_of(before)
        table: dict[str, Json] = {name: [item.op, item.macs] for name, item in work.items()}
        value = {**value, "work": table}
    return {"kind": step.evidence.kind, "value": value}


def _graph_weights(graph: Graph) -> Iterator[tuple[str, Weight]]:
    for weight in graph.weights.values():
        yield weight.fingerprint, weight
    for block in graph.blocks.values():
        yield from _graph_weights(block)


def _trail_weights(trail: Trail) -> Iterator[tuple[str, Weight]]:
    """Every weight of every graph, and those that only a diff mentions."""
    for graph in trail.graphs():
        yield from _graph_weights(graph)
    for step in trail.steps:
        for edit in step.diff.edits:
            for item in _items(edit):
                if isinstance(item, WeightAt):
                    yield item.weight.fingerprint, item.weight
                if isinstance(item, BlockAt):
                    yield from _graph_weights(item.graph)


def _items(edit: Edit) -> tuple[Item, ...]:
    match edit:
        case Added(item=item) | Removed(item=item):
            return (item,)
        case Changed(old=old, new=new):
            return (old, new)
        case _:
            return ()


def _detachable(trail: Trail) -> frozenset[str]:
    """Float weights of the float program that a state_dict, or a pass from it, gives again."""
    before = (Stage.FLOAT, Stage.FUSED, Stage.OBSERVED, Stage.CALIBRATED)
    found: set[str] = set()
    needed: set[str] = set()
    for path, weight in trail.base.weights.items():
        given = weight.role in (Role.PARAMETER, Role.BUFFER) and weight.persistent
        (found if given and _is_float(weight) else needed).add(weight.fingerprint)
        del path
    for graph in trail.graphs():
        for name, weight in _graph_weights(graph):
            if weight.role is Role.STATISTIC or not _is_float(weight):
                needed.add(name)
            elif graph.stage in before:
                found.add(name)
    return frozenset(found - needed)


def _is_float(weight: Weight) -> bool:
    return weight.dtype.is_float or weight.dtype in (DType.COMPLEX64, DType.COMPLEX128)


def _decode(path: FilePath, content: Content) -> Result[Artefact, Fault]:
    return attempt(
        lambda: _pool(content), lambda error: corrupt(path, str(error)[:200]), (ValueError,)
    ).bind(
        lambda pool: (
            attempt(
                lambda: _DECODERS[content.kind](content, pool),
                lambda error: corrupt(path, f"{type(error).__name__}: {str(error)[:160]}"),
            )
            .bind(lambda made: made.alt(lambda fault: corrupt(path, fault.reason)))
            .bind(lambda made: _complete(path, made, content))
        )
    )


@dataclass(frozen=True, slots=True)
class _Pool:
    """Tensors by fingerprint, proven; each laid out once per memory format."""

    tensors: Mapping[str, torch.Tensor]
    absent: frozenset[str]
    laid: dict[tuple[str, str], torch.Tensor]
    used: set[str]

    def weight(self, weight: Weight) -> Weight:
        """The weight with its values; ValueError if they are not in the file or do not fit."""
        name = weight.fingerprint
        if name in self.absent:
            return weight
        found = self.tensors.get(name)
        if found is None:
            raise ValueError(f"the values of a weight ({name[:12]}) are missing")
        if tuple(found.shape) != weight.shape or str(found.dtype) != f"torch.{weight.dtype.value}":
            raise ValueError(f"a weight is called {weight.dtype.value}{list(weight.shape)}")
        self.used.add(name)
        key = (name, weight.layout.value)
        if key not in self.laid:
            self.laid[key] = found.contiguous(memory_format=memory_format(weight.layout))
        return replace(weight, payload=self.laid[key])

    def graph(self, graph: Graph) -> Graph:
        """The graph with values in every weight, sub-programs included."""
        return replace(
            graph, weights=graph.weights.map(self.weight), blocks=graph.blocks.map(self.graph)
        )

    def diff(self, diff: Diff) -> Diff:
        """The diff with values in every weight it mentions."""
        return replace(diff, edits=row(self._edit(edit) for edit in diff.edits))

    def _edit(self, edit: Edit) -> Edit:
        match edit:
            case Added(item=item) | Removed(item=item):
                return replace(edit, item=self._item(item))
            case Changed(old=old, new=new):
                return replace(edit, old=self._item(old), new=self._item(new))
            case _:
                return edit

    def _item(self, item: Item) -> Item:
        match item:
            case WeightAt(weight=weight):
                return replace(item, weight=self.weight(weight))
            case BlockAt(graph=graph):
                return replace(item, graph=self.graph(graph))
            case _:
                return item


def _pool(content: Content) -> _Pool:
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in content.tensors.items():
        # complex128 is stored as pairs of float64: which one it is, the fingerprint says
        pairs = tensor.dtype == torch.float64 and tensor.dim() > 0 and tensor.shape[-1] == 2
        readings = (tensor, torch.view_as_complex(tensor)) if pairs else (tensor,)
        fitting = next((one for one in readings if fingerprint_of(one) == name), None)
        if fitting is None:
            raise ValueError(f"the values of weight {name[:12]} do not have this fingerprint")
        tensors[name] = fitting
    absent = content.body.get("absent")
    if not isinstance(absent, list):
        raise ValueError("the list of absent weights is missing")
    missing = frozenset(str(name) for name in absent)
    return _Pool(tensors, missing - frozenset(tensors), {}, set())


def _decode_model(content: Content, pool: _Pool) -> Result[Trail, Fault]:
    return decode_graph(content.body["graph"]).map(
        lambda made: _model_trail(content, pool.graph(made))
    )


def _model_trail(content: Content, graph: Graph) -> Trail:
    still = Diff(row(), graph.digest, graph.digest)
    steps: list[Step] = []
    for item in _listed(content.body["evidence"]):
        match item:
            case {"text": str() as text, "name": str() as name, "evidence": evidence}:
                steps.append(Step(text, still, graph, decode_evidence(evidence), name=name))
            case _:
                raise ValueError("an entry of evidence is malformed")
    return Trail(graph, tuple(steps))


def _decode_trail(content: Content, pool: _Pool) -> Result[Trail, Fault]:
    notes = tuple(str(note) for note in _listed(content.body["notes"]))
    done = decode_graph(content.body["base"]).map(lambda base: Trail(pool.graph(base), (), notes))
    for item in _listed(content.body["steps"]):
        done = done.bind(partial(_decode_step, item, pool))
    return done


_DECODERS: Mapping[str, Callable[[Content, _Pool], Result[Trail, Fault]]] = MappingProxyType(
    {
        "model": _decode_model,
        "trail": _decode_trail,
    }
)


def _decode_step(code: Json, pool: _Pool, trail: Trail) -> Result[Trail, Fault]:
    match code:
        case {
            "name": str() as name,
            "text": str() as text,
            "options": options,
            "portable": bool() as portable,
            "diff": diff,
            "evidence": evidence,
        }:
            change = decode_diff(diff).map(pool.diff)
            chosen = decode_arg(options)
            if not isinstance(chosen, FrozenMap):
                raise ValueError("the options of a step are no map")
            found = decode_evidence(evidence)
            return change.bind(
                lambda edits: apply(edits, trail.graph).map(
                    lambda graph: trail.plus(
                        (Step(text, edits, graph, found, portable, name, chosen),)
                    )
                )
            )
        case _:
            raise ValueError("a step is malformed")


def _listed(code: Json) -> Iterable[Json]:
    if not isinstance(code, list):
        raise ValueError("a list was expected")
    return code


def _complete(path: FilePath, trail: Trail, content: Content) -> Result[Artefact, Fault]:
    body = content.body
    if body.get("digest") != trail.graph.digest:
        return Failure(
            corrupt(path, f"its program has digest {trail.graph.digest[:12]}, not the recorded one")
        )
    made = body.get("made")
    record = dict(made) if isinstance(made, dict) else {}
    absent = body.get("absent")
    return Success(
        Artefact(
            content.kind,
            trail,
            FrozenMap({name: str(value) for name, value in record.items()}),
            body.get("target"),
            frozenset(str(name) for name in absent) if isinstance(absent, list) else frozenset(),
        )
    )


def _pinned(path: FilePath, found: Artefact, digest: str | None) -> Result[Artefact, Fault]:
    have = found.trail.graph.digest
    if digest is None or have == digest:
        return Success(found)
    return Failure(
        Fault(
            FaultKind.DIGEST_DIFFERS,
            f"{path} holds the program {have[:16]}, not {digest[:16]}",
            "load the file this digest was given for, or drop digest= if any program will do",
        )
    )
