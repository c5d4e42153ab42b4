"""The other quantizers of PyTorch, to measure beside fqx; nothing here is used to quantize."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

Batches = Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
"""Positional and keyword arguments of the calls to calibrate on."""


def torch_ao_static(model: nn.Module, batches: Batches) -> Callable[..., Any]:
    """FX graph mode with the default mapping of x86, on a copy of the model.

    Raises what torch.ao raises, above all where torch.fx cannot trace the model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        torch.backends.quantized.engine = "x86"
        mapping = get_default_qconfig_mapping("x86")
        prepared = prepare_fx(copy.deepcopy(model), mapping, batches[0][0])
        with torch.no_grad():
            for args, kwargs in batches:
                prepared(*args, **kwargs)
        converted: Callable[..., Any] = convert_fx(prepared)
    return converted


def torch_ao_dynamic(model: nn.Module) -> Callable[..., Any]:
    """`quantize_dynamic` of every linear, on a copy of the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        torch.backends.quantized.engine = "x86"
        made: Callable[..., Any] = quantize_dynamic(  # type: ignore[no-untyped-call]  # torch
            copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8
        )
    return made


def torchao_static(model: nn.Module, example: tuple[Any, ...], batches: Batches) -> Any:
    """PT2E with the default config of X86InductorQuantizer, compiled by Inductor with freezing.

    The program is exported for the shapes of `example`; a call of other shapes compiles again, or
    is refused by the export's guards. Raises what torchao, export and Inductor raise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch._inductor.config as inductor
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        exported = torch.export.export(copy.deepcopy(model), example).module(check_guards=False)
        prepared = prepare_pt2e(exported, quantizer)
        with torch.no_grad():
            for args, kwargs in batches:
                prepared(*args, **kwargs)
        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)
        inductor.freezing = True
        return torch.compile(converted)
