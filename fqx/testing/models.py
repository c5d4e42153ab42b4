"""Hypothesis strategies that draw models: what capture has to understand.

A drawn model is a list of instructions over a pool of images of one shape. Its forward carries
them out in ordinary Python, so it holds what real forwards hold: modules called twice, values with
many users, residual adds in every spelling, writes in place through views, cats, scalars. Only
values of the model's own making are written, never an input.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

CHANNELS, SIDE = 4, 6
"""Every value of the pool is (batch, CHANNELS, SIDE, SIDE)."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """Apply `what` (a module's name or an operation), spelled `spelling`, to values of the pool."""

    what: str
    spelling: int
    operands: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.what}/{self.spelling}{self.operands}"


Unary: TypeAlias = Callable[[Tensor], Tensor]
Binary: TypeAlias = Callable[[Tensor, Tensor], Tensor]

UNARY: Mapping[str, tuple[Unary, ...]] = MappingProxyType(
    {
        "relu": (torch.relu, functional.relu, lambda x: x.relu(), lambda x: torch.clamp(x, min=0)),
        "relu6": (
            functional.relu6,
            lambda x: x.clamp(0, 6),
            lambda x: functional.hardtanh(x, 0.0, 6.0),
        ),
        "sigmoid": (torch.sigmoid, functional.sigmoid, lambda x: x.sigmoid()),
        "hardswish": (functional.hardswish,),
        "silu": (functional.silu,),
        "gelu": (functional.gelu, lambda x: functional.gelu(x, approximate="none")),
        "double": (lambda x: x * 2, lambda x: 2 * x, lambda x: torch.mul(x, 2), lambda x: x.mul(2)),
        "one_minus": (lambda x: 1 - x, lambda x: torch.rsub(x, 1)),
        "third": (lambda x: x / 3, lambda x: torch.div(x, 3), lambda x: x.div(3)),
        "neg": (operator.neg, torch.neg, lambda x: -x),
    }
)
"""Operations of one value; all spellings of a row mean the same."""


def _doubled(x: Tensor) -> Tensor:
    x *= 2
    return x


UNARY_IN_PLACE: Mapping[str, tuple[Unary, ...]] = MappingProxyType(
    {
        "relu": (torch.relu_, lambda x: functional.relu(x, inplace=True), lambda x: x.relu_()),
        "double": (lambda x: x.mul_(2), _doubled),
        "third": (lambda x: x.div_(3),),
    }
)

BINARY: Mapping[str, tuple[Binary, ...]] = MappingProxyType(
    {
        "add": (operator.add, torch.add, lambda x, y: x.add(y), lambda x, y: x + y),
        "sub": (operator.sub, torch.sub, lambda x, y: x.sub(y)),
        "mul": (operator.mul, torch.mul, torch.multiply, lambda x, y: x.mul(y)),
        "join": (
            lambda x, y: torch.cat((x, y), 1)[:, 1 : CHANNELS + 1],
            lambda x, y: torch.concat([x, y], dim=1)[:, 1 : CHANNELS + 1],
            lambda x, y: torch.cat((x, y), dim=-3).narrow(1, 1, CHANNELS),
        ),
    }
)

BINARY_IN_PLACE: Mapping[str, tuple[Binary, ...]] = MappingProxyType(
    {
        "add": (operator.iadd, lambda x, y: x.add_(y)),
        "mul": (operator.imul, lambda x, y: x.mul_(y)),
    }
)


def _halves(x: Tensor) -> Tensor:
    one, two = x.chunk(2, 1)
    return torch.cat((two, one), 1)


def _shuffled(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


def _squeezed(x: Tensor) -> Tensor:
    return x * x.mean((2, 3), keepdim=True).sigmoid()


MOVES: Mapping[str, tuple[Unary, ...]] = MappingProxyType(
    {
        "halves": (_halves,),
        "shuffled": (lambda x: _shuffled(x.contiguous()),),
        "squeezed": (_squeezed,),
        "turned": (lambda x: x.transpose(2, 3), lambda x: x.permute(0, 1, 3, 2), lambda x: x.mT),
        "pooled": (
            lambda x: functional.interpolate(functional.max_pool2d(x, 2), scale_factor=2.0),
        ),
        "flat": (lambda x: x.flatten(1).view(-1, CHANNELS, SIDE, SIDE).clone(),),
    }
)


def _first_channel(x: Tensor) -> Tensor:
    x[:, 0] = 1.0
    return x


def _slice(x: Tensor) -> Tensor:
    x[:, 1:3].mul_(0.5)
    return x


def _flat_view(x: Tensor) -> Tensor:
    x.view(x.shape[0], -1).add_(1.0)
    return x


def _turned_view(x: Tensor) -> Tensor:
    x.transpose(2, 3)[:, :, 0].relu_()
    return x


def _late_alias(x: Tensor) -> Tensor:
    alias = x[:, :2]
    x.mul_(3.0)
    return torch.cat((alias, x[:, 2:]), 1)


WRITES: Mapping[str, tuple[Unary, ...]] = MappingProxyType(
    {
        "first_channel": (_first_channel,),
        "slice": (_slice,),
        "flat_view": (_flat_view,),
        "turned_view": (_turned_view,),
        "late_alias": (_late_alias,),
    }
)
"""Writes through views; each changes the value it is given, which stays in the pool."""


class _Block(nn.Module):
    """Two convolutions and a residual add, a module with children."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(CHANNELS)
        self.two = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.one(x)))
        y = self.two(y)
        y += x
        return self.act(y)  # type: ignore[no-any-return]  # modules are untyped callables


MODULES: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        "depthwise": lambda: nn.Conv2d(
            CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False
        ),
        "reflect": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, padding_mode="reflect"),
        "linear": lambda: nn.Linear(SIDE, SIDE),
        "bn": lambda: nn.BatchNorm2d(CHANNELS),
        "norm": lambda: nn.LayerNorm(SIDE),
        "group": lambda: nn.GroupNorm(2, CHANNELS),
        "prelu": lambda: nn.PReLU(CHANNELS),
        "relu": lambda: nn.ReLU(inplace=True),
        "relu6": lambda: nn.ReLU6(),
        "dropout": lambda: nn.Dropout(0.3),
        "block": _Block,
        "nested": lambda: nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU(), _Block()),
    }
)


class Drawn(nn.Module):
    """Carries out its instructions on a pool that starts with the inputs."""

    def __init__(self, instructions: Sequence[Instruction], how_out: str, seed: int) -> None:
        super().__init__()
        self.instructions = tuple(instructions)
        self.how_out = how_out
        names = {item.what for item in instructions if item.what.startswith("module:")}
        for name in sorted(names):
            setattr(self, _attribute(name), MODULES[name.split(":")[1]]())
        self._settle(torch.Generator().manual_seed(seed))
        self.eval()

    def _settle(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                    module.running_var.abs_().add_(0.5)

    def forward(self, x: Tensor, y: Tensor) -> object:
        """(batch, CHANNELS, SIDE, SIDE) twice to a tensor, tuple or dict of the same."""
        pool = [x, y]
        for item in self.instructions:
            pool.append(self._carry_out(item, [pool[index] for index in item.operands]))
        match self.how_out:
            case "tuple":
                return pool[-1], pool[-2]
            case "dict":
                return {"last": pool[-1], "before": [pool[-2], 3]}
            case _:
                return pool[-1]

    def _carry_out(self, item: Instruction, values: list[Tensor]) -> Tensor:
        if item.what.startswith("module:"):
            made: Tensor = getattr(self, _attribute(item.what))(values[0])
            return made
        kind, name = item.what.split(":")
        table = {"unary": UNARY, "unary_": UNARY_IN_PLACE, "move": MOVES, "write": WRITES}
        if kind in table:
            return table[kind][name][item.spelling](values[0])
        pairs = BINARY if kind == "binary" else BINARY_IN_PLACE
        return pairs[name][item.spelling](values[0], values[1])


def _attribute(name: str) -> str:
    return name.removeprefix("module:").replace(":", "_")


@dataclass(frozen=True, slots=True)
class ModelSample:
    """A drawn model: its instructions (what failures print), and inputs for it."""

    instructions: tuple[Instruction, ...]
    how_out: str
    seed: int

    def model(self) -> Drawn:
        """A new instance; equal samples give equal parameters."""
        return Drawn(self.instructions, self.how_out, self.seed)

    def inputs(self, batch: int = 2) -> tuple[Tensor, Tensor]:
        """Inputs of any batch size."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (batch, CHANNELS, SIDE, SIDE)
        return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

    def __str__(self) -> str:
        return f"{'; '.join(map(str, self.instructions))} -> {self.how_out}, seed {self.seed}"


@st.composite
def model_samples(draw: st.DrawFn, most: int = 8, writes: bool = True) -> ModelSample:
    """Models of at most `most` instructions; `writes=False` leaves out in-place spellings."""
    made: list[Instruction] = []
    own: list[int] = []
    for step in range(draw(st.integers(1, most))):
        made.append(draw(_instructions(2 + step, tuple(own), writes)))
        if _is_own(made[-1], own):
            own.append(2 + step)
    how_out = draw(st.sampled_from(["tensor", "tensor", "tuple", "dict"]))
    return ModelSample(tuple(made), how_out, draw(st.integers(0, 999)))


def _is_own(item: Instruction, own: list[int]) -> bool:
    """Whether the value lies in storage the model made, so that it may be written."""
    kind = item.what.split(":")[0]
    if item.what in ("module:relu", "module:dropout") or kind == "move":
        # These may hand their operand on, or a view of it.
        return item.operands[0] in own
    return True


@st.composite
def _instructions(draw: st.DrawFn, pool: int, own: tuple[int, ...], writes: bool) -> Instruction:
    newest_first = list(range(pool))[::-1]
    value = st.sampled_from(newest_first)
    kinds = ["module", "module", "unary", "binary", "binary", "move"]
    if writes and own:
        kinds += ["unary_", "binary_", "write"]
    match draw(st.sampled_from(kinds)):
        case "module":
            name = draw(st.sampled_from(sorted(MODULES)))
            which = draw(st.integers(0, 1))
            may_write = name == "relu"
            source = draw(st.sampled_from(own[::-1]) if may_write and own else value)
            if may_write and (not own or not writes):
                return Instruction("unary:relu", 0, (draw(value),))
            return Instruction(f"module:{name}:{which}", 0, (source,))
        case "unary":
            return draw(_spelled("unary", UNARY, (draw(value),)))
        case "binary":
            return draw(_spelled("binary", BINARY, (draw(value), draw(value))))
        case "move":
            return draw(_spelled("move", MOVES, (draw(value),)))
        case "unary_":
            return draw(_spelled("unary_", UNARY_IN_PLACE, (draw(st.sampled_from(own[::-1])),)))
        case "binary_":
            target = draw(st.sampled_from(own[::-1]))
            return draw(_spelled("binary_", BINARY_IN_PLACE, (target, draw(value))))
        case _:
            return draw(_spelled("write", WRITES, (draw(st.sampled_from(own[::-1])),)))


@st.composite
def _spelled(
    draw: st.DrawFn,
    kind: str,
    table: Mapping[str, tuple[Unary, ...]] | Mapping[str, tuple[Binary, ...]],
    operands: tuple[int, ...],
) -> Instruction:
    name = draw(st.sampled_from(sorted(table)))
    return Instruction(f"{kind}:{name}", draw(st.integers(0, len(table[name]) - 1)), operands)


@st.composite
def respelled(draw: st.DrawFn, sample: ModelSample) -> ModelSample:
    """The same model with other spellings of the same operations."""
    made = [
        replace(item, spelling=draw(st.integers(0, _spellings(item) - 1)))
        for item in sample.instructions
    ]
    return replace(sample, instructions=tuple(made))


def _spellings(item: Instruction) -> int:
    kind, _, name = item.what.partition(":")
    tables: dict[str, Mapping[str, tuple[Unary, ...]] | Mapping[str, tuple[Binary, ...]]] = {
        "unary": UNARY,
        "unary_": UNARY_IN_PLACE,
        "binary": BINARY,
        "binary_": BINARY_IN_PLACE,
    }
    return len(tables[kind][name]) if kind in tables else 1
