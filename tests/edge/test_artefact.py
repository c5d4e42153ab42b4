"""Models and trails as files: what is written is what is read, and nothing else is taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import nn

import fqx
from fqx.edge.artefact import Artefact, load, read, save_model, save_trail
from fqx.ir.arg import Json, canonical
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, OpName, Stage
from fqx.ir.trail import Halt, Trail
from fqx.kit.result import Result, fold
from fqx.testing.small import quantized_trail, small_net


def fault_of(result: Result[object, Halt]) -> Fault:
    return fold(result, lambda value: pytest.fail(f"no fault: {value!r}"), lambda h: h.fault)


def saved(folder: Path, trail: Trail | None = None) -> Path:
    path = folder / "t.fqx"
    save_trail(path, trail or quantized_trail()).unwrap()
    return path


def payloads(graph: Graph) -> dict[str, torch.Tensor]:
    return {
        path: weight.payload
        for path, weight in graph.weights.items()
        if isinstance(weight.payload, torch.Tensor)
    }


def edited(path: Path, change: Callable[[dict[str, Json]], object]) -> None:
    """Edit the program and give it a right seal again: what a careful forger does."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    head = json.loads(members["program.json"])
    change(head["body"])
    head["sha256"] = sha256(canonical(head["body"]).encode()).hexdigest()
    members["program.json"] = json.dumps(head).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_trail_comes_back_whole(tmp_path: Path) -> None:
    trail = quantized_trail()
    path = tmp_path / "t.fqx"
    digest = save_trail(path, trail).unwrap()
    found = read(path).unwrap()
    assert digest == trail.graph.digest == found.trail.graph.digest
    assert [g.digest for g in found.trail.graphs()] == [g.digest for g in trail.graphs()]
    assert [step.text for step in found.trail.steps] == [step.text for step in trail.steps]
    assert [step.diff for step in found.trail.steps] == [step.diff for step in trail.steps]
    assert found.trail.notes == trail.notes
    for one, two in zip(trail.graphs(), found.trail.graphs(), strict=True):
        ours, theirs = payloads(one), payloads(two)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert all(ours[name].stride() == theirs[name].stride() for name in ours)
    origins = [node.origin for node in trail.graph]
    assert [node.origin for node in found.trail.graph] == origins


def test_saving_what_was_read_gives_the_same_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path)
    first = path.read_bytes()
    again = tmp_path / "again.fqx"
    save_trail(again, read(path).unwrap().trail).unwrap()
    assert again.read_bytes() == first


def test_each_weight_is_held_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(saved(tmp_path)) as archive:
        data = archive.read("weights.safetensors")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    needed = {
        weight.fingerprint for g in quantized_trail().graphs() for weight in g.weights.values()
    }
    assert needed == header.keys() - {"__metadata__"}


def test_model_holds_the_last_graph_and_its_plan(tmp_path: Path) -> None:
    trail = quantized_trail()
    path = tmp_path / "m.fqx"
    save_model(path, trail).unwrap()
    found = load(path).unwrap()
    assert found.kind == "model"
    assert found.trail.graph == trail.graph == found.trail.base
    assert fqx.coverage(found.trail) == fqx.coverage(trail)
    assert path.stat().st_size < saved(tmp_path).stat().st_size / 2
    assert len(repr(found).splitlines()) <= 10


def test_loaded_program_computes_the_same_bits(tmp_path: Path) -> None:
    trail = quantized_trail()
    save_model(tmp_path / "m.fqx", trail).unwrap()
    x = torch.randn(5, 3, 8, 8)
    one = fqx.materialize(trail.graph).unwrap()
    two = fqx.load(tmp_path / "m.fqx").unwrap().materialize().unwrap()
    with torch.no_grad():
        assert torch.equal(one(x), two(x))


def test_digest_pins(tmp_path: Path) -> None:
    path = saved(tmp_path)
    digest = quantized_trail().graph.digest
    assert load(path, digest=digest).unwrap().trail.graph.digest == digest
    assert fault_of(load(path, digest="0" * 64)).kind is FaultKind.DIGEST_DIFFERS


def test_detached_leaves_the_float_weights_out(tmp_path: Path) -> None:
    trail = quantized_trail()
    path = tmp_path / "d.fqx"
    save_trail(path, trail, "detached").unwrap()
    state = {weight.fingerprint for weight in trail.base.weights.values()}
    with zipfile.ZipFile(path) as archive:
        data = archive.read("weights.safetensors")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    floats = {
        trail.base.weights[name].fingerprint
        for name in trail.base.weights
        if trail.base.weights[name].dtype.is_float
    }
    assert not floats & header.keys()
    assert state
    found = read(path).unwrap()
    assert found.trail.graph.digest == trail.graph.digest
    assert found.absent
    fault = fault_of(fqx.materialize(found.trail.base))
    assert fault.kind is FaultKind.MISSING_PAYLOAD
    assert fault_of(save_trail(tmp_path / "e.fqx", found.trail)).kind is FaultKind.MISSING_PAYLOAD


FORGERIES: dict[str, Callable[[dict[str, Json]], object]] = {
    "digest": lambda body: body.update(digest="0" * 64),
    "op": lambda body: _first_node(body).update(op="tanh"),
    "step": lambda body: _steps(body).pop(1),
    "no steps": lambda body: body.pop("steps"),
    "weight": lambda body: _weights(body).popitem(),
    "junk": lambda body: body.update(base=[1, 2, 3]),
    "evidence": lambda body: _steps(body)[2].update(evidence=7),
    "options": lambda body: _steps(body)[0].update(options=[]),
}


def _dict(code: Json) -> dict[str, Json]:
    assert isinstance(code, dict)
    return code


def _steps(body: dict[str, Json]) -> list[dict[str, Json]]:
    steps = body["steps"]
    assert isinstance(steps, list)
    return steps  # type: ignore[return-value]  # a list of objects, by the format


def _first_node(body: dict[str, Json]) -> dict[str, Json]:
    nodes = _dict(body["base"])["nodes"]
    assert isinstance(nodes, list)
    return _dict(nodes[1])


def _weights(body: dict[str, Json]) -> dict[str, Json]:
    return _dict(_dict(body["base"])["weights"])


@pytest.mark.parametrize("name", FORGERIES)
def test_edited_artefacts_are_corrupt(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path)
    edited(path, FORGERIES[name])
    assert fault_of(read(path)).kind is FaultKind.CORRUPT_FILE


def test_swapped_tensor_values_are_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as archive:
        members = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    members["weights.safetensors"][-1] ^= 1
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, bytes(data))
    assert fault_of(read(path)).kind is FaultKind.CORRUPT_FILE


def with_op(graph: Graph, op: str) -> Graph:
    """The graph with its foreign node calling something else."""
    node = next(node for node in graph if node.op.startswith("aten."))
    other = replace(node, op=OpName(op))
    return replace(graph, nodes=graph.nodes.put(node.id, other))


def test_harmless_foreign_operators_load(tmp_path: Path) -> None:
    assert any(node.op == "aten.cumprod.default" for node in quantized_trail().graph)
    load(saved(tmp_path)).unwrap()


@pytest.mark.parametrize(
    "op",
    ["aten.from_file.default", "aten.relu_.default", "aten.rand_like.default", "my.op.default"],
)
def test_other_operators_need_to_be_listed(tmp_path: Path, op: str) -> None:
    trail = Trail(with_op(quantized_trail().graph, op))
    path = tmp_path / "m.fqx"
    save_model(path, trail).unwrap()
    fault = fault_of(load(path))
    assert fault.kind is FaultKind.UNLISTED_OP
    assert op in fault.reason
    assert fault.at is not None
    assert read(path).unwrap().trail.graph == trail.graph
    assert fold(load(path, allow_ops=(op,)), lambda _: True, lambda _: False)


def test_names_that_no_capture_gives_are_refused(tmp_path: Path) -> None:
    graph = quantized_trail().graph
    node = graph[graph.order[1]]
    odd = replace(node, id=NodeId("x\n    import os"))
    trail = Trail(
        replace(
            graph,
            nodes=graph.nodes.drop(node.id).put(odd.id, odd),
            order=graph.order.set(1, odd.id),
        )
    )
    save_model(tmp_path / "m.fqx", trail).unwrap()
    assert fault_of(load(tmp_path / "m.fqx")).kind is FaultKind.CORRUPT_FILE


def test_interrupted_saving_keeps_the_old_artefact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    assert fault_of(save_model(path, quantized_trail())).kind is FaultKind.INTERRUPTED
    assert path.read_bytes() == before


class Odd(nn.Module):
    """Python that no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale if x.sum() > 0 else x


class WithOdd(nn.Module):
    """A leaf between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.odd = Odd()
        self.two = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.two(self.odd(self.one(x)))
        return out


def test_leaves_are_handed_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WithOdd().eval()
    trail = fqx.capture(model, (torch.randn(3, 4),), leaves=("odd",)).unwrap()
    path = tmp_path / "leaf.fqx"
    save_trail(path, trail).unwrap()
    assert fault_of(load(path)).kind is FaultKind.MISSING_LEAF
    assert fault_of(load(path, leaves={"odd": nn.ReLU()})).kind is FaultKind.MISSING_LEAF
    other = Odd()
    other.scale.data.fill_(3.0)
    assert fault_of(load(path, leaves={"odd": other})).kind is FaultKind.MISSING_LEAF
    found = load(path, leaves={"odd": model.odd}).unwrap()
    module = fqx.materialize(found.trail.graph).unwrap()
    x = torch.randn(5, 4)
    with torch.no_grad():
        assert torch.equal(module(x), model(x))


def test_reading_runs_nothing_and_changes_nothing(tmp_path: Path) -> None:
    model = small_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trail = fqx.capture(model, (torch.randn(2, 3, 8, 8),)).unwrap()
    save_trail(tmp_path / "t.fqx", trail).unwrap()
    found = read(tmp_path / "t.fqx").unwrap()
    assert isinstance(found, Artefact)
    assert found.trail.graph.stage is Stage.FLOAT
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in before)


def test_artefacts_of_wider_machines_are_refused(tmp_path: Path) -> None:
    """ONEDNN_MAX_CPU_ISA=AVX2 makes a machine without VNNI of any other."""
    target = fqx.onednn()
    if fqx.probe(target).unwrap().isa != "vnni":
        pytest.skip("this machine is the narrow one")
    save_model(tmp_path / "m.fqx", fqx.lower(target).run(quantized_trail()).unwrap()).unwrap()
    save_trail(tmp_path / "t.fqx", quantized_trail()).unwrap()
    code = (
        "import sys, fqx; from fqx.kit.result import fold;"
        "a, b = (fold(fqx.load(sys.argv[1] + n), lambda _: 'fine', lambda h: h.fault.kind.name)"
        " for n in ('/m.fqx', '/t.fqx')); print(a, b)"
    )
    for isa, expected in (("AVX2", "WIDER_MACHINE fine"), ("DEFAULT", "fine fine")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == expected.split(), done.stderr


def test_quantize_is_right_on_a_machine_without_vnni() -> None:
    """A sum of 256 products of full 8-bit integers, which saturates to half of it there."""
    code = (
        "import fqx, torch\n"
        "net = torch.nn.Linear(256, 16, bias=False).eval()\n"
        "torch.nn.init.ones_(net.weight)\n"
        "x = torch.ones(4, 256)\n"
        "done = fqx.quantize(\n"
        "    net, (x,), [x, 0 * x], target='onednn', objective='balanced', progress=False\n"
        ").unwrap()\n"
        "assert fqx.count_macs(done.materialize().unwrap(), (x,)).share == 1.0\n"
        "found = done.materialize().unwrap()(x)\n"
        "text = next(step.text for step in done.trail.steps if step.name == 'lower')\n"
        "print(float((found - 256).abs().max()), text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    error, text = done.stdout.split()
    assert float(error) < 256 / 127
    assert text == 'lower(target="onednn@any")'
