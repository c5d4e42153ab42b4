"""torch.ao's FX quantization functions with their own names and parameters, computed by fqx.

    from fqx.compat.quantize_fx import prepare_fx, convert_fx

The model, the mapping and the prepared module that are handed in are read and never changed. These
functions raise, as those they stand for: `Halt` with a fault's text, and for the misuses that torch
names a `Halt` that is also torch's class of error. docs/migration_fx.md has fqx's own road.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

import torch
from torch import fx, nn

from fqx.compat.assignment import Order, orders_of, qconfig_of, unmatched
from fqx.compat.custom import (
    PrepareConfig,
    backend_config,
    convert_config,
    fuse_config,
    is_stock,
    prepare_config,
)
from fqx.compat.decomposed import decomposed
from fqx.compat.folded import folded
from fqx.compat.mapping import Entry
from fqx.compat.observed import Observed, calibrated, current, kept_whole, observed
from fqx.compat.parameters import read_parameters
from fqx.compat.parts import Parts, parts_of, qconfig_at, schemes_of_parts
from fqx.compat.replaced import observed_form, replacements
from fqx.compat.widen import widen
from fqx.edge.capture import capture
from fqx.edge.capture_inputs import read_example
from fqx.edge.materialize import materialize
from fqx.ir.arg import DType
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Stage
from fqx.ir.node import Node
from fqx.ir.trail import Halt, Trail
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, fold, gather
from fqx.ops.recurrence import LAYERS
from fqx.passes.calibrate import settle
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.fold import fold as fold_constants
from fqx.passes.fuse import fuse
from fqx.passes.lower import lower
from fqx.passes.observe import Intent, intents_of, intents_to_arg, observe
from fqx.passes.pipeline import NO_OPTIONS, Pass, Pipeline
from fqx.policy.target import UINT8, IntRange, Target
from fqx.policy.units import Mode, UnitKind
from fqx.targets.native import ENGINES, native

__all__ = [
    "BadConfig",
    "NotAGraphModule",
    "NotPrepared",
    "convert_fx",
    "convert_to_reference_decomposed_fx",
    "convert_to_reference_fx",
    "fuse_fx",
    "prepare_fx",
    "prepare_qat_fx",
]

A = TypeVar("A")
M = TypeVar("M", bound=fx.GraphModule)


class NotAGraphModule(Halt, ValueError):
    """A module was handed to a convert function that no prepare function made."""


class NotPrepared(Halt, AssertionError):
    """A GraphModule was handed to a convert function that is not a prepared one, or no more."""


class BadConfig(Halt, AssertionError):
    """A mapping or another config is of the wrong type, or contradicts the one of prepare."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What convert has to know of prepare: the target, the mapping, what order entries of a
    mapping say to take each node, the attributes to keep, and paths of replaced modules."""

    target: Target
    mapping: Any
    orders: Mapping[NodeId, Order]
    preserved: Mapping[str, object]
    customs: tuple[str, ...] = ()


def fuse_fx(model: nn.Module, fuse_custom_config: Any = None, backend_config: Any = None) -> Any:
    """The model as a GraphModule in which batch norms are folded into their convolutions.

    Folded are norms whose convolution feeds nothing else and is called once; the model is only
    read. Unlike `prepare_fx` this knows no shapes, so a norm behind a linear stays: whether the two
    speak of the same axis depends on the rank. Raises torch.fx's errors where the model cannot be
    traced, and Halt (MODEL_IN_TRAINING) for a norm in training mode.
    """
    _backend(backend_config)
    names = _read(fuse_config(fuse_custom_config)).preserved
    return _with_attributes(folded(model), _preserved(names, model))


def prepare_fx(
    model: nn.Module,
    qconfig_mapping: Any,
    example_inputs: Any,
    prepare_custom_config: Any = None,
    _equalization_config: Any = None,
    backend_config: Any = None,
) -> Observed:
    """The observed program of the model; calling it on data calibrates it.

    `example_inputs` is a tuple of positional inputs, or one input. The engine is that of
    `torch.backends.quantized.engine` now. Raises BadConfig for a config of the wrong type or one
    this function does not read, and Halt with the faults of capture and of the recipe. Warns of
    entries of the mapping that name modules, patterns or positions where the model has none.
    """
    mapping = _mapping(qconfig_mapping)
    _refuse_equalization(_equalization_config)
    _backend(backend_config)
    custom = _readable(_read(prepare_config(prepare_custom_config)))
    parts = _read(parts_of(custom, model))
    leaves = parts.leaves
    target = _value(_target().alt(Halt))
    example = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else example_inputs
    fused = _value(_captured(model, example, leaves).bind(_opened(parts).run))
    recipe = _value(
        schemes_of_parts(parts, mapping, model, fused.graph).alt(lambda fault: Halt(fault, fused))
    )
    _tell(unmatched(mapping, model, parts.kept))
    trail = _value(observe(recipe, target).run(fused))
    kept = _preserved(custom.preserved, model)
    orders = orders_of(model, fused.graph, parts.kept)
    customs = tuple(parts.customs)
    made = _value(observed(trail.graph, Settings(target, mapping, orders, kept, customs)))
    for at, swap in parts.customs.items():
        qconfig = qconfig_at(parts, mapping, model, fused.graph, at)
        if qconfig is not None:
            made.set_submodule(at, observed_form(swap, made.get_submodule(at), qconfig))
    return _with_attributes(made, kept)


def prepare_qat_fx(  # torch's parameters, of which none is read
    model: nn.Module,  # noqa: ARG001
    qconfig_mapping: Any,  # noqa: ARG001
    example_inputs: Any,  # noqa: ARG001
    prepare_custom_config: Any = None,  # noqa: ARG001
    backend_config: Any = None,  # noqa: ARG001
) -> NoReturn:
    """Raises BadConfig: preparing for training arrives with quantization-aware training."""
    raise BadConfig(
        Fault(
            FaultKind.UNSUPPORTED_TARGET,
            "prepare_qat_fx arrives with quantization-aware training, which fqx does not have yet",
            "train the float model and call prepare_fx, or stay with torch's prepare_qat_fx",
        )
    )


def convert_fx(
    graph_module: Any,
    convert_custom_config: Any = None,
    _remove_qconfig: bool = True,
    qconfig_mapping: Any = None,
    backend_config: Any = None,
    keep_original_weights: bool = False,
) -> fx.GraphModule:
    """The prepared module's program on torch's integer kernels; the prepared module stays as it is.

    Raises NotAGraphModule, NotPrepared, BadConfig, and Halt with the faults of the passes, among
    them MISSING_STATISTICS for an observer that has seen no data. `_remove_qconfig` changes
    nothing: no module of fqx carries a qconfig.
    """
    if keep_original_weights:
        raise BadConfig(
            Fault(
                FaultKind.BAD_ARGUMENT,
                "keep_original_weights: a converted program holds no float weights",
                "the prepared module is unchanged and still holds them; keep it",
            )
        )
    module = _prepared(graph_module)
    target = _settings(module).target
    graph = _converted(
        module,
        qconfig_mapping,
        backend_config,
        fold_constants() | lower(replace(target, activation=UINT8, isa="vnni")),
    )
    return _finished(module, convert_custom_config, graph)


def convert_to_reference_fx(
    graph_module: Any,
    convert_custom_config: Any = None,
    _remove_qconfig: bool = True,
    qconfig_mapping: Any = None,
    backend_config: Any = None,
) -> fx.GraphModule:
    """The quantized program before lowering: quantize, dequantize and float operators.

    Raises as `convert_fx` does.
    """
    module = _prepared(graph_module)
    graph = _converted(module, qconfig_mapping, backend_config, Pipeline())
    return _finished(module, convert_custom_config, graph)


def convert_to_reference_decomposed_fx(
    graph_module: Any,
    convert_custom_config: Any = None,
    qconfig_mapping: Any = None,
    backend_config: Any = None,
) -> fx.GraphModule:
    """The same program as `convert_to_reference_fx`, with the operators of
    `torch.ops.quantized_decomposed`; both give the same bits.

    Raises as `convert_fx` does.
    """
    module = _prepared(graph_module)
    graph = _converted(module, qconfig_mapping, backend_config, Pipeline())
    reference = _finished(module, convert_custom_config, graph)
    return _with_attributes(decomposed(reference, graph), _kept(module, convert_custom_config))


# Capture.


def _opened(parts: Parts) -> Pipeline:
    """From a captured model to what is observed, as torch.ao fuses and reads it."""
    return clean() | fuse("float32") | read_parameters() | parts.rewrites()


def _captured(model: nn.Module, example: Any, leaves: tuple[str, ...]) -> Result[Trail, Halt]:
    """The model as torch.fx traces it; by torch.export where it cannot.

    A model that fixes its first axis, as one that takes sequences first does, is captured for
    inputs of the example's own shapes.
    """
    traced = capture(model, example, how="symbolic", leaves=leaves)
    found = traced.lash(lambda _: capture(model, example, how="export", leaves=leaves))
    return found.lash(
        lambda halt: (
            capture(model, example, leaves=leaves, dynamic=_fixed(model, example))
            if halt.fault.kind is FaultKind.BATCH_IS_FIXED
            else Failure(halt)
        )
    )


def _fixed(model: nn.Module, example: Any) -> dict[str, dict[int, str | None]]:
    """No free axis for any tensor of the example."""
    given = example if isinstance(example, tuple) else (example,)
    read = read_example(model, given, {}, {})
    fixed: Result[dict[str, dict[int, str | None]], Fault] = read.map(
        lambda found: {name: {} for name in found.tensor_names}
    )
    return fixed.value_or({})


# Targets.


def _target() -> Result[Target, Fault]:
    """torch's own ranges: weights down to -128, activations as far as each QConfig says."""
    engine = torch.backends.quantized.engine
    return native(engine if engine in ENGINES else "x86").map(
        lambda target: replace(
            target,
            activation=UINT8,
            weight=IntRange(DType.INT8, -128, 127),
            units=tuple(_as_modules(kind, engine) for kind in target.units),
        )
    )


def _as_modules(kind: UnitKind, engine: str) -> UnitKind:
    """The row with seven bits for recurrent layers, as torch.ao's modules ask for.

    qnnpack takes eight all the same.
    """
    narrow = kind.anchor in LAYERS and kind.mode is Mode.DYNAMIC and engine != "qnnpack"
    return replace(kind, qmax=127) if narrow else kind


# Configs.


def _mapping(given: Any) -> Any:
    """A copy of the mapping, so that what the caller does to it later changes nothing."""
    from torch.ao.quantization.qconfig_mapping import QConfigMapping

    if isinstance(given, dict):
        return QConfigMapping.from_dict(given)
    if isinstance(given, QConfigMapping):
        return copy.deepcopy(given)
    raise BadConfig(
        Fault(
            FaultKind.BAD_RECIPE,
            f"qconfig_mapping is a {type(given).__name__}, not a QConfigMapping",
            "start from torch.ao.quantization.get_default_qconfig_mapping()",
        )
    )


def _qconfigs(mapping: Any) -> dict[str, Any]:
    """Every QConfig a mapping names, by where it stands."""
    tables = {
        "object_type": mapping.object_type_qconfigs,
        "module_name_regex": mapping.module_name_regex_qconfigs,
        "module_name": mapping.module_name_qconfigs,
        "module_name_object_type_order": mapping.module_name_object_type_order_qconfigs,
    }
    found = {"global": mapping.global_qconfig}
    for table, held in tables.items():
        found |= {f"{table} {key}": qconfig for key, qconfig in held.items()}
    return found


def _refuse_equalization(config: Any) -> None:
    if config is not None:
        raise BadConfig(
            Fault(
                FaultKind.BAD_RECIPE,
                "_equalization_config is not read here",
                "leave it out; fqx.quantize smooths activations into weights where it helps",
            )
        )


def _backend(config: Any) -> None:
    """Nothing for torch's stock backends, whose kernels the target's tables list."""
    name = config.get("name", "") if isinstance(config, dict) else getattr(config, "name", "")
    # a bare name stands for the backend of that name
    bare = isinstance(config, dict) and "configs" not in config
    found = None if bare else _read(backend_config(config))
    if found is not None and name in ("native", *ENGINES) and not is_stock(found):
        raise BadConfig(
            Fault(
                FaultKind.UNSUPPORTED_TARGET,
                f"the backend {name!r} has other rows than torch's own of that name",
                "leave out backend_config and what it leaves float in the mapping, by a None",
            )
        )
    if config is not None and name not in ("native", *ENGINES):
        raise BadConfig(
            Fault(
                FaultKind.UNSUPPORTED_TARGET,
                f"the backend {name!r} is not one of torch's CPU engines",
                f"use one of native, {', '.join(ENGINES)}, or leave backend_config out",
            )
        )


def _readable(config: PrepareConfig) -> PrepareConfig:
    """The config, if it asks for nothing but what is read here."""
    unread = {
        "input_quantized_indexes": config.quantized_inputs,
        "output_quantized_indexes": config.quantized_outputs,
    }
    found = next((name for name, held in unread.items() if held), None)
    if found is None:
        return config
    raise BadConfig(
        Fault(
            FaultKind.BAD_RECIPE,
            f"prepare_custom_config.{found} is not read here",
            "quantize that part of the model by itself and put the result in its place",
        )
    )


def _read(result: Result[A, Fault]) -> A:
    """What a config says; one that cannot be read is raised as a BadConfig."""
    return _value(result.alt(BadConfig))


def _tell(entries: tuple[Entry, ...]) -> None:
    """Warn of entries that take nothing; types are listed for any model and are not told."""
    spelt = [str(entry) for entry in entries if entry.field != "object_type"]
    if spelt:
        warnings.warn(
            f"nothing in the model is taken by {'; '.join(spelt)} of the QConfigMapping",
            stacklevel=3,
        )


def _preserved(names: tuple[str, ...], model: nn.Module) -> Mapping[str, object]:
    return {name: getattr(model, name) for name in names if hasattr(model, name)}


def _with_attributes(made: M, kept: Mapping[str, object]) -> M:
    for name, value in kept.items():
        setattr(made, name, value)
    return made


# Conversion.


def _prepared(module: Any) -> Observed:
    if not isinstance(module, fx.GraphModule):
        raise NotAGraphModule(
            Fault(
                FaultKind.WRONG_STAGE,
                f"a {type(module).__name__} must be a GraphModule that prepare_fx made",
                "call prepare_fx first, run data through what it gives, then convert that",
            )
        )
    if not isinstance(module, Observed):
        raise NotPrepared(
            Fault(
                FaultKind.WRONG_STAGE,
                "this GraphModule is not one that prepare_fx made: it was never prepared, or it "
                "is converted already",
                "convert what prepare_fx gave; it stays as it is and can be converted again",
            )
        )
    if module.is_edited:
        raise NotPrepared(
            Fault(
                FaultKind.WRONG_STAGE,
                "the fx graph of this module was edited after prepare_fx made it",
                "edit the float model, then prepare that",
            )
        )
    return module


def _settings(module: Observed) -> Settings:
    held = module.fqx_preparation.settings
    assert isinstance(held, Settings)
    return held


def _converted(module: Observed, mapping: Any, backend: Any, behind: Pipeline) -> Graph:
    _backend(backend)
    settings = _settings(module)
    graph = current(module)
    if mapping is not None:
        graph = _value(_narrowed(graph, settings, _agreeing(settings.mapping, mapping)))
    stats = calibrated(module)
    measured = Pass(
        "calibrate",
        NO_OPTIONS,
        frozenset({Stage.OBSERVED}),
        Stage.CALIBRATED,
        lambda held: settle(held, stats),
        portable=False,
    )
    return _value((measured | convert(settings.target) | widen() | behind).run(graph)).graph


def _finished(module: Observed, config: Any, graph: Graph) -> fx.GraphModule:
    whole = kept_whole(module)
    replaced = {at: whole[at] for at in _settings(module).customs}
    swaps = _read(convert_config(config)).quantized
    custom, left = replacements(graph, replaced, swaps)
    if left:
        warnings.warn(
            f"the convert config has no quantized class for {', '.join(left)}: the observed module "
            "runs in its place, on floats",
            stacklevel=3,
        )
    made = _value(materialize(graph, whole, custom))
    return _with_attributes(made, _kept(module, config))


def _kept(module: Observed, config: Any) -> Mapping[str, object]:
    """The attributes to keep: those prepare was told of, and those convert is told of."""
    names = _read(convert_config(config)).preserved
    return {**_settings(module).preserved, **_preserved(names, module)}


def _agreeing(prepared: Any, given: Any) -> Any:
    """The mapping of convert, if it says of everything what prepare's says, or None."""
    mapping = _mapping(given)
    before, now = _qconfigs(prepared), _qconfigs(mapping)
    wrong = [
        key
        for key, qconfig in before.items()
        if key not in now or not _is_kept(qconfig, now[key], key)
    ]
    if wrong:
        raise BadConfig(
            Fault(
                FaultKind.BAD_RECIPE,
                f"the mapping of convert differs from the one of prepare in {', '.join(wrong)}",
                "hand in the mapping of prepare, with None where a part shall stay float",
            )
        )
    return mapping


def _is_kept(before: Any, now: Any, key: str) -> bool:
    return _equal(before, now) or (now is None and key != "global")


def _equal(one: Any, two: Any) -> bool:
    from torch.ao.quantization.qconfig import qconfig_equals

    return bool(qconfig_equals(one, two))


def _narrowed(graph: Graph, settings: Settings, mapping: Any) -> Result[Graph, Halt]:
    """The observed graph with nodes left float of which the mapping of convert says None.

    Raises BadConfig where that mapping gives a node another QConfig than prepare's.
    """
    asked = [
        (
            item.id,
            qconfig_of(settings.mapping, item, settings.orders.get(item.id)),
            qconfig_of(mapping, item, settings.orders.get(item.id)),
        )
        for item in graph
        if item.op not in ("input", "observe")
    ]
    other = [name for name, before, now in asked if now is not None and not _equal(before, now)]
    if other:
        raise BadConfig(
            Fault(
                FaultKind.BAD_RECIPE,
                "the mapping of convert gives this node another QConfig than the one of prepare",
                "hand in the mapping of prepare, with None where a part shall stay float",
                at=other[0],
            )
        )
    left = frozenset(name for name, before, now in asked if now is None and before is not None)
    taps = [item for item in graph if item.op == "observe"]
    return (
        gather(intents_of(item) for item in taps)
        .alt(Halt)
        .map(
            lambda told: replace(
                graph,
                nodes=graph.nodes.edit(
                    {
                        item.id: _telling(item, intents, left)
                        for item, intents in zip(taps, told, strict=True)
                        if intents
                    },
                    (),
                ),
            )
        )
    )


def _telling(item: Node, intents: tuple[Intent, ...], left: frozenset[NodeId]) -> Node:
    """The observer with other intents: the nodes `left` are to be float."""
    kept = (_without(intent, left) for intent in intents)
    none = Intent(None, "the mapping of convert says None", tuple(sorted(left)))
    attrs = {**item.attrs, "intent": intents_to_arg((*kept, none))}
    return Node(item.id, item.op, item.args, FrozenMap(attrs), item.origin)


def _without(intent: Intent, left: frozenset[NodeId]) -> Intent:
    return replace(intent, nodes=tuple(name for name in intent.nodes if name not in left))


def _value(result: Result[A, Halt]) -> A:
    """The value; the Halt is raised."""
    return fold(result, lambda value: value, _raise)


def _raise(halt: Halt) -> NoReturn:
    raise halt
