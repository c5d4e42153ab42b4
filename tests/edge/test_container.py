"""The file under an artefact: whole or not at all, and never trusted."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fqx.edge.admit import objection
from fqx.edge.container import Content, read_file, write_file
from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import Result, fold

CONTENT = Content(
    "model",
    {"answer": [1, 2.5, None, "x"]},
    {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor([1 + 2j], dtype=torch.complex128),
        "c": torch.zeros(0, dtype=torch.bfloat16),
        "d": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    },
)


def kind_of(result: Result[object, Fault]) -> FaultKind | None:
    return fold(result, lambda _: None, lambda fault: fault.kind)


def saved(folder: Path) -> Path:
    path = folder / "a.fqx"
    write_file(path, CONTENT).unwrap()
    return path


def rezipped(path: Path, change: Callable[[dict[str, bytes]], None], **options: int) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", **options) as archive:  # type: ignore[call-overload]  # mode
        for name, data in members.items():
            archive.writestr(name, data)


def test_round_trip_is_exact_and_bytes_are_deterministic(tmp_path: Path) -> None:
    path = saved(tmp_path)
    found = read_file(path).unwrap()
    assert (found.kind, found.body) == (CONTENT.kind, CONTENT.body)
    assert torch.equal(found.tensors["a"], CONTENT.tensors["a"])
    assert torch.equal(found.tensors["d"], CONTENT.tensors["d"])
    first = path.read_bytes()
    assert saved(tmp_path).read_bytes() == first
    assert [item.name for item in tmp_path.iterdir()] == ["a.fqx"]


def test_file_is_a_plain_zip_of_json_and_safetensors(tmp_path: Path) -> None:
    with zipfile.ZipFile(saved(tmp_path)) as archive:
        assert archive.namelist() == ["program.json", "weights.safetensors"]
        assert all(item.compress_type == zipfile.ZIP_STORED for item in archive.infolist())
        assert json.loads(archive.read("program.json"))["format"] == "fqx"


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_truncation_is_a_fault(tmp_path: Path, part: float) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    assert kind_of(read_file(path)) is FaultKind.UNREADABLE_FILE


def test_absent_and_foreign_files_are_unreadable(tmp_path: Path) -> None:
    assert kind_of(read_file(tmp_path / "none.fqx")) is FaultKind.UNREADABLE_FILE
    assert kind_of(read_file(tmp_path)) is FaultKind.UNREADABLE_FILE
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.pt")
    assert kind_of(read_file(tmp_path / "model.pt")) is FaultKind.UNREADABLE_FILE


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    start = data.index(b"answer")
    for at in (start, len(data) // 2):
        edited = bytearray(data)
        edited[at] ^= 1
        path.write_bytes(edited)
        assert kind_of(read_file(path)) in (FaultKind.CORRUPT_FILE, FaultKind.UNREADABLE_FILE)


def test_edited_program_loses_its_seal(tmp_path: Path) -> None:
    path = saved(tmp_path)

    def edit(members: dict[str, bytes]) -> None:
        members["program.json"] = members["program.json"].replace(b"2.5", b"2.6")

    rezipped(path, edit)
    assert kind_of(read_file(path)) is FaultKind.CORRUPT_FILE


def test_unknown_version_is_said_before_anything_else(tmp_path: Path) -> None:
    path = saved(tmp_path)

    def edit(members: dict[str, bytes]) -> None:
        members["program.json"] = b'{"format":"fqx","version":999,"whatever":1}'

    rezipped(path, edit)
    assert kind_of(read_file(path)) is FaultKind.UNKNOWN_VERSION


HOSTILE = [
    b"[" * 200_000,
    b'{"format":"fqx","format":"fqx"}',
    b'{"format":"fqx","version":NaN}',
    b"9" * 100_000,
    b"\xff\xfe",
    b"null",
]


@pytest.mark.parametrize("program", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_programs_are_faults(tmp_path: Path, program: bytes) -> None:
    path = saved(tmp_path)
    rezipped(path, lambda members: members.update({"program.json": program}))
    assert kind_of(read_file(path)) in (FaultKind.CORRUPT_FILE, FaultKind.UNREADABLE_FILE)


def test_compressed_members_and_bombs_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    rezipped(
        path,
        lambda members: members.update({"program.json": b" " * 50_000_000}),
        compression=zipfile.ZIP_DEFLATED,
    )
    assert kind_of(read_file(path)) is FaultKind.CORRUPT_FILE


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_extra_and_double_members_are_refused(tmp_path: Path) -> None:
    for name in ("setup.py", "program.json", "../program.json"):
        path = saved(tmp_path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"{}")
        assert kind_of(read_file(path)) is FaultKind.UNREADABLE_FILE


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "PYOBJ", "shape": [1], "data_offsets": [0, 4]}},
        [],
    ],
)
def test_hostile_tensor_headers_are_faults(tmp_path: Path, header: object) -> None:
    path = saved(tmp_path)
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + b"\0" * 8
    rezipped(path, lambda members: members.update({"weights.safetensors": data}))
    assert kind_of(read_file(path)) is FaultKind.CORRUPT_FILE
    absurd = (1 << 62).to_bytes(8, "little")
    rezipped(path, lambda members: members.update({"weights.safetensors": absurd}))
    assert kind_of(read_file(path)) is FaultKind.CORRUPT_FILE


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_interrupted_saving_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    other = Content("model", {"answer": 2}, {})
    assert kind_of(write_file(path, other)) is FaultKind.INTERRUPTED
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.fqx"]


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    assert kind_of(write_file(tmp_path / "no" / "a.fqx", CONTENT)) is FaultKind.UNWRITABLE_FILE
    nan = Content("model", {"x": float("nan")}, {})
    assert kind_of(write_file(tmp_path / "a.fqx", nan)) is FaultKind.UNWRITABLE_FILE
    assert not list(tmp_path.iterdir())


def test_mode_of_the_old_file_is_kept(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.chmod(0o640)
    saved(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o640


ALLOWED = ["aten.cumsum.default", "aten.one_hot.default", "aten.max_pool2d_with_indices.default"]
REFUSED = {
    "aten.relu_.default": "writes",
    "aten.add.out": "writes",
    "aten.rand.default": "random",
    "aten.bernoulli.p": "random",
    "aten.save.default": "effect",
    "aten.from_file.default": "file",
    "aten.empty.memory_format": "memory",
    "aten.no_such_op.default": "no such",
    "aten.relu.__class__": "no such",
    "aten.__getattr__.default": "no such",
    "aten.relu": "neither",
    "os.system.default": "neither",
    "onednn.qconv_prepack.default": "neither",
}


def test_foreign_operators_are_admitted_by_their_schema() -> None:
    assert not any(objection(name) for name in ALLOWED)
    for name, word in REFUSED.items():
        assert word in objection(name), name


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """A pickle where tensors should stand is bytes that do not parse."""
    path = saved(tmp_path)
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer)
    rezipped(path, lambda members: members.update({"weights.safetensors": buffer.getvalue()}))
    assert kind_of(read_file(path)) is FaultKind.CORRUPT_FILE
