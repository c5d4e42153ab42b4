"""Laws of `expose`: what is moved out of a program is missing from nothing but the program."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fqx.ir.arg import Arg, NodeRef, WeightRef
from fqx.ir.graph import Graph
from fqx.ir.signature import Border
from fqx.judge.evaluate import evaluate
from fqx.kit.result import fold
from fqx.num.affine import dequantize, quantize
from fqx.num.tensors import torch_dtype
from fqx.testing.laws import PASS_LAWS, Law, Subject, same_bits, tensors_in

__all__ = ["BORDER_LAWS", "entering", "leaving"]


def entering(graph: Graph, values: tuple[object, ...]) -> tuple[object, ...]:
    """The values of a float call, quantized where the program takes integers."""
    borders = {border.index: border for border in graph.signature.borders if border.side == "input"}
    return tuple(
        _quantized(value, borders[index]) if index in borders else value
        for index, value in enumerate(values)
    )


def _quantized(value: object, border: Border) -> object:
    assert isinstance(value, Tensor)
    grid = (border.scale, border.zero_point, border.qmin, border.qmax, border.dtype)
    return quantize(value, *grid)


def leaving(
    graph: Graph, values: Mapping[int, Tensor], like: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    """The tensors of an output tree, by leaf, dequantized where the program gives integers."""
    borders = {b.index: b for b in graph.signature.borders if b.side == "output"}
    return {
        index: dequantize(value, borders[index].scale, borders[index].zero_point).to(
            like[index].dtype
        )
        if index in borders
        else value
        for index, value in values.items()
    }


def _leaves(graph: Graph, value: object) -> dict[int, Tensor]:
    """Tensors by the index of their leaf; constants of the output tree have none."""
    places = [index for index, leaf in enumerate(graph.outputs) if _is_computed(leaf)]
    return dict(zip(places, tensors_in(value), strict=True))


def _is_computed(leaf: Arg) -> bool:
    return isinstance(leaf, NodeRef | WeightRef)


def _means_the_same(subject: Subject) -> str | None:
    before, after = subject.before, subject.after

    def compare(one: dict[int, Tensor], two: dict[int, Tensor]) -> str | None:
        for border in after.signature.borders:
            if border.side == "output" and two[border.index].dtype != torch_dtype(border.dtype):
                return f"output {border.name} is {two[border.index].dtype}"
        for index, value in leaving(after, two, one).items():
            if not same_bits(value, one[index]):
                worst = (value.double() - one[index].double()).abs().max().item()
                return f"output {index} differs by {worst}"
        return None

    with torch.no_grad():
        wanted = evaluate(before, subject.inputs)
        made = evaluate(after, entering(after, subject.inputs))
    return fold(
        wanted,
        lambda one: fold(made, lambda two: compare(_leaves(before, one), _leaves(after, two)), str),
        # what torch itself refuses before the pass has no meaning to keep
        lambda _: None,
    )


BORDER_LAWS: tuple[Law[Subject], ...] = (
    *(law for law in PASS_LAWS if law.name != "keeps_types"),
    Law(
        "keeps_meaning_between_borders",
        "between quantize and dequantize of its borders, outputs are bit for bit the same",
        _means_the_same,
    ),
)
"""Laws of `expose` on a graph whose inputs come in a flat tuple."""
