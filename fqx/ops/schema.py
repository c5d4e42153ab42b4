"""What a row of the catalogue is made of, and the one-line notation it is written in.

    conv2d(x, weight, bias?; stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)

Before the semicolon stand the operands, which may hold references: `bias?` may be None, `xs*` is a
tuple of operands in one position, `*states` takes all remaining positions. Behind it stand the
attributes, literals only; one without a default must be given.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from fqx.ir.arg import Arg, NodeRef, WeightRef
from fqx.ir.names import OpName
from fqx.ir.node import Node
from fqx.ir.signature import Dim, IntType, TensorType, Type


class Trait(Enum):
    """What passes may know of an op without knowing its name."""

    WEIGHTED = "multiplies by its `weight` operand over a contraction"
    CONTRACTION = "multiplies values by values over a contraction"
    LOOKUP = "picks rows of its `weight` operand"
    ACTIVATION = "an elementwise nonlinearity of one value"
    ELEMENTWISE = "each result element depends on one element of each (broadcast) operand"
    NORM = "normalizes by statistics"
    POOL = "pools windows"
    REDUCTION = "reduces axes"
    SHAPE_ONLY = "moves or renames elements and computes nothing"
    SAME_QPARAMS = "works on the integers: result and float operands share their qparams"
    FIXED_QPARAMS = "the range of the result is known beforehand"
    CONVEX = "every result element lies within the range of the operand"
    COMPARISON = "the result is boolean"
    CONTAINER = "the value is a tuple that only getitem takes apart"
    PURE_INT = "the value is a Python int"
    FACTORY = "reads no tensor's elements"
    VIEW = "in torch the result always shares the first operand's storage"
    MAYBE_VIEW = "in torch the result may share the first operand's storage"
    RANDOM_IN_TRAINING = "draws random numbers in training mode"
    BOUNDARY = "not a torch op: input, leaf, observer, quantizer"


@dataclass(frozen=True, slots=True)
class Operand:
    """One position of `Node.args`.

    `variadic`: the position holds a tuple of operands. `rest`: all remaining positions.
    """

    name: str
    optional: bool = False
    variadic: bool = False
    rest: bool = False


class Required(Enum):
    """The default of an attribute that has none."""

    REQUIRED = "must be given"


@dataclass(frozen=True, slots=True)
class Attr:
    """One literal parameter."""

    name: str
    default: Arg | Required = Required.REQUIRED


Rule: TypeAlias = Callable[["Call"], Type]
"""A type rule: the type of a call's value from the types of its operands."""


@dataclass(frozen=True, slots=True)
class Op:
    """One canonical operator.

    `fixed` is the half-open real range of a FIXED_QPARAMS op, see `fixed_qparams`.
    """

    name: OpName
    operands: tuple[Operand, ...]
    attrs: tuple[Attr, ...]
    traits: frozenset[Trait]
    infer: Rule
    fixed: tuple[float, float] | None = None

    def position(self, operand: str) -> int | None:
        """Index of an operand in `Node.args`."""
        for index, item in enumerate(self.operands):
            if item.name == operand:
                return index
        return None

    def default(self, attr: str) -> Arg | Required:
        """Default of an attribute."""
        return next((a.default for a in self.attrs if a.name == attr), Required.REQUIRED)

    @property
    def text(self) -> str:
        """The signature in the notation of this module."""
        return f"{self.name}({', '.join(map(_show_operand, self.operands))}" + (
            f"; {', '.join(map(_show_attr, self.attrs))})" if self.attrs else ")"
        )


@dataclass(frozen=True, slots=True)
class Call:
    """A node together with a lookup of its operands' types: what a type rule reads."""

    node: Node
    op: Op
    lookup: Callable[[NodeRef | WeightRef], Type]

    def arg(self, name: str) -> Arg:
        """An operand; None where it is absent."""
        at = self.op.position(name)
        return None if at is None else self.node.args[at]

    def attr(self, name: str) -> Arg:
        """An attribute; None where the op has none of that name."""
        return self.node.attrs.get(name)

    def type_of(self, arg: Arg) -> Type | None:
        """The type of a reference; None for a literal."""
        return self.lookup(arg) if isinstance(arg, NodeRef | WeightRef) else None

    def tensor(self, name: str) -> TensorType | None:
        """The type of an operand, if it is known to be a tensor."""
        found = self.type_of(self.arg(name))
        return found if isinstance(found, TensorType) else None

    def tensors(self, name: str) -> tuple[TensorType, ...] | None:
        """The types of a `xs*` operand, if all are known to be tensors."""
        arg = self.arg(name)
        found = tuple(self.type_of(item) for item in (arg if isinstance(arg, tuple) else ()))
        kept = tuple(item for item in found if isinstance(item, TensorType))
        return kept if kept and len(kept) == len(found) else None

    def dim(self, arg: Arg) -> Dim:
        """An int or a reference to one as a dimension; None where it is unknown."""
        if isinstance(arg, int):
            return arg
        found = self.type_of(arg)
        return found.value if isinstance(found, IntType) else None

    def shape(self, name: str) -> tuple[Dim, ...] | None:
        """A `shape` operand as dimensions."""
        arg = self.arg(name)
        return tuple(self.dim(item) for item in arg) if isinstance(arg, tuple) else None


def read_op(
    signature: str, infer: Rule, traits: frozenset[Trait], fixed: tuple[float, float] | None
) -> Op:
    """The row written as `signature`; a SyntaxError or ValueError if it is not in the notation."""
    name, _, inner = signature.partition("(")
    operands, _, attrs = inner.removesuffix(")").partition(";")
    listed = tuple(_read_operand(part.strip()) for part in operands.split(",") if part.strip())
    return Op(OpName(name), listed, _read_attrs(attrs), traits, infer, fixed)


def _read_operand(text: str) -> Operand:
    if text.startswith("*"):
        return Operand(text[1:], optional=True, variadic=True, rest=True)
    return Operand(text.rstrip("?*"), optional="?" in text, variadic=text.endswith("*"))


def _read_attrs(text: str) -> tuple[Attr, ...]:
    call = ast.parse(f"f({text})", mode="eval").body
    if not isinstance(call, ast.Call):
        raise ValueError(f"not a list of attributes: {text!r}")
    given = tuple(Attr(ast.unparse(name)) for name in call.args)
    filled = tuple(Attr(str(k.arg), ast.literal_eval(k.value)) for k in call.keywords)
    return given + filled


def _show_operand(operand: Operand) -> str:
    if operand.rest:
        return f"*{operand.name}"
    return operand.name + ("*" if operand.variadic else "?" if operand.optional else "")


def _show_attr(attr: Attr) -> str:
    return attr.name if isinstance(attr.default, Required) else f"{attr.name}={attr.default!r}"
