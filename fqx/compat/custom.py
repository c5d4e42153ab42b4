"""torch.ao's custom configs and backend configs as values: objects or their dict forms, read once.

The caller's objects are copied from, never changed nor kept where they could change later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import nn

from fqx.compat.mapping import Table, table_of
from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import Failure, Result, Success, attempt, gather

A = TypeVar("A")

QuantMode: TypeAlias = Literal["dynamic", "static", "qat", "weight_only"]
"""torch.ao's QuantType by the names of the dict forms."""

Observation: TypeAlias = Literal["different", "share", "none"]
"""What observes a pattern's output: an observer of its own, that of its input, or nothing."""


@dataclass(frozen=True, slots=True)
class Swap:
    """A class whose modules are replaced by those of another, for one kind of quantization."""

    mode: QuantMode
    given: type[nn.Module]
    made: type[nn.Module]


@dataclass(frozen=True, slots=True)
class Standalone:
    """A module, by path or class, that is quantized by itself; None takes what is around it."""

    select: str | type[nn.Module]
    mapping: Table | None
    example_inputs: tuple[Any, ...]
    prepare: PrepareConfig | None
    backend: Backend | None


@dataclass(frozen=True, slots=True)
class PrepareConfig:
    """What `PrepareCustomConfig` says."""

    standalone: tuple[Standalone, ...] = ()
    observed: tuple[Swap, ...] = ()
    leaf_names: tuple[str, ...] = ()
    leaf_classes: tuple[type[nn.Module], ...] = ()
    quantized_inputs: tuple[int, ...] = ()
    quantized_outputs: tuple[int, ...] = ()
    preserved: tuple[str, ...] = ()

    def is_leaf(self, path: str, module: nn.Module) -> bool:
        """Whether a module is kept whole by capture."""
        return path in self.leaf_names or type(module) in self.leaf_classes


@dataclass(frozen=True, slots=True)
class ConvertConfig:
    """What `ConvertCustomConfig` says."""

    quantized: tuple[Swap, ...] = ()
    preserved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FuseConfig:
    """What `FuseCustomConfig` says."""

    preserved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bound:
    """A type of one operand and what its integers and scale must keep to; None bounds nothing."""

    dtype: torch.dtype | None
    qmin: float | None = None
    qmax: float | None = None
    least_scale: float | None = None
    greatest_scale: float | None = None
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True, slots=True)
class Types:
    """One combination of types that a pattern runs in."""

    activation: Bound
    result: Bound
    weight: Bound
    bias: torch.dtype | None
    is_dynamic: bool


@dataclass(frozen=True, slots=True)
class BackendRow:
    """A pattern of a backend: its types, and the modules that stand for it.

    `is_nested` tells a pattern whose parts are nested, the last operator outermost, from one that
    lists them in their order.
    """

    pattern: Any
    is_nested: bool
    observation: Observation
    types: tuple[Types, ...]
    root: type[nn.Module] | None
    trained: type[nn.Module] | None
    reference: type[nn.Module] | None
    fused: type[nn.Module] | None
    fuse: Callable[..., Any] | None
    root_node: Callable[..., Any] | None
    extra_inputs: Callable[..., Any] | None
    observation_of_arity: Mapping[int, Observation]
    operand_index: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Backend:
    """What `BackendConfig` says: its name, and rows of which later ones replaced earlier ones."""

    name: str
    rows: tuple[BackendRow, ...]


def prepare_config(given: Any) -> Result[PrepareConfig, Fault]:
    """A `PrepareCustomConfig`, its dict form, or None for what changes nothing.

    Fails with BAD_RECIPE if it is of another type, spells a part that does not exist, or a part
    is not what torch.ao takes there.
    """
    from torch.ao.quantization.fx.custom_config import PrepareCustomConfig

    parts = (
        *("standalone_module_name", "standalone_module_class"),
        *("float_to_observed_custom_module_class", "non_traceable_module_name"),
        *("non_traceable_module_class", "input_quantized_idxs", "output_quantized_idxs"),
        "preserved_attributes",
    )
    return _object(given, PrepareCustomConfig, parts).bind(_prepare)


def convert_config(given: Any) -> Result[ConvertConfig, Fault]:
    """A `ConvertCustomConfig`, its dict form, or None; faults as of `prepare_config`."""
    from torch.ao.quantization.fx.custom_config import ConvertCustomConfig

    parts = ("observed_to_quantized_custom_module_class", "preserved_attributes")
    return _object(given, ConvertCustomConfig, parts).map(
        lambda held: ConvertConfig(
            _swaps(held.observed_to_quantized_mapping), tuple(held.preserved_attributes)
        )
    )


def fuse_config(given: Any) -> Result[FuseConfig, Fault]:
    """A `FuseCustomConfig`, its dict form, or None; faults as of `prepare_config`."""
    from torch.ao.quantization.fx.custom_config import FuseCustomConfig

    return _object(given, FuseCustomConfig, ("preserved_attributes",)).map(
        lambda held: FuseConfig(tuple(held.preserved_attributes))
    )


def backend_config(given: Any) -> Result[Backend | None, Fault]:
    """A `BackendConfig` or its dict form; None for None; faults as of `prepare_config`."""
    nothing: Result[Backend | None, Fault] = Success(None)
    return nothing if given is None else _read_backend(given).map(_some)


def stock_backend(given: Any) -> Result[Backend, Fault]:
    """A backend config as `backend_config` reads it, or a stock one: of a bare name, of None.

    None is torch's native backend, as in torch. Fails as `prepare_config` does, and for a bare name
    that is none of torch's.
    """
    from torch.ao.quantization import backend_config as stock
    from torch.ao.quantization.backend_config import x86

    # torch.ao's makers use this module without importing it
    import_module("torch.ao.quantization.backend_config.utils")
    makers: Mapping[str, Callable[[], Any]] = {
        "native": stock.get_native_backend_config,
        "fbgemm": stock.get_fbgemm_backend_config,
        "x86": x86.get_x86_backend_config,
        "qnnpack": stock.get_qnnpack_backend_config,
        "onednn": stock.get_onednn_backend_config,
        "tensorrt": stock.get_tensorrt_backend_config,
        "executorch": stock.get_executorch_backend_config,
    }
    name = "native" if given is None else _bare_name(given)
    if name is not None and name not in makers:
        known = ", ".join(makers)
        return Failure(_bad(f"no backend of torch is called {name!r}, only {known}"))
    return _read_backend(given if name is None else makers[name]())


def _bare_name(given: Any) -> Any:
    return given["name"] if isinstance(given, dict) and set(given) == {"name"} else None


def _read_backend(given: Any) -> Result[Backend, Fault]:
    from torch.ao.quantization.backend_config import BackendConfig

    return _object(given, BackendConfig, ("name", "configs")).map(
        lambda held: Backend(
            str(held.name),
            tuple(
                _row(row, nested=row._pattern_complex_format is not None) for row in held.configs
            ),
        )
    )


def _object(given: Any, kind: type[Any], parts: tuple[str, ...]) -> Result[Any, Fault]:
    """The config as torch.ao's own object, made of a dict if need be."""
    if given is None or isinstance(given, kind):
        return Success(kind() if given is None else given)
    if not isinstance(given, dict):
        return Failure(_bad(f"{type(given).__qualname__} is no {kind.__name__}"))
    unknown = [key for key in given if key not in parts]
    if unknown:
        known = ", ".join(parts)
        return Failure(_bad(f"a {kind.__name__} has no part {unknown[0]!r}, only {known}"))
    made: Result[Any, Fault] = attempt(
        lambda: kind.from_dict(given),
        lambda error: _bad(f"the dict is no {kind.__name__}: {error}"),
    )
    return made


def _prepare(held: Any) -> Result[PrepareConfig, Fault]:
    listed = (*held.standalone_module_names.items(), *held.standalone_module_classes.items())
    return gather(_standalone(select, entry) for select, entry in listed).map(
        lambda standalone: PrepareConfig(
            standalone,
            _swaps(held.float_to_observed_mapping),
            tuple(held.non_traceable_module_names),
            tuple(held.non_traceable_module_classes),
            tuple(held.input_quantized_indexes),
            tuple(held.output_quantized_indexes),
            tuple(held.preserved_attributes),
        )
    )


def _standalone(select: Any, entry: Any) -> Result[Standalone, Fault]:
    return _optional(entry.qconfig_mapping, table_of).bind(
        lambda mapping: _optional(entry.prepare_custom_config, prepare_config).bind(
            lambda prepare: backend_config(entry.backend_config).map(
                lambda backend: Standalone(
                    select, mapping, tuple(entry.example_inputs), prepare, backend
                )
            )
        )
    )


def _optional(given: Any, read: Callable[[Any], Result[A, Fault]]) -> Result[A | None, Fault]:
    nothing: Result[A | None, Fault] = Success(None)
    return nothing if given is None else read(given).map(_some)


def _some(value: A) -> A | None:
    return value


def _swaps(held: Mapping[Any, Mapping[Any, Any]]) -> tuple[Swap, ...]:
    return tuple(
        Swap(mode.name.lower(), given, made)
        for mode, classes in held.items()
        for given, made in classes.items()
    )


def _row(row: Any, nested: bool) -> BackendRow:
    observation = _observation
    return BackendRow(
        row._pattern_complex_format if nested else row.pattern,
        nested,
        observation(row.observation_type),
        tuple(map(_types, row.dtype_configs)),
        row.root_module,
        row.qat_module,
        row.reference_quantized_module,
        row.fused_module,
        row.fuser_method,
        row._root_node_getter,
        row._extra_inputs_getter,
        MappingProxyType(
            {
                arity: observation(kind)
                for arity, kind in row._num_tensor_args_to_observation_type.items()
            }
        ),
        MappingProxyType(dict(row._input_type_to_index)),
    )


def _observation(kind: Any) -> Observation:
    from torch.ao.quantization.backend_config import ObservationType

    names: Mapping[Any, Observation] = {
        ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT: "different",
        ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT: "share",
        ObservationType.INPUT_OUTPUT_NOT_OBSERVED: "none",
    }
    return names[kind]


def _types(held: Any) -> Types:
    return Types(
        _bound(held.input_dtype_with_constraints),
        _bound(held.output_dtype_with_constraints),
        _bound(held.weight_dtype_with_constraints),
        held.bias_dtype,
        bool(held.is_dynamic),
    )


def _bound(held: Any) -> Bound:
    return Bound(
        held.dtype,
        held.quant_min_lower_bound,
        held.quant_max_upper_bound,
        held.scale_min_lower_bound,
        held.scale_max_upper_bound,
        held.scale_exact_match,
        held.zero_point_exact_match,
    )


def _bad(reason: str) -> Fault:
    return Fault(
        FaultKind.BAD_RECIPE, reason, "see torch.ao.quantization.fx.custom_config for its parts"
    )
