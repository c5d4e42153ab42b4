"""A Hypothesis strategy that draws webs of layers whose values have several readers each.

Convolutions, sums, products, concatenations, pools and activations over one pool of values of one
size, so that whatever is chosen for one of them matters to others; some values leave the program.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from fqx.ir.arg import Arg, NodeRef
from fqx.testing.draft import Draft
from fqx.testing.graphs import BATCH, Sample

_CHANNELS, _SIDE = 4, 6
_CALLS = ("conv2d", "points", "conv2d", "add", "mul", "cat", "max_pool2d", "relu", "sigmoid", "exp")


class _Web:
    """A web that grows while it is drawn."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.draft, self.count = draw, Draft(), 0
        self.random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        sizes = (_CHANNELS, _SIDE, _SIDE)
        self.pool: list[NodeRef] = [self.draft.input("x", BATCH, *sizes)]
        self.input = torch.randn(2, *sizes, generator=self.random)

    def call(self, op: str, **given: Arg) -> NodeRef:
        self.count += 1
        return self.draft.call(op, f"{op}{self.count}", **given)

    def pick(self) -> NodeRef:
        """A value, of the last three more often than of all."""
        return self.draw(st.sampled_from((*self.pool, *self.pool[-3:], *self.pool[-3:])))

    def convolve(self, x: NodeRef, window: int, channels: int = _CHANNELS) -> NodeRef:
        self.count += 1
        shape = (_CHANNELS, channels, window, window)
        tensor = torch.randn(shape, generator=self.random) / (channels * window * window) ** 0.5
        weight = self.draft.weight(f"w{self.count}", tensor)
        place: dict[str, Arg] = {"padding": (window // 2,) * 2, "stride": (1, 1)}
        return self.call(
            "conv2d", x=x, weight=weight, bias=None, dilation=(1, 1), groups=1, **place
        )

    def grow(self) -> None:
        """One more value."""
        op, x = self.draw(st.sampled_from(_CALLS)), self.pick()
        match op:
            case "conv2d" | "points":
                made = self.convolve(x, 3 if op == "conv2d" else 1)
            case "add":
                made = self.call("add", x=x, y=self.pick(), alpha=1)
            case "mul":
                made = self.call("mul", x=x, y=self.pick())
            case "cat":
                both = self.call("cat", xs=(x, self.pick()), dim=1)
                made = self.convolve(both, 1, 2 * _CHANNELS)
            case "max_pool2d":
                ones, threes = (1, 1), (3, 3)
                made = self.call(op, x=x, kernel_size=threes, stride=ones, padding=ones)
            case "exp":
                # no target has a kernel for it; bounded, so that nothing overflows
                made = self.call("exp", x=self.call("tanh", x=x))
            case _:
                made = self.call(op, x=x)
        self.pool.append(made)


@st.composite
def webs(draw: st.DrawFn, most: int = 9) -> Sample:
    """A web of up to `most` layers, and an input for it."""
    web = _Web(draw)
    for _ in range(draw(st.integers(4, most))):
        web.grow()
    outputs = (web.pool[-1], *(web.pick() for _ in range(draw(st.integers(0, 1)))))
    return Sample(web.draft.graph(*outputs), (web.input,))
