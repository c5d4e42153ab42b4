"""The laws hold for recipes of every kind: static, dynamic, weights alone, float16, mixed."""

from __future__ import annotations

from hypothesis import assume, given, note
from hypothesis import strategies as st

from fqx.ir.fault import FaultKind
from fqx.ir.show import show
from fqx.num.scheme import half, int8_channel, uint8_affine, uint8_dynamic, uint8_rows
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.passes.pipeline import Pipeline
from fqx.passes.smooth import smooth
from fqx.policy.recipe import Recipe, Rule, Scheme, recipe_from_arg, recipe_to_arg
from fqx.policy.selectors import everything, op
from fqx.policy.target import Target
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.testing.graphs import RECURRENT, Sample, samples
from fqx.testing.laws import PASS_LAWS, broken, violations
from fqx.testing.quantization import ROAD_LAWS, Road

TARGETS: tuple[Target, ...] = (onednn(), native("x86").unwrap(), reference())
WEIGHTED = ("conv1d", "conv2d", "conv3d", "linear", "embedding", "embedding_bag", "lstm", "gru",
            "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")  # fmt: skip
SCHEMES: tuple[Scheme | None, ...] = (
    None,
    Scheme(uint8_affine(), int8_channel()),
    Scheme(uint8_affine(), int8_channel(), lone=True),
    Scheme(uint8_dynamic(), int8_channel()),
    Scheme(None, int8_channel()),
    Scheme(None, uint8_rows()),
    Scheme(None, uint8_rows(4)),
    Scheme(None, half()),
    Scheme(half("static"), half()),
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """One scheme for everything, and schemes of their own for some weighted operators."""
    rules = [Rule(everything(), draw(st.sampled_from(SCHEMES)), "drawn")]
    for name in draw(st.lists(st.sampled_from(WEIGHTED), unique=True)):
        rules.append(Rule(op(name), draw(st.sampled_from(SCHEMES)), "drawn"))
    return Recipe(tuple(rules))


def road(sample: Sample, target: Target, recipe: Recipe) -> Pipeline:
    return (
        clean()
        | fuse()
        | observe(recipe, target)
        | calibrate([sample.inputs], progress=False)
        | smooth()
        | convert(target)
        | fold()
        | lower(target)
    )


@given(samples(), st.sampled_from(TARGETS), recipes())
def test_every_kind_obeys_the_laws(sample: Sample, target: Target, recipe: Recipe) -> None:
    _obeys(sample, target, recipe)


@given(samples(most=4, given=RECURRENT), st.sampled_from(TARGETS), recipes())
def test_every_kind_of_recurrence_obeys_the_laws(
    sample: Sample, target: Target, recipe: Recipe
) -> None:
    _obeys(sample, target, recipe)


def _obeys(sample: Sample, target: Target, recipe: Recipe) -> None:
    note(f"{target.label}\n{recipe}\n{show(sample.graph)}")
    passes = road(sample, target, recipe)
    result = passes.run(sample.graph)
    refused = result.swap().map(lambda halt: halt.fault.kind is FaultKind.NOT_FINITE)
    assume(not refused.value_or(False))
    trail = result.unwrap()
    note(show(trail.graph))
    found = broken(ROAD_LAWS, Road(sample.inputs, target, trail))
    assert not found, "\n\n".join(map(str, found))
    for item, graph in zip(passes.passes, trail.graphs(), strict=False):
        account = violations(item, graph, PASS_LAWS, sample.inputs)
        assert not account, f"{item}\n" + "\n\n".join(map(str, account))


@given(recipes())
def test_a_recipe_of_any_kind_is_plain_data(recipe: Recipe) -> None:
    assert recipe_from_arg(recipe_to_arg(recipe)).unwrap() == recipe
