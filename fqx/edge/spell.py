"""A program's calls spelled for torch's tracers: torch's own operators and the custom ops.

What `torch.export` runs in the place of a materialized module. Quantized tensors of `native`
programs become their integers here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.traceback import preserve_node_meta

from fqx.edge.custom_ops import operator
from fqx.edge.kernels import (
    BINDERS,
    PLAIN,
    Attrs,
    Bind,
    Run,
    canonical,
    op_of_function,
    quantize_by_arithmetic,
    quantize_scaled,
)
from fqx.edge.op_text import QParams, write_call
from fqx.edge.program import Program
from fqx.ir.names import OpName
from fqx.policy.units import NEAREST
from fqx.targets.shapes import MOVING, ZERO_AWARE

Seen = Mapping[str, QParams]
"""The qparams of the values of a program that are torch's quantized tensors, by fx node."""


class Spelled(nn.Module):
    """The module that torch traces: a program's parameters under their paths, and its calls."""

    def __init__(self, program: Program, seen: Seen) -> None:
        super().__init__()
        for name, child in program._modules.items():
            self.add_module(name, child) if child is not None else None
        for name, parameter in program._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in program._buffers.items():
            kept = name not in program._non_persistent_buffers_set
            self.register_buffer(name, buffer, persistent=kept)
        object.__setattr__(self, "_speller", _Speller(program, seen))
        signature = inspect.signature(program.forward)

        def forward(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            with preserve_node_meta():
                return self.__dict__["_speller"].run(*bound.arguments.values())

        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward


class _Speller(fx.Interpreter):
    def __init__(self, program: Program, seen: Seen) -> None:
        super().__init__(program)
        self.seen = seen
        self.kernels = {
            node.name: self.bound(op, node)
            for node in program.graph.nodes
            if callable(node.target) and (op := op_of_function(node.target)) is not None
        }

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node; a kernel of weights by its custom op."""
        kernel = self.kernels.get(n.name)
        if kernel is None:
            return super().run_node(n)
        with self._set_current_node(n):
            args, _ = self.fetch_args_kwargs_from_env(n)
            return kernel(*args)

    def bound(self, op: OpName, node: fx.Node) -> Run:
        """The kernel of a node on plain integers, before any tracing: as its custom op if it has
        one.
        """
        attrs = dict(node.kwargs)
        if "keeps_other" in attrs:
            # an operator does not write into what it is given
            attrs["keeps_other"] = True
        op = _on_integers(op, attrs)
        of_torch = operator(op)
        if of_torch is None:
            return _traced(op, attrs, self._qparams(node.args[0]))

        def run(*args: Any) -> Any:
            seen = self._seen_tensors(node)
            tensors, text = write_call(
                args, attrs, lambda value: isinstance(value, Tensor), lambda x: seen.get(id(x))
            )
            return of_torch(tensors, text)

        return run

    def _qparams(self, arg: Any) -> QParams | None:
        return self.seen.get(arg.name) if isinstance(arg, fx.Node) else None

    def _seen_tensors(self, node: fx.Node) -> dict[int, QParams]:
        """The qparams of the operands that the kernel takes as quantized tensors, by identity."""
        pairs = ((self.env[arg], self.seen.get(arg.name)) for arg in node.all_input_nodes)
        return {id(value): qparams for value, qparams in pairs if qparams is not None}


def _on_integers(op: OpName, attrs: Attrs) -> OpName:
    """The kernel of plain integers that moves values as one of `native` does."""
    form, _, name = op.rpartition(".")
    if form != "native" or name not in (*MOVING, *ZERO_AWARE):
        return op
    if name == "interpolate" and attrs["mode"] not in NEAREST:
        return op
    return OpName(f"plain.{name}")


def _traced(op: OpName, attrs: Attrs, qparams: QParams | None) -> Run:
    """A kernel in torch's own operators, bit for bit."""
    if op == "native.dequantize":
        assert qparams is not None
        attrs = {**attrs, "scale": qparams[0], "zero_point": qparams[1]}
    made = _TRACED.get(op)
    if made is not None:
        return made(attrs)
    name = op.removeprefix("plain.")
    if op in BINDERS and (name in PLAIN or name not in MOVING):
        return BINDERS[op](attrs)
    return canonical(name)(attrs)


def _dequantize(attrs: Attrs) -> Run:
    """`(q - z) · s` in float32, then the float dtype of the model."""
    scale, zero_point, dtype = attrs["scale"], attrs["zero_point"], attrs["dtype"]

    def run(q: Tensor) -> Tensor:
        steps = q.to(torch.float32)
        exact = (steps.sub(zero_point) if zero_point else steps).mul(scale)
        return exact if dtype == torch.float32 else exact.to(dtype)

    return run


def _itself(_: Attrs) -> Run:
    return lambda x: x


_TRACED: Mapping[OpName, Bind] = MappingProxyType(
    {
        OpName("quantize"): quantize_by_arithmetic,
        OpName("plain.quantize_scaled"): quantize_scaled,
        OpName("dequantize"): _dequantize,
        OpName("native.dequantize"): _dequantize,
        OpName("native.wrap"): _itself,
        OpName("native.unwrap"): _itself,
    }
)
"""Kernels that see plain integers as quantized tensors, which torch does not trace."""


def quantized_values(program: Program, args: tuple[Any, ...]) -> Seen:
    """Run the program once and note which of its values are quantized tensors."""
    noted = dict[str, QParams]()

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            made = super().run_node(n)
            first = made[0] if isinstance(made, (tuple, list)) and made else made
            if isinstance(first, Tensor) and first.is_quantized:
                noted[n.name] = (first.q_scale(), first.q_zero_point())
            return made

    with torch.no_grad():
        Noting(program).run(*args)
    return MappingProxyType(noted)
