"""The canonicalizer: from an exported program to the calls of the catalogue, free of writes.

One walk over `ExportedProgram.graph` (pre-dispatch aten) serves both front ends. Every aten call
is bound to its schema and translated by `fqx.ops.spellings`; what that does not know stays a
foreign call of its captured type, and so does a call on whose type the catalogue and torch
disagree. Values that share storage are told apart from copies by the storages the tracer saw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from fqx.edge.capture_leaves import leaf_key
from fqx.edge.capture_model import Names
from fqx.edge.capture_names import Place, input_id
from fqx.edge.capture_types import Symbols, agree, dtype_in, storage_of, type_of
from fqx.edge.functionalize import (
    Handle,
    Owner,
    View,
    alias,
    fresh,
    read,
    state_fault,
    viewed,
    write,
)
from fqx.edge.locate import keep_whole, user_line
from fqx.ir.arg import Arg, NodeRef, Ref, WeightRef, canonical, map_refs, refs_in
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import NodeId, OpName, Path
from fqx.ir.node import Node
from fqx.ir.signature import (
    IntType,
    OpaqueType,
    TensorType,
    TupleType,
    Type,
    encode_type,
    named,
)
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success, fold
from fqx.num.tensors import dtype_of
from fqx.ops.spellings import Canonical, Same, canonical_call, functional_name
from fqx.ops.types import infer

_ANONYMOUS = re.compile(r"(^|\.)(lifted_tensor_\d+|_tensor_constant\d+)$")
_ATTENTION_TO_MODE = ("train", "training")
_IN_PLACE_VIEWS: Mapping[str, str] = {
    "aten.transpose_.default": "aten.transpose.int",
    "aten.swapaxes_.default": "aten.swapaxes.default",
    "aten.swapdims_.default": "aten.swapdims.default",
    "aten.t_.default": "aten.t.default",
    "aten.squeeze_.default": "aten.squeeze.default",
    "aten.squeeze_.dim": "aten.squeeze.dim",
    "aten.squeeze_.dims": "aten.squeeze.dims",
    "aten.unsqueeze_.default": "aten.unsqueeze.default",
}
_MEMORY_FORMATS: Mapping[torch.memory_format, str] = {
    torch.contiguous_format: "contiguous",
    torch.channels_last: "channels_last",
    torch.channels_last_3d: "channels_last_3d",
    torch.preserve_format: "preserve",
}
_UNKNOWN = OpaqueType()
_ROOT = Place()
_IGNORED_KEYWORDS = ("device", "layout", "pin_memory", "generator", "memory_format", "non_blocking")


@dataclass(slots=True)
class Pack:
    """The tuple a call gives: its node, its items as traced, and the tensor it may be a view of.

    `item` set: the call's value is that item already. `items` set: no node stands for the tuple.
    """

    value: Arg = None
    node: Node | None = None
    type: Type = _UNKNOWN
    seen: tuple[object, ...] = ()
    of: Handle | None = None
    item: tuple[int, Handle] | None = None
    items: tuple[Value, ...] | None = None


Value = Handle | Pack | Arg | fx.GraphModule
"""What a traced node stands for; a plain Arg is an int or another constant."""


@dataclass(frozen=True, slots=True)
class Read:
    """The canonical program: calls under temporary ids, their places, and what goes out.

    `constants` are the tensors without a name of their own, by their path.
    """

    nodes: tuple[Node, ...]
    places: Mapping[NodeId, Place]
    outputs: tuple[Arg, ...]
    constants: Mapping[Path, torch.Tensor]
    types: Mapping[NodeId, Type]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """An exported program, and what capture knows of it beforehand.

    `inputs` are the names of the user inputs in order, `symbols` the names of the varying sizes,
    `axes` where such a size is to be read: (input name, axis). `prefix` is the path of the model in
    what was exported, `transient` the storages of constants made while tracing.
    """

    program: torch.export.ExportedProgram
    names: Names
    inputs: tuple[str, ...]
    symbols: Symbols
    axes: Mapping[str, tuple[str, int]]
    transient: frozenset[int] = frozenset()
    prefix: str = "m"


def read_program(source: Source) -> Result[Read, Fault]:
    """The program on the canonical list.

    Faults: UNFUNCTIONAL_WRITE, RANDOM_OP, MODEL_IN_TRAINING, CONTROL_FLOW, AMBIENT_AUTOCAST,
    UNCAPTURABLE; each with the module and the user's line.
    """
    return _Reader(source).run()


@dataclass(slots=True)
class _Reader:
    source: Source
    nodes: list[Node] = field(default_factory=list)
    types: dict[NodeId, Type] = field(default_factory=dict)
    places: dict[NodeId, Place] = field(default_factory=dict)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    known_ints: dict[str, Arg] = field(default_factory=dict)
    weight_types: dict[Path, Type] = field(default_factory=dict)
    weight_roots: dict[Path, Handle] = field(default_factory=dict)
    constants: dict[Path, torch.Tensor] = field(default_factory=dict)
    count: int = 0
    lifted: set[Arg] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    fault: Fault | None = None
    place: Place = _ROOT

    def run(self) -> Result[Read, Fault]:
        graph = self.source.program.graph
        self._placeholders(graph)
        outputs = self._walk(graph)
        refs = tuple(self._arg(value) for value in outputs)
        if self.fault is not None:
            return Failure(self.fault)
        kept = _live(self.nodes, refs)
        paths = self._constant_paths(kept, refs)

        self.notes += [
            f"{final}: a tensor outside the model's parameters and buffers, kept as a constant"
            for path, final in paths.items()
            if _ANONYMOUS.search(path)
            and WeightRef(path) not in self.lifted
            and self.weight_roots[path].root.owner is Owner.STATE
        ]

        def change(ref: Ref) -> Arg:
            return WeightRef(paths.get(ref.path, ref.path)) if isinstance(ref, WeightRef) else ref

        return Success(
            Read(
                tuple(node.map_refs(change) for node in kept),
                self.places,
                tuple(map_refs(ref, change) for ref in refs),
                {final: self.constants[path] for path, final in paths.items()},
                self.types,
                tuple(self.notes),
            )
        )

    def _constant_paths(self, nodes: Sequence[Node], outputs: tuple[Arg, ...]) -> dict[Path, Path]:
        """Final paths of the constants in use: nameless ones are named after their first user."""
        taken = {*self.source.names.tensors, *self.source.names.modules}
        paths: dict[Path, Path] = {}
        users = [(self.places.get(node.id, Place()).path, node.args) for node in nodes]
        for module, args in (*users, ("", outputs)):
            for _, ref in refs_in(args):
                if isinstance(ref, WeightRef) and ref.path in self.constants.keys() - paths.keys():
                    named = ref.path if not _ANONYMOUS.search(ref.path) else ""
                    paths[ref.path] = Path(named or _constant_name(module, taken))
                    taken.add(paths[ref.path])
        return paths

    # -- what goes in

    def _placeholders(self, graph: fx.Graph) -> None:
        specs = {spec.arg.name: spec for spec in self.source.program.graph_signature.input_specs}
        inputs = iter(self.source.inputs)
        for node in graph.nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            seen = node.meta.get("val")
            kind, storage = type_of(seen, self.source.symbols), storage_of(seen)
            if spec.kind.name == "USER_INPUT":
                self.values[node] = self._input(next(inputs), kind, storage)
            else:
                self.values[node] = self._weight(str(spec.target), kind, storage)
        for name, (owner, axis) in self.source.axes.items():
            self._size_node(name, owner, axis)

    def _input(self, name: str, kind: Type, storage: int | None) -> Value:
        id = input_id(name)
        self.nodes.append(Node(id, OpName("input")))
        self.types[id] = kind
        return fresh(NodeRef(id), kind, storage, Owner.INPUT, name)

    def _size_node(self, name: str, owner: str, axis: int) -> None:
        id = NodeId(f"{input_id(owner)}:size.{axis}")
        self.nodes.append(
            Node(id, OpName("size"), (NodeRef(input_id(owner)),), FrozenMap({"dim": axis}))
        )
        self.types[id] = IntType(named(name))
        self.known_ints[str(named(name))] = NodeRef(id)

    def _weight(self, target: str, kind: Type, storage: int | None) -> Value:
        program, names = self.source.program, self.source.names
        inner = _without(target, self.source.prefix)
        path = Path(names.tensors.get(inner, inner))
        self.weight_types[path] = kind
        if path in self.weight_roots:
            return alias(self.weight_roots[path])
        owner = Owner.STATE
        if path not in names.tensors:
            tensor = program.state_dict.get(target, program.constants.get(target))
            if not isinstance(tensor, torch.Tensor):
                return None
            self.constants[path] = tensor.detach()
            owner = Owner.PROGRAM if storage_of(tensor) in self.source.transient else owner
        made = fresh(WeightRef(path), kind, storage, owner, path)
        self.weight_roots[path] = made
        return made

    # -- the walk

    def _walk(self, graph: fx.Graph) -> tuple[Value, ...]:
        outer = self.place
        for node in graph.nodes:
            if node.op == "output":
                self.place = outer
                listed = node.args[0]
                items = listed if isinstance(listed, (tuple, list)) else (listed,)
                return tuple(self._value(item) for item in items)
            if node.op == "get_attr":
                self.values[node] = _attribute(graph, str(node.target))
            elif node.op == "call_function":
                self.place = self._place(node, outer)
                self.values[node] = self._called(node)
            if self.fault is not None:
                return ()
        return ()

    def _place(self, node: fx.Node, outer: Place) -> Place:
        stack = node.meta.get("nn_module_stack") or {}
        frames = [(str(key), str(frame[0])) for key, frame in stack.items()]
        frames = [(key, path) for key, path in frames if "_empty_nn_module_stack" not in key]
        line = user_line(node.meta.get("stack_trace"))
        if not frames:
            return Place(outer.path, outer.raw, line or outer.source)
        key, path = frames[-1]
        inner = _without(path.removeprefix("L__self__").lstrip("."), self.source.prefix)
        if not key.startswith("L__self__"):
            inner = path
        _, _, rank = key.rpartition("@")
        note = node.meta.get("torch_fn")
        return Place(
            self.source.names.module(inner),
            (inner, int(rank) if rank.isdigit() and "@" in key else 0),
            line,
            str(note[1]) if isinstance(note, tuple) and len(note) == 2 else "",
        )

    def _called(self, node: fx.Node) -> Value:
        target = node.target
        if isinstance(target, HigherOrderOperator):
            return self._higher_order(node, target)
        if getattr(target, "__name__", "") == "getitem":
            return self._getitem(node)
        if isinstance(target, OpOverload):
            return self._overload(node, target)
        return self._int_call(node)

    def _higher_order(self, node: fx.Node, target: HigherOrderOperator) -> Value:
        name = str(target)
        if name == "wrap_with_set_grad_enabled":
            inner = self._value(node.args[1])
            if isinstance(inner, fx.GraphModule):
                return self._inlined(inner, node.args[2:])
        if "autocast" in name:
            return self._stop(
                FaultKind.AMBIENT_AUTOCAST,
                "the model runs under torch.autocast",
                "write the casts (.to(dtype)) where they are meant, or "
                + keep_whole(self.place.path),
            )
        return self._stop(
            FaultKind.CONTROL_FLOW,
            f"the model calls {name}, whose branches a graph does not hold yet",
            keep_whole(self.place.path),
        )

    def _inlined(self, inner: fx.GraphModule, operands: Sequence[object]) -> Value:
        slots = [node for node in inner.graph.nodes if node.op == "placeholder"]
        for slot, operand in zip(slots, operands, strict=True):
            self.values[slot] = self._value(operand)
        return Pack(items=self._walk(inner.graph))

    def _stop(self, kind: FaultKind, reason: str, remedy: str) -> Value:
        at = Path(self.place.path)
        self._fail(Fault(kind, reason, remedy, module=at, source=self.place.source))
        return None

    def _fail(self, fault: Fault) -> None:
        self.fault = self.fault or fault

    # -- values and arguments

    def _value(self, item: object) -> Value:
        if isinstance(item, fx.Node):
            return self.values[item]
        return self._constant(item)

    def _constant(self, item: object) -> Arg:
        match item:
            case None | bool() | int() | float() | str():
                return item
            case torch.dtype():
                return dtype_of(item)
            case torch.memory_format():
                return _MEMORY_FORMATS[item]
            case torch.device() | torch.layout():
                return str(item).removeprefix("torch.")
            case tuple() | list():
                return tuple(self._arg(self._value(inner)) for inner in item)
            case _:
                self._stop(
                    FaultKind.UNCAPTURABLE,
                    f"an argument is a {type(item).__name__}, which a graph cannot hold",
                    keep_whole(self.place.path),
                )
                return None

    def _arg(self, value: Value) -> Arg:
        if isinstance(value, Handle):
            return read(value, self._emit_written)
        if isinstance(value, Pack):
            return value.value
        if isinstance(value, fx.GraphModule):
            return None
        return value

    def _kind(self, arg: Arg) -> Type:
        match arg:
            case NodeRef(id=id):
                return self.types.get(id, OpaqueType())
            case WeightRef(path=path):
                return self.weight_types.get(path, OpaqueType())
            case tuple():
                return TupleType(tuple(self._kind(item) for item in arg))
            case int() if not isinstance(arg, bool):
                return IntType(arg)
            case _:
                return OpaqueType(type(arg).__name__)

    # -- adding calls

    def _emit(self, op: OpName, args: tuple[Arg, ...], attrs: FrozenMap[Arg], kind: Type) -> Arg:
        """Add a call of a known type; sizes and int arithmetic are added once."""
        return self._added(Node(self._id(), op, args, attrs), kind, self.place)

    def _emit_written(
        self, op: OpName, args: tuple[Arg, ...], attrs: FrozenMap[Arg], kind: Type
    ) -> Arg:
        place = Place(self.place.path, self.place.raw, self.place.source, "functionalize", True)
        id = self._id()
        if op.startswith("aten."):
            attrs = attrs.put("type", canonical(encode_type(kind)))
        return self._added(Node(id, op, args, attrs), kind, place)

    def _id(self) -> NodeId:
        self.count += 1
        return NodeId(f"~{self.count}")

    def _added(self, node: Node, kind: Type, place: Place) -> Arg:
        is_int = node.op == "size" or node.op.startswith("int_")
        if is_int:
            found = self._known_int(node, kind)
            if found is not None:
                return found
        self.nodes.append(node)
        self.types[node.id] = kind
        self.places[node.id] = place
        if is_int:
            self.known_ints[_int_key(node)] = NodeRef(node.id)
        return NodeRef(node.id)

    def _known_int(self, node: Node, kind: Type) -> Arg:
        dim = kind.value if isinstance(kind, IntType) else None
        if isinstance(dim, int):
            return dim
        sole = self.known_ints.get(str(dim)) if dim is not None else None
        return sole if sole is not None else self.known_ints.get(_int_key(node))

    def _rule(self, node: Node) -> Type:
        return infer(node, self._kind)

    # -- calls

    def _int_call(self, node: fx.Node) -> Value:
        kind = type_of(node.meta.get("val"), self.source.symbols)
        if isinstance(kind, IntType) and isinstance(kind.value, int):
            return kind.value
        name = f"operator.{getattr(node.target, '__name__', '')}"
        args = [self._arg(self._value(item)) for item in node.args]
        bound = dict(zip(("self", "other"), args, strict=False))
        types = {key: self._kind(arg) for key, arg in bound.items()}
        made = canonical_call(name, bound, types) if isinstance(kind, IntType) else None
        if not isinstance(made, Canonical):
            return Pack(seen=(name,), type=OpaqueType("unsupported size arithmetic"))
        return self._emit(made.op, _sorted_ints(made), made.attrs, kind)

    def _overload(self, node: fx.Node, target: OpOverload) -> Value:
        name = f"{target.namespace}.{target._opname}.{target._overloadname or 'default'}"
        if _says_nothing(name):
            return None
        bound = self._bound(node, target)
        if name == "fqx.leaf.default":
            return self._leaf(node, bound)
        args = {key: self._arg(value) for key, value in bound.items()}
        if name == "aten.lift_fresh_copy.default":
            self.lifted.add(args["self"])
        if self._reads_unsupported(bound):
            return None
        if self.fault is not None or self._is_random(name, target, args):
            return None
        written = [
            a.name for a in target._schema.arguments if a.alias_info and a.alias_info.is_write
        ]
        if name in _IN_PLACE_VIEWS:
            return self._in_place_view(node, name, bound, args)
        if written:
            return self._written(target, name, bound, args, written)
        return self._pure(node, target, name, bound, args)

    def _bound(self, node: fx.Node, target: OpOverload) -> dict[str, Value]:
        bound: dict[str, Value] = {}
        for index, argument in enumerate(target._schema.arguments):
            item: object
            if not argument.kwarg_only and index < len(node.args):
                item = node.args[index]
            elif argument.name in node.kwargs:
                item = node.kwargs[argument.name]
            else:
                item = _default(argument)
            value = self._value(item)
            is_float = str(argument.type) == "float" and isinstance(value, int)
            bound[argument.name] = float(value) if is_float and isinstance(value, int) else value
        return bound

    def _reads_unsupported(self, bound: Mapping[str, Value]) -> bool:
        for value in bound.values():
            if isinstance(value, Pack) and value.node is None and value.seen:
                self._stop(
                    FaultKind.UNCAPTURABLE,
                    f"a size goes through {value.seen[0]}, beyond integer arithmetic",
                    "compute it from static sizes, or " + keep_whole(self.place.path),
                )
                return True
        return False

    def _is_random(self, name: str, target: OpOverload, args: Mapping[str, Arg]) -> bool:
        modes = [args[key] for key in _ATTENTION_TO_MODE if key in args]
        norm = name in ("aten.batch_norm.default", "aten.instance_norm.default")
        if norm and args.get("running_mean") is not None:
            modes += [args["use_input_stats"]] if "use_input_stats" in args else []
        elif norm:
            modes = []
        chance = args.get("dropout_p", args.get("dropout", args.get("p", 1.0)))
        drops = (
            "dropout" in name or "rrelu" in name or torch.Tag.nondeterministic_seeded in target.tags
        )
        if norm and True in modes:
            return self._refused(FaultKind.MODEL_IN_TRAINING, f"{name} updates its statistics here")
        if not drops or chance == 0 or (modes and True not in modes):
            return False
        if modes:
            return self._refused(FaultKind.MODEL_IN_TRAINING, f"{name} runs in training mode here")
        return self._refused(FaultKind.RANDOM_OP, f"{name} draws random numbers here")

    def _refused(self, kind: FaultKind, reason: str) -> bool:
        remedies = {
            FaultKind.RANDOM_OP: "make the numbers an input or a buffer",
            FaultKind.MODEL_IN_TRAINING: "call model.eval(), and pass training=self.training",
        }
        self._stop(kind, reason, remedies[kind])
        return True

    def _pure(
        self,
        node: fx.Node,
        target: OpOverload,
        name: str,
        bound: Mapping[str, Value],
        args: Mapping[str, Arg],
    ) -> Value:
        seen = node.meta.get("val")
        types = self._types_of(args)
        made = canonical_call(name, args, types)
        if isinstance(made, Same) and made.fresh:
            made = _laid_out(node, made)
        if isinstance(made, Same):
            return self._same(made, bound, args, seen)
        calls = (made,) if isinstance(made, Canonical) else made
        if calls is not None and calls[-1].item is not None and not _only(node, calls[-1].item):
            calls = None
        of = _handed_on(target, bound, seen) or _shared(bound, seen)
        count = len(self.nodes)
        if calls is not None:
            value = self._canonical(calls, seen)
            if value is not None:
                return self._result(value, calls[-1].item, seen, of, count)
            self._withdraw(count)
        value = self._foreign(target, name, args, seen)
        return self._result(value, None, seen, of, count)

    def _leaf(self, node: fx.Node, bound: Mapping[str, Value]) -> Value:
        path, call = leaf_key(str(bound["key"]))
        seen = node.meta.get("val")
        kind = type_of(seen, self.source.symbols)
        attrs: dict[str, Arg] = {
            "path": path,
            "type": canonical(encode_type(kind)),
            "call": call.code,
        }
        value = self._emit(OpName("leaf"), (self._arg(bound["xs"]),), FrozenMap(attrs), kind)
        return self._result(value, None, seen, None, len(self.nodes) - 1)

    def _types_of(self, args: Mapping[str, Arg]) -> dict[str, Type]:
        return {
            key: self._kind(arg) for key, arg in args.items() if any(True for _ in refs_in(arg))
        }

    def _same(
        self, made: Same, bound: Mapping[str, Value], args: Mapping[str, Arg], seen: object
    ) -> Value:
        """The value of an identity: another handle on the same storage, or a copy."""
        if made.value is None:
            return None
        for key, value in bound.items():
            if isinstance(value, Handle) and args[key] == made.value:
                storage = storage_of(seen)
                shares = not made.fresh if storage is None else value.root.owns(storage)
                return alias(value) if shares else fresh(args[key], value.type, storage)
        return made.value

    def _canonical(self, calls: tuple[Canonical, ...], seen: object) -> Arg:
        """The calls added in order; None where a type rule contradicts what was seen."""
        made: list[Arg] = []
        last = calls[-1]
        if last.item is not None and isinstance(seen, (tuple, list)):
            seen = seen[last.item]
        captured = type_of(seen, self.source.symbols)
        for call in calls:
            args = tuple(map_refs(arg, lambda ref: _local(ref, made)) for arg in call.args)
            node = Node(self._id(), call.op, args, call.attrs)
            kind = self._rule(node)
            if call is last:
                if not agree(kind, captured):
                    self._note(f"{call.op}: the catalogue gives {kind}, torch {captured}")
                    return None
                kind = captured
            made.append(self._emit(call.op, args, call.attrs, kind))
        return made[-1]

    def _withdraw(self, count: int) -> None:
        gone = {NodeRef(node.id) for node in self.nodes[count:]}
        self.known_ints = {key: ref for key, ref in self.known_ints.items() if ref not in gone}
        del self.nodes[count:]

    def _note(self, text: str) -> None:
        where = self.place.path or "(root)"
        self.notes.append(f"{where}, {self.place.source or 'no line'}: kept foreign, {text}")

    def _foreign(self, target: OpOverload, name: str, args: Mapping[str, Arg], seen: object) -> Arg:
        operands: list[Arg] = []
        attrs: dict[str, Arg] = {}
        for argument in target._schema.arguments:
            value = args[argument.name]
            if not argument.kwarg_only:
                operands.append(value)
            elif any(True for _ in refs_in(value)):
                self._stop(
                    FaultKind.UNCAPTURABLE,
                    f"{name} is given a tensor by keyword ({argument.name})",
                    keep_whole(self.place.path),
                )
            elif value is not None and argument.name not in _IGNORED_KEYWORDS:
                attrs[argument.name] = value
        kind = type_of(seen, self.source.symbols)
        attrs["type"] = canonical(encode_type(kind))
        return self._emit(OpName(name), tuple(operands), FrozenMap(attrs), kind)

    def _result(
        self, value: Arg, item: int | None, seen: object, of: Handle | None, count: int
    ) -> Value:
        kind = self._kind(value)
        nodes = tuple(self.nodes[count:])
        if item is not None and isinstance(seen, (tuple, list)):
            return Pack(value, item=(item, fresh(value, kind, storage_of(seen[item]))))
        if isinstance(seen, (tuple, list)):
            node = nodes[-1] if nodes else None
            return Pack(value, node, kind, tuple(seen), of)
        if not isinstance(seen, torch.Tensor):
            return value
        if of is None:
            return fresh(value, kind, storage_of(seen))
        view = View(nodes, of.value, of.type, kind, self.place.source)
        return viewed(of, view, value)

    def _getitem(self, node: fx.Node) -> Value:
        pack, index = self._value(node.args[0]), node.args[1]
        if not isinstance(pack, Pack) or not isinstance(index, int):
            return pack
        if pack.items is not None:
            return pack.items[index]
        if pack.item is not None:
            return pack.item[1] if pack.item[0] == index else None
        if not node.users:
            return None
        seen = pack.seen[index]
        kind = type_of(seen, self.source.symbols)
        op, attrs = OpName("getitem"), FrozenMap[Arg]({"index": index})
        container = pack.value
        if pack.of is not None and pack.node is not None:
            # the tuple may be of an older generation than its tensor
            current = read(pack.of, self._emit_written)
            if current != pack.node.args[0]:
                args = (current, *pack.node.args[1:])
                container = self._emit_written(pack.node.op, args, pack.node.attrs, pack.type)
        value = self._emit(op, (container,), attrs, kind)
        if not isinstance(seen, torch.Tensor):
            return value
        if pack.of is None or pack.node is None or not pack.of.root.owns(storage_of(seen)):
            return fresh(value, kind, storage_of(seen))
        taking = Node(NodeId("%item"), op, (NodeRef(pack.node.id),), attrs)
        offset = _offset(pack, index)
        view = View(
            (pack.node, taking), pack.node.args[0], pack.of.type, kind, self.place.source, offset
        )
        return viewed(pack.of, view, value)

    # -- writes

    def _in_place_view(
        self, node: fx.Node, name: str, bound: Mapping[str, Value], args: Mapping[str, Arg]
    ) -> Value:
        """`x.t_()`: the tensor object itself becomes a view; others on its storage stay."""
        handle = bound["self"]
        made = canonical_call(_IN_PLACE_VIEWS[name], args, self._types_of(args))
        if not isinstance(handle, Handle) or not isinstance(made, Canonical):
            return handle
        count, seen = len(self.nodes), node.meta.get("val")
        before, before_type = handle.value, handle.type
        value = self._emit(made.op, made.args, made.attrs, type_of(seen, self.source.symbols))
        nodes = tuple(self.nodes[count:])
        kind = self._kind(value)
        handle.chain += (View(nodes, before, before_type, kind, self.place.source),)
        handle.value, handle.type = value, kind
        return handle

    def _written(
        self,
        target: OpOverload,
        name: str,
        bound: Mapping[str, Value],
        args: Mapping[str, Arg],
        written: list[str],
    ) -> Value:
        handle = bound[written[0]]
        if not isinstance(handle, Handle) or len(written) > 1:
            return self._unwritable(name)
        value = self._new_value(target, name, handle, args)
        if value is None or self.fault is not None:
            return self._unwritable(name)
        if value == handle.value:
            return handle
        root = handle.root
        if root.owner is Owner.STATE:
            self._fail(state_fault(root, self.place.source, self.place.path))
            return None
        if root.owner is Owner.INPUT and root.written is None:
            self.notes.append(
                f"input {root.name} is written in place at {self.place.source or 'no line'};"
                " the graph leaves the caller's tensor alone"
            )
        where = self.place.source
        done = write(handle, value, self._emit_written, where)
        fold(done, lambda _: None, self._fail)
        return handle

    def _unwritable(self, name: str) -> Value:
        return self._stop(
            FaultKind.UNFUNCTIONAL_WRITE,
            f"{name} writes in place and has no functional form",
            "write it without the write, or " + keep_whole(self.place.path),
        )

    def _new_value(
        self, target: OpOverload, name: str, handle: Handle, args: Mapping[str, Arg]
    ) -> Arg:
        name, args = self._filled(name, args)
        made = canonical_call(name, args, self._types_of(args))
        if isinstance(made, Same):
            return made.value
        calls = (made,) if isinstance(made, Canonical) else made
        if calls is not None:
            return self._replacing(calls, handle)
        twin = _twin(target)
        if twin is None:
            return None
        order = [argument.name for argument in twin._schema.arguments]
        values = dict(zip(order, args.values(), strict=False))
        fullname = f"{twin.namespace}.{twin._opname}.{twin._overloadname or 'default'}"
        kind = handle.type
        attrs: dict[str, Arg] = {"type": canonical(encode_type(kind))}
        operands = tuple(values[a.name] for a in twin._schema.arguments if not a.kwarg_only)
        keywords = (a.name for a in twin._schema.arguments if a.kwarg_only)
        attrs |= {key: values[key] for key in keywords if values.get(key) is not None}
        return self._emit(OpName(fullname), operands, FrozenMap(attrs), kind)

    def _filled(self, name: str, args: Mapping[str, Arg]) -> tuple[str, Mapping[str, Arg]]:
        """`fill_` with a constant of no axes is `fill_` with its number."""
        value = args.get("value")
        if name != "aten.fill_.Tensor" or not isinstance(value, WeightRef):
            return name, args
        tensor = self.constants.get(value.path)
        if tensor is None or tensor.numel() != 1 or tensor.is_complex():
            return name, args
        return "aten.fill_.Scalar", {**args, "value": tensor.item()}

    def _replacing(self, calls: tuple[Canonical, ...], handle: Handle) -> Arg:
        made: list[Arg] = []
        for call in calls:
            args = tuple(map_refs(arg, lambda ref: _local(ref, made)) for arg in call.args)
            kind = self._rule(Node(NodeId("%"), call.op, args, call.attrs))
            if call is calls[-1]:
                differs = isinstance(kind, TensorType) and kind.dtype is not dtype_in(handle.type)
                kind = kind if differs else handle.type
            made.append(self._emit(call.op, args, call.attrs, kind))
        value = made[-1]
        wanted = dtype_in(handle.type)
        if dtype_in(self._kind(value)) is wanted or wanted is None:
            return value
        return self._emit(OpName("to"), (value,), FrozenMap({"dtype": wanted}), handle.type)


def _says_nothing(name: str) -> bool:
    """Whether a call only asserts something of the program."""
    return name.startswith(("aten._assert", "aten.sym_constrain_range"))


def _default(argument: torch.Argument) -> object:
    """The default a schema gives; memory formats stand there as numbers."""
    if not argument.has_default_value():
        return None
    value: object = argument.default_value
    if argument.name == "memory_format" and isinstance(value, int):
        return tuple(_MEMORY_FORMATS.values())[(0, 3, 1, 2)[value]]
    return value


def _constant_name(module: str, taken: set[str]) -> str:
    stem = f"{module}.const" if module else "const"
    found, count = stem, 0
    while found in taken:
        count += 1
        found = f"{stem}_{count}"
    return found


def _without(path: str, prefix: str) -> str:
    return "" if path == prefix else path.removeprefix(f"{prefix}.")


def _attribute(graph: fx.Graph, target: str) -> Value:
    found: object = graph.owning_module
    for part in target.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, fx.GraphModule) else None


def _local(ref: Ref, made: Sequence[Arg]) -> Arg:
    """What a reference to a call of the same translation stands for."""
    if isinstance(ref, NodeRef) and ref.id.startswith("%"):
        return made[int(ref.id[1:])]
    return ref


def _handed_on(target: OpOverload, bound: Mapping[str, Value], seen: object) -> Handle | None:
    """The operand of a dropout outside training: eager torch gives the same object back.

    The tracer sees a tensor of its own there, whose storage is noted as another name of the root's.
    """
    operand, storage = bound.get("input"), storage_of(seen)
    if "dropout" not in target._opname or not isinstance(operand, Handle) or storage is None:
        return None
    operand.root.others.add(storage)
    return operand


def _shared(bound: Mapping[str, Value], seen: object) -> Handle | None:
    """The operand whose storage the result lies in."""
    first = seen[0] if isinstance(seen, (tuple, list)) and seen else seen
    storage = storage_of(first)
    handles = (value for value in bound.values() if isinstance(value, Handle))
    return next((h for h in handles if h.root.owns(storage)), None)


def _only(node: fx.Node, item: int) -> bool:
    """Whether a program uses no other item of a call's tuple than this one."""
    return all(
        getattr(user.target, "__name__", "") == "getitem"
        and (user.args[1] == item or not user.users)
        for user in node.users
    )


def _offset(pack: Pack, index: int) -> int | None:
    """Where an item of chunk or split starts, if all before it are of static size."""
    if pack.node is None or pack.node.op not in ("chunk", "split"):
        return None
    dim = pack.node.attrs["dim"]
    if not isinstance(dim, int):
        return None
    sizes = [item.shape[dim] for item in pack.seen[:index] if isinstance(item, torch.Tensor)]
    return sum(sizes) if all(isinstance(size, int) for size in sizes) else None


def _sorted_ints(made: Canonical) -> tuple[Arg, ...]:
    """Operands of commutative int arithmetic in one order: references first."""
    if made.op not in ("int_add", "int_mul"):
        return made.args
    return tuple(sorted(made.args, key=lambda arg: (not isinstance(arg, NodeRef), str(arg))))


def _int_key(node: Node) -> str:
    return f"{node.op}{node.args}{node.attrs}"


def _twin(target: OpOverload) -> OpOverload | None:
    """The functional form of an in-place overload that the catalogue does not know."""
    fullname = f"{target.namespace}.{target._opname}.{target._overloadname or 'default'}"
    space, name, overload = functional_name(fullname).split(".")
    packet = getattr(getattr(torch.ops, space), name, None) if name != target._opname else None
    found = getattr(packet, overload, None)
    same_arity = isinstance(found, OpOverload) and len(found._schema.arguments) == len(
        target._schema.arguments
    )
    return found if same_arity and name != "polygamma" else None


def _live(nodes: Sequence[Node], outputs: tuple[Arg, ...]) -> tuple[Node, ...]:
    """Without the parts of tuples and the size arithmetic that nothing reads."""
    used = {ref for _, ref in refs_in(outputs)}
    kept: list[Node] = []
    for node in reversed(nodes):
        droppable = node.op in ("getitem", "size") or node.op.startswith("int_")
        if droppable and NodeRef(node.id) not in used:
            continue
        used.update(ref for _, ref in node.refs())
        kept.append(node)
    return tuple(reversed(kept))


def _laid_out(node: fx.Node, copy: Same) -> Same | Canonical:
    """A copy that lies in memory as its source did is the source; one that does not is a layout op.

    Kernels round differently on other strides, so dropping such a copy would change bits.
    """
    source = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    seen = node.meta.get("val")
    if not isinstance(source, torch.Tensor) or not isinstance(seen, torch.Tensor):
        return copy
    if str(source.stride()) == str(seen.stride()):
        return copy
    layouts = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
    fitting = (f for f in layouts if _lies(seen, f))
    layout = _MEMORY_FORMATS[next(fitting, torch.preserve_format)]
    return Canonical(OpName("contiguous"), (copy.value,), FrozenMap({"memory_format": layout}))


def _lies(tensor: torch.Tensor, layout: torch.memory_format) -> bool:
    rank = {torch.channels_last: 4, torch.channels_last_3d: 5}.get(layout, tensor.dim())
    return tensor.dim() == rank and tensor.is_contiguous(memory_format=layout)
