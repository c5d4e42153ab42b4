"""Batch norms folded into the convolution or linear before them.

    y = (w·x + b - mean) · gamma / sqrt(var + eps) + beta
      = (w · f)·x + ((b - mean) · f + beta),   f = gamma / sqrt(var + eps)

per output channel (Jacob et al. 2018, §3.2). All of it in float64, rounded once to the type of the
weight: IEEE elementwise, so the bits are the same on every machine. In float32 it is computed in
the order of torch's `fuse_conv_bn_weights` and `fuse_linear_bn_weights`, to their bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from types import MappingProxyType
from typing import TypeAlias

import torch

from fqx.ir.arg import NodeRef, WeightRef
from fqx.ir.fault import Fault
from fqx.ir.names import Path, RuleName
from fqx.ir.node import Node
from fqx.ir.signature import TensorType
from fqx.ir.weight import Layout, Role, Weight
from fqx.kit.result import Result, fold, gather
from fqx.match.pattern import anything, op, optional, stored
from fqx.match.rule import Change, Made, Rule, Rules, rules
from fqx.match.search import Match, Miss
from fqx.num.scheme import Formula
from fqx.num.tensors import memory_format, tensor_of, torch_dtype, weight_of
from fqx.ops.catalogue import attr, operand, with_operand

RANKS: Mapping[str, int] = {
    "linear": 2,
    "conv1d": 3,
    "conv2d": 4,
    "conv3d": 5,
    "conv_transpose1d": 3,
    "conv_transpose2d": 4,
    "conv_transpose3d": 5,
}
"""Rank at which axis 1, which batch norm scales, is the output channel of the op before it."""


@dataclass(frozen=True, slots=True)
class _Tensors:
    """What goes into a folding, in the formula's precision; absent parts are None."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    gamma: torch.Tensor | None
    beta: torch.Tensor | None
    mean: torch.Tensor
    var: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Folded:
    """The new weight and bias, in the formula's precision."""

    weight: torch.Tensor
    bias: torch.Tensor


def _fold_norm(found: Match, formula: Formula) -> Made:
    layer = found.node("layer")
    if layer is None:
        return Miss("there is no layer before it")
    why = _obstacle(found, layer)
    if why is not None:
        return Miss(why, found.root.id)
    return fold(
        _tensors(found, torch.float64 if formula == "float64" else torch.float32),
        lambda tensors: _change(found, layer, tensors, _FORMULAS[formula]),
        _itself,
    )


def _itself(fault: Fault) -> Made:
    return fault


def _obstacle(found: Match, layer: Node) -> str | None:
    kind = found.type_of(NodeRef(layer.id))
    rank = len(kind.dims) if isinstance(kind, TensorType) and kind.dims is not None else None
    if rank != RANKS[layer.op]:
        return (
            f"{layer.id} gives a value of rank {'unknown' if rank is None else rank}, so axis 1, "
            f"which the batch norm scales, is not its output channel"
        )
    weight = found.weight("weight")
    if weight is None or not weight.dtype.is_float:
        return "the weight is not a float tensor of the graph"
    return None


def _tensors(found: Match, dtype: torch.dtype) -> Result[_Tensors, Fault]:
    names = [name for name in ("weight", "bias", "gamma", "beta", "mean", "var") if found.has(name)]
    weights = [found.weight(name) for name in names]
    values = gather(tensor_of(weight) for weight in weights if weight is not None)
    return values.map(lambda tensors: _named(dict(zip(names, tensors, strict=True)), dtype))


def _named(held: Mapping[str, torch.Tensor], dtype: torch.dtype) -> _Tensors:
    by_name = {name: tensor.to(dtype) for name, tensor in held.items()}
    return _Tensors(
        by_name["weight"],
        by_name.get("bias"),
        by_name.get("gamma"),
        by_name.get("beta"),
        by_name["mean"],
        by_name["var"],
    )


def _change(found: Match, layer: Node, tensors: _Tensors, compute: _Compute) -> Made:
    eps = attr(found.root, "eps")
    folded = compute(tensors, float(eps) if isinstance(eps, int | float) else 0.0, layer)
    if folded is None:
        return Miss("a running variance is negative or zero, the folded weight would not be finite")
    weight, path = found.weight("weight"), found.path("weight")
    if weight is None or path is None:
        return Miss("the weight is not in the graph", layer.id)
    new_weight = _stored(folded.weight, weight)
    new_bias = _stored(folded.bias, found.weight("bias") or _bias_beside(weight))
    weight_path = _weight_path(found, path, new_weight)
    bias_path = _bias_path(found, path, weight_path, new_bias)
    with_weight = with_operand(layer, "weight", WeightRef(weight_path))
    with_both = with_operand(with_weight, "bias", WeightRef(bias_path))
    made = replace(with_both, origin=replace(layer.origin, parents=(found.root.id,)))
    weights = {weight_path: new_weight, bias_path: new_bias}
    return Change(NodeRef(layer.id), (made,), weights, _left_over(found))


def _folded(tensors: _Tensors, eps: float, layer: Node) -> _Folded | None:
    spread = torch.sqrt(tensors.var + eps)
    factor = torch.ones_like(spread) / spread if tensors.gamma is None else tensors.gamma / spread
    if not bool(torch.isfinite(factor).all()):
        return None
    bias = torch.zeros_like(spread) if tensors.bias is None else tensors.bias
    moved = (bias - tensors.mean) * factor
    weight = tensors.weight * _along_channels(factor, tensors.weight, layer)
    return _Folded(weight, moved if tensors.beta is None else moved + tensors.beta)


def _folded_single(tensors: _Tensors, eps: float, layer: Node) -> _Folded | None:
    """As torch folds, operation by operation: convolutions multiply their bias by gamma last."""
    inverse = torch.rsqrt(tensors.var + eps)
    gamma = torch.ones_like(inverse) if tensors.gamma is None else tensors.gamma
    beta = torch.zeros_like(inverse) if tensors.beta is None else tensors.beta
    bias = torch.zeros_like(inverse) if tensors.bias is None else tensors.bias
    factor, centred = gamma * inverse, bias - tensors.mean
    if not bool(torch.isfinite(factor).all()):
        return None
    moved = centred * factor if layer.op == "linear" else centred * inverse * gamma
    weight = tensors.weight * _along_channels(factor, tensors.weight, layer)
    return _Folded(weight, moved + beta)


_Compute: TypeAlias = Callable[[_Tensors, float, Node], _Folded | None]
_FORMULAS: Mapping[Formula, _Compute] = MappingProxyType(
    {"float64": _folded, "float32": _folded_single}
)


def _along_channels(factor: torch.Tensor, weight: torch.Tensor, layer: Node) -> torch.Tensor:
    """The factors, so shaped that they multiply the output channels of the weight.

    A transposed convolution's weight is (in, out / groups, …): input channel i belongs to group
    i // (in / groups), and group g holds the output channels from g · out / groups on.
    """
    ones = (1,) * (weight.dim() - 2)
    if not layer.op.startswith("conv_transpose"):
        return factor.reshape(-1, 1, *ones)
    groups = attr(layer, "groups")
    parts = factor.reshape(groups if isinstance(groups, int) else 1, -1)
    return parts.repeat_interleave(weight.shape[0] // parts.shape[0], dim=0).reshape(
        weight.shape[0], parts.shape[1], *ones
    )


def _stored(tensor: torch.Tensor, like: Weight) -> Weight:
    rounded = tensor.to(torch_dtype(like.dtype)).contiguous(
        memory_format=memory_format(like.layout)
    )
    return weight_of(
        rounded,
        like.role,
        persistent=like.persistent,
        requires_grad=like.requires_grad,
        share=True,
    )


def _bias_beside(weight: Weight) -> Weight:
    """What a bias is like where there was none."""
    return replace(weight, role=Role.PARAMETER, layout=Layout.CONTIGUOUS)


def _weight_path(found: Match, path: Path, new: Weight) -> Path:
    """The old path if the fold is the weight's only reader, else a new one.

    A module called twice, each time with the same norm behind it, gets one folded weight again.
    """
    stem = _stem(path)
    for candidate in _numbered(f"{stem}fused_weight"):
        there = found.weight_at(candidate)
        if there == new:
            return candidate
        if there is None:
            return path if found.is_alone(path) else candidate
    return path


def _bias_path(found: Match, path: Path, weight_path: Path, new: Weight) -> Path:
    old, stem = found.path("bias"), _stem(path)
    shared = Path(f"{stem}fused_bias")
    if weight_path != path and found.weight_at(shared) == new:
        return shared
    if old is not None and found.is_alone(old):
        return old
    plain = Path(f"{stem}bias")
    if old is None and weight_path == path and found.weight_at(plain) is None:
        return plain
    return next(name for name in _numbered(shared) if found.weight_at(name) in (None, new))


def _numbered(stem: str) -> Iterator[Path]:
    yield Path(stem)
    for index in count(1):
        yield Path(f"{stem}_{index}")


def _stem(path: Path) -> str:
    """The module part of a weight's path, with its dot."""
    return path[: path.rfind(".") + 1]


def _left_over(found: Match) -> tuple[Path, ...]:
    """The batch counter of a norm that goes."""
    mean = found.path("mean")
    if mean is None or not found.is_alone(mean):
        return ()
    return (Path(f"{_stem(mean)}num_batches_tracked"),)


def foldings(formula: Formula = "float64") -> Rules:
    """Rules that take a norm into the weights before it, computed in this precision."""
    return rules(
        # batch_norm(conv(x, w, b), gamma, beta, mean, var) -> conv(x, w', b')
        Rule(
            RuleName("fuse.batch_norm"),
            op("batch_norm")(
                op(*RANKS)(anything("x"), stored("weight"), optional(stored("bias")))
                .named("layer")
                .alone(),
                optional(stored("gamma")),
                optional(stored("beta")),
                stored("mean"),
                stored("var"),
            )
            .having(training=False)
            .where(
                "it normalizes by the statistics of the batch itself",
                lambda norm: operand(norm, "mean") is not None and operand(norm, "var") is not None,
            ),
            lambda found: _fold_norm(found, formula),
        ),
    )
