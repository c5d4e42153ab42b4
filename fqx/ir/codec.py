"""Graphs, edits, diffs, steps and trails as JSON and back.

Payloads stay out: a weight is written by its fingerprint, its values go where the file's author
puts them. Origins go in. What a decoder is given may come from anywhere, so anything that is not
exactly such a value is a fault, and no code is looked up or run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from fqx.ir.arg import DType, Json, NodeRef, decode_arg, encode_arg
from fqx.ir.diff import (
    Added,
    BlockAt,
    Changed,
    Diff,
    Edit,
    Item,
    LeafAt,
    Moved,
    Removed,
    Staged,
    TieAt,
    UpdateAt,
    WeightAt,
    apply,
)
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import FORMAT, Graph, graph_of
from fqx.ir.names import BlockName, Digest, NodeId, OpName, Path, RuleName, Stage
from fqx.ir.node import Node, Origin
from fqx.ir.signature import Signature, decode_signature, encode_signature
from fqx.ir.trail import Evidence, Step, Trail
from fqx.ir.weight import Layout, Leaf, Role, Weight
from fqx.kit.frozen import FrozenMap, row
from fqx.kit.result import Failure, Result, attempt

Decoders = Mapping[str, Callable[[Json], Evidence]]
"""For each kind of evidence what makes it of its JSON; ValueError on anything else."""

_T = TypeVar("_T")


def encode_graph(graph: Graph) -> Json:
    """The graph as JSON: everything its digest covers, and origins."""
    return {
        "format": FORMAT,
        "stage": graph.stage.value,
        "signature": encode_signature(graph.signature),
        "nodes": [_encode_node(node) for node in graph],
        "weights": {path: weight.to_json() for path, weight in graph.weights.items()},
        "ties": dict(graph.ties.items()),
        "updates": {path: ref.id for path, ref in graph.updates.items()},
        "blocks": {name: encode_graph(block) for name, block in graph.blocks.items()},
        "leaves": {path: leaf.to_json() for path, leaf in graph.leaves.items()},
    }


def decode_graph(code: Json) -> Result[Graph, Fault]:
    """Inverse of `encode_graph`; weights and leaves come without payload.

    Faults: UNKNOWN_VERSION, CORRUPT_FILE if it is no graph. Well-formedness is not checked.
    """
    version = code.get("format") if isinstance(code, dict) else None
    if isinstance(version, int) and version != FORMAT:
        return Failure(
            Fault(
                FaultKind.UNKNOWN_VERSION,
                f"the graph is of format {version}, this library reads format {FORMAT}",
                "read it with the version of fqx that wrote it, and capture the model again",
            )
        )
    return _decoded(lambda: _decode_graph(code), "graph")


def encode_edit(edit: Edit) -> Json:
    """An edit as JSON."""
    match edit:
        case Added(item=item, by=by, after=after):
            return {"added": _encode_item(item), "by": by, "after": after}
        case Removed(item=item, by=by, after=after):
            return {"removed": _encode_item(item), "by": by, "after": after}
        case Changed(old=old, new=new, by=by):
            return {"changed": [_encode_item(old), _encode_item(new)], "by": by}
        case Moved(id=name, before=before, after=after, by=by):
            return {"moved": name, "by": by, "before": before, "after": after}
        case Staged(before=stage, after=reached, by=by):
            return {"staged": [stage.value, reached.value], "by": by}


def decode_edit(code: Json) -> Result[Edit, Fault]:
    """Inverse of `encode_edit`. Faults: CORRUPT_FILE."""
    return _decoded(lambda: _decode_edit(code), "edit")


def encode_diff(diff: Diff) -> Json:
    """A diff as JSON."""
    return {
        "before": diff.before,
        "after": diff.after,
        "edits": [encode_edit(edit) for edit in diff.edits],
    }


def decode_diff(code: Json) -> Result[Diff, Fault]:
    """Inverse of `encode_diff`. Faults: CORRUPT_FILE."""
    return _decoded(lambda: _decode_diff(code), "diff")


def encode_step(step: Step) -> Json:
    """A step as JSON; its graph is not in it, `decode_step` makes it of the diff."""
    found = step.evidence
    evidence: Json = None if found is None else {"kind": found.kind, "value": found.to_json()}
    return {
        "name": step.name,
        "text": step.text,
        "options": encode_arg(step.options),
        "portable": step.portable,
        "diff": encode_diff(step.diff),
        "evidence": evidence,
    }


def decode_step(code: Json, before: Graph, decoders: Decoders) -> Result[Step, Fault]:
    """Inverse of `encode_step`, on the graph that the step was given.

    Faults: CORRUPT_FILE, also for a kind of evidence without decoder; DIFF_DOES_NOT_FIT.
    """
    return _decoded(lambda: _decode_step(code, before, decoders), "step").bind(
        lambda step: apply(step.diff, before).map(lambda graph: _on(step, graph))
    )


def encode_trail(trail: Trail) -> Json:
    """A trail as JSON: the base graph and every step."""
    return {
        "base": encode_graph(trail.base),
        "steps": [encode_step(step) for step in trail.steps],
        "notes": list(trail.notes),
    }


def decode_trail(code: Json, decoders: Decoders) -> Result[Trail, Fault]:
    """Inverse of `encode_trail`; every diff is applied, so every digest is proven.

    Faults: CORRUPT_FILE, UNKNOWN_VERSION, DIFF_DOES_NOT_FIT.
    """
    match code:
        case {"base": base, "steps": list() as steps, "notes": list() as notes}:
            trail = decode_graph(base).map(lambda graph: Trail(graph, (), _strings(notes)))
            for step in steps:
                trail = trail.bind(_further(step, decoders))
            return trail
        case _:
            return Failure(_corrupt("trail", ""))


def _further(step: Json, decoders: Decoders) -> Callable[[Trail], Result[Trail, Fault]]:
    return lambda trail: decode_step(step, trail.graph, decoders).map(
        lambda made: trail.plus((made,))
    )


def _decoded(make: Callable[[], _T], what: str) -> Result[_T, Fault]:
    wrong = (ValueError, KeyError, TypeError, RecursionError)
    return attempt(make, lambda error: _corrupt(what, str(error)), wrong)


def _corrupt(what: str, why: str) -> Fault:
    return Fault(
        FaultKind.CORRUPT_FILE,
        f"this is not the JSON of a {what}" + (f": {why[:200]}" if why else ""),
        "write it again with this library",
    )


# -- nodes and weights --


def _encode_node(node: Node) -> Json:
    plain = node.to_json()
    head = plain if isinstance(plain, dict) else {}
    return {**head, "origin": _encode_origin(node.origin)}


def _encode_origin(origin: Origin) -> Json:
    """Only what is not empty: most origins are short."""
    scope: list[Json] = [[path, kind] for path, kind in origin.scope]
    parts: dict[str, Json] = {
        "scope": scope,
        "call": origin.call,
        "source": origin.source,
        "parents": list(origin.parents),
        "note": origin.note,
    }
    return {name: value for name, value in parts.items() if value}


def _decode_node(code: Json) -> Node:
    match code:
        case {
            "id": str() as name,
            "op": str() as op,
            "args": list() as args,
            "attrs": dict() as attrs,
            "origin": dict() as origin,
            **rest,
        } if not rest:
            return Node(
                NodeId(name),
                OpName(op),
                tuple(decode_arg(arg) for arg in args),
                FrozenMap({key: decode_arg(value) for key, value in attrs.items()}),
                _decode_origin(origin),
            )
        case _:
            raise ValueError(f"not a node: {str(code)[:80]}")


def _decode_origin(code: dict[str, Json]) -> Origin:
    call, source, note = code.get("call", 0), code.get("source"), code.get("note", "")
    parents, scope = code.get("parents", []), code.get("scope", [])
    if not isinstance(call, int) or not isinstance(scope, list) or not isinstance(parents, list):
        raise ValueError("not an origin")
    return Origin(
        tuple(_pair(item) for item in scope),
        call,
        source if isinstance(source, str) else None,
        tuple(NodeId(name) for name in _strings(parents)),
        note if isinstance(note, str) else "",
    )


def _pair(code: Json) -> tuple[Path, str]:
    match code:
        case [str() as path, str() as kind]:
            return Path(path), kind
        case _:
            raise ValueError("not a scope")


def _strings(items: list[Json]) -> tuple[str, ...]:
    if not all(isinstance(item, str) for item in items):
        raise ValueError("not a list of names")
    return tuple(str(item) for item in items)


def _decode_weight(code: Json) -> Weight:
    match code:
        case {
            "dtype": str() as dtype,
            "shape": list() as shape,
            "role": str() as role,
            "fingerprint": str() as fingerprint,
            "layout": str() as layout,
            "persistent": bool() as persistent,
            "requires_grad": bool() as requires_grad,
            **rest,
        } if not rest:
            return Weight(
                DType(dtype),
                tuple(_size(size) for size in shape),
                Role(role),
                Digest(fingerprint),
                Layout(layout),
                persistent,
                requires_grad,
            )
        case _:
            raise ValueError(f"not a weight: {str(code)[:80]}")


def _size(code: Json) -> int:
    if isinstance(code, bool) or not isinstance(code, int) or code < 0:
        raise ValueError(f"not a size: {code!r}")
    return code


def _decode_leaf(code: Json) -> Leaf:
    match code:
        case {"type": str() as kind, "fingerprint": str() as mark, "reason": str() as reason}:
            return Leaf(kind, Digest(mark), reason)
        case _:
            raise ValueError("not a leaf")


# -- graphs --


def _decode_graph(code: Json) -> Graph:
    match code:
        case {
            "format": int() as version,
            "stage": str() as stage,
            "signature": signature,
            "nodes": list() as nodes,
            "weights": dict() as weights,
            "ties": dict() as ties,
            "updates": dict() as updates,
            "blocks": dict() as blocks,
            "leaves": dict() as leaves,
            **rest,
        } if not rest and version == FORMAT:
            listed = [_decode_node(node) for node in nodes]
            if len({node.id for node in listed}) != len(listed):
                raise ValueError("two nodes have the same name")
            return graph_of(
                listed,
                {Path(path): _decode_weight(weight) for path, weight in weights.items()},
                decode_signature(signature),
                ties={Path(path): Path(_string(first)) for path, first in ties.items()},
                updates={Path(p): NodeRef(NodeId(_string(n))) for p, n in updates.items()},
                blocks={BlockName(name): _decode_graph(block) for name, block in blocks.items()},
                leaves={Path(path): _decode_leaf(leaf) for path, leaf in leaves.items()},
                stage=Stage(stage),
            )
        case _:
            raise ValueError("its parts are not those of a graph")


def _string(code: Json) -> str:
    if not isinstance(code, str):
        raise ValueError(f"not a name: {code!r}")
    return code


# -- edits --


def _encode_item(item: Item) -> Json:
    match item:
        case Node():
            return {"node": _encode_node(item)}
        case WeightAt(path=path, weight=weight):
            return {"weight": path, "is": weight.to_json()}
        case TieAt(path=path, first=first):
            return {"tie": path, "is": first}
        case UpdateAt(path=path, value=value):
            return {"update": path, "is": value.id}
        case BlockAt(name=name, graph=graph):
            return {"block": name, "is": encode_graph(graph)}
        case LeafAt(path=path, leaf=leaf):
            return {"leaf": path, "is": leaf.to_json()}
        case Signature():
            return {"signature": encode_signature(item)}


def _decode_item(code: Json) -> Item:
    match code:
        case {"node": node}:
            return _decode_node(node)
        case {"weight": str() as path, "is": weight}:
            return WeightAt(Path(path), _decode_weight(weight))
        case {"tie": str() as path, "is": str() as first}:
            return TieAt(Path(path), Path(first))
        case {"update": str() as path, "is": str() as name}:
            return UpdateAt(Path(path), NodeRef(NodeId(name)))
        case {"block": str() as name, "is": graph}:
            return BlockAt(BlockName(name), _decode_graph(graph))
        case {"leaf": str() as path, "is": leaf}:
            return LeafAt(Path(path), _decode_leaf(leaf))
        case {"signature": signature}:
            return decode_signature(signature)
        case _:
            raise ValueError(f"an edit is about nothing known: {str(code)[:80]}")


def _decode_edit(code: Json) -> Edit:
    match code:
        case {"added": item, "by": str() as by, "after": after}:
            return Added(_decode_item(item), RuleName(by), _place(after))
        case {"removed": item, "by": str() as by, "after": after}:
            return Removed(_decode_item(item), RuleName(by), _place(after))
        case {"changed": [old, new], "by": str() as by}:
            return Changed(_decode_item(old), _decode_item(new), RuleName(by))
        case {"moved": str() as name, "by": str() as by, "before": before, "after": after}:
            return Moved(NodeId(name), _place(before), _place(after), RuleName(by))
        case {"staged": [str() as before, str() as after], "by": str() as by}:
            return Staged(Stage(before), Stage(after), RuleName(by))
        case _:
            raise ValueError(f"not an edit: {str(code)[:80]}")


def _place(code: Json) -> NodeId | None:
    return None if code is None else NodeId(_string(code))


def _decode_diff(code: Json) -> Diff:
    match code:
        case {"before": str() as before, "after": str() as after, "edits": list() as edits}:
            made = row(_decode_edit(edit) for edit in edits)
            return Diff(made, Digest(before), Digest(after))
        case _:
            raise ValueError("its parts are not those of a diff")


# -- steps --


def _decode_step(code: Json, before: Graph, decoders: Decoders) -> Step:
    """The step, still with the graph it was given."""
    match code:
        case {
            "name": str() as name,
            "text": str() as text,
            "options": options,
            "portable": bool() as portable,
            "diff": diff,
            "evidence": evidence,
        }:
            chosen = decode_arg(options)
            if not isinstance(chosen, FrozenMap):
                raise ValueError("the options of a step are a map")
            found = _decode_evidence(evidence, decoders)
            return Step(text, _decode_diff(diff), before, found, portable, name, chosen)
        case _:
            raise ValueError("its parts are not those of a step")


def _decode_evidence(code: Json, decoders: Decoders) -> Evidence | None:
    match code:
        case None:
            return None
        case {"kind": str() as kind, "value": value} if kind in decoders:
            return decoders[kind](value)
        case _:
            raise ValueError(f"evidence of an unknown kind: {str(code)[:80]}")


def _on(step: Step, graph: Graph) -> Step:
    return Step(step.text, step.diff, graph, step.evidence, step.portable, step.name, step.options)
