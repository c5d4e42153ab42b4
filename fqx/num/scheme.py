"""What is measured at an edge, and how a value there becomes an integer: two plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from fqx.ir.arg import Arg, DType
from fqx.ir.fault import Fault, FaultKind
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, Success

ObserverKind: TypeAlias = Literal[
    "minmax", "channel_minmax", "histogram", "moving_average", "fixed"
]
"""What is collected. All but `moving_average` are commutative monoids."""

Search: TypeAlias = Literal["minmax", "percentile", "mse", "entropy"]
"""How a range is chosen from what was collected."""

Formula: TypeAlias = Literal["float64", "float32"]
"""The precision of averages, scale and zero point; float32 in the order of torch.ao's observers."""

When: TypeAlias = Literal["static", "dynamic", "weight"]
"""When scale and zero point are computed."""

BINS = 4096
"""Histogram bins unless told otherwise: 2048 on each side of zero."""


@dataclass(frozen=True, slots=True)
class ObserverSpec:
    """What an observer collects and how a range is read from it.

    * `minmax`: the least and the greatest value.
    * `channel_minmax`: the same for each index along `axis`; also gives the range of the whole.
    * `histogram`: `bins` integer counts (a power of two, at least 16) and the least and greatest
      value; with an `axis` also those of each channel.
    * `moving_average`: `low += rate * (batch low - low)`, likewise `high`: depends on the order.
    * `fixed`: collects nothing; the range is `low` to `high`.

    `search` is `minmax` for the whole range; a histogram also knows `percentile` (`percentile`
    per cent of the values lie inside), `mse` and `entropy`.

    `formula` is the precision in which averages and scales are computed; `least_scale` the least
    scale a range gives, which under float32 also an empty range gets.
    """

    kind: ObserverKind = "minmax"
    search: Search = "minmax"
    axis: int | None = None
    bins: int = BINS
    percentile: float = 99.99
    rate: float = 0.01
    low: float = 0.0
    high: float = 0.0
    formula: Formula = "float64"
    least_scale: float = 0.0


@dataclass(frozen=True, slots=True)
class QSpec:
    """How values of one edge become integers of `dtype` between `qmin` and `qmax`.

    `symmetric` puts zero in the middle of the integers; `axis` None is per tensor, an int per
    channel along that axis. `observer` says what the range is read from. `zero` is the integer a
    symmetric spec puts zero at where that is not the middle. `float_zero` lets the zero point be
    any float, as tables of embeddings have it: `value = (q - zero) * scale` then covers the very
    range of each row. FLOAT16 is no integer type: values are rounded to half precision and qmin and
    qmax are 0.
    """

    dtype: DType
    qmin: int
    qmax: int
    symmetric: bool = False
    axis: int | None = None
    observer: ObserverSpec = ObserverSpec()
    when: When = "static"
    zero: int | None = None
    float_zero: bool = False

    @property
    def is_packed(self) -> bool:
        """Whether integers of four bits are kept two to a byte."""
        return self.float_zero and self.qmin == 0 and self.qmax <= 15


def uint8_affine(observer: ObserverSpec | None = None, qmax: int = 255) -> QSpec:
    """Activations as 0..qmax with a zero point; by default a histogram searched for least MSE."""
    return QSpec(DType.UINT8, 0, qmax, False, None, observer or histogram())


def int8_channel(axis: int = 0, limit: int = 127) -> QSpec:
    """Weights as -limit..limit, symmetric, one scale for each index along `axis`."""
    return QSpec(
        DType.INT8, -limit, limit, True, axis, ObserverSpec("channel_minmax", axis=axis), "weight"
    )


def uint8_dynamic(qmax: int = 255) -> QSpec:
    """Activations as 0..qmax with the scale and zero point of each call's own range."""
    return QSpec(DType.UINT8, 0, qmax, False, None, ObserverSpec(), "dynamic")


def uint8_rows(bits: int = 8) -> QSpec:
    """Tables of embeddings: each row as 0..2^bits - 1 over its own range, with a float zero point.

    The scheme of torch's `float_qparams_weight_only_qconfig` for 8 and 4 bits; those of 4 are kept
    two to a byte.
    """
    observer = ObserverSpec("channel_minmax", axis=0)
    return QSpec(DType.UINT8, 0, 2**bits - 1, False, 0, observer, "weight", float_zero=True)


def half(when: When = "weight") -> QSpec:
    """Weights rounded to float16, or with `static` activations; nothing is observed."""
    return QSpec(DType.FLOAT16, 0, 0, True, None, ObserverSpec(), when)


def histogram(search: Search = "mse", axis: int | None = None, bins: int = BINS) -> ObserverSpec:
    """A histogram observer; with `axis` it keeps the range of each channel too."""
    return ObserverSpec("histogram", search, axis, bins)


def collects_like(one: ObserverSpec, two: ObserverSpec) -> bool:
    """Whether two observers collect the same state, so that one can stand for both."""
    return collected(one) == collected(two)


def collected(spec: ObserverSpec) -> tuple[str, int | None, int, float, str]:
    """What decides the state an observer collects; how a range is read from it plays no part."""
    return (
        spec.kind,
        spec.axis if spec.kind in ("channel_minmax", "histogram") else None,
        spec.bins if spec.kind == "histogram" else 0,
        spec.rate if spec.kind == "moving_average" else 0.0,
        spec.formula if spec.kind == "moving_average" else "",
    )


def check_observer(spec: ObserverSpec) -> Result[ObserverSpec, Fault]:
    """The spec itself; BAD_RECIPE if it asks for what its kind cannot give."""
    searches = get_args(Search)
    wrong = (
        (spec.kind not in get_args(ObserverKind), f"there is no observer kind {spec.kind!r}"),
        (spec.search not in searches, f"there is no range search {spec.search!r}"),
        (
            spec.kind != "histogram" and spec.search != "minmax",
            f"a {spec.kind} observer keeps no counts for a {spec.search} search",
        ),
        (spec.kind == "channel_minmax" and spec.axis is None, "channel_minmax needs an axis"),
        (
            spec.kind == "histogram" and (spec.bins < 16 or spec.bins & (spec.bins - 1) != 0),
            f"a histogram has a power of two of bins, at least 16, not {spec.bins}",
        ),
        (not 0.0 < spec.percentile <= 100.0, f"{spec.percentile} is not a percentile"),
        (not 0.0 < spec.rate <= 1.0, f"a moving average's rate is in (0, 1], not {spec.rate}"),
        (spec.kind == "fixed" and not spec.low <= spec.high, "a fixed range has low <= high"),
        (spec.formula not in get_args(Formula), f"there is no formula {spec.formula!r}"),
        (not 0.0 <= spec.least_scale < math.inf, f"{spec.least_scale} is no least scale"),
    )
    reasons = [reason for holds, reason in wrong if holds]
    return Failure(_bad(reasons[0])) if reasons else Success(spec)


def check_qspec(spec: QSpec) -> Result[QSpec, Fault]:
    """The spec itself; BAD_RECIPE if its integers do not exist or its observer is wrong."""
    if spec.dtype is DType.FLOAT16:
        return check_observer(spec.observer).map(lambda _: spec)
    bounds = _BOUNDS.get(spec.dtype)
    if bounds is None:
        return Failure(_bad(f"{spec.dtype.value} is not a type values are quantized to"))
    if not bounds[0] <= spec.qmin < spec.qmax <= bounds[1]:
        return Failure(_bad(f"{spec.dtype.value} does not hold {spec.qmin}..{spec.qmax}"))
    if spec.zero is not None and not bounds[0] <= spec.zero <= bounds[1]:
        return Failure(_bad(f"{spec.dtype.value} does not hold the zero {spec.zero}"))
    if spec.zero is not None and not spec.symmetric:
        return Failure(_bad("only a symmetric spec says which integer zero is"))
    return check_observer(spec.observer).map(lambda _: spec)


_BOUNDS: Mapping[DType, tuple[int, int]] = MappingProxyType(
    {
        DType.INT8: (-128, 127),
        DType.UINT8: (0, 255),
        DType.INT16: (-(2**15), 2**15 - 1),
        DType.INT32: (-(2**31), 2**31 - 1),
    }
)


def _bad(reason: str) -> Fault:
    return Fault(FaultKind.BAD_RECIPE, reason, "see fqx.num.scheme for what a spec can say")


def spec_to_arg(spec: ObserverSpec) -> FrozenMap[Arg]:
    """An observer spec as plain data for a node's attrs; formula and floor only where set."""
    return FrozenMap(
        {
            **({} if spec.formula == "float64" else {"formula": spec.formula}),
            **({} if spec.least_scale == 0.0 else {"least_scale": float(spec.least_scale)}),
            "kind": spec.kind,
            "search": spec.search,
            "axis": spec.axis,
            "bins": spec.bins,
            "percentile": float(spec.percentile),
            "rate": float(spec.rate),
            "low": float(spec.low),
            "high": float(spec.high),
        }
    )


def spec_from_arg(arg: Arg) -> Result[ObserverSpec, Fault]:
    """Inverse of `spec_to_arg`; BAD_RECIPE if the data is no observer spec."""
    fields = dict(arg.items()) if isinstance(arg, FrozenMap) else {}
    fields = {"formula": "float64", "least_scale": 0.0, **fields}
    match tuple(fields.get(name) for name in _OBSERVER_FIELDS):
        case (
            ("minmax" | "channel_minmax" | "histogram" | "moving_average" | "fixed") as kind,
            ("minmax" | "percentile" | "mse" | "entropy") as search,
            (int() | None) as axis,
            int() as bins,
            float() as percentile,
            float() as rate,
            float() as low,
            float() as high,
            ("float64" | "float32") as formula,
            float() as least_scale,
        ):
            made = ObserverSpec(_KINDS[kind], _SEARCHES[search], axis, bins, percentile, rate)
            made = replace(made, low=low, high=high, formula=_FORMULAS[formula])
            return check_observer(replace(made, least_scale=least_scale))
        case _:
            return Failure(_bad(f"not an observer spec: {arg!r}"))


_OBSERVER_FIELDS = (
    *("kind", "search", "axis", "bins", "percentile", "rate", "low", "high"),
    *("formula", "least_scale"),
)
_KINDS: Mapping[object, ObserverKind] = MappingProxyType(
    {kind: kind for kind in get_args(ObserverKind)}
)
_SEARCHES: Mapping[object, Search] = MappingProxyType(
    {search: search for search in get_args(Search)}
)
_FORMULAS: Mapping[object, Formula] = MappingProxyType(
    {formula: formula for formula in get_args(Formula)}
)
_WHENS: Mapping[object, When] = MappingProxyType({when: when for when in get_args(When)})


def qspec_to_arg(spec: QSpec) -> FrozenMap[Arg]:
    """A quantization spec as plain data."""
    return FrozenMap(
        {
            "dtype": spec.dtype,
            "qmin": spec.qmin,
            "qmax": spec.qmax,
            "symmetric": spec.symmetric,
            "axis": spec.axis,
            "observer": spec_to_arg(spec.observer),
            "when": spec.when,
            **({} if spec.zero is None else {"zero": spec.zero}),
            **({"float_zero": True} if spec.float_zero else {}),
        }
    )


def qspec_from_arg(arg: Arg) -> Result[QSpec, Fault]:
    """Inverse of `qspec_to_arg`; BAD_RECIPE if the data is no quantization spec."""
    fields = dict(arg.items()) if isinstance(arg, FrozenMap) else {}
    match tuple(fields.get(name) for name in _QSPEC_FIELDS):
        case (
            DType() as dtype,
            int() as qmin,
            int() as qmax,
            bool() as symmetric,
            (int() | None) as axis,
            observer,
            ("static" | "dynamic" | "weight") as when,
            (int() | None) as zero,
            (bool() | None) as float_zero,
        ):
            made = QSpec(
                dtype,
                qmin,
                qmax,
                symmetric,
                axis,
                when=_WHENS[when],
                zero=zero,
                float_zero=float_zero is True,
            )
            return spec_from_arg(observer).bind(
                lambda seen: check_qspec(replace(made, observer=seen))
            )
        case _:
            return Failure(_bad(f"not a quantization spec: {arg!r}"))


_QSPEC_FIELDS = (
    "dtype",
    "qmin",
    "qmax",
    "symmetric",
    "axis",
    "observer",
    "when",
    "zero",
    "float_zero",
)
