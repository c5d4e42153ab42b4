"""A materialized program as a program of `torch.export`, its free dimensions kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fqx.edge.capture_run import quietly
from fqx.edge.program import Program, parameter_name
from fqx.edge.spell import Seen, Spelled, quantized_values
from fqx.ir.arg import Arg
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.signature import Dim, Input, Poly, Signature, TensorType
from fqx.ir.tree import build, fit_call
from fqx.kit.result import Failure, Result, Success
from fqx.num.tensors import torch_dtype
from fqx.passes.calls import as_torch

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


def exported(
    program: Program, given: tuple[Any, ...] | None, kwargs: Mapping[str, Any]
) -> Result[torch.export.ExportedProgram, Fault]:
    """Trace the program with its kernels as custom ops.

    `given` are example inputs; without any, zeros of the sizes the signature says. Faults:
    INPUT_DOES_NOT_FIT, UNCAPTURABLE.
    """
    signature = program.fqx_program.signature
    return _example(signature, given, kwargs).bind(lambda call: _traced(program, call))


def _traced(program: Program, call: Call) -> Result[torch.export.ExportedProgram, Fault]:
    args, kwargs = call
    shapes = dynamic_shapes(program.fqx_program.signature)

    def run() -> torch.export.ExportedProgram:
        return torch.export.export(
            Spelled(program, _seen(program, call)),
            args,
            kwargs,
            dynamic_shapes=shapes,
            strict=False,
        )

    return quietly(run, _refused)


def _seen(program: Program, call: Call) -> Seen:
    if not any(node.op.startswith("native.") for node in program.fqx_program):
        return {}
    args, kwargs = call
    names = [str(node.target) for node in program.graph.nodes if node.op == "placeholder"]
    positional = dict(zip(names, args, strict=False))
    return quantized_values(program, tuple((positional | kwargs).get(name) for name in names))


def _refused(error: Exception, said: str) -> Fault:
    text = str(error).strip() or type(error).__name__
    return Fault(
        FaultKind.UNCAPTURABLE,
        f"torch.export cannot trace the program: {text.splitlines()[0]}"[:400],
        "save the program itself with save(path) and load it with fqx.load, or keep what cannot be"
        " traced out of the model",
        detail=f"{text}\n{said}"[:4000],
    )


# Examples.


def _example(
    signature: Signature, given: tuple[Any, ...] | None, kwargs: Mapping[str, Any]
) -> Result[Call, Fault]:
    unknown = next((item.name for item in signature.inputs if _is_open(item)), None)
    if given is None and unknown is not None:
        return Failure(
            Fault(
                FaultKind.INPUT_DOES_NOT_FIT,
                f"the sizes of input {unknown} are not in the signature",
                "give example inputs",
            )
        )
    if given is None:
        return Success(_made(signature))
    found = fit_call(signature, given, kwargs)
    return found.map(lambda values: _built(signature, _doubled(signature, values)))


def _is_open(item: Input) -> bool:
    kind = item.type
    if not isinstance(kind, TensorType):
        return item.node is not None
    return kind.dims is None or None in kind.dims


def _made(signature: Signature) -> Call:
    """Zeros of every input, and the constants of the captured call."""
    sizes = {
        name: _size(signature, name, index) for index, name in enumerate(sorted(signature.dims))
    }
    return _built(signature, tuple(_zeros(item, sizes) for item in signature.inputs))


def _zeros(item: Input, sizes: Mapping[str, int]) -> object:
    if item.node is None or not isinstance(item.type, TensorType):
        return as_torch(item.constant)
    size = [_value(dim, sizes) for dim in item.type.dims or ()]
    return torch.zeros(size, dtype=torch_dtype(item.type.dtype))


def _size(signature: Signature, name: str, index: int) -> int:
    """A size within bounds; tracing takes 0 and 1, and sizes that agree, for constants."""
    least, most = signature.dims[name]
    wanted = max(least, 2 + index)
    return wanted if most is None else min(wanted, most)


def _value(dim: Dim, sizes: Mapping[str, int]) -> int:
    if not isinstance(dim, Poly):
        return dim or 0
    total = 0
    for atoms, factor in dim.terms:
        product = factor
        for atom in atoms:
            product *= sizes[atom]
        total += product
    return total


def _doubled(signature: Signature, values: tuple[object, ...]) -> tuple[object, ...]:
    """The example with free dimensions of size 1 doubled, since tracing would freeze them."""
    pairs = zip(signature.inputs, values, strict=True)
    return tuple(_of_two(item, value) for item, value in pairs)


def _of_two(item: Input, value: object) -> object:
    if not isinstance(value, Tensor) or not isinstance(item.type, TensorType):
        return value
    for axis, dim in enumerate(item.type.dims or ()):
        if not isinstance(dim, int) and value.shape[axis] == 1:
            value = torch.cat([value, value], axis)
    return value


def _built(signature: Signature, values: tuple[object, ...]) -> Call:
    def leaf(index: Arg) -> object:
        return values[index] if isinstance(index, int) else None

    args, kwargs = build(signature.args, leaf), build(signature.kwargs, leaf)
    return (
        args if isinstance(args, tuple) else (),
        kwargs if isinstance(kwargs, dict) else {},
    )


# Dimensions.


def dynamic_shapes(signature: Signature) -> dict[str, Any]:
    """What `torch.export` is told about each parameter: every named dimension is free.

    A dimension that is an expression of named ones is left for torch to find.
    """
    dims: dict[str, Any] = {
        name: torch.export.Dim(name, min=least, max=most)
        for name, (least, most) in signature.dims.items()
    }

    def leaf(index: Arg) -> object:
        item = signature.inputs[index] if isinstance(index, int) else None
        if item is None or item.node is None or not isinstance(item.type, TensorType):
            return None
        return {
            axis: _free(dim, dims)
            for axis, dim in enumerate(item.type.dims or ())
            if not isinstance(dim, int)
        }

    trees = {
        parameter_name(signature, index): tree for index, tree in enumerate(signature.args.items)
    }
    trees |= dict(zip(map(str, signature.kwargs.keys), signature.kwargs.items, strict=True))
    return {name: build(tree, leaf) for name, tree in trees.items()}


def _free(dim: Dim, dims: Mapping[str, Any]) -> Any:
    if isinstance(dim, Poly) and len(dim.terms) == 1:
        atoms, factor = dim.terms[0]
        if len(atoms) == 1 and atoms[0] in dims:
            return dims[atoms[0]] if factor == 1 else factor * dims[atoms[0]]
    return torch.export.Dim.AUTO
