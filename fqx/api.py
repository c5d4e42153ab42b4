"""The short road: a model in, a quantized program out, with its whole history."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fqx.audit.costs import measure_costs, sizes_of
from fqx.audit.coverage import Coverage, coverage
from fqx.audit.explain import Explanation, explain
from fqx.audit.measure import Contest, contest, show_bytes, weight_bytes
from fqx.edge.artefact import FilePath, Weights, save_model, save_trail
from fqx.edge.artefact import load as load_artefact
from fqx.edge.capture import capture
from fqx.edge.custom_modules import Customs
from fqx.edge.machine import probed, target_named, usual_target
from fqx.edge.materialize import materialize
from fqx.edge.modules import GraphModule, Module, Modules
from fqx.ir.fault import Fault
from fqx.ir.graph import Graph
from fqx.ir.names import Digest, Stage
from fqx.ir.trail import Halt, Trail
from fqx.kit.result import Result, Success
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.fuse_kernels import fuse_kernels
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.passes.pipeline import Pass, Pipeline
from fqx.passes.smooth import smooth
from fqx.policy.costs import Costs
from fqx.policy.plan import Plan
from fqx.policy.recipe import Recipe, Rule, int8_static, spelt
from fqx.policy.selectors import Selector
from fqx.policy.target import Target
from fqx.targets.timings import built_in_costs

Objective = Literal["balanced", "accuracy", "coverage", "speed"]
"""What a program is made for.

`speed` takes the kernels, and the units in float, by which the whole program takes least time by a
table of costs; what a recipe's own rules ask to quantize stays on integers. The others run on
integers whatever a target has kernels for, wherever accuracy lets them: `balanced` as `speed` does
by the statistics, `accuracy` with more in float where these warn, `coverage` with less.
"""

_NO_REWRITES = Pipeline()


@dataclass(frozen=True, slots=True)
class Quantized:
    """A finished trail: what ran, what was decided, and the program that came out.

    `timing` is int8 against float, where costs were measured; where int8 did not pay the trail ends
    with the float program.
    """

    trail: Trail
    timing: Contest | None = None

    @property
    def graph(self) -> Graph:
        """The last graph."""
        return self.trail.graph

    @property
    def plan(self) -> Plan | None:
        """The last plan, one verdict with a reason for every node; None if it came from a file.

        `coverage` and `explain` read the verdicts of either.
        """
        found = (step.evidence for step in reversed(self.trail.steps))
        return next((item for item in found if isinstance(item, Plan)), None)

    def materialize(
        self,
        leaves: Modules | None = None,
        custom: Customs | None = None,
        preserve: Mapping[str, object] | None = None,
    ) -> Result[GraphModule, Halt]:
        """The program as an ordinary GraphModule with the model's own parameter names.

        `preserve` are attributes for it to carry; see `fqx.edge.materialize.materialize`.
        """
        return materialize(self.graph, leaves, custom, preserve)

    def explain(self, node: str | None = None) -> Explanation:
        """Why a node (or every node) is int8 or not, and what each pass did to it."""
        return explain(self.trail, node)

    def coverage(self) -> Coverage:
        """How many nodes and multiply-accumulates the plan runs in int8, and why others not."""
        return coverage(self.trail)

    def save(
        self,
        path: FilePath,
        what: Literal["model", "trail"] = "model",
        weights: Weights = "attached",
    ) -> Result[Digest, Halt]:
        """Write the program, or its whole history, as one file; gives the digest to pin.

        Faults: UNWRITABLE_FILE, MISSING_PAYLOAD, INTERRUPTED; the old file then is as it was.
        """
        if what == "model":
            return save_model(path, self.trail)
        return save_trail(path, self.trail, weights)

    def __repr__(self) -> str:
        graph, base = self.graph, self.trail.base
        lines = [f"Quantized {graph.stage.value} {graph.digest[:12]}"]
        lines += [f"  {len(self.trail.steps)} steps from {base.digest[:12]}"]
        lines += [f"  nodes    {len(base)} -> {len(graph)}"]
        lines += [
            f"  weights  {show_bytes(weight_bytes(base))} -> {show_bytes(weight_bytes(graph))}"
        ]
        lines += [f"  time     {self.timing}"] if self.timing is not None else []
        lines += [f"  {line}" for line in repr(self.coverage()).splitlines()[:5]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>{self.coverage()._repr_html_()}"


def quantize(
    model: Module,
    example_inputs: tuple[object, ...] | Mapping[str, object],
    calibration: Iterable[object] = (),
    *,
    recipe: Recipe | None = None,
    target: Target | str | None = None,
    how: Literal["export", "symbolic"] = "export",
    leaves: Sequence[str] = (),
    kwargs: Mapping[str, object] | None = None,
    dynamic_shapes: Mapping[str, Mapping[int, str]] | None = None,
    objective: Objective = "speed",
    rewrites: Pass | Pipeline = _NO_REWRITES,
    costs: Costs | Literal["measured"] | None = None,
    inputs: Callable[[object], object] | None = None,
    progress: bool = True,
) -> Result[Quantized, Halt]:
    """Capture the model, calibrate it on the batches and lower it to the target's int8 kernels.

    The model is only read. A batch of `calibration` is a tensor, a tuple or list of positional
    inputs, or a mapping of keyword inputs; `inputs` picks them out of anything else. Dynamic and
    weight-only recipes measure nothing and need none. Without a
    `target` it is onednn on x86 and native/qnnpack on ARM, narrowed by `probe` to what this machine
    computes exactly. `dynamic_shapes` names free dimensions beside the batch, per input. The
    `objective` `speed` runs each unit where the whole program takes least time, by the target's
    built-in table of costs, at the sizes of the example, so hand in an example of the batch you
    will run; a target without a table runs on integers what it can. `balanced` does that
    everywhere, `accuracy` leaves more in float where the statistics warn, `coverage` less. With a
    recipe of your own, what its rules of yours (`use`, `within`) ask to quantize stays on
    integers. With a table of your own as `costs` that one is used;
    `"measured"` measures one on this machine first. A program chosen by measured costs is timed
    against the float one, which is what you get, with a note, unless int8 is faster by more than
    the spread of the times. `rewrites` are passes to run between `fuse` and `observe`, such as
    `decompose_recurrent()`, `decompose_attention()` and `equalize()`.

    Faults: those of capture, of every pass, UNSUPPORTED_TARGET, INTERRUPTED (with what was
    calibrated so far in the trail's halt).
    """
    args = () if isinstance(example_inputs, Mapping) else tuple(example_inputs)
    named = example_inputs if isinstance(example_inputs, Mapping) else (kwargs or {})

    def finished(here: Target, trail: Trail) -> Result[Quantized, Halt]:
        line = pipeline(
            here,
            calibration,
            recipe,
            objective=objective,
            rewrites=rewrites,
            inputs=inputs,
            progress=progress,
        )
        kept = None if recipe is None else spelt(recipe)
        above, (low, *behind) = Pipeline(line.passes[:-2]), line.passes[-2:]
        if costs is None and objective != "speed":
            return line.run(trail).map(Quantized)
        return above.run(trail).bind(
            lambda done: (
                _table(done.graph, here, costs, args, named)
                .alt(lambda fault: Halt(fault, done))
                .bind(
                    lambda table: (
                        Pipeline((low if table is None else lower(here, table, kept), *behind))
                        .run(done)
                        .bind(lambda made: _timed(made, table, kept, args, named))
                    )
                )
            )
        )

    return (
        _machine_target(target)
        .alt(Halt)
        .bind(
            lambda here: capture(
                model,
                example_inputs,
                kwargs=kwargs,
                how=how,
                leaves=tuple(leaves),
                dynamic=dynamic_shapes,
            ).bind(lambda trail: finished(here, trail))
        )
    )


def _table(
    graph: Graph,
    target: Target,
    costs: Costs | Literal["measured"] | None,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> Result[Costs | None, Fault]:
    """The table to lower by: that of the caller, one measured now, or the built-in one."""
    if costs == "measured":
        return measure_costs(graph, args, target, kwargs).map(_either)
    if costs is not None:
        return Success(costs)
    table = built_in_costs(target)
    if table is None:
        return Success(None)
    return sizes_of(graph, args, kwargs).map(table.sized)


def _either(costs: Costs) -> Costs | None:
    return costs


def _timed(
    trail: Trail,
    costs: Costs | None,
    kept: Selector | None,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> Result[Quantized, Halt]:
    """The trail, or where measured costs did not pay in the end its float beginning.

    A program of which the user asked to keep a part on integers is not given up.
    """
    if costs is None or not costs.measured:
        return Success(Quantized(trail))
    floats = [at for at, graph in enumerate(trail.graphs()) if graph.stage in _FLOATS]
    start = Trail(trail.base, trail.steps[: floats[-1]], trail.notes)

    def decided(int8: GraphModule, floating: GraphModule) -> Quantized:
        timing = contest(int8, floating, args, kwargs)
        if timing.pays or kept is not None:
            return Quantized(trail, timing)
        note = f"float was kept, since int8 is not faster by more than the spread: {timing}"
        return Quantized(replace(start, notes=(*start.notes, note)), timing)

    return materialize(trail.graph).bind(
        lambda int8: materialize(start.graph).map(lambda floating: decided(int8, floating))
    )


_FLOATS = (Stage.FLOAT, Stage.FUSED)


def pipeline(
    target: Target,
    calibration: Iterable[object],
    recipe: Recipe | None = None,
    *,
    objective: Objective = "speed",
    rewrites: Pass | Pipeline = _NO_REWRITES,
    costs: Costs | None = None,
    inputs: Callable[[object], object] | None = None,
    progress: bool = True,
) -> Pipeline:
    """The passes `quantize` runs behind capture, to print, change and run yourself.

    For `speed` and without `costs` the built-in table prices a batch of one.
    """
    kept = None if recipe is None else spelt(recipe)
    table = built_in_costs(target) if costs is None and objective == "speed" else costs
    chosen = recipe if recipe is not None else _suited(int8_static(), objective)
    return (
        clean()
        | fuse()
        | rewrites
        | observe(chosen, target)
        | calibrate(calibration, inputs=inputs, progress=progress)
        | smooth()
        | convert(target)
        | fold()
        | lower(target, table, kept if table is not None else None)
        | fuse_kernels(target)
    )


def load(
    path: FilePath,
    digest: str | None = None,
    allow_ops: Sequence[str] = (),
    leaves: Modules | None = None,
) -> Result[Quantized, Halt]:
    """A saved program or trail, ready to materialize on this machine.

    `digest` pins it, `allow_ops` lists foreign operators that are trusted beside the harmless ones,
    `leaves` are the modules the program keeps whole. Faults: UNREADABLE_FILE, UNKNOWN_VERSION,
    CORRUPT_FILE, DIGEST_DIFFERS, UNLISTED_OP, WIDER_MACHINE, MISSING_LEAF.
    """
    return load_artefact(path, digest, allow_ops, leaves).map(lambda found: Quantized(found.trail))


def _machine_target(target: Target | str | None) -> Result[Target, Fault]:
    if isinstance(target, str):
        return target_named(target).bind(probed)
    return usual_target().bind(probed) if target is None else probed(target)


def _suited(recipe: Recipe, objective: Objective) -> Recipe:
    """The preset with its smoothing thresholds moved towards accuracy, or towards coverage."""
    moved = {"balanced": 0.0, "accuracy": 6.0, "coverage": -6.0, "speed": 0.0}[objective]
    return Recipe(tuple(_moved(rule, moved) for rule in recipe.rules)) if moved else recipe


def _moved(rule: Rule, by: float) -> Rule:
    scheme = rule.scheme
    if scheme is None or scheme.smoothing is None:
        return rule
    smoothing = replace(
        scheme.smoothing,
        plain_above=scheme.smoothing.plain_above + by,
        float_below=scheme.smoothing.float_below + by,
    )
    return replace(rule, scheme=replace(scheme, smoothing=smoothing))
