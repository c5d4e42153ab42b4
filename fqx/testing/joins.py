"""Linears that read one value, drawn at random, and the law of passes that join kernels."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from fqx.edge.materialize import materialize
from fqx.ir.arg import NodeRef, WeightRef
from fqx.ir.graph import Graph
from fqx.testing.draft import Draft
from fqx.testing.graphs import BATCH, Sample
from fqx.testing.laws import Law, Subject, same_bits, tensors_in

__all__ = ["RUNS_THE_SAME", "sharers"]


def _runs_the_same(subject: Subject) -> str | None:
    """Whether the modules of both programs give the same bits."""
    before, after = (_outputs(graph, subject.inputs) for graph in (subject.before, subject.after))
    for at, (one, two) in enumerate(zip(before, after, strict=True)):
        if one.dtype != two.dtype or one.shape != two.shape:
            return f"output {at} was {one.dtype} {one.shape}, is {two.dtype} {two.shape}"
        if not same_bits(one, two):
            return f"output {at} differs in {int((one != two).sum())} of {one.numel()} elements"
    return None


def _outputs(graph: Graph, inputs: tuple[object, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        return tensors_in(materialize(graph).unwrap()(*inputs))


RUNS_THE_SAME: Law[Subject] = Law(
    "runs_the_same", "the module gives the same bits as before", _runs_the_same
)
"""Holds for passes on LOWERED graphs, which the judge does not read."""


@st.composite
def sharers(draw: st.DrawFn) -> Sample:
    """Two to four linears on one value, of different widths, some as one might not join them.

    Without biases, with activations, with a weight that another one reads too, as an output of the
    program; now and then behind a factor for each column.
    """
    draft, random = Draft(), torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    width, tokens = draw(st.sampled_from((4, 7, 16))), draw(st.sampled_from((1, 3)))
    x = draft.input("x", BATCH, tokens, width)
    batch = draft.call("size", "batch", x=x, dim=0)
    if draw(st.booleans()):
        factor = draft.weight("factor", 10.0 ** torch.randn(width, generator=random))
        x = draft.call("mul", "scaled", x=x, y=factor)
    made: list[NodeRef] = []
    held: WeightRef | None = None
    rows_held = 0
    for index in range(draw(st.integers(2, 4))):
        name = f"block.part{index}"
        rows = 2 * draw(st.integers(1, 9))
        again = held is not None and draw(st.integers(0, 5)) == 0
        if held is None or not again:
            held = draft.weight(f"{name}.weight", torch.randn(rows, width, generator=random))
            rows_held = rows
        bias = (
            draft.weight(f"{name}.bias", torch.randn(rows_held, generator=random))
            if draw(st.integers(0, 3))
            else None
        )
        y = draft.call("linear", name, x=x, weight=held, bias=bias)
        behind = draw(st.sampled_from(("split", "split", "permute", "relu", "sin", "nothing")))
        if behind == "split":
            shape = (batch, tokens, 2, rows_held // 2)
            y = draft.call("reshape", f"{name}:heads", x=y, shape=shape)
            y = draft.call("permute", f"{name}:turned", x=y, dims=(0, 2, 1, 3))
            y = draft.call("sin", f"{name}:sin", x=y)
        elif behind == "permute":
            y = draft.call("permute", f"{name}:turned", x=y, dims=(0, 2, 1))
            y = draft.call("cos", f"{name}:cos", x=y)
        elif behind != "nothing":
            y = draft.call(behind, f"{name}:{behind}", x=y)
        made.append(y)
    return Sample(draft.graph(*made), (torch.randn(2, tokens, width, generator=random),))
