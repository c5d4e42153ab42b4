"""A torch.ao QConfig read as a scheme: its activation's and its weight's observer together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fqx.compat.observers import Reading, read_observer
from fqx.ir.arg import DType
from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import Failure, Result, Success
from fqx.num.scheme import ObserverSpec, QSpec
from fqx.policy.recipe import Scheme


@dataclass(frozen=True, slots=True)
class QConfigReading:
    """Both halves of a QConfig."""

    activation: Reading
    weight: Reading

    @property
    def reuses_input(self) -> bool:
        """Whether the operator's result has the scale of its input: `default_reuse_input_qconfig`.

        Such operators move values without computing, and stay between integers as they are.
        """
        return self.activation.reuses

    @property
    def has_float_weight(self) -> bool:
        """Whether a weight would stay float32, as that of a layer norm does."""
        return self.weight.spec is None


def read_qconfig(qconfig: Any) -> Result[QConfigReading, Fault]:
    """Both halves of a QConfig; it is only called for what it makes, never changed.

    Fails with BAD_RECIPE if it has no `activation` and `weight` that make observers, or one of
    them cannot be read; see `fqx.compat.observers.read_observer`.
    """
    activation, weight = getattr(qconfig, "activation", None), getattr(qconfig, "weight", None)
    if not callable(activation) or not callable(weight):
        return Failure(_bad(f"{qconfig!r} is no QConfig of two observers' constructors"))
    return read_observer(activation).bind(
        lambda seen: read_observer(weight, "weight").map(lambda held: QConfigReading(seen, held))
    )


def scheme_of_qconfig(qconfig: Any) -> Result[Scheme | None, Fault]:
    """The scheme a QConfig asks for; None leaves the operator float, as a QConfig None does.

    Weights alone are quantized where the activation stays float32, and, to float16, under dynamic
    float16; static float16 rounds activations too. A static activation whose weight stays float32
    gives a scheme for operators without weights; its own weight spec is the default of torch.ao and
    `read_qconfig` tells that it is not asked for. A QConfig that reuses its input's scale gives
    None: `read_qconfig` tells it apart.
    Fails with BAD_RECIPE as `read_qconfig` does, and for combinations that are not to be had.
    """
    nothing: Result[Scheme | None, Fault] = Success(None)
    return nothing if qconfig is None else read_qconfig(qconfig).bind(scheme_of_reading)


def scheme_of_reading(reading: QConfigReading) -> Result[Scheme | None, Fault]:
    """The scheme of what was read; see `scheme_of_qconfig`."""
    activation, weight = reading.activation.spec, reading.weight.spec
    if reading.reuses_input or (activation is None and weight is None):
        return Success(None)
    if activation is not None and activation.when == "dynamic" and weight is None:
        return Success(None)
    halved = activation is not None and activation.dtype is DType.FLOAT16
    weighed = weight is not None and weight.dtype is DType.FLOAT16
    if halved and not weighed:
        return Failure(_bad("float16 activations need a float16 weight"))
    if weighed and activation is not None and not halved:
        return Failure(_bad("integers are not multiplied by a float16 weight"))
    # dynamic float16 rounds the weight and leaves the activation as it is
    kept = None if halved and reading.activation.is_dynamic else activation
    # torch.ao quantizes light operators wherever it finds them
    return Success(Scheme(kept, _default_weight() if weight is None else weight, lone=True))


def _default_weight() -> QSpec:
    """torch.ao's `default_weight_observer`."""
    seen = ObserverSpec(formula="float32", least_scale=2.0**-23)
    return QSpec(DType.INT8, -128, 127, True, None, seen, "weight")


def _bad(reason: str) -> Fault:
    return Fault(
        FaultKind.BAD_RECIPE, reason, "use a QConfig of torch.ao.quantization, or an fqx recipe"
    )
