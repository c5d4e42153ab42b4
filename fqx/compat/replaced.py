"""A user's own modules in the place of float ones, as torch.ao makes and calls them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fqx.compat.custom import Swap
from fqx.edge.custom_modules import CustomModule, Customs
from fqx.ir.graph import Graph
from fqx.ir.signature import Border
from fqx.num.affine import dequantize, quantize


def observed_form(swap: Swap, module: nn.Module, qconfig: Any) -> nn.Module:
    """What `from_float` of the observed class makes of a copy of the module, with its QConfig.

    The float module's mode is kept. Raises what `from_float` raises.
    """
    held: Any = copy.deepcopy(module)
    held.qconfig = qconfig
    make: Any = swap.made
    made: nn.Module = make.from_float(held)
    return made.train(module.training)


def replacements(
    graph: Graph, observed: Mapping[str, nn.Module], swaps: tuple[Swap, ...]
) -> tuple[Customs, tuple[str, ...]]:
    """What runs in the place of each observed module, and the paths of those no class stands for.

    A module that the program calls with floats, because a mapping leaves it float, is left alone.
    """
    of = {swap.given: swap.made for swap in swaps}
    calls = [node for node in graph if node.op == "leaf" and node.attrs["path"] in observed]
    integer = {
        str(node.attrs["path"])
        for node in calls
        if any(graph[name].op.endswith("dequantize") for name in node.inputs())
    }
    wanted = {path: of.get(type(module)) for path, module in observed.items() if path in integer}
    made: Customs = {
        path: CustomModule(_Factory(kind)) for path, kind in wanted.items() if kind is not None
    }
    return made, tuple(path for path, kind in wanted.items() if kind is None)


class _Factory:
    """`from_observed` of a quantized class, told the scale of the result as torch.ao tells it."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __call__(self, module: nn.Module, inputs: tuple[Border, ...], result: Border) -> nn.Module:
        from torch.ao.quantization import FixedQParamsObserver

        observer: Any = FixedQParamsObserver
        module.activation_post_process = observer(
            result.scale,
            result.zero_point,
            dtype=torch.quint8,
            quant_min=result.qmin,
            quant_max=result.qmax,
        )
        return OnQuantized(self.kind.from_observed(module), inputs[0])


class OnQuantized(nn.Module):
    """A module of torch.ao's kind in a program of floats: its first input is a quantized tensor,
    its further ones are floats, and it gives either. The floats lie on the grid."""

    def __init__(self, inner: nn.Module, first: Border) -> None:
        super().__init__()
        self.inner, self.first = inner, first

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """The floats that the module's result stands for."""
        border = self.first
        ends = (border.qmin, border.qmax)
        integers = quantize(x, border.scale, border.zero_point, *ends, border.dtype)
        lent = torch._make_per_tensor_quantized_tensor(integers, border.scale, border.zero_point)
        made: Tensor = self.inner(lent, *others)
        if not made.is_quantized:
            return made
        return dequantize(made.int_repr(), made.q_scale(), made.q_zero_point())
