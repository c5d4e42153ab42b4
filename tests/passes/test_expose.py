"""A program whose inputs and outputs are integers computes what it did between quantizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fqx.edge.artefact import load, save_model
from fqx.edge.capture import capture
from fqx.edge.materialize import materialize
from fqx.ir.diff import Changed
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import RuleName, Stage
from fqx.ir.trail import Trail
from fqx.kit.frozen import FrozenMap
from fqx.kit.result import Result
from fqx.num.affine import dequantize, quantize
from fqx.num.scheme import int8_channel, uint8_affine
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.expose import Borders, borders, expose
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.passes.pipeline import Pass, Rewrite, conclude
from fqx.policy.recipe import Scheme, int8_static, recipe_from_arg, recipe_to_arg, use
from fqx.policy.selectors import path
from fqx.policy.target import Target
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.testing.borders import BORDER_LAWS
from fqx.testing.laws import violations
from fqx.testing.small import batches, quantized_trail

TARGETS = (onednn(), native("onednn").unwrap(), native("x86").unwrap(), reference())


class Pyramid(nn.Module):
    """Two images in, a dict with features of two levels, a score and a constant out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.side = nn.Conv2d(3, 8, 1)
        self.down = nn.Conv2d(8, 8, 3, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Any]:
        fine = self.stem(left).relu() + self.side(right)
        coarse = self.pool(self.down(fine).relu())
        return {
            "levels": (fine, coarse),
            "none": None,
            "score": self.head(coarse).mean((2, 3)),
            "stride": 4,
        }


def pairs() -> list[tuple[Tensor, Tensor]]:
    drawn = torch.Generator().manual_seed(2)
    return [
        (torch.randn(2, 3, 10, 10, generator=drawn), torch.rand(2, 3, 10, 10, generator=drawn))
        for _ in range(2)
    ]


@cache
def pyramid(target: Target) -> Trail:
    torch.manual_seed(0)
    road = (
        clean()
        | fuse()
        | observe(int8_static(), target)
        | calibrate(pairs(), progress=False)
        | convert(target)
        | fold()
    )
    return capture(Pyramid().eval(), pairs()[0]).bind(road.run).unwrap()


IN, OUT = ("left", "right"), ("levels.0", "levels.1")


def entering(graph: Graph, values: tuple[Tensor, ...]) -> list[Tensor]:
    held = {border.index: border for border in borders(graph) if border.side == "input"}
    return [
        quantize(
            value,
            held[at].scale,
            held[at].zero_point,
            held[at].qmin,
            held[at].qmax,
            held[at].dtype,
        )
        for at, value in enumerate(values)
    ]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
@pytest.mark.parametrize("runs", ["as kernels", "as reference"])
def test_computes_the_same_between_its_borders(target: Target, runs: str) -> None:
    trail = pyramid(target)
    exposed = expose(IN, OUT).run(trail).unwrap()
    down: Callable[[Trail], Graph] = (
        (lambda it: lower(target).run(it).unwrap().graph)
        if runs == "as kernels"
        else (lambda it: it.graph)
    )
    whole, inner = down(trail), down(exposed)
    with torch.no_grad():
        wanted = materialize(whole).unwrap()(*pairs()[1])
        made = materialize(inner).unwrap()(*entering(inner, pairs()[1]))
    assert list(made) == list(wanted)
    assert made["none"] is None
    assert made["stride"] == 4
    assert torch.equal(made["score"], wanted["score"])
    levels = [border for border in borders(inner) if border.side == "output"]
    assert [border.name for border in levels] == list(OUT)
    for border, got, want in zip(levels, made["levels"], wanted["levels"], strict=True):
        assert got.dtype is torch.uint8
        assert got.stride() == want.stride()
        assert torch.equal(dequantize(got, border.scale, border.zero_point), want)


def test_obeys_the_laws() -> None:
    graph = pyramid(onednn()).graph
    assert not violations(expose(IN, OUT), graph, BORDER_LAWS, pairs()[1])
    assert not violations(expose(inputs=(1,)), graph, BORDER_LAWS, pairs()[1])
    assert not violations(expose(), graph, BORDER_LAWS, pairs()[1])


def test_a_border_that_tells_another_zero_point_breaks_the_law() -> None:
    def wrong(graph: Graph) -> Result[Rewrite, Any]:
        def shifted(made: Rewrite) -> Result[Rewrite, Any]:
            old = made.graph.signature
            told = tuple(replace(item, zero_point=item.zero_point + 1) for item in old.borders)
            edits = (*made.diff.edits, Changed(old, replace(old, borders=told), RuleName("plant")))
            return conclude(graph, edits, "plant")

        return expose(IN).rewrite(graph).bind(shifted)

    plant = Pass("plant", FrozenMap(), frozenset({Stage.QUANTIZED}), None, wrong)
    found = violations(plant, pyramid(onednn()).graph, BORDER_LAWS, pairs()[1])
    assert [item.law for item in found] == ["keeps_meaning_between_borders"]


def test_the_signature_says_integers_and_refuses_floats() -> None:
    step = expose(inputs=("x",)).run(quantized_trail()).unwrap().steps[-1]
    (border,) = borders(step.graph)
    assert isinstance(step.evidence, Borders)
    assert step.evidence.items == (border,)
    assert "uint8 0..255" in repr(step.evidence)
    module = materialize(lower(onednn()).run(step.graph).unwrap().graph).unwrap()
    with pytest.raises(Exception, match="uint8 was captured, got float32"):
        module(batches()[0])


def test_borders_go_through_files_and_are_replayed(tmp_path: Any) -> None:
    trail = (expose(inputs=("x",)) | lower(onednn())).run(quantized_trail()).unwrap()
    file = tmp_path / "model.fqx"
    save_model(file, trail).unwrap()
    back = load(file).unwrap().trail.graph
    assert back.digest == trail.graph.digest
    assert borders(back) == borders(trail.graph) != ()


class Classifier(nn.Module):
    """What nothing reads comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).relu().flatten(1))
        return out


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.label)
def test_an_output_that_nothing_reads_is_integers_where_the_recipe_says_so(target: Target) -> None:
    torch.manual_seed(0)
    scheme = Scheme(uint8_affine(), int8_channel(), integers_out=True)
    recipe = int8_static() | use(path("head"), scheme)
    assert recipe_from_arg(recipe_to_arg(recipe)).unwrap() == recipe
    images = [left for left, _ in pairs()]
    road = (
        clean()
        | fuse()
        | observe(recipe, target)
        | calibrate(images, progress=False)
        | convert(target)
        | fold()
    )
    trail = capture(Classifier().eval(), (images[0],)).bind(road.run).unwrap()
    whole = lower(target).run(trail).unwrap().graph
    inner = (expose(("x",), ("output",)) | lower(target)).run(trail).unwrap().graph
    *_, border = borders(inner)
    with torch.no_grad():
        wanted = materialize(whole).unwrap()(images[1])
        made = materialize(inner).unwrap()(*entering(inner, (images[1],)))
    assert made.dtype is torch.uint8
    assert len(made.unique()) > 1
    assert torch.equal(dequantize(made, border.scale, border.zero_point), wanted)


def refusal(make: Pass, graph: Graph) -> str:
    fault = make.run(graph).failure().fault
    assert fault.kind is FaultKind.NO_BORDER
    assert fault.remedy
    return fault.reason


class Twice(nn.Module):
    """An input that a kernel reads, and a float operator too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x), torch.sin(x)


def test_refuses_what_it_cannot_do() -> None:
    graph = pyramid(onednn()).graph
    assert refusal(expose(inputs=("up",)), graph) == "there is no input 'up'"
    assert refusal(expose(inputs=(2,)), graph) == "there is no input 2"
    assert refusal(expose(outputs=(-1,)), graph) == "there is no output -1"
    assert "score is the result of mean" in refusal(expose(outputs=("score",)), graph)
    assert "none is a constant" in refusal(expose(outputs=("none",)), graph)
    once = expose(IN, OUT).run(graph).unwrap().graph
    assert refusal(expose(inputs=("left",)), once) == "input left is integers already"
    assert refusal(expose(outputs=("levels.0",)), once) == "output levels.0 is integers already"
    x = torch.randn(2, 8)
    road = (
        clean()
        | observe(int8_static(), onednn())
        | calibrate([x], progress=False)
        | convert(onednn())
    )
    twice = capture(Twice().eval(), (x,)).bind(road.run).unwrap().graph
    assert "is read as float by" in refusal(expose(inputs=("x",)), twice)
    floats = capture(Twice().eval(), (x,)).unwrap().graph
    assert expose(inputs=("x",)).run(floats).failure().fault.kind is FaultKind.WRONG_STAGE
