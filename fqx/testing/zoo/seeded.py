"""Weights that depend on a seed and on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def seeded(make: Callable[[], M], sample: Tensor, seed: int = 0) -> M:
    """`make()` in eval mode with every parameter and running statistic drawn from `seed`.

    Matrices and kernels get variance 2 / fan-in (He et al. 2015), vectors stay near their usual
    start (scales near 1, shifts near 0). A batch norm divides by the root mean square that
    `sample` shows in front of it, give or take a few percent a channel. It does not subtract the
    measured means: in an untrained network that removes what the samples have in common, and what
    is left amplifies the smallest error layer by layer. The global random state stays as it was.
    """
    with torch.random.fork_rng(devices=()):
        model = make()
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _draw(name, parameter, generator)
        _settle(model, sample, generator)
    return model


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.dim() >= 2:
        fan_in = parameter[0].numel()
        parameter.copy_(noise * (2.0 / fan_in) ** 0.5)
    elif name.endswith("weight"):
        parameter.copy_(1.0 + 0.2 * noise)
    else:
        parameter.copy_(0.1 * noise)


def _settle(model: nn.Module, sample: Tensor, generator: torch.Generator) -> None:
    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, var = norm.running_mean, norm.running_var
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            power = inputs[0].square().mean().clamp(min=1e-6)
            mean.copy_(0.1 * power.sqrt() * torch.randn(mean.shape, generator=generator))
            var.copy_(power * torch.exp(0.1 * torch.randn(var.shape, generator=generator)))

    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    if norms:
        model(sample)
    for hook in hooks:
        hook.remove()
