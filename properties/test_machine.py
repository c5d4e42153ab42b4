"""A state machine that draws pipelines: passes in any order, undone, redone, written and read.

Whatever is done to a trail, its digests chain, no name is given twice, and its graph is well
formed; what a pass refuses is refused by name and leaves the trail as it was.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from types import MappingProxyType

import torch
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fqx.edge.artefact import load, read, save_model, save_trail
from fqx.edge.evidence import Recorded
from fqx.edge.materialize import materialize
from fqx.edge.verify import verify
from fqx.ir.arg import Json, canonical
from fqx.ir.codec import Decoders, decode_trail, encode_trail
from fqx.ir.diff import Added, Diff, Removed, apply, invert, then
from fqx.ir.fault import FaultKind
from fqx.ir.names import NodeId, Stage
from fqx.ir.node import Node
from fqx.ir.show import show
from fqx.ir.trail import Evidence, Halt, Step, Trail
from fqx.judge.evaluate import evaluate
from fqx.kit.frozen import row
from fqx.kit.result import fold as on
from fqx.num.tensors import tensor_of
from fqx.ops.spec import check
from fqx.passes.calibrate import calibrate
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.equalize import equalize
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.fuse_kernels import fuse_kernels
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.passes.pipeline import Pass
from fqx.passes.smooth import equalize_inputs, smooth
from fqx.policy.recipe import int8_static
from fqx.policy.target import Target
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.testing.graphs import Sample, samples
from fqx.testing.laws import same_bits, tensors_in

TARGETS: tuple[Target, ...] = (onednn(), native("onednn").unwrap(), reference())

MAKERS: Mapping[str, Callable[[Sample, Target], Pass]] = MappingProxyType(
    {
        "clean": lambda *_: clean(),
        "fuse": lambda *_: fuse(),
        "equalize": lambda *_: equalize(),
        "observe": lambda _, target: observe(int8_static(), target),
        "calibrate": lambda sample, _: calibrate([sample.inputs], progress=False),
        "equalize_inputs": lambda *_: equalize_inputs(),
        "smooth": lambda *_: smooth(),
        "convert": lambda _, target: convert(target),
        "fold": lambda *_: fold(),
        "lower": lambda _, target: lower(target),
        "fuse_kernels": lambda _, target: fuse_kernels(target),
    }
)

ONWARD: Mapping[Stage, str] = MappingProxyType(
    {
        Stage.FLOAT: "fuse",
        Stage.FUSED: "observe",
        Stage.OBSERVED: "calibrate",
        Stage.CALIBRATED: "convert",
        Stage.QUANTIZED: "lower",
    }
)

REFUSALS = frozenset({FaultKind.NOT_FINITE, FaultKind.MISSING_STATISTICS})
"""What a pass may find in a graph of the right stage: overflow, or values observed for another
target that this one does not share."""


def _recorded(kind: str) -> Callable[[Json], Evidence]:
    return lambda value: Recorded(kind, value)


DECODERS: Decoders = {
    kind: _recorded(kind)
    for kind in ("plan", "stats", "lowering", "smoothing", "intent", "equalization")
}


class Trails(RuleBasedStateMachine):
    """One trail from a drawn graph, and what was undone of it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.undone: list[Step] = []

    @initialize(sample=samples(most=6), aim=st.sampled_from(TARGETS), ahead=st.integers(0, 9))
    def start(self, sample: Sample, aim: Target, ahead: int) -> None:
        """Begin with a drawn graph, some of the usual passes behind it."""
        self.sample, self.target = sample, aim
        self.trail = Trail(sample.graph)
        note(f"{aim.label}\n{show(sample.graph)}")
        for make in tuple(MAKERS.values())[:ahead]:
            self._run(make(sample, aim))

    def teardown(self) -> None:
        self.folder.cleanup()

    # -- passes --

    @rule(name=st.sampled_from(sorted(MAKERS)))
    def any_pass(self, name: str) -> None:
        """A pass in whatever place."""
        self._run(MAKERS[name](self.sample, self.target))

    @precondition(lambda self: self.trail.graph.stage in ONWARD)
    @rule()
    def onward(self) -> None:
        """The pass that leads to the next stage."""
        name = ONWARD[self.trail.graph.stage]
        self._run(MAKERS[name](self.sample, self.target))

    @rule(data=st.data())
    def fitting_pass(self, data: st.DataObject) -> None:
        """A pass that takes the stage, so that trails grow long."""
        made = [make(self.sample, self.target) for make in MAKERS.values()]
        fitting = [item for item in made if self.trail.graph.stage in item.needs]
        if fitting:
            self._run(data.draw(st.sampled_from(fitting), label="pass"))

    @precondition(lambda self: self.trail.graph.stage is Stage.CALIBRATED)
    @rule(aim=st.sampled_from(TARGETS))
    def another_target(self, aim: Target) -> None:
        """Convert for a target the graph may not have been observed for."""
        self._run(convert(aim))
        if self.trail.graph.stage is Stage.QUANTIZED:
            self.target = aim

    def _run(self, item: Pass) -> None:
        before = self.trail
        on(item.run(before), self._advanced, lambda halt: self._refused(item, before, halt))

    def _advanced(self, trail: Trail) -> None:
        assert trail.steps[:-1] == self.trail.steps
        self.trail, self.undone = trail, []

    def _refused(self, item: Pass, before: Trail, halt: Halt) -> None:
        assert halt.trail is before
        if before.graph.stage in item.needs:
            assert halt.fault.kind in REFUSALS, str(halt)
        else:
            assert halt.fault.kind is FaultKind.WRONG_STAGE, str(halt)

    # -- steps back and forth --

    @precondition(lambda self: self.trail.steps)
    @rule()
    def undo(self) -> None:
        """The inverse of the last step leads to the graph before it."""
        *kept, last = self.trail.steps
        before = self.trail.graphs()[-2]
        assert apply(invert(last.diff), self.trail.graph).unwrap() == before
        self.trail = Trail(self.trail.base, tuple(kept), self.trail.notes)
        self.undone.append(last)

    @precondition(lambda self: self.undone)
    @rule()
    def redo(self) -> None:
        """What was undone can be applied again."""
        step = self.undone.pop()
        assert apply(step.diff, self.trail.graph).unwrap() == step.graph
        self.trail = self.trail.plus((step,))

    @rule()
    def compose(self) -> None:
        """All steps together are one diff, and its inverse leads back."""
        base, last = self.trail.base, self.trail.graph
        whole = Diff(row(), base.digest, base.digest)
        for step in self.trail.steps:
            whole = then(whole, step.diff).unwrap()
        assert apply(whole, base).unwrap() == last
        assert apply(invert(whole), last).unwrap() == base

    # -- text and files --

    @rule()
    def through_json(self) -> None:
        """The whole trail survives JSON, evidence included."""
        code = encode_trail(self.trail)
        plain = json.dumps(code, allow_nan=False)
        made = decode_trail(json.loads(plain), DECODERS).unwrap()
        assert canonical(encode_trail(made)) == canonical(code)

    @rule(goes_on=st.booleans())
    def through_a_file(self, goes_on: bool) -> None:
        """A saved trail is read as it was; sometimes the work goes on with what was read."""
        path = FilePath(self.folder.name) / "trail.fqx"
        digest = save_trail(path, self.trail).unwrap()
        found = read(path, digest).unwrap().trail
        assert [g.digest for g in found.graphs()] == [g.digest for g in self.trail.graphs()]
        if goes_on:
            self.trail = found

    @rule()
    def without_weights(self) -> None:
        """A detached trail is complete again once its state_dict is there."""
        path = FilePath(self.folder.name) / "detached.fqx"
        save_trail(path, self.trail, weights="detached").unwrap()
        found = read(path).unwrap()
        assert found.trail.graph.digest == self.trail.graph.digest
        if not self._is_replayable():
            return
        base = self.trail.base
        state = {str(name): tensor_of(held).unwrap() for name, held in base.weights.items()}
        proof = verify(found.trail, state).unwrap()
        assert proof.digest == self.trail.graph.digest

    @rule()
    def as_a_model(self) -> None:
        """A saved model holds the last graph, and loads where its kernels run."""
        path = FilePath(self.folder.name) / "model.fqx"
        digest = save_model(path, self.trail).unwrap()
        on(
            load(path, digest),
            lambda found: self._assert(found.trail.graph == self.trail.graph),
            lambda halt: self._assert(halt.fault.kind is FaultKind.WIDER_MACHINE, str(halt)),
        )

    @staticmethod
    def _assert(holds: bool, why: str = "") -> None:
        assert holds, why

    def _is_replayable(self) -> bool:
        return any(len(step.diff) for step in self.trail.steps)

    @precondition(lambda self: self._is_replayable())
    @rule()
    def prove(self) -> None:
        """Every portable step is run again and comes to its digest."""
        proof = verify(self.trail).unwrap()
        assert proof.digest == self.trail.graph.digest
        ran = [step.outcome == "run again" for step in proof.steps]
        assert ran == [step.portable for step in self.trail.steps]

    # -- what it computes --

    @precondition(lambda self: self.trail.graph.stage is not Stage.LOWERED)
    @rule()
    def compute(self) -> None:
        """The module of any stage computes what the judge does, bit for bit."""
        graph = self.trail.graph
        module = materialize(graph).unwrap()
        with torch.no_grad():
            made = tensors_in(module(*self.sample.inputs))
        judged = tensors_in(evaluate(graph, self.sample.inputs).unwrap())
        assert all(same_bits(x, y) for x, y in zip(made, judged, strict=True))

    # -- always --

    @invariant()
    def digests_chain(self) -> None:
        """Each step starts where the one before it ended."""
        graphs = self.trail.graphs()
        for before, after, step in zip(graphs, graphs[1:], self.trail.steps, strict=False):
            assert (step.before, step.after) == (before.digest, after.digest)

    @invariant()
    def no_name_is_given_twice(self) -> None:
        """Along the whole trail, a name that is gone does not come back."""
        gone: set[NodeId] = set()
        for step in self.trail.steps:
            for edit in step.diff.edits:
                match edit:
                    case Removed(item=Node(id=name)):
                        gone.add(name)
                    case Added(item=Node(id=name)):
                        assert name not in gone, f"{step.text} uses {name} again"
                    case _:
                        pass

    @invariant()
    def graph_is_well_formed(self) -> None:
        """The last graph meets the spec of its stage."""
        graph = self.trail.graph
        check(graph, graph.stage).unwrap()


TestTrails = Trails.TestCase
TestTrails.settings = settings(max_examples=100, stateful_step_count=12)
