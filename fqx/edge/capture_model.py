"""What capture does to a model before tracing it: copy its structure, check it, name its parts."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import Path
from fqx.ir.weight import Leaf, Role, Weight
from fqx.kit.result import Failure, Result, Success, attempt
from fqx.num.lent import state_fingerprint
from fqx.num.tensors import dtype_of, weight_of


@dataclass(frozen=True, slots=True)
class Names:
    """Names of a model's parts: the first path of each object, and the class of each module."""

    modules: Mapping[str, str]
    classes: Mapping[str, str]
    tensors: Mapping[str, str]
    childless: frozenset[str]

    def module(self, path: str) -> str:
        """The first path of the module that is also found at `path`."""
        return self.modules.get(path, path)

    def scope(self, path: str) -> tuple[tuple[Path, str], ...]:
        """The modules from the root down to `path` with their class names."""
        parts = path.split(".") if path else []
        above = [".".join(parts[:count]) for count in range(len(parts) + 1)]
        return tuple((Path(one), self.classes[one]) for one in above if one in self.classes)


def structural_copy(model: nn.Module, *, fresh_buffers: bool = False) -> Result[nn.Module, Fault]:
    """A copy of the module tree around the same parameters and buffers.

    Plain tensor attributes are cloned, since a traced forward may write into them. Fails with
    UNCOPYABLE_MODEL naming the attribute that cannot be copied.
    """
    memo = _kept_tensors(model, fresh_buffers)
    return attempt(lambda: copy.deepcopy(model, dict(memo)), lambda e: _uncopyable(model, memo, e))


def quantized_part(model: nn.Module) -> str | None:
    """The path of a module that is quantized, or prepared by torch.ao; None if there is none."""
    return next((path for path, part in model.named_modules() if _is_quantized(part)), None)


def _is_quantized(module: nn.Module) -> bool:
    home = type(module).__module__
    # nothing else in these packages holds observers or integer weights
    if home.startswith("torch.ao.") and ("quantiz" in home or "fake_quant" in home):
        return True
    if not isinstance(module, torch.fx.GraphModule):
        return False
    targets = (node.target for node in module.graph.nodes if node.op == "call_function")
    return any(_is_integer_call(target) for target in targets)


def _is_integer_call(target: object) -> bool:
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"
    return name.startswith(_KERNELS) or "quantize" in f"{target} {name}"


_KERNELS = ("fqx.edge.kernels.", "fqx.edge.kernels_")


def check_parameters(model: nn.Module) -> Result[None, Fault]:
    """Whether a graph can hold every parameter and buffer.

    Faults: UNINITIALIZED_PARAMETER, UNCAPTURABLE for an element type graphs do not have.
    """
    for path, tensor in _tensors(model):
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            return Failure(
                Fault(
                    FaultKind.UNINITIALIZED_PARAMETER,
                    f"{path} has no shape yet",
                    "call the model once on an example before capture",
                    module=Path(path.rpartition(".")[0]),
                )
            )
        if dtype_of(tensor.dtype) is None:
            return Failure(
                Fault(
                    FaultKind.UNCAPTURABLE,
                    f"{path} is of type {tensor.dtype}, which a graph cannot hold",
                    "convert it to a standard floating-point or integer type",
                    module=Path(path.rpartition(".")[0]),
                )
            )
    return Success(None)


def check_mode(model: nn.Module) -> Result[None, Fault]:
    """Whether nothing is in training mode whose meaning that changes: batch norm, dropout, ….

    Fails with MODEL_IN_TRAINING, naming the modules.
    """
    training = [(path, module) for path, module in model.named_modules() if _matters(module)]
    return Failure(_in_training(training)) if training else Success(None)


def names_of(model: nn.Module) -> Names:
    """The names of the model's modules, parameters and buffers."""
    first: dict[int, str] = {}
    modules: dict[str, str] = {}
    classes: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        modules[path] = first.setdefault(id(module), path)
        classes.setdefault(path, _shown_class(module))
    tensors: dict[str, str] = {}
    for path, tensor in _tensors(model):
        tensors[path] = first.setdefault(id(tensor), path)
    childless = {path for path, module in model.named_modules() if not any(module.children())}
    return Names(modules, classes, tensors, frozenset(childless))


def weights_of(model: nn.Module, *, share: bool) -> dict[Path, Weight]:
    """Every parameter and buffer under its first path; copied, or the tensors themselves."""
    found: dict[Path, Weight] = {}
    seen: set[int] = set()
    persistent = set(model.state_dict(keep_vars=True))
    parameters = {id(tensor) for tensor in model.parameters()}
    for path, tensor in _tensors(model):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        role = Role.PARAMETER if id(tensor) in parameters else Role.BUFFER
        made = weight_of(
            tensor,
            role,
            persistent=path in persistent,
            requires_grad=tensor.requires_grad,
            share=share,
        )
        found[Path(path)] = replace(made, shared=share)
    return found


def leaf_of(module: nn.Module, reason: str, *, share: bool) -> Leaf:
    """The handle of a module kept whole; its payload is a copy, or the module itself."""
    held = module if share else copy.deepcopy(module)
    return Leaf(_shown_class(module), state_fingerprint(module), reason, held, share)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _shown_class(module: nn.Module) -> str:
    return str(getattr(module, "fqx_class", type(module).__name__))


def _kept_tensors(model: nn.Module, fresh_buffers: bool) -> dict[int, object]:
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            for tensor in _items(value):
                if isinstance(tensor, torch.Tensor):
                    memo[id(tensor)] = tensor.detach().clone()
    for parameter in model.parameters():
        memo[id(parameter)] = parameter
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().clone() if fresh_buffers else buffer
    return memo


def _items(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else (value,)


def _uncopyable(model: nn.Module, memo: Mapping[int, object], error: Exception) -> Fault:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name == "_modules":
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception as found:  # noqa: BLE001  # whatever a user's __deepcopy__ raises
                return _uncopyable_at(path, f"attribute {name!r} ({type(value).__name__})", found)
    return _uncopyable_at("", "the model", error)


def _uncopyable_at(path: str, what: str, error: Exception) -> Fault:
    return Fault(
        FaultKind.UNCOPYABLE_MODEL,
        f"{what} cannot be copied: {type(error).__name__}: {error}"[:300],
        "take it off the model before capture, or give its class a __deepcopy__",
        module=Path(path),
    )


def _matters(module: nn.Module) -> bool:
    if not module.training:
        return False
    if isinstance(module, _NormBase):
        return bool(module.track_running_stats)
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return bool(module.dropout)
    return isinstance(module, nn.RReLU)


def _in_training(modules: list[tuple[str, nn.Module]]) -> Fault:
    shown = ", ".join(f"{path or '(root)'} ({_shown_class(m)})" for path, m in modules[:5])
    more = f" and {len(modules) - 5} more" if len(modules) > 5 else ""
    return Fault(
        FaultKind.MODEL_IN_TRAINING,
        f"in training mode: {shown}{more}",
        "call model.eval() first, or capture(..., eval=True)",
        module=Path(modules[0][0]),
    )
