"""The symbolic front end: an fx trace that executes nothing behind the user's back."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import GetSetDescriptorType

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fqx.edge.capture_inputs import Example
from fqx.edge.capture_run import Returned, held_values, quietly, stored_value, take_outputs
from fqx.edge.capture_types import storage_of
from fqx.edge.locate import calling_line, fault_of, keep_whole
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.tree import flatten
from fqx.kit.result import Failure, Result, Success, is_success


@dataclass(frozen=True, slots=True)
class Traced:
    """An fx program of a model, what it returns, and storages of tensors made while tracing."""

    module: fx.GraphModule
    returned: Returned
    transient: frozenset[int]


def is_torch_module(model: nn.Module) -> bool:
    """Whether fx takes the model for one call of one of torch's own modules."""
    return fx.Tracer().is_leaf_module(model, "")


def trace(model: nn.Module, example: Example, modules: Mapping[int, str]) -> Result[Traced, Fault]:
    """Trace with `torch.fx`; modules of torch itself stay calls, which the export looks into.

    Guards against what an fx trace does silently: buffers are symbols and not tensors, in-place
    operators and item assignment are recorded as such, random numbers, writes into tensors of the
    model and autocast blocks are faults, and so is a symbol left behind on the model.
    """
    found = _traced(model, example, modules, factories=True)
    if is_success(found):
        return found
    # code that reads the contents of a tensor made on the spot needs the tensor itself
    plain = _traced(model, example, modules, factories=False)
    return plain if is_success(plain) else found


def _traced(
    model: nn.Module, example: Example, modules: Mapping[int, str], *, factories: bool
) -> Result[Traced, Fault]:
    returned, guard = Returned(), _Guard()
    tracer = _Tracer(example, returned, guard)

    def traced() -> fx.GraphModule:
        making = _Factories(tracer) if factories else contextlib.nullcontext()
        with guard, _sizes_admitted(tracer), making:
            graph = tracer.trace(model)
        for node in graph.nodes:
            if node.op == "call_module":
                # export then records the scopes inside the called module
                node.meta.pop("nn_module_stack", None)
        return fx.GraphModule(model, graph)

    return quietly(traced, lambda error, said: fault_of(error, modules, said)).bind(
        lambda module: _checked(module, tracer, returned)
    )


_SIZED = ("zeros", "ones", "full", "empty", "arange", "eye", "linspace", "rand", "randn")

_FACTORIES = frozenset(
    getattr(torch, name)
    for name in (
        *("tensor", "as_tensor", "zeros", "ones", "full", "empty", "arange", "linspace"),
        *("logspace", "eye", "scalar_tensor", "tril_indices", "triu_indices"),
        *("rand", "randn", "randint", "randperm", "normal"),
    )
)
"""Functions that make tensors of nothing: recorded, as export does, and not executed."""


@contextlib.contextmanager
def _sizes_admitted(tracer: fx.Tracer) -> Iterator[None]:
    """Let factories take traced sizes, which torch's argument parser refuses.

    Like fx itself this patches torch for as long as the trace lasts; a call without a traced value
    does what it always did.
    """
    plain = {name: getattr(torch, name) for name in _SIZED}

    def admitting(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            leaves = flatten((args, kwargs)).leaves
            if not any(isinstance(leaf, fx.Proxy) for leaf in leaves):
                return function(*args, **kwargs)
            made: object = tracer.create_proxy("call_function", function, args, kwargs)
            return made

        return call

    for name, function in plain.items():
        setattr(torch, name, admitting(function))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(torch, name, function)


class _Factories(TorchFunctionMode):
    """Records the making of a tensor in place of making it."""

    def __init__(self, tracer: fx.Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        del types
        if func in _FACTORIES:
            made: object = self.tracer.create_proxy("call_function", func, args, kwargs or {})
            return made
        return func(*args, **(kwargs or {}))


class Symbol(fx.Proxy):
    """A traced value that records `x += y` and `x[i] = y` as the writes they are.

    A property such as `x.mT` is recorded where it is read; fx would wait until it is used, in
    whatever module that happens.
    """

    def __getattr__(self, name: str) -> fx.Proxy:  # type: ignore[override]  # fx says Attribute
        if isinstance(getattr(torch.Tensor, name, None), GetSetDescriptorType):
            made: fx.Proxy = self.tracer.create_proxy("call_function", getattr, (self, name), {})
            return made
        return super().__getattr__(name)

    def __setitem__(self, index: object, value: object) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _recording(write: Callable[..., object]) -> Callable[[fx.Proxy, object], fx.Proxy]:
    def method(self: fx.Proxy, other: object) -> fx.Proxy:
        made: fx.Proxy = self.tracer.create_proxy("call_function", write, (self, other), {})
        return made

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(Symbol, f"__i{_name}__", _recording(getattr(operator, f"i{_name}")))


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook untyped
    """Notes what runs on real tensors during the trace: new storages, random numbers, writes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.made: set[int] = set()
        self.kept: list[torch.Tensor] = []
        self.fault: Fault | None = None

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        del types
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._refuse(
                FaultKind.RANDOM_OP,
                f"{func} draws random numbers here",
                "make the numbers an input or a buffer",
            )
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            if storage_of(value) not in self.made:
                self._refuse(
                    FaultKind.UNFUNCTIONAL_WRITE,
                    f"{func} writes into a tensor that the model keeps from call to call",
                    "return the new value instead, or " + keep_whole(""),
                )
                return value
        operands = {storage_of(value) for value in args}
        result: object = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and storage_of(result) not in operands:
            self.kept.append(result)
            self.made.add(storage_of(result) or 0)
        return result

    def _refuse(self, kind: FaultKind, reason: str, remedy: str) -> None:
        self.fault = self.fault or Fault(kind, reason, remedy, source=calling_line())


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True
    record_stack_traces = True
    _record_forward_stack_traces_only = True

    def __init__(self, example: Example, returned: Returned, guard: _Guard) -> None:
        super().__init__()
        self.example = example
        self.returned = returned
        self.guard = guard
        self.autocast: str | None = None

    def create_args_for_root(
        self, root_fn: Callable[..., object], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., object], list[object]]:
        """One symbol per tensor of the example; everything else is what it is."""
        del is_module, concrete_args
        symbols = [
            self.create_proxy("placeholder", f"input_{index}", (), {})
            for index in range(len(self.example.tensors))
        ]

        def flat(root: nn.Module, *tensors: object) -> tuple[object, ...]:
            args, kwargs = self.example.arrange(tensors)
            before = held_values(root)
            value = root_fn(root, *args, **kwargs)
            self.returned.stored = stored_value(root, before)
            return take_outputs(value, self.returned, (fx.Proxy, torch.Tensor))

        return flat, [self.root, *symbols]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A symbol that takes writes."""
        return Symbol(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """torch's own modules and stubs are called, not traced into."""
        return hasattr(m, "fqx_class") or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: object, **kwargs: object) -> fx.Node:
        """Record a call; one under autocast is noted."""
        node: fx.Node = super().create_node(*args, **kwargs)  # type: ignore[arg-type]  # passed on
        if torch.is_autocast_enabled("cpu"):
            self.autocast = self.autocast or calling_line() or "an unknown line"
        return node


def _checked(module: fx.GraphModule, tracer: _Tracer, returned: Returned) -> Result[Traced, Fault]:
    guard = tracer.guard
    if guard.fault is not None:
        return Failure(guard.fault)
    if tracer.autocast is not None:
        return Failure(
            Fault(
                FaultKind.AMBIENT_AUTOCAST,
                "the model runs under torch.autocast",
                "write the casts (.to(dtype)) where they are meant",
                source=tracer.autocast,
            )
        )
    return Success(Traced(module, returned, frozenset(guard.made)))
