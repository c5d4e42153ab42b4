"""A program for torch.compile: traced once, packed weights as constants, no graph break.

Where oneDNN's pointwise kernels run, the compiled program calls them on packed constants, which
torch's compiler fuses with what stands around; that needs its option `freezing`. The other kernels
are called as the custom ops of `fqx.edge.custom_ops`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fqx.edge.custom_ops import NAMESPACE, op_name
from fqx.edge.exported import exported
from fqx.edge.kernels import (
    Attrs,
    bounds_of,
    conv_pack,
    conv_tail,
    linear_pack,
    linear_tail,
)
from fqx.edge.op_text import read_call
from fqx.edge.program import Program, Refused
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import OpName
from fqx.kit.result import Result, Success, attempt, fold

_ONEDNN = torch.ops.onednn
_ATEN = torch.ops.aten


class Compiled(nn.Module):
    """A program that torch's compiler runs, with weights of its own."""

    def __init__(self, flat: nn.Module, more: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.program = flat
        run = torch.compile(flat, *more, **{"fullgraph": True, **options})
        # the patch holds in the calling thread, and only while the call lasts
        freezing = torch._inductor.config.patch(freezing=True)

        def call(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad(), freezing:
                return run(*args, **kwargs)

        object.__setattr__(self, "_run", call)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the program gives; compiles at the first call, and for new kinds of sizes."""
        return self.__dict__["_run"](*args, **kwargs)


def compiled(
    program: Program,
    example_inputs: tuple[Any, ...] | None,
    more: tuple[Any, ...],
    options: Mapping[str, Any],
) -> Compiled:
    """A second module of the program; `more` and `options` are arguments of `torch.compile`.

    Raises `Refused` before anything is compiled: UNSUPPORTED_TARGET where the backend is Inductor
    and there is no C++ compiler, INPUT_DOES_NOT_FIT, UNCAPTURABLE.
    """
    ready = _compiler(options).bind(lambda _: exported(copy.deepcopy(program), example_inputs, {}))
    return fold(ready, lambda made: Compiled(_flat(made), more, options), _raise)


def _raise(fault: Fault) -> Compiled:
    raise Refused(fault)


def _compiler(options: Mapping[str, Any]) -> Result[str, Fault]:
    backend = options.get("backend", "inductor")
    if backend != "inductor":
        return Success("")
    # imported here: it is slow, and only this backend needs it
    from torch._inductor.cpp_builder import get_cpp_compiler

    return attempt(get_cpp_compiler, _without_compiler)


def _without_compiler(error: Exception) -> Fault:
    return Fault(
        FaultKind.UNSUPPORTED_TARGET,
        f"torch's compiler needs a C++ compiler, and none runs here: {error}"[:400],
        "install one (g++ or clang++, or name it in CXX), use the module as it is, which needs"
        " none, or give another backend: compile(backend='aot_eager')",
    )


# Packed constants.


def _flat(made: torch.export.ExportedProgram) -> fx.GraphModule:
    """The exported calls with packed constants where a kernel takes them."""
    module = made.module()
    assert isinstance(module, fx.GraphModule)
    # the exported graph knows sizes, the module's calls come in the same order
    pairs = zip(_kernel_calls(module.graph), _kernel_calls(made.graph), strict=True)
    for count, (node, known) in enumerate(list(pairs)):
        _pack(module, node, _sizes(known), f"_packed_{count}")
    module.graph.eliminate_dead_code()
    _drop_unused(module)
    module.recompile()
    return module


def _kernel_calls(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if getattr(node.target, "namespace", "") == NAMESPACE]


def _drop_unused(module: fx.GraphModule) -> None:
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    named = (*module.named_parameters(), *module.named_buffers())
    for path in [path for path, _ in named if path not in used]:
        owner, _, name = path.rpartition(".")
        delattr(module.get_submodule(owner), name)


def _pack(module: fx.GraphModule, node: fx.Node, sizes: list[int], stem: str) -> None:
    """The pointwise kernel on constants in the place of a custom op, where there is one."""
    target: Any = node.target
    rule = _RULES.get(target._opname)
    if rule is None:
        return
    call = read_call(str(node.args[1]))
    tensors: Any = node.args[0]
    x, weight, scale, bias = call.arrange(tensors)
    attrs = _as_pointwise(call.attrs)
    packed = rule.pack(attrs, _held(module, weight), _held(module, scale), sizes)
    graph = module.graph
    with graph.inserting_before(node):
        constants = [_constant(module, f"{stem}_{at}", item) for at, item in enumerate(packed)]
        head = (attrs["x_scale"], attrs["x_zero_point"], *constants, bias)
        made = rule.write(graph, x, head, attrs)
        if (bounds := bounds_of(attrs)) is not None:
            made = graph.call_function(_ATEN.clamp.default, (made, *bounds))
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _as_pointwise(attrs: Attrs) -> Attrs:
    """A convolution of torch's packed weights gives the integers of the pointwise one."""
    if "activation" in attrs:
        return attrs
    return {**attrs, "activation": "relu" if attrs["relu"] else "none", "activation_args": ()}


def _held(module: nn.Module, value: Any) -> Any:
    """The tensor that a node reads, or the number itself."""
    if not isinstance(value, fx.Node):
        return value
    owner, _, name = str(value.target).rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _sizes(call: fx.Node) -> list[int]:
    """The sizes of a kernel's input in the example; a layout is chosen by them."""
    tensors: Any = call.args[0]
    sizes = tensors[0].meta["val"].shape
    return [size if isinstance(size, int) else size.node.hint for size in sizes]


def _constant(module: fx.GraphModule, name: str, tensor: Tensor) -> fx.Node:
    module.register_buffer(name, tensor, persistent=False)
    return module.graph.get_attr(name)


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a kernel is packed: from attributes, weight, scale and the input's sizes; and called:
    from a graph, the input, what stands up to the bias, and attributes.
    """

    pack: Callable[[Attrs, Tensor, Any, list[int]], tuple[Tensor, ...]]
    write: Callable[[fx.Graph, fx.Node, tuple[Any, ...], Attrs], fx.Node]


def _narrow(packed: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Zero points as int32, in which torch's compiler wants them."""
    weight, scales, zeros = packed
    return weight, scales, zeros.to(torch.int32)


def _pack_conv(attrs: Attrs, weight: Tensor, scale: Any, sizes: list[int]) -> tuple[Tensor, ...]:
    return _narrow(conv_pack(attrs)(weight, scale, like=torch.empty(sizes, device="meta")))


def _pack_linear(_: Attrs, weight: Tensor, scale: Any, __: list[int]) -> tuple[Tensor, ...]:
    return _narrow(linear_pack(weight.flatten(1), scale))


def _write_conv(graph: fx.Graph, x: fx.Node, head: tuple[Any, ...], attrs: Attrs) -> fx.Node:
    call = _ONEDNN.qconv2d_pointwise.default
    return graph.call_function(call, (x, *head, *conv_tail(attrs)))


def _write_linear(graph: fx.Graph, x: fx.Node, head: tuple[Any, ...], attrs: Attrs) -> fx.Node:
    call = _ONEDNN.qlinear_pointwise.default
    return graph.call_function(call, (x, *head, *linear_tail(attrs)))


def _write_points(graph: fx.Graph, x: fx.Node, head: tuple[Any, ...], attrs: Attrs) -> fx.Node:
    """A convolution of single points: a linear over the channels."""
    rows = graph.call_function(_ATEN.permute.default, (x, [0, 2, 3, 1]))
    dense = graph.call_function(_ATEN.contiguous.default, (rows,))
    made = _write_linear(graph, dense, head, attrs)
    return graph.call_function(_ATEN.permute.default, (made, [0, 3, 1, 2]))


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        op_name(OpName(name)): rule
        for name, rule in (
            ("onednn.conv2d", _Rule(_pack_conv, _write_conv)),
            ("packed.conv2d", _Rule(_pack_conv, _write_conv)),
            ("onednn.linear", _Rule(_pack_linear, _write_linear)),
            ("onednn.conv2d_as_linear", _Rule(_pack_linear, _write_points)),
        )
    }
)
"""The custom ops that take packed constants; torch traces no other pointwise kernel."""
