"""`python -m fqx.bench.costs`: measure a grid of calls, fit the formulas of a table of costs.

Prints the formulas as `fqx/targets/timings.py` holds them, each with the number of calls and the
median relative error of its fit.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from types import MappingProxyType

import torch

from fqx.audit.costs import measure_calls
from fqx.ir.arg import Arg, DType
from fqx.ir.names import OpName
from fqx.kit.frozen import FrozenMap
from fqx.policy.costs import SCALE, SHIFTED, Call, Formula, Given, Shaped, family, work

_U8, _I8, _F32 = DType.UINT8, DType.INT8, DType.FLOAT32
_OUT: Mapping[str, Arg] = {"scale": SCALE, "qmin": 0, "qmax": 255}
_POST: Mapping[str, Arg] = {"activation": "none", "activation_args": ()}


def grid(most: int = 255) -> Iterator[Call]:
    """The calls that are measured, their integers from 0 to `most`."""
    for call in _calls():
        wide = call.attrs.get("qmax") == 255
        yield replace(call, attrs=call.attrs.put("qmax", most)) if wide else call


def _calls() -> Iterator[Call]:
    for shape, weight, stride, groups in _CONVOLUTIONS:
        yield from _convolutions(shape, weight, stride, groups)
    for rows in (1, 16, 64, 197, 1024):
        for wide, out in ((64, 64), (384, 384), (384, 1536), (768, 3072), (1024, 1000)):
            yield from _linears((rows, wide), (out, wide))
    for shape in (
        (1, 64, 1, 1),
        (1, 96, 7, 7),
        (1, 64, 28, 28),
        (1, 64, 56, 56),
        (1, 64, 112, 112),
    ):
        yield from _pointwise(shape)
        yield from _pools(shape)
    for shape in ((1, 16, 64), (1, 64, 384), (16, 64, 384), (8, 197, 768)):
        yield from _rows(shape)


def _squares() -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int, int]]:
    for wide, out in ((16, 16), (16, 64), (64, 24), (24, 72), (64, 64), (96, 576), (240, 40)):
        for side in (1, 7, 14, 28, 56):
            yield (1, wide, side, side), (out, wide, 1, 1), 1, 1
    for wide, out, side in ((128, 512, 28), (256, 1024, 14), (512, 2048, 7), (576, 144, 1)):
        yield (1, wide, side, side), (out, wide, 1, 1), 1, 1
        yield (1, out, side, side), (wide, out, 1, 1), 1, 1
    for wide, side in ((16, 56), (64, 56), (128, 28), (256, 14), (512, 7)):
        for stride in (1, 2):
            yield (1, wide, side, side), (wide, wide, 3, 3), stride, 1
    for out, window in ((16, 3), (32, 3), (64, 7)):
        yield (1, 3, 224, 224), (out, 3, window, window), 2, 1
    for wide, side in ((16, 112), (72, 56), (96, 28), (240, 14), (576, 7), (960, 7), (24, 14)):
        for window, stride in ((3, 1), (3, 2), (5, 1)):
            yield (1, wide, side, side), (wide, 1, window, window), stride, wide
    for wide, side, groups in ((128, 56, 32), (256, 28, 32), (64, 28, 4), (512, 14, 8)):
        yield (1, wide, side, side), (wide, wide // groups, 3, 3), 1, groups


_CONVOLUTIONS = tuple(_squares())


def _convolutions(
    x: tuple[int, ...], weight: tuple[int, ...], stride: int, groups: int
) -> Iterator[Call]:
    window = weight[2]
    side = (x[2] + 2 * (window // 2) - window) // stride + 1
    out = (x[0], weight[0], side, side)
    place: dict[str, Arg] = {
        "stride": (stride, stride),
        "padding": (window // 2, window // 2),
        "dilation": (1, 1),
        "groups": groups,
    }
    points = window == stride == groups == 1
    yield from _weighted("conv2d", x, weight, out, place, points)


def _linears(x: tuple[int, ...], weight: tuple[int, ...]) -> Iterator[Call]:
    yield from _weighted("linear", x, weight, (x[0], weight[0]), {}, points=False)


def _weighted(
    op: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    out: tuple[int, ...],
    place: Mapping[str, Arg],
    points: bool,
) -> Iterator[Call]:
    """One layer in float and in every kernel on integers."""
    bias = Shaped(_F32, (weight[0],))
    floats = (Shaped(_F32, x), Shaped(_F32, weight), bias)
    yield Call(OpName(op), floats, out, FrozenMap(place))
    operands: tuple[Given, ...] = (Shaped(_U8, x), Shaped(_I8, weight), bias, bias)
    for zero in (0, SHIFTED):
        ends = {**_OUT, "zero_point": zero, "x_zero_point": zero}
        attrs = {**place, **ends, "x_scale": SCALE, "output": "uint8"}
        names = (op, "conv2d_as_linear") if points else (op,)
        for name in names:
            yield Call(OpName(f"onednn.{name}"), operands, out, FrozenMap({**attrs, **_POST}))
        added: dict[str, Arg] = {"other_scale": SCALE, "other_zero_point": zero, "relu": True}
        yield Call(
            OpName(f"onednn.{op}_add"),
            (*operands, Shaped(_U8, out)),
            out,
            FrozenMap({**attrs, **added, "keeps_other": False}),
        )
        for engine in ("onednn", "fbgemm"):
            native = {**place, **ends, "qmax": 127, "relu": False, "engine": engine}
            yield Call(OpName(f"native.{op}"), operands, out, FrozenMap(native))
            if op == "conv2d":
                packed = {**attrs, "relu": False, "engine": engine}
                yield Call(OpName("packed.conv2d"), operands, out, FrozenMap(packed))


def _pointwise(shape: tuple[int, ...]) -> Iterator[Call]:
    codes, values, gate = Shaped(_U8, shape), Shaped(_F32, shape), (*shape[:2], 1, 1)
    full: dict[str, Arg] = {**_OUT, "zero_point": SHIFTED}
    yield Call(OpName("quantize"), (values,), shape, FrozenMap({**full, "output": "uint8"}))
    back: dict[str, Arg] = {"scale": SCALE, "zero_point": SHIFTED, "dtype": _F32}
    yield Call(OpName("dequantize"), (codes,), shape, FrozenMap(back))
    yield Call(OpName("native.quantize"), (values,), shape, FrozenMap(full))
    yield Call(OpName("native.dequantize"), (codes,), shape, FrozenMap({"dtype": _F32}))
    pair = {f"{side}_{name}": full[name] for side in "xy" for name in ("scale", "zero_point")}
    for other in dict.fromkeys((shape, gate)):
        for op in ("add", "mul"):
            sides = (codes, Shaped(_U8, other))
            acts: dict[str, Arg] = {"relu": False}
            attrs = {**full, **pair, **acts, "output": "uint8"}
            yield Call(OpName(f"onednn.{op}"), sides, shape, FrozenMap(attrs))
            native: dict[str, Arg] = {**full, "qmax": 127, "relu": False, "engine": "x86"}
            yield Call(OpName(f"native.{op}"), sides, shape, FrozenMap(native))
            alpha: dict[str, Arg] = {"alpha": 1} if op == "add" else {}
            floats = (values, Shaped(_F32, other))
            yield Call(OpName(op), floats, shape, FrozenMap(alpha))
    yield Call(OpName("permute"), (values,), shape, FrozenMap({"dims": (0, 2, 3, 1)}))
    yield Call(OpName("plain.channels_last"), (values,), shape)
    for op in ("relu", "hardswish", "hardsigmoid", "silu", "sigmoid", "tanh"):
        yield Call(OpName(op), (values,), shape)
    yield Call(OpName("gelu"), (values,), shape, FrozenMap({"approximate": "none"}))
    yield Call(OpName("leaky_relu"), (values,), shape, FrozenMap({"negative_slope": 0.01}))
    yield Call(OpName("clamp"), (values, 0.0, 6.0), shape)
    yield Call(OpName("plain.relu"), (codes,), shape, FrozenMap({"zero_point": SHIFTED}))
    yield Call(OpName("plain.clamp"), (codes,), shape, FrozenMap({"low": 0, "high": 99}))
    yield Call(OpName("plain.shift"), (Shaped(_I8, shape),), shape)
    steps: Arg = (("hardswish", (), FrozenMap({})),)
    read: dict[str, Arg] = {"x_scale": SCALE, "x_zero_point": SHIFTED, "steps": steps}
    attrs = {**full, **read}
    yield Call(OpName("plain.table"), (codes,), shape, FrozenMap({**attrs, "output": "uint8"}))
    yield Call(OpName("native.table"), (codes,), shape, FrozenMap({**attrs, "qmax": 127}))
    for op in ("hardswish", "sigmoid"):
        native = {**full, "qmax": 127, "engine": "x86"}
        yield Call(OpName(f"native.{op}"), (codes,), shape, FrozenMap(native))
    both = (2 * shape[0], *shape[1:])
    for operand in (codes, values):
        yield Call(OpName("cat"), ((operand, operand),), both, FrozenMap({"dim": 0}))
    yield Call(OpName("native.cat"), ((codes, codes),), both, FrozenMap({"dim": 0}))


def _pools(shape: tuple[int, ...]) -> Iterator[Call]:
    if shape[2] < 2:
        return
    out = (*shape[:2], shape[2] // 2, shape[3] // 2)
    window: dict[str, Arg] = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    window |= {"ceil_mode": False}
    for op, dtype in (("max_pool2d", _F32), ("plain.max_pool2d", _U8), ("native.max_pool2d", _U8)):
        attrs = FrozenMap({**window, "dilation": (1, 1)})
        yield Call(OpName(op), (Shaped(dtype, shape),), out, attrs)
    rest: dict[str, Arg] = {"count_include_pad": True, "divisor_override": None}
    yield Call(OpName("avg_pool2d"), (Shaped(_F32, shape),), out, FrozenMap({**window, **rest}))


def _rows(shape: tuple[int, ...]) -> Iterator[Call]:
    values = Shaped(_F32, shape)
    yield Call(OpName("softmax"), (values,), shape, FrozenMap({"dim": -1, "dtype": None}))
    bias = Shaped(_F32, shape[-1:])
    norm: dict[str, Arg] = {"shape": shape[-1:], "eps": 1e-5}
    yield Call(OpName("layer_norm"), (values, bias, bias), shape, FrozenMap(norm))


def fit(times: Sequence[tuple[Call, float]]) -> Formula:
    """The formula of least squared relative error with no negative part."""
    rows = torch.tensor([[1.0, work(c)[0] / 1e6, work(c)[1] / 1024] for c, _ in times]).double()
    took = torch.tensor([time for _, time in times]).double()
    scaled = rows / took.unsqueeze(1)
    best = (float("inf"), (0.0, 0.0, 0.0))
    for count in (1, 2, 3):
        for columns in combinations(range(3), count):
            part = scaled[:, list(columns)]
            found = torch.linalg.lstsq(part, torch.ones(len(took), 1).double(), driver="gelsd")
            values = found.solution.flatten()
            if bool((values < 0).any()):
                continue
            error = float((part @ values - 1.0).square().sum())
            if error < best[0] - 1e-12:
                whole = [0.0, 0.0, 0.0]
                for at, value in zip(columns, values.tolist(), strict=True):
                    whole[at] = value
                best = (error, (whole[0], whole[1], whole[2]))
    return Formula(*(float(f"{value:.4g}") for value in best[1]))


def fitted(times: Mapping[Call, float]) -> Iterator[tuple[str, Formula, int, float]]:
    """Each kernel's formula, the number of calls it was fitted to, its median relative error."""
    groups: dict[str, list[tuple[Call, float]]] = {}
    for call, time in times.items():
        name = "view" if call.op == "permute" else family(call)
        groups.setdefault(name, []).append((call, time))
        for whole, members in _OTHERS.items():
            if call.op in members:
                groups.setdefault(whole, []).append((call, time))
    for name, listed in sorted(groups.items()):
        formula = fit(listed)
        errors = [abs(formula.at(*work(call)) / time - 1.0) for call, time in listed]
        yield name, formula, len(listed), statistics.median(errors)


_OTHERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "other": ("relu", "add", "mul", "hardswish", "sigmoid", "cat"),
        "plain.other": ("plain.relu", "plain.shift", "plain.clamp"),
        "native.other": ("native.hardswish", "native.cat", "native.sigmoid"),
    }
)
"""The kernels that stand for those without a formula of their own."""


def main(words: Sequence[str] = ()) -> int:
    """Print the formulas; the word `narrow` is for integers of seven bits."""
    torch.set_num_threads(1)
    calls = tuple(dict.fromkeys(grid(127 if "narrow" in words else 255)))
    times = measure_calls(calls, rounds=40, repeats=3, budget=240.0)
    print(f"# {len(times)} of {len(calls)} calls")
    for name, item, count, error in fitted(times):
        numbers = f"{item.fixed}, {item.per_mac}, {item.per_byte}"
        print(f'    "{name}": Formula({numbers}),  # {count} calls, {error:.0%}')
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
