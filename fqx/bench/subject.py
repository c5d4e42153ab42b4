"""What is measured: a model with the inputs to calibrate, to time and to compare it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils._pytree import tree_leaves, tree_map

from fqx.audit.measure import Call
from fqx.edge.modules import Module

Kind = Literal["static", "dynamic"]
"""How peers quantize it: `static` from calibration, `dynamic` with ranges taken at each call."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A float model in eval mode and its inputs; every contestant gets the same ones.

    `calibration` are batches as `fqx.quantize` takes them, `held_out` calls that calibration never
    sees, `example` the call that is timed.
    """

    model: Module
    calibration: tuple[Call, ...]
    held_out: tuple[Call, ...]
    example: Call

    @property
    def kind(self) -> Kind:
        """`dynamic` for token numbers, whose models peers are advised to quantize so."""
        leaves = tree_leaves(self.example)
        floats = (isinstance(leaf, torch.Tensor) and leaf.is_floating_point() for leaf in leaves)
        return "static" if any(floats) else "dynamic"

    @property
    def images(self) -> bool:
        """Whether some input has four axes, so that it has a channels-last layout."""
        return any(isinstance(item, torch.Tensor) and item.dim() == 4 for item in self.example[0])


@dataclass(frozen=True, slots=True)
class Subject:
    """A model by name. `load` is called in each contestant's process, so it must be picklable."""

    name: str
    load: Callable[[], Loaded]


def sized(call: Call, batch: int | None) -> Call:
    """The call with `batch` samples: repeated or cut along dimension 0; None leaves it as it is.

    Raises ValueError if its tensors do not share the length of dimension 0.
    """
    if batch is None:
        return call
    return _picked(call, torch.arange(batch) % _samples(call))


def resized(calls: Sequence[Call], like: Call) -> tuple[Call, ...]:
    """The same samples in calls as large as `like`; the samples of a smaller rest are left out.

    Raises ValueError if tensors of one call do not share the length of dimension 0.
    """
    size = _samples(like)
    if all(_samples(call) == size for call in calls):
        return tuple(calls)
    single = [
        _picked(call, torch.tensor([index])) for call in calls for index in range(_samples(call))
    ]
    if len(single) < size:
        return tuple(sized(call, size) for call in calls)
    starts = range(0, len(single) - size + 1, size)
    return tuple(tree_map(_joined, *single[start : start + size]) for start in starts)


def _joined(*items: object) -> object:
    tensors = [item for item in items if isinstance(item, torch.Tensor) and item.dim()]
    return torch.cat(tensors) if len(tensors) == len(items) else items[0]


def _picked(call: Call, index: torch.Tensor) -> Call:
    found: Call = tree_map(
        lambda item: item[index] if isinstance(item, torch.Tensor) and item.dim() else item, call
    )
    return found


def _samples(call: Call) -> int:
    sizes = {
        item.shape[0] for item in tree_leaves(call) if isinstance(item, torch.Tensor) and item.dim()
    }
    if len(sizes) != 1:
        raise ValueError(f"the inputs do not share one batch axis: their lengths are {sizes}")
    return int(sizes.pop())
