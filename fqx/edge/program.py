"""The module a graph becomes: a `torch.fx.GraphModule` that reads its weights in nanoseconds.

torch.fx generates code that looks weights up through nested modules at every call, about two
microseconds each. `Program` generates its own: one function whose globals are the torch functions,
the kernels with their attributes bound, and each owner module's own dict of parameters or buffers.
Reading `_d3['weight']` is always live, so replacing a tensor needs no notice.
"""

from __future__ import annotations

import builtins
import copy
import hashlib
import inspect
import itertools
import keyword
import linecache
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.fx.traceback import preserve_node_meta
from torch.nn.modules.module import _IncompatibleKeys

from fqx.edge.kernels import BINDERS, op_of_function
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.signature import Poly, Signature, TensorType, Tree
from fqx.ir.trail import Halt
from fqx.ir.tree import fit_call
from fqx.kit.result import attempt, fold
from fqx.num.tensors import torch_dtype

EXTRA = "_extra_state"
"""The state_dict key of a quantized program's identity."""


class Refused(Halt, RuntimeError):
    """A module was used in a way that its program does not admit; `fault` says how."""


class Unbound(Refused, TypeError):
    """A call with the wrong number or names of arguments: what Python calls a TypeError, named."""


class Owner(nn.Module):
    """A place for weights; torch loads into it as part of a larger module without casting."""

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        _metadata: Any,
        _strict: bool,
        missing_keys: list[str],
        _unexpected: list[str],
        error_msgs: list[str],
    ) -> None:
        _load(self, state_dict, prefix, missing_keys, error_msgs)


class Program(fx.GraphModule):
    """A materialized graph. `fqx_program` is the graph it was made of, without tensors.

    `forward` names an input that does not fit the signature before any kernel runs. The module
    keeps its dtype and device. deepcopy, pickle and torch.save work and keep hooks of its calls;
    packed weights stay behind.
    """

    fqx_program: Graph
    _edited: bool

    def recompile(self) -> Any:
        """Generate the code of `forward` from `graph`, after an edit of it."""
        code = super().recompile()
        self.__dict__["_edited"] = "_made" in self.__dict__
        self._bind()
        return code

    def _bind(self) -> None:
        """Look everything up again; packed weights go."""
        signature = self.fqx_program.signature if "fqx_program" in self.__dict__ else None
        if signature is not None:
            kind: Any = type(self)
            kind.forward = _forward(self, self.graph, signature)
            kind.__call__ = _call

    def compile(  # type: ignore[override]  # torch's compiles in place and gives nothing
        self, *args: Any, example_inputs: tuple[Any, ...] | None = None, **kwargs: Any
    ) -> nn.Module:
        """A second module that torch's compiler runs, with packed constants and no graph break.

        It takes the arguments of `torch.compile` and gives this module's values: its bits where
        integer kernels run, float32 rounding apart where torch fuses float operators. This module
        and its weights stay as they are, and later changes of them are not seen.
        `example_inputs` are needed only where the signature leaves sizes open. Raises `Refused`:
        UNSUPPORTED_TARGET without a C++ compiler, unless `backend` needs none; UNCAPTURABLE.
        """
        # imported here: it reads this class, and torch's compiler is slow to import
        from fqx.edge.compiled import compiled

        return compiled(self, example_inputs, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return _twin(self, lambda tensor: copy.deepcopy(tensor, memo), memo)

    def __copy__(self) -> Program:
        return _twin(self, lambda tensor: tensor, None)

    def __reduce__(self) -> Any:
        if self._edited:
            # as torch.fx does it: the module comes back as an ordinary GraphModule
            return super().__reduce__()
        parts = (self.fqx_program, dict(_tensors(self)), dict(_kept(self)), self.training)
        return _revive, (*parts, preserved(self), _hooks(self))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Replace the module's tensors by copies of those given (by themselves with `assign`).

        Nothing is cast and nothing is written into. Raises `Refused`, naming the keys, when one is
        missing or unknown (if `strict`), has another dtype or shape, or belongs to another program;
        the module then is as it was.
        """
        own = dict(_tensors(self))
        fault, missing, unknown = _misfits(self, own, state_dict, strict)
        if fault is not None:
            raise Refused(fault)
        for path, tensor in own.items():
            if path in state_dict:
                _put(self, path, tensor, state_dict[path], assign)
        for path, module in _kept(self).items():
            inner = {k[len(path) + 1 :]: v for k, v in state_dict.items() if k[: len(path)] == path}
            held = inner if assign else {key: value.clone() for key, value in inner.items()}
            module.load_state_dict(held, strict=strict, assign=True)
        _retie(self)
        self._bind()
        return _IncompatibleKeys(missing, unknown)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Program:
        for dtype in {tensor.dtype for tensor in _tensors(self).values()} | {torch.float32}:
            seen = fn(torch.zeros(1, dtype=dtype))
            if seen.dtype != dtype or seen.device.type != "cpu":
                _refuse_move(f"{str(seen.dtype).removeprefix('torch.')} on {seen.device}")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        _metadata: Any,
        _strict: bool,
        missing_keys: list[str],
        _unexpected: list[str],
        error_msgs: list[str],
    ) -> None:
        _load(self, state_dict, prefix, missing_keys, error_msgs)


class IntegerProgram(Program):
    """A program with qparams: its state_dict says which program the integers belong to."""

    def get_extra_state(self) -> Tensor:
        """SHA-256 of the operators, their qparams and the signature."""
        return torch.frombuffer(bytearray(identity(self.fqx_program)), dtype=torch.uint8)


def identity(graph: Graph) -> bytes:
    """SHA-256 of what a graph computes, apart from the content of its weights."""
    lines = [graph.stage.value, graph.signature.code]
    lines += [graph.nodes[name].code for name in graph.order]
    return hashlib.sha256("\n".join(lines).encode()).digest()


def _load(
    owner: nn.Module,
    state: Mapping[str, Any],
    prefix: str,
    missing: list[str],
    errors: list[str],
) -> None:
    """Replace what an owner holds itself, as part of torch's own walk over a larger module."""
    for name, own in (*owner._parameters.items(), *owner._buffers.items()):
        key = prefix + name
        if own is None or name in owner._non_persistent_buffers_set:
            continue
        if key not in state:
            missing.append(key)
            continue
        wrong = _differences(key, own, state[key])
        errors += wrong
        if not wrong:
            _put(owner, name, own, state[key], assign=False)
    if isinstance(owner, IntegerProgram):
        key = prefix + EXTRA
        if key not in state:
            missing.append(key)
        elif not _same_program(owner, state[key]):
            errors.append(f"{key} is the identity of another program")


def _refuse_move(where: str) -> NoReturn:
    raise Refused(
        Fault(
            FaultKind.UNSUPPORTED_TARGET,
            f"a materialized module keeps its dtypes and its device; it was moved to {where}",
            "move or cast the float model, then capture and quantize that",
        )
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers outside kept modules by every path, parameters of a module first."""
    kept = tuple(f"{path}." for path in _kept(module))
    found: dict[str, Tensor] = {}
    for path, tensor in itertools.chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    ):
        if not path.startswith(kept):
            found[path] = tensor
    return found


def _kept(module: nn.Module) -> dict[str, nn.Module]:
    """The leaf modules by path."""
    leaves = module.__dict__["fqx_program"].leaves if "fqx_program" in module.__dict__ else ()
    return {path: module.get_submodule(path) for path in leaves}


def _misfits(
    module: Program, own: Mapping[str, Tensor], given: Mapping[str, Any], strict: bool
) -> tuple[Fault | None, list[str], list[str]]:
    keys = list(module.state_dict())
    missing = [key for key in keys if key not in given]
    unknown = [key for key in given if key not in keys]
    wrong = [f"{key} is missing" for key in missing] if strict else []
    wrong += [f"{key} is not a key of this module" for key in unknown] if strict else []
    for key in keys:
        if key == EXTRA and key in given and not _same_program(module, given[key]):
            wrong.append(f"{key} is the identity of another program")
        elif key in own and key in given:
            wrong += _differences(key, own[key], given[key])
    if not wrong:
        return None, missing, unknown
    shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
    remedy = "load a state_dict saved from a module of the same program"
    return Fault(FaultKind.STATE_DOES_NOT_FIT, shown, remedy), missing, unknown


def _same_program(module: Program, given: object) -> bool:
    return isinstance(given, Tensor) and bytes(given.cpu().tolist()) == identity(module.fqx_program)


def _differences(key: str, own: Tensor, given: object) -> list[str]:
    if not isinstance(given, Tensor):
        return [f"{key} is a {type(given).__name__}, not a tensor"]
    if given.dtype != own.dtype:
        return [f"{key} is {_plain(given.dtype)}, the program has {_plain(own.dtype)}"]
    if given.shape != own.shape:
        return [f"{key} has shape {list(given.shape)}, the program has {list(own.shape)}"]
    return []


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _owner(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    head, _, name = path.rpartition(".")
    return module.get_submodule(head), name


def _put(module: nn.Module, path: str, own: Tensor, given: Tensor, assign: bool) -> None:
    owner, name = _owner(module, path)
    made = given.detach() if assign else given.detach().cpu().clone()
    if isinstance(own, nn.Parameter):
        owner._parameters[name] = nn.Parameter(made, requires_grad=own.requires_grad)
    else:
        owner._buffers[name] = made


def _retie(module: Program) -> None:
    """One tensor under all paths of a tie again."""
    for second, first in module.fqx_program.ties.items():
        (owner, name), (other, twin) = _owner(module, second), _owner(module, first)
        if name in owner._parameters:
            owner._parameters[name] = other._parameters[twin]
        elif name in owner._buffers:
            owner._buffers[name] = other._buffers[twin]


def _twin(module: Program, change: Callable[[Any], Any], memo: dict[int, Any] | None) -> Program:
    tensors = {path: change(tensor) for path, tensor in _tensors(module).items()}
    leaves = {path: change(leaf) for path, leaf in _kept(module).items()}
    held = {name: change(value) for name, value in preserved(module).items()}
    parts = module.fqx_program, tensors, leaves, module.training, held
    twin = _revive(*parts, _hooks(module))
    if module._edited:
        twin.graph = copy.deepcopy(module.graph)
    if memo is not None:
        memo[id(module)] = twin
    return twin


def _revive(
    program: Graph,
    tensors: Mapping[str, Tensor],
    leaves: Mapping[str, nn.Module],
    training: bool,
    attributes: Mapping[str, object],
    hooks: Mapping[str, Mapping[int, Any]],
) -> Program:
    """The module again from what `__reduce__` keeps."""
    # imported here: materialize builds modules of this class
    from fqx.edge.materialize import rebuild

    module = rebuild(program, tensors, leaves)
    module.train(training)
    for table, held in hooks.items():
        module.__dict__[table].update(held)
    return preserving(module, attributes)


def _hooks(module: Program) -> dict[str, dict[int, Any]]:
    """The hooks of the module's calls, by the names of nn.Module's tables of them."""
    tables = ("_forward_pre_hooks", "_forward_hooks")
    kinds = ("", "_with_kwargs", "_always_called")
    names = (f"{table}{kind}" for table in tables for kind in kinds)
    return {name: dict(held) for name in names if (held := module.__dict__.get(name))}


def preserved(module: Program) -> dict[str, object]:
    """The attributes a module was given by `preserving`."""
    return dict(module.__dict__.get(_PRESERVED, {}))


def preserving(module: Program, attributes: Mapping[str, object]) -> Program:
    """The module itself with more attributes, which copies and pickles of it have too.

    They are no part of its program: modules among them are not registered, and tensors are not in
    its state.
    """
    module.__dict__.update(attributes)
    module.__dict__[_PRESERVED] = {**preserved(module), **attributes}
    return module


_PRESERVED = "_fqx_preserved"


# Calls.


def _call(self: Program, *args: Any, **kwargs: Any) -> Any:
    """`nn.Module.__call__` that names the arguments when their number or names are wrong."""
    try:
        return nn.Module.__call__(self, *args, **kwargs)
    except TypeError as error:
        fault = None if torch.compiler.is_compiling() else _arity_fault(self, args, kwargs)
        if fault is None:
            raise
        raise Unbound(fault) from error


def _arity_fault(
    module: Program, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Fault | None:
    """What is wrong with a call that Python itself could not bind; None if it could."""
    unbound = attempt(
        lambda: inspect.signature(module.forward).bind(*args, **kwargs),
        lambda error: str(error),
        (TypeError,),
    )
    said = fold(unbound, lambda _: "", lambda text: text)
    if not said:
        return None
    misfit = fit_call(module.fqx_program.signature, args, kwargs)
    return fold(misfit, lambda _: _unbindable(said), lambda fault: fault)


def _unbindable(said: str) -> Fault:
    return Fault(
        FaultKind.INPUT_DOES_NOT_FIT,
        said,
        "call with arguments shaped like the example inputs of capture",
    )


# Generated code.


def _forward(module: Program, graph: fx.Graph, signature: Signature) -> Callable[..., Any]:
    """The function that runs `graph` with everything looked up beforehand."""
    writer = _Writer(module)
    lines = [writer.line(node) for node in graph.nodes]
    names = [node.target for node in graph.nodes if node.op == "placeholder"]
    params = "".join(f", {_parameter(node)}" for node in graph.nodes if node.op == "placeholder")
    writer.names["_fits"] = lambda module, given: _look(module, signature, given)
    seen = ", ".join(f"{name!r}: {name}" for name in names)
    guard = (
        f"    if not ({_guard(writer, signature)}):\n"
        f"        exported = _fits(self, {{{seen}}})\n"
        "        if exported is not None:\n"
        "            return exported[0]\n"
    )
    body = "".join(f"    {line}\n" for line in lines if line)
    source = f"def forward(self{params}):\n{guard if seen else ''}{body}"
    return _compiled(source, writer.names)


def _parameter(node: fx.Node) -> str:
    return f"{node.target}={node.args[0]!r}" if node.args else str(node.target)


_COUNT = itertools.count()


def _compiled(source: str, names: dict[str, Any]) -> Callable[..., Any]:
    place = f"<fqx program {next(_COUNT)}>"
    linecache.cache[place] = (len(source), None, source.splitlines(True), place)
    exec(compile(source, place, "exec"), names)
    made: Callable[..., Any] = names.pop("forward")
    return made


class _Writer:
    """Turns fx nodes into lines and collects the globals they need."""

    def __init__(self, module: Program) -> None:
        self.module = module
        self.names: dict[str, Any] = {"__builtins__": builtins}
        self.bound: dict[int, str] = {}
        self.keep: list[object] = []

    def line(self, node: fx.Node) -> str:
        """The statement of a node, or nothing."""
        match node.op:
            case "placeholder":
                return "" if node.name == node.target else f"{node.name} = {node.target}"
            case "get_attr":
                return "" if self.owned(node) else f"{node.name} = {self.attribute(node)}"
            case "output":
                return f"return {self.text(node.args[0])}"
            case _:
                freed = self.freed(node)
                call = self.call(node)
                return f"{node.name} = {call}{freed}"

    def freed(self, node: fx.Node) -> str:
        """Forget values whose last use this was, so that memory stays as low as in torch."""
        done = [
            source.name
            for source in node.all_input_nodes
            if source.op not in ("get_attr", "placeholder") and _last_user(source) is node
        ]
        return "".join(f"; {name} = None" for name in done)

    def call(self, node: fx.Node) -> str:
        if node.op == "call_method":
            receiver, *rest = node.args
            inner = self.arguments(tuple(rest), node.kwargs)
            return f"{self.text(receiver)}.{node.target}({inner})"
        if node.op == "call_module":
            child = self.constant(self.module.get_submodule(str(node.target)), "_m")
            return f"{child}({self.arguments(node.args, node.kwargs)})"
        target: Any = node.target
        op = op_of_function(target)
        if op is None:
            return f"{self.constant(target, '_f')}({self.arguments(node.args, node.kwargs)})"
        run = BINDERS[op](dict(node.kwargs))
        return f"{self.constant(run, '_k')}({self.arguments(node.args, {})})"

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        parts = [self.text(arg) for arg in args]
        parts += [f"{name}={self.text(value)}" for name, value in kwargs.items()]
        return ", ".join(parts)

    def text(self, arg: Any) -> str:
        """An argument as source: names, literals, containers of these, or a global."""
        if isinstance(arg, fx.Node):
            owned = self.owned(arg) if arg.op == "get_attr" else None
            return owned or arg.name
        if isinstance(arg, tuple):
            if hasattr(arg, "_fields") or type(arg).__module__ == "torch":
                return self.constant(arg, "_c")
            return f"({''.join(f'{self.text(item)}, ' for item in arg)})"
        if isinstance(arg, list):
            return f"[{', '.join(map(self.text, arg))}]"
        if isinstance(arg, dict):
            return (
                "{" + ", ".join(f"{key!r}: {self.text(value)}" for key, value in arg.items()) + "}"
            )
        if isinstance(arg, slice):
            return f"slice({self.text(arg.start)}, {self.text(arg.stop)}, {self.text(arg.step)})"
        if arg is None or arg is Ellipsis or type(arg) in (bool, int, str):
            return repr(arg)
        if type(arg) is float and math.isfinite(arg):
            return repr(arg)
        return self.constant(arg, "_c")

    def owned(self, node: fx.Node) -> str | None:
        """A weight as a read of its owner's dict; None for any other attribute."""
        owner, name = _owner(self.module, str(node.target))
        for table in (owner._parameters, owner._buffers):
            if name in table:
                return f"{self.constant(table, '_d')}[{name!r}]"
        return None

    def attribute(self, node: fx.Node) -> str:
        owner, name = _owner(self.module, str(node.target))
        return f"getattr({self.constant(owner, '_o')}, {name!r})"

    def constant(self, value: Any, stem: str) -> str:
        """A global of this value; the same object gets the same name."""
        if id(value) not in self.bound:
            name = f"{stem}{len(self.bound)}"
            self.bound[id(value)], self.names[name] = name, value
            self.keep.append(value)
        return self.bound[id(value)]


def _last_user(node: fx.Node) -> fx.Node | None:
    return max(node.users, default=None)


# Inputs.


def _guard(writer: _Writer, signature: Signature) -> str:
    """One expression that is true for the usual right call; whatever else is looked at closely."""
    writer.names["_T"] = Tensor
    tests: list[str] = []
    sizes: dict[str, str] = {}
    for name, tree in _slots(signature):
        if tree.kind != "leaf" or not isinstance(tree.leaf, int):
            return "False"
        kind = signature.inputs[tree.leaf].type
        if not isinstance(kind, TensorType) or signature.inputs[tree.leaf].node is None:
            return "False"
        tests += [f"type({name}) is _T", f"{name}.is_cpu"]
        tests.append(f"{name}.dtype is {writer.constant(torch_dtype(kind.dtype), '_c')}")
        tests += _dim_tests(signature, name, kind, sizes)
    return " and ".join(tests) if len(tests) < 120 else "False"


def _dim_tests(
    signature: Signature, name: str, kind: TensorType, sizes: dict[str, str]
) -> Iterator[str]:
    if kind.dims is None:
        return
    yield f"len(s_{name} := {name}.shape) == {len(kind.dims)}"
    for axis, dim in enumerate(kind.dims):
        here = f"s_{name}[{axis}]"
        if isinstance(dim, int):
            yield f"{here} == {dim}"
        elif isinstance(dim, Poly) and len(dim.terms) == 1 and dim.terms[0][1] == 1:
            atoms = dim.terms[0][0]
            if len(atoms) == 1 and atoms[0] in signature.dims:
                yield _bound_test(signature, atoms[0], here, sizes)


def _bound_test(signature: Signature, dim: str, here: str, sizes: dict[str, str]) -> str:
    if dim in sizes:
        return f"{here} == {sizes[dim]}"
    sizes[dim] = here
    least, most = signature.dims[dim]
    return f"{least} <= {here}" + (f" <= {most}" if most is not None else "")


def _slots(signature: Signature) -> tuple[tuple[str, Tree], ...]:
    """The captured parameters by the names `forward` has for them."""
    listed = [
        (parameter_name(signature, index), tree) for index, tree in enumerate(signature.args.items)
    ]
    named = zip(signature.kwargs.keys, signature.kwargs.items, strict=True)
    return (*listed, *((str(name), tree) for name, tree in named))


def parameter_name(signature: Signature, index: int) -> str:
    """What the positional parameter at `index` is called."""
    return signature.params[index] if index < len(signature.params) else f"argument_{index}"


def is_parameter(name: str) -> bool:
    """Whether a name can stand in a function's signature."""
    return name.isidentifier() and not keyword.iskeyword(name)


def _look(module: Program, signature: Signature, given: Mapping[str, Any]) -> tuple[Any] | None:
    """Raise `Refused` for a call that does not fit; say nothing while torch traces.

    torch.export gets the graph node by node, so that the exported program keeps module scopes.
    """
    if torch.compiler.is_exporting():
        with preserve_node_meta():
            return (fx.Interpreter(module).run(*given.values()),)
    traced = any(isinstance(value, fx.Proxy) for value in given.values())
    if not traced and not torch.compiler.is_compiling():
        _check(signature, given)
    return None


def _check(signature: Signature, given: Mapping[str, Any]) -> None:
    count = len(signature.args.items)
    args = tuple(given[parameter_name(signature, index)] for index in range(count))
    names = {parameter_name(signature, index) for index in range(count)}
    known = {str(key) for key in signature.kwargs.keys}
    rest = {
        key: value
        for key, value in given.items()
        if key not in names and (key not in known or value is not None or _is_none(signature, key))
    }
    fault = fold(fit_call(signature, args, rest), lambda values: _elsewhere(values), lambda f: f)
    if fault is not None:
        raise Refused(fault)


def _is_none(signature: Signature, key: str) -> bool:
    trees = dict(zip(map(str, signature.kwargs.keys), signature.kwargs.items, strict=True))
    leaf = trees[key].leaf
    return isinstance(leaf, int) and signature.inputs[leaf].constant is None


def _elsewhere(values: tuple[object, ...]) -> Fault | None:
    for value in values:
        if isinstance(value, Tensor) and not value.is_cpu:
            return Fault(
                FaultKind.INPUT_DOES_NOT_FIT,
                f"the program runs on the CPU, an input is on {value.device}",
                "call with tensors on the CPU",
            )
    return None
