"""The file under an artefact: an uncompressed zip of `program.json` and `weights.safetensors`.

Writing goes to a temporary name beside the target and is renamed at the end, so that whatever
interrupts it leaves the old file as it was. Reading trusts nothing: two members by these names,
stored and not compressed (so no member is larger than the file), no member twice, no executable
format anywhere. Whatever is wrong with the bytes is a fault.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import BinaryIO

import safetensors.torch
import torch

from fqx.ir.arg import Json, canonical
from fqx.ir.fault import Fault, FaultKind
from fqx.kit.result import Failure, Result, Success, attempt

PROGRAM = "program.json"
WEIGHTS = "weights.safetensors"
VERSION = 1
"""Version of the file format; a file of another version is refused, never guessed at."""

MOST_PROGRAM_BYTES = 1 << 30
"""A longer program is refused before it is parsed."""

_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: its kind, its program as plain data, and tensors by fingerprint."""

    kind: str
    body: dict[str, Json]
    tensors: Mapping[str, torch.Tensor]


def write_file(path: str | os.PathLike[str], content: Content) -> Result[None, Fault]:
    """Write an artefact; the file at `path` is the old one or the whole new one, never a part.

    Equal contents give equal bytes. Faults: UNWRITABLE_FILE; INTERRUPTED on Ctrl-C.
    """
    target = FilePath(os.fspath(path))
    try:
        return _program(content).bind(
            lambda program: _weights(content).bind(
                lambda weights: _replace(target, program, weights)
            )
        )
    except KeyboardInterrupt:
        return Failure(interrupted(target))


def read_file(path: str | os.PathLike[str]) -> Result[Content, Fault]:
    """Read an artefact's bytes; nothing in it is executed, imported or unpickled.

    Faults: UNREADABLE_FILE (absent, truncated, not an artefact), UNKNOWN_VERSION, CORRUPT_FILE.
    """
    source = FilePath(os.fspath(path))
    return _members(source).bind(
        lambda members: _head(source, members[0]).bind(
            lambda head: _tensors(source, members[1]).map(
                lambda tensors: Content(head[0], head[1], tensors)
            )
        )
    )


def interrupted(path: object) -> Fault:
    """Ctrl-C while saving."""
    return Fault(
        FaultKind.INTERRUPTED,
        f"saving {path} was interrupted; what was there before is unchanged",
        "save again",
    )


def unreadable(path: object, why: str) -> Fault:
    """The file is not an artefact, or not all of one."""
    return Fault(
        FaultKind.UNREADABLE_FILE,
        f"{path} cannot be read: {why}",
        "check the path, and copy or save the artefact again",
    )


def corrupt(path: object, why: str) -> Fault:
    """The file is an artefact whose parts do not fit each other."""
    return Fault(
        FaultKind.CORRUPT_FILE,
        f"{path} is damaged or was edited: {why}",
        "take the file from where it was made, or save the artefact again",
    )


def _unwritable(path: object, why: str) -> Fault:
    return Fault(
        FaultKind.UNWRITABLE_FILE,
        f"{path} cannot be written: {why}",
        "choose a folder that exists and can be written",
    )


def _program(content: Content) -> Result[bytes, Fault]:
    def text() -> bytes:
        body = canonical(content.body)
        seal = hashlib.sha256(body.encode()).hexdigest()
        head = f'{{"format":"fqx","kind":"{content.kind}","version":{VERSION},"sha256":"{seal}"'
        return f'{head},"body":{body}}}\n'.encode()

    return attempt(text, lambda error: _unwritable(PROGRAM, _said(error)))


def _weights(content: Content) -> Result[bytes, Fault]:
    names = sorted(content.tensors)
    plain = {name: _storable(content.tensors[name]) for name in names}

    def serialized() -> bytes:
        made: bytes = safetensors.torch.save(plain)
        return made

    return attempt(serialized, lambda error: _unwritable(WEIGHTS, _said(error)))


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    # safetensors has no complex128 and wants row-major elements; the layout is in the program
    held = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return torch.view_as_real(held).contiguous() if held.dtype == torch.complex128 else held


def _replace(target: FilePath, program: bytes, weights: bytes) -> Result[None, Fault]:
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        _write(draft, target, program, weights)
        os.replace(draft, target)
    except (OSError, ValueError) as error:
        draft.unlink(missing_ok=True)
        return Failure(_unwritable(target, _said(error)))
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return Success(None)


def _write(draft: FilePath, target: FilePath, program: bytes, weights: bytes) -> None:
    with open(draft, "xb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, data in ((PROGRAM, program), (WEIGHTS, weights)):
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
        stream.flush()
        os.fsync(stream.fileno())
    if target.exists():
        os.chmod(draft, stat.S_IMODE(target.stat().st_mode))


def _members(source: FilePath) -> Result[tuple[bytes, bytes], Fault]:
    try:
        if not source.is_file():
            return Failure(unreadable(source, "there is no such file"))
        with open(source, "rb") as stream:
            return _parts(source, stream, source.stat().st_size)
    except OSError as error:
        return Failure(unreadable(source, _said(error)))


def _parts(source: FilePath, stream: BinaryIO, size: int) -> Result[tuple[bytes, bytes], Fault]:
    return attempt(
        lambda: zipfile.ZipFile(stream),
        lambda error: unreadable(source, f"it is no zip, or a truncated one ({_said(error)})"),
    ).bind(
        lambda archive: _sound(source, archive, size).bind(
            lambda _: attempt(
                lambda: (archive.read(PROGRAM), archive.read(WEIGHTS)),
                lambda error: corrupt(source, _said(error)),
            )
        )
    )


def _sound(source: FilePath, archive: zipfile.ZipFile, size: int) -> Result[None, Fault]:
    members = archive.infolist()
    names = [member.filename for member in members]
    if sorted(names) != [PROGRAM, WEIGHTS]:
        shown = ", ".join(repr(name[:40]) for name in names[:4]) or "nothing"
        return Failure(
            unreadable(source, f"an artefact holds {PROGRAM} and {WEIGHTS}, this holds {shown}")
        )
    for member in members:
        stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 0x1
        if not stored or member.file_size != member.compress_size or member.file_size > size:
            return Failure(corrupt(source, f"{member.filename} is not stored plainly"))
    if min(member.header_offset for member in members):
        return Failure(corrupt(source, "something stands before the first member"))
    if archive.getinfo(PROGRAM).file_size > MOST_PROGRAM_BYTES:
        return Failure(corrupt(source, f"{PROGRAM} is absurdly long"))
    return Success(None)


def _head(source: FilePath, program: bytes) -> Result[tuple[str, dict[str, Json]], Fault]:
    return attempt(
        lambda: parse_json(program.decode()), lambda error: corrupt(source, _said(error))
    ).bind(lambda head: _opened(source, head))


def _opened(source: FilePath, head: Json) -> Result[tuple[str, dict[str, Json]], Fault]:
    match head:
        case {"format": "fqx", "version": int() as version} if version != VERSION:
            return Failure(
                Fault(
                    FaultKind.UNKNOWN_VERSION,
                    f"{source} is of format version {version}, this library knows {VERSION}",
                    "install the version of fqx that wrote it, or save the artefact again",
                )
            )
        case {
            "format": "fqx",
            "version": int(),
            "kind": str() as kind,
            "sha256": str() as seal,
            "body": dict() as body,
        }:
            found = attempt(
                lambda: hashlib.sha256(canonical(body).encode()).hexdigest(),
                lambda error: corrupt(source, _said(error)),
            )
            return found.bind(
                lambda made: (
                    Success((kind, body))
                    if made == seal
                    else Failure(corrupt(source, f"{PROGRAM} does not have the seal it was given"))
                )
            )
        case _:
            return Failure(unreadable(source, f"{PROGRAM} is not a program of fqx"))


def parse_json(text: str) -> Json:
    """JSON without its loopholes: no name twice, no NaN; ValueError or RecursionError otherwise."""
    made: Json = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    return made


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return made


def _refuse(word: str) -> Json:
    raise ValueError(f"{word} is not JSON")


def _tensors(source: FilePath, data: bytes) -> Result[dict[str, torch.Tensor], Fault]:
    def loaded() -> dict[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = safetensors.torch.load(data)
        return made

    return attempt(loaded, lambda error: corrupt(source, f"{WEIGHTS}: {_said(error)}"))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200] if str(error) else type(error).__name__
