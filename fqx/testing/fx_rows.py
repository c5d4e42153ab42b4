"""A small model for each row of torch.ao's FX flow: each operator of its patterns, each spelling.

Sizes are tiny; an operator stands alone where torch.ao quantizes it so, else behind a layer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind: TypeAlias = Literal["static", "dynamic", "weight only", "float16"]
"""What a row is quantized to."""

Data: TypeAlias = Callable[[int], tuple[Tensor, ...]]
"""Inputs of a model, by a seed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One pattern in one spelling. `engines`: its kernels differ from engine to engine."""

    name: str
    make: Callable[[], nn.Module]
    data: Data
    kinds: tuple[Kind, ...] = ("static",)
    engines: bool = False

    def model(self, seed: int = 0) -> nn.Module:
        """A model whose weights and statistics are drawn by the seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return _settled(self.make().eval())


class One(nn.Module):
    """A function of its parts and one input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """The function."""
        return self.function(self, x)


class Two(nn.Module):
    """A function of its parts and two inputs."""

    def __init__(
        self, function: Callable[[Any, Tensor, Tensor], Tensor], **parts: nn.Module
    ) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The function."""
        return self.function(self, x, y)


def _settled(model: nn.Module) -> nn.Module:
    """Norms with statistics, weights and biases of their own."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    return model


def _tensors(*shapes: tuple[int, ...]) -> Data:
    def data(seed: int) -> tuple[Tensor, ...]:
        drawn = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(shape, generator=drawn) for shape in shapes)

    return data


def _indices(seed: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 12, (4, 3), generator=torch.Generator().manual_seed(seed)),)


FLAT, SEQUENCE, IMAGE = _tensors((4, 8)), _tensors((4, 3, 8)), _tensors((4, 4, 7, 7))
LINE, VOLUME = _tensors((4, 4, 9)), _tensors((2, 4, 5, 5, 5))
PAIR = _tensors((4, 4, 6, 6), (4, 4, 6, 6))
GATED = _tensors((4, 4, 6, 6), (4, 4, 1, 1))
SPACES = MappingProxyType({1: LINE, 2: IMAGE, 3: VOLUME})

LAYERS: tuple[Kind, ...] = ("static", "dynamic", "float16")
BOTH: tuple[Kind, ...] = ("static", "dynamic")


def _line() -> nn.Module:
    return nn.Linear(8, 8)


def _chain(*parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(part() for part in parts))


def _one(
    function: Callable[[Any, Tensor], Tensor], **parts: Callable[[], nn.Module]
) -> Callable[[], nn.Module]:
    return lambda: One(function, **{name: part() for name, part in parts.items()})


def _two(
    function: Callable[[Any, Tensor, Tensor], Tensor], **parts: Callable[[], nn.Module]
) -> Callable[[], nn.Module]:
    return lambda: Two(function, **{name: part() for name, part in parts.items()})


def _convolutions(dims: int) -> Iterator[Row]:
    layer, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
    back, x = getattr(nn, f"ConvTranspose{dims}d"), SPACES[dims]
    call, call_back = getattr(F, f"conv{dims}d"), getattr(F, f"conv_transpose{dims}d")
    ones, zeros = (1,) * dims, (0,) * dims
    name = f"Conv{dims}d"

    def conv() -> nn.Module:
        made: nn.Module = layer(4, 6, 3)
        return made

    def transposed() -> nn.Module:
        made: nn.Module = back(4, 4, 3)
        return made

    def folded() -> nn.Module:
        made: nn.Module = norm(6)
        return made

    def strided() -> nn.Module:
        made: nn.Module = layer(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)
        return made

    def full(m: Any, x: Tensor) -> Tensor:
        made: Tensor = call(x, m.c.weight, m.c.bias, ones, zeros, ones, 1)
        return made

    def full_back(m: Any, x: Tensor) -> Tensor:
        made: Tensor = call_back(x, m.c.weight, m.c.bias, ones, zeros, zeros, 1, ones)
        return made

    yield Row(name, _chain(conv), x, BOTH, engines=True)
    yield Row(f"{name} strided and grouped", _chain(strided), x, engines=True)
    yield Row(f"{name} + ReLU", _chain(conv, nn.ReLU), x, engines=True)
    yield Row(f"{name} + F.relu", _one(lambda m, x: F.relu(m.c(x)), c=conv), x)
    yield Row(f"{name} + torch.relu", _one(lambda m, x: torch.relu(m.c(x)), c=conv), x)
    yield Row(f"{name} + .relu()", _one(lambda m, x: m.c(x).relu(), c=conv), x)
    yield Row(f"{name} + BatchNorm", _chain(conv, folded), x, LAYERS)
    yield Row(f"{name} + BatchNorm + ReLU", _chain(conv, folded, nn.ReLU), x)
    yield Row(
        f"{name} + BatchNorm + F.relu",
        _one(lambda m, x: F.relu(m.n(m.c(x))), c=conv, n=folded),
        x,
    )
    function = f"F.conv{dims}d"
    short = _one(lambda m, x: call(x, m.c.weight, m.c.bias), c=conv)
    yield Row(f"{function}, defaults", short, x, BOTH)
    yield Row(function, _one(full, c=conv), x, BOTH, engines=True)
    yield Row(f"{function} + F.relu", _one(lambda m, x: F.relu(full(m, x)), c=conv), x)
    yield Row(f"{function} + ReLU", _one(lambda m, x: m.r(full(m, x)), c=conv, r=nn.ReLU), x)
    yield Row(f"ConvTranspose{dims}d", _chain(transposed), x, engines=True)
    yield Row(
        f"ConvTranspose{dims}d of other channels",
        _chain(lambda: back(4, 6, 3)),
        x,
        engines=True,
    )
    yield Row(f"ConvTranspose{dims}d + BatchNorm", _chain(transposed, lambda: norm(4)), x)
    yield Row(f"F.conv_transpose{dims}d", _one(full_back, c=transposed), x)


def _linears() -> Iterator[Row]:
    def bare(m: Any, x: Tensor) -> Tensor:
        return F.linear(x, m.l.weight, m.l.bias)

    yield Row("Linear", _chain(_line), FLAT, LAYERS, engines=True)
    yield Row("Linear of sequences", _chain(_line), SEQUENCE, LAYERS)
    yield Row("Linear without bias", _chain(lambda: nn.Linear(8, 6, bias=False)), FLAT, LAYERS)
    yield Row("Linear + ReLU", _chain(_line, nn.ReLU), FLAT, LAYERS, engines=True)
    yield Row("Linear + F.relu", _one(lambda m, x: F.relu(m.l(x)), l=_line), FLAT, LAYERS)
    yield Row("Linear + torch.relu", _one(lambda m, x: torch.relu(m.l(x)), l=_line), FLAT, LAYERS)
    yield Row("F.linear", _one(bare, l=_line), FLAT, LAYERS, engines=True)
    yield Row("F.linear + F.relu", _one(lambda m, x: F.relu(bare(m, x)), l=_line), FLAT, LAYERS)
    act = _one(lambda m, x: m.r(bare(m, x)), l=_line, r=nn.ReLU)
    yield Row("F.linear + ReLU", act, FLAT, LAYERS)
    named = _one(lambda m, x: F.linear(x, weight=m.l.weight, bias=m.l.bias), l=_line)
    yield Row("F.linear by keywords", named, FLAT, LAYERS)
    yield Row("Linear + BatchNorm1d", _chain(_line, lambda: nn.BatchNorm1d(8)), FLAT, LAYERS)
    yield Row("Linear + LeakyReLU", _chain(_line, lambda: nn.LeakyReLU(0.1)), FLAT, BOTH)
    yield Row("Linear + ReLU + Linear", _chain(_line, nn.ReLU, _line), FLAT, LAYERS, engines=True)
    yield Row("Linear called twice", _one(lambda m, x: m.l(m.l(x)), l=_line), FLAT)


def _pairs(name: str, op: Any, call: Any) -> Iterator[Row]:
    def number(m: Any, x: Tensor) -> Tensor:
        made: Tensor = op(x, m.number)
        return made

    def numbered(function: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            made = One(function)
            # of the size of the values, so that its rounding shows, and drawn as a weight is
            made.number = 0.5 + float(torch.rand(()))  # type: ignore[assignment]
            return made

        return make

    yield Row(f"x {name} y", _two(lambda _, x, y: op(x, y)), PAIR, engines=True)
    yield Row(f"torch.{call.__name__}", _two(lambda _, x, y: call(x, y)), PAIR)
    yield Row(f"x {name} y + ReLU", _two(lambda m, x, y: m.r(op(x, y)), r=nn.ReLU), PAIR)
    yield Row(f"x {name} y + F.relu", _two(lambda _, x, y: F.relu(op(x, y))), PAIR)
    yield Row(f"x {name} y + torch.relu", _two(lambda _, x, y: torch.relu(op(x, y))), PAIR)
    yield Row(f"x {name} y of other shape", _two(lambda _, x, y: op(x, y)), GATED, engines=True)
    yield Row(f"x {name} number", numbered(number), IMAGE, engines=True)
    yield Row(f"number {name} x", numbered(lambda m, x: op(m.number, x)), IMAGE)
    yield Row(f"x {name} number + F.relu", numbered(lambda m, x: F.relu(number(m, x))), IMAGE)


def _binaries() -> Iterator[Row]:
    def point() -> nn.Module:
        return nn.Conv2d(4, 4, 1)

    yield from _pairs("+", operator.add, torch.add)
    yield from _pairs("*", operator.mul, torch.mul)
    yield Row("x * negative number", _one(lambda _, x: x * -2), IMAGE)

    def into(m: Any, x: Tensor, y: Tensor) -> Tensor:
        made: Tensor = m.c(x)
        made += y
        return made

    yield Row("x += y", _two(into, c=point), PAIR)
    yield Row("torch.add with alpha", _two(lambda _, x, y: torch.add(x, y, alpha=2)), PAIR)
    yield Row("Conv2d + Conv2d", _one(lambda m, x: m.a(x) + m.b(x), a=point, b=point), IMAGE)
    rest = _one(lambda m, x: m.r(x + m.a(x)), a=point, r=nn.ReLU)
    yield Row("residual + ReLU", rest, IMAGE)
    yield Row("torch.matmul", _two(lambda _, x, y: torch.matmul(x, y)), PAIR)
    yield Row("x @ y", _two(lambda _, x, y: x @ y), PAIR)
    yield Row("torch.bmm", _two(lambda _, x, y: torch.bmm(x, y)), _tensors((4, 5, 5), (4, 5, 5)))
    yield Row("torch.cat", _two(lambda _, x, y: torch.cat([x, y], 1)), PAIR)
    yield Row("torch.stack", _two(lambda _, x, y: torch.stack([x, y], 1)), PAIR)
    held = {"l": _line}
    yield Row("x + parameter", _one(lambda m, x: x + m.l.bias, **held), FLAT)
    kept = _one(lambda m, x: m.b(torch.cat([m.a(x), m.l.weight])), a=_line, b=_line, **held)
    yield Row("torch.cat of a parameter", kept, FLAT)
    yield Row("x - y", _two(lambda _, x, y: x - y), PAIR)


def _activations() -> Iterator[Row]:
    for module, function in (
        (nn.ELU, F.elu),
        (nn.LeakyReLU, F.leaky_relu),
        (nn.Hardswish, F.hardswish),
        (nn.ReLU, F.relu),
        (nn.ReLU6, F.relu6),
        (nn.Hardtanh, F.hardtanh),
    ):
        yield Row(module.__name__, _chain(module), IMAGE)
        call: Any = function
        yield Row(f"F.{call.__name__}", _one(lambda _, x, call=call: call(x)), IMAGE)  # type: ignore[misc]
    yield Row("PReLU", _chain(nn.PReLU), IMAGE)
    yield Row("PReLU of channels", _chain(lambda: nn.PReLU(4)), IMAGE)
    yield Row("Dropout", _chain(nn.Dropout), IMAGE)
    yield Row("F.dropout", _one(lambda m, x: F.dropout(x, training=m.training)), IMAGE)
    yield Row("Identity", _chain(nn.Identity), IMAGE)
    yield Row("torch.relu", _one(lambda _, x: torch.relu(x)), IMAGE)
    yield Row("torch.clamp", _one(lambda _, x: torch.clamp(x, -0.5, 0.7)), IMAGE)
    for name, method in (
        (".relu()", lambda x: x.relu()),
        (".relu_()", lambda x: x.relu_()),
        (".clamp()", lambda x: x.clamp(-0.5, 0.7)),
    ):
        act = _one(lambda m, x, method=method: method(m.b(x)), b=_line)  # type: ignore[misc]
        yield Row(f"Linear, {name}", act, FLAT)
    yield from _known_ranges()


def _known_ranges() -> Iterator[Row]:
    for module in (nn.Hardsigmoid, nn.Sigmoid, nn.Tanh):
        name = module.__name__
        yield Row(f"Linear, {name}", _chain(_line, module), FLAT, engines=True)
        yield Row(f"{name} of an input", _chain(module), FLAT)
        yield Row(f"Linear, {name}, Linear", _chain(_line, module, _line), FLAT)
    calls: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        ("F.hardsigmoid", lambda x: F.hardsigmoid(x)),
        ("F.sigmoid", lambda x: F.sigmoid(x)),
        ("F.tanh", lambda x: F.tanh(x)),
        ("torch.sigmoid", lambda x: torch.sigmoid(x)),
        ("torch.tanh", lambda x: torch.tanh(x)),
        (".sigmoid()", lambda x: x.sigmoid()),
        (".tanh()", lambda x: x.tanh()),
        (".sigmoid_()", lambda x: x.sigmoid_()),
        (".tanh_()", lambda x: x.tanh_()),
        ("F.softmax", lambda x: F.softmax(x, -1)),
    )
    for name, call in calls:
        yield Row(f"Linear, {name}", _one(lambda m, x, call=call: call(m.b(x)), b=_line), FLAT)  # type: ignore[misc]
    yield Row("Linear, Softmax", _chain(_line, lambda: nn.Softmax(-1)), FLAT)
    yield Row("Linear, SiLU, Linear", _chain(_line, nn.SiLU, _line), FLAT)
    yield Row("Linear, GELU, Linear", _chain(_line, nn.GELU, _line), FLAT)


def _norms() -> Iterator[Row]:
    for dims in (1, 2, 3):
        norm = getattr(nn, f"InstanceNorm{dims}d")
        made = _chain(lambda norm=norm: norm(4, affine=True))  # type: ignore[misc]
        yield Row(norm.__name__, made, SPACES[dims])
    for dims in (2, 3):
        norm = getattr(nn, f"BatchNorm{dims}d")
        alone: Callable[[], nn.Module] = lambda norm=norm: norm(4)  # type: ignore[misc]  # noqa: E731
        yield Row(norm.__name__, _chain(alone), SPACES[dims])
        yield Row(f"{norm.__name__} + ReLU", _chain(alone, nn.ReLU), SPACES[dims])
        act = _one(lambda m, x: F.relu(m.n(x)), n=alone)
        yield Row(f"{norm.__name__} + F.relu", act, SPACES[dims])
    yield Row("BatchNorm1d", _chain(lambda: nn.BatchNorm1d(4)), LINE)
    held = {"n": lambda: nn.GroupNorm(2, 4)}
    grouped = _one(lambda m, x: F.group_norm(x, 2, m.n.weight, m.n.bias), **held)
    yield Row("F.group_norm", grouped, IMAGE)
    yield Row("GroupNorm", _chain(held["n"]), IMAGE)
    single = _one(lambda m, x: F.instance_norm(x, weight=m.n.weight, bias=m.n.bias), **held)
    yield Row("F.instance_norm", single, IMAGE)
    yield Row("LayerNorm", _chain(lambda: nn.LayerNorm(8)), SEQUENCE)
    layer = _one(
        lambda m, x: F.layer_norm(x, (8,), m.n.weight, m.n.bias), n=lambda: nn.LayerNorm(8)
    )
    yield Row("F.layer_norm", layer, SEQUENCE)


def _pools() -> Iterator[Row]:
    for dims, x in SPACES.items():
        for kind in ("MaxPool", "AvgPool", "AdaptiveAvgPool"):
            pool = getattr(nn, f"{kind}{dims}d")
            yield Row(f"{kind}{dims}d", _chain(lambda pool=pool: pool(2)), x)  # type: ignore[misc]
        for kind in ("max_pool", "avg_pool", "adaptive_avg_pool"):
            call = getattr(F, f"{kind}{dims}d")
            yield Row(f"F.{kind}{dims}d", _one(lambda _, x, call=call: call(x, 2)), x)  # type: ignore[misc]
    yield Row("MaxPool2d padded", _chain(lambda: nn.MaxPool2d(3, 2, 1)), IMAGE)
    yield Row("AvgPool2d padded", _chain(lambda: nn.AvgPool2d(3, 2, 1)), IMAGE)
    yield Row("torch.mean", _one(lambda _, x: torch.mean(x, [2, 3])), IMAGE)
    yield Row(".mean()", _one(lambda _, x: x.mean((2, 3), keepdim=True)), IMAGE)
    for mode in ("nearest", "bilinear"):
        sized = _one(lambda _, x, mode=mode: F.interpolate(x, scale_factor=2, mode=mode))  # type: ignore[misc]
        yield Row(f"F.interpolate {mode}", sized, IMAGE)


def _moves() -> Iterator[Row]:
    functions: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        ("F.pixel_shuffle", lambda x: F.pixel_shuffle(x, 2)),
        ("torch.flatten", lambda x: torch.flatten(x, 1)),
        ("torch.narrow", lambda x: torch.narrow(x, 1, 0, 2)),
        ("torch.repeat_interleave", lambda x: torch.repeat_interleave(x, 2, 1)),
        ("torch.transpose", lambda x: torch.transpose(x, 1, 2)),
        ("torch.unsqueeze", lambda x: torch.unsqueeze(x, 1)),
        ("x // number", lambda x: x // 2),
    )
    methods: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        ("contiguous", lambda x: x.contiguous()),
        ("detach", lambda x: x.detach()),
        ("permute", lambda x: x.permute(0, 2, 3, 1)),
        ("repeat", lambda x: x.repeat(1, 2, 1, 1)),
        ("repeat_interleave", lambda x: x.repeat_interleave(2, 1)),
        ("reshape", lambda x: x.reshape(x.shape[0], -1)),
        ("transpose", lambda x: x.transpose(1, 2)),
        ("unsqueeze", lambda x: x.unsqueeze(1)),
        ("squeeze", lambda x: x.squeeze(-1)),
        ("view", lambda x: x.view(x.size(0), -1)),
        ("flatten", lambda x: x.flatten(1)),
    )
    for name, call in functions:
        yield Row(name, _one(lambda _, x, call=call: call(x)), IMAGE)  # type: ignore[misc]
    for name, call in methods:
        point = _one(lambda m, x, call=call: call(m.c(x)), c=lambda: nn.Conv2d(4, 4, 1))  # type: ignore[misc]
        yield Row(f"Conv2d, .{name}()", point, IMAGE)
    yield Row("PixelShuffle", _chain(lambda: nn.PixelShuffle(2)), IMAGE)
    even = _tensors((4, 4, 6, 6))
    yield Row("torch.squeeze", _one(lambda _, x: torch.squeeze(x, 1)), _tensors((4, 1, 6)))
    yield Row("PixelUnshuffle", _chain(lambda: nn.PixelUnshuffle(2)), even)
    yield Row("F.pixel_unshuffle", _one(lambda _, x: F.pixel_unshuffle(x, 2)), even)

    def heads(m: Any, x: Tensor) -> Tensor:
        split = m.a(x).reshape(x.size(0), 2, 4).transpose(1, 2)
        made: Tensor = m.b(split.reshape(x.size(0), 8))
        return made

    def half(m: Any, x: Tensor) -> Tensor:
        made: Tensor = m.b(torch.chunk(m.a(x), 2, -1)[0])
        return made

    pooled = _one(
        lambda m, x: m.b(m.p(m.c(x)).flatten(1)),
        c=lambda: nn.Conv2d(4, 8, 1),
        p=lambda: nn.AdaptiveAvgPool2d(1),
        b=_line,
    )
    yield Row("Conv2d, pool, .flatten(), Linear", pooled, IMAGE)
    yield Row("Linear, shapes, Linear", _one(heads, a=_line, b=_line), FLAT, LAYERS)
    yield Row("Linear, torch.chunk, Linear", _one(half, a=_line, b=lambda: nn.Linear(4, 8)), FLAT)


def _tables() -> Iterator[Row]:
    yield Row("Embedding", _chain(lambda: nn.Embedding(12, 8)), _indices, ("weight only",))
    for mode in ("sum", "mean"):
        bag = _chain(lambda mode=mode: nn.EmbeddingBag(12, 8, mode=mode))  # type: ignore[misc]
        yield Row(f"EmbeddingBag {mode}", bag, _indices, ("weight only",))


ROWS: tuple[Row, ...] = (
    *(row for dims in (1, 2, 3) for row in _convolutions(dims)),
    *_linears(),
    *_binaries(),
    *_activations(),
    *_norms(),
    *_pools(),
    *_moves(),
    *_tables(),
)
"""Every row; names are unique."""
