"""Examples of `correct_bias`: the mean of every channel comes back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fqx
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.ir.trail import Trail
from fqx.judge.evaluate import evaluate
from fqx.passes.correct_bias import Corrected, by_channel, correct_bias
from fqx.targets.onednn import onednn

TARGET = onednn()


def batches(count: int = 3) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.rand(16, 3, 10, 10, generator=random) for _ in range(count)]


class Network(nn.Module):
    """A convolution without bias, a depthwise one called twice, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


def quantized(recipe: fqx.Recipe | None = None) -> tuple[Graph, Trail]:
    """The calibrated graph and the trail to the quantized one."""
    torch.manual_seed(1)
    graph = fqx.capture(Network().eval(), (batches()[0],)).unwrap().graph
    trail = (
        (
            fqx.clean()
            | fqx.fuse()
            | fqx.observe(recipe or fqx.int8_static(), TARGET)
            | fqx.calibrate(batches(), progress=False)
            | fqx.convert(TARGET)
            | fqx.fold()
        )
        .run(graph)
        .unwrap()
    )
    return trail.graphs()[-3], trail


def output(graph: Graph) -> torch.Tensor:
    made = evaluate(graph, (torch.cat(batches()),), {}).unwrap()
    assert isinstance(made, torch.Tensor)
    return made


def test_the_mean_of_the_output_comes_back() -> None:
    reference, trail = quantized()
    made = correct_bias(reference, batches(), progress=False).run(trail).unwrap()
    truth = output(reference)
    before, after = ((output(item) - truth).mean(0).abs() for item in (trail.graph, made.graph))
    # 48 values of magnitude below 1, each rounded to float32
    assert float(after.max()) < 1e-6
    assert float(before.max()) > 20 * float(after.max())
    evidence = made.steps[-1].evidence
    assert isinstance(evidence, Corrected)
    assert evidence.batches == 3
    assert list(evidence.layers) == ["first", "twice", "twice@1", "head"]


def test_the_corrected_program_lowers_and_stays_corrected() -> None:
    reference, trail = quantized()
    made = (correct_bias(reference, batches(), progress=False) | fqx.lower(TARGET)).run(trail)
    module = fqx.materialize(made.unwrap().graph).unwrap()
    error = (module(torch.cat(batches())) - output(reference)).mean(0).abs().max()
    plain = (output(trail.graph) - output(reference)).mean(0).abs().max()
    assert float(error) < 0.2 * float(plain)


def test_a_layer_without_bias_gets_one_and_two_calls_get_two() -> None:
    reference, trail = quantized()
    made = correct_bias(reference, batches(), progress=False).run(trail).unwrap().graph
    assert Path("first.bias") not in trail.graph.weights
    assert Path("first.bias") in made.weights
    ours = [str(made[NodeId(name)].args[2]) for name in ("twice", "twice@1")]
    assert len(set(ours)) == 2


def test_batches_are_picked_and_may_be_an_iterator() -> None:
    reference, trail = quantized()
    pairs = ((batch, "label") for batch in batches())
    picked = correct_bias(reference, pairs, inputs=lambda pair: pair[0], progress=False)
    plain = correct_bias(reference, batches(), progress=False)
    digests = [item.run(trail).unwrap().graph.digest for item in (picked, plain)]
    assert digests[0] == digests[1]


class Counted:
    """Batches that say how many of them are alive at once."""

    def __init__(self) -> None:
        self.read = 0
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in batches(6):
            fresh = batch.clone()
            del batch
            self.alive.add(fresh)
            self.most = max(self.most, len(self.alive))
            self.read += 1
            yield fresh
            del fresh


def test_batches_are_read_one_at_a_time() -> None:
    reference, trail = quantized()
    counted = Counted()
    correct_bias(reference, counted, progress=False).run(trail).unwrap()
    # once for the float program and once for each of four layers
    assert counted.read == 6 * 5
    # the one that is worked on, and the one before it that a loop variable still holds
    assert counted.most <= 2


def test_batches_read_once_are_held_one_at_a_time_too() -> None:
    reference, trail = quantized()
    counted = Counted()
    made = correct_bias(reference, iter(counted), progress=False).run(trail).unwrap()
    plain = correct_bias(reference, batches(6), progress=False).run(trail).unwrap()
    assert counted.read == 6
    assert counted.most <= 2
    assert made.graph.digest == plain.graph.digest


def test_other_batches_when_read_again_are_a_fault() -> None:
    class Fewer:
        def __init__(self) -> None:
            self.count = 4

        def __iter__(self) -> Iterator[torch.Tensor]:
            self.count -= 1
            return iter(batches(self.count))

    reference, trail = quantized()
    fault = correct_bias(reference, Fewer(), progress=False).run(trail).failure().fault
    assert fault.kind is FaultKind.EMPTY_CALIBRATION
    assert "3 batches, and 2" in fault.reason


@pytest.mark.parametrize("recipe", [fqx.float16(), fqx.float16_static()], ids=["weights", "all"])
def test_layers_of_half_precision_get_their_mean_back(recipe: fqx.Recipe) -> None:
    reference, trail = quantized(recipe)
    made = correct_bias(reference, batches(), progress=False).run(trail).unwrap()
    truth = output(reference)
    before, after = ((output(item) - truth).mean(0).abs() for item in (trail.graph, made.graph))
    evidence = made.steps[-1].evidence
    assert isinstance(evidence, Corrected)
    assert list(evidence.layers) == ["head"]
    # static halves round the result behind the layer again: half a unit of 2^-11 in 48 values
    least = 1e-6 if recipe == fqx.float16() else float(before.max())
    assert float(after.max()) < least


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ([], FaultKind.EMPTY_CALIBRATION),
        ([torch.zeros(2, 3)], FaultKind.BATCH_DOES_NOT_FIT),
        ([torch.full((1, 3, 10, 10), torch.nan)], FaultKind.NOT_FINITE),
    ],
    ids=["none", "other", "nan"],
)
def test_batches_that_tell_nothing_are_refused(data: list[torch.Tensor], kind: FaultKind) -> None:
    reference, trail = quantized()
    halt = correct_bias(reference, data, progress=False).run(trail).failure()
    assert halt.fault.kind is kind


def test_another_programs_graph_is_no_reference() -> None:
    _, trail = quantized()
    other = fqx.capture(nn.ReLU().eval(), (batches()[0],)).unwrap().graph
    halt = correct_bias(other, batches(), progress=False).run(trail).failure()
    assert halt.fault.kind is FaultKind.CONFLICTING_PLAN
    assert halt.fault.at == "first"


def test_channels_are_found_with_and_without_a_batch() -> None:
    values = torch.arange(24.0)
    assert by_channel("conv1d", values.reshape(2, 3, 4)).shape == (8, 3)
    assert by_channel("conv1d", values.reshape(3, 8)).shape == (8, 3)
    assert by_channel("linear", values.reshape(2, 4, 3)).shape == (8, 3)
    assert by_channel("linear", values).shape == (1, 24)
