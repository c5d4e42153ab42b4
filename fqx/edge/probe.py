"""What this machine's kernels really compute: each one tried on small integers.

Without VNNI x86 kernels sum pairs of products in int16 and saturate without a word. Every kernel of
a target is therefore given sums at its limits and compared with exact integer arithmetic: first in
the target's own range, then in the narrow one. A kernel that is wrong there as well, or that this
torch does not have, leaves the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fqx.edge.kernels import bind
from fqx.ir.arg import Arg
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import OpName
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success, attempt, fold
from fqx.policy.target import Target
from fqx.policy.units import Mode


@dataclass(frozen=True, slots=True)
class Trial:
    """One kernel on one set of integers: what it is, and how far it is from exact arithmetic.

    `error` is the largest difference in quanta, `problem` what was raised instead of a result.
    """

    kernel: OpName
    case: str
    error: float
    problem: str = ""

    @property
    def passes(self) -> bool:
        """Within one quantum."""
        return not self.problem and self.error <= 1.0


def probe(target: Target) -> Result[Target, Fault]:
    """The target as this machine has it: narrowed where sums saturate, without absent kernels.

    Fails with UNSUPPORTED_TARGET if no weighted kernel of it is right here, naming the first
    mistake. Takes some ten milliseconds and leaves torch's settings alone.
    """
    if not _tried(target):
        return Success(target)
    wide = trials(target)
    if all(trial.passes for trial in wide):
        return Success(target)
    narrow = target if target.isa == "any" else target.narrowed()
    again = trials(narrow)
    gained = {t.kernel for t in again if t.passes} - {t.kernel for t in wide if t.passes}
    saturates = any(not t.passes and not t.problem for t in wide) and _helps(wide, again)
    best, seen = (narrow, again) if saturates or gained else (target, wide)
    return _without(best, seen)


def trials(target: Target) -> tuple[Trial, ...]:
    """Every trial of every kernel of a target, in its own integer ranges."""
    with torch.no_grad():
        return tuple(trial for op in _tried(target) for trial in _trials(target, op))


def _tried(target: Target) -> tuple[OpName, ...]:
    listed = dict.fromkeys(kind.kernel for kind in target.units if kind.kernel is not None)
    packed = (kernel.op for kernel in target.kernels if kernel.op.startswith("packed."))
    return tuple(op for op in (*listed, *packed) if op in _CASES)


def _helps(wide: tuple[Trial, ...], narrow: tuple[Trial, ...]) -> bool:
    return any(not one.passes and two.passes for one, two in zip(wide, narrow, strict=True))


def _without(target: Target, seen: tuple[Trial, ...]) -> Result[Target, Fault]:
    wrong = {trial.kernel: trial for trial in seen if not trial.passes}
    # dynamic kernels run the static ones' arithmetic and stand or fall with them
    kept = tuple(kind for kind in target.units if _static(kind.kernel) not in wrong)
    kernels = tuple(kernel for kernel in target.kernels if kernel.op not in wrong)
    if any(kind.weight is not None and kind.mode is Mode.STATIC for kind in kept):
        return Success(replace(target, units=kept, kernels=kernels))
    first = next(iter(wrong.values()))
    said = first.problem or f"it is off by {first.error:g} quanta"
    return Failure(
        Fault(
            FaultKind.UNSUPPORTED_TARGET,
            f"{target.label}: {first.kernel} does not work on this machine ({first.case}): {said}",
            "choose another target; `reference` runs everywhere",
        )
    )


def _static(kernel: OpName | None) -> OpName | None:
    return None if kernel is None else OpName(kernel.removesuffix("_dynamic"))


# Cases: integers at the limits, and small ones of every sign.


@dataclass(frozen=True, slots=True)
class _Case:
    """Operands as integers and the attributes of a convolution."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    attrs: Mapping[str, Any]


def _conv_cases(dims: int) -> Iterator[_Case]:
    ones, halves = (1,) * dims, (1,) * dims
    attrs = {"stride": ones, "padding": (0,) * dims, "dilation": ones, "groups": 1}
    yield _Case("256 channels", (1, 256, *(4,) * dims), (16, 256, *ones), attrs)
    padded = {**attrs, "padding": halves}
    yield _Case("padded 3-wide", (2, 16, *(5,) * dims), (8, 16, *(3,) * dims), padded)
    # x86 takes another engine beyond 100 groups
    deep = {**padded, "groups": 128}
    yield _Case("depthwise", (1, 128, *(4,) * dims), (128, 1, *(3,) * dims), deep)
    yield _Case("grouped", (1, 32, *(5,) * dims), (32, 16, *(3,) * dims), {**padded, "groups": 2})


def _transposed_cases(dims: int) -> Iterator[_Case]:
    ones = (1,) * dims
    attrs = {
        "stride": (2,) * dims,
        "padding": ones,
        "output_padding": (0,) * dims,
        "groups": 1,
        "dilation": ones,
    }
    yield _Case("64 channels", (1, 64, *(4,) * dims), (64, 8, *(3,) * dims), attrs)
    grouped = {**attrs, "groups": 2}
    yield _Case("grouped", (2, 32, *(3,) * dims), (32, 8, *(2,) * dims), grouped)


def _linear_cases(_: int) -> Iterator[_Case]:
    yield _Case("256 features", (4, 256), (16, 256), {})
    yield _Case("three axes", (2, 3, 40), (8, 40), {})


_CASES: Mapping[OpName, tuple[Callable[[int], Iterator[_Case]], int]] = MappingProxyType(
    {
        **{OpName(f"onednn.conv{n}d"): (_conv_cases, n) for n in (1, 2, 3)},
        **{OpName(f"packed.conv{n}d"): (_conv_cases, n) for n in (1, 2, 3)},
        **{OpName(f"native.conv{n}d"): (_conv_cases, n) for n in (1, 2, 3)},
        **{
            OpName(f"{target}.conv_transpose{n}d"): (_transposed_cases, n)
            for target in ("native", "onednn")
            for n in (1, 2, 3)
        },
        OpName("onednn.conv2d_add"): (_conv_cases, 2),
        OpName("onednn.linear"): (_linear_cases, 0),
        OpName("onednn.linear_add"): (_linear_cases, 0),
        OpName("native.linear_post"): (_linear_cases, 0),
        OpName("native.conv2d_add"): (_conv_cases, 2),
        OpName("native.linear"): (_linear_cases, 0),
        OpName("onednn.add"): (_linear_cases, 0),
        OpName("onednn.mul"): (_linear_cases, 0),
        OpName("native.add"): (_linear_cases, 0),
        OpName("native.mul"): (_linear_cases, 0),
    }
)


def _trials(target: Target, op: OpName) -> Iterator[Trial]:
    cases, dims = _CASES[op]
    for case in cases(dims):
        for name, x, weight in _fillings(target, case):
            yield _trial(target, op, replace(case, name=f"{case.name}, {name}"), x, weight)


def _trial(target: Target, op: OpName, case: _Case, x: Tensor, weight: Tensor) -> Trial:
    tried = attempt(
        lambda: _error(target, op, case, x, weight),
        lambda error: (str(error) or type(error).__name__).splitlines()[0],
    )
    return fold(
        tried,
        lambda error: Trial(op, case.name, error),
        lambda problem: Trial(op, case.name, 0.0, problem),
    )


def _fillings(target: Target, case: _Case) -> Iterator[tuple[str, Tensor, Tensor]]:
    """All at the limit, halves of both signs, and a fixed pattern of everything."""
    top, low, high = target.activation.qmax, target.weight.qmin, target.weight.qmax
    full, most = torch.full(case.x, top), torch.full(case.weight, high)
    yield "largest", full, most
    yield "most negative", full, torch.full(case.weight, low)
    count, size = full.numel(), most.numel()
    x = (torch.arange(count) * 37 % (top + 1)).reshape(case.x)
    weight = (torch.arange(size) * 53 % (high - low + 1) + low).reshape(case.weight)
    yield "mixed", x, weight


def _error(target: Target, op: OpName, case: _Case, x: Tensor, weight: Tensor) -> float:
    """The largest difference from exact arithmetic, in quanta of the result."""
    name = op.rpartition(".")[2]
    trial = _pair_trial if name in ("add", "mul") else _weighted_trial
    exact, run = trial(target, op, name, case, x, weight)
    low, high = float(exact.min()), float(exact.max())
    scale = float(torch.tensor(max(high - low, 1.0) / 200.0, dtype=torch.float32))
    zero_point = min(max(round(20 - low / scale), 0), target.activation.qmax)
    ends = (target.activation.qmin, target.activation.qmax)
    wanted = (exact / scale).round().add(zero_point).clamp(*ends)
    got = run({"scale": scale, "zero_point": zero_point, "qmin": ends[0], "qmax": ends[1]})
    return float((_plain(got).double() - wanted).abs().max())


_Run = Callable[[dict[str, Arg]], Tensor]


def _plain(value: Tensor) -> Tensor:
    return value.int_repr() if value.is_quantized else value


def _held(target: Target, x: Tensor, scale: float, zero_point: int) -> Tensor:
    plain = x.to(torch.uint8)
    if target.form == "plain":
        return plain
    return torch._make_per_tensor_quantized_tensor(plain, scale, zero_point)


def _pair_trial(
    target: Target, op: OpName, name: str, _case: _Case, x: Tensor, _weight: Tensor
) -> tuple[Tensor, _Run]:
    y = x.flip(-1) // 2
    left, right = (x.double() - 3) * 0.5, (y.double() - 7) * 0.25
    exact = left + right if name == "add" else left * right
    operands = (_held(target, x, 0.5, 3), _held(target, y, 0.25, 7))
    known: dict[str, Arg] = {"relu": False}
    if target.form == "plain":
        known |= {"x_scale": 0.5, "x_zero_point": 3, "y_scale": 0.25, "y_zero_point": 7}
        known["output"] = "uint8"
    return exact, lambda out: _run(op, {**known, **out}, operands)


def _weighted_trial(
    target: Target, op: OpName, name: str, case: _Case, x: Tensor, weight: Tensor
) -> tuple[Tensor, _Run]:
    zero, scale = 3, 0.125
    exact = _exact(name, (x - zero).double(), weight.double(), case.attrs) * scale
    known: dict[str, Arg] = dict(case.attrs)
    operands: tuple[Tensor | None, ...] = (
        _held(target, x, scale, zero),
        weight.to(torch.int8),
        torch.ones(1 if "transpose" in name else weight.shape[0]),
        None,
    )
    if target.form == "plain":
        known |= {"x_scale": scale, "x_zero_point": zero, "output": "uint8"}
        known |= {"activation": "none", "activation_args": ()}
        if op.startswith("packed."):
            known |= {"relu": False, "engine": "onednn"}
    else:
        known |= {"engine": target.engine} | ({} if "transpose" in name else {"relu": False})
        if name.endswith(("_post", "_add")):
            known |= {"x_scale": scale, "x_zero_point": zero}
        if name.endswith("_post"):
            del known["relu"]
            known |= {"activation": "none", "activation_args": ()}
    if name.endswith("_add"):
        other = torch.arange(exact.numel()).reshape(exact.shape) % 100
        exact = exact + (other.double() - 9) * 0.5
        operands = (*operands, _held(target, other, 0.5, 9))
        known |= {"other_scale": 0.5, "other_zero_point": 9, "relu": False, "keeps_other": True}
    return exact, lambda out: _run(op, {**known, **out}, operands)


def _run(op: OpName, attrs: dict[str, Arg], operands: tuple[Tensor | None, ...]) -> Tensor:
    result: Tensor = bind(op, FrozenMap(attrs))(*operands)
    return result


def _exact(name: str, x: Tensor, weight: Tensor, attrs: Mapping[str, Any]) -> Tensor:
    """The sums in float64, which holds them exactly."""
    if name.startswith("linear"):
        return x @ weight.T
    call: Any = getattr(torch.nn.functional, name.removesuffix("_add"))
    made: Tensor = call(x, weight, **attrs)
    return made
