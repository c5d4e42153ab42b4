"""A quantized program in the operators of `torch.ops.quantized_decomposed`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from fqx.edge.materialize import NODE
from fqx.ir.arg import DType
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.num.tensors import torch_dtype

_NARROW = (DType.UINT8, DType.INT8, DType.INT16)


def decomposed(module: fx.GraphModule, program: Graph) -> fx.GraphModule:
    """The materialized QUANTIZED program with torch's own quantize and dequantize: the same bits.

    Both round `x * (1 / scale)` in float32 to the even integer. Scales are float32 values, so the
    reciprocal that torch takes in double and rounds is the one taken in float32. What torch has no
    such operator for (qparams computed at run time, integers of 32 bits) stays as it is.
    """
    import torch.ao.quantization.fx._decomposed  # noqa: F401  # defines the operators

    root = nn.Module()
    for table in ("_parameters", "_buffers", "_modules"):
        getattr(root, table).update(getattr(module, table))
    drawn = copy.deepcopy(module.graph)
    for node in list(drawn.nodes):
        item = program.nodes.get(NodeId(str(node.meta.get(NODE, ""))))
        if item is not None and item.op in ("quantize", "dequantize"):
            _respell(root, drawn, node, item, program)
    drawn.lint()
    return fx.GraphModule(root.eval(), drawn, "Decomposed")


def _respell(root: nn.Module, drawn: fx.Graph, node: fx.Node, item: Node, program: Graph) -> None:
    integers = _integers(item, program)
    if integers is None:
        return
    dtype, low, high = integers
    operators = torch.ops.quantized_decomposed
    x, axis = node.args[0], item.attrs["axis"]
    more: dict[str, Any] = {}
    if item.op == "dequantize" and item.attrs["dtype"] is not DType.FLOAT32:
        more["out_dtype"] = torch_dtype(item.attrs["dtype"])  # type: ignore[arg-type]
    scale, zero_point = item.args[1:]
    kind = torch_dtype(dtype)
    if isinstance(axis, int):
        zeros = _zeros(root, drawn, node, zero_point)
        if zeros is None:
            return
        node.target = getattr(operators, f"{item.op}_per_channel").default
        node.args = (x, node.args[1], zeros, axis, low, high, kind)
    elif isinstance(scale, float) and isinstance(zero_point, int):
        node.target = getattr(operators, f"{item.op}_per_tensor").default
        node.args = (x, scale, zero_point, low, high, kind)
    else:
        return
    node.kwargs = more


def _integers(item: Node, program: Graph) -> tuple[DType, int, int] | None:
    """Type and ends of the integers that a node writes or reads."""
    held: tuple[object, ...]
    if item.op == "quantize":
        held = tuple(item.attrs[name] for name in ("dtype", "qmin", "qmax"))
    else:
        held = _read(item, program)
    match held:
        case (DType() as dtype, int() as low, int() as high) if dtype in _NARROW:
            return dtype, low, high
        case _:
            return None


def _read(item: Node, program: Graph) -> tuple[object, ...]:
    """What a dequantize reads: the ends its quantize clamps to, or all a weight's type holds."""
    for name in item.inputs()[:1]:
        source = program[name]
        if source.op == "quantize":
            return tuple(source.attrs[name] for name in ("dtype", "qmin", "qmax"))
    for path in item.weights()[:1]:
        weight = program.weights.get(program.ties.get(path) or path)
        if weight is not None and weight.dtype in _NARROW:
            ends = torch.iinfo(torch_dtype(weight.dtype))
            return weight.dtype, ends.min, ends.max
    return ()


def _zeros(root: nn.Module, drawn: fx.Graph, node: fx.Node, zero_point: object) -> Any:
    """The zero points of all channels as a buffer beside the scales they go with."""
    scales = node.args[1]
    if not isinstance(scales, fx.Node) or scales.op != "get_attr":
        return None
    if not isinstance(zero_point, int):
        return node.args[2]
    head, _, last = str(scales.target).rpartition(".")
    owner, name = root.get_submodule(head), last.removesuffix("scale") + "zero_point"
    if name not in owner._buffers:
        zeros = torch.full(owner.get_buffer(last).shape, zero_point, dtype=torch.int64)
        owner.register_buffer(name, zeros)
    with drawn.inserting_before(node):
        return drawn.get_attr(f"{head}.{name}" if head else name)
