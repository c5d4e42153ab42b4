"""Inputs and outputs of a converted program that are quantized tensors of torch.

They are read and made at the border: quantizing what was dequantized gives the same integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fqx.ir.arg import Arg, DType, NodeRef
from fqx.ir.graph import Graph
from fqx.ir.signature import Tree


@dataclass(frozen=True, slots=True)
class Grid:
    """Scale, zero point and type of a quantized tensor."""

    scale: float
    zero_point: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Reading:
    """A hook before a call: these inputs are dequantized, whatever their scales are."""

    places: tuple[int, ...]
    names: tuple[str, ...]

    def __call__(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments with floats in these places."""
        given = [_floats(arg) if at in self.places else arg for at, arg in enumerate(args)]
        asked = {self.names[at] for at in self.places}
        named = {name: _floats(arg) if name in asked else arg for name, arg in kwargs.items()}
        return tuple(given), named


@dataclass(frozen=True, slots=True)
class Giving:
    """A hook behind a call: the leaves of its result that have a grid become quantized tensors."""

    grids: tuple[Grid | None, ...]

    def __call__(self, _: Any, _args: Any, result: Any) -> Any:
        """The result with quantized tensors in it."""
        return _quantized(result, iter(self.grids))


def grids_of(graph: Graph, outputs: Sequence[int]) -> tuple[Grid | None, ...]:
    """The grid of every leaf of a QUANTIZED program's output, None for what stays as it is.

    Outputs are counted as torch.ao counts them: the items of a tuple or list, or 0 for whatever
    else is returned.
    """
    whole = graph.signature.output
    items = whole.items if whole.kind in ("tuple", "list") else (whole,)
    return tuple(
        _grid(graph, leaf) if at in outputs else None
        for at, item in enumerate(items)
        for leaf in _leaves(item)
    )


def count_of_outputs(graph: Graph) -> int:
    """How many outputs torch.ao counts."""
    whole = graph.signature.output
    return len(whole.items) if whole.kind in ("tuple", "list") else 1


def _leaves(tree: Tree) -> Iterator[Arg]:
    if tree.kind == "leaf":
        yield tree.leaf
    for item in tree.items:
        yield from _leaves(item)


def _grid(graph: Graph, leaf: Arg) -> Grid | None:
    """The grid a returned dequantize reads, if torch has such tensors."""
    node = graph.nodes.get(leaf.id) if isinstance(leaf, NodeRef) else None
    if node is None or node.op != "dequantize":
        return None
    maker = graph.nodes.get(node.inputs()[0]) if node.inputs() else None
    scale, zero_point = node.args[1:]
    if maker is None or maker.op != "quantize" or not isinstance(scale, float):
        return None
    held = maker.attrs["dtype"]
    if held not in (DType.UINT8, DType.INT8) or not isinstance(zero_point, int):
        return None
    return Grid(scale, zero_point, torch.quint8 if held is DType.UINT8 else torch.qint8)


def _floats(value: Any) -> Any:
    return value.dequantize() if isinstance(value, Tensor) and value.is_quantized else value


def _quantized(value: Any, grids: Iterator[Grid | None]) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)([_quantized(item, grids) for item in value])
    if isinstance(value, dict):
        return {key: _quantized(item, grids) for key, item in value.items()}
    grid = next(grids)
    if grid is None or not isinstance(value, Tensor):
        return value
    return torch.quantize_per_tensor(value, grid.scale, grid.zero_point, grid.dtype)
