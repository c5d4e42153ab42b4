"""torch.ao's observers and fake-quants read as specs: by what they would do, not by their names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from fqx.ir.arg import DType
from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import Failure, Result, Success, attempt
from fqx.num.scheme import ObserverSpec, QSpec, When, check_qspec

Constructor = Callable[[], Any]
"""What a QConfig holds: a class, a partial or torch.ao's own wrapper of one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an observer's constructor asks for.

    `spec` None keeps floats of `dtype`. `reuses` asks for the integers of the operator's input, as
    layout operators have them anyway; `placeholder` says that nothing would be observed.
    """

    spec: QSpec | None
    dtype: torch.dtype = torch.float32
    is_dynamic: bool = False
    placeholder: bool = False
    reuses: bool = False


def spec_of_observer(
    constructor: Constructor, when: When = "static"
) -> Result[QSpec | None, Fault]:
    """How values behind such an observer become integers; None if they stay float32.

    `when` is "weight" for the observer of a weight. Fails as `read_observer` does.
    """
    return read_observer(constructor, when).map(lambda reading: reading.spec)


def read_observer(constructor: Constructor, when: When = "static") -> Result[Reading, Fault]:
    """What the constructor's observer would do, of an instance that is made and thrown away.

    Fails with BAD_RECIPE if it cannot be made, is no observer of torch.ao (or overrides how one
    observes), or asks for types or zero points that fqx does not have.
    """
    return made_observer(constructor).bind(lambda made: _read(made, when))


def made_observer(constructor: Constructor) -> Result[Any, Fault]:
    """An instance to look at, without torch.ao's warnings; BAD_RECIPE if it cannot be made."""

    def make() -> Any:
        with warnings.catch_warnings():
            # torch.ao warns at each observer of a reduced range, which was asked for
            warnings.simplefilter("ignore")
            return constructor()

    return attempt(
        make, lambda error: _bad(f"the observer {constructor!r} cannot be made: {error}")
    )


def _read(made: Any, when: When) -> Result[Reading, Fault]:
    from torch.ao.quantization import fake_quantize, observer

    if isinstance(made, torch.nn.Identity):
        return Success(Reading(None, placeholder=True))
    if isinstance(made, fake_quantize.FakeQuantize):
        return _read(made.activation_post_process, when)
    if isinstance(made, observer.ReuseInputObserver):
        return Success(Reading(None, made.dtype, placeholder=True, reuses=True))
    if isinstance(made, observer.NoopObserver | observer.PlaceholderObserver):
        return _placeholder(made, when)
    if isinstance(made, observer.FixedQParamsObserver):
        return _fixed(made)
    return _kind(made).bind(lambda spec: _uniform(made, spec, when))


def _placeholder(made: Any, when: When) -> Result[Reading, Fault]:
    """A placeholder observes nothing: float types, or ranges read at each call."""
    asked = "dynamic" if made.is_dynamic else when
    if made.dtype == torch.float32:
        return Success(Reading(None, made.dtype, made.is_dynamic, placeholder=True))
    if made.dtype == torch.float16:
        spec = QSpec(DType.FLOAT16, 0, 0, True, None, ObserverSpec(), asked)
        return Success(Reading(spec, made.dtype, made.is_dynamic, placeholder=True))
    if not made.is_dynamic:
        return Failure(_bad(f"a placeholder of {made.dtype} sees no range and is not dynamic"))
    return _integers(made.dtype).bind(
        lambda found: _checked(
            made,
            QSpec(
                found.dtype,
                found.qmin if made.quant_min is None else made.quant_min,
                found.qmax if made.quant_max is None else made.quant_max,
                made.qscheme in _symmetric(),
                None,
                ObserverSpec(formula="float32", least_scale=_eps(made)),
                asked,
            ),
            placeholder=True,
        )
    )


def _fixed(made: Any) -> Result[Reading, Fault]:
    """A known pair as the range whose scale and zero point it is, exactly."""
    scale, zero = float(made.scale), int(made.zero_point)
    if not made.quant_min <= zero <= made.quant_max:
        return Failure(_bad(f"the zero point {zero} is not in {made.quant_min}..{made.quant_max}"))
    low, high = (made.quant_min - zero) * scale, (made.quant_max - zero) * scale
    seen = ObserverSpec("fixed", low=low, high=high)
    return _integers(made.dtype).bind(
        lambda found: _checked(
            made, QSpec(found.dtype, made.quant_min, made.quant_max, observer=seen)
        )
    )


def _kind(made: Any) -> Result[ObserverSpec, Fault]:
    """What an observer collects; only of classes that observe as torch.ao's own do."""
    from torch.ao.quantization import observer

    kinds: tuple[tuple[type[Any], Callable[[], ObserverSpec]], ...] = (
        (
            observer.MovingAverageMinMaxObserver,
            lambda: ObserverSpec("moving_average", rate=float(made.averaging_constant)),
        ),
        (observer.MovingAveragePerChannelMinMaxObserver, lambda: _channels(made)),
        (observer.PerChannelMinMaxObserver, lambda: _channels(made)),
        (observer.MinMaxObserver, lambda: ObserverSpec("minmax")),
        (
            observer.HistogramObserver,
            # torch.ao's bins lie between least and greatest value, ours on each side of zero
            lambda: ObserverSpec("histogram", "mse", bins=max(16, _power_of_two(2 * made.bins))),
        ),
    )
    for kind, spec in kinds:
        if isinstance(made, kind) and all(
            getattr(type(made), name) is getattr(kind, name) for name in _MEANING
        ):
            return Success(spec())
    return Failure(_bad(f"{type(made).__qualname__} is no observer whose meaning is known"))


def _uniform(made: Any, seen: ObserverSpec, when: When) -> Result[Reading, Fault]:
    """The spec of an observer that collects ranges and computes in float32 from them."""
    asked: When = "dynamic" if made.is_dynamic else when
    float_zero = made.qscheme == torch.per_channel_affine_float_qparams
    if float_zero and asked != "weight":
        return Failure(_bad("float zero points are for tables of embeddings"))
    if asked != "static" and seen.kind == "moving_average":
        # the first batch sets the average, and a weight or a call is seen once
        seen = ObserverSpec("minmax")
    if asked == "static" and hasattr(made, "ch_axis") and hasattr(made, "averaging_constant"):
        return Failure(_bad("an average of each channel's range has no counterpart"))
    observer = ObserverSpec(
        seen.kind, seen.search, seen.axis, seen.bins, rate=seen.rate, formula="float32",
        least_scale=_eps(made),
    )  # fmt: skip
    symmetric = made.qscheme in _symmetric()
    zero = _zero(made) if symmetric else None
    if zero is not None and not made.quant_min <= zero <= made.quant_max:
        return Failure(_bad(f"the zero point {zero} is not in {made.quant_min}..{made.quant_max}"))
    middle = (made.quant_min + made.quant_max + 1) // 2
    return _integers(made.dtype).bind(
        lambda found: _checked(
            made,
            QSpec(
                found.dtype,
                made.quant_min,
                made.quant_max,
                symmetric,
                observer.axis,
                observer,
                asked,
                zero=None if zero == middle else zero,
                float_zero=float_zero,
            ),
        )
    )


def _checked(made: Any, spec: QSpec, placeholder: bool = False) -> Result[Reading, Fault]:
    return check_qspec(spec).map(
        lambda good: Reading(good, made.dtype, bool(made.is_dynamic), placeholder)
    )


def _channels(made: Any) -> ObserverSpec:
    return ObserverSpec("channel_minmax", axis=int(made.ch_axis))


def _zero(made: Any) -> int:
    """The zero point torch.ao gives a symmetric range."""
    if made.dtype not in (torch.quint8, torch.uint8):
        return 0
    return int((made.quant_min + made.quant_max) // 2) if made.has_customized_qrange else 128


@dataclass(frozen=True, slots=True)
class _Integers:
    dtype: DType
    qmin: int
    qmax: int


def _integers(dtype: torch.dtype) -> Result[_Integers, Fault]:
    """fqx's own type of torch's integers or quantized integers, and its whole range."""
    found = _INTEGERS.get(str(dtype).removeprefix("torch."))
    if found is None:
        return Failure(_bad(f"{dtype} is not a type values are quantized to"))
    return Success(found)


_UINT8, _INT8 = _Integers(DType.UINT8, 0, 255), _Integers(DType.INT8, -128, 127)
_INT32 = _Integers(DType.INT32, -(2**31), 2**31 - 1)
_INTEGERS: Mapping[str, _Integers] = MappingProxyType(
    {
        "quint4x2": _Integers(DType.UINT8, 0, 15),
        "quint8": _UINT8,
        "uint8": _UINT8,
        "qint8": _INT8,
        "int8": _INT8,
        "int16": _Integers(DType.INT16, -(2**15), 2**15 - 1),
        "qint32": _INT32,
        "int32": _INT32,
    }
)
_MEANING = ("forward", "calculate_qparams", "_calculate_qparams")


def _symmetric() -> tuple[object, ...]:
    return torch.per_tensor_symmetric, torch.per_channel_symmetric


def _eps(made: Any) -> float:
    return float(made.eps)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _bad(reason: str) -> Fault:
    return Fault(
        FaultKind.BAD_RECIPE, reason, "use an observer of torch.ao.quantization, or an fqx recipe"
    )
