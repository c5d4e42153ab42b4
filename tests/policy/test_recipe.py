"""Examples of selectors and recipes: later rules win, names that match nothing are faults."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fqx.ir.arg import DType
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.ir.node import Origin
from fqx.kit.result import fold
from fqx.num.scheme import QSpec, histogram, int8_channel, uint8_affine
from fqx.policy.recipe import (
    Recipe,
    Scheme,
    Smoothing,
    float_,
    int8_static,
    leave_float,
    resolve,
    scheme_from_arg,
    scheme_to_arg,
    spelt,
    use,
    within,
)
from fqx.policy.selectors import (
    Selector,
    everything,
    module_type,
    node,
    op,
    path,
    predicate,
    regex,
    scope,
    selects,
)
from fqx.testing.draft import Draft


def program() -> Graph:
    """Two convolutions in one block, a linear behind, all with module paths."""
    draft = Draft()
    x = draft.input("x", "batch", 3, 8, 8)
    origins: dict[str, Origin] = {}
    for name, kind in (
        ("layer1.0.conv1", "torch.nn.modules.conv.Conv2d"),
        ("layer1.0.conv2", "torch.nn.modules.conv.Conv2d"),
    ):
        weight = draft.weight(f"{name}.weight", torch.randn(3, 3, 1, 1))
        scopes = ((Path("layer1.0"), "models.Block"), (Path(name), kind))
        origins[name] = Origin(scopes)
        x = draft.call("conv2d", name, x=x, weight=weight)
    flat = draft.call("flatten", ":flatten", x=x, start_dim=1, end_dim=-1)
    weight = draft.weight("fc.weight", torch.randn(4, 192))
    origins["fc"] = Origin(((Path("fc"), "torch.nn.modules.linear.Linear"),))
    made = draft.graph(draft.call("linear", "fc", x=flat, weight=weight))
    nodes = {NodeId(name): made[NodeId(name)] for name in origins}
    located = {name: replace(item, origin=origins[name]) for name, item in nodes.items()}
    return replace(made, nodes=made.nodes.edit(located))


def chosen(selector: Selector) -> list[str]:
    return [item.id for item in program() if selects(selector, item)]


def fault(recipe: Recipe) -> Fault:
    found = resolve(recipe, program())
    return fold(found, lambda made: pytest.fail(f"resolved: {made}"), lambda fault: fault)


CONVS = ["layer1.0.conv1", "layer1.0.conv2"]


@pytest.mark.parametrize(
    "selector, names",
    [
        (path("layer1.0"), CONVS),
        (path("layer1.0.conv1"), CONVS[:1]),
        (path("layer1"), []),
        (regex(r"conv\d"), CONVS),
        (regex(r"^conv"), []),
        (node(":flatten"), [":flatten"]),
        (module_type("Conv2d"), CONVS),
        (module_type(nn.Linear), ["fc"]),
        (module_type("models.Block"), []),
        (scope("Block"), CONVS),
        (scope("layer1.*"), CONVS),
        (op("conv2d", "linear"), [*CONVS, "fc"]),
        (predicate(lambda item: item.op == "linear", "linears"), ["fc"]),
        (op("conv2d") & ~path("layer1.0.conv1"), CONVS[1:]),
        (node("fc") | node(":flatten"), [":flatten", "fc"]),
        (everything() & op("flatten"), [":flatten"]),
    ],
    ids=str,
)
def test_a_selector_takes(selector: Selector, names: list[str]) -> None:
    assert chosen(selector) == names


def test_later_rules_win() -> None:
    scheme = Scheme(uint8_affine(histogram("minmax")), int8_channel())
    recipe = int8_static() | use(path("layer1.0"), scheme) | leave_float(node("layer1.0.conv2"))
    choices = resolve(recipe, program()).unwrap().choices
    assert choices[NodeId("layer1.0.conv1")].scheme == scheme
    assert choices[NodeId("layer1.0.conv2")].scheme is None
    assert choices[NodeId("fc")].scheme == int8_static().rules[1].scheme


def spelt_names(recipe: Recipe) -> list[str]:
    selector = spelt(recipe)
    return [] if selector is None else chosen(selector)


def test_what_the_user_asked_to_quantize_is_no_presets_wish() -> None:
    scheme = Scheme(uint8_affine(), int8_channel())
    preset = int8_static()
    assert spelt(preset) is None
    assert spelt(preset | leave_float(path("fc"))) is None
    assert spelt_names(preset | use(path("layer1.0"), scheme)) == CONVS
    assert spelt_names(preset | use(op("linear"), scheme)) == ["fc"]
    assert spelt_names(within("layer1.0", preset)) == CONVS
    # later rules win
    both = preset | use(path("layer1.0"), scheme) | leave_float(path("layer1.0.conv1"))
    assert spelt_names(both) == CONVS[1:]
    assert spelt_names(both | use(op("linear"), scheme)) == [*CONVS[1:], "fc"]
    assert spelt(both | preset) is None


def test_float_leaves_everything_float() -> None:
    choices = resolve(float_(), program()).unwrap().choices
    assert len(choices) == 4
    assert all(choice.scheme is None for choice in choices.values())


@pytest.mark.parametrize(
    "selector, near",
    [
        (path("layer1.0.conv3"), "layer1.0.conv1"),
        (node("fcc"), "fc"),
        (regex("layer1.0.convv1"), "layer1.0.conv1"),
        (op("conv2d") & path("layer1.O"), "layer1.0"),
    ],
    ids=str,
)
def test_a_misspelt_name_is_a_fault_with_near_misses(selector: Selector, near: str) -> None:
    found = fault(int8_static() | leave_float(selector))
    assert found.kind is FaultKind.UNMATCHED_RULE
    assert near in found.remedy


def test_a_rule_by_type_or_op_that_matches_nothing_is_reported() -> None:
    resolution = resolve(int8_static() | leave_float(module_type("GRU")), program()).unwrap()
    assert "GRU" in resolution.remarks[0]
    assert (
        fault(int8_static() | leave_float(op("gelu")).required()).kind is FaultKind.UNMATCHED_RULE
    )


def test_a_rule_that_later_rules_take_entirely_is_a_fault() -> None:
    found = fault(int8_static() | leave_float(node("fc")) | use(op("linear"), SCHEME))
    assert found.kind is FaultKind.SHADOWED_RULE
    assert "op('linear')" in found.reason
    assert resolve(Recipe((leave_float(op("linear")),)) | int8_static(), program()).unwrap().remarks


SCHEME = Scheme(uint8_affine(), int8_channel(), Smoothing(30, 2, 18), "a note")


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(int8_channel(), int8_channel()),
        Scheme(uint8_affine(), uint8_affine()),
        Scheme(QSpec(DType.UINT8, 0, 300), int8_channel()),
        Scheme(QSpec(DType.FLOAT32, 0, 1), int8_channel()),
    ],
    ids=str,
)
def test_a_scheme_that_cannot_be_is_a_fault(scheme: Scheme) -> None:
    assert fault(int8_static() | use(op("linear"), scheme)).kind is FaultKind.BAD_RECIPE


def test_a_pattern_that_cannot_be_read_is_a_fault() -> None:
    assert fault(int8_static() | leave_float(regex("("))).kind is FaultKind.BAD_RECIPE


def test_a_scheme_survives_as_an_argument() -> None:
    for scheme in (SCHEME, *(rule.scheme for rule in int8_static().rules)):
        assert scheme is not None
        assert scheme_from_arg(scheme_to_arg(scheme)).unwrap() == scheme
    assert not fold(scheme_from_arg("no scheme"), lambda _: True, lambda _: False)
