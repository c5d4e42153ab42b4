"""Wrong things give the named fault and change nothing, each through the public functions alone.

`untouched` holds the caller's model and compares everything about it bit for bit afterwards.
"""

from __future__ import annotations

import json
import math
import os
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from returns.primitives.exceptions import UnwrapFailedError
from torch import nn

import fqx
from fqx.edge import artefact
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.names import Digest
from fqx.kit.result import Result, fold
from fqx.testing.small import SmallNet, batches, small_net


@contextmanager
def untouched() -> Iterator[SmallNet]:
    """A model of the caller's; at the end it is what it was, and so is torch."""
    model = small_net()
    yield from _watched(model)


@contextmanager
def untouched_in_training() -> Iterator[SmallNet]:
    """The same in training mode."""
    yield from _watched(small_net().train())


def _watched(model: SmallNet) -> Iterator[SmallNet]:
    def look() -> dict[str, object]:
        seen: dict[str, object] = {}
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                seen[f"{path}:{name}"] = list(value) if isinstance(value, dict) else value
        for path, tensor in model.state_dict(keep_vars=True).items():
            seen[path] = (
                id(tensor),
                tensor._version,
                tensor.requires_grad,
                tensor.grad is None,
                tensor.detach().numpy().tobytes(),
            )
        seen["random numbers"] = torch.get_rng_state().numpy().tobytes()
        seen["modes"] = (torch.is_grad_enabled(), torch.get_num_threads())
        return seen

    before = look()
    yield model
    assert look() == before


def fault_of(result: Result[object, fqx.Halt]) -> Fault:
    """The fault; every one says why and what to do, and is told by `unwrap`."""
    fault = fold(result, lambda value: pytest.fail(f"no fault: {value!r}"), lambda h: h.fault)
    assert fault.reason
    assert fault.remedy
    with pytest.raises(UnwrapFailedError) as raised:
        result.unwrap()
    assert isinstance(raised.value.__cause__, fqx.Halt)
    text = "".join(traceback.format_exception(raised.value))
    for part in (fault.name, fault.reason, fault.remedy, fault.at, fault.module, fault.source):
        assert not part or part in text
    return fault


def quantized(model: nn.Module, calibration: object = None) -> Result[fqx.Quantized, fqx.Halt]:
    """The short road; without calibration data it gets good ones."""
    data = batches() if calibration is None else calibration
    assert isinstance(data, (list, Iterator))
    return fqx.quantize(model, (batches()[0],), data, progress=False)


@pytest.fixture(scope="module")
def done() -> fqx.Quantized:
    return quantized(small_net()).unwrap()


# -- calls --


WRONG_BATCHES: dict[str, Callable[[torch.Tensor], object]] = {
    "one too many": lambda x: (x, x),
    "none": lambda _: (),
    "another name": lambda x: {"image": x},
    "one name too many": lambda x: {"x": x, "mask": x},
    "another shape": lambda x: x[:, :2],
    "another rank": lambda x: x[0],
    "another dtype": lambda x: x.double(),
    "labels beside": lambda x: (x, torch.zeros(len(x), dtype=torch.int64)),
    "no tensor": lambda _: "images",
}


@pytest.mark.parametrize("name", WRONG_BATCHES)
def test_a_calibration_batch_of_wrong_arity(name: str) -> None:
    with untouched() as model:
        first, second = batches()[:2]
        fault = fault_of(quantized(model, [first, WRONG_BATCHES[name](second)]))
    assert fault.kind is FaultKind.BATCH_DOES_NOT_FIT
    assert "batch 1" in fault.reason
    assert "x float32[batch, 3, 8, 8]" in fault.reason


@pytest.mark.parametrize("name", [name for name in WRONG_BATCHES if name != "labels beside"])
def test_a_call_of_wrong_arity_of_the_finished_module(name: str, done: fqx.Quantized) -> None:
    module = done.materialize().unwrap()
    x = batches()[0]
    before = module(x)
    wrong = WRONG_BATCHES[name](x)
    args: tuple[object, ...] = wrong if isinstance(wrong, tuple) else (wrong,)
    kwargs = wrong if isinstance(wrong, dict) else {}
    with pytest.raises(fqx.Halt) as raised:
        module(*(() if kwargs else args), **kwargs)
    assert raised.value.fault.kind is FaultKind.INPUT_DOES_NOT_FIT
    assert "InputDoesNotFit" in str(raised.value)
    assert torch.equal(module(x), before)


def test_an_example_of_wrong_arity() -> None:
    x = batches()[0]
    for example in ((), (x, x), {"image": x}):
        with untouched() as model:
            assert isinstance(example, (tuple, dict))
            fault = fault_of(fqx.quantize(model, example, batches(), progress=False))
        assert fault.kind is FaultKind.INPUT_DOES_NOT_FIT


# -- the model and its data --


def test_a_model_in_training_mode() -> None:
    with untouched_in_training() as model:
        fault = fault_of(quantized(model))
        assert model.training
    assert fault.kind is FaultKind.MODEL_IN_TRAINING
    assert "bn (BatchNorm2d)" in fault.reason
    assert "eval()" in fault.remedy


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_calibration_data_that_is_not_finite(bad: float) -> None:
    given = batches()
    given[1][2, 0, 3, 3] = bad
    with untouched() as model:
        fault = fault_of(quantized(model, given))
    assert fault.kind is FaultKind.NOT_FINITE
    assert fault.at == "@x"
    assert "batch 1" in fault.reason


def test_an_empty_calibration_set() -> None:
    sets: tuple[object, ...] = ([], iter(()))
    for empty in sets:
        with untouched() as model:
            fault = fault_of(quantized(model, empty))
        assert fault.kind is FaultKind.EMPTY_CALIBRATION


def test_an_empty_batch() -> None:
    with untouched() as model:
        fault = fault_of(quantized(model, [batches()[0][:0]]))
    assert fault.kind in (FaultKind.EMPTY_BATCH, FaultKind.BATCH_DOES_NOT_FIT)


# -- recipes and targets --


@pytest.mark.parametrize(
    ("select", "near"),
    [
        (fqx.path("conv22"), "'conv2'"),
        (fqx.path("haed"), "'head'"),
        (fqx.node("conv3"), "'conv'"),
        (fqx.regex("^twinn$"), "'twin'"),
    ],
)
def test_a_misspelt_path_names_near_misses(select: fqx.Selector, near: str) -> None:
    recipe = fqx.int8_static() | fqx.leave_float(select)
    with untouched() as model:
        fault = fault_of(
            fqx.quantize(model, (batches()[0],), batches(), recipe=recipe, progress=False)
        )
    assert fault.kind is FaultKind.UNMATCHED_RULE
    assert str(select) in fault.reason
    assert near in fault.remedy


def test_a_misspelt_leaf_names_near_misses() -> None:
    with untouched() as model:
        fault = fault_of(
            fqx.quantize(model, (batches()[0],), batches(), leaves=("conf2",), progress=False)
        )
    assert fault.kind is FaultKind.UNKNOWN_LEAF
    assert "'conv2'" in fault.remedy


@pytest.mark.parametrize("target", ["cuda", "native/tpu", "", "onednn/x86"])
def test_an_unsupported_target(target: str) -> None:
    unread = (pytest.fail("calibration data were read") for _ in range(1))
    with untouched() as model:
        fault = fault_of(
            fqx.quantize(model, (batches()[0],), unread, target=target, progress=False)
        )
    assert fault.kind is FaultKind.UNSUPPORTED_TARGET
    assert "onednn" in fault.remedy or "x86" in fault.remedy


# -- files --


@pytest.mark.parametrize("what", ["model", "trail"])
def test_a_truncated_artefact(what: str, done: fqx.Quantized, tmp_path: Path) -> None:
    path = tmp_path / "a.fqx"
    digest = done.save(path, "model" if what == "model" else "trail").unwrap()
    whole = path.read_bytes()
    for part in (0, 1, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:part])
        for pinned in (None, digest):
            fault = fault_of(fqx.load(path, digest=pinned))
            assert fault.kind is FaultKind.UNREADABLE_FILE
        assert path.read_bytes() == whole[:part]


EDITS: dict[str, Callable[[dict[str, bytes]], None]] = {
    "an operator": lambda members: _put(members, b'"onednn.conv2d"', b'"onednn.c0nv2d"'),
    "a weight": lambda members: _flip(members, "weights.safetensors", -7),
    "a header": lambda members: _flip(members, "weights.safetensors", 3),
    "a digest": lambda members: _reseal(members),
}


def _put(members: dict[str, bytes], old: bytes, new: bytes) -> None:
    assert old in members["program.json"]
    members["program.json"] = members["program.json"].replace(old, new, 1)


def _flip(members: dict[str, bytes], name: str, at: int) -> None:
    held = bytearray(members[name])
    held[at] ^= 1
    members[name] = bytes(held)


def _reseal(members: dict[str, bytes]) -> None:
    found = json.loads(members["program.json"])
    found["body"]["digest"] = "0" * 64
    members["program.json"] = json.dumps(found).encode()


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_artefact(edit: str, done: fqx.Quantized, tmp_path: Path) -> None:
    path = tmp_path / "a.fqx"
    done.save(path).unwrap()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    EDITS[edit](members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    fault = fault_of(fqx.load(path))
    assert fault.kind is FaultKind.CORRUPT_FILE
    assert str(path) in fault.reason


def test_another_program_than_the_pinned_one(done: fqx.Quantized, tmp_path: Path) -> None:
    done.save(tmp_path / "a.fqx").unwrap()
    fault = fault_of(fqx.load(tmp_path / "a.fqx", digest="0" * 64))
    assert fault.kind is FaultKind.DIGEST_DIFFERS


# -- Ctrl-C --


@pytest.mark.parametrize("what", ["model", "trail"])
@pytest.mark.parametrize("place", ["encode", "write", "fsync", "replace"])
def test_ctrl_c_while_saving(
    what: str, place: str, done: fqx.Quantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.fqx"

    def save() -> Result[Digest, fqx.Halt]:
        return done.save(path, "model" if what == "model" else "trail")

    digest = save().unwrap()
    old = path.read_bytes()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    places: dict[str, tuple[object, str]] = {
        "encode": (artefact, "encode_graph"),
        "write": (zipfile.ZipFile, "writestr"),
        "fsync": (os, "fsync"),
        "replace": (os, "replace"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*places[place], interrupt)
        fault = fault_of(save())
    assert fault.kind is FaultKind.INTERRUPTED
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.fqx"]
    assert fqx.load(path, digest=digest).unwrap().graph.digest == done.graph.digest


def test_ctrl_c_while_calibrating_keeps_and_resumes() -> None:
    given = batches()

    def interrupted() -> Iterator[torch.Tensor]:
        yield from given[:2]
        raise KeyboardInterrupt

    with untouched() as model:
        halt = quantized(model, interrupted()).failure()
    assert halt.fault.kind is FaultKind.INTERRUPTED
    assert "resume=" in halt.fault.remedy
    assert halt.trail is not None
    assert [step.name for step in halt.trail.steps] == ["clean", "fuse", "observe"]
    kept = halt.fault.kept
    assert isinstance(kept, fqx.Stats)
    assert kept.batches == 2
    target = fqx.probe(fqx.onednn()).unwrap()
    rest = (
        fqx.calibrate(given[2:], progress=False, resume=kept)
        | fqx.smooth()
        | fqx.convert(target)
        | fqx.fold()
        | fqx.lower(target)
    )
    whole = fqx.quantize(
        small_net(), (given[0],), given, target=target, objective="balanced", progress=False
    ).unwrap()
    assert rest.run(halt.trail).unwrap().graph.digest == whole.graph.digest
