"""A materialized module node by node, with the caller around every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from fqx.edge.kernels import BINDERS, op_of_function
from fqx.edge.materialize import NODE


@dataclass(frozen=True, slots=True)
class Site:
    """One call of a module's program: the node's id, its module's path, what it calls."""

    node: str
    module: str
    kernel: str


Run = Callable[..., Any]
Visit = Callable[[Site, Run, tuple[Any, ...], Mapping[str, Any]], Any]
"""Runs one call, `run(*args, **kwargs)`, and returns its value."""


class Walk:
    """The program of a materialized module, run one call at a time.

    Kernels are bound once, as in the module's own code, so weights stay packed from walk to walk.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.runs: dict[fx.Node, Run] = {
            node: run for node in module.graph.nodes if (run := _bound(node)) is not None
        }

    def __call__(self, visit: Visit, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the program on one call's inputs, every call through `visit`; gives its outputs."""
        names = [n.target for n in self.module.graph.nodes if n.op == "placeholder"]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        ordered = [given[name] for name in names if name in given]
        return _Interpreter(self.module, self.runs, visit).run(*ordered)


class _Interpreter(fx.Interpreter):
    """torch's interpreter with the calls handed to `visit`."""

    def __init__(self, module: fx.GraphModule, runs: Mapping[fx.Node, Run], visit: Visit) -> None:
        super().__init__(module)
        self.runs = runs
        self.visit = visit

    def run_node(self, n: fx.Node) -> Any:
        if not n.op.startswith("call"):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        run = self.runs.get(n)
        if run is not None:
            return self.visit(_site(n), run, args, {})
        method = getattr(self, n.op)
        if n.op == "call_function":
            return self.visit(_site(n), n.target, args, kwargs)  # type: ignore[arg-type]
        return self.visit(_site(n), lambda *a, **k: method(n.target, a, k), args, kwargs)


def _bound(node: fx.Node) -> Run | None:
    """An integer kernel with its attributes bound; None for any other function."""
    target: Any = node.target
    op = op_of_function(target) if node.op == "call_function" else None
    return BINDERS[op](dict(node.kwargs)) if op is not None else None


def _site(node: fx.Node) -> Site:
    stack = node.meta.get("nn_module_stack") or {}
    module = next((path for path, _ in reversed(list(stack.values()))), "")
    target: Any = node.target
    kernel = op_of_function(target) if node.op == "call_function" else None
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return Site(str(node.meta.get(NODE, node.name)), str(module), str(kernel or name))
