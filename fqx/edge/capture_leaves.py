"""Modules kept whole: in the traced copy a stub that calls one opaque op of known shapes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from fqx.edge.capture_inputs import Example
from fqx.edge.capture_model import leaf_of, structural_copy
from fqx.edge.capture_run import quietly
from fqx.edge.locate import fault_of
from fqx.ir.arg import Arg
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import Path
from fqx.ir.signature import Tree
from fqx.ir.tree import build, flatten, leaf_call
from fqx.ir.weight import Leaf
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success

A = TypeVar("A")

_LIBRARY = torch.library.Library("fqx", "FRAGMENT")  # type: ignore[no-untyped-call]  # of torch
_LIBRARY.define("leaf(str key, Tensor[] xs) -> Tensor[]")  # type: ignore[no-untyped-call]  # same


@dataclass(frozen=True, slots=True)
class Shape:
    """dtype and sizes of a tensor a leaf gave."""

    dtype: torch.dtype
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a leaf: the trees around its tensors, the sizes that went in, what came out.

    Leaves of the trees are indices of tensors, or constants wrapped as `{"constant": value}`.
    """

    args: Tree
    kwargs: Tree
    output: Tree
    given: tuple[tuple[int, ...], ...]
    shapes: tuple[Shape, ...]

    @property
    def code(self) -> str:
        """How to call the module, empty for tensors by position and tensors in return."""
        return leaf_call(self.args, self.kwargs, self.output)


@dataclass(frozen=True, slots=True)
class Leaves:
    """A structural copy in which stubs stand for the modules kept whole."""

    model: nn.Module
    handles: Mapping[Path, Leaf]
    calls: Mapping[str, tuple[Call, ...]]
    notes: tuple[str, ...] = ()

    def calling(self, trace: Callable[[], A]) -> A:
        """Run `trace` with the recorded calls at hand."""
        with _recorded(self.calls):
            return trace()


_CALLS: ContextVar[Mapping[str, tuple[Call, ...]]] = ContextVar("fqx_leaf_calls")
_COUNTS: ContextVar[dict[str, int]] = ContextVar("fqx_leaf_counts")


class Stub(nn.Module):
    """Stands for a module kept whole while its surroundings are traced."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__()
        self.path = path
        self.fqx_class = kind
        self.eval()

    def forward(self, *args: object, **kwargs: object) -> object:
        """The opaque op on the tensors among the arguments, in the module's own containers."""
        counts, calls = _COUNTS.get(), _CALLS.get()[self.path]
        index = counts.get(self.path, 0) % len(calls)
        counts[self.path] = counts.get(self.path, 0) + 1
        leaves = (*flatten(args).leaves, *flatten(kwargs).leaves)
        tensors = [value for value in leaves if isinstance(value, torch.Tensor)]
        made = torch.ops.fqx.leaf(f"{self.path}#{index}", tensors)
        return build(calls[index].output, lambda leaf: _filled(leaf, made))


def no_leaves(model: nn.Module) -> Result[Leaves, Fault]:
    """Nothing kept whole."""
    return Success(Leaves(model, {}, {}))


def with_stubs(
    model: nn.Module, copied: nn.Module, paths: Sequence[str], example: Example, *, share: bool
) -> Result[Leaves, Fault]:
    """The copy with stubs at `paths`; the original runs once, elsewhere, to see their calls.

    Faults: UNKNOWN_LEAF naming near misses, UNCAPTURABLE if a leaf is not reached, or is called
    with or returns what a graph cannot hold.
    """
    modules = dict(copied.named_modules(remove_duplicate=False))
    known = [path for path in modules if path]
    for path in paths:
        if path not in known:
            return Failure(_unknown(path, known))
        if isinstance(modules[path], torch.jit.ScriptModule):
            return Failure(_scripted(path))
    return structural_copy(model, fresh_buffers=True).bind(
        lambda spare: _observed(_in_mode_of(spare, copied), paths, example).map(
            lambda calls: _replaced(copied, modules, paths, calls, share)
        )
    )


def _scripted(path: str) -> Fault:
    return Fault(
        FaultKind.UNCAPTURABLE,
        f"{path} is TorchScript, whose calls cannot be watched as a leaf's have to be",
        "use how='symbolic', which looks into it, or hand in the module before it was scripted",
        module=Path(path),
    )


def leaf_key(key: str) -> tuple[str, Call]:
    """The path and the recorded call behind the key of a traced leaf op."""
    path, _, index = key.rpartition("#")
    return path, _CALLS.get()[path][int(index)]


def _leaf_shapes(key: str, xs: list[torch.Tensor]) -> list[torch.Tensor]:
    _, call = leaf_key(key)
    made: list[torch.Tensor] = []
    for shape in call.shapes:
        sizes = list(shape.sizes)
        for given, x in zip(call.given, xs, strict=True):
            size: object = x.shape[0] if given else None
            if sizes and given and given[0] == sizes[0] and isinstance(size, torch.SymInt):
                sizes[0] = x.shape[0]
                break
        made.append(torch.empty(sizes, dtype=shape.dtype))
    return made


torch.library.register_fake("fqx::leaf", _leaf_shapes, lib=_LIBRARY)


@contextmanager
def _recorded(calls: Mapping[str, tuple[Call, ...]]) -> Iterator[None]:
    one, two = _CALLS.set(calls), _COUNTS.set({})
    try:
        yield
    finally:
        _CALLS.reset(one)
        _COUNTS.reset(two)


def _unknown(path: str, known: Sequence[str]) -> Fault:
    near = difflib.get_close_matches(path, known, 3, 0.5)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return Fault(
        FaultKind.UNKNOWN_LEAF,
        f"leaves= names {path!r}, which is no module inside the model",
        hint or f"the modules are {', '.join(known[:8])}",
    )


def _in_mode_of(spare: nn.Module, copied: nn.Module) -> nn.Module:
    for one, two in zip(spare.modules(), copied.modules(), strict=True):
        one.training = two.training
    return spare


def _observed(
    spare: nn.Module, paths: Sequence[str], example: Example
) -> Result[dict[str, tuple[Call, ...]], Fault]:
    """The calls of each leaf in one eager run of a copy with its own buffers."""
    calls: dict[str, list[Call]] = {path: [] for path in paths}
    problems: list[Fault] = []

    versions: list[tuple[int, ...]] = []

    def before(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        del module
        versions.append(_versions(args, kwargs))

    def hook(path: str) -> Callable[..., None]:
        def seen(
            module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
        ) -> None:
            del module
            written = versions.pop() != _versions(args, kwargs)
            made = "it writes into its input" if written else _call(args, kwargs, output)
            if isinstance(made, str):
                problems.append(_odd(path, made))
            else:
                calls[path].append(made)

        return seen

    for path in paths:
        module = spare.get_submodule(path)
        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(hook(path), with_kwargs=True)
    modules = {id(module): path for path, module in spare.named_modules()}
    args, kwargs = example.arrange(tuple(tensor.clone() for tensor in example.tensors))
    ran = quietly(
        lambda: spare(*args, **kwargs), lambda error, said: fault_of(error, modules, said)
    )
    return ran.bind(lambda _: _complete(calls, problems))


def _versions(args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[int, ...]:
    """How often each tensor among the arguments has been written."""
    leaves = (*flatten(args).leaves, *flatten(kwargs).leaves)
    return tuple(leaf._version for leaf in leaves if isinstance(leaf, torch.Tensor))


def _complete(
    calls: Mapping[str, list[Call]], problems: Sequence[Fault]
) -> Result[dict[str, tuple[Call, ...]], Fault]:
    if problems:
        return Failure(problems[0])
    idle = [path for path, found in calls.items() if not found]
    if idle:
        return Failure(_odd(idle[0], "it is not called on the example inputs"))
    return Success({path: tuple(found) for path, found in calls.items()})


def _odd(path: str, reason: str) -> Fault:
    return Fault(
        FaultKind.UNCAPTURABLE,
        f"module {path} cannot be kept whole: {reason}",
        "name the module around it, or one inside it, as the leaf",
        module=Path(path),
    )


def _call(args: tuple[object, ...], kwargs: dict[str, object], output: object) -> Call | str:
    inputs, named, outputs = flatten(args), flatten(kwargs), flatten(output)
    leaves = (*inputs.leaves, *named.leaves)
    for leaf in (*leaves, *outputs.leaves):
        plain = leaf is None or isinstance(leaf, (torch.Tensor, bool, int, float, str))
        if not plain:
            return f"it takes or gives a {type(leaf).__name__}"
    given = tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor))
    made = [leaf for leaf in outputs.leaves if isinstance(leaf, torch.Tensor)]
    return Call(
        _marked(inputs.tree, leaves, 0, leaves),
        _marked(named.tree, named.leaves, len(inputs.leaves), leaves),
        _marked(outputs.tree, outputs.leaves, 0, outputs.leaves),
        given,
        tuple(Shape(tensor.dtype, tuple(tensor.shape)) for tensor in made),
    )


def _marked(
    tree: Tree, leaves: Sequence[object], offset: int, everything: Sequence[object]
) -> Tree:
    """The tree with indices among the tensors, or constants, at its leaves."""
    if tree.kind != "leaf":
        items = tuple(_marked(item, leaves, offset, everything) for item in tree.items)
        return Tree(tree.kind, None, tree.keys, items, tree.name)
    index = tree.leaf if isinstance(tree.leaf, int) else 0
    value = leaves[index]
    if isinstance(value, torch.Tensor):
        before = everything[: index + offset]
        return Tree("leaf", sum(isinstance(one, torch.Tensor) for one in before))
    known = value if isinstance(value, (bool, int, float, str)) else None
    return Tree("leaf", FrozenMap({"constant": known}))


def _filled(leaf: Arg, made: Sequence[torch.Tensor]) -> object:
    if isinstance(leaf, FrozenMap):
        return leaf["constant"]
    return made[leaf] if isinstance(leaf, int) else None


def _replaced(
    copied: nn.Module,
    modules: Mapping[str, nn.Module],
    paths: Sequence[str],
    calls: Mapping[str, tuple[Call, ...]],
    share: bool,
) -> Leaves:
    handles: dict[Path, Leaf] = {}
    for path in paths:
        original = modules[path]
        handles[Path(path)] = leaf_of(original, "kept whole at the caller's request", share=share)
        stub = Stub(path, type(original).__name__)
        for other, module in modules.items():
            if module is original:
                parent, _, name = other.rpartition(".")
                setattr(modules[parent], name, stub)
    return Leaves(copied, handles, calls)
