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

from fqx.compat.assignment import Assignment, Order, qconfig_of
from fqx.compat.backend import refusal_of_class
from fqx.compat.borders import Giving, Reading, count_of_outputs, grids_of
from fqx.compat.custom import (
    Backend,
    convert_config,
    fuse_config,
    prepare_config,
    stock_backend,
)
from fqx.compat.decomposed import decomposed
from fqx.compat.folded import folded
from fqx.compat.observed import Observed, calibrated, current, kept_whole, observed
from fqx.compat.parameters import read_parameters
from fqx.compat.parts import Parts, Site, parts_of, schemes_of_parts
from fqx.compat.replaced import observed_form, replacements
from fqx.compat.widen import widen
from fqx.edge.capture import capture
from fqx.edge.capture_inputs import read_example
from fqx.edge.materialize import materialize
from fqx.ir.arg import DType, WeightRef
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Stage
from fqx.ir.node import Node
from fqx.ir.trail import Halt, Trail
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Failure, Result, fold, gather
from fqx.ops.catalogue import operand
from fqx.ops.recurrence import LAYERS
from fqx.passes.calibrate import settle
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.fold import fold as fold_constants
from fqx.passes.fuse import fuse
from fqx.passes.lower import lower
from fqx.passes.observe import Intent, intents_of, intents_to_arg, observe
from fqx.passes.pipeline import NO_OPTIONS, Pass, Pipeline
from fqx.passes.smooth import equalize_inputs
from fqx.policy.plan import Plan
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
    """What convert has to know of prepare.

    `orders` are what order entries of a mapping say to take each node, `kinds` the classes of
    modules whose weights are quantized, `preserved` what to keep, `inputs` and `outputs` the
    places of quantized tensors, `customs` the paths of replaced modules.
    """

    target: Target
    mapping: Any
    orders: Mapping[NodeId, Order]
    preserved: Mapping[str, object]
    kinds: Mapping[NodeId, tuple[type[nn.Module], Any]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    customs: tuple[str, ...] = ()


def fuse_fx(model: nn.Module, fuse_custom_config: Any = None, backend_config: Any = None) -> Any:
    """The model as a GraphModule in which batch norms are folded into their convolutions.

    Folded are norms whose convolution feeds nothing else and is called once; the model is only
    read. Unlike `prepare_fx` this knows no shapes, so a norm behind a linear stays: whether the two
    speak of the same axis depends on the rank. Raises torch.fx's errors where the model cannot be
    traced, and Halt (MODEL_IN_TRAINING) for a norm in training mode.
    """
    _read(stock_backend(backend_config))
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
    `torch.backends.quantized.engine` now; `backend_config`, torch's native one if left out, decides
    which operators are quantized in which types. `fqx_plan` of the result says of every node what
    becomes of it and why. Raises BadConfig for a config of the wrong type or one this function does
    not read, and Halt with the faults of capture and of the recipe. Warns of entries of the mapping
    that name modules, patterns or positions where the model has none, and of QConfigs beyond the
    backend's bounds.
    """
    mapping = _mapping(qconfig_mapping)
    leveling = None if _equalization_config is None else _mapping(_equalization_config)
    backend = _read(stock_backend(backend_config))
    custom = _read(prepare_config(prepare_custom_config))
    parts = _read(parts_of(custom, model))
    leaves = parts.leaves
    target = _target()
    example = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else example_inputs
    fused = _value(_captured(model, example, leaves).bind(_opened(parts).run))
    site = Site(parts, mapping, backend, model, fused.graph, target, leveling)
    assignment = _value(site.assignment(parts.regions[0]).alt(lambda fault: Halt(fault, fused)))
    recipe = _value(schemes_of_parts(site, assignment).alt(lambda fault: Halt(fault, fused)))
    _tell(assignment)
    trail = _value(observe(recipe, target).run(fused))
    kept = _preserved(custom.preserved, model)
    settings = Settings(
        target,
        mapping,
        assignment.orders,
        kept,
        assignment.kinds,
        _places("input", custom.quantized_inputs, len(fused.graph.signature.inputs)),
        _places("output", custom.quantized_outputs, count_of_outputs(fused.graph)),
        tuple(parts.customs),
    )
    plan = trail.steps[-1].evidence
    assert isinstance(plan, Plan)
    made = _value(observed(trail.graph, settings, plan))
    for at, swap in parts.customs.items():
        qconfig = site.qconfig_at(at)
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

    What torch has no kernel for stays float between quantize and dequantize; `fqx_lowering` in the
    result's `meta` says why. `keep_original_weights` gives it `original_weights_lookup`: by the
    path of each quantized weight the float weight and its bias, which may be None.

    Raises NotAGraphModule, NotPrepared, BadConfig, and Halt with the faults of the passes, among
    them MISSING_STATISTICS for an observer that has seen no data. `_remove_qconfig` changes
    nothing: no module of fqx carries a qconfig.
    """
    module = _prepared(graph_module)
    target = _settings(module).target
    trail = _converted(
        module,
        qconfig_mapping,
        backend_config,
        fold_constants() | lower(replace(target, activation=UINT8, isa="vnni")),
    )
    made = _finished(module, convert_custom_config, trail)
    kept = {"original_weights_lookup": _originals(trail)} if keep_original_weights else {}
    return _with_attributes(made, kept)


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
    trail = _converted(module, qconfig_mapping, backend_config, Pipeline())
    return _finished(module, convert_custom_config, trail)


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
    trail = _converted(module, qconfig_mapping, backend_config, Pipeline())
    reference = _finished(module, convert_custom_config, trail)
    made = _bordered(decomposed(reference, trail.graph), _settings(module), trail)
    made.meta.update(reference.meta)
    return _with_attributes(made, _kept(module, convert_custom_config))


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


def _target() -> Target:
    """torch's own ranges: weights down to -128, activations as far as each QConfig says.

    qint8 activations are taken, as backends may ask for them, and run between quantize and
    dequantize: torch's engines take quint8 alone.
    """
    engine = torch.backends.quantized.engine
    whole = IntRange(DType.INT8, -128, 127)
    target = native(engine if engine in ENGINES else "x86").unwrap()
    units = tuple(_as_modules(kind, engine) for kind in target.units)
    return replace(target, activation=UINT8, weight=whole, also=(whole,), units=units)


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


def _read(result: Result[A, Fault]) -> A:
    """What a config says; one that cannot be read is raised as a BadConfig."""
    return _value(result.alt(BadConfig))


def _tell(assignment: Assignment) -> None:
    """Warn of entries that take nothing; types are listed for any model and are not told."""
    spelt = [str(entry) for entry in assignment.unmatched if entry.field != "object_type"]
    if spelt:
        warnings.warn(
            f"nothing in the model is taken by {'; '.join(spelt)} of the QConfigMapping",
            stacklevel=3,
        )
    for refusal in assignment.refused:
        warnings.warn(f"{refusal}; it stays float", stacklevel=3)


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


def _converted(module: Observed, mapping: Any, backend: Any, behind: Pipeline) -> Trail:
    settings = _settings(module)
    left = _refused(settings, None if backend is None else _read(stock_backend(backend)))
    graph = current(module)
    if mapping is not None:
        left |= _emptied(graph, settings, _agreeing(settings.mapping, mapping))
    if left:
        graph = _value(_narrowed(graph, left))
    stats = calibrated(module)
    measured = Pass(
        "calibrate",
        NO_OPTIONS,
        frozenset({Stage.OBSERVED}),
        Stage.CALIBRATED,
        lambda held: settle(held, stats),
        portable=False,
    )
    return _value(
        (measured | equalize_inputs() | convert(settings.target) | widen() | behind).run(graph)
    )


def _finished(module: Observed, config: Any, trail: Trail) -> fx.GraphModule:
    """The module, whose `meta` says what became of every node and which kernels run."""
    kept, whole = _kept(module, config), kept_whole(module)
    replaced = {at: whole[at] for at in _settings(module).customs}
    swaps = _read(convert_config(config)).quantized
    custom, left = replacements(trail.graph, replaced, swaps)
    if left:
        warnings.warn(
            f"the convert config has no quantized class for {', '.join(left)}: the observed module "
            "runs in its place, on floats",
            stacklevel=3,
        )
    made = _value(materialize(trail.graph, whole, custom, preserve=kept))
    found = {step.evidence.kind: step.evidence for step in trail.steps if step.evidence}
    told = {f"fqx_{kind}": found[kind] for kind in ("plan", "lowering") if kind in found}
    made.meta.update(told)
    return _bordered(made, _settings(module), trail)


def _kept(module: Observed, config: Any) -> Mapping[str, object]:
    """The attributes to keep: those prepare was told of, and those convert is told of."""
    names = _read(convert_config(config)).preserved
    return {**_settings(module).preserved, **_preserved(names, module)}


def _places(side: str, asked: tuple[int, ...], count: int) -> tuple[int, ...]:
    beyond = [at for at in asked if not 0 <= at < count]
    if beyond:
        raise BadConfig(
            Fault(
                FaultKind.BAD_RECIPE,
                f"{side}_quantized_indexes: there is no {side} {beyond[0]}, only {count}",
                "count the tensors the model takes, or the items of the tuple it returns, from 0",
            )
        )
    return asked


def _bordered(made: M, settings: Settings, trail: Trail) -> M:
    """The module taking and giving quantized tensors where prepare was told so."""
    if settings.inputs:
        names = tuple(str(n.target) for n in made.graph.nodes if n.op == "placeholder")
        made.register_forward_pre_hook(Reading(settings.inputs, names), with_kwargs=True)
    if settings.outputs:
        stages = [graph for graph in trail.graphs() if graph.stage is Stage.QUANTIZED]
        grids = grids_of(stages[0], settings.outputs)
        if not any(grids):
            warnings.warn("output_quantized_indexes: such outputs are float", stacklevel=4)
        made.register_forward_hook(Giving(grids))
    return made


def _originals(trail: Trail) -> dict[str, list[torch.Tensor | None]]:
    """By the path of each weight that is quantized the float weight and its bias, or None."""
    plan = next(step.evidence for step in trail.steps if isinstance(step.evidence, Plan))
    float_graph = trail.base
    found: dict[str, list[torch.Tensor | None]] = {}
    for item in float_graph:
        if item.op == "observe" or "weight" not in plan[item.id].inputs:
            continue
        halves = [_stored(float_graph, operand(item, name)) for name in ("weight", "bias")]
        found[str(item.weights()[0])] = halves
    return found


def _stored(graph: Graph, held: object) -> torch.Tensor | None:
    if not isinstance(held, WeightRef):
        return None
    payload = graph.weights[graph.ties.get(held.path) or held.path].payload
    return payload.detach().clone() if isinstance(payload, torch.Tensor) else None


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


def _emptied(graph: Graph, settings: Settings, mapping: Any) -> frozenset[NodeId]:
    """The nodes of which the mapping of convert says None.

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
    return frozenset(name for name, before, now in asked if now is None and before is not None)


def _refused(settings: Settings, backend: Backend | None) -> frozenset[NodeId]:
    """The modules that a backend config of convert does not quantize, as torch.ao asks there."""
    if backend is None:
        return frozenset()
    return frozenset(
        name
        for name, (kind, qconfig) in settings.kinds.items()
        if refusal_of_class(backend, kind, qconfig)
    )


def _narrowed(graph: Graph, left: frozenset[NodeId]) -> Result[Graph, Halt]:
    """The observed graph with some nodes left float."""
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
    none = Intent(None, "the configs of convert say so", tuple(sorted(left)))
    attrs = {**item.attrs, "intent": intents_to_arg((*kept, none))}
    return Node(item.id, item.op, item.args, FrozenMap(attrs), item.origin)


def _without(intent: Intent, left: frozenset[NodeId]) -> Intent:
    return replace(intent, nodes=tuple(name for name in intent.nodes if name not in left))


def _value(result: Result[A, Halt]) -> A:
    """The value; the Halt is raised."""
    return fold(result, lambda value: value, _raise)


def _raise(halt: Halt) -> NoReturn:
    raise halt
