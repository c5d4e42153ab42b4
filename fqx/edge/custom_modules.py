"""Modules of the user's own that are quantized whole: float when observed, another in the program.

The graph keeps such a module as a leaf. What goes in and comes out of it is observed and quantized
like the operands of a kernel; when the program becomes a module, the user's factory is told the
float module and those scales, and gives what runs in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from fqx.ir.arg import Arg, DType, NodeRef
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph, users
from fqx.ir.names import NodeId
from fqx.ir.node import Node
from fqx.ir.signature import Border
from fqx.kit.result import Failure, Result, Success, attempt, gather
from fqx.num.affine import dequantize, quantize

Factory: TypeAlias = Callable[[nn.Module, tuple[Border, ...], Border], nn.Module]
"""From the float module (a copy) and the qparams of its inputs and result to what runs."""


@dataclass(frozen=True, slots=True)
class CustomModule:
    """What runs in the place of a float module.

    Where `integers` says so the module is called with plain integers and returns them; else with
    the floats they stand for, and its float result is quantized behind it.
    """

    quantized: Factory
    integers: bool = False


Customs: TypeAlias = Mapping[str | type, CustomModule]
"""By the module's path, or by its class; the path wins."""


def customized(
    graph: Graph, modules: dict[str, nn.Module], custom: Customs
) -> Result[dict[str, nn.Module], Fault]:
    """The leaf modules with those that `custom` names replaced.

    Faults: UNKNOWN_LEAF for a path or class that no leaf has, NO_BORDER where a leaf's operands or
    result are not quantized, MISSING_LEAF where the factory raises or gives no module.
    """
    unknown = next((key for key in custom if not any(_is(key, it) for it in modules.items())), None)
    if unknown is not None:
        return Failure(_unknown(unknown, modules))
    readers = users(graph)
    chosen = {
        path: found
        for path, module in modules.items()
        if (found := custom.get(path, custom.get(type(module)))) is not None
    }
    calls = [node for node in graph if node.op == "leaf" and node.attrs["path"] in chosen]

    def quantizers(name: NodeId) -> Iterator[Node]:
        for use in readers[name]:
            for inner in readers[use.user] if use.user in graph else ():
                if inner.user in graph:
                    yield graph[inner.user]

    def made(path: str) -> Result[nn.Module, Fault]:
        nodes = [node for node in calls if node.attrs["path"] == path]
        told = gather(_borders(graph, node, tuple(quantizers(node.id))) for node in nodes)
        return told.bind(lambda held: _same_everywhere(path, held)).bind(
            lambda held: _made(path, modules[path], chosen[path], *held)
        )

    return gather(made(path) for path in chosen).map(
        lambda found: {**modules, **dict(zip(chosen, found, strict=True))}
    )


def _is(key: str | type, leaf: tuple[str, nn.Module]) -> bool:
    return leaf[0] == key if isinstance(key, str) else type(leaf[1]) is key


def _unknown(key: str | type, modules: Mapping[str, nn.Module]) -> Fault:
    name = repr(key) if isinstance(key, str) else f"of class {key.__name__}"
    listed = ", ".join(modules) or "none"
    return Fault(
        FaultKind.UNKNOWN_LEAF,
        f"the graph keeps no module {name} whole",
        f"capture it with leaves=(path,); the modules kept whole are: {listed}",
    )


_Told = tuple[tuple[Border, ...], Border]


def _borders(graph: Graph, node: Node, behind: tuple[Node, ...]) -> Result[_Told, Fault]:
    """The qparams around one call of a leaf."""
    listed = node.args[0] if isinstance(node.args[0], tuple) else ()
    inputs = [_operand(graph, arg, at) for at, arg in enumerate(listed)]
    results = [_border("output", 0, item) for item in behind if item.op in _QUANTIZERS]
    known = tuple(item for item in inputs if item is not None)
    result = next((item for item in results if item is not None), None)
    if len(known) == len(inputs) and result is not None:
        return Success((known, result))
    what = "its result" if len(known) == len(inputs) else "an operand"
    return Failure(
        Fault(
            FaultKind.NO_BORDER,
            f"{node.attrs['path']} cannot be replaced: {what} is not quantized",
            "put custom_module(path) into the recipe, and materialize a quantized graph",
            at=node.id,
        )
    )


_QUANTIZERS = ("quantize", "native.quantize")
_DEQUANTIZERS = ("dequantize", "native.dequantize")


def _operand(graph: Graph, arg: Arg, at: int) -> Border | None:
    """The qparams of an operand: those of whatever made the integers in front of it."""
    node = graph.nodes.get(arg.id) if isinstance(arg, NodeRef) else None
    if node is None or node.op not in _DEQUANTIZERS:
        return None
    inputs = graph.signature.inputs
    exposed = {inputs[b.index].node: b for b in graph.signature.borders if b.side == "input"}
    while node is not None:
        if node.id in exposed:
            return exposed[node.id]
        found = _border("input", at, node)
        if found is not None:
            return found
        # what only moves integers keeps their qparams
        first = node.args[0] if node.args else None
        node = graph.nodes.get(first.id) if isinstance(first, NodeRef) else None
    return None


def _border(side: str, at: int, node: Node) -> Border | None:
    """The qparams that a quantize or a kernel gives its result."""
    is_quantize = node.op == "quantize"
    told = (node.attrs.get("scale"), node.attrs.get("zero_point"))
    scale, zero = node.args[1:3] if is_quantize else told
    dtype = node.attrs.get("dtype" if is_quantize else "output") or "uint8"
    qmin, qmax = node.attrs.get("qmin"), node.attrs.get("qmax")
    if not isinstance(scale, float) or not isinstance(zero, int):
        return None
    if not isinstance(qmin, int) or not isinstance(qmax, int) or not isinstance(dtype, str | DType):
        return None
    return Border(side, at, node.id, DType(dtype), scale, zero, qmin, qmax)


def _same_everywhere(path: str, told: tuple[_Told, ...]) -> Result[_Told, Fault]:
    """One module has one set of scales, however often it is called."""
    grids = {tuple(_grid(border) for border in (*inputs, result)) for inputs, result in told}
    if len(grids) == 1:
        return Success(told[0])
    return Failure(
        Fault(
            FaultKind.NO_BORDER,
            f"{path} is called {len(told)} times, with different scales",
            "give every call a module of its own",
        )
    )


def _grid(border: Border) -> tuple[object, ...]:
    return (border.dtype, border.scale, border.zero_point, border.qmin, border.qmax)


def _made(
    path: str, module: nn.Module, custom: CustomModule, inputs: tuple[Border, ...], result: Border
) -> Result[nn.Module, Fault]:
    def refused(error: Exception | str) -> Fault:
        return Fault(
            FaultKind.MISSING_LEAF,
            f"the factory for {path} gave no module: {error}",
            "it is given the float module, its inputs' borders and its result's",
        )

    def checked(found: object) -> Result[nn.Module, Fault]:
        if not isinstance(found, nn.Module):
            return Failure(refused(f"it gave a {type(found).__name__}"))
        return Success(OnIntegers(found, inputs, result) if custom.integers else found)

    return attempt(lambda: custom.quantized(module, inputs, result), refused).bind(checked)


class OnIntegers(nn.Module):
    """A module on integers, where the program around it deals in the floats they stand for.

    The floats lie on the grid, so that nothing is rounded twice.
    """

    def __init__(self, inner: nn.Module, inputs: tuple[Border, ...], result: Border) -> None:
        super().__init__()
        self.inner, self.inputs, self.result = inner, inputs, result

    def forward(self, *values: Tensor) -> Tensor:
        """The floats of the integers that the module gives for those of `values`."""
        pairs = zip(values, self.inputs, strict=True)
        integers = self.inner(*(_integers(value, border) for value, border in pairs))
        return dequantize(integers, self.result.scale, self.result.zero_point)


def _integers(value: Tensor, border: Border) -> Tensor:
    ends = (border.qmin, border.qmax)
    return quantize(value, border.scale, border.zero_point, *ends, border.dtype)
