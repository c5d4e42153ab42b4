"""Bound kernels: exact integers, packs that follow their weights, engines put back."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fqx.edge import kernels
from fqx.edge.kernels import BINDERS, FUNCTIONS, bind, integers, op_of_function
from fqx.edge.packing import quantized_weight
from fqx.ir.arg import Arg, DType
from fqx.ir.names import OpName
from fqx.kit.frozen import FrozenMap
from fqx.num import affine
from fqx.targets import native, onednn

RANGES = [(0, 255, "uint8"), (0, 127, "uint8"), (-128, 127, "int8"), (-127, 127, "int8")]


def bound(op: str, **attrs: Arg) -> Any:
    return bind(OpName(op), FrozenMap(attrs))


@pytest.mark.parametrize("zero", [0, 3, 127])
@pytest.mark.parametrize("ends", RANGES)
def test_quantize_is_the_formula_bit_for_bit(ends: tuple[int, int, str], zero: int) -> None:
    low, high, output = ends
    scale = 0.037
    halves = (torch.arange(-4000, 4000) * 0.5) * torch.tensor(scale)
    noise = torch.randn(20000, generator=torch.Generator().manual_seed(0)) * 5
    edges = torch.tensor([torch.inf, -torch.inf, 1e30, -1e30, 0.0, -0.0])
    x = torch.cat([halves, noise, edges])
    run = bound("quantize", scale=scale, zero_point=zero, qmin=low, qmax=high, output=output)
    wanted = affine.quantize(x, scale, zero, low, high, DType(output))
    assert torch.equal(run(x), wanted)
    assert torch.equal(
        run(x.double()), affine.quantize(x.double(), scale, zero, low, high, DType(output))
    )


@pytest.mark.parametrize("zero", [0, 77])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_dequantize_is_the_formula_bit_for_bit(dtype: DType, zero: int) -> None:
    q = torch.arange(256).to(torch.uint8)
    run = bound("dequantize", scale=0.037, zero_point=zero, dtype=dtype)
    assert torch.equal(run(q), affine.dequantize(q, 0.037, zero, dtype))


def test_quantizing_reads_only() -> None:
    x = torch.randn(64, requires_grad=True)
    kept = x.detach().clone()
    result = bound("quantize", scale=0.1, zero_point=3, qmin=0, qmax=255, output="uint8")(x)
    assert torch.equal(x, kept)
    assert not result.requires_grad


SIZES = [(1,), (15,), (16,), (35,), (4, 8, 6, 6), (3, 5, 7), (2, 16, 5, 5)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("op", ["add", "mul"])
@pytest.mark.parametrize("layout", ["same", "mixed", "transposed", "broadcast"])
def test_onednn_pairs_are_right_in_every_layout(
    op: str, shape: tuple[int, ...], layout: str
) -> None:
    """torch's kernels read full vectors of uint8 as int8 and the rest as uint8."""
    drawn = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, shape, generator=drawn, dtype=torch.uint8)
    y = torch.randint(0, 256, shape, generator=drawn, dtype=torch.uint8)
    if layout == "mixed" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        x, y = x.transpose(0, -1), y.transpose(0, -1)
    if layout == "broadcast":
        y = y[..., :1]
    one, two = (x.double() - 7) * 0.031, (y.double() - 201) * 0.017
    exact = one + two if op == "add" else one * two
    attrs: dict[str, Arg] = {"x_scale": 0.031, "x_zero_point": 7, "scale": 0.0419}
    attrs |= {"y_scale": 0.017, "y_zero_point": 201, "zero_point": 90, "qmin": 0, "qmax": 255}
    got = bound(f"onednn.{op}", **attrs, output="uint8", relu=False)(x, y)
    wanted = (exact / 0.0419).round().add(90).clamp(0, 255)
    difference = (got.double() - wanted).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() <= max(0.002, 1 / difference.numel())


def conv(op: str = "onednn.conv2d", /, **more: Arg) -> Any:
    attrs: dict[str, Arg] = {"x_scale": 0.1, "x_zero_point": 3, "scale": 0.5, "zero_point": 9}
    attrs |= {"qmin": 0, "qmax": 255, "output": "uint8", "activation": "none"}
    attrs |= {"activation_args": (), "groups": 1}
    attrs |= {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    return bound(op, **(attrs | more))


def operands() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (2, 4, 6, 6), generator=drawn, dtype=torch.uint8)
    weight = torch.randint(-127, 128, (8, 4, 3, 3), generator=drawn, dtype=torch.int8)
    return x, weight, torch.rand(8, generator=drawn) * 0.01, torch.randn(8, generator=drawn)


def test_a_pack_follows_its_weight() -> None:
    x, weight, scale, bias = operands()
    run = conv()
    first = run(x, weight, scale, bias)
    assert torch.equal(run(x, weight.clone(), scale, bias), first)
    weight.copy_(weight.flip(0))
    edited = run(x, weight, scale, bias)
    assert not torch.equal(edited, first)
    assert torch.equal(edited, conv()(x, weight, scale, bias))
    assert not torch.equal(run(x, weight, scale * 2, bias), edited)
    assert not torch.equal(run(x, weight, scale, None), edited)


def test_weights_of_inference_mode_are_taken() -> None:
    x, weight, scale, bias = operands()
    wanted = conv()(x, weight, scale, bias)
    with torch.inference_mode():
        inside = weight.clone()
    assert torch.equal(conv()(x, inside, scale, bias), wanted)


def test_a_narrow_range_bounds_the_result() -> None:
    x, weight, scale, bias = operands()
    wide = conv()(x, weight, scale, bias)
    narrow = conv(qmax=127)(x, weight, scale, bias)
    assert wide.max() > 127
    assert torch.equal(narrow, wide.clamp(0, 127))


@pytest.mark.parametrize("engine", native.ENGINES)
def test_engines_are_put_back(engine: str) -> None:
    before = torch.backends.quantized.engine
    x, weight, scale, bias = operands()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held = bound("native.quantize", scale=0.1, zero_point=3, qmin=0, qmax=127)(x.float() / 30)
        run = bound(
            "native.conv2d",
            scale=0.5,
            zero_point=9,
            qmin=0,
            qmax=127,
            stride=(1, 1),
            padding=(1, 1),
            dilation=(1, 1),
            groups=1,
            relu=False,
            engine=engine,
        )
        made = run(held, weight, scale, bias)
    assert torch.backends.quantized.engine == before
    assert int(made.int_repr().max()) <= 127
    assert torch.equal(integers(made), made.int_repr())


def test_packing_in_threads_gives_one_answer() -> None:
    x, weight, scale, bias = operands()
    run, wanted = conv(), conv()(x, weight, scale, bias)
    found: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.append(run(x, weight, scale, bias))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(item, wanted) for item in found)


def test_every_schema_has_a_kernel_and_every_kernel_a_function() -> None:
    listed = {row.op for row in (*onednn.KERNELS, *native.KERNELS)}
    assert listed | {OpName("quantize"), OpName("dequantize")} == set(BINDERS)
    for op, call in FUNCTIONS.items():
        assert getattr(kernels, op.replace(".", "_")) is call
        assert op_of_function(call) == op
    with pytest.raises(AttributeError, match="nothing"):
        kernels.nothing  # noqa: B018


def quantized(shape: tuple[int, ...], scale: float = 0.0413, zero: int = 60) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 2
    return torch.quantize_per_tensor(values, scale, zero, torch.quint8)


OUT: dict[str, Arg] = {"scale": 0.0191, "zero_point": 50, "qmin": 0, "qmax": 255, "engine": "x86"}


def peers() -> dict[str, tuple[dict[str, Arg], Callable[[Tensor], Tensor]]]:
    """Kernels with their attributes, and torch's own quantized modules of the same meaning."""
    from torch.ao.nn import quantized as nnq

    out = (0.0191, 50)
    elu: dict[str, Arg] = {"alpha": 0.7, "factor": 1, "input_scale": 1}
    return {
        "sigmoid": ({}, nnq.Sigmoid(*out)),
        "hardswish": ({}, nnq.Hardswish(*out)),  # type: ignore[no-untyped-call]  # torch's
        "leaky_relu": ({"negative_slope": 0.3}, nnq.LeakyReLU(*out, 0.3)),
        "elu": (elu, nnq.ELU(*out, 0.7)),  # type: ignore[no-untyped-call]  # torch's
        "celu": ({"alpha": 0.7}, lambda x: torch.ops.quantized.celu(x, *out, 0.7)),
        "softmax": ({"dim": 1, "dtype": None}, nnq.Softmax(1, *out)),  # type: ignore[no-untyped-call]  # torch's
    }


@pytest.mark.parametrize("shape", [(2, 8, 6, 6), (3, 35)], ids=str)
@pytest.mark.parametrize("op", ["sigmoid", "hardswish", "leaky_relu", "elu", "celu", "softmax"])
def test_activations_are_torchs_bit_for_bit(op: str, shape: tuple[int, ...]) -> None:
    attrs, peer = peers()[op]
    x = quantized(shape)
    got, wanted = bound(f"native.{op}", **OUT, **attrs)(x), peer(x)
    assert torch.equal(got.int_repr(), wanted.int_repr())
    assert (got.q_scale(), got.q_zero_point()) == (0.0191, 50)


@pytest.mark.parametrize("op", ["tanh", "hardsigmoid"])
def test_activations_of_one_scale_are_torchs_bit_for_bit(op: str) -> None:
    x = quantized((3, 35))
    wanted = torch.tanh(x) if op == "tanh" else torch.nn.functional.hardsigmoid(x)
    held: dict[str, Arg] = {"scale": wanted.q_scale(), "zero_point": wanted.q_zero_point()}
    got = bound(f"native.{op}", **(OUT | held))(x)
    assert torch.equal(got.int_repr(), wanted.int_repr())


@pytest.mark.parametrize("acts", [False, True])
def test_norms_are_torchs_bit_for_bit(acts: bool) -> None:
    from torch.ao.nn import quantized as nnq

    x, drawn = quantized((2, 8, 6, 6)), torch.Generator().manual_seed(4)
    weight, bias, mean = (
        torch.nn.Parameter(torch.randn(8, generator=drawn), requires_grad=False) for _ in range(3)
    )
    var = torch.rand(8, generator=drawn) + 0.1
    attrs: dict[str, Arg] = {"training": False, "momentum": 0.1, "eps": 1e-5, "relu": acts}
    got = bound("native.batch_norm", **OUT, **attrs)(x, weight, bias, mean, var)
    batch = torch.ops.quantized.batch_norm2d_relu if acts else torch.ops.quantized.batch_norm2d
    wanted = batch(x, weight, bias, mean, var, 1e-5, 0.0191, 50)
    assert torch.equal(got.int_repr(), wanted.int_repr())
    group = nnq.GroupNorm(2, 8, weight, bias, 0.0191, 50)
    got = bound("native.group_norm", **OUT, groups=2, eps=1e-5)(x, weight, bias)
    assert torch.equal(got.int_repr(), group(x).int_repr())
    instance = nnq.InstanceNorm2d(8, weight, bias, 0.0191, 50)
    got = bound("native.instance_norm", **OUT, eps=1e-5)(x, weight, bias, None, None)
    assert torch.equal(got.int_repr(), instance(x).int_repr())
    scaled, moved = (torch.nn.Parameter(held[:6], requires_grad=False) for held in (weight, bias))
    layer = nnq.LayerNorm((6,), scaled, moved, 0.0191, 50)
    got = bound("native.layer_norm", **OUT, shape=(6,), eps=1e-5)(x, scaled, moved)
    assert torch.equal(got.int_repr(), layer(x).int_repr())


def test_matrix_products_are_torchs_bit_for_bit() -> None:
    x, y = quantized((2, 5, 7)), quantized((2, 7, 3), 0.03, 40)
    got = bound("native.matmul", **OUT)(x, y)
    assert torch.equal(got.int_repr(), torch.ops.quantized.matmul(x, y, 0.0191, 50).int_repr())
    got = bound("native.mul", **OUT, relu=True)(x, x)
    assert torch.equal(got.int_repr(), torch.ops.quantized.mul_relu(x, x, 0.0191, 50).int_repr())


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("zero", [0, 77])
@pytest.mark.parametrize("groups,kernel", [(1, 1), (1, 3), (2, 3), (8, 3)])
def test_packed_convolutions_give_the_pointwise_ones_integers(
    groups: int, kernel: int, zero: int, relu: bool
) -> None:
    drawn = torch.Generator().manual_seed(5)
    x = torch.randint(0, 256, (2, 8, 9, 9), generator=drawn, dtype=torch.uint8)
    x = x.to(memory_format=torch.channels_last)
    shape = (16, 8 // groups, kernel, kernel)
    weight = torch.randint(-127, 128, shape, generator=drawn, dtype=torch.int8)
    scale, bias = torch.rand(16, generator=drawn) * 0.02, torch.randn(16, generator=drawn)
    more: dict[str, Arg] = {"x_zero_point": zero, "groups": groups, "stride": (2, 2)}
    more |= {"padding": (kernel // 2,) * 2}
    wanted = conv(**more, activation="relu" if relu else "none")(x, weight, scale, bias)
    run = packed(**more, relu=relu)
    got = run(x, weight, scale, bias)
    assert torch.equal(got, wanted)
    assert got.stride() == wanted.stride()
    # a result of its own: writing into it, or into the operands, leaves the next call alone
    got.fill_(0)
    bias.neg_()
    again = run(x.contiguous(), weight, scale, bias)
    assert torch.equal(
        again, conv(**more, activation="relu" if relu else "none")(x, weight, scale, bias)
    )


def packed(**more: Arg) -> Any:
    attrs: dict[str, Arg] = {"x_scale": 0.1, "x_zero_point": 3, "scale": 0.5, "zero_point": 9}
    attrs |= {"qmin": 0, "qmax": 255, "output": "uint8", "relu": False, "engine": "onednn"}
    attrs |= {"groups": 1, "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    return bound("packed.conv2d", **(attrs | more))


def test_packed_convolutions_in_threads_and_in_every_mode() -> None:
    x, weight, scale, bias = operands()
    run, wanted = packed(), conv()(x, weight, scale, bias)
    found: list[Tensor] = []
    workers = [
        threading.Thread(
            target=lambda: found.extend(run(x, weight, scale, bias) for _ in range(50))
        )
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 200
    assert all(torch.equal(item, wanted) for item in found)
    with torch.inference_mode():
        assert torch.equal(run(x.clone(), weight, scale, bias), wanted)
    with torch.enable_grad():
        assert torch.equal(run(x, weight, scale, bias), wanted)
    assert run(x[:0], weight, scale, bias).shape == (0, 8, 6, 6)


@pytest.mark.parametrize("zero", [0, 77])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_of_points_as_a_linear_gives_its_integers(
    layout: torch.memory_format, zero: int
) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(0, 256, (2, 24, 5, 7), generator=generator).to(torch.uint8)
    x = x.contiguous(memory_format=layout)
    weight = torch.randint(-127, 128, (10, 24, 1, 1), generator=generator).to(torch.int8)
    scale, bias = torch.rand(10, generator=generator) * 0.01, torch.randn(10, generator=generator)
    attrs: dict[str, Arg] = {"x_zero_point": zero, "activation": "hardswish", "padding": (0, 0)}
    wanted, got = (
        conv(op, **attrs)(x, weight, scale, bias)
        for op in ("onednn.conv2d", "onednn.conv2d_as_linear")
    )
    assert got.is_contiguous(memory_format=torch.channels_last)
    # the two multiply by the scales in another order
    apart = (got.int() - wanted.int()).abs()
    assert int(apart.max()) <= 1
    assert int((apart > 0).sum()) <= 1


def test_channels_last_changes_the_layout_alone() -> None:
    x = torch.randn(2, 3, 4, 5)
    made = bound("plain.channels_last")(x)
    assert torch.equal(made, x)
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", ["leaky_relu", "tanh"])
@pytest.mark.parametrize("shape", [(4, 16, 8), (33, 64, 100)], ids=str)
def test_a_linear_with_an_activation_is_torchs_bit_for_bit(
    op: str, shape: tuple[int, int, int]
) -> None:
    """torch's own runs under its engine onednn alone; this one does whatever the engine is."""
    rows, features, count = shape
    weight, scale, bias = weight_of((count, features))
    x, args = quantized((rows, features), 0.05, 103), (0.2,) if op == "leaky_relu" else ()
    post: dict[str, Arg] = {"activation": op, "activation_args": args}
    run = bound("native.linear_post", x_scale=0.05, x_zero_point=103, **post, **OUT)
    got = run(x, weight, scale, bias)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"
    held = torch.ops.quantized.linear_prepack(quantized_weight(weight, scale), bias)
    theirs = getattr(torch.ops.quantized, f"linear_{op}")(x, held, 0.0191, 50, *args)
    torch.backends.quantized.engine = before
    assert torch.equal(got.int_repr(), theirs.int_repr())
    assert (got.q_scale(), got.q_zero_point()) == (theirs.q_scale(), 50)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_with_an_addition_is_torchs_bit_for_bit(relu: bool, groups: int) -> None:
    weight, scale, bias = weight_of((16, 8 // groups, 3, 3))
    x, other = quantized((2, 8, 9, 9), 0.05, 103), quantized((2, 16, 9, 9), 0.07, 90)
    place: dict[str, Arg] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    known: dict[str, Arg] = {"x_scale": 0.05, "x_zero_point": 103, "other_scale": 0.07}
    known |= {"other_zero_point": 90, "keeps_other": True, "relu": relu, "groups": groups}
    kept = other.int_repr()
    got = bound("native.conv2d_add", **place, **known, **OUT)(x, weight, scale, bias, other)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"
    held = torch.ops.quantized.conv2d_prepack(
        quantized_weight(weight, scale), bias, [1, 1], [1, 1], [1, 1], groups
    )
    name = "conv2d_add_relu" if relu else "conv2d_add"
    theirs = getattr(torch.ops.quantized, name)(x, other, held, 0.0191, 50)
    torch.backends.quantized.engine = before
    assert torch.equal(got.int_repr(), theirs.int_repr())
    assert torch.equal(other.int_repr(), kept)


def weight_of(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, a scale for each of axis 0, and a bias."""
    drawn = torch.Generator().manual_seed(6)
    integers = torch.randint(-127, 128, shape, generator=drawn, dtype=torch.int8)
    scale = torch.rand(shape[0], generator=drawn) * 0.01 + 0.001
    return integers, scale, torch.randn(shape[0], generator=drawn)


@pytest.mark.parametrize("channels", [3, 24, 32, 40])
@pytest.mark.parametrize(
    "window,stride,padding,dilation",
    [
        ((3, 3), (2, 2), (1, 1), (1, 1)),
        ((2, 2), (2, 2), (0, 0), (1, 1)),
        ((3, 2), (1, 2), (1, 0), (2, 1)),
        ((1, 3), (1, 1), (0, 1), (1, 1)),
        ((5, 5), (1, 1), (2, 2), (1, 1)),
    ],
)
def test_max_pools_are_torchs_for_every_number_of_channels(
    channels: int,
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    drawn = torch.Generator().manual_seed(channels)
    x = torch.randint(0, 256, (2, channels, 11, 14), generator=drawn, dtype=torch.uint8)
    attrs: dict[str, Arg] = {"kernel_size": window, "stride": stride, "padding": padding}
    run = bound("plain.max_pool2d", **attrs, dilation=dilation, ceil_mode=False)
    place = (window, stride, padding, dilation)
    wanted = torch.nn.functional.max_pool2d(x.float(), *place).to(torch.uint8)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=layout)
        got = run(given)
        assert torch.equal(got, wanted)
        assert torch.equal(given, x)
        assert got.data_ptr() != given.data_ptr()
        assert got.is_contiguous(memory_format=layout)
