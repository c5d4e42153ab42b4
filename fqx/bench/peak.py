"""How many int8 multiply-accumulates a second this machine does at best."""

from __future__ import annotations

import time

import torch

SIDE = 2048


def int8_peak(side: int = SIDE, runs: int = 40) -> float:
    """Multiply-accumulates a second of the fastest `side`³ int8 product, uint8 by int8.

    By oneDNN's linear kernel on torch's present number of threads: a product so large that its
    arithmetic hides everything else. Other layers are compared with it.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 255, (side, side), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-127, 127, (side, side), generator=generator, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [side, side])
    scales, zeros = torch.full((side,), 0.01), torch.zeros(side, dtype=torch.int64)
    taken = []
    for _ in range(runs + 2):
        before = time.perf_counter()
        torch.ops.onednn.qlinear_pointwise(
            x, 0.1, 128, packed, scales, zeros, None, 1.0, 0, torch.uint8, "none", [], ""
        )
        taken.append(time.perf_counter() - before)
    return float(side**3 / min(taken))
