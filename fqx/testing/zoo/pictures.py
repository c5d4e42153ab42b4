"""Images that differ from each other as photographs do, drawn from a seed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    """float32 [count, 3, side, side]: a tint, patches of every size and a contrast for each.

    Pure noise looks the same everywhere, so a deep network maps all of it to nearly one point and
    what is left is rounding; these keep most of their power in coarse patches, as photographs do.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 3, 1, 1, generator=generator).expand(-1, -1, side, side)
    for cells in (2, 4, 8, 16):
        patches = torch.randn(count, 3, cells, cells, generator=generator)
        image = image + F.interpolate(patches, size=(side, side), mode="bilinear") / cells**0.5
    contrast = torch.rand(count, 1, 1, 1, generator=generator) + 0.5
    return image * contrast
