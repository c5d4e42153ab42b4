"""Example inputs: their tree, their names, and which of their axes vary."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from fqx.ir.arg import Arg, DType
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.signature import Tree
from fqx.ir.tree import build, flatten, leaf_names
from fqx.kit.result import Failure, Result, Success
from fqx.num.tensors import dtype_of

BATCH = "batch"
"""Name of the dimension shared by the first axes of the inputs."""


@dataclass(frozen=True, slots=True)
class Example:
    """A call taken apart: one entry per leaf of its arguments, tensors first by name.

    `values` holds a tensor, or a constant of the call; `axes` the names of the varying axes of each
    leaf.
    """

    names: tuple[str, ...]
    values: tuple[torch.Tensor | Arg, ...]
    axes: tuple[Mapping[int, str], ...]
    args: Tree
    kwargs: Tree
    params: tuple[str, ...]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors among the values, in order."""
        return tuple(value for value in self.values if isinstance(value, torch.Tensor))

    @property
    def tensor_axes(self) -> tuple[Mapping[int, str], ...]:
        """The varying axes of each tensor, in order."""
        both = zip(self.values, self.axes, strict=True)
        return tuple(axes for value, axes in both if isinstance(value, torch.Tensor))

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The names of the tensors, in order."""
        both = zip(self.values, self.names, strict=True)
        return tuple(name for value, name in both if isinstance(value, torch.Tensor))

    def arrange(self, tensors: tuple[object, ...]) -> tuple[tuple[object, ...], dict[str, object]]:
        """The call with other values in place of the tensors: positional and keyword arguments."""
        rest = iter(tensors)
        values = [
            next(rest) if isinstance(value, torch.Tensor) else _spoken(value)
            for value in self.values
        ]

        def of_leaf(index: Arg) -> object:
            return values[index] if isinstance(index, int) else None

        args, kwargs = build(self.args, of_leaf), build(self.kwargs, of_leaf)
        named = kwargs if isinstance(kwargs, dict) else {}
        return (args if isinstance(args, tuple) else ()), named


def read_example(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    dynamic: Mapping[str, Mapping[int, str | None]],
) -> Result[Example, Fault]:
    """Take an example call apart and name what varies.

    Axis 0 of every tensor as long as the first tensor's is the batch, unless `dynamic` says
    otherwise: it maps an input's name to its varying axes (None: fixed; an empty map: all fixed).
    An axis of length 1 is doubled, since tracing would freeze it. Fails with INPUT_DOES_NOT_FIT.
    """
    return (
        _bound(model, args, kwargs)
        .bind(lambda params: _taken(args, kwargs, params))
        .bind(lambda example: _with_axes(example, dynamic))
        .bind(_doubled)
    )


def _misfit(reason: str, remedy: str) -> Fault:
    return Fault(FaultKind.INPUT_DOES_NOT_FIT, reason, remedy)


def _bound(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Result[inspect.Signature, Fault]:
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return Failure(
            _misfit(
                f"the example inputs do not fit forward{signature}: {error}",
                "give positional inputs as a tuple and keyword inputs as a mapping",
            )
        )
    return Success(signature)


def _taken(
    args: tuple[object, ...], kwargs: Mapping[str, object], signature: inspect.Signature
) -> Result[Example, Fault]:
    params, variadic = _params(signature)
    left, right = flatten(tuple(args)), flatten(dict(kwargs))
    names = [
        name
        for index, tree in enumerate(left.tree.items)
        for name in leaf_names(
            tree, params[index] if index < len(params) else f"{variadic}.{index - len(params)}"
        )
    ]
    names += leaf_names(right.tree, "")
    leaves = (*left.leaves, *right.leaves)
    for name, value in zip(names, leaves, strict=True):
        problem = _problem(value)
        if problem:
            return Failure(
                _misfit(f"input {name} {problem}", "give tensors, numbers, strings or None")
            )
    values = tuple(_value(value) for value in leaves)
    shifted = _shifted(right.tree, len(left.leaves))
    axes: tuple[Mapping[int, str], ...] = tuple({} for _ in values)
    return Success(Example(tuple(names), values, axes, left.tree, shifted, params))


def _params(signature: inspect.Signature) -> tuple[tuple[str, ...], str]:
    kinds = inspect.Parameter
    listed = signature.parameters.values()
    named = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    variadic = next((p.name for p in listed if p.kind is kinds.VAR_POSITIONAL), "args")
    return tuple(p.name for p in listed if p.kind in named), variadic


def _problem(value: object) -> str:
    if isinstance(value, torch.Tensor):
        known = dtype_of(value.dtype) is not None and value.layout == torch.strided
        return "" if known else f"is a {value.layout} tensor of {value.dtype}"
    if isinstance(value, torch.dtype):
        return "" if dtype_of(value) is not None else f"is {value}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return ""
    return f"is a {type(value).__name__}, which a signature cannot hold"


def _value(value: object) -> torch.Tensor | Arg:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, torch.dtype):
        return dtype_of(value)
    return value if isinstance(value, (bool, int, float, str)) else None


def _spoken(value: torch.Tensor | Arg) -> object:
    return getattr(torch, value.value) if isinstance(value, DType) else value


def _shifted(tree: Tree, count: int) -> Tree:
    if tree.kind == "leaf":
        return replace(tree, leaf=tree.leaf + count) if isinstance(tree.leaf, int) else tree
    return replace(tree, items=tuple(_shifted(item, count) for item in tree.items))


def _with_axes(
    example: Example, dynamic: Mapping[str, Mapping[int, str | None]]
) -> Result[Example, Fault]:
    known = set(example.tensor_names)
    unknown = [name for name in dynamic if name not in known]
    if unknown:
        shown = ", ".join(example.tensor_names)
        return Failure(_misfit(f"dynamic= names {unknown[0]!r}", f"the tensor inputs are {shown}"))
    batch = next((t.shape[0] for t in example.tensors if t.dim()), None)
    axes = tuple(
        _axes(value, batch, dynamic.get(name))
        for name, value in zip(example.names, example.values, strict=True)
    )
    return _sized(replace(example, axes=axes))


def _axes(
    value: torch.Tensor | Arg, batch: int | None, given: Mapping[int, str | None] | None
) -> Mapping[int, str]:
    if not isinstance(value, torch.Tensor) or given == {}:
        return {}
    named: dict[int, str | None] = {0: BATCH} if value.dim() and value.shape[0] == batch else {}
    for axis, name in (given or {}).items():
        named[axis + value.dim() if axis < 0 else axis] = name
    return {axis: name for axis, name in sorted(named.items()) if name is not None}


def _sized(example: Example) -> Result[Example, Fault]:
    sizes: dict[str, int] = {}
    for name, value, axes in zip(example.names, example.values, example.axes, strict=True):
        for axis, dim in axes.items():
            known = isinstance(value, torch.Tensor) and 0 <= axis < value.dim()
            if not isinstance(value, torch.Tensor) or not known or not dim.isidentifier():
                return Failure(
                    _misfit(f"{name} has no axis {axis} to be called {dim!r}", "see dynamic=")
                )
            size = value.shape[axis]
            if size == 0 or sizes.setdefault(dim, size) != size:
                return Failure(
                    _misfit(
                        f"dimension {dim} is {sizes[dim]} elsewhere and {size} in axis {axis}"
                        f" of {name}",
                        "give examples whose named dimensions agree and are not empty",
                    )
                )
    return Success(example)


def _doubled(example: Example) -> Result[Example, Fault]:
    values = tuple(
        _double(value, axes) if isinstance(value, torch.Tensor) else value
        for value, axes in zip(example.values, example.axes, strict=True)
    )
    return Success(replace(example, values=values))


def _double(value: torch.Tensor, axes: Mapping[int, str]) -> torch.Tensor:
    for axis in axes:
        if value.shape[axis] == 1:
            value = torch.cat([value, value], axis)
    return value
