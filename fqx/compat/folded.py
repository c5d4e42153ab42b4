"""Batch norms folded into convolutions without an example input, by module."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import Path
from fqx.ir.trail import Halt

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded(model: nn.Module) -> fx.GraphModule:
    """A traced copy of the model with every norm folded whose convolution it alone reads.

    Raises Halt with MODEL_IN_TRAINING for a norm that is in training mode.
    """
    traced = fx.symbolic_trace(copy.deepcopy(model))
    modules = dict(traced.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(n.target)]) for n in traced.graph.nodes if n.op == "call_module")
    for norm in list(traced.graph.nodes):
        conv = norm.args[0] if norm.op == "call_module" and norm.args else None
        if not isinstance(conv, fx.Node) or conv.op != "call_module" or len(conv.users) != 1:
            continue
        one, two = modules[str(conv.target)], modules[str(norm.target)]
        if not isinstance(one, (*_CONVS, *_TRANSPOSED)) or not isinstance(two, _NORMS):
            continue
        if two.training or one.training:
            raise Halt(_training(str(norm.target)))
        if two.running_mean is None or calls[id(one)] != 1 or calls[id(two)] != 1:
            continue
        _replace(traced, conv, norm, _fused(one, two))
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _fused(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """The convolution that does the norm's work too.

    A transposed convolution's weight is (in, out / groups, …): each group is folded by itself.
    """
    assert isinstance(conv, (*_CONVS, *_TRANSPOSED))
    assert isinstance(norm, _NORMS)
    if not isinstance(conv, _TRANSPOSED) or conv.groups == 1:
        return fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, _TRANSPOSED))

    def cut(tensor: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        count = conv.groups
        return (None,) * count if tensor is None else torch.chunk(tensor, count)

    tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var)
    parts = [
        fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, gain, shift, transpose=True)
        for weight, bias, mean, variance, gain, shift in zip(
            *map(cut, tensors), cut(norm.weight), cut(norm.bias), strict=True
        )
    ]
    made = copy.deepcopy(conv)
    weights, biases = zip(*parts, strict=True)
    made.weight = nn.Parameter(torch.cat(weights).detach(), conv.weight.requires_grad)
    made.bias = nn.Parameter(torch.cat(biases).detach(), conv.weight.requires_grad)
    return made


def _replace(traced: fx.GraphModule, conv: fx.Node, norm: fx.Node, made: nn.Module) -> None:
    traced.set_submodule(str(conv.target), made)
    norm.replace_all_uses_with(conv)
    traced.graph.erase_node(norm)


def _training(path: str) -> Fault:
    return Fault(
        FaultKind.MODEL_IN_TRAINING,
        "a norm in training mode reads the statistics of its batch and cannot be folded",
        "call model.eval() first",
        module=Path(path),
    )
