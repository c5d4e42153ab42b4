"""What each kernel of a custom op gives, without its values: sizes, dtype and layout.

A kernel of a weight is asked of torch's float operator of the same name; torch traces that with
sizes that are not known yet. `settled` gives a kernel's result the layout that is promised here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fqx.edge.kernels import canonical
from fqx.ir.names import OpName
from fqx.targets.lone import CONTRACTIONS, NORMS
from fqx.targets.recurrent import CELLS, LAYERS
from fqx.targets.shapes import AVERAGING

Attrs: TypeAlias = Mapping[str, Any]
Fake: TypeAlias = Callable[[Attrs, Sequence[Any]], Any]
"""From attributes and operands to an empty result, or a list of them."""

CONVOLUTION = re.compile(
    r"(?:onednn|packed|native)\.conv(_transpose)?(\d)d(_as_linear|_add|_dynamic)?"
)


def fake_of(op: OpName) -> Fake | None:
    """The rule of a kernel; None for one that torch traces through by itself."""
    found = CONVOLUTION.fullmatch(op)
    if found is not None:
        return _conv(int(found[2]), bool(found[1]))
    return _FAKES.get(op)


def settled(made: Tensor, fake: Fake, x: Any) -> Tensor:
    """The result in the layout of its rule: of the input, channels-last or contiguous."""
    layout = getattr(fake, "layout", "input")
    last = layout == "last" or (layout == "input" and _is_last(x))
    return _last(made) if last else made.contiguous()


def _is_last(x: Tensor) -> bool:
    """Whether the channels lie together, as convolutions leave them."""
    return x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def _last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _empty(size: Sequence[Any], dtype: torch.dtype, like: Tensor, last: bool = False) -> Tensor:
    if last:
        rows = (size[0], *size[2:], size[1])
        return torch.empty(rows, dtype=dtype, device=like.device).movedim(-1, 1)
    return torch.empty(tuple(size), dtype=dtype, device=like.device)


def _dtype(attrs: Attrs) -> torch.dtype:
    found: torch.dtype = getattr(torch, str(attrs.get("output", "uint8")))
    return found


def _laid_out(layout: str) -> Callable[[Fake], Fake]:
    """Say in which layout a rule promises its result."""

    def mark(fake: Fake) -> Fake:
        setattr(fake, "layout", layout)  # noqa: B010  # functions have no declared attributes
        return fake

    return mark


def _conv(dims: int, transposed: bool) -> Fake:
    @_laid_out("last")
    def fake(attrs: Attrs, operands: Sequence[Any]) -> Tensor:
        x, weight = operands[0], operands[1]
        size = torch.ops.aten.convolution(
            x.to(torch.float32),
            weight.to(torch.float32),
            None,
            list(attrs.get("stride", (1,) * dims)),
            list(attrs.get("padding", (0,) * dims)),
            list(attrs.get("dilation", (1,) * dims)),
            transposed,
            list(attrs.get("output_padding", (0,) * dims)),
            attrs.get("groups", 1),
        ).shape
        return _empty(size, _dtype(attrs), x, last=True)

    return fake


@_laid_out("contiguous")
def _linear(attrs: Attrs, operands: Sequence[Any]) -> Tensor:
    x, weight = operands[0], operands[1]
    return _empty((*x.shape[:-1], weight.shape[0]), _dtype(attrs), x)


@_laid_out("contiguous")
def _linear_in_float(_: Attrs, operands: Sequence[Any]) -> Tensor:
    x, weight = operands[0], operands[1]
    return _empty((*x.shape[:-1], weight.shape[0]), torch.float32, x)


def _same(dtype: Callable[[Attrs], torch.dtype]) -> Fake:
    def fake(attrs: Attrs, operands: Sequence[Any]) -> Tensor:
        x = operands[0]
        return _empty(x.shape, dtype(attrs), x, _is_last(x))

    return fake


def _bytes(_: Attrs) -> torch.dtype:
    return torch.uint8


@_laid_out("contiguous")
def _pair(_: Attrs, operands: Sequence[Any]) -> Tensor:
    x, y = operands
    size = torch.add(x, y).shape if isinstance(y, Tensor) else x.shape
    return _empty(size, torch.uint8, x)


def _as_in_float(op: str, count: int = 1) -> Fake:
    """Sizes of the float operator of some operands; the result's layout is the input's."""

    def fake(attrs: Attrs, operands: Sequence[Any]) -> Tensor:
        known = {name: value for name, value in attrs.items() if name not in _OUT}
        floats = [item.to(torch.float32) for item in operands[:count]]
        made = canonical(op)(known)(*floats, *operands[count:])
        return _empty(made.shape, torch.uint8, operands[0], _is_last(operands[0]))

    return fake


_OUT = frozenset({"scale", "zero_point", "qmin", "qmax", "x_scale", "x_zero_point", "output"})
"""Attributes of a kernel beside those of its operator."""


@_laid_out("contiguous")
def _matmul(_: Attrs, operands: Sequence[Any]) -> Tensor:
    x, y = operands
    size = torch.matmul(x.to(torch.float32), y.to(torch.float32)).shape
    return _empty(size, torch.uint8, x)


@_laid_out("contiguous")
def _embedding(attrs: Attrs, operands: Sequence[Any]) -> Tensor:
    x, weight = operands[0], operands[1]
    return _empty((*x.shape, _width(attrs, weight)), torch.float32, weight)


@_laid_out("contiguous")
def _embedding_bag(attrs: Attrs, operands: Sequence[Any]) -> Tensor:
    x, weight, offsets = operands[:3]
    bags = x.shape[0] if x.dim() == 2 else offsets.shape[0] - int(attrs["include_last_offset"])
    return _empty((bags, _width(attrs, weight)), torch.float32, weight)


def _width(attrs: Attrs, weight: Tensor) -> Any:
    return weight.shape[1] if attrs["width"] is None else attrs["width"]


@_laid_out("contiguous")
def _layer(attrs: Attrs, operands: Sequence[Any]) -> list[Tensor]:
    x, hx = operands[0], operands[1]
    states = list(hx) if isinstance(hx, (tuple, list)) else [hx]
    width = states[0].shape[-1] * (2 if attrs["bidirectional"] else 1)
    values = _empty((*x.shape[:-1], width), torch.float32, x)
    return [values, *(_empty(state.shape, torch.float32, x) for state in states)]


@_laid_out("contiguous")
def _cell(_: Attrs, operands: Sequence[Any]) -> Tensor | list[Tensor]:
    x, hx = operands[0], operands[1]
    if isinstance(hx, (tuple, list)):
        return [_empty(state.shape, torch.float32, x) for state in hx]
    return _empty(hx.shape, torch.float32, x)


SEVERAL: frozenset[OpName] = frozenset(
    OpName(f"native.{name}_{kind}")
    for name in ("lstm", "gru", "lstm_cell")
    for kind in ("dynamic", "float16")
)
"""Kernels with several results."""

_ALONE = ("sigmoid", "tanh", "hardsigmoid", "hardswish", "leaky_relu", "elu", "celu")
_NORMED = ("prelu", "softmax", *NORMS)
_POOLS = ("max_pool1d", "max_pool2d")

_FAKES: Mapping[OpName, Fake] = MappingProxyType(
    {
        **{OpName(f"onednn.{name}"): _linear for name in ("linear", "linear_add")},
        OpName("onednn.linear_dynamic"): _linear_in_float,
        OpName("native.linear"): _linear,
        OpName("native.linear_post"): _linear,
        OpName("native.linear_dynamic"): _linear_in_float,
        OpName("native.linear_float16"): _linear_in_float,
        OpName("plain.embedding_weight_only"): _embedding,
        OpName("plain.embedding_bag_weight_only"): _embedding_bag,
        **{OpName(f"{form}.table"): _same(_bytes) for form in ("plain", "native")},
        **{OpName(f"{form}.{op}"): _pair for form in ("onednn", "native") for op in ("add", "mul")},
        **{OpName(f"native.{op}_number"): _pair for op in ("add", "mul")},
        OpName("native.quantize"): _same(_bytes),
        **{OpName(f"native.{op}"): _same(_bytes) for op in _ALONE},
        **{OpName(f"{form}.{op}"): _same(_bytes) for form in ("plain", "native") for op in _NORMED},
        **{OpName(f"{form}.{op}"): _matmul for form in ("plain", "native") for op in CONTRACTIONS},
        **{OpName(f"plain.{op}"): _as_in_float(op) for op in _POOLS},
        **{OpName(f"native.{op}"): _as_in_float(op) for op in (*AVERAGING, "interpolate")},
        **{
            OpName(f"native.{name}_{kind}"): _layer
            for name in LAYERS
            for kind in ("dynamic", "float16")
        },
        **{
            OpName(f"native.{name}_{kind}"): _cell
            for name in CELLS
            for kind in ("dynamic", "float16")
        },
    }
)
