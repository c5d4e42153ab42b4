"""Weights packed for torch's kernels: made when first needed, never copied, saved or shared."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_ENGINE_LOCK = threading.Lock()
"""torch's quantized engine is one global; packing changes it and puts it back."""


def scales_of(scale: Tensor | float) -> Tensor:
    """The scale as a float32 tensor of one dimension."""
    if isinstance(scale, Tensor):
        return scale.detach().reshape(-1)
    return torch.tensor([scale], dtype=torch.float32)


class Packs:
    """One packed weight, made when first needed and kept while its source stays the same.

    The whole state is one tuple that is replaced at once, so threads see the old or the new one;
    two that pack at the same time make the same pack.
    """

    __slots__ = ("make", "state")

    def __init__(self, make: Callable[..., tuple[Any, ...]]) -> None:
        self.make = make
        self.state: tuple[Any, ...] = (None, None, None, None, None)

    def renew(self, weight: Tensor, *rest: Any, **hints: Tensor) -> tuple[Any, ...]:
        """Pack again; returns the new state: weight, version, scale, bias, then what was made.

        `hints` help to choose a layout and are not kept: a pack is right for every input.
        """
        with torch.no_grad():
            made = self.make(weight, *rest, **hints)
        state = (weight, version_of(weight), *rest, *made)
        self.state = state
        return state


def version_of(weight: Tensor) -> int | None:
    """How often the tensor was written to; tensors of inference mode do not count."""
    return None if weight.is_inference() else weight._version


def stale(state: tuple[Any, ...], weight: Tensor, scale: Any) -> bool:
    """Whether a pack was made of another weight, other content or another scale."""
    return (
        state[0] is not weight
        or state[2] is not scale
        or (state[1] is not None and state[1] != weight._version)
    )


@contextmanager
def using_engine(name: str) -> Iterator[None]:
    """torch's quantized engine is `name` inside, and what it was behind."""
    with _ENGINE_LOCK:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = name
        try:
            yield
        finally:
            torch.backends.quantized.engine = before


def hush() -> None:
    """Let torch say once, unheard, that quantized dtypes are deprecated.

    It warns once in a process; a user of `native` has chosen them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)


def quantized_weight(weight: Tensor, scale: Any) -> Tensor:
    """Plain int8 as torch's qint8, with one scale or one for each channel of axis 0."""
    plain, scales = weight.detach().contiguous(), scales_of(scale)
    if scales.numel() == 1:
        return torch._make_per_tensor_quantized_tensor(plain, float(scales[0]), 0)
    zeros = torch.zeros(scales.numel(), dtype=torch.int64)
    return torch._make_per_channel_quantized_tensor(plain, scales.double(), zeros, 0)


def viewed(x: Tensor, template: Tensor) -> Tensor:
    """The memory of `x` as the kind of tensor `template` is: plain uint8, or quint8 with a scale.

    Torch has no cast between the two that does not copy; this takes about a microsecond whatever
    the size.
    """
    here = template.detach()
    return here.set_(x.untyped_storage(), x.storage_offset(), x.size(), x.stride())


def quantized_template(scale: float, zero_point: int, dtype: torch.dtype = torch.quint8) -> Tensor:
    """An empty quantized tensor with these qparams."""
    return torch._empty_affine_quantized([0], scale=scale, zero_point=zero_point, dtype=dtype)


PLAIN_TEMPLATE = torch.empty(0, dtype=torch.uint8)
"""An empty tensor of plain integers."""
