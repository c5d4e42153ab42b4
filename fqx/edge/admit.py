"""What a program from a file may ask this process to do.

A program is data; the only way it reaches code is by the operators it names. Canonical operators
and the kernels of the targets are known. A foreign one is admitted if it is an `aten` overload that
by its own schema writes nothing, draws no random numbers and opens no file, or if the caller lists
it. Names that end up in generated code or in module trees must be plain.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import torch

from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import OpName
from fqx.ir.node import Node
from fqx.ir.signature import Tree
from fqx.kit.result import Failure, Result, Success

_FOREIGN = re.compile(r"aten\.[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_NAME = 4096

# Uninitialised memory is neither random by its tag nor anybody's value; a raw pointer or an
# unchecked index reads what the program does not own.
_DISCLOSING = ("empty", "new_empty", "_unsafe_", "_efficientzerotensor", "_fill_mem_eff")


def admit(
    graph: Graph, known: Collection[OpName], allow_ops: Collection[str] = ()
) -> Result[None, Fault]:
    """Whether every operator of the program may run here.

    Faults: UNLISTED_OP naming the first node whose operator may not; CORRUPT_FILE for a name that
    no capture gives.
    """
    for part in _graphs(graph):
        for node in part:
            reason = "" if node.op in known or node.op in allow_ops else objection(node.op)
            if reason:
                return Failure(_unlisted(node, reason))
        odd = next(_odd_names(part), None)
        if odd is not None:
            return Failure(
                Fault(
                    FaultKind.CORRUPT_FILE,
                    f"the program uses the name {odd[:60]!r}, which no capture gives",
                    "do not load this file; ask where it comes from",
                )
            )
    return Success(None)


def objection(op: str) -> str:
    """Why a foreign operator may not run, empty if it may."""
    if not _FOREIGN.fullmatch(op):
        return "it is neither an operator of fqx nor an aten overload"
    _, name, overload = op.split(".")
    if name.startswith("__") or overload.startswith("__"):
        found: object = None
    else:
        found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        return "this torch has no such overload"
    schema = found._schema
    if schema.is_mutable or name.endswith("_"):
        return "it writes into its arguments"
    if torch.Tag.nondeterministic_seeded in found.tags:
        return "it draws random numbers"
    if not any("Tensor" in str(result.type) for result in schema.returns):
        return "it gives no tensor, so it is called for an effect"
    if any("file" in argument.name for argument in schema.arguments):
        return "it opens a file"
    if name.startswith(_DISCLOSING):
        return "it reads memory that holds no value of the program"
    return ""


def _unlisted(node: Node, reason: str) -> Fault:
    return Fault(
        FaultKind.UNLISTED_OP,
        f"the program calls {node.op[:120]}: {reason}",
        f"if you trust the file, load it with allow_ops=({node.op[:120]!r},)",
        at=node.id,
        module=node.origin.module,
        source=node.origin.source,
    )


def _graphs(graph: Graph) -> Iterator[Graph]:
    yield graph
    for block in graph.blocks.values():
        yield from _graphs(block)


def _odd_names(graph: Graph) -> Iterator[str]:
    yield from (name for name in graph.order if not _is_plain(name))
    for paths in (graph.weights, graph.ties, graph.updates, graph.leaves):
        yield from (path for path in paths if not _is_path(path))
    signature = graph.signature
    yield from (name for name in signature.params if not name.isidentifier())
    for tree in (signature.args, signature.kwargs, signature.output):
        yield from (name for name in _classes(tree) if not _is_plain(name))


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= _LONGEST_NAME and name.isprintable()


def _is_path(path: str) -> bool:
    return _is_plain(path) and not any(
        not part or (part.startswith("__") and part.endswith("__")) for part in path.split(".")
    )


def _classes(tree: Tree) -> Iterator[str]:
    if tree.name:
        yield tree.name
    for item in tree.items:
        yield from _classes(item)
