"""Laws of capture and of the float module, on drawn models: both front ends, every batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from hypothesis import given, note
from hypothesis import strategies as st
from torch import Tensor

from fqx.edge.capture import capture
from fqx.edge.materialize import materialize
from fqx.ir.graph import Graph
from fqx.ir.show import show
from fqx.judge.evaluate import evaluate
from fqx.num.tensors import is_intact
from fqx.ops.types import types
from fqx.testing.models import Drawn, ModelSample, model_samples, respelled

How = Literal["export", "symbolic"]


def _graph(sample: ModelSample, how: How = "export") -> Graph:
    note(str(sample))
    graph = capture(sample.model(), sample.inputs(), how=how).unwrap().graph
    note(show(graph))
    return graph


def _tensors(value: object) -> list[Tensor]:
    match value:
        case Tensor():
            return [value]
        case dict():
            return [tensor for item in value.values() for tensor in _tensors(item)]
        case list() | tuple():
            return [tensor for item in value for tensor in _tensors(item)]
        case _:
            return []


def _run(model: Callable[..., object], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return _tensors(model(*(item.clone() for item in inputs)))


def _snapshot(model: Drawn) -> dict[str, object]:
    seen: dict[str, object] = {}
    for path, module in model.named_modules():
        seen[f"{path} type"] = type(module)
        for name, value in vars(module).items():
            seen[f"{path}.{name}"] = id(value)
    for path, tensor in model.state_dict(keep_vars=True).items():
        seen[f"{path} tensor"] = (
            id(tensor),
            tensor._version,
            tensor.detach().clone().numpy().tobytes(),
        )
    return seen


@given(model_samples(), st.sampled_from(["export", "symbolic"]))
def test_a_captured_graph_means_the_model(sample: ModelSample, how: How) -> None:
    graph = _graph(sample, how)
    for batch in (1, 2, 5):
        inputs = sample.inputs(batch)
        expected = _run(sample.model(), inputs)
        got = _tensors(evaluate(graph, tuple(item.clone() for item in inputs)).unwrap())
        assert len(expected) == len(got)
        assert all(torch.equal(one, two) for one, two in zip(expected, got, strict=True)), batch


@given(model_samples())
def test_both_front_ends_give_one_graph(sample: ModelSample) -> None:
    one, two = _graph(sample, "export"), _graph(sample, "symbolic")
    assert [node.code for node in one] == [node.code for node in two]
    assert one.digest == two.digest
    assert [node.origin.scope for node in one] == [node.origin.scope for node in two]


@given(model_samples(), st.sampled_from(["export", "symbolic"]), st.booleans())
def test_capture_leaves_the_model_alone(sample: ModelSample, how: How, share: bool) -> None:
    model, inputs = sample.model(), sample.inputs()
    before, held = _snapshot(model), [item.clone() for item in inputs]
    graph = capture(model, inputs, how=how, share=share).unwrap().graph
    assert _snapshot(model) == before
    assert all(torch.equal(one, two) for one, two in zip(inputs, held, strict=True))
    assert capture(model, inputs, how=how).unwrap().graph.digest == graph.digest


@given(model_samples())
def test_a_graph_is_isolated_from_its_model(sample: ModelSample) -> None:
    model = sample.model()
    graph = capture(model, sample.inputs()).unwrap().graph
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    assert all(is_intact(weight) for weight in graph.weights.values())


@given(st.data())
def test_spelling_does_not_matter(data: st.DataObject) -> None:
    sample = data.draw(model_samples())
    other = data.draw(respelled(sample))
    assert _graph(sample).digest == _graph(other).digest


@given(model_samples())
def test_types_are_torch_types(sample: ModelSample) -> None:
    graph = _graph(sample)
    assert set(types(graph)) == set(graph.nodes)
    assert not any(node.op.startswith("aten.") for node in graph)


@given(model_samples(), st.sampled_from(["export", "symbolic"]))
def test_a_float_module_equals_its_model(sample: ModelSample, how: How) -> None:
    module = materialize(_graph(sample, how)).unwrap()
    for batch in (1, 2, 5):
        inputs = sample.inputs(batch)
        expected, got = _run(sample.model(), inputs), _run(module, inputs)
        assert all(torch.equal(one, two) for one, two in zip(expected, got, strict=True)), batch
        formats = [(one.stride(), two.stride()) for one, two in zip(expected, got, strict=True)]
        assert all(one == two for one, two in formats)


MODEL_LAWS: tuple[Callable[[], None], ...] = (
    test_a_captured_graph_means_the_model,
    test_both_front_ends_give_one_graph,
    test_capture_leaves_the_model_alone,
    test_a_graph_is_isolated_from_its_model,
    test_spelling_does_not_matter,
    test_types_are_torch_types,
    test_a_float_module_equals_its_model,
)
"""What `python -m properties` runs on drawn models."""
