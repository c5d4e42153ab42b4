"""From a graph to a module: parameters under their paths, torch's public functions, no compiler."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fqx.edge.custom_modules import Customs, customized
from fqx.edge.kernels import BINDERS, FUNCTIONS
from fqx.edge.layout import Layouts, as_laid_out, layouts
from fqx.edge.program import (
    IntegerProgram,
    Owner,
    Program,
    is_parameter,
    parameter_name,
    preserving,
)
from fqx.ir.arg import Arg, NodeRef, WeightRef
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName, Path, Stage
from fqx.ir.node import Node
from fqx.ir.signature import Tree
from fqx.ir.trail import Halt, Trail
from fqx.ir.tree import build, leaf_arguments, leaf_results
from fqx.ir.weight import Leaf, Role, Weight
from fqx.kit.collector import uncollected
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success, attempt, gather
from fqx.num.lent import unchanged
from fqx.num.tensors import tensor_of
from fqx.passes.calls import TorchCall, as_torch, torch_call

_INTEGER = (Stage.QUANTIZED, Stage.LOWERED)

NODE = "fqx_node"
"""The key in an fx node's meta under which the id of the program's node stands."""


def materialize(
    graph: Graph,
    leaves: Mapping[str, nn.Module] | None = None,
    custom: Customs | None = None,
    preserve: Mapping[str, object] | None = None,
) -> Result[fx.GraphModule, Halt]:
    """A `torch.fx.GraphModule` that computes the graph; of a float graph bit for bit the model.

    Every parameter and buffer is a copy under its own path, ties and persistence kept. The module
    takes what the signature says, names what does not fit before any kernel runs, and gives the
    containers and memory formats of the captured model. Observers are left out. `leaves` are the
    modules kept whole, by path, where the graph does not hold them; `custom` says, by path or
    class, what runs in the place of such a module where the graph quantizes it whole. `preserve`
    are attributes for the module to carry, by name, through copies and pickles as well. Faults:
    MISSING_PAYLOAD, MISSING_LEAF, NO_IMPLEMENTATION, STORAGE_CHANGED; UNKNOWN_LEAF and NO_BORDER
    for `custom`; BAD_ARGUMENT for the name of an attribute that the module has already.
    """
    with uncollected():
        return (
            unchanged((graph,))
            .bind(lambda _: _parts(graph, leaves or {}, custom or {}))
            .bind(lambda made: _preserving(made, preserve or {}))
            .alt(lambda fault: Halt(fault, Trail(graph)))
        )


def _parts(
    graph: Graph, leaves: Mapping[str, nn.Module], custom: Customs
) -> Result[Program, Fault]:
    read = _read_weights(graph)
    tensors = gather(_tensor(path, weight) for path, weight in read.items())
    return tensors.bind(
        lambda held: (
            _leaf_modules(graph, leaves)
            .bind(lambda kept: customized(graph, kept, custom))
            .bind(
                lambda kept: _program(
                    graph,
                    {path: _copied(tensor) for path, tensor in zip(read, held, strict=True)},
                    kept,
                )
            )
        )
    )


def _holds(module: Program, name: str, value: object) -> bool:
    """Whether the program keeps the very tensor itself, under the same name."""
    held = getattr(module, name, None)
    if not isinstance(held, Tensor) or not isinstance(value, Tensor):
        return False
    return held.dtype == value.dtype and held.shape == value.shape and torch.equal(held, value)


def _preserving(module: Program, attributes: Mapping[str, object]) -> Result[fx.GraphModule, Fault]:
    asked = {name: value for name, value in attributes.items() if not _holds(module, name, value)}
    taken = next((name for name in asked if hasattr(module, name)), None)
    if taken is None:
        return Success(preserving(module, asked))
    return Failure(
        Fault(
            FaultKind.BAD_ARGUMENT,
            f"the module has an attribute {taken!r} of its own, which one to preserve would hide",
            "preserve it under another name, or not at all",
        )
    )


def _tensor(path: Path, weight: Weight) -> Result[Tensor, Fault]:
    return tensor_of(weight).alt(
        lambda fault: replace(fault, reason=f"{path}: {fault.reason}", module=path)
    )


def rebuild(
    graph: Graph, tensors: Mapping[str, Tensor], leaves: Mapping[str, nn.Module]
) -> Program:
    """The module of a graph without payloads around the tensors and modules themselves."""
    return _program(graph, tensors, leaves).unwrap()


def _program(
    graph: Graph, tensors: Mapping[str, Tensor], leaves: Mapping[str, nn.Module]
) -> Result[Program, Fault]:
    kind = IntegerProgram if graph.stage in _INTEGER else Program
    module = kind(nn.Module(), fx.Graph())
    module.__dict__["fqx_program"] = _bare(graph)
    _furnish(module, graph, tensors, leaves)
    return _calls(graph).map(lambda calls: _finished(module, graph, calls))


def _finished(module: Program, graph: Graph, calls: Mapping[NodeId, TorchCall]) -> Program:
    made = _Drawing(graph, calls).draw()
    module.graph = made
    # from here on, compiling again means that somebody edited the graph
    module.__dict__["_made"] = True
    return module.eval()


# Weights and modules.


def _read_weights(graph: Graph) -> dict[Path, Weight]:
    """All but the statistics that only observers read."""
    return {
        path: weight for path, weight in graph.weights.items() if weight.role is not Role.STATISTIC
    }


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _bare(graph: Graph) -> Graph:
    """The graph without tensors and modules; digests do not see the difference."""
    return replace(
        graph,
        weights=graph.weights.map(lambda weight: replace(weight, payload=None)),
        leaves=graph.leaves.map(lambda leaf: replace(leaf, payload=None)),
    )


def _leaf_modules(
    graph: Graph, given: Mapping[str, nn.Module]
) -> Result[dict[str, nn.Module], Fault]:
    return gather(_leaf_module(path, leaf, given) for path, leaf in graph.leaves.items()).map(
        lambda modules: dict(zip(map(str, graph.leaves), modules, strict=True))
    )


def _leaf_module(
    path: Path, leaf: Leaf, given: Mapping[str, nn.Module]
) -> Result[nn.Module, Fault]:
    found = given.get(path, leaf.payload)
    if isinstance(found, nn.Module):
        return attempt(
            lambda: copy.deepcopy(found),
            lambda error: _missing(path, leaf, f"cannot be copied: {error}"),
        )
    return Failure(_missing(path, leaf, "was not handed in"))


def _missing(path: Path, leaf: Leaf, why: str) -> Fault:
    return Fault(
        FaultKind.MISSING_LEAF,
        f"the graph keeps {path} ({leaf.type}) whole, and it {why}",
        f"call materialize with leaves={{{path!r}: module}}",
        module=path,
        detail=leaf.reason,
    )


def _furnish(
    module: Program,
    graph: Graph,
    tensors: Mapping[str, Tensor],
    leaves: Mapping[str, nn.Module],
) -> None:
    for path in _in_order(graph, tensors, leaves):
        head, _, name = path.rpartition(".")
        owner = _submodule(module, head)
        if path in leaves:
            owner.add_module(name, leaves[path])
        else:
            first = graph.ties.get(Path(path)) or Path(path)
            _register(owner, name, graph.weights[first], tensors[first], module)
    _add_empty(module, graph, leaves)
    for second, first in graph.ties.items():
        # a tie is one object under two paths
        source = module.get_submodule(first.rpartition(".")[0])
        target = module.get_submodule(second.rpartition(".")[0])
        name, twin = second.rpartition(".")[2], first.rpartition(".")[2]
        for table in ("_parameters", "_buffers"):
            if twin in getattr(source, table):
                getattr(target, table)[name] = getattr(source, table)[twin]


def _add_empty(module: Program, graph: Graph, leaves: Mapping[str, nn.Module]) -> None:
    """Modules without weights, so that every scope of a node is a module's path."""
    for path in dict.fromkeys(path for node in graph for path, _ in node.origin.scope):
        if path and not any(path == leaf or path.startswith(f"{leaf}.") for leaf in leaves):
            _submodule(module, path)


def _in_order(
    graph: Graph, tensors: Mapping[str, Tensor], leaves: Mapping[str, nn.Module]
) -> list[str]:
    """Paths as a module's author would have listed them: by first use, the unused ones last."""
    used: dict[str, int] = {}
    for node in graph:
        for path in (*node.weights(), *_leaf_path(node)):
            used.setdefault(path, len(used))
    for second, first in graph.ties.items():
        if first in used:
            used.setdefault(second, used[first])
    listed = (*tensors, *graph.ties, *leaves)
    return sorted(listed, key=lambda path: (used.get(path, len(used)), _natural(path)))


def _leaf_path(node: Node) -> tuple[str, ...]:
    path = node.attrs.get("path") if node.op == "leaf" else None
    return (path,) if isinstance(path, str) else ()


def _natural(path: str) -> tuple[tuple[int, int | str], ...]:
    parts = re.split(r"(\d+)", path)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)


def _submodule(root: nn.Module, path: str) -> nn.Module:
    owner = root
    for part in path.split(".") if path else ():
        inner = owner._modules.get(part)
        if inner is None:
            inner = Owner()
            owner.add_module(part, inner)
        owner = inner
    return owner


def _register(owner: nn.Module, name: str, weight: Weight, tensor: Tensor, module: Program) -> None:
    if weight.role is Role.PARAMETER:
        trains = weight.requires_grad and not isinstance(module, IntegerProgram)
        held = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, trains)
        owner.register_parameter(name, held)
    else:
        owner.register_buffer(name, tensor, persistent=weight.persistent)


# Calls.


def _calls(graph: Graph) -> Result[dict[NodeId, TorchCall], Fault]:
    if graph.blocks:
        return Failure(_unbuilt("sub-programs cannot be executed"))
    wanted = [node for node in graph if node.op not in ("input", "observe", "leaf")]
    return gather(call_of(node) for node in wanted).map(
        lambda calls: {node.id: call for node, call in zip(wanted, calls, strict=True)}
    )


def _unbuilt(reason: str) -> Fault:
    return Fault(FaultKind.NO_IMPLEMENTATION, reason, "keep that module whole with leaves=")


def call_of(node: Node) -> Result[TorchCall, Fault]:
    """The call of a node of any stage: torch's own, or a kernel of `fqx.edge.kernels`.

    Fails with NO_IMPLEMENTATION.
    """
    literal = _literal_quantizer(node)
    if literal is not None:
        return Success(literal)
    if node.op in BINDERS and node.op not in ("quantize", "dequantize"):
        attrs = {name: as_torch(value) for name, value in node.attrs.items()}
        return Success(TorchCall(FUNCTIONS[node.op], tuple(map(as_torch, node.args)), attrs))
    return torch_call(node)


def _literal_quantizer(node: Node) -> TorchCall | None:
    """The fast, equal form of quantize and dequantize whose qparams are numbers."""
    if node.op not in ("quantize", "dequantize") or node.attrs["axis"] is not None:
        return None
    x, scale, zero_point = node.args
    if not isinstance(scale, float) or not isinstance(zero_point, int):
        return None
    attrs: dict[str, Any] = {"scale": scale, "zero_point": zero_point}
    if node.op == "dequantize":
        return TorchCall(
            FUNCTIONS[node.op], (x,), {**attrs, "dtype": as_torch(node.attrs["dtype"])}
        )
    dtype = node.attrs["dtype"]
    output = getattr(dtype, "value", "")
    if output not in ("uint8", "int8"):
        return None
    attrs |= {"qmin": node.attrs["qmin"], "qmax": node.attrs["qmax"], "output": output}
    return TorchCall(FUNCTIONS[OpName("quantize")], (x,), attrs)


def as_tuple(value: object) -> tuple[object, ...]:
    """What a kept module gives as the tuple that getitem nodes take apart."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


# Drawing the fx graph.


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Writes an fx graph node by node; `values` maps nodes of the program to those of fx."""

    program: Graph
    calls: Mapping[NodeId, TorchCall]

    def draw(self) -> fx.Graph:
        made, values = fx.Graph(), dict[NodeId, fx.Node]()
        weights: dict[str, fx.Node] = {}
        self._inputs(made, values)

        def value(ref: object) -> Any:
            return _resolved(ref, lambda id: values[id], lambda path: weight(path))

        def weight(path: str) -> fx.Node:
            first = self.program.ties.get(Path(path)) or path
            if first not in weights:
                weights[first] = made.get_attr(first)
            return weights[first]

        for node in self.program:
            if node.op in ("input", "observe"):
                continue
            drawn = self._node(made, node, value)
            drawn.meta["nn_module_stack"] = _stack(node)
            values[node.id] = drawn
        for path, ref in self.program.updates.items():
            made.call_method("copy_", (weight(path), values[ref.id]))
        made.output(self._output(made, value))
        for name, drawn in values.items():
            drawn.meta[NODE] = str(name)
        return made

    def _inputs(self, made: fx.Graph, values: dict[NodeId, fx.Node]) -> None:
        signature = self.program.signature
        slots: dict[str, Tree] = {
            parameter_name(signature, index): tree
            for index, tree in enumerate(signature.args.items)
        }
        slots |= dict(zip(map(str, signature.kwargs.keys), signature.kwargs.items, strict=True))
        optional = False
        for name in _parameter_order(signature.params, slots):
            tree = slots.get(name)
            needed = tree is not None and not _only_constants(self.program, tree)
            optional = optional or not needed
            # a parameter behind an optional one needs a default; None is then named as missing
            holder = (
                made.placeholder(name, default_value=None) if optional else made.placeholder(name)
            )
            if tree is not None:
                self._take_apart(made, tree, holder, values)

    def _take_apart(
        self, made: fx.Graph, tree: Tree, holder: fx.Node, values: dict[NodeId, fx.Node]
    ) -> None:
        if tree.kind == "leaf":
            at = tree.leaf
            name = self.program.signature.inputs[at].node if isinstance(at, int) else None
            if name is not None:
                values[name] = holder
            return
        keys: Iterable[Any] = tree.keys or range(len(tree.items))
        call = field if tree.kind == "named" else item
        for key, inner in zip(keys, tree.items, strict=True):
            if not _only_constants(self.program, inner):
                self._take_apart(made, inner, made.call_function(call, (holder, key)), values)

    def _node(self, made: fx.Graph, node: Node, value: Callable[[object], Any]) -> fx.Node:
        name = re.sub(r"\W", "_", node.id)
        if node.op == "leaf":
            call = str(node.attrs["call"])
            if call:
                inner = self._called(made, node, call, value)
                return made.create_node("call_function", leaf_results, (inner, call), name=name)
            inner = made.call_module(str(node.attrs["path"]), tuple(value(node.args[0])))
            return made.create_node("call_function", as_tuple, (inner,), name=name)
        torch_call = self.calls[node.id]
        args = tuple(value(arg) for arg in torch_call.args)
        kwargs = {key: value(item) for key, item in torch_call.kwargs.items()}
        return made.create_node("call_function", torch_call.function, args, kwargs, name=name)

    def _called(
        self, made: fx.Graph, node: Node, call: str, value: Callable[[object], Any]
    ) -> fx.Node:
        """A module kept whole with the containers, names and constants it was called with."""
        tensors = tuple(value(node.args[0]))

        def leaf(arg: Arg) -> Any:
            return as_torch(arg["constant"]) if isinstance(arg, FrozenMap) else tensors[_index(arg)]

        args, kwargs = (_built(made, tree, leaf) for tree in leaf_arguments(call))
        return made.call_module(str(node.attrs["path"]), args, kwargs)

    def _output(self, made: fx.Graph, value: Callable[[object], Any]) -> Any:
        tree = self.program.signature.output
        table = layouts(self.program)

        def leaf(arg: Arg) -> Any:
            return self._laid_out(made, table, arg, value(as_torch(arg)))

        return _built(made, tree, leaf)

    def _laid_out(self, made: fx.Graph, table: Layouts, arg: Arg, drawn: Any) -> Any:
        """Give an output the float model's memory format, where kernels may have changed it."""
        if self.program.stage is not Stage.LOWERED or not isinstance(arg, NodeRef):
            return drawn
        source = table.source(arg.id)
        if source is None:
            return drawn
        model = None if source == "" else _placeholder(made, source)
        return made.call_function(as_laid_out, (drawn, model))


def _placeholder(made: fx.Graph, name: str) -> fx.Node | None:
    found = (node for node in made.nodes if node.op == "placeholder" and node.target == name)
    return next(found, None)


def item(holder: Any, key: Any) -> Any:
    """What stands at a key or index of a container."""
    return holder[key]


def field(holder: Any, key: str) -> Any:
    """A field of a dataclass or namedtuple, or an item of a mapping that stands for one."""
    return holder[key] if isinstance(holder, Mapping) else getattr(holder, key)


def _resolved(
    arg: object, node: Callable[[NodeId], fx.Node], weight: Callable[[str], fx.Node]
) -> Any:
    match arg:
        case NodeRef(id=name):
            return node(name)
        case WeightRef(path=path):
            return weight(path)
        case torch.Size():
            return arg
        case tuple():
            return tuple(_resolved(item, node, weight) for item in arg)
        case list():
            return [_resolved(item, node, weight) for item in arg]
        case slice():
            ends = (arg.start, arg.stop, arg.step)
            return slice(*(_resolved(end, node, weight) for end in ends))
        case _:
            return arg


def _parameter_order(params: tuple[str, ...], slots: Mapping[str, Tree]) -> tuple[str, ...]:
    """The model's own parameters up to the last one captured, then the other captured ones."""
    last = max((index for index, name in enumerate(params) if name in slots), default=-1)
    head = params[: last + 1]
    return tuple(
        name for name in (*head, *(n for n in slots if n not in head)) if is_parameter(name)
    )


def _only_constants(graph: Graph, tree: Tree) -> bool:
    if tree.kind == "leaf":
        item = graph.signature.inputs[tree.leaf] if isinstance(tree.leaf, int) else None
        return item is None or item.node is None
    return all(_only_constants(graph, item) for item in tree.items)


def _stack(node: Node) -> dict[str, tuple[str, str]]:
    """The module scope as torch.fx writes it, so that capturing again finds the same ids."""
    inner = node.origin.module
    return {
        f"{path}@{node.origin.call}" if path == inner and node.origin.call else path: (path, kind)
        for path, kind in node.origin.scope
        if path
    }


def _index(arg: Arg) -> int:
    assert isinstance(arg, int)
    return arg


def _built(made: fx.Graph, tree: Tree, leaf: Callable[[Arg], Any]) -> Any:
    """The output's containers; classes with names are built by a call."""
    if tree.kind == "leaf":
        return leaf(tree.leaf)
    items = tuple(_built(made, item, leaf) for item in tree.items)
    if tree.kind == "tuple":
        return items
    if tree.kind == "list":
        return list(items)
    if tree.kind == "dict" and not tree.name:
        return dict(zip(tree.keys, items, strict=True))
    return made.call_function(named, (tree.kind, tree.name, tree.keys, items))


def named(kind: str, name: str, keys: tuple[Any, ...], items: tuple[Any, ...]) -> Any:
    """A dataclass, namedtuple or OrderedDict by its class name, a dict where that is unknown."""
    leaves = tuple(Tree("leaf", index) for index in range(len(items)))
    tree = Tree(kind, None, keys, leaves, name)
    return build(tree, lambda index: items[index] if isinstance(index, int) else None)
