"""Static int8 quantization of PyTorch models, every step a value.

`quantize` is the short road; `capture` and the passes joined by `|` are the long one. The names
here are looked up when they are first used, so that importing a part (`fqx.ir`, `fqx.match`) loads
that part alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fqx.api import Quantized, load, pipeline, quantize
    from fqx.audit.advise import Advice, advise
    from fqx.audit.blame import blame
    from fqx.audit.compare import Comparison, compare, compare_weights
    from fqx.audit.costs import measure_costs
    from fqx.audit.coverage import coverage
    from fqx.audit.explain import explain
    from fqx.audit.macs import count_macs
    from fqx.audit.measure import latency, sqnr
    from fqx.edge.artefact import read, save_model, save_trail
    from fqx.edge.capture import capture
    from fqx.edge.custom_modules import CustomModule
    from fqx.edge.export_pt2 import export_pt2, load_pt2
    from fqx.edge.machine import target_named
    from fqx.edge.materialize import materialize
    from fqx.edge.probe import probe
    from fqx.edge.verify import verify
    from fqx.ir.diff import apply, invert, then
    from fqx.ir.fault import Fault, FaultKind
    from fqx.ir.graph import Graph
    from fqx.ir.names import Stage
    from fqx.ir.show import show
    from fqx.ir.trail import Halt, Step, Trail
    from fqx.passes.calibrate import Stats, calibrate
    from fqx.passes.clean import clean
    from fqx.passes.convert import convert
    from fqx.passes.correct_bias import correct_bias
    from fqx.passes.decompose import decompose_attention, decompose_recurrent
    from fqx.passes.equalize import equalize
    from fqx.passes.expose import borders, expose
    from fqx.passes.fold import fold
    from fqx.passes.fuse import fuse
    from fqx.passes.fuse_kernels import fuse_kernels
    from fqx.passes.lower import lower
    from fqx.passes.observe import observe, observe_plan
    from fqx.passes.pipeline import Pass, Pipeline
    from fqx.passes.smooth import equalize_inputs, smooth
    from fqx.policy.costs import Costs, costs_from_json
    from fqx.policy.plan import Plan, make_plan
    from fqx.policy.recipe import (
        Recipe,
        Rule,
        Scheme,
        custom_module,
        float16,
        float16_static,
        float_,
        int8_dynamic,
        int8_static,
        leave_float,
        use,
        weight_only,
        within,
    )
    from fqx.policy.selectors import Selector, module_type, node, op, path, predicate, regex, scope
    from fqx.policy.target import Target
    from fqx.targets.native import native
    from fqx.targets.onednn import onednn
    from fqx.targets.reference import reference
    from fqx.targets.timings import built_in_costs

__all__ = [
    "Advice",
    "CustomModule",
    "custom_module",
    "Comparison",
    "Costs",
    "Fault",
    "FaultKind",
    "Graph",
    "Halt",
    "Pass",
    "Pipeline",
    "Plan",
    "Quantized",
    "Recipe",
    "Rule",
    "Scheme",
    "Selector",
    "Stage",
    "Stats",
    "Step",
    "Target",
    "Trail",
    "advise",
    "apply",
    "blame",
    "borders",
    "built_in_costs",
    "calibrate",
    "capture",
    "clean",
    "compare",
    "compare_weights",
    "convert",
    "correct_bias",
    "costs_from_json",
    "count_macs",
    "coverage",
    "decompose_attention",
    "decompose_recurrent",
    "equalize",
    "equalize_inputs",
    "explain",
    "export_pt2",
    "expose",
    "float16",
    "float16_static",
    "float_",
    "fold",
    "fuse",
    "fuse_kernels",
    "int8_dynamic",
    "int8_static",
    "invert",
    "latency",
    "leave_float",
    "load",
    "load_pt2",
    "lower",
    "make_plan",
    "materialize",
    "measure_costs",
    "module_type",
    "native",
    "node",
    "observe",
    "observe_plan",
    "onednn",
    "op",
    "path",
    "pipeline",
    "predicate",
    "probe",
    "quantize",
    "read",
    "reference",
    "regex",
    "save_model",
    "save_trail",
    "scope",
    "show",
    "smooth",
    "sqnr",
    "target_named",
    "then",
    "use",
    "verify",
    "weight_only",
    "within",
]

_PLACES: Mapping[str, str] = MappingProxyType(
    {
        name: place
        for place, names in {
            "api": "Quantized load pipeline quantize",
            "audit.advise": "Advice advise",
            "audit.blame": "blame",
            "audit.compare": "Comparison compare compare_weights",
            "audit.costs": "measure_costs",
            "audit.coverage": "coverage",
            "audit.explain": "explain",
            "audit.macs": "count_macs",
            "audit.measure": "latency sqnr",
            "edge.artefact": "read save_model save_trail",
            "edge.capture": "capture",
            "edge.export_pt2": "export_pt2 load_pt2",
            "edge.machine": "target_named",
            "edge.custom_modules": "CustomModule",
            "edge.materialize": "materialize",
            "edge.probe": "probe",
            "edge.verify": "verify",
            "ir.diff": "apply invert then",
            "ir.fault": "Fault FaultKind",
            "ir.graph": "Graph",
            "ir.names": "Stage",
            "ir.show": "show",
            "ir.trail": "Halt Step Trail",
            "passes.calibrate": "Stats calibrate",
            "passes.clean": "clean",
            "passes.convert": "convert",
            "passes.correct_bias": "correct_bias",
            "passes.decompose": "decompose_attention decompose_recurrent",
            "passes.equalize": "equalize",
            "passes.expose": "borders expose",
            "passes.fold": "fold",
            "passes.fuse": "fuse",
            "passes.fuse_kernels": "fuse_kernels",
            "passes.lower": "lower",
            "passes.observe": "observe observe_plan",
            "passes.pipeline": "Pass Pipeline",
            "passes.smooth": "equalize_inputs smooth",
            "policy.costs": "Costs costs_from_json",
            "policy.plan": "Plan make_plan",
            "policy.recipe": (
                "Recipe Rule Scheme custom_module float16 float16_static float_ int8_dynamic"
                " int8_static leave_float use weight_only within"
            ),
            "policy.selectors": "Selector module_type node op path predicate regex scope",
            "policy.target": "Target",
            "targets.native": "native",
            "targets.onednn": "onednn",
            "targets.reference": "reference",
            "targets.timings": "built_in_costs",
        }.items()
        for name in names.split()
    }
)


def __getattr__(name: str) -> object:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'fqx' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fqx.{place}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
