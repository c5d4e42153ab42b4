"""Integers of four bits, two to a byte: the first of a pair in the low half, as torch has them."""

from __future__ import annotations

import torch


def pack(x: torch.Tensor) -> torch.Tensor:
    """uint8 [..., n] of values 0..15 as uint8 [..., ceil(n / 2)]; an odd row ends in a zero."""
    even = x if x.shape[-1] % 2 == 0 else torch.nn.functional.pad(x, (0, 1))
    return even[..., 0::2] | (even[..., 1::2] << 4)


def unpack(x: torch.Tensor, width: int) -> torch.Tensor:
    """Inverse of `pack`: uint8 [..., ceil(width / 2)] as uint8 [..., width]."""
    pairs = torch.stack([x & 15, x >> 4], dim=-1)
    return pairs.flatten(-2)[..., :width]
