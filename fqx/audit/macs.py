"""Multiply-accumulates a running module executes, in int8 kernels and in float ones.

Nothing is read off the graph: the calls that reach torch's dispatcher are counted, so a kernel that
did not run is not in the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fqx.kit.frozen import FrozenMap


@dataclass(frozen=True, slots=True)
class Macs:
    """Executed multiply-accumulates; `kernels` says how many each int8 operator did."""

    int8: int
    floating: int
    kernels: FrozenMap[int]

    @property
    def share(self) -> float:
        """The int8 part of all, 0 where nothing is multiplied."""
        whole = self.int8 + self.floating
        return self.int8 / whole if whole else 0.0

    def __repr__(self) -> str:
        rows = "".join(f"\n  {name}: {count:,}" for name, count in self.kernels.items())
        return f"Macs {self.share:.1%} int8: {self.int8:,} int8, {self.floating:,} float{rows}"


def count_macs(
    module: Callable[..., object],
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
) -> Macs:
    """Run the module once and count.

    An int8 kernel counts `out.numel() * weight.numel() / out_channels`, a float one as torch's
    FlopCounterMode counts it (two operations are one multiply-accumulate). What the module raises,
    this raises.
    """
    counter = _Int8Counter()
    flops = FlopCounterMode(display=False)
    with torch.no_grad(), flops, counter:
        module(*args, **(kwargs or {}))
    done = counter.done
    return Macs(sum(done.values()), flops.get_total_flops() // 2, FrozenMap(done))


class _Int8Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch is untyped here
    """Sees every operator call below it and adds up the int8 ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch is untyped here
        self.done: dict[str, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,  # torch's own signature
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func.name()).replace("::", ".")
        if name.startswith(("onednn.q", "quantized.")) and isinstance(out, torch.Tensor):
            count = self._macs(name, args, out)
            if count:
                self.done[name] = self.done.get(name, 0) + count
        return out

    def _macs(self, name: str, args: tuple[Any, ...], out: torch.Tensor) -> int:
        if "prepack" in name or not any(word in name for word in ("conv", "linear")):
            return 0
        weight = _packed(args)
        if weight is None:
            return 0
        size = _numel(weight)
        channels = out.shape[-1] if "linear" in name else out.shape[1]
        transposed = "transpose" in name
        given = args[0]
        if transposed:  # each input element meets weight.numel() / in_channels products
            return int(given.numel()) * size // int(given.shape[1])
        return out.numel() * size // int(channels)


def _packed(args: tuple[Any, ...]) -> object | None:
    """The packed weight among a kernel's arguments: a script object, or an opaque tensor."""
    for item in args[1:]:
        if isinstance(item, torch.ScriptObject):
            return item
    for item in args[1:]:
        if isinstance(item, torch.Tensor) and item.dim() >= 2:
            return item
    return None


def _numel(weight: object) -> int:
    if isinstance(weight, torch.Tensor):
        return weight.numel()
    parts: Any = weight
    found = parts.unpack()
    plain = found[0] if isinstance(found, tuple) else found
    return int(plain.numel())
