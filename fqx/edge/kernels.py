"""The Python side of every kernel a lowered graph may call.

`bind(op, attrs)` looks everything up once and gives a function of the tensors alone; that is what
a materialized module calls. Weights are packed at the first call and again whenever another tensor,
or another content, stands at the weight's place; packs are never copied, saved or shared between
modules. Values are plain integers (`onednn`, `plain`) or torch's quantized tensors (`native`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fqx.edge import lookups
from fqx.edge.packing import (
    PLAIN_TEMPLATE,
    Packs,
    hush,
    quantized_template,
    quantized_weight,
    scales_of,
    stale,
    using_engine,
    version_of,
    viewed,
)
from fqx.edge.transposed import Spread, flipped
from fqx.ir.arg import Arg
from fqx.ir.names import NodeId, OpName
from fqx.ir.node import Node
from fqx.kit.frozen import FrozenMap
from fqx.num import nibbles
from fqx.num.affine import LEAST_SCALE
from fqx.passes.calls import CALLS, Named, as_torch
from fqx.policy.costs import VIEWS
from fqx.policy.units import NEAREST
from fqx.targets.lone import CONTRACTIONS
from fqx.targets.recurrent import CELLS, LAYERS
from fqx.targets.shapes import AVERAGING, MOVING, ZERO_AWARE

Run: TypeAlias = Callable[..., Any]
"""A kernel with its attributes bound: operands in schema order to the value."""
Attrs: TypeAlias = Mapping[str, Any]
Bind: TypeAlias = Callable[[Attrs], Run]

_ONEDNN = torch.ops.onednn
_QUANTIZED = torch.ops.quantized
_OUTPUTS = MappingProxyType({"uint8": torch.uint8, "int8": torch.int8, "float32": torch.float32})
_LARGEST = 3.4028234663852886e38
_MAGIC = 12582912.0
"""1.5 · 2^23: added to a float32 of small magnitude it leaves the integer in the low bits."""


def bind(op: OpName, attrs: FrozenMap[Arg]) -> Run:
    """The kernel `op` with its attributes; a KeyError if there is none of this name."""
    return BINDERS[op]({name: as_torch(value) for name, value in attrs.items()})


# Integers and back.


def _quantize(attrs: Attrs) -> Run:
    """`clamp(rint(x · (1/s)) + z, qmin, qmax)`, bit for bit as `fqx.num.affine` computes it."""
    if attrs["zero_point"] == 0:
        return _quantize_at_zero(attrs)
    return quantize_by_arithmetic(attrs, whole=False)


def _quantize_at_zero(attrs: Attrs) -> Run:
    """By torch's own kernel, in one pass: it rounds `x · (1/s) + z`, which is the same for 0."""
    hush()
    scale, plain = attrs["scale"], _OUTPUTS[attrs["output"]]
    dtype = torch.quint8 if plain == torch.uint8 else torch.qint8
    template, (low, high) = torch.empty(0, dtype=plain), (attrs["qmin"], attrs["qmax"])

    def run(x: Tensor) -> Tensor:
        held = torch.quantize_per_tensor(x.detach().to(torch.float32), scale, 0, dtype)
        return viewed(held, template)

    limits = torch.iinfo(plain)
    if (low, high) == (limits.min, limits.max):
        return run
    return lambda x: run(x).clamp_(low, high)


def quantize_by_arithmetic(attrs: Attrs, whole: bool = True) -> Run:
    """In torch's float arithmetic, for any zero point; `whole`, so that torch traces through it."""
    scale, zero_point = attrs["scale"], attrs["zero_point"]
    inverse = float(1.0 / torch.tensor(scale, dtype=torch.float32))
    tail = (inverse, zero_point, attrs["qmin"], attrs["qmax"], _OUTPUTS[attrs["output"]])
    return lambda x: _rounded(x.detach().to(torch.float32), *tail, whole=whole)


def _rounded(
    x: Tensor,
    inverse: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
    factor: Tensor | None = None,
    whole: bool = False,
) -> Tensor:
    """`clamp(rint(x · inverse) + z, qmin, qmax)` of a float32 `x`, times `factor` if there is one.

    torch converts float32 to uint8 one element at a time, but int32 to uint8 and all arithmetic in
    vectors; the integer is therefore read out of the float's mantissa and shifted in uint8, which
    wraps as the low byte of the sum does. A large tensor, unless it is to be taken `whole`, is
    taken in parts that stay in the cache: fresh memory of its own size for what lies between costs
    more than the arithmetic.
    """
    low, high, least = qmin - zero_point, qmax - zero_point, torch.iinfo(dtype).min
    wrapped = (zero_point - least) % 256 + least

    def bits(part: Tensor) -> Tensor:
        made = part.mul(inverse) if factor is None else part.mul(factor).mul_(inverse)
        return made.clamp_(low, high).add_(_MAGIC).view(torch.int32)

    if whole or x.numel() < 4 * _PART or not x.is_contiguous():
        return bits(x).to(dtype).add_(wrapped)
    width = x.shape[-1] if factor is not None else 1
    rows = (-1, width) if factor is not None else (-1,)
    made = x.new_empty(x.shape, dtype=dtype)
    step = max(1, _PART // width)
    parts, places = (torch.split(held.view(rows), step) for held in (x, made))
    for part, place in zip(parts, places, strict=True):
        place.copy_(bits(part))
    return made.add_(wrapped)


def quantize_scaled(attrs: Attrs, whole: bool = True) -> Run:
    """`quantize_by_arithmetic` of `x` times a factor for each column, float32 [columns]."""
    inverse = float(1.0 / torch.tensor(attrs["scale"], dtype=torch.float32))
    ends, dtype = (attrs["qmin"], attrs["qmax"]), _OUTPUTS[attrs["output"]]
    tail = (inverse, attrs["zero_point"], *ends, dtype)
    return lambda x, factor: _rounded(x.detach(), *tail, factor.detach(), whole)


_PART = 1 << 17
"""Elements that are worked on at a time: half a megabyte in float32."""


def _dequantize(attrs: Attrs) -> Run:
    """`(q - z) · s` in float32, then the float dtype of the model."""
    hush()
    dtype = attrs["dtype"]
    templates = {
        plain: quantized_template(attrs["scale"], attrs["zero_point"], held)
        for plain, held in ((torch.uint8, torch.quint8), (torch.int8, torch.qint8))
    }

    def exact(q: Tensor) -> Tensor:
        return viewed(q, templates[q.dtype]).dequantize()

    if dtype == torch.float32:
        return exact
    return lambda q: exact(q).to(dtype)


def _shift(_: Attrs) -> Run:
    """int8 to uint8 with the zero point moved by 128: the top bit flips."""
    return lambda q: q.view(torch.uint8).bitwise_xor(128)


def _channels_last(_: Attrs) -> Run:
    """The same values in the layout that convolutions read fastest."""
    return lambda x: x.contiguous(memory_format=torch.channels_last)


# Plain integers that only move or compare.


def _plain_relu(attrs: Attrs) -> Run:
    zero_point = attrs["zero_point"]
    return lambda x: torch.clamp(x, min=zero_point)


def _plain_clamp(attrs: Attrs) -> Run:
    low, high = attrs["low"], attrs["high"]
    return lambda x: torch.clamp(x, low, high)


def _plain_pad(attrs: Attrs) -> Run:
    value = attrs["zero_point"]
    return lambda x, pad: torch.nn.functional.pad(x, pad, "constant", value)


def _plain_max_pool1d(attrs: Attrs) -> Run:
    windows = [[1, attrs[name][0]] for name in ("kernel_size", "stride")]
    padding, dilation = [0, attrs["padding"][0]], [1, attrs["dilation"][0]]
    pool, ceil = _QUANTIZED.max_pool2d, attrs["ceil_mode"]
    return lambda x: pool(x.unsqueeze(-2), *windows, padding, dilation, ceil).squeeze(-2)


def _plain_max_pool2d(attrs: Attrs) -> Run:
    """By torch's kernel for plain integers, or axis by axis.

    torch.max_pool2d refuses channels-last uint8. The kernel of `quantized` takes it and works on 32
    channels at once; what is left over it does one by one, 24 channels of 112 × 112 in 370 µs where
    maxima along one axis after the other take 55.
    """
    windows = [list(attrs[name]) for name in ("kernel_size", "stride", "padding", "dilation")]
    pool, ceil = _QUANTIZED.max_pool2d, attrs["ceil_mode"]

    def run(x: Tensor) -> Tensor:
        if ceil or x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1] % _LANES == 0:
            result: Tensor = pool(x, *windows, ceil)
            return result
        return _pooled(_pooled(x, 2, *windows), 3, *windows)

    return run


_LANES = 32
"""Bytes that the pool of `quantized` compares at once."""


def _pooled(
    x: Tensor,
    axis: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """The greatest of each window along one axis of four, of which no integer is below 0."""
    of = axis - 2
    around = padding[of]
    if around:
        x = torch.nn.functional.pad(x, (0, 0, around, around) if axis == 2 else (around, around))
    step, apart = (stride or kernel)[of], dilation[of]
    count = (x.shape[axis] - apart * (kernel[of] - 1) - 1) // step + 1
    ends = [(at * apart, at * apart + step * (count - 1) + 1) for at in range(kernel[of])]
    parts = [x[:, :, a:b:step] if axis == 2 else x[..., a:b:step] for a, b in ends]
    greatest = parts[0]
    for part in parts[1:]:
        greatest = torch.maximum(greatest, part)
    # a window of one is a view so far
    return greatest if len(parts) > 1 else greatest.clone()


def _plain_max_pool3d(attrs: Attrs) -> Run:
    # for uint8 torch has the contiguous layout only
    windows = {name: attrs[name] for name in ("kernel_size", "stride", "padding", "dilation")}
    ceil = attrs["ceil_mode"]
    return lambda x: torch.max_pool3d(x.contiguous(), **windows, ceil_mode=ceil)


def _plain_average(op: str) -> Bind:
    """An average of integers in float32, which sums them exactly, rounded ties to even.

    The zero point is taken off before, since padding is zero.
    """

    def bound(attrs: Attrs) -> Run:
        zero_point = attrs["zero_point"]
        own = {name: value for name, value in attrs.items() if name != "zero_point"}
        run = canonical(op)(own)

        def average(x: Tensor, *rest: Any) -> Tensor:
            mean: Tensor = run(x.to(torch.float32).sub_(zero_point), *rest)
            return mean.add_(_MAGIC).view(torch.int32).to(torch.uint8).add_(zero_point)

        return average

    return bound


def _table(attrs: Attrs) -> Run:
    """Functions of one activation, one after another: `steps` are operators, operands, attributes.

    Each of the 256 integers goes through dequantize, the operators and quantize once.
    """
    steps = [(canonical(op)(own), rest) for op, rest, own in attrs["steps"]]
    known = {"scale": attrs["x_scale"], "zero_point": attrs["x_zero_point"]}
    read, write = _dequantize({**known, "dtype": torch.float32}), _quantize(attrs)

    def compute(codes: Tensor) -> Tensor:
        value = read(codes)
        for run, rest in steps:
            value = run(value, *rest)
        made: Tensor = write(value)
        return made

    return lookups.lookup(compute)


def _native_table(attrs: Attrs) -> Run:
    hush()
    run = _table({**attrs, "output": "uint8"})
    template = quantized_template(attrs["scale"], attrs["zero_point"])
    return lambda x: viewed(run(integers(x)), template)


# oneDNN on plain integers.


def _post(attrs: Attrs) -> tuple[str, list[float], str]:
    """A canonical activation as oneDNN's post op: name, arguments, algorithm."""
    args = attrs["activation_args"]
    match attrs["activation"]:
        case "none" | "relu" | "hardswish" | "tanh" as same:
            return same, [], ""
        case "silu":
            return "swish", [], ""
        case "gelu":
            return "gelu", [], args[0]
        case "leaky_relu":
            return "leaky_relu", [float(args[0])], ""
        case "clamp":
            low, high = (
                default if bound is None else float(bound)
                for bound, default in zip(args, (-_LARGEST, _LARGEST), strict=True)
            )
            return "hardtanh", [low, high], ""
        case other:
            raise KeyError(other)


def _window(attrs: Attrs) -> tuple[Any, ...]:
    return *(list(attrs[name]) for name in ("stride", "padding", "dilation")), attrs["groups"]


def linear_tail(attrs: Attrs) -> tuple[Any, ...]:
    """What `qlinear_pointwise` takes behind the bias: the result's qparams and the post op."""
    return attrs["scale"], attrs["zero_point"], _OUTPUTS[attrs["output"]], *_post(attrs)


def conv_tail(attrs: Attrs) -> tuple[Any, ...]:
    """What `qconv*_pointwise` takes behind the bias: the window, then as a linear."""
    return *_window(attrs), *linear_tail(attrs)


def sum_tail(attrs: Attrs) -> tuple[Any, ...]:
    """What a `.binary` kernel takes behind bias and window to add into its accumulator."""
    out = (attrs["scale"], attrs["zero_point"], _OUTPUTS[attrs["output"]])
    other = (attrs["other_scale"], attrs["other_zero_point"])
    return *out, *other, "sum", 1.0, "relu" if attrs["relu"] else "none", [], ""


def bounds_of(attrs: Attrs) -> tuple[int, int] | None:
    """The bounds of the integers where they are narrower than the dtype's."""
    qmin, qmax = attrs["qmin"], attrs["qmax"]
    full = {"uint8": (0, 255), "int8": (-128, 127), "float32": (qmin, qmax)}[attrs["output"]]
    return None if (qmin, qmax) == full else (qmin, qmax)


def _bounded(run: Run, attrs: Attrs) -> Run:
    """Kernels saturate at the bounds of the dtype; narrower ranges need one more step."""
    bounds = bounds_of(attrs)
    if bounds is None:
        return run
    qmin, qmax = bounds
    return lambda *operands: run(*operands).clamp_(qmin, qmax)


def _conv(dims: int) -> Bind:
    call = {
        1: _ONEDNN.qconv1d_pointwise.default,
        2: _ONEDNN.qconv2d_pointwise.default,
        3: _ONEDNN.qconv3d_pointwise.default,
    }[dims]

    def bound(attrs: Attrs) -> Run:
        if dims == 3 and attrs["activation"] == "relu":
            # torch does not let this one have a post op
            run = bound({**attrs, "activation": "none"})
            least = 0 if attrs["output"] == "float32" else attrs["zero_point"]
            return lambda *operands: run(*operands).clamp_(min=least)
        return pointwise(attrs)

    def pointwise(attrs: Attrs) -> Run:
        x_scale, x_zero, tail = attrs["x_scale"], attrs["x_zero_point"], conv_tail(attrs)
        packs = Packs(conv_pack(attrs))

        def run(x: Tensor, weight: Tensor, scale: Any, bias: Tensor | None) -> Tensor:
            state = packs.state
            if stale(state, weight, scale):
                state = packs.renew(weight, scale, like=x)
            _, _, _, packed, scales, zeros = state
            result: Tensor = call(x, x_scale, x_zero, packed, scales, zeros, bias, *tail)
            return result

        return _bounded(run, attrs)

    return bound


def _conv2d_as_linear(attrs: Attrs) -> Run:
    """A convolution of single points, as a linear over the channels; the view costs no copy."""
    x_scale, x_zero, tail = attrs["x_scale"], attrs["x_zero_point"], linear_tail(attrs)
    call = _ONEDNN.qlinear_pointwise.default
    packs = Packs(lambda weight, scale: linear_pack(weight.flatten(1), scale))

    def run(x: Tensor, weight: Tensor, scale: Any, bias: Tensor | None) -> Tensor:
        state = packs.state
        if stale(state, weight, scale):
            state = packs.renew(weight, scale)
        _, _, _, packed, scales, zeros = state
        # contiguous where x is channels-last
        rows = x.permute(0, 2, 3, 1).contiguous()
        result: Tensor = call(rows, x_scale, x_zero, packed, scales, zeros, bias, *tail)
        return result.permute(0, 3, 1, 2)

    return _bounded(run, attrs)


def conv_pack(attrs: Attrs) -> Callable[..., tuple[Any, ...]]:
    """A function of weight, scale and an input: packed weight, scales, zero points."""
    place = tuple(list(attrs[name]) for name in ("stride", "padding", "dilation"))

    def make(weight: Tensor, scale: Any, like: Tensor) -> tuple[Any, ...]:
        # without the input's shape oneDNN guesses one, and a layout that turns out wrong is
        # rearranged again in every call: 11 ms beside a kernel of 0.2 ms (256 to 1024 channels)
        scales = scales_of(scale)
        packed = _ONEDNN.qconv_prepack(
            weight.detach().contiguous(),
            scales,
            attrs["x_scale"],
            attrs["x_zero_point"],
            *place,
            attrs["groups"],
            list(like.shape),
        )
        return packed, scales, torch.zeros(scales.numel(), dtype=torch.int64)

    return make


def _conv2d_add(attrs: Attrs) -> Run:
    """The kernel adds into its accumulator, so one that is read again is copied first."""
    x_scale, x_zero = attrs["x_scale"], attrs["x_zero_point"]
    tail = (*_window(attrs), *sum_tail(attrs))
    packs, layout, keeps = Packs(conv_pack(attrs)), torch.channels_last, attrs["keeps_other"]
    call = _ONEDNN.qconv2d_pointwise.binary

    def run(x: Tensor, weight: Tensor, scale: Any, bias: Tensor | None, other: Tensor) -> Tensor:
        state = packs.state
        if stale(state, weight, scale):
            state = packs.renew(weight, scale, like=x)
        _, _, _, packed, scales, zeros = state
        if keeps:
            sum_in = other.clone(memory_format=layout)
        else:
            sum_in = other.contiguous(memory_format=layout)
        result: Tensor = call(x, x_scale, x_zero, packed, scales, zeros, sum_in, bias, *tail)
        return result

    return _bounded(run, attrs)


def linear_pack(weight: Tensor, scale: Any) -> tuple[Any, ...]:
    """Packed weight, scales, zero points."""
    scales = scales_of(scale)
    packed = _ONEDNN.qlinear_prepack(weight.detach().contiguous(), None)
    return packed, scales, torch.zeros(scales.numel(), dtype=torch.int64)


def _linear(attrs: Attrs) -> Run:
    x_scale, x_zero, tail = attrs["x_scale"], attrs["x_zero_point"], linear_tail(attrs)
    packs, call = Packs(linear_pack), _ONEDNN.qlinear_pointwise.default

    def run(x: Tensor, weight: Tensor, scale: Any, bias: Tensor | None) -> Tensor:
        state = packs.state
        if stale(state, weight, scale):
            state = packs.renew(weight, scale)
        _, _, _, packed, scales, zeros = state
        result: Tensor = call(x, x_scale, x_zero, packed, scales, zeros, bias, *tail)
        return result

    return _bounded(run, attrs)


def _linear_add(attrs: Attrs) -> Run:
    # the kernel's non-writing `add` ignores the addend's qparams, so this is `sum` as well
    x_scale, x_zero, keeps = attrs["x_scale"], attrs["x_zero_point"], attrs["keeps_other"]
    tail = sum_tail(attrs)
    packs, call = Packs(linear_pack), _ONEDNN.qlinear_pointwise.binary
    layout = torch.contiguous_format

    def run(x: Tensor, weight: Tensor, scale: Any, bias: Tensor | None, other: Tensor) -> Tensor:
        state = packs.state
        if stale(state, weight, scale):
            state = packs.renew(weight, scale)
        _, _, _, packed, scales, zeros = state
        sum_in = other.clone(memory_format=layout) if keeps else other.contiguous()
        result: Tensor = call(x, x_scale, x_zero, packed, scales, zeros, sum_in, bias, *tail)
        return result

    return _bounded(run, attrs)


def _ranged(attrs: Attrs) -> Callable[[Tensor], tuple[float, int]]:
    """A function of a tensor to the scale and zero point of its own range.

    The formulas of `fqx.num.affine.choose_qparams` in Python floats, which are float64 too.
    """
    qmin, qmax, symmetric = attrs["qmin"], attrs["qmax"], attrs["symmetric"]
    steps, middle = float(qmax - qmin), (qmin + qmax + 1) // 2

    def choose(x: Tensor) -> tuple[float, int]:
        if not x.numel():
            return 1.0, middle if symmetric else qmin
        ends = torch.aminmax(x)
        low, high = min(float(ends.min), 0.0), max(float(ends.max), 0.0)
        span = 2.0 * max(-low, high) if symmetric else high - low
        # rounded to float32, as every scale is
        scale = _FLOAT32.unpack(_FLOAT32.pack(max(span / steps, LEAST_SCALE)))[0] if span else 1.0
        if symmetric:
            return scale, middle
        return scale, int(min(max(qmin - round(low / scale), qmin), qmax))

    return choose


_FLOAT32 = struct.Struct("f")


def _to_uint8(x: Tensor, scale: float, zero_point: int, qmin: int, qmax: int) -> Tensor:
    """As `_quantize`, with qparams known only now."""
    inverse = float(1.0 / torch.tensor(scale, dtype=torch.float32))
    values = x.detach().to(torch.float32)
    return _rounded(values, inverse, zero_point, qmin, qmax, torch.uint8)


def _linear_dynamic(attrs: Attrs) -> Run:
    choose, ends = _ranged(attrs), (attrs["qmin"], attrs["qmax"])
    tail = (1.0, 0, torch.float32, *_post(attrs))
    packs, call = Packs(linear_pack), _ONEDNN.qlinear_pointwise.default

    def run(x: Tensor, weight: Tensor, scale: Any, bias: Tensor | None) -> Tensor:
        state = packs.state
        if stale(state, weight, scale):
            state = packs.renew(weight, scale)
        _, _, _, packed, scales, zeros = state
        x_scale, x_zero = choose(x)
        codes = _to_uint8(x, x_scale, x_zero, *ends)
        result: Tensor = call(codes, x_scale, x_zero, packed, scales, zeros, bias, *tail)
        return result

    return run


def _conv_dynamic(dims: int) -> Bind:
    call = getattr(_ONEDNN, f"qconv{dims}d_pointwise").default

    def bound(attrs: Attrs) -> Run:
        choose, ends = _ranged(attrs), (attrs["qmin"], attrs["qmax"])
        place = tuple(list(attrs[name]) for name in ("stride", "padding", "dilation"))
        tail = (*place, attrs["groups"], 1.0, 0, torch.float32, *_post(attrs))
        # a weight packed for one input scale and zero point is right with another
        packs = Packs(conv_pack({**attrs, "x_scale": 1.0, "x_zero_point": 1}))

        def run(x: Tensor, weight: Tensor, scale: Any, bias: Tensor | None) -> Tensor:
            state = packs.state
            if stale(state, weight, scale):
                state = packs.renew(weight, scale, like=x)
            _, _, _, packed, scales, zeros = state
            x_scale, x_zero = choose(x)
            codes = _to_uint8(x, x_scale, x_zero, *ends)
            result: Tensor = call(codes, x_scale, x_zero, packed, scales, zeros, bias, *tail)
            return result

        return run

    return bound


# Weights alone.


def _linear_weight_only(_: Attrs) -> Run:
    """The weight's values are made again in each call: a large one costs less than its product.

    torch 2.13's kernel on int8 weights and float32 inputs takes fifty times as long as float.
    """

    def run(x: Tensor, weight: Tensor, scale: Any, bias: Tensor | None) -> Tensor:
        values = weight.detach().to(torch.float32).mul_(scales_of(scale).reshape(-1, 1))
        return torch.nn.functional.linear(x, values, bias)

    return run


def _rows(weight: Tensor, scale: Tensor, zero: Any, index: Tensor, width: int | None) -> Tensor:
    """The values of some rows of a table: `(q - z) * s`, row by row.

    `width` is the length of a row whose bytes hold two integers.
    """
    held = weight.detach()[index]
    codes = (held if width is None else nibbles.unpack(held, width)).to(torch.float32)
    offsets = zero.detach()[index].unsqueeze(-1) if isinstance(zero, Tensor) else zero
    return codes.sub_(offsets).mul_(scale.detach()[index].unsqueeze(-1))


def _pair_rows(weight: Tensor, scale: Tensor, zero: Tensor, index: Tensor, width: int) -> Tensor:
    """The same of bytes that hold two integers, by torch's kernel of bags of bytes.

    Only the rows that are asked for are taken apart. Behind its codes each has scale and offset.
    """
    flat = index.reshape(-1)
    codes = nibbles.unpack(weight.detach()[flat], width)
    scales = scale.detach().float()[flat]
    ends = torch.stack([scales, -zero.detach().float()[flat] * scales], -1).view(torch.uint8)
    each = torch.arange(flat.numel(), dtype=torch.int64)
    call = _QUANTIZED.embedding_bag_byte_rowwise_offsets
    found: Tensor = call(torch.cat([codes, ends], -1), each, each)
    return found.reshape(*index.shape, width)


def _packed_table(weight: Tensor, scale: Tensor, zero: Tensor) -> tuple[Any, ...]:
    """The table as torch's kernels read it: each row of codes with its scale and offset behind."""
    codes = weight.detach().contiguous()
    hush()
    made = torch._make_per_channel_quantized_tensor(
        codes, scale.detach().float(), zero.detach().float(), 0
    )
    return (_QUANTIZED.embedding_bag_prepack(made),)


class _Table:
    """A table of rows, packed when first read if its values fill bytes.

    `width` is how many values a row has that holds two to a byte; None for one to a byte.
    """

    __slots__ = ("packs", "width")

    def __init__(self, width: int | None) -> None:
        self.packs, self.width = Packs(_packed_table), width

    def packed(self, weight: Tensor, scale: Tensor, zero: Any) -> Any:
        """torch's packed table; None for what its kernels do not take."""
        plain = weight.dtype == torch.uint8 and isinstance(zero, Tensor) and weight.dim() == 2
        if self.width is not None or not plain:
            return None
        state = self.packs.state
        if stale(state, weight, scale) or state[3] is not zero:
            state = self.packs.renew(weight, scale, zero)
        return state[4]

    def rows(self, weight: Tensor, scale: Tensor, zero: Any, index: Tensor) -> Tensor:
        """The values of some rows."""
        packed = self.packed(weight, scale, zero)
        if packed is None and self.width is not None and isinstance(zero, Tensor):
            return _pair_rows(weight, scale, zero, index, self.width)
        if packed is None:
            return _rows(weight, scale, zero, index, self.width)
        found: Tensor = _QUANTIZED.embedding_byte(packed, index.reshape(-1))
        return found.reshape(*index.shape, weight.shape[1])


def _embedding_weight_only(attrs: Attrs) -> Run:
    table = _Table(attrs["width"])
    return lambda x, weight, scale, zero: table.rows(weight, scale, zero, x)


def _embedding_bag_weight_only(attrs: Attrs) -> Run:
    """torch's bag sums in every mode and knows no padding: for those its rows are summed apart."""
    mode, last, padding = (attrs[n] for n in ("mode", "include_last_offset", "padding_idx"))
    padded = padding is not None and padding >= 0
    table, sums = _Table(attrs["width"]), mode == "sum" and not padded

    def run(
        x: Tensor, weight: Tensor, offsets: Any, factors: Any, scale: Tensor, zero: Any
    ) -> Tensor:
        packed = table.packed(weight, scale, zero) if sums else None
        if packed is not None:
            starts = None if x.dim() == 2 else offsets
            ends = (False, factors, None, last)
            made: Tensor = _QUANTIZED.embedding_bag_byte(packed, x, starts, False, 0, *ends)
            return made
        flat = x.reshape(-1)
        rows = table.rows(weight, scale, zero, flat)
        index = torch.arange(flat.numel(), dtype=torch.int64)
        if padded:
            # torch leaves out one row by its number: all padding reads a row of its own
            rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
            index = torch.where(flat == padding, flat.numel(), index)
        return torch.nn.functional.embedding_bag(
            index.reshape(x.shape),
            rows,
            None if x.dim() == 2 else offsets,
            mode=mode,
            per_sample_weights=factors,
            include_last_offset=last,
            padding_idx=flat.numel() if padded else None,
        )

    return run


def _linear_float16(attrs: Attrs) -> Run:
    relu = attrs["relu"]
    call = _QUANTIZED.linear_relu_dynamic_fp16 if relu else _QUANTIZED.linear_dynamic_fp16

    def make(weight: Tensor, _: None, bias: Tensor | None) -> tuple[Any, ...]:
        held = None if bias is None else bias.detach().float()
        with using_engine("fbgemm"):
            return (_QUANTIZED.linear_prepack_fp16(weight.detach().float(), held),)

    packs = Packs(make)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        state = packs.state
        if stale(state, weight, None) or state[3] is not bias:
            state = packs.renew(weight, None, bias)
        result: Tensor = call(x, state[4])
        return result

    return run


def _pair(name: str) -> Bind:
    """A sum or product of two activations of one shape, or broadcast, with or without a relu.

    torch 2.13's kernels take the uint8 operands of each full vector of 16 for int8, and only the
    elements behind the last full vector for uint8. Flipping the top bit and moving the zero point
    by 128 says the same in int8, so whole vectors on one thread are right that way; all else is
    computed in float32.
    """

    def bound(attrs: Attrs) -> Run:
        # torch has no qmul_relu; the bound does it
        acts, least = attrs["relu"], max(attrs["qmin"], attrs["zero_point"])
        call = getattr(_ONEDNN, "qadd_relu" if acts and name == "add" else f"q{name}").tensor
        reads = _reading(call)
        shift = 128 if reads == "int8" else 0
        left = (attrs["x_scale"], attrs["x_zero_point"] - shift)
        right = (attrs["y_scale"], attrs["y_zero_point"] - shift)
        tail: tuple[Any, ...] = (*right, attrs["scale"], attrs["zero_point"], torch.uint8)
        in_float = _pair_in_float(name, attrs)
        bounds = {**attrs, "qmin": least} if acts and name == "mul" else attrs
        fast = _bounded(lambda x, y: call(x, *left, y, *tail), bounds)

        def run(x: Tensor, y: Tensor) -> Any:
            size, dense = x.numel(), x.stride() == y.stride() and x.shape == y.shape
            if not dense or size % 16 or (size > _ONE_THREAD and torch.get_num_threads() > 1):
                return in_float(x, y)
            return fast(x.bitwise_xor(128), y.bitwise_xor(128))

        choices: dict[str, Run] = {"int8": run, "uint8": _dense(fast, in_float)}
        return choices.get(reads, in_float)

    return bound


_ONE_THREAD = 32768
"""torch splits pointwise work into pieces no smaller than this."""


def _dense(fast: Run, in_float: Run) -> Run:
    return lambda x, y: fast(x, y) if x.shape == y.shape else in_float(x, y)


def _reading(call: Any) -> str:
    """What the kernel takes the bytes of its operands for, in full vectors and behind them."""
    large, one = torch.full((35,), 200, dtype=torch.uint8), torch.ones(35, dtype=torch.uint8)
    seen = call(large, 1.0, 0, one, 1.0, 0, 1.0, 0, torch.uint8) >= 128
    return "uint8" if bool(seen.all()) else "unknown" if bool(seen[:32].any()) else "int8"


def _pair_in_float(name: str, attrs: Attrs) -> Run:
    """The same in float32, with the scales folded into one another."""
    x_zero, y_zero, zero_point = (attrs[f"{at}zero_point"] for at in ("x_", "y_", ""))
    low, high = attrs["qmin"] - zero_point, attrs["qmax"] - zero_point
    low = max(low, 0) if attrs["relu"] else low
    left, right = attrs["x_scale"] / attrs["scale"], attrs["y_scale"] / attrs["scale"]
    product = left * attrs["y_scale"]
    offset = -(x_zero * left + y_zero * right)

    def add(x: Tensor, y: Tensor) -> Tensor:
        total = x.to(torch.float32).mul_(left)
        # in place where the sum is no larger than x
        total = total.add_(y, alpha=right) if x.shape == y.shape else total.add(y, alpha=right)
        return total.add_(offset)

    def mul(x: Tensor, y: Tensor) -> Tensor:
        factor, other = x.to(torch.float32).sub_(x_zero), y.to(torch.float32).sub_(y_zero)
        small, wide = (factor, other) if factor.numel() < other.numel() else (other, factor)
        return wide.mul(small.mul_(product))

    compute = add if name == "add" else mul

    def run(x: Tensor, y: Tensor) -> Tensor:
        bits = compute(x, y).clamp_(low, high).add_(_MAGIC)
        return bits.view(torch.int32).to(torch.uint8).add_(zero_point)

    return run


# torch's quantized tensors.


def _native_quantize(attrs: Attrs) -> Run:
    hush()
    scale, zero_point = attrs["scale"], attrs["zero_point"]

    def run(x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)

    if (attrs["qmin"], attrs["qmax"]) == (0, 255):
        return run
    low, high = ((attrs[end] - zero_point) * scale for end in ("qmin", "qmax"))
    return lambda x: run(x.clamp(low, high))


def _native_dequantize(attrs: Attrs) -> Run:
    dtype = attrs["dtype"]
    if dtype == torch.float32:
        return lambda x: x.dequantize()
    return lambda x: x.dequantize().to(dtype)


def _native_wrap(attrs: Attrs) -> Run:
    """Plain integers as a quantized tensor of the program's own."""
    hush()
    scale, zero_point = attrs["scale"], attrs["zero_point"]
    return lambda x: torch._make_per_tensor_quantized_tensor(x, scale, zero_point)


def _native_unwrap(_: Attrs) -> Run:
    return lambda x: x.int_repr()


def _native_bounded(run: Run, attrs: Attrs) -> Run:
    """The kernel with its fresh result held to qmin..qmax.

    Not by torch.clamp: under the global engine qnnpack that reads a channels_last tensor in the
    wrong order.
    """
    low, high = attrs["qmin"], attrs["qmax"]
    if (low, high) == (0, 255):
        return run

    def bounded(*operands: Any) -> Tensor:
        made: Tensor = run(*operands)
        integers(made).clamp_(low, high)
        return made

    return bounded


def _native_weighted(name: str, prepack: Callable[..., Any]) -> Bind:
    """A kernel on a packed weight; `prepack` gets quantized weight, bias and attributes."""

    def bound(attrs: Attrs) -> Run:
        hush()
        suffix = "_relu" if attrs.get("relu") else ""
        packet = getattr(_QUANTIZED, f"{name}{suffix}")
        call = packet.new if "new" in packet.overloads() else packet.default
        scale_out, zero_out, engine = attrs["scale"], attrs["zero_point"], attrs["engine"]

        def make(weight: Tensor, scale: Any, bias: Tensor | None) -> tuple[Any, ...]:
            held = None if bias is None else bias.detach().float()
            with using_engine(engine):
                return (prepack(quantized_weight(weight, scale), held, attrs),)

        packs = Packs(make)

        def run(x: Tensor, weight: Tensor, scale: Any, bias: Tensor | None) -> Tensor:
            state = packs.state
            if stale(state, weight, scale) or state[3] is not bias:
                state = packs.renew(weight, scale, bias)
            result: Tensor = call(x, state[4], scale_out, zero_out)
            return result

        return _native_bounded(run, attrs)

    return bound


_LAYOUTS = MappingProxyType(
    {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
)


def _packed_conv(dims: int) -> Bind:
    """torch's convolution of a packed weight on plain uint8, which it sees as its own dtype.

    Its integers are those of the pointwise convolution, bit for bit. It reads four arguments
    instead of twenty, and what a zero point adds to every sum is part of the pack: the pointwise
    kernel rearranges a 3 × 3 weight in every call whose zero point is not 0.
    """
    prepack = _conv_prepack(dims)

    def bound(attrs: Attrs) -> Run:
        hush()
        packet = getattr(_QUANTIZED, f"conv{dims}d_relu" if attrs["relu"] else f"conv{dims}d")
        call = packet.new if "new" in packet.overloads() else packet.default
        scale_out, zero_out, engine = attrs["scale"], attrs["zero_point"], attrs["engine"]
        template = quantized_template(attrs["x_scale"], attrs["x_zero_point"])
        # torch rearranges plain integers much faster than quantized ones
        layout = _LAYOUTS[dims]

        def make(weight: Tensor, scale: Any, bias: Tensor | None) -> tuple[Any, ...]:
            held = None if bias is None else bias.detach().float()
            version = None if bias is None else version_of(bias)
            with using_engine(engine):
                return version, prepack(quantized_weight(weight, scale), held, attrs)

        packs = Packs(make)

        def run(x: Tensor, weight: Tensor, scale: Any, bias: Tensor | None) -> Tensor:
            state = packs.state
            if stale(state, weight, scale) or _other_bias(state, bias):
                state = packs.renew(weight, scale, bias)
            held = viewed(x.contiguous(memory_format=layout), template)
            return viewed(call(held, state[5], scale_out, zero_out), PLAIN_TEMPLATE)

        return _bounded(run, attrs)

    return bound


def _other_bias(state: tuple[Any, ...], bias: Tensor | None) -> bool:
    if state[3] is not bias:
        return True
    return bias is not None and state[4] is not None and state[4] != bias._version


def _native_linear_dynamic(attrs: Attrs) -> Run:
    """torch's linear that quantizes its input by the range of each call."""
    hush()
    relu, engine, narrow = attrs["relu"], attrs["engine"], attrs["qmax"] == 127
    call = (_QUANTIZED.linear_relu_dynamic if relu else _QUANTIZED.linear_dynamic).default

    def make(weight: Tensor, scale: Any, bias: Tensor | None) -> tuple[Any, ...]:
        held = None if bias is None else bias.detach().float()
        with using_engine(engine):
            return (_QUANTIZED.linear_prepack(quantized_weight(weight, scale), held),)

    packs = Packs(make)

    def run(x: Tensor, weight: Tensor, scale: Any, bias: Tensor | None) -> Tensor:
        state = packs.state
        if stale(state, weight, scale) or state[3] is not bias:
            state = packs.renew(weight, scale, bias)
        result: Tensor = call(x.detach(), state[4], narrow)
        return result

    return run


def _conv_prepack(dims: int) -> Callable[..., Any]:
    def prepack(weight: Tensor, bias: Tensor | None, attrs: Attrs) -> Any:
        place = tuple(list(attrs[name]) for name in ("stride", "padding", "dilation"))
        call = getattr(_QUANTIZED, f"conv{dims}d_prepack")
        return call(weight, bias, *place, attrs["groups"])

    return prepack


def _conv_transpose_prepack(dims: int) -> Callable[..., Any]:
    def prepack(weight: Tensor, bias: Tensor | None, attrs: Attrs) -> Any:
        names = ("stride", "padding", "output_padding", "dilation")
        call = getattr(_QUANTIZED, f"conv_transpose{dims}d_prepack")
        return call(weight, bias, *(list(attrs[name]) for name in names), attrs["groups"])

    return prepack


def _transposed(dims: int, conv: Bind, attrs: Attrs) -> Callable[..., Any]:
    """A transposed convolution by a convolution kernel, of plain integers and their zero point.

    With a `template` the kernel sees them as quantized tensors.
    """
    names = ("stride", "padding", "output_padding", "dilation")
    stride, padding, output_padding, dilation = (tuple(attrs[name]) for name in names)
    groups = attrs["groups"]

    def make(weight: Tensor, scale: Any) -> tuple[Any, ...]:
        kernel = tuple(weight.shape[2:])
        spread = Spread(stride, padding, output_padding, dilation, kernel)
        around = tuple(max(zeros, 0) for zeros in spread.around)
        scales = scales_of(scale)
        scales = scales if scales.numel() == 1 else scales.repeat(groups)
        run = conv({**attrs, "stride": (1,) * dims, "padding": around})
        return spread, run, flipped(weight.detach(), groups), scales

    packs = Packs(make)

    def run(
        x: Tensor, zero: int, template: Tensor | None, weight: Tensor, scale: Any, bias: Any
    ) -> Any:
        state = packs.state
        if stale(state, weight, scale):
            state = packs.renew(weight, scale)
        spread, convolve, held, scales = state[3:]
        codes = spread.of(x, zero)
        seen = codes if template is None else viewed(codes, template)
        return convolve(seen, held, scales, bias)

    return run


def _conv_transpose(dims: int) -> Bind:
    def bound(attrs: Attrs) -> Run:
        zero, activation = attrs["x_zero_point"], attrs["activation"]
        packs = zero and activation in ("none", "relu") and attrs["output"] == "uint8"
        more = {"relu": activation == "relu", "engine": "onednn"} if packs else {}
        conv = _packed_conv(dims) if packs else _conv(dims)
        run = _transposed(dims, conv, {**attrs, **more})
        return lambda x, *rest: run(x, zero, None, *rest)

    return bound


def _native_conv_transpose(dims: int) -> Bind:
    """qnnpack's own kernel of one and two dimensions; the others are wrong and not run."""
    of_torch = _native_weighted(f"conv_transpose{dims}d", _conv_transpose_prepack(dims))
    conv = _native_weighted(f"conv{dims}d", _conv_prepack(dims))

    def bound(attrs: Attrs) -> Run:
        if attrs["engine"] == "qnnpack" and dims < 3:
            return of_torch(attrs)
        hush()
        run = _transposed(dims, conv, attrs)

        def on_integers(x: Tensor, *rest: Any) -> Any:
            zero = x.q_zero_point()
            return run(integers(x), zero, quantized_template(x.q_scale(), zero), *rest)

        return on_integers

    return bound


def _linear_prepack(weight: Tensor, bias: Tensor | None, _: Attrs) -> Any:
    return _QUANTIZED.linear_prepack(weight, bias)


# Recurrences whose inputs and states are quantized by the range of each step.


class _CellPacks:
    """The packed weights of a recurrence, made when first needed, kept while all stay the same.

    As with `Packs`, the state is one tuple that is replaced at once.
    """

    __slots__ = ("make", "state")

    def __init__(self, make: Callable[..., tuple[Any, ...]]) -> None:
        self.make = make
        self.state: tuple[tuple[Any, ...], tuple[int | None, ...], tuple[Any, ...]] = ((), (), ())

    def of(self, weights: Any, scales: Any, biases: Any) -> tuple[Any, ...]:
        """What `make` gave for these very tensors with these contents."""
        read = (*weights, *scales, *biases)
        versions = tuple(version_of(item) if isinstance(item, Tensor) else None for item in read)
        kept, seen, made = self.state
        same = len(kept) == len(read) and all(a is b for a, b in zip(kept, read, strict=True))
        if not same or versions != seen:
            with torch.no_grad():
                made = self.make(weights, scales, biases)
            self.state = (read, versions, made)
        return made


def _cell_parts(engine: str, weights: Any, scales: Any, biases: Any) -> list[tuple[Any, Tensor]]:
    """Each weight packed, with its bias, which torch's kernels want: zero where there is none."""
    parts: list[tuple[Any, Tensor]] = []
    with using_engine(engine):
        for weight, scale, bias in zip(weights, scales, biases, strict=True):
            held = torch.zeros(weight.shape[0]) if bias is None else bias.detach().float()
            parts.append((_linear_prepack(quantized_weight(weight, scale), held, {}), held))
    return parts


def _half_parts(weights: Any, _: Any, biases: Any) -> list[tuple[Any, Tensor]]:
    """Each weight of half precision packed, with its bias as in `_cell_parts`."""
    parts: list[tuple[Any, Tensor]] = []
    with using_engine("fbgemm"):
        for weight, bias in zip(weights, biases, strict=True):
            held = torch.zeros(weight.shape[0]) if bias is None else bias.detach().float()
            pack = _QUANTIZED.linear_prepack_fp16(weight.detach().float(), held)
            parts.append((pack, held))
    return parts


def _native_layer(name: str, attrs: Attrs, dtype: torch.dtype, packs: _CellPacks) -> Run:
    """torch's call of a layer with the cells that `packs` makes."""
    call = getattr(torch.ops.aten, f"quantized_{name}").input
    layers, both, first = (attrs[n] for n in ("num_layers", "bidirectional", "batch_first"))
    named = {"dtype": dtype, "use_dynamic": True} if name == "lstm" else {}

    def run(x: Tensor, hx: Any, weights: Any, scales: Any, biases: Any) -> Any:
        cells = list(packs.of(weights, scales, biases))
        start = [h.detach() for h in hx] if name == "lstm" else hx.detach()
        return call(x.detach(), start, cells, True, layers, 0.0, False, both, first, **named)

    return run


def _native_recurrent_dynamic(name: str) -> Bind:
    """A layer of torch's, its weights, scales and biases in the flat order: of input, of state.

    `reduce_range` quantizes values to seven bits, as torch's own modules do for fbgemm.
    """

    def bound(attrs: Attrs) -> Run:
        hush()
        engine, narrow = attrs["engine"], attrs["reduce_range"]

        def make(weights: Any, scales: Any, biases: Any) -> tuple[Any, ...]:
            parts = _cell_parts(engine, weights, scales, biases)
            join = _QUANTIZED.make_quantized_cell_params_dynamic.default
            return tuple(
                join(w_ih, w_hh, b_ih, b_hh, narrow)
                for (w_ih, b_ih), (w_hh, b_hh) in zip(parts[::2], parts[1::2], strict=True)
            )

        return _native_layer(name, attrs, torch.qint8, _CellPacks(make))

    return bound


def _native_recurrent_float16(name: str) -> Bind:
    """The layer with weights of half precision, computed in float32."""

    def bound(attrs: Attrs) -> Run:
        hush()

        def make(weights: Any, scales: Any, biases: Any) -> tuple[Any, ...]:
            packed = [pack for pack, _ in _half_parts(weights, scales, biases)]
            join = _QUANTIZED.make_quantized_cell_params_fp16.default
            return tuple(
                join(w_ih, w_hh) for w_ih, w_hh in zip(packed[::2], packed[1::2], strict=True)
            )

        run = _native_layer(name, attrs, torch.float16, _CellPacks(make))
        return lambda x, hx, weights, biases: run(x, hx, weights, (), biases)

    return bound


def _native_cell(name: str, parts: Callable[..., list[tuple[Any, Tensor]]]) -> Run:
    """torch's call of a cell with the weights that `parts` packs."""
    hush()
    call = getattr(_QUANTIZED, f"quantized_{name}_dynamic").default

    def make(weights: Any, scales: Any, biases: Any) -> tuple[Any, ...]:
        (w_ih, b_ih), (w_hh, b_hh) = parts(weights, scales, biases)
        return w_ih, w_hh, b_ih, b_hh

    packs = _CellPacks(make)

    def run(x: Tensor, hx: Any, weights: Any, scales: Any, biases: Any) -> Any:
        start = [h.detach() for h in hx] if name == "lstm_cell" else hx.detach()
        return call(x.detach(), start, *packs.of(weights, scales, biases))

    return run


def _native_cell_dynamic(name: str) -> Bind:
    return lambda attrs: _native_cell(name, partial(_cell_parts, attrs["engine"]))


def _native_cell_float16(name: str) -> Bind:
    def bound(_: Attrs) -> Run:
        run = _native_cell(name, _half_parts)
        return lambda x, hx, weights, biases: run(x, hx, weights, (), biases)

    return bound


def _native_pair(name: str) -> Bind:
    def bound(attrs: Attrs) -> Run:
        hush()
        call = getattr(_QUANTIZED, f"{name}_relu" if attrs.get("relu") else name).default
        scale, zero_point = attrs["scale"], attrs["zero_point"]
        return _native_bounded(lambda x, y: call(x, y, scale, zero_point), attrs)

    return bound


def _native_number(name: str) -> Bind:
    """An activation and a number: torch's kernel of two, the number being one quantized value.

    torch's `add_scalar` and `mul_scalar` choose the scale of the result themselves, and round the
    number to the activation's.
    """

    def bound(attrs: Attrs) -> Run:
        hush()
        call = getattr(_QUANTIZED, f"{name}_relu" if attrs["relu"] else name).default
        out, number = (attrs["scale"], attrs["zero_point"]), lru_cache(maxsize=1)(_one_value)
        return _native_bounded(lambda x, y: call(x, number(y), *out), attrs)

    return bound


def _one_value(number: float) -> Tensor:
    """A number that float32 has as one quantized value, exactly: `(q - z) · |number|`."""
    size = min(abs(number), _LARGEST)
    plain = torch.tensor(int(number > 0), dtype=torch.uint8)
    return torch._make_per_tensor_quantized_tensor(plain, size or 1.0, int(number < 0))


def _native_alone(name: str, *extra: str) -> Bind:
    """torch's kernel of one activation with the scale and zero point of its result.

    `extra` are the attributes that torch takes behind those two.
    """
    call = getattr(_QUANTIZED, name).default

    def bound(attrs: Attrs) -> Run:
        hush()
        out, rest = (attrs["scale"], attrs["zero_point"]), [attrs[name] for name in extra]
        return _native_bounded(lambda x: call(x, *out, *rest), attrs)

    return bound


def _native_leaky_relu(attrs: Attrs) -> Run:
    hush()
    call, slope = _QUANTIZED.leaky_relu.default, attrs["negative_slope"]
    out = (attrs["scale"], attrs["zero_point"])
    return _native_bounded(lambda x: call(x, slope, False, *out), attrs)


def _native_prelu(attrs: Attrs) -> Run:
    """One slope is a leaky relu, several are computed in float32.

    torch's own kernel takes slopes of eight bits, which the model's are not.
    """
    hush()
    call, requantize = _QUANTIZED.leaky_relu.default, _native_quantize(attrs)
    out = (attrs["scale"], attrs["zero_point"])
    single = _native_bounded(lambda x, slope: call(x, slope, False, *out), attrs)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        if weight.numel() == 1:
            result: Tensor = single(x, weight.item())
        else:
            result = requantize(torch.nn.functional.prelu(x.dequantize(), weight.detach()))
        return result

    return run


def _native_fixed(function: Callable[[Tensor], Tensor], scale: float, zero_point: int) -> Bind:
    """An activation that torch gives with one scale and zero point only.

    With others, which narrow ranges ask for, it is computed in float32.
    """

    def bound(attrs: Attrs) -> Run:
        hush()
        if (attrs["scale"], attrs["zero_point"]) == (scale, zero_point):
            return _native_bounded(function, attrs)
        requantize = _native_quantize(attrs)
        return lambda x: requantize(function(x.dequantize()))

    return bound


def _native_pointwise(plain: Bind) -> Bind:
    """A kernel of onednn on the integers of quantized tensors, given back in the same memory."""

    def bound(attrs: Attrs) -> Run:
        hush()
        run = plain({**attrs, "output": "uint8"})
        template = quantized_template(attrs["scale"], attrs["zero_point"])

        def on_integers(x: Tensor, weight: Tensor, scale: Any, bias: Any, *other: Tensor) -> Tensor:
            return viewed(run(integers(x), weight, scale, bias, *map(integers, other)), template)

        return on_integers

    return bound


def _native_softmax(attrs: Attrs) -> Run:
    hush()
    call, dim = _QUANTIZED.softmax.default, attrs["dim"]
    out = (attrs["scale"], attrs["zero_point"])
    return _native_bounded(lambda x: call(x, dim, *out), attrs)


def _native_norm(name: str, extent: str) -> Bind:
    """A norm over what the attribute `extent` says: the normalized shape, or a number of groups."""

    def bound(attrs: Attrs) -> Run:
        hush()
        call, over, eps = getattr(_QUANTIZED, name).default, attrs[extent], attrs["eps"]
        out = (attrs["scale"], attrs["zero_point"])

        def run(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            result: Tensor = call(x, over, weight, bias, eps, *out)
            return result

        return _native_bounded(run, attrs)

    return bound


def _native_instance_norm(attrs: Attrs) -> Run:
    """The statistics are the input's own; stored ones are not read."""
    hush()
    call, eps = _QUANTIZED.instance_norm.default, attrs["eps"]
    out = (attrs["scale"], attrs["zero_point"])

    def run(x: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Tensor | None) -> Tensor:
        result: Tensor = call(x, weight, bias, eps, *out)
        return result

    return _native_bounded(run, attrs)


def _native_batch_norm(attrs: Attrs) -> Run:
    """torch has a kernel for each rank, and none without weight or bias: ones and zeros then."""
    hush()
    suffix, eps = "_relu" if attrs["relu"] else "", attrs["eps"]
    calls = {
        2: getattr(_QUANTIZED, f"batch_norm1d{suffix}").default,
        3: getattr(_QUANTIZED, f"batch_norm1d{suffix}").default,
        4: getattr(_QUANTIZED, f"batch_norm2d{suffix}").default,
        5: getattr(_QUANTIZED, f"batch_norm3d{suffix}").default,
    }
    out = (attrs["scale"], attrs["zero_point"])

    def run(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor
    ) -> Tensor:
        weight = torch.ones_like(var) if weight is None else weight
        bias = torch.zeros_like(mean) if bias is None else bias
        result: Tensor = calls[x.dim()](x, weight, bias, mean, var, eps, *out)
        return result

    return _native_bounded(run, attrs)


def integers(x: Tensor) -> Tensor:
    """The integers of a quantized tensor in its own memory; `int_repr` copies them one by one."""
    plain = torch.empty(0, dtype=torch.uint8)
    plain.set_(x.untyped_storage(), x.storage_offset(), x.size(), x.stride())
    return plain


def _on_integers(run: Run) -> Run:
    """A kernel on plain integers for quantized tensors that share one scale and zero point."""

    def moved(first: Any, *rest: Any) -> Any:
        model = first[0] if isinstance(first, (tuple, list)) else first
        plain = tuple(map(integers, first)) if model is not first else integers(first)
        made = run(plain, *rest)
        # the maker copies, so a view of the integers does not outlive this call
        return torch._make_per_tensor_quantized_tensor(made, model.q_scale(), model.q_zero_point())

    return moved


def _native_moving(plain: Bind) -> Bind:
    """A plain kernel of one value, run on the integers of a quantized tensor."""

    def bound(attrs: Attrs) -> Run:
        hush()
        return _on_integers(plain(attrs))

    return bound


def _native_interpolate(attrs: Attrs) -> Run:
    """Nearest values move as integers; between values torch averages quantized ones."""
    hush()
    plain = canonical("interpolate")(attrs)
    return _on_integers(plain) if attrs["mode"] in NEAREST else plain


def _plain_lone(native: Bind, operands: int = 1) -> Bind:
    """torch's quantized kernel on plain integers, which it sees over the same memory."""

    def bound(attrs: Attrs) -> Run:
        hush()
        pairs = [(attrs[f"{at}_scale"], attrs[f"{at}_zero_point"]) for at in ("x", "y")[:operands]]
        templates = [quantized_template(*pair) for pair in pairs]
        run = native(attrs)

        def on_plain(*given: Any) -> Tensor:
            seen = map(viewed, given[:operands], templates)
            return viewed(run(*seen, *given[operands:]), PLAIN_TEMPLATE)

        return on_plain

    return bound


def _native_direct(op: str) -> Bind:
    """An operator that torch itself runs on quantized tensors."""

    def bound(attrs: Attrs) -> Run:
        hush()
        return canonical(op)(attrs)

    return bound


def canonical(op: str) -> Bind:
    """An operator of the catalogue with its attributes bound."""

    def bound(attrs: Attrs) -> Run:
        def run(*operands: Any) -> Any:
            node = Node(NodeId(op), OpName(op), operands, FrozenMap(attrs))
            call = CALLS[OpName(op)](Named(node))
            return call.function(*call.args, **call.kwargs)

        return run

    return bound


PLAIN: Mapping[str, Bind] = MappingProxyType(
    {
        "relu": _plain_relu,
        "clamp": _plain_clamp,
        "pad": _plain_pad,
        "max_pool1d": _plain_max_pool1d,
        "max_pool2d": _plain_max_pool2d,
        "max_pool3d": _plain_max_pool3d,
    }
)
"""Kernels on plain integers beside the canonical operators that run on them as they are."""

LONE: Mapping[str, Bind] = MappingProxyType(
    {
        "prelu": _native_prelu,
        "softmax": _native_softmax,
        "layer_norm": _native_norm("layer_norm", "shape"),
        "group_norm": _native_norm("group_norm", "groups"),
        "instance_norm": _native_instance_norm,
        "batch_norm": _native_batch_norm,
    }
)
"""Kernels on quantized tensors that only lone schemes get."""

BINDERS: Mapping[OpName, Bind] = MappingProxyType(
    {
        OpName("quantize"): _quantize,
        OpName("dequantize"): _dequantize,
        OpName("plain.quantize_scaled"): lambda attrs: quantize_scaled(attrs, whole=False),
        OpName("plain.shift"): _shift,
        OpName("plain.channels_last"): _channels_last,
        **{OpName(f"plain.{name}"): binder for name, binder in PLAIN.items()},
        **{OpName(f"onednn.conv{n}d"): _conv(n) for n in (1, 2, 3)},
        OpName("onednn.conv2d_as_linear"): _conv2d_as_linear,
        OpName("onednn.conv2d_add"): _conv2d_add,
        **{OpName(f"onednn.conv_transpose{n}d"): _conv_transpose(n) for n in (1, 2, 3)},
        OpName("onednn.linear"): _linear,
        OpName("onednn.linear_add"): _linear_add,
        OpName("onednn.linear_dynamic"): _linear_dynamic,
        **{OpName(f"onednn.conv{n}d_dynamic"): _conv_dynamic(n) for n in (1, 2, 3)},
        OpName("plain.linear_weight_only"): _linear_weight_only,
        OpName("plain.embedding_weight_only"): _embedding_weight_only,
        OpName("plain.embedding_bag_weight_only"): _embedding_bag_weight_only,
        OpName("plain.table"): _table,
        OpName("native.table"): _native_table,
        **{OpName(f"plain.{op}"): _plain_average(op) for op in AVERAGING},
        OpName("native.linear_float16"): _linear_float16,
        OpName("native.linear_dynamic"): _native_linear_dynamic,
        OpName("onednn.add"): _pair("add"),
        OpName("onednn.mul"): _pair("mul"),
        OpName("native.quantize"): _native_quantize,
        OpName("native.dequantize"): _native_dequantize,
        OpName("native.wrap"): _native_wrap,
        OpName("native.unwrap"): _native_unwrap,
        **{
            OpName(f"native.conv{n}d"): _native_weighted(f"conv{n}d", _conv_prepack(n))
            for n in (1, 2, 3)
        },
        **{OpName(f"native.conv_transpose{n}d"): _native_conv_transpose(n) for n in (1, 2, 3)},
        OpName("native.linear"): _native_weighted("linear", _linear_prepack),
        OpName("native.linear_post"): _native_pointwise(_linear),
        OpName("native.conv2d_add"): _native_pointwise(_conv2d_add),
        **{OpName(f"packed.conv{n}d"): _packed_conv(n) for n in (1, 2, 3)},
        **{
            OpName(f"native.{name}_{kind}"): make(name)
            for name in LAYERS
            for kind, make in (
                ("dynamic", _native_recurrent_dynamic),
                ("float16", _native_recurrent_float16),
            )
        },
        **{
            OpName(f"native.{name}_{kind}"): make(name)
            for name in CELLS
            for kind, make in (
                ("dynamic", _native_cell_dynamic),
                ("float16", _native_cell_float16),
            )
        },
        OpName("native.add"): _native_pair("add"),
        OpName("native.mul"): _native_pair("mul"),
        OpName("native.add_number"): _native_number("add"),
        OpName("native.mul_number"): _native_number("mul"),
        OpName("native.sigmoid"): _native_fixed(torch.sigmoid, 1 / 256, 0),
        OpName("native.tanh"): _native_fixed(torch.tanh, 2 / 256, 128),
        OpName("native.hardsigmoid"): _native_fixed(torch.nn.functional.hardsigmoid, 1 / 256, 0),
        OpName("native.hardswish"): _native_alone("hardswish"),
        OpName("native.leaky_relu"): _native_leaky_relu,
        OpName("native.elu"): _native_alone("elu", "alpha", "factor", "input_scale"),
        OpName("native.celu"): _native_alone("celu", "alpha"),
        **{OpName(f"native.{op}"): _native_pair("matmul") for op in CONTRACTIONS},
        **{OpName(f"native.{op}"): binder for op, binder in LONE.items()},
        **{OpName(f"plain.{op}"): _plain_lone(binder) for op, binder in LONE.items()},
        **{OpName(f"plain.{op}"): _plain_lone(_native_pair("matmul"), 2) for op in CONTRACTIONS},
        **{
            OpName(f"native.{op}"): _native_direct(op)
            if op in (*VIEWS, *AVERAGING)
            else _native_moving(PLAIN[op] if op in PLAIN else canonical(op))
            for op in (*MOVING, *ZERO_AWARE, *AVERAGING)
        },
        OpName("native.interpolate"): _native_interpolate,
    }
)
"""Every kernel by its name."""


def _function(op: OpName) -> Run:
    """The kernel as an ordinary function: operands by position, attributes by name.

    It packs weights in every call; a materialized module binds its attributes instead.
    """

    def kernel(*operands: Any, **attrs: Any) -> Any:
        return BINDERS[op](attrs)(*operands)

    kernel.__name__ = kernel.__qualname__ = op.replace(".", "_")
    kernel.__doc__ = f"The kernel `{op}`, attributes by name."
    return kernel


FUNCTIONS: Mapping[OpName, Run] = MappingProxyType({op: _function(op) for op in BINDERS})
"""Every kernel as a function; `fqx.edge.kernels.onednn_linear` is the one of `onednn.linear`."""

_BOUND: Mapping[Run, OpName] = MappingProxyType({call: op for op, call in FUNCTIONS.items()})


def op_of_function(function: Run) -> OpName | None:
    """Which kernel a function is; None for any other function."""
    return _BOUND.get(function)


def __getattr__(name: str) -> Run:
    """The kernel functions by name, for the code that torch.fx prints."""
    for op, call in FUNCTIONS.items():
        if op.replace(".", "_") == name:
            return call
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
