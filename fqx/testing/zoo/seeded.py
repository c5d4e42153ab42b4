"""Weights that depend on a seed and on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def seeded(make: Callable[[], M], sample: Tensor, seed: int = 0) -> M:
    """`make()` in eval mode with every parameter drawn from `seed`.

    Matrices and kernels get variance 2 / fan-in (He et al. 2015), vectors stay near their usual
    start (scales near 1, shifts near 0). Batch norms then measure `sample` once, so that random
    weights do not blow up with depth. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=()):
        model = make()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _draw(name, parameter, generator)
        _settle(model, sample)
    return model.eval()


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.dim() >= 2:
        fan_in = parameter[0].numel()
        parameter.copy_(noise * (2.0 / fan_in) ** 0.5)
    elif name.endswith("weight"):
        parameter.copy_(1.0 + 0.2 * noise)
    else:
        parameter.copy_(0.1 * noise)


def _settle(model: nn.Module, sample: Tensor) -> None:
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(sample)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.zero_()
    model.eval()
