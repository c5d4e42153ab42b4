"""Capture: from a model and an example call to the graph every pass starts from.

`how="export"` runs `torch.export` on a structural copy of the model, `how="symbolic"` runs an fx
trace first and exports the trace; one canonicalizer reads both. The caller's model, its inputs and
torch's global state are as before when capture returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from fqx.edge.capture_inputs import Example, read_example
from fqx.edge.capture_leaves import Leaves, no_leaves, with_stubs
from fqx.edge.capture_model import (
    Names,
    check_mode,
    check_parameters,
    names_of,
    quantized_part,
    structural_copy,
    weights_of,
)
from fqx.edge.capture_names import input_id, name_nodes
from fqx.edge.capture_read import Read, Source, read_program
from fqx.edge.capture_run import FlatModel, FlatTrace, Returned, export_flat
from fqx.edge.capture_trace import Traced, is_torch_module, trace
from fqx.edge.capture_types import Symbols, symbol_of, type_of
from fqx.edge.locate import keep_whole
from fqx.ir.arg import Arg, NodeRef, map_refs
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import NodeId, Path
from fqx.ir.signature import Input, OpaqueType, Signature, Tree, Type
from fqx.ir.trail import Halt, Trail
from fqx.ir.weight import Role, Weight
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success
from fqx.num.tensors import weight_of

How = Literal["export", "symbolic"]
Dynamic = Mapping[str, Mapping[int, str | None]]

__all__ = ["capture"]


@dataclass(frozen=True, slots=True)
class Request:
    """One call of `capture`."""

    model: nn.Module
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    how: How
    leaves: tuple[str, ...]
    dynamic: Dynamic
    share: bool
    eval: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """The structural copy ready to be traced, its names, its example and its stubs."""

    model: nn.Module
    names: Names
    modules: Mapping[int, str]
    example: Example
    leaves: Leaves
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """What tracing gave: the exported program and the tree of outputs around its values."""

    exported: torch.export.ExportedProgram
    tree: Tree
    leaves: tuple[tuple[str, Arg], ...]
    prefix: str
    transient: frozenset[int] = frozenset()


def capture(
    model: nn.Module,
    example_inputs: Sequence[object] | Mapping[str, object],
    *,
    kwargs: Mapping[str, object] | None = None,
    how: How = "export",
    leaves: Sequence[str] = (),
    dynamic: Dynamic | None = None,
    share: bool = False,
    eval: bool = False,
) -> Result[Trail, Halt]:
    """The model as a graph of stage FLOAT that computes the same bits.

    `example_inputs` are positional inputs (a tuple) or keyword inputs (a mapping); `kwargs` more of
    the latter. Only their shapes, dtypes and containers matter. Axis 0 of every tensor as long as
    the first one's is the batch and stays free; `dynamic` names more free axes, or none, per input:
    `{"x": {2: "height"}, "table": {}}`. Modules at the paths `leaves` are kept whole and float.
    Weights are copied once; with `share=True` they are held as they are, and every later call that
    reads them first compares their fingerprints (STORAGE_CHANGED). `eval=True` captures as if
    `model.eval()` had been called.

    Faults, each with module, line and remedy: UNCAPTURABLE, CONTROL_FLOW, BATCH_IS_FIXED,
    MODEL_IN_TRAINING, AMBIENT_AUTOCAST, UNFUNCTIONAL_WRITE, RANDOM_OP, UNCOPYABLE_MODEL,
    UNINITIALIZED_PARAMETER, UNKNOWN_LEAF, INPUT_DOES_NOT_FIT.
    """
    named = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
    request = Request(
        model,
        () if isinstance(example_inputs, Mapping) else _positional(example_inputs),
        {**named, **(kwargs or {})},
        how,
        tuple(leaves),
        dynamic or {},
        share,
        eval,
    )
    return (
        _admitted(request)
        .bind(_prepared)
        .bind(lambda prepared: _captured(request, prepared))
        .alt(lambda fault: Halt(_told_of_integers(fault, request.model)))
    )


def _told_of_integers(fault: Fault, model: object) -> Fault:
    """The fault of a model that no tracer can follow because it is quantized already."""
    kinds = (FaultKind.UNCAPTURABLE, FaultKind.CONTROL_FLOW, FaultKind.UNFUNCTIONAL_WRITE)
    if fault.kind not in kinds:
        return fault
    done = quantized_part(model) if isinstance(model, nn.Module) else None
    if done is None:
        return fault
    return Fault(
        FaultKind.WRONG_STAGE,
        "a part of the model is quantized or prepared already",
        "hand in the float model it was made of",
        module=Path(done),
        detail=f"{fault}\n{fault.detail}",
    )


def _positional(example: object) -> tuple[object, ...]:
    if isinstance(example, (tuple, list)):
        return tuple(example)
    return (example,)


def _admitted(request: Request) -> Result[Request, Fault]:
    model: object = request.model
    if not isinstance(model, nn.Module):
        return Failure(
            Fault(
                FaultKind.UNCAPTURABLE,
                f"a {type(model).__name__} is not a torch module",
                "wrap the function in an nn.Module",
            )
        )
    if isinstance(model, torch.jit.ScriptModule):
        return Failure(
            Fault(
                FaultKind.UNCAPTURABLE,
                "the model is TorchScript, which has no Python code to follow",
                "hand in the module before it was scripted, or the same network in Python",
                module=Path(""),
            )
        )
    how: str = request.how
    if how not in ("export", "symbolic"):
        return Failure(Fault(FaultKind.BAD_ARGUMENT, f"how={how!r}", "use 'export' or 'symbolic'"))
    if torch.is_autocast_enabled("cpu"):
        return Failure(
            Fault(
                FaultKind.AMBIENT_AUTOCAST,
                "capture was called under torch.autocast, which no tracer records",
                "capture outside the autocast block",
            )
        )
    return Success(request)


def _prepared(request: Request) -> Result[Prepared, Fault]:
    return (
        check_parameters(request.model)
        .bind(lambda _: structural_copy(request.model))
        .bind(lambda model: _checked(request, _in_mode(model, request)))
    )


def _checked(request: Request, model: nn.Module) -> Result[Prepared, Fault]:
    return (
        check_mode(model)
        .bind(lambda _: read_example(model, request.args, request.kwargs, request.dynamic))
        .bind(lambda example: _with_leaves(request, model, example))
    )


def _in_mode(model: nn.Module, request: Request) -> nn.Module:
    return model.eval() if request.eval else model


def _with_leaves(request: Request, model: nn.Module, example: Example) -> Result[Prepared, Fault]:
    note = "captured in eval mode at the caller's request"
    notes = (note,) if request.eval and request.model.training else ()
    found = (
        with_stubs(request.model, model, request.leaves, example, share=request.share)
        if request.leaves
        else no_leaves(model)
    )
    return found.map(
        lambda leaves: Prepared(
            leaves.model,
            names_of(leaves.model),
            {id(module): path for path, module in leaves.model.named_modules()},
            example,
            leaves,
            notes,
        )
    )


def _captured(request: Request, prepared: Prepared) -> Result[Trail, Fault]:
    follow: Callable[[Prepared], Result[Program, Fault]]
    # fx calls modules of torch itself and does not trace into them: nothing to trace in such a root
    opaque = is_torch_module(prepared.model)
    follow = _exported if request.how == "export" or opaque else _traced
    return prepared.leaves.calling(
        lambda: follow(prepared).bind(lambda program: _graph(request, prepared, program))
    )


def _exported(prepared: Prepared) -> Result[Program, Fault]:
    returned = Returned()
    flat = FlatModel(prepared.model, prepared.example, returned)
    example = prepared.example
    return (
        export_flat(flat, example.tensors, example.tensor_axes, prepared.modules)
        .alt(lambda fault: _with_script_remedy(fault, prepared.model))
        .bind(lambda exported: _sound(exported, returned))
        .map(lambda exported: Program(exported, returned.tree, returned.leaves, "m"))
    )


def _with_script_remedy(fault: Fault, model: nn.Module) -> Fault:
    """The fault of a model with TorchScript in it, which export runs as a black box.

    It then finds sizes fixed that are not, in no line of the user's.
    """
    scripts = [p for p, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if not scripts:
        return fault
    name = scripts[0] or "the model"
    if fault.source is not None and fault.kind is not FaultKind.BATCH_IS_FIXED:
        hint = f"{name} is TorchScript, which how='symbolic' looks into"
        return replace(fault, remedy=f"{fault.remedy}; {hint}")
    return Fault(
        FaultKind.UNCAPTURABLE,
        f"{name} is TorchScript, which torch.export does not look into",
        "use how='symbolic', or hand in the module before it was scripted",
        module=Path(scripts[0]),
        source=fault.source,
        detail=str(fault),
    )


def _traced(prepared: Prepared) -> Result[Program, Fault]:
    return trace(prepared.model, prepared.example, prepared.modules).bind(
        lambda traced: _exported_trace(prepared, traced)
    )


def _exported_trace(prepared: Prepared, traced: Traced) -> Result[Program, Fault]:
    """Export of the trace; an output of the trace may turn out to be a tuple of values."""
    returned, example = Returned(), prepared.example
    flat = FlatTrace(traced.module, returned)
    modules = {**prepared.modules, **{id(m): p for p, m in traced.module.named_modules() if p}}
    return (
        export_flat(flat, example.tensors, example.tensor_axes, modules)
        .bind(lambda exported: _sound(exported, traced.returned))
        .map(
            lambda exported: Program(
                exported,
                _grafted(traced.returned, returned),
                returned.leaves,
                "m",
                traced.transient,
            )
        )
    )


def _grafted(outer: Returned, inner: Returned) -> Tree:
    """The model's containers around what each of the trace's values turned out to be."""

    def change(tree: Tree) -> Tree:
        if tree.kind != "leaf":
            return replace(tree, items=tuple(change(item) for item in tree.items))
        kind, value = outer.leaves[tree.leaf if isinstance(tree.leaf, int) else 0]
        if kind == "value" and isinstance(value, int):
            return inner.tree.items[value]
        return Tree("leaf", FrozenMap({"constant": value}))

    return change(outer.tree)


def _sound(
    exported: torch.export.ExportedProgram, returned: Returned
) -> Result[torch.export.ExportedProgram, Fault]:
    if returned.stored is not None:
        path, name = returned.stored
        return Failure(
            Fault(
                FaultKind.UNFUNCTIONAL_WRITE,
                f"forward stores a value in the attribute {name!r}; a graph keeps nothing",
                f"return the value instead, or {keep_whole(path)}",
                module=Path(path),
            )
        )
    if returned.problem:
        remedy = "return tensors in tuples, lists, dicts or dataclasses (often: use_cache=False)"
        return Failure(Fault(FaultKind.UNCAPTURABLE, returned.problem, remedy))
    return Success(exported)


def _graph(request: Request, prepared: Prepared, program: Program) -> Result[Trail, Fault]:
    symbols, axes = _symbols(prepared.example, program.exported)
    source = Source(
        program.exported,
        prepared.names,
        prepared.example.tensor_names,
        symbols,
        axes,
        program.transient,
        program.prefix,
    )
    return read_program(source).map(
        lambda read: Trail(
            _assembled(request, prepared, program, read, symbols),
            notes=(*prepared.notes, *prepared.leaves.notes, *read.notes),
        )
    )


def _symbols(
    example: Example, exported: torch.export.ExportedProgram
) -> tuple[Symbols, Mapping[str, tuple[str, int]]]:
    """The varying sizes' names by symbol, and the first input axis each can be read from."""
    symbols: dict[str, str] = {}
    axes: dict[str, tuple[str, int]] = {}
    seen = iter(_input_values(exported))
    for name, named in zip(example.tensor_names, example.tensor_axes, strict=True):
        shape = getattr(next(seen), "shape", ())
        for axis, dim in named.items():
            symbol = symbol_of(shape[axis])
            if symbol is not None:
                symbols.setdefault(symbol, dim)
                axes.setdefault(dim, (name, axis))
    return symbols, axes


def _input_values(exported: torch.export.ExportedProgram) -> tuple[object, ...]:
    specs = exported.graph_signature.input_specs
    given = {spec.arg.name for spec in specs if spec.kind.name == "USER_INPUT"}
    return tuple(
        node.meta.get("val")
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in given
    )


def _assembled(
    request: Request, prepared: Prepared, program: Program, read: Read, symbols: Symbols
) -> Graph:
    nodes, renamed = name_nodes(read.nodes, read.places, prepared.names)
    outputs = tuple(_renamed(ref, renamed) for ref in read.outputs)
    constants = {
        path: weight_of(tensor, Role.CONSTANT, persistent=False)
        for path, tensor in read.constants.items()
    }
    weights: dict[Path, Weight] = {**weights_of(prepared.model, share=request.share), **constants}
    ties = {Path(p): Path(first) for p, first in prepared.names.tensors.items() if p != first}
    return graph_of(
        nodes,
        weights,
        _signature(prepared, program, outputs, symbols),
        ties=ties,
        leaves=prepared.leaves.handles,
    )


def _renamed(ref: Arg, renamed: Mapping[NodeId, NodeId]) -> Arg:
    return map_refs(ref, lambda one: NodeRef(renamed[one.id]) if isinstance(one, NodeRef) else one)


def _signature(
    prepared: Prepared, program: Program, outputs: tuple[Arg, ...], symbols: Symbols
) -> Signature:
    example = prepared.example
    seen = iter(_input_values(program.exported))
    inputs = tuple(
        _input(name, value, type_of(next(seen), symbols))
        if isinstance(value, torch.Tensor)
        else Input(name, None, OpaqueType(type(value).__name__), value)
        for name, value in zip(example.names, example.values, strict=True)
    )
    return Signature(
        inputs,
        example.args,
        example.kwargs,
        _output(program, outputs),
        FrozenMap(_bounds(program.exported, symbols)),
        example.params,
    )


def _input(name: str, value: torch.Tensor, kind: Type) -> Input:
    del value
    return Input(name, input_id(name), kind)


def _output(program: Program, outputs: tuple[Arg, ...]) -> Tree:
    def change(tree: Tree) -> Tree:
        if tree.kind != "leaf":
            return replace(tree, items=tuple(change(item) for item in tree.items))
        if isinstance(tree.leaf, FrozenMap):
            return Tree("leaf", tree.leaf["constant"])
        kind, value = program.leaves[tree.leaf if isinstance(tree.leaf, int) else 0]
        found = outputs[value] if kind == "value" and isinstance(value, int) else value
        return Tree("leaf", found)

    return change(program.tree)


def _bounds(
    exported: torch.export.ExportedProgram, symbols: Symbols
) -> dict[str, tuple[int, int | None]]:
    bounds: dict[str, tuple[int, int | None]] = {}
    for symbol, limits in exported.range_constraints.items():
        name = symbols.get(str(symbol))
        if name is not None:
            most = str(limits.upper)
            bounds[name] = (int(limits.lower), int(most) if most.isdigit() else None)
    return bounds
