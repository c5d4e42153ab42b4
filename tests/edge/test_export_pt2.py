"""An exported program gives the module's bits, for every batch, in every process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import fqx
from fqx.edge.export_pt2 import NEEDED
from fqx.ir.fault import FaultKind
from fqx.ir.graph import Graph
from fqx.kit.result import fold
from fqx.num.scheme import int8_channel, uint8_affine
from fqx.policy.recipe import Recipe, Rule, Scheme
from fqx.policy.selectors import everything
from fqx.testing.served import Inputs, served

RECIPES = {
    "static": None,
    "lone": Recipe((Rule(everything(), Scheme(uint8_affine(), int8_channel(), lone=True), "l"),)),
    "dynamic": fqx.int8_dynamic(),
    "weights": fqx.weight_only(),
    "float16": fqx.float16(),
}


def lowered(name: str, target: str = "onednn", kind: str = "static") -> tuple[Graph, Inputs]:
    model, inputs = served(name)
    torch.manual_seed(1)
    batches = [inputs(4), inputs(4)]
    done = fqx.quantize(
        model,
        batches[0],
        batches,
        target=target,
        recipe=RECIPES[kind],
        objective="coverage",
        progress=False,
    )
    return done.unwrap().graph, inputs


def leaves(value: object) -> list[Tensor]:
    return [item for item in _pytree.tree_leaves(value) if isinstance(item, Tensor)]


def same(one: object, two: object) -> bool:
    left, right = leaves(one), leaves(two)
    return len(left) == len(right) > 0 and all(map(torch.equal, left, right))


CASES = [
    *((name, target, "static") for name in ("convolutional", "perceptron", "attending", "mixed")
      for target in ("onednn", "native/x86", "reference")),
    *(("normed", target, "lone") for target in ("onednn", "native/onednn", "native/x86")),
    *((name, "onednn", "dynamic") for name in ("convolutional", "lstm", "gru", "cells")),
    *((name, "native/x86", "dynamic") for name in ("perceptron", "attending")),
    *((name, "onednn", "weights") for name in ("attending", "bagged")),
    *((name, "onednn", "float16") for name in ("perceptron", "lstm", "cells")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "target", "kind"), CASES)
def test_exported_programs_give_the_modules_bits(
    name: str, target: str, kind: str, tmp_path: Path
) -> None:
    graph, inputs = lowered(name, target, kind)
    module = fqx.materialize(graph).unwrap()
    fqx.export_pt2(graph, tmp_path / "it.pt2").unwrap()
    loaded = fqx.load_pt2(tmp_path / "it.pt2").unwrap()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it.pt2"]
    torch.manual_seed(2)
    for batch in (1, 2, 5):
        given = inputs(batch)
        wanted = module(*given)
        # once when the weights are packed, once with the packs
        assert same(loaded(*given), wanted)
        assert same(loaded(*given), wanted)


def test_a_fresh_process_needs_one_import_and_no_model(tmp_path: Path) -> None:
    graph, inputs = lowered("convolutional")
    fqx.export_pt2(graph, tmp_path / "it.pt2").unwrap()
    given = inputs(3)
    torch.save((given, fqx.materialize(graph).unwrap()(*given)), tmp_path / "io.pt")
    code = (
        f"import torch, sys, {NEEDED}\n"
        "module = torch.export.load(sys.argv[1]).module()\n"
        "given, wanted = torch.load(sys.argv[2])\n"
        "assert torch.equal(module(*given), wanted)\n"
        "assert not any(name.startswith('torch.ao.quantization.fx') for name in sys.modules)\n"
    )
    paths = (str(tmp_path / "it.pt2"), str(tmp_path / "io.pt"))
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_importing_fqx_defines_no_operators() -> None:
    code = "import fqx, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_parameters_keep_their_paths_and_integers() -> None:
    graph, _ = lowered("convolutional")
    state = fqx.export_pt2(graph).unwrap().state_dict
    module = fqx.materialize(graph).unwrap()
    wanted = {key: value for key, value in module.state_dict().items() if key != "_extra_state"}
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_no_quantized_dtype_is_left_of_native_programs() -> None:
    graph, _ = lowered("convolutional", "native/x86")
    made = fqx.export_pt2(graph).unwrap()
    values = [node.meta["val"] for node in made.graph.nodes if "val" in node.meta]
    dtypes = {item.dtype for item in leaves(values)}
    assert torch.uint8 in dtypes
    assert not dtypes & {torch.quint8, torch.qint8, torch.qint32}


def test_the_batch_stays_free() -> None:
    graph, _ = lowered("perceptron")
    made = fqx.export_pt2(graph).unwrap()
    size = next(node for node in made.graph.nodes if node.name == "x").meta["val"].shape[0]
    assert not isinstance(size, int)
    (bounds,) = made.range_constraints.values()
    assert bounds.lower == 1


def test_float_programs_are_exported_too() -> None:
    model, inputs = served("convolutional")
    graph = fqx.capture(model, inputs(2)).unwrap().graph
    given = inputs(3)
    with torch.no_grad():
        assert same(fqx.export_pt2(graph).unwrap().module()(*given), model(*given))


class Keyed(nn.Module):
    """Takes a mapping and a keyword, gives a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: dict[str, Tensor], *, more: Tensor) -> dict[str, Tensor]:
        """Their sum behind a layer."""
        return {"y": self.layer(x["a"]) + more}


def test_containers_and_keywords_are_kept() -> None:
    x, more = {"a": torch.randn(4, 8)}, torch.randn(4, 8)
    kwargs = {"more": more}
    done = fqx.quantize(
        Keyed().eval(),
        (x,),
        kwargs=kwargs,
        recipe=fqx.int8_dynamic(),
        objective="coverage",
        progress=False,
    ).unwrap()
    made = fqx.export_pt2(
        done.graph, example_inputs=({"a": x["a"][:1]},), kwargs={"more": more[:1]}
    )
    found = made.unwrap().module()(x, more=more)
    assert found.keys() == {"y"}
    assert same(found, done.materialize().unwrap()(x, more=more))


def test_examples_that_do_not_fit_are_named() -> None:
    graph, _ = lowered("perceptron")
    failed = fqx.export_pt2(graph, example_inputs=(torch.randn(2, 23),))
    fault = fold(failed, lambda _: None, lambda halt: halt.fault)
    assert fault is not None
    assert fault.kind is FaultKind.INPUT_DOES_NOT_FIT
    assert "x" in fault.reason


class Branching(nn.Module):
    """Decides by a value."""

    def forward(self, x: Tensor) -> Tensor:
        """x, or twice x."""
        return x if float(x.sum()) > 0 else x * 2


class Around(nn.Module):
    """A linear before a module that nothing traces."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.odd = nn.Linear(8, 8), Branching()

    def forward(self, x: Tensor) -> Tensor:
        """Both, in turn."""
        made: Tensor = self.odd(self.layer(x))
        return made


def test_what_cannot_be_traced_is_a_fault_and_writes_nothing(tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    done = fqx.quantize(
        Around().eval(), (x,), [x], leaves=("odd",), objective="coverage", progress=False
    ).unwrap()
    failed = fqx.export_pt2(done.graph, tmp_path / "it.pt2")
    fault = fold(failed, lambda _: None, lambda halt: halt.fault)
    assert fault is not None
    assert fault.kind is FaultKind.UNCAPTURABLE
    assert fault.remedy
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_written_or_read_are_faults(tmp_path: Path) -> None:
    graph, _ = lowered("perceptron")
    (tmp_path / "old.pt2").write_bytes(b"old")
    failed = fqx.export_pt2(graph, tmp_path / "none" / "it.pt2")
    fault = fold(failed, lambda _: None, lambda halt: halt.fault)
    assert fault is not None
    assert fault.kind is FaultKind.UNWRITABLE_FILE
    unread = fold(fqx.load_pt2(tmp_path / "old.pt2"), lambda _: None, lambda halt: halt.fault)
    assert unread is not None
    assert unread.kind is FaultKind.UNREADABLE_FILE
