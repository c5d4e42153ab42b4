"""Laws of `fuse_kernels`, on linears that read one value and on graphs drawn from the catalogue."""

from __future__ import annotations

from hypothesis import assume, given, note
from hypothesis import strategies as st

from fqx.ir.fault import FaultKind
from fqx.ir.show import show
from fqx.passes.calibrate import calibrate
from fqx.passes.convert import convert
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.fuse_kernels import fuse_kernels
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.policy.recipe import Recipe, int8_dynamic, int8_static
from fqx.policy.target import Target
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.testing.graphs import Sample, samples
from fqx.testing.joins import RUNS_THE_SAME, sharers
from fqx.testing.laws import IDEMPOTENT, PASS_LAWS, violations

TARGETS: tuple[Target, ...] = (onednn(), native("x86").unwrap(), reference())
RECIPES: tuple[Recipe, ...] = (int8_static(), int8_dynamic())


@given(sharers() | samples(most=6), st.sampled_from(TARGETS), st.sampled_from(RECIPES))
def test_joined_kernels_obey_the_laws(sample: Sample, target: Target, recipe: Recipe) -> None:
    note(f"{target.label}\n{show(sample.graph)}")
    road = (
        fuse()
        | observe(recipe, target)
        | calibrate([sample.inputs], progress=False)
        | convert(target)
        | fold()
        | lower(target)
    )
    result = road.run(sample.graph)
    refused = result.swap().map(lambda halt: halt.fault.kind is FaultKind.NOT_FINITE)
    assume(not refused.value_or(False))
    graph = result.unwrap().graph
    note(show(graph))
    laws = (*PASS_LAWS, IDEMPOTENT, RUNS_THE_SAME)
    found = violations(fuse_kernels(target), graph, laws, sample.inputs)
    assert not found, "\n\n".join(map(str, found))
