"""Every pass obeys every law: graphs drawn from the catalogue, one draw for all laws of a group."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, note
from hypothesis import strategies as st

from fqx.ir.show import show
from fqx.passes.clean import clean
from fqx.passes.decompose import decompose_attention, decompose_recurrent
from fqx.passes.equalize import equalize
from fqx.passes.fuse import fuse
from fqx.passes.pipeline import Pass
from fqx.testing.chains import chains
from fqx.testing.graphs import ATTENTIVE, RECURRENT, Sample, samples
from fqx.testing.laws import (
    EXACT,
    IDEMPOTENT,
    PASS_LAWS,
    ROUNDS_WELL,
    Law,
    Subject,
    violations,
)


def _assert_obeys(rewrite: Pass, sample: Sample, *more: Law[Subject]) -> None:
    note(show(sample.graph))
    broken = violations(rewrite, sample.graph, (*PASS_LAWS, *more), sample.inputs)
    assert not broken, "\n\n".join(map(str, broken))


@given(samples(tame=False))
def test_clean_obeys_the_laws(sample: Sample) -> None:
    _assert_obeys(clean(), sample, EXACT, IDEMPOTENT)


@given(samples(tame=False))
def test_fuse_obeys_the_laws(sample: Sample) -> None:
    _assert_obeys(fuse(), sample, ROUNDS_WELL, IDEMPOTENT)


@given(samples())
def test_equalize_obeys_the_laws(sample: Sample) -> None:
    _assert_obeys(equalize(), sample, EXACT, IDEMPOTENT)


@given(chains())
def test_equalize_obeys_the_laws_on_badly_balanced_chains(sample: Sample) -> None:
    _assert_obeys(equalize(), sample, EXACT, IDEMPOTENT)


@given(samples(given=RECURRENT))
def test_decompose_recurrent_obeys_the_laws(sample: Sample) -> None:
    _assert_obeys(decompose_recurrent(), sample, ROUNDS_WELL, IDEMPOTENT)


@given(samples(given=ATTENTIVE))
def test_decompose_attention_obeys_the_laws(sample: Sample) -> None:
    _assert_obeys(decompose_attention(), sample, ROUNDS_WELL, IDEMPOTENT)


@given(samples(), st.booleans())
def test_a_pipeline_is_its_passes_one_behind_the_other(sample: Sample, grouped: bool) -> None:
    one, two = clean(), fuse()
    both = (one | two).run(sample.graph)
    apart = one.run(sample.graph).bind(two.run)
    assert both.map(lambda trail: trail.graph.digest) == apart.map(lambda trail: trail.graph.digest)


GRAPH_LAWS: tuple[Callable[[], None], ...] = (
    test_clean_obeys_the_laws,
    test_fuse_obeys_the_laws,
    test_equalize_obeys_the_laws,
    test_equalize_obeys_the_laws_on_badly_balanced_chains,
    test_decompose_recurrent_obeys_the_laws,
    test_decompose_attention_obeys_the_laws,
    test_a_pipeline_is_its_passes_one_behind_the_other,
)
"""What `python -m properties` runs on drawn graphs."""
