"""Running torch's tracers: quietly, one at a time, on a model that takes its tensors flat."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import fx, nn
from torch.fx import traceback as fx_traceback

from fqx.edge.capture_inputs import Example
from fqx.edge.locate import fault_of, is_foreign_file, short_file
from fqx.ir.arg import Arg
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.signature import Tree
from fqx.ir.tree import flatten
from fqx.kit.result import Failure, Result, Success

A = TypeVar("A")

_ONE_AT_A_TIME = threading.RLock()
"""Tracing patches torch globally, so captures wait for each other."""


_FROZEN = re.compile(r"_tensor_constant\d+$")
"""Attributes that an fx trace makes for constants."""

_NOTHING = Tree("tuple")


@dataclass(slots=True)
class Returned:
    """What a traced forward returned: its containers around indices of values and constants.

    `leaves` holds, per leaf of `tree`, the index of a traced value or a constant; `stored` is the
    module path and the attribute in which forward kept a value.
    """

    tree: Tree = _NOTHING
    leaves: tuple[tuple[str, Arg], ...] = ()
    problem: str = ""
    stored: tuple[str, str] | None = None


@dataclass(slots=True)
class Said:
    """What torch printed and logged meanwhile."""

    text: io.StringIO = field(default_factory=io.StringIO)
    on_failure: bool = False


class FlatModel(nn.Module):
    """A model called with its example's tensors in order, returning its values in order."""

    def __init__(self, model: nn.Module, example: Example, returned: Returned) -> None:
        super().__init__()
        self.m = model

        def call(tensors: tuple[object, ...]) -> tuple[object, ...]:
            args, kwargs = example.arrange(tensors)
            before = held_values(model)
            value = self.m(*args, **kwargs)
            returned.stored = returned.stored or stored_value(model, before)
            return take_outputs(value, returned)

        self.call = call

    def forward(self, *tensors: torch.Tensor) -> tuple[object, ...]:
        """The model's output values for flat tensors."""
        return self.call(tensors)


class FlatTrace(nn.Module):
    """An fx trace, run call by call so that each keeps the scope and line the trace saw."""

    def __init__(self, trace: fx.GraphModule, returned: Returned) -> None:
        super().__init__()
        self.m = trace

        def call(tensors: tuple[torch.Tensor, ...]) -> tuple[object, ...]:
            with fx_traceback.preserve_node_meta():
                return take_outputs(fx.Interpreter(self.m).run(*tensors), returned)

        self.call = call

    def forward(self, *tensors: torch.Tensor) -> tuple[object, ...]:
        """The trace's output values."""
        return self.call(tensors)


def held_values(model: nn.Module) -> dict[tuple[str, str], tuple[object, ...]]:
    """What each attribute and buffer of each module holds, containers taken apart."""
    held = {
        (path, name): flatten(value).leaves
        for path, module in model.named_modules()
        for name, value in (*vars(module).items(), *module._buffers.items())
        if name not in _recomputed(module) and not _FROZEN.match(name)
    }
    # parameters are not what forward computed, wherever it lists them
    return {("", ""): tuple(model.parameters()), **held}


def _recomputed(module: nn.Module) -> set[object]:
    """Attributes that are no state: registries, and what a hook computes before every call."""
    hooks = module._forward_pre_hooks.values()
    named = {getattr(hook, "name", getattr(hook, "_tensor_name", None)) for hook in hooks}
    return {"_modules", "_parameters", "_buffers", *named}


def stored_value(
    model: nn.Module, before: Mapping[tuple[str, str], tuple[object, ...]]
) -> tuple[str, str] | None:
    """The attribute in which a traced value was left behind: module path and name."""
    parameters = {id(leaf) for leaf in before["", ""]}
    for key, leaves in held_values(model).items():
        known = {id(leaf) for leaf in before.get(key, ())}
        for leaf in leaves:
            traced = isinstance(leaf, (torch.Tensor, fx.Proxy))
            if traced and id(leaf) not in known and id(leaf) not in parameters:
                return key
    return None


def take_outputs(
    value: object,
    returned: Returned,
    traced: tuple[type, ...] = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool),
) -> tuple[object, ...]:
    """The traced values among the leaves of what a forward returned; the rest is noted."""
    flat = flatten(value)
    values: list[object] = []
    leaves: list[tuple[str, Arg]] = []
    for leaf in flat.leaves:
        if isinstance(leaf, traced):
            leaves.append(("value", len(values)))
            values.append(leaf)
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            leaves.append(("constant", leaf))
        else:
            returned.problem = f"the output holds a {type(leaf).__name__}"
            leaves.append(("constant", None))
    returned.tree, returned.leaves = flat.tree, tuple(leaves)
    return tuple(values)


def export_flat(
    model: nn.Module,
    tensors: tuple[torch.Tensor, ...],
    axes: tuple[Mapping[int, str], ...],
    modules: Mapping[int, str],
) -> Result[torch.export.ExportedProgram, Fault]:
    """`torch.export` of a flat model: pre-dispatch, not strict, named axes free from size 1 on.

    Faults: BATCH_IS_FIXED, CONTROL_FLOW, UNCAPTURABLE with the user's line.
    """
    dims = {name: torch.export.Dim(name, min=1) for found in axes for name in found.values()}
    shapes = tuple({axis: dims[name] for axis, name in found.items()} for found in axes)

    def exported() -> torch.export.ExportedProgram:
        return torch.export.export(
            model, tensors, dynamic_shapes=(shapes,) if tensors else None, strict=False
        )

    def failed(error: Exception, said: str) -> Fault:
        if _is_constraint(error):
            return _fixed(error, model, tensors, axes)
        return fault_of(error, modules, said)

    return quietly(exported, failed)


def quietly(call: Callable[[], A], failure: Callable[[Exception, str], Fault]) -> Result[A, Fault]:
    """Run a tracer under no_grad, alone, with what torch prints on failure kept for the fault."""
    said = Said()
    # a logger made while standard error is redirected would keep writing to the replacement
    for module in ("torch.fx.experimental.symbolic_shapes", "torch.fx.experimental.proxy_tensor"):
        importlib.import_module(module)
    with _ONE_AT_A_TIME, torch.no_grad(), _silence(said):
        try:
            return Success(call())
        except Exception as error:  # noqa: BLE001  # whatever the user's forward raises
            said.on_failure = True
            return Failure(failure(error, said.text.getvalue()[-4000:]))


def _is_constraint(error: Exception) -> bool:
    text = str(error)
    return type(error).__name__ in ("UserError", "ConstraintViolationError") and (
        "onstraint" in text or "specialized" in text
    )


def _fixed(
    error: Exception,
    model: nn.Module,
    tensors: tuple[torch.Tensor, ...],
    axes: tuple[Mapping[int, str], ...],
) -> Fault:
    names = sorted({name for found in axes for name in found.values()})
    lines = str(error).strip().splitlines()
    telling = (line.strip(" -") for line in lines if "specialized" in line or "==" in line)
    reason = next(telling, lines[0])
    return Fault(
        FaultKind.BATCH_IS_FIXED,
        f"the size of {' or '.join(names)} is fixed by the model: {reason}"[:400],
        "compute with the size instead of looping over it or comparing it, or declare the axis"
        " fixed: dynamic={input name: {}}",
        source=_guard_line(model, tensors, axes),
        detail=str(error)[:4000],
    )


def _guard_line(
    model: nn.Module, tensors: tuple[torch.Tensor, ...], axes: tuple[Mapping[int, str], ...]
) -> str | None:
    """Where a varying size was compared with a number: asked of a second, lenient export."""
    shapes = tuple(dict.fromkeys(found, torch.export.Dim.AUTO) for found in axes)
    try:
        program = torch.export.export(model, tensors, dynamic_shapes=(shapes,), strict=False)
    except Exception:  # noqa: BLE001  # the line is a courtesy; without it the fault still stands
        return None
    for node in program.graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        guards = getattr(getattr(mode, "shape_env", None), "guards", ())
        for guard in guards:
            if type(guard.expr).__name__ != "Equality":
                continue
            places = (guard.sloc.maybe_user_loc, guard.sloc.framework_loc)
            line = next(filter(None, map(_line_of, places)), None)
            if line:
                return line
    return None


def _line_of(place: object) -> str | None:
    """The line of a guard's place, if it is the user's."""
    file, line = getattr(place, "filename", None), getattr(place, "lineno", None)
    if not isinstance(file, str) or not is_foreign_file(file):
        return None
    return f"{short_file(file)}:{line}"


@contextlib.contextmanager
def _silence(said: Said) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("torch", *_torch_loggers())]
    handlers = [handler for logger in loggers for handler in logger.handlers]
    # only handlers that print: torch's trace handler closes the stream it finds
    printing = (handler for handler in handlers if type(handler) is logging.StreamHandler)
    streams = [(h, h.stream) for h in printing if h.stream in (sys.stderr, sys.__stderr__)]
    with warnings.catch_warnings(), contextlib.redirect_stderr(said.text):
        warnings.simplefilter("ignore")
        for handler, _ in streams:
            handler.stream = said.text
        try:
            yield
        finally:
            for handler, stream in streams:
                handler.stream = stream
    if not said.on_failure and said.text.tell():
        sys.stderr.write(said.text.getvalue())


def _torch_loggers() -> list[str]:
    known = logging.Logger.manager.loggerDict
    return [name for name in known if name.startswith("torch.")]
