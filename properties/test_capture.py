"""Laws of capture and of the float module, on drawn models: one draw for all laws."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hypothesis import given, note, settings
from hypothesis import strategies as st

from fqx.ir.show import show
from fqx.testing.captures import CAPTURE_LAWS, captured, taken
from fqx.testing.laws import broken
from fqx.testing.models import Instruction, ModelSample, model_samples, respelled

COPY_OF_A_SLICE = ModelSample(
    (
        Instruction("binary:join", 0, (1, 1)),
        Instruction("move:flat", 0, (2,)),
        Instruction("unary:gelu", 0, (3,)),
    ),
    "tensor",
    0,
)


WRITE_BEHIND_DROPOUT = ModelSample(
    (
        Instruction("module:conv:0", 0, (1,)),
        Instruction("module:dropout:0", 0, (2,)),
        Instruction("unary_:double", 0, (2,)),
        Instruction("write:flat_view", 0, (3,)),
    ),
    "tuple",
    0,
)


def test_what_dropout_hands_on_is_written_with_its_source() -> None:
    """Outside training dropout gives the same object back."""
    found = broken(CAPTURE_LAWS, captured(WRITE_BEHIND_DROPOUT, WRITE_BEHIND_DROPOUT))
    assert not found, "\n\n".join(map(str, found))


def test_a_copy_that_changes_strides_is_kept() -> None:
    """gelu rounds by strides, so that the copy of a slice must not vanish."""
    found = broken(CAPTURE_LAWS, captured(COPY_OF_A_SLICE, COPY_OF_A_SLICE))
    assert not found, "\n\n".join(map(str, found))


@given(st.data())
def test_capture_obeys_the_laws(data: st.DataObject) -> None:
    sample = data.draw(model_samples())
    seen = captured(sample, data.draw(respelled(sample)))
    note(show(seen.graphs["export"]))
    found = broken(CAPTURE_LAWS, seen)
    assert not found, "\n\n".join(map(str, found))


@settings(max_examples=5)
@given(model_samples())
def test_a_sharing_capture_gives_the_same_graph_and_leaves_the_model_alone(
    sample: ModelSample,
) -> None:
    sharing = captured(sample, sample, partial(taken, share=True))
    assert not sharing.left
    assert sharing.graphs["export"] == taken(sample.model(), sample.inputs(), "export")


MODEL_LAWS: tuple[Callable[[], None], ...] = (test_capture_obeys_the_laws,)
"""What `python -m properties` runs on drawn models."""
