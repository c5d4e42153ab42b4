"""What torch.ao's native backend makes of a traced node: the patterns it lists, and their types.

torch.ao quantizes what a pattern of its backend takes with the types of the QConfig; the rest it
leaves float. Only the table of patterns is read; torch's own matcher is not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from torch import fx, nn

from fqx.compat.qconfig import QConfigReading, read_qconfig

Standing: TypeAlias = Literal["taken", "refused", "free"]
"""`taken`: torch quantizes it. `refused`: a pattern is there, and not for these types. `free`: no
pattern speaks of it."""


def standings(traced: fx.GraphModule, qconfigs: Mapping[str, Any]) -> dict[str, Standing]:
    """How each node of a traced model stands, by name; `qconfigs` are those of the nodes."""
    rows = _rows()
    modules = dict(traced.named_modules(remove_duplicate=False))
    found: dict[str, Standing] = {}
    for node in traced.graph.nodes:
        for row, chain in _matches(node, modules, rows):
            reading = _reading(qconfigs.get(chain[-1].name))
            takes = reading is None or any(_fits(row, made, reading) for made in row.dtype_configs)
            for member in chain:
                if takes or member.name not in found:
                    found[member.name] = "taken" if takes else "refused"
    return {node.name: found.get(node.name, "free") for node in traced.graph.nodes}


def _rows() -> dict[Any, list[tuple[tuple[Any, ...], Any]]]:
    """torch's rows by what their pattern ends in, each with its pattern from the end backwards."""
    # torch 2.13 reads this module of its own without importing it
    import torch.ao.quantization.backend_config.utils  # noqa: F401
    from torch.ao.quantization.backend_config import get_native_backend_config

    rows: dict[Any, list[tuple[tuple[Any, ...], Any]]] = {}
    for row in get_native_backend_config().configs:
        pattern = row.pattern if isinstance(row.pattern, tuple) else (row.pattern,)
        rows.setdefault(pattern[-1], []).append((pattern[::-1], row))
    return rows


def _matches(
    node: fx.Node,
    modules: Mapping[str, nn.Module],
    rows: Mapping[Any, Sequence[tuple[tuple[Any, ...], Any]]],
) -> Iterator[tuple[Any, list[fx.Node]]]:
    """The rows whose pattern ends in the node, with the nodes it takes, the last first."""
    for pattern, row in rows.get(_kind(node, modules), ()):
        chain = [node]
        for kind in pattern[1:]:
            before = chain[-1].args[0] if chain[-1].args else None
            if not isinstance(before, fx.Node) or len(before.users) != 1:
                break
            if _kind(before, modules) != kind:
                break
            chain.append(before)
        if len(chain) == len(pattern):
            yield row, chain


def _kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> Any:
    """What a pattern calls the node: a module's class, a function, or a method's name."""
    if node.op == "call_module":
        return type(modules[str(node.target)])
    return node.target if node.op in ("call_function", "call_method") else None


def _reading(qconfig: Any) -> QConfigReading | None:
    return None if qconfig is None else read_qconfig(qconfig).value_or(None)


def _fits(row: Any, types: Any, reading: QConfigReading) -> bool:
    """Whether one line of types of a row is what the QConfig asks for."""
    activation, weight = reading.activation, reading.weight
    if reading.reuses_input:
        return True
    if types.input_dtype not in (None, activation.dtype):
        return False
    if bool(types.is_dynamic) != activation.is_dynamic:
        return False
    limits = types.output_dtype_with_constraints
    known = activation.spec is not None and activation.spec.observer.kind == "fixed"
    if limits.scale_exact_match is not None and not known:
        return False
    told = row.to_dict()
    weighs = "root_module" in told or "weight" in told.get("input_type_to_index", {})
    return not weighs or types.weight_dtype in (None, weight.dtype)
