"""Float weights from a file, without running what is in it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import safetensors.torch
import torch

from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import Failure, Result, Success, attempt


def read_state_dict(path: str) -> Result[Mapping[str, torch.Tensor], Fault]:
    """Tensors by name from a `.safetensors` file, or one of `torch.save`, read weights-only.

    Fails with BAD_ARGUMENT if there is no such file or it holds anything else.
    """

    def loaded() -> object:
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)

    if not os.path.isfile(path):
        return Failure(_no_weights(path, "there is no such file"))
    return attempt(loaded, lambda error: _no_weights(path, str(error)[:200])).bind(
        lambda found: (
            Success({str(name): item for name, item in found.items()})
            if isinstance(found, Mapping)
            and all(isinstance(item, torch.Tensor) for item in found.values())
            else Failure(_no_weights(path, "it holds no state_dict"))
        )
    )


def _no_weights(path: str, why: str) -> Fault:
    return Fault(
        FaultKind.BAD_ARGUMENT,
        f"{path} gives no weights: {why}",
        "hand in a .safetensors file, or a state_dict saved by torch.save",
    )
