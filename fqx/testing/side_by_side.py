"""Two roads to an integer program on one model: what tests of the drop-in need on both sides.

Errors are root mean squares over those of the float result. A range of eight standard deviations in
127 steps gives 0.018 for each rounding, and six roundings in a row, independent, give RIGHT. Where
more than a quarter of the signal is gone, no rounding did it: WRONG.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fqx.api import quantize
from fqx.policy.recipe import Recipe
from fqx.policy.target import Target

RIGHT, WRONG = 0.045, 0.25

REFERENCE = "convert_to_reference_fx"


class Calls(nn.Module):
    """What a function makes of its modules and an input."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """The function's result."""
        return self.function(self, x)


def calibrated(
    fx: Any, model: nn.Module, inputs: tuple[Tensor, ...], mapping: Any, **more: Any
) -> Any:
    """A copy of the model prepared by the functions `fx` and run on the inputs."""
    observed = fx.prepare_fx(copy.deepcopy(model), mapping, inputs, **more)
    observed(*inputs)
    return observed


def finished(
    fx: Any,
    finish: str,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    mapping: Any,
    **more: Any,
) -> Any:
    """The same, finished by one of the functions `fx`."""
    return getattr(fx, finish)(calibrated(fx, model, inputs, mapping, **more))


def quantized_by_fqx(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    recipe: Recipe | None = None,
    target: Target | str | None = None,
) -> nn.Module:
    """The integer program of fqx's own API, calibrated on the inputs."""
    return (
        quantize(
            model,
            inputs,
            [inputs],
            recipe=recipe,
            target=target,
            objective="balanced",
            progress=False,
        )
        .bind(lambda done: done.materialize())
        .unwrap()
    )


def relative_error(
    made: Callable[..., Any], model: Callable[..., Any], inputs: tuple[Tensor, ...]
) -> float:
    """Root mean square of the error over that of the float result, worst over the outputs."""
    pairs = zip(tree_leaves(made(*inputs)), tree_leaves(model(*inputs)), strict=True)
    return max(
        float((one.float() - two).norm() / two.norm())
        for one, two in pairs
        if isinstance(two, Tensor) and two.is_floating_point()
    )


def calls(made: Any, kernel: str) -> int:
    """How many calls of a kernel a program holds."""
    named = (f"{node.target} {getattr(node.target, '__name__', '')}" for node in made.graph.nodes)
    return sum(kernel in name for name in named)


def told(module: nn.Module) -> dict[str, object]:
    """Everything a caller can see of a module: its parts by identity, their attributes and flags,
    hooks, and every tensor by identity, version, gradient and bits."""
    seen: dict[str, object] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        seen[f"{path}!"] = (id(part), type(part))
        for name, value in vars(part).items():
            plain = isinstance(value, (bool, int, float, str, type(None)))
            table = tuple(value.items()) if isinstance(value, dict) else None
            held = value if plain else (id(value), None if table is None else _keys(table))
            seen[f"{path}:{name}"] = held
    tables = (module.named_parameters, module.named_buffers)
    for path, tensor in (item for table in tables for item in table(remove_duplicate=False)):
        gradient = None if tensor.grad is None else id(tensor.grad)
        seen[path] = (id(tensor), tensor._version, tensor.requires_grad, gradient, bits(tensor))
    for key, value in module.state_dict().items():
        seen[f"state {key}"] = bits(value) if isinstance(value, Tensor) else repr(value)
    return seen


def bits(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values, in order."""
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def _keys(items: tuple[tuple[object, object], ...]) -> tuple[tuple[str, int], ...]:
    return tuple((str(key), id(value)) for key, value in items)
