"""A Hypothesis strategy that draws layers one behind the other, their channels badly balanced.

Convolutions (plain, grouped, depthwise, transposed) and a linear at the end, with activations,
pools and reductions between; some weights are used twice, some values are read by others too.
"""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from fqx.ir.arg import Arg, NodeRef, WeightRef
from fqx.num.scheme import histogram, int8_channel, uint8_affine
from fqx.policy.recipe import Recipe, Scheme, Smoothing, int8_static, use
from fqx.policy.selectors import op
from fqx.testing.draft import Draft
from fqx.testing.graphs import BATCH, Sample

_CHANNELS = (2, 4, 6)
_BETWEEN = (
    "relu",
    "leaky_relu",
    "abs",
    "max_pool",
    "avg_pool",
    "prelu",
    "pad",
    "hardtanh",
    "sigmoid",
)


class _Chain:
    """A chain that grows while it is drawn."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.draft = Draft()
        self.random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
        self.rank = draw(st.sampled_from((1, 2)))
        self.channels = draw(st.sampled_from(_CHANNELS))
        self.count = 0
        self.held: dict[tuple[int, ...], WeightRef] = {}
        sizes = (self.channels, *(8,) * self.rank)
        self.x: NodeRef = self.draft.input("x", BATCH, *sizes)
        self.inputs = (torch.randn(2, *sizes, generator=self.random),)
        self.others: list[NodeRef] = []

    def call(self, op: str, **given: Arg) -> None:
        self.count += 1
        self.x = self.draft.call(op, f"{op}{self.count}", x=self.x, **given)

    def weight(self, *shape: int) -> WeightRef:
        """A weight whose rows and columns differ by up to 2^12; now and then one used before."""
        if shape in self.held and self.draw(st.integers(0, 3)) == 0:
            return self.held[shape]
        tensor = torch.randn(shape, generator=self.random)
        for axis in range(min(len(shape), 2)):
            lengths = [-1 if index == axis else 1 for index in range(len(shape))]
            places = torch.randint(-6, 7, (shape[axis],), generator=self.random)
            tensor = tensor * torch.ldexp(torch.ones(shape[axis]), places).reshape(lengths)
        dead = self.draw(st.integers(0, 5)) == 0
        if dead:
            tensor[0] = 0.0
        self.count += 1
        self.held[shape] = self.draft.weight(f"w{self.count}", tensor)
        return self.held[shape]

    def bias(self, channels: int) -> WeightRef | None:
        return self.weight(channels) if self.draw(st.booleans()) else None

    def convolve(self) -> None:
        """A convolution of any kind."""
        transposed = self.draw(st.booleans())
        groups = self.draw(st.sampled_from((1, 2, self.channels)))
        out = self.draw(st.sampled_from(_CHANNELS)) if groups < 3 else self.channels
        kernel = (self.draw(st.sampled_from((1, 3))),) * self.rank
        shape = (self.channels, out // groups) if transposed else (out, self.channels // groups)
        sizes = {name: (size,) * self.rank for name, size in (("stride", 1), ("dilation", 1))}
        more: dict[str, Arg] = {"output_padding": (0,) * self.rank} if transposed else {}
        self.call(
            f"conv_transpose{self.rank}d" if transposed else f"conv{self.rank}d",
            weight=self.weight(*shape, *kernel),
            bias=self.bias(out),
            padding=(kernel[0] // 2,) * self.rank,
            groups=groups,
            **sizes,
            **more,
        )
        self.channels = out

    def between(self) -> None:
        """What stands between two layers; two of these are no place for a factor."""
        op = self.draw(st.sampled_from(_BETWEEN))
        ones, threes = (1,) * self.rank, (3,) * self.rank
        given: dict[str, dict[str, Arg]] = {
            "prelu": {"weight": self.weight(self.channels)},
            "hardtanh": {"low": -1.0, "high": 1.0},
            "pad": {"pad": (1, 1), "mode": "constant", "value": 0.5},
        }
        if op.endswith("pool"):
            name = f"{op}{self.rank}d"
            self.call(name, kernel_size=threes, stride=ones, padding=ones)
        else:
            self.call(op, **given.get(op, {}))
        if self.draw(st.integers(0, 5)) == 0:
            self.others.append(self.x)

    def finish(self) -> Sample:
        """A linear at the end or none, and all outputs."""
        end = self.draw(st.sampled_from(("none", "mean", "amax", "flatten")))
        features = self.channels
        if end in ("mean", "amax"):
            self.call(end, dim=tuple(range(2, self.rank + 2)), keepdim=False)
        elif end == "flatten":
            self.call(f"adaptive_avg_pool{self.rank}d", output_size=(2,) * self.rank)
            self.call("flatten", start_dim=1, end_dim=-1)
            features *= 2**self.rank
        if end != "none":
            self.call("linear", weight=self.weight(3, features), bias=self.bias(3))
        return Sample(self.draft.graph(self.x, *self.others), self.inputs)


@st.composite
def chains(draw: st.DrawFn, most: int = 4) -> Sample:
    """A chain of up to `most` convolutions, and inputs for it."""
    chain = _Chain(draw)
    for index in range(draw(st.integers(1, most))):
        if index and draw(st.integers(0, 3)):
            chain.between()
        chain.convolve()
    return chain.finish()


def watching_channels() -> Recipe:
    """int8, every linear and convolution observed by channel and none left float for its input."""
    limits = Smoothing(float_below=-math.inf)
    linear, convolution = (
        Scheme(uint8_affine(histogram(axis=axis)), int8_channel(), limits) for axis in (-1, 1)
    )
    layers = op("conv1d") | op("conv2d") | op("conv3d")
    return int8_static() | use(op("linear"), linear) | use(layers, convolution)
