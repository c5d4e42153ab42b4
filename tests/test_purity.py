"""Every public function leaves what it is given as it was: modules, graphs, configs, torch itself.

One call of each is watched. The first test holds the list of calls to everything that is public.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.backend_config import get_native_backend_config
from torch.ao.quantization.fx.custom_config import (
    ConvertCustomConfig,
    FuseCustomConfig,
    PrepareCustomConfig,
)

import fqx
import fqx.compat.quantize_fx as dropin
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Stage
from fqx.ir.trail import Trail
from fqx.passes.pipeline import Pass, Pipeline
from fqx.testing.chains import watching_channels
from fqx.testing.side_by_side import bits, told
from fqx.testing.small import SmallNet, batches, quantized_trail, small_net

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Given:
    """What a call may be handed."""

    model: SmallNet
    batches: list[Tensor]
    trail: Trail
    module: Any
    prepared: Any
    recipe: fqx.Recipe
    target: fqx.Target
    mapping: Any
    custom: Any
    finish: Any
    fusing: Any
    backend: Any
    folder: Path

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """An example of the model's inputs."""
        return (self.batches[0],)

    def at(self, stage: Stage) -> Graph:
        """The trail's first graph of a stage."""
        return next(graph for graph in self.trail.graphs() if graph.stage is stage)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """One set of objects for all calls, each of which is watched by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, trail = small_net(), quantized_trail()
        mapping = get_default_qconfig_mapping("x86")
        prepared = dropin.prepare_fx(model, mapping, (batches()[0],))
        for batch in batches():
            prepared(batch)
        return Given(
            model,
            batches(),
            trail,
            fqx.materialize(trail.graph).unwrap(),
            prepared,
            fqx.int8_static() | fqx.leave_float(fqx.path("head")),
            fqx.onednn(),
            mapping,
            PrepareCustomConfig().set_preserved_attributes(["shift"]),
            ConvertCustomConfig().set_preserved_attributes(["shift"]),
            FuseCustomConfig().set_preserved_attributes(["shift"]),
            get_native_backend_config(),
            tmp_path_factory.mktemp("purity"),
        )


def seen(given: Given) -> dict[str, object]:
    """Everything that could have changed."""
    modules = {name: getattr(given, name) for name in ("model", "module", "prepared")}
    found: dict[str, object] = {
        f"{name}.{key}": value
        for name, part in modules.items()
        for key, value in told(part).items()
    }
    for index, graph in enumerate(given.trail.graphs()):
        found[f"graph {index}"] = (id(graph), copy.copy(graph).digest, tuple(graph.order))
        for path, weight in graph.weights.items():
            held = weight.payload
            assert isinstance(held, Tensor)
            found[f"graph {index} {path}"] = (id(held), held._version, bits(held))
    for index, batch in enumerate(given.batches):
        found[f"batch {index}"] = (id(batch), batch._version, bits(batch))
    for name in ("mapping", "custom", "finish", "fusing", "backend"):
        found[name] = repr(getattr(given, name).to_dict())
    found["values"] = (repr(given.recipe.rules), repr(given.target))
    found["torch"] = (
        bits(torch.get_rng_state()),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.backends.quantized.engine,
    )
    return found


def run(stage: Stage, road: Callable[[Given], Pass | Pipeline]) -> Callable[[Given], object]:
    """A call that runs passes on the trail's graph of a stage."""
    return lambda given: road(given).run(given.at(stage)).unwrap()


def last_diff(given: Given) -> Any:
    """The diff of the trail's first step that changed something."""
    return given.trail.steps[1].diff


def before(given: Given) -> Graph:
    """The graph that diff belongs to."""
    return given.trail.graphs()[1]


CALLS: Mapping[str, Callable[[Given], object]] = MappingProxyType(
    {
        "quantize": lambda g: fqx.quantize(
            g.model, g.inputs, g.batches, recipe=g.recipe, target=g.target, progress=False
        ).unwrap(),
        "capture": lambda g: fqx.capture(g.model, g.inputs).unwrap(),
        "materialize": lambda g: fqx.materialize(g.trail.graph).unwrap()(*g.inputs),
        "pipeline": lambda g: (
            fqx.pipeline(g.target, g.batches, g.recipe, progress=False).run(g.trail.base).unwrap()
        ),
        "clean": run(Stage.FLOAT, lambda _: fqx.clean()),
        "fuse": run(Stage.FLOAT, lambda _: fqx.fuse()),
        "equalize": run(Stage.FUSED, lambda _: fqx.equalize()),
        "decompose_attention": run(Stage.FUSED, lambda _: fqx.decompose_attention()),
        "decompose_recurrent": run(Stage.FUSED, lambda _: fqx.decompose_recurrent()),
        "observe": run(Stage.FUSED, lambda g: fqx.observe(g.recipe, g.target)),
        "observe_plan": run(
            Stage.FUSED,
            lambda g: fqx.observe_plan(
                fqx.make_plan(g.at(Stage.FUSED), g.recipe, g.target).unwrap()
            ),
        ),
        "make_plan": lambda g: fqx.make_plan(g.at(Stage.FUSED), g.recipe, g.target).unwrap(),
        "calibrate": run(Stage.OBSERVED, lambda g: fqx.calibrate(g.batches, progress=False)),
        "smooth": run(Stage.CALIBRATED, lambda _: fqx.smooth()),
        "equalize_inputs": run(
            Stage.FUSED,
            lambda g: (
                fqx.observe(watching_channels(), g.target)
                | fqx.calibrate(g.batches, progress=False)
                | fqx.equalize_inputs()
            ),
        ),
        "convert": run(Stage.CALIBRATED, lambda g: fqx.convert(g.target)),
        "correct_bias": run(
            Stage.QUANTIZED,
            lambda g: fqx.correct_bias(g.at(Stage.FUSED), g.batches, progress=False),
        ),
        "fold": run(Stage.QUANTIZED, lambda _: fqx.fold()),
        "expose": run(Stage.QUANTIZED, lambda _: fqx.expose(inputs=(0,))),
        "lower": run(Stage.QUANTIZED, lambda g: fqx.lower(g.target)),
        "fuse_kernels": run(
            Stage.QUANTIZED, lambda g: fqx.lower(g.target) | fqx.fuse_kernels(g.target)
        ),
        "apply": lambda g: fqx.apply(last_diff(g), before(g)).unwrap(),
        "invert": lambda g: fqx.invert(last_diff(g)),
        "then": lambda g: fqx.then(g.trail.steps[0].diff, last_diff(g)).unwrap(),
        "advise": lambda g: fqx.advise(g.at(Stage.FUSED), g.batches).unwrap(),
        "blame": lambda g: fqx.blame(g.trail, NodeId("conv2")),
        "borders": lambda g: fqx.borders(g.trail.graph),
        "compare": lambda g: fqx.compare(g.at(Stage.FUSED), g.trail.graph, g.batches).unwrap(),
        "compare_weights": lambda g: fqx.compare_weights(g.at(Stage.FUSED), g.trail.graph).unwrap(),
        "count_macs": lambda g: fqx.count_macs(g.module, g.inputs),
        "coverage": lambda g: fqx.coverage(g.trail),
        "explain": lambda g: str(fqx.explain(g.trail)),
        "measure_costs": lambda g: fqx.measure_costs(
            g.at(Stage.QUANTIZED), g.inputs, g.target, rounds=2, budget=2.0
        ).unwrap(),
        "latency": lambda g: fqx.latency(g.module, g.inputs, runs=1, budget=0.1),
        "probe": lambda g: fqx.probe(g.target).unwrap(),
        "export_pt2": lambda g: fqx.export_pt2(
            g.trail.graph, g.folder / "net.pt2", g.inputs
        ).unwrap(),
        "save_model": lambda g: fqx.save_model(g.folder / "model", g.trail).unwrap(),
        "save_trail": lambda g: fqx.save_trail(g.folder / "trail", g.trail).unwrap(),
        "show": lambda g: fqx.show(g.trail.graph),
        "sqnr": lambda g: fqx.sqnr(g.batches[0], g.batches[1]),
        "verify": lambda g: fqx.verify(g.trail, model=g.model, calibration=g.batches).unwrap(),
        "within": lambda g: fqx.within("head", g.recipe),
        "fuse_fx": lambda g: dropin.fuse_fx(g.model, g.fusing, g.backend),
        "prepare_fx": lambda g: dropin.prepare_fx(
            g.model, g.mapping, g.inputs, g.custom, None, g.backend
        )(*g.inputs),
        "convert_fx": lambda g: dropin.convert_fx(
            g.prepared, g.finish, qconfig_mapping=g.mapping, backend_config=g.backend
        )(*g.inputs),
        "convert_to_reference_fx": lambda g: dropin.convert_to_reference_fx(
            g.prepared, g.finish, qconfig_mapping=g.mapping, backend_config=g.backend
        )(*g.inputs),
        "convert_to_reference_decomposed_fx": lambda g: dropin.convert_to_reference_decomposed_fx(
            g.prepared, g.finish, qconfig_mapping=g.mapping, backend_config=g.backend
        )(*g.inputs),
    }
)

# They take names, numbers and files, and nothing that could be changed.
HARMLESS = frozenset(
    {
        "built_in_costs",
        "costs_from_json",
        "custom_module",
        "float16",
        "float16_static",
        "float_",
        "int8_dynamic",
        "int8_static",
        "leave_float",
        "load_pt2",
        "load",
        "module_type",
        "native",
        "node",
        "onednn",
        "op",
        "path",
        "predicate",
        "read",
        "reference",
        "regex",
        "scope",
        "target_named",
        "use",
        "weight_only",
        "prepare_qat_fx",
    }
)


def test_every_public_function_is_watched() -> None:
    public = {
        name
        for place in (fqx, dropin)
        for name in place.__all__
        if inspect.isfunction(getattr(place, name))
    }
    assert public == {*CALLS, *HARMLESS}


@pytest.mark.parametrize("name", list(CALLS))
def test_a_call_changes_nothing_it_is_given(name: str, given: Given) -> None:
    first = seen(given)
    CALLS[name](given)
    second = seen(given)
    assert [key for key in first if first[key] != second.get(key)] == []
    assert first.keys() == second.keys()


def test_a_changed_model_is_noticed(given: Given) -> None:
    first = seen(given)
    part: Any = given.model.conv
    part.qconfig = None
    assert seen(given) != first
    del part.qconfig
    assert seen(given) == first
    with torch.no_grad():
        part.weight.mul_(1.0)
    assert seen(given) != first
